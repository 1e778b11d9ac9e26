//! Which of several servers takes a request: a pure choice, without sockets, clock or allocation.
//!
//! Who the candidates are, how many requests each has in flight and which of them is suspected to be gone is the
//! caller's knowledge. Go servers choose with a generator that is seeded anew each second, which favours some servers
//! (compatibility traps 8.16); this is not copied.
//!
//! Invariant: the candidate chosen is never a suspect, and there is a choice whenever one candidate is not suspected.

/// How a server is chosen among those of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Each with the same probability.
    #[default]
    Random,
    /// One after the other.
    RoundRobin,
    /// Of two drawn at random the one with fewer requests in flight, measured against its window. Nearly as even as
    /// asking all, and gateways that know nothing of each other do not all rush to the same server.
    LeastInFlight,
    /// The same server for the same uid, from every gateway. A server that comes or goes moves only the users that it
    /// gains or had. Requests without a uid are spread as by [`Policy::LeastInFlight`].
    ConsistentHash,
    /// The server that the session used before while it can be reached, else as by [`Policy::LeastInFlight`].
    Sticky,
}

/// One server that could take the request.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// [`identity`] of the server's id; computed once, when the server is learned.
    pub identity: u64,
    /// Requests sent to it that wait for their answers.
    pub in_flight: u32,
    /// Requests in flight that it takes; 0 counts as 1.
    pub window: u32,
    /// Whether the session of this request was served by it before. At most one candidate should say so.
    pub is_previous: bool,
    /// Whether it is believed to be gone, for example because NATS knew no responder for it.
    pub is_suspect: bool,
}

/// What choices leave behind for the next choice; one for each server type and reactor.
#[derive(Clone, Debug)]
pub struct State {
    random: fastrand::Rng,
    turn: usize,
}

impl State {
    /// A state whose choices follow from `seed`. Reactors need different seeds, or they choose in step.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        // A random start keeps many gateways that start together from all beginning with the first server.
        let turn = random.usize(..=usize::MAX >> 1);
        Self { random, turn }
    }
}

/// The number that stands for a server id in [`Candidate::identity`]: the same in every process and version, because
/// [`Policy::ConsistentHash`] must agree between gateways. Cost: one pass over the id.
pub fn identity(id: &str) -> u64 {
    // FNV-1a spreads the bytes, the finalizer spreads the bits: FNV alone leaves the high bits of short keys alike.
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(hash)
}

/// Index of the candidate that takes the request, or `None` when there is none or all are suspects.
///
/// `key` is the uid of the session, empty when it is not bound; only [`Policy::ConsistentHash`] looks at it.
/// Cost: at most two passes over the candidates; does not allocate.
pub fn pick(
    policy: Policy,
    candidates: &[Candidate],
    key: &str,
    state: &mut State,
) -> Option<usize> {
    let eligible_count = candidates.iter().filter(|candidate| !candidate.is_suspect).count();
    if eligible_count == 0 {
        return None;
    }
    match policy {
        Policy::Random => nth_eligible(candidates, state.random.usize(..eligible_count)),
        Policy::RoundRobin => {
            state.turn = state.turn.wrapping_add(1);
            nth_eligible(candidates, state.turn % eligible_count)
        }
        Policy::ConsistentHash if !key.is_empty() => highest_score(candidates, identity(key)),
        Policy::Sticky => candidates
            .iter()
            .position(|candidate| candidate.is_previous && !candidate.is_suspect)
            .or_else(|| less_loaded_of_two(candidates, eligible_count, state)),
        Policy::LeastInFlight | Policy::ConsistentHash => {
            less_loaded_of_two(candidates, eligible_count, state)
        }
    }
}

fn nth_eligible(candidates: &[Candidate], n: usize) -> Option<usize> {
    let mut eligible = candidates.iter().enumerate().filter(|(_, candidate)| !candidate.is_suspect);
    eligible.nth(n).map(|(index, _)| index)
}

