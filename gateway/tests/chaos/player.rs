//! A player in a cluster that falls apart: it asks, is pushed to, comes back when its gateway was killed, and writes
//! down whatever breaks a promise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::raw::{OwnedMessage, RawClient, RawError};
use shared::message::MessageType;

use crate::cluster::{Cluster, GATEWAYS};

/// The request time-out of the cluster is two seconds; a fault may stop a gateway for as long. The rest is for a busy
/// machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Codes of requests that failed for a reason that a fault can be.
const CODES: [&str; 6] = ["PIT-000", "PIT-404", "PIT-408", "PIT-500", "PIT-503", "PIT-504"];
const BEAT: Duration = Duration::from_secs(5);

/// What all players have seen.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) answers: AtomicU64,
    pub(crate) pushes: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) errors: Mutex<BTreeMap<String, u64>>,
    pub(crate) broken: Mutex<Vec<String>>,
    /// Latest times of good answers, µs, for whoever asks.
    pub(crate) latencies_us: Mutex<Vec<u64>>,
    /// When each player had its last good answer, ms since the begin.
    pub(crate) served_ms: Vec<AtomicU64>,
    pub(crate) stop: AtomicBool,
}

impl Notes {
    pub(crate) fn new(players: usize) -> Self {
        Self { served_ms: (0..players).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }

    /// Panics when a promise was broken.
    pub(crate) fn check(&self) {
        let broken = self.broken.lock().unwrap();
        assert!(broken.is_empty(), "{} promises broken:\n{}", broken.len(), broken.join("\n"));
    }
}

/// Why a connection is over.
enum End {
    /// The player was told to stop.
    Stopped,
    /// The connection broke.
    Broken(String),
}

struct Player {
    number: usize,
    cluster: Arc<Cluster>,
    notes: Arc<Notes>,
    begun: Instant,
    random: fastrand::Rng,
    connections: u64,
    calls: u64,
    /// Calls whose outcome is unknown: their pushes may come late.
    failed_calls: BTreeSet<u64>,
    next_index: BTreeMap<u64, u64>,
    arrived: BTreeMap<u64, u64>,
}

/// Plays until it is told to stop.
pub(crate) fn play(
    number: usize,
    seed: u64,
    cluster: Arc<Cluster>,
    notes: Arc<Notes>,
    begun: Instant,
) -> JoinHandle<()> {
    let random = fastrand::Rng::with_seed(seed ^ number as u64);
    let mut player = Player {
        number,
        cluster,
        notes,
        begun,
        random,
        connections: 0,
        calls: 0,
        failed_calls: BTreeSet::new(),
        next_index: BTreeMap::new(),
        arrived: BTreeMap::new(),
    };
    std::thread::spawn(move || player.run())
}

impl Player {
    fn is_stopped(&self) -> bool {
        self.notes.stop.load(Ordering::SeqCst)
    }

