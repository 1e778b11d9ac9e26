//! A server for the tests of this crate: a few routes with fixed behaviour, on a thread a connection.
//!
//! It stands on the shared codecs, and on tungstenite for WebSocket, so that an error in the client's own framing
//! does not find its mirror image here.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod docs;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use client::address::Transport;
use serde_json::json;
use shared::compression::Deflater;
use shared::dictionary::Dictionary;
use shared::error::Serializer;
use shared::message::{self, Head, Message, MessageType};
use shared::packet::{self, PacketType};
use tungstenite::WebSocket;

/// Longest wait for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct FakeOptions {
    pub transport: Transport,
    pub routes: Vec<(&'static str, u16)>,
    pub serializer: Serializer,
    pub heartbeat_s: u64,
    /// Deflate the handshake and every answer and push.
    pub is_compressing: bool,
    pub handshake_code: u16,
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self {
            transport: Transport::Tcp,
            routes: Vec::new(),
            serializer: Serializer::Json,
            heartbeat_s: 30,
            is_compressing: false,
            handshake_code: 200,
        }
    }
}

/// What the server saw.
#[derive(Default, Clone)]
pub(crate) struct Seen {
    pub handshakes: Vec<serde_json::Value>,
    pub acks: usize,
    pub heartbeats: usize,
    /// Routes and payloads of notifies.
    pub notifies: Vec<(String, Vec<u8>)>,
    /// First bytes of every message.
    pub flags: Vec<u8>,
    pub requests: usize,
    pub pongs: usize,
    pub ended: usize,
}

pub(crate) struct FakeServer {
    pub address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

struct State {
    options: FakeOptions,
    dictionary: Dictionary,
    seen: Mutex<Seen>,
    changed: Condvar,
    sockets: Mutex<Vec<TcpStream>>,
    is_stopping: AtomicBool,
}

impl FakeServer {
    pub(crate) fn start(options: FakeOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut dictionary = Dictionary::default();
        dictionary.insert_all(options.routes.iter().copied()).unwrap();
        dictionary.for_pushes = true;
        let state = Arc::new(State {
            options,
            dictionary,
            seen: Mutex::default(),
            changed: Condvar::new(),
            sockets: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let state = Arc::clone(&state);
            move || accept(&listener, &state)
        });
        Self { address, state, acceptor: Some(acceptor) }
    }

    pub(crate) fn url(&self) -> String {
        match self.state.options.transport {
            Transport::Tcp => format!("tcp://{}", self.address),
            Transport::WebSocket => format!("ws://{}/game", self.address),
        }
    }

    /// Waits until the condition holds, and gives what was seen then.
    pub(crate) fn wait_for(&self, what: &str, condition: impl Fn(&Seen) -> bool) -> Seen {
        self.state.wait_for(what, condition)
    }

    /// The same without holding up the runtime that the client lives on.
    pub(crate) async fn until(
        &self,
        what: &'static str,
        condition: impl Fn(&Seen) -> bool + Send + 'static,
    ) -> Seen {
        let state = Arc::clone(&self.state);
        tokio::task::spawn_blocking(move || state.wait_for(what, condition)).await.unwrap()
    }

