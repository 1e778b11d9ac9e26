//! A backend made by hand over async-nats: it shows what arrives to the byte, and answers what and when a test wants.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use async_nats::{Client, RequestErrorKind, Subject};
use bytes::Bytes;
use client::raw::RawClient;
use futures_util::StreamExt;
use proto::{Message, wire};
use shared::cluster::discovery::Discovery;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::world::{GATE, SOON, World, until};

/// A `Response` with "ack", inside another (cluster protocol 9.2).
pub(crate) const NESTED_ACK: &[u8] = b"\x0a\x05\x0a\x03ack";

/// Where a subscriber hears itself.
const PROBE: &str = "_PROBE";

/// A server of type `room` that is in etcd without any announcement.
pub(crate) struct Backend {
    pub(crate) caller: Caller,
    calls: Receiver<Call>,
    discovery: Discovery,
}

/// Somebody who calls frontends, pushes and kicks.
#[derive(Clone)]
pub(crate) struct Caller {
    client: Client,
    runtime: Handle,
}

/// One message that came to the backend.
pub(crate) struct Call {
    pub(crate) payload: Bytes,
    pub(crate) reply: Option<Subject>,
    caller: Caller,
}

impl Backend {
    pub(crate) fn start(world: &World, id: &str, client: Client) -> Self {
        Self::start_as(world, id, client, |world| world.announce("room", id))
    }

    /// The same with another entry in etcd.
    pub(crate) fn start_as(
        world: &World,
        id: &str,
        client: Client,
        announce: impl FnOnce(&World) -> Discovery,
    ) -> Self {
        let caller = Caller { client, runtime: world.handle() };
        let subject = format!("pitaya/servers/room/{id}");
        let mut messages = world.soon(caller.client.subscribe(subject)).unwrap();
        world.soon(caller.client.flush()).unwrap();
        let (sender, calls) = channel();
        let answering = caller.clone();
        caller.runtime.spawn(async move {
            while let Some(message) = messages.next().await {
                let (payload, reply) = (message.payload, message.reply);
                if payload == wire::PROBE[..] {
                    continue;
                }
                if sender.send(Call { payload, reply, caller: answering.clone() }).is_err() {
                    return;
                }
            }
        });
        Self { caller, calls, discovery: announce(world) }
    }

    /// The id that the cluster knows the client's session by.
    pub(crate) fn session_id(&self, client: &mut RawClient) -> i64 {
        let id = client.send_request("room.room.who", b"").unwrap();
        let call = self.next();
        call.answer(b"");
        client.read_response(id, SOON).unwrap();
        call.session()
    }

    /// The next call.
    pub(crate) fn next(&self) -> Call {
        self.calls.recv_timeout(SOON).expect("a call arrives")
    }

    /// Where a request went: the call if it comes here, none if somebody else has answered it well.
    pub(crate) fn call_unless_answered(&self, client: &mut RawClient, id: u64) -> Option<Call> {
        until("a call or an answer", || {
            if let Some(call) = self.next_within(Duration::from_millis(5)) {
                return Some(Some(call));
            }
            let answer = client.read_response(id, Duration::from_millis(5)).ok()?;
            assert!(!answer.is_error, "{}", answer.text());
            Some(None)
        })
    }

    /// The next call if it comes in this time.
    pub(crate) fn next_within(&self, time: Duration) -> Option<Call> {
        match self.calls.recv_timeout(time) {
            Ok(call) => Some(call),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the backend's subscription has ended"),
        }
    }

    /// Ends as a crash ends it: NATS has its subscriptions no more, etcd keeps its entry until the lease runs out.
    pub(crate) fn die(self) {
        let caller = self.caller.clone();
        // The subscription goes with the receiver of its messages; draining ends it at the server.
        caller.wait(caller.client.drain()).unwrap();
        std::mem::forget(self.discovery);
    }

    /// Leaves the cluster; what still comes is not answered.
    pub(crate) fn leave(self, world: &World) {
        world.withdraw(self.discovery);
    }

    /// Answers everything with the request's own data, until the test ends.
    pub(crate) fn echo(self) -> Echo {
        self.answer_all(Call::data)
    }

    /// Answers everything with one text, until the test ends.
    pub(crate) fn say(self, text: &'static str) -> Echo {
        self.answer_all(move |_| Bytes::from_static(text.as_bytes()))
    }

    fn answer_all(self, answer: impl Fn(&Call) -> Bytes + Send + 'static) -> Echo {
        let Self { calls, discovery, .. } = self;
        std::thread::spawn(move || {
            while let Ok(call) = calls.recv() {
                call.answer(&answer(&call));
            }
        });
        Echo { discovery }
    }
}

/// A backend that echoes by itself.
pub(crate) struct Echo {
    pub(crate) discovery: Discovery,
}

impl Call {
    pub(crate) fn request(&self) -> proto::Request {
        proto::Request::decode(self.payload.clone()).unwrap()
    }

    pub(crate) fn session(&self) -> i64 {
        self.request().session.unwrap().id
    }

    pub(crate) fn data(&self) -> Bytes {
        self.request().msg.unwrap().data
    }

    /// Answers with any bytes.
    pub(crate) fn answer_bytes(&self, payload: &[u8]) {
        let reply = self.reply.clone().expect("a reply subject");
        self.caller.publish_all([(reply.to_string(), None, payload.to_vec())]);
    }

    /// Answers with success.
    pub(crate) fn answer(&self, data: &[u8]) {
        let response = proto::Response { data: Bytes::copy_from_slice(data), error: None };
        let reply = self.reply.clone().expect("a reply subject");
        self.caller.publish(&reply, &response);
    }
}

