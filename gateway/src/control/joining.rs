//! Joining: what happens from running reactors to the moment in which clients can be served.

use std::sync::Arc;

use shared::cluster::binding_writer::BindingWriter;
use shared::cluster::discovery::Discovery;
use shared::server::{METADATA_PROTOCOL, Server, ServerTable};

use super::hosting::{Hosting, LocalParts};
use super::plan::ClusterPlan;
use super::transport::Transport;
use super::{BindingSource, Command, Control, ControlError};

impl Control {
    /// Brings the gateway to where clients can be served: in the cluster, or joined with the application.
    ///
    /// Errors: what makes serving impossible; a NATS or etcd that is away does not, it is waited for.
    pub async fn join(&mut self, local: Option<LocalParts>) -> Result<(), ControlError> {
        match local {
            Some(local) if self.plan.cluster.is_none() => self.join_application(local).await,
            local => self.join_cluster(local).await,
        }
    }

    async fn join_application(&mut self, local: LocalParts) -> Result<(), ControlError> {
        let (plan, mailboxes) = (self.plan.clone(), self.mailboxes.clone());
        let game = Server {
            id: format!("{}-application", plan.rules.server_id),
            server_type: local.application.server_type().to_owned(),
            metadata: std::collections::BTreeMap::new(),
            frontend: false,
            hostname: String::new(),
        };
        // Boxed, because an application's start is a large future.
        let started = Box::pin(Hosting::standalone(local, &plan.rules, &mailboxes));
        self.hosting = Some(self.follow_until(started).await??);
        self.meters.set_servers(&ServerTable::new([Arc::new(game)], 1));
        Ok(())
    }

    async fn join_cluster(&mut self, local: Option<LocalParts>) -> Result<(), ControlError> {
        let plan = self.plan.clone();
        let Some(ClusterPlan { discovery, own, bindings, .. }) = &plan.cluster else {
            return Ok(());
        };
        if let (Some(options), Some(BindingSource { holders, inlet })) =
            (bindings, self.bindings.take())
        {
            let inlet = match &self.transport {
                Some(transport) if plan.rules.is_session_unique => {
                    transport.follow_bindings(inlet, &own.id)
                }
                _ => inlet,
            };
            let writer = BindingWriter::start(options, &own.server_type, &own.id, holders, inlet);
            self.binding_writer = Some(writer?);
        }
        while !self.readiness.conditions().bus.iter().all(|is_connected| *is_connected) {
            self.follow_start().await?;
        }
        let mut own = own.clone();
        if self.is_pushes_refused {
            own.metadata.remove(METADATA_PROTOCOL);
        }
        if let Some(transport) = &self.transport {
            transport.announce_in(&mut own);
        }
        let discovery = Discovery::start(discovery.clone(), &own)?;
        if let Err(error) = self.join_discovery(&discovery, local).await {
            discovery.shutdown().await;
            return Err(error);
        }
        let mut tables = discovery.tables();
        let table = tables.borrow_and_update().clone();
        self.post_servers(&table).await;
        self.tables = Some(tables);
        self.readiness.set_registered(discovery.is_registered());
        self.discovery = Some(discovery);
        Ok(())
    }

    /// Waits for the servers, starts the application, and announces this server.
    async fn join_discovery(
        &mut self,
        discovery: &Discovery,
        local: Option<LocalParts>,
    ) -> Result<(), ControlError> {
        let (plan, mailboxes) = (self.plan.clone(), self.mailboxes.clone());
        let hosting_plan = plan.cluster.as_ref().and_then(|cluster| cluster.hosting.clone());
        if let Some(transport) = &mut self.transport {
            transport.join(discovery)?;
        }
        let link = self.transport.as_ref().and_then(Transport::link);
        let hosted = async {
            discovery.wait_synced().await;
            let Some((local, hosting)) = local.zip(hosting_plan) else { return Ok(None) };
            let started =
                Hosting::in_cluster(local, hosting, link, &plan.rules, &mailboxes, discovery)
                    .await?;
            Ok::<_, ControlError>(Some(started))
        };
        // Boxed, because an application's start is a large future that most gateways never need.
        self.hosting = self.follow_until(Box::pin(hosted)).await??;
        if let Some(transport) = &mut self.transport {
            transport.serve()?;
        }
        self.follow_until(discovery.register()).await
    }

    /// Waits for `work` while reports and commands are followed.
    async fn follow_until<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ControlError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                followed = self.follow_start() => followed?,
            }
        }
    }

    /// Waits for one report or command while the gateway does not serve yet: NATS may be lost again while etcd is
    /// waited for. May be dropped at any time.
    async fn follow_start(&mut self) -> Result<(), ControlError> {
        tokio::select! {
            report = self.reports.recv() => match report {
                Some(report) => self.handle_report(report),
                None => return Err(ControlError::Stopped),
            },
            command = self.commands.recv() => match command {
                Some(Command::Move { .. }) => {}
                Some(Command::Reload { done }) => self.reload(done).await,
                Some(Command::Drain | Command::Stop) | None => return Err(ControlError::Stopped),
            },
        }
        Ok(())
    }
}
