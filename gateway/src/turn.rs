//! A turn of the reactor: what handlers of events act upon, besides the connection or message at hand.
//!
//! The parts are apart from the table of connections and from the driver, so that a handler can hold a borrowed packet
//! of a connection and still forward it. Time is read once a turn, by the reactor.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use shared::bans::BanList;
use shared::close::CloseReason;
use shared::compression::{Deflater, Inflater};
use shared::metadata::MetadataPrefix;
use shared::metrics::LimitLabel;
use shared::peer::Peer;
use shared::session::SessionId;

use crate::bus::{BusState, ReplyTo};
use crate::connection::{Client, Payload, Put};
use crate::directory::Directory;
use crate::driver::Token;
use crate::limits::Limits;
use crate::limits::ledger::Seat;
use crate::mailbox::Mailbox;
use crate::meter::Meter;
use crate::outbox::BufferPool;
use crate::rules::Rules;
use crate::tls::Handshakes;

/// A reactor's own state, besides driver, connections and buses.
pub struct Core {
    /// This reactor's number.
    pub reactor: usize,
    /// Sessions and uids of the process.
    pub directory: Arc<Directory>,
    /// Limits of the process.
    pub limits: Arc<Limits>,
    /// Who is not let in.
    pub bans: Arc<BanList>,
    /// The boxes of all reactors, by number.
    pub mailboxes: Arc<[Arc<Mailbox>]>,
    /// Bytes held for all clients of this reactor.
    pub buffered_bytes: usize,
    /// Buffers for sending.
    pub pool: BufferPool,
    /// Counters of this core.
    pub meter: Meter,
    /// The turn's time, ms of the process's clock.
    pub now_ms: u64,
    /// The turn's time, µs of the process's clock.
    pub now_us: u64,
    /// The turn's time, ns since the epoch, for metadata.
    pub unix_ns: u64,
    /// The constant part of the metadata of forwarded requests; request ids of this core begin with its number.
    pub metadata: MetadataPrefix,
    /// Numbers forwarded requests, for their ids.
    pub next_request: u64,
    /// Connections whose outbox is to be flushed at the turn's end.
    pub dirty: Vec<Token>,
    /// Connections to end at the turn's end.
    pub ending: Vec<(Token, CloseReason)>,
    /// Sessions whose uid another session of this process has taken; to be kicked at the turn's end.
    pub replaced: Vec<SessionId>,
    /// Calls of other servers, to be served when the turn's messages are handled.
    pub calls: Vec<(Bytes, ReplyTo)>,
    /// Room for metadata while a request is encoded.
    pub scratch: Vec<u8>,
    /// Room for what TLS records hold, while it is taken in.
    pub opened: Vec<u8>,
    /// TLS handshakes of clients.
    pub tls_handshakes: Handshakes,
}

/// Compression states and scratch, one each a core.
pub struct Codec {
    /// Towards clients.
    pub deflater: Deflater,
    /// From clients.
    pub inflater: Inflater,
}

/// What a handler of one event acts upon.
pub struct Turn<'a> {
    /// What does not change.
    pub rules: &'a Rules,
    /// The reactor's own state.
    pub core: &'a mut Core,
    /// Compression.
    pub codec: &'a mut Codec,
    /// The bus that the connection uses.
    pub bus: &'a mut BusState,
}

impl Core {
    /// What appending to an outbox needs.
    pub fn put<'a>(&'a mut self, rules: &'a Rules) -> Put<'a> {
        Put { rules, pool: &mut self.pool, now_ms: self.now_ms, dropped_messages: 0 }
    }

    /// The seat of a client whose address has just become known: at accept, or from a proxy.
    ///
    /// Errors: the reason to close with.
    pub fn seat(&self, address: IpAddr, rules: &Rules) -> Result<Seat<Peer>, CloseReason> {
        if self.is_address_banned(address) {
            self.meter.limited(LimitLabel::BannedAddress);
            return Err(CloseReason::Banned);
        }
        self.limits.enter(address, &rules.limits, self.now_us).map_err(|(limit, reason)| {
            self.meter.limited(limit);
            reason
        })
    }

    /// Whether an address is banned now.
    pub fn is_address_banned(&self, address: IpAddr) -> bool {
        self.bans.bans_address(address, self.unix_ns / 1_000_000)
    }

    /// Whether a user is banned now.
    pub fn is_uid_banned(&self, uid: &str) -> bool {
        self.bans.bans_uid(uid, self.unix_ns / 1_000_000)
    }

    /// Notes that `client` has bytes to send, or is to end when `outcome` says so.
    pub fn settle(&mut self, token: Token, client: &mut Client, outcome: Result<(), CloseReason>) {
        if let Err(reason) = outcome {
            client.ending.ask();
            self.ending.push((token, reason));
        }
        if !client.is_dirty {
            client.is_dirty = true;
            self.dirty.push(token);
        }
    }
}

impl Codec {
    /// Fresh states.
    pub fn new() -> Self {
        Self { deflater: Deflater::new(), inflater: Inflater::new() }
    }

    /// The payload as it goes to a client: deflated when that is on, worth trying and shorter.
    pub fn pack<'a>(&'a mut self, bytes: &'a [u8], threshold_bytes: Option<usize>) -> Payload<'a> {
        let Some(threshold_bytes) = threshold_bytes else { return Payload::plain(bytes) };
        match self.deflater.deflate(bytes, threshold_bytes) {
            Some(bytes) => Payload { bytes, is_compressed: true },
            None => Payload::plain(bytes),
        }
    }
}

impl Default for Codec {
    fn default() -> Self {
        Self::new()
    }
}
