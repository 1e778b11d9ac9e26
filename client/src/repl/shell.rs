//! Carries commands out: the connection of the interactive client, and what it prints.
//!
//! Commands run one after the other and wait for their answers; pushes are printed by a task of their own as they
//! come, which ends with its connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::handshake::{HandshakeRequest, HandshakeSys, decode_request};
use shared::packet::BODY_BYTES_MAX;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::ReplOptions;
use super::command::{COMMANDS, Command, HandshakeChange};
use super::console::{Printer, Routes};
use super::docs::{Docs, DocsError, EncodeTextError};
use super::text;
use crate::address::{Address, AddressError};
use crate::tls::Trust;
use crate::{Client, CloseCause, ConnectError, ConnectOptions, PushReceiver, RequestError};

/// How long a server may look like neither WebSocket nor TCP before the next is tried.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShellError {
    #[error("already connected")]
    Connected,
    #[error("not connected")]
    NotConnected,
    #[error("use this command before connect")]
    AfterConnect,
    #[error("only {seen} of {wanted} pushes {route} came within {timeout:?}")]
    Unwatched { route: String, seen: u64, wanted: u64, timeout: Duration },
    #[error("the connection ended before {wanted} pushes {route} came: {cause}")]
    WatchedEnd { route: String, wanted: u64, cause: CloseCause },
    #[error("invalid handshake: {0}")]
    Handshake(String),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Docs(#[from] DocsError),
    #[error(transparent)]
    Data(#[from] EncodeTextError),
}

/// Pushes that were printed and not watched yet, by route.
#[derive(Debug, Default)]
struct Unwatched {
    counts: Mutex<HashMap<Arc<str>, u64>>,
    /// No more will come.
    has_ended: AtomicBool,
    changed: Notify,
}

impl Unwatched {
    fn add(&self, route: &Arc<str>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(Arc::clone(route)).or_default() += 1;
        drop(counts);
        self.changed.notify_waiters();
    }

    fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits until so many are there, and takes them; false when they will not come.
    async fn take_when_there(&self, route: &str, wanted: u64) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed, so looking comes after.
            changed.as_mut().enable();
            let has_ended = self.has_ended.load(Ordering::Acquire);
            if self.take(route, wanted) {
                return true;
            }
            if has_ended {
                return false;
            }
            changed.await;
        }
    }

    /// Takes so many if they are there.
    fn take(&self, route: &str, wanted: u64) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(route) {
            Some(count) if *count >= wanted => {
                *count -= wanted;
                true
            }
            _ => wanted == 0,
        }
    }

    fn count(&self, route: &str) -> u64 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(route).copied().unwrap_or_default()
    }
}

/// The state behind the commands.
pub(crate) struct Shell {
    printer: Printer,
    routes: Routes,
    is_pretty: bool,
    docs_route: Option<String>,
    trust: Trust,
    handshake: HandshakeRequest,
    push_types: HashMap<String, String>,
    /// Of the connected server; empty without `--docs`.
    docs: Arc<Docs>,
    client: Option<Client>,
    /// Prints the pushes of `client`, and ends with its connection.
    printing: Option<JoinHandle<()>>,
    unwatched: Arc<Unwatched>,
}

impl Shell {
    pub(crate) fn new(printer: Printer, routes: Routes, options: &ReplOptions) -> Self {
        Self {
            printer,
            routes,
            is_pretty: options.pretty,
            docs_route: options.docs.clone(),
            trust: options.trust(),
            handshake: own_handshake(),
            push_types: HashMap::new(),
            docs: Arc::default(),
            client: None,
            printing: None,
            unwatched: Arc::default(),
        }
    }

    /// Carries a command out. `Clear`, `Exit` and asking for an address are the console's and do nothing here.
    pub(crate) async fn handle(&mut self, command: Command) -> Result<(), ShellError> {
        match command {
            Command::Connect(Some(address)) => self.connect(&address).await,
            Command::Disconnect => self.disconnect().await,
            Command::Request { route, data } => self.request(&route, &data).await,
            Command::Notify { route, data } => self.notify(&route, &data).await,
            Command::Push { route, kind } => self.set_push_type(route, kind),
            Command::SetHandshake(change) => self.set_handshake(change),
            Command::Watch { route, count, timeout } => self.watch(&route, count, timeout).await,
            Command::Routes => {
                for route in self.routes.starting_with("") {
                    self.printer.print(&route);
                }
                Ok(())
            }
            Command::Help => {
                for (name, arguments, meaning) in COMMANDS {
                    let usage = format!("{name} {arguments}");
                    self.printer.print(&format!("  {usage:<42}{meaning}"));
                }
                Ok(())
            }
            Command::Nothing | Command::Connect(None) | Command::Clear | Command::Exit => Ok(()),
        }
    }

    fn client(&self) -> Result<Client, ShellError> {
        let alive = self.client.clone().filter(|client| client.close_cause().is_none());
        alive.ok_or(ShellError::NotConnected)
    }

