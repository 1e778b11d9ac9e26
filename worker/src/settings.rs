//! What a running server takes from the configuration, as the types of the parts that use it.

use std::time::Duration;

use shared::cluster::discovery::DiscoveryOptions;
use shared::config::Config;
use shared::metrics::{Exporter, ExporterOptions, MetricError};
use shared::router::Policy;
use shared::routing::Routing;
use shared::server::{METADATA_PROTOCOL, METADATA_WINDOW, PROTOCOL_BATCHES, Server};

use crate::admission::Limits;
use crate::groups::GroupStorage;
use crate::grpc::GrpcSettings;
use crate::nats::NatsSettings;

/// Everything that [`crate::run`] needs to know.
pub(crate) struct Settings {
    pub(crate) own: Server,
    pub(crate) nats: NatsSettings,
    pub(crate) discovery: DiscoveryOptions,
    pub(crate) limits: Limits,
    /// Where groups are kept, if an operator says so.
    pub(crate) groups: Option<GroupStorage>,
    pub(crate) request_timeout: Duration,
    /// Calls to the own type or id run in this process instead of being refused.
    pub(crate) is_loop_back_allowed: bool,
    pub(crate) routing: Routing,
    /// Set where the cluster speaks gRPC instead of NATS.
    pub(crate) grpc: Option<GrpcSettings>,
    /// Holds all metrics, with the labels of the configuration.
    pub(crate) exporter: Exporter,
    /// Where health and metrics are served.
    pub(crate) admin: Vec<String>,
}

impl Settings {
    /// `server_type` and `limits` are the application's; what an operator gives overrides them. Fails for labels and
    /// metrics of the configuration that cannot be.
    pub(crate) fn new(
        config: &Config,
        server_type: &str,
        limits: Limits,
    ) -> Result<Self, MetricError> {
        let limits = limits_of(config, limits);
        let mut own = own_server(config, server_type, limits.window);
        let name = format!("{}/{}", own.server_type, own.id);
        let exporter = exporter(config, &own.server_type)?;
        let grpc = GrpcSettings::new(config, &own.hostname);
        if grpc.is_none() && config.bool("pitaya.nats.batches") {
            own.metadata.insert(METADATA_PROTOCOL.to_owned(), PROTOCOL_BATCHES.to_owned());
        }
        let transport = if grpc.is_some() { "grpc" } else { "nats" };
        let request_timeout = format!("pitaya.cluster.rpc.client.{transport}.requesttimeout");
        Ok(Self {
            own,
            grpc,
            nats: NatsSettings::of(config, name),
            discovery: DiscoveryOptions::new(config),
            limits,
            groups: groups_of(config),
            request_timeout: config.duration(&request_timeout),
            is_loop_back_allowed: config.bool("pitaya.cluster.rpc.server.loopbackenabled"),
            routing: config.routing(Policy::Random),
            exporter,
            admin: admin(config),
        })
    }
}

fn limits_of(config: &Config, limits: Limits) -> Limits {
    let given = |key, own| if config.is_set(key) { config.size(key) } else { own };
    Limits {
        window: given("pitaya.handler.queue.maxrequests", limits.window),
        session_waiting_max: given("pitaya.handler.queue.session", limits.session_waiting_max),
        running_max: given("pitaya.handler.concurrency", limits.running_max),
        waiting_age_max: if config.is_set("pitaya.handler.queue.maxage") {
            config.duration("pitaya.handler.queue.maxage")
        } else {
            limits.waiting_age_max
        },
        ..limits
    }
}

fn groups_of(config: &Config) -> Option<GroupStorage> {
    let is_given = |name| config.is_set(&format!("pitaya.groups.{name}"));
    ["storage", "memory.tickduration"].into_iter().any(is_given).then(|| GroupStorage::new(config))
}

fn own_server(config: &Config, server_type: &str, window: usize) -> Server {
    let id = match config.string("pitaya.server.id") {
        "" => uuid::Uuid::new_v4().to_string(),
        id => id.to_owned(),
    };
    let is_renamed = config.is_set("pitaya.server.type");
    let server_type =
        if is_renamed { config.string("pitaya.server.type") } else { server_type }.to_owned();
    let mut metadata = config.map("pitaya.server.metadata");
    metadata.insert(METADATA_WINDOW.to_owned(), window.to_string());
    Server { id, server_type, metadata, frontend: false, hostname: hostname() }
}

