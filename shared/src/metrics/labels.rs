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
        /// The client, its address, its user or its route has passed a rate.
        RateLimited => "rate_limited",
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
    /// A limit that something ran into. Limits that end a connection are reasons of its end as well.
    LimitLabel {
        /// Connections of the process.
        Connections => "connections",
        /// Connections of one address.
        AddressConnections => "address_connections",
        /// Connections a second of one address.
        AddressAccepts => "address_accepts",
        /// Connections a second of the process: listeners that had to pause.
        Accepts => "accepts",
        /// Messages a second of one address.
        AddressMessages => "address_messages",
        /// Messages a second of one uid.
        UidMessages => "uid_messages",
        /// Messages a second to one route.
        RouteMessages => "route_messages",
        /// Messages a second to one route from one connection.
        ConnectionRouteMessages => "connection_route_messages",
        /// Requests in flight of one connection.
        InFlight => "in_flight",
        /// The queue towards a server type, in number, bytes or age.
        Queue => "queue",
        /// Bytes queued to one client.
        Outbox => "outbox",
        /// Clients that are not read from while they do not read.
        Reading => "reading",
        /// Memory for all clients together.
        Memory => "memory",
        /// Banned addresses.
        BannedAddress => "banned_address",
        /// Banned uids.
        BannedUid => "banned_uid",
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
        /// Asked more often than is allowed.
        TooMany => "PIT-429",
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
        for (index, reason) in FailReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
    }
}
