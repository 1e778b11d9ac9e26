//! The cluster of one test: a real etcd, gateways and workers in this process, and no NATS anywhere.

use std::time::Duration;

use client::raw::RawClient;
use gateway::builder::Builder;
use gateway::gateway::Gateway;
use shared::cluster::discovery::{Discovery, DiscoveryOptions};
use shared::cluster::etcd::StoreOptions;
use shared::config::{Binary, Config};
use shared::server::Server;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use worker::App;

use crate::asking::established;
pub(crate) use crate::asking::{SOON, error_of, until, until_answered};
use crate::servers::Etcd;

/// Both drivers: every test of behaviour runs on each.
pub(crate) const DRIVERS: [&str; 2] = ["uring", "epoll"];

pub(crate) struct World {
    etcd: Etcd,
    runtime: Runtime,
}

/// A running worker; it ends with the world's runtime unless it is stopped.
pub(crate) struct Worker {
    stop: mpsc::Sender<()>,
    end: JoinHandle<worker::Result<()>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { etcd: Etcd::start(), runtime }
    }

    /// Waits for the future, for a while.
    pub(crate) fn soon<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { timeout(SOON, future).await.expect("it takes too long") })
    }

    pub(crate) fn config(&self, binary: Binary, more: &[(&str, &str)]) -> Config {
        let etcd = self.etcd.url();
        let mut all = vec![
            ("pitaya.cluster.rpc.transport", "grpc"),
            ("pitaya.cluster.rpc.server.grpc.port", "0"),
            ("pitaya.cluster.rpc.server.grpc.host", "127.0.0.1"),
            ("pitaya.cluster.sd.etcd.endpoints", etcd.as_str()),
            ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms"),
            ("pitaya.modules.bindingstorage.etcd.endpoints", etcd.as_str()),
            ("pitaya.admin.listen", "127.0.0.1:0"),
        ];
        if binary == Binary::Gateway {
            all.extend([
                ("pitaya.gateway.tcp", "127.0.0.1:0"),
                ("pitaya.gateway.ws", ""),
                ("pitaya.gateway.threads", "2"),
            ]);
        }
        all.extend(more);
        let all: Vec<_> =
            all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Config::load(binary, None, std::iter::empty(), &all).expect("good settings")
    }

    pub(crate) fn gateway(&self, driver: &str, id: &str, more: &[(&str, &str)]) -> Gateway {
        self.builder(driver, id, more).start().expect("the gateway starts")
    }

    /// A gateway with an application of its own.
    pub(crate) fn hosting(&self, driver: &str, id: &str, application: App) -> Gateway {
        let builder = self.builder(driver, id, &[]).application(application);
        builder.start().expect("the gateway starts")
    }

    pub(crate) fn builder(&self, driver: &str, id: &str, more: &[(&str, &str)]) -> Builder {
        let mut all = vec![
            ("pitaya.server.type", "connector"),
            ("pitaya.server.id", id),
            ("pitaya.gateway.driver", driver),
        ];
        all.extend(more);
        Builder::new(self.config(Binary::Gateway, &all))
    }

    pub(crate) fn worker(&self, id: &str, app: App) -> Worker {
        let config = self.config(Binary::Worker, &[("pitaya.server.id", id)]);
        let (stop, stops) = mpsc::channel(4);
        let end = self.runtime.spawn(async move { app.run_until(&config, stops).await });
        Worker { stop, end }
    }

    pub(crate) fn stop_worker(&self, worker: Worker) {
        self.soon(async {
            worker.stop.send(()).await.unwrap();
            worker.end.await.unwrap().unwrap();
        });
    }

    /// A record in etcd, behind which there is whoever listens on that port.
    pub(crate) fn announce(&self, server_type: &str, id: &str, port: u16) -> Discovery {
        let metadata =
            [("grpcHost".into(), "127.0.0.1".into()), ("grpcPort".into(), port.to_string())];
        let own = Server {
            id: id.to_owned(),
            server_type: server_type.to_owned(),
            metadata: metadata.into(),
            frontend: server_type == "connector",
            hostname: String::new(),
        };
        let options = DiscoveryOptions {
            store: StoreOptions::at(self.etcd.url()),
            shutdown_delay: Duration::ZERO,
            ..DiscoveryOptions::default()
        };
        let discovery = self.soon(async { Discovery::start(options, &own) }).unwrap();
        self.soon(discovery.register());
        discovery
    }

    pub(crate) fn withdraw(&self, discovery: Discovery) {
        self.soon(discovery.shutdown());
    }

    /// What a server says of itself.
    pub(crate) fn record(&self, discovery: &Discovery, id: &str) -> Server {
        self.soon(discovery.wait_synced());
        let tables = discovery.tables();
        until(id, || tables.borrow().by_id(id).map(|server| Server::clone(server)))
    }

    /// Where a server says that it takes calls.
    pub(crate) fn grpc_port(&self, discovery: &Discovery, id: &str) -> u16 {
        let server = self.record(discovery, id);
        assert_eq!(server.metadata["grpcHost"], "127.0.0.1");
        server.metadata["grpcPort"].parse().unwrap()
    }
}

/// A client that may send.
pub(crate) fn tcp(gateway: &Gateway) -> RawClient {
    established(RawClient::connect_tcp(gateway.addresses().tcp[0]).unwrap())
}

/// The text of the answer to a request that must succeed.
pub(crate) fn ask(client: &mut RawClient, route: &str, payload: &str) -> String {
    let answer = client.request(route, payload.as_bytes()).unwrap();
    assert!(!answer.is_error, "{route}: {}", answer.text());
    answer.text()
}
