//! Splits what a NATS server sends into operations, without copying.
//!
//! The caller keeps the buffer: an operation that is not complete yet is not consumed. Nothing that a server sends
//! can make the parser panic or wait for more than its limits; a broken stream is refused on the first byte that
//! shows it, because after that nothing in the stream can be trusted.
//!
//! ```text
//! MSG <subject> <sid> [<reply>] <payload bytes>\r\n<payload>\r\n
//! HMSG <subject> <sid> [<reply>] <header bytes> <header + payload bytes>\r\n<header><payload>\r\n
//! INFO {json}\r\n    PING\r\n    PONG\r\n    +OK\r\n    -ERR '<text>'\r\n
//! ```
#![deny(clippy::indexing_slicing)]

use super::{CONTROL_LINE_BYTES, PAYLOAD_BYTES_DEFAULT};

/// Longest INFO line. It lists all addresses of a cluster, so it may be longer than other lines.
const INFO_BYTES_MAX: usize = 32 * 1024;
/// Most words after the verb: subject, sid, reply, header bytes, total bytes.
const WORDS_MAX: usize = 5;

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseLimits {
    /// Longest line with its end, in bytes; an INFO may have 32 KiB whatever this says.
    pub control_line_bytes_max: usize,
    /// Largest payload together with its header, in bytes.
    pub payload_bytes_max: usize,
}

impl ParseLimits {
    /// Room for headers beside a payload of full size, in bytes.
    const HEADER_BYTES_MAX: usize = 64 * 1024;
    /// What the server may announce, in bytes; nats-server itself refuses more than this as configuration.
    const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

    /// The limits for a server that announces `max_payload` bytes.
    pub fn for_payload(max_payload: usize) -> Self {
        Self {
            // The server measures the sender's line; ours has a subscription id more, a space and 20 digits at most.
            control_line_bytes_max: CONTROL_LINE_BYTES + 32,
            payload_bytes_max: max_payload.min(Self::PAYLOAD_BYTES_MAX) + Self::HEADER_BYTES_MAX,
        }
    }
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self::for_payload(PAYLOAD_BYTES_DEFAULT)
    }
}

/// One operation of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerOp<'a> {
    /// The JSON text of an INFO.
    Info(&'a [u8]),
    /// To be answered with a PONG.
    Ping,
    /// The answer to the oldest PING that is not answered yet.
    Pong,
    /// Only sent to clients that ask for it.
    Ok,
    /// The text without its quotes.
    Err(&'a str),
    /// A message, with or without header.
    Msg(Msg<'a>),
}

/// A delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msg<'a> {
    /// The subject that it was published to.
    pub subject: &'a [u8],
    /// The subscription that it is for.
    pub sid: u64,
    /// Where an answer is expected.
    pub reply: Option<&'a [u8]>,
    /// The status in the header, if there is one; 503 = nobody subscribes to the request's subject.
    pub status: Option<u16>,
    /// The payload without the header.
    pub payload: &'a [u8],
}

impl Msg<'_> {
    /// Whether this says that nobody has received the request: status 503 and no payload (cluster protocol 4.3).
    pub fn is_no_responders(&self) -> bool {
        self.status == Some(super::STATUS_NO_RESPONDERS) && self.payload.is_empty()
    }
}

/// Why a stream cannot be read any further. The server, or what pretends to be one, is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The line begins with something that no NATS server says.
    #[error("unknown operation")]
    UnknownOperation,
    /// No line end within the limit.
    #[error("line of more than {limit_bytes} bytes")]
    LineTooLong {
        /// The limit.
        limit_bytes: usize,
    },
    /// The words of a MSG or HMSG line are too few, too many, or not numbers where numbers belong.
    #[error("invalid arguments of a message")]
    Arguments,
    /// The announced payload is beyond the limit; known before the payload arrives.
    #[error("payload of {announced_bytes} bytes, {limit_bytes} allowed")]
    PayloadTooLarge {
        /// With header.
        announced_bytes: u64,
        /// The limit.
        limit_bytes: usize,
    },
    /// The payload is not followed by a line end, so its announced length was wrong.
    #[error("payload without line end")]
    PayloadEnd,
}

