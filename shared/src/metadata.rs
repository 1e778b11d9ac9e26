//! The metadata of a request: who calls, what, when, and how long an answer is waited for (cluster protocol 6).
//!
//! Written without allocation from prepared parts for each forwarded request; read only for the time limit. What is
//! written is always a JSON object whose `reqTimeout` is a string: Go servers die of other types and of `null`.
#![deny(clippy::indexing_slicing)]

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;

use crate::go;
use crate::nats::encoder::put_number;

/// The parts of the metadata that never change in a process, encoded once.
#[derive(Clone, Debug)]
pub struct MetadataPrefix {
    /// From the opening brace up to the opening quote of the route.
    head: Vec<u8>,
    /// From the comma behind the time limit up to the counter of the request id.
    request_id: Vec<u8>,
}

impl MetadataPrefix {
    /// `peer_id` and `peer_service` are this server's id and type. `request_id` begins every request id and tells
    /// this process from all others.
    pub fn new(peer_id: &str, peer_service: &str, request_id: &str) -> Self {
        let mut head = b"{\"peer.id\":\"".to_vec();
        go::escape_json(peer_id, &mut head);
        head.extend_from_slice(b"\",\"peer.service\":\"");
        go::escape_json(peer_service, &mut head);
        head.extend_from_slice(b"\",\"req-route\":\"");
        let mut id = b"\",\"request.id\":\"".to_vec();
        go::escape_json(request_id, &mut id);
        Self { head, request_id: id }
    }
}

/// What the metadata of one request says.
#[derive(Clone, Copy, Debug)]
pub struct MetadataFields<'a> {
    /// The prepared parts.
    pub prefix: &'a MetadataPrefix,
    /// The route that the client has asked for.
    pub route: &'a str,
    /// When the request arrived, in nanoseconds since 1970.
    pub start_ns: u64,
    /// How long the callee may take, as a Go duration such as `5s`; neither zero nor negative.
    pub timeout: &'a str,
    /// Number of the request in this process; with the prefix it makes the request id.
    pub request_number: u64,
}

/// Appends the JSON text. Keys are in alphabetical order, as Go writes them.
///
/// ```text
/// {"peer.id":"…","peer.service":"…","req-route":"…","req-start-time":1,"reqTimeout":"5s","request.id":"…"}
/// ```
pub fn encode_metadata(fields: &MetadataFields<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&fields.prefix.head);
    go::escape_json(fields.route, out);
    out.extend_from_slice(b"\",\"req-start-time\":");
    put_number::<10>(fields.start_ns, out);
    out.extend_from_slice(b",\"reqTimeout\":\"");
    go::escape_json(fields.timeout, out);
    out.extend_from_slice(&fields.prefix.request_id);
    put_number::<36>(fields.request_number, out);
    out.extend_from_slice(b"\"}");
}

/// How long the caller waits for an answer. Whatever cannot be used, be it missing, of another type, zero, negative
/// or not even JSON, gives `default`, because a peer's mistake must not cost its players their answer.
pub fn decode_timeout(metadata: &[u8], default: Duration) -> Duration {
    #[derive(Deserialize)]
    struct Timeout<'a> {
        #[serde(rename = "reqTimeout", borrow)]
        timeout: Cow<'a, str>,
    }
    serde_json::from_slice::<Timeout<'_>>(metadata)
        .ok()
        .and_then(|metadata| go::go_duration::parse(&metadata.timeout).ok())
        .filter(|timeout| !timeout.is_zero())
        .unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(route: &str, prefix: &MetadataPrefix) -> String {
        let mut out = Vec::new();
        let fields = MetadataFields {
            prefix,
            route,
            start_ns: 1_795_220_528_566_124_939,
            timeout: "5s",
            request_number: 36,
        };
        encode_metadata(&fields, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn metadata_has_the_form_that_go_sends() {
        let prefix =
            MetadataPrefix::new("7dfc7114-5665-441d-8313-8de431c0a25c", "connector", "Rww2.");
        assert_eq!(
            encoded("room.room.echo", &prefix),
            "{\"peer.id\":\"7dfc7114-5665-441d-8313-8de431c0a25c\",\"peer.service\":\"connector\",\
             \"req-route\":\"room.room.echo\",\"req-start-time\":1795220528566124939,\
             \"reqTimeout\":\"5s\",\"request.id\":\"Rww2.10\"}"
        );
    }

    #[test]
    fn whatever_a_route_contains_the_result_is_valid_json() {
        let text = "a\"b\\c\u{0}\n\u{1f}\u{7f}é\u{2028}";
        let prefix = MetadataPrefix::new(text, text, text);
        let json: serde_json::Value = serde_json::from_str(&encoded(text, &prefix)).unwrap();
        assert_eq!((&json["req-route"], &json["peer.id"]), (&text.into(), &text.into()));
        assert_eq!(json["request.id"], format!("{text}10"));
    }

    #[test]
    fn time_limits_are_read_as_go_durations() {
        let timeout = |text: &str| {
            let metadata = format!("{{\"a\":[{{}}],\"reqTimeout\":\"{text}\"}}");
            decode_timeout(metadata.as_bytes(), Duration::from_secs(9)).as_millis()
        };
        assert_eq!(timeout("5s"), 5_000);
        assert_eq!(timeout("1m30s"), 90_000);
        assert_eq!(timeout("250ms"), 250);
        assert_eq!(timeout("1h0m0.5s"), 3_600_500);
        assert_eq!(timeout("\\u0031.5s"), 1_500, "escapes are resolved");
        assert_eq!(timeout("1500us"), 1);
        for text in ["", "0", "0s", "-5s", "5", "s", "5x", "1e3s", "5s ", "99999999999999999999h"] {
            assert_eq!(timeout(text), 9_000, "{text:?}");
        }
    }

    #[test]
    fn whatever_cannot_be_used_gives_the_default() {
        let texts =
            ["", "null", "5", "{}", "{\"reqTimeout\":5}", "{\"reqTimeout\":null}", "{", "\u{0}"];
        for text in texts {
            let timeout = decode_timeout(text.as_bytes(), Duration::from_secs(9));
            assert_eq!(timeout, Duration::from_secs(9), "{text:?}");
        }
    }
}
