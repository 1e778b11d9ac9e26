//! Delivery: what arrives on the bus, on its way to a client. The counterpart of forward.rs.
//!
//! Answers find their request by the token in their subject, pushes and kicks their session by the subscription that
//! they came through; both are checked against the session before anything is sent, because tokens and numbers are
//! recycled. A message that fits nothing is dropped and counted.

use proto::Message;
use proto::wire::{self, BatchView, BindView, ErrorView, KickView, PushView, ResponseView};
use shared::close::CloseReason;
use shared::error::{Error, code};
use shared::metrics::{CoreCounter, FailReason, LimitLabel};
use shared::nats::parser::Msg;
use shared::session::SessionId;

use crate::bus::batches::Addressee;
use crate::bus::pending::{Answered, Pending};
use crate::bus::queue::Waiting;
use crate::bus::subscriptions::Subject;
use crate::bus::targets::{Choice, Seeker};
use crate::bus::{Carrier, ReplyTo};
use crate::calls;
use crate::connections::Connections;
use crate::driver::Token;
use crate::fan_out;
use crate::forward::{self, Outgoing, Refusal};
use crate::retry;
use crate::rules::Rules;
use crate::turn::Turn;

const STATUS_NO_RESPONDERS: u16 = 503;
/// Text of a request that was lost with its server.
const SERVER_GONE: &str = "the server has gone before it answered";

/// Takes in one message from NATS.
pub fn handle_message(message: &Msg<'_>, connections: &mut Connections, turn: &mut Turn<'_>) {
    turn.core.meter.count(CoreCounter::NatsReceivedMessages);
    match turn.bus.subscriptions.find(message.sid) {
        Some(Subject::Inbox) => {
            let Carrier::Nats(lines) = &turn.bus.carrier else { return };
            let is_undelivered =
                message.payload.is_empty() && message.status == Some(STATUS_NO_RESPONDERS);
            match lines.addressee(message.subject) {
                Some(Addressee::Request(token)) => {
                    handle_answer(token, message.payload, is_undelivered, connections, turn);
                }
                Some(Addressee::Batch(first)) => {
                    handle_answers(first, message.payload, is_undelivered, connections, turn);
                }
                Some(Addressee::Probe(target)) if is_undelivered => {
                    handle_missed_probe(target, connections, turn);
                }
                // A server that knows probes answers none.
                Some(Addressee::Probe(_)) | None => turn.core.meter.count(CoreCounter::LateAnswers),
            }
        }
        Some(Subject::Push(owner)) => handle_push(owner, message, connections, turn),
        Some(Subject::Kick(owner)) => handle_kick(owner, message, connections, turn),
        Some(Subject::Server) => {
            let request = bytes::Bytes::copy_from_slice(message.payload);
            turn.core.calls.push((request, reply_to(message)));
        }
        Some(Subject::Pushes) => fan_out::deliver(message.payload, connections, turn),
        Some(Subject::Bindings) => handle_binding(message.payload, turn),
        None => turn.core.meter.count(CoreCounter::LateAnswers),
    }
}

fn reply_to(message: &Msg<'_>) -> ReplyTo {
    message.reply.map_or(ReplyTo::Nobody, |subject| ReplyTo::Subject(subject.into()))
}

/// Takes in the answer to a forwarded request.
pub fn handle_answer(
    token: u32,
    payload: &[u8],
    is_undelivered: bool,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    let (pending, request) = match turn.bus.pending.answer(token) {
        Answered::Request(pending, request) => (pending, request),
        Answered::Late | Answered::Unknown => {
            turn.core.meter.count(CoreCounter::LateAnswers);
            return;
        }
    };
    let target = turn.bus.targets.find(pending.target).map(|target| target.server.clone());
    let released = turn.bus.targets.end(pending.target, turn.core.now_us);
    if is_undelivered {
        turn.bus.targets.suspect(pending.target, turn.core.now_ms);
        let server_type = target.as_ref().map_or("", |server| &server.server_type);
        retry_or_fail(pending, server_type, &request, connections, turn);
    } else {
        turn.bus.pending.keep_buffer(token, request);
        finish(&pending, payload, connections, turn);
    }
    if let (Some(waiting), Some(server)) = (released, target) {
        send_waiting(&server.server_type, waiting, connections, turn);
    }
}

