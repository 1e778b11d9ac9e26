//! Two calls to sessions that Pitaya's gateways do not know: what is there to know about a client, and its quiet end.
//!
//! A Go gateway answers both with `PIT-404`, which our workers take for "nothing is known here".

use std::net::{IpAddr, SocketAddr};

use proto::Message;
use shared::close::CloseReason;

use crate::connection::Connection;
use crate::turn::Core;

/// Answered with what [`describe`] makes.
pub const DESCRIBE: &str = "sys.describesession";
/// Ends the connection without a kick.
pub const CLOSE: &str = "sys.closesession";

/// The encoded answer: `{"address":"192.0.2.1:4711","handshake":{"sys":{…},"user":{…}}}` in a `protos.Response`.
pub fn describe(connection: &Connection) -> Vec<u8> {
    let address = plain(connection.peer);
    let handshake = connection.client.handshake.as_deref().unwrap_or(b"null");
    let mut data = format!(r#"{{"address":"{address}","handshake":"#).into_bytes();
    data.extend_from_slice(handshake);
    data.push(b'}');
    proto::Response { data: data.into(), error: None }.encode_to_vec()
}

/// Ends the connection after what is queued for it.
pub fn close(connection: &mut Connection, core: &mut Core) {
    connection.client.ending.ask();
    core.ending.push((connection.token, CloseReason::ClosedByServer));
}

/// An IPv4 address as such, also when a dual-stack socket shows it as mapped.
fn plain(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}
