//! Messages that are JSON or protobuf, whichever the flag `-serializer` says.

use std::sync::OnceLock;

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use worker::{Encode, Payload, Result};

static IS_PROTOBUF: OnceLock<bool> = OnceLock::new();

/// To be called before the first message.
pub(crate) fn choose(serializer: &str) {
    let _ = IS_PROTOBUF.set(serializer == "protobuf");
}

fn is_protobuf() -> bool {
    IS_PROTOBUF.get().copied().unwrap_or_default()
}

/// A message in the server's serializer.
pub(crate) struct Wire<T>(pub(crate) T);

impl<T: Message + Default + DeserializeOwned + 'static> Payload for Wire<T> {
    fn decode(bytes: &Bytes) -> Result<Self> {
        if is_protobuf() {
            return Ok(Self(T::decode(bytes.clone())?));
        }
        <T as Payload>::decode(bytes).map(Self)
    }
}

impl<T: Message + Serialize> Encode for Wire<T> {
    fn encode(&self) -> Result<Bytes> {
        if is_protobuf() { Ok(self.0.encode_to_vec().into()) } else { Encode::encode(&self.0) }
    }
}
