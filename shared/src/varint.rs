//! Base-128 numbers, as message ids (client protocol 3.3) and protobuf fields write them.
//!
//! Only the number itself: neither field tags nor signed encodings. A decoded number took between 1 and
//! [`BYTES_MAX`] bytes and fits 64 bits.

#![deny(clippy::indexing_slicing)]

/// The longest encoding of a 64-bit number.
pub(crate) const BYTES_MAX: usize = 10;

/// Why a number could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VarintError {
    /// The bytes ended before the number did.
    Incomplete,
    /// The number needs more than 64 bits, or more than [`BYTES_MAX`] bytes.
    TooLong,
}

/// Appends `value` in its shortest form.
pub(crate) fn encode(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`encode`] appends, between 1 and [`BYTES_MAX`].
pub(crate) fn encoded_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// The number at the front of `bytes` and how many bytes it took. Forms that are longer than needed are
/// accepted, because some encoders pad.
pub(crate) fn decode(bytes: &[u8]) -> Result<(u64, usize), VarintError> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().take(BYTES_MAX).enumerate() {
        let is_last_possible = index == BYTES_MAX - 1;
        if is_last_possible && byte > 1 {
            return Err(VarintError::TooLong);
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Ok((value, index + 1));
        }
    }
    Err(VarintError::Incomplete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_specification_encode_as_listed() {
        let listed: [(u64, &[u8]); 8] = [
            (0, &[0x00]),
            (127, &[0x7f]),
            (128, &[0x80, 0x01]),
            (300, &[0xac, 0x02]),
            (16_384, &[0x80, 0x80, 0x01]),
            (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
            (4_294_967_295, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (9_007_199_254_740_991, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ];
        for (value, bytes) in listed {
            let mut out = Vec::new();
            encode(value, &mut out);
            assert_eq!(out, bytes);
            assert_eq!(encoded_bytes(value), bytes.len());
            assert_eq!(decode(bytes), Ok((value, bytes.len())));
        }
    }

    #[test]
    fn the_largest_number_takes_ten_bytes_and_one_bit_more_is_refused() {
        let mut out = Vec::new();
        encode(u64::MAX, &mut out);
        assert_eq!((out.len(), encoded_bytes(u64::MAX)), (BYTES_MAX, BYTES_MAX));
        assert_eq!(decode(&out), Ok((u64::MAX, BYTES_MAX)));
        out[BYTES_MAX - 1] = 2;
        assert_eq!(decode(&out), Err(VarintError::TooLong));
    }

    #[test]
    fn padding_is_accepted_and_a_cut_number_is_incomplete() {
        assert_eq!(decode(&[0x81, 0x00]), Ok((1, 2)));
        assert_eq!(decode(&[]), Err(VarintError::Incomplete));
        assert_eq!(decode(&[0x80]), Err(VarintError::Incomplete));
        assert_eq!(decode(&[0x80; 11]), Err(VarintError::TooLong));
    }
}
