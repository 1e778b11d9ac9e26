//! Addresses of NATS servers, as operators write them and as servers announce them.

use std::fmt;

use super::connect::{Auth, Secret};

/// Port of NATS where none is given.
pub const PORT_DEFAULT: u16 = 4222;

/// One server's address: `[nats://|tls://][user:password@|token@]host[:port]`.
///
/// `Debug` and `Display` mask what is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsUrl {
    /// Whether TLS is wanted (`tls://`), whatever the server says.
    pub tls: bool,
    /// Host name or address; IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The credentials in the address; [`Auth::None`] if there are none.
    pub auth: Auth,
}

/// Why an address cannot be used. The variants never contain the address, which may contain a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The list is empty.
    #[error("no NATS address given")]
    Empty,
    /// Only plain TCP and TLS are spoken; WebSocket (`ws`, `wss`) is not.
    #[error("NATS address {position}: scheme {scheme:?} is not supported (nats:// and tls:// are)")]
    Scheme {
        /// Which address of the list, from 1.
        position: usize,
        /// What stands before `://`.
        scheme: String,
    },
    /// There is no host, or one with characters that no host has.
    #[error("NATS address {position}: invalid host")]
    Host {
        /// Which address of the list, from 1.
        position: usize,
    },
    /// The port is not a number from 1 to 65535.
    #[error("NATS address {position}: invalid port")]
    Port {
        /// Which address of the list, from 1.
        position: usize,
    },
    /// User, password or token are not valid percent-encoded text.
    #[error("NATS address {position}: invalid user or password")]
    Credentials {
        /// Which address of the list, from 1.
        position: usize,
    },
}

impl NatsUrl {
    /// Parses addresses separated by commas; empty parts are ignored. At least one address is returned.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, UrlError> {
        let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
        let urls: Vec<_> = parts
            .enumerate()
            .map(|(index, part)| Self::parse(part, index + 1))
            .collect::<Result<_, _>>()?;
        if urls.is_empty() { Err(UrlError::Empty) } else { Ok(urls) }
    }

    fn parse(text: &str, position: usize) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("nats", text));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "nats" => false,
            "tls" => true,
            _ => return Err(UrlError::Scheme { position, scheme: scheme.to_owned() }),
        };
        // A password may contain "@" unescaped, a host never does.
        let (user_info, address) = match rest.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None => (None, rest),
        };
        let address = address.split_once('/').map_or(address, |(address, _path)| address);
        let (host, port) = split_port(address, position)?;
        let auth = match user_info {
            Some(user_info) => auth(user_info).ok_or(UrlError::Credentials { position })?,
            None => Auth::None,
        };
        Ok(Self { tls, host: host.to_owned(), port, auth })
    }
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "tls://" } else { "nats://" })?;
        match &self.auth {
            Auth::None => {}
            Auth::UserPassword { user, .. } => write!(f, "{user}:***@")?,
            _ => f.write_str("***@")?,
        }
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn split_port(address: &str, position: usize) -> Result<(&str, u16), UrlError> {
    let invalid_host = UrlError::Host { position };
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(invalid_host.clone())?;
        let port = if rest.is_empty() {
            None
        } else {
            Some(rest.strip_prefix(':').ok_or(invalid_host.clone())?)
        };
        let is_ipv6 =
            host.split('%').next().is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
        (if is_ipv6 { host } else { "" }, port)
    } else {
        match address.split_once(':') {
            // More than one colon without brackets is a bare IPv6 address.
            Some((_, rest)) if rest.contains(':') => {
                let is_ipv6 = address.parse::<std::net::Ipv6Addr>().is_ok();
                (if is_ipv6 { address } else { "" }, None)
            }
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    let is_host = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if host.is_empty() || !host.chars().all(is_host) {
        return Err(invalid_host);
    }
    let port = match port {
        None | Some("") => PORT_DEFAULT,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(UrlError::Port { position }),
        },
    };
    Ok((host, port))
}

