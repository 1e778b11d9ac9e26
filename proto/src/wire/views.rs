//! Borrowed views of received messages: slices of the caller's buffer, no copies.
//!
//! Decoding checks the whole message, unknown fields included, so that a view never holds a part of something broken.

use super::WireError;
use super::reader::{DEPTH_MAX, Key, Reader};

/// A message that takes in one field after the other.
trait Merge<'a>: Default {
    /// Reads the value of the field `key` at the front of `reader`; unknown fields are skipped.
    fn merge_field(
        &mut self,
        key: Key,
        reader: &mut Reader<'a>,
        depth: u32,
    ) -> Result<(), WireError>;

    fn merge(&mut self, bytes: &'a [u8], depth: u32) -> Result<(), WireError> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let key = reader.key()?;
            self.merge_field(key, &mut reader, depth)?;
        }
        Ok(())
    }

    fn whole(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut view = Self::default();
        view.merge(bytes, DEPTH_MAX)?;
        Ok(view)
    }
}

/// Adds one occurrence of an embedded message to `target`; a second occurrence adds to the first.
#[inline]
fn merge_embedded<'a, M: Merge<'a>>(
    target: &mut Option<M>,
    key: Key,
    reader: &mut Reader<'a>,
    depth: u32,
) -> Result<(), WireError> {
    let bytes = reader.bytes(key)?;
    let depth = depth.checked_sub(1).ok_or(WireError::Depth)?;
    target.get_or_insert_default().merge(bytes, depth)
}

/// View of a [`Response`](crate::Response).
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseView<'a> {
    /// The result; meaningless when there is an error.
    pub data: &'a [u8],
    /// Present if the call failed.
    pub error: Option<ErrorView<'a>>,
}

impl<'a> ResponseView<'a> {
    /// Decodes a whole message. No bytes at all are a success with empty data.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut view = Self::whole(bytes)?;
        if let Some(error) = &mut view.error {
            error.response = bytes;
        }
        Ok(view)
    }
}

impl<'a> Merge<'a> for ResponseView<'a> {
    #[inline]
    fn merge_field(
        &mut self,
        key: Key,
        reader: &mut Reader<'a>,
        depth: u32,
    ) -> Result<(), WireError> {
        match key.field {
            1 => self.data = reader.bytes(key)?,
            2 => merge_embedded(&mut self.error, key, reader, depth)?,
            _ => reader.skip(key, depth)?,
        }
        Ok(())
    }
}

/// View of the [`Error`](crate::Error) inside a response.
///
/// Stricter than the owned message in one case: metadata entries with a wrong wire type are refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorView<'a> {
    /// `PIT-...` or the application's own; empty is to be read as `PIT-000`.
    pub code: &'a str,
    /// Text for people.
    pub msg: &'a str,
    /// The response around, in which the metadata is looked up when asked for.
    response: &'a [u8],
}

impl<'a> ErrorView<'a> {
    /// The metadata's entries as key and value, in wire order; of equal keys the last one counts.
    pub fn metadata(&self) -> ErrorMetadata<'a> {
        ErrorMetadata { response: Reader::new(self.response), error: Reader::default() }
    }
}

impl<'a> Merge<'a> for ErrorView<'a> {
    fn merge_field(
        &mut self,
        key: Key,
        reader: &mut Reader<'a>,
        depth: u32,
    ) -> Result<(), WireError> {
        match key.field {
            1 => self.code = reader.string(key)?,
            2 => self.msg = reader.string(key)?,
            3 => merge_embedded(&mut None::<EntryView<'a>>, key, reader, depth)?,
            _ => reader.skip(key, depth)?,
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct EntryView<'a> {
    key: &'a str,
    value: &'a str,
}

impl<'a> Merge<'a> for EntryView<'a> {
    fn merge_field(
        &mut self,
        key: Key,
        reader: &mut Reader<'a>,
        depth: u32,
    ) -> Result<(), WireError> {
        match key.field {
            1 => self.key = reader.string(key)?,
            2 => self.value = reader.string(key)?,
            _ => reader.skip(key, depth)?,
        }
        Ok(())
    }
}

/// Iterator over an error's metadata, made by [`ErrorView::metadata`].
#[derive(Clone, Debug)]
pub struct ErrorMetadata<'a> {
    /// What is left of the response; several error fields in it count as one.
    response: Reader<'a>,
    /// What is left of the error field that is being read.
    error: Reader<'a>,
}

impl<'a> ErrorMetadata<'a> {
    /// Decoding has checked these bytes before, so an error here cannot happen; it would end the iteration.
    fn advance(&mut self) -> Result<Option<(&'a str, &'a str)>, WireError> {
        loop {
            while !self.error.is_empty() {
                let key = self.error.key()?;
                if key.field == 3 {
                    let entry = EntryView::whole(self.error.bytes(key)?)?;
                    return Ok(Some((entry.key, entry.value)));
                }
                self.error.skip(key, DEPTH_MAX)?;
            }
            if self.response.is_empty() {
                return Ok(None);
            }
            let key = self.response.key()?;
            if key.field == 2 {
                self.error = Reader::new(self.response.bytes(key)?);
            } else {
                self.response.skip(key, DEPTH_MAX)?;
            }
        }
    }
}

impl<'a> Iterator for ErrorMetadata<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().unwrap_or(None)
    }
}

