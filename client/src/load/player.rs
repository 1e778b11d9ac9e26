//! One simulated player: a nonblocking socket, and what is on the way over it.
//!
//! A player reacts; it never polls or waits, and sends no request by itself: that is the event loop's plan. It is small
//! and keeps no buffer while nothing is on the way, so that one thread can hold ten thousand.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use mio::net::TcpStream;
use shared::message::{Head, MessageType};
use shared::packet::{self, PacketType};

use super::company::{Cause, Company, JOIN_ID, handle_greeting, handle_join, handle_packet};
use super::tally::Pending;
use crate::address::Transport;
use crate::error::CODE_TIMEOUT;
use crate::framing::{self, Framing, Received};
use crate::upgrade::UpgradeRequest;

/// From the connect to the accepted handshake.
const CONNECT_TIMEOUT_NS: u64 = 10_000_000_000;

/// Unsent bytes above which a player gets no more requests.
const OUT_BYTES_MAX: usize = 256 * 1024;
/// Memory that a player may keep for output when nothing is left in it.
const OUT_BYTES_KEPT: usize = 4 * 1024;

/// How far a connection is.
#[derive(Debug)]
enum Stage {
    Connecting,
    /// The upgrade is out; with what came of its answer.
    Upgrading(Box<(UpgradeRequest, Vec<u8>)>),
    /// The handshake is out.
    Greeting,
    /// The request to join is out.
    Joining,
    Ready,
}

/// One player.
#[derive(Debug)]
pub(crate) struct Player {
    socket: TcpStream,
    framing: Framing,
    stage: Stage,
    out: Vec<u8>,
    out_start: usize,
    /// In the order of sending.
    pending: VecDeque<Pending>,
    last_id: u32,
    /// Counted from 0, over all threads.
    number: u32,
    began_ns: u64,
    heartbeat_due_ns: u64,
    /// Waits in the event loop's list of players with room; the loop's to keep.
    pub(crate) is_listed: bool,
}

impl Player {
    pub(crate) fn new(socket: TcpStream, transport: Transport, number: u32, now_ns: u64) -> Self {
        Self {
            socket,
            framing: Framing::new(transport, packet::BODY_BYTES_MAX),
            stage: Stage::Connecting,
            out: Vec::new(),
            out_start: 0,
            pending: VecDeque::new(),
            last_id: 0,
            number,
            began_ns: now_ns,
            heartbeat_due_ns: u64::MAX,
            is_listed: false,
        }
    }

    pub(crate) fn socket_mut(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    pub(crate) fn pending(&self) -> &VecDeque<Pending> {
        &self.pending
    }

    /// Whether one more request may go out.
    pub(crate) fn has_room(&self, company: &Company) -> bool {
        self.is_ready()
            && self.number < company.senders
            && self.pending.len() < company.in_flight_max
            && self.out.len() < OUT_BYTES_MAX
    }

    /// The socket can be written to: for the first time when it is connected.
    pub(crate) fn handle_writable(&mut self, company: &mut Company) -> Result<(), Cause> {
        if !matches!(self.stage, Stage::Connecting) {
            return Ok(());
        }
        if let Some(error) = self.socket.take_error().ok().flatten() {
            return Err(name_of(&error));
        }
        match self.socket.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
            Err(error) => return Err(name_of(&error)),
        }
        if company.transport == Transport::WebSocket {
            let request = UpgradeRequest::new(&company.authority, &company.path);
            self.out.extend_from_slice(request.bytes());
            self.stage = Stage::Upgrading(Box::new((request, Vec::new())));
            return Ok(());
        }
        self.greet(company)
    }

    fn greet(&mut self, company: &Company) -> Result<(), Cause> {
        self.stage = Stage::Greeting;
        framing::append_packet(
            company.transport,
            PacketType::Handshake,
            &company.handshake,
            &mut self.out,
        )
        .map_err(|_| Cause::Borrowed("handshake-too-large"))
    }

