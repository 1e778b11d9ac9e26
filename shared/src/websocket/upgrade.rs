//! The HTTP request that turns a TCP connection into a WebSocket, judged as Pitaya's server judges it
//! (client protocol 12), and a plain GET for a port that also serves the demo page.
//!
//! Not an HTTP server: one head, one answer. Nothing but the head is taken from the buffer, so a frame that came in
//! the same segment is still there. Query strings are dropped here, because they carry tokens and must never reach a
//! log (hostile inputs 71).

use tungstenite::handshake::derive_accept_key;

/// Headers that a head may have at most; a compile-time bound because the parser fills a table on the stack.
const HEADERS_MAX: usize = 64;
/// Base64 characters of 16 bytes before the two padding characters.
const KEY_CHARACTERS: usize = 22;

/// Which web pages may open a connection. Programs outside a browser send no `Origin` and are never refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OriginPolicy {
    /// Every page, as in Pitaya.
    #[default]
    Any,
    /// Only pages from the host that the request itself names.
    SameHost,
    /// Only these: whole origins (`https://game.example.com`), or hosts with any scheme (`game.example.com:8080`).
    List(Vec<String>),
}

/// What [`accept`] allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeLimits {
    /// Bytes of the request's head, its final empty line included.
    pub head_bytes_max: usize,
    /// Which web pages may connect.
    pub origins: OriginPolicy,
    /// A GET that asks for no upgrade becomes [`Upgrade::PlainGet`] instead of a refusal.
    pub serves_pages: bool,
}

impl Default for UpgradeLimits {
    fn default() -> Self {
        Self { head_bytes_max: 8 * 1024, origins: OriginPolicy::Any, serves_pages: false }
    }
}

/// What a caller may want to know of an accepted request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// The path without its query.
    pub path: String,
    /// `Origin`, if the client is a browser.
    pub origin: Option<String>,
    /// `Host`.
    pub host: Option<String>,
    /// `X-Forwarded-For`, several of them joined by commas. Anybody can write it: trust it only from a proxy of yours.
    pub forwarded_for: Option<String>,
    /// `X-Real-IP`, with the same caution.
    pub real_ip: Option<String>,
}

/// The verdict on the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// The head is not complete; call again with more bytes behind the same ones.
    Incomplete,
    /// A WebSocket request: send `response`, then speak frames.
    Accepted {
        /// Bytes of the head. What follows belongs to the frames.
        consumed: usize,
        /// The whole 101 answer.
        response: Vec<u8>,
        /// Who asked for what.
        head: RequestHead,
    },
    /// A GET without an upgrade, only with [`UpgradeLimits::serves_pages`]; answer with [`page_response`].
    PlainGet {
        /// The path without its query.
        path: String,
        /// Bytes of the head.
        consumed: usize,
    },
    /// Send `response`, then close.
    Refused {
        /// A whole HTTP answer with a line of text.
        response: Vec<u8>,
    },
}

/// Judges a request at the front of `bytes`, from the server's side. Anything that cannot become an HTTP head, a TLS
/// hello for one, is refused on its first bytes. Allocates once or twice a connection and never more than
/// [`UpgradeLimits::head_bytes_max`] bytes of text.
pub fn accept(bytes: &[u8], limits: &UpgradeLimits) -> Upgrade {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let consumed = match request.parse(bytes) {
        Ok(httparse::Status::Complete(consumed)) if consumed <= limits.head_bytes_max => consumed,
        Ok(httparse::Status::Partial) if bytes.len() < limits.head_bytes_max => {
            return Upgrade::Incomplete;
        }
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return refusal(Refusal::HeadTooLarge),
        Err(_) => return refusal(Refusal::NotHttp),
    };
    let request = Request::new(&request);
    if request.method != "GET" {
        return refusal(Refusal::Method);
    }
    if limits.serves_pages && !request.has_token("upgrade", "websocket") {
        return Upgrade::PlainGet { path: request.path().to_owned(), consumed };
    }
    match judge(&request, limits) {
        Ok(key) => Upgrade::Accepted { consumed, response: switching(key), head: request.head() },
        Err(reason) => refusal(reason),
    }
}

