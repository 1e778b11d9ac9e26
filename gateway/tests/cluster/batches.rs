//! Several requests in one message: what travels to whom, what comes back, and what happens when nobody is there.

use std::collections::BTreeSet;
use std::time::Duration;

use client::framing::append_message;
use client::raw::{RawClient, head};
use gateway::gateway::Gateway;
use proto::Message;
use proto::wire::{BATCH_HEADER, BatchView, NO_TOKEN, is_batch, put_batch_entry_head};
use shared::dictionary::Dictionary;
use shared::message::MessageType;

use crate::backend::{Backend, Call, Caller};
use crate::world::{DRIVERS, SOON, World, http_get, tcp, until, until_answered};

const REQUESTS: u64 = 5;
/// How long is looked at one place before looking at the next one.
const MOMENT: Duration = Duration::from_millis(20);
/// Request ids that no other request of a test has.
const FIRST: u64 = 1_000;

/// Sends numbered requests in one piece, so that the gateway takes them in in one turn; returns their ids.
fn send_at_once(client: &mut RawClient, route: &str, count: u64) -> Vec<u64> {
    let ids: Vec<u64> = (FIRST..FIRST + count).collect();
    let mut out = Vec::new();
    for id in &ids {
        let head = head(MessageType::Request, *id, route);
        let payload = id.to_string();
        let dictionary = Dictionary::default();
        append_message(
            client::address::Transport::Tcp,
            &head,
            payload.as_bytes(),
            &dictionary,
            &mut out,
        )
        .unwrap();
    }
    client.send_bytes(&out).unwrap();
    ids
}

fn requests(call: &Call) -> Vec<(u32, proto::Request)> {
    let batch = BatchView::decode(&call.payload).unwrap();
    let decode = |request| proto::Request::decode(request).unwrap();
    batch.entries().map(|(token, request)| (token, decode(request))).collect()
}

fn batch(answers: impl IntoIterator<Item = (u32, Vec<u8>)>) -> Vec<u8> {
    let mut out = BATCH_HEADER.to_vec();
    for (token, answer) in answers {
        put_batch_entry_head(token, answer.len(), &mut out);
        out.extend_from_slice(&answer);
    }
    out
}

fn success(data: &[u8]) -> Vec<u8> {
    proto::Response { data: data.to_vec().into(), error: None }.encode_to_vec()
}

fn data(request: &proto::Request) -> Vec<u8> {
    request.msg.as_ref().unwrap().data.to_vec()
}

/// The subject beside the one that came with a batch.
fn beside(call: &Call, last: &str) -> String {
    let reply = call.reply.as_ref().unwrap().as_str();
    format!("{}.{last}", reply.rsplit_once('.').unwrap().0)
}

/// One reactor, so that there is one connection to NATS.
fn start(world: &World, driver: &str) -> Gateway {
    world.gateway(driver, &[("pitaya.gateway.threads", "1")])
}

