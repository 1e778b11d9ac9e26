//! The outgoing half of a connection to NATS, for a host that is called in its own way: a gateway with handlers.
//!
//! Two tasks, owned here: the outbox's pump, and one that moves to another server when the present one is about to go.

use std::time::Duration;

use async_nats::Event;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{NatsError, NatsLink, NatsSettings, connect_patiently};

/// For the last words to a NATS server.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
const EVENTS_MAX: usize = 64;

/// A link and the tasks that keep it.
pub struct Outlet {
    link: NatsLink,
    tasks: JoinSet<()>,
}

impl Outlet {
    /// Connects, however long it takes; later losses are repaired.
    ///
    /// Errors: a mistake of the settings.
    pub async fn open(settings: NatsSettings) -> Result<Self, NatsError> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let client = connect_patiently(&settings, sender).await?;
        let (link, pump) = NatsLink::new(client);
        let mut tasks = JoinSet::new();
        tasks.spawn(pump);
        tasks.spawn(follow(link.clone(), settings, events));
        Ok(Self { link, tasks })
    }

    /// The link. Clones share the connection.
    pub fn link(&self) -> &NatsLink {
        &self.link
    }

    /// Sends what is left, at most for two seconds, and closes.
    pub async fn close(mut self) {
        self.link.flush(FLUSH_TIMEOUT).await;
        // While NATS is away nobody takes this either.
        let _ = timeout(FLUSH_TIMEOUT, self.link.client().drain()).await;
        self.tasks.shutdown().await;
    }
}

/// Moves to another server when the present one says that it is about to go. Calls under way keep the old connection
/// until they are answered.
async fn follow(link: NatsLink, settings: NatsSettings, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        match event {
            Event::LameDuckMode => {
                let (sender, later) = mpsc::channel(EVENTS_MAX);
                match connect_patiently(&settings, sender).await {
                    Ok(client) => {
                        link.replace(client, FLUSH_TIMEOUT).await;
                        events = later;
                    }
                    // It has connected before with the same settings.
                    Err(error) => tracing::error!(%error, "cannot move to another NATS server"),
                }
            }
            Event::Connected => tracing::debug!("the application is connected to NATS"),
            event => tracing::warn!(%event, "the application's connection to NATS"),
        }
    }
}
