//! Client operations, appended to the caller's buffer.
//!
//! Nothing is allocated besides the growth of the buffer, and numbers are written without the formatting machinery.
//! Nothing is checked either: a space or a line end in a subject would change the meaning of the line, so subjects
//! that are made of text from outside go through [`is_valid_subject`] before they get here. What the parser has
//! delivered as subject or reply can be used as it is; the server may complain about it, no more.
#![deny(clippy::indexing_slicing)]

use super::CONTROL_LINE_BYTES;

/// Asks the server for a [`PONG`].
pub const PING: &[u8] = b"PING\r\n";
/// Answers the server's ping.
pub const PONG: &[u8] = b"PONG\r\n";
/// Ends every line and every payload.
pub const CRLF: &[u8] = b"\r\n";

/// Appends a whole message.
pub fn publish(out: &mut Vec<u8>, subject: &[u8], reply: Option<&[u8]>, payload: &[u8]) {
    // "PUB ", two spaces, up to 20 digits and two line ends.
    out.reserve(subject.len() + reply.map_or(0, <[u8]>::len) + payload.len() + 30);
    publish_head(out, subject, reply, payload.len());
    out.extend_from_slice(payload);
    out.extend_from_slice(CRLF);
}

/// Appends the line before a payload. The caller appends exactly `payload_bytes` bytes and then [`CRLF`].
///
/// ```text
/// PUB <subject> [<reply> ]<payload bytes>\r\n
/// ```
#[inline]
pub fn publish_head(out: &mut Vec<u8>, subject: &[u8], reply: Option<&[u8]>, payload_bytes: usize) {
    debug_assert!(is_one_word(subject), "a subject must not break its line");
    debug_assert!(reply.is_none_or(is_one_word), "a reply subject must not break its line");
    out.extend_from_slice(b"PUB ");
    out.extend_from_slice(subject);
    out.push(b' ');
    if let Some(reply) = reply {
        out.extend_from_slice(reply);
        out.push(b' ');
    }
    put_number::<10>(payload_bytes as u64, out);
    out.extend_from_slice(CRLF);
}

/// Appends a subscription. Messages for it arrive with `sid`, which the caller chooses and keeps unique.
pub fn subscribe(out: &mut Vec<u8>, subject: &[u8], queue: Option<&str>, sid: u64) {
    debug_assert!(is_one_word(subject), "a subject must not break its line");
    debug_assert!(queue.is_none_or(|queue| is_one_word(queue.as_bytes())));
    out.extend_from_slice(b"SUB ");
    out.extend_from_slice(subject);
    out.push(b' ');
    if let Some(queue) = queue {
        out.extend_from_slice(queue.as_bytes());
        out.push(b' ');
    }
    put_number::<10>(sid, out);
    out.extend_from_slice(CRLF);
}

/// Appends the end of a subscription: at once, or when `max` messages have been delivered since it was made.
pub fn unsubscribe(out: &mut Vec<u8>, sid: u64, max: Option<u64>) {
    out.extend_from_slice(b"UNSUB ");
    put_number::<10>(sid, out);
    if let Some(max) = max {
        out.push(b' ');
        put_number::<10>(max, out);
    }
    out.extend_from_slice(CRLF);
}

/// Whether a subject can be sent: no empty part, nothing that ends a word or a line, and short enough to leave room
/// in a line for the other words. Wildcards are not refused here; for user ids they are at bind time.
pub fn is_valid_subject(subject: &[u8]) -> bool {
    // A PUB line holds two subjects at most, its verb and one number.
    const SUBJECT_BYTES_MAX: usize = (CONTROL_LINE_BYTES - 64) / 2;
    subject.len() <= SUBJECT_BYTES_MAX
        && subject.split(|&byte| byte == b'.').all(|part| !part.is_empty())
        && subject.iter().all(|&byte| byte > b' ' && byte != 0x7f)
}

/// Whether a line keeps its words with this one in it. True of each word that the parser has delivered.
fn is_one_word(subject: &[u8]) -> bool {
    !subject.is_empty() && !subject.iter().any(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
}

/// Appends `value` in a number system of up to 36 digits, without leading zeros.
#[inline]
pub(crate) fn put_number<const RADIX: u64>(mut value: u64, out: &mut Vec<u8>) {
    const { assert!(RADIX >= 2 && RADIX <= 36) };
    let start = out.len();
    loop {
        let digit = (value % RADIX) as u8;
        out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        value /= RADIX;
        if value == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        encode(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn messages_are_written_with_and_without_reply() {
        assert_eq!(encoded(|out| publish(out, b"a.b", None, b"hello")), "PUB a.b 5\r\nhello\r\n");
        assert_eq!(encoded(|out| publish(out, b"a", Some(b"r"), b"")), "PUB a r 0\r\n\r\n");
    }

    #[test]
    fn a_payload_can_be_appended_in_place() {
        let whole = encoded(|out| publish(out, b"a", Some(b"r"), b"payload"));
        let parts = encoded(|out| {
            publish_head(out, b"a", Some(b"r"), 7);
            out.extend_from_slice(b"payload");
            out.extend_from_slice(CRLF);
        });
        assert_eq!(whole, parts);
    }

    #[test]
    fn any_reply_subject_that_a_peer_has_chosen_can_be_answered() {
        let stream = b"MSG a 1 _..\x01\x7f. 0\r\n\r\n";
        let limits = crate::nats::ParseLimits::default();
        let operation = crate::nats::parser::parse(stream, &limits).unwrap().unwrap().0;
        let crate::nats::ServerOp::Msg(message) = operation else { panic!("{operation:?}") };
        let reply = message.reply.unwrap();
        assert_eq!(encoded(|out| publish(out, reply, None, b"x")), "PUB _..\x01\x7f. 1\r\nx\r\n");
    }

    #[test]
    fn subscriptions_are_written_with_and_without_queue() {
        assert_eq!(encoded(|out| subscribe(out, b"a", None, 1)), "SUB a 1\r\n");
        assert_eq!(encoded(|out| subscribe(out, b"a", Some("q"), 20)), "SUB a q 20\r\n");
        assert_eq!(encoded(|out| unsubscribe(out, 20, None)), "UNSUB 20\r\n");
        assert_eq!(encoded(|out| unsubscribe(out, 20, Some(1))), "UNSUB 20 1\r\n");
    }

    #[test]
    fn numbers_of_every_length_are_written() {
        assert_eq!(encoded(|out| put_number::<10>(0, out)), "0");
        assert_eq!(encoded(|out| put_number::<10>(u64::MAX, out)), u64::MAX.to_string());
        assert_eq!(encoded(|out| put_number::<36>(36 * 36 - 1, out)), "zz");
        for power in 0..20 {
            let value = 10_u64.pow(power);
            assert_eq!(encoded(|out| put_number::<10>(value, out)), value.to_string());
        }
    }

    #[test]
    fn subjects_that_would_break_a_line_are_recognised() {
        for subject in [&b""[..], b"a b", b"a\r\nPUB b", b"a..b", b".a", b"a.", b"a\tb", b"a\x7f"] {
            assert!(!is_valid_subject(subject), "{subject:?}");
        }
        assert!(is_valid_subject(b"pitaya/servers/room/7dfc7114-5665"));
        assert!(is_valid_subject(&[b'a'; 2016]));
        assert!(!is_valid_subject(&[b'a'; 2017]));
    }
}