    /// Reads what there is into `buffer` and handles it. `is_ending` = the peer has closed its direction, so the
    /// end must be read now: no further event will come for it.
    pub(crate) fn handle_readable(
        &mut self,
        company: &mut Company,
        buffer: &mut [u8],
        is_ending: bool,
        clock: impl Fn() -> u64,
    ) -> Result<(), Cause> {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err(Cause::Borrowed("ended")),
                Ok(read_bytes) => {
                    company.tally.bytes_received += read_bytes as u64;
                    self.handle_bytes(
                        company,
                        buffer.get_mut(..read_bytes).unwrap_or_default(),
                        clock(),
                    )?;
                    // A read that left room has emptied the socket; one more would only say so.
                    if read_bytes < buffer.len() && !is_ending {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(name_of(&error)),
            }
        }
    }

    fn handle_bytes(
        &mut self,
        company: &mut Company,
        bytes: &mut [u8],
        now_ns: u64,
    ) -> Result<(), Cause> {
        match &mut self.stage {
            Stage::Connecting => Err(Cause::Borrowed("protocol")),
            Stage::Upgrading(upgrade) => {
                let (request, input) = upgrade.as_mut();
                input.extend_from_slice(bytes);
                let answer = request.handle_response(input);
                let head_bytes = match answer {
                    Ok(Some(head_bytes)) => head_bytes,
                    Ok(None) => return Ok(()),
                    Err(_) => return Err(Cause::Borrowed("upgrade-refused")),
                };
                let mut rest = input.split_off(head_bytes);
                self.greet(company)?;
                self.handle_frames(company, &mut rest, now_ns)
            }
            Stage::Greeting | Stage::Joining | Stage::Ready => {
                self.handle_frames(company, bytes, now_ns)
            }
        }
    }

    fn handle_frames(
        &mut self,
        company: &mut Company,
        bytes: &mut [u8],
        now_ns: u64,
    ) -> Result<(), Cause> {
        let Self { framing, stage, out, pending, began_ns, heartbeat_due_ns, .. } = self;
        let was_ready = matches!(stage, Stage::Ready);
        let mut acknowledges = false;
        let mut answers = Vec::new();
        let mut result = Ok(());
        let framed = framing.handle_bytes(bytes, &mut answers, &mut |received| {
            if result.is_err() {
                return;
            }
            result = match (received, &*stage) {
                (Received::Packet(packet), Stage::Ready) => {
                    handle_packet(company, packet, pending, now_ns)
                }
                (Received::Packet(packet), Stage::Joining) => handle_join(company, packet, now_ns)
                    .map(|is_joined| {
                        if is_joined {
                            *stage = Stage::Ready;
                        }
                    }),
                (Received::Packet(packet), _) => handle_greeting(company, packet).map(|()| {
                    let joins = company.join.is_some();
                    *stage = if joins { Stage::Joining } else { Stage::Ready };
                    acknowledges = true;
                    company.tally.connect_ns.saturating_record(now_ns.saturating_sub(*began_ns));
                    *heartbeat_due_ns = next_heartbeat(now_ns, company.heartbeat_ns);
                }),
                (Received::Close { .. }, _) => Err(Cause::Borrowed("close-frame")),
            };
        });
        out.append(&mut answers);
        result?;
        framed.map_err(|_| Cause::Borrowed("protocol"))?;
        if acknowledges {
            self.append_empty(company.transport, PacketType::HandshakeAck);
            self.join(company)?;
        }
        if self.is_ready() && !was_ready {
            company.tally.connected += 1;
        }
        Ok(())
    }

    fn append_empty(&mut self, transport: Transport, kind: PacketType) {
        // A packet without a body is never too large.
        let _ = framing::append_packet(transport, kind, &[], &mut self.out);
    }

