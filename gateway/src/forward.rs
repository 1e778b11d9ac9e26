//! Forwarding: a client's packet on its way to a server of the cluster, and the error that it gets when there is none.
//!
//! One request is decoded, routed and encoded here, in that order, without a copy of its payload except into the
//! bus's buffer, and without an allocation in the steady state. Where a message is refused the client is told with
//! Pitaya's code and text (cluster protocol 5.2, 7). The way back is deliver.rs.

use std::sync::Arc;

use bytes::Bytes;
use proto::wire::SysRequest;
use shared::agent::Verdict;
use shared::close::CloseReason;
use shared::compression::InflateError;
use shared::error::{Error, code};
use shared::handshake;
use shared::message::{self, Message, MessageType};
use shared::metadata::{MetadataFields, encode_metadata};
use shared::metrics::{CoreCounter, DropReason, FailReason, LimitLabel, RouteLabel};
use shared::packet::Packet;
use shared::route::Route;
use shared::routing::{self, RouteFunction, RouteRequest, RouteSession, Rule};
use shared::server::Server;

use crate::bus::batches::Leaving;
use crate::bus::pending::Pending;
use crate::bus::queue::Waiting;
use crate::bus::targets::{Choice, LOCAL_TYPE, Place, Seeker, Target};
use crate::bus::{BusState, Carrier};
use crate::connection::Client;
use crate::driver::Token;
use crate::limits::messages;
use crate::rules::Rules;
use crate::turn::{Core, Turn};

/// Text of Go's client library when a subject has no subscriber (cluster protocol 7.1).
pub const NO_RESPONDERS: &str = "nats: no responders available for request";
/// The same over gRPC, as our workers say it.
pub const UNREACHABLE: &str = "grpc: the server cannot be reached";
/// Text of Go's client library when the connection is gone.
pub const NOT_CONNECTED: &str = "nats: connection closed";
const PAYLOAD_TOO_LARGE: &str = "nats: maximum payload exceeded";
/// Text of the error when a route's type has no server (cluster protocol 5.2).
pub const NO_SERVERS: &str = "no servers available of this type";
const TOO_FAST: &str = "too many messages in a second";
const TOO_MANY: &str = "too many requests in flight";

/// Takes in one packet of a client.
///
/// Errors: why the connection is to be closed.
pub fn handle_packet(
    token: Token,
    client: &mut Client,
    packet: Packet<'_>,
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    let rules = turn.rules;
    turn.core.meter.count(CoreCounter::ReceivedPackets);
    match client.agent.handle_packet(packet, &rules.agent, turn.core.now_ms)? {
        Verdict::Nothing => Ok(()),
        Verdict::Limited => {
            turn.core.meter.count(CoreCounter::RateLimited);
            Ok(())
        }
        Verdict::Accepted(request) => {
            client.handshake = Some(handshake::encode_request(&request).into());
            turn.core.meter.count(CoreCounter::HandshakesAccepted);
            let outcome =
                client.put_packet(&rules.agent.responses.accepted, &mut turn.core.put(rules));
            client.outbox.set_boundary();
            turn.core.settle(token, client, Ok(()));
            outcome
        }
        Verdict::Refused(text) => {
            turn.core.meter.count(CoreCounter::HandshakesRefused);
            tracing::debug!(session = client.session.id().0, text, "handshake refused");
            client.put_packet(&rules.agent.responses.refused, &mut turn.core.put(rules))?;
            turn.core.settle(token, client, Ok(()));
            Err(CloseReason::BadHandshake)
        }
        Verdict::Data(body) => {
            let message =
                message::decode(body, &rules.dictionary).map_err(|_| CloseReason::BadMessage)?;
            handle_message(token, client, &message, turn)
        }
    }
}

