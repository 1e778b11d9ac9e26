//! The TLS session of one client: bytes of the socket in, packets' bytes out, and the way back.
//!
//! rustls is driven over memory that is ours: records are opened where they lie in the receive buffer, and only the
//! front of a record that was cut is kept, so an idle connection holds no buffer at all. The session is a value and
//! moves between reactors as it is. The invariant: what [`TlsSession::take_output`] gives is in the order in which it
//! has to leave, and nothing is sealed behind a failure or behind our own close_notify.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

/// The longest record (RFC 5246, 6.2.3: 2^14 + 2048) and its header. The whole of a client's first flight has to fit
/// into as much, too; real ones are below 2 KiB.
const PARTIAL_BYTES_MAX: usize = 5 + 16_384 + 2_048;
/// Content type of a handshake record, the only thing that a client can begin with.
const HANDSHAKE_RECORD: u8 = 0x16;
/// Room that a record needs beyond its content: header, type, nonce, tag.
const RECORD_EXTRA_BYTES: usize = 5 + 1 + 8 + 16;
const RECORD_CONTENT_BYTES: usize = 16_384;
/// Room for one of our handshake records; a certificate may need more and says so.
const FLIGHT_BYTES: usize = 2_048;

/// One client's session.
pub struct TlsSession {
    connection: UnbufferedServerConnection,
    /// What came of a record, or of a handshake message, that is not complete.
    partial: Vec<u8>,
    /// Handshake records and alerts for the socket, or bytes of a send that a move has cut.
    output: Vec<u8>,
    stage: Stage,
    /// Whether close_notify is to be sent behind everything else.
    is_finishing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has come.
    Fresh,
    Handshaking,
    Established,
    /// Failed, given up, or our close_notify is out: nothing more is opened or sealed.
    Over,
}

