//! The outbox: what one connection still has to send, bounded in bytes, with the write deadline's clock.
//!
//! Packets of a turn are appended to `queued`; one flush a turn gives them to the driver as one buffer, and what the
//! kernel did not take stays in front. The invariant: bytes leave in the order in which they were appended, and
//! nothing is appended behind a packet that was cut, because only the driver's remainder can be in front.

use crate::driver::{Driver, Token};
use crate::tls::{TlsEnd, TlsSession};

/// Progress that restarts the write deadline. A client that takes less than this in one deadline is too slow to keep:
/// with ten seconds that is 6.4 KiB a second.
const PROGRESS_BYTES: usize = 64 * 1024;
/// Buffers kept for reuse, and the largest that is kept.
const POOL_BUFFERS: usize = 256;
const POOL_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Empty buffers of a reactor, so that sending allocates nothing in the steady state and an idle connection holds none.
#[derive(Default)]
pub struct BufferPool {
    buffers: Vec<Vec<u8>>,
}

impl BufferPool {
    /// An empty buffer, perhaps with room.
    pub fn take(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    /// Gives a buffer back; its content is dropped.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        let fits = (1..=POOL_BUFFER_BYTES_MAX).contains(&buffer.capacity());
        if fits && self.buffers.len() < POOL_BUFFERS {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}

/// Unsent bytes of one connection.
#[derive(Default)]
pub struct Outbox {
    queued: Vec<u8>,
    /// Bytes of the buffer that the driver holds; 0 when it holds none.
    sending_bytes: usize,
    /// The first flush after the handshake's answer ends here, so that the answer is one write, alone.
    boundary: Option<usize>,
    /// When the unsent bytes last moved on by [`PROGRESS_BYTES`], ms.
    progress_ms: u64,
    progress_bytes: usize,
}

impl Outbox {
    /// Where packets are appended. Call [`Outbox::has_room`] first.
    pub fn queue(&mut self) -> &mut Vec<u8> {
        &mut self.queued
    }

    /// Takes a buffer from the pool before the first packet of a turn.
    pub fn prepare(&mut self, pool: &mut BufferPool) -> &mut Vec<u8> {
        if self.queued.capacity() == 0 {
            self.queued = pool.take();
        }
        &mut self.queued
    }

    /// Whether `bytes` more stay within `limit_bytes`.
    pub fn has_room(&self, bytes: usize, limit_bytes: usize) -> bool {
        self.unsent_bytes() + bytes <= limit_bytes
    }

    /// Bytes that the kernel has not taken.
    pub fn unsent_bytes(&self) -> usize {
        self.queued.len() + self.sending_bytes
    }

    /// Makes the next flush end behind what is queued now.
    pub fn set_boundary(&mut self) {
        self.boundary = Some(self.queued.len());
    }

    /// Gives everything that is queued to the driver, sealed where there is TLS, unless a send is under way.
    ///
    /// Errors: it cannot be sealed; what was queued is lost then.
    pub fn flush(&mut self, way: &mut Way<'_>) -> Result<(), TlsEnd> {
        if self.sending_bytes > 0 {
            return Ok(());
        }
        let mut outcome = Ok(());
        let buffer = match &mut way.tls {
            None => self.take_queued(way.pool),
            Some(tls) => {
                let plain = self.take_queued(way.pool);
                let mut sealed = way.pool.take();
                outcome = tls.seal(&plain, &mut sealed);
                way.pool.give(plain);
                if self.queued.is_empty() {
                    tls.finish(&mut sealed);
                }
                sealed
            }
        };
        if buffer.is_empty() {
            way.pool.give(buffer);
            return outcome;
        }
        self.sending_bytes = buffer.len();
        self.progress_ms = way.now_ms;
        self.progress_bytes = 0;
        way.driver.send(way.token, buffer, 0);
        outcome
    }

    /// What the next send consists of, before it is sealed.
    fn take_queued(&mut self, pool: &mut BufferPool) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.queued);
        if let Some(boundary) = self.boundary.take()
            && boundary < buffer.len()
        {
            self.queued = pool.take();
            self.queued.extend_from_slice(&buffer[boundary..]);
            buffer.truncate(boundary);
        }
        buffer
    }

    /// Takes a buffer back of which the kernel took `sent` bytes; the rest goes out again at once, or what was queued
    /// meanwhile.
    ///
    /// Errors: as [`Outbox::flush`].
    pub fn handle_sent(&mut self, way: &mut Way<'_>, sent: Sent) -> Result<(), TlsEnd> {
        debug_assert!(sent.bytes <= self.sending_bytes, "the kernel took more than it was given");
        self.sending_bytes -= sent.bytes;
        self.progress_bytes += sent.bytes;
        if self.progress_bytes >= PROGRESS_BYTES {
            self.progress_bytes = 0;
            self.progress_ms = way.now_ms;
        }
        if self.sending_bytes > 0 {
            let start = sent.buffer.len() - self.sending_bytes;
            way.driver.send(way.token, sent.buffer, start);
            return Ok(());
        }
        way.pool.give(sent.buffer);
        self.flush(way)
    }

    /// Whether unsent bytes have waited longer than `timeout_ms` without enough progress.
    pub fn is_overdue(&self, timeout_ms: u64, now_ms: u64) -> bool {
        self.sending_bytes > 0 && now_ms.saturating_sub(self.progress_ms) >= timeout_ms
    }

    /// Whether everything has left.
    pub fn is_empty(&self) -> bool {
        self.unsent_bytes() == 0
    }

    /// What is left of a send that was cut, of which the kernel took `bytes`.
    pub fn remainder<'a>(&self, buffer: &'a [u8], bytes: usize) -> &'a [u8] {
        let start = buffer.len().saturating_sub(self.sending_bytes) + bytes;
        buffer.get(start..).unwrap_or_default()
    }

    /// The unsent bytes in order, for the connection's way to another reactor; `remainder` is what the driver gave
    /// back of a send that was cut.
    pub fn freeze(&mut self, mut remainder: Vec<u8>) -> Vec<u8> {
        self.sending_bytes = 0;
        remainder.append(&mut self.queued);
        remainder
    }

    /// An outbox that begins with these bytes.
    pub fn resume(unsent: Vec<u8>) -> Self {
        Self { queued: unsent, ..Self::default() }
    }

    /// Gives the buffers of a closed connection back.
    pub fn release(&mut self, pool: &mut BufferPool) {
        pool.give(std::mem::take(&mut self.queued));
    }
}

/// A send that ended well.
pub struct Sent {
    /// The buffer, given back by the driver.
    pub buffer: Vec<u8>,
    /// How much of it the kernel took, bytes, counted from where this send began.
    pub bytes: usize,
}

/// The way of an outbox's bytes to the socket.
pub struct Way<'a> {
    /// Whose socket.
    pub token: Token,
    /// The driver that has it.
    pub driver: &'a mut Driver,
    /// Buffers.
    pub pool: &'a mut BufferPool,
    /// What seals them, on a port with TLS.
    pub tls: Option<&'a mut TlsSession>,
    /// The turn's time.
    pub now_ms: u64,
}