    /// Asks for what each player asks for first, if for anything.
    fn join(&mut self, company: &Company) -> Result<(), Cause> {
        let Some(join) = &company.join else { return Ok(()) };
        self.last_id = JOIN_ID;
        let head = Head {
            kind: MessageType::Request,
            id: u64::from(JOIN_ID),
            route: &join.route,
            is_compressed: false,
            is_error: false,
        };
        let payload = join.payload.replace("{n}", &self.number.to_string());
        let dictionary = &company.dictionary;
        framing::append_message(
            company.transport,
            &head,
            payload.as_bytes(),
            dictionary,
            &mut self.out,
        )
        .map_err(|_| Cause::Borrowed("encode"))
    }

    /// Queues one request or notify that was due then.
    pub(crate) fn send(
        &mut self,
        company: &mut Company,
        due_ns: u64,
        now_ns: u64,
    ) -> Result<(), Cause> {
        let is_notify = company.kind == MessageType::Notify;
        if !is_notify {
            // 0 asks for no answer.
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        }
        let id = if is_notify { 0 } else { self.last_id };
        let head = Head {
            kind: company.kind,
            id: u64::from(id),
            route: &company.route,
            is_compressed: false,
            is_error: false,
        };
        let (transport, dictionary) = (company.transport, &company.dictionary);
        framing::append_message(transport, &head, &company.payload, dictionary, &mut self.out)
            .map_err(|_| Cause::Borrowed("encode"))?;
        if is_notify {
            company.tally.handle_notified(due_ns, now_ns);
        } else {
            company.tally.handle_sent(due_ns, now_ns);
            self.pending.push_back(Pending { id, due_ns, sent_ns: now_ns });
        }
        Ok(())
    }

    /// Writes what is queued, as far as the socket takes it.
    pub(crate) fn flush(&mut self, company: &mut Company) -> Result<(), Cause> {
        if matches!(self.stage, Stage::Connecting) {
            return Ok(());
        }
        while let Some(unsent) = self.out.get(self.out_start..).filter(|unsent| !unsent.is_empty())
        {
            match self.socket.write(unsent) {
                Ok(written_bytes) => {
                    self.out_start += written_bytes;
                    company.tally.bytes_sent += written_bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(name_of(&error)),
            }
        }
        self.out.clear();
        self.out.shrink_to(OUT_BYTES_KEPT);
        self.out_start = 0;
        Ok(())
    }

    /// What is due by time: heartbeats, requests to give up, the end of patience with a connect.
    pub(crate) fn handle_tick(&mut self, company: &mut Company, now_ns: u64) -> Result<(), Cause> {
        if !self.is_ready() {
            let waited_ns = now_ns.saturating_sub(self.began_ns);
            let is_late = waited_ns > CONNECT_TIMEOUT_NS;
            return if is_late { Err(Cause::Borrowed("connect-timeout")) } else { Ok(()) };
        }
        if now_ns >= self.heartbeat_due_ns {
            self.append_empty(company.transport, PacketType::Heartbeat);
            self.heartbeat_due_ns = next_heartbeat(now_ns, company.heartbeat_ns);
            company.tally.heartbeats += 1;
        }
        while let Some(oldest) = self.pending.front().copied() {
            if now_ns.saturating_sub(oldest.sent_ns) < company.timeout_ns {
                break;
            }
            self.pending.pop_front();
            company.tally.handle_failed(&oldest, CODE_TIMEOUT);
        }
        self.flush(company)
    }
}

fn next_heartbeat(now_ns: u64, heartbeat_ns: u64) -> u64 {
    if heartbeat_ns == 0 { u64::MAX } else { now_ns.saturating_add(heartbeat_ns) }
}

fn name_of(error: &io::Error) -> Cause {
    Cause::Borrowed(match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::ConnectionReset => "reset",
        io::ErrorKind::BrokenPipe => "broken-pipe",
        io::ErrorKind::TimedOut => "network-timeout",
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => "no-free-port",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
        _ => return Cause::Owned(error.to_string()),
    })
}
