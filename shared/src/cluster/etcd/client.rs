//! Calls to etcd: endpoints with fail-over, a deadline on each call, the token when etcd asks for one.
//!
//! Retrying for longer than one round of the endpoints is the caller's business, as is the meaning of what it reads.
//! One connection serves everything; when a call on it fails for want of an answer the next call uses a new one, to
//! the next endpoint. A watch that is open on the old connection stays there until that ends.
//!
//! Invariant: no call waits longer than its deadline for each endpoint.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use prost::Message;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::error::EtcdError;
use super::messages::{
    AuthenticateRequest, AuthenticateResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest, WatchRequestUnion, WatchResponse,
};

/// Largest answer that is read. A server record has about 200 bytes, so this is far above any cluster, and far below
/// what would endanger the process.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How often an HTTP/2 ping checks the connection. etcd closes connections that ping more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How to reach etcd.
#[derive(Clone)]
pub struct ClientOptions {
    /// `host:port` or URLs; `https://` means TLS checked against the system's root certificates.
    pub endpoints: Vec<String>,
    /// User; used only when the password is not empty either.
    pub user: String,
    /// Password of the user.
    pub password: String,
    /// Limit of one connect.
    pub dial_timeout: Duration,
    /// Limit of one call on one endpoint.
    pub call_timeout: Duration,
}

/// A client; clones share the connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
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
}

impl Client {
    /// A client that connects with its first call. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`EtcdError::NoEndpoint`] and [`EtcdError::InvalidEndpoint`]
    pub fn new(options: &ClientOptions) -> Result<Self, EtcdError> {
        let endpoints = options
            .endpoints
            .iter()
            .map(|endpoint| open_endpoint(endpoint, options))
            .collect::<Result<Vec<_>, _>>()?;
        let channel = endpoints.first().ok_or(EtcdError::NoEndpoint)?.connect_lazy();
        let has_credentials = !options.user.is_empty() && !options.password.is_empty();
        let credentials = has_credentials.then(|| AuthenticateRequest {
            name: options.user.clone(),
            password: options.password.clone(),
        });
        let current = Mutex::new(Current { channel, generation: 0, token: Token::Unknown });
        let call_timeout = options.call_timeout;
        Ok(Self { inner: Arc::new(Inner { endpoints, credentials, call_timeout, current }) })
    }

