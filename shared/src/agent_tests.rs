//! The agent's rules, one test each, and a seeded walk over all of them.

use super::*;
use crate::dictionary::Dictionary;
use crate::handshake::HandshakeOptions;
use crate::packet::{self, Packet};

const T2_PIPELINED: [(PacketType, &[u8]); 3] = [
    (PacketType::Handshake, b"{}"),
    (PacketType::HandshakeAck, b""),
    (PacketType::Data, b"\x00\x01"),
];

fn rules() -> AgentRules {
    let options = HandshakeOptions {
        heartbeat_s: 30,
        dictionary: &Dictionary::default(),
        serializer: "json",
        compression: true,
    };
    AgentRules {
        heartbeat_ms: 30_000,
        silence_ms: AgentRules::silence_ms(30_000),
        handshake_timeout_ms: 10_000,
        handshake_bytes_max: 4_096,
        responses: HandshakeResponses::new(&options).unwrap(),
        limiter: None,
        checks: Vec::new(),
    }
}

fn packet(kind: PacketType, body: &[u8]) -> Packet<'_> {
    Packet { kind, body }
}

fn working(rules: &AgentRules, now_ms: u64) -> Agent {
    let mut agent = Agent::new(rules, now_ms);
    agent.handle_packet(packet(PacketType::Handshake, b"{}"), rules, now_ms).unwrap();
    agent.handle_packet(packet(PacketType::HandshakeAck, b""), rules, now_ms).unwrap();
    assert_eq!(agent.state(), State::Working);
    agent
}

#[test]
fn handshake_ack_and_data_may_come_at_once() {
    let rules = rules();
    let mut agent = Agent::new(&rules, 0);
    let mut verdicts = Vec::new();
    for (kind, body) in T2_PIPELINED {
        verdicts.push(agent.handle_packet(packet(kind, body), &rules, 0).unwrap());
    }
    assert!(matches!(verdicts[0], Verdict::Accepted(_)));
    assert!(matches!(verdicts[1], Verdict::Nothing));
    assert!(matches!(verdicts[2], Verdict::Data(b"\x00\x01")));
}

#[test]
fn data_before_the_ack_closes() {
    let rules = rules();
    let mut agent = Agent::new(&rules, 0);
    agent.handle_packet(packet(PacketType::Handshake, b"{}"), &rules, 0).unwrap();
    let outcome = agent.handle_packet(packet(PacketType::Data, b"\x00\x01"), &rules, 0);
    assert_eq!(outcome.unwrap_err(), CloseReason::BadPacket);
}

#[test]
fn an_ack_without_a_handshake_closes() {
    let rules = rules();
    let outcome =
        Agent::new(&rules, 0).handle_packet(packet(PacketType::HandshakeAck, b""), &rules, 0);
    assert_eq!(outcome.unwrap_err(), CloseReason::BadPacket);
}

#[test]
fn a_refused_check_names_itself_and_the_later_ones_do_not_run() {
    let mut rules = rules();
    rules.checks.push(("version".into(), std::sync::Arc::new(|_| Err("too old".into()))));
    rules.checks.push(("never".into(), std::sync::Arc::new(|_| panic!("ran after a refusal"))));
    let verdict =
        Agent::new(&rules, 0).handle_packet(packet(PacketType::Handshake, b"{}"), &rules, 0);
    assert!(matches!(verdict, Ok(Verdict::Refused(text)) if text == "check version: too old"));
}

#[test]
fn a_second_handshake_takes_data_away_until_the_next_ack() {
    let rules = rules();
    let mut agent = working(&rules, 0);
    agent.handle_packet(packet(PacketType::Handshake, b"{}"), &rules, 50_000).unwrap();
    assert_eq!(agent.state(), State::Handshake);
    assert_eq!(agent.poll_due(&rules, 50_001), None, "the wait begins anew");
    assert!(agent.handle_packet(packet(PacketType::Data, b"\x00\x01"), &rules, 0).is_err());
}

#[test]
fn repeated_handshakes_do_not_move_the_deadline() {
    let rules = rules();
    let mut agent = Agent::new(&rules, 0);
    for now_ms in (0..10_000).step_by(500) {
        agent.handle_packet(packet(PacketType::Handshake, b"{}"), &rules, now_ms).unwrap();
        assert_eq!(agent.poll_due(&rules, now_ms), None);
    }
    assert_eq!(agent.poll_due(&rules, 10_000), Some(Due::Close(CloseReason::HandshakeTimeout)));
}

