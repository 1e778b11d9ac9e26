//! The in-process bus: an application that the gateway hosts is called, and reaches the sessions, without NATS.
//!
//! It is a set of subjects like NATS, with the same encoded messages: requests go to the worker framework as calls,
//! and what the application publishes comes to the reactors as letters. What is not for a session of this process goes
//! on to the cluster, when there is one. The gate keeps letters in order while a
//! reactor's connections move to another: whoever looks up a reactor and posts holds it shared, the move holds it
//! alone.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use proto::wire::{KickView, PushView, RequestView};
use shared::server::{METADATA_WINDOW, Server};
use shared::session::SessionId;
use worker::{BoxFuture, EventOrder, Link, LinkError, Reply, Service, SessionCopy, SessionEvent};

use super::ReplyTo;
use super::targets::LOCAL_TYPE;
use crate::application::Verdict;
use crate::calls::{self, Addressee};
use crate::control::post;
use crate::directory::Directory;
use crate::mailbox::{Mail, Mailbox};

/// The process's side of the in-process bus; shared by reactors and application.
pub struct LocalBus {
    directory: Arc<Directory>,
    /// The application as requests are counted for it.
    server: Arc<Server>,
    /// `pitaya/{type}/user/`
    user_prefix: String,
    /// `pitaya/{type}/session/`, which exists in the process only.
    session_prefix: String,
    /// `pitaya/servers/{type}/{id}`
    server_subject: String,
    service: OnceLock<Service>,
    /// The way to the rest of the cluster; never set in standalone mode.
    cluster: OnceLock<Arc<dyn Link>>,
    mailboxes: OnceLock<Vec<Arc<Mailbox>>>,
    /// Which reactor holds bus i. Held shared while a letter is posted, alone while a bus moves.
    gate: RwLock<Vec<usize>>,
}

/// Requests in flight that the application takes; its own limits answer what exceeds them.
const WINDOW: u32 = 4_096;

/// A reactor's way into the application.
pub struct LocalCarrier {
    bus: Arc<LocalBus>,
    id: usize,
}

impl LocalBus {
    /// A bus for a gateway of this type and id; [`LocalBus::open`] completes it.
    pub fn new(directory: Arc<Directory>, server_type: &str, server_id: &str) -> Self {
        let server = Server {
            id: server_id.to_owned(),
            server_type: LOCAL_TYPE.to_owned(),
            metadata: [(METADATA_WINDOW.to_owned(), WINDOW.to_string())].into(),
            frontend: true,
            hostname: String::new(),
        };
        Self {
            directory,
            server: Arc::new(server),
            user_prefix: format!("pitaya/{server_type}/user/"),
            session_prefix: format!("pitaya/{server_type}/session/"),
            server_subject: format!("pitaya/servers/{server_type}/{server_id}"),
            service: OnceLock::new(),
            cluster: OnceLock::new(),
            mailboxes: OnceLock::new(),
            gate: RwLock::new(Vec::new()),
        }
    }

    /// Joins the application to the reactors. Called once, before anything is sent.
    pub fn open(&self, service: Service, mailboxes: Vec<Arc<Mailbox>>) {
        let is_first = self.service.set(service).is_ok() && self.mailboxes.set(mailboxes).is_ok();
        debug_assert!(is_first, "the in-process bus was opened twice");
    }

    /// Opens the way to the rest of the cluster. Called once, before the application starts.
    pub fn join_cluster(&self, link: Arc<dyn Link>) {
        let is_first = self.cluster.set(link).is_ok();
        debug_assert!(is_first, "the in-process bus has joined the cluster twice");
    }

    /// The application as a server of [`LOCAL_TYPE`].
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// The application, once it has started.
    pub fn service(&self) -> Option<&Service> {
        self.service.get()
    }

    /// Numbers a bus that `reactor` makes.
    pub fn add_bus(&self, reactor: usize) -> usize {
        let mut holders = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        holders.push(reactor);
        holders.len() - 1
    }

    /// The way into the application for the bus of this number.
    pub fn carrier(self: &Arc<Self>, id: usize) -> LocalCarrier {
        LocalCarrier { bus: self.clone(), id }
    }

