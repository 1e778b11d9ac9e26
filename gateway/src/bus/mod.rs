//! The bus: how a reactor reaches the servers of the cluster, and how they reach its sessions.
//!
//! A bus is subjects and payloads, twice implemented: NATS on the reactor's own ring, and in-process calls into an
//! application that the gateway hosts. A gateway has the one, the other (standalone mode) or both. Both carry the same
//! encoded messages, so everything above this file is one code path. A bus is a unit that can move to another reactor
//! together with its connections: its socket, its table of pending requests and its subscriptions stay what they are.

pub mod batches;
pub mod homes;
pub mod link;
pub mod local;
pub mod pending;
pub mod probes;
pub mod queue;
pub mod subscriptions;
pub mod targets;
pub mod tls;

use std::sync::Arc;

use bytes::Bytes;
use shared::nats::encoder;
use shared::session::SessionId;

use crate::driver::Token;
use batches::Batches;
use link::NatsLink;
use local::LocalCarrier;
use pending::PendingTable;
use probes::Probes;
use subscriptions::Subscriptions;
use targets::Targets;

/// NATS lines that a reactor holds unsent at most, bytes; beyond it requests are refused at once.
pub const OUT_BYTES_MAX: usize = 8 << 20;

/// One bus with its socket.
pub struct Bus {
    /// The NATS connection; `None` for the in-process bus.
    pub link: Option<Box<NatsLink>>,
    /// Everything else.
    pub state: BusState,
}

/// What requests, answers and binds act upon.
pub struct BusState {
    /// The bus's number in the process, for the in-process bus; stays the same when the bus moves.
    pub id: usize,
    /// Whether this bus carries the subscriptions of the process: calls to the server, announced binds.
    pub is_primary: bool,
    /// How messages leave for the cluster.
    pub carrier: Carrier,
    /// The way into the application of this process.
    pub local: Option<LocalCarrier>,
    /// How far the bus is.
    pub readiness: Readiness,
    /// Requests under way.
    pub pending: PendingTable,
    /// Subscription numbers of bound sessions.
    pub subscriptions: Subscriptions,
    /// The servers that requests can go to.
    pub targets: Targets,
    /// Servers that are asked whether they are still there.
    pub probes: Probes,
    /// Binds whose subscriptions wait for their proof.
    pub proofs: Vec<Proof>,
}

/// How far a bus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// No connection; one is wanted, and was asked for when `is_asked`.
    Down {
        /// Whether the control thread knows.
        is_asked: bool,
    },
    /// A socket is there; protocol, authentication and TLS are under way.
    Connecting,
    /// The subscriptions are written.
    Subscribing,
    /// The subscriptions are sent; this barrier proves them.
    Proving(u64),
    /// Requests can be sent.
    Ready,
}

/// How messages leave a bus for the cluster.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one a bus, and nearly always it is the large one"
)]
pub enum Carrier {
    /// As lines of NATS's protocol, sent once a turn.
    Nats(NatsLines),
    /// Not at all: there is no cluster in standalone mode.
    None,
}

/// Lines for NATS, and what is needed to write them.
pub struct NatsLines {
    /// The lines of this turn.
    pub out: Vec<u8>,
    /// Front of the reply subjects, ending in a dot; new with each connection, so that no answer of the last one fits.
    pub inbox: Box<[u8]>,
    /// Room for one reply subject.
    reply: Vec<u8>,
    /// Largest payload that the server takes, bytes.
    pub payload_bytes_max: usize,
    /// What gathers for servers that take several requests in one message; becomes lines at the turn's end.
    pub batches: Batches,
    /// Messages written since they were last counted.
    pub published: usize,
    /// Bytes handed to the socket and not sent, kept up to date by the link.
    pub unsent_bytes: usize,
    /// Whether a proof is wanted that the server has taken in the lines written so far.
    pub wants_barrier: bool,
    /// The barrier that was sent last, until [`BusState::take_barrier`] hands it to those who wait for it.
    pub barrier: Option<u64>,
}

/// A bind whose subscriptions were sent, waiting for the proof that the NATS server has them.
pub struct Proof {
    /// The barrier; `None` until the turn's end, when it is asked for.
    pub barrier: Option<u64>,
    /// Whose bind it is.
    pub connection: Token,
    /// The session behind the token.
    pub session: SessionId,
    /// Where the confirmation goes.
    pub reply: ReplyTo,
}

