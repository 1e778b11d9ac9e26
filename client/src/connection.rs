//! The task that owns one connection's stream: handshake, heartbeats, answers to their requests, pushes to their
//! receivers.
//!
//! It is generic over the stream, so TLS needs nothing here. It never waits for an application: receivers that are full
//! lose pushes, and requests whose caller went away are forgotten at the next heartbeat. Output is bounded by taking
//! no more commands while `OUT_BYTES_MAX` wait to be written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::compression::Inflater;
use shared::dictionary::Dictionary;
use shared::handshake::{self, CODE_ACCEPTED};
use shared::message::{self, MessageType};
use shared::packet::{Packet, PacketType};
use shared::websocket::Opcode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::address::{Address, Transport};
use crate::client::{ConnectOptions, Push, Subscriptions};
use crate::error::{CloseCause, ConnectError, RequestError, decode_error};
use crate::framing::{self, Framing, Received};
use crate::upgrade::UpgradeRequest;

const READ_BYTES: usize = 16 * 1024;
const OUT_BYTES_MAX: usize = 1024 * 1024;
/// How long the last bytes may take when this side closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often forgotten requests are looked for when the server announced no heartbeats.
const IDLE_TICK: Duration = Duration::from_secs(30);

type Answer = oneshot::Sender<Result<Bytes, RequestError>>;

/// What handles ask of the task.
#[derive(Debug)]
pub(crate) enum Command {
    /// Send, and keep the way back for the answer with this id.
    Request { id: u64, bytes: Vec<u8>, reply: Answer },
    /// Send.
    Send { bytes: Vec<u8> },
    /// Send what is queued, then close.
    Disconnect,
}

/// A connection after its handshake, before its task runs.
#[derive(Debug)]
pub(crate) struct Established<S> {
    stream: S,
    framing: Framing,
    early_bodies: Vec<(PacketType, Vec<u8>)>,
    inflated_bytes_max: usize,
    silent_intervals_max: u32,
    pub(crate) dictionary: Arc<Dictionary>,
    pub(crate) serializer: String,
    pub(crate) heartbeat: Duration,
}

/// Upgrade (for WebSocket), handshake and acknowledgement.
pub(crate) async fn establish<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    transport: Transport,
    address: &Address,
    options: &ConnectOptions,
) -> Result<Established<S>, ConnectError> {
    let mut framing = Framing::new(transport, options.packet_bytes_max);
    let mut input = Vec::with_capacity(READ_BYTES);
    if transport == Transport::WebSocket {
        let request = UpgradeRequest::new(&address.authority(), &address.path);
        send(&mut stream, request.bytes()).await?;
        loop {
            read_more(&mut stream, &mut input).await?;
            if let Some(head_bytes) = request.handle_response(&input)? {
                input.drain(..head_bytes);
                break;
            }
        }
    }
    let mut out = Vec::new();
    let body = handshake::encode_request(&options.handshake);
    framing::append_packet(transport, PacketType::Handshake, &body, &mut out)?;
    send(&mut stream, &out).await?;
    let mut packets: Vec<(PacketType, Vec<u8>)> = Vec::new();
    while packets.is_empty() {
        if input.is_empty() {
            read_more(&mut stream, &mut input).await?;
        }
        let mut is_closed = false;
        out.clear();
        framing.handle_bytes(&mut input, &mut out, &mut |received| match received {
            Received::Packet(packet) => packets.push((packet.kind, packet.body.to_vec())),
            Received::Close { .. } => is_closed = true,
        })?;
        input.clear();
        send(&mut stream, &out).await?;
        if is_closed && packets.is_empty() {
            return Err(ConnectError::Closed);
        }
    }
    let (kind, body) = packets.remove(0);
    if kind != PacketType::Handshake {
        return Err(ConnectError::UnexpectedPacket);
    }
    let response = handshake::decode_response(&body)?;
    if response.code != CODE_ACCEPTED {
        return Err(ConnectError::Refused { code: response.code });
    }
    out.clear();
    framing::append_packet(transport, PacketType::HandshakeAck, &[], &mut out)?;
    send(&mut stream, &out).await?;
    Ok(Established {
        stream,
        framing,
        early_bodies: packets,
        inflated_bytes_max: options.inflated_bytes_max,
        silent_intervals_max: options.silent_intervals_max,
        dictionary: Arc::new(response.dictionary),
        serializer: response.serializer,
        heartbeat: Duration::from_secs(response.heartbeat_s),
    })
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), ConnectError> {
    stream.write_all(bytes).await?;
    Ok(stream.flush().await?)
}

