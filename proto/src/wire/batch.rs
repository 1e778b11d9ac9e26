//! Several messages in one, an addition of ours to the cluster's protocol: requests of one moment from a gateway to one
//! worker, and the answers of one moment back. It travels only to workers that announce it (see `pitaya.proto`).
//!
//! ```text
//! byte 0   1       2               6               10
//! +------+-------+---------------+---------------+---------------+---------------+--
//! | 0x00 | 0x01  | token, 4 byte | size, 4 byte  | message       | next token    | ...
//! +------+-------+---------------+---------------+---------------+---------------+--
//!          version  big endian      big endian      size bytes
//! ```
//!
//! No protobuf message begins with the byte 0, because no field has the number 0, so a batch is known by it, and whoever
//! does not know batches refuses it as a whole. The messages are whole `Request`s on the way to a worker, and whole
//! `Response`s on the way back. A token is what its answer comes back under; [`NO_TOKEN`] wants none.
//!
//! A batch without messages is a [`PROBE`]: the gateway wants to hear from NATS whether anybody listens. A worker drops it.
//!
//! The invariant: a view was walked over to its end when it was made, so its entries never fail.

/// What every batch begins with: what no protobuf message begins with, and the version.
pub const BATCH_HEADER: [u8; 2] = [0, 1];
/// What a gateway sends only to learn whether anybody listens; it has no answer.
pub const PROBE: [u8; 2] = BATCH_HEADER;
/// Bytes of a message in a batch besides its own.
pub const BATCH_ENTRY_BYTES: usize = 8;
/// Messages in one batch that are accepted at most.
pub const BATCH_ENTRIES_MAX: usize = 1_024;
/// The token of a request that nobody wants answered.
pub const NO_TOKEN: u32 = u32::MAX;

/// Why received bytes are not a batch. The sender is at fault in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It does not begin as batches of this version do.
    #[error("not a batch of this version")]
    Version,
    /// The bytes end inside a message or what stands before it.
    #[error("the batch ends inside a message")]
    Truncated,
    /// There is no message in it.
    #[error("the batch is empty")]
    Empty,
    /// More than [`BATCH_ENTRIES_MAX`] messages.
    #[error("too many messages in one batch")]
    TooMany,
}

/// Whether these bytes are meant as a batch, of whatever version, and cannot be a protobuf message.
#[inline]
pub fn is_batch(bytes: &[u8]) -> bool {
    bytes.first() == BATCH_HEADER.first()
}

/// Appends what stands before a message of `bytes` bytes; the message itself follows.
#[inline]
pub fn put_batch_entry_head(token: u32, bytes: usize, out: &mut Vec<u8>) {
    debug_assert!(u32::try_from(bytes).is_ok(), "batches are far smaller than 4 GiB");
    out.extend_from_slice(&token.to_be_bytes());
    out.extend_from_slice(&(bytes as u32).to_be_bytes());
}

/// View of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    entries: &'a [u8],
    len: usize,
}

impl<'a> BatchView<'a> {
    /// Checks a whole batch; allocates nothing.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let entries = bytes.strip_prefix(&BATCH_HEADER).ok_or(BatchError::Version)?;
        let (mut rest, mut len) = (entries, 0);
        while !rest.is_empty() {
            (_, rest) = take_entry(rest).ok_or(BatchError::Truncated)?;
            len += 1;
            if len > BATCH_ENTRIES_MAX {
                return Err(BatchError::TooMany);
            }
        }
        if len == 0 { Err(BatchError::Empty) } else { Ok(Self { entries, len }) }
    }

    /// How many messages are in it, at least one.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The messages with their tokens, in the order in which they were put in.
    pub fn entries(&self) -> BatchEntries<'a> {
        BatchEntries(self.entries)
    }
}

/// The messages of a [`BatchView`].
#[derive(Clone, Debug)]
pub struct BatchEntries<'a>(&'a [u8]);

impl<'a> Iterator for BatchEntries<'a> {
    type Item = (u32, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (entry, rest) = take_entry(self.0)?;
        self.0 = rest;
        Some(entry)
    }
}

#[inline]
#[allow(clippy::type_complexity, reason = "token and message, and what follows")]
fn take_entry(bytes: &[u8]) -> Option<((u32, &[u8]), &[u8])> {
    let (token, rest) = bytes.split_first_chunk::<4>()?;
    let (size, rest) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_be_bytes(*size)).ok()?;
    let (message, rest) = rest.split_at_checked(size)?;
    Some(((u32::from_be_bytes(*token), message), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(entries: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut out = BATCH_HEADER.to_vec();
        for (token, message) in entries {
            put_batch_entry_head(*token, message.len(), &mut out);
            out.extend_from_slice(message);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<usize, BatchError> {
        BatchView::decode(bytes).map(|view| view.len())
    }

    #[test]
    fn a_batch_is_laid_out_as_documented() {
        let bytes = batch(&[(7, b"ab".to_vec()), (NO_TOKEN, Vec::new())]);
        assert_eq!(
            bytes,
            b"\x00\x01\x00\x00\x00\x07\x00\x00\x00\x02ab\xff\xff\xff\xff\x00\x00\x00\x00"
        );
        let view = BatchView::decode(&bytes).unwrap();
        assert!(view.entries().eq([(7, &b"ab"[..]), (NO_TOKEN, &b""[..])]));
    }

    #[test]
    fn every_cut_of_a_batch_is_refused_unless_it_falls_between_messages() {
        let bytes = batch(&[(1, vec![9; 3]), (2, Vec::new())]);
        for end in 0..bytes.len() {
            let expected = match end {
                0 | 1 => Err(BatchError::Version),
                2 => Err(BatchError::Empty),
                13 => Ok(1),
                _ => Err(BatchError::Truncated),
            };
            assert_eq!(decode(&bytes[..end]), expected, "{end} bytes");
        }
        assert_eq!(decode(&bytes), Ok(2));
    }

    #[test]
    fn other_versions_and_protobuf_messages_are_no_batches() {
        assert_eq!(decode(b"\x00\x02"), Err(BatchError::Version));
        assert_eq!(decode(b"\x0a\x03ack"), Err(BatchError::Version));
        assert!(is_batch(b"\x00\x02") && !is_batch(b"\x0a\x03ack") && !is_batch(b""));
    }

    #[test]
    fn the_number_of_messages_is_bounded() {
        let full = batch(&vec![(1, Vec::new()); BATCH_ENTRIES_MAX]);
        assert_eq!(decode(&full), Ok(BATCH_ENTRIES_MAX));
        let over = batch(&vec![(1, Vec::new()); BATCH_ENTRIES_MAX + 1]);
        assert_eq!(decode(&over), Err(BatchError::TooMany));
    }

    #[test]
    fn a_size_of_four_gigabytes_reads_nothing_beyond_the_bytes() {
        assert_eq!(decode(b"\x00\x01\0\0\0\0\xff\xff\xff\xff"), Err(BatchError::Truncated));
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(
            entries in proptest::collection::vec(
                (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40)), 1..30),
        ) {
            let bytes = batch(&entries);
            let view = BatchView::decode(&bytes).unwrap();
            prop_assert_eq!(view.len(), entries.len());
            prop_assert!(view.entries().eq(entries.iter().map(|(token, message)| (*token, &message[..]))));
        }
    }
}
