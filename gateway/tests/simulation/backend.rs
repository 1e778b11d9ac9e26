//! The backends of the simulated cluster: what they see of requests, and what they answer, push, bind and kick.

use std::collections::{BTreeMap, BTreeSet};

use proto::Message;
use proto::wire::{BATCH_HEADER, put_batch_entry_head};

use crate::nats::Published;

/// The id and type of the simulated gateway.
pub(crate) const GATE: &str = "gate-1";
/// Users are few, so that they log in again and again.
const USERS: u64 = 12;

/// All servers of type `room`, and what they have done.
#[derive(Default)]
pub(crate) struct Backends {
    /// Messages that leave later, by when (ms).
    outgoing: BTreeMap<(u64, u64), Published>,
    numbers: u64,
    /// The newest request of each session that each server has seen.
    newest: BTreeMap<(String, i64), u64>,
    /// Requests that came to a server that was not there: they may come again, late.
    pub(crate) undelivered: BTreeSet<(i64, u64)>,
    /// Requests that some server has seen.
    seen: BTreeSet<(i64, u64)>,
    /// Binds that were asked for, by the subject of their answer.
    binding: BTreeMap<String, (i64, String)>,
    /// Uids that sessions may hold, because their bind was asked for.
    pub(crate) asked: BTreeSet<(i64, String)>,
    /// Confirmed binds, newest last.
    pub(crate) bound: BTreeMap<String, i64>,
    pub(crate) binds: u64,
    /// The session of each player that has asked for something.
    pub(crate) sessions: BTreeMap<usize, i64>,
    /// While everything heals, they only answer.
    pub(crate) is_calm: bool,
}

/// What a request of a simulated player carries: whose it is, and which.
pub(crate) fn marked(player: usize, number: u64) -> Vec<u8> {
    format!("{player}:{number}").into_bytes()
}

/// The inverse of [`marked`]; longer payloads are padded behind a blank.
pub(crate) fn mark_of(payload: &[u8]) -> Option<(usize, u64)> {
    let text = std::str::from_utf8(payload).ok()?.split(' ').next()?;
    let (player, number) = text.split_once(':')?;
    Some((player.parse().ok()?, number.parse().ok()?))
}

/// The data of a push: whose it is, and which. One for many names them all, with `|` in between.
pub(crate) fn push_data(uids: &str, number: u64) -> Vec<u8> {
    format!("{uids}#{number}").into_bytes()
}

/// Stands for whose push it is where nobody may get it.
const NOBODY: &str = "nobody";
/// The number of a push that came too late to have a place in the order.
pub(crate) const LATE: u64 = 0;

impl Backends {
    /// What is due by now. Now and then answers that follow one another are one message.
    pub(crate) fn due(&mut self, now_ms: u64) -> Vec<Published> {
        let later = self.outgoing.split_off(&(now_ms + 1, 0));
        let due = std::mem::replace(&mut self.outgoing, later).into_values();
        let is_joining = self.numbers.is_multiple_of(2);
        let mut all: Vec<Published> = Vec::new();
        let mut is_open = false;
        for message in due {
            let answer = is_joining.then(|| token_of(&message.subject)).flatten();
            let Some((inbox, token)) = answer else {
                all.push(message);
                is_open = false;
                continue;
            };
            let subject = format!("{inbox}.b");
            let is_same = all.last().is_some_and(|last| last.subject == subject);
            if !std::mem::replace(&mut is_open, true) || !is_same {
                all.push(Published { subject, reply: None, payload: BATCH_HEADER.to_vec() });
            }
            let payload = &mut all.last_mut().unwrap().payload;
            put_batch_entry_head(token, message.payload.len(), payload);
            payload.extend_from_slice(&message.payload);
        }
        all
    }

    fn send_at(&mut self, at_ms: u64, subject: &str, reply: Option<&str>, payload: Vec<u8>) {
        self.numbers += 1;
        let (subject, reply) = (subject.to_owned(), reply.map(str::to_owned));
        self.outgoing.insert((at_ms, self.numbers), Published { subject, reply, payload });
    }

