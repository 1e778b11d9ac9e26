//! The rules: everything about this gateway that does not change while it runs, built once from the configuration.
//!
//! Reactors share it read-only. Whatever can be prepared is prepared here, so that a request is an append of cached
//! pieces (cluster protocol 23.1).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use shared::agent::AgentRules;
use shared::dictionary::Dictionary;
use shared::error::Serializer;
use shared::networks::Networks;
use shared::routing::Routing;
use shared::session::ToldAddress;

use crate::bus::targets::TargetLimits;
use crate::limits::LimitRules;
use crate::page::Pages;
use crate::tls::{CertificateError, Certificates};
use crate::wire::{Protocol, WireLimits};
use crate::wrapper::Wrapper;

/// What all reactors of the process have in common.
pub struct Rules {
    /// This server's id, a UUID unless configured.
    pub server_id: String,
    /// This server's type.
    pub server_type: String,
    /// Handshake, heartbeat, rate limit.
    pub agent: AgentRules,
    /// Sizes on the wire.
    pub wire: WireLimits,
    /// Route codes, announced in the handshake.
    pub dictionary: Dictionary,
    /// The form of error bodies, announced in the handshake.
    pub serializer: Serializer,
    /// Payloads to clients are deflated from this size on, bytes; `None` never.
    pub compression_threshold_bytes: Option<usize>,
    /// Largest inflated payload from a client, bytes.
    pub inflate_bytes_max: usize,
    /// Unsent bytes of a connection at most.
    pub outbox_bytes_max: usize,
    /// Write deadline, ms.
    pub write_timeout_ms: u64,
    /// Time for a forwarded request, ms.
    pub request_timeout_ms: u64,
    /// The same as Go writes it, for metadata and error bodies.
    pub request_timeout_text: String,
    /// What a client is told when a request provably reached nobody.
    pub undelivered: &'static str,
    /// Requests without an answer of one connection at most.
    pub in_flight_connection_max: u32,
    /// Windows and queues towards servers.
    pub targets: TargetLimits,
    /// How the server of a request is chosen.
    pub routing: Arc<Routing>,
    /// Connections of the process at most.
    pub connections_max: usize,
    /// Limits that are counted for the whole process.
    pub limits: LimitRules,
    /// Whether a push without room is dropped, rather than its client closed.
    pub is_push_dropped: bool,
    /// Whether binds are announced to the other frontends of the type.
    pub is_session_unique: bool,
    /// What the hosted application brought; its type is the own one in a cluster.
    pub local: Option<LocalRoutes>,
    /// Whether there is no cluster.
    pub is_standalone: bool,
    /// TLS on the ports that speak it.
    pub tls: Option<TlsRules>,
    /// Whom to believe when it speaks for a client behind it.
    pub proxies: ProxyRules,
    /// How much of a client's address workers are told.
    pub told_address: ToldAddress,
    /// What the application has put in front of its clients' packets, the innermost first.
    pub wrappers: Vec<Arc<dyn Wrapper>>,
    /// Files served on the WebSocket listener, for the demo.
    pub pages: Option<Pages>,
}

/// TLS towards clients.
pub struct TlsRules {
    /// What clients are shown; can be read again while running.
    pub certificates: Arc<Certificates>,
    /// Handshakes under way on one reactor at most.
    pub handshakes_max: usize,
}

/// Proxies in front of this gateway.
pub struct ProxyRules {
    /// Whether every connection begins with a PROXY header.
    pub expects_header: bool,
    /// Whether X-Forwarded-For and X-Real-IP are believed.
    pub believes_forwarded: bool,
    /// The addresses of proxies that are believed.
    pub trusted: Networks,
}

impl ProxyRules {
    /// Whether somebody at `address` may be a proxy that has yet to name its client: limits of an address wait then.
    pub fn may_name_client(&self, address: IpAddr, protocol: Protocol) -> bool {
        let may_say =
            self.expects_header || (self.believes_forwarded && protocol == Protocol::WebSocket);
        may_say && self.trusted.contains(address)
    }
}

/// What an application in the process says about its routes; outlives a renewal of the rules.
#[derive(Clone, Debug, Default)]
pub struct LocalRoutes {
    /// The type that its routes carry.
    pub server_type: String,
    /// Its route codes, below those of the configuration.
    pub codes: BTreeMap<String, u16>,
}

impl Rules {
    /// What these rules become when the configuration is read again: `newer`, with what was decided at the start and what
    /// no configuration says. The certificate is read again where its files are the same.
    ///
    /// Errors: what cannot be changed while running; nothing has changed then.
    pub fn renewed(&self, mut newer: Self) -> Result<Self, Vec<String>> {
        newer.server_id.clone_from(&self.server_id);
        newer.agent.checks.clone_from(&self.agent.checks);
        newer.wrappers.clone_from(&self.wrappers);
        match (&self.tls, &mut newer.tls) {
            (None, None) => {}
            (Some(tls), Some(newer_tls)) => {
                if tls.certificates.files() == newer_tls.certificates.files() {
                    newer_tls.certificates = tls.certificates.clone();
                    self.reload_certificates()
                        .map_err(|error| vec![format!("pitaya.gateway.tls: {error}")])?;
                }
            }
            _ => {
                let text =
                    "pitaya.gateway.tls.cert: TLS cannot be switched on or off while running";
                return Err(vec![text.to_owned()]);
            }
        }
        Ok(newer)
    }

    /// Reads the certificate for clients again; connections keep the one they have. Does nothing without TLS. Blocks
    /// on the disk: not for a reactor.
    ///
    /// Errors: why the files cannot be used; the certificate from before stays in use then.
    pub fn reload_certificates(&self) -> Result<(), CertificateError> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.certificates.reload())
    }

    /// The type that routes of the hosted application carry.
    pub fn local_type(&self) -> Option<&str> {
        self.local.as_ref().map(|local| local.server_type.as_str())
    }

    /// The subject that this server is called on.
    pub fn server_subject(&self) -> String {
        format!("pitaya/servers/{}/{}", self.server_type, self.server_id)
    }

    /// The subject on which frontends of this type announce binds.
    pub fn bindings_subject(&self) -> String {
        format!("pitaya/{}/bindings", self.server_type)
    }

    /// The subject on which one message for many users of frontends of this type comes.
    pub fn pushes_subject(&self) -> String {
        format!("pitaya/{}/pushes", self.server_type)
    }

    /// The two subjects of a user: pushes and kicks.
    pub fn user_subjects(&self, uid: &str) -> [String; 2] {
        ["push", "kick"].map(|what| format!("pitaya/{}/user/{uid}/{what}", self.server_type))
    }
}
