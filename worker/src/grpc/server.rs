//! The service `protos.Pitaya` of a backend: calls go to the framework, and whoever looks for a user is told that there
//! is none here.
//!
//! A handler's error is an answer like any other. What is wrong with the call itself is a gRPC status, as in Pitaya
//! (cluster protocol 12). The caller's deadline ends the handler; Pitaya lets it run.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message;
use proto::service::{METHOD_BIND, METHOD_CALL, METHOD_KICK, METHOD_PUSH};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::{Service as GrpcService, http};
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};

use super::codec::Encoded;
use crate::metadata;
use crate::request::Reply;
use crate::service::Service;

/// Serves one connection after the other; clones are handles of the same framework.
#[derive(Clone)]
pub(crate) struct Backend(Service);

/// What is asked for.
#[derive(Clone, Copy)]
enum Method {
    Call,
    /// Something for the session of a user.
    ForUser,
    Bind,
}

/// One method, as tonic wants it.
struct Answering {
    service: Service,
    method: Method,
}

impl Backend {
    pub(crate) fn new(service: Service) -> Self {
        Self(service)
    }
}

impl GrpcService<http::Request<Body>> for Backend {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Bounded by the framework, which answers that it is busy.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = match request.uri().path() {
            METHOD_CALL => Method::Call,
            METHOD_PUSH | METHOD_KICK => Method::ForUser,
            METHOD_BIND => Method::Bind,
            _ => {
                let status = Status::unimplemented("unknown method");
                return Box::pin(std::future::ready(Ok(status.into_http())));
            }
        };
        let answering = Answering { service: self.0.clone(), method };
        Box::pin(async move { Ok(Grpc::new(Encoded).unary(answering, request).await) })
    }
}

impl GrpcService<Request<Bytes>> for Answering {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let limit = timeout_of(request.metadata());
        let message = request.into_inner();
        match self.method {
            Method::Call => Box::pin(call(self.service.clone(), message, limit)),
            // The sessions of users live in frontends.
            Method::ForUser => {
                Box::pin(std::future::ready(Err(Status::unknown("session not found"))))
            }
            Method::Bind => {
                let ack = proto::Response { data: Bytes::from_static(b"ack"), error: None };
                Box::pin(std::future::ready(Ok(Response::new(ack.encode_to_vec().into()))))
            }
        }
    }
}

async fn call(
    service: Service,
    request: Bytes,
    limit: Option<Duration>,
) -> Result<Response<Bytes>, Status> {
    let decoded = proto::Request::decode(request.clone())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    metadata::decode(&decoded.metadata).map_err(|error| Status::unknown(error.msg))?;
    let (sender, answered) = oneshot::channel();
    let reply = Reply::new(move |answer| {
        // Whoever gave up waiting misses nothing.
        let _ = sender.send(answer);
    });
    service.handle_within(request, reply, limit);
    let answer = answered.await.map_err(|_| Status::unavailable("the server is stopping"))?;
    Ok(Response::new(answer))
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
