//! Workers of this process over a real nats-server and etcd.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::cluster::discovery::{Discovery, DiscoveryOptions};
use shared::cluster::etcd::StoreOptions;
use shared::config::{Binary, Config};
use shared::server::Server;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use worker::prelude::*;

use crate::servers::{Etcd, Nats};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

pub(crate) struct World {
    pub(crate) nats: Nats,
    pub(crate) etcd: Etcd,
}

/// A worker, and what its handlers would get to call others with.
pub(crate) struct Worker {
    pub(crate) rpc: Rpc,
    context: Ctx,
    stop: mpsc::Sender<()>,
    end: JoinHandle<worker::Result<()>>,
}

impl World {
    pub(crate) fn start() -> Self {
        Self { nats: Nats::start(&[]), etcd: Etcd::start() }
    }

    /// Starts a worker of the app's type.
    pub(crate) async fn worker(&self, id: &str, app: App, more: &[(&str, &str)]) -> Worker {
        let (nats, etcd) = (self.nats.url(), self.etcd.url());
        let mut flags = vec![
            ("pitaya.nats.connect", nats.as_str()),
            ("pitaya.cluster.sd.etcd.endpoints", etcd.as_str()),
            ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms"),
            ("pitaya.cluster.rpc.server.nats.reconnectwait", "50ms"),
            ("pitaya.cluster.rpc.server.nats.reconnectjitter", "10ms"),
            ("pitaya.server.id", id),
            ("pitaya.admin.listen", "off"),
        ];
        flags.extend(more);
        let flags: Vec<_> =
            flags.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let config = Config::load(Binary::Worker, None, std::iter::empty(), &flags).unwrap();
        let (sender, mut tools) = mpsc::unbounded_channel();
        let app = app.on_start(move |rpc: Rpc, context: Ctx| {
            let _ = sender.send((rpc, context));
            std::future::ready(())
        });
        let (stop, stops) = mpsc::channel(4);
        let end = tokio::spawn(async move { app.run_until(&config, stops).await });
        let (rpc, context) = soon(tools.recv()).await.expect("the start hook runs");
        let worker = Worker { rpc, context, stop, end };
        worker.knows(&[id]).await;
        worker
    }

    /// A record in etcd without a process behind it, for as long as the result lives.
    pub(crate) async fn phantom(&self, server_type: &str, id: &str) -> Discovery {
        let own = Server {
            id: id.to_owned(),
            server_type: server_type.to_owned(),
            metadata: BTreeMap::new(),
            frontend: false,
            hostname: String::new(),
        };
        let options = DiscoveryOptions {
            store: StoreOptions::at(self.etcd.url()),
            ..DiscoveryOptions::default()
        };
        let discovery = Discovery::start(options, &own).unwrap();
        soon(discovery.register()).await;
        discovery
    }
}

impl Worker {
    /// Waits until the worker knows these servers.
    pub(crate) async fn knows(&self, ids: &[&str]) {
        self.wait(|worker| ids.iter().all(|id| worker.context.servers().by_id(id).is_some())).await;
    }

    /// Waits until the worker knows no server of this id.
    pub(crate) async fn forgets(&self, id: &str) {
        self.wait(|worker| worker.context.servers().by_id(id).is_none()).await;
    }

    async fn wait(&self, is_so: impl Fn(&Self) -> bool) {
        let mut turns = interval(Duration::from_millis(5));
        soon(async {
            while !is_so(self) {
                turns.tick().await;
            }
        })
        .await;
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).await.unwrap();
        soon(self.end).await.unwrap().unwrap();
    }
}
