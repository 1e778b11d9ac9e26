//! The reactor's buses: connecting, losing and feeding them.
//!
//! Losing NATS ends nothing but the requests under way: they fail at once with a code, clients stay, and the bus is
//! rebuilt with all its subscriptions when a new socket comes. A bus counts as ready only when the server has proven
//! that it took in the subscriptions.

use std::io;
use std::os::fd::OwnedFd;

use shared::error::{Error, code};
use shared::metrics::{CoreCounter, FailReason};
use shared::nats::client::Event;
use shared::nats::encoder;

use super::{Reactor, Report};
use crate::bus::link::{LinkError, NatsLink, NatsServer};
use crate::bus::pending::{Pending, PendingTable};
use crate::bus::probes::Probes;
use crate::bus::subscriptions::{self, Subscriptions};
use crate::bus::targets::{Place, Targets};
use crate::bus::{Bus, BusState, Carrier, NatsLines, Readiness};
use crate::calls;
use crate::connection::Binding;
use crate::connections::{Connections, Occupant};
use crate::deliver;
use crate::driver::Buffer;
use crate::forward::NOT_CONNECTED;
use crate::rules::Rules;
use crate::turn::Turn;

/// What a link reported besides messages, acted upon after its bytes were walked over.
#[derive(Default)]
struct News {
    is_accepted: bool,
    is_lame_duck: bool,
    has_servers: bool,
    barriers: Vec<u64>,
    /// Whether this gateway may hear of messages for many users.
    pushes: Permission,
    /// The first of the errors that end nothing.
    complaint: Option<Box<str>>,
}

/// What the server says of a subscription.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Permission {
    #[default]
    Granted,
    Refused,
}

impl Reactor {
    /// Makes a bus for new connections of this reactor.
    pub(super) fn open_bus(&mut self, is_primary: bool) -> usize {
        let (link, carrier, readiness) = match &self.bus_parts.nats {
            Some(tls_config) => (
                Some(Box::new(NatsLink::new(tls_config.clone()))),
                Carrier::Nats(NatsLines::new()),
                Readiness::Down { is_asked: false },
            ),
            None => (None, Carrier::None, Readiness::Ready),
        };
        let local = self.bus_parts.local.as_ref();
        let id = local.map_or(0, |local| local.add_bus(self.core.reactor));
        let state = BusState {
            id,
            is_primary,
            carrier,
            local: local.map(|local| local.carrier(id)),
            readiness,
            pending: PendingTable::default(),
            subscriptions: Subscriptions::default(),
            targets: Targets::new(
                self.rules.targets,
                self.rules.routing.clone(),
                local.map(|local| local.server().clone()),
            ),
            probes: Probes::default(),
            proofs: Vec::new(),
        };
        self.buses.insert(Bus { link, state })
    }

    pub(super) fn bus_numbers(&self) -> Vec<usize> {
        self.buses.iter().map(|(number, _)| number).collect()
    }

    /// Asks the control thread for a socket; again on the next tick when it could not be told.
    pub(super) fn ask_for_bus(&mut self, bus: usize) {
        let is_asked = self.report(Report::BusWanted { reactor: self.core.reactor });
        if let Some(entry) = self.buses.get_mut(bus) {
            entry.state.readiness = Readiness::Down { is_asked };
        }
    }

    /// A socket that was asked for. It closes again when nobody is without one: a bus that is on its way to another
    /// reactor asks there.
    pub(super) fn handle_bus_connected(&mut self, socket: OwnedFd, server: NatsServer) {
        let waiting = self.bus_numbers().into_iter().find(|number| {
            let is_down = self.buses.get(*number).is_some_and(|bus| {
                bus.link.is_some() && matches!(bus.state.readiness, Readiness::Down { .. })
            });
            is_down && !self.is_bus_leaving(*number)
        });
        let Some(number) = waiting else { return };
        let Some(bus) = self.buses.get_mut(number) else { return };
        match self.driver.attach(socket) {
            Ok(token) => {
                if let Some(link) = &mut bus.link {
                    link.connected(token, server);
                }
                bus.state.readiness = Readiness::Connecting;
                self.connections.insert(token, Occupant::Bus(number));
            }
            Err(error) => {
                tracing::warn!(reactor = self.core.reactor, %error, "cannot use the connection to NATS");
                bus.state.readiness = Readiness::Down { is_asked: false };
            }
        }
    }

