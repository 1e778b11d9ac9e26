//! One message for many users: it is packed and framed once, and copied into the outboxes of those who are here.
//!
//! The message comes over the NATS connection that carries the single pushes of the same users, one copy for each
//! connection of the gateway, so that the two kinds of a sender's pushes cannot overtake each other; each connection
//! serves its own users. A user who is not here is somebody else's, and no loss.

use proto::wire::{self, PushManyView};
use shared::message::{self, Head, MessageType};
use shared::metrics::CoreCounter;
use shared::packet::PacketType;

use crate::calls;
use crate::connection::Payload;
use crate::connections::Connections;
use crate::directory::Directory;
use crate::rules::Rules;
use crate::turn::Turn;
use crate::wire::frame_packet;

/// The call with which a worker asks which users are here.
pub const HOLDERS: &str = "dragonfruit.holders";

/// Puts a message into the outbox of every session of this bus that it names.
pub fn deliver(payload: &[u8], connections: &mut Connections, turn: &mut Turn<'_>) {
    let Ok(push) = PushManyView::decode(payload) else {
        turn.core.meter.count(CoreCounter::LateAnswers);
        return;
    };
    let Turn { rules, core, codec, bus } = turn;
    core.meter.count(CoreCounter::PushesToMany);
    let route = core.meter.route(push.route);
    let mut packet = std::mem::take(&mut core.scratch);
    packet.clear();
    for uid in push.uids() {
        let Some(token) = bus.subscriptions.holder(uid) else { continue };
        let Some(connection) = connections.at(token) else { continue };
        let client = &mut connection.client;
        // A bind under way is not confirmed, so nobody may count on it yet.
        if client.session.uid() != uid {
            continue;
        }
        if packet.is_empty() {
            let body = codec.pack(push.data, rules.compression_threshold_bytes);
            if !frame(push.route, body, rules, &mut packet) {
                core.meter.count(CoreCounter::PushesDropped);
                break;
            }
        }
        core.meter.count(CoreCounter::Pushes);
        client.last_route = route;
        let outcome = client.put_packet(&packet, &mut core.put(rules));
        core.settle(token, client, outcome);
    }
    core.scratch = packet;
}

/// Writes the packet as a TCP client reads it; false for a message that no client can be sent.
fn frame(route: &str, body: Payload<'_>, rules: &Rules, packet: &mut Vec<u8>) -> bool {
    let is_compressed = body.is_compressed;
    let head = Head { kind: MessageType::Push, id: 0, route, is_compressed, is_error: false };
    let body_bytes = message::head_bytes(&head, &rules.dictionary) + body.bytes.len();
    let framed = frame_packet(false, PacketType::Data, body_bytes, packet).is_ok()
        && message::encode_head(&head, &rules.dictionary, packet).is_ok();
    packet.extend_from_slice(body.bytes);
    framed
}

/// The encoded answer to [`HOLDERS`]: a bit for each user of the list, in its order, the lowest bit of a byte first.
pub fn holders(list: &[u8], directory: &Directory) -> Vec<u8> {
    let Ok(list) = PushManyView::decode(list) else {
        return calls::bad_request("cannot decode the list of users");
    };
    let mut bits = Vec::new();
    let mut number = 0;
    directory.holds(list.uids(), |is_held| {
        if number % 8 == 0 {
            bits.push(0);
        }
        if let Some(byte) = bits.last_mut() {
            *byte |= u8::from(is_held) << (number % 8);
        }
        number += 1;
    });
    let mut answer = Vec::new();
    wire::encode_response(&bits, &mut answer);
    answer
}

#[cfg(test)]
mod tests {
    use proto::Message;
    use shared::session::SessionId;

    use super::*;

    #[test]
    fn the_holders_are_a_bit_each() {
        let directory = Directory::default();
        for (number, uid) in ["u0", "u2", "u9"].into_iter().enumerate() {
            directory.claim(SessionId(number as i64 + 1), uid);
        }
        let uids = (0..10).map(|number| format!("u{number}")).collect();
        let list = proto::PushMany { uids, ..Default::default() }.encode_to_vec();
        let answer = proto::Response::decode(&holders(&list, &directory)[..]).unwrap();
        assert_eq!(&answer.data[..], [0b0000_0101, 0b0000_0010]);
        let nobody = proto::Response::decode(&holders(&[], &directory)[..]).unwrap();
        assert_eq!((nobody.data.len(), nobody.error), (0, None));
        let broken = proto::Response::decode(&holders(&[0x1a, 9], &directory)[..]).unwrap();
        assert_eq!(broken.error.unwrap().code, "PIT-400");
    }
}
