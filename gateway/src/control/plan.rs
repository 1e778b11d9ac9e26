//! The plan: what a gateway is to be, worked out from the configuration before anything is started.
//!
//! Everything that can be wrong is found here: what the configuration's table could not see (addresses, files,
//! credentials) is reported together, like the table's own mistakes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use shared::agent::{AgentRules, HandshakeCheck};
use shared::config::{Config, Sources};
use shared::dictionary::Dictionary;
use shared::error::Serializer;
use shared::go;
use shared::handshake::{HandshakeOptions, HandshakeResponses};
use shared::limiter::LimiterRule;
use shared::packet;
use shared::router::Policy;
use shared::routing::{Routing, Rule};
use shared::websocket::frame::FrameLimits;
use shared::websocket::upgrade::UpgradeLimits;

pub use super::cluster::ClusterPlan;
use super::{cluster, edge};
use crate::bus::targets::TargetLimits;
use crate::clock::Clock;
use crate::driver::Kind;
use crate::forward::{NO_RESPONDERS, UNREACHABLE};
use crate::limits::LimitRules;
use crate::listener::{self, Service};
use crate::logging::LogLevel;
use crate::meter::MetricsPlan;
use crate::page::Pages;
use crate::rules::{LocalRoutes, Rules};
use crate::wire::{Content, WireLimits};
use crate::wrapper::Wrapper;

/// What a gateway is to be.
pub struct Plan {
    /// What the reactors share.
    pub rules: Arc<Rules>,
    /// The process's clock.
    pub clock: Clock,
    /// How many reactors.
    pub reactors: usize,
    /// Whether each keeps to a core.
    pub is_pinned: bool,
    /// Which driver.
    pub driver: Kind,
    /// Where clients are served, and what is spoken there.
    pub ports: Vec<(SocketAddr, Service)>,
    /// Where health and metrics are served.
    pub admin: Vec<SocketAddr>,
    /// Labels of the metrics.
    pub metrics: MetricsPlan,
    /// The cluster; none in standalone mode.
    pub cluster: Option<ClusterPlan>,
    /// The application to host. In a lock, because timers of applications cannot be shared by threads.
    application: Mutex<Option<worker::App>>,
    /// What all this was worked out from.
    pub config: Config,
    /// Where to read it again from; none when it was made by a program.
    pub sources: Option<Sources>,
    /// The log whose level a reload changes.
    pub log: Option<LogLevel>,
    /// What else the rules depend on.
    pub(crate) kind: GatewayKind,
}

impl Plan {
    /// Judges each client's handshake, after the checks that there are; the first failure refuses the client, with its
    /// text in the log only. The check runs on the thread of a reactor and must not wait for anything. For gateways
    /// that are built from this library; an application in the same process brings its own checks.
    pub fn handshake(
        mut self,
        name: &str,
        check: impl Fn(&worker::Handshake) -> worker::Result<()> + Send + Sync + 'static,
    ) -> Self {
        if let Some(rules) = Arc::get_mut(&mut self.rules) {
            rules.agent.checks.push((name.to_owned(), handshake_check(Box::new(check))));
        }
        self
    }

    /// Puts a wrapper around all connections of clients, outside those that there are.
    pub fn wrap(mut self, wrapper: impl Wrapper) -> Self {
        if let Some(rules) = Arc::get_mut(&mut self.rules) {
            rules.wrappers.push(Arc::new(wrapper));
        }
        self
    }

    /// Works a configuration out. With an application the gateway is standalone, whatever `pitaya.mode` says.
    ///
    /// Errors: every mistake, each a sentence for the operator.
    pub fn new(config: &Config, application: Option<worker::App>) -> Result<Self, Vec<String>> {
        let is_standalone = application.is_some();
        Self::build(config, application, is_standalone)
    }

    /// Works out the configuration of a gateway that is part of a cluster and serves routes of its own type itself. The
    /// type is `pitaya.server.type` if that is given, and the application's otherwise.
    ///
    /// Errors: every mistake, each a sentence for the operator.
    pub fn hosting(config: &Config, application: worker::App) -> Result<Self, Vec<String>> {
        Self::build(config, Some(application), false)
    }