    /// A message for `server`, which is up.
    pub(crate) fn handle_request(
        &mut self,
        server: &str,
        message: &Published,
        now_ms: u64,
        random: &mut fastrand::Rng,
    ) {
        let request = proto::Request::decode(&message.payload[..]).expect("a request");
        let session = request.session.expect("with its session");
        let data = request.msg.expect("with its message").data;
        if let Some((_, number @ 1..)) = mark_of(&data) {
            self.check_order(server, session.id, number);
        }
        let Some(reply) = &message.reply else { return };
        let at_ms = now_ms + [0, 0, 1, 5, 30, 400][random.usize(..6)];
        let (echo, error) = (answer(&data), failure());
        match random.u8(..100) {
            _ if self.is_calm => self.send_at(now_ms, reply, None, echo),
            // The gateway gives it up.
            0..3 => {}
            3..6 => self.send_at(at_ms, reply, None, b"\xff\xff\xffgarbage".to_vec()),
            6..10 => {
                self.send_at(at_ms, reply, None, echo.clone());
                self.send_at(at_ms + random.u64(..50), reply, None, answer(b"a second answer"));
                if let Some((inbox, _)) = token_of(reply) {
                    let garbage = b"\x00\x01\x00\x00\x00\x07\xff".to_vec();
                    self.send_at(at_ms, &format!("{inbox}.b"), None, garbage);
                }
            }
            // So late that the gateway has given it up, or its token serves somebody else.
            10..12 => self.send_at(now_ms + 5_500, reply, None, echo),
            12..20 => self.send_at(at_ms, reply, None, error),
            _ => self.send_at(at_ms, reply, None, echo),
        }
        if !self.is_calm {
            self.call_back(session.id, now_ms, random);
        }
    }

    fn check_order(&mut self, server: &str, session: i64, number: u64) {
        let is_first = self.seen.insert((session, number));
        assert!(
            is_first || self.undelivered.contains(&(session, number)),
            "request {number} of session {session} is executed twice"
        );
        let newest = self.newest.entry((server.to_owned(), session)).or_default();
        // One that met a server that had gone is sent again, and then later ones may be before it.
        if !self.undelivered.contains(&(session, number)) {
            assert!(number > *newest, "session {session}: {number} comes after {newest}");
        }
        *newest = number.max(*newest);
    }

