//! Payloads as a person reads them.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Text as it is, JSON spread over lines if that is wanted, and anything else with its bytes escaped.
pub(crate) fn show(payload: &[u8], is_pretty: bool) -> String {
    if is_pretty
        && let Ok(value) = serde_json::from_slice::<serde_json::Value>(payload)
        && let Some(text) = pretty(&value)
    {
        return text;
    }
    match std::str::from_utf8(payload) {
        // What a server sends must not move a terminal's cursor.
        Ok(text) if !text.chars().any(|character| character.is_control() && character != '\n') => {
            text.to_owned()
        }
        _ => payload.escape_ascii().to_string(),
    }
}

/// Indented with tabs, as pitaya-cli does.
fn pretty(value: &serde_json::Value) -> Option<String> {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"\t");
    value.serialize(&mut Serializer::with_formatter(&mut text, formatter)).ok()?;
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_shown_plain_pretty_or_escaped() {
        assert_eq!(show(b"{\"a\":1}", false), "{\"a\":1}");
        assert_eq!(show(b"{\"a\":1}", true), "{\n\t\"a\": 1\n}");
        assert_eq!(show(b"not json", true), "not json");
        assert_eq!(show("é".as_bytes(), false), "é");
        assert_eq!(show(b"\x0a\x07PIT\xff", false), "\\n\\x07PIT\\xff");
        assert_eq!(show(b"\x1b[2J", false), "\\x1b[2J");
        assert_eq!(show(b"", true), "");
    }
}
