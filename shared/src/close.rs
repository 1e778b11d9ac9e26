//! Why a connection ended: the one closed list that logs, metrics and WebSocket close codes share.
//!
//! It is not an error type: a clean end by the peer is a reason too. The invariant that operators rely on is that
//! every accepted connection ends with exactly one of these, so that the sum of `closed_total` over all reasons plus
//! the open connections is the number of accepted ones.

/// The cause of a connection's end. The order is the index into per-core counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The client did not finish its handshakes in time.
    HandshakeTimeout,
    /// No packet came from the client for more than two heartbeat intervals.
    IdleTimeout,
    /// Bytes stayed unsent past the write deadline.
    WriteTimeout,
    /// The unsent bytes of the connection passed their limit.
    OutboxLimit,
    /// A packet that cannot be, or that is not allowed in the connection's state.
    BadPacket,
    /// A message inside a data packet that cannot be decoded.
    BadMessage,
    /// The Pitaya handshake was refused; the client was told with code 400.
    BadHandshake,
    /// A packet or WebSocket message above the configured size.
    TooLarge,
    /// A payload that inflates above the configured size.
    InflateLimit,
    /// A violation of the WebSocket protocol, or a refused upgrade.
    WebSocketProtocol,
    /// A WebSocket text message that is not UTF-8.
    Utf8,
    /// Closed because a rate limit was passed.
    RateLimited,
    /// A missing or broken PROXY protocol header.
    ProxyHeader,
    /// TLS failed.
    Tls,
    /// Kicked by a server of the cluster.
    Kicked,
    /// The same user logged in again.
    Replaced,
    /// Closed by the game, without a kick.
    ClosedByServer,
    /// The gateway holds all the connections it may hold.
    Overload,
    /// Too many connections from the client's address, or too many in a second.
    AddressLimit,
    /// The client's address or uid is banned.
    Banned,
    /// It had the most bytes queued when the gateway ran out of memory for its clients.
    MemoryLimit,
    /// The gateway is stopping.
    Shutdown,
    /// The peer ended the connection.
    PeerClosed,
    /// The socket failed: reset, broken pipe, time-out of the network.
    IoError,
    /// A defect of ours, confined to this connection.
    Internal,
}

impl CloseReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// All reasons, in the order of their index.
    pub const ALL: [Self; 25] = [
        Self::HandshakeTimeout,
        Self::IdleTimeout,
        Self::WriteTimeout,
        Self::OutboxLimit,
        Self::BadPacket,
        Self::BadMessage,
        Self::BadHandshake,
        Self::TooLarge,
        Self::InflateLimit,
        Self::WebSocketProtocol,
        Self::Utf8,
        Self::RateLimited,
        Self::ProxyHeader,
        Self::Tls,
        Self::Kicked,
        Self::Replaced,
        Self::ClosedByServer,
        Self::Overload,
        Self::AddressLimit,
        Self::Banned,
        Self::MemoryLimit,
        Self::Shutdown,
        Self::PeerClosed,
        Self::IoError,
        Self::Internal,
    ];

    /// The label value in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::HandshakeTimeout => "handshake_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::OutboxLimit => "outbuf_limit",
            Self::BadPacket => "bad_packet",
            Self::BadMessage => "bad_message",
            Self::BadHandshake => "bad_handshake",
            Self::TooLarge => "too_large",
            Self::InflateLimit => "inflate_limit",
            Self::WebSocketProtocol => "ws_protocol",
            Self::Utf8 => "utf8",
            Self::RateLimited => "rate_limited",
            Self::ProxyHeader => "proxy_header",
            Self::Tls => "tls",
            Self::Kicked => "kicked",
            Self::Replaced => "replaced",
            Self::ClosedByServer => "closed_by_server",
            Self::Overload => "overload",
            Self::AddressLimit => "address_limit",
            Self::Banned => "banned",
            Self::MemoryLimit => "memory_limit",
            Self::Shutdown => "shutdown",
            Self::PeerClosed => "peer_closed",
            Self::IoError => "io_error",
            Self::Internal => "internal",
        }
    }

    /// The WebSocket status code (RFC 6455, 7.4.1) that tells a browser about this end.
    pub const fn web_socket_code(self) -> u16 {
        match self {
            Self::Kicked | Self::ClosedByServer | Self::PeerClosed => 1000,
            Self::Shutdown | Self::IdleTimeout => 1001,
            Self::BadPacket | Self::WebSocketProtocol => 1002,
            Self::Utf8 => 1007,
            Self::TooLarge | Self::InflateLimit => 1009,
            Self::Internal | Self::IoError => 1011,
            Self::Overload | Self::OutboxLimit | Self::WriteTimeout | Self::MemoryLimit => 1013,
            Self::HandshakeTimeout
            | Self::BadMessage
            | Self::BadHandshake
            | Self::RateLimited
            | Self::AddressLimit
            | Self::Banned
            | Self::ProxyHeader
            | Self::Tls
            | Self::Replaced => 1008,
        }
    }

    /// The position in [`CloseReason::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_index_with_its_own_label() {
        let mut labels = std::collections::HashSet::new();
        for (position, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), position);
            assert!(labels.insert(reason.label()), "{} stands twice", reason.label());
            assert!((1000..=1013).contains(&reason.web_socket_code()));
        }
    }
}
