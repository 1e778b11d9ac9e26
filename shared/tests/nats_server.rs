//! The NATS client against a real nats-server, over blocking sockets.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod servers;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use servers::{Etcd, Nats};
use shared::nats::encoder::{publish, subscribe, unsubscribe};
use shared::nats::{
    Auth, Barrier, Client, ClientError, ConnectOptions, Event, NatsUrl, Secret, State,
};

/// What a test keeps of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Ready,
    Message {
        subject: String,
        sid: u64,
        reply: Option<String>,
        status: Option<u16>,
        payload: Vec<u8>,
    },
    Barrier(Barrier),
    InfoChanged,
    LameDuck,
    ServerError {
        text: String,
        is_fatal: bool,
    },
}

impl Seen {
    fn of(event: Event<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        match event {
            Event::Ready => Self::Ready,
            Event::Message(message) => Self::Message {
                subject: text(message.subject),
                sid: message.sid,
                reply: message.reply.map(text),
                status: message.status,
                payload: message.payload.to_vec(),
            },
            Event::Barrier(barrier) => Self::Barrier(barrier),
            Event::InfoChanged => Self::InfoChanged,
            Event::LameDuck => Self::LameDuck,
            Event::ServerError { text, is_fatal } => {
                Self::ServerError { text: text.to_owned(), is_fatal }
            }
        }
    }

    fn payload(&self) -> &[u8] {
        match self {
            Self::Message { payload, .. } => payload,
            other => panic!("a message was expected, not {other:?}"),
        }
    }
}

/// Why a test's connection is over.
#[derive(Debug)]
enum End {
    Client(ClientError),
    Closed,
}

struct Connection {
    stream: TcpStream,
    client: Client,
    events: VecDeque<Seen>,
}

impl Connection {
    fn open(address: SocketAddr, options: ConnectOptions) -> Result<Self, End> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let client = Client::new(Arc::new(options));
        let mut connection = Self { stream, client, events: VecDeque::new() };
        assert_eq!(connection.next()?, Seen::Ready);
        Ok(connection)
    }

    fn plain(nats: &Nats) -> Self {
        Self::open(nats.address(), ConnectOptions::default()).unwrap()
    }

    /// Sends what is to be sent and receives until there is an event.
    fn next(&mut self) -> Result<Seen, End> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let out = std::mem::take(self.client.out());
            // A server that has closed is noticed by reading, behind its last words.
            let _ = self.stream.write_all(&out);
            let mut buffer = [0; 4096];
            let received = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(End::Closed),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(End::Closed);
                }
                received => received.unwrap(),
            };
            let events = &mut self.events;
            let mut keep = |event: Event<'_>| events.push_back(Seen::of(event));
            let result = self.client.handle_bytes(&buffer[..received], &mut keep);
            result.map_err(End::Client)?;
        }
    }

    fn message(&mut self) -> Seen {
        self.next().unwrap()
    }

    fn barrier(&mut self) {
        let barrier = self.client.ping();
        assert_eq!(self.next().unwrap(), Seen::Barrier(barrier));
    }
}

fn message(subject: &str, sid: u64, reply: Option<&str>, payload: &[u8]) -> Seen {
    let reply = reply.map(str::to_owned);
    Seen::Message { subject: subject.into(), sid, reply, status: None, payload: payload.into() }
}

#[test]
fn connecting_tells_what_the_server_is() {
    let nats = Nats::start(&[]);
    let connection = Connection::plain(&nats);
    assert_eq!(connection.client.state(), State::Ready);
    let info = connection.client.info().unwrap();
    assert!(info.headers && info.proto >= 1 && !info.auth_required, "{info:?}");
    assert_eq!(connection.client.payload_bytes_max(), 1_048_576);
}

#[test]
fn published_messages_arrive_in_order() {
    let nats = Nats::start(&[]);
    let (mut subscriber, mut publisher) = (Connection::plain(&nats), Connection::plain(&nats));
    subscribe(subscriber.client.out(), b"pitaya/servers/room/1", None, 7);
    subscriber.barrier();
    for number in 0..1_000_u32 {
        let payload = vec![b'x'; number as usize * 7];
        publish(publisher.client.out(), b"pitaya/servers/room/1", None, &payload);
    }
    publisher.barrier();
    for number in 0..1_000_u32 {
        let payload = vec![b'x'; number as usize * 7];
        let expected = message("pitaya/servers/room/1", 7, None, &payload);
        assert_eq!(subscriber.message(), expected, "message {number}");
    }
}

