//! The state machine of one connection to a NATS server.
//!
//! Bytes and time go in, bytes and events come out; the owner has the socket, the subscriptions and the pending
//! requests, and makes a new [`Client`] for each connection. Invariants: input is copied only while an operation is
//! cut by the end of a read; every PING that was written has one entry in `outstanding`, in the order of writing, so
//! each PONG says which one it answers; after an error nothing is read and nothing is answered any more.
//!
//! ```text
//! AwaitingInfo ──INFO──► AwaitingPong ──PONG──► Ready ──error──► Failed
//!       └──INFO, TLS──► TlsRequired ──TLS done──► AwaitingPong
//! ```
#![deny(clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::PAYLOAD_BYTES_DEFAULT;
use super::connect::{ConnectOptions, connect_line};
use super::encoder::{PING, PONG};
use super::error::{ClientError, Severity};
use super::info::ServerInfo;
use super::parser::{Msg, ParseLimits, ServerOp, Step, parse_step};

/// The number of a PING whose PONG the owner waits for.
pub type Barrier = u64;

/// Above this many bytes the buffer for cut operations is given back when it is empty.
const PARTIAL_BYTES_KEPT: usize = 64 * 1024;

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Connected; the server has not greeted yet.
    AwaitingInfo,
    /// The owner is to start TLS on the socket and then to call [`Client::handle_tls_established`].
    TlsRequired,
    /// CONNECT is written; the server has not accepted it yet.
    AwaitingPong,
    /// The server has accepted us.
    Ready,
    /// Over. The owner closes the socket.
    Failed,
}

/// What the owner is told while it feeds bytes, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The server has accepted us.
    Ready,
    /// A message for one of the owner's subscriptions.
    Message(Msg<'a>),
    /// The server has seen everything that was written before this barrier's [`Client::ping`], and everything that
    /// it sent in answer has been delivered.
    Barrier(Barrier),
    /// [`Client::info`] has changed; there may be new addresses.
    InfoChanged,
    /// The server is about to stop: connect to another one, then leave this one.
    LameDuck,
    /// The server complains.
    ServerError {
        /// In its words.
        text: &'a str,
        /// Whether the connection is over.
        is_fatal: bool,
    },
}

/// A PING of ours that is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutstandingPing {
    /// The one behind CONNECT.
    Connect,
    /// One that only checks that the server is there.
    KeepAlive,
    /// One that the owner waits for.
    Barrier(Barrier),
}

/// The whole state of a [`Client`], to continue the connection in another process. Times are left out: the interval
/// of our PINGs begins anew, so a pause between the processes does not look like a silent server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenClient {
    /// State of the connection.
    pub state: State,
    /// Whether TLS is spoken.
    pub is_tls: bool,
    /// Bytes of an operation whose end was not received yet.
    pub partial: Vec<u8>,
    /// Bytes to be sent that the owner had not taken.
    pub out: Vec<u8>,
    /// Unanswered PINGs, the oldest first.
    pub outstanding: Vec<OutstandingPing>,
    /// How many of them in a row are unanswered keep-alives.
    pub keep_alives_unanswered: u32,
    /// Number of the next barrier.
    pub barrier_next: Barrier,
    /// The server's last INFO.
    pub info: Option<ServerInfo>,
}

/// One connection. See the module for what it does and does not do.
#[derive(Debug)]
pub struct Client {
    options: Arc<ConnectOptions>,
    state: State,
    is_tls: bool,
    info: Option<ServerInfo>,
    limits: ParseLimits,
    /// The front of one operation that is not complete, else empty; bounded by `limits`.
    partial: Vec<u8>,
    out: Vec<u8>,
    outstanding: VecDeque<OutstandingPing>,
    keep_alives_unanswered: u32,
    barrier_next: Barrier,
    /// When the greeting must be over, or the next PING is due; None until the first tick.
    deadline_ms: Option<u64>,
}

impl Client {
    /// A connection that was just made. Allocates nothing until the server speaks.
    pub fn new(options: Arc<ConnectOptions>) -> Self {
        Self {
            options,
            state: State::AwaitingInfo,
            is_tls: false,
            info: None,
            limits: ParseLimits::default(),
            partial: Vec::new(),
            out: Vec::new(),
            outstanding: VecDeque::new(),
            keep_alives_unanswered: 0,
            barrier_next: 1,
            deadline_ms: None,
        }
    }

    /// Where the connection is.
    pub fn state(&self) -> State {
        self.state
    }

    /// What the server last said about itself.
    pub fn info(&self) -> Option<&ServerInfo> {
        self.info.as_ref()
    }

    /// Largest payload that may be published, in bytes. More makes the server close the connection.
    pub fn payload_bytes_max(&self) -> usize {
        self.info.as_ref().map_or(PAYLOAD_BYTES_DEFAULT, ServerInfo::payload_bytes_max)
    }

