//! Bans: of addresses, networks and users, while the gateway runs.

use client::raw::RawClient;
use shared::close::CloseReason;
use shared::metrics::LimitLabel;

use crate::accounting::exceeded;
use crate::administrator::{ask, ask_with, ban, unban};
use crate::field::{Field, LONG, eventually, under_attack};
use crate::metrics::closed_total;

const BANNED: [u8; 4] = [127, 0, 5, 2];
const BESIDE: [u8; 4] = [127, 0, 5, 3];
const ELSEWHERE: [u8; 4] = [127, 0, 6, 2];

fn is_let_in(field: &Field, address: [u8; 4]) -> bool {
    field.tcp_from(address).establish().is_ok()
}

fn bound(field: &Field, uid: &str) -> RawClient {
    let [mut client, _] = field.established();
    let answer = client.request("room.test.bind", format!(r#"{{"name":"{uid}"}}"#).as_bytes());
    assert!(!answer.unwrap().is_error);
    client
}

#[test]
fn a_banned_address_or_network_is_refused_and_thrown_out_until_it_is_lifted() {
    under_attack(&[], |field| {
        let admin = field.admin();
        for (subject, spared) in
            [("address:127.0.5.2", BESIDE), ("address:127.0.5.9/24", ELSEWHERE)]
        {
            let mut here = field.tcp_from(BANNED);
            here.establish().unwrap();
            let scope = ban(admin, &format!(r#"{{"subject":"{subject}","reason":"spam"}}"#));
            assert_eq!(scope, "this gateway");
            here.expect_kick(LONG).unwrap();
            for _ in 0..3 {
                assert!(!is_let_in(field, BANNED), "{subject}");
            }
            assert!(is_let_in(field, spared), "{subject}");
            let (_, listed) = ask(admin, "GET", "/bans", "");
            assert_eq!(listed["bans"][0]["reason"], "spam", "{listed}");
            assert!(listed["bans"][0]["seconds"].is_null(), "{listed}");
            unban(admin, listed["bans"][0]["subject"].as_str().unwrap());
            eventually("it is let in again", || is_let_in(field, BANNED));
        }
        assert_eq!(exceeded(field, LimitLabel::BannedAddress) as usize / 6, 1);
        assert!(closed_total(&field.metrics(), CloseReason::Banned) >= 8);
    });
}

#[test]
fn a_banned_user_is_kicked_and_cannot_bind_until_the_ban_ends() {
    under_attack(&[], |field| {
        let admin = field.admin();
        let (mut ann, mut bob) = (bound(field, "ann"), bound(field, "bob"));
        ban(admin, r#"{"subject":"uid:ann","seconds":2}"#);
        ann.expect_kick(LONG).unwrap();
        let [mut again, _] = field.established();
        again.send_request("room.test.bind", br#"{"name":"ann"}"#).unwrap();
        again.expect_kick(LONG).unwrap();
        assert!(exceeded(field, LimitLabel::BannedUid) >= 1);
        assert_eq!(bob.request("room.test.echo", b"x").unwrap().payload, b"x");
        eventually("the ban ends by itself", || {
            let [mut client, _] = field.established();
            client.request("room.test.bind", br#"{"name":"ann"}"#).is_ok()
        });
    });
}

#[test]
fn bans_that_make_no_sense_and_pages_in_browsers_are_refused() {
    under_attack(&[], |field| {
        let admin = field.admin();
        for wrong in [
            r#"{"subject":"ann"}"#,
            r#"{"subject":"address:300.1.1.1"}"#,
            r#"{"subject":"uid:ann","seconds":0}"#,
            r#"{"subject":"uid:ann","until":5}"#,
            r#"{"seconds":5}"#,
            "",
        ] {
            let (status, answer) = ask(admin, "POST", "/bans", wrong);
            assert!((400..500).contains(&status), "{wrong}: {status} {answer}");
        }
        let origin = "Origin: http://evil.example\r\n";
        let body = r#"{"subject":"address:0.0.0.0/0"}"#;
        assert_eq!(ask_with(admin, "POST", "/bans", origin, body).0, 403);
        assert_eq!(ask_with(admin, "POST", "/reload", origin, "").0, 403);
        assert_eq!(ask(admin, "GET", "/reload", "").0, 405);
        assert_eq!(ask(admin, "POST", "/bans", &"x".repeat(10_000)).0, 413);
        assert_eq!(ask(admin, "GET", "/bans", "").1["bans"].as_array().unwrap().len(), 0);
    });
}

#[test]
fn with_a_token_only_who_shows_it_is_heard() {
    under_attack(&[("pitaya.admin.token", "hunter2")], |field| {
        let admin = field.admin();
        let shown = "Authorization: Bearer hunter2\r\n";
        assert_eq!(ask(admin, "GET", "/bans", "").0, 401);
        assert_eq!(ask_with(admin, "GET", "/bans", "Authorization: Bearer hunter\r\n", "").0, 401);
        assert_eq!(ask_with(admin, "GET", "/bans", shown, "").0, 200);
        assert_eq!(ask(admin, "GET", "/healthz", "").0, 200, "health needs none");
        assert!(!field.metrics().is_empty(), "metrics need none");
    });
}
