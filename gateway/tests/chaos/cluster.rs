//! The cluster under test: servers, proxies, gateways and workers, and the faults that can be done to it.

use std::sync::{Mutex, RwLock};
use std::time::Duration;

use crate::fault_proxy::FaultProxy;
use crate::process::{GatewayProcess, Program, until};
use crate::servers::{Etcd, Nats};
use crate::worker_process;

pub(crate) const GATEWAYS: usize = 2;
const WORKERS: usize = 2;
/// One gateway on each driver.
const DRIVERS: [&str; GATEWAYS] = ["uring", "epoll"];

/// Everything that runs.
pub(crate) struct Cluster {
    nats: Mutex<Nats>,
    etcd: Mutex<Etcd>,
    /// Before NATS: one for each gateway, then one for each worker.
    nats_proxies: Vec<FaultProxy>,
    etcd_proxy: FaultProxy,
    pub(crate) gateways: Vec<RwLock<GatewayProcess>>,
    workers: Vec<Mutex<Program>>,
}

/// One thing that goes wrong, and what it hits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    NatsKilled,
    NatsStopped,
    NatsCut(usize),
    NatsSilent(usize),
    NatsLossy(u8),
    EtcdKilled,
    EtcdStopped,
    EtcdCut,
    EtcdEmptied,
    WorkerKilled(usize),
    WorkerStopped(usize),
    GatewayKilled(usize),
    GatewayStopped(usize),
}

