//! Calls of other servers to sessions of this gateway: `sys.bindsession`, `sys.pushsession`, `sys.kick`, and those of
//! [`crate::describe`].
//!
//! A call arrives as an encoded `protos.Request` on one reactor's bus and is handled on the reactor that holds the
//! session; its answer leaves on that reactor's bus (cluster protocol 9.2). A bind is confirmed only after the NATS
//! server has proven that it has the user's subscriptions, and is undone completely when it fails.

use proto::Message;
use proto::wire::{self, KickView, MsgView, RequestView, SessionView};
use shared::close::CloseReason;
use shared::error::code;
use shared::metrics::{CoreCounter, LimitLabel};
use shared::nats::encoder;
use shared::session::{SessionId, check_uid};

use crate::bus::{BusState, Carrier, Proof, ReplyTo};
use crate::connection::{Binding, Client, Connection};
use crate::connections::Connections;
use crate::describe;
use crate::directory::{Directory, Place};
use crate::rules::Rules;
use crate::turn::{Core, Turn};

const SESSION_NOT_FOUND: &str = "session not found";
const ALREADY_BOUND: &str = "session is already bound to an uid";
const BANNED: &str = "the uid is banned";
const ILLEGAL_UID: &str = "illegal uid";

/// The session that a call is about.
#[derive(Clone, Copy, Debug)]
pub enum Addressee<'a> {
    /// By its id.
    Session(SessionId),
    /// By the uid it holds.
    Uid(&'a str),
}

/// Whom a call is about; `None` for a route that frontends do not serve.
pub fn addressee<'a>(request: &RequestView<'a>) -> Option<Addressee<'a>> {
    let message = request.msg?;
    match message.route {
        "sys.bindsession" | "sys.pushsession" | describe::DESCRIBE | describe::CLOSE => {
            let session = SessionView::decode(message.data).ok()?;
            Some(Addressee::Session(SessionId(session.id)))
        }
        "sys.kick" => Some(Addressee::Uid(KickView::decode(message.data).ok()?.user_id)),
        _ => None,
    }
}

/// Looks a session of the process up.
pub fn find(directory: &Directory, addressee: Addressee<'_>) -> Option<(SessionId, Place)> {
    let session = match addressee {
        Addressee::Session(session) => session,
        Addressee::Uid(uid) => directory.holder(uid)?,
    };
    Some((session, directory.find(session)?))
}

/// The encoded answer to a call about a session that is not here.
pub fn session_not_found() -> Vec<u8> {
    failure(code::UNKNOWN, SESSION_NOT_FOUND)
}

/// The encoded answer to a call of something that frontends do not serve.
pub fn route_not_found(route: &str) -> Vec<u8> {
    let mut out = Vec::new();
    wire::encode_error_response(
        code::NOT_FOUND,
        "route not found",
        std::iter::once(("route", route)),
        &mut out,
    );
    out
}

/// The encoded answer to a request that cannot be read.
pub fn bad_request(text: &str) -> Vec<u8> {
    failure(code::BAD_REQUEST, text)
}

/// The encoded answer when the reactor that holds the session takes no more letters.
pub fn busy() -> Vec<u8> {
    failure(code::BUSY, "the gateway is busy")
}

fn failure(code: &str, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    wire::encode_error_response(code, text, std::iter::empty(), &mut out);
    out
}

/// Serves a call to a session of this reactor.
pub fn serve(
    connection: &mut Connection,
    message: &MsgView<'_>,
    reply: ReplyTo,
    turn: &mut Turn<'_>,
) {
    match message.route {
        "sys.bindsession" => match SessionView::decode(message.data) {
            Ok(session) => bind(connection, session.uid, reply, turn),
            Err(_) => turn.bus.reply(reply, &bad_request("cannot decode the session")),
        },
        "sys.pushsession" => push_session(connection, message.data, reply, turn),
        "sys.kick" => {
            kick(connection, CloseReason::Kicked, turn.rules, turn.core);
            turn.bus.reply(reply, KICK_ANSWER);
        }
        describe::DESCRIBE => turn.bus.reply(reply, &describe::describe(connection)),
        describe::CLOSE => {
            describe::close(connection, turn.core);
            turn.bus.reply(reply, wire::RESPONSE_NESTED_ACK);
        }
        route => turn.bus.reply(reply, &route_not_found(route)),
    }
}

/// `Response{data: KickAnswer{kicked: true}}` (cluster protocol 9.2).
const KICK_ANSWER: &[u8] = b"\x0a\x02\x08\x01";

