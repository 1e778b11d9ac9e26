//! The handle that applications use: connect, request, notify, listen for pushes.
//!
//! A handle only encodes and waits; the socket belongs to one task (`connection`), which `connect` spawns and which
//! ends when the server closes, when [`Client::disconnect`] is called, or when the last handle is dropped. There is no
//! reconnect: a new connection is a new session, and what to do about that is the application's to decide.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shared::compression::Deflater;
use shared::dictionary::Dictionary;
use shared::handshake::{HandshakeRequest, HandshakeSys};
use shared::message::{Head, MessageType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::address::{Address, Transport};
use crate::connection::{self, Command};
use crate::error::{CloseCause, ConnectError, RequestError};
use crate::framing::{self, EncodeError};
use crate::tls::Trust;

/// Sends that may wait for the connection's task before senders wait too.
const COMMANDS_MAX: usize = 64;

/// How to connect, and the bounds of a connection.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// What the server is told about this client.
    pub handshake: HandshakeRequest,
    /// For resolving, connecting, upgrade and handshake together.
    pub connect_timeout: Duration,
    /// From the call of [`Client::request`] to its answer, waiting for its turn included.
    pub request_timeout: Duration,
    /// Requests without answer at one time; further ones wait for their turn.
    pub in_flight_max: usize,
    /// Pushes that each receiver holds before new ones are dropped.
    pub pushes_max: usize,
    /// Largest packet body taken from the server, in bytes.
    pub packet_bytes_max: usize,
    /// Largest payload after inflating, in bytes.
    pub inflated_bytes_max: usize,
    /// Payloads of this many bytes or more are deflated if that makes them shorter; `None` never, as the Go client.
    pub deflate_from_bytes: Option<usize>,
    /// Which servers are trusted, on addresses with TLS.
    pub trust: Trust,
    /// Heartbeat intervals without any packet after which the server counts as gone; 0 = never.
    pub silent_intervals_max: u32,
}

impl Default for ConnectOptions {
    /// Timeouts of Pitaya's clients (30 s, 5 s); silence as libpitaya judges it (client protocol 17.1).
    fn default() -> Self {
        Self {
            handshake: own_handshake(),
            connect_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(5),
            in_flight_max: 1024,
            pushes_max: 1024,
            packet_bytes_max: shared::packet::BODY_BYTES_MAX,
            inflated_bytes_max: 64 * 1024 * 1024,
            deflate_from_bytes: None,
            trust: Trust::System,
            silent_intervals_max: 6,
        }
    }
}

/// How this client introduces itself when the application says nothing else.
fn own_handshake() -> HandshakeRequest {
    let sys = HandshakeSys {
        platform: std::env::consts::OS.to_owned(),
        lib_version: env!("CARGO_PKG_VERSION").to_owned(),
        client_build_number: "1".to_owned(),
        client_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    HandshakeRequest { sys, user: serde_json::Map::new() }
}

/// A push from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Its route, after the dictionary.
    pub route: Arc<str>,
    /// Its payload, inflated.
    pub payload: Bytes,
}

/// Receives pushes in the order of their arrival.
///
/// Holds at most [`ConnectOptions::pushes_max`]; when it is full, newly arriving pushes are dropped and counted in
/// [`Client::dropped_pushes`], so that a slow listener delays neither answers nor heartbeats.
#[derive(Debug)]
pub struct PushReceiver(mpsc::Receiver<Push>);

impl PushReceiver {
    /// The next push; `None` after the connection ended and all were taken. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Push> {
        self.0.recv().await
    }

    /// A push that is here already.
    pub fn try_next(&mut self) -> Option<Push> {
        self.0.try_recv().ok()
    }
}

/// Who gets which push; shared by the handles and the connection's task.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    routes: Mutex<HashMap<Arc<str>, mpsc::Sender<Push>>>,
    others: Mutex<Option<mpsc::Sender<Push>>>,
    dropped: AtomicU64,
}