    pub(super) fn handle_bus_bytes(&mut self, number: usize, buffer: &Buffer) {
        let is_leaving = self.is_bus_leaving(number);
        let Some(bus) = self.buses.get_mut(number) else { return };
        let Bus { link: Some(link), state } = bus else { return };
        let bytes: &[u8] = self.driver.bytes(buffer);
        self.core.meter.add(CoreCounter::NatsReceivedBytes, bytes.len());
        if is_leaving {
            link.hold(bytes);
            return;
        }
        let mut turn =
            Turn { rules: &self.rules, core: &mut self.core, codec: &mut self.codec, bus: state };
        let walked = walk(link, bytes, &mut self.connections, &mut turn);
        self.handle_walked(number, walked);
    }

    /// Takes in what came while the bus was on its way.
    pub(super) fn handle_held(&mut self, number: usize) {
        let Some(bus) = self.buses.get_mut(number) else { return };
        let Bus { link: Some(link), state } = bus else { return };
        let bytes = link.take_held();
        let mut turn =
            Turn { rules: &self.rules, core: &mut self.core, codec: &mut self.codec, bus: state };
        let walked = walk(link, &bytes, &mut self.connections, &mut turn);
        self.handle_walked(number, walked);
    }

    fn handle_walked(&mut self, number: usize, walked: Result<News, LinkError>) {
        match walked {
            Ok(news) => self.handle_news(number, &news),
            Err(error) => self.lose_bus(number, &error),
        }
    }

    fn handle_news(&mut self, number: usize, news: &News) {
        if news.is_accepted {
            self.subscribe(number);
        }
        if news.is_accepted || news.has_servers {
            self.report_servers(number);
        }
        // Before the barrier that was behind it: with that the gateway may announce what it takes.
        if news.pushes == Permission::Refused {
            self.report(Report::PushesRefused);
        }
        for barrier in &news.barriers {
            self.handle_barrier(number, *barrier);
        }
        if news.is_lame_duck {
            tracing::info!(reactor = self.core.reactor, "the NATS server is about to stop");
        }
        if let Some(text) = &news.complaint {
            self.end_log.complained(self.core.now_ms, text);
        }
    }

    fn report_servers(&mut self, number: usize) {
        let link = self.buses.get_mut(number).and_then(|bus| bus.link.as_mut());
        let info = link.and_then(|link| link.client()).and_then(|client| client.info());
        let addresses = info.map(|info| info.connect_urls.clone()).unwrap_or_default();
        if !addresses.is_empty() {
            self.report(Report::BusServers { addresses });
        }
    }

    /// Writes all subscriptions of a new connection and asks for their proof.
    fn subscribe(&mut self, number: usize) {
        let Some(bus) = self.buses.get_mut(number) else { return };
        let Bus { link: Some(link), state } = bus else { return };
        let Carrier::Nats(lines) = &mut state.carrier else { return };
        let payload_bytes_max = link.client().map_or(0, |client| client.payload_bytes_max());
        lines.restart(&uuid::Uuid::new_v4().simple().to_string(), payload_bytes_max);
        let mut inbox = lines.inbox.to_vec();
        inbox.push(b'*');
        encoder::subscribe(&mut lines.out, &inbox, None, subscriptions::INBOX);
        let pushes = self.rules.pushes_subject();
        encoder::subscribe(&mut lines.out, pushes.as_bytes(), None, subscriptions::PUSHES);
        if state.is_primary {
            subscribe_server(&mut lines.out, &self.rules);
        }
        for (subscription, owner) in state.subscriptions.iter() {
            if let Some(connection) = self.connections.at(owner) {
                let uid = connection.client.session.uid();
                calls::subscribe(&mut lines.out, &self.rules, uid, subscription);
            }
        }
        lines.wants_barrier = true;
        state.readiness = Readiness::Subscribing;
    }

