//! The decisions of service discovery: what a key, a value or a listing of etcd means for the table of servers.
//!
//! Pure: no etcd, no clock. The order of the calls is the order of etcd's revisions.
//!
//! Invariant: every server of the table stands under a key whose last part is its id, so that its deletion removes it.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;

use crate::server::{METADATA_LEAVING, Server, ServerTable};

/// How many different keys that cannot be read are logged; more than that are counted as one trouble.
const IGNORED_KEYS_LOGGED_MAX: usize = 64;

/// A server that came or went. The own server is never reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// It is in the table now.
    Added(Arc<Server>),
    /// It is in the table no more.
    Removed(Arc<Server>, Departure),
}

/// What etcd tells about why a server is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It said that it leaves.
    Left,
    /// Its record vanished: it crashed, its lease was lost, or it is a server that never says.
    Vanished,
}

/// One key of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The whole key.
    pub key: &'a [u8],
    /// The record of the server.
    pub value: &'a [u8],
    /// Revision in which the key came into being.
    pub create_revision: i64,
}

/// What the absence of a known server from a listing means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It is gone.
    Remove,
    /// Nothing yet: etcd has lost its data, and the servers need time to write themselves again.
    Keep,
}

/// Turns what etcd says into tables.
pub struct TableBuilder {
    /// Prefix of all server keys, ends in `servers/`.
    prefix: String,
    own_id: String,
    blacklist: HashSet<String>,
    /// By id.
    known: BTreeMap<String, Known>,
    revision: u64,
    events: Vec<ServerEvent>,
    ignored_keys: HashSet<Vec<u8>>,
}

struct Known {
    server: Arc<Server>,
    key: Vec<u8>,
    create_revision: i64,
    /// It has said that it leaves.
    is_leaving: bool,
}

