//! What can go wrong between us and etcd, sorted by what helps: another endpoint, another token, another lease.

use std::time::Duration;

use thiserror::Error;
use tonic::{Code, Status};

/// Why a call failed.
#[derive(Debug, Error)]
pub enum EtcdError {
    /// Our configuration: no endpoint at all.
    #[error("no etcd endpoint is configured")]
    NoEndpoint,
    /// Our configuration: an endpoint that is not a URL, or whose TLS cannot be set up.
    #[error("etcd endpoint {endpoint:?} cannot be used: {reason}")]
    InvalidEndpoint {
        /// As configured.
        endpoint: String,
        /// From the transport.
        reason: String,
    },
    /// The server or the way to it: no connection, a connection that broke, or a member without a leader.
    #[error("etcd cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time: a hung server or a half-open connection.
    #[error("etcd did not answer within {0:?}")]
    TimedOut(Duration),
    /// The server answered with an error.
    #[error("etcd refused: {message} ({code:?})")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// The server's text.
        message: String,
    },
    /// A keep-alive said that the lease does not exist any more.
    #[error("the lease is lost")]
    LeaseLost,
    /// The server ended a watch.
    #[error("etcd ended the watch: {reason} (compacted revision {compact_revision})")]
    WatchCancelled {
        /// The server's text, may be empty.
        reason: String,
        /// 0 unless the watch asked for a revision that was compacted away.
        compact_revision: i64,
    },
}

impl EtcdError {
    /// Whether another endpoint, or a new connection, may do better.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::TimedOut(_))
    }

    /// Whether the call failed because its lease does not exist; a new lease is needed.
    pub fn is_lease_lost(&self) -> bool {
        match self {
            Self::LeaseLost => true,
            Self::Refused { code, message } => {
                *code == Code::NotFound && message.contains("lease not found")
            }
            _ => false,
        }
    }

    /// Whether the token is missing, forgotten by the server (it restarted) or older than a change of the users.
    pub(crate) fn is_token_refused(&self) -> bool {
        match self {
            Self::Refused { code: Code::Unauthenticated, .. } => true,
            Self::Refused { code: Code::InvalidArgument, message } => {
                message.contains("user name is empty")
                    || message.contains("revision of auth store is old")
            }
            _ => false,
        }
    }

    /// Whether the server has authentication switched off.
    pub(crate) fn is_authentication_off(&self) -> bool {
        matches!(self, Self::Refused { code: Code::FailedPrecondition, message }
            if message.contains("authentication is not enabled"))
    }
}

impl From<Status> for EtcdError {
    fn from(status: Status) -> Self {
        match status.code() {
            // Besides the obvious one: what the transport makes of broken connections and reset streams.
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal
            | Code::DeadlineExceeded => {
                let mut text = status.message().to_owned();
                let mut source = std::error::Error::source(&status);
                while let Some(cause) = source {
                    text = format!("{text}: {cause}");
                    source = cause.source();
                }
                Self::Unreachable(text)
            }
            code => Self::Refused { code, message: status.message().to_owned() },
        }
    }
}