/// Takes in a batch of answers; or the one answer to a whole batch of requests, known by its `first`: that nobody
/// listens, or that somebody cannot read batches.
fn handle_answers(
    first: Option<u32>,
    payload: &[u8],
    is_undelivered: bool,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    if wire::is_batch(payload) {
        let Ok(batch) = BatchView::decode(payload) else {
            turn.core.meter.count(CoreCounter::NatsBatchErrors);
            return;
        };
        for (token, answer) in batch.entries() {
            handle_answer(token, answer, false, connections, turn);
        }
        return;
    }
    let tokens = first.map_or_else(Vec::new, |first| turn.bus.pending.batch_of(first));
    if tokens.is_empty() {
        turn.core.meter.count(CoreCounter::LateAnswers);
    }
    for token in tokens {
        handle_answer(token, payload, is_undelivered, connections, turn);
    }
}

/// Fails what was sent to a server that has gone meanwhile. Whether the server has served it nobody knows, so that no other
/// one may.
fn handle_missed_probe(target: u32, connections: &mut Connections, turn: &mut Turn<'_>) {
    let Some((server, since_ms)) = turn.bus.miss_probe(target) else { return };
    let now_ms = turn.core.now_ms;
    turn.bus.targets.suspect(target, now_ms);
    let mut lost: Vec<Pending> = Vec::new();
    let times = (now_ms, turn.rules.request_timeout_ms);
    turn.bus.pending.give_up_sent(target, since_ms, times, |pending| lost.push(pending));
    tracing::warn!(
        server = server.id,
        server_type = server.server_type,
        requests = lost.len(),
        "a server has gone with requests in hand; they fail"
    );
    let error = Error::new(code::INTERNAL, SERVER_GONE).with("peer.id", server.id.clone());
    for pending in lost {
        give_up(&pending, FailReason::NoResponders, &error, connections, turn);
    }
}

/// Fails a request that its server owes the answer of, and gives its room to the next one.
pub fn give_up(
    pending: &Pending,
    reason: FailReason,
    error: &Error,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    let server = turn.bus.targets.find(pending.target).map(|target| target.server.clone());
    let released = turn.bus.targets.end(pending.target, turn.core.now_us);
    fail(pending, reason, error, connections, turn);
    if let (Some(waiting), Some(server)) = (released, server) {
        send_waiting(&server.server_type, waiting, connections, turn);
    }
}

/// Nobody received the request, so another server may; Pitaya fails here.
fn retry_or_fail(
    pending: Pending,
    server_type: &str,
    request: &[u8],
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    let connection = connections.find(pending.connection, pending.session);
    let client = connection.map(|connection| &mut connection.client);
    let bus = (&mut *turn.bus, turn.core.now_ms);
    if let Err(pending) = retry::retry(pending, server_type, request, client, bus) {
        let error = Error::new(code::UNKNOWN, turn.rules.undelivered);
        fail(&pending, FailReason::NoResponders, &error, connections, turn);
    }
}

