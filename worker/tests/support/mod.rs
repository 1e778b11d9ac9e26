//! What the tests of the service share: a link that lives in memory, and requests as a gateway sends them.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test file uses its part, and may panic.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use shared::server::Server;
use tokio::sync::oneshot;
use worker::{App, BoxFuture, ClusterView, FixedServers, Link, LinkError, Reply, Service};

/// The gateway that all test requests come from.
pub const FRONTEND: &str = "front-1";

/// What a link was asked to carry.
#[derive(Debug, Clone)]
pub struct Sent {
    pub subject: String,
    pub payload: Bytes,
}

/// A link that notes everything and answers requests from a list, then with an acknowledgement.
#[derive(Default)]
pub struct MemoryLink {
    pub published: Mutex<Vec<Sent>>,
    pub requested: Mutex<Vec<Sent>>,
    pub answers: Mutex<VecDeque<Result<Bytes, LinkError>>>,
}

impl MemoryLink {
    pub fn answer_next(&self, answer: Result<proto::Response, LinkError>) {
        self.answers.lock().unwrap().push_back(answer.map(|r| r.encode_to_vec().into()));
    }

    pub fn pushes(&self) -> Vec<(String, proto::Push)> {
        let published = self.published.lock().unwrap();
        published
            .iter()
            .filter(|sent| sent.subject.ends_with("/push"))
            .map(|sent| (sent.subject.clone(), proto::Push::decode(sent.payload.clone()).unwrap()))
            .collect()
    }

    pub fn calls(&self) -> Vec<(String, proto::Request)> {
        let requested = self.requested.lock().unwrap();
        let decode = |sent: &Sent| proto::Request::decode(sent.payload.clone()).unwrap();
        requested.iter().map(|sent| (sent.subject.clone(), decode(sent))).collect()
    }
}

impl Link for MemoryLink {
    fn request(
        &self,
        subject: &str,
        payload: Vec<u8>,
        _: Duration,
    ) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        let sent = Sent { subject: subject.to_owned(), payload: payload.into() };
        self.requested.lock().unwrap().push(sent);
        let answer = self.answers.lock().unwrap().pop_front();
        let ack = Bytes::from_static(b"\x0a\x05\x0a\x03ack");
        Box::pin(std::future::ready(answer.unwrap_or(Ok(ack))))
    }

    fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), LinkError> {
        let sent = Sent { subject: subject.to_owned(), payload: payload.into() };
        self.published.lock().unwrap().push(sent);
        Ok(())
    }
}

/// A running application behind a [`MemoryLink`].
pub struct Harness {
    pub link: Arc<MemoryLink>,
    pub service: Service,
}

impl Harness {
    pub async fn new(app: App) -> Self {
        Self::try_new(app).await.unwrap()
    }

    pub async fn try_new(app: App) -> worker::Result<Self> {
        let frontend = Server {
            id: FRONTEND.into(),
            server_type: "connector".into(),
            metadata: std::collections::BTreeMap::new(),
            frontend: true,
            hostname: String::new(),
        };
        let view = ClusterView::new("room-1", Arc::new(FixedServers::new([frontend])));
        Self::with_view(app, view).await
    }

    pub async fn with_view(app: App, view: ClusterView) -> worker::Result<Self> {
        let link = Arc::new(MemoryLink::default());
        let service = app.embed(link.clone(), view).await?;
        Ok(Self { link, service })
    }

    /// Hands a request in and gives the place where its answer will be. The order of calls is the order of arrival.
    pub fn send(&self, request: &proto::Request) -> Answer {
        self.send_bytes(request.encode_to_vec())
    }

    pub fn send_bytes(&self, request: impl Into<Bytes>) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let reply = Reply::new(move |answer| {
            let _ = sender.send(answer);
        });
        self.service.handle(request.into(), reply);
        Answer(receiver)
    }
}

pub struct Answer(oneshot::Receiver<Bytes>);

impl Answer {
    pub async fn response(self) -> proto::Response {
        let bytes = self.0.await.expect("every request is answered");
        proto::Response::decode(bytes).unwrap()
    }

    pub async fn data(self) -> Bytes {
        let response = self.response().await;
        assert_eq!(response.error, None);
        response.data
    }

    /// Code and text.
    pub async fn error(self) -> (String, String) {
        let error = self.response().await.error.expect("an error");
        (error.code, error.msg)
    }
}

/// A request of a client of session `session`, as a gateway forwards it.
pub fn request(session: i64, route: &str, data: impl Into<Bytes>) -> proto::Request {
    proto::Request {
        r#type: proto::RpcType::Sys.into(),
        session: Some(proto::Session { id: session, ..Default::default() }),
        msg: Some(proto::Msg {
            id: 1,
            route: route.into(),
            data: data.into(),
            ..Default::default()
        }),
        frontend_id: FRONTEND.into(),
        metadata: Bytes::from_static(br#"{"reqTimeout":"5s"}"#),
    }
}

/// The same as a notify.
pub fn notify(session: i64, route: &str, data: impl Into<Bytes>) -> proto::Request {
    let mut request = request(session, route, data);
    let msg = request.msg.as_mut().unwrap();
    msg.r#type = proto::MsgType::Notify.into();
    msg.id = 0;
    request
}

pub fn with_timeout(mut request: proto::Request, timeout: &str) -> proto::Request {
    request.metadata = format!("{{\"reqTimeout\":\"{timeout}\"}}").into();
    request
}
