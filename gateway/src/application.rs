//! What the hosted application is told of sessions: before and after a bind, and at the end.
//!
//! It is told off the reactor, and its verdict on a bind comes back as a letter. Meanwhile the session goes on; nothing is
//! claimed before a bind is allowed, and a bind that is not wanted after all is undone completely. The invariant: whoever
//! asked for a bind gets one answer, also when the session ends in between.

use proto::wire;
use shared::close::CloseReason;
use shared::session::SessionId;
use worker::{SessionCopy, SessionEvent};

use crate::bus::{BusState, ReplyTo};
use crate::calls;
use crate::connection::{Binding, Client, Connection};
use crate::directory::Directory;
use crate::rules::Rules;
use crate::turn::Turn;

/// What the application thinks of a bind.
pub struct Verdict {
    /// Whose bind.
    pub session: SessionId,
    /// Before or after.
    pub event: SessionEvent,
    /// The failure that refuses it.
    pub outcome: Result<(), worker::Error>,
    /// Who waits for the answer.
    pub reply: ReplyTo,
}

/// Whether the application has something to say at this event.
pub fn follows(bus: &BusState, event: SessionEvent) -> bool {
    let service = bus.local.as_ref().and_then(|carrier| carrier.bus().service());
    service.is_some_and(|service| service.follows(event))
}

/// Asks whether the session may be bound to `uid`; [`judge`] goes on.
pub fn ask_for_bind(client: &mut Client, uid: &str, reply: ReplyTo, turn: &mut Turn<'_>) {
    client.binding = Binding::Asking { uid: uid.to_owned() };
    let copy = copy(client, uid, turn.rules);
    tell(client, SessionEvent::Binding, copy, reply, turn.bus);
}

/// Confirms a bind: at once, or when the application has taken note of it.
pub fn confirm_bind(client: &mut Client, reply: ReplyTo, rules: &Rules, bus: &mut BusState) {
    if !follows(bus, SessionEvent::Bound) {
        bus.reply(reply, wire::RESPONSE_NESTED_ACK);
        return;
    }
    let copy = copy(client, client.session.uid(), rules);
    tell(client, SessionEvent::Bound, copy, reply, bus);
}

/// Tells that a session has ended whose handshake was accepted.
pub fn tell_closed(client: &mut Client, reason: CloseReason, rules: &Rules, bus: &BusState) {
    let event = SessionEvent::Closed(reason);
    if client.agent.has_shaken_hands() && follows(bus, event) {
        let copy = copy(client, client.session.uid(), rules);
        tell(client, event, copy, ReplyTo::Nobody, bus);
    }
}

fn copy(client: &Client, uid: &str, rules: &Rules) -> SessionCopy {
    SessionCopy {
        frontend_id: rules.server_id.clone(),
        id: client.session.id().0,
        uid: uid.to_owned(),
        data: bytes::Bytes::copy_from_slice(client.session.data()),
    }
}

fn tell(
    client: &mut Client,
    event: SessionEvent,
    copy: SessionCopy,
    reply: ReplyTo,
    bus: &BusState,
) {
    if let Some(carrier) = &bus.local {
        carrier.bus().tell(event, copy, &mut client.events, reply);
    }
}

/// Goes on with a bind that the application has judged.
pub fn judge(connection: &mut Connection, verdict: Verdict, turn: &mut Turn<'_>) {
    let Verdict { event, outcome, reply, .. } = verdict;
    let client = &mut connection.client;
    match (event, outcome) {
        (SessionEvent::Binding, Ok(())) => {
            let Binding::Asking { uid } = std::mem::replace(&mut client.binding, Binding::None)
            else {
                return turn.bus.reply(reply, &calls::session_not_found());
            };
            calls::begin_bind(connection, &uid, reply, turn);
        }
        (SessionEvent::Binding, Err(error)) => {
            client.binding = Binding::None;
            turn.bus.reply(reply, &failure(&error));
        }
        (_, Ok(())) => turn.bus.reply(reply, wire::RESPONSE_NESTED_ACK),
        (_, Err(error)) => {
            undo(client, turn.bus, &turn.core.directory);
            turn.bus.reply(reply, &failure(&error));
        }
    }
}

/// Takes the uid from a session that goes on without one.
fn undo(client: &mut Client, bus: &mut BusState, directory: &Directory) {
    if let Binding::Bound { subscription } = std::mem::replace(&mut client.binding, Binding::None) {
        directory.release(client.session.id(), client.session.uid());
        calls::unsubscribe(subscription, bus);
        client.session.set_uid("");
        client.seats.user = None;
    }
}

fn failure(error: &worker::Error) -> Vec<u8> {
    let metadata = error.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let mut out = Vec::new();
    wire::encode_error_response(&error.code, &error.msg, metadata, &mut out);
    out
}
