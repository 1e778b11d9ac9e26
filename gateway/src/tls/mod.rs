//! TLS towards clients: certificates that can be changed while running, the session of one connection, and the count
//! of handshakes under way.
//!
//! No sockets here: bytes in, bytes out. TLS towards NATS is in bus/tls.rs.

mod certificates;
mod expiry;
mod handshakes;
mod session;

pub use certificates::{CertificateError, CertificateFiles, Certificates, OldestVersion};
pub use expiry::{Notice, Watch};
pub use handshakes::Handshakes;
pub use session::{TlsEnd, TlsSession};
