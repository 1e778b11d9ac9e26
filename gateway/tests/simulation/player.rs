//! A simulated player: mostly honest, sometimes slow, sometimes hostile, and always attentive to what it is sent.

use std::collections::BTreeMap;

use client::address::Transport;
use client::framing::{Framing, Received, append_message, append_packet};
use client::upgrade::UpgradeRequest;
use gateway::driver::memory::Peer;
use shared::compression::Inflater;
use shared::dictionary::Dictionary;
use shared::handshake;
use shared::message::{self, Head, MessageType};
use shared::packet::{self, PacketType};

use crate::backend::{Backends, LATE, mark_of, marked, push_data};
use crate::world::Totals;

/// Codes that a request may be refused with; any other is a mistake.
const CODES: [&str; 7] =
    ["GAME-1", "PIT-000", "PIT-400", "PIT-404", "PIT-408", "PIT-500", "PIT-503"];
/// As configured by default.
const REQUEST_TIMEOUT_MS: u64 = 5_000;
/// The tick.
const TIMEOUT_SLACK_MS: u64 = 200;
/// Steps within which the answer to an overdue request arrives, however slow the network is.
const STEPS_LATE_MAX: u32 = 400;
const BEAT_MS: u64 = 3_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Upgrading,
    Shaking,
    Live,
    Over,
}

struct Asked {
    number: u64,
    at_ms: u64,
    steps_late: u32,
}

pub(crate) struct Player {
    pub(crate) number: usize,
    peer: Peer,
    upgrade: Option<UpgradeRequest>,
    head: Vec<u8>,
    framing: Framing,
    inflater: Inflater,
    pub(crate) stage: Stage,
    /// Whether it reads what it is sent.
    pub(crate) is_reading: bool,
    /// Whether it has given the gateway no reason to be closed.
    pub(crate) is_honest: bool,
    asked: BTreeMap<u64, Asked>,
    next_number: u64,
    pub(crate) uid: Option<String>,
    pub(crate) newest_push: u64,
    is_kicked: bool,
    next_beat_ms: u64,
}

impl Player {
    pub(crate) fn new(number: usize, peer: Peer, transport: Transport, now_ms: u64) -> Self {
        let mut player = Self {
            number,
            peer,
            upgrade: None,
            head: Vec::new(),
            framing: Framing::new(transport, packet::BODY_BYTES_MAX),
            inflater: Inflater::new(),
            stage: Stage::Shaking,
            is_reading: true,
            is_honest: true,
            asked: BTreeMap::new(),
            next_number: 0,
            uid: None,
            newest_push: 0,
            is_kicked: false,
            next_beat_ms: now_ms + BEAT_MS,
        };
        if transport == Transport::WebSocket {
            let request = UpgradeRequest::new("game.example", "/");
            player.peer.write(request.bytes());
            player.upgrade = Some(request);
            player.stage = Stage::Upgrading;
        } else {
            player.shake_hands();
        }
        player
    }

    /// Time has leapt: what was on its way to the gateway arrives only now, and its time begins anew.
    pub(crate) fn handle_leap(&mut self, now_ms: u64) {
        self.asked.values_mut().for_each(|asked| asked.at_ms = now_ms);
    }

    /// Requests that have no answer yet.
    pub(crate) fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// Whether the gateway owes it everything that it has promised.
    pub(crate) fn is_owed(&self) -> bool {
        self.stage == Stage::Live && self.is_honest && self.is_reading
    }

    fn packet(&self, kind: PacketType, body: &[u8]) {
        let mut out = Vec::new();
        append_packet(self.framing.transport(), kind, body, &mut out).unwrap();
        self.peer.write(&out);
    }

    fn message(&self, head: &Head<'_>, payload: &[u8]) {
        let mut out = Vec::new();
        let transport = self.framing.transport();
        append_message(transport, head, payload, &Dictionary::default(), &mut out).unwrap();
        self.peer.write(&out);
    }

