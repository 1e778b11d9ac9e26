//! The meter: what one core counts.

use proto::wire::ResponseView;
use shared::close::CloseReason;

use crate::driver::DriverStats;

/// Labels.
pub struct MetricsPlan {}

impl MetricsPlan {
    pub fn new(_config: &shared::config::Config) -> Self {
        Self {}
    }
}

/// All cores.
#[derive(Clone)]
pub struct Meters {}

impl Meters {
    pub fn new(reactors: usize, _plan: &MetricsPlan) -> (Self, Vec<Meter>) {
        (Self {}, (0..reactors).map(|_| Meter::default()).collect())
    }

    pub fn set_servers(&self, _table: &shared::server::ServerTable) {}

    pub fn render(&self) -> String {
        String::new()
    }
}

/// Counters of one core; the only writer is its reactor.
#[derive(Default)]
pub struct Meter {}

impl Meter {
    pub fn limited(&mut self) {}
    pub fn ignored(&mut self) {}
    pub fn received(&mut self) {}
    pub fn refused(&mut self, _code: &str) {}
    pub fn notified(&mut self) {}
    pub fn route(&mut self, _route: &str) -> u16 {
        0
    }
    pub fn is_unlabelled(&self, _route: u16) -> bool {
        false
    }
    pub fn label(&mut self, _route: &str) -> u16 {
        0
    }
    pub fn route_name(&self, _route: u16) -> &str {
        "other"
    }
    pub fn answered(&mut self, _route: u16, _us: u64, _response: &ResponseView<'_>) {}
    pub fn failed(&mut self, _route: u16, _us: u64, _code: &str) {}
    pub fn stray(&mut self) {}
    pub fn pushed(&mut self) {}
    pub fn accepted(&mut self) {}
    pub fn accept_failed(&mut self) {}
    pub fn closed(&mut self, _reason: CloseReason) {}
    pub fn received_bytes(&mut self, _bytes: usize) {}
    pub fn sent_bytes(&mut self, _bytes: usize) {}
    pub fn bus_lost(&mut self) {}
    pub fn publish(&mut self, _connections: usize, _stats: DriverStats) {}
}
