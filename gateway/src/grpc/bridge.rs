//! A bridge: the far end of one bus's connection. To the bus it is a NATS server; behind it are calls over gRPC.
//!
//! What a bus asks of a server leaves as a call on that server, in the order of asking; the answer comes back on the
//! reply subject, and "no responders" where the call provably reached nobody. It never judges and never keeps: retries,
//! deadlines and windows are the reactor's. Invariant: calls under way and bytes in hand are bounded; above the bounds
//! the bus is not read from, which fills its own buffer, and that refuses requests.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use shared::nats::encoder;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use worker::grpc::{GrpcLink, MESSAGE_BYTES_MAX};
use worker::{BoxFuture, Link, LinkError};

use super::board::{Board, Delivery, Subscriber};
use super::lines::{BadLine, Operation, parse};

/// Calls of one bus under way.
const CALLS_MAX: usize = 16 * 1024;
/// Bytes for the bus; above that nothing is taken that makes more of them.
const OUT_BYTES_MAX: usize = 1 << 20;
/// Messages of other servers that wait for one bus.
const DELIVERIES_MAX: usize = 1024;
/// Room for one read.
const READ_BYTES: usize = 64 * 1024;

/// What the bridges of a process have in common.
pub(super) struct Landing {
    /// Which bus wants what.
    pub(super) board: Arc<Board>,
    /// The way to other servers, once they are known.
    pub(super) link: Arc<OnceLock<Arc<GrpcLink>>>,
    /// Limit of one call.
    pub(super) request_timeout: Duration,
    /// Where binds are announced; over gRPC the writer of the binding storage does that.
    pub(super) bindings_subject: String,
}

/// One bridge.
pub(super) struct Bridge {
    landing: Arc<Landing>,
    number: u64,
    deliveries: mpsc::Sender<Delivery>,
    /// Subjects by subscription number.
    subjects: HashMap<u64, Box<[u8]>>,
    /// Front of the reply subjects of the bus, and the number that answers come under.
    inbox: Option<(Box<[u8]>, u64)>,
    calls: FuturesUnordered<BoxFuture<'static, Answer>>,
    out: BytesMut,
}

/// What became of a call; nobody waits for it where there is no reply subject.
struct Answer {
    reply: Option<Bytes>,
    outcome: Result<Bytes, LinkError>,
}

impl Bridge {
    /// Serves a bus until it closes its connection, and then waits for the calls that it made.
    pub(super) async fn run(landing: Arc<Landing>, stream: UnixStream) {
        let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
        let mut bridge = Self {
            number: landing.board.next_number(),
            landing,
            deliveries,
            subjects: HashMap::new(),
            inbox: None,
            calls: FuturesUnordered::new(),
            out: BytesMut::new(),
        };
        if let Err(error) = bridge.serve(&stream, delivered).await {
            tracing::error!(%error, "the way from a reactor to gRPC broke; it is made anew");
        }
        // The bus need not wait for what is still to be carried out.
        drop(stream);
        for (sid, subject) in std::mem::take(&mut bridge.subjects) {
            bridge.landing.board.unsubscribe(&subject, bridge.number, sid);
        }
        while bridge.calls.next().await.is_some() {}
    }