/// The name of this machine.
pub(crate) fn hostname() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = kernel.or_else(|_| std::env::var("HOSTNAME")).unwrap_or_default();
    name.trim().to_owned()
}

fn exporter(config: &Config, server_type: &str) -> Result<Exporter, MetricError> {
    let labels = ["pitaya.metrics.constlabels", "pitaya.metrics.additionallabels"];
    let const_labels: Vec<_> = labels.into_iter().flat_map(|key| config.map(key)).collect();
    Exporter::new(&ExporterOptions {
        game: config.string("pitaya.metrics.game"),
        server_type,
        const_labels: &const_labels,
        custom: config.custom_metrics(),
    })
}

fn admin(config: &Config) -> Vec<String> {
    let mut addresses = config.list("pitaya.admin.listen");
    if config.bool("pitaya.metrics.prometheus.enabled") {
        addresses.push(format!("0.0.0.0:{}", config.int("pitaya.metrics.prometheus.port")));
    }
    // A host that is left out means all of them, as in Go.
    let whole = |address: String| match address.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => address,
    };
    addresses.into_iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use shared::config::Binary;

    use super::*;

    fn load(flags: &[(&str, &str)]) -> Settings {
        let flags: Vec<_> =
            flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let config = Config::load(Binary::Worker, None, std::iter::empty(), &flags).unwrap();
        let limits = Limits { session_waiting_max: 7, ..Limits::default() };
        Settings::new(&config, "chat", limits).unwrap()
    }

    #[test]
    fn the_applications_values_hold_until_an_operator_gives_others() {
        let settings = load(&[]);
        assert_eq!(settings.own.server_type, "chat");
        assert_eq!(settings.own.metadata[METADATA_WINDOW], "10000");
        assert_eq!((settings.limits.session_waiting_max, settings.own.id.len()), (7, 36));
        let settings = load(&[
            ("pitaya.server.type", "room"),
            ("pitaya.server.id", "r1"),
            ("pitaya.handler.queue.maxrequests", "50"),
            ("pitaya.handler.queue.session", "8"),
        ]);
        assert_eq!(settings.own.subject(), "pitaya/servers/room/r1");
        assert_eq!(settings.nats.name, "room/r1");
        assert_eq!(settings.own.metadata[METADATA_WINDOW], "50");
        assert_eq!(settings.limits.session_waiting_max, 8);
    }

    #[test]
    fn batches_are_announced_unless_they_are_switched_off() {
        let own = |flags: &[_]| load(flags).own;
        assert!(own(&[]).speaks(PROTOCOL_BATCHES));
        assert!(!own(&[("pitaya.nats.batches", "false")]).speaks(PROTOCOL_BATCHES));
        assert!(!own(&[("pitaya.cluster.rpc.transport", "grpc")]).speaks(PROTOCOL_BATCHES));
    }

    #[test]
    fn groups_are_where_an_operator_says() {
        let settings = load(&[]);
        assert!(settings.groups.is_none(), "the application decides");
        let settings =
            load(&[("pitaya.groups.storage", "etcd"), ("pitaya.groups.etcd.prefix", "game/")]);
        let Some(GroupStorage::Etcd(groups)) = settings.groups else { panic!("not in etcd") };
        assert_eq!(groups.store.prefix, "game/");
    }

    #[test]
    fn reconnecting_has_no_end_unless_it_is_given_one() {
        assert_eq!(load(&[]).nats.reconnects_max, None);
        let key = "pitaya.cluster.rpc.server.nats.maxreconnectionretries";
        assert_eq!(load(&[(key, "15")]).nats.reconnects_max, Some(15));
        assert_eq!(load(&[(key, "0")]).nats.reconnects_max, Some(1));
    }

    #[test]
    fn the_metrics_port_is_served_only_when_enabled() {
        assert_eq!(load(&[]).admin.len(), 1);
        let on = [
            ("pitaya.metrics.prometheus.enabled", "true"),
            ("pitaya.metrics.prometheus.port", "0"),
        ];
        assert!(load(&on).admin.contains(&"0.0.0.0:0".to_owned()));
    }
}