/// A whole HTTP answer for [`Upgrade::PlainGet`]; the connection is to be closed after it. `status` is one of 200, 404
/// or 405; `body` is sent as it is.
pub fn page_response(status: u16, content_type: &str, body: &[u8]) -> Vec<u8> {
    let phrase = match status {
        200 => "OK",
        405 => "Method Not Allowed",
        _ => "Not Found",
    };
    let mut out = format!(
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Cache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
         Connection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// Why a request is refused; the client sees status and text.
#[derive(Clone, Copy)]
enum Refusal {
    NotHttp,
    HeadTooLarge,
    Method,
    Version,
    Connection,
    Upgrade,
    WebSocketVersion,
    Key,
    Body,
    Origin,
}

impl Refusal {
    fn status_and_text(self) -> (&'static str, &'static str) {
        match self {
            Self::NotHttp => ("400 Bad Request", "this port speaks WebSocket over plain HTTP"),
            Self::HeadTooLarge => ("431 Request Header Fields Too Large", "request head too large"),
            Self::Method => ("405 Method Not Allowed", "the method must be GET"),
            Self::Version => ("400 Bad Request", "HTTP/1.1 is needed"),
            Self::Connection => ("400 Bad Request", "header Connection must contain upgrade"),
            Self::Upgrade => ("400 Bad Request", "header Upgrade must contain websocket"),
            Self::WebSocketVersion => {
                ("400 Bad Request", "header Sec-WebSocket-Version must be 13")
            }
            Self::Key => ("400 Bad Request", "header Sec-WebSocket-Key must be 16 bytes in base64"),
            Self::Body => ("400 Bad Request", "an upgrade request has no body"),
            Self::Origin => ("403 Forbidden", "this origin may not connect"),
        }
    }
}

fn refusal(reason: Refusal) -> Upgrade {
    let (status, text) = reason.status_and_text();
    let extra = match reason {
        Refusal::Method => "Allow: GET\r\n",
        Refusal::WebSocketVersion => "Sec-WebSocket-Version: 13\r\n",
        _ => "",
    };
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         X-Content-Type-Options: nosniff\r\n{extra}Connection: close\r\n\r\n{text}\n",
        text.len() + 1
    );
    Upgrade::Refused { response: response.into_bytes() }
}

fn switching(key: &[u8]) -> Vec<u8> {
    let accept = derive_accept_key(key);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

/// The key of a request that is in order. The checks are in the order of Pitaya's server, so that the texts name the
/// same cause.
fn judge<'b>(request: &Request<'_, 'b>, limits: &UpgradeLimits) -> Result<&'b [u8], Refusal> {
    if request.minor_version == 0 {
        return Err(Refusal::Version);
    }
    if !request.has_token("connection", "upgrade") {
        return Err(Refusal::Connection);
    }
    if !request.has_token("upgrade", "websocket") {
        return Err(Refusal::Upgrade);
    }
    if !request.has_token("sec-websocket-version", "13") {
        return Err(Refusal::WebSocketVersion);
    }
    if !is_allowed_origin(request, &limits.origins) {
        return Err(Refusal::Origin);
    }
    // Bytes after the head are read as frames; a body there would let a proxy and us disagree about where it ends.
    let no_body = request.values("content-length").all(|length| length.trim_ascii() == b"0");
    if !no_body || request.values("transfer-encoding").next().is_some() {
        return Err(Refusal::Body);
    }
    let mut keys = request.values("sec-websocket-key").map(<[u8]>::trim_ascii);
    match (keys.next(), keys.next()) {
        (Some(key), None) if is_key(key) => Ok(key),
        _ => Err(Refusal::Key),
    }
}

/// 16 bytes in base64: 22 characters of the alphabet and two of padding.
fn is_key(key: &[u8]) -> bool {
    let Some((characters, padding)) = key.split_at_checked(KEY_CHARACTERS) else {
        return false;
    };
    padding == b"=="
        && characters.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

fn is_allowed_origin(request: &Request<'_, '_>, policy: &OriginPolicy) -> bool {
    let Some(origin) = request.values("origin").next() else {
        return true;
    };
    let origin = origin.trim_ascii();
    let host = match origin.windows(3).position(|window| window == b"://") {
        Some(colon) => origin.get(colon + 3..).unwrap_or_default(),
        // `null`, from a sandboxed page, has no host.
        None => b"",
    };
    match policy {
        OriginPolicy::Any => true,
        OriginPolicy::SameHost => {
            let own = request.values("host").next().unwrap_or_default().trim_ascii();
            !own.is_empty() && own.eq_ignore_ascii_case(host)
        }
        OriginPolicy::List(allowed) => allowed.iter().any(|entry| {
            let entry = entry.as_bytes();
            !entry.is_empty()
                && (entry.eq_ignore_ascii_case(origin) || entry.eq_ignore_ascii_case(host))
        }),
    }
}

/// A parsed head with lookups by lower-case name.
struct Request<'h, 'b> {
    method: &'b str,
    target: &'b str,
    minor_version: u8,
    headers: &'h [httparse::Header<'b>],
}

impl<'h, 'b> Request<'h, 'b> {
    fn new(parsed: &'h httparse::Request<'_, 'b>) -> Self {
        Self {
            method: parsed.method.unwrap_or_default(),
            target: parsed.path.unwrap_or_default(),
            minor_version: parsed.version.unwrap_or_default(),
            headers: parsed.headers,
        }
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// Whether a header, a comma-separated list, contains `token` in any letter case.
    fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    fn path(&self) -> &'b str {
        self.target.split(['?', '#']).next().unwrap_or_default()
    }

    fn text(&self, name: &str) -> Option<String> {
        self.values(name).next().map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn head(&self) -> RequestHead {
        let forwarded: Vec<_> =
            self.values("x-forwarded-for").map(String::from_utf8_lossy).collect();
        RequestHead {
            path: self.path().to_owned(),
            origin: self.text("origin"),
            host: self.text("host"),
            forwarded_for: (!forwarded.is_empty()).then(|| forwarded.join(",")),
            real_ip: self.text("x-real-ip"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /chat?token=secret HTTP/1.1\r\nHost: game.example:3251\r\n\
        Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
        Origin: http://game.example:3251\r\n\r\n";

    fn status(upgrade: Upgrade) -> String {
        let response = match upgrade {
            Upgrade::Refused { response } | Upgrade::Accepted { response, .. } => response,
            other => panic!("{other:?}"),
        };
        String::from_utf8(response).unwrap()[9..12].to_owned()
    }

    fn changed(from: &str, to: &str) -> String {
        assert!(REQUEST.contains(from), "{from}");
        status(accept(REQUEST.replace(from, to).as_bytes(), &UpgradeLimits::default()))
    }

    #[test]
    fn a_good_request_is_accepted_and_leaves_the_bytes_behind_it() {
        let mut bytes = REQUEST.as_bytes().to_vec();
        bytes.extend_from_slice(&[0x82, 0x80, 0, 0, 0, 0]);
        let Upgrade::Accepted { consumed, response, head } =
            accept(&bytes, &UpgradeLimits::default())
        else {
            panic!("not accepted")
        };
        assert_eq!(consumed, REQUEST.len());
        // The key and its answer are those of RFC 6455 1.3; neither protocol nor extension is granted.
        assert_eq!(
            String::from_utf8(response).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
        assert_eq!(head.path, "/chat");
        assert_eq!(head.host.as_deref(), Some("game.example:3251"));
        assert_eq!(head.origin.as_deref(), Some("http://game.example:3251"));
        assert_eq!(head.forwarded_for, None);
    }

    #[test]
    fn every_shorter_prefix_is_incomplete() {
        for cut in 0..REQUEST.len() {
            let verdict = accept(&REQUEST.as_bytes()[..cut], &UpgradeLimits::default());
            assert_eq!(verdict, Upgrade::Incomplete, "cut at {cut}");
        }
    }

    #[test]
    fn each_missing_part_has_its_status() {
        assert_eq!(changed("GET", "POST"), "405");
        assert_eq!(changed("HTTP/1.1", "HTTP/1.0"), "400");
        assert_eq!(changed("Upgrade: websocket", "Upgrade: h2c"), "400");
        assert_eq!(changed("keep-alive, Upgrade", "keep-alive"), "400");
        assert_eq!(changed("Version: 13", "Version: 8"), "400");
        assert_eq!(changed("Sec-WebSocket-Version: 13\r\n", ""), "400");
        assert_eq!(changed("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), "400");
        assert_eq!(changed("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), "400");
        assert_eq!(changed("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZ!=="), "400");
        assert_eq!(changed("Host: ", "Content-Length: 5\r\nHost: "), "400");
        assert_eq!(changed("Host: ", "Transfer-Encoding: chunked\r\nHost: "), "400");
        assert_eq!(
            changed("Host: ", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nHost: "),
            "400"
        );
        assert_eq!(changed("Upgrade: websocket", "uPGRADE: WebSocket"), "101");
        assert_eq!(changed("Origin", "Content-Length: 0\r\nOrigin"), "101");
    }

    #[test]
    fn what_is_no_http_is_refused_on_its_first_bytes() {
        let limits = UpgradeLimits::default();
        for bytes in [&[0x16, 3, 1][..], &[0], b"GET / HTTP/2.0\r\n\r\n", b"\x01\x00\x00\x41{}"] {
            assert_eq!(status(accept(bytes, &limits)), "400", "{bytes:?}");
        }
    }

    #[test]
    fn a_head_over_its_limits_is_refused_whether_complete_or_not() {
        let limits = UpgradeLimits { head_bytes_max: 200, ..UpgradeLimits::default() };
        assert_eq!(status(accept(&REQUEST.as_bytes()[..200], &limits)), "431");
        assert_eq!(accept(&REQUEST.as_bytes()[..199], &limits), Upgrade::Incomplete);
        assert_eq!(status(accept(REQUEST.as_bytes(), &limits)), "431");
        let exact = UpgradeLimits { head_bytes_max: REQUEST.len(), ..UpgradeLimits::default() };
        assert_eq!(status(accept(REQUEST.as_bytes(), &exact)), "101");
        let many = REQUEST.replace("Host: ", &("X: y\r\n".repeat(60) + "Host: "));
        assert_eq!(status(accept(many.as_bytes(), &UpgradeLimits::default())), "431");
    }

    #[test]
    fn origins_are_checked_when_a_policy_says_so() {
        let verdict = |origins, from, to| {
            let limits = UpgradeLimits { origins, ..UpgradeLimits::default() };
            status(accept(REQUEST.replace(from, to).as_bytes(), &limits))
        };
        let list = |entry: &str| OriginPolicy::List(vec!["https://other".into(), entry.into()]);
        assert_eq!(verdict(OriginPolicy::SameHost, "", ""), "101");
        assert_eq!(verdict(OriginPolicy::SameHost, "http://game", "http://evil"), "403");
        assert_eq!(verdict(OriginPolicy::SameHost, "http://game.example:3251", "null"), "403");
        assert_eq!(verdict(list("HTTP://game.example:3251"), "", ""), "101");
        assert_eq!(verdict(list("game.example:3251"), "", ""), "101");
        assert_eq!(verdict(list("https://game.example:3251"), "", ""), "403");
        assert_eq!(verdict(list("game.example"), "", ""), "403");
        assert_eq!(verdict(list("x"), "Origin: http://game.example:3251\r\n", ""), "101");
    }

    #[test]
    fn a_plain_get_is_recognised_only_where_pages_are_served() {
        let request = b"GET /pitaya.js?x=1 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(status(accept(request, &UpgradeLimits::default())), "400");
        let limits = UpgradeLimits { serves_pages: true, ..UpgradeLimits::default() };
        assert_eq!(
            accept(request, &limits),
            Upgrade::PlainGet { path: "/pitaya.js".into(), consumed: request.len() }
        );
        assert_eq!(status(accept(REQUEST.as_bytes(), &limits)), "101");
    }

    #[test]
    fn forwarded_addresses_are_joined() {
        let forwarded = "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8, 9.9.9.9\r\nHost: ";
        let request = REQUEST.replace("Host: ", forwarded);
        let Upgrade::Accepted { head, .. } = accept(request.as_bytes(), &UpgradeLimits::default())
        else {
            panic!("not accepted")
        };
        assert_eq!(head.forwarded_for.as_deref(), Some("1.2.3.4,5.6.7.8, 9.9.9.9"));
    }

    #[test]
    fn a_page_is_a_whole_http_answer() {
        let page = String::from_utf8(page_response(200, "text/html", b"<p>")).unwrap();
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\n<p>"));
        assert!(page.contains("Content-Length: 3\r\n"));
    }
}
