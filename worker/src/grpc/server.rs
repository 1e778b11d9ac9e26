//! The service `protos.Pitaya`: what comes over gRPC, as method, message and deadline for whoever answers it.
//!
//! What is wrong with a call itself is a gRPC status, as in Pitaya (cluster protocol 12); errors of handlers are answers
//! like any other, and none of this file's business.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message;
use proto::service::{METHOD_BIND, METHOD_CALL, METHOD_KICK, METHOD_PUSH};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::{Service as GrpcService, http};
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::codec::Encoded;
use crate::metadata;

/// How often an HTTP/2 ping checks a connection, and how long its answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Calls under way on one connection. Go's servers have no bound; hyper's own, 200, would hold up a gateway whose players
/// wait for slow handlers. What runs is bounded by whoever answers.
const STREAMS_MAX: u32 = 16 * 1024;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// An encoded `protos.Request` is to be answered with a `protos.Response`.
    Call,
    /// An encoded `protos.Push` for the session of a user.
    Push,
    /// An encoded `protos.KickMsg` for the session of a user.
    Kick,
    /// An encoded `protos.BindMsg`: another frontend has bound a user.
    Bind,
}

/// Whoever answers what comes. Clones are handles of the same.
pub trait Answering: Clone + Send + Sync + 'static {
    /// Answers one message with an encoded one. A [`Method::Call`] has been looked at: it is a request with metadata.
    /// `limit` is how long the caller waits, if it says so; when that is over the future is dropped.
    ///
    /// Fails with what Pitaya's servers say.
    fn answer(
        &self,
        method: Method,
        message: Bytes,
        limit: Option<Duration>,
    ) -> BoxFuture<'static, Result<Bytes, Status>>;
}

/// Takes calls until `closing` is told or dropped; returns when the connections are closed.
pub async fn serve(
    listener: TcpListener,
    answering: impl Answering,
    closing: oneshot::Receiver<()>,
) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_INTERVAL))
        .max_concurrent_streams(STREAMS_MAX)
        .serve_with_incoming_shutdown(Served(answering), incoming, async {
            let _ = closing.await;
        });
    if let Err(error) = served.await {
        tracing::error!(%error, "calls over gRPC are not taken any more");
    }
}

/// Serves one connection after the other.
#[derive(Clone)]
struct Served<A>(A);

/// One method, as tonic wants it.
struct Called<A> {
    answering: A,
    method: Method,
}

impl<A: Answering> GrpcService<http::Request<Body>> for Served<A> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Bounded by whoever answers, who says that it is busy.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = match request.uri().path() {
            METHOD_CALL => Method::Call,
            METHOD_PUSH => Method::Push,
            METHOD_KICK => Method::Kick,
            METHOD_BIND => Method::Bind,
            _ => {
                let status = Status::unimplemented("unknown method");
                return Box::pin(std::future::ready(Ok(status.into_http())));
            }
        };
        let called = Called { answering: self.0.clone(), method };
        Box::pin(async move { Ok(Grpc::new(Encoded).unary(called, request).await) })
    }
}

impl<A: Answering> GrpcService<Request<Bytes>> for Called<A> {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let limit = timeout_of(request.metadata());
        let message = request.into_inner();
        if self.method == Method::Call
            && let Err(status) = check_call(&message)
        {
            return Box::pin(std::future::ready(Err(status)));
        }
        let answer = self.answering.answer(self.method, message, limit);
        Box::pin(async move { answer.await.map(Response::new) })
    }
}

fn check_call(request: &Bytes) -> Result<(), Status> {
    let decoded = proto::Request::decode(request.clone())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    metadata::decode(&decoded.metadata).map_err(|error| Status::unknown(error.msg))?;
    Ok(())
}

/// How long the caller waits, from the header of that purpose: up to eight digits and a unit.
fn timeout_of(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = Some(digits).filter(|digits| digits.len() <= 8)?.parse::<u64>().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_in_every_unit() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout_of(&metadata)
        };
        for (text, expected) in [("2H", 7_200_000), ("3M", 180_000), ("4S", 4_000), ("5m", 5)] {
            assert_eq!(read(text), Some(Duration::from_millis(expected)));
        }
        assert_eq!(read("6u"), Some(Duration::from_micros(6)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "5", "S", "-1S", "999999999S", "1x", "1 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(timeout_of(&MetadataMap::new()), None);
    }
}
