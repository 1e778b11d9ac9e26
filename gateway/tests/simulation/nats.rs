//! A NATS server in memory: as much of the protocol as a gateway speaks, with a network in between and faults of chance.
//!
//! It keeps what the real one keeps: lines of one connection are handled in order, a message goes to every subscription
//! that matches, a request that nobody listens for is answered with status 503.

use std::collections::BTreeMap;

use gateway::driver::memory::Peer;

use crate::backend::late_push;

/// A message that somebody published.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) subject: String,
    pub(crate) reply: Option<String>,
    pub(crate) payload: Vec<u8>,
}

/// One connection of a reactor.
struct Link {
    peer: Peer,
    unread: Vec<u8>,
    subscriptions: BTreeMap<u64, String>,
    is_greeted: bool,
    is_accepted: bool,
}

/// The server.
#[derive(Default)]
pub(crate) struct Nats {
    links: Vec<Link>,
    /// Takes connections and does nothing for them.
    pub(crate) is_frozen: bool,
}

const INFO: &str =
    r#"INFO {"server_id":"S","version":"2.10.0","proto":1,"headers":true,"max_payload":65536}"#;

impl Nats {
    /// A reactor has connected.
    pub(crate) fn connected(&mut self, peer: Peer) {
        let link = Link {
            peer,
            unread: Vec::new(),
            subscriptions: BTreeMap::new(),
            is_greeted: false,
            is_accepted: false,
        };
        self.links.push(link);
    }

    /// Connections that have not ended. One that was dropped before anybody spoke on it is none.
    pub(crate) fn links(&self) -> usize {
        self.links.iter().filter(|link| link.is_accepted).count()
    }

    /// Subscriptions of all connections.
    pub(crate) fn subscriptions(&self) -> usize {
        self.links.iter().map(|link| link.subscriptions.len()).sum()
    }

    /// Breaks one connection, or all.
    pub(crate) fn cut(&mut self, which: Option<usize>, is_reset: bool) {
        for (number, link) in self.links.iter().enumerate() {
            if which.is_none_or(|which| which == number) {
                if is_reset { link.peer.reset() } else { link.peer.finish() }
            }
        }
        match which {
            Some(number) if number < self.links.len() => drop(self.links.remove(number)),
            Some(_) => {}
            None => self.links.clear(),
        }
    }

    /// Says goodbye to all connections, as a server does before it stops.
    pub(crate) fn lame_duck(&self) {
        for link in &self.links {
            let text = INFO.replace(r#""headers""#, r#""ldm":true,"headers""#);
            link.peer.write(format!("{text}\r\n").as_bytes());
        }
    }

    /// Handles some of what has arrived; returns what was published, in order.
    pub(crate) fn step(&mut self, random: &mut fastrand::Rng) -> Vec<Published> {
        let mut published = Vec::new();
        if self.is_frozen {
            return published;
        }
        for link in &mut self.links {
            if !std::mem::replace(&mut link.is_greeted, true) {
                link.peer.write(format!("{INFO}\r\n").as_bytes());
            }
            if random.u8(..3) > 0 {
                link.unread.extend(link.peer.read());
            }
            let mut budget = random.usize(..24);
            while budget > 0
                && let Some(line) = link.take_line()
            {
                budget -= 1;
                published.extend(link.handle(&line));
            }
        }
        self.links.retain(|link| !link.peer.is_over());
        published
    }

    /// Delivers a message to every subscription; returns how many there were.
    pub(crate) fn deliver(&self, message: &Published) -> usize {
        let mut delivered = 0;
        for link in &self.links {
            for (sid, pattern) in &link.subscriptions {
                if matches(pattern, &message.subject) {
                    delivered += 1;
                    link.send(*sid, message);
                }
            }
        }
        delivered
    }

    /// Tells whoever asked that nobody listens.
    pub(crate) fn no_responders(&self, reply: &str) {
        const STATUS: &str = "NATS/1.0 503\r\n\r\n";
        for link in &self.links {
            for sid in link.subscribed(reply) {
                let bytes = STATUS.len();
                let text = format!("HMSG {reply} {sid} {bytes} {bytes}\r\n{STATUS}\r\n");
                link.peer.write(text.as_bytes());
            }
        }
    }
}

impl Link {
    fn send(&self, sid: u64, message: &Published) {
        let reply = message.reply.as_ref().map_or(String::new(), |reply| format!(" {reply}"));
        let (subject, bytes) = (&message.subject, message.payload.len());
        let mut out = format!("MSG {subject} {sid}{reply} {bytes}\r\n").into_bytes();
        out.extend_from_slice(&message.payload);
        out.extend_from_slice(b"\r\n");
        self.peer.write(&out);
    }

    fn subscribed(&self, subject: &str) -> impl Iterator<Item = u64> {
        let found = self.subscriptions.iter().filter(move |(_, own)| matches(own, subject));
        found.map(|(sid, _)| *sid)
    }

    /// The next operation: its line, and its payload when it has one.
    fn take_line(&mut self) -> Option<(Vec<String>, Vec<u8>)> {
        let end = self.unread.windows(2).position(|pair| pair == b"\r\n")?;
        let line = String::from_utf8(self.unread[..end].to_vec()).expect("lines are text");
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if words[0] != "PUB" {
            self.unread.drain(..end + 2);
            return Some((words, Vec::new()));
        }
        let bytes: usize = words.last().unwrap().parse().expect("the size of a payload");
        let whole = end + 2 + bytes + 2;
        if self.unread.len() < whole {
            return None;
        }
        let payload = self.unread[end + 2..whole - 2].to_vec();
        assert_eq!(&self.unread[whole - 2..whole], b"\r\n", "a payload has its announced length");
        self.unread.drain(..whole);
        Some((words, payload))
    }

    fn handle(&mut self, (words, payload): &(Vec<String>, Vec<u8>)) -> Option<Published> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words[0] != "CONNECT" {
            assert!(self.is_accepted, "{} before CONNECT", words[0]);
        }
        match words[..] {
            ["CONNECT", ..] => self.is_accepted = true,
            ["PING"] => self.peer.write(b"PONG\r\n"),
            ["PONG"] => {}
            ["SUB", subject, sid] => {
                let before = self.subscriptions.insert(sid.parse().unwrap(), subject.to_owned());
                assert_eq!(before, None, "subscription {sid} is made twice");
            }
            ["UNSUB", sid] => {
                let sid = sid.parse().unwrap();
                let before = self.subscriptions.remove(&sid);
                let subject = before.expect("a subscription ends that has begun");
                // Sent before the end was read; where it arrives the number may serve another user by now.
                if let Some(late) = late_push(&subject) {
                    self.send(sid, &late);
                }
            }
            ["PUB", subject, ref rest @ ..] => {
                let reply = (rest.len() == 2).then(|| rest[0].to_owned());
                let (subject, payload) = (subject.to_owned(), payload.clone());
                return Some(Published { subject, reply, payload });
            }
            _ => panic!("a gateway does not say {words:?}"),
        }
        None
    }
}

fn matches(pattern: &str, subject: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(front) => {
            subject.strip_prefix(front).is_some_and(|rest| !rest.is_empty() && !rest.contains('.'))
        }
        None => pattern == subject,
    }
}
