//! The transport: who gives reactors the connections that they ask for, and what it needs while the gateway starts and
//! ends. Over NATS that is nearly nothing; over gRPC there are a port and other servers.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use shared::cluster::binding_writer::BindingInlet;
use shared::cluster::discovery::Discovery;
use shared::cluster::etcd::EtcdError;
use shared::server::Server;
use worker::grpc::GrpcLink;

use super::cluster::TransportPlan;
use super::connector::Connector;
use super::plan::Plan;
use crate::gateway::StartError;
use crate::grpc::GrpcTransport;
use crate::mailbox::Mailbox;

/// NATS or gRPC.
pub enum Transport {
    /// Connects to NATS.
    Nats(Connector),
    /// Builds bridges.
    Grpc(Box<GrpcTransport>),
}

impl Transport {
    /// Binds the port that other servers call, where they do.
    ///
    /// Errors: a taken port.
    pub fn bind(plan: &Plan) -> Result<Option<TcpListener>, StartError> {
        let Some(cluster) = &plan.cluster else { return Ok(None) };
        let TransportPlan::Grpc(settings) = &cluster.transport else { return Ok(None) };
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, settings.port));
        let bound = TcpListener::bind(address);
        bound.map(Some).map_err(|source| StartError::Listen { address, source })
    }

    /// The transport of the plan; none in standalone mode. `listener` is what [`Transport::bind`] gave.
    ///
    /// Errors: the socket cannot be used.
    pub fn new(
        plan: &Plan,
        mailboxes: &Arc<[Arc<Mailbox>]>,
        listener: Option<TcpListener>,
    ) -> io::Result<Option<Self>> {
        let Some(cluster) = &plan.cluster else { return Ok(None) };
        Ok(Some(match (&cluster.transport, listener) {
            (TransportPlan::Grpc(settings), Some(listener)) => {
                let grpc = GrpcTransport::new(settings.clone(), plan.rules.clone(), listener)?;
                Self::Grpc(Box::new(grpc))
            }
            (TransportPlan::Nats { plan, .. }, _) => {
                Self::Nats(Connector::new(plan.clone(), mailboxes.clone()))
            }
            (TransportPlan::Grpc(_), None) => return Ok(None),
        }))
    }

    /// Begins to connect a reactor; the socket comes to its mailbox.
    pub fn connect(&mut self, reactor: usize, mailboxes: &[Arc<Mailbox>]) {
        match self {
            Self::Nats(connector) => connector.connect(reactor),
            Self::Grpc(grpc) => {
                if let Some(mailbox) = mailboxes.get(reactor) {
                    grpc.connect(mailbox.clone());
                }
            }
        }
    }

    /// Takes up servers that a NATS cluster has named.
    pub fn learn(&self, addresses: &[String]) {
        if let Self::Nats(connector) = self {
            connector.learn(addresses);
        }
    }

    /// Lets binds tell a user's last frontend where nothing else does: over NATS all frontends hear of each bind.
    pub fn follow_bindings(&self, inlet: BindingInlet, own_id: &str) -> BindingInlet {
        match self {
            Self::Nats(_) => inlet,
            Self::Grpc(grpc) => inlet.telling(grpc.announcing_binds(own_id)),
        }
    }

    /// Adds to the own record how this server is reached.
    pub fn announce_in(&self, own: &mut Server) {
        if let Self::Grpc(grpc) = self {
            grpc.announce_in(own);
        }
    }

    /// Follows the other servers.
    ///
    /// Errors: the endpoints of the binding storage.
    pub fn join(&mut self, discovery: &Discovery) -> Result<(), EtcdError> {
        match self {
            Self::Nats(_) => Ok(()),
            Self::Grpc(grpc) => grpc.join(discovery.tables()),
        }
    }

    /// What a hosted application calls others with, unless it has a connection of its own.
    pub fn link(&self) -> Option<Arc<GrpcLink>> {
        match self {
            Self::Nats(_) => None,
            Self::Grpc(grpc) => grpc.link(),
        }
    }

    /// Takes calls from now on.
    ///
    /// Errors: the socket cannot be used.
    pub fn serve(&mut self) -> io::Result<()> {
        match self {
            Self::Nats(_) => Ok(()),
            Self::Grpc(grpc) => grpc.serve(),
        }
    }

    /// Ends what is still under way, when the reactors have ended.
    pub async fn stop(self) {
        if let Self::Grpc(grpc) = self {
            grpc.stop().await;
        }
    }
}
