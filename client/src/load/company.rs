//! What all players of a thread share: what they send, what they learnt of the server, and how its packets are read.

use std::borrow::Cow;
use std::collections::VecDeque;

use shared::compression::Inflater;
use shared::dictionary::Dictionary;
use shared::handshake::{self, CODE_ACCEPTED, HandshakeResponse};
use shared::message::{self, Message, MessageType};
use shared::packet::{Packet, PacketType};

use super::tally::{Pending, Tally};
use crate::address::Transport;
use crate::error::decode_error;

/// Id of the request with which a player joins.
pub(crate) const JOIN_ID: u32 = 1;
/// Largest error body that is inflated to learn its code.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Why a player left; a name to count by.
pub(crate) type Cause = Cow<'static, str>;

/// What all players of a thread share.
#[derive(Debug)]
pub(crate) struct Company {
    pub(crate) tally: Tally,
    pub(crate) transport: Transport,
    pub(crate) authority: String,
    pub(crate) path: String,
    /// Body of the handshake packet.
    pub(crate) handshake: Vec<u8>,
    pub(crate) kind: MessageType,
    pub(crate) route: String,
    pub(crate) payload: Vec<u8>,
    /// What each player asks for once, before the load starts.
    pub(crate) join: Option<Join>,
    /// Players with a lower number send; the others only listen.
    pub(crate) senders: u32,
    pub(crate) timeout_ns: u64,
    pub(crate) in_flight_max: usize,
    /// The first accepted handshake's; one server announces the same to all.
    pub(crate) dictionary: Dictionary,
    pub(crate) serializer: String,
    pub(crate) heartbeat_ns: u64,
    pub(crate) inflater: Inflater,
}

/// The request with which a player joins.
#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) route: String,
    /// `{n}` in it stands for the player's number.
    pub(crate) payload: String,
}

impl Company {
    fn learn(&mut self, response: HandshakeResponse) {
        if self.tally.connected == 0 {
            self.dictionary = response.dictionary;
            self.serializer = response.serializer;
            self.heartbeat_ns = response.heartbeat_s.saturating_mul(1_000_000_000);
        }
    }
}

pub(crate) fn handle_greeting(company: &mut Company, packet: Packet<'_>) -> Result<(), Cause> {
    if packet.kind != PacketType::Handshake {
        return Err(Cause::Borrowed("protocol"));
    }
    let response =
        handshake::decode_response(packet.body).map_err(|_| Cause::Borrowed("protocol"))?;
    if response.code != CODE_ACCEPTED {
        return Err(Cause::Owned(format!("handshake-{}", response.code)));
    }
    company.learn(response);
    Ok(())
}

/// Whether this was the answer to the request to join.
pub(crate) fn handle_join(
    company: &mut Company,
    packet: Packet<'_>,
    now_ns: u64,
) -> Result<bool, Cause> {
    let Company { tally, dictionary, inflater, serializer, .. } = company;
    let Some(message) = message_of(dictionary, packet)? else { return Ok(false) };
    match message.kind {
        MessageType::Response if message.id != u64::from(JOIN_ID) => {
            Err(Cause::Borrowed("protocol"))
        }
        MessageType::Response if message.is_error => {
            let code = error_code(&message, inflater, serializer);
            Err(Cause::Owned(format!("join-{code}")))
        }
        MessageType::Response => Ok(true),
        _ => {
            tally.handle_pushed(now_ns);
            Ok(false)
        }
    }
}

/// The client's message in a packet, if it is one that carries any.
fn message_of<'p>(
    dictionary: &'p Dictionary,
    packet: Packet<'p>,
) -> Result<Option<Message<'p>>, Cause> {
    match packet.kind {
        PacketType::Heartbeat => return Ok(None),
        PacketType::Kick => return Err(Cause::Borrowed("kicked")),
        PacketType::Handshake | PacketType::HandshakeAck => {
            return Err(Cause::Borrowed("protocol"));
        }
        PacketType::Data => {}
    }
    let message =
        message::decode(packet.body, dictionary).map_err(|_| Cause::Borrowed("protocol"))?;
    match message.kind {
        MessageType::Request | MessageType::Notify => Err(Cause::Borrowed("protocol")),
        MessageType::Push | MessageType::Response => Ok(Some(message)),
    }
}

pub(crate) fn handle_packet(
    company: &mut Company,
    packet: Packet<'_>,
    pending: &mut VecDeque<Pending>,
    now_ns: u64,
) -> Result<(), Cause> {
    let Company { tally, dictionary, inflater, serializer, .. } = company;
    let Some(message) = message_of(dictionary, packet)? else { return Ok(()) };
    match message.kind {
        MessageType::Response => {
            // Answers mostly come in the order of the requests, so this finds the first.
            let place = pending.iter().position(|pending| u64::from(pending.id) == message.id);
            match place.and_then(|place| pending.remove(place)) {
                Some(answered) if message.is_error => {
                    let code = error_code(&message, inflater, serializer);
                    tally.handle_failed(&answered, &code);
                }
                Some(answered) => tally.handle_answered(&answered, now_ns),
                None => tally.late += 1,
            }
        }
        _ => tally.handle_pushed(now_ns),
    }
    Ok(())
}

fn error_code(
    message: &Message<'_>,
    inflater: &mut Inflater,
    serializer: &str,
) -> Cow<'static, str> {
    let body = if message.is_compressed {
        inflater.inflate(message.payload, ERROR_BYTES_MAX).unwrap_or_default()
    } else {
        message.payload
    };
    decode_error(body, serializer).code
}