    fn build(
        config: &Config,
        application: Option<worker::App>,
        is_standalone: bool,
    ) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let own_type = config.string("pitaya.server.type");
        let mut application = application.map(|app| {
            let is_renamed = !is_standalone && config.is_set("pitaya.server.type");
            let app = app.configured(config);
            if is_renamed { app.with_server_type(own_type) } else { app }
        });
        let server_type = match &application {
            Some(app) if !is_standalone => app.server_type().to_owned(),
            _ => own_type.to_owned(),
        };
        if !is_standalone && config.string("pitaya.mode") == "standalone" {
            mistakes.push(
                "pitaya.mode = standalone needs an application in this process; the stock gateway has the demo: \
                 --demo"
                    .to_owned(),
            );
        }
        let reactors = reactors(config);
        let ports = edge::ports(config, &mut mistakes);
        let metrics = MetricsPlan::new(config, &server_type);
        let local = application.as_ref().map(|app| LocalRoutes {
            server_type: app.server_type().to_owned(),
            codes: app.route_codes().clone(),
        });
        let routing = config.routing(Policy::LeastInFlight);
        let routing = match &application {
            Some(application) => application.complete(routing),
            None => routing,
        };
        let kind = GatewayKind { server_type, is_standalone, reactors, local };
        let mut rules = rules(config, &kind, routing, &mut mistakes);
        if let (Some(rules), Some(application)) = (&mut rules, &mut application) {
            let checks = application.take_handshake_checks().into_iter();
            rules.agent.checks.extend(checks.map(|(name, check)| (name, handshake_check(check))));
        }
        let window = application.as_ref().map(worker::App::window);
        let cluster = (!is_standalone)
            .then(|| cluster::plan(config, rules.as_ref(), window, &mut mistakes))
            .flatten();
        let admin = admin_addresses(config, &mut mistakes);
        let driver = driver(config);
        let is_pinned = config.bool("pitaya.gateway.pin");
        match rules {
            Some(rules) if mistakes.is_empty() => Ok(Self {
                rules: Arc::new(rules),
                clock: Clock::start(),
                reactors,
                is_pinned,
                driver,
                ports,
                admin,
                metrics,
                cluster,
                application: Mutex::new(application),
                config: config.clone(),
                sources: None,
                log: None,
                kind,
            }),
            _ => Err(mistakes),
        }
    }

    /// Whether the players are waited for after SIGTERM.
    pub fn is_draining(&self) -> bool {
        self.config.bool("pitaya.session.drain.enabled")
    }

    /// The application, once.
    pub(crate) fn take_application(&self) -> Option<worker::App> {
        self.application.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the rules depend on besides the configuration; decided at the start.
#[derive(Clone)]
pub(crate) struct GatewayKind {
    server_type: String,
    is_standalone: bool,
    reactors: usize,
    local: Option<LocalRoutes>,
}

/// What only code can say.
impl Plan {
    /// Lets a function or a policy choose the server for the messages to one server type, whatever the configuration
    /// says. The function runs on a reactor, in the middle of forwarding: it must not wait for anything.
    ///
    /// Panics when the plan was started already.
    #[must_use]
    pub fn route(mut self, server_type: &str, rule: impl Into<Rule>) -> Self {
        let rules = Arc::get_mut(&mut self.rules).expect("the reactors have not started");
        Arc::make_mut(&mut rules.routing).set(server_type, rule);
        self
    }
}

/// A check of the application as the agent runs it. One that panics refuses.
fn handshake_check(check: worker::Check) -> HandshakeCheck {
    Arc::new(move |request| {
        let handshake = worker::Handshake::new(request.clone());
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&handshake)));
        let outcome = judged.unwrap_or_else(|_| Err(worker::Error::unknown("the check panicked")));
        outcome.map_err(|error| error.to_string())
    })
}

pub(super) fn addresses(config: &Config, key: &str, mistakes: &mut Vec<String>) -> Vec<SocketAddr> {
    let texts = config.list(key);
    let mut found = Vec::new();
    for text in &texts {
        match listener::parse(text) {
            Ok(address) => found.push(address),
            Err(error) => mistakes.push(format!("{key}: {error}")),
        }
    }
    found
}

fn admin_addresses(config: &Config, mistakes: &mut Vec<String>) -> Vec<SocketAddr> {
    let mut found = addresses(config, "pitaya.admin.listen", mistakes);
    if config.bool("pitaya.metrics.prometheus.enabled") {
        let port = config.int("pitaya.metrics.prometheus.port") as u16;
        let everywhere = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
        if !found.contains(&everywhere) {
            found.push(everywhere);
        }
    }
    found
}

