//! What a NATS server says about itself, in its greeting and again whenever it changes.

use serde::{Deserialize, Serialize};

use super::PAYLOAD_BYTES_DEFAULT;

/// The fields of INFO that matter to a client. Missing fields have their defaults, unknown ones are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "the protocol's own fields")]
pub struct ServerInfo {
    /// Id of the server process.
    pub server_id: String,
    /// Name of the server; its id unless configured.
    pub server_name: String,
    /// Version of the server.
    pub version: String,
    /// Version of the protocol.
    pub proto: i64,
    /// Number of this connection in the server's monitoring.
    pub client_id: u64,
    /// Whether messages may have headers, which the answer "no responders" needs.
    pub headers: bool,
    /// Whether the server wants credentials.
    pub auth_required: bool,
    /// Whether the server goes on only in TLS.
    pub tls_required: bool,
    /// Whether the server can do TLS.
    pub tls_available: bool,
    /// Largest payload together with its header, in bytes.
    pub max_payload: Option<u64>,
    /// What a client with a key signs to prove that it has it.
    pub nonce: Option<String>,
    /// Addresses of all servers of the cluster, as host and port.
    pub connect_urls: Vec<String>,
    /// Lame duck mode: the server is about to stop and wants its clients to leave.
    pub ldm: bool,
    /// Name of the cluster.
    pub cluster: String,
}

/// An INFO that is not a JSON object of the expected types. The server is at fault.
#[derive(Debug, thiserror::Error)]
#[error("invalid INFO: {0}")]
pub struct InfoError(#[from] serde_json::Error);

impl ServerInfo {
    /// Decodes the JSON text after `INFO`.
    pub fn decode(json: &[u8]) -> Result<Self, InfoError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// Largest payload that the server takes, in bytes.
    pub fn payload_bytes_max(&self) -> usize {
        match self.max_payload {
            None | Some(0) => PAYLOAD_BYTES_DEFAULT,
            Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_fields_are_read_and_unknown_ones_ignored() {
        let info = ServerInfo::decode(
            br#"{"server_id":"NA","version":"2.9.10","proto":1,"go":"go1.19","headers":true,
                "max_payload":1048576,"client_id":5,"nonce":"abc","connect_urls":["a:1","b:2"],
                "ldm":true,"jetstream":false}"#,
        )
        .unwrap();
        assert_eq!((info.proto, info.client_id, info.headers, info.ldm), (1, 5, true, true));
        assert_eq!(info.nonce.as_deref(), Some("abc"));
        assert_eq!(info.connect_urls, ["a:1", "b:2"]);
        assert_eq!(info.payload_bytes_max(), 1_048_576);
    }

    #[test]
    fn an_empty_object_has_the_usual_payload_limit() {
        assert_eq!(ServerInfo::decode(b"{}").unwrap().payload_bytes_max(), PAYLOAD_BYTES_DEFAULT);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in [&b""[..], b"null", b"5", b"{\"proto\":\"x\"}", b"{"] {
            assert!(ServerInfo::decode(json).is_err(), "{json:?}");
        }
    }
}
