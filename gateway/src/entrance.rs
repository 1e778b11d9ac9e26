//! The entrance: what a connection passes before its packets. First a PROXY header, where proxies stand in front of us,
//! then TLS.
//!
//! It knows bytes only; whom to believe and what becomes of an address is the reactor's. A plain connection without
//! proxies has an empty entrance and pays nothing. The invariant: bytes come out in the order in which they came in,
//! and nothing comes out before the header is whole.

use shared::close::CloseReason;
use shared::proxy::{self, Source};

use crate::tls::TlsSession;
use crate::wire::Wire;

/// The entrance of one connection, as a value that moves between reactors.
#[derive(Default)]
pub struct Entrance {
    /// The front of a PROXY header, while one is waited for.
    header: Option<Vec<u8>>,
    /// TLS, on a port that speaks it.
    pub tls: Option<Box<TlsSession>>,
}

impl Entrance {
    /// An entrance with a PROXY header, TLS, both or nothing.
    pub fn new(expects_header: bool, tls: Option<Box<TlsSession>>) -> Self {
        Self { header: expects_header.then(Vec::new), tls }
    }

    /// Whether a PROXY header is still waited for.
    pub fn is_awaiting_header(&self) -> bool {
        self.header.is_some()
    }

    /// Takes bytes of the socket while a header is waited for. With the header whole: what it says, and the bytes
    /// behind it.
    ///
    /// Errors: they are no header.
    pub fn take_header(&mut self, bytes: &[u8]) -> Result<Option<(Source, Vec<u8>)>, CloseReason> {
        let Some(front) = &mut self.header else { return Ok(None) };
        front.extend_from_slice(bytes);
        let found = proxy::decode(front).map_err(|_| CloseReason::ProxyHeader)?;
        let Some((source, taken)) = found else { return Ok(None) };
        let mut rest = self.header.take().unwrap_or_default();
        rest.drain(..taken);
        Ok(Some((source, rest)))
    }

    /// Whether a TLS handshake is under way.
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Why a stream ends that the client has ended here: in the middle of a header or a record it is not a good end.
    pub fn reason_of_end(&self) -> CloseReason {
        if self.header.as_ref().is_some_and(|front| !front.is_empty()) {
            CloseReason::ProxyHeader
        } else if self.tls.as_ref().is_some_and(|tls| tls.is_cut()) {
            CloseReason::Tls
        } else {
            CloseReason::PeerClosed
        }
    }

    /// Keeps bytes that came while the connection is being moved, to be looked at in the new place.
    pub fn keep(&mut self, bytes: &[u8], wire: &mut Wire) {
        match (&mut self.header, &mut self.tls) {
            (Some(front), _) => front.extend_from_slice(bytes),
            (None, Some(tls)) => tls.keep(bytes),
            (None, None) => wire.keep(bytes),
        }
    }

    /// Bytes that wait here for more, or to be sent, for memory accounts.
    pub fn held_bytes(&self) -> usize {
        let header_bytes = self.header.as_ref().map_or(0, Vec::len);
        header_bytes + self.tls.as_ref().map_or(0, |tls| tls.held_bytes())
    }

    /// Whether bytes wait here to be sent.
    pub fn has_output(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_output())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_in_pieces_comes_out_with_what_is_behind_it() {
        let mut entrance = Entrance::new(true, None);
        let bytes = b"PROXY TCP4 192.0.2.1 198.51.100.2 51234 3250\r\n\x01\0\0\0";
        let (last, front) = bytes.split_last().unwrap();
        for byte in front.iter().take(45) {
            assert_eq!(entrance.take_header(&[*byte]), Ok(None));
        }
        assert!(entrance.is_awaiting_header());
        let (source, rest) = entrance.take_header(&[b'\n', 1, 0, 0, *last]).unwrap().unwrap();
        assert_eq!(source, Source::Client("192.0.2.1:51234".parse().unwrap()));
        assert_eq!(rest, [1, 0, 0, 0]);
        assert!(!entrance.is_awaiting_header());
        assert_eq!(entrance.reason_of_end(), CloseReason::PeerClosed);
    }

    #[test]
    fn an_end_inside_a_header_is_no_good_end() {
        let mut entrance = Entrance::new(true, None);
        assert_eq!(entrance.reason_of_end(), CloseReason::PeerClosed, "a probe of the port");
        entrance.take_header(b"PROXY").unwrap();
        assert_eq!(entrance.reason_of_end(), CloseReason::ProxyHeader);
        assert_eq!(entrance.take_header(b"!"), Err(CloseReason::ProxyHeader));
    }
}
