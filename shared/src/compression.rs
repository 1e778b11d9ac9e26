//! zlib (RFC 1950) for message payloads and the handshake response.
//!
//! Neither gzip nor raw deflate: a Go frontend refuses them too. One [`Deflater`] and one [`Inflater`] belong to
//! one thread and serve all its connections, since no stream outlives a call. The invariants: an inflated payload never
//! took more memory than its limit, and after warm-up neither type allocates for ordinary payloads.

#![deny(clippy::indexing_slicing)]

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use thiserror::Error;

/// Shortest payload for which compressing is worth its time; nothing below 12 bytes can win at all.
pub const THRESHOLD_BYTES_DEFAULT: usize = 128;

/// How much scratch is kept between calls; one huge payload must not cost its memory for ever.
const SCRATCH_BYTES_KEPT: usize = 64 * 1024;

/// The first guess at the size of an inflated payload.
const INFLATED_BYTES_GUESS: usize = 4 * 1024;

/// Compresses payloads.
#[derive(Debug)]
pub struct Deflater {
    stream: Compress,
    scratch: Vec<u8>,
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Deflater {
    /// Allocates the stream's state, about 300 KiB, once.
    pub fn new() -> Self {
        Self { stream: Compress::new(Compression::default(), true), scratch: Vec::new() }
    }

    /// The compressed input, if that is strictly shorter and the input has at least `threshold_bytes`. The
    /// result is valid until the next call.
    pub fn deflate<'s>(&'s mut self, input: &[u8], threshold_bytes: usize) -> Option<&'s [u8]> {
        if input.len() < threshold_bytes.max(1) {
            return None;
        }
        // One byte less than the input is all the room that a useful result needs: an incompressible
        // payload is given up when that is full.
        let room_bytes = input.len() - 1;
        prepare(&mut self.scratch, room_bytes);
        let room = self.scratch.get_mut(..room_bytes)?;
        self.stream.reset();
        match self.stream.compress(input, room, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => self.scratch.get(..self.stream.total_out() as usize),
            _ => None,
        }
    }
}

/// Why a payload cannot be inflated. The peer's fault in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InflateError {
    /// The stream stops before its end; an empty payload is such a stream.
    #[error("the compressed payload ends too early")]
    Truncated,
    /// Not zlib, damaged, or a wrong checksum.
    #[error("the compressed payload is not valid zlib")]
    Invalid,
    /// The limit was reached before the end of the stream.
    #[error("the payload inflates to more than {limit_bytes} bytes")]
    TooLarge {
        /// The limit that was given.
        limit_bytes: usize,
    },
}

/// Inflates payloads.
#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
    scratch: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    /// Allocates the stream's state, about 40 KiB, once.
    pub fn new() -> Self {
        Self { stream: Decompress::new(true), scratch: Vec::new() }
    }

    /// The inflated input, valid until the next call. Bytes behind the end of the stream are ignored, as Go does.
    ///
    /// The limit is checked while inflating: a small input that stands for gigabytes costs no more than the limit.
    ///
    /// # Errors
    /// Any [`InflateError`]; the next call is not affected by it.
    pub fn inflate<'s>(
        &'s mut self,
        input: &[u8],
        output_bytes_max: usize,
    ) -> Result<&'s [u8], InflateError> {
        // The byte above the limit tells a result that just fits from one that does not.
        let room_bytes_max = output_bytes_max.saturating_add(1);
        let guess = input.len().saturating_mul(4).max(INFLATED_BYTES_GUESS);
        prepare(&mut self.scratch, guess.min(room_bytes_max));
        self.stream.reset(true);
        loop {
            let consumed_before = self.stream.total_in() as usize;
            let produced_before = self.stream.total_out() as usize;
            let rest = input.get(consumed_before..).unwrap_or_default();
            let room_end = self.scratch.len().min(room_bytes_max);
            let room = self.scratch.get_mut(produced_before..room_end).unwrap_or_default();
            let status = self
                .stream
                .decompress(rest, room, FlushDecompress::None)
                .map_err(|_| InflateError::Invalid)?;
            let produced = self.stream.total_out() as usize;
            if produced > output_bytes_max {
                return Err(InflateError::TooLarge { limit_bytes: output_bytes_max });
            }
            if status == Status::StreamEnd {
                return self.scratch.get(..produced).ok_or(InflateError::Invalid);
            }
            if produced < room_end {
                // Room was left, so it was input that ran out.
                return Err(InflateError::Truncated);
            }
            let grown_bytes = self.scratch.len().saturating_mul(2).min(room_bytes_max);
            grow(&mut self.scratch, grown_bytes);
        }
    }
}