/// Why nothing more comes out of a session.
#[derive(Debug, thiserror::Error)]
pub enum TlsEnd {
    /// The client said that it will send nothing more.
    #[error("the client closed the TLS session")]
    PeerClosed,
    /// The first bytes are not TLS.
    #[error("the client does not speak TLS")]
    NotTls,
    /// A record or a handshake above its limit.
    #[error("a TLS message above the limit of {PARTIAL_BYTES_MAX} bytes")]
    TooLarge,
    /// The handshake or a record broke the protocol, or nothing was found to agree on.
    #[error("{0}")]
    Protocol(#[from] rustls::Error),
}

impl TlsSession {
    /// Waits for a client's hello.
    ///
    /// Errors: the configuration cannot be used, which a certificate that was checked does not let happen.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            partial: Vec::new(),
            output: Vec::new(),
            stage: Stage::Fresh,
            is_finishing: false,
        })
    }

    /// Whether the handshake is still to be finished.
    pub fn is_handshaking(&self) -> bool {
        matches!(self.stage, Stage::Fresh | Stage::Handshaking)
    }

    /// Whether the client can be sent packets.
    pub fn is_established(&self) -> bool {
        self.stage == Stage::Established
    }

    /// Whether an end of the stream here cuts something: a record, or the handshake.
    pub fn is_cut(&self) -> bool {
        self.stage == Stage::Handshaking || !self.partial.is_empty()
    }

    /// Bytes that wait for the rest of a record, or to be sent.
    pub fn held_bytes(&self) -> usize {
        self.partial.len() + self.output.len()
    }

    /// Whether there are bytes for the socket that need no sealing.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes bytes of the socket, which it changes, and appends what is in them to `plain`. What has to be answered is
    /// in the output then, also after an error: the alert that tells the client.
    ///
    /// Errors: the session has come to its end; what was appended before still counts.
    pub fn handle_bytes(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<(), TlsEnd> {
        if self.stage == Stage::Over {
            return Ok(());
        }
        if let (Stage::Fresh, Some(first)) = (self.stage, bytes.first()) {
            if *first != HANDSHAKE_RECORD {
                self.stage = Stage::Over;
                return Err(TlsEnd::NotTls);
            }
            self.stage = Stage::Handshaking;
        }
        if self.partial.is_empty() {
            let taken = self.open(bytes, plain)?;
            self.partial.extend_from_slice(bytes.get(taken..).unwrap_or_default());
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(bytes);
            let taken = self.open(&mut joined, plain)?;
            if taken < joined.len() {
                joined.drain(..taken);
                self.partial = joined;
            }
        }
        if self.partial.len() > PARTIAL_BYTES_MAX {
            self.stage = Stage::Over;
            return Err(TlsEnd::TooLarge);
        }
        Ok(())
    }

    /// Opens whole records off the front; returns how many bytes they took.
    fn open(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<usize, TlsEnd> {
        let mut taken = 0;
        loop {
            let rest = bytes.get_mut(taken..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(rest);
            let mut is_waiting = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(TlsEnd::Protocol)?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(&mut self.output, FLIGHT_BYTES, |out| match data.encode(out) {
                        Err(EncodeError::InsufficientSize(more)) => Err(Some(more.required_size)),
                        other => other.map_err(|_| None),
                    });
                }
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.stage = Stage::Established;
                    is_waiting = true;
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    return Err(TlsEnd::PeerClosed);
                }
                // Early data are switched off, and there are no other states of a server.
                Ok(_) => is_waiting = true,
                Err(error) => {
                    taken += discard;
                    self.fail(bytes.get_mut(taken..).unwrap_or_default());
                    return Err(TlsEnd::Protocol(error));
                }
            }
            taken += discard;
            if is_waiting {
                return Ok(taken);
            }
        }
    }

    /// Takes the alert that rustls has for the client, which is the first thing it gives after an error.
    fn fail(&mut self, rest: &mut [u8]) {
        self.stage = Stage::Over;
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) =
            self.connection.process_tls_records(rest).state
        {
            append(&mut self.output, 64, |out| match alert.encode(out) {
                Err(EncodeError::InsufficientSize(more)) => Err(Some(more.required_size)),
                other => other.map_err(|_| None),
            });
        }
    }

    /// Keeps bytes that came while the connection is being moved.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        if self.stage == Stage::Fresh && !bytes.is_empty() {
            // The check of the first byte is made up for by rustls.
            self.stage = Stage::Handshaking;
        }
    }

    /// Ends a handshake that takes too long or is one too many.
    pub fn give_up(&mut self) {
        self.stage = Stage::Over;
    }

    /// Seals `plain` for the socket, behind what is in the output; appends both to `out`. Before the end of the
    /// handshake and after a failure there is nobody to seal for, and `plain` is lost.
    ///
    /// Errors: the keys are worn out, after some 2^24 records at the earliest.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TlsEnd> {
        if !self.output.is_empty() {
            // Its room goes with it: an idle session keeps none.
            out.append(&mut std::mem::take(&mut self.output));
        }
        if self.stage != Stage::Established || plain.is_empty() {
            return Ok(());
        }
        let records = plain.len().div_ceil(RECORD_CONTENT_BYTES);
        let room_bytes = plain.len() + records * RECORD_EXTRA_BYTES;
        let UnbufferedStatus { discard, state } =
            self.connection.process_tls_records(&mut self.partial);
        let is_sealed = match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                append(out, room_bytes, |out| match traffic.encrypt(plain, out) {
                    Err(EncryptError::InsufficientSize(more)) => Err(Some(more.required_size)),
                    other => other.map_err(|_| None),
                })
            }
            _ => false,
        };
        self.partial.drain(..discard.min(self.partial.len()));
        if is_sealed {
            return Ok(());
        }
        self.stage = Stage::Over;
        Err(TlsEnd::Protocol(rustls::Error::EncryptError))
    }

    /// Asks for close_notify behind everything that is still to be sealed.
    pub fn ask_finish(&mut self) {
        self.is_finishing = true;
    }

    /// Appends close_notify, once and where it was asked for. To be called when everything else is sealed.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.is_finishing || self.stage != Stage::Established {
            return;
        }
        self.stage = Stage::Over;
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.connection.process_tls_records(&mut self.partial).state
        {
            append(out, 64, |out| match traffic.queue_close_notify(out) {
                Err(EncryptError::InsufficientSize(more)) => Err(Some(more.required_size)),
                other => other.map_err(|_| None),
            });
        }
    }

    /// Puts sealed bytes that have not left in front of everything else, for a move.
    pub fn put_back(&mut self, mut unsent: Vec<u8>) {
        unsent.append(&mut self.output);
        self.output = unsent;
    }
}

/// Lets `write` fill room behind `out`, and gives it more when it says how much it needs. False when it cannot.
fn append(
    out: &mut Vec<u8>,
    room_bytes: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> bool {
    let start = out.len();
    let mut room_bytes = room_bytes;
    for _ in 0..2 {
        out.resize(start + room_bytes, 0);
        match write(out.get_mut(start..).unwrap_or_default()) {
            Ok(written) => {
                out.truncate(start + written);
                return true;
            }
            Err(Some(required_bytes)) => room_bytes = required_bytes,
            Err(None) => break,
        }
    }
    out.truncate(start);
    false
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
