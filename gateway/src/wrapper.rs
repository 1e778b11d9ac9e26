//! Acceptor wrappers: code of the application between the framing of a client and everything else.
//!
//! A wrapper sees each packet of a client, of any type and from the first one on, before it is decoded (client protocol
//! 15.1), and lets it pass, drops it, or closes. It runs on the thread of a reactor and must not wait for anything; a
//! panic in it closes its connection and no other. Without wrappers nothing of this costs more than one comparison.

use std::net::SocketAddr;
use std::sync::Arc;

use shared::packet::{Packet, PacketType};

/// Makes the filter of each client's packets.
///
/// ```
/// use gateway::wrapper::{Filter, Passage};
/// use shared::packet::PacketType;
///
/// /// Lets a client send so many packets of data, and no more.
/// struct Allowance(u32);
///
/// impl Filter for Allowance {
///     fn handle_packet(&mut self, kind: PacketType, _: &[u8]) -> Passage {
///         if kind != PacketType::Data {
///             return Passage::Pass;
///         }
///         match self.0.checked_sub(1) {
///             Some(left) => {
///                 self.0 = left;
///                 Passage::Pass
///             }
///             None => Passage::Drop,
///         }
///     }
/// }
///
/// let wrapper = |_peer: std::net::SocketAddr| Some(Box::new(Allowance(100)) as Box<dyn Filter>);
/// # fn is_wrapper(_: impl gateway::wrapper::Wrapper) {}
/// # is_wrapper(wrapper);
/// ```
pub trait Wrapper: Send + Sync + 'static {
    /// The filter for a client, made when its first packet comes; its address is known by then, also behind a proxy.
    /// None refuses the client.
    fn wrap(&self, peer: SocketAddr) -> Option<Box<dyn Filter>>;
}

impl<F> Wrapper for F
where
    F: Fn(SocketAddr) -> Option<Box<dyn Filter>> + Send + Sync + 'static,
{
    fn wrap(&self, peer: SocketAddr) -> Option<Box<dyn Filter>> {
        self(peer)
    }
}

/// What one wrapper makes of the packets of one client. It goes with the connection to other reactors.
pub trait Filter: Send + 'static {
    /// Judges the next packet.
    fn handle_packet(&mut self, kind: PacketType, body: &[u8]) -> Passage;
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It goes on, to the next wrapper or to where it belongs.
    Pass,
    /// It is ignored, as if it had not come.
    Drop,
    /// The connection ends.
    Close,
}

/// The filters of one client in the order of their wrappers; the innermost first. None before its first packet.
pub type Filters = Option<Box<[Box<dyn Filter>]>>;

/// Shows a packet to the filters, and makes them first when it is the client's first packet.
pub fn judge(
    filters: &mut Filters,
    wrappers: &[Arc<dyn Wrapper>],
    peer: SocketAddr,
    packet: &Packet<'_>,
) -> Passage {
    if wrappers.is_empty() {
        return Passage::Pass;
    }
    if filters.is_none() {
        *filters = wrappers.iter().map(|wrapper| wrapper.wrap(peer)).collect();
    }
    let Some(filters) = filters else { return Passage::Close };
    for filter in filters.iter_mut() {
        let passage = filter.handle_packet(packet.kind, packet.body);
        if passage != Passage::Pass {
            return passage;
        }
    }
    Passage::Pass
}