fn reactors(config: &Config) -> usize {
    match config.size("pitaya.gateway.threads") {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

fn driver(config: &Config) -> Kind {
    match config.string("pitaya.gateway.driver") {
        "uring" => Kind::Uring,
        "epoll" => Kind::Epoll,
        _ => Kind::Auto,
    }
}

/// The codes of routes. What an operator gives counts more than what the application was built with.
fn dictionary(
    config: &Config,
    local: Option<&LocalRoutes>,
    mistakes: &mut Vec<String>,
) -> Dictionary {
    let mut dictionary = config.dictionary();
    let codes = local.into_iter().flat_map(|local| &local.codes);
    let codes = codes.filter(|(route, _)| dictionary.code(route).is_none());
    let codes: Vec<_> = codes.map(|(route, code)| (route.clone(), *code)).collect();
    if let Err(error) = dictionary.insert_all(codes) {
        mistakes.push(format!("the application's route dictionary: {error}"));
    }
    dictionary
}

pub(super) fn milliseconds(config: &Config, key: &str) -> u64 {
    config.duration(key).as_millis() as u64
}

pub(super) fn rules(
    config: &Config,
    kind: &GatewayKind,
    routing: Routing,
    mistakes: &mut Vec<String>,
) -> Option<Rules> {
    let serializer =
        Serializer::from_number(config.int("pitaya.serializertype")).unwrap_or(Serializer::Json);
    let is_compressing = config.bool("pitaya.handler.messages.compression");
    let packet_bytes_max = config.size("pitaya.gateway.packet.maxbytes");
    let transport = config.string("pitaya.cluster.rpc.transport");
    let request_timeout =
        config.duration(&format!("pitaya.cluster.rpc.client.{transport}.requesttimeout"));
    let dictionary = dictionary(config, kind.local.as_ref(), mistakes);
    let agent = agent_rules(config, &dictionary, serializer, is_compressing);
    let agent =
        agent.map_err(|error| mistakes.push(format!("the handshake's answer: {error}"))).ok()?;
    let is_demo = config.bool("pitaya.gateway.demo");
    let server_id = match config.string("pitaya.server.id") {
        "" => uuid::Uuid::new_v4().to_string(),
        id => id.to_owned(),
    };
    Some(Rules {
        routing: Arc::new(routing),
        server_id,
        server_type: kind.server_type.clone(),
        agent,
        wire: WireLimits {
            packet_bytes_max,
            upgrade: UpgradeLimits {
                origins: edge::origins(config),
                serves_pages: is_demo,
                ..UpgradeLimits::default()
            },
            frames: FrameLimits::new(packet_bytes_max + packet::HEADER_BYTES),
            content: Content::Packets,
        },
        dictionary,
        serializer,
        compression_threshold_bytes: is_compressing
            .then(|| config.size("pitaya.gateway.compression.threshold")),
        inflate_bytes_max: config.size("pitaya.gateway.inflate.maxbytes"),
        outbox_bytes_max: config.size("pitaya.gateway.outbox.maxbytes"),
        write_timeout_ms: milliseconds(config, "pitaya.buffer.agent.conntimeout"),
        request_timeout_ms: request_timeout.as_millis() as u64,
        undelivered: if transport == "grpc" { UNREACHABLE } else { NO_RESPONDERS },
        request_timeout_text: go::go_duration::format(request_timeout),
        in_flight_connection_max: config.int("pitaya.gateway.inflight.connection") as u32,
        targets: TargetLimits {
            window: config.int("pitaya.gateway.inflight.target") as u32,
            reactors: kind.reactors as u32,
            waiting_max: config.size("pitaya.gateway.queue.maxrequests"),
            waiting_age_max_us: milliseconds(config, "pitaya.gateway.queue.maxage") * 1_000,
            has_batches: config.bool("pitaya.nats.batches"),
        },
        connections_max: config.size("pitaya.gateway.maxconns"),
        limits: LimitRules::new(config, mistakes),
        is_push_dropped: config.string("pitaya.gateway.outbox.policy") == "drop",
        is_session_unique: config.bool("pitaya.session.unique"),
        local: kind.local.clone(),
        is_standalone: kind.is_standalone,
        tls: edge::tls(config, mistakes),
        proxies: edge::proxies(config, mistakes),
        told_address: edge::told_address(config),
        wrappers: Vec::new(),
        pages: is_demo.then(Pages::demo),
    })
}

fn agent_rules(
    config: &Config,
    dictionary: &Dictionary,
    serializer: Serializer,
    compression: bool,
) -> Result<AgentRules, shared::handshake::HandshakeError> {
    let heartbeat = config.duration("pitaya.heartbeat.interval");
    let heartbeat_ms = heartbeat.as_millis() as u64;
    let options = HandshakeOptions {
        heartbeat_s: heartbeat.as_secs(),
        dictionary,
        serializer: serializer.name(),
        compression,
    };
    Ok(AgentRules {
        heartbeat_ms,
        silence_ms: AgentRules::silence_ms(heartbeat_ms),
        handshake_timeout_ms: milliseconds(config, "pitaya.gateway.handshake.timeout"),
        handshake_bytes_max: config.size("pitaya.gateway.handshake.maxbytes"),
        responses: HandshakeResponses::new(&options)?,
        limiter: limiter_rule(config),
        checks: Vec::new(),
    })
}

/// Pitaya limits only where the application has wrapped its acceptor. Here giving one of the two keys is that wrapping.
fn limiter_rule(config: &Config) -> Option<LimiterRule> {
    let (limit, interval) = ("pitaya.conn.ratelimiting.limit", "pitaya.conn.ratelimiting.interval");
    let is_wanted = config.is_set(limit) || config.is_set(interval);
    (is_wanted && !config.bool("pitaya.conn.ratelimiting.forcedisable")).then(|| LimiterRule {
        limit: config.int(limit) as u32,
        interval_ms: milliseconds(config, interval),
    })
}