    /// Runs `act` while no letter is on its way, so that a parcel comes before the letters that follow it. `act` may
    /// give buses to other reactors: the slice says who holds which.
    pub fn while_closed<T>(&self, act: impl FnOnce(&mut [usize]) -> T) -> T {
        act(&mut self.gate.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn post_to(&self, reactor: usize, mail: Mail) -> Result<(), LinkError> {
        let mailbox =
            self.mailboxes.get().and_then(|all| all.get(reactor)).ok_or(LinkError::Closed)?;
        mailbox.send(mail).map_err(|_| LinkError::Full)
    }

    fn post(
        &self,
        addressee: Addressee<'_>,
        mail: impl FnOnce(SessionId) -> Mail,
    ) -> Result<bool, LinkError> {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let Some((session, place)) = calls::find(&self.directory, addressee) else {
            return Ok(false);
        };
        self.post_to(place.reactor, mail(session)).map(|()| true)
    }
}

impl LocalCarrier {
    /// Hands an encoded request to the application; its answer comes back as a letter with `token`.
    pub fn request(&self, token: u32, request: Bytes) {
        let (bus, id) = (self.bus.clone(), self.id);
        let reply = Reply::new(move |response| bus.answer(id, token, response));
        if let Some(service) = self.bus.service.get() {
            service.handle(request, reply);
        }
    }

    /// Hands an encoded notify to the application; nobody waits for its acknowledgement.
    pub fn notify(&self, request: Bytes) {
        if let Some(service) = self.bus.service.get() {
            service.handle(request, Reply::new(|_| {}));
        }
    }

    /// The process's side, for moves.
    pub fn bus(&self) -> &Arc<LocalBus> {
        &self.bus
    }
}

impl LocalBus {
    /// Hands a call of another server to the application; the answer leaves through `reactor`.
    pub fn serve(self: &Arc<Self>, reactor: usize, request: Bytes, reply: ReplyTo) {
        let Some(service) = self.service.get() else { return };
        let bus = self.clone();
        let answer = move |answer| {
            // A full mailbox loses the answer, and the caller waits for its timeout.
            let _ = bus.post_to(reactor, Mail::Reply { reply, answer });
        };
        service.handle(request, Reply::new(answer));
    }

    /// Tells the application what happens to a session. Its verdict on a bind comes to whichever reactor holds the session
    /// then.
    pub fn tell(
        self: &Arc<Self>,
        event: SessionEvent,
        copy: SessionCopy,
        order: &mut EventOrder,
        reply: ReplyTo,
    ) {
        let Some(service) = self.service.get() else { return };
        let session = SessionId(copy.id);
        let bus = self.clone();
        service.tell(event, copy, order, move |outcome| {
            if !matches!(event, SessionEvent::Closed(_)) {
                bus.post_verdict(Verdict { session, event, outcome, reply });
            }
        });
    }

    /// A lost verdict would leave the bind under way for good, so a full mailbox is waited for.
    fn post_verdict(&self, verdict: Verdict) {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let place = self.directory.find(verdict.session);
        let reactor = place.map_or(0, |place| place.reactor);
        let Some(mailbox) = self.mailboxes.get().and_then(|all| all.get(reactor)).cloned() else {
            return;
        };
        if let Err(full) = mailbox.send(Mail::Judged(Box::new(verdict))) {
            // Ends with the mailbox's next turn, or with the process.
            tokio::spawn(async move { post(&mailbox, full.0).await });
        }
    }

    fn answer(&self, bus: usize, token: u32, response: Bytes) {
        let holders = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let Some(holder) = holders.get(bus) else { return };
        // A full mailbox loses the answer; the request then ends with its timeout, which is counted there.
        let _ = self.post_to(*holder, Mail::Answer { bus, token, response });
    }
}

impl Link for LocalBus {
    fn request(
        &self,
        subject: &str,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        if subject != self.server_subject {
            return match self.cluster.get() {
                Some(cluster) => cluster.request(subject, payload, timeout),
                None => Box::pin(std::future::ready(Err(LinkError::NoResponders))),
            };
        }
        Box::pin(async move {
            let (answer, answered) = tokio::sync::oneshot::channel();
            let reply = ReplyTo::Caller(Box::new(move |bytes| {
                // The caller may have given up; then nobody misses the answer.
                let _ = answer.send(bytes);
            }));
            let request = Bytes::from(payload);
            let view = RequestView::decode(&request).map_err(|_| LinkError::Closed)?;
            let addressee = calls::addressee(&view);
            let letter = request.clone();
            match addressee {
                Some(addressee) => {
                    let mut reply = Some(reply);
                    let reached = self.post(addressee, |_| Mail::Call {
                        request: letter,
                        reply: reply.take().unwrap_or_default(),
                    })?;
                    if !reached {
                        return Ok(Bytes::from(calls::session_not_found()));
                    }
                }
                None => {
                    return Ok(Bytes::from(calls::route_not_found(
                        view.msg.map_or("", |message| message.route),
                    )));
                }
            }
            match tokio::time::timeout(timeout, answered).await {
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(_)) => Err(LinkError::Closed),
                Err(_) => Err(LinkError::Timeout),
            }
        })
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            for mailbox in self.mailboxes.get().into_iter().flatten() {
                mailbox.relieved().await;
            }
            if let Some(cluster) = self.cluster.get() {
                cluster.ready().await;
            }
        })
    }

    fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), LinkError> {
        let payload = Bytes::from(payload);
        if let Some(tail) = subject.strip_prefix(&self.session_prefix) {
            return if self.post_to_session(tail, payload)? {
                Ok(())
            } else {
                Err(LinkError::NoResponders)
            };
        }
        if let Some(tail) = subject.strip_prefix(&self.user_prefix)
            && self.post_to_user(tail, &payload)?
        {
            return Ok(());
        }
        match self.cluster.get() {
            Some(cluster) => cluster.publish(subject, payload.into()),
            // There is nobody else who could have it: here a push to nobody is known to be lost.
            None => Err(LinkError::NoResponders),
        }
    }
}

impl LocalBus {
    /// A push or kick to a session of this process; `tail` is the subject behind the prefix. False when it is not here.
    fn post_to_session(&self, tail: &str, payload: Bytes) -> Result<bool, LinkError> {
        let Some((number, what)) = tail.split_once('/') else { return Ok(false) };
        let Ok(number) = number.parse() else { return Ok(false) };
        let addressee = Addressee::Session(SessionId(number));
        match what {
            "push" => self.post(addressee, |session| Mail::Push { session, push: payload }),
            "kick" => self.post(addressee, kick),
            _ => Ok(false),
        }
    }

    /// A push or kick to a user of this process; `tail` is the subject behind the prefix. False when the user is not
    /// here.
    fn post_to_user(&self, tail: &str, payload: &Bytes) -> Result<bool, LinkError> {
        if tail.ends_with("/push") {
            let push = PushView::decode(payload).map_err(|_| LinkError::InvalidSubject)?;
            let letter = payload.clone();
            let mail = |session| Mail::Push { session, push: letter };
            return self.post(Addressee::Uid(push.uid), mail);
        }
        let user = KickView::decode(payload).map_err(|_| LinkError::InvalidSubject)?;
        self.post(Addressee::Uid(user.user_id), kick)
    }
}

fn kick(session: SessionId) -> Mail {
    Mail::Kick { session, is_replaced: false }
}