#[test]
fn a_request_is_answered_through_the_inbox() {
    let nats = Nats::start(&[]);
    let (mut worker, mut gateway) = (Connection::plain(&nats), Connection::plain(&nats));
    subscribe(worker.client.out(), b"service", None, 1);
    worker.barrier();
    subscribe(gateway.client.out(), b"_INBOX.gw.*", None, 2);
    publish(gateway.client.out(), b"service", Some(b"_INBOX.gw.41"), b"question");
    gateway.barrier();
    assert_eq!(worker.message(), message("service", 1, Some("_INBOX.gw.41"), b"question"));
    publish(worker.client.out(), b"_INBOX.gw.41", None, b"");
    worker.barrier();
    assert_eq!(gateway.message(), message("_INBOX.gw.41", 2, None, b""), "an empty success");
}

#[test]
fn a_request_without_responders_is_told_at_once() {
    let nats = Nats::start(&[]);
    let mut gateway = Connection::plain(&nats);
    subscribe(gateway.client.out(), b"_INBOX.gw.*", None, 2);
    publish(gateway.client.out(), b"nobody", Some(b"_INBOX.gw.1"), b"question");
    let expected = Seen::Message {
        subject: "_INBOX.gw.1".into(),
        sid: 2,
        reply: None,
        status: Some(503),
        payload: Vec::new(),
    };
    assert_eq!(gateway.message(), expected);
}

#[test]
fn a_barrier_proves_that_a_subscription_is_in_place() {
    let nats = Nats::start(&[]);
    let (mut subscriber, mut publisher) = (Connection::plain(&nats), Connection::plain(&nats));
    for sid in 1..100 {
        let subject = format!("pitaya/connector/user/{sid}/push");
        subscribe(subscriber.client.out(), subject.as_bytes(), None, sid);
        subscriber.barrier();
        publish(publisher.client.out(), subject.as_bytes(), None, b"x");
        publisher.barrier();
        assert_eq!(subscriber.message(), message(&subject, sid, None, b"x"));
    }
}

#[test]
fn an_unsubscription_ends_delivery_at_once_or_after_a_number_of_messages() {
    let nats = Nats::start(&[]);
    let mut connection = Connection::plain(&nats);
    let out = connection.client.out();
    subscribe(out, b"a", None, 1);
    subscribe(out, b"a", None, 2);
    unsubscribe(out, 1, None);
    unsubscribe(out, 2, Some(1));
    publish(out, b"a", None, b"first");
    publish(out, b"a", None, b"second");
    let barrier = connection.client.ping();
    assert_eq!(connection.message(), message("a", 2, None, b"first"));
    assert_eq!(connection.message(), Seen::Barrier(barrier));
}

#[test]
fn a_queue_group_gets_each_message_once() {
    let nats = Nats::start(&[]);
    let mut connection = Connection::plain(&nats);
    let out = connection.client.out();
    subscribe(out, b"a", Some("q"), 1);
    subscribe(out, b"a", Some("q"), 2);
    publish(out, b"a", None, b"x");
    let barrier = connection.client.ping();
    assert_eq!(connection.message().payload(), b"x");
    assert_eq!(connection.message(), Seen::Barrier(barrier));
}

fn check_refused(nats: &Nats, auth: Auth) {
    let options = ConnectOptions { auth, ..Default::default() };
    match Connection::open(nats.address(), options) {
        Err(End::Client(ClientError::Refused { text })) => {
            assert!(text.contains("Authorization Violation"), "{text}");
        }
        other => panic!("a refusal was expected, not {:?}", other.map(|_| "a connection")),
    }
}

fn check_accepted(nats: &Nats, auth: Auth) {
    let options = ConnectOptions { auth, ..Default::default() };
    Connection::open(nats.address(), options).unwrap().barrier();
}

#[test]
fn user_and_password_are_accepted_and_wrong_ones_refused() {
    let nats = Nats::start(&["--user", "gw", "--pass", "p@ss word"]);
    let user_password =
        |password: &str| Auth::UserPassword { user: "gw".into(), password: Secret::new(password) };
    check_accepted(&nats, user_password("p@ss word"));
    check_refused(&nats, user_password("wrong"));
    check_refused(&nats, Auth::None);
}