    /// Binds, kicks, and changes data of the session that asks, now and then.
    fn call_back(&mut self, session: i64, now_ms: u64, random: &mut fastrand::Rng) {
        let subject = format!("pitaya/servers/connector/{GATE}");
        let uid = format!("user-{}", random.u64(..USERS));
        match random.u8(..100) {
            0..20 => self.bind(session, &uid, now_ms),
            20..25 => {
                let data = format!(r#"{{"level":{}}}"#, random.u8(..)).into_bytes();
                let argument =
                    proto::Session { id: session, uid: String::new(), data: data.into() };
                let call = call("sys.pushsession", &argument);
                self.send_at(now_ms, &subject, Some("_SIM.other"), call);
            }
            25..27 => {
                let kick = proto::KickMsg { user_id: uid.clone() };
                let subject = format!("pitaya/connector/user/{uid}/kick");
                self.send_at(now_ms, &subject, None, kick.encode_to_vec());
            }
            27..29 => {
                self.send_at(now_ms, &subject, Some("_SIM.other"), b"\x0a\x7fgarbage".to_vec());
            }
            29..31 => {
                let other = proto::Session { id: session + 1_000_000, ..Default::default() };
                let call = call("sys.bindsession", &other);
                self.send_at(now_ms, &subject, Some("_SIM.other"), call);
            }
            _ => {}
        }
    }

    fn bind(&mut self, session: i64, uid: &str, now_ms: u64) {
        self.numbers += 1;
        let reply = format!("_SIM.bind{}", self.numbers);
        self.binding.insert(reply.clone(), (session, uid.to_owned()));
        self.asked.insert((session, uid.to_owned()));
        let argument = proto::Session { id: session, uid: uid.to_owned(), ..Default::default() };
        let subject = format!("pitaya/servers/connector/{GATE}");
        self.send_at(now_ms, &subject, Some(&reply), call("sys.bindsession", &argument));
    }

    /// The gateway has answered one of our calls.
    pub(crate) fn handle_answer(&mut self, message: &Published) {
        let Some((session, uid)) = self.binding.remove(&message.subject) else { return };
        let response = proto::Response::decode(&message.payload[..]).expect("an answer");
        if response.error.is_none() {
            self.binds += 1;
            self.bound.insert(uid, session);
        }
    }

    /// Pushes to a user, whether or not anybody is that user; or to many; or to one in the name of another, as after a
    /// mistake of a server, which nobody may see.
    pub(crate) fn push(&mut self, now_ms: u64, random: &mut fastrand::Rng) {
        let user = |random: &mut fastrand::Rng| format!("user-{}", random.u64(..USERS));
        let uid = user(random);
        match random.u8(..10) {
            0 => {
                let payload = push(&format!("{uid}x"), &push_data(NOBODY, LATE));
                self.send_at(now_ms, &push_subject(&uid), None, payload);
            }
            1..4 => {
                let several = random.usize(..USERS as usize);
                let uids: BTreeSet<_> = (0..several).map(|_| user(random)).collect();
                self.push_to_many(&uids.into_iter().collect::<Vec<_>>(), now_ms);
            }
            _ => {
                self.push_to(&uid, now_ms, random.usize(..1_500));
            }
        }
    }

    /// Pushes to this user; returns the push's number.
    pub(crate) fn push_to(&mut self, uid: &str, now_ms: u64, padding: usize) -> u64 {
        self.numbers += 1;
        let number = self.numbers;
        let mut data = push_data(uid, number);
        data.push(b' ');
        data.resize(data.len() + padding, b'x');
        self.send_at(now_ms, &push_subject(uid), None, push(uid, &data));
        number
    }

    /// Pushes one message to all of these; returns its number.
    pub(crate) fn push_to_many(&mut self, uids: &[String], now_ms: u64) -> u64 {
        self.numbers += 1;
        let number = self.numbers;
        let data = push_data(&uids.join("|"), number).into();
        let many = proto::PushMany { route: "onMany".to_owned(), data, uids: uids.to_vec() };
        self.send_at(now_ms, "pitaya/connector/pushes", None, many.encode_to_vec());
        number
    }
}

fn push_subject(uid: &str) -> String {
    format!("pitaya/connector/user/{uid}/push")
}

fn push(uid: &str, data: &[u8]) -> Vec<u8> {
    let (route, uid) = ("onSim".to_owned(), uid.to_owned());
    proto::Push { route, uid, data: data.to_vec().into() }.encode_to_vec()
}

/// What a server pushed to the user of this subject before the subscription to it ended.
pub(crate) fn late_push(subject: &str) -> Option<Published> {
    let uid = subject.strip_prefix("pitaya/connector/user/")?.strip_suffix("/push")?;
    let payload = push(uid, &push_data(uid, LATE));
    Some(Published { subject: subject.to_owned(), reply: None, payload })
}

/// Inbox and token of the answer to a request.
fn token_of(subject: &str) -> Option<(&str, u32)> {
    let (inbox, token) = subject.rsplit_once('.')?;
    Some((inbox.strip_prefix("_INBOX.").map(|_| inbox)?, token.parse().ok()?))
}

fn answer(data: &[u8]) -> Vec<u8> {
    proto::Response { data: data.to_vec().into(), error: None }.encode_to_vec()
}

fn failure() -> Vec<u8> {
    let error =
        proto::Error { code: "GAME-1".to_owned(), msg: "no".to_owned(), ..Default::default() };
    proto::Response { error: Some(error), ..Default::default() }.encode_to_vec()
}

fn call(route: &str, argument: &impl Message) -> Vec<u8> {
    let message = proto::Msg {
        route: route.to_owned(),
        data: argument.encode_to_vec().into(),
        ..Default::default()
    };
    let r#type = proto::RpcType::User.into();
    proto::Request { r#type, msg: Some(message), ..Default::default() }.encode_to_vec()
}