#[test]
fn a_browser_that_answers_one_interval_late_is_kept_and_a_silent_one_is_not() {
    let rules = rules();
    let mut agent = working(&rules, 0);
    assert_eq!(agent.poll_due(&rules, 60_000), Some(Due::Heartbeat));
    assert_eq!(agent.poll_due(&rules, 75_000), None);
    assert_eq!(agent.poll_due(&rules, 75_001), Some(Due::Close(CloseReason::IdleTimeout)));
    agent.handle_packet(packet(PacketType::Kick, b""), &rules, 75_001).unwrap();
    assert_eq!(agent.poll_due(&rules, 75_001), None, "any packet counts as life");
}

#[test]
fn silence_is_never_shorter_than_two_intervals_and_a_second() {
    assert_eq!(AgentRules::silence_ms(1_000), 3_000);
    assert_eq!(AgentRules::silence_ms(2_000), 5_000);
    assert_eq!(AgentRules::silence_ms(30_000), 75_000);
}

#[test]
fn heartbeats_begin_with_the_ack() {
    let mut rules = rules();
    rules.handshake_timeout_ms = u64::MAX;
    let mut agent = Agent::new(&rules, 0);
    assert_eq!(agent.poll_due(&rules, 31_000), None);
    agent.handle_packet(packet(PacketType::Handshake, b"{}"), &rules, 31_000).unwrap();
    agent.handle_packet(packet(PacketType::HandshakeAck, b""), &rules, 31_000).unwrap();
    assert_eq!(agent.poll_due(&rules, 60_999), None);
    assert_eq!(agent.poll_due(&rules, 61_000), Some(Due::Heartbeat));
    assert_eq!(agent.poll_due(&rules, 61_000), None, "one at a time");
}

#[test]
fn packets_above_the_rate_limit_are_dropped_and_do_not_count_as_life() {
    let mut rules = rules();
    rules.limiter = Some(LimiterRule { limit: 2, interval_ms: 1_000 });
    let mut agent = working(&rules, 0);
    let verdict = agent.handle_packet(packet(PacketType::Data, b"\x02\x00"), &rules, 999);
    assert!(matches!(verdict, Ok(Verdict::Limited)));
    let verdict = agent.handle_packet(packet(PacketType::Data, b"\x02\x00"), &rules, 1_000);
    assert!(matches!(verdict, Ok(Verdict::Data(_))));
}

#[test]
fn a_pause_between_freeze_and_resume_kicks_nobody() {
    let mut rules = rules();
    rules.limiter = Some(LimiterRule { limit: 3, interval_ms: 1_000 });
    let mut agent = working(&rules, 100_000);
    let state = agent.freeze(170_000);
    let mut resumed = Agent::resume(&state, &rules, 5_000_000);
    assert_eq!(resumed.state(), State::Working);
    assert_eq!(resumed.poll_due(&rules, 5_000_000), Some(Due::Heartbeat));
    assert_eq!(resumed.poll_due(&rules, 5_005_001), Some(Due::Close(CloseReason::IdleTimeout)));
    assert_eq!(agent.poll_due(&rules, 175_001), Some(Due::Close(CloseReason::IdleTimeout)));
}

/// Random packets and times: data comes out only between an ack and the next handshake, whatever else happens.
#[test]
fn no_walk_reaches_data_without_handshake_and_ack() {
    let rules = rules();
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut agent, mut now_ms) = (Agent::new(&rules, 0), 0);
        let (mut greeted, mut acked) = (false, false);
        for _ in 0..random.usize(1..60) {
            now_ms += random.u64(0..4_000);
            let kind = [
                PacketType::Handshake,
                PacketType::HandshakeAck,
                PacketType::Heartbeat,
                PacketType::Data,
                PacketType::Kick,
            ][random.usize(..5)];
            let body: &[u8] = if random.u8(..) < 200 { b"{}" } else { b"[" };
            match (kind, agent.handle_packet(packet(kind, body), &rules, now_ms)) {
                (PacketType::Handshake, Ok(Verdict::Accepted(_))) => {
                    (greeted, acked) = (true, false);
                }
                (PacketType::HandshakeAck, Ok(_)) => {
                    assert!(greeted, "seed {seed}");
                    acked = true;
                }
                (PacketType::Data, Ok(Verdict::Data(_))) => assert!(acked, "seed {seed}"),
                (PacketType::Data, Err(_)) => assert!(!acked, "seed {seed}"),
                _ => {}
            }
            if rules.handshake_timeout_ms <= now_ms && !acked && !greeted {
                assert!(agent.poll_due(&rules, now_ms).is_some(), "seed {seed}");
            }
        }
    }
    assert_eq!(packet::HEARTBEAT, [3, 0, 0, 0]);
}
