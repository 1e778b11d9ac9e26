//! Whether the gateway can serve players, condition by condition.
//!
//! Each condition is a flag that its owner sets when it changes; nothing is computed or asked for. Reactors touch it
//! only when their bus connects or breaks.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

/// The flags, shared by those who set them and the port for administrators. All are false at first.
#[derive(Debug)]
pub struct Readiness {
    listeners: AtomicBool,
    /// One for each reactor; empty without NATS.
    bus: Box<[AtomicBool]>,
    /// `None` without service discovery.
    registered: Option<AtomicBool>,
}

/// The flags at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Whether players can connect. False before start-up is through, and as soon as draining begins.
    pub listeners: bool,
    /// Whether each reactor is connected to NATS; empty without NATS.
    pub bus: Vec<bool>,
    /// Whether other servers can find this one; `None` without service discovery.
    pub registered: Option<bool>,
}

impl Readiness {
    /// For a gateway in a cluster, with so many reactors.
    pub fn cluster(reactor_count: usize) -> Self {
        Self {
            listeners: AtomicBool::new(false),
            bus: (0..reactor_count).map(|_| AtomicBool::new(false)).collect(),
            registered: Some(AtomicBool::new(false)),
        }
    }

    /// For a gateway that has its application inside: no NATS, no etcd.
    pub fn standalone() -> Self {
        Self { listeners: AtomicBool::new(false), bus: Box::default(), registered: None }
    }

    /// All listeners are open, or not any more.
    pub fn set_listeners(&self, are_open: bool) {
        // Each flag stands for itself and nothing is published with it, here and below.
        self.listeners.store(are_open, Ordering::Relaxed);
    }

    /// The NATS connection of this reactor is up or down. A reactor that does not exist is ignored.
    pub fn set_bus(&self, reactor: usize, is_connected: bool) {
        debug_assert!(reactor < self.bus.len(), "no such reactor: {reactor}");
        if let Some(flag) = self.bus.get(reactor) {
            flag.store(is_connected, Ordering::Relaxed);
        }
    }

    /// The own key is in etcd or not. Ignored without service discovery.
    pub fn set_registered(&self, is_registered: bool) {
        if let Some(flag) = &self.registered {
            flag.store(is_registered, Ordering::Relaxed);
        }
    }

    /// The flags as they are now. Allocates.
    pub fn conditions(&self) -> Conditions {
        let read = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        Conditions {
            listeners: read(&self.listeners),
            bus: self.bus.iter().map(read).collect(),
            registered: self.registered.as_ref().map(read),
        }
    }
}

impl Conditions {
    /// Whether a load balancer should send players here.
    pub fn is_ready(&self) -> bool {
        self.listeners
            && self.bus.iter().all(|is_connected| *is_connected)
            && self.registered.unwrap_or(true)
    }

    /// All of it for a person with a terminal, or for a script.
    pub fn to_json(&self) -> Value {
        json!({
            "ready": self.is_ready(),
            "listeners": self.listeners,
            "bus": self.bus,
            "discovery": self.registered,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_gateway_is_ready_when_everything_is() {
        let readiness = Readiness::cluster(2);
        readiness.set_listeners(true);
        readiness.set_bus(0, true);
        readiness.set_registered(true);
        assert!(!readiness.conditions().is_ready());
        readiness.set_bus(1, true);
        assert!(readiness.conditions().is_ready());
        readiness.set_registered(false);
        assert!(!readiness.conditions().is_ready());
        readiness.set_registered(true);
        readiness.set_listeners(false);
        assert!(!readiness.conditions().is_ready());
    }

    #[test]
    fn a_standalone_gateway_needs_only_its_listeners() {
        let readiness = Readiness::standalone();
        assert!(!readiness.conditions().is_ready());
        readiness.set_listeners(true);
        readiness.set_registered(false);
        assert!(readiness.conditions().is_ready());
        let text = readiness.conditions().to_json().to_string();
        assert_eq!(text, r#"{"bus":[],"discovery":null,"listeners":true,"ready":true}"#);
    }
}
