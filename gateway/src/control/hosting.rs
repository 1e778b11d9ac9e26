//! The application that a gateway hosts: how it starts between the bus and the announcement, and how it ends.
//!
//! In a cluster it reaches other servers through a connection to NATS of its own, or over gRPC; sessions of this process it reaches
//! through the in-process bus. In standalone mode there is nobody else.

use std::sync::Arc;
use std::time::Duration;

use shared::cluster::discovery::Discovery;
use shared::metrics::Exporter;
use shared::server::{Server, ServerTable};
use tokio::sync::watch;
use tokio::task::JoinSet;
use worker::grpc::{GrpcLink, MESSAGE_BYTES_MAX};
use worker::nats::{NatsSettings, Outlet};
use worker::{ClusterView, FixedServers, Service};

use super::ControlError;
use crate::bus::local::LocalBus;
use crate::mailbox::Mailbox;
use crate::rules::Rules;

/// What is hosted, before it has started.
pub struct LocalParts {
    /// The in-process bus.
    pub bus: Arc<LocalBus>,
    /// The application.
    pub application: worker::App,
    /// Where its calls and jobs are measured.
    pub exporter: Exporter,
}

impl LocalParts {
    /// An application, the bus that leads to it, and where it is measured.
    pub fn new(bus: Arc<LocalBus>, application: worker::App, exporter: Exporter) -> Self {
        Self { bus, application, exporter }
    }
}

/// How the application of a gateway in a cluster reaches others.
#[derive(Clone)]
pub struct HostingPlan {
    /// Its connection to NATS; none where the cluster speaks gRPC, whose connections it shares with the buses.
    pub nats: Option<NatsSettings>,
    /// Whether calls to the own type or id run in this process.
    pub is_loop_back_allowed: bool,
}

/// A hosted application that runs.
pub struct Hosting {
    service: Service,
    outlet: Option<Outlet>,
    /// Dropping it ends the listeners.
    _listeners: JoinSet<()>,
}

impl Hosting {
    /// Starts an application in standalone mode, and lets reactors call it.
    ///
    /// Errors: mistakes of the application, or the failure of a start hook.
    pub async fn standalone(
        parts: LocalParts,
        rules: &Rules,
        mailboxes: &[Arc<Mailbox>],
    ) -> Result<Self, ControlError> {
        let LocalParts { bus, application, exporter } = parts;
        let servers = Arc::new(FixedServers::new([own_server(rules)]));
        let view = ClusterView {
            request_timeout: Duration::from_millis(rules.request_timeout_ms),
            frontend_type: Some(rules.server_type.clone()),
            exporter: Some(exporter),
            ..ClusterView::new(&rules.server_id, servers)
        };
        let service = application.embed(bus.clone(), view).await.map_err(refused)?;
        bus.open(service.clone(), mailboxes.to_vec());
        Ok(Self { service, outlet: None, _listeners: JoinSet::new() })
    }

    /// Starts an application in a cluster, and lets reactors call it. To be called when the servers are known and before
    /// this one is announced, so that nobody calls a server that is deaf.
    ///
    /// Errors: mistakes of the application, or the failure of a start hook. A NATS that is away is waited for.
    pub async fn in_cluster(
        parts: LocalParts,
        plan: HostingPlan,
        grpc: Option<Arc<GrpcLink>>,
        rules: &Rules,
        mailboxes: &[Arc<Mailbox>],
        discovery: &Discovery,
    ) -> Result<Self, ControlError> {
        let LocalParts { bus, application, exporter } = parts;
        let outlet = match plan.nats {
            Some(nats) => Some(
                Outlet::open(nats)
                    .await
                    .map_err(|error| ControlError::Application(error.to_string()))?,
            ),
            None => None,
        };
        let mut payload_bytes_max = MESSAGE_BYTES_MAX;
        if let Some(outlet) = &outlet {
            payload_bytes_max = outlet.link().payload_bytes_max();
            bus.join_cluster(Arc::new(outlet.link().clone()));
        } else if let Some(link) = grpc {
            bus.join_cluster(link);
        }
        let servers = Servers { tables: discovery.tables(), own: Arc::new(own_server(rules)) };
        let view = ClusterView {
            request_timeout: Duration::from_millis(rules.request_timeout_ms),
            is_frontend: true,
            frontend_type: Some(rules.server_type.clone()),
            exporter: Some(exporter),
            is_loop_back_allowed: plan.is_loop_back_allowed,
            ..ClusterView::new(&rules.server_id, Arc::new(servers))
        };
        // Start hooks may push, kick and call; what comes for this process waits in the mailboxes.
        let service = match application.embed(bus.clone(), view).await {
            Ok(service) => service,
            Err(error) => {
                if let Some(outlet) = outlet {
                    outlet.close().await;
                }
                return Err(refused(error));
            }
        };
        service.set_answer_bytes_max(payload_bytes_max);
        let listeners = service.listen(discovery);
        bus.open(service.clone(), mailboxes.to_vec());
        Ok(Self { service, outlet, _listeners: listeners })
    }

    /// Tells the application that the end begins; it is still called.
    pub async fn begin_stop(&self) {
        self.service.before_shutdown().await;
    }

    /// Ends the application when what it has taken is answered, at the latest after `limit`.
    pub async fn stop(self, limit: Duration) {
        let left = self.service.drain(limit).await;
        if left > 0 {
            tracing::warn!(left, "requests of the application were still running");
        }
        self.service.on_shutdown().await;
        if let Some(outlet) = self.outlet {
            outlet.close().await;
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err gives it away")]
fn refused(error: worker::Error) -> ControlError {
    ControlError::Application(error.to_string())
}

fn own_server(rules: &Rules) -> Server {
    Server {
        id: rules.server_id.clone(),
        server_type: rules.server_type.clone(),
        metadata: std::collections::BTreeMap::new(),
        frontend: true,
        hostname: String::new(),
    }
}

/// The servers that discovery knows, and this one, which etcd may not have at the moment.
struct Servers {
    tables: watch::Receiver<Arc<ServerTable>>,
    own: Arc<Server>,
}

impl worker::Servers for Servers {
    fn table(&self) -> ServerTable {
        ServerTable::clone(&self.tables.borrow())
    }

    fn by_id(&self, id: &str) -> Option<Arc<Server>> {
        if id == self.own.id {
            return Some(Arc::clone(&self.own));
        }
        self.tables.borrow().by_id(id).cloned()
    }
}
