//! Limits that hold for the whole process, whichever reactors its connections live on.
//!
//! What is counted a message is counted on atomics that the connection has at hand; tables are touched when a connection
//! comes or goes and when a uid is bound. Sharing was chosen over a split between reactors because the kernel spreads
//! connections by chance: a split would refuse a player whose reactor is full while another has room. Limits of one
//! connection alone are elsewhere: sizes in wire.rs, time in the agent, bytes in outbox.rs.

pub mod ledger;
pub mod memory;
pub mod messages;
pub mod rules;

use std::net::IpAddr;
use std::sync::Arc;

use shared::close::CloseReason;
use shared::metrics::LimitLabel;
use shared::peer::Peer;
use shared::rate::{LocalRate, RateCell};

use ledger::{EntryRefused, EntryRules, Ledger, Seat};
use memory::Memory;

pub use rules::{LimitRules, RouteRule};

/// What the process counts. Shared by all reactors.
pub struct Limits {
    /// Connections a second.
    pub accepts: RateCell,
    /// By address.
    pub addresses: Arc<Ledger<Peer>>,
    /// By uid.
    pub users: Arc<Ledger<Box<str>>>,
    /// Bytes held for clients.
    pub memory: Memory,
}

/// A connection's places in the tables, and its own rates. Dropped with it.
#[derive(Default)]
pub struct Seats {
    /// Of its address; none before the address is known.
    pub address: Option<Seat<Peer>>,
    /// Of its uid, from the bind on.
    pub user: Option<Seat<Box<str>>>,
    /// By the place of a [`RouteRule`]; empty until it is needed.
    routes: Vec<LocalRate>,
}

impl Limits {
    /// Nothing counted yet.
    pub fn new(reactors: usize) -> Self {
        Self {
            accepts: RateCell::default(),
            addresses: Arc::default(),
            users: Arc::default(),
            memory: Memory::new(reactors),
        }
    }

    /// Takes a connection in under its client's address. To be called as soon as the address is known: at accept, or
    /// behind the header of a proxy.
    ///
    /// Errors: the limit, and the reason to close with.
    pub fn enter(
        &self,
        address: IpAddr,
        rules: &LimitRules,
        now_us: u64,
    ) -> Result<Seat<Peer>, (LimitLabel, CloseReason)> {
        self.addresses.enter(Peer::from(address), &rules.address, now_us).map_err(|refused| {
            let limit = match refused {
                EntryRefused::Seats => LimitLabel::AddressConnections,
                EntryRefused::Rate => LimitLabel::AddressAccepts,
            };
            (limit, CloseReason::AddressLimit)
        })
    }

    /// The seat of a user. One session of a process holds a uid anyway, so nothing is refused here.
    pub fn user(&self, uid: &str, now_us: u64) -> Option<Seat<Box<str>>> {
        self.users.enter(uid.into(), &EntryRules::default(), now_us).ok()
    }
}