    async fn serve(
        &mut self,
        stream: &UnixStream,
        mut delivered: mpsc::Receiver<Delivery>,
    ) -> io::Result<()> {
        let info = format!(
            "INFO {{\"server_id\":\"grpc\",\"version\":\"2.10.0\",\"proto\":1,\"headers\":true,\
             \"max_payload\":{MESSAGE_BYTES_MAX}}}\r\n"
        );
        self.out.extend_from_slice(info.as_bytes());
        let mut input = BytesMut::new();
        let mut batch = Vec::new();
        loop {
            self.write(stream)?;
            let has_room = self.out.len() < OUT_BYTES_MAX;
            tokio::select! {
                ready = stream.readable(), if self.calls.len() < CALLS_MAX => {
                    ready?;
                    input.reserve(READ_BYTES);
                    match stream.try_read_buf(&mut input) {
                        Ok(0) => return Ok(()),
                        Ok(_) => self.handle(&mut input)?,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        // It had not read everything when it closed.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                            return Ok(());
                        }
                        Err(error) => return Err(error),
                    }
                }
                Some(answer) = self.calls.next(), if has_room && !self.calls.is_empty() => {
                    self.write_answer(&answer);
                    while self.out.len() < OUT_BYTES_MAX
                        && let Some(Some(answer)) = self.calls.next().now_or_never()
                    {
                        self.write_answer(&answer);
                    }
                }
                _ = delivered.recv_many(&mut batch, DELIVERIES_MAX), if has_room => {
                    batch.drain(..).for_each(|delivery| self.write_delivery(&delivery));
                }
                ready = stream.writable(), if !self.out.is_empty() => ready?,
            }
        }
    }

    /// Writes as much as the bus takes now.
    fn write(&mut self, stream: &UnixStream) -> io::Result<()> {
        while !self.out.is_empty() {
            match stream.try_write(&self.out) {
                Ok(bytes) => self.out.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The bus has closed; the next read finds that out.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.out.clear(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn handle(&mut self, input: &mut BytesMut) -> io::Result<()> {
        loop {
            let bad = |error: BadLine| io::Error::new(io::ErrorKind::InvalidData, error);
            let Some((operation, bytes)) = parse(input).map_err(bad)? else { return Ok(()) };
            match operation {
                Operation::Connect | Operation::Pong => {}
                Operation::Ping => self.out.extend_from_slice(encoder::PONG),
                Operation::Subscribe { subject, sid } => self.subscribe(subject, sid),
                Operation::Unsubscribe { sid } => {
                    if let Some(subject) = self.subjects.remove(&sid) {
                        self.landing.board.unsubscribe(&subject, self.number, sid);
                    }
                }
                Operation::Publish { subject, reply, payload } => {
                    self.publish(subject, reply, payload);
                }
            }
            input.advance(bytes);
        }
    }

    fn subscribe(&mut self, subject: &[u8], sid: u64) {
        if let Some(inbox) = subject.strip_suffix(b"*") {
            self.inbox = Some((inbox.into(), sid));
            return;
        }
        let (bridge, deliveries) = (self.number, self.deliveries.clone());
        self.landing.board.subscribe(subject, Subscriber { bridge, sid, deliveries });
        self.subjects.insert(sid, subject.into());
    }

    fn publish(&mut self, subject: &[u8], reply: Option<&[u8]>, payload: &[u8]) {
        let Ok(subject) = std::str::from_utf8(subject) else { return };
        if self.landing.board.answer(subject, payload) || subject == self.landing.bindings_subject {
            return;
        }
        let Some(link) = self.landing.link.get() else {
            // Nobody is known before the servers are.
            return self.write_answer(&Answer {
                reply: reply.map(Bytes::copy_from_slice),
                outcome: Err(LinkError::Unreachable),
            });
        };
        if let Some(server) = subject.strip_prefix("pitaya/servers/") {
            let id = server.split_once('/').map_or("", |(_, id)| id);
            let payload = Bytes::copy_from_slice(payload);
            let call = link.call(id, payload, self.landing.request_timeout);
            let reply = reply.map(Bytes::copy_from_slice);
            self.calls.push(Box::pin(async move { Answer { reply, outcome: call.await } }));
        } else if let Err(error) = link.publish(subject, payload.to_vec()) {
            tracing::debug!(subject, %error, "a message was not sent");
        }
    }

    /// Writes an answer, if the bus waits for it: a notify is answered to nobody.
    fn write_answer(&mut self, answer: &Answer) {
        let (Some(reply), Some((inbox, sid))) = (&answer.reply, &self.inbox) else { return };
        if !reply.starts_with(inbox) {
            return;
        }
        let out = &mut self.out;
        let payload = match &answer.outcome {
            Ok(payload) => payload.clone(),
            Err(error) if error.is_undelivered() => {
                let subject = String::from_utf8_lossy(reply);
                let status = format!("HMSG {subject} {sid} 16 16\r\nNATS/1.0 503\r\n\r\n\r\n");
                return out.extend_from_slice(status.as_bytes());
            }
            // The reactor has a deadline of its own, and more to say about it.
            Err(_) => return,
        };
        write_message(reply, *sid, None, &payload, out);
    }

    fn write_delivery(&mut self, delivery: &Delivery) {
        let Delivery { subject, sid, reply, payload } = delivery;
        write_message(subject, *sid, reply.as_deref(), payload, &mut self.out);
    }
}

fn write_message(
    subject: &[u8],
    sid: u64,
    reply: Option<&str>,
    payload: &[u8],
    out: &mut BytesMut,
) {
    let reply = reply.map_or(String::new(), |reply| format!("{reply} "));
    out.reserve(subject.len() + reply.len() + payload.len() + 48);
    out.extend_from_slice(b"MSG ");
    out.extend_from_slice(subject);
    out.extend_from_slice(format!(" {sid} {reply}{}\r\n", payload.len()).as_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(encoder::CRLF);
}
