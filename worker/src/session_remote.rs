//! What only the gateway that holds a session's connection knows and can do: where the client is, what it said in its
//! handshake, and the end of the connection.
//!
//! Gateways of ours answer these calls, in the cluster and in standalone mode alike. A Go gateway knows neither call:
//! then nothing is known, and a close does nothing, which is what Pitaya's sessions do on backends.

use std::net::SocketAddr;

use bytes::Bytes;
use prost::Message;
use serde::Deserialize;
use shared::error::code;

use crate::error::{Error, Result};
use crate::handshake::Handshake;
use crate::session::Session;

/// What a gateway knows about the client of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientInfo {
    /// Where the client connected from; of a client behind a proxy what the PROXY header said.
    pub address: SocketAddr,
    /// The data of the last accepted handshake; none before one.
    pub handshake: Option<Handshake>,
}

#[derive(Deserialize)]
struct Described {
    address: SocketAddr,
    handshake: Option<shared::handshake::HandshakeRequest>,
}

impl Session {
    /// What the gateway knows about the client; none from a Go gateway. Costs a call to the gateway. Fails with
    /// `session not found` when the client has gone, and as every call can.
    pub async fn client(&self) -> Result<Option<ClientInfo>> {
        let Some(data) = self.ask_frontend("sys.describesession").await? else { return Ok(None) };
        let Described { address, handshake } = serde_json::from_slice(&data)?;
        Ok(Some(ClientInfo { address, handshake: handshake.map(Handshake::new) }))
    }

    /// The client's address; none from a Go gateway. See [`Session::client`].
    pub async fn remote_address(&self) -> Result<Option<SocketAddr>> {
        Ok(self.client().await?.map(|client| client.address))
    }

    /// The data of the client's last accepted handshake; none from a Go gateway. See [`Session::client`].
    pub async fn handshake(&self) -> Result<Option<Handshake>> {
        Ok(self.client().await?.and_then(|client| client.handshake))
    }

    /// Ends the client's connection without a kick: its library will connect again. What was pushed before still goes
    /// out. Does nothing at a Go gateway. The answer to the request of this call is usually lost.
    pub async fn close(&self) -> Result<()> {
        self.ask_frontend("sys.closesession").await.map(drop)
    }

    /// None when the gateway does not know the call.
    async fn ask_frontend(&self, route: &str) -> Result<Option<Bytes>> {
        let session = proto::Session { id: self.id(), ..proto::Session::default() };
        match self.call_frontend_for(route, session.encode_to_vec()).await {
            Ok(data) => Ok(Some(data)),
            Err(Error { code, .. }) if code == code::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }
}