impl Fault {
    /// One of each kind, in an order of chance.
    pub(crate) fn deck(random: &mut fastrand::Rng) -> Vec<Self> {
        let way = random.usize(..GATEWAYS + WORKERS);
        let (gateway, worker) = (random.usize(..GATEWAYS), random.usize(..WORKERS));
        let mut deck = vec![
            Self::NatsKilled,
            Self::NatsStopped,
            Self::NatsCut(way),
            Self::NatsSilent(way),
            Self::NatsLossy(random.u8(1..=100)),
            Self::EtcdKilled,
            Self::EtcdStopped,
            Self::EtcdCut,
            Self::EtcdEmptied,
            Self::WorkerKilled(worker),
            Self::WorkerStopped(worker),
            Self::GatewayKilled(gateway),
            Self::GatewayStopped(gateway),
        ];
        random.shuffle(&mut deck);
        deck
    }
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let (nats, etcd) = (Nats::start(&[]), Etcd::start());
        let nats_proxies: Vec<FaultProxy> =
            (0..GATEWAYS + WORKERS).map(|_| FaultProxy::start(nats.address())).collect();
        let etcd_proxy = FaultProxy::start(etcd.address());
        let settings = |way: usize, id: String| {
            let nats = format!("nats://{}", nats_proxies[way].address());
            let mut all = vec![
                ("pitaya.server.id", id.as_str()),
                ("pitaya.nats.connect", nats.as_str()),
                ("pitaya.cluster.rpc.client.nats.reconnectwait", "100ms"),
                ("pitaya.cluster.rpc.server.nats.reconnectwait", "100ms"),
                ("pitaya.cluster.rpc.client.nats.pinginterval", "1s"),
                ("pitaya.cluster.rpc.client.nats.maxpingsoutstanding", "1"),
                ("pitaya.cluster.rpc.server.nats.pinginterval", "1s"),
                ("pitaya.cluster.rpc.server.nats.maxpingsoutstanding", "1"),
                ("pitaya.cluster.rpc.client.nats.requesttimeout", "2s"),
                ("pitaya.cluster.sd.etcd.heartbeat.ttl", "5s"),
                ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms"),
            ];
            let endpoint = etcd_proxy.address().to_string();
            all.push(("pitaya.cluster.sd.etcd.endpoints", endpoint.as_str()));
            all.into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect::<Vec<(String, String)>>()
        };
        let workers: Vec<Mutex<Program>> = (0..WORKERS)
            .map(|number| {
                let mut settings = settings(GATEWAYS + number, format!("room-{number}"));
                settings.push(("pitaya.admin.listen".to_owned(), "127.0.0.1:0".to_owned()));
                Mutex::new(Program::start(move || worker_process::command(&settings)))
            })
            .collect();
        let gateways = DRIVERS
            .iter()
            .enumerate()
            .map(|(number, driver)| {
                let mut flags = Vec::new();
                let mut all = settings(number, format!("gate-{number}"));
                all.push(("pitaya.server.type".to_owned(), "connector".to_owned()));
                all.push(("pitaya.gateway.driver".to_owned(), (*driver).to_owned()));
                for (key, value) in all {
                    flags.extend(["--set".to_owned(), format!("{key}={value}")]);
                }
                RwLock::new(GatewayProcess::start(&flags, &[]))
            })
            .collect();
        Self {
            nats: Mutex::new(nats),
            etcd: Mutex::new(etcd),
            nats_proxies,
            etcd_proxy,
            gateways,
            workers,
        }
    }

    /// Does it, and undoes it after `time`.
    pub(crate) fn suffer(&self, fault: Fault, time: Duration) {
        let pass = || std::thread::sleep(time);
        let nats = || self.nats.lock().unwrap();
        let etcd = || self.etcd.lock().unwrap();
        match fault {
            Fault::NatsKilled => {
                nats().kill();
                pass();
                nats().restart_same_port();
            }
            Fault::NatsStopped => {
                nats().pause();
                pass();
                nats().resume();
            }
            Fault::NatsCut(way) => {
                self.nats_proxies[way].refuse(true);
                pass();
                self.nats_proxies[way].heal();
            }
            Fault::NatsSilent(way) => {
                self.nats_proxies[way].stand_still(true);
                pass();
                self.nats_proxies[way].heal();
            }
            Fault::NatsLossy(percent) => {
                self.nats_proxies.iter().for_each(|proxy| proxy.lose(percent));
                pass();
                self.nats_proxies.iter().for_each(FaultProxy::heal);
            }
            Fault::EtcdKilled => {
                etcd().kill();
                pass();
                etcd().restart_same_port();
            }
            Fault::EtcdStopped => {
                etcd().pause();
                pass();
                etcd().resume();
            }
            Fault::EtcdCut => {
                self.etcd_proxy.refuse(true);
                pass();
                self.etcd_proxy.heal();
            }
            Fault::EtcdEmptied => etcd().restart_empty(),
            Fault::WorkerKilled(number) => {
                self.workers[number].lock().unwrap().kill();
                pass();
                self.workers[number].lock().unwrap().restart();
            }
            Fault::WorkerStopped(number) => {
                self.workers[number].lock().unwrap().signal("STOP");
                pass();
                self.workers[number].lock().unwrap().signal("CONT");
            }
            Fault::GatewayKilled(number) => {
                self.gateways[number].write().unwrap().program.kill();
                pass();
                self.gateways[number].write().unwrap().program.restart();
            }
            Fault::GatewayStopped(number) => {
                self.gateways[number].read().unwrap().program.signal("STOP");
                pass();
                self.gateways[number].read().unwrap().program.signal("CONT");
            }
        }
    }

    /// Nobody may have ended by itself.
    pub(crate) fn check_alive(&self) {
        for gateway in &self.gateways {
            gateway.write().unwrap().program.check_alive();
        }
        for worker in &self.workers {
            worker.lock().unwrap().check_alive();
        }
    }

    pub(crate) fn wait_ready(&self) {
        for gateway in &self.gateways {
            until("the gateway is ready", || gateway.read().unwrap().is_ready());
        }
    }

    /// How often a gateway was killed.
    pub(crate) fn kills(&self, gateway: usize) -> u64 {
        self.gateways[gateway].read().unwrap().program.kills()
    }
}