impl Subscriptions {
    pub(crate) fn deliver(&self, push: Push) {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = routes.get(&push.route) {
            match sender.try_send(push) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                // The subscription was given up: from now on the route is one of the others.
                Err(mpsc::error::TrySendError::Closed(push)) => {
                    routes.remove(&push.route);
                    drop(routes);
                    return self.deliver_to_others(push);
                }
            }
        }
        drop(routes);
        self.deliver_to_others(push);
    }

    fn deliver_to_others(&self, push: Push) {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let is_taken = others.as_ref().is_some_and(|others| others.try_send(push).is_ok());
        if !is_taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends every receiver.
    pub(crate) fn close(&self) {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.others.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[derive(Debug)]
struct Inner {
    transport: Transport,
    commands: mpsc::Sender<Command>,
    closed: watch::Receiver<Option<CloseCause>>,
    subscriptions: Arc<Subscriptions>,
    others: Mutex<Option<PushReceiver>>,
    dictionary: Arc<Dictionary>,
    serializer: String,
    heartbeat: Duration,
    last_id: AtomicU32,
    turns: Semaphore,
    deflater: Mutex<Option<Deflater>>,
    options: ConnectOptions,
}

/// A connection to a server; clones share it.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

impl Client {
    /// Connects to `host:port`, `tcp://host:port` or `ws://host:port/path`, or with TLS to `tls://` or `wss://`; without
    /// a scheme it is TCP. Returns after the handshake was accepted and acknowledged. Must be called on a tokio runtime.
    pub async fn connect(server: &str, options: ConnectOptions) -> Result<Self, ConnectError> {
        let address: Address = server.parse()?;
        Self::connect_to(&address, address.transport.unwrap_or(Transport::Tcp), options).await
    }

    /// The same for a parsed address and a transport of the caller's choice.
    pub async fn connect_to(
        address: &Address,
        transport: Transport,
        options: ConnectOptions,
    ) -> Result<Self, ConnectError> {
        let timeout = options.connect_timeout;
        let connecting = async {
            let socket = TcpStream::connect((address.host.as_str(), address.port)).await?;
            socket.set_nodelay(true)?;
            if address.is_secured {
                let stream = options.trust.secure(socket, &address.host).await?;
                return Self::open(stream, transport, address, options).await;
            }
            Self::open(socket, transport, address, options).await
        };
        tokio::time::timeout(timeout, connecting)
            .await
            .map_err(|_| ConnectError::Timeout(timeout))?
    }

    /// Connects without knowing the transport, as Pitaya's CLI does: WebSocket first, then TCP. A server that is not
    /// one of them drops the wrong first bytes at once (client protocol 2.3); `probe_timeout` bounds one that waits.
    pub async fn probe(
        address: &Address,
        probe_timeout: Duration,
        options: ConnectOptions,
    ) -> Result<Self, ConnectError> {
        let as_websocket = ConnectOptions { connect_timeout: probe_timeout, ..options.clone() };
        match Self::connect_to(address, Transport::WebSocket, as_websocket).await {
            // It is a WebSocket server, and it said no.
            Err(error @ ConnectError::Refused { .. }) => Err(error),
            Err(_) => Self::connect_to(address, Transport::Tcp, options).await,
            connected => connected,
        }
    }

    /// Speaks over a stream that is connected already, and secured where it has to be. `address` serves the WebSocket upgrade.
    pub async fn open<S>(
        stream: S,
        transport: Transport,
        address: &Address,
        options: ConnectOptions,
    ) -> Result<Self, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let established = connection::establish(stream, transport, address, &options).await?;
        let (commands, commands_receiver) = mpsc::channel(COMMANDS_MAX);
        let (closed_sender, closed) = watch::channel(None);
        let (others_sender, others) = mpsc::channel(options.pushes_max.max(1));
        let subscriptions = Arc::new(Subscriptions {
            routes: Mutex::new(HashMap::new()),
            others: Mutex::new(Some(others_sender)),
            dropped: AtomicU64::new(0),
        });
        let inner = Inner {
            transport,
            commands,
            closed,
            subscriptions: Arc::clone(&subscriptions),
            others: Mutex::new(Some(PushReceiver(others))),
            dictionary: Arc::clone(&established.dictionary),
            serializer: established.serializer.clone(),
            heartbeat: established.heartbeat,
            last_id: AtomicU32::new(0),
            turns: Semaphore::new(options.in_flight_max.max(1)),
            deflater: Mutex::new(None),
            options,
        };
        tokio::spawn(established.run(commands_receiver, subscriptions, closed_sender));
        Ok(Self(Arc::new(inner)))
    }

    /// Sends a request and waits for its answer. Requests may run side by side; each finds its answer by its id.
    pub async fn request(&self, route: &str, payload: &[u8]) -> Result<Bytes, RequestError> {
        self.request_within(route, payload, self.0.options.request_timeout).await
    }

    /// The same with a timeout of the caller's choice. Dropping the future gives the answer up.
    pub async fn request_within(
        &self,
        route: &str,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Bytes, RequestError> {
        let answered = async {
            // The semaphore is never closed; if it were, there would be no bound, nothing worse.
            let _turn = self.0.turns.acquire().await.ok();
            let id = self.next_id();
            let bytes = self.encode(MessageType::Request, id, route, payload)?;
            let (reply, answer) = oneshot::channel();
            self.command(Command::Request { id, bytes, reply }).await?;
            match answer.await {
                Ok(result) => result,
                Err(_) => Err(self.closed().await.into()),
            }
        };
        tokio::time::timeout(timeout, answered).await.map_err(|_| RequestError::Timeout)?
    }

    /// Sends a notify. Returns when the connection's task has taken it; the server confirms nothing.
    pub async fn notify(&self, route: &str, payload: &[u8]) -> Result<(), RequestError> {
        let bytes = self.encode(MessageType::Notify, 0, route, payload)?;
        self.command(Command::Send { bytes }).await
    }

    /// Pushes with this route from now on. A second subscription of one route replaces the first.
    pub fn subscribe(&self, route: &str) -> PushReceiver {
        let (sender, receiver) = mpsc::channel(self.0.options.pushes_max.max(1));
        // After the end nobody would ever close the receiver.
        if self.0.closed.borrow().is_none() {
            let mut routes =
                self.0.subscriptions.routes.lock().unwrap_or_else(PoisonError::into_inner);
            routes.insert(route.into(), sender);
        }
        PushReceiver(receiver)
    }

    /// Pushes whose route nobody subscribed to, from the first of the connection on; `None` if they were taken before.
    pub fn take_pushes(&self) -> Option<PushReceiver> {
        self.0.others.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Pushes that were dropped because a receiver was full or gone.
    pub fn dropped_pushes(&self) -> u64 {
        self.0.subscriptions.dropped.load(Ordering::Relaxed)
    }

    /// Waits for the end of the connection, and says why it ended.
    pub async fn closed(&self) -> CloseCause {
        let mut closed = self.0.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or(CloseCause::Disconnected),
            // The task was dropped with its runtime.
            Err(_) => CloseCause::Disconnected,
        }
    }

    /// Why the connection ended, if it did.
    pub fn close_cause(&self) -> Option<CloseCause> {
        self.0.closed.borrow().clone()
    }

    /// Sends what is queued, closes, and waits until that is done. Requests without answer fail.
    pub async fn disconnect(&self) {
        if self.command(Command::Disconnect).await.is_ok() {
            self.closed().await;
        }
    }

    /// How packets travel.
    pub fn transport(&self) -> Transport {
        self.0.transport
    }

    /// The serializer that the server announced: `json`, `protobuf`, or a name of its own.
    pub fn serializer(&self) -> &str {
        &self.0.serializer
    }

    /// The heartbeat interval that the server announced; zero = none.
    pub fn heartbeat(&self) -> Duration {
        self.0.heartbeat
    }

    /// The routes that the server announced codes for.
    pub fn dictionary(&self) -> &Dictionary {
        &self.0.dictionary
    }

    async fn command(&self, command: Command) -> Result<(), RequestError> {
        match self.0.commands.send(command).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.closed().await.into()),
        }
    }

    /// 1 to 2^32-2 and then 1 again, which is what libpitaya uses; 0 would ask for no answer (client protocol 3.9).
    fn next_id(&self) -> u64 {
        loop {
            let id = self.0.last_id.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if id != 0 && id != u32::MAX {
                return u64::from(id);
            }
        }
    }

    fn encode(
        &self,
        kind: MessageType,
        id: u64,
        route: &str,
        payload: &[u8],
    ) -> Result<Vec<u8>, EncodeError> {
        let mut head = Head { kind, id, route, is_compressed: false, is_error: false };
        let mut out = Vec::new();
        let (transport, dictionary) = (self.0.transport, &self.0.dictionary);
        if let Some(threshold_bytes) = self.0.options.deflate_from_bytes {
            let mut deflater = self.0.deflater.lock().unwrap_or_else(PoisonError::into_inner);
            let deflater = deflater.get_or_insert_with(Deflater::new);
            if let Some(deflated) = deflater.deflate(payload, threshold_bytes) {
                head.is_compressed = true;
                framing::append_message(transport, &head, deflated, dictionary, &mut out)?;
                return Ok(out);
            }
        }
        framing::append_message(transport, &head, payload, dictionary, &mut out)?;
        Ok(out)
    }
}

/// The address of a connected peer, for callers of [`Client::open`] that hold nothing else.
impl From<SocketAddr> for Address {
    fn from(peer: SocketAddr) -> Self {
        Self {
            transport: None,
            is_secured: false,
            host: peer.ip().to_string(),
            port: peer.port(),
            path: "/".into(),
        }
    }
}