fn auth(user_info: &str) -> Option<Auth> {
    Some(match user_info.split_once(':') {
        Some((user, password)) => Auth::UserPassword {
            user: percent_decode(user)?,
            password: Secret::new(percent_decode(password)?),
        },
        None if user_info.is_empty() => Auth::None,
        None => Auth::Token(Secret::new(percent_decode(user_info)?)),
    })
}

/// Resolves `%41`; a `%` that is followed by no two hexadecimal digits is refused.
fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            decoded.push((high * 16 + low) as u8);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> NatsUrl {
        let mut urls = NatsUrl::parse_list(text).unwrap();
        assert_eq!(urls.len(), 1);
        urls.remove(0)
    }

    fn address(text: &str) -> (bool, String, u16) {
        let url = one(text);
        (url.tls, url.host, url.port)
    }

    #[test]
    fn scheme_and_port_have_defaults() {
        assert_eq!(address("localhost"), (false, "localhost".into(), 4222));
        assert_eq!(address("nats://a.example:99/"), (false, "a.example".into(), 99));
        assert_eq!(address("TLS://10.0.0.1"), (true, "10.0.0.1".into(), 4222));
        assert_eq!(address("a:"), (false, "a".into(), 4222));
    }

    #[test]
    fn ipv6_addresses_are_read_with_and_without_brackets() {
        assert_eq!(address("nats://[::1]:5000"), (false, "::1".into(), 5000));
        assert_eq!(address("[fe80::1%eth0]"), (false, "fe80::1%eth0".into(), 4222));
        assert_eq!(address("2001:db8::1"), (false, "2001:db8::1".into(), 4222));
        assert_eq!(one("nats://[::1]:5000").to_string(), "nats://[::1]:5000");
    }

    #[test]
    fn credentials_are_read_and_unescaped() {
        let user_password = |user: &str, password: &str| Auth::UserPassword {
            user: user.into(),
            password: Secret::new(password),
        };
        assert_eq!(one("nats://u:p@h").auth, user_password("u", "p"));
        assert_eq!(one("nats://u%40x:p%3A%2f@h").auth, user_password("u@x", "p:/"));
        assert_eq!(one("nats://u:p@ss@h").auth, user_password("u", "p@ss"));
        assert_eq!(one("nats://secret@h").auth, Auth::Token(Secret::new("secret")));
    }

    #[test]
    fn lists_are_split_at_commas_and_empty_parts_ignored() {
        let urls = NatsUrl::parse_list(" nats://a , tls://b:1,, c").unwrap();
        let texts: Vec<_> = urls.iter().map(NatsUrl::to_string).collect();
        assert_eq!(texts, ["nats://a:4222", "tls://b:1", "nats://c:4222"]);
        assert_eq!(NatsUrl::parse_list(" , "), Err(UrlError::Empty));
    }

    #[test]
    fn mistakes_name_the_position_in_the_list() {
        let error = |text: &str| NatsUrl::parse_list(text).unwrap_err();
        assert_eq!(error("a,ws://b"), UrlError::Scheme { position: 2, scheme: "ws".into() });
        for host in ["nats://", "nats://:1", "[::1", "[::1]x", "[a]:1", "a:b:c", "a b", "a\r\nb"] {
            assert_eq!(error(&format!("a,{host},b")), UrlError::Host { position: 2 }, "{host:?}");
        }
        for port in ["a:0", "a:65536", "a:x", "a:-1"] {
            assert_eq!(error(port), UrlError::Port { position: 1 }, "{port}");
        }
        assert_eq!(error("%zz@a"), UrlError::Credentials { position: 1 });
        assert_eq!(error("u:%f@a"), UrlError::Credentials { position: 1 });
    }

    #[test]
    fn secrets_are_masked_wherever_an_address_is_shown() {
        for url in ["nats://user:hidden@h:1", "nats://hidden@h:1"] {
            let url = one(url);
            assert!(!format!("{url} {url:?}").contains("hidden"), "{url:?}");
        }
    }
}