    fn handle_barrier(&mut self, number: usize, barrier: u64) {
        let Some(bus) = self.buses.get_mut(number) else { return };
        if bus.state.readiness == Readiness::Proving(barrier) {
            bus.state.readiness = Readiness::Ready;
            let address = bus.link.as_ref().map_or("", |link| link.address()).to_owned();
            self.report(Report::BusReady { reactor: self.core.reactor, address });
        }
        self.with_bus(number, |connections, turn| {
            for proof in turn.bus.take_proofs(|proof| proof.barrier == Some(barrier)) {
                match connections.find(proof.connection, proof.session) {
                    Some(connection) => {
                        calls::proven(connection, proof.reply, turn);
                    }
                    None => turn.bus.reply(proof.reply, &calls::session_not_found()),
                }
            }
        });
    }

    pub(super) fn handle_bus_sent(
        &mut self,
        number: usize,
        buffer: Vec<u8>,
        result: io::Result<usize>,
    ) {
        let is_leaving = self.is_bus_leaving(number);
        let Some(bus) = self.buses.get_mut(number) else { return };
        let Bus { link: Some(link), state } = bus else { return };
        let Carrier::Nats(lines) = &mut state.carrier else { return };
        self.core.meter.add(CoreCounter::NatsSentBytes, *result.as_ref().unwrap_or(&0));
        let outcome = match result {
            Ok(bytes) if is_leaving => {
                let start = buffer.len().saturating_sub(lines.unsent_bytes) + bytes;
                link.freeze(buffer.get(start..).unwrap_or_default(), lines);
                Ok(())
            }
            Ok(bytes) => {
                link.handle_sent(buffer, bytes, lines, &mut self.driver, &mut self.core.pool)
            }
            Err(error) => Err(LinkError::Io(error)),
        };
        state.assign_barrier();
        if let Err(error) = outcome {
            self.lose_bus(number, &error);
        }
    }

    pub(super) fn handle_bus_ended(&mut self, number: usize, error: Option<io::Error>) {
        self.lose_bus(number, &error.map_or(LinkError::Closed, LinkError::Io));
    }

    /// Gives a connection to NATS up: requests under way fail, binds under way are undone, a new socket is asked for.
    pub(super) fn lose_bus(&mut self, number: usize, error: &LinkError) {
        if self.is_bus_leaving(number) {
            // Whoever takes the bus over meets the same error.
            return;
        }
        let Some(bus) = self.buses.get_mut(number) else { return };
        let Some(link) = &mut bus.link else { return };
        let address = link.address().to_owned();
        let Some(token) = link.disconnect() else { return };
        self.driver.close(token);
        self.connections.remove(token);
        self.with_bus(number, fail_everything);
        let reactor = self.core.reactor;
        tracing::warn!(reactor, address, %error, "lost the connection to NATS; requests fail until it is back");
        self.core.meter.count(CoreCounter::NatsReconnects);
        self.report(Report::BusLost { reactor });
        self.ask_for_bus(number);
    }

    /// Gives up buses that came with a move and that nobody uses any more; otherwise each move would cost the cluster a
    /// connection for good. The one that carries the subscriptions of the process stays.
    pub(super) fn retire_buses(&mut self) {
        if self.buses.len() < 2 || self.moving.is_some() {
            return;
        }
        let mut is_used = vec![false; self.buses.capacity()];
        for connection in self.connections.slice(0, 1) {
            if let Some(is_used) = is_used.get_mut(connection.client.bus) {
                *is_used = true;
            }
        }
        for number in self.bus_numbers() {
            let Some(Bus { link: Some(link), state }) = self.buses.get_mut(number) else {
                continue;
            };
            let is_needed = number == self.home
                || state.is_primary
                || is_used.get(number).copied().unwrap_or(true)
                || !state.pending.is_empty()
                || state.targets.waiting_len() > 0;
            if is_needed {
                continue;
            }
            if let Some(token) = link.disconnect() {
                self.driver.close(token);
                self.connections.remove(token);
            }
            self.buses.remove(number);
        }
    }