impl TableBuilder {
    /// An empty table. `prefix` is the whole prefix of the server keys, `blacklist` the server types to leave out; the
    /// own server is kept although its type may be among them.
    pub fn new(
        prefix: String,
        own_id: String,
        blacklist: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            prefix,
            own_id,
            blacklist: blacklist.into_iter().collect(),
            known: BTreeMap::new(),
            revision: 0,
            events: Vec::new(),
            ignored_keys: HashSet::new(),
        }
    }

    /// Takes the complete listing. Returns whether the table has changed.
    ///
    /// A known server whose key has come into being anew since was deleted in between, so its new record counts.
    pub fn apply_range<'a>(
        &mut self,
        entries: impl IntoIterator<Item = Entry<'a>>,
        absent: Absent,
    ) -> bool {
        let mut is_changed = false;
        let mut listed = HashSet::new();
        for entry in entries {
            is_changed |= self.put(entry);
            listed.insert(entry.key);
        }
        if absent == Absent::Remove {
            let gone = self.known.values().filter(|known| !listed.contains(known.key.as_slice()));
            let gone = gone.map(|known| known.key.clone()).collect::<Vec<_>>();
            for key in gone {
                is_changed |= self.remove(&key);
            }
        }
        self.count(is_changed)
    }

    /// Takes a written key. Returns whether the table has changed.
    ///
    /// The first record of an id stays for as long as its key lives (compatibility traps 8.8).
    pub fn apply_put(&mut self, entry: Entry<'_>) -> bool {
        let is_changed = self.put(entry);
        self.count(is_changed)
    }

    /// Takes a deleted key. Returns whether the table has changed.
    pub fn apply_delete(&mut self, key: &[u8]) -> bool {
        let is_changed = self.remove(key);
        self.count(is_changed)
    }

    /// The table as it is now. Cost: builds it anew.
    pub fn table(&self) -> ServerTable {
        let servers = self.known.values().map(|known| Arc::clone(&known.server));
        ServerTable::new(servers, self.revision)
    }

    /// What has come and gone since the last call, in order.
    pub fn take_events(&mut self) -> Vec<ServerEvent> {
        std::mem::take(&mut self.events)
    }

    fn put(&mut self, entry: Entry<'_>) -> bool {
        let server = match self.read(entry) {
            Ok(Some(server)) => server,
            Ok(None) => return false,
            Err(reason) => {
                self.log_ignored(entry.key, &reason);
                return false;
            }
        };
        if let Some(known) = self.known.get_mut(&server.id) {
            if known.key != entry.key {
                return false;
            }
            if known.create_revision == entry.create_revision {
                known.is_leaving |= server.metadata.contains_key(METADATA_LEAVING);
                return false;
            }
            known.is_leaving = false;
            known.create_revision = entry.create_revision;
            if *known.server == server {
                return false;
            }
            let key = entry.key.to_vec();
            self.remove(&key);
        }
        let server = Arc::new(server);
        self.report(ServerEvent::Added(Arc::clone(&server)));
        let known = Known {
            server: Arc::clone(&server),
            key: entry.key.to_vec(),
            create_revision: entry.create_revision,
            is_leaving: server.metadata.contains_key(METADATA_LEAVING),
        };
        self.known.insert(server.id.clone(), known);
        true
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let Some(id) = self.id_of(key) else { return false };
        if self.known.get(id).is_none_or(|known| known.key != key) {
            return false;
        }
        let id = id.to_owned();
        let Some(known) = self.known.remove(&id) else { return false };
        let departure = if known.is_leaving { Departure::Left } else { Departure::Vanished };
        self.report(ServerEvent::Removed(known.server, departure));
        true
    }

    fn count(&mut self, is_changed: bool) -> bool {
        self.revision += u64::from(is_changed);
        is_changed
    }

    fn report(&mut self, event: ServerEvent) {
        let (ServerEvent::Added(server) | ServerEvent::Removed(server, _)) = &event;
        if server.id != self.own_id {
            self.events.push(event);
        }
    }

    /// `Ok(None)` for a server that is left out on purpose.
    fn read(&self, entry: Entry<'_>) -> Result<Option<Server>, String> {
        let id = self.id_of(entry.key).ok_or("the key does not have three parts")?;
        let server = Server::decode(entry.value).map_err(|error| error.to_string())?;
        if server.id != id {
            return Err("the id of the record is not that of the key".to_owned());
        }
        let is_left_out = server.id != self.own_id && self.blacklist.contains(&server.server_type);
        Ok((!is_left_out).then_some(server))
    }

    /// The last part of `{prefix}{type}/{id}`.
    fn id_of<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        let relative = key.strip_prefix(self.prefix.as_bytes())?;
        let (server_type, id) = std::str::from_utf8(relative).ok()?.split_once('/')?;
        (!server_type.is_empty() && !id.is_empty() && !id.contains('/')).then_some(id)
    }

    fn log_ignored(&mut self, key: &[u8], reason: &str) {
        if self.ignored_keys.len() >= IGNORED_KEYS_LOGGED_MAX || self.ignored_keys.contains(key) {
            return;
        }
        self.ignored_keys.insert(key.to_vec());
        let is_last = self.ignored_keys.len() == IGNORED_KEYS_LOGGED_MAX;
        let key: String = String::from_utf8_lossy(key).chars().take(200).collect();
        tracing::warn!(%key, reason, is_last, "ignoring an entry that is not a server");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "pitaya/servers/";

    fn builder() -> TableBuilder {
        TableBuilder::new(PREFIX.to_owned(), "own".to_owned(), ["hidden".to_owned()])
    }

    /// Key, value and create revision of a server whose metadata is `mark`.
    struct Line(Vec<u8>, Vec<u8>, i64);

    impl Line {
        fn new(server_type: &str, id: &str, mark: &str, create_revision: i64) -> Self {
            let value = format!(
                r#"{{"id":"{id}","type":"{server_type}","metadata":{{"mark":"{mark}"}},"frontend":false,"hostname":"vm"}}"#
            );
            Self(
                format!("{PREFIX}{server_type}/{id}").into_bytes(),
                value.into_bytes(),
                create_revision,
            )
        }

        fn entry(&self) -> Entry<'_> {
            Entry { key: &self.0, value: &self.1, create_revision: self.2 }
        }
    }

    fn mark<'a>(table: &'a ServerTable, id: &str) -> &'a str {
        table.by_id(id).map_or("", |server| server.metadata["mark"].as_str())
    }

    fn summary(events: &[ServerEvent]) -> Vec<String> {
        let text = |event: &ServerEvent| match event {
            ServerEvent::Added(server) => format!("+{}", server.id),
            ServerEvent::Removed(server, Departure::Vanished) => format!("-{}", server.id),
            ServerEvent::Removed(server, Departure::Left) => format!("-{} left", server.id),
        };
        events.iter().map(text).collect()
    }

    #[test]
    fn a_listing_becomes_a_table_and_the_next_one_adds_and_removes() {
        let (a, b, c) = (
            Line::new("room", "a", "", 1),
            Line::new("room", "b", "", 2),
            Line::new("chat", "c", "", 3),
        );
        let mut builder = builder();
        assert!(builder.apply_range([a.entry(), b.entry()], Absent::Remove));
        assert_eq!(builder.table().by_type("room").len(), 2);
        assert_eq!(builder.table().revision(), 1);
        assert!(!builder.apply_range([b.entry(), a.entry()], Absent::Remove));
        assert_eq!(builder.table().revision(), 1);
        assert!(builder.apply_range([b.entry(), c.entry()], Absent::Remove));
        assert_eq!(builder.table().revision(), 2);
        assert_eq!(summary(&builder.take_events()), ["+a", "+b", "+c", "-a"]);
        assert!(builder.take_events().is_empty());
    }

    #[test]
    fn a_listing_repairs_a_missed_put_and_a_missed_delete() {
        let (a, b) = (Line::new("room", "a", "", 1), Line::new("room", "b", "", 2));
        let mut builder = builder();
        builder.apply_put(a.entry());
        assert!(builder.apply_range([b.entry()], Absent::Remove));
        assert!(builder.table().by_id("a").is_none() && builder.table().by_id("b").is_some());
    }

    #[test]
    fn a_store_that_lost_its_data_removes_nobody_yet() {
        let (a, b) = (Line::new("room", "a", "", 40), Line::new("room", "b", "", 2));
        let mut builder = builder();
        builder.apply_put(a.entry());
        assert!(!builder.apply_range([], Absent::Keep));
        assert!(builder.apply_range([b.entry()], Absent::Keep));
        assert_eq!(builder.table().len(), 2);
        // It comes back under a new revision with the same record: nobody notices.
        assert!(!builder.apply_put(Line::new("room", "a", "", 3).entry()));
        builder.take_events();
        assert!(!builder.apply_range([b.entry(), a.entry()], Absent::Remove));
        assert!(builder.take_events().is_empty());
    }

    #[test]
    fn the_first_record_of_an_id_stays_until_its_key_is_deleted() {
        let mut builder = builder();
        builder.apply_put(Line::new("room", "a", "first", 1).entry());
        assert!(!builder.apply_put(Line::new("room", "a", "second", 1).entry()));
        assert!(
            !builder.apply_range([Line::new("room", "a", "second", 1).entry()], Absent::Remove)
        );
        assert_eq!(mark(&builder.table(), "a"), "first");
        assert!(builder.apply_delete(b"pitaya/servers/room/a"));
        assert!(builder.apply_put(Line::new("room", "a", "second", 5).entry()));
        assert_eq!(mark(&builder.table(), "a"), "second");
        assert_eq!(summary(&builder.take_events()), ["+a", "-a", "+a"]);
    }

    #[test]
    fn a_deletion_and_a_new_put_are_seen_in_a_listing_too() {
        let mut builder = builder();
        builder.apply_put(Line::new("room", "a", "first", 1).entry());
        assert!(builder.apply_range([Line::new("room", "a", "second", 5).entry()], Absent::Remove));
        assert_eq!(mark(&builder.table(), "a"), "second");
        assert_eq!(summary(&builder.take_events()), ["+a", "-a", "+a"]);
    }

    #[test]
    fn keys_without_three_parts_or_with_another_id_are_ignored() {
        let mut builder = builder();
        let value = Line::new("room", "a", "", 1).1;
        for key in ["", "a", "room", "room/", "/a", "room/a/b", "room/b", "room//a"] {
            let key = format!("{PREFIX}{key}").into_bytes();
            let entry = Entry { key: &key, value: &value, create_revision: 1 };
            assert!(!builder.apply_put(entry));
            assert!(!builder.apply_delete(&key));
        }
        let entry = Entry { key: b"other/servers/room/a", value: &value, create_revision: 1 };
        assert!(!builder.apply_put(entry));
        assert!(builder.table().is_empty());
    }

    #[test]
    fn values_that_cannot_be_read_are_ignored_and_change_nothing_known() {
        let mut builder = builder();
        let a = Line::new("room", "a", "first", 1);
        builder.apply_put(a.entry());
        for value in ["null", "", "[]", r#"{"id":"a"}"#, "\u{0}"] {
            let entry = Entry { value: value.as_bytes(), create_revision: 2, ..a.entry() };
            assert!(!builder.apply_put(entry));
            assert!(!builder.apply_range([entry], Absent::Remove));
        }
        assert_eq!(mark(&builder.table(), "a"), "first");
    }

    #[test]
    fn one_id_under_two_types_is_the_first_one() {
        let mut builder = builder();
        builder.apply_put(Line::new("room", "a", "first", 1).entry());
        assert!(!builder.apply_put(Line::new("chat", "a", "second", 2).entry()));
        assert!(!builder.apply_delete(b"pitaya/servers/chat/a"));
        assert_eq!(mark(&builder.table(), "a"), "first");
        assert!(builder.apply_delete(b"pitaya/servers/room/a"));
    }

    #[test]
    fn types_of_the_blacklist_are_left_out_except_for_the_own_server() {
        let mut builder = builder();
        assert!(!builder.apply_put(Line::new("hidden", "a", "", 1).entry()));
        assert!(!builder.apply_range([Line::new("hidden", "a", "", 1).entry()], Absent::Remove));
        assert!(builder.apply_put(Line::new("hidden", "own", "", 1).entry()));
        assert!(builder.table().by_id("own").is_some());
    }

    #[test]
    fn the_own_server_is_in_the_table_but_not_among_the_events() {
        let mut builder = builder();
        assert!(builder.apply_put(Line::new("room", "own", "", 1).entry()));
        assert_eq!(builder.table().by_type("room").len(), 1);
        assert!(builder.apply_delete(b"pitaya/servers/room/own"));
        assert!(builder.take_events().is_empty());
    }

    #[test]
    fn a_flood_of_bad_keys_is_remembered_only_up_to_a_limit() {
        let mut builder = builder();
        for number in 0..10 * IGNORED_KEYS_LOGGED_MAX {
            let key = format!("{PREFIX}{number}").into_bytes();
            builder.apply_put(Entry { key: &key, value: b"", create_revision: 1 });
        }
        assert_eq!(builder.ignored_keys.len(), IGNORED_KEYS_LOGGED_MAX);
    }

    proptest::proptest! {
        /// Whatever happens, the table is what a plain map of the keys would say.
        #[test]
        fn the_table_follows_the_store(steps in proptest::collection::vec((0..4_u8, 0..6_u8), 0..60)) {
            let mut builder = builder();
            let mut store = BTreeMap::<u8, Line>::new();
            for (revision, (action, server)) in (1..).zip(steps) {
                let id = format!("s{server}");
                match action {
                    0 | 1 => {
                        let created = store.get(&server).map_or(revision, |line| line.2);
                        let line = Line::new("room", &id, "", created);
                        if action == 0 { builder.apply_put(line.entry()); }
                        store.insert(server, line);
                    }
                    2 => {
                        store.remove(&server);
                        builder.apply_delete(format!("{PREFIX}room/{id}").as_bytes());
                    }
                    _ => { builder.apply_range(store.values().map(Line::entry), Absent::Remove); }
                }
            }
            builder.apply_range(store.values().map(Line::entry), Absent::Remove);
            let ids = builder.table().iter().map(|server| server.id.clone()).collect::<Vec<_>>();
            let expected = store.keys().map(|server| format!("s{server}")).collect::<Vec<_>>();
            proptest::prop_assert_eq!(ids, expected);
        }
    }
}
