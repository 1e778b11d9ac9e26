//! The client's half of the NATS protocol, as a bus writes it: bytes to operations.
//!
//! It is no server for anybody: whoever writes here is a reactor of this process, so what a bus never says (queues,
//! headers, limits of a subscription) is a mistake. Nothing is copied, and nothing that is read can panic.
#![deny(clippy::indexing_slicing)]

/// Longest line; a line holds two subjects at most.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// What a bus asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    /// Who it is; nobody needs to know.
    Connect,
    /// To be answered with PONG, behind everything that was asked for before.
    Ping,
    /// The answer to a PING.
    Pong,
    /// Wants what comes on the subject.
    Subscribe { subject: &'a [u8], sid: u64 },
    /// Wants it no more.
    Unsubscribe { sid: u64 },
    /// A message.
    Publish { subject: &'a [u8], reply: Option<&'a [u8]>, payload: &'a [u8] },
}

/// A bus has written something that is no operation. Ours is the mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a bus wrote a line that is not understood")]
pub(super) struct BadLine;

/// The first operation and its length in bytes; none while it is not whole.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Operation<'_>, usize)>, BadLine> {
    let searched = bytes.get(..LINE_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = searched.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(None) } else { Err(BadLine) };
    };
    let line = bytes.get(..end).unwrap_or_default().trim_ascii_end();
    let (rest, line_bytes) = (bytes.get(end + 1..).unwrap_or_default(), end + 1);
    let mut words = line.split(|byte| *byte == b' ');
    let verb = words.next().unwrap_or_default();
    let arguments = [words.next(), words.next(), words.next()];
    let operation = match (verb, arguments) {
        (b"PUB", [Some(subject), Some(bytes), None]) => {
            return publish(subject, None, number(bytes)?, rest, line_bytes);
        }
        (b"PUB", [Some(subject), Some(reply), Some(bytes)]) => {
            return publish(subject, Some(reply), number(bytes)?, rest, line_bytes);
        }
        (b"SUB", [Some(subject), Some(sid), None]) => {
            Operation::Subscribe { subject, sid: number(sid)? }
        }
        (b"UNSUB", [Some(sid), None, None]) => Operation::Unsubscribe { sid: number(sid)? },
        (b"PING", [None, None, None]) => Operation::Ping,
        (b"PONG", [None, None, None]) => Operation::Pong,
        (b"CONNECT", _) => Operation::Connect,
        _ => return Err(BadLine),
    };
    Ok(Some((operation, line_bytes)))
}

fn publish<'a>(
    subject: &'a [u8],
    reply: Option<&'a [u8]>,
    payload_bytes: u64,
    rest: &'a [u8],
    line_bytes: usize,
) -> Result<Option<(Operation<'a>, usize)>, BadLine> {
    let payload_bytes = usize::try_from(payload_bytes).map_err(|_| BadLine)?;
    let whole_bytes = payload_bytes.checked_add(2).ok_or(BadLine)?;
    let Some((whole, _)) = rest.split_at_checked(whole_bytes) else { return Ok(None) };
    let payload = whole.strip_suffix(b"\r\n").ok_or(BadLine)?;
    Ok(Some((Operation::Publish { subject, reply, payload }, line_bytes + whole_bytes)))
}

fn number(word: &[u8]) -> Result<u64, BadLine> {
    std::str::from_utf8(word).ok().and_then(|text| text.parse().ok()).ok_or(BadLine)
}

#[cfg(test)]
mod tests {
    use shared::nats::encoder;

    use super::*;

    #[test]
    fn what_a_bus_writes_is_read_and_one_byte_less_is_waited_for() {
        let subject = b"pitaya/servers/room/r1".as_slice();
        let mut message = Vec::new();
        encoder::publish(&mut message, subject, Some(b"_INBOX.a.7"), b"pay\r\nload");
        let mut silent = Vec::new();
        encoder::publish(&mut silent, subject, None, b"");
        let mut wanted = Vec::new();
        encoder::subscribe(&mut wanted, subject, None, 16);
        let mut unwanted = Vec::new();
        encoder::unsubscribe(&mut unwanted, 16, None);
        for (bytes, expected) in [
            (
                message,
                Operation::Publish { subject, reply: Some(b"_INBOX.a.7"), payload: b"pay\r\nload" },
            ),
            (silent, Operation::Publish { subject, reply: None, payload: b"" }),
            (wanted, Operation::Subscribe { subject, sid: 16 }),
            (unwanted, Operation::Unsubscribe { sid: 16 }),
            (b"CONNECT {\"verbose\":false, \"a\": 1}\r\n".to_vec(), Operation::Connect),
            (encoder::PING.to_vec(), Operation::Ping),
            (encoder::PONG.to_vec(), Operation::Pong),
        ] {
            let all = bytes.len();
            let more = [bytes.as_slice(), b"PING\r\n"].concat();
            assert_eq!(parse(&more), Ok(Some((expected, all))));
            assert_eq!(parse(&bytes[..all - 1]), Ok(None));
        }
        assert_eq!(parse(b""), Ok(None));
    }

    #[test]
    fn what_no_bus_writes_is_refused() {
        for line in [
            "PUB a\r\n",
            "PUB a x\r\n",
            "PUB a b c d\r\n",
            "PUB a 1\r\nabc",
            "PUB a 18446744073709551615\r\n",
            "SUB a queue 1\r\n",
            "UNSUB 1 2\r\n",
            "HPUB a 1 1\r\n",
            "\r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(BadLine), "{line:?}");
        }
        assert_eq!(parse(&[b'a'; LINE_BYTES_MAX - 1]), Ok(None));
        assert_eq!(parse(&[b'a'; LINE_BYTES_MAX]), Err(BadLine));
    }
}