/// The operation at the front of `bytes` and how many bytes it takes; None if it is not complete yet.
#[inline]
pub fn parse<'a>(
    bytes: &'a [u8],
    limits: &ParseLimits,
) -> Result<Option<(ServerOp<'a>, usize)>, ParseError> {
    Ok(match parse_step(bytes, limits)? {
        Step::Complete(operation, consumed) => Some((operation, consumed)),
        Step::InLine | Step::InPayload { .. } => None,
    })
}

/// How far a parse came.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Complete(ServerOp<'a>, usize),
    /// The line's end is missing.
    InLine,
    /// The whole operation takes this many bytes, of which some are missing.
    InPayload {
        operation_bytes: usize,
    },
}

#[inline]
pub(super) fn parse_step<'a>(
    bytes: &'a [u8],
    limits: &ParseLimits,
) -> Result<Step<'a>, ParseError> {
    let Some(verb) = Verb::recognise(bytes)? else { return Ok(Step::InLine) };
    let limit_bytes = match verb {
        Verb::Info => INFO_BYTES_MAX,
        _ => limits.control_line_bytes_max,
    };
    let searched = bytes.get(..limit_bytes).unwrap_or(bytes);
    let Some(line_end) = find::<b'\n', 1>(searched) else {
        let is_too_long = bytes.len() >= limit_bytes;
        return if is_too_long {
            Err(ParseError::LineTooLong { limit_bytes })
        } else {
            Ok(Step::InLine)
        };
    };
    let line_bytes = line_end + 1;
    let arguments = bytes.get(verb.name().len()..line_end).unwrap_or_default();
    let operation = match verb {
        Verb::Msg => return message(bytes, line_bytes, arguments, false, limits),
        Verb::Hmsg => return message(bytes, line_bytes, arguments, true, limits),
        Verb::Info => ServerOp::Info(arguments.trim_ascii()),
        Verb::Ping => ServerOp::Ping,
        Verb::Pong => ServerOp::Pong,
        Verb::Ok => ServerOp::Ok,
        Verb::Err => ServerOp::Err(error_text(arguments)),
    };
    Ok(Step::Complete(operation, line_bytes))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Msg,
    Hmsg,
    Info,
    Ping,
    Pong,
    Ok,
    Err,
}

impl Verb {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Msg => b"MSG",
            Self::Hmsg => b"HMSG",
            Self::Info => b"INFO",
            Self::Ping => b"PING",
            Self::Pong => b"PONG",
            Self::Ok => b"+OK",
            Self::Err => b"-ERR",
        }
    }

    /// The verb at the front; None if there are too few bytes to tell, an error as soon as none can be meant.
    #[inline]
    fn recognise(bytes: &[u8]) -> Result<Option<Self>, ParseError> {
        // Nearly every operation is this one, and servers write it so.
        if bytes.starts_with(b"MSG ") {
            return Ok(Some(Self::Msg));
        }
        let (Some(first), second) = (bytes.first(), bytes.get(1)) else { return Ok(None) };
        let verb = match (first, second) {
            (b'M' | b'm', _) => Self::Msg,
            (b'H' | b'h', _) => Self::Hmsg,
            (b'I' | b'i', _) => Self::Info,
            (b'+', _) => Self::Ok,
            (b'-', _) => Self::Err,
            (b'P' | b'p', Some(b'I' | b'i')) => Self::Ping,
            (b'P' | b'p', Some(b'O' | b'o')) => Self::Pong,
            (b'P' | b'p', None) => return Ok(None),
            _ => return Err(ParseError::UnknownOperation),
        };
        let name = verb.name();
        let (given, next) = match bytes.split_at_checked(name.len()) {
            Some((given, rest)) => (given, rest.first()),
            None => (bytes, None),
        };
        let is_prefix = name.get(..given.len()).is_some_and(|n| n.eq_ignore_ascii_case(given));
        match (is_prefix, next) {
            (true, Some(b' ' | b'\t' | b'\r' | b'\n')) => Ok(Some(verb)),
            (true, None) => Ok(None),
            _ => Err(ParseError::UnknownOperation),
        }
    }
}