    fn run(&mut self) {
        let gateway = self.number % GATEWAYS;
        while !self.is_stopped() {
            let kills = self.cluster.kills(gateway);
            let Some(client) = self.connect(gateway) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            if let End::Broken(why) = self.use_connection(client) {
                // A gateway that was killed takes its connections with it; nothing else may.
                if self.cluster.kills(gateway) == kills {
                    self.broken(&format!("dropped: {why}"));
                }
                self.notes.reconnects.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn broken(&self, what: &str) {
        let at = self.begun.elapsed().as_secs_f32();
        let mut broken = self.notes.broken.lock().unwrap();
        broken.push(format!("player {} at {at:.2} s: {what}", self.number));
    }

    fn connect(&mut self, gateway: usize) -> Option<RawClient> {
        let (tcp, ws) = {
            let process = self.cluster.gateways[gateway].read().unwrap();
            (process.tcp, process.ws)
        };
        let mut client = if self.number % 4 < 2 {
            RawClient::connect_tcp(tcp).ok()?
        } else {
            RawClient::connect_ws(ws, "/").ok()?
        };
        client.set_timeout(ANSWER_WITHIN);
        client.establish().ok()?;
        self.connections += 1;
        Some(client)
    }

    fn use_connection(&mut self, mut client: RawClient) -> End {
        let uid = format!("player-{}-{}", self.number, self.connections);
        let mut is_bound = false;
        let mut beaten = Instant::now();
        while !self.is_stopped() {
            let outcome = if !is_bound {
                // A bind whose answer was lost has perhaps happened; then another one is refused with a code.
                let body = format!(r#"{{"name":"{uid}"}}"#);
                self.ask(&mut client, "room.chaos.bind", body.as_bytes(), 0).map(|answer| {
                    is_bound = !answer.is_error || answer.text().contains("already bound");
                })
            } else if self.random.u8(..4) == 0 {
                self.flood(&mut client)
            } else {
                self.echo(&mut client)
            };
            if let Err(error) = outcome {
                return End::Broken(error.to_string());
            }
            if beaten.elapsed() > BEAT {
                beaten = Instant::now();
                if let Err(error) = client.heartbeat() {
                    return End::Broken(error.to_string());
                }
            }
            std::thread::sleep(Duration::from_millis(self.random.u64(1..20)));
        }
        End::Stopped
    }

    fn echo(&mut self, client: &mut RawClient) -> Result<(), RawError> {
        self.calls += 1;
        let payload = format!("{}:{}:{}", self.number, self.connections, self.calls);
        let answer = self.ask(client, "room.chaos.echo", payload.as_bytes(), 0)?;
        if !answer.is_error && answer.payload != payload.as_bytes() {
            self.broken(&format!("asked {payload}, answered {}", answer.text()));
        }
        Ok(())
    }

    /// Has itself pushed numbered messages: all of them arrive, in order, before the answer.
    fn flood(&mut self, client: &mut RawClient) -> Result<(), RawError> {
        self.calls += 1;
        let (call, count) = (self.calls, self.random.u64(1..20));
        let body = format!(r#"{{"call":{call},"count":{count}}}"#);
        let answer = self.ask(client, "room.chaos.flood", body.as_bytes(), call)?;
        let arrived = self.arrived.get(&call).copied().unwrap_or(0);
        if answer.is_error {
            self.failed_calls.insert(call);
        } else if arrived != count {
            self.broken(&format!("{arrived} of {count} pushes before the answer of call {call}"));
        }
        Ok(())
    }

    /// Sends a request and takes in everything up to its answer.
    fn ask(
        &mut self,
        client: &mut RawClient,
        route: &str,
        body: &[u8],
        call: u64,
    ) -> Result<OwnedMessage, RawError> {
        let begun = Instant::now();
        // Whatever becomes of this connection, pushes of the call may come only while it is under way.
        self.failed_calls.insert(call);
        let id = client.send_request(route, body)?;
        loop {
            let left = ANSWER_WITHIN.saturating_sub(begun.elapsed());
            let message = client.read_message(left)?;
            match message.kind {
                MessageType::Push => self.take_push(&message),
                MessageType::Response if message.id == id => {
                    self.failed_calls.remove(&call);
                    self.note_answer(&message, begun.elapsed());
                    return Ok(message);
                }
                _ => self.broken(&format!("an answer to {} instead of {id}", message.id)),
            }
        }
    }

    fn note_answer(&self, answer: &OwnedMessage, time: Duration) {
        if !answer.is_error {
            self.notes.answers.fetch_add(1, Ordering::SeqCst);
            self.notes.latencies_us.lock().unwrap().push(time.as_micros() as u64);
            let now_ms = self.begun.elapsed().as_millis() as u64;
            self.notes.served_ms[self.number].store(now_ms, Ordering::SeqCst);
            return;
        }
        let text = answer.text();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let code = value["code"].as_str().unwrap_or("none").to_owned();
        if !CODES.contains(&code.as_str()) {
            self.broken(&format!("an error of another kind: {text}"));
        }
        *self.notes.errors.lock().unwrap().entry(code).or_default() += 1;
    }

    fn take_push(&mut self, push: &OwnedMessage) {
        self.notes.pushes.fetch_add(1, Ordering::SeqCst);
        let text = push.text();
        let numbers = text.split_once(':').and_then(|(call, index)| {
            Some((call.parse::<u64>().ok()?, index.parse::<u64>().ok()?))
        });
        let Some((call, index)) = numbers else { return self.broken(&format!("push {text}")) };
        let next = self.next_index.entry(call).or_default();
        let is_late = self.failed_calls.contains(&call);
        // A call of unknown outcome may lose pushes, never reorder or double them.
        if index < *next || index > *next && !is_late {
            let next = *next;
            self.broken(&format!("push {text}, expected {next}"));
            return;
        }
        *next = index + 1;
        *self.arrived.entry(call).or_default() += 1;
        if !is_late {
            self.broken(&format!("push {text} after the answer"));
        }
    }
}
