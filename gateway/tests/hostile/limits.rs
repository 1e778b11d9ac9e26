//! Limits of the process, of an address, of a user and of a route: what they refuse, how they say so, and that others do
//! not notice.

use std::time::Instant;

use client::raw::{OwnedMessage, RawClient};
use shared::close::CloseReason;
use shared::metrics::LimitLabel;

use crate::accounting::exceeded;
use crate::field::{Field, LONG, eventually, under_attack};
use crate::metrics::{closed_total, value};

/// Where attackers connect from; the well-behaved clients are at 127.0.0.1.
const ATTACKER: [u8; 4] = [127, 0, 0, 2];
const BYSTANDER: [u8; 4] = [127, 0, 0, 3];
/// No limit of one connection is to answer in the place of the one that is tested.
const DEEP: [(&str, &str); 2] = [
    ("pitaya.gateway.inflight.connection", "100000"),
    ("pitaya.gateway.queue.maxrequests", "100000"),
];

fn established(field: &Field, address: [u8; 4]) -> RawClient {
    let mut client = field.tcp_from(address);
    client.establish().unwrap();
    client
}

fn is_too_many(answer: &OwnedMessage) -> bool {
    answer.is_error && answer.text().contains("PIT-429")
}

/// Sends so many requests at once; returns how many were answered with PIT-429. All are answered.
fn refused_of(client: &mut RawClient, route: &str, count: usize) -> usize {
    for _ in 0..count {
        client.send_request(route, b"null").unwrap();
    }
    let answers = (0..count).map(|_| client.read_message(LONG).unwrap());
    answers.filter(is_too_many).count()
}

#[test]
fn connections_of_one_address_are_limited_and_places_come_back() {
    under_attack(&[("pitaya.gateway.address.maxconns", "3")], |field| {
        let mut held: Vec<_> = (0..3).map(|_| established(field, ATTACKER)).collect();
        for _ in 0..5 {
            field.tcp_from(ATTACKER).expect_close(LONG).unwrap();
        }
        drop(established(field, BYSTANDER));
        assert_eq!(exceeded(field, LimitLabel::AddressConnections), 5);
        assert_eq!(closed_total(&field.metrics(), CloseReason::AddressLimit), 5);
        drop(held.pop());
        eventually("the place is free", || field.tcp_from(ATTACKER).establish().is_ok());
    });
}

#[test]
fn connections_a_second_of_one_address_are_limited() {
    under_attack(&[("pitaya.gateway.address.acceptrate", "5")], |field| {
        let since = Instant::now();
        let served = (0..40).filter(|_| field.tcp_from(ATTACKER).establish().is_ok()).count();
        let allowed = 5 + 5 * (1 + since.elapsed().as_secs() as usize);
        assert!((5..=allowed).contains(&served), "{served} of 40 were let in, {allowed} may be");
        assert_eq!(exceeded(field, LimitLabel::AddressAccepts) as usize, 40 - served);
        drop(established(field, BYSTANDER));
    });
}

#[test]
fn more_connections_than_are_taken_in_a_second_wait_and_are_served() {
    under_attack(&[("pitaya.gateway.accept.rate", "50")], |field| {
        let mut crowd: Vec<_> = (0..100).map(|_| field.tcp_from(ATTACKER)).collect();
        for client in &mut crowd {
            client.establish().unwrap();
        }
        assert!(exceeded(field, LimitLabel::Accepts) > 0, "nobody had to wait");
        let closed = value(&field.metrics(), "pitaya_acceptor_closed_total", "reason");
        assert_eq!(closed, 0, "somebody was turned away");
    });
}

#[test]
fn messages_of_one_address_are_limited_over_all_its_connections() {
    let settings = [&DEEP[..], &[("pitaya.gateway.address.rate", "500")]].concat();
    under_attack(&settings, |field| {
        let mut refused = 0;
        for _ in 0..2 {
            let mut client = established(field, ATTACKER);
            refused += refused_of(&mut client, "room.test.echo", 1_500);
            // Heartbeats are no messages: they are neither counted nor refused.
            client.heartbeat().unwrap();
        }
        assert!((1..=2_500).contains(&refused), "{refused} of 3000 were refused");
        assert_eq!(exceeded(field, LimitLabel::AddressMessages) as usize, refused);
        let mut bystander = established(field, BYSTANDER);
        assert_eq!(refused_of(&mut bystander, "room.test.echo", 100), 0);
    });
}

#[test]
fn messages_of_one_user_are_limited_over_all_sessions() {
    under_attack(&[("pitaya.gateway.uid.rate", "1")], |field| {
        let since = Instant::now();
        let mut passed = 0;
        for _ in 0..3 {
            let [mut client, _] = field.established();
            client.request("room.test.bind", br#"{"name":"ann"}"#).unwrap();
            passed += 5 - refused_of(&mut client, "room.test.echo", 5);
        }
        let allowed = 2 + since.elapsed().as_secs() as usize;
        assert!((1..=allowed).contains(&passed), "{passed} of 15 passed, {allowed} may");
        assert_eq!(exceeded(field, LimitLabel::UidMessages) as usize, 15 - passed);
    });
}

#[test]
fn messages_to_one_route_are_limited_together_and_from_each_connection() {
    let settings = [
        ("pitaya.gateway.routes.rate", "room.test.fail=1"),
        ("pitaya.gateway.routes.connectionrate", "room.test.notify=1"),
    ];
    under_attack(&settings, |field| {
        let since = Instant::now();
        let clients = || field.established().into_iter();
        let refused: usize =
            clients().map(|mut client| refused_of(&mut client, "room.test.fail", 10)).sum();
        let allowed = 2 + since.elapsed().as_secs() as usize;
        assert!((20 - allowed..20).contains(&refused), "{refused} of 20 were refused");
        assert_eq!(exceeded(field, LimitLabel::RouteMessages) as usize, refused);
        for mut client in clients() {
            for _ in 0..10 {
                client.notify("room.test.notify", b"x").unwrap();
            }
            // Nobody tells of a dropped notify; the answer of another route shows that all were taken.
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
        let dropped = exceeded(field, LimitLabel::ConnectionRouteMessages);
        assert!((1..=18).contains(&dropped), "{dropped} of 20 were dropped");
    });
}