/// Completes a MSG or HMSG whose line is `arguments` and takes `line_bytes` of `bytes`.
#[inline]
fn message<'a>(
    bytes: &'a [u8],
    line_bytes: usize,
    arguments: &'a [u8],
    has_header: bool,
    limits: &ParseLimits,
) -> Result<Step<'a>, ParseError> {
    let head = MessageHead::read(arguments, has_header)?;
    let limit_bytes = limits.payload_bytes_max;
    if head.total_bytes > limit_bytes as u64 {
        return Err(ParseError::PayloadTooLarge { announced_bytes: head.total_bytes, limit_bytes });
    }
    // Both parts are bounded by the limits, so the sum does not overflow.
    let payload_end = line_bytes + head.total_bytes as usize;
    let operation_bytes = payload_end + 2;
    let (Some(body), Some(end)) =
        (bytes.get(line_bytes..payload_end), bytes.get(payload_end..operation_bytes))
    else {
        return Ok(Step::InPayload { operation_bytes });
    };
    if end != b"\r\n" {
        return Err(ParseError::PayloadEnd);
    }
    let (header, payload) =
        body.split_at_checked(head.header_bytes as usize).ok_or(ParseError::Arguments)?;
    let status = if has_header { status(header) } else { None };
    let message = Msg { subject: head.subject, sid: head.sid, reply: head.reply, status, payload };
    Ok(Step::Complete(ServerOp::Msg(message), operation_bytes))
}

struct MessageHead<'a> {
    subject: &'a [u8],
    sid: u64,
    reply: Option<&'a [u8]>,
    header_bytes: u64,
    total_bytes: u64,
}