    /// Reads keys, up to date with everything that was confirmed before the call.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, EtcdError> {
        self.unary("/etcdserverpb.KV/Range", request).await
    }

    /// Writes one key.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, EtcdError> {
        self.unary("/etcdserverpb.KV/Put", request).await
    }

    /// Deletes keys.
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, EtcdError> {
        self.unary("/etcdserverpb.KV/DeleteRange", request).await
    }

    /// Runs a transaction.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, EtcdError> {
        self.unary("/etcdserverpb.KV/Txn", request).await
    }

    /// A new lease of at least `ttl_s` seconds.
    pub async fn lease_grant(&self, ttl_s: i64) -> Result<LeaseGrantResponse, EtcdError> {
        let request = LeaseGrantRequest { ttl: ttl_s, id: 0 };
        self.unary("/etcdserverpb.Lease/LeaseGrant", request).await
    }

    /// Ends a lease and deletes its keys. A lease that is gone already is no error.
    pub async fn lease_revoke(&self, lease: i64) -> Result<(), EtcdError> {
        let request = LeaseRevokeRequest { id: lease };
        let answer: Result<LeaseRevokeResponse, _> =
            self.unary("/etcdserverpb.Lease/LeaseRevoke", request).await;
        match answer {
            Err(error) if !error.is_lease_lost() => Err(error),
            _ => Ok(()),
        }
    }

    /// Renews a lease once; returns its new time to live in seconds.
    ///
    /// A stream for each renewal, unlike one for all of them, takes the fail-over of every other call.
    ///
    /// # Errors
    /// [`EtcdError::LeaseLost`] when etcd does not know the lease (cluster protocol 13.2).
    pub async fn lease_keep_alive(&self, lease: i64) -> Result<i64, EtcdError> {
        let request = LeaseKeepAliveRequest { id: lease };
        let (_, answer): (_, LeaseKeepAliveResponse) =
            self.open("/etcdserverpb.Lease/LeaseKeepAlive", request).await?;
        if answer.ttl > 0 { Ok(answer.ttl) } else { Err(EtcdError::LeaseLost) }
    }

    /// What is left of a lease, and its keys.
    pub async fn lease_time_to_live(
        &self,
        lease: i64,
    ) -> Result<LeaseTimeToLiveResponse, EtcdError> {
        let request = LeaseTimeToLiveRequest { id: lease, keys: true };
        self.unary("/etcdserverpb.Lease/LeaseTimeToLive", request).await
    }

    /// Opens a watch; returns when etcd has confirmed it.
    ///
    /// # Errors
    /// Besides those of every call [`EtcdError::WatchCancelled`], for example when the revision was compacted away or
    /// the user may not read the keys.
    pub async fn watch(&self, request: WatchCreateRequest) -> Result<Watch, EtcdError> {
        let request = WatchRequest { request: Some(WatchRequestUnion::Create(request)) };
        let (stream, first) = self.open("/etcdserverpb.Watch/Watch", request).await?;
        let first = refuse_cancelled(first)?;
        Ok(Watch { stream, first: Some(first) })
    }

    /// Makes the next call ask for a new token. For answers whose failure only their text tells, such as a watch
    /// that was cancelled because of its token.
    pub(crate) fn forget_token(&self) {
        self.current().token = Token::Unknown;
    }

    async fn unary<M, R>(&self, path: &'static str, message: M) -> Result<R, EtcdError>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.with_fail_over(|channel, token| call(channel, token, path, message.clone())).await
    }

    /// Opens a stream with one message and reads the first answer.
    async fn open<M, R>(
        &self,
        path: &'static str,
        message: M,
    ) -> Result<(Streaming<R>, R), EtcdError>
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
        let limit = self.inner.call_timeout;
        let mut endpoints_left = self.inner.endpoints.len();
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
                        && self.inner.credentials.is_some()
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
        let Some(credentials) = &self.inner.credentials else { return Ok(None) };
        let known = self.current().token.clone();
        match known {
            Token::Known(token) => return Ok(Some(token)),
            Token::NotNeeded => return Ok(None),
            Token::Unknown => {}
        }
        let path = "/etcdserverpb.Auth/Authenticate";
        let answer: Result<AuthenticateResponse, _> =
            call(channel.clone(), None, path, credentials.clone()).await;
        let token = match answer {
            Ok(answer) => Token::Known(answer.token.parse().map_err(|_| EtcdError::Refused {
                code: tonic::Code::Internal,
                message: "the token is not text".to_owned(),
            })?),
            Err(error) if error.is_authentication_off() => Token::NotNeeded,
            Err(error) => return Err(error),
        };
        self.current().token = token.clone();
        Ok(match token {
            Token::Known(token) => Some(token),
            _ => None,
        })
    }

    /// Leaves the connection with this generation for a new one to the next endpoint; nothing if somebody did already.
    fn replace_channel(&self, generation: usize) {
        let mut current = self.current();
        if current.generation != generation {
            return;
        }
        current.generation = generation.wrapping_add(1);
        let endpoints = &self.inner.endpoints;
        if let Some(endpoint) = endpoints.get(current.generation % endpoints.len()) {
            current.channel = endpoint.connect_lazy();
        }
        // A member that restarted has forgotten its tokens; asking for one costs less than a refused call.
        current.token = Token::Unknown;
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Every change is one assignment after another that cannot panic, so a poisoned lock holds sound data.
        self.inner.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open watch. Dropping it ends it.
pub struct Watch {
    stream: Streaming<WatchResponse>,
    /// Read while the watch was opened.
    first: Option<WatchResponse>,
}

impl Watch {
    /// The next report; one without events is a sign of life. May be cancelled without losing a report.
    ///
    /// # Errors
    /// [`EtcdError::WatchCancelled`] or [`EtcdError::Unreachable`]; the watch is over then.
    pub async fn next(&mut self) -> Result<WatchResponse, EtcdError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        refuse_cancelled(self.stream.message().await?.ok_or_else(ended)?)
    }
}

fn refuse_cancelled(response: WatchResponse) -> Result<WatchResponse, EtcdError> {
    if response.canceled {
        let WatchResponse { cancel_reason: reason, compact_revision, .. } = response;
        return Err(EtcdError::WatchCancelled { reason, compact_revision });
    }
    Ok(response)
}

fn open_endpoint(text: &str, options: &ClientOptions) -> Result<Endpoint, EtcdError> {
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
        .keep_alive_timeout(options.call_timeout)
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
) -> Result<(Streaming<R>, R), EtcdError>
where
    M: Message + 'static,
    R: Message + Default + 'static,
{
    let mut grpc = ready(channel).await?;
    let codec = ProstCodec::<M, R>::default();
    // The server ends the stream when our half ends, so it never does.
    let request = authorized(stream::iter([message]).chain(stream::pending()), token);
    let path = PathAndQuery::from_static(path);
    let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
    let first = answers.message().await?.ok_or_else(ended)?;
    Ok((answers, first))
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

fn ended() -> EtcdError {
    EtcdError::Unreachable("the stream ended".to_owned())
}
