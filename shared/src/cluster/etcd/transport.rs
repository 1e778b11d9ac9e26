//! The way to etcd: endpoints with fail-over, a deadline on each call, the token when etcd asks for one.
//!
//! One connection serves everything; when a call on it fails for want of an answer the next call uses a new one, to
//! the next endpoint. A stream that is open on the old connection stays there until that ends.
//!
//! Invariant: no call waits longer than its deadline for each endpoint.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use prost::Message;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Streaming};
use tonic_prost::ProstCodec;

use super::error::EtcdError;
use super::messages::{AuthenticateRequest, AuthenticateResponse};
use super::store_options::StoreOptions;

/// Largest answer that is read. A server record has about 200 bytes, so this is far above any cluster, and far below
/// what would endanger the process.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How often an HTTP/2 ping checks the connection. etcd closes connections that ping more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Pause after a refused password. etcd spends about 0.1 s of a core on looking at one, so a password that was changed
/// on one side only would let a large cluster of servers keep etcd busy.
const LOGIN_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Transport {
    endpoints: Vec<Endpoint>,
    credentials: Option<AuthenticateRequest>,
    call_timeout: Duration,
    current: Mutex<Current>,
}

struct Current {
    channel: Channel,
    /// Counts the connections, and chooses the endpoint: several calls that fail on one connection replace it once.
    generation: usize,
    token: Token,
}

#[derive(Clone)]
enum Token {
    Unknown,
    /// etcd has authentication switched off.
    NotNeeded,
    Known(MetadataValue<Ascii>),
    /// etcd does not take the password; not asked again for a while.
    Refused {
        until: Instant,
        code: Code,
        message: String,
    },
}

impl Transport {
    pub(super) fn new(options: &StoreOptions, call_timeout: Duration) -> Result<Self, EtcdError> {
        let endpoints = options
            .endpoints
            .iter()
            .map(|endpoint| open_endpoint(endpoint, options, call_timeout))
            .collect::<Result<Vec<_>, _>>()?;
        let channel = endpoints.first().ok_or(EtcdError::NoEndpoint)?.connect_lazy();
        let has_credentials = !options.user.is_empty() && !options.password.is_empty();
        let credentials = has_credentials.then(|| AuthenticateRequest {
            name: options.user.clone(),
            password: options.password.reveal().to_owned(),
        });
        let current = Mutex::new(Current { channel, generation: 0, token: Token::Unknown });
        Ok(Self { endpoints, credentials, call_timeout, current })
    }

    /// Makes the next call ask for a new token.
    pub(super) fn forget_token(&self) {
        self.current().token = Token::Unknown;
    }

    pub(super) async fn unary<M, R>(&self, path: &'static str, message: M) -> Result<R, EtcdError>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.with_fail_over(|channel, token| call(channel, token, path, message.clone())).await
    }