fn metric(gateway: &Gateway, name: &str) -> u64 {
    let (_, page) = http_get(gateway.addresses().admin[0], "/metrics").unwrap();
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

fn numbers(client: &mut RawClient, ids: &[u64]) -> BTreeSet<u64> {
    ids.iter()
        .map(|_| client.read_message(SOON).unwrap())
        .map(|answer| {
            assert!(!answer.is_error, "{}", answer.text());
            assert_eq!(answer.text(), answer.id.to_string(), "somebody else's answer");
            answer.id
        })
        .collect()
}

#[test]
fn requests_of_one_turn_travel_in_one_message_and_so_do_their_answers() {
    let world = World::new();
    let backend = world.batching_backend("room-1");
    for driver in DRIVERS {
        let gateway = start(&world, driver);
        let mut client = tcp(&gateway);
        backend.session_id(&mut client);
        let ids = send_at_once(&mut client, "room.room.echo", REQUESTS);
        let call = backend.next();
        let requests = requests(&call);
        let sent: Vec<String> = ids.iter().map(u64::to_string).collect();
        assert!(
            requests
                .iter()
                .map(|(_, request)| data(request))
                .eq(sent.iter().map(|id| id.as_bytes().to_vec()))
        );
        assert_eq!(
            call.reply.as_ref().unwrap().as_str(),
            beside(&call, &format!("b{}", requests[0].0))
        );
        // Backwards, some together and one alone, as a worker may.
        let answers: Vec<_> = requests
            .iter()
            .rev()
            .map(|(token, request)| (*token, success(&data(request))))
            .collect();
        let (alone, together) = answers.split_first().unwrap();
        backend.caller.publish_all([
            (beside(&call, &alone.0.to_string()), None, alone.1.clone()),
            (beside(&call, "b"), None, batch(together.to_vec())),
        ]);
        assert_eq!(numbers(&mut client, &ids).len(), ids.len());
        assert_eq!(metric(&gateway, "pitaya_nats_batched_requests_total"), REQUESTS);
        gateway.stop();
    }
}

#[test]
fn notifies_travel_along_and_are_not_answered() {
    let world = World::new();
    let backend = world.batching_backend("room-1");
    let gateway = start(&world, "auto");
    let mut client = tcp(&gateway);
    backend.session_id(&mut client);
    let mut out = Vec::new();
    for (kind, id) in
        [(MessageType::Notify, 0), (MessageType::Request, FIRST), (MessageType::Notify, 0)]
    {
        let head = head(kind, id, "room.room.echo");
        append_message(
            client::address::Transport::Tcp,
            &head,
            b"x",
            &Dictionary::default(),
            &mut out,
        )
        .unwrap();
    }
    client.send_bytes(&out).unwrap();
    let call = backend.next();
    let tokens: Vec<u32> = requests(&call).into_iter().map(|(token, _)| token).collect();
    assert_eq!((tokens[0], tokens[2], tokens.len()), (NO_TOKEN, NO_TOKEN, 3));
    assert_eq!(call.reply.as_ref().unwrap().as_str(), beside(&call, &format!("b{}", tokens[1])));
    backend.caller.publish_all([(beside(&call, "b"), None, batch([(tokens[1], success(b"1"))]))]);
    assert_eq!(client.read_response(FIRST, SOON).unwrap().text(), "1");
}

#[test]
fn servers_that_announce_nothing_get_plain_messages_beside_others_that_get_batches() {
    let world = World::new();
    let plain = world.backend("room-go");
    for driver in DRIVERS {
        let gateway = start(&world, driver);
        let mut client = tcp(&gateway);
        plain.session_id(&mut client);
        let ids = send_at_once(&mut client, "room.room.echo", REQUESTS);
        for id in &ids {
            let call = plain.next();
            assert_eq!(call.data(), id.to_string());
            call.answer(&call.data());
        }
        assert_eq!(numbers(&mut client, &ids).len(), ids.len());
        gateway.stop();
    }
    let ours = world.batching_backend("room-ours");
    let gateway = start(&world, "auto");
    let mut client = tcp(&gateway);
    until("both servers are known", || {
        let id = client.send_request("room.room.who", b"").unwrap();
        let (call, is_ours) = until("one of them is asked", || {
            let asked = |backend: &Backend| backend.next_within(MOMENT);
            asked(&ours)
                .map(|call| (call, true))
                .or_else(|| asked(&plain).map(|call| (call, false)))
        });
        call.answer(b"");
        client.read_response(id, SOON).unwrap();
        is_ours.then_some(())
    });
    // Both are asked: the one with less in hand takes the next one.
    let ids = send_at_once(&mut client, "room.room.echo", 20);
    let mut seen = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    while seen.len() < ids.len() {
        for backend in [&plain, &ours] {
            let Some(call) = backend.next_within(MOMENT) else { continue };
            kinds.insert(is_batch(&call.payload));
            if is_batch(&call.payload) {
                let requests = requests(&call);
                let answers = requests.iter().map(|(token, it)| (*token, success(&data(it))));
                let answers = batch(answers);
                seen.extend(requests.iter().map(|(_, request)| data(request)));
                backend.caller.publish_all([(beside(&call, "b"), None, answers)]);
            } else {
                seen.insert(call.data().to_vec());
                call.answer(&call.data());
            }
        }
    }
    assert_eq!(numbers(&mut client, &ids).len(), ids.len());
    assert_eq!(kinds.len(), 2, "both kinds of message");
}

#[test]
fn a_batch_that_reached_nobody_goes_to_another_server_in_its_order() {
    let world = World::new();
    for driver in DRIVERS {
        let gone = world.announce_batching("room-gone");
        let gateway = start(&world, driver);
        let mut client = tcp(&gateway);
        let no_responders =
            r#"{"code":"PIT-000","msg":"nats: no responders available for request"}"#;
        until("the server is known", || {
            let answer = client.request("room.room.echo", b"").unwrap();
            (answer.text() == no_responders).then_some(())
        });
        // Alone in its type: each request is told so.
        let ids = send_at_once(&mut client, "room.room.echo", REQUESTS);
        for id in ids {
            let answer = client.read_response(id, SOON).unwrap();
            assert_eq!(
                (answer.text().as_str(), answer.is_error),
                (no_responders, true),
                "{driver}"
            );
        }
        // With another one, that one gets all of them, and the deaf one nothing for a while.
        let backend = world.batching_backend("room-there");
        until("the other server is known", || {
            let id = client.send_request("room.room.who", b"").unwrap();
            // Either it is asked, or the request fails at once.
            let is_asked = until("an end of the request", || match backend.next_within(MOMENT) {
                Some(call) => {
                    call.answer(b"");
                    client.read_response(id, SOON).unwrap();
                    Some(true)
                }
                None => client.read_response(id, MOMENT).is_ok().then_some(false),
            });
            is_asked.then_some(())
        });
        let ids = send_at_once(&mut client, "room.room.echo", REQUESTS);
        let mut order = Vec::new();
        while order.len() < ids.len() {
            let call = backend.next();
            if is_batch(&call.payload) {
                let requests = requests(&call);
                let answers = requests.iter().map(|(token, it)| (*token, success(&data(it))));
                order.extend(requests.iter().map(|(_, request)| data(request)));
                backend.caller.publish_all([(beside(&call, "b"), None, batch(answers))]);
            } else {
                order.push(call.data().to_vec());
                call.answer(&call.data());
            }
        }
        assert_eq!(numbers(&mut client, &ids).len(), ids.len());
        let numbers: Vec<u64> =
            order.iter().map(|data| std::str::from_utf8(data).unwrap().parse().unwrap()).collect();
        assert!(numbers.is_sorted(), "{driver}: {numbers:?}");
        gateway.stop();
        world.withdraw(gone);
        backend.leave(&world);
    }
}

#[test]
fn a_server_that_cannot_read_batches_fails_the_requests_and_nonsense_fails_nothing() {
    let world = World::new();
    let backend = world.batching_backend("room-1");
    let gateway = start(&world, "auto");
    let mut client = tcp(&gateway);
    backend.session_id(&mut client);
    let ids = send_at_once(&mut client, "room.room.echo", REQUESTS);
    let call = backend.next();
    let error =
        proto::Error { code: "PIT-400".into(), msg: "what is this".into(), ..Default::default() };
    call.answer_bytes(
        &proto::Response { error: Some(error), ..Default::default() }.encode_to_vec(),
    );
    for id in ids {
        let answer = client.read_response(id, SOON).unwrap();
        assert_eq!(answer.text(), r#"{"code":"PIT-400","msg":"what is this"}"#);
    }
    let ids = send_at_once(&mut client, "room.room.echo", REQUESTS);
    let call = backend.next();
    let asked = requests(&call);
    let nonsense = [
        ("b", batch([(u32::MAX, success(b"a")), (8_191 << 3, success(b"b"))])),
        ("b", BATCH_HEADER.to_vec()),
        ("b", b"\x00\x02".to_vec()),
        ("b", b"\x00\x01\x00\x00\x00\x07\xff\xff\xff\xff".to_vec()),
        ("b", success(b"whose?")),
        ("b4294967295", success(b"whose?")),
        ("bb", success(b"whose?")),
    ];
    backend
        .caller
        .publish_all(nonsense.map(|(last, payload)| (beside(&call, last), None, payload)));
    let answers: Vec<_> = asked.iter().map(|(token, it)| (*token, success(&data(it)))).collect();
    // Twice each: a second answer is nobody's.
    backend.caller.publish_all([(
        beside(&call, "b"),
        None,
        batch(answers.iter().chain(&answers).cloned()),
    )]);
    assert_eq!(numbers(&mut client, &ids).len(), ids.len());
    assert_eq!(metric(&gateway, "pitaya_nats_batch_errors_total"), 3);
}

#[test]
fn switched_off_every_request_is_a_plain_message() {
    let world = World::new();
    let backend = world.batching_backend("room-1");
    let gateway = world.gateway("auto", &[("pitaya.nats.batches", "false")]);
    let mut client = tcp(&gateway);
    backend.session_id(&mut client);
    for id in send_at_once(&mut client, "room.room.echo", REQUESTS) {
        assert_eq!(backend.next().data(), id.to_string());
    }
}

#[test]
fn with_a_worker_there_are_far_fewer_messages_than_requests_and_all_is_in_order() {
    const MANY: u64 = 40;
    let world = World::new();
    let worker = world.worker("room-1");
    for driver in DRIVERS {
        let gateway = start(&world, driver);
        let mut client = tcp(&gateway);
        until_answered(&mut client, "room.test.echo", b"x");
        let caller = Caller::connect(&world);
        let all = caller.subscribe(">");
        let ids = send_at_once(&mut client, "room.test.echo", MANY);
        for id in ids {
            let answer = client.read_message(SOON).unwrap();
            assert_eq!((answer.id, answer.text()), (id, id.to_string()), "{driver}: in order");
        }
        caller.publish("the-end", &proto::KickMsg::default());
        let (mut there, mut back) = (0, 0);
        loop {
            let message = all.recv_timeout(SOON).unwrap();
            match message.subject.as_str() {
                "the-end" => break,
                "pitaya/servers/room/room-1" => there += 1,
                subject if subject.starts_with("_INBOX.") => back += 1,
                _ => {}
            }
        }
        assert_eq!(there, 1, "{driver}: requests in one message");
        assert!(back <= MANY / 4, "{driver}: {back} messages with answers");
        gateway.stop();
    }
    world.stop_worker(worker);
}