fn push_session(connection: &mut Connection, data: &[u8], reply: ReplyTo, turn: &mut Turn<'_>) {
    let outcome = SessionView::decode(data).map_err(|error| error.to_string()).and_then(|view| {
        connection.client.session.replace_data(view.data).map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => turn.bus.reply(reply, wire::RESPONSE_NESTED_ACK),
        Err(text) => turn.bus.reply(reply, &failure(code::UNKNOWN, &text)),
    }
}

/// Sends a kick as the last packet and ends the connection.
pub fn kick(connection: &mut Connection, reason: CloseReason, rules: &Rules, core: &mut Core) {
    let outcome = connection.client.put_packet(&shared::packet::KICK, &mut core.put(rules));
    core.settle(connection.token, &mut connection.client, outcome);
    core.meter.count(CoreCounter::Kicks);
    connection.client.ending.ask();
    core.ending.push((connection.token, reason));
}

/// Claims the uid, subscribes to its subjects, and leaves the confirmation to [`proven`].
fn bind(connection: &mut Connection, uid: &str, reply: ReplyTo, turn: &mut Turn<'_>) {
    if turn.core.is_uid_banned(uid) {
        turn.core.meter.limited(LimitLabel::BannedUid);
        turn.bus.reply(reply, &failure(code::UNKNOWN, BANNED));
        return kick(connection, CloseReason::Banned, turn.rules, turn.core);
    }
    let Turn { rules, core, bus, .. } = turn;
    let client = &mut connection.client;
    let refusal = match client.binding {
        _ if client.ending.is_asked() => Some(SESSION_NOT_FOUND),
        _ if check_uid(uid).is_err() => Some(ILLEGAL_UID),
        Binding::None => None,
        Binding::Proving { .. } | Binding::Bound { .. } => Some(ALREADY_BOUND),
    };
    if let Some(text) = refusal {
        bus.reply(reply, &failure(code::UNKNOWN, text));
        return;
    }
    if !bus.takes_lines() {
        // Another reactor took the call; this one has lost NATS. Neither the subscriptions nor the confirmation could
        // leave, so nothing changes, and the caller's next try finds the session unbound.
        bus.reply(reply, &busy());
        return;
    }
    let session = client.session.id();
    if let Some(before) = core.directory.claim(session, uid) {
        core.replaced.push(before);
    }
    client.seats.user = core.limits.user(uid, core.now_us);
    match &mut bus.carrier {
        Carrier::Local(_) => {
            client.session.set_uid(uid);
            client.binding = Binding::Bound { subscription: 0 };
            bus.reply(reply, wire::RESPONSE_NESTED_ACK);
        }
        Carrier::Nats(lines) => {
            let subscription = bus.subscriptions.insert(connection.token, uid);
            subscribe(&mut lines.out, rules, uid, subscription);
            client.binding = Binding::Proving { uid: uid.to_owned(), subscription };
            lines.wants_barrier = true;
            bus.proofs.push(Proof { barrier: None, connection: connection.token, session, reply });
        }
    }
}

/// Writes the two subscriptions of a user.
pub fn subscribe(out: &mut Vec<u8>, rules: &Rules, uid: &str, subscription: u64) {
    for (number, subject) in (subscription..).zip(rules.user_subjects(uid)) {
        encoder::subscribe(out, subject.as_bytes(), None, number);
    }
}

/// Confirms a bind: the NATS server has the subscriptions, so no push to this user can be lost from here on.
pub fn proven(connection: &mut Connection, reply: ReplyTo, rules: &Rules, bus: &mut BusState) {
    let Binding::Proving { uid, subscription } = &connection.client.binding else {
        bus.reply(reply, &session_not_found());
        return;
    };
    let (uid, subscription) = (uid.clone(), *subscription);
    connection.client.session.set_uid(&uid);
    connection.client.binding = Binding::Bound { subscription };
    if rules.is_session_unique {
        let announcement = proto::BindMsg { uid, fid: rules.server_id.clone() };
        bus.publish(rules.bindings_subject().as_bytes(), &announcement.encode_to_vec());
    }
    bus.reply(reply, wire::RESPONSE_NESTED_ACK);
}

/// Undoes a bind whose subscription the NATS server has refused: no push would ever reach this user. `text` is what the
/// server complains of; anything else than a subscription for a bind under way is nothing to this function.
pub fn refused(text: &str, connections: &mut Connections, turn: &mut Turn<'_>) {
    let Some(subject) = refused_subject(text) else { return };
    let Turn { rules, core, bus, .. } = turn;
    let mut is_meant = |proof: &Proof| match connections.find(proof.connection, proof.session) {
        Some(Connection {
            client: Client { binding: Binding::Proving { uid, .. }, .. }, ..
        }) => rules.user_subjects(uid).iter().any(|own| own == subject),
        _ => false,
    };
    for proof in bus.take_proofs(&mut is_meant) {
        let Some(connection) = connections.find(proof.connection, proof.session) else { continue };
        let binding = std::mem::replace(&mut connection.client.binding, Binding::None);
        if let Binding::Proving { uid, subscription } = binding {
            core.directory.release(proof.session, &uid);
            connection.client.seats.user = None;
            unsubscribe(subscription, bus);
        }
        bus.reply(proof.reply, &failure(code::UNKNOWN, &format!("nats: {text}")));
    }
}

/// Whether the server complains that it does not permit this subscription.
pub fn is_refused(text: &str, subject: &str) -> bool {
    refused_subject(text) == Some(subject)
}

fn refused_subject(text: &str) -> Option<&str> {
    text.strip_prefix(SUBSCRIPTION_REFUSED)?.split('"').nth(1)
}

/// How nats-server begins to say that a subscription is not permitted.
const SUBSCRIPTION_REFUSED: &str = "Permissions Violation for Subscription to ";

fn unsubscribe(subscription: u64, bus: &mut BusState) {
    if let Carrier::Nats(lines) = &mut bus.carrier
        && subscription > 0
    {
        encoder::unsubscribe(&mut lines.out, subscription, None);
        encoder::unsubscribe(&mut lines.out, subscription + 1, None);
        bus.subscriptions.remove(subscription);
    }
}

/// Takes the uid from a session that ends, with its subscriptions; a bind under way fails.
pub fn unbind(connection: &mut Connection, bus: &mut BusState, directory: &Directory) {
    let session = connection.client.session.id();
    let binding = std::mem::replace(&mut connection.client.binding, Binding::None);
    let (uid, subscription) = match binding {
        Binding::None => (String::new(), 0),
        Binding::Proving { uid, subscription } => (uid, subscription),
        Binding::Bound { subscription } => {
            (connection.client.session.uid().to_owned(), subscription)
        }
    };
    directory.remove(session, &uid);
    unsubscribe(subscription, bus);
    for proof in bus.take_proofs(|proof| proof.connection == connection.token) {
        bus.reply(proof.reply, &session_not_found());
    }
}
