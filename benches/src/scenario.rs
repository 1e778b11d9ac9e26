//! The loads: how many connections, how much in flight, what size.

use serde::Serialize;

/// Compression of messages to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As the systems come: on in both.
    Default,
    /// Off in both.
    Off,
}

/// One load.
#[derive(Clone, Debug, Serialize)]
pub struct Scenario {
    /// Name on the command line and in results.
    pub name: &'static str,
    /// One line for people.
    pub title: &'static str,
    /// Connections.
    pub connections: u32,
    /// Unanswered requests a connection.
    pub in_flight: u32,
    /// Payload size.
    pub payload_bytes: u32,
    /// Whether packets travel in WebSocket messages.
    pub is_web_socket: bool,
    /// How the systems are set up.
    pub compression: Compression,
    /// Requests a second, due at fixed times; 0 = as fast as the answers come.
    pub rate: u32,
    /// Heartbeats only; measured once, on systems that were started for it.
    pub is_idle: bool,
    /// Seconds that are measured; 0 = as the command line says.
    pub seconds: u32,
    /// Whether it belongs to the short run.
    pub is_default: bool,
}

/// The load that the comparison is about.
const HEADLINE: Scenario = Scenario {
    name: "headline",
    title: "100 connections, 1 request in flight each, 64 bytes, TCP",
    connections: 100,
    in_flight: 1,
    payload_bytes: 64,
    is_web_socket: false,
    compression: Compression::Default,
    rate: 0,
    is_idle: false,
    seconds: 0,
    is_default: true,
};

const OTHER: Scenario = Scenario { is_default: false, ..HEADLINE };

/// All loads, in the order in which they run.
pub const ALL: &[Scenario] = &[
    HEADLINE,
    Scenario {
        name: "rate",
        title: "2,000 requests a second at fixed times, 100 connections",
        in_flight: 100,
        rate: 2_000,
        ..HEADLINE
    },
    Scenario {
        name: "single",
        title: "1 connection, 1 request in flight",
        connections: 1,
        ..OTHER
    },
    Scenario {
        name: "thousand",
        title: "1,000 connections, 1 request in flight each",
        connections: 1_000,
        ..OTHER
    },
    Scenario {
        name: "pipelined",
        title: "100 connections, 16 requests in flight each",
        in_flight: 16,
        ..OTHER
    },
    Scenario {
        name: "bytes512",
        title: "100 connections, 1 request in flight each, 512 bytes",
        payload_bytes: 512,
        ..OTHER
    },
    Scenario {
        name: "websocket",
        title: "100 connections, 1 request in flight each, WebSocket",
        is_web_socket: true,
        ..OTHER
    },
    Scenario {
        name: "uncompressed",
        title: "100 connections, 1 request in flight each, compression off",
        compression: Compression::Off,
        ..OTHER
    },
    Scenario {
        name: "uncompressed512",
        title: "100 connections, 1 request in flight each, 512 bytes, compression off",
        payload_bytes: 512,
        compression: Compression::Off,
        ..OTHER
    },
    Scenario {
        name: "idle",
        title: "10,000 idle connections",
        connections: 10_000,
        is_idle: true,
        // One second more than the heartbeat interval of both, so that each connection has had one.
        seconds: 31,
        ..HEADLINE
    },
];

impl Scenario {
    /// One connection for a moment, to see whether a system answers.
    pub(crate) fn probe() -> Self {
        Self { name: "probe", title: "", connections: 1, ..HEADLINE }
    }

    /// Whether it is for seeing that a system answers, not for measuring.
    pub(crate) fn is_probe(&self) -> bool {
        self.name == "probe"
    }
}
