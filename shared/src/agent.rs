//! The agent: the state machine of one client connection, packets and time in, verdicts out.
//!
//! It knows the order in which packets may come (client protocol 8), the handshake and its deadline, the heartbeat and
//! the silence rule, and Pitaya's rate limit. It does not know sockets, framing, messages or the cluster. The
//! invariant: data is handed on only in [`State::Working`], which is reached only through a handshake and its ack.

use std::sync::Arc;

use crate::close::CloseReason;
use crate::handshake::{self, HandshakeRequest, HandshakeResponses};
use crate::limiter::{Limiter, LimiterRule};
use crate::packet::{Packet, PacketType};

/// Where a client stands (client protocol 8). A closed connection has no agent, so there is no fourth state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Connected; no handshake yet.
    Start,
    /// The handshake was accepted; the ack has not come.
    Handshake,
    /// Data may flow.
    Working,
}

/// Decides on a handshake after it was decoded; the text of a refusal goes to the log only.
pub type HandshakeCheck = Arc<dyn Fn(&HandshakeRequest) -> Result<(), String> + Send + Sync>;

/// What all agents of a gateway have in common; built once at start.
pub struct AgentRules {
    /// Interval of the gateway's own heartbeats, ms; also announced to clients.
    pub heartbeat_ms: u64,
    /// Silence after which a client is given up, ms. See [`AgentRules::silence_ms`].
    pub silence_ms: u64,
    /// Time from connecting to the ack, ms. Absolute: packets do not extend it.
    pub handshake_timeout_ms: u64,
    /// Largest handshake body, bytes.
    pub handshake_bytes_max: usize,
    /// The answers to a handshake, as whole packets.
    pub responses: HandshakeResponses,
    /// Pitaya's rate limit, when it is switched on.
    pub limiter: Option<LimiterRule>,
    /// Named checks, run in this order; the first refusal stops.
    pub checks: Vec<(String, HandshakeCheck)>,
}

impl AgentRules {
    /// The silence that a heartbeat interval allows: two and a half intervals, and never less than two and a second.
    ///
    /// Pomelo's browser clients answer a server's heartbeat one interval later, so they may be silent for exactly two
    /// intervals; Pitaya closes between two and three (client protocol 6, "precision trap").
    pub const fn silence_ms(heartbeat_ms: u64) -> u64 {
        let half = heartbeat_ms / 2;
        heartbeat_ms * 2 + if half > 1_000 { half } else { 1_000 }
    }
}

/// What became of a packet.
#[derive(Debug)]
pub enum Verdict<'a> {
    /// Taken in; there is nothing to do.
    Nothing,
    /// Answer with [`HandshakeResponses::accepted`].
    Accepted(HandshakeRequest),
    /// Answer with [`HandshakeResponses::refused`], then close. The text is for the log.
    Refused(String),
    /// The body of a data packet: a message to decode.
    Data(&'a [u8]),
    /// Dropped by the rate limit.
    Limited,
}

/// What the tick asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Send a heartbeat packet.
    Heartbeat,
    /// Close.
    Close(CloseReason),
}

/// The state machine of one client. 56 bytes, and the limiter's times where that is on.
#[derive(Debug)]
pub struct Agent {
    state: State,
    /// When the current wait for handshake and ack began.
    handshake_since_ms: u64,
    last_activity_ms: u64,
    heartbeat_due_ms: u64,
    limiter: Option<Box<Limiter>>,
}

/// An agent at rest, on its way to another reactor or process. Times are ages, so that a pause kicks nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentState {
    /// Where the client stood.
    pub state: State,
    /// Age of the wait for handshake and ack, ms.
    pub handshake_age_ms: u64,
    /// Age of the last packet, ms.
    pub activity_age_ms: u64,
    /// Time left until the next heartbeat, ms.
    pub heartbeat_left_ms: u64,
    /// Ages of the packets the limiter remembers, ms, oldest first; empty without a limiter.
    pub limiter_ages_ms: Vec<u64>,
}

impl Agent {
    /// A client that has just connected. Allocates for the limiter only.
    pub fn new(rules: &AgentRules, now_ms: u64) -> Self {
        Self {
            state: State::Start,
            handshake_since_ms: now_ms,
            last_activity_ms: now_ms,
            heartbeat_due_ms: now_ms + rules.heartbeat_ms,
            limiter: rules.limiter.as_ref().map(|rule| Box::new(Limiter::new(rule))),
        }
    }

