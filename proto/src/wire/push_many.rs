//! One push to many users, an addition of ours to the cluster's protocol.
//!
//! It travels only to gateways that announce it. The view keeps the whole message and finds the users when they are
//! walked over, so that a list of any length costs no memory.

use super::WireError;
use super::encode::{optional_slice_field_bytes, put_optional_slice, put_slice, slice_field_bytes};
use super::reader::{DEPTH_MAX, Reader};

const FIELD_1_BYTES: u8 = 0x0a;
const FIELD_2_BYTES: u8 = 0x12;
const FIELD_3_BYTES: u8 = 0x1a;

const USERS: u32 = 3;

/// View of a [`PushMany`](crate::PushMany).
#[derive(Clone, Copy, Debug, Default)]
pub struct PushManyView<'a> {
    /// Route on the clients.
    pub route: &'a str,
    /// Payload as the clients will read it.
    pub data: &'a [u8],
    /// The whole message, which was checked.
    message: &'a [u8],
}

impl<'a> PushManyView<'a> {
    /// Decodes a whole message, and checks every user's id.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut view = Self { message: bytes, ..Self::default() };
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let key = reader.key()?;
            match key.field {
                1 => view.route = reader.string(key)?,
                2 => view.data = reader.bytes(key)?,
                USERS => drop(reader.string(key)?),
                _ => reader.skip(key, DEPTH_MAX)?,
            }
        }
        Ok(view)
    }

    /// Whom it is for, in the order of the message.
    pub fn uids(&self) -> Uids<'a> {
        Uids(Reader::new(self.message))
    }
}

/// The users of a [`PushManyView`].
#[derive(Clone, Debug)]
pub struct Uids<'a>(Reader<'a>);

impl<'a> Iterator for Uids<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        // The message was checked, so nothing fails here; if it did, the list would end.
        while !self.0.is_empty() {
            let key = self.0.key().ok()?;
            if key.field == USERS {
                return self.0.string(key).ok();
            }
            self.0.skip(key, DEPTH_MAX).ok()?;
        }
        None
    }
}

/// Appends an encoded [`PushMany`](crate::PushMany). `uids` is walked twice.
pub fn encode_push_many<'a>(
    route: &str,
    data: &[u8],
    uids: impl Iterator<Item = &'a str> + Clone,
    out: &mut Vec<u8>,
) {
    let users_bytes: usize = uids.clone().map(|uid| slice_field_bytes(uid.len())).sum();
    let head_bytes =
        optional_slice_field_bytes(route.len()) + optional_slice_field_bytes(data.len());
    out.reserve(head_bytes + users_bytes);
    put_optional_slice(FIELD_1_BYTES, route.as_bytes(), out);
    put_optional_slice(FIELD_2_BYTES, data, out);
    for uid in uids {
        put_slice(FIELD_3_BYTES, uid.as_bytes(), out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[test]
    fn nothing_is_a_push_to_nobody() {
        let view = PushManyView::decode(&[]).unwrap();
        assert_eq!((view.route, view.data, view.uids().count()), ("", &[][..], 0));
    }

    #[test]
    fn a_broken_user_anywhere_refuses_the_whole() {
        assert_eq!(
            PushManyView::decode(b"\x1a\x01a\x1a\x01\xff").unwrap_err(),
            WireError::Utf8 { field: 3 }
        );
        assert_eq!(PushManyView::decode(b"\x1a\x01a\x1a\x02b").unwrap_err(), WireError::Truncated);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_what_the_owned_message_encodes(
            route in ".{0,20}",
            data in proptest::collection::vec(any::<u8>(), 0..200),
            uids in proptest::collection::vec(".{0,40}", 0..20),
        ) {
            let mut encoded = Vec::new();
            encode_push_many(&route, &data, uids.iter().map(String::as_str), &mut encoded);
            let view = PushManyView::decode(&encoded).unwrap();
            prop_assert_eq!((view.route, view.data), (route.as_str(), &data[..]));
            prop_assert!(view.uids().eq(uids.iter().map(String::as_str)));
            let owned = crate::PushMany { route, data: data.into(), uids };
            prop_assert_eq!(owned.encode_to_vec(), encoded);
        }

        #[test]
        fn random_bytes_are_judged_as_the_owned_message_judges_them(
            bytes in proptest::collection::vec(prop_oneof![0_u8..0x30, any::<u8>()], 0..48),
        ) {
            match (crate::PushMany::decode(&bytes[..]), PushManyView::decode(&bytes)) {
                (Ok(owned), Ok(view)) => {
                    prop_assert_eq!((view.route, view.data), (&*owned.route, &owned.data[..]));
                    prop_assert!(view.uids().eq(owned.uids.iter().map(String::as_str)));
                }
                (Err(_), Err(_)) => {}
                (owned, view) => prop_assert!(false, "{:02x?}: {:?} {:?}", bytes, owned, view),
            }
        }
    }
}