    fn shake_hands(&self) {
        self.packet(PacketType::Handshake, br#"{"sys":{"platform":"sim"}}"#);
    }

    fn ask(&mut self, route: &str, padding: usize, now_ms: u64) {
        self.next_number += 1;
        let number = self.next_number;
        let mut payload = marked(self.number, number);
        payload.push(b' ');
        payload.resize(payload.len() + padding, b'.');
        // Ids are the client's business: they only must not be in use.
        let id = number * 7 % 100_003;
        let kind = MessageType::Request;
        self.message(&Head { kind, id, route, is_compressed: false, is_error: false }, &payload);
        self.asked.insert(id, Asked { number, at_ms: now_ms, steps_late: 0 });
    }

    /// Does something, now and then.
    pub(crate) fn act(&mut self, now_ms: u64, random: &mut fastrand::Rng) {
        if self.stage != Stage::Live {
            return;
        }
        if now_ms >= self.next_beat_ms {
            self.packet(PacketType::Heartbeat, &[]);
            self.next_beat_ms = now_ms + BEAT_MS;
        }
        match random.u16(..1_000) {
            0..60 => self.ask("room.room.join", random.usize(..40), now_ms),
            60..66 => self.ask("room.room.join", random.usize(..20_000), now_ms),
            66..68 => (0..random.usize(..50)).for_each(|_| self.ask("room.room.burst", 3, now_ms)),
            68..70 => self.ask("nowhere.room.join", 1, now_ms),
            70..72 => self.ask(["bad", "sys.bind.x", "", "a.b.c.d"][random.usize(..4)], 1, now_ms),
            72..80 => self.aside(random),
            80..82 => self.is_reading = false,
            82 => self.leave(random.bool()),
            83 => self.misbehave(random),
            _ => {}
        }
        if !self.is_reading && random.u8(..20) == 0 {
            // Too late to be owed anything: it may have been given up meanwhile.
            self.is_reading = true;
            self.is_honest = false;
        }
    }

    /// What needs no answer. It says whose it is, and has no place in the order.
    fn aside(&self, random: &mut fastrand::Rng) {
        let (kind, id) = [(MessageType::Notify, 0), (MessageType::Request, 0)][random.usize(..2)];
        let route = "room.room.aside";
        self.message(
            &Head { kind, id, route, is_compressed: false, is_error: false },
            &marked(self.number, 0),
        );
    }

    pub(crate) fn leave(&mut self, is_reset: bool) {
        if is_reset {
            self.peer.reset();
        } else {
            self.peer.finish();
        }
        self.is_honest = false;
        self.stage = Stage::Over;
        self.asked.clear();
    }

    fn misbehave(&mut self, random: &mut fastrand::Rng) {
        self.is_honest = false;
        let head = Head {
            kind: MessageType::Request,
            id: 5_000_000,
            route: "room.room.join",
            is_compressed: true,
            is_error: false,
        };
        match random.u8(..6) {
            0 => self.message(&head, b"not deflated at all"),
            1 => self.peer.write(&[0xff; 40]),
            2 => self.packet(PacketType::Handshake, b"{}"),
            3 => self.packet(PacketType::Data, &[]),
            4 => self.peer.write(&[4, 0xff, 0xff, 0xff]),
            _ => {
                self.peer.write(&[4, 0, 0]);
                self.leave(false);
            }
        }
    }

    /// Takes in what has arrived.
    pub(crate) fn receive(&mut self, now_ms: u64, backends: &Backends, totals: &mut Totals) {
        if self.stage == Stage::Over || !self.is_reading {
            return;
        }
        let is_over = self.peer.is_over();
        let mut bytes = self.peer.read();
        totals.digest(&[self.number as u64, bytes.len() as u64]);
        if self.stage == Stage::Upgrading {
            self.head.append(&mut bytes);
            let Some(request) = &self.upgrade else { return };
            if let Some(taken) = request.handle_response(&self.head).expect("an upgrade") {
                bytes = self.head.split_off(taken);
                self.stage = Stage::Shaking;
                self.shake_hands();
            }
        }
        let mut packets = Vec::new();
        let mut out = Vec::new();
        let framed = self.framing.handle_bytes(&mut bytes, &mut out, &mut |received| {
            if let Received::Packet(packet) = received {
                packets.push((packet.kind, packet.body.to_vec()));
            }
        });
        framed.expect("the gateway sends whole packets");
        self.peer.write(&out);
        for (kind, body) in packets {
            self.handle_packet(kind, &body, backends, totals);
        }
        if is_over {
            self.handle_end(totals);
        } else {
            self.check_deadlines(now_ms);
        }
    }

    fn handle_end(&mut self, totals: &mut Totals) {
        let is_excused = !self.is_honest || self.is_kicked || self.stage != Stage::Live;
        assert!(is_excused, "player {} was thrown out for nothing", self.number);
        totals.ends += 1;
        self.stage = Stage::Over;
        self.peer.finish();
    }

    fn check_deadlines(&mut self, now_ms: u64) {
        if !self.is_owed() || self.is_kicked {
            return;
        }
        for (id, asked) in &mut self.asked {
            if now_ms < asked.at_ms + REQUEST_TIMEOUT_MS + TIMEOUT_SLACK_MS {
                continue;
            }
            asked.steps_late += 1;
            let number = self.number;
            assert!(asked.steps_late < STEPS_LATE_MAX, "request {id} of {number} has no answer");
        }
    }

    fn handle_packet(
        &mut self,
        kind: PacketType,
        body: &[u8],
        backends: &Backends,
        totals: &mut Totals,
    ) {
        assert!(!self.is_kicked, "player {}: {kind:?} after the kick", self.number);
        totals.digest(&[kind as u64, body.len() as u64]);
        match kind {
            PacketType::Handshake if self.stage == Stage::Shaking => {
                assert_eq!(handshake::decode_response(body).expect("an answer").code, 200);
                self.packet(PacketType::HandshakeAck, &[]);
                self.stage = Stage::Live;
            }
            PacketType::Heartbeat => {}
            PacketType::Kick => {
                totals.kicks += 1;
                self.is_kicked = true;
            }
            PacketType::Data => self.handle_message(body, backends, totals),
            _ => assert!(!self.is_honest, "player {}: unexpected {kind:?}", self.number),
        }
    }

    fn handle_message(&mut self, body: &[u8], backends: &Backends, totals: &mut Totals) {
        let dictionary = Dictionary::default();
        let message = message::decode(body, &dictionary).expect("a message");
        let payload = if message.is_compressed {
            self.inflater.inflate(message.payload, 1 << 20).expect("deflated").to_vec()
        } else {
            message.payload.to_vec()
        };
        match message.kind {
            MessageType::Response => {
                self.handle_response(message.id, message.is_error, &payload, totals);
            }
            MessageType::Push => self.handle_push(&payload, backends, totals),
            kind => panic!("a server does not send {kind:?}"),
        }
    }

    fn handle_response(&mut self, id: u64, is_error: bool, payload: &[u8], totals: &mut Totals) {
        let Some(asked) = self.asked.remove(&id) else {
            assert!(!self.is_honest, "player {}: a second answer to {id}", self.number);
            return;
        };
        if is_error {
            let value: serde_json::Value = serde_json::from_slice(payload).expect("an error");
            let code = value["code"].as_str().expect("a code");
            assert!(CODES.contains(&code), "an error with code {code}");
            totals.errors += 1;
        } else {
            let expected = Some((self.number, asked.number));
            assert_eq!(mark_of(payload), expected, "somebody else's answer");
            totals.answers += 1;
        }
    }

    fn handle_push(&mut self, payload: &[u8], backends: &Backends, totals: &mut Totals) {
        let text = std::str::from_utf8(payload).unwrap().split(' ').next().unwrap();
        let (uids, number) = text.split_once('#').expect("a push of ours");
        let number: u64 = number.parse().unwrap();
        debug_assert!(payload.starts_with(&push_data(uids, number)));
        let session = *backends.sessions.get(&self.number).expect("bound by its session");
        let is_asked = |uid: &str| backends.asked.contains(&(session, uid.to_owned()));
        let may_be: Vec<&str> = uids.split('|').filter(|uid| is_asked(uid)).collect();
        let player = self.number;
        assert!(!may_be.is_empty(), "player {player} got a push for {uids}, whom it never was");
        match (&self.uid, &may_be[..]) {
            (Some(known), _) => {
                let is_it = may_be.contains(&known.as_str());
                assert!(is_it, "player {player} got pushes of two users");
            }
            // Of several it may be any, which the next push tells.
            (None, [only]) => self.uid = Some((*only).to_owned()),
            (None, _) => {}
        }
        if number != LATE {
            assert!(number > self.newest_push, "push {number} after {}", self.newest_push);
            self.newest_push = number;
        }
        totals.pushes += 1;
        totals.pushes_to_many += u64::from(uids.contains('|'));
    }
}