    async fn connect(&mut self, address: &str) -> Result<(), ShellError> {
        if self.client().is_ok() {
            return Err(ShellError::Connected);
        }
        let address: Address = address.parse()?;
        let options = ConnectOptions {
            handshake: self.handshake.clone(),
            trust: self.trust.clone(),
            ..ConnectOptions::default()
        };
        let began = Instant::now();
        let client = match address.transport {
            Some(transport) => Client::connect_to(&address, transport, options).await?,
            None => Client::probe(&address, PROBE_TIMEOUT, options).await?,
        };
        self.printer.print(&format!(
            "connected! ({}, {}, heartbeat {} s, {})",
            client.transport(),
            client.serializer(),
            client.heartbeat().as_secs(),
            milliseconds(began),
        ));
        for (route, _) in client.dictionary().iter() {
            self.routes.insert(route);
        }
        self.docs = Arc::default();
        if let Some(route) = &self.docs_route {
            self.docs = Arc::new(Docs::request(&client, route, &self.push_types).await?);
            self.docs.routes().for_each(|route| self.routes.insert(route));
        }
        self.unwatched = Arc::default();
        if let Some(pushes) = client.take_pushes() {
            self.printing = Some(tokio::spawn(self.print_pushes(pushes, client.clone())));
        }
        self.client = Some(client);
        Ok(())
    }

    fn print_pushes(
        &self,
        mut pushes: PushReceiver,
        client: Client,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (printer, routes) = (self.printer.clone(), self.routes.clone());
        let (unwatched, is_pretty) = (Arc::clone(&self.unwatched), self.is_pretty);
        let docs = Arc::clone(&self.docs);
        async move {
            while let Some(push) = pushes.next().await {
                routes.insert(&push.route);
                let decoded = docs.decode_push(&push.route, &push.payload);
                let payload = text::show(decoded.as_deref().unwrap_or(&push.payload), is_pretty);
                printer.print(&format!("sv->{payload} [push {}]", push.route));
                unwatched.add(&push.route);
            }
            let cause = client.closed().await;
            if cause != CloseCause::Disconnected {
                printer.print(&format!("disconnected: {cause}"));
            }
            unwatched.end();
        }
    }

    /// Closes the connection if there is one.
    pub(crate) async fn disconnect(&mut self) -> Result<(), ShellError> {
        let client = self.client.take().ok_or(ShellError::NotConnected)?;
        client.disconnect().await;
        if let Some(printing) = self.printing.take() {
            // Its panic would have been printed already.
            let _ = printing.await;
        }
        Ok(())
    }

    async fn request(&mut self, route: &str, data: &str) -> Result<(), ShellError> {
        let client = self.client()?;
        self.routes.insert(route);
        let data = self.docs.encode(route, data)?;
        let began = Instant::now();
        match client.request(route, &data).await {
            Ok(payload) => {
                let decoded = self.docs.decode_answer(route, &payload);
                let payload = text::show(decoded.as_deref().unwrap_or(&payload), self.is_pretty);
                self.printer.print(&format!("sv->{payload} [{route} {}]", milliseconds(began)));
                Ok(())
            }
            // An answer like any other to somebody who looks at a server.
            Err(RequestError::Reply(error)) => {
                let mut body = Vec::new();
                error.encode(shared::error::Serializer::Json, &mut body);
                let payload = text::show(&body, self.is_pretty);
                self.printer
                    .print(&format!("sv->{payload} [{route} error {}]", milliseconds(began)));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn notify(&mut self, route: &str, data: &str) -> Result<(), ShellError> {
        let client = self.client()?;
        self.routes.insert(route);
        Ok(client.notify(route, &self.docs.encode(route, data)?).await?)
    }

    async fn watch(&self, route: &str, wanted: u64, timeout: Duration) -> Result<(), ShellError> {
        let Some(client) = &self.client else { return Err(ShellError::NotConnected) };
        let come = self.unwatched.take_when_there(route, wanted);
        match tokio::time::timeout(timeout, come).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let cause = client.closed().await;
                Err(ShellError::WatchedEnd { route: route.into(), wanted, cause })
            }
            Err(_) => {
                let seen = self.unwatched.count(route);
                Err(ShellError::Unwatched { route: route.into(), seen, wanted, timeout })
            }
        }
    }

    fn set_push_type(&mut self, route: String, kind: String) -> Result<(), ShellError> {
        if self.client().is_ok() {
            return Err(ShellError::AfterConnect);
        }
        if self.docs_route.is_none() {
            self.printer.print("only for protobuf servers: start with --docs ROUTE");
            return Ok(());
        }
        self.push_types.insert(route, kind);
        Ok(())
    }

    fn set_handshake(&mut self, change: HandshakeChange) -> Result<(), ShellError> {
        let sys = &mut self.handshake.sys;
        match change {
            HandshakeChange::Json(text) => {
                self.handshake = decode_request(text.as_bytes(), BODY_BYTES_MAX)
                    .map_err(|error| ShellError::Handshake(error.to_string()))?;
            }
            HandshakeChange::Version(version) => sys.client_version = version,
            HandshakeChange::Platform(platform) => sys.platform = platform,
            HandshakeChange::BuildNumber(number) => sys.client_build_number = number,
        }
        Ok(())
    }
}

/// What pitaya-cli says of itself: handshake checks of servers may look for it (client protocol 17.2).
fn own_handshake() -> HandshakeRequest {
    let sys = HandshakeSys {
        platform: "repl".to_owned(),
        lib_version: "0.3.5-release".to_owned(),
        client_build_number: "20".to_owned(),
        client_version: "1.0.0".to_owned(),
    };
    let mut user = serde_json::Map::new();
    user.insert("client".to_owned(), "repl".into());
    HandshakeRequest { sys, user }
}

fn milliseconds(began: Instant) -> String {
    format!("{:.2} ms", began.elapsed().as_secs_f64() * 1000.0)
}
