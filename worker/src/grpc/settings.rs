//! What the configuration says of gRPC, the same for every kind of server.

use shared::cluster::bindings;
use shared::cluster::etcd::StoreOptions;
use shared::config::Config;

use super::{Announcement, LinkOptions};

/// What the configuration says of gRPC.
#[derive(Clone)]
pub struct GrpcSettings {
    /// Where calls are taken, on all addresses; 0 for any free one.
    pub port: u16,
    /// What others are told of that.
    pub announcement: Announcement,
    /// How calls leave.
    pub link: LinkOptions,
    /// Where the frontends of users are found.
    pub bindings: StoreOptions,
}

impl GrpcSettings {
    /// None where the cluster speaks NATS. `hostname` is announced unless there is a host.
    pub fn new(config: &Config, hostname: &str) -> Option<Self> {
        if config.string("pitaya.cluster.rpc.transport") != "grpc" {
            return None;
        }
        let (server, client) = ("pitaya.cluster.rpc.server.grpc", "pitaya.cluster.rpc.client.grpc");
        let region = config.string("pitaya.cluster.info.region").to_owned();
        let host = match config.string(&format!("{server}.host")) {
            "" => hostname,
            host => host,
        };
        Some(Self {
            port: config.int(&format!("{server}.port")) as u16,
            announcement: Announcement {
                host: host.to_owned(),
                external_host: config.string(&format!("{server}.externalhost")).to_owned(),
                external_port: config.int(&format!("{server}.externalport")) as u16,
                region: region.clone(),
            },
            link: LinkOptions {
                connect_timeout: config.duration(&format!("{client}.dialtimeout")),
                request_timeout: config.duration(&format!("{client}.requesttimeout")),
                is_lazy: config.bool(&format!("{client}.lazyconnection")),
                region,
            },
            bindings: bindings::store_options(config),
        })
    }
}
