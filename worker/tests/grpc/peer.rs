//! A server of another make: it notes what it is asked and acknowledges, and it asks by hand.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

/// One call that came.
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) message: Bytes,
    /// The header with the caller's deadline.
    pub(crate) timeout: Option<String>,
}

pub(crate) struct Peer {
    pub(crate) port: u16,
    pub(crate) asked: mpsc::UnboundedReceiver<Asked>,
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, asked) = mpsc::unbounded_channel();
        let incoming = TcpIncoming::from(listener);
        let forever = std::future::pending();
        let server = Server::builder().serve_with_incoming_shutdown(
            Noting { sender, method: String::new() },
            incoming,
            forever,
        );
        tokio::spawn(server);
        Self { port, asked }
    }
}

/// Calls a method of a server on this machine.
pub(crate) async fn ask(
    port: u16,
    method: &'static str,
    message: Vec<u8>,
    limit: Option<Duration>,
) -> Result<Bytes, Status> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut request = Request::new(Bytes::from(message));
    if let Some(limit) = limit {
        request.set_timeout(limit);
    }
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(method);
    grpc.unary(request, path, Raw).await.map(Response::into_inner)
}

#[derive(Clone)]
struct Noting {
    sender: mpsc::UnboundedSender<Asked>,
    method: String,
}

impl Service<http::Request<Body>> for Noting {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().to_owned();
        let noting = Self { method, ..self.clone() };
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(noting, request).await) })
    }
}

impl Service<Request<Bytes>> for Noting {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let timeout = request.metadata().get("grpc-timeout").map(|text| text.to_str().unwrap());
        let timeout = timeout.map(str::to_owned);
        let asked = Asked { method: self.method.clone(), message: request.into_inner(), timeout };
        let _ = self.sender.send(asked);
        std::future::ready(Ok(Response::new(Bytes::from_static(b"\x0a\x03ack"))))
    }
}

#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}