/// Makes room for at least `bytes_min`, and gives back what an unusually large payload took before.
fn prepare(scratch: &mut Vec<u8>, bytes_min: usize) {
    if scratch.len() > SCRATCH_BYTES_KEPT && bytes_min <= SCRATCH_BYTES_KEPT {
        scratch.truncate(SCRATCH_BYTES_KEPT);
        scratch.shrink_to_fit();
    }
    if scratch.len() < bytes_min {
        grow(scratch, bytes_min);
    }
}

/// Without the slack that a growing vector takes for itself, which would go beyond the limits.
fn grow(scratch: &mut Vec<u8>, bytes: usize) {
    scratch.reserve_exact(bytes.saturating_sub(scratch.len()));
    scratch.resize(bytes, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_inflates_to_the_same_bytes() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for length in [1usize, 11, 18, 127, 128, 4_096, 5_000, 100_000, 1 << 20] {
            let input = b"abcdefgh".repeat(length / 8 + 1);
            let Some(compressed) = deflater.deflate(&input, 0) else {
                assert!(length < 18, "{length} bytes should get shorter");
                continue;
            };
            assert!(compressed.len() < input.len());
            assert_eq!(inflater.inflate(compressed, input.len()), Ok(&input[..]));
            let one_less = input.len() - 1;
            let refused = InflateError::TooLarge { limit_bytes: one_less };
            assert_eq!(inflater.inflate(compressed, one_less), Err(refused));
        }
    }

    #[test]
    fn short_and_incompressible_payloads_stay_as_they_are() {
        let mut deflater = Deflater::new();
        let compressible = [b'a'; 128];
        assert!(deflater.deflate(&compressible, 128).is_some());
        assert!(deflater.deflate(&compressible[1..], 128).is_none(), "below the threshold");
        assert!(deflater.deflate(b"", 0).is_none());
        let mut random = fastrand::Rng::with_seed(7);
        let noise: Vec<u8> = (0..4_096).map(|_| random.u8(..)).collect();
        assert!(deflater.deflate(&noise, 0).is_none());
        assert!(deflater.deflate(&compressible, 0).is_some(), "the next one is not affected");
    }

    #[test]
    fn a_bomb_costs_no_more_memory_than_its_limit() {
        let mut bomb_maker = Deflater::new();
        let bomb = bomb_maker.deflate(&vec![0u8; 8 << 20], 0).unwrap().to_vec();
        let mut inflater = Inflater::new();
        let limit_bytes = 100_000;
        let refused = Err(InflateError::TooLarge { limit_bytes });
        assert_eq!(inflater.inflate(&bomb, limit_bytes), refused);
        assert!(inflater.scratch.capacity() <= limit_bytes + 1);
        assert_eq!(inflater.inflate(&bomb, 0), Err(InflateError::TooLarge { limit_bytes: 0 }));
    }

    #[test]
    fn scratch_shrinks_after_a_large_payload() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let large = vec![1u8; 1 << 20];
        let compressed = deflater.deflate(&large, 0).unwrap().to_vec();
        inflater.inflate(&compressed, 1 << 20).unwrap();
        assert!(inflater.scratch.capacity() >= 1 << 20);
        let small = deflater.deflate(&[b'x'; 64], 0).unwrap().to_vec();
        assert_eq!(inflater.inflate(&small, 64), Ok(&[b'x'; 64][..]));
        assert!(inflater.scratch.capacity() <= SCRATCH_BYTES_KEPT);
        assert!(deflater.scratch.capacity() <= SCRATCH_BYTES_KEPT);
    }

    #[test]
    fn an_empty_stream_and_a_damaged_one_are_told_apart() {
        let mut inflater = Inflater::new();
        assert_eq!(inflater.inflate(b"", 10), Err(InflateError::Truncated));
        assert_eq!(inflater.inflate(b"garbage", 10), Err(InflateError::Invalid));
    }
}
