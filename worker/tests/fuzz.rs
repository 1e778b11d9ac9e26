//! Whatever arrives is answered exactly once, and nothing that arrives ends the worker.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use proptest::prelude::*;
use prost::Message;
use support::Harness;
use worker::demo::{self, DemoOptions};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        "\\PC{0,12}".prop_map(String::into_bytes),
        prop::sample::select(vec![
            "",
            "{}",
            "null",
            "[1]",
            "{\"name\":\"a\"}",
            "{\"n\":3,\"size\":9}"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ]
}

fn route() -> impl Strategy<Value = String> {
    let known = [
        "room.room.join",
        "room.room.message",
        "room.room.setsessiondata",
        "room.test.bind",
        "room.test.flood",
        "room.test.data",
        "test.echo",
    ];
    prop_oneof![
        4 => prop::sample::select(known.to_vec()).prop_map(str::to_owned),
        1 => "[a-z.]{0,16}",
    ]
}

fn metadata() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(br#"{"reqTimeout":"5s"}"#.to_vec()),
        1 => "[0-9a-z.-]{0,6}".prop_map(|t| format!("{{\"reqTimeout\":\"{t}\"}}").into_bytes()),
        1 => bytes(),
    ]
}

prop_compose! {
    fn request()(
        rpc_type in prop_oneof![8 => Just(0), 1 => Just(1), 1 => any::<i32>()],
        session in any::<Option<(i64, bool)>>(),
        data in bytes(),
        payload in bytes(),
        route in route(),
        kind in prop_oneof![4 => 0..2, 1 => any::<i32>()],
        metadata in metadata(),
        is_known_frontend in any::<bool>(),
    ) -> Vec<u8> {
        let uid = |is_bound| if is_bound { "u1".to_owned() } else { String::new() };
        let session = session.map(|(id, is_bound)| proto::Session {
            id,
            uid: uid(is_bound),
            data: data.clone().into(),
        });
        proto::Request {
            r#type: rpc_type,
            session,
            msg: Some(proto::Msg { id: 1, route, data: payload.into(), r#type: kind, ..Default::default() }),
            frontend_id: if is_known_frontend { support::FRONTEND.into() } else { "x".into() },
            metadata: metadata.into(),
        }
        .encode_to_vec()
    }
}

/// How many times the usual cases are run; `./dev fuzz` raises it.
fn factor() -> u32 {
    std::env::var("FUZZ_FACTOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300 * factor()))]

    #[test]
    fn every_request_is_answered_once(
        requests in prop::collection::vec(prop_oneof![6 => request(), 1 => bytes()], 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let harness = Harness::new(demo::app(DemoOptions { test_routes: true })).await;
            let answers: Vec<_> =
                requests.into_iter().map(|request| harness.send_bytes(request)).collect();
            for answer in answers {
                let response = answer.response().await;
                if let Some(error) = response.error {
                    assert!(!error.code.is_empty());
                }
            }
            assert_eq!(harness.service.in_flight(), 0);
        });
    }
}