/// Sends a request whose turn has come. When its client has gone the turn is the next one's, so that no room stays
/// unused while somebody waits for it.
pub fn send_waiting(
    server_type: &str,
    mut waiting: Waiting,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    while connections.find(waiting.connection, waiting.session).is_none() {
        let error = Error::new(code::CLIENT_CLOSED, "the client has gone");
        fail_waiting(&waiting, FailReason::Internal, &error, connections, turn);
        let Some(next) = turn.bus.targets.take_waiting(server_type, turn.core.now_us) else {
            return;
        };
        waiting = next;
    }
    let Some(connection) = connections.find(waiting.connection, waiting.session) else { return };
    let client = &mut connection.client;
    let chosen = waiting.chosen.as_deref();
    let seeker = Seeker { uid: client.session.uid(), homes: &client.homes, chosen };
    let choice = turn.bus.targets.choose_next(server_type, &seeker, turn.core.now_ms);
    let target = match choice {
        Choice::Target(target) => target,
        Choice::Busy(place) => {
            return turn.bus.targets.wait_again(server_type, place, waiting);
        }
        Choice::NoServers => {
            let error = Error::new(code::INTERNAL, forward::NO_SERVERS);
            return fail_waiting(&waiting, FailReason::NoServer, &error, connections, turn);
        }
    };
    let request = Outgoing {
        connection: waiting.connection,
        message_id: waiting.message_id,
        is_notify: waiting.is_notify,
        route: &waiting.route,
        server_type,
        payload: &waiting.payload,
        arrived_us: waiting.arrived_us,
        deadline_ms: waiting.deadline_ms,
        chosen: waiting.chosen.as_deref(),
    };
    // Counted when it began to wait, and counted again as it is sent.
    client.in_flight = client.in_flight.saturating_sub(u32::from(!waiting.is_notify));
    let sent = forward::send(&request, target, client, turn.rules, turn.bus, turn.core);
    if let Err(Refusal { reason, error }) = sent {
        client.in_flight += u32::from(!waiting.is_notify);
        fail_waiting(&waiting, reason, &error, connections, turn);
    }
}

/// Tells the client that its request failed before it was sent.
pub fn fail_waiting(
    waiting: &Waiting,
    reason: FailReason,
    error: &Error,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    let Turn { rules, core, .. } = turn;
    if waiting.is_notify {
        return;
    }
    let route = core.meter.route(&waiting.route);
    let us = core.now_us.saturating_sub(waiting.arrived_us);
    let connection = connections.find(waiting.connection, waiting.session);
    core.meter.failed(route, us, reason, &error.code, connection.is_some());
    let Some(connection) = connection else { return };
    let client = &mut connection.client;
    client.in_flight = client.in_flight.saturating_sub(1);
    let outcome = client.put_error(waiting.message_id, error, &mut core.put(rules));
    core.settle(waiting.connection, client, outcome);
}

fn finish(pending: &Pending, payload: &[u8], connections: &mut Connections, turn: &mut Turn<'_>) {
    let Ok(response) = ResponseView::decode(payload) else {
        let error = Error::new(code::INTERNAL, "the server's answer cannot be decoded");
        fail(pending, FailReason::Internal, &error, connections, turn);
        return;
    };
    let Turn { rules, core, codec, .. } = turn;
    let route = match &pending.unlabelled {
        Some(text) if response.error.is_none() => core.meter.learn(text),
        _ => pending.route,
    };
    let us = core.now_us.saturating_sub(pending.arrived_us);
    let error_code = response.error.map_or("", |error| code_of(&error));
    let connection = connections.find(pending.connection, pending.session);
    core.meter.answered(route, us, error_code, connection.is_some());
    let Some(connection) = connection else { return };
    let client = &mut connection.client;
    client.in_flight = client.in_flight.saturating_sub(1);
    let outcome = match &response.error {
        None => {
            let payload = codec.pack(response.data, rules.compression_threshold_bytes);
            client.put_response(pending.message_id, payload, false, &mut core.put(rules))
        }
        Some(error) => {
            let mut body = std::mem::take(&mut core.scratch);
            encode_error(error, rules, &mut body);
            let payload = codec.pack(&body, rules.compression_threshold_bytes);
            let outcome =
                client.put_response(pending.message_id, payload, true, &mut core.put(rules));
            core.scratch = body;
            outcome
        }
    };
    core.settle(pending.connection, client, outcome);
}

