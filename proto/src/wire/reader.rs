//! A cursor over encoded protobuf: keys, integers, slices, and skipping of what is unknown.
//!
//! Invariant: `rest` is always a suffix of the bytes that the reader was made of, and every successful call that
//! returns a key, an integer or a slice makes it shorter, so loops over a reader end.

use super::WireError;

/// The deepest nesting that is accepted, the limit of the owned messages as well.
pub(super) const DEPTH_MAX: u32 = 100;

/// The part of a key that says how the value is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WireType {
    Varint,
    Fixed64,
    Bytes,
    StartGroup,
    EndGroup,
    Fixed32,
}

/// A field's number and wire type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) field: u32,
    pub(super) wire_type: WireType,
}

impl Key {
    fn expect(self, wire_type: WireType) -> Result<(), WireError> {
        if self.wire_type == wire_type {
            Ok(())
        } else {
            Err(WireError::WireType { field: self.field })
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(super) fn key(&mut self) -> Result<Key, WireError> {
        let key = self.varint()?;
        let invalid = WireError::Key { key };
        let field = u32::try_from(key).map_err(|_| invalid)? >> 3;
        let wire_type = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Bytes,
            3 => WireType::StartGroup,
            4 => WireType::EndGroup,
            5 => WireType::Fixed32,
            _ => return Err(invalid),
        };
        if field == 0 { Err(invalid) } else { Ok(Key { field, wire_type }) }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        match self.rest.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for (position, &byte) in self.rest.iter().enumerate() {
            // The tenth byte carries bit 63 only; anything more, or an eleventh byte, does not fit.
            if position == 9 && byte > 1 {
                return Err(WireError::Varint);
            }
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte < 0x80 {
                self.rest = self.rest.get(position + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(WireError::Truncated)
    }

    #[inline]
    fn take(&mut self, bytes: u64) -> Result<&'a [u8], WireError> {
        let bytes = usize::try_from(bytes).map_err(|_| WireError::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The value of an integer field.
    #[inline]
    pub(super) fn integer(&mut self, key: Key) -> Result<u64, WireError> {
        key.expect(WireType::Varint)?;
        self.varint()
    }

    /// The value of a `bytes` field.
    #[inline]
    pub(super) fn bytes(&mut self, key: Key) -> Result<&'a [u8], WireError> {
        key.expect(WireType::Bytes)?;
        let bytes = self.varint()?;
        self.take(bytes)
    }

    /// The value of a `string` field.
    #[inline]
    pub(super) fn string(&mut self, key: Key) -> Result<&'a str, WireError> {
        let bytes = self.bytes(key)?;
        std::str::from_utf8(bytes).map_err(|_| WireError::Utf8 { field: key.field })
    }

    /// Steps over the value of an unknown field, `depth` levels being left for groups.
    pub(super) fn skip(&mut self, key: Key, depth: u32) -> Result<(), WireError> {
        if depth == 0 {
            return Err(WireError::Depth);
        }
        match key.wire_type {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.take(8).map(drop),
            WireType::Fixed32 => self.take(4).map(drop),
            WireType::Bytes => self.bytes(key).map(drop),
            WireType::EndGroup => Err(WireError::EndOfGroup { field: key.field }),
            WireType::StartGroup => loop {
                let inner = self.key()?;
                if inner.wire_type != WireType::EndGroup {
                    self.skip(inner, depth - 1)?;
                } else if inner.field == key.field {
                    return Ok(());
                } else {
                    return Err(WireError::EndOfGroup { field: inner.field });
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(bytes: &[u8]) -> Result<u64, WireError> {
        Reader::new(bytes).varint()
    }

    #[test]
    fn integers_of_up_to_64_bits_are_read() {
        assert_eq!(varint(&[0]), Ok(0));
        assert_eq!(varint(&[0xac, 0x02]), Ok(300));
        assert_eq!(
            varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            Ok(u64::MAX)
        );
        assert_eq!(varint(&[0x80, 0x00]), Ok(0), "a longer form than needed is valid protobuf");
    }

    #[test]
    fn integers_that_do_not_fit_or_do_not_end_are_refused() {
        assert_eq!(
            varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
            Err(WireError::Varint)
        );
        assert_eq!(varint(&[0x80; 11]), Err(WireError::Varint));
        assert_eq!(varint(&[0x80; 9]), Err(WireError::Truncated));
        assert_eq!(varint(&[]), Err(WireError::Truncated));
    }

    #[test]
    fn keys_without_field_number_or_with_unknown_wire_type_are_refused() {
        assert_eq!(Reader::new(&[0x02]).key(), Err(WireError::Key { key: 2 }));
        assert_eq!(Reader::new(&[0x0e]).key(), Err(WireError::Key { key: 14 }));
        let too_long = [0x88, 0x80, 0x80, 0x80, 0x10];
        assert_eq!(Reader::new(&too_long).key(), Err(WireError::Key { key: 0x1_0000_0008 }));
    }

    #[test]
    fn unknown_fields_of_every_wire_type_are_skipped() {
        let bytes = [
            0x78, 0x96, 0x01, // 15: integer
            0x79, 1, 2, 3, 4, 5, 6, 7, 8, // 15: eight bytes
            0x7a, 2, 9, 9, // 15: slice
            0x7b, 0x08, 1, 0x7c, // 15: group with one field
            0x7d, 1, 2, 3, 4, // 15: four bytes
        ];
        let mut reader = Reader::new(&bytes);
        while !reader.is_empty() {
            let key = reader.key().unwrap();
            assert_eq!(key.field, 15);
            reader.skip(key, DEPTH_MAX).unwrap();
        }
    }

    #[test]
    fn groups_nested_too_deeply_are_refused() {
        let skip = |levels: usize| {
            let mut bytes = vec![0x0b; levels];
            bytes.extend(vec![0x0c; levels]);
            let mut reader = Reader::new(&bytes);
            let key = reader.key().unwrap();
            reader.skip(key, DEPTH_MAX)
        };
        assert_eq!(skip(100), Ok(()));
        assert_eq!(skip(101), Err(WireError::Depth));
    }
}