fn handle_message(
    token: Token,
    client: &mut Client,
    message: &Message<'_>,
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    let id = match message.kind {
        MessageType::Request => message.id,
        MessageType::Notify => 0,
        // No client sends these; running handlers for them would be a way around the rules for requests.
        MessageType::Response | MessageType::Push => {
            return Ok(());
        }
    };
    let is_request = message.kind == MessageType::Request;
    let Turn { rules, core, codec, bus } = turn;
    let rules: &Rules = rules;
    if let Err(limit) = messages::admit_sender(&client.seats, &rules.limits, core.now_us) {
        return refuse(token, client, id, &Refusal::limited(limit, core), rules, core);
    }
    let payload = if message.is_compressed {
        core.meter.count(CoreCounter::Inflated);
        codec.inflater.inflate(message.payload, rules.inflate_bytes_max).map_err(|error| {
            core.meter.count(CoreCounter::InflateFailures);
            match error {
                InflateError::TooLarge { .. } => CloseReason::InflateLimit,
                _ => CloseReason::BadMessage,
            }
        })?
    } else {
        message.payload
    };
    // Counted from here on: what ends the connection before is no request, and nothing would ever balance it.
    match (is_request, id) {
        (false, _) => core.meter.count(CoreCounter::Notifies),
        (true, 0) => {
            core.meter.requested();
            core.meter.dropped(DropReason::NoId);
        }
        (true, _) => core.meter.requested(),
    }
    let asked = Asked { token, id, is_request, payload };
    match route_message(client, message.route, &asked, rules, bus, core) {
        Ok(()) => Ok(()),
        Err(refusal) => refuse(token, client, id, &refusal, rules, core),
    }
}

/// Tells a client that its message goes nowhere; for a notify nothing is told.
fn refuse(
    token: Token,
    client: &mut Client,
    id: u64,
    refusal: &Refusal,
    rules: &Rules,
    core: &mut Core,
) -> Result<(), CloseReason> {
    if id > 0 {
        core.meter.refused(refusal.reason, &refusal.error.code);
    }
    let outcome = client.put_error(id, &refusal.error, &mut core.put(rules));
    core.settle(token, client, Ok(()));
    outcome
}

/// What a client asked for, besides its route.
struct Asked<'a> {
    token: Token,
    id: u64,
    is_request: bool,
    payload: &'a [u8],
}

fn route_message(
    client: &mut Client,
    route: &[u8],
    asked: &Asked<'_>,
    rules: &Rules,
    bus: &mut BusState,
    core: &mut Core,
) -> Result<(), Refusal> {
    let text = std::str::from_utf8(route).map_err(|_| {
        Refusal::new(FailReason::BadRoute, code::BAD_REQUEST, "route is not valid UTF-8")
    })?;
    let route = Route::parse(text).map_err(|error| {
        Refusal::new(FailReason::BadRoute, code::BAD_REQUEST, error.to_string())
    })?;
    let Some(target_type) = target_type(&route, rules) else {
        return Err(not_found(route.server_type.unwrap_or(&rules.server_type), &route));
    };
    if asked.is_request && client.in_flight >= rules.in_flight_connection_max {
        core.meter.limited(LimitLabel::InFlight);
        return Err(Refusal::new(FailReason::Busy, code::BUSY, TOO_MANY));
    }
    // Without NATS the application in this process still serves.
    if target_type != LOCAL_TYPE && (!bus.is_ready() || bus.is_full()) {
        return Err(Refusal::new(FailReason::BusDown, code::BUSY, NOT_CONNECTED));
    }
    let full_route;
    let text = if route.server_type.is_some() {
        text
    } else {
        let own_type = rules.local_type().unwrap_or(&rules.server_type);
        full_route = format!("{own_type}.{text}");
        &full_route
    };
    if let Err(limit) = messages::admit_route(&mut client.seats, text, &rules.limits, core.now_us) {
        return Err(Refusal::limited(limit, core));
    }
    let request = Outgoing {
        connection: asked.token,
        message_id: asked.id,
        is_notify: !asked.is_request || asked.id == 0,
        route: text,
        server_type: target_type,
        payload: asked.payload,
        arrived_us: core.now_us,
        deadline_ms: core.now_ms + rules.request_timeout_ms,
        chosen: None,
    };
    send_or_wait(&request, client, rules, bus, core)
}

