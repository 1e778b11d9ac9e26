//! Workers of this process over gRPC and a real etcd.

use std::time::Duration;

use shared::cluster::discovery::{Discovery, DiscoveryOptions};
use shared::cluster::etcd::{Client, PutRequest, StoreOptions};
use shared::config::{Binary, Config};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use worker::prelude::*;

use crate::servers::Etcd;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

pub(crate) struct World {
    etcd: Etcd,
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
        Self { etcd: Etcd::start() }
    }

    pub(crate) async fn worker(&self, id: &str, app: App, more: &[(&str, &str)]) -> Worker {
        let etcd = self.etcd.url();
        let mut flags = vec![
            ("pitaya.cluster.rpc.transport", "grpc"),
            ("pitaya.cluster.rpc.server.grpc.port", "0"),
            ("pitaya.cluster.rpc.server.grpc.host", "127.0.0.1"),
            ("pitaya.cluster.sd.etcd.endpoints", etcd.as_str()),
            ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms"),
            ("pitaya.modules.bindingstorage.etcd.endpoints", etcd.as_str()),
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

    /// A record in etcd, behind which there need not be anybody.
    pub(crate) async fn announce(
        &self,
        server_type: &str,
        id: &str,
        metadata: &[(&str, &str)],
    ) -> Discovery {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let own = Server {
            id: id.to_owned(),
            server_type: server_type.to_owned(),
            metadata: metadata.iter().map(entry).collect(),
            frontend: server_type == "connector",
            hostname: String::new(),
        };
        let options = DiscoveryOptions {
            store: StoreOptions::at(self.etcd.url()),
            shutdown_delay: Duration::ZERO,
            ..DiscoveryOptions::default()
        };
        let discovery = Discovery::start(options, &own).unwrap();
        soon(discovery.register()).await;
        discovery
    }

    /// Writes a binding as a frontend does.
    pub(crate) async fn bind(&self, frontend_type: &str, uid: &str, server_id: &str) {
        let client = Client::new(&StoreOptions::at(self.etcd.url()), Duration::from_secs(5));
        let key = format!("pitaya/bindings/{frontend_type}/{uid}").into_bytes();
        let value = server_id.as_bytes().to_vec();
        let put = PutRequest { key, value, ..PutRequest::default() };
        soon(client.unwrap().put(put)).await.unwrap();
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

    /// Where a server says that it takes calls.
    pub(crate) fn grpc_port(&self, id: &str) -> u16 {
        let server = self.context.servers().by_id(id).unwrap().clone();
        assert_eq!(server.metadata["grpcHost"], "127.0.0.1");
        server.metadata["grpcPort"].parse().unwrap()
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
