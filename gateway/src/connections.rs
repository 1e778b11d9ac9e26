//! The table of one reactor: what stands behind each token of its driver.
//!
//! The driver hands out tokens; a slot here follows the driver's slot. A token that is out of date finds nothing,
//! because the generation inside the stored token is compared.

use shared::session::SessionId;

use crate::connection::Connection;
use crate::driver::Token;
use crate::listener::Service;

/// What a token stands for.
pub enum Occupant {
    /// A listening socket.
    Listener(Service),
    /// The socket of a bus, by its number on the reactor.
    Bus(usize),
    /// A client.
    Client(Box<Connection>),
}

/// All sockets of one reactor.
#[derive(Default)]
pub struct Connections {
    slots: Vec<Option<(Token, Occupant)>>,
    clients: usize,
}

impl Connections {
    /// Takes a socket in.
    pub fn insert(&mut self, token: Token, occupant: Occupant) {
        let slot = token.slot();
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.clients += usize::from(matches!(occupant, Occupant::Client(_)));
        if let Some(place) = self.slots.get_mut(slot) {
            debug_assert!(place.is_none(), "the driver gave a slot out twice");
            *place = Some((token, occupant));
        }
    }

    /// Lets a socket go.
    pub fn remove(&mut self, token: Token) -> Option<Occupant> {
        let place = self.slots.get_mut(token.slot())?;
        if place.as_ref()?.0 != token {
            return None;
        }
        let (_, occupant) = place.take()?;
        self.clients -= usize::from(matches!(occupant, Occupant::Client(_)));
        Some(occupant)
    }

    /// What stands at `token`.
    pub fn occupant(&mut self, token: Token) -> Option<&mut Occupant> {
        let (stored, occupant) = self.slots.get_mut(token.slot())?.as_mut()?;
        (*stored == token).then_some(occupant)
    }

    /// The client at `token`.
    pub fn at(&mut self, token: Token) -> Option<&mut Connection> {
        match self.occupant(token)? {
            Occupant::Client(connection) => Some(connection),
            _ => None,
        }
    }

    /// The client at `token`, when it is this session.
    pub fn find(&mut self, token: Token, session: SessionId) -> Option<&mut Connection> {
        self.at(token).filter(|connection| connection.client.session.id() == session)
    }

    /// Clients.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// One part of `parts` of all clients, for sweeps that spread over several ticks.
    pub fn slice(&mut self, part: usize, parts: usize) -> impl Iterator<Item = &mut Connection> {
        self.slots.iter_mut().skip(part).step_by(parts).filter_map(|slot| match slot {
            Some((_, Occupant::Client(connection))) => Some(&mut **connection),
            _ => None,
        })
    }

    /// Tokens of all clients, or of all listeners.
    pub fn tokens(&self, is_meant: impl Fn(&Occupant) -> bool) -> Vec<Token> {
        let occupied = self.slots.iter().flatten();
        occupied.filter(|(_, occupant)| is_meant(occupant)).map(|(token, _)| *token).collect()
    }
}
