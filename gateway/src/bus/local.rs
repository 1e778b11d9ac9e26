//! The in-process bus of standalone mode: the application's calls reach sessions without NATS.
//!
//! It is a set of subjects like NATS, with the same encoded messages: requests go to the worker framework as calls,
//! and what the application publishes comes to the reactors as letters. The gate keeps letters in order while a
//! reactor's connections move to another: whoever looks up a reactor and posts holds it shared, the move holds it
//! alone.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use proto::wire::{KickView, PushView, RequestView};
use worker::{BoxFuture, Link, LinkError, Reply, Service};

use super::ReplyTo;
use crate::calls::{self, Addressee};
use crate::directory::Directory;
use crate::mailbox::{Mail, Mailbox};
use shared::session::{Session, SessionId};

/// The process's side of the in-process bus; shared by reactors and application.
pub struct LocalBus {
    directory: Arc<Directory>,
    /// `pitaya/{type}/user/`
    user_prefix: String,
    /// `pitaya/{type}/session/`, which exists in the process only.
    session_prefix: String,
    /// `pitaya/servers/{type}/{id}`
    server_subject: String,
    server_id: String,
    service: OnceLock<Service>,
    mailboxes: OnceLock<Vec<Arc<Mailbox>>>,
    /// Which reactor holds bus i. Held shared while a letter is posted, alone while a bus moves.
    gate: RwLock<Vec<usize>>,
}

/// A reactor's way into the application.
pub struct LocalCarrier {
    bus: Arc<LocalBus>,
    id: usize,
}

impl LocalBus {
    /// A bus for a gateway of this type and id; [`LocalBus::open`] completes it.
    pub fn new(directory: Arc<Directory>, server_type: &str, server_id: &str) -> Self {
        Self {
            directory,
            user_prefix: format!("pitaya/{server_type}/user/"),
            session_prefix: format!("pitaya/{server_type}/session/"),
            server_subject: format!("pitaya/servers/{server_type}/{server_id}"),
            server_id: server_id.to_owned(),
            service: OnceLock::new(),
            mailboxes: OnceLock::new(),
            gate: RwLock::new(Vec::new()),
        }
    }

    /// Joins the application to the reactors. Called once, before anything is sent.
    pub fn open(&self, service: Service, mailboxes: Vec<Arc<Mailbox>>) {
        let is_first = self.service.set(service).is_ok() && self.mailboxes.set(mailboxes).is_ok();
        debug_assert!(is_first, "the in-process bus was opened twice");
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
        mail: impl FnOnce(shared::session::SessionId) -> Mail,
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

    /// Tells the application that a session has ended.
    pub fn closed(&self, session: &Session) {
        if let Some(service) = self.bus.service.get()
            && service.wants_closed_sessions()
        {
            let (uid, data) = (session.uid().to_owned(), Bytes::copy_from_slice(session.data()));
            let session = proto::Session { id: session.id().0, uid, data };
            service.session_closed(&self.bus.server_id, session);
        }
    }

    /// The process's side, for moves.
    pub fn bus(&self) -> &Arc<LocalBus> {
        &self.bus
    }
}

impl LocalBus {
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
        let is_ours = subject == self.server_subject;
        Box::pin(async move {
            if !is_ours {
                return Err(LinkError::NoResponders);
            }
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
        })
    }

    fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), LinkError> {
        let payload = Bytes::from(payload);
        let by_id = |tail: &str, end| {
            let number = tail.strip_suffix(end)?.parse().ok()?;
            Some(Addressee::Session(SessionId(number)))
        };
        let kick = |session| Mail::Kick { session, is_replaced: false };
        let is_there = if let Some(tail) = subject.strip_prefix(&self.session_prefix) {
            if let Some(addressee) = by_id(tail, "/push") {
                self.post(addressee, |session| Mail::Push { session, push: payload })?
            } else if let Some(addressee) = by_id(tail, "/kick") {
                self.post(addressee, kick)?
            } else {
                false
            }
        } else if let Some(tail) = subject.strip_prefix(&self.user_prefix) {
            if tail.ends_with("/push") {
                let push = PushView::decode(&payload).map_err(|_| LinkError::InvalidSubject)?;
                let letter = payload.clone();
                let mail = |session| Mail::Push { session, push: letter };
                self.post(Addressee::Uid(push.uid), mail)?
            } else {
                let user = KickView::decode(&payload).map_err(|_| LinkError::InvalidSubject)?;
                self.post(Addressee::Uid(user.user_id), kick)?
            }
        } else {
            false
        };
        // There is nobody else who could have it: here a push to nobody is known to be lost.
        if is_there { Ok(()) } else { Err(LinkError::NoResponders) }
    }
}
