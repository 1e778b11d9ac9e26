//! The client's half of a WebSocket upgrade: one request, and a check of what comes back.
//!
//! Pure: it neither reads nor writes a socket, so the blocking, the async and the load client share it. It offers no
//! subprotocol and no extension, because Pitaya servers select none (client protocol 12).

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

/// Most bytes of a response head that is waited for; what is longer is no game server.
pub const RESPONSE_BYTES_MAX: usize = 8 * 1024;

const HEADERS_MAX: usize = 32;

/// Why a server's answer does not open a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// Not HTTP at all, or more header bytes or lines than are taken.
    #[error("the server's answer to the WebSocket upgrade is not HTTP")]
    NotHttp,
    /// Another status than 101.
    #[error("the server refused the WebSocket upgrade with status {status}")]
    Refused {
        /// HTTP status.
        status: u16,
    },
    /// `Upgrade`, `Connection` or `Sec-WebSocket-Accept` is missing or wrong.
    #[error("the server's {header} header does not fit the WebSocket upgrade")]
    WrongHeader {
        /// Which.
        header: &'static str,
    },
}

/// An upgrade request and the key that its answer must prove.
#[derive(Clone, Debug)]
pub struct UpgradeRequest {
    bytes: Vec<u8>,
    accept: String,
}

impl UpgradeRequest {
    /// A request for `path` (begins with `/`) at `authority` (`host:port`), with a fresh key.
    pub fn new(authority: &str, path: &str) -> Self {
        let key = generate_key();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        );
        Self { bytes: request.into_bytes(), accept: derive_accept_key(key.as_bytes()) }
    }

    /// Adds a header, such as `Origin`; the value is sent as it is.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        // Before the empty line.
        self.bytes.truncate(self.bytes.len() - 2);
        self.bytes.extend_from_slice(format!("{name}: {value}\r\n\r\n").as_bytes());
        self
    }

    /// What to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the response head at the front of `received`, after which frames follow; `Ok(None)` = incomplete.
    pub fn handle_response(&self, received: &[u8]) -> Result<Option<usize>, UpgradeError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let head_bytes = match response.parse(received) {
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Ok(httparse::Status::Partial) if received.len() < RESPONSE_BYTES_MAX => {
                return Ok(None);
            }
            Ok(httparse::Status::Partial) | Err(_) => return Err(UpgradeError::NotHttp),
        };
        let status = response.code.unwrap_or_default();
        if status != 101 {
            return Err(UpgradeError::Refused { status });
        }
        let value = |name: &'static str| {
            let found =
                response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found
                .and_then(|header| std::str::from_utf8(header.value).ok())
                .map(str::trim)
                .ok_or(UpgradeError::WrongHeader { header: name })
        };
        if !value("Upgrade")?.eq_ignore_ascii_case("websocket") {
            return Err(UpgradeError::WrongHeader { header: "Upgrade" });
        }
        if !value("Connection")?.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade"))
        {
            return Err(UpgradeError::WrongHeader { header: "Connection" });
        }
        if value("Sec-WebSocket-Accept")? != self.accept {
            return Err(UpgradeError::WrongHeader { header: "Sec-WebSocket-Accept" });
        }
        Ok(Some(head_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(request: &UpgradeRequest) -> String {
        let accept = &request.accept;
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
    }

    #[test]
    fn a_right_answer_is_taken_at_any_split_and_leaves_the_frames_behind_it() {
        let request = UpgradeRequest::new("game:80", "/");
        let answer = answer(&request);
        for end in 0..answer.len() {
            assert_eq!(request.handle_response(&answer.as_bytes()[..end]), Ok(None));
        }
        let with_frame = [answer.as_bytes(), &[0x82, 0x00]].concat();
        assert_eq!(request.handle_response(&with_frame), Ok(Some(answer.len())));
    }

    #[test]
    fn headers_are_added_before_the_empty_line() {
        let request = UpgradeRequest::new("game:80", "/x").with_header("Origin", "http://a");
        let text = String::from_utf8(request.bytes().to_vec()).unwrap();
        assert!(text.starts_with("GET /x HTTP/1.1\r\nHost: game:80\r\n"), "{text}");
        assert!(text.ends_with("==\r\nOrigin: http://a\r\n\r\n"), "{text}");
    }

    #[test]
    fn a_wrong_answer_says_what_is_wrong() {
        let request = UpgradeRequest::new("game:80", "/");
        let good = answer(&request);
        let check = |text: &str| request.handle_response(text.as_bytes()).unwrap_err();
        assert_eq!(check("HTTP/1.1 403 Forbidden\r\n\r\n"), UpgradeError::Refused { status: 403 });
        assert_eq!(check("\u{1}\0\0\u{2}{}"), UpgradeError::NotHttp);
        let accept = good.replace(&request.accept, "AAAA");
        assert_eq!(check(&accept), UpgradeError::WrongHeader { header: "Sec-WebSocket-Accept" });
        let upgrade = good.replace("upgrade: WebSocket\r\n", "");
        assert_eq!(check(&upgrade), UpgradeError::WrongHeader { header: "Upgrade" });
        let connection = good.replace("keep-alive, Upgrade", "close");
        assert_eq!(check(&connection), UpgradeError::WrongHeader { header: "Connection" });
        let endless = format!("HTTP/1.1 101 x\r\na: {}", "b".repeat(RESPONSE_BYTES_MAX));
        assert_eq!(check(&endless), UpgradeError::NotHttp);
    }
}