fn less_loaded_of_two(
    candidates: &[Candidate],
    eligible_count: usize,
    state: &mut State,
) -> Option<usize> {
    let first = state.random.usize(..eligible_count);
    if eligible_count == 1 {
        return nth_eligible(candidates, first);
    }
    // The second is drawn from the others, so that an idle server always beats a busy one when there are two.
    let second = (first + 1 + state.random.usize(..eligible_count - 1)) % eligible_count;
    let first = nth_eligible(candidates, first)?;
    let second = nth_eligible(candidates, second)?;
    let is_second_less_loaded = is_less_loaded(candidates.get(second)?, candidates.get(first)?);
    Some(if is_second_less_loaded { second } else { first })
}

/// Compares the used shares of the windows; cross-multiplied, so that nothing is rounded.
fn is_less_loaded(a: &Candidate, b: &Candidate) -> bool {
    let share = |x: &Candidate, y: &Candidate| u64::from(x.in_flight) * u64::from(y.window.max(1));
    share(a, b) < share(b, a)
}

/// Rendezvous hashing: every server draws a score from the key, the highest wins. A linear pass is cheaper than a ring
/// for the dozens of servers that one type has, and needs no state that could differ between gateways.
fn highest_score(candidates: &[Candidate], key: u64) -> Option<usize> {
    let eligible = candidates.iter().enumerate().filter(|(_, candidate)| !candidate.is_suspect);
    // The identity breaks ties, so that the order of the candidates does not matter.
    eligible
        .max_by_key(|(_, candidate)| (mix(candidate.identity ^ key), candidate.identity))
        .map(|(index, _)| index)
}