    /// Where the client stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes in the next packet.
    ///
    /// Errors: the reason to close, when the packet is not allowed in this state.
    pub fn handle_packet<'a>(
        &mut self,
        packet: Packet<'a>,
        rules: &AgentRules,
        now_ms: u64,
    ) -> Result<Verdict<'a>, CloseReason> {
        if let Some(limiter) = &mut self.limiter
            && !limiter.allow(now_ms)
        {
            return Ok(Verdict::Limited);
        }
        let verdict = match packet.kind {
            PacketType::Handshake => self.handle_handshake(packet.body, rules, now_ms),
            PacketType::HandshakeAck => self.handle_ack(now_ms, rules)?,
            PacketType::Data if self.state == State::Working => Verdict::Data(packet.body),
            PacketType::Data => return Err(CloseReason::BadPacket),
            PacketType::Heartbeat | PacketType::Kick => Verdict::Nothing,
        };
        self.last_activity_ms = now_ms;
        Ok(verdict)
    }

    fn handle_handshake(
        &mut self,
        body: &[u8],
        rules: &AgentRules,
        now_ms: u64,
    ) -> Verdict<'static> {
        let request = match handshake::decode_request(body, rules.handshake_bytes_max) {
            Ok(request) => request,
            Err(error) => return Verdict::Refused(error.to_string()),
        };
        for (name, check) in &rules.checks {
            if let Err(text) = check(&request) {
                return Verdict::Refused(format!("check {name}: {text}"));
            }
        }
        // A handshake on a working connection starts a new wait; before the first ack the deadline stays absolute.
        if self.state == State::Working {
            self.handshake_since_ms = now_ms;
        }
        self.state = State::Handshake;
        Verdict::Accepted(request)
    }

    fn handle_ack(
        &mut self,
        now_ms: u64,
        rules: &AgentRules,
    ) -> Result<Verdict<'static>, CloseReason> {
        match self.state {
            // Pitaya serves an ack without a handshake, which steps around the handshake's checks.
            State::Start => return Err(CloseReason::BadPacket),
            State::Handshake => {
                self.state = State::Working;
                self.heartbeat_due_ms = now_ms + rules.heartbeat_ms;
            }
            State::Working => {}
        }
        Ok(Verdict::Nothing)
    }

    /// Counts now as a sign of life: the client is not listened to at the moment, so its silence says nothing.
    pub fn excuse_silence(&mut self, now_ms: u64) {
        self.last_activity_ms = now_ms;
    }

    /// What time asks for; called on every tick. Heartbeats start with the ack, because libpitaya gives up on one that
    /// comes before (client protocol 6).
    pub fn poll_due(&mut self, rules: &AgentRules, now_ms: u64) -> Option<Due> {
        if self.state != State::Working
            && now_ms.saturating_sub(self.handshake_since_ms) >= rules.handshake_timeout_ms
        {
            return Some(Due::Close(CloseReason::HandshakeTimeout));
        }
        if now_ms.saturating_sub(self.last_activity_ms) > rules.silence_ms {
            return Some(Due::Close(CloseReason::IdleTimeout));
        }
        if self.state == State::Working && now_ms >= self.heartbeat_due_ms {
            self.heartbeat_due_ms = now_ms + rules.heartbeat_ms;
            return Some(Due::Heartbeat);
        }
        None
    }

    /// Packs the agent for its way to another reactor or process.
    pub fn freeze(&self, now_ms: u64) -> AgentState {
        AgentState {
            state: self.state,
            handshake_age_ms: now_ms.saturating_sub(self.handshake_since_ms),
            activity_age_ms: now_ms.saturating_sub(self.last_activity_ms),
            heartbeat_left_ms: self.heartbeat_due_ms.saturating_sub(now_ms),
            limiter_ages_ms: self
                .limiter
                .as_ref()
                .map(|limiter| limiter.ages(now_ms))
                .unwrap_or_default(),
        }
    }

    /// Unpacks an agent; the clock may be another one.
    pub fn resume(state: &AgentState, rules: &AgentRules, now_ms: u64) -> Self {
        Self {
            state: state.state,
            handshake_since_ms: now_ms.saturating_sub(state.handshake_age_ms),
            last_activity_ms: now_ms.saturating_sub(state.activity_age_ms),
            heartbeat_due_ms: now_ms + state.heartbeat_left_ms.min(rules.heartbeat_ms),
            limiter: rules
                .limiter
                .as_ref()
                .map(|rule| Box::new(Limiter::from_ages(rule, &state.limiter_ages_ms, now_ms))),
        }
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