impl<'a> MessageHead<'a> {
    #[inline]
    fn read(arguments: &'a [u8], has_header: bool) -> Result<Self, ParseError> {
        let mut words: [&[u8]; WORDS_MAX] = [&[]; WORDS_MAX];
        let mut count = 0;
        let mut rest = arguments;
        while let Some((&first, behind)) = rest.split_first() {
            if is_blank(first) {
                rest = behind;
                continue;
            }
            let (word, behind) = rest.split_at_checked(word_bytes(rest)).unwrap_or((rest, &[]));
            *words.get_mut(count).ok_or(ParseError::Arguments)? = word;
            count += 1;
            rest = behind;
        }
        let (subject, sid, reply, header, total): (_, _, _, &[u8], _) =
            match (has_header, count, words) {
                (false, 3, [subject, sid, total, ..]) => (subject, sid, None, b"0", total),
                (false, 4, [subject, sid, reply, total, _]) => {
                    (subject, sid, Some(reply), b"0", total)
                }
                (true, 4, [subject, sid, header, total, _]) => (subject, sid, None, header, total),
                (true, 5, [subject, sid, reply, header, total]) => {
                    (subject, sid, Some(reply), header, total)
                }
                _ => return Err(ParseError::Arguments),
            };
        let head = Self {
            subject,
            sid: number(sid)?,
            reply,
            header_bytes: number(header)?,
            total_bytes: number(total)?,
        };
        if head.header_bytes > head.total_bytes { Err(ParseError::Arguments) } else { Ok(head) }
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// Length of the word at the front. Other control characters than blanks are parts of words, as for the server.
#[inline]
fn word_bytes(bytes: &[u8]) -> usize {
    let mut from = 0;
    loop {
        let rest = bytes.get(from..).unwrap_or_default();
        match find::<0, 0x21>(rest).map(|position| (position, rest.get(position))) {
            Some((position, Some(&byte))) if is_blank(byte) => return from + position,
            Some((position, _)) => from += position + 1,
            None => return bytes.len(),
        }
    }
}

/// Position of the first byte that, after its bits in `FLIP` are flipped, is below `BELOW`, which is at most 128:
/// with `FLIP` 0 the first byte below `BELOW`, with `BELOW` 1 the first byte `FLIP`.
///
/// Eight bytes at a time: subtracting `BELOW` from each sets the high bit of those below it (a borrow disturbs only
/// bytes behind the first such one), and bytes that had their high bit before are masked out. Half of the parser's
/// time went into searching byte by byte.
#[inline]
fn find<const FLIP: u8, const BELOW: u8>(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH_BITS: u64 = u64::from_ne_bytes([0x80; 8]);
    let (chunks, rest) = bytes.as_chunks::<8>();
    for (index, chunk) in chunks.iter().enumerate() {
        let flipped = u64::from_le_bytes(*chunk) ^ (ONES * u64::from(FLIP));
        let below = flipped.wrapping_sub(ONES * u64::from(BELOW)) & !flipped & HIGH_BITS;
        if below != 0 {
            return Some(index * 8 + below.trailing_zeros() as usize / 8);
        }
    }
    let position = rest.iter().position(|&byte| byte ^ FLIP < BELOW)?;
    Some(chunks.len() * 8 + position)
}

/// A decimal number; `digits` is never empty.
#[inline]
fn number(digits: &[u8]) -> Result<u64, ParseError> {
    digits
        .iter()
        .try_fold(0_u64, |value, byte| {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            value.checked_mul(10)?.checked_add(u64::from(digit))
        })
        .ok_or(ParseError::Arguments)
}

/// The status of a header `NATS/1.0 503 ...`; a header without one, or one that makes no sense, has none.
fn status(header: &[u8]) -> Option<u16> {
    let digits = header.strip_prefix(b"NATS/1.0")?.trim_ascii_start().get(..3)?;
    number(digits).ok().map(|status| status as u16)
}

fn error_text(arguments: &[u8]) -> &str {
    let text = arguments.trim_ascii();
    let text = text.strip_prefix(b"'").unwrap_or(text);
    let text = text.strip_suffix(b"'").unwrap_or(text);
    match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let valid = text.get(..error.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(valid).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Option<(ServerOp<'_>, usize)>, ParseError> {
        super::parse(bytes, &ParseLimits::default())
    }

    fn whole(bytes: &[u8]) -> ServerOp<'_> {
        let (operation, consumed) = parse(bytes).unwrap().expect("complete");
        assert_eq!(consumed, bytes.len());
        operation
    }

    fn message(bytes: &[u8]) -> Msg<'_> {
        match whole(bytes) {
            ServerOp::Msg(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_points_into_the_buffer() {
        let bytes = b"MSG a.b 12 5\r\nhello\r\n";
        let expected =
            Msg { subject: b"a.b", sid: 12, reply: None, status: None, payload: b"hello" };
        assert_eq!(message(bytes), expected);
        assert_eq!(message(bytes).payload.as_ptr(), bytes[14..].as_ptr());
    }

    #[test]
    fn a_message_can_have_a_reply_subject_and_an_empty_payload() {
        let message = message(b"MSG a 1 _INBOX.1 0\r\n\r\n");
        assert_eq!((message.reply, message.payload), (Some(&b"_INBOX.1"[..]), &b""[..]));
    }

    #[test]
    fn a_header_without_responders_is_told_from_an_empty_success() {
        let message = message(b"HMSG _INBOX.abc.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n");
        assert_eq!(message.status, Some(503));
        assert!(message.is_no_responders());
        let ServerOp::Msg(success) = whole(b"MSG _INBOX.abc.1 1 0\r\n\r\n") else { panic!() };
        assert!(!success.is_no_responders());
    }

    #[test]
    fn a_header_without_status_is_stepped_over() {
        let message = message(b"HMSG a 1 r 17 19\r\nNATS/1.0\r\nA:b\r\n\r\nhi\r\n");
        assert_eq!((message.status, message.payload), (None, &b"hi"[..]));
        assert_eq!(message.reply, Some(&b"r"[..]));
    }

    #[test]
    fn verbs_have_no_case_and_words_any_blanks_between_them() {
        assert_eq!(message(b"msg \ta\t 1  \t 2 \r\nhi\r\n").payload, b"hi");
        assert_eq!(whole(b"pInG\r\n"), ServerOp::Ping);
        assert_eq!(whole(b"PONG\n"), ServerOp::Pong);
        assert_eq!(whole(b"+ok \r\n"), ServerOp::Ok);
        assert_eq!(whole(b"INFO  {} \r\n"), ServerOp::Info(b"{}"));
    }

    #[test]
    fn error_texts_lose_their_quotes() {
        assert_eq!(whole(b"-ERR 'Stale Connection'\r\n"), ServerOp::Err("Stale Connection"));
        assert_eq!(whole(b"-ERR\r\n"), ServerOp::Err(""));
        assert_eq!(whole(b"-ERR 'a\xff'\r\n"), ServerOp::Err("a"));
    }

    #[test]
    fn every_cut_of_an_operation_is_incomplete() {
        let operations: [&[u8]; 5] = [
            b"MSG a 1 r 5\r\nhello\r\n",
            b"HMSG a 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
            b"INFO {\"a\":1}\r\n",
            b"PING\r\n",
            b"-ERR 'x'\r\n",
        ];
        for operation in operations {
            for cut in 0..operation.len() {
                assert_eq!(parse(&operation[..cut]), Ok(None), "{cut} of {operation:?}");
            }
        }
    }

    #[test]
    fn what_no_server_says_is_refused_at_once() {
        for bytes in [&b"HTTP/1.1 400"[..], b"X", b"\r\n", b"PUB", b"PINGX", b"MSGA", b"\x16\x03"] {
            assert_eq!(parse(bytes), Err(ParseError::UnknownOperation), "{bytes:?}");
        }
    }

    #[test]
    fn control_characters_are_parts_of_words() {
        assert_eq!(message(b"MSG a\x01\x0bb 1 r\0\x1f 0\r\n\r\n").subject, b"a\x01\x0bb");
    }

    #[test]
    fn searching_eight_bytes_at_a_time_finds_what_searching_byte_by_byte_does() {
        for length in 0..20 {
            for position in 0..length {
                for byte in 0..=255 {
                    let mut bytes = vec![0x80; length];
                    bytes[position] = byte;
                    bytes[length - 1] ^= 0xab;
                    let line_end = bytes.iter().position(|&byte| byte == b'\n');
                    assert_eq!(find::<b'\n', 1>(&bytes), line_end, "{bytes:?}");
                    let blank = bytes.iter().position(|&byte| byte <= b' ');
                    assert_eq!(find::<0, 0x21>(&bytes), blank, "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn wrong_words_are_refused() {
        let lines: [&[u8]; 10] = [
            b"MSG\r\n",
            b"MSG a 1\r\n",
            b"MSG a x 1\r\n",
            b"MSG a 1 -1\r\n",
            b"MSG a 1 r 1 1\r\n",
            b"MSG a b c d e f\r\n",
            b"MSG a 99999999999999999999 1\r\n",
            b"HMSG a 1 1\r\n",
            b"HMSG a 1 2 1\r\n",
            b"HMSG a 1 r 2 2 2\r\n",
        ];
        for line in lines {
            assert_eq!(parse(line), Err(ParseError::Arguments), "{line:?}");
        }
    }

    #[test]
    fn a_line_is_refused_when_its_limit_is_reached_without_end() {
        let limits = ParseLimits { control_line_bytes_max: 16, payload_bytes_max: 8 };
        let mut line = b"MSG aaaaaaa 1 1".to_vec();
        assert!(matches!(super::parse(&line, &limits), Ok(None)));
        line.push(b' ');
        let error = ParseError::LineTooLong { limit_bytes: 16 };
        assert_eq!(super::parse(&line, &limits), Err(error));
        line[15] = b'\n';
        assert!(matches!(super::parse(&line, &limits), Ok(None)), "waits for the payload");
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_before_it_arrives() {
        let limits = ParseLimits { control_line_bytes_max: 64, payload_bytes_max: 8 };
        assert_eq!(super::parse(b"MSG a 1 8\r\n", &limits), Ok(None));
        let error = ParseError::PayloadTooLarge { announced_bytes: 9, limit_bytes: 8 };
        assert_eq!(super::parse(b"MSG a 1 9\r\n", &limits), Err(error));
    }

    #[test]
    fn a_payload_of_another_length_than_announced_is_refused() {
        assert_eq!(parse(b"MSG a 1 2\r\nabc\r\n"), Err(ParseError::PayloadEnd));
    }
}
