//! Where to connect: `host:port`, `tcp://host:port` or `ws://host[:port][/path]`; with TLS `tls://` and `wss://`.
//!
//! Pure text; names are resolved where the socket is opened.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// How packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Packets back to back on a TCP stream.
    Tcp,
    /// One packet a binary WebSocket message.
    WebSocket,
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::WebSocket => "ws",
        })
    }
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `None` when no scheme was given: the caller probes or assumes.
    pub transport: Option<Transport>,
    /// Whether TLS lies under it.
    pub is_secured: bool,
    /// Name or address; an IPv6 address without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Request target of a WebSocket upgrade, beginning with `/`.
    pub path: String,
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another scheme than these four.
    #[error("unknown scheme in {0}: expected tcp://, ws://, tls:// or wss://")]
    UnknownScheme(String),
    /// No port, where none can be assumed.
    #[error("no port in {0}: expected host:port")]
    MissingPort(String),
    /// The port is not a number from 1 to 65535.
    #[error("invalid port in {0}")]
    InvalidPort(String),
    /// Empty host, or white space or control characters in the text.
    #[error("invalid host or path in {0:?}")]
    Malformed(String),
}

impl Address {
    /// `host:port` as `Host:` headers and resolvers take it, with brackets around IPv6.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.transport, self.is_secured) {
            (Some(Transport::Tcp), true) => formatter.write_str("tls://")?,
            (Some(Transport::WebSocket), true) => formatter.write_str("wss://")?,
            (Some(transport), false) => write!(formatter, "{transport}://")?,
            (None, _) => {}
        }
        formatter.write_str(&self.authority())?;
        let is_plain = self.path == "/" && self.transport != Some(Transport::WebSocket);
        formatter.write_str(if is_plain { "" } else { &self.path })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        let malformed = || AddressError::Malformed(text.to_owned());
        // What follows goes into an HTTP request line and header, so nothing may break out of them.
        if text.chars().any(|character| character.is_whitespace() || character.is_control()) {
            return Err(malformed());
        }
        let (transport, is_secured, rest) = match text.split_once("://") {
            None => (None, false, text),
            Some(("tcp", rest)) => (Some(Transport::Tcp), false, rest),
            Some(("ws", rest)) => (Some(Transport::WebSocket), false, rest),
            Some(("tls", rest)) => (Some(Transport::Tcp), true, rest),
            Some(("wss", rest)) => (Some(Transport::WebSocket), true, rest),
            Some(_) => return Err(AddressError::UnknownScheme(text.to_owned())),
        };
        let path_start = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(path_start);
        let (host, port) = split_authority(authority).ok_or_else(malformed)?;
        let port = match (port, transport) {
            (Some(port), _) => match port.parse::<u16>() {
                Ok(port) if port > 0 => port,
                _ => return Err(AddressError::InvalidPort(text.to_owned())),
            },
            (None, Some(Transport::WebSocket)) if is_secured => 443,
            (None, Some(Transport::WebSocket)) => 80,
            (None, _) => return Err(AddressError::MissingPort(text.to_owned())),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { transport, is_secured, host: host.to_owned(), port, path })
    }
}

/// Host without brackets, and the text of the port; `None` when the host is empty, ambiguous, or has
/// brackets around what is not IPv6.
fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        return host.parse::<Ipv6Addr>().is_ok().then_some((host, port));
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let is_host = !host.is_empty() && !host.contains(['[', ']']);
    (is_host && !port.is_some_and(|port| port.contains(':'))).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<Transport>, String, u16, String) {
        let address: Address = text.parse().unwrap();
        (address.transport, address.host, address.port, address.path)
    }

    #[test]
    fn an_address_without_scheme_leaves_the_transport_open() {
        assert_eq!(parsed("localhost:3250"), (None, "localhost".into(), 3250, "/".into()));
        assert_eq!(parsed("[::1]:3250"), (None, "::1".into(), 3250, "/".into()));
    }

    #[test]
    fn a_websocket_url_keeps_its_path_and_assumes_port_80() {
        assert_eq!(parsed("ws://game/x?y=1").3, "/x?y=1");
        assert_eq!(parsed("ws://game?y=1").3, "/?y=1");
        assert_eq!(parsed("ws://game").2, 80);
        assert_eq!("ws://[::1]:5/a".parse::<Address>().unwrap().to_string(), "ws://[::1]:5/a");
    }

    #[test]
    fn a_scheme_with_tls_says_so_and_comes_back() {
        let address: Address = "wss://game/x".parse().unwrap();
        assert!(address.is_secured && address.port == 443);
        for text in ["wss://game:443/x", "tls://game:3250", "tcp://game:3250"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(
                (address.to_string().as_str(), address.is_secured),
                (text, text != "tcp://game:3250")
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        assert!(matches!(error("localhost"), AddressError::MissingPort(_)));
        assert!(matches!(error("localhost:0"), AddressError::InvalidPort(_)));
        assert!(matches!(error("localhost:65536"), AddressError::InvalidPort(_)));
        assert!(matches!(error("tls://game"), AddressError::MissingPort(_)));
        assert!(matches!(error("http://game"), AddressError::UnknownScheme(_)));
        for text in [
            "",
            ":1",
            "::1",
            "[]:1",
            "[::1",
            "[::1]1",
            "]:1",
            "[[]:1",
            "[a]:1",
            "ws://a\r\nb",
            "ws:///x",
        ] {
            assert!(matches!(error(text), AddressError::Malformed(_)), "{text:?}");
        }
    }
}
