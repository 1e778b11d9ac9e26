//! The cluster of one test: nats-server, etcd, gateways and workers in this process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use client::raw::RawClient;
use gateway::builder::Builder;
use gateway::control::plan::Plan;
use gateway::gateway::{Commands, Gateway};
use shared::cluster::discovery::{Discovery, DiscoveryOptions};
use shared::cluster::etcd::StoreOptions;
use shared::config::{Binary, Config};
use shared::server::{METADATA_PROTOCOL, PROTOCOL_BATCHES, Server};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use worker::App;
use worker::demo::{self, DemoOptions};

use crate::asking::established;
pub(crate) use crate::asking::{SOON, error_of, until, until_answered};
use crate::backend::Backend;
use crate::servers::{Etcd, Nats};

/// Both drivers: every test of behaviour runs on each.
pub(crate) const DRIVERS: [&str; 2] = ["uring", "epoll"];
/// The id of the gateway, where there is one.
pub(crate) const GATE: &str = "gate-1";

/// Servers and the runtime of everything that is not the gateway.
pub(crate) struct World {
    pub(crate) nats: Nats,
    pub(crate) etcd: Etcd,
    runtime: Runtime,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::over(Nats::start(&[]))
    }

    pub(crate) fn over(nats: Nats) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self { nats, etcd: Etcd::start(), runtime }
    }

    /// Waits for the future, for a while.
    pub(crate) fn soon<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { timeout(SOON, future).await.expect("it takes too long") })
    }

    pub(crate) fn handle(&self) -> tokio::runtime::Handle {
        self.runtime.handle().clone()
    }

    /// The configuration of a gateway of this cluster, with these settings on top.
    pub(crate) fn config(&self, driver: &str, settings: &[(&str, &str)]) -> Config {
        let (nats, etcd) = (self.nats.url(), self.etcd.url());
        let mut all = vec![
            ("pitaya.server.id", GATE),
            ("pitaya.server.type", "connector"),
            ("pitaya.gateway.tcp", "127.0.0.1:0"),
            ("pitaya.gateway.ws", "127.0.0.1:0"),
            ("pitaya.admin.listen", "127.0.0.1:0"),
            ("pitaya.gateway.threads", "2"),
            ("pitaya.gateway.driver", driver),
            ("pitaya.nats.connect", &nats),
            ("pitaya.cluster.rpc.client.nats.reconnectwait", "100ms"),
            ("pitaya.cluster.rpc.client.nats.reconnectjitter", "20ms"),
            ("pitaya.cluster.sd.etcd.endpoints", &etcd),
            ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms"),
        ];
        all.extend(settings);
        let all: Vec<_> =
            all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Config::load(Binary::Gateway, None, std::iter::empty(), &all).expect("good settings")
    }

    /// A plan of a gateway that only forwards.
    pub(crate) fn plan(&self, driver: &str, settings: &[(&str, &str)]) -> Plan {
        Plan::new(&self.config(driver, settings), None).expect("a good plan")
    }

    /// A gateway with an application of its own.
    pub(crate) fn hosting(
        &self,
        driver: &str,
        application: worker::App,
        settings: &[(&str, &str)],
    ) -> Gateway {
        let builder = Builder::new(self.config(driver, settings));
        builder.application(application).start().expect("the gateway starts")
    }

    pub(crate) fn gateway(&self, driver: &str, settings: &[(&str, &str)]) -> Gateway {
        Gateway::start(self.plan(driver, settings), Commands::new()).expect("the gateway starts")
    }

    /// A backend of type `room` that is made by hand and announces nothing, as Go's do.
    pub(crate) fn backend(&self, id: &str) -> Backend {
        self.backend_at(id, &self.nats.url())
    }

    /// The same, connected to another NATS server.
    pub(crate) fn backend_at(&self, id: &str, nats: &str) -> Backend {
        let client = self.soon(async_nats::connect(nats)).unwrap();
        Backend::start(self, id, client)
    }

    /// A backend made by hand that takes batches.
    pub(crate) fn batching_backend(&self, id: &str) -> Backend {
        let client = self.soon(async_nats::connect(self.nats.url())).unwrap();
        Backend::start_as(self, id, client, |world| world.announce_batching(id))
    }

    /// An entry in etcd, behind which there need not be anybody. It stays as after a crash when it is dropped, and goes
    /// by [`World::withdraw`].
    pub(crate) fn announce(&self, server_type: &str, id: &str) -> Discovery {
        let discovery = self.discover(server_type, id);
        self.soon(discovery.register());
        discovery
    }

    /// An entry of a server that takes batches, behind which there need not be anybody.
    pub(crate) fn announce_batching(&self, id: &str) -> Discovery {
        let batches = (METADATA_PROTOCOL.to_owned(), PROTOCOL_BATCHES.to_owned());
        let own = Server { metadata: [batches].into(), ..record("room", id) };
        let discovery = self.discover_as(&own);
        self.soon(discovery.register());
        discovery
    }

    /// A frontend as Go's announce themselves.
    pub(crate) fn announce_frontend(&self, id: &str) -> Discovery {
        let own = Server { frontend: true, ..record("connector", id) };
        let discovery = self.discover_as(&own);
        self.soon(discovery.register());
        discovery
    }

    /// Somebody who looks at the servers and is none.
    pub(crate) fn observe(&self) -> Discovery {
        let discovery = self.discover("observer", "observer-1");
        self.soon(discovery.wait_synced());
        discovery
    }

    fn discover(&self, server_type: &str, id: &str) -> Discovery {
        self.discover_as(&record(server_type, id))
    }

    fn discover_as(&self, own: &Server) -> Discovery {
        let options = DiscoveryOptions {
            store: StoreOptions::at(self.etcd.url()),
            shutdown_delay: Duration::ZERO,
            ..DiscoveryOptions::default()
        };
        self.soon(async { Discovery::start(options, own) }).unwrap()
    }

    pub(crate) fn withdraw(&self, discovery: Discovery) {
        self.soon(discovery.shutdown());
    }

    /// A worker of ours with the demo game and its test routes.
    pub(crate) fn worker(&self, id: &str) -> Worker {
        self.application(demo::app(DemoOptions { test_routes: true }), id)
    }

    /// The same with these settings on top.
    pub(crate) fn worker_of(&self, id: &str, settings: &[(&str, &str)]) -> Worker {
        self.application_with(demo::app(DemoOptions { test_routes: true }), id, settings)
    }

    /// A worker of ours with any application.
    pub(crate) fn application(&self, app: App, id: &str) -> Worker {
        self.application_with(app, id, &[])
    }

    /// The same with these settings on top.
    pub(crate) fn application_with(&self, app: App, id: &str, more: &[(&str, &str)]) -> Worker {
        let (nats, etcd) = (self.nats.url(), self.etcd.url());
        let mut settings = vec![
            ("pitaya.nats.connect", nats.as_str()),
            ("pitaya.cluster.sd.etcd.endpoints", etcd.as_str()),
            ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms"),
            ("pitaya.cluster.rpc.server.nats.reconnectwait", "50ms"),
            ("pitaya.cluster.rpc.server.nats.reconnectjitter", "10ms"),
            ("pitaya.server.id", id),
            ("pitaya.admin.listen", "127.0.0.1:0"),
            ("pitaya.handler.queue.session", "1000"),
        ];
        settings.extend(more);
        let settings: Vec<_> =
            settings.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let config = Config::load(Binary::Worker, None, std::iter::empty(), &settings).unwrap();
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
}

fn record(server_type: &str, id: &str) -> Server {
    Server {
        id: id.to_owned(),
        server_type: server_type.to_owned(),
        metadata: std::collections::BTreeMap::new(),
        frontend: false,
        hostname: "somewhere".to_owned(),
    }
}

/// A running worker; it ends with the world's runtime unless it is stopped.
pub(crate) struct Worker {
    stop: mpsc::Sender<()>,
    end: JoinHandle<worker::Result<()>>,
}

/// A client on TCP that may send.
pub(crate) fn tcp(gateway: &Gateway) -> RawClient {
    established(RawClient::connect_tcp(gateway.addresses().tcp[0]).unwrap())
}

/// A client on WebSocket that may send.
pub(crate) fn web_socket(gateway: &Gateway) -> RawClient {
    established(RawClient::connect_ws(gateway.addresses().ws[0], "/").unwrap())
}

/// Status and body of a page.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(SOON))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// An address that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