async fn read_more<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut Vec<u8>,
) -> Result<(), ConnectError> {
    match stream.read_buf(input).await {
        Ok(0) => Err(ConnectError::Closed),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
            Err(ConnectError::Closed)
        }
        Err(error) => Err(error.into()),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Established<S> {
    /// Runs the connection to its end, which it announces on `closed` after every request without answer failed.
    pub(crate) async fn run(
        self,
        commands: mpsc::Receiver<Command>,
        subscriptions: Arc<Subscriptions>,
        closed: watch::Sender<Option<CloseCause>>,
    ) {
        let transport = self.framing.transport();
        let mut state = State {
            transport,
            framing: self.framing,
            pending: HashMap::new(),
            out: Vec::new(),
            inflater: Inflater::new(),
            inflated_bytes_max: self.inflated_bytes_max,
            dictionary: self.dictionary,
            serializer: self.serializer,
            subscriptions,
            heard: Instant::now(),
        };
        let early = self
            .early_bodies
            .iter()
            .try_for_each(|(kind, body)| state.handle_packet(Packet { kind: *kind, body }));
        let cause = match early {
            Ok(()) => {
                let silence = self.heartbeat * self.silent_intervals_max;
                state.run(self.stream, commands, self.heartbeat, silence).await
            }
            Err(cause) => cause,
        };
        for (_, answer) in state.pending.drain() {
            // The caller may have gone.
            let _ = answer.send(Err(RequestError::Closed(cause.clone())));
        }
        // The cause first: a receiver that ends shall find it.
        closed.send_replace(Some(cause));
        state.subscriptions.close();
    }
}

/// Everything of a running connection but its stream and commands.
struct State {
    transport: Transport,
    framing: Framing,
    pending: HashMap<u64, Answer>,
    out: Vec<u8>,
    inflater: Inflater,
    inflated_bytes_max: usize,
    dictionary: Arc<Dictionary>,
    serializer: String,
    subscriptions: Arc<Subscriptions>,
    heard: Instant,
}

impl State {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: S,
        mut commands: mpsc::Receiver<Command>,
        heartbeat: Duration,
        silence: Duration,
    ) -> CloseCause {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut input = vec![0; READ_BYTES];
        let period = if heartbeat.is_zero() { IDLE_TICK } else { heartbeat };
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                read = reader.read(&mut input) => {
                    let read_bytes = match read {
                        Ok(0) => return CloseCause::Ended,
                        Ok(read_bytes) => read_bytes,
                        Err(error) => return CloseCause::Failed(error.to_string().into()),
                    };
                    let bytes = input.get_mut(..read_bytes).unwrap_or_default();
                    if let Err(cause) = self.handle_bytes(bytes) {
                        self.finish(&mut reader, &mut writer).await;
                        return cause;
                    }
                }
                written = writer.write(&self.out), if !self.out.is_empty() => match written {
                    Ok(0) => return CloseCause::Failed("nothing can be written".into()),
                    Ok(written_bytes) => {
                        self.out.drain(..written_bytes);
                        // Streams that buffer, as TLS does, hold the end back until asked.
                        if self.out.is_empty() && let Err(error) = writer.flush().await {
                            return CloseCause::Failed(error.to_string().into());
                        }
                    }
                    Err(error) => return CloseCause::Failed(error.to_string().into()),
                },
                command = commands.recv(), if self.out.len() < OUT_BYTES_MAX => {
                    if !self.handle_command(command) {
                        self.finish(&mut reader, &mut writer).await;
                        return CloseCause::Disconnected;
                    }
                }
                _ = ticks.tick() => {
                    if !silence.is_zero() && self.heard.elapsed() > silence {
                        return CloseCause::Silent;
                    }
                    self.handle_tick(!heartbeat.is_zero());
                }
            }
        }
    }

    fn handle_tick(&mut self, beats: bool) {
        self.pending.retain(|_, answer| !answer.is_closed());
        if beats {
            // A packet without body is never too large.
            let _ =
                framing::append_packet(self.transport, PacketType::Heartbeat, &[], &mut self.out);
        }
    }

    /// False when the connection is to be closed.
    fn handle_command(&mut self, command: Option<Command>) -> bool {
        match command {
            Some(Command::Request { id, bytes, reply }) => {
                self.pending.insert(id, reply);
                self.out.extend_from_slice(&bytes);
            }
            Some(Command::Send { bytes }) => self.out.extend_from_slice(&bytes),
            Some(Command::Disconnect) | None => return false,
        }
        true
    }

    fn handle_bytes(&mut self, bytes: &mut [u8]) -> Result<(), CloseCause> {
        self.heard = Instant::now();
        let mut framing = std::mem::replace(&mut self.framing, Framing::new(self.transport, 0));
        let mut answers = Vec::new();
        let mut result = Ok(());
        let framed = framing.handle_bytes(bytes, &mut answers, &mut |received| {
            // After the first that ends the connection, the rest of the bytes has no meaning.
            if result.is_ok() {
                result = match received {
                    Received::Packet(packet) => self.handle_packet(packet),
                    Received::Close { code } => Err(CloseCause::CloseFrame { code }),
                };
            }
        });
        self.framing = framing;
        self.out.append(&mut answers);
        result?;
        framed.map_err(broken)
    }

    fn handle_packet(&mut self, packet: Packet<'_>) -> Result<(), CloseCause> {
        match packet.kind {
            PacketType::Heartbeat => Ok(()),
            PacketType::Data => self.handle_message(packet.body),
            PacketType::Kick => Err(CloseCause::Kicked { reason: packet.body.into() }),
            PacketType::Handshake | PacketType::HandshakeAck => {
                Err(broken(format_args!("a packet of type {:?} after the handshake", packet.kind)))
            }
        }
    }

    fn handle_message(&mut self, body: &[u8]) -> Result<(), CloseCause> {
        let message = message::decode(body, &self.dictionary).map_err(broken)?;
        let payload = if message.is_compressed {
            self.inflater.inflate(message.payload, self.inflated_bytes_max).map_err(broken)?
        } else {
            message.payload
        };
        match message.kind {
            MessageType::Push => {
                let route: Arc<str> = String::from_utf8_lossy(message.route).into();
                let payload = Bytes::copy_from_slice(payload);
                self.subscriptions.deliver(Push { route, payload });
            }
            // An answer that nobody waits for is one whose caller gave up.
            MessageType::Response => {
                if let Some(answer) = self.pending.remove(&message.id) {
                    let result = if message.is_error {
                        Err(RequestError::Reply(decode_error(payload, &self.serializer)))
                    } else {
                        Ok(Bytes::copy_from_slice(payload))
                    };
                    let _ = answer.send(result);
                }
            }
            MessageType::Request | MessageType::Notify => {
                return Err(broken(format_args!("a {:?} from a server", message.kind)));
            }
        }
        Ok(())
    }

    /// Writes what is left, ends this direction, with a close frame on WebSocket, and waits for the server's end:
    /// closing with bytes unread would reset the connection and could destroy what was just written.
    async fn finish<R, W>(&mut self, reader: &mut R, writer: &mut W)
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.transport == Transport::WebSocket {
            framing::append_frame(Opcode::Close, &1000_u16.to_be_bytes(), &mut self.out);
        }
        let last = async {
            // Read meanwhile, or a server that writes before it reads would wait for this side and this side for it.
            let mut nowhere = tokio::io::sink();
            let read = tokio::io::copy(reader, &mut nowhere);
            let write = async {
                writer.write_all(&self.out).await?;
                writer.shutdown().await
            };
            tokio::join!(read, write)
        };
        // The end is announced either way; the peer may be gone.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, last).await;
        self.out.clear();
    }
}

fn broken(cause: impl std::fmt::Display) -> CloseCause {
    CloseCause::Broken(format!("{cause}").into())
}