#[test]
fn credentials_in_the_address_are_accepted() {
    let nats = Nats::start(&["--user", "gw", "--pass", "p@ss word"]);
    let url = nats.url().replace("nats://", "nats://gw:p%40ss%20word@");
    let url = &NatsUrl::parse_list(&url).unwrap()[0];
    let options = ConnectOptions::default().for_url(url);
    let address = (url.host.parse::<std::net::IpAddr>().unwrap(), url.port).into();
    Connection::open(address, options).unwrap().barrier();
}

#[test]
fn a_token_is_accepted_and_a_wrong_one_refused() {
    let nats = Nats::start(&["--auth", "token-1"]);
    check_accepted(&nats, Auth::Token(Secret::new("token-1")));
    check_refused(&nats, Auth::Token(Secret::new("token-2")));
}

#[test]
fn a_key_is_accepted_and_another_one_refused() {
    let key = nkeys::KeyPair::new_user();
    let nats = Nats::start_configured(&format!(
        "authorization {{ users = [ {{ nkey: {} }} ] }}",
        key.public_key()
    ));
    check_accepted(&nats, Auth::NKey(Secret::new(key.seed().unwrap())));
    let other = nkeys::KeyPair::new_user();
    check_refused(&nats, Auth::NKey(Secret::new(other.seed().unwrap())));
}

/// A JWT as `nsc` makes them: header, claims, and the issuer's signature over both.
fn jwt(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, name: &str, nats: &str) -> String {
    let encode = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
    let header = encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let claims = encode(&format!(
        r#"{{"jti":"{name}","iat":1600000000,"iss":"{}","name":"{name}","sub":"{}","nats":{nats}}}"#,
        issuer.public_key(),
        subject.public_key()
    ));
    let signature = issuer.sign(format!("{header}.{claims}").as_bytes()).unwrap();
    format!("{header}.{claims}.{}", data_encoding::BASE64URL_NOPAD.encode(&signature))
}

#[test]
fn a_credentials_file_is_accepted_and_one_with_the_wrong_seed_refused() {
    let operator = nkeys::KeyPair::new_operator();
    let account = nkeys::KeyPair::new_account();
    let user = nkeys::KeyPair::new_user();
    let operator_jwt = jwt(&operator, &operator, "O", r#"{"type":"operator","version":2}"#);
    let limits = r#""limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,
        "wildcards":true,"conn":-1,"leaf":-1}"#;
    let account_claims = format!(r#"{{{limits},"type":"account","version":2}}"#);
    let account_jwt = jwt(&operator, &account, "A", &account_claims);
    let user_claims = r#"{"subs":-1,"data":-1,"payload":-1,"type":"user","version":2}"#;
    let user_jwt = jwt(&account, &user, "U", user_claims);
    let nats = Nats::start_configured(&format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}\n",
        account.public_key()
    ));
    let file = |seed: String| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    };
    check_accepted(&nats, Auth::from_credentials(&file(user.seed().unwrap())).unwrap());
    let other = nkeys::KeyPair::new_user().seed().unwrap();
    check_refused(&nats, Auth::from_credentials(&file(other)).unwrap());
}

#[test]
fn a_payload_of_the_announced_size_passes_and_one_byte_more_ends_the_connection() {
    let nats = Nats::start_configured("max_payload: 10000");
    let mut connection = Connection::plain(&nats);
    assert_eq!(connection.client.payload_bytes_max(), 10_000);
    subscribe(connection.client.out(), b"a", None, 1);
    publish(connection.client.out(), b"a", None, &[b'x'; 10_000]);
    assert_eq!(connection.message().payload().len(), 10_000);
    publish(connection.client.out(), b"a", None, &[b'x'; 10_001]);
    let text = "Maximum Payload Violation".to_owned();
    match connection.next() {
        Ok(event) => assert_eq!(event, Seen::ServerError { text, is_fatal: true }),
        Err(End::Client(ClientError::Server { text: told })) => assert_eq!(told, text),
        other => panic!("{other:?}"),
    }
    assert_eq!(connection.client.state(), State::Failed);
}

