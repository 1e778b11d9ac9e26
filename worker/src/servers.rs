//! The cluster's servers as a worker sees them.
//!
//! A seam, because discovery is etcd in a cluster and a fixed list in standalone mode.

use std::collections::HashMap;
use std::sync::Arc;

use shared::server::Server;

/// Finds servers. Asked for each bind and push, so it must answer from memory.
pub trait Servers: Send + Sync + 'static {
    /// The server with this id, if it is known at this moment.
    fn by_id(&self, id: &str) -> Option<Arc<Server>>;
}

/// A list of servers that never changes: standalone mode and tests.
#[derive(Debug, Clone, Default)]
pub struct FixedServers(HashMap<String, Arc<Server>>);

impl FixedServers {
    /// The list of these servers; of two with the same id the later one counts.
    pub fn new(servers: impl IntoIterator<Item = Server>) -> Self {
        Self(servers.into_iter().map(|server| (server.id.clone(), Arc::new(server))).collect())
    }
}

impl Servers for FixedServers {
    fn by_id(&self, id: &str) -> Option<Arc<Server>> {
        self.0.get(id).cloned()
    }
}
