//! The servers of the cluster at one moment, ready for look-ups on the hot path.
//!
//! A table is never changed: a new one replaces it, and whoever holds the old one keeps it. How tables come about is
//! the business of service discovery.
//!
//! Invariant: each server is found by its id and in the list of its type, and the lists are sorted by id.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::HashSet;

use super::Server;

/// An immutable snapshot of the known servers. A clone costs one count.
#[derive(Clone, Debug, Default)]
pub struct ServerTable {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_id: HashSet<ById>,
    by_type: BTreeMap<String, Vec<Arc<Server>>>,
    revision: u64,
}

/// A server that is found by its id without a second copy of it.
#[derive(Debug)]
struct ById(Arc<Server>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl ServerTable {
    /// The snapshot of `servers`. Of two with one id the first is kept. `revision` numbers the snapshots of one source
    /// and rises with each. Cost: sorts, allocates.
    pub fn new(servers: impl IntoIterator<Item = Arc<Server>>, revision: u64) -> Self {
        let mut by_id = HashSet::new();
        let mut by_type = BTreeMap::<String, Vec<Arc<Server>>>::new();
        for server in servers {
            if by_id.contains(server.id.as_str()) {
                continue;
            }
            by_id.insert(ById(Arc::clone(&server)));
            match by_type.get_mut(&server.server_type) {
                Some(servers) => servers.push(server),
                None => {
                    by_type.insert(server.server_type.clone(), vec![server]);
                }
            }
        }
        for servers in by_type.values_mut() {
            servers.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        }
        Self { inner: Arc::new(Inner { by_id, by_type, revision }) }
    }

    /// The server with this id. Does not allocate.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Server>> {
        self.inner.by_id.get(id).map(|server| &server.0)
    }

    /// The servers of one type, sorted by id; empty for an unknown type. The own server is among them, as it is for
    /// Go servers. Does not allocate.
    pub fn by_type(&self, server_type: &str) -> &[Arc<Server>] {
        self.inner.by_type.get(server_type).map_or(&[], Vec::as_slice)
    }

    /// The types that have at least one server, sorted, with their servers.
    pub fn types(&self) -> impl Iterator<Item = (&str, &[Arc<Server>])> {
        self.inner.by_type.iter().map(|(name, servers)| (name.as_str(), servers.as_slice()))
    }

    /// All servers, sorted by type and then by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.inner.by_type.values().flatten()
    }

    /// How many servers there are.
    pub fn len(&self) -> usize {
        self.inner.by_id.len()
    }

    /// Whether no server is known.
    pub fn is_empty(&self) -> bool {
        self.inner.by_id.is_empty()
    }

    /// Number of this snapshot: differs from that of every other snapshot of the same source, and rises. It is not the
    /// revision of etcd, which starts again when its data is lost.
    pub fn revision(&self) -> u64 {
        self.inner.revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: &str, server_type: &str) -> Arc<Server> {
        Arc::new(Server {
            id: id.to_owned(),
            server_type: server_type.to_owned(),
            metadata: BTreeMap::new(),
            frontend: false,
            hostname: String::new(),
        })
    }

    #[test]
    fn servers_are_found_by_id_and_by_type_in_a_stable_order() {
        let table =
            ServerTable::new([server("b", "room"), server("c", "chat"), server("a", "room")], 7);
        let ids =
            |servers: &[Arc<Server>]| servers.iter().map(|s| s.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(table.by_type("room")), ["a", "b"]);
        assert_eq!(ids(table.by_type("chat")), ["c"]);
        assert!(table.by_type("hall").is_empty());
        assert_eq!(table.by_id("b").unwrap().server_type, "room");
        assert!(table.by_id("d").is_none());
        assert_eq!(table.types().map(|(name, _)| name).collect::<Vec<_>>(), ["chat", "room"]);
        assert_eq!((table.len(), table.revision(), table.iter().count()), (3, 7, 3));
    }

    #[test]
    fn a_second_record_with_the_same_id_changes_nothing() {
        let table = ServerTable::new([server("a", "room"), server("a", "chat")], 1);
        assert_eq!(table.len(), 1);
        assert_eq!(table.by_id("a").unwrap().server_type, "room");
        assert!(table.by_type("chat").is_empty());
    }

    #[test]
    fn an_empty_table_answers_everything_with_nothing() {
        let table = ServerTable::default();
        assert!(table.is_empty() && table.by_id("").is_none() && table.by_type("").is_empty());
        assert_eq!(table.types().count(), 0);
    }

    #[test]
    fn a_clone_shares_the_servers() {
        let table = ServerTable::new([server("a", "room")], 1);
        let clone = table.clone();
        assert!(Arc::ptr_eq(table.by_id("a").unwrap(), clone.by_id("a").unwrap()));
    }
}