/// Where the answer to a call goes.
#[derive(Default)]
pub enum ReplyTo {
    /// Nowhere: none was asked for.
    #[default]
    Nobody,
    /// To a NATS subject.
    Subject(Box<[u8]>),
    /// To a caller in this process.
    Caller(Box<dyn FnOnce(Bytes) + Send>),
}

impl BusState {
    /// Publishes without a reply subject. Nothing in standalone mode, where nobody else listens.
    pub fn publish(&mut self, subject: &[u8], payload: &[u8]) {
        if let Carrier::Nats(lines) = &mut self.carrier {
            lines.published += 1;
            encoder::publish(&mut lines.out, subject, None, payload);
        }
    }

    /// Answers a call with an encoded message.
    pub fn reply(&mut self, reply: ReplyTo, payload: &[u8]) {
        match reply {
            ReplyTo::Nobody => {}
            ReplyTo::Subject(subject) => self.publish(&subject, payload),
            ReplyTo::Caller(answer) => answer(Bytes::copy_from_slice(payload)),
        }
    }

    /// Whether the bus takes no more requests until some have left.
    pub fn is_full(&self) -> bool {
        match &self.carrier {
            Carrier::Nats(lines) => {
                lines.out.len() + lines.batches.bytes() + lines.unsent_bytes > OUT_BYTES_MAX
            }
            Carrier::None => false,
        }
    }

    /// Names the barrier that was just sent to all binds whose subscriptions went before it.
    pub fn assign_barrier(&mut self) {
        let Carrier::Nats(lines) = &mut self.carrier else { return };
        let Some(number) = lines.barrier.take() else { return };
        for proof in self.proofs.iter_mut().filter(|proof| proof.barrier.is_none()) {
            proof.barrier = Some(number);
        }
        if self.readiness == Readiness::Subscribing {
            self.readiness = Readiness::Proving(number);
        }
    }

    /// Whether requests can be sent now.
    pub fn is_ready(&self) -> bool {
        self.readiness == Readiness::Ready
    }

    /// Whether lines reach the server: the connection is accepted, even if its subscriptions are not proven yet.
    pub fn takes_lines(&self) -> bool {
        !matches!(self.readiness, Readiness::Down { .. } | Readiness::Connecting)
    }

    /// Takes the proofs that `is_meant` selects.
    pub fn take_proofs(&mut self, mut is_meant: impl FnMut(&Proof) -> bool) -> Vec<Proof> {
        if self.proofs.is_empty() {
            return Vec::new();
        }
        let (taken, kept) =
            std::mem::take(&mut self.proofs).into_iter().partition(|proof| is_meant(proof));
        self.proofs = kept;
        taken
    }
}

impl NatsLines {
    /// Lines for a connection that does not exist yet.
    pub fn new() -> Self {
        Self {
            out: Vec::new(),
            inbox: Box::default(),
            reply: Vec::new(),
            payload_bytes_max: 0,
            batches: Batches::default(),
            published: 0,
            unsent_bytes: 0,
            wants_barrier: false,
            barrier: None,
        }
    }

    /// Begins anew with a fresh inbox; what was written for the server before is dropped.
    pub fn restart(&mut self, unique: &str, payload_bytes_max: usize) {
        self.out.clear();
        self.batches.clear();
        self.inbox = format!("_INBOX.{unique}.").into_bytes().into();
        self.payload_bytes_max = payload_bytes_max;
    }
}

impl Default for NatsLines {
    fn default() -> Self {
        Self::new()
    }
}

/// What the buses of a gateway are made of.
#[derive(Clone)]
pub struct BusParts {
    /// NATS: trust and identity for servers that ask for TLS. None in standalone mode.
    pub nats: Option<Arc<rustls::ClientConfig>>,
    /// The application in this process, if there is one.
    pub local: Option<Arc<local::LocalBus>>,
}

/// Writes a number without the machinery of formatting.
fn push_decimal(out: &mut Vec<u8>, mut number: u32) {
    let mut digits = [0; 10];
    let mut start = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        start -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
}
