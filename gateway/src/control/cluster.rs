//! The cluster's part of the plan: how the buses reach other servers, over NATS or gRPC, and where the servers are listed.

use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use shared::cluster::binding_writer::BindingOptions;
use shared::cluster::discovery::DiscoveryOptions;
use shared::config::Config;
use shared::nats::{ConnectOptions, NatsUrl};
use shared::server::{METADATA_PROTOCOL, METADATA_WINDOW, PROTOCOL_PUSHES, Server};
use worker::grpc::GrpcSettings;
use worker::nats::NatsSettings;

use super::connector::NatsPlan;
use super::credentials;
use super::hosting::HostingPlan;
use super::plan::milliseconds;
use crate::rules::Rules;

/// The other servers, and how to reach them.
pub struct ClusterPlan {
    /// How to reach them.
    pub transport: TransportPlan,
    /// How to join the cluster.
    pub discovery: DiscoveryOptions,
    /// What others see of this server.
    pub own: Server,
    /// How the hosted application reaches others, if there is one.
    pub hosting: Option<HostingPlan>,
    /// Where others find who is bound here, if they are to.
    pub bindings: Option<BindingOptions>,
}

/// NATS or gRPC; the same in all servers of a cluster.
pub enum TransportPlan {
    /// A connection to NATS for each reactor.
    Nats {
        /// How to connect.
        plan: NatsPlan,
        /// Trust and identity for NATS servers that ask for TLS.
        tls: Arc<ClientConfig>,
    },
    /// A connection to each server for all reactors.
    Grpc(GrpcSettings),
}

impl TransportPlan {
    /// What a bus does when it is asked for TLS; behind a bridge to gRPC nobody asks, and nobody would be trusted.
    pub fn bus_tls(&self) -> Arc<ClientConfig> {
        match self {
            Self::Nats { tls, .. } => Arc::clone(tls),
            Self::Grpc(_) => Arc::new(
                ClientConfig::builder()
                    .with_root_certificates(RootCertStore::empty())
                    .with_no_client_auth(),
            ),
        }
    }
}

/// Works it out; none with a mistake.
pub(super) fn plan(
    config: &Config,
    rules: Option<&Rules>,
    application_window: Option<usize>,
    mistakes: &mut Vec<String>,
) -> Option<ClusterPlan> {
    let rules = rules?;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let transport = match GrpcSettings::new(config, &hostname) {
        Some(settings) => TransportPlan::Grpc(settings),
        None => nats(config, rules, mistakes)?,
    };
    let is_grpc = matches!(transport, TransportPlan::Grpc(_));
    let mut metadata = config.map("pitaya.server.metadata");
    if let Some(window) = application_window {
        metadata.insert(METADATA_WINDOW.to_owned(), window.to_string());
    }
    // Over gRPC there is no subject for one message to many users; who looks for servers of ours finds the key all the
    // same.
    let additions = if is_grpc { "" } else { PROTOCOL_PUSHES };
    metadata.insert(METADATA_PROTOCOL.to_owned(), additions.to_owned());
    let name = format!("{}/{}/application", rules.server_type, rules.server_id);
    let hosting = application_window.map(|_| HostingPlan {
        nats: (!is_grpc).then(|| NatsSettings::of(config, name)),
        is_loop_back_allowed: config.bool("pitaya.cluster.rpc.server.loopbackenabled"),
    });
    let own = Server {
        id: rules.server_id.clone(),
        server_type: rules.server_type.clone(),
        metadata,
        frontend: true,
        hostname,
    };
    let has_bindings = has_bindings(config, is_grpc, mistakes);
    let bindings = has_bindings.then(|| BindingOptions::new(config));
    Some(ClusterPlan {
        transport,
        discovery: DiscoveryOptions::new(config),
        own,
        hosting,
        bindings,
    })
}

/// Over NATS the binding storage is for others, if they want it; over gRPC nobody finds a user without it.
fn has_bindings(config: &Config, is_grpc: bool, mistakes: &mut Vec<String>) -> bool {
    let key = "pitaya.modules.bindingstorage.enabled";
    let is_enabled = config.bool(key);
    if is_grpc && config.is_set(key) && !is_enabled {
        mistakes.push(format!(
            "{key} = false: with pitaya.cluster.rpc.transport = grpc users are found by the binding storage only"
        ));
    }
    is_enabled || is_grpc
}

fn nats(config: &Config, rules: &Rules, mistakes: &mut Vec<String>) -> Option<TransportPlan> {
    let urls = NatsUrl::parse_list(config.string("pitaya.cluster.rpc.client.nats.connect"))
        .map_err(|error| mistakes.push(error.to_string()));
    let auth = credentials::auth(config).map_err(|error| mistakes.push(error));
    let tls = credentials::tls(config).map_err(|error| mistakes.push(error));
    let client = |name: &str| format!("pitaya.cluster.rpc.client.nats.{name}");
    let options = ConnectOptions {
        name: format!("{}/{}", rules.server_type, rules.server_id),
        auth: auth.ok()?,
        tls_required: false,
        ping_interval_ms: milliseconds(config, &client("pinginterval")),
        pings_outstanding_max: config.int(&client("maxpingsoutstanding")) as u32,
        connect_timeout_ms: milliseconds(config, &client("connectiontimeout")),
    };
    let urls = urls.ok()?;
    let jitter =
        if urls.iter().any(|url| url.tls) { "reconnectjittertls" } else { "reconnectjitter" };
    let duration = |name: &str| -> Duration { config.duration(&client(name)) };
    let plan = NatsPlan {
        connect_timeout: duration("connectiontimeout"),
        wait: duration("reconnectwait"),
        jitter: duration(jitter),
        urls,
        options,
    };
    Some(TransportPlan::Nats { plan, tls: tls.ok()? })
}
