//! One client's bytes on their way in: through its entrance and its wire, to whatever they ask for.

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use shared::agent::State;
use shared::close::CloseReason;
use shared::metrics::CoreCounter;
use shared::proxy::{self, Source};
use shared::websocket::frame;
use shared::websocket::upgrade::RequestHead;

use crate::connection::{Client, Connection};
use crate::forward;
use crate::rules::Rules;
use crate::turn::Turn;
use crate::wire::Found;

/// A defect that one client's bytes bring out ends that client, not the core and everybody on it.
pub(super) fn take_in_guarded(
    connection: &mut Connection,
    bytes: &mut [u8],
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    catch_unwind(AssertUnwindSafe(|| take_in(connection, bytes, turn)))
        .unwrap_or(Err(CloseReason::Internal))
}

fn take_in(
    connection: &mut Connection,
    bytes: &mut [u8],
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    if connection.client.ending.is_asked() {
        return Ok(());
    }
    if connection.client.freezing.is_some() {
        connection.entrance.keep(bytes, &mut connection.wire);
        return Ok(());
    }
    if !connection.entrance.is_awaiting_header() {
        return take_sealed(connection, bytes, turn);
    }
    let Some((source, mut rest)) = connection.entrance.take_header(bytes)? else { return Ok(()) };
    if let Source::Client(address) = source {
        connection.peer = address;
        know_address(&mut connection.client, address.ip(), turn)?;
    }
    take_sealed(connection, &mut rest, turn)
}

/// The client's address is another one than the socket says. Everything that depends on the address of a client that
/// came through a proxy has to happen here.
fn know_address(
    client: &mut Client,
    address: IpAddr,
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    client.session.set_address(address, turn.rules.told_address);
    client.seats.address = Some(turn.core.seat(address, turn.rules)?);
    Ok(())
}

/// Bytes behind the PROXY header.
fn take_sealed(
    connection: &mut Connection,
    bytes: &mut [u8],
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    let Some(tls) = &mut connection.entrance.tls else {
        return take_plain(connection, bytes, turn);
    };
    let mut plain = std::mem::take(&mut turn.core.opened);
    plain.clear();
    let was_handshaking = tls.is_handshaking();
    let outcome = tls.handle_bytes(bytes, &mut plain);
    if was_handshaking && !tls.is_handshaking() {
        turn.core.tls_handshakes.end();
        if tls.is_established() {
            turn.core.meter.count(CoreCounter::TlsHandshakes);
        }
    }
    if tls.has_output() {
        turn.core.settle(connection.token, &mut connection.client, Ok(()));
    }
    let taken = take_plain(connection, &mut plain, turn);
    turn.core.opened = plain;
    taken?;
    outcome.map_err(|end| {
        let session = connection.client.session.id().0;
        tracing::debug!(session, peer = %connection.peer, %end, "TLS ended");
        match end {
            crate::tls::TlsEnd::PeerClosed => CloseReason::PeerClosed,
            _ => CloseReason::Tls,
        }
    })
}

/// Bytes of packets or of a WebSocket.
fn take_plain(
    connection: &mut Connection,
    bytes: &mut [u8],
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    let Connection { token, peer, wire, client, .. } = connection;
    let token = *token;
    let rules = turn.rules;
    let is_unexpected_header =
        client.agent.state() == State::Start && proxy::looks_like_header(bytes);
    let outcome = wire.handle_bytes(bytes, &rules.wire, &mut |found| match found {
        Found::Packet(packet) => forward::handle_packet(token, client, packet, turn),
        Found::Upgraded { answer, head } => {
            if let Some(address) = forwarded(head, peer.ip(), rules) {
                *peer = SocketAddr::new(address, 0);
                know_address(client, address, turn)?;
            }
            let outcome = client.put_raw(answer, &mut turn.core.put(rules));
            client.is_web_socket = true;
            turn.core.settle(token, client, Ok(()));
            outcome
        }
        Found::Echo(kind, content) => {
            let mut head = Vec::new();
            frame::frame_head(kind, content.len(), None, &mut head);
            client.put_raw(&head, &mut turn.core.put(rules))?;
            let outcome = client.put_raw(content, &mut turn.core.put(rules));
            turn.core.settle(token, client, Ok(()));
            outcome
        }
        Found::Answer(answer) => {
            let outcome = client.put_raw(answer, &mut turn.core.put(rules));
            turn.core.settle(token, client, Ok(()));
            outcome
        }
        Found::Farewell(answer, reason) => {
            client.put_raw(answer, &mut turn.core.put(rules))?;
            turn.core.settle(token, client, Ok(()));
            Err(reason)
        }
        Found::Page(path) => {
            if let Some(pages) = &rules.pages {
                client.put_raw(&pages.answer(path), &mut turn.core.put(rules))?;
                turn.core.settle(token, client, Ok(()));
            }
            Err(CloseReason::PeerClosed)
        }
    });
    match outcome {
        // The reason that leads an operator to the mistake.
        Err(_) if is_unexpected_header => Err(CloseReason::ProxyHeader),
        other => other,
    }
}

/// The client that a proxy at `from` speaks for in its HTTP headers, when it is to be believed.
fn forwarded(head: &RequestHead, from: IpAddr, rules: &Rules) -> Option<IpAddr> {
    let proxies = &rules.proxies;
    if !proxies.believes_forwarded || !proxies.trusted.contains(from) {
        return None;
    }
    proxy::forwarded_client(
        head.forwarded_for.as_deref(),
        head.real_ip.as_deref(),
        &proxies.trusted,
    )
}
