//! Texts in the form that Go writes and expects them: durations and JSON strings.
//!
//! Only the forms that cross the wire to Go servers and Go clients, and what clients of theirs rely on.

#![deny(clippy::indexing_slicing)]

/// Appends `text` with JSON escapes, without the quotes around it.
///
/// Escapes what Go's encoder escapes: quotes, back slashes, control characters, and, because Go writes JSON that is
/// safe inside HTML, also `<`, `>`, `&`, U+2028 and U+2029.
pub fn escape_json(text: &str, out: &mut Vec<u8>) {
    // 0xe2 starts U+2028 and U+2029. Nearly every text on the wire is plain and goes in one copy.
    if text.bytes().all(|byte| !matches!(byte, 0..0x20 | b'"' | b'\\' | b'<' | b'>' | b'&' | 0xe2))
    {
        return out.extend_from_slice(text.as_bytes());
    }
    let mut buffer = [0u8; 4];
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.extend_from_slice(b"\\u");
                let code = character as u32;
                for shift in [12, 8, 4, 0] {
                    let digit = char::from_digit((code >> shift) & 0xf, 16).unwrap_or('0');
                    out.push(digit as u8);
                }
            }
            _ => out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes()),
        }
    }
}

/// Appends `text` as a JSON string: quotes around [`escape_json`].
pub fn quote_json(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    escape_json(text, out);
    out.push(b'"');
}

/// JSON whose strings a strict decoder takes: half surrogate pairs and bytes that are no UTF-8 become U+FFFD, as in Go's
/// decoder. None when there is nothing of that kind; whatever else is wrong with `text` stays wrong.
///
/// A browser escapes half a pair when a game cuts a text inside an emoji. To be tried after a decoder has refused, since
/// it copies.
pub fn repair_json(text: &[u8]) -> Option<Vec<u8>> {
    let mut repaired = Vec::with_capacity(text.len());
    let lossy = String::from_utf8_lossy(text);
    let mut rest = lossy.as_bytes();
    while let Some(start) = rest.iter().position(|byte| *byte == b'\\') {
        let (before, escape) = rest.split_at(start);
        repaired.extend_from_slice(before);
        let (kept, taken_bytes): (&[u8], usize) =
            match (surrogate(escape), surrogate(escape.get(6..).unwrap_or_default())) {
                (Some(true), Some(false)) => (escape.get(..12)?, 12),
                (Some(_), _) => (b"\\ufffd", 6),
                // The escaped byte as well: it may be a back slash.
                (None, _) => (escape.get(..2)?, 2),
            };
        repaired.extend_from_slice(kept);
        rest = escape.get(taken_bytes..)?;
    }
    repaired.extend_from_slice(rest);
    (repaired != text).then_some(repaired)
}

/// Whether the escape at the front is one half of a surrogate pair; true for the first half.
fn surrogate(escape: &[u8]) -> Option<bool> {
    let digits = std::str::from_utf8(escape.get(2..6)?).ok()?;
    let is_half = escape.starts_with(b"\\u") && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u16::from_str_radix(digits, 16).ok().filter(|_| is_half)? {
        0xd800..=0xdbff => Some(true),
        0xdc00..=0xdfff => Some(false),
        _ => None,
    }
}

/// Go's `time.Duration` as text: `5s`, `1m30s`, `250ms`.
pub mod go_duration {
    use std::fmt::Write as _;
    use std::time::Duration;

    use thiserror::Error;

    const NS_PER_SECOND: u64 = 1_000_000_000;

