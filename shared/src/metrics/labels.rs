//! The closed sets that label values come from.
//!
//! A label that a peer could fill with text of its own would let it make new series without end; so every label value
//! is a variant here, a route that a worker has answered, or a name of the configuration.

/// Declares a set: an enum whose variants have a label text and an index.
macro_rules! label_set {
    (
        $(#[$set_meta:meta])*
        $name:ident { $( $(#[$meta:meta])* $variant:ident => $text:literal, )+ }
    ) => {
        $(#[$set_meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[$meta])* $variant, )+ }

        impl $name {
            /// Every variant, in the order of its index.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// How many variants there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The label's text.
            pub fn name(self) -> &'static str {
                match self { $( Self::$variant => $text, )+ }
            }

            /// The place of this variant in [`Self::ALL`].
            pub fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use label_set;

label_set! {
    /// Why a connection ended. Accepted connections are those that are open plus those of all reasons.
    CloseReason {
        /// The handshake was not acknowledged in time.
        HandshakeTimeout => "handshake_timeout",
        /// Nothing was received for too long.
        IdleTimeout => "idle_timeout",
        /// A write did not end in time.
        WriteTimeout => "write_timeout",
        /// More is queued to the client than is allowed.
        OutboxLimit => "outbuf_limit",
        /// Bytes that are no packet, or a packet at the wrong time.
        BadPacket => "bad_packet",
        /// A data packet that is no message.
        BadMessage => "bad_message",
        /// A refused handshake.
        BadHandshake => "bad_handshake",
        /// A packet that announces too much.
        TooLarge => "too_large",
        /// A payload that inflates to too much.
        InflateLimit => "inflate_limit",
        /// A violation of the WebSocket protocol.
        WebSocketProtocol => "ws_protocol",
        /// Text that is not UTF-8.
        Utf8 => "utf8",
        /// Too many packets, where that closes.
        RateLimited => "rate_limited",
        /// A missing or broken PROXY header.
        ProxyHeader => "proxy_header",
        /// A failed TLS handshake.
        Tls => "tls",
        /// Kicked by a server.
        Kicked => "kicked",
        /// The same user logged in again.
        Replaced => "replaced",
        /// Refused or shed because of load.
        Overload => "overload",
        /// This process stops.
        Shutdown => "shutdown",
        /// The client closed.
        PeerClosed => "peer_closed",
        /// The network failed.
        IoError => "io_error",
        /// A mistake of ours.
        Internal => "internal",
    }
}

label_set! {
    /// Why a request was answered with an error.
    FailReason {
        /// The worker answered with an error.
        Worker => "worker",
        /// The route does not parse.
        BadRoute => "bad_route",
        /// No server of the type is known.
        NoServer => "no_server",
        /// Nobody listened on the server's subject.
        NoResponders => "no_responders",
        /// No answer came in time.
        Timeout => "timeout",
        /// A limit on requests in flight or waiting was reached.
        Busy => "busy",
        /// The request is too large for NATS.
        TooLarge => "too_large",
        /// NATS is away.
        BusDown => "bus_down",
        /// A mistake of ours, or an answer that cannot be read.
        Internal => "internal",
    }
}

label_set! {
    /// Why a request got no answer at all.
    DropReason {
        /// The client was gone before the answer.
        ClientGone => "client_gone",
        /// The request had id 0, to which no answer is possible.
        NoId => "no_id",
        /// This process stopped before the answer.
        Shutdown => "shutdown",
    }
}

label_set! {
    /// The kind of a response time, Pitaya's label `type`.
    ResponseType {
        /// From the client's message to its answer.
        Handler => "handler",
        /// One call to another server.
        Rpc => "rpc",
    }
}

label_set! {
    /// Where a message waited, Pitaya's label `type` of delays.
    DelayType {
        /// For a handler in this process.
        Local => "local",
        /// To be forwarded.
        Remote => "remote",
    }
}

label_set! {
    /// The codes of answers that have series of their own; applications' codes share one.
    CodeLabel {
        /// Success.
        Ok => "",
        /// An error without a code.
        Unknown => "PIT-000",
        /// A bad request.
        BadRequest => "PIT-400",
        /// No such handler.
        NotFound => "PIT-404",
        /// No answer in time.
        RequestTimeout => "PIT-408",
        /// The answer could not be written.
        ClosedRequest => "PIT-498",
        /// The client was gone.
        ClientClosed => "PIT-499",
        /// No server, or a failure of the framework.
        Internal => "PIT-500",
        /// A limit was reached.
        Busy => "PIT-503",
        /// Any code of an application.
        Other => "other",
    }
}

impl CodeLabel {
    /// The label of an error's code; an empty code is success.
    pub fn of(code: &str) -> Self {
        let is_same = |label: &&Self| label.name() == code && **label != Self::Other;
        Self::ALL.iter().find(is_same).copied().unwrap_or(Self::Other)
    }

    /// Pitaya's label `status`.
    pub fn status(self) -> &'static str {
        if self == Self::Ok { "ok" } else { "failed" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_applications_share_one_label() {
        assert_eq!(CodeLabel::of(""), CodeLabel::Ok);
        assert_eq!(CodeLabel::of("PIT-408"), CodeLabel::RequestTimeout);
        assert_eq!(CodeLabel::of("PIT-555"), CodeLabel::Other);
        assert_eq!(CodeLabel::of("other"), CodeLabel::Other);
        assert_eq!((CodeLabel::Ok.status(), CodeLabel::Busy.status()), ("ok", "failed"));
    }

    #[test]
    fn indexes_follow_the_order_of_the_set() {
        for (index, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        assert_eq!(CloseReason::COUNT, 21);
    }
}