/// Chooses the server of a request, which leaves at once or waits for room.
fn send_or_wait(
    request: &Outgoing<'_>,
    client: &mut Client,
    rules: &Rules,
    bus: &mut BusState,
    core: &mut Core,
) -> Result<(), Refusal> {
    let function = match rules.routing.of(request.server_type) {
        Rule::Function(function) => Some(function),
        Rule::Policy(_) => None,
    };
    let server = function.map(|function| ask(function, request, client, bus)).transpose()?;
    let chosen = server.as_ref().map(|server| server.id.as_str());
    let request = Outgoing { chosen, ..*request };
    let seeker = Seeker { uid: client.session.uid(), homes: &client.homes, chosen };
    match bus.targets.choose(request.server_type, &seeker, core.now_ms) {
        Choice::Target(target) => send(&request, target, client, rules, bus, core),
        Choice::Busy(place) => {
            let waits = wait(&request, place, client, bus);
            waits.inspect_err(|_| core.meter.limited(LimitLabel::Queue))
        }
        Choice::NoServers => Err(Refusal::new(FailReason::NoServer, code::INTERNAL, NO_SERVERS)),
    }
}

/// The type of the servers that a route goes to; None when clients may not go there, or nobody could serve it.
fn target_type<'a>(route: &Route<'a>, rules: &Rules) -> Option<&'a str> {
    let is_own = |name: &str| name == rules.server_type || rules.local_type() == Some(name);
    match route.server_type {
        _ if route.service == "sys" => None,
        Some(server_type) if !is_own(server_type) => (!rules.is_standalone).then_some(server_type),
        _ => rules.local.is_some().then_some(LOCAL_TYPE),
    }
}

fn not_found(server_type: &str, route: &Route<'_>) -> Refusal {
    let text =
        format!("pitaya/handler: {server_type}.{}.{} not found", route.service, route.method);
    Refusal::new(FailReason::BadRoute, code::NOT_FOUND, text)
}

/// Why a request goes nowhere: for the metrics, and for the client.
pub struct Refusal {
    /// For the metrics.
    pub reason: FailReason,
    /// For the client.
    pub error: Error,
}

impl Refusal {
    fn new(reason: FailReason, code: &'static str, text: impl Into<String>) -> Self {
        Self { reason, error: Error::new(code, text) }
    }

    fn limited(limit: LimitLabel, core: &Core) -> Self {
        core.meter.limited(limit);
        Self::new(FailReason::RateLimited, code::TOO_MANY, TOO_FAST)
    }
}

/// A request that has a server type and leaves as soon as a server has room.
pub struct Outgoing<'a> {
    /// Who asked.
    pub connection: Token,
    /// The client's message id.
    pub message_id: u64,
    /// Whether nobody waits for an answer.
    pub is_notify: bool,
    /// The full route.
    pub route: &'a str,
    /// The type of the servers that can take it.
    pub server_type: &'a str,
    /// The inflated payload.
    pub payload: &'a [u8],
    /// When it arrived, µs.
    pub arrived_us: u64,
    /// When it is given up, ms.
    pub deadline_ms: u64,
    /// The id of the server that the application's routing function chose.
    pub chosen: Option<&'a str>,
}

/// Lets a function of the application choose the server.
fn ask(
    function: &RouteFunction,
    request: &Outgoing<'_>,
    client: &Client,
    bus: &BusState,
) -> Result<Arc<Server>, Refusal> {
    let table = bus.targets.table();
    let servers = table.by_type(request.server_type);
    if servers.is_empty() {
        return Err(Refusal::new(FailReason::NoServer, code::INTERNAL, NO_SERVERS));
    }
    let session = &client.session;
    let session = RouteSession { id: session.id().0, uid: session.uid(), data: session.data() };
    let (route, payload) = (request.route, request.payload);
    let request = RouteRequest { route, payload, session: Some(session), servers, table };
    routing::ask(function, &request)
        .map_err(|error| Refusal { reason: FailReason::NoServer, error })
}

