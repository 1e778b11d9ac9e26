//! Listening sockets: bound early by the starting thread, one a reactor and address, served last.
//!
//! All sockets of an address share its port through SO_REUSEPORT, so that each reactor accepts for itself. The options
//! set here are inherited by accepted sockets, which spares system calls at accept.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol as IpProtocol, Socket, TcpKeepalive, Type};

use crate::wire::Protocol;

/// Connections that wait to be accepted, a socket.
const BACKLOG: i32 = 4_096;
/// As Go's defaults (client protocol 9).
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A bound socket and what it speaks.
pub struct Listener {
    /// The socket.
    pub socket: OwnedFd,
    /// What clients speak on it.
    pub service: Service,
}

/// What clients speak on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Packets on the stream, or in a WebSocket.
    pub protocol: Protocol,
    /// What lies under that.
    pub security: Security,
}

/// Whether a port speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Bytes as they are.
    Plain,
    /// TLS, from the first byte on.
    Tls,
}

/// Binds `count` sockets to one address. With port 0 the first one decides the port. The kernel ends an accepted
/// connection when what was sent on it stays unacknowledged, or finds no window, for `unacknowledged_max` (whole ms are
/// counted), so that also what has left the outbox has a deadline. Sockets keep this time: a listener does not follow a
/// reload.
///
/// Errors: the address cannot be bound.
pub fn bind(
    address: SocketAddr,
    count: usize,
    unacknowledged_max: Duration,
) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    let mut bound = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = bind_one(bound, unacknowledged_max)?;
        bound = socket.local_addr()?.as_socket().unwrap_or(bound);
        sockets.push(OwnedFd::from(socket));
    }
    Ok((bound, sockets))
}

fn bind_one(address: SocketAddr, unacknowledged_max: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(IpProtocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // An empty host listens on both families, as Go does.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    // Only Linux has it, and there it decides about keepalive too: an idle connection ends at the first unanswered probe
    // behind this time instead of the tenth.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(unacknowledged_max))?;
    #[cfg(not(target_os = "linux"))]
    let _ = unacknowledged_max;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Parses a listen address as Go writes it: `host:port`, or `:port` for all interfaces of both families.
///
/// Errors: a text for the operator.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => text.replace("localhost:", "127.0.0.1:"),
    };
    full.parse().map_err(|_| format!("{text:?} is not host:port with an IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_host_means_all_interfaces_of_both_families() {
        assert_eq!(parse(":3250").unwrap(), "[::]:3250".parse().unwrap());
        assert_eq!(parse("127.0.0.1:1").unwrap(), "127.0.0.1:1".parse().unwrap());
        assert!(parse("3250").is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn sockets_of_one_address_share_its_port() {
        let address = "127.0.0.1:0".parse().unwrap();
        let (address, sockets) = bind(address, 2, Duration::from_secs(1)).unwrap();
        assert_ne!(address.port(), 0);
        assert_eq!(sockets.len(), 2);
    }
}
