//! What the gateway says of itself: is it ready, and if not, what is missing.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use shared::server::ServerTable;

/// Shared between control and the admin interface.
pub struct Status {
    is_listening: AtomicBool,
    is_registered: AtomicBool,
    buses: Vec<AtomicBool>,
    servers: Mutex<Vec<(String, usize)>>,
}

impl Status {
    /// Nothing is ready. Standalone gateways have no bus to wait for and nowhere to register.
    pub fn new(reactors: usize, is_standalone: bool) -> Self {
        Self {
            is_listening: AtomicBool::new(false),
            is_registered: AtomicBool::new(is_standalone),
            buses: (0..reactors).map(|_| AtomicBool::new(is_standalone)).collect(),
            servers: Mutex::new(Vec::new()),
        }
    }

    /// Whether clients are accepted.
    pub fn set_listening(&self, is_listening: bool) {
        self.is_listening.store(is_listening, Ordering::Release);
    }

    /// Whether other servers can find this one.
    pub fn set_registered(&self, is_registered: bool) {
        self.is_registered.store(is_registered, Ordering::Release);
    }

    /// Whether a reactor can send requests.
    pub fn set_bus_ready(&self, reactor: usize, is_ready: bool) {
        if let Some(bus) = self.buses.get(reactor) {
            bus.store(is_ready, Ordering::Release);
        }
    }

    /// Whether all reactors can send requests.
    pub fn is_bus_ready(&self) -> bool {
        self.buses.iter().all(|bus| bus.load(Ordering::Acquire))
    }

    /// The servers of the cluster, by type.
    pub fn set_servers(&self, table: &ServerTable) {
        let counts = table.types().map(|(name, servers)| (name.to_owned(), servers.len())).collect();
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// How many servers of each type are known.
    pub fn servers(&self) -> Vec<(String, usize)> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Each condition of readiness, by name.
    pub fn conditions(&self) -> Vec<(&'static str, bool)> {
        vec![
            ("listening", self.is_listening.load(Ordering::Acquire)),
            ("bus", self.is_bus_ready()),
            ("registered", self.is_registered.load(Ordering::Acquire)),
        ]
    }
}
