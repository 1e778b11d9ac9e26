//! The session of a backend: its data, its binds, and what it asks its gateway.

use bytes::Bytes;
use prost::Message;
use serde_json::json;
use worker::prelude::*;

use crate::Journal;
use crate::support::{Harness, request};

fn with_data(data: &str) -> proto::Request {
    let mut request = request(5, "room.s.all", "");
    request.session.as_mut().unwrap().data = Bytes::copy_from_slice(data.as_bytes());
    request
}

#[tokio::test]
async fn typed_getters_give_pitayas_zero_values_for_what_is_not_there() {
    let app = App::new("room").on("s.all", async |session: Session| {
        assert_eq!((session.int("n"), session.int("whole"), session.int("part")), (-3, 7, 0));
        assert_eq!((session.int("text"), session.int("none")), (0, 0));
        assert!((session.float("part") - 1.5).abs() < 1e-9 && session.float("text") == 0.0);
        assert_eq!((session.string("text").as_str(), session.string("n").as_str()), ("abc", ""));
        assert_eq!(session.value("list"), Some(json!([1, "a"])));
        assert!(session.has("nothing") && !session.has("none") && !session.is_frontend());
        session.set_data_encoded("")?;
        assert!(session.has("n"));
        assert_eq!(session.set_data_encoded("[]").unwrap_err().code, "PIT-500");
        session.set_data_encoded(r#"{"b":"<","a":1}"#)?;
        assert_eq!(session.data_encoded(), br#"{"a":1,"b":"\u003c"}"#);
        session.clear();
        assert_eq!((session.uid(), session.data_encoded()), (None, b"{}".to_vec()));
        Ok::<_, Error>(1)
    });
    let harness = Harness::new(app).await;
    let data = r#"{"n":-3,"whole":7.0,"part":1.5,"text":"abc","list":[1,"a"],"nothing":null}"#;
    harness.send(&with_data(data)).data().await;
    assert!(harness.link.calls().is_empty(), "nothing is saved by itself on a backend");
}

#[tokio::test]
async fn a_gateway_is_asked_about_the_client_and_told_to_close() {
    let app = App::new("room")
        .on("s.client", async |session: Session| {
            let client = session.client().await?.expect("the gateway knows");
            let handshake = client.handshake.expect("after a handshake");
            assert_eq!(handshake.sys.platform, "mac");
            assert_eq!(handshake.user::<u32>("level")?, 7);
            assert_eq!(handshake.user::<u32>("name").unwrap_err().code, "PIT-400");
            assert_eq!(handshake.user::<String>("none").unwrap_err().code, "PIT-400");
            session.close().await?;
            Ok::<_, Error>(client.address.to_string())
        })
        .on("s.go", async |session: Session| {
            assert_eq!(session.client().await?, None);
            assert_eq!((session.remote_address().await?, session.handshake().await?), (None, None));
            session.close().await?;
            session.remote_address().await.map(|_| 1)
        });
    let harness = Harness::new(app).await;
    let described = br#"{"address":"192.0.2.1:7","handshake":{"sys":{"platform":"mac"},"user":{"level":7,"name":"x"}}}"#;
    let data = Bytes::from_static(described);
    harness.link.answer_next(Ok(proto::Response { data, error: None }));
    let answer = harness.send(&request(5, "room.s.client", "")).data().await;
    assert_eq!(&answer[..], b"\"192.0.2.1:7\"");
    let calls = harness.link.calls();
    let routes: Vec<_> = calls.iter().map(|(_, call)| call.msg.as_ref().unwrap()).collect();
    assert_eq!(routes[0].route, "sys.describesession");
    assert_eq!(routes[1].route, "sys.closesession");
    assert_eq!(proto::Session::decode(routes[1].data.clone()).unwrap().id, 5);

    // A Go gateway knows neither; what else fails is a failure.
    let error = |code: &str| proto::Response {
        error: Some(proto::Error { code: code.into(), ..proto::Error::default() }),
        ..proto::Response::default()
    };
    for code in ["PIT-404", "PIT-404", "PIT-404", "PIT-404", "PIT-000"] {
        harness.link.answer_next(Ok(error(code)));
    }
    assert_eq!(harness.send(&request(5, "room.s.go", "")).error().await.0, "PIT-000");
}

#[tokio::test]
async fn functions_around_a_bind_may_refuse_it() {
    let journal = Journal::default();
    let (before, after) = (journal.clone(), journal.clone());
    let app = App::new("room")
        .on("s.bind", async |session: Session, uid: String| {
            let bound = session.bind(&uid).await;
            assert_eq!(session.uid().is_some(), bound.is_ok() || uid == "late");
            bound?;
            Ok::<_, Error>(1)
        })
        .on_bind(move |session: Session| {
            let journal = before.clone();
            async move {
                let uid = session.uid().unwrap();
                journal.note(format!("on {uid}"));
                assert!(uid != "panic", "a hook that panics");
                if uid == "banned" { Err(Error::new("GAME-4", "banned")) } else { Ok(()) }
            }
        })
        .on_bind(journal.step("second"))
        .after_bind(move |session: Session| {
            let journal = after.clone();
            async move {
                let uid = session.uid().unwrap();
                journal.note(format!("after {uid}"));
                if uid == "late" { Err(Error::new("GAME-5", "too late")) } else { Ok(()) }
            }
        });
    let harness = Harness::new(app).await;
    let bind = |uid: &str| harness.send(&request(5, "room.s.bind", format!("\"{uid}\"")));
    bind("ann").data().await;
    assert_eq!(journal.take(), ["on ann", "second", "after ann"]);
    assert_eq!(bind("banned").error().await.0, "GAME-4");
    assert_eq!(bind("panic").error().await.1, "a hook that panics");
    assert_eq!(journal.take(), ["on banned", "on panic"]);
    assert_eq!(harness.link.calls().len(), 1, "the gateway is not asked for a refused bind");
    assert_eq!(bind("late").error().await.0, "GAME-5");
}

#[tokio::test]
async fn routes_of_pushes_that_nobody_could_carry_are_refused() {
    let app = App::new("room").on("s.push", async |session: Session, route: String| {
        session.bind("ann").await?;
        session.push(&route, "x").await?;
        Ok::<_, Error>(1)
    });
    let harness = Harness::new(app).await;
    let push =
        |route: &str| harness.send(&request(5, "room.s.push", serde_json::to_vec(route).unwrap()));
    push("onText").data().await;
    for route in ["", "a\nb", &"r".repeat(256)] {
        assert_eq!(push(route).error().await.0, "PIT-400", "{route}");
    }
}