    pub(super) fn flush_buses(&mut self) {
        for number in 0..self.buses.capacity() {
            let is_leaving = self.is_bus_leaving(number);
            let Some(bus) = self.buses.get_mut(number) else { continue };
            bus.state.close_batches();
            let Bus { link: Some(link), state } = bus else { continue };
            let Carrier::Nats(lines) = &mut state.carrier else { continue };
            if is_leaving {
                continue;
            }
            let meter = &self.core.meter;
            meter.add(CoreCounter::NatsSentMessages, std::mem::take(&mut lines.published));
            let (batches, requests) = lines.batches.take_written();
            meter.add(CoreCounter::NatsBatches, batches);
            meter.add(CoreCounter::NatsBatchedRequests, requests);
            let outcome = link.flush(lines, &mut self.driver, &mut self.core.pool);
            state.assign_barrier();
            if let Err(error) = outcome {
                self.lose_bus(number, &error);
            }
        }
    }
}

/// Walks over bytes from NATS: messages are handled at once, the rest is noted.
fn walk(
    link: &mut NatsLink,
    bytes: &[u8],
    connections: &mut Connections,
    turn: &mut Turn<'_>,
) -> Result<News, LinkError> {
    let mut news = News::default();
    link.handle_bytes(bytes, &mut |event| match event {
        Event::Message(message) => deliver::handle_message(&message, connections, turn),
        Event::Ready => news.is_accepted = true,
        Event::Barrier(number) => news.barriers.push(number),
        Event::LameDuck => news.is_lame_duck = true,
        Event::InfoChanged => news.has_servers = true,
        Event::ServerError { text, is_fatal } => {
            turn.core.meter.count(CoreCounter::NatsErrors);
            // What is fatal comes back as the error that ends the link.
            if !is_fatal {
                if calls::is_refused(text, &turn.rules.pushes_subject()) {
                    news.pushes = Permission::Refused;
                }
                calls::refused(text, connections, turn);
                news.complaint.get_or_insert_with(|| text.into());
            }
        }
    })?;
    Ok(news)
}

fn subscribe_server(out: &mut Vec<u8>, rules: &Rules) {
    encoder::subscribe(out, rules.server_subject().as_bytes(), None, subscriptions::SERVER);
    encoder::subscribe(out, rules.bindings_subject().as_bytes(), None, subscriptions::BINDINGS);
}

fn fail_everything(connections: &mut Connections, turn: &mut Turn<'_>) {
    if let Carrier::Nats(lines) = &mut turn.bus.carrier {
        *lines = NatsLines::new();
    }
    let mut failed: Vec<Pending> = Vec::new();
    let BusState { pending, targets, .. } = &mut *turn.bus;
    pending.fail_lost(|pending| !targets.is_local(pending.target), |pending| failed.push(pending));
    let error = Error::new(code::BUSY, NOT_CONNECTED);
    for pending in failed {
        // What waited for room goes on waiting: for the bus now, until its own deadline.
        if let Some(server) =
            turn.bus.targets.find(pending.target).map(|target| target.server.clone())
            && let Some(waiting) = turn.bus.targets.end(pending.target, turn.core.now_us)
        {
            turn.bus.targets.wait_again(&server.server_type, Place::Type, waiting);
        }
        deliver::fail(&pending, FailReason::BusDown, &error, connections, turn);
    }
    for proof in turn.bus.take_proofs(|_| true) {
        let Some(connection) = connections.find(proof.connection, proof.session) else { continue };
        let binding = std::mem::replace(&mut connection.client.binding, Binding::None);
        if let Binding::Proving { uid, subscription } = binding {
            turn.bus.subscriptions.remove(subscription);
            turn.core.directory.release(proof.session, &uid);
        }
    }
}