    pub(crate) fn seen(&self) -> Seen {
        self.state.seen.lock().unwrap().clone()
    }
}

impl State {
    fn wait_for(&self, what: &str, condition: impl Fn(&Seen) -> bool) -> Seen {
        let seen = self.seen.lock().unwrap();
        let (seen, wait) =
            self.changed.wait_timeout_while(seen, PATIENCE, |seen| !condition(seen)).unwrap();
        assert!(!wait.timed_out(), "waited in vain for {what}");
        seen.clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.state.is_stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        for socket in self.state.sockets.lock().unwrap().iter() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let _ = self.acceptor.take().unwrap().join();
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    let mut threads = Vec::new();
    for socket in listener.incoming() {
        if state.is_stopping.load(Ordering::SeqCst) {
            break;
        }
        let socket = socket.unwrap();
        socket.set_nodelay(true).unwrap();
        state.sockets.lock().unwrap().push(socket.try_clone().unwrap());
        let state = Arc::clone(state);
        threads.push(std::thread::spawn(move || {
            // A connection's end, of whichever kind, is nothing that the server minds.
            let _ = serve(socket, &state);
            note(&state, |seen| seen.ended += 1);
        }));
    }
    for socket in state.sockets.lock().unwrap().iter() {
        let _ = socket.shutdown(Shutdown::Both);
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

fn note(state: &State, change: impl FnOnce(&mut Seen)) {
    change(&mut state.seen.lock().unwrap());
    state.changed.notify_all();
}

enum Stream {
    Tcp(TcpStream, Vec<u8>),
    WebSocket(Box<WebSocket<TcpStream>>),
}

impl Stream {
    /// The next packet's type and body.
    fn read(&mut self, state: &State) -> io::Result<(PacketType, Vec<u8>)> {
        match self {
            Self::Tcp(socket, input) => loop {
                let decoded = packet::decode(input, packet::BODY_BYTES_MAX).map_err(other)?;
                if let Some((packet, taken)) = decoded {
                    let owned = (packet.kind, packet.body.to_vec());
                    input.drain(..taken);
                    return Ok(owned);
                }
                let mut bytes = [0; 4096];
                match socket.read(&mut bytes)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => input.extend_from_slice(&bytes[..count]),
                }
            },
            Self::WebSocket(socket) => loop {
                match socket.read().map_err(other)? {
                    tungstenite::Message::Binary(bytes) => {
                        let decoded = packet::decode(&bytes, packet::BODY_BYTES_MAX);
                        let (packet, taken) = decoded.map_err(other)?.expect("a whole packet");
                        assert_eq!(taken, bytes.len(), "one packet a message");
                        return Ok((packet.kind, packet.body.to_vec()));
                    }
                    tungstenite::Message::Pong(_) => note(state, |seen| seen.pongs += 1),
                    tungstenite::Message::Close(_) => {
                        // The answer is queued already.
                        let _ = socket.flush();
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    _ => {}
                }
            },
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(socket, _) => socket.write_all(bytes),
            Self::WebSocket(socket) => {
                socket.send(tungstenite::Message::binary(bytes.to_vec())).map_err(other)
            }
        }
    }

    /// Byte by byte on the socket itself.
    fn write_split(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(socket, _) => bytes.iter().try_for_each(|byte| socket.write_all(&[*byte])),
            Self::WebSocket(socket) => {
                // A server's frame of a short message: no mask, length in the second byte.
                assert!(bytes.len() < 126);
                let frame = [&[0x82, bytes.len() as u8], bytes].concat();
                frame.iter().try_for_each(|byte| socket.get_mut().write_all(&[*byte]))
            }
        }
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

fn serve(socket: TcpStream, state: &State) -> io::Result<()> {
    let raw = socket.try_clone()?;
    let result = serve_stream(socket, state);
    let _ = raw.shutdown(Shutdown::Both);
    result
}

fn serve_stream(socket: TcpStream, state: &State) -> io::Result<()> {
    let mut stream = match state.options.transport {
        Transport::Tcp => Stream::Tcp(socket, Vec::new()),
        Transport::WebSocket => {
            let socket =
                tungstenite::accept(socket).map_err(|error| io::Error::other(error.to_string()))?;
            Stream::WebSocket(Box::new(socket))
        }
    };
    let mut player = Player { state, deflater: Deflater::new(), held: Vec::new() };
    loop {
        let (kind, body) = stream.read(state)?;
        match kind {
            PacketType::Handshake => {
                note(state, |seen| seen.handshakes.push(serde_json::from_slice(&body).unwrap()));
                stream.write(&player.handshake_response())?;
                if state.options.handshake_code != 200 {
                    return Ok(());
                }
            }
            PacketType::HandshakeAck => note(state, |seen| seen.acks += 1),
            PacketType::Heartbeat => note(state, |seen| seen.heartbeats += 1),
            PacketType::Kick => {}
            PacketType::Data => {
                note(state, |seen| seen.flags.push(body[0]));
                let message = message::decode(&body, &state.dictionary).map_err(other)?;
                if !player.handle(&message, &mut stream)? {
                    return Ok(());
                }
            }
        }
    }
}

struct Player<'a> {
    state: &'a State,
    deflater: Deflater,
    held: Vec<u64>,
}

impl Player<'_> {
    fn handshake_response(&mut self) -> Vec<u8> {
        let options = &self.state.options;
        let routes: serde_json::Map<_, _> =
            options.routes.iter().map(|(route, code)| ((*route).to_owned(), json!(code))).collect();
        let body = json!({"code": options.handshake_code, "sys": {
            "dict": routes, "heartbeat": options.heartbeat_s, "serializer": options.serializer.name(),
        }});
        let body = body.to_string().into_bytes();
        let deflated = if options.is_compressing { self.deflater.deflate(&body, 0) } else { None };
        packet_of(PacketType::Handshake, deflated.unwrap_or(&body))
    }

    fn message(&mut self, mut head: Head<'_>, payload: &[u8]) -> Vec<u8> {
        let deflated = if self.state.options.is_compressing {
            self.deflater.deflate(payload, 0)
        } else {
            None
        };
        head.is_compressed = deflated.is_some();
        let mut body = Vec::new();
        message::encode_head(&head, &self.state.dictionary, &mut body).unwrap();
        body.extend_from_slice(deflated.unwrap_or(payload));
        packet_of(PacketType::Data, &body)
    }

    fn response(&mut self, id: u64, payload: &[u8]) -> Vec<u8> {
        self.message(client::raw::head(MessageType::Response, id, ""), payload)
    }

    fn error_response(&mut self, id: u64) -> Vec<u8> {
        let mut body = Vec::new();
        let msg = "pitaya/handler: room.test.error not found";
        self.state.options.serializer.encode_error("PIT-404", msg, [].into_iter(), &mut body);
        let head = Head { is_error: true, ..client::raw::head(MessageType::Response, id, "") };
        self.message(head, &body)
    }

    fn push(&mut self, route: &str, payload: &[u8]) -> Vec<u8> {
        self.message(client::raw::head(MessageType::Push, 0, route), payload)
    }

    fn handle_notify(
        &mut self,
        route: &str,
        payload: &[u8],
        stream: &mut Stream,
    ) -> io::Result<bool> {
        note(self.state, |seen| seen.notifies.push((route.to_owned(), payload.to_vec())));
        let push = self.push("onNotify", payload);
        stream.write(&push)?;
        Ok(true)
    }

    /// False = close.
    fn handle(&mut self, message: &Message<'_>, stream: &mut Stream) -> io::Result<bool> {
        let route = std::str::from_utf8(message.route).unwrap();
        let mut inflater = shared::compression::Inflater::new();
        let payload = if message.is_compressed {
            inflater.inflate(message.payload, 1 << 20).map_err(other)?
        } else {
            message.payload
        };
        if message.kind == MessageType::Notify {
            return self.handle_notify(route, payload, stream);
        }
        note(self.state, |seen| seen.requests += 1);
        let id = message.id;
        match route {
            "room.test.error" => {
                let packet = self.error_response(id);
                stream.write(&packet)?;
            }
            "room.test.silent" => {}
            // The answer to this one comes after the answer to the next.
            "room.test.hold" => self.held.push(id),
            "room.test.push" => {
                let push = self.push("onMessage", payload);
                let response = self.response(id, payload);
                // Both at once: the client finds two packets in one read, or in one message.
                stream.write(&[push, response].concat())?;
            }
            "room.test.split" => {
                let response = self.response(id, payload);
                stream.write_split(&response)?;
            }
            "room.test.flood" => {
                let push = self.push("onFlood", payload);
                for _ in 0..100 {
                    stream.write(&push)?;
                }
                let response = self.response(id, b"");
                stream.write(&response)?;
            }
            "room.test.kick" => {
                stream.write(&packet_of(PacketType::Kick, b""))?;
                return Ok(false);
            }
            "room.test.close" => return Ok(false),
            "room.test.garbage" => stream.write(&[9, 9, 9, 9])?,
            "room.test.ping" => {
                if let Stream::WebSocket(socket) = stream {
                    socket.send(tungstenite::Message::Ping("x".into())).map_err(other)?;
                }
                let response = self.response(id, payload);
                stream.write(&response)?;
            }
            _ => {
                let response = match route {
                    "room.test.docs" => self.response(id, &docs::documentation()),
                    "room.test.descriptors" => self.response(id, &docs::descriptors(payload)),
                    _ => self.response(id, payload),
                };
                stream.write(&response)?;
            }
        }
        if route != "room.test.hold" {
            self.release_held(stream)?;
        }
        Ok(true)
    }

    fn release_held(&mut self, stream: &mut Stream) -> io::Result<()> {
        for held in std::mem::take(&mut self.held) {
            let response = self.response(held, b"held");
            stream.write(&response)?;
        }
        Ok(())
    }
}

fn packet_of(kind: PacketType, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    packet::encode(kind, body, &mut out).unwrap();
    out
}
