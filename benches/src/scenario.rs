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

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Demand {
    /// Its payload back.
    Echo,
    /// So many pushes to one bound player who only listens.
    Pushes(u32),
    /// One push to a group that all connections are in; only one connection asks.
    Broadcast,
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
    /// Connections a second are opened, 0 = as fast as the server takes them. Idle loads only.
    pub connect_rate: u32,
    /// What each request asks for.
    pub demand: Demand,
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
    connect_rate: 0,
    demand: Demand::Echo,
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
        name: "rate10000",
        title: "10,000 requests a second at fixed times, 100 connections",
        in_flight: 100,
        rate: 10_000,
        ..OTHER
    },
    Scenario {
        name: "push",
        title: "100 connections, each request pushes one message to one other player",
        demand: Demand::Pushes(1),
        ..OTHER
    },
    Scenario {
        name: "pushes",
        title: "100 connections, each request pushes twenty messages to one other player",
        demand: Demand::Pushes(20),
        ..OTHER
    },
    Scenario {
        name: "broadcast",
        title: "broadcasts to a group of 10,000 players, one after the other",
        connections: 10_000,
        demand: Demand::Broadcast,
        ..OTHER
    },
    Scenario {
        name: "storm",
        title: "2,000 connections at once",
        connections: 2_000,
        is_idle: true,
        seconds: 1,
        ..OTHER
    },
    Scenario {
        name: "idle",
        title: "10,000 idle connections",
        connections: 10_000,
        is_idle: true,
        // Slow enough for a Go frontend's accept queue.
        connect_rate: 2_000,
        // One second more than the heartbeat interval of both, so that each connection has had one.
        seconds: 31,
        ..HEADLINE
    },
    Scenario {
        name: "idlewebsocket",
        title: "10,000 idle connections, WebSocket",
        connections: 10_000,
        is_web_socket: true,
        is_idle: true,
        connect_rate: 2_000,
        seconds: 31,
        ..OTHER
    },
];

/// Every combination of connections, requests in flight, size, transport and compression: hours, where the list above
/// is minutes. Named `grid-CONNECTIONS-IN_FLIGHT-BYTES-TRANSPORT-COMPRESSION`.
pub fn grid() -> Vec<Scenario> {
    let mut all = Vec::new();
    for connections in [1, 100, 1_000, 10_000] {
        for in_flight in [1, 4, 16] {
            for payload_bytes in [64, 512] {
                for is_web_socket in [false, true] {
                    for compression in [Compression::Default, Compression::Off] {
                        let size = Scenario { connections, in_flight, payload_bytes, ..OTHER };
                        all.push(Scenario { is_web_socket, compression, ..size }.named());
                    }
                }
            }
        }
    }
    all
}

impl Scenario {
    /// Called after what it does. The texts live as long as the program, like those of the list.
    fn named(self) -> Self {
        let transport = if self.is_web_socket { "ws" } else { "tcp" };
        let compression = if self.compression == Compression::Off { "off" } else { "default" };
        let Self { connections, in_flight, payload_bytes, .. } = self;
        let name =
            format!("grid-{connections}-{in_flight}-{payload_bytes}-{transport}-{compression}");
        let title = format!(
            "{connections} connections, {in_flight} in flight each, {payload_bytes} bytes, {transport}, compression {compression}"
        );
        Self { name: name.leak(), title: title.leak(), ..self }
    }

    /// Whether it is about connecting.
    pub(crate) fn is_storm(&self) -> bool {
        self.is_idle && self.connect_rate == 0
    }

    /// One connection for a moment, to see whether a system answers.
    pub(crate) fn probe() -> Self {
        Self { name: "probe", title: "", connections: 1, ..HEADLINE }
    }

    /// Whether it is for seeing that a system answers, not for measuring.
    pub(crate) fn is_probe(&self) -> bool {
        self.name == "probe"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_has_a_name_of_its_own() {
        let grid = grid();
        assert_eq!(grid.len(), 96);
        let mut names: Vec<&str> = ALL.iter().chain(&grid).map(|scenario| scenario.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