/// The finalizer of splitmix64: every input bit changes about half of the output bits.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: [Policy; 5] = [
        Policy::Random,
        Policy::RoundRobin,
        Policy::LeastInFlight,
        Policy::ConsistentHash,
        Policy::Sticky,
    ];
    const DRAWS: usize = 30_000;

    fn candidates(count: usize) -> Vec<Candidate> {
        let candidate = |index| Candidate {
            identity: identity(&format!("server-{index}")),
            in_flight: 0,
            window: 100,
            is_previous: false,
            is_suspect: false,
        };
        (0..count).map(candidate).collect()
    }

    /// How often each candidate is chosen by as many users.
    fn counts(policy: Policy, candidates: &[Candidate]) -> Vec<usize> {
        let mut state = State::new(1);
        let mut counts = vec![0; candidates.len()];
        for user in 0..DRAWS {
            counts[pick(policy, candidates, &format!("user-{user}"), &mut state).unwrap()] += 1;
        }
        counts
    }

    fn assert_even(policy: Policy, counts: &[usize]) {
        let share = DRAWS / counts.len();
        for count in counts {
            // Five standard deviations of a fair draw are below 4 % here.
            assert!(count.abs_diff(share) * 100 <= share * 6, "{policy:?}: {counts:?}");
        }
    }

    #[test]
    fn every_policy_spreads_the_users_evenly() {
        for policy in POLICIES {
            for count in [1, 2, 3, 7] {
                assert_even(policy, &counts(policy, &candidates(count)));
            }
        }
    }

    #[test]
    fn suspects_are_never_chosen_and_their_share_is_spread_evenly() {
        for policy in POLICIES {
            let mut candidates = candidates(5);
            candidates[1].is_suspect = true;
            candidates[4].is_suspect = true;
            candidates[4].is_previous = true;
            let mut counts = counts(policy, &candidates);
            assert_eq!((counts.remove(4), counts.remove(1)), (0, 0), "{policy:?}");
            assert_even(policy, &counts);
        }
    }

    #[test]
    fn without_a_usable_candidate_there_is_no_choice() {
        let mut suspects = candidates(2);
        for candidate in &mut suspects {
            candidate.is_suspect = true;
        }
        for policy in POLICIES {
            assert_eq!(pick(policy, &[], "u", &mut State::new(1)), None);
            assert_eq!(pick(policy, &suspects, "u", &mut State::new(1)), None);
        }
    }

    #[test]
    fn round_robin_takes_one_after_the_other() {
        let candidates = candidates(3);
        let mut state = State::new(1);
        let mut next = || pick(Policy::RoundRobin, &candidates, "", &mut state).unwrap();
        let first = next();
        for step in 1..10 {
            assert_eq!(next(), (first + step) % 3);
        }
    }

    #[test]
    fn the_server_with_fewer_requests_in_flight_is_chosen() {
        let mut candidates = candidates(2);
        candidates[0].in_flight = 10;
        assert_eq!(counts(Policy::LeastInFlight, &candidates), [0, DRAWS]);
        // 10 of 1000 is a smaller share than 5 of 100.
        candidates[0].window = 1000;
        candidates[1].in_flight = 5;
        assert_eq!(counts(Policy::LeastInFlight, &candidates), [DRAWS, 0]);
        candidates[0].window = 0;
        assert_eq!(counts(Policy::LeastInFlight, &candidates), [0, DRAWS]);
    }

    #[test]
    fn a_stuck_server_stops_getting_requests_while_the_others_stay_even() {
        let mut candidates = candidates(4);
        let mut state = State::new(3);
        for _ in 0..400 {
            let index = pick(Policy::LeastInFlight, &candidates, "", &mut state).unwrap();
            // The first one never answers, the others always keep one request.
            candidates[index].in_flight = if index == 0 { candidates[0].in_flight + 1 } else { 1 };
        }
        assert!(candidates[0].in_flight <= 3, "{}", candidates[0].in_flight);
    }

    #[test]
    fn one_user_stays_with_one_server_whatever_the_order_of_the_candidates() {
        let candidates = candidates(7);
        let reversed = candidates.iter().rev().copied().collect::<Vec<_>>();
        for user in 0..200 {
            let key = format!("user-{user}");
            let first =
                pick(Policy::ConsistentHash, &candidates, &key, &mut State::new(1)).unwrap();
            let second = pick(Policy::ConsistentHash, &reversed, &key, &mut State::new(2)).unwrap();
            assert_eq!(candidates[first].identity, reversed[second].identity);
        }
    }

    #[test]
    fn only_the_users_of_a_server_that_goes_are_moved() {
        let mut with_all = candidates(5);
        let before = |key: &str, candidates: &[Candidate]| {
            pick(Policy::ConsistentHash, candidates, key, &mut State::new(1)).unwrap()
        };
        let keys = (0..2000).map(|user| format!("user-{user}")).collect::<Vec<_>>();
        let old = keys.iter().map(|key| before(key, &with_all)).collect::<Vec<_>>();
        with_all[2].is_suspect = true;
        for (key, old) in keys.iter().zip(old) {
            let new = before(key, &with_all);
            assert!(if old == 2 { new != 2 } else { new == old });
        }
    }

    #[test]
    fn users_without_a_uid_are_spread_although_the_policy_hashes() {
        let candidates = candidates(3);
        let mut state = State::new(1);
        let mut counts = [0; 3];
        for _ in 0..DRAWS {
            counts[pick(Policy::ConsistentHash, &candidates, "", &mut state).unwrap()] += 1;
        }
        assert_even(Policy::ConsistentHash, &counts);
    }

    #[test]
    fn a_session_sticks_to_its_server_until_that_is_suspected() {
        let mut candidates = candidates(3);
        candidates[1].is_previous = true;
        candidates[1].in_flight = 99;
        assert_eq!(counts(Policy::Sticky, &candidates), [0, DRAWS, 0]);
        candidates[1].is_suspect = true;
        assert_eq!(counts(Policy::Sticky, &candidates)[1], 0);
    }

    #[test]
    fn the_identity_of_an_id_never_changes() {
        // Gateways of different versions must agree on it.
        assert_eq!(identity(""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(identity("91e47eed-e4fb-4c7d-8cca-bbeceb07b7a1"), 0xc54c_8823_0517_9237);
    }
}
