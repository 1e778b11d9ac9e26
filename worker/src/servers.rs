//! The cluster's servers as a worker sees them.
//!
//! A seam, because discovery is etcd in a cluster and a fixed list in standalone mode.

use std::sync::Arc;

use shared::server::{Server, ServerTable};

/// Finds servers. Asked for each bind, push and call, so it must answer from memory.
pub trait Servers: Send + Sync + 'static {
    /// Everything that is known at this moment. A table is one counter to clone, and never changes.
    fn table(&self) -> ServerTable;

    /// The server with this id, if it is known at this moment.
    fn by_id(&self, id: &str) -> Option<Arc<Server>> {
        self.table().by_id(id).cloned()
    }
}

/// A list of servers that never changes: standalone mode and tests.
#[derive(Debug, Clone, Default)]
pub struct FixedServers(ServerTable);

impl FixedServers {
    /// The list of these servers; of two with the same id the first one counts.
    pub fn new(servers: impl IntoIterator<Item = Server>) -> Self {
        Self(ServerTable::new(servers.into_iter().map(Arc::new), 1))
    }
}

impl Servers for FixedServers {
    fn table(&self) -> ServerTable {
        self.0.clone()
    }
}