    /// Units from the longest name to the shortest, so that `ms` is not taken for `m`. Both spellings of micro.
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", NS_PER_SECOND),
        ("m", 60 * NS_PER_SECOND),
        ("h", 3_600 * NS_PER_SECOND),
    ];

    /// Why a text is not a duration.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
    pub enum GoDurationError {
        /// No number where one is expected, or nothing at all.
        #[error("not a duration; expected something like 5s, 1m30s or 250ms")]
        Malformed,
        /// A number without a unit. Only `0` may stand alone.
        #[error("a duration needs a unit: ns, us, ms, s, m or h")]
        MissingUnit,
        /// A unit that Go does not have; there are no days.
        #[error("unknown unit; a duration uses ns, us, ms, s, m or h")]
        UnknownUnit,
        /// Less than nothing.
        #[error("a duration cannot be negative")]
        Negative,
        /// More than Go's 63 bits of nanoseconds, about 292 years.
        #[error("the duration is too long")]
        TooLong,
    }

    /// Reads a duration as Go does: decimal numbers with a unit each, one after the other, or `0`.
    ///
    /// # Errors
    /// A [`GoDurationError`]; unlike Go also for negative durations, which no setting and no timeout can use.
    pub fn parse(text: &str) -> Result<Duration, GoDurationError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        if unsigned == "0" {
            return Ok(Duration::ZERO);
        }
        if unsigned.is_empty() {
            return Err(GoDurationError::Malformed);
        }
        let mut rest = unsigned;
        let mut total_ns = 0u64;
        while !rest.is_empty() {
            let (part_ns, behind) = take_part(rest)?;
            total_ns = total_ns.checked_add(part_ns).ok_or(GoDurationError::TooLong)?;
            rest = behind;
        }
        if total_ns > i64::MAX as u64 {
            return Err(GoDurationError::TooLong);
        }
        if total_ns > 0 && text.starts_with('-') {
            return Err(GoDurationError::Negative);
        }
        Ok(Duration::from_nanos(total_ns))
    }

    /// One number with its unit, in nanoseconds, and what stands behind it.
    fn take_part(text: &str) -> Result<(u64, &str), GoDurationError> {
        let (whole, rest) = take_digits(text);
        let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), take_digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(GoDurationError::Malformed);
        }
        let unit_end = rest
            .find(|character: char| character == '.' || character.is_ascii_digit())
            .unwrap_or(rest.len());
        let (unit, behind) = rest.split_at_checked(unit_end).ok_or(GoDurationError::Malformed)?;
        if unit.is_empty() {
            return Err(GoDurationError::MissingUnit);
        }
        let (_, unit_ns) = UNITS
            .into_iter()
            .find(|(name, _)| *name == unit)
            .ok_or(GoDurationError::UnknownUnit)?;
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| GoDurationError::TooLong)?
        };
        let whole_ns = whole.checked_mul(unit_ns).ok_or(GoDurationError::TooLong)?;
        let part_ns =
            whole_ns.checked_add(fraction_ns(fraction, unit_ns)).ok_or(GoDurationError::TooLong)?;
        Ok((part_ns, behind))
    }

    fn take_digits(text: &str) -> (&str, &str) {
        let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        text.split_at_checked(end).unwrap_or((text, ""))
    }

    /// The nanoseconds of the digits behind a point. Digits too small to matter for any unit are dropped.
    fn fraction_ns(digits: &str, unit_ns: u64) -> u64 {
        const DIGITS_USED: usize = 18;
        let mut numerator = 0u128;
        let mut denominator = 1u128;
        for digit in digits.bytes().take(DIGITS_USED) {
            numerator = numerator * 10 + u128::from(digit - b'0');
            denominator *= 10;
        }
        (numerator * u128::from(unit_ns) / denominator) as u64
    }

    /// Writes a duration as Go prints it: `1m0s`, `1.5s`, `250ms`, `0s`. Durations beyond Go's range are cut to it.
    pub fn format(duration: Duration) -> String {
        let total_ns = duration.as_nanos().min(i64::MAX as u128) as u64;
        let mut text = String::new();
        if total_ns < NS_PER_SECOND {
            let (unit_ns, unit) = match total_ns {
                0 => return "0s".to_owned(),
                1..1_000 => (1, "ns"),
                1_000..1_000_000 => (1_000, "µs"),
                _ => (1_000_000, "ms"),
            };
            push_decimal(&mut text, total_ns, unit_ns);
            text.push_str(unit);
            return text;
        }
        let hours = total_ns / (3_600 * NS_PER_SECOND);
        let minutes = total_ns / (60 * NS_PER_SECOND) % 60;
        if hours > 0 {
            let _ = write!(text, "{hours}h");
        }
        if hours > 0 || minutes > 0 {
            let _ = write!(text, "{minutes}m");
        }
        push_decimal(&mut text, total_ns % (60 * NS_PER_SECOND), NS_PER_SECOND);
        text.push('s');
        text
    }

    /// Appends `value / unit` with as many decimals as it needs.
    fn push_decimal(text: &mut String, value: u64, unit: u64) {
        let _ = write!(text, "{}", value / unit);
        let mut rest = value % unit;
        if rest == 0 {
            return;
        }
        text.push('.');
        let mut place = unit / 10;
        while rest > 0 {
            text.push(char::from(b'0' + (rest / place) as u8));
            rest %= place;
            place = (place / 10).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::go_duration::{GoDurationError, format, parse};
    use super::*;

    #[test]
    fn durations_print_as_go_prints_them_and_read_back() {
        let listed: [(u64, &str); 13] = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (250_000_000, "250ms"),
            (2_200_000, "2.2ms"),
            (1_500_000_000, "1.5s"),
            (5_000_000_000, "5s"),
            (60_000_000_000, "1m0s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (21_600_000_000_000, "6h0m0s"),
            (3_600_000_000_001, "1h0m0.000000001s"),
            (i64::MAX as u64, "2562047h47m16.854775807s"),
        ];
        for (ns, text) in listed {
            assert_eq!(format(Duration::from_nanos(ns)), text);
            assert_eq!(parse(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
        assert_eq!(format(Duration::MAX), "2562047h47m16.854775807s");
    }

    #[test]
    fn durations_of_go_s_own_tests_are_read() {
        let listed: [(&str, u64); 14] = [
            ("0", 0),
            ("+5s", 5_000_000_000),
            ("-0", 0),
            ("5.0s", 5_000_000_000),
            ("5.6s", 5_600_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("12us", 12_000),
            ("12µs", 12_000),
            ("12μs10ns", 12_010),
            ("39h9m14.425s", 140_954_425_000_000),
        ];
        for (text, ns) in listed {
            assert_eq!(parse(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration_says_why() {
        use GoDurationError::{Malformed, MissingUnit, Negative, TooLong, UnknownUnit};
        let listed = [
            ("", Malformed),
            ("+", Malformed),
            ("-", Malformed),
            ("s", Malformed),
            (".s", Malformed),
            ("--1s", Malformed),
            ("3", MissingUnit),
            ("10", MissingUnit),
            ("1m30", MissingUnit),
            ("1d", UnknownUnit),
            ("5 s", UnknownUnit),
            ("-5s", Negative),
            ("9223372036854775808ns", TooLong),
            ("3000000h", TooLong),
            ("99999999999999999999h", TooLong),
        ];
        for (text, error) in listed {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn json_strings_are_escaped_as_go_escapes_them() {
        let mut out = Vec::new();
        quote_json("a\"b\\c\n\r\t\u{8}\u{c}\u{1}\u{7f}<>&\u{2028}\u{2029}é", &mut out);
        let expected =
            "\"a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\u{7f}\\u003c\\u003e\\u0026\\u2028\\u2029é\"";
        assert_eq!(String::from_utf8(out.clone()).unwrap(), expected);
        let back: String = serde_json::from_slice(&out).unwrap();
        assert_eq!(back, "a\"b\\c\n\r\t\u{8}\u{c}\u{1}\u{7f}<>&\u{2028}\u{2029}é");
    }

    #[test]
    fn json_that_go_s_decoder_takes_is_repaired_to_what_it_reads() {
        let cases: [(&[u8], Option<&str>); 14] = [
            (br#"{"a":"\ud83d"}"#, Some(r#"{"a":"\ufffd"}"#)),
            (br#""\udc00\ud800""#, Some(r#""\ufffd\ufffd""#)),
            (br#""\ud800\u0041""#, Some(r#""\ufffd\u0041""#)),
            (br#""\uD83Dx\uDE00""#, Some(r#""\ufffdx\ufffd""#)),
            (b"\"a\xffb\"", Some("\"a\u{fffd}b\"")),
            // Nothing to repair: whole pairs, escaped back slashes, and what is no JSON at all.
            (br#""\ud83d\ude00""#, None),
            (br#""\\ud83d""#, None),
            (br#""\u00e9\n""#, None),
            (b"", None),
            (b"\\", None),
            (b"\\u", None),
            (b"\\ud83", None),
            (b"\\u+d83", None),
            ("{\"a\":\"żółć\"}".as_bytes(), None),
        ];
        for (text, expected) in cases {
            let repaired = repair_json(text).map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(repaired.as_deref(), expected, "{}", String::from_utf8_lossy(text));
        }
    }
}
