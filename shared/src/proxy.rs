//! What a proxy in front of us says of the client behind it: PROXY protocol headers, versions 1 and 2, and the HTTP
//! headers X-Forwarded-For and X-Real-IP.
//!
//! Whether a proxy is to be believed is the caller's affair. The invariant: a header is refused as soon as its bytes
//! cannot become a good one, so nobody has to wait for a deadline with a wrong one, and at most
//! [`HEADER_BYTES_MAX`] bytes are ever waited for.

use std::net::{IpAddr, SocketAddr};

use proxy_header::{Error, ParseConfig, ProxyHeader};

use crate::networks::Networks;

/// Longest header: the fixed part of version 2 and what Pitaya takes behind it (client protocol 11).
pub const HEADER_BYTES_MAX: usize = FIXED_BYTES_V2 + REST_BYTES_MAX_V2;
/// Longest line of version 1, its CRLF included.
const LINE_BYTES_MAX_V1: usize = 107;
const PREFIX_V1: &[u8] = b"PROXY ";
const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and length.
const FIXED_BYTES_V2: usize = 16;
const REST_BYTES_MAX_V2: usize = 2_048;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The proxy speaks for this client.
    Client(SocketAddr),
    /// The proxy speaks for itself, or does not know: LOCAL and UNKNOWN. The connection's own address stays.
    Proxy,
}

/// The bytes are no PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a PROXY protocol header")]
pub struct ProxyError;

/// Reads the header at the front of `bytes`: what it says, and how many bytes it took. `Ok(None)` means that it is
/// incomplete: call again with the same bytes and more behind them.
///
/// Errors: the bytes cannot become a header that we take: a wrong one, one over its limit, or a UNIX address.
pub fn decode(bytes: &[u8]) -> Result<Option<(Source, usize)>, ProxyError> {
    let is_complete = if begins(bytes, PREFIX_V1) {
        is_line_complete(bytes)?
    } else if begins(bytes, SIGNATURE_V2) {
        is_binary_complete(bytes)?
    } else {
        return Err(ProxyError);
    };
    if !is_complete {
        return Ok(None);
    }
    match ProxyHeader::parse(bytes, ParseConfig::default()) {
        Ok((header, taken)) => {
            let source = header.proxied_address().map_or(Source::Proxy, |addresses| {
                let source = addresses.source;
                Source::Client(SocketAddr::new(source.ip().to_canonical(), source.port()))
            });
            Ok(Some((source, taken)))
        }
        // It is all there, so one that wants more lies about its length.
        Err(Error::BufferTooShort | _) => Err(ProxyError),
    }
}

/// Whether bytes that were refused as something else are the front of a header, from a proxy that was set up for one
/// while we were not.
pub fn looks_like_header(bytes: &[u8]) -> bool {
    bytes.starts_with(PREFIX_V1) || bytes.starts_with(SIGNATURE_V2)
}

/// Whether `bytes` are a front of `whole`, or begin with all of it.
fn begins(bytes: &[u8], whole: &[u8]) -> bool {
    bytes.iter().zip(whole).all(|(ours, theirs)| ours == theirs)
}

fn is_line_complete(bytes: &[u8]) -> Result<bool, ProxyError> {
    let front = bytes.get(..bytes.len().min(LINE_BYTES_MAX_V1)).unwrap_or_default();
    let Some(end) = front.iter().position(|byte| *byte == b'\n') else {
        return if front.len() < LINE_BYTES_MAX_V1 { Ok(false) } else { Err(ProxyError) };
    };
    let line = front.get(PREFIX_V1.len()..end).and_then(|line| line.strip_suffix(b"\r"));
    let line = line.ok_or(ProxyError)?;
    // The number parser behind this would take a sign in front of a port.
    let is_address = |byte: &u8| byte.is_ascii_hexdigit() || b". :TCP".contains(byte);
    if line.starts_with(b"UNKNOWN") || line.iter().all(is_address) {
        Ok(true)
    } else {
        Err(ProxyError)
    }
}

/// ```text
/// 0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A | version, command | family | length, 2 bytes | addresses, then TLVs
/// ```
fn is_binary_complete(bytes: &[u8]) -> Result<bool, ProxyError> {
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE_V2.len()..FIXED_BYTES_V2) else {
        return Ok(false);
    };
    let rest_bytes = usize::from(u16::from_be_bytes([high, low]));
    let is_known = matches!(command, 0x20 | 0x21) && matches!(family >> 4, 0..=2);
    if !is_known || rest_bytes > REST_BYTES_MAX_V2 {
        return Err(ProxyError);
    }
    Ok(bytes.len() >= FIXED_BYTES_V2 + rest_bytes)
}

/// The client that HTTP headers of a trusted proxy speak for: in X-Forwarded-For, read from its end, the first address
/// that is not one of our proxies, since whatever stands in front of it may be the client's own invention; without
/// that header X-Real-IP. `None` when they say nothing that can be used.
pub fn forwarded_client(
    forwarded_for: Option<&str>,
    real_ip: Option<&str>,
    trusted: &Networks,
) -> Option<IpAddr> {
    let Some(forwarded_for) = forwarded_for else {
        return real_ip.and_then(forwarded_address);
    };
    let mut client = None;
    for part in forwarded_for.rsplit(',') {
        let Some(address) = forwarded_address(part) else { break };
        client = Some(address);
        if !trusted.contains(address) {
            break;
        }
    }
    client
}

/// An address as proxies write it: alone, or with a port.
fn forwarded_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok();
    let address =
        address.or_else(|| text.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
