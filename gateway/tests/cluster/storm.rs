//! Storms of logins: one user everywhere at once. However it goes, no two sessions of a user stay, and a session that
//! stays bound gets its pushes.

use client::raw::{RawClient, RawError};

use crate::backend::{Caller, server_subject, session_of, user_request};
use crate::world::{DRIVERS, GATE, SOON, World, tcp, until};

const GATES: [&str; 2] = [GATE, "gate-2"];
const USERS: usize = 8;
/// Clients of each user at each gateway.
const CLIENTS: usize = 4;

struct Login {
    client: RawClient,
    gate: &'static str,
    session: i64,
    user: usize,
}

/// Fires all binds at once and waits for all answers.
fn storm(caller: &Caller, logins: &[Login]) {
    let answers = caller.subscribe("answers");
    let binds = logins.iter().map(|login| {
        let session = session_of(login.session, &format!("user-{}", login.user), "");
        let bind = user_request("sys.bindsession", &session);
        (server_subject(login.gate), Some("answers".to_owned()), bind)
    });
    caller.publish_all(binds);
    for _ in logins {
        answers.recv_timeout(SOON).expect("every bind is answered");
    }
}

/// The clients that are still connected, and got a push to their user.
fn survivors(caller: &Caller, logins: Vec<Login>, driver: &str) -> Vec<Login> {
    for user in 0..USERS {
        caller.push(&format!("user-{user}"), b"who is left");
    }
    let mut bound = Vec::new();
    for mut login in logins {
        match login.client.read_push(SOON) {
            Ok(push) => {
                assert_eq!(push.payload, b"who is left", "{driver}");
                bound.push(login);
            }
            Err(RawError::Closed(..) | RawError::Unexpected { .. }) => {}
            Err(RawError::Timeout { .. }) => {
                panic!("{driver}: a live session of user {} has no subscription", login.user)
            }
            Err(error) => panic!("{driver}: {error}"),
        }
    }
    bound
}

#[test]
fn after_a_storm_of_logins_at_two_gateways_no_user_has_two_sessions_or_a_deaf_one() {
    let world = World::new();
    let backend = world.backend("room-1");
    let caller = &backend.caller;
    for driver in DRIVERS {
        let gateways = GATES.map(|id| world.gateway(driver, &[("pitaya.server.id", id)]));
        let mut kept = Vec::new();
        for _ in 0..3 {
            let mut logins = Vec::new();
            for (gateway, gate) in gateways.iter().zip(GATES) {
                for number in 0..USERS * CLIENTS {
                    let mut client = tcp(gateway);
                    let session = backend.session_id(&mut client);
                    logins.push(Login { client, gate, session, user: number % USERS });
                }
            }
            // Logins of both gateways and of all users, mixed.
            logins.sort_by_key(|login| (login.session, login.user));
            storm(caller, &logins);
            logins.append(&mut kept);
            kept = settle(caller, logins, driver);
            for user in 0..USERS {
                let sessions = kept.iter().filter(|login| login.user == user).count();
                assert!(sessions <= 1, "{driver}: user {user} has {sessions} sessions");
            }
        }
        // Whoever comes alone afterwards stays, and the one who was there goes.
        for user in 0..USERS {
            let (gateway, gate) = (&gateways[user % 2], GATES[user % 2]);
            let mut client = tcp(gateway);
            let session = backend.session_id(&mut client);
            let mut login = Login { client, gate, session, user };
            storm(caller, std::slice::from_ref(&login));
            caller.push(&format!("user-{user}"), b"welcome");
            assert_eq!(login.client.read_push(SOON).unwrap().payload, b"welcome", "{driver}");
        }
        for login in &mut kept {
            login.client.read_to_close(SOON).unwrap();
        }
        for gateway in gateways {
            gateway.stop();
        }
    }
}

/// Waits until every client is either gone or alone with its user's subscriptions.
fn settle(caller: &Caller, logins: Vec<Login>, driver: &str) -> Vec<Login> {
    let mut logins = Some(logins);
    until("the storm settles", || {
        let left = survivors(caller, logins.take().unwrap_or_default(), driver);
        let mut users: Vec<_> = left.iter().map(|login| login.user).collect();
        users.sort_unstable();
        users.dedup();
        let is_settled = users.len() == left.len();
        if is_settled {
            return Some(left);
        }
        logins = Some(left);
        None
    })
}