#[test]
fn an_invalid_subject_and_a_missing_permission_leave_the_connection_open() {
    let nats = Nats::start_configured(
        "authorization { users = [ { user: a, password: b, permissions: { publish: \"ok\" } } ] }",
    );
    let auth = Auth::UserPassword { user: "a".into(), password: Secret::new("b") };
    let options = ConnectOptions { auth, ..Default::default() };
    let mut connection = Connection::open(nats.address(), options).unwrap();
    publish(connection.client.out(), b"forbidden", None, b"");
    // The encoder's own check would stop this one.
    connection.client.out().extend_from_slice(b"SUB a..b 1\r\n");
    for words in ["Permissions Violation", "Invalid Subject"] {
        match connection.next().unwrap() {
            Seen::ServerError { text, is_fatal: false } => assert!(text.contains(words), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    connection.barrier();
}

#[test]
fn a_restarted_server_is_reached_again_on_its_port() {
    let mut nats = Nats::start(&[]);
    let address = nats.address();
    let mut connection = Connection::plain(&nats);
    let first = connection.client.info().unwrap().server_id.clone();
    nats.kill();
    assert!(matches!(connection.next(), Err(End::Closed)));
    nats.restart_same_port();
    assert_eq!(nats.address(), address);
    let mut connection = Connection::plain(&nats);
    connection.barrier();
    assert_ne!(connection.client.info().unwrap().server_id, first);
}

#[test]
fn a_server_that_stops_announces_it() {
    let nats = Nats::start(&[]);
    let mut connection = Connection::plain(&nats);
    connection.barrier();
    nats.lame_duck();
    assert_eq!(connection.next().unwrap(), Seen::InfoChanged);
    assert_eq!(connection.next().unwrap(), Seen::LameDuck);
    assert!(connection.client.info().unwrap().ldm);
    connection.barrier();
}

#[test]
fn the_pings_of_both_sides_are_answered() {
    let nats = Nats::start_configured("ping_interval: \"250ms\"\nping_max: 4");
    let mut connection = Connection::plain(&nats);
    subscribe(connection.client.out(), b"a", None, 1);
    connection.barrier();
    connection.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let start = Instant::now();
    // Longer than the server would wait for its answers, and, for us, four times our interval.
    while start.elapsed() < Duration::from_secs(2) {
        let now_ms = start.elapsed().as_millis() as u64 * 20;
        connection.client.handle_tick(now_ms).unwrap();
        let out = std::mem::take(connection.client.out());
        connection.stream.write_all(&out).unwrap();
        let mut buffer = [0; 4096];
        match connection.stream.read(&mut buffer) {
            Ok(received) => {
                assert_ne!(received, 0, "the server has given us up");
                connection.client.handle_bytes(&buffer[..received], &mut |_| {}).unwrap();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    connection.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    connection.barrier();
}

#[test]
fn a_frozen_server_is_given_up_and_a_connection_resumed_in_time_goes_on() {
    let nats = Nats::start(&[]);
    let mut connection = Connection::plain(&nats);
    nats.pause();
    for turn in 0..3 {
        connection.client.handle_tick(turn * 10_000).unwrap();
    }
    let error = connection.client.handle_tick(30_000).unwrap_err();
    assert!(matches!(error, ClientError::Stale { pings: 2 }), "{error}");
    nats.resume();
    Connection::plain(&nats).barrier();
}

#[test]
fn a_connection_is_continued_by_another_client_with_its_subscriptions_and_barriers() {
    let nats = Nats::start(&[]);
    let mut old = Connection::plain(&nats);
    subscribe(old.client.out(), b"a", None, 9);
    old.barrier();
    let mut publisher = Connection::plain(&nats);
    publish(publisher.client.out(), b"a", None, b"during");
    publisher.barrier();
    let barrier = old.client.ping();
    let client = Client::resume(Arc::new(ConnectOptions::default()), old.client.freeze());
    let mut new = Connection { stream: old.stream, client, events: old.events };
    assert_eq!(new.message(), message("a", 9, None, b"during"));
    assert_eq!(new.message(), Seen::Barrier(barrier));
    new.barrier();
}

fn etcd_call(etcd: &Etcd, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(etcd.address()).unwrap();
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn etcd_starts_and_keeps_its_data_over_a_restart_on_its_port() {
    let mut etcd = Etcd::start();
    let url = etcd.url();
    // "a" and "b" in base 64.
    let answer = etcd_call(&etcd, "/v3/kv/put", r#"{"key":"YQ==","value":"Yg=="}"#);
    assert!(answer.contains("200 OK"), "{answer}");
    etcd.stop();
    etcd.restart_same_port();
    assert_eq!(etcd.url(), url);
    let answer = etcd_call(&etcd, "/v3/kv/range", r#"{"key":"YQ=="}"#);
    assert!(answer.contains("Yg=="), "{answer}");
}