    /// Opens a stream with one message and reads the first answer.
    pub(super) async fn open<M, R>(
        &self,
        path: &'static str,
        message: M,
    ) -> Result<(Stream<R>, R), EtcdError>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.with_fail_over(|channel, token| open(channel, token, path, message.clone())).await
    }

    /// Runs `attempt` against each endpoint in turn until one answers, and once more with a new token if the server
    /// does not take the one we have.
    async fn with_fail_over<T, F>(
        &self,
        attempt: impl Fn(Channel, Option<MetadataValue<Ascii>>) -> F,
    ) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let limit = self.call_timeout;
        let mut endpoints_left = self.endpoints.len();
        let mut is_token_fresh = false;
        loop {
            let (channel, generation) = {
                let current = self.current();
                (current.channel.clone(), current.generation)
            };
            let authorized_attempt = async {
                let token = self.token(&channel).await?;
                attempt(channel.clone(), token).await
            };
            let outcome = timeout(limit, authorized_attempt).await;
            match outcome.unwrap_or(Err(EtcdError::TimedOut(limit))) {
                Err(error) if error.is_unreachable() => {
                    self.replace_channel(generation);
                    endpoints_left -= 1;
                    if endpoints_left == 0 {
                        return Err(error);
                    }
                }
                Err(error)
                    if error.is_token_refused()
                        && self.credentials.is_some()
                        && !is_token_fresh =>
                {
                    self.forget_token();
                    is_token_fresh = true;
                }
                outcome => return outcome,
            }
        }
    }

    async fn token(&self, channel: &Channel) -> Result<Option<MetadataValue<Ascii>>, EtcdError> {
        let Some(credentials) = &self.credentials else { return Ok(None) };
        let known = self.current().token.clone();
        match known {
            Token::Known(token) => return Ok(Some(token)),
            Token::NotNeeded => return Ok(None),
            Token::Refused { until, code, message } if Instant::now() < until => {
                return Err(EtcdError::Refused { code, message });
            }
            Token::Refused { .. } | Token::Unknown => {}
        }
        let path = "/etcdserverpb.Auth/Authenticate";
        let answer: Result<AuthenticateResponse, _> =
            call(channel.clone(), None, path, credentials.clone()).await;
        let outcome = match answer {
            Ok(answer) => answer.token.parse().map(Some).map_err(|_| EtcdError::Refused {
                code: Code::Internal,
                message: "the token is not text".to_owned(),
            }),
            Err(error) if error.is_authentication_off() => Ok(None),
            Err(error) => Err(error),
        };
        self.current().token = match &outcome {
            Ok(Some(token)) => Token::Known(MetadataValue::clone(token)),
            Ok(None) => Token::NotNeeded,
            Err(EtcdError::Refused { code, message }) => Token::Refused {
                until: Instant::now() + LOGIN_PAUSE,
                code: *code,
                message: message.clone(),
            },
            Err(_) => Token::Unknown,
        };
        outcome
    }

    /// Leaves the connection with this generation for a new one to the next endpoint; nothing if somebody did already.
    fn replace_channel(&self, generation: usize) {
        let mut current = self.current();
        if current.generation != generation {
            return;
        }
        current.generation = generation.wrapping_add(1);
        let endpoints = &self.endpoints;
        if let Some(endpoint) = endpoints.get(current.generation % endpoints.len()) {
            current.channel = endpoint.connect_lazy();
        }
        // A member that restarted has forgotten its tokens; asking for one costs less than a refused call.
        current.token = Token::Unknown;
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Every change is one assignment after another that cannot panic, so a poisoned lock holds sound data.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_endpoint(
    text: &str,
    options: &StoreOptions,
    call_timeout: Duration,
) -> Result<Endpoint, EtcdError> {
    let invalid = |error: tonic::transport::Error| EtcdError::InvalidEndpoint {
        endpoint: text.to_owned(),
        reason: error.to_string(),
    };
    let trimmed = text.trim();
    let url =
        if trimmed.contains("://") { trimmed.to_owned() } else { format!("http://{trimmed}") };
    let is_tls = url.starts_with("https://");
    let endpoint = Endpoint::from_shared(url)
        .map_err(invalid)?
        .connect_timeout(options.dial_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(call_timeout)
        .keep_alive_while_idle(true);
    if is_tls {
        return endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(invalid);
    }
    Ok(endpoint)
}

async fn call<M, R>(
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    path: &'static str,
    message: M,
) -> Result<R, EtcdError>
where
    M: Message + 'static,
    R: Message + Default + 'static,
{
    let mut grpc = ready(channel).await?;
    let codec = ProstCodec::<M, R>::default();
    let request = authorized(message, token);
    Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
}

async fn open<M, R>(
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    path: &'static str,
    message: M,
) -> Result<(Stream<R>, R), EtcdError>
where
    M: Message + 'static,
    R: Message + Default + 'static,
{
    let mut grpc = ready(channel).await?;
    let codec = ProstCodec::<M, R>::default();
    let (our_half, is_dropped) = oneshot::channel();
    let messages = stream::iter([message]).chain(stream::pending().take_until(is_dropped));
    let path = PathAndQuery::from_static(path);
    let answers = grpc.streaming(authorized(messages, token), path, codec).await?.into_inner();
    let mut stream = Stream { answers, _our_half: our_half };
    let first = stream.next().await?;
    Ok((stream, first))
}

/// A stream that is open in both directions; dropping it ends both.
///
/// The server ends its half when ours ends, so ours lasts as long as this. And it must not last longer: a stream whose
/// answers alone are dropped stays open, in this process and in the server's, for as long as the connection does.
pub(super) struct Stream<R> {
    answers: Streaming<R>,
    _our_half: oneshot::Sender<Infallible>,
}

impl<R> Stream<R> {
    /// The next answer. May be cancelled without losing one.
    pub(super) async fn next(&mut self) -> Result<R, EtcdError> {
        let ended = || EtcdError::Unreachable("the stream ended".to_owned());
        self.answers.message().await?.ok_or_else(ended)
    }
}

async fn ready(channel: Channel) -> Result<Grpc<Channel>, EtcdError> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    grpc.ready().await.map_err(|error| EtcdError::Unreachable(error.to_string()))?;
    Ok(grpc)
}

fn authorized<T>(message: T, token: Option<MetadataValue<Ascii>>) -> Request<T> {
    let mut request = Request::new(message);
    // A member that has lost its leader refuses calls and ends watches with this, instead of answering them with what
    // it last knew.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}