impl Call {
    /// A second answer: subject and bytes, for [`Caller::publish_all`].
    pub(crate) fn stale_answer(&self) -> (String, Option<String>, Vec<u8>) {
        let response = proto::Response { data: Bytes::from_static(b"stale"), error: None };
        let reply = self.reply.clone().expect("a reply subject");
        (reply.to_string(), None, response.encode_to_vec())
    }
}

impl Caller {
    /// Somebody who is in no server list.
    pub(crate) fn connect(world: &World) -> Self {
        let client = world.soon(async_nats::connect(world.nats.url())).unwrap();
        Self { client, runtime: world.handle() }
    }

    fn wait<T>(&self, future: impl IntoFuture<Output = T>) -> T {
        self.runtime.block_on(async { timeout(SOON, future).await.expect("NATS takes it in time") })
    }

    /// Publishes and waits until the server has it.
    pub(crate) fn publish(&self, subject: &str, message: &impl Message) {
        let sent = async {
            self.client.publish(subject.to_owned(), message.encode_to_vec().into()).await.unwrap();
            self.client.flush().await.unwrap();
        };
        self.wait(sent);
    }

    /// Publishes all of it at once.
    pub(crate) fn publish_all(
        &self,
        messages: impl IntoIterator<Item = (String, Option<String>, Vec<u8>)>,
    ) {
        let sent = async {
            for (subject, reply, payload) in messages {
                match reply {
                    Some(reply) => self
                        .client
                        .publish_with_reply(subject, reply, payload.into())
                        .await
                        .unwrap(),
                    None => self.client.publish(subject, payload.into()).await.unwrap(),
                }
            }
            self.client.flush().await.unwrap();
        };
        self.wait(sent);
    }

    /// Requests anything and returns the bytes of the answer.
    pub(crate) fn ask(&self, subject: &str, payload: Vec<u8>) -> Bytes {
        self.wait(self.client.request(subject.to_owned(), payload.into()))
            .expect("an answer")
            .payload
    }

    /// Whether NATS has anybody to bring messages for a user to.
    pub(crate) fn is_heard(&self, uid: &str) -> bool {
        let asked = self.client.request(user_subject(uid, "push"), Bytes::new());
        let outcome =
            self.runtime.block_on(async { timeout(Duration::from_millis(50), asked).await });
        !matches!(outcome, Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders)
    }

    /// Calls a frontend's own route, and returns the bytes of the answer.
    pub(crate) fn call(&self, gateway: &str, route: &str, argument: &impl Message) -> Bytes {
        self.ask(&server_subject(gateway), user_request(route, argument))
    }

    /// Binds a session of [`GATE`] to a user.
    pub(crate) fn bind(&self, session: i64, uid: &str) -> Bytes {
        self.call(GATE, "sys.bindsession", &session_of(session, uid, ""))
    }

    /// Pushes to a user of a connector.
    pub(crate) fn push(&self, uid: &str, data: &[u8]) {
        self.publish(&user_subject(uid, "push"), &push_of(uid, data));
    }

    /// Subscribes to anything.
    pub(crate) fn subscribe(&self, subject: &str) -> Receiver<async_nats::Message> {
        let subscribed = async {
            let messages = self.client.subscribe(subject.to_owned()).await.unwrap();
            // Of one connection NATS takes everything in its order: when this is back, it has the subscription.
            let mut probes = self.client.subscribe(PROBE).await.unwrap();
            self.client.publish(PROBE, Bytes::new()).await.unwrap();
            self.client.flush().await.unwrap();
            probes.next().await.unwrap();
            messages
        };
        let mut messages = self.wait(subscribed);
        let (sender, receiver) = channel();
        self.runtime.spawn(async move {
            while let Some(message) = messages.next().await {
                if message.subject.as_str() != PROBE && sender.send(message).is_err() {
                    return;
                }
            }
        });
        receiver
    }
}

pub(crate) fn server_subject(gateway: &str) -> String {
    format!("pitaya/servers/connector/{gateway}")
}

pub(crate) fn user_subject(uid: &str, what: &str) -> String {
    format!("pitaya/connector/user/{uid}/{what}")
}

pub(crate) fn session_of(id: i64, uid: &str, data: &str) -> proto::Session {
    proto::Session { id, uid: uid.to_owned(), data: Bytes::copy_from_slice(data.as_bytes()) }
}

pub(crate) fn push_of(uid: &str, data: &[u8]) -> proto::Push {
    proto::Push {
        route: "onTest".to_owned(),
        uid: uid.to_owned(),
        data: Bytes::copy_from_slice(data),
    }
}

/// A call between servers, encoded.
pub(crate) fn user_request(route: &str, argument: &impl Message) -> Vec<u8> {
    let message = proto::Msg {
        route: route.to_owned(),
        data: argument.encode_to_vec().into(),
        ..proto::Msg::default()
    };
    let request = proto::Request {
        r#type: proto::RpcType::User.into(),
        msg: Some(message),
        metadata: Bytes::from_static(
            br#"{"peer.id":"room-1","peer.service":"room","reqTimeout":"5s"}"#,
        ),
        ..proto::Request::default()
    };
    request.encode_to_vec()
}

/// Code and text of an answer that is an error.
pub(crate) fn error_in(answer: &Bytes) -> (String, String) {
    let error = proto::Response::decode(answer.clone()).unwrap().error.expect("an error");
    (error.code, error.msg)
}