    /// What is to be sent. The owner appends its operations here, once [`Event::Ready`] has come, takes all of it
    /// once a turn and bounds it.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Writes a PING; [`Event::Barrier`] with the returned number comes with its PONG. Everything written before it
    /// has then taken effect on the server. Only once [`Event::Ready`] has come.
    pub fn ping(&mut self) -> Barrier {
        debug_assert!(
            matches!(self.state, State::Ready | State::Failed),
            "a PING before CONNECT would end the connection"
        );
        let barrier = self.barrier_next;
        self.barrier_next += 1;
        self.write_ping(OutstandingPing::Barrier(barrier));
        barrier
    }

    /// The socket speaks TLS now. Also right before the greeting, with servers that begin with TLS.
    pub fn handle_tls_established(&mut self) -> Result<(), ClientError> {
        self.is_tls = true;
        if self.state == State::TlsRequired {
            return self.write_connect().inspect_err(|_| self.state = State::Failed);
        }
        Ok(())
    }

    /// Takes bytes that were just received and calls `events` for each thing that the owner should know. Answers are
    /// appended to [`out`](Self::out). After an error the connection is over.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        events: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ClientError> {
        if self.state == State::Failed {
            return Err(ClientError::Failed);
        }
        let result = if self.state == State::TlsRequired && !bytes.is_empty() {
            // These belong to the TLS layer.
            Err(ClientError::Unexpected { state: self.state })
        } else {
            self.read(bytes, events)
        };
        if result.is_err() {
            self.state = State::Failed;
        }
        debug_assert!(self.check_invariants());
        result
    }

    /// The passing of time, a few times a second: gives up on a greeting that does not end and on a server that does
    /// not answer, and writes our PINGs.
    pub fn handle_tick(&mut self, now_ms: u64) -> Result<(), ClientError> {
        let wait_ms = match self.state {
            State::Failed => return Err(ClientError::Failed),
            State::Ready => self.options.ping_interval_ms,
            _ => self.options.connect_timeout_ms,
        };
        let deadline_ms = *self.deadline_ms.get_or_insert(now_ms.saturating_add(wait_ms));
        if now_ms < deadline_ms {
            return Ok(());
        }
        if self.state != State::Ready {
            self.state = State::Failed;
            return Err(ClientError::ConnectTimeout { timeout_ms: wait_ms });
        }
        if self.keep_alives_unanswered >= self.options.pings_outstanding_max {
            self.state = State::Failed;
            return Err(ClientError::Stale { pings: self.keep_alives_unanswered });
        }
        self.keep_alives_unanswered += 1;
        self.write_ping(OutstandingPing::KeepAlive);
        self.deadline_ms = Some(now_ms.saturating_add(wait_ms));
        Ok(())
    }

    /// Takes the connection apart, to continue it elsewhere.
    pub fn freeze(self) -> FrozenClient {
        FrozenClient {
            state: self.state,
            is_tls: self.is_tls,
            partial: self.partial,
            out: self.out,
            outstanding: self.outstanding.into(),
            keep_alives_unanswered: self.keep_alives_unanswered,
            barrier_next: self.barrier_next,
            info: self.info,
        }
    }

    /// Continues a connection that was taken apart.
    pub fn resume(options: Arc<ConnectOptions>, frozen: FrozenClient) -> Self {
        let limits = frozen.info.as_ref().map(ServerInfo::payload_bytes_max);
        Self {
            options,
            state: frozen.state,
            is_tls: frozen.is_tls,
            limits: limits.map_or_else(ParseLimits::default, ParseLimits::for_payload),
            info: frozen.info,
            partial: frozen.partial,
            out: frozen.out,
            outstanding: frozen.outstanding.into(),
            keep_alives_unanswered: frozen.keep_alives_unanswered,
            barrier_next: frozen.barrier_next,
            deadline_ms: None,
        }
    }

    fn read(
        &mut self,
        bytes: &[u8],
        events: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ClientError> {
        let mut rest = self.complete_partial(bytes, events)?;
        while !rest.is_empty() {
            let Step::Complete(operation, consumed) = parse_step(rest, &self.limits)? else {
                self.partial.extend_from_slice(rest);
                break;
            };
            rest = rest.get(consumed..).unwrap_or_default();
            self.handle(operation, !rest.is_empty(), events)?;
        }
        Ok(())
    }

    /// Moves only as many bytes to the cut operation as it needs, handles it when it is whole, and returns the rest.
    fn complete_partial<'a>(
        &mut self,
        bytes: &'a [u8],
        events: &mut impl FnMut(Event<'_>),
    ) -> Result<&'a [u8], ClientError> {
        if self.partial.is_empty() {
            return Ok(bytes);
        }
        // The operation borrows the buffer while `self` changes, so the buffer is out for that time.
        let mut partial = std::mem::take(&mut self.partial);
        let mut rest = bytes;
        loop {
            let missing_bytes = match parse_step(&partial, &self.limits)? {
                Step::Complete(operation, _) => {
                    self.handle(operation, !rest.is_empty(), events)?;
                    partial.clear();
                    partial.shrink_to(PARTIAL_BYTES_KEPT);
                    break;
                }
                Step::InPayload { operation_bytes } => {
                    operation_bytes.saturating_sub(partial.len())
                }
                Step::InLine => {
                    let line_end = rest.iter().position(|&byte| byte == b'\n');
                    line_end.map_or(rest.len(), |end| end + 1)
                }
            };
            if rest.is_empty() {
                break;
            }
            let (taken, left) = rest.split_at(missing_bytes.min(rest.len()));
            partial.extend_from_slice(taken);
            rest = left;
        }
        self.partial = partial;
        Ok(rest)
    }

    #[inline]
    fn handle(
        &mut self,
        operation: ServerOp<'_>,
        is_more_behind: bool,
        events: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ClientError> {
        match (self.state, operation) {
            (State::Ready, ServerOp::Msg(message)) => events(Event::Message(message)),
            (_, ServerOp::Err(text)) => return self.handle_error(text, events),
            (State::AwaitingInfo, ServerOp::Info(json)) => {
                self.learn(ServerInfo::decode(json)?);
                return self.handle_greeting(is_more_behind);
            }
            (State::AwaitingPong | State::Ready, ServerOp::Info(json)) => {
                self.handle_info(ServerInfo::decode(json)?, events);
            }
            (State::AwaitingPong | State::Ready, ServerOp::Ping) => {
                self.out.extend_from_slice(PONG);
            }
            (State::AwaitingPong | State::Ready, ServerOp::Pong) => self.handle_pong(events),
            (State::AwaitingPong | State::Ready, ServerOp::Ok) => {}
            (state, _) => return Err(ClientError::Unexpected { state }),
        }
        Ok(())
    }

    fn handle_greeting(&mut self, is_more_behind: bool) -> Result<(), ClientError> {
        let wants_tls =
            self.options.tls_required || self.info.as_ref().is_some_and(|info| info.tls_required);
        if !wants_tls || self.is_tls {
            return self.write_connect();
        }
        // What comes in plain text behind the greeting could be anybody's, and must not be taken for the server's
        // first words in TLS.
        if is_more_behind {
            return Err(ClientError::Unexpected { state: State::TlsRequired });
        }
        self.state = State::TlsRequired;
        Ok(())
    }

    fn write_connect(&mut self) -> Result<(), ClientError> {
        let no_info = ServerInfo::default();
        let info = self.info.as_ref().unwrap_or(&no_info);
        let line = connect_line(&self.options, info, self.is_tls)?;
        self.out.extend_from_slice(&line);
        self.write_ping(OutstandingPing::Connect);
        self.state = State::AwaitingPong;
        Ok(())
    }

    fn write_ping(&mut self, ping: OutstandingPing) {
        self.out.extend_from_slice(PING);
        self.outstanding.push_back(ping);
    }

    /// A PONG without PING means nothing and is ignored, as other clients do.
    fn handle_pong(&mut self, events: &mut impl FnMut(Event<'_>)) {
        self.keep_alives_unanswered = 0;
        match self.outstanding.pop_front() {
            Some(OutstandingPing::Connect) => {
                self.state = State::Ready;
                self.deadline_ms = None;
                events(Event::Ready);
            }
            Some(OutstandingPing::Barrier(barrier)) => events(Event::Barrier(barrier)),
            Some(OutstandingPing::KeepAlive) | None => {}
        }
    }

    fn handle_info(&mut self, info: ServerInfo, events: &mut impl FnMut(Event<'_>)) {
        if self.info.as_ref() == Some(&info) {
            return;
        }
        let was_lame_duck = self.info.as_ref().is_some_and(|info| info.ldm);
        let is_lame_duck = info.ldm;
        self.learn(info);
        events(Event::InfoChanged);
        if is_lame_duck && !was_lame_duck {
            events(Event::LameDuck);
        }
    }

    fn learn(&mut self, info: ServerInfo) {
        self.limits = ParseLimits::for_payload(info.payload_bytes_max());
        self.info = Some(info);
    }

    fn handle_error(
        &mut self,
        text: &str,
        events: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ClientError> {
        let severity = match self.state {
            State::Ready => Severity::of(text),
            _ => Severity::during_greeting(text),
        };
        events(Event::ServerError { text, is_fatal: severity != Severity::Complaint });
        match severity {
            Severity::Complaint => Ok(()),
            Severity::Fatal => Err(ClientError::Server { text: text.to_owned() }),
            Severity::Refusal => Err(ClientError::Refused { text: text.to_owned() }),
        }
    }

    /// Whether everything fits together; checked after every input in debug builds.
    fn check_invariants(&self) -> bool {
        let count = |kind| self.outstanding.iter().filter(|ping| **ping == kind).count();
        let barriers = self.outstanding.iter().filter_map(|ping| match ping {
            OutstandingPing::Barrier(barrier) => Some(*barrier),
            _ => None,
        });
        let is_greeted = matches!(self.state, State::AwaitingPong | State::Ready);
        self.state == State::Failed
            || count(OutstandingPing::Connect) == usize::from(self.state == State::AwaitingPong)
                && count(OutstandingPing::KeepAlive) >= self.keep_alives_unanswered as usize
                && barriers.clone().all(|barrier| barrier < self.barrier_next)
                && barriers.is_sorted()
                && (is_greeted || self.outstanding.is_empty())
    }
}

#[cfg(test)]
mod tests;