macro_rules! view {
    (
        $(#[$attribute:meta])*
        $name:ident { $($(#[$field_attribute:meta])* $number:literal $field:ident: $kind:ident,)* }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name<'a> {
            $($(#[$field_attribute])* pub $field: view!(@type $kind),)*
        }

        impl<'a> $name<'a> {
            /// Decodes a whole message.
            pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
                Self::whole(bytes)
            }
        }

        impl<'a> Merge<'a> for $name<'a> {
            #[inline]
            fn merge_field(
                &mut self,
                key: Key,
                reader: &mut Reader<'a>,
                depth: u32,
            ) -> Result<(), WireError> {
                match key.field {
                    $($number => view!(@read $kind, self.$field, key, reader, depth),)*
                    _ => reader.skip(key, depth)?,
                }
                Ok(())
            }
        }
    };
    (@type bytes) => { &'a [u8] };
    (@type string) => { &'a str };
    (@type enumeration) => { i32 };
    (@type int64) => { i64 };
    (@type uint64) => { u64 };
    (@type session) => { Option<SessionView<'a>> };
    (@type msg) => { Option<MsgView<'a>> };
    (@read bytes, $target:expr, $key:ident, $reader:ident, $depth:ident) => {
        $target = $reader.bytes($key)?
    };
    (@read string, $target:expr, $key:ident, $reader:ident, $depth:ident) => {
        $target = $reader.string($key)?
    };
    (@read enumeration, $target:expr, $key:ident, $reader:ident, $depth:ident) => {
        $target = $reader.integer($key)? as i32
    };
    (@read int64, $target:expr, $key:ident, $reader:ident, $depth:ident) => {
        $target = $reader.integer($key)? as i64
    };
    (@read uint64, $target:expr, $key:ident, $reader:ident, $depth:ident) => {
        $target = $reader.integer($key)?
    };
    (@read $message:ident, $target:expr, $key:ident, $reader:ident, $depth:ident) => {
        merge_embedded(&mut $target, $key, $reader, $depth)?
    };
}

view! {
    /// View of a [`Request`](crate::Request).
    RequestView {
        /// 0 = Sys, 1 = User; other numbers are kept as they came.
        1 rpc_type: enumeration,
        /// Only in Sys calls.
        2 session: session,
        /// Missing only in a broken call.
        3 msg: msg,
        /// Server id of the sender if it is a frontend, else empty.
        4 frontend_id: string,
        /// Text of one JSON object; unchecked.
        5 metadata: bytes,
    }
}

view! {
    /// View of a [`Msg`](crate::Msg).
    MsgView {
        /// The client's message id, or 0.
        1 id: uint64,
        /// What is called.
        2 route: string,
        /// With what.
        3 data: bytes,
        /// Empty from correct senders.
        4 reply: string,
        /// 0 = request, 1 = notify; other numbers are kept as they came.
        5 msg_type: enumeration,
    }
}

view! {
    /// View of a [`Session`](crate::Session).
    SessionView {
        /// Id on the frontend.
        1 id: int64,
        /// The bound user, or empty.
        2 uid: string,
        /// Text of one JSON object, or empty; unchecked.
        3 data: bytes,
    }
}

view! {
    /// View of a [`Push`](crate::Push).
    PushView {
        /// Route on the client.
        1 route: string,
        /// Whom it is for.
        2 uid: string,
        /// Payload as the client will read it.
        3 data: bytes,
    }
}

view! {
    /// View of a [`KickMsg`](crate::KickMsg).
    KickView {
        /// Whom to disconnect.
        1 user_id: string,
    }
}

view! {
    /// View of a [`BindMsg`](crate::BindMsg).
    BindView {
        /// The bound user.
        1 uid: string,
        /// Server id of the frontend that owns the user now.
        2 fid: string,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_are_a_success_with_empty_data() {
        let view = ResponseView::decode(&[]).unwrap();
        assert!(view.data.is_empty() && view.error.is_none());
    }

    #[test]
    fn an_empty_error_is_a_failure() {
        let error = ResponseView::decode(&[0x12, 0]).unwrap().error.unwrap();
        assert_eq!((error.code, error.msg, error.metadata().count()), ("", "", 0));
    }

    #[test]
    fn two_error_fields_add_up_with_their_metadata() {
        let bytes = b"\x12\x0b\x0a\x01c\x1a\x06\x0a\x01a\x12\x01b\x12\x0b\x12\x01m\x1a\x06\x0a\x01c\x12\x01d";
        let error = ResponseView::decode(bytes).unwrap().error.unwrap();
        assert_eq!((error.code, error.msg), ("c", "m"));
        assert_eq!(error.metadata().collect::<Vec<_>>(), [("a", "b"), ("c", "d")]);
    }

    #[test]
    fn data_points_into_the_given_bytes() {
        let bytes = b"\x0a\x03ack";
        assert_eq!(ResponseView::decode(bytes).unwrap().data.as_ptr(), bytes[2..].as_ptr());
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        assert_eq!(KickView::decode(b"\x0a\x01\xff").unwrap_err(), WireError::Utf8 { field: 1 });
    }

    #[test]
    fn one_byte_short_is_refused() {
        assert_eq!(KickView::decode(b"\x0a\x06uid-1").unwrap_err(), WireError::Truncated);
        assert_eq!(KickView::decode(b"\x0a").unwrap_err(), WireError::Truncated);
    }
}