fn wait(
    request: &Outgoing<'_>,
    place: Place,
    client: &mut Client,
    bus: &mut BusState,
) -> Result<(), Refusal> {
    let waiting = Waiting {
        connection: request.connection,
        session: client.session.id(),
        message_id: request.message_id,
        route: request.route.into(),
        payload: request.payload.to_vec(),
        arrived_us: request.arrived_us,
        deadline_ms: request.deadline_ms,
        is_notify: request.is_notify,
        chosen: request.chosen.map(Into::into),
        place: 0,
    };
    match bus.targets.wait(request.server_type, place, waiting) {
        Ok(()) => {
            client.in_flight += u32::from(!request.is_notify);
            Ok(())
        }
        Err(_) => Err(Refusal::new(FailReason::Busy, code::BUSY, TOO_MANY)),
    }
}

/// Encodes and sends a request to `target`.
///
/// Errors: what the client is to be told instead.
pub fn send(
    request: &Outgoing<'_>,
    target: u32,
    client: &mut Client,
    rules: &Rules,
    bus: &mut BusState,
    core: &mut Core,
) -> Result<(), Refusal> {
    core.next_request += 1;
    core.scratch.clear();
    let fields = MetadataFields {
        prefix: &core.metadata,
        route: request.route,
        start_ns: core.unix_ns,
        timeout: &rules.request_timeout_text,
        request_number: core.next_request,
    };
    encode_metadata(&fields, &mut core.scratch);
    let encoded = SysRequest {
        session: client.session.encoded(),
        message_id: if request.is_notify { 0 } else { request.message_id },
        route: request.route,
        payload: request.payload,
        is_notify: request.is_notify,
        frontend_id: &rules.server_id,
        metadata: &core.scratch,
    };
    let route = core.meter.route(request.route);
    client.last_route = route;
    if let Some(home) = bus.targets.find(target).and_then(Target::home) {
        client.homes.set(home);
    }
    let is_local = bus.targets.is_local(target);
    let bytes = encoded.encoded_bytes();
    if let Carrier::Nats(lines) = &bus.carrier
        && !is_local
        && bytes > lines.payload_bytes_max
    {
        return Err(Refusal::new(FailReason::TooLarge, code::UNKNOWN, PAYLOAD_TOO_LARGE));
    }
    if request.is_notify {
        send_notify(&encoded, bytes, target, bus);
        return Ok(());
    }
    let pending = Pending {
        connection: request.connection,
        session: client.session.id(),
        message_id: request.message_id,
        target,
        arrived_us: request.arrived_us,
        sent_ms: core.now_ms,
        deadline_ms: request.deadline_ms,
        route,
        unlabelled: (route == RouteLabel::OTHER).then(|| request.route.into()),
        is_retry: false,
    };
    let Some(token) = bus.pending.insert(pending) else {
        return Err(Refusal::new(FailReason::Busy, code::BUSY, TOO_MANY));
    };
    // Nobody else can take what was chosen for one server.
    let is_kept = request.chosen.is_none() && bus.targets.has_alternative(request.server_type);
    send_request(&encoded, bytes, token, target, is_kept, bus);
    client.in_flight += 1;
    Ok(())
}

fn send_request(
    encoded: &SysRequest<'_>,
    bytes: usize,
    token: u32,
    target: u32,
    is_kept: bool,
    bus: &mut BusState,
) {
    let is_local = bus.targets.is_local(target);
    if bus.targets.begin(target).is_none() {
        return;
    }
    match &bus.local {
        Some(carrier) if is_local => {
            let mut request = Vec::with_capacity(bytes);
            encoded.encode(&mut request);
            carrier.request(token, Bytes::from(request));
        }
        _ => {
            let leaving = Leaving { target, token: Some(token), bytes, is_kept };
            bus.put(&leaving, |out| encoded.encode(out));
        }
    }
}

fn send_notify(encoded: &SysRequest<'_>, bytes: usize, target: u32, bus: &mut BusState) {
    match &bus.local {
        Some(carrier) if bus.targets.is_local(target) => {
            let mut request = Vec::with_capacity(bytes);
            encoded.encode(&mut request);
            carrier.notify(Bytes::from(request));
        }
        _ => {
            let leaving = Leaving { target, token: None, bytes, is_kept: false };
            bus.put(&leaving, |out| encoded.encode(out));
        }
    }
}
