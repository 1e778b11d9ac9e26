//! Why a connection to a NATS server ends, and which of the server's complaints end it (cluster protocol 11).

use super::client::State;
use super::connect::ConnectError;
use super::info::InfoError;
use super::parser::ParseError;

/// Why a connection is over. Only [`ClientError::Connect`] is our fault.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// What the server sends cannot be read.
    #[error("NATS protocol: {0}")]
    Parse(#[from] ParseError),
    /// The server's greeting cannot be read.
    #[error("NATS protocol: {0}")]
    Info(#[from] InfoError),
    /// Our credentials do not fit the server.
    #[error("NATS connect: {0}")]
    Connect(#[from] ConnectError),
    /// The server does not accept our credentials; trying again soon is of no use.
    #[error("NATS server refuses us: {text}")]
    Refused {
        /// The server's words.
        text: String,
    },
    /// The server ends the connection for another reason.
    #[error("NATS server error: {text}")]
    Server {
        /// The server's words.
        text: String,
    },
    /// The server sends something that has no place in this state.
    #[error("NATS protocol: unexpected operation in state {state:?}")]
    Unexpected {
        /// The state.
        state: State,
    },
    /// The greeting was not over in time.
    #[error("NATS server has not finished the greeting within {timeout_ms} ms")]
    ConnectTimeout {
        /// The limit.
        timeout_ms: u64,
    },
    /// The server has answered none of our last PINGs.
    #[error("NATS server does not answer: {pings} pings unanswered")]
    Stale {
        /// How many.
        pings: u32,
    },
    /// The connection was over before.
    #[error("the NATS connection has failed before")]
    Failed,
}

/// What an -ERR means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// The server goes on: an operation was refused.
    Complaint,
    /// The server closes the connection.
    Fatal,
    /// The server closes the connection, and would do it again.
    Refusal,
}

impl Severity {
    /// A text that is not known counts as a complaint: if it was more, the server closes the connection by itself.
    pub(super) fn of(text: &str) -> Self {
        const REFUSALS: [&str; 3] = ["authorization", "authentication", "account registration"];
        const FATAL: [&str; 10] = [
            "stale connection",
            "slow consumer",
            "maximum payload",
            "maximum control line",
            "maximum connections",
            "maximum account active connections",
            "parser error",
            "unknown protocol operation",
            "invalid client protocol",
            "tls required",
        ];
        let text = text.to_ascii_lowercase();
        // These name a subject, which may contain any of the words below.
        if text.starts_with("permissions violation") || text.starts_with("invalid subject") {
            Self::Complaint
        } else if REFUSALS.iter().any(|words| text.contains(words)) {
            Self::Refusal
        } else if FATAL.iter().any(|words| text.contains(words)) {
            Self::Fatal
        } else {
            Self::Complaint
        }
    }

    /// Nothing that is refused during the greeting lets it go on.
    pub(super) fn during_greeting(text: &str) -> Self {
        match Self::of(text) {
            Self::Complaint => Self::Fatal,
            severity => severity,
        }
    }
}
