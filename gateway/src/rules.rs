//! The rules: everything about this gateway that does not change while it runs, built once from the configuration.
//!
//! Reactors share it read-only. Whatever can be prepared is prepared here, so that a request is an append of cached
//! pieces (cluster protocol 23.1).

use std::sync::Arc;

use shared::agent::AgentRules;
use shared::dictionary::Dictionary;
use shared::error::Serializer;
use shared::routing::Routing;

use crate::bus::targets::TargetLimits;
use crate::page::Pages;
use crate::wire::WireLimits;

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
    /// Requests without an answer of one connection at most.
    pub in_flight_connection_max: u32,
    /// Windows and queues towards servers.
    pub targets: TargetLimits,
    /// How the server of a request is chosen.
    pub routing: Arc<Routing>,
    /// Connections of the process at most.
    pub connections_max: usize,
    /// Whether binds are announced to the other frontends of the type.
    pub is_session_unique: bool,
    /// The type that routes of the in-process application carry, in standalone mode.
    pub local_type: Option<String>,
    /// Files served on the WebSocket listener, for the demo.
    pub pages: Option<Pages>,
}

impl Rules {
    /// The subject that this server is called on.
    pub fn server_subject(&self) -> String {
        format!("pitaya/servers/{}/{}", self.server_type, self.server_id)
    }

    /// The subject on which frontends of this type announce binds.
    pub fn bindings_subject(&self) -> String {
        format!("pitaya/{}/bindings", self.server_type)
    }

    /// The two subjects of a user: pushes and kicks.
    pub fn user_subjects(&self, uid: &str) -> [String; 2] {
        ["push", "kick"].map(|what| format!("pitaya/{}/user/{uid}/{what}", self.server_type))
    }
}
