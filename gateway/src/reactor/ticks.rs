//! The tick: one coarse sweep for heartbeats, deadlines and time-outs.
//!
//! Requests are looked at on every tick, connections in slices, so that a reactor with many connections spreads the
//! work. Nothing else in the reactor has a timer.

use shared::agent::Due;
use shared::close::CloseReason;
use shared::error::{Error, code};
use shared::metrics::FailReason;
use shared::packet;

use super::{Reactor, Stage};
use crate::bus::{Readiness, pending::Pending};
use crate::connections::Connections;
use crate::deliver;
use crate::meter::Levels;
use crate::turn::Turn;

/// Time between ticks, ms. A request is given up at most this much late.
pub(super) const TICK_MS: u64 = 100;
/// Ticks for one sweep over all connections: each is looked at twice a second.
pub(super) const SLICES: usize = 5;
/// Ticks between two settings of the gauges: each half second.
const LEVEL_TICKS: usize = 5;

/// A turn that begins so much later than it was meant to, ms, says that the process stood still: it was paused, or the
/// machine was.
const PAUSE_MS: u64 = 500;
/// After a pause, the time in which what came meanwhile is taken in before anybody is judged, ms.
const CATCH_UP_MS: u64 = 500;

impl Reactor {
    /// After a pause the next tick is put off: what clients and servers have said meanwhile still lies in the kernel, and
    /// whoever was not silent must not be closed or given up for it. Put off once, so that a machine that stumbles all
    /// the time has ticks.
    pub(super) fn note_pause(&mut self, late_ms: u64, now_ms: u64) {
        if late_ms < PAUSE_MS || self.is_tick_put_off {
            return;
        }
        tracing::warn!(reactor = self.core.reactor, late_ms, "the reactor stood still");
        self.is_tick_put_off = true;
        self.next_tick_ms = now_ms + CATCH_UP_MS;
    }

    pub(super) fn handle_tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        self.sweep_connections();
        for bus in self.bus_numbers() {
            // Its clients may be in the parcel already: whoever takes them over tells them what has become overdue.
            if self.is_bus_leaving(bus) {
                continue;
            }
            self.with_bus(bus, sweep_requests);
            self.tick_link(bus);
        }
        self.poll_closings();
        self.tick_accepting();
        self.tick_stop();
        if self.ticks.is_multiple_of(LEVEL_TICKS) {
            self.publish_levels();
            self.retire_buses();
        }
    }

    fn publish_levels(&mut self) {
        let mut levels = Levels {
            clients: self.connections.clients(),
            // Known for the whole process; one core tells it.
            bound: if self.core.reactor == 0 { self.core.directory.bound() } else { 0 },
            outbox_bytes: self.outbox_bytes.iter().sum(),
            buffered_bytes: self.core.buffered_bytes,
            is_bus_ready: self.buses.get(self.home).is_some_and(|bus| bus.state.is_ready()),
            ..Levels::default()
        };
        for (_, bus) in &self.buses {
            levels.in_flight += bus.state.pending.len();
            levels.waiting += bus.state.targets.waiting_len();
            levels.subscriptions += 2 * bus.state.subscriptions.iter().count();
        }
        self.core.meter.publish(levels);
    }

    fn sweep_connections(&mut self) {
        let rules = &self.rules;
        let core = &mut self.core;
        let mut outbox_bytes = 0;
        for connection in self.connections.slice(self.ticks % SLICES, SLICES) {
            outbox_bytes += connection.client.outbox.unsent_bytes();
            let (token, client) = (connection.token, &mut connection.client);
            if client.ending.is_asked() || client.freezing.is_some() {
                continue;
            }
            if client.outbox.is_overdue(rules.write_timeout_ms, core.now_ms) {
                client.ending.ask();
                core.ending.push((token, CloseReason::WriteTimeout));
                continue;
            }
            if client.is_reading_paused {
                client.agent.excuse_silence(core.now_ms);
            }
            match client.agent.poll_due(&rules.agent, core.now_ms) {
                Some(Due::Close(reason)) => {
                    client.ending.ask();
                    core.ending.push((token, reason));
                }
                Some(Due::Heartbeat) => {
                    let outcome = client.put_packet(&packet::HEARTBEAT, &mut core.put(rules));
                    core.settle(token, client, outcome);
                }
                None => {}
            }
        }
        if let Some(slot) = self.outbox_bytes.get_mut(self.ticks % SLICES) {
            *slot = outbox_bytes;
        }
    }

    fn tick_link(&mut self, bus: usize) {
        let now_ms = self.core.now_ms;
        let Some(entry) = self.buses.get_mut(bus) else { return };
        let Some(link) = &mut entry.link else { return };
        if let Err(error) = link.handle_tick(now_ms) {
            self.lose_bus(bus, &error);
        } else if entry.state.readiness == (Readiness::Down { is_asked: false }) {
            self.ask_for_bus(bus);
        }
    }

    /// While stopping: connections whose requests are answered end; at the deadline all do.
    fn tick_stop(&mut self) {
        let Stage::Stopping { deadline_ms } = self.stage else { return };
        let is_late = self.core.now_ms >= deadline_ms;
        let core = &mut self.core;
        for connection in self.connections.slice(0, 1) {
            let client = &mut connection.client;
            if !client.ending.is_asked() && (is_late || client.in_flight == 0) {
                client.ending.ask();
                core.ending.push((connection.token, CloseReason::Shutdown));
            }
        }
        if self.connections.clients() == 0 {
            self.stage = Stage::Stopped;
        }
    }
}

/// Gives up requests that are overdue, and sends waiting ones when there is room.
fn sweep_requests(connections: &mut Connections, turn: &mut Turn<'_>) {
    let now_ms = turn.core.now_ms;
    let mut overdue: Vec<Pending> = Vec::new();
    turn.bus.pending.expire(now_ms, turn.rules.request_timeout_ms, |pending| overdue.push(pending));
    for pending in overdue {
        let error = timeout_error(turn, &pending);
        deliver::give_up(&pending, FailReason::Timeout, &error, connections, turn);
    }
    turn.bus.probe_silent(now_ms);
    let mut late = Vec::new();
    turn.bus.targets.expire(now_ms, |waiting| late.push(waiting));
    for waiting in late {
        let error = Error::new(code::REQUEST_TIMEOUT, REQUEST_TIMEOUT);
        deliver::fail_waiting(&waiting, FailReason::Timeout, &error, connections, turn);
    }
    // Without NATS they go on waiting, until their own deadline.
    while turn.bus.is_ready()
        && let Some((server_type, waiting)) = turn.bus.targets.next_waiting(now_ms)
    {
        deliver::send_waiting(&server_type, waiting, connections, turn);
    }
}

/// Text of a timed-out request, as Pitaya's (cluster protocol 7.1).
const REQUEST_TIMEOUT: &str = "rpc client: request timeout";

fn timeout_error(turn: &Turn<'_>, pending: &Pending) -> Error {
    let target = turn.bus.targets.find(pending.target);
    let server = target.map_or_else(String::new, |target| target.server.id.clone());
    let route = match &pending.unlabelled {
        Some(text) => text.to_string(),
        None => turn.core.meter.route_name(pending.route).to_owned(),
    };
    Error::new(code::REQUEST_TIMEOUT, REQUEST_TIMEOUT)
        .with("timeout", turn.rules.request_timeout_text.clone())
        .with("route", route)
        // Pitaya names the caller "server" and the called server "peer.id".
        .with("server", turn.rules.server_id.clone())
        .with("peer.id", server)
}