/// A server that gave no code gave PIT-000 (cluster protocol 7.2).
fn code_of<'a>(error: &ErrorView<'a>) -> &'a str {
    if error.code.is_empty() { code::UNKNOWN } else { error.code }
}

fn encode_error(error: &ErrorView<'_>, rules: &Rules, body: &mut Vec<u8>) {
    body.clear();
    rules.serializer.encode_error(code_of(error), error.msg, error.metadata(), body);
}

/// Tells the client that its request failed.
pub fn fail(
    pending: &Pending,
    reason: FailReason,
    error: &Error,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    let Turn { rules, core, .. } = turn;
    let us = core.now_us.saturating_sub(pending.arrived_us);
    let connection = connections.find(pending.connection, pending.session);
    core.meter.failed(pending.route, us, reason, &error.code, connection.is_some());
    let Some(connection) = connection else { return };
    let client = &mut connection.client;
    client.in_flight = client.in_flight.saturating_sub(1);
    let outcome = client.put_error(pending.message_id, error, &mut core.put(rules));
    core.settle(pending.connection, client, outcome);
}

fn handle_push(
    owner: Token,
    message: &Msg<'_>,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    let Ok(push) = PushView::decode(message.payload) else {
        turn.core.meter.count(CoreCounter::LateAnswers);
        return;
    };
    put_push(owner, None, &push, connections, turn);
    // Go sends no reply subject; libpitaya-cluster does, and blocks until it is answered (cluster protocol 21).
    turn.bus.reply(reply_to(message), wire::RESPONSE_ACK);
}

/// Puts a push into the outbox of the connection at `owner`, when it is the session of the push.
pub fn put_push(
    owner: Token,
    session: Option<SessionId>,
    push: &PushView<'_>,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    let Turn { rules, core, codec, .. } = turn;
    let connection = connections.at(owner).filter(|connection| {
        let client = &connection.client;
        // A push to a session by its id may be without a uid, as the session may be.
        let is_meant =
            client.session.uid() == push.uid || (session.is_some() && push.uid.is_empty());
        is_meant && session.is_none_or(|id| client.session.id() == id)
    });
    let Some(connection) = connection else {
        core.meter.count(CoreCounter::PushesDropped);
        return;
    };
    let client = &mut connection.client;
    client.last_route = core.meter.route(push.route);
    let payload = codec.pack(push.data, rules.compression_threshold_bytes);
    if rules.is_push_dropped && !client.has_room_for_push(push.route, payload, rules) {
        core.meter.count(CoreCounter::PushesDropped);
        core.meter.limited(LimitLabel::Outbox);
        return;
    }
    core.meter.count(CoreCounter::Pushes);
    let outcome = client.put_push(push.route, payload, &mut core.put(rules));
    core.settle(owner, client, outcome);
}

fn handle_kick(
    owner: Token,
    message: &Msg<'_>,
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) {
    let Ok(kick) = KickView::decode(message.payload) else {
        turn.core.meter.count(CoreCounter::LateAnswers);
        return;
    };
    let mut is_kicked = false;
    if let Some(connection) = connections.at(owner)
        && connection.client.session.uid() == kick.user_id
    {
        calls::kick(connection, CloseReason::Kicked, turn.rules, turn.core);
        is_kicked = true;
    }
    let answer = proto::KickAnswer { kicked: is_kicked }.encode_to_vec();
    turn.bus.reply(reply_to(message), &answer);
}

/// Another frontend of this type has bound a uid: the session that holds it here, if any, is kicked.
fn handle_binding(payload: &[u8], turn: &mut Turn<'_>) {
    let Ok(binding) = BindView::decode(payload) else {
        turn.core.meter.count(CoreCounter::LateAnswers);
        return;
    };
    if binding.fid == turn.rules.server_id {
        return;
    }
    if let Some(session) = turn.core.directory.holder(binding.uid) {
        turn.core.replaced.push(session);
    }
}
