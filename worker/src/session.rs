//! A player's session as a backend sees it: the copy that came with one request.
//!
//! The gateway owns the session. Changes of the data stay here until [`Session::save`], or in standalone mode until the
//! handler has ended; binds, pushes and kicks go out at once. A copy lives as long as its request: keep the uid, not the
//! session. What only the gateway knows about the client is in `session_remote`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::call::{Call, Context};
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::link::publish_waiting;
use crate::names::check_push_route;
use crate::payload::Encode;
use crate::push::send_push;
use crate::session_data::SessionData;
use crate::session_hooks;

/// What a copy of a session holds.
#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) id: i64,
    pub(crate) uid: String,
    pub(crate) data: SessionData,
}

/// Extractor of the session whose client sent the message. Clones share one copy.
///
/// Hooks and remotes have no session; a handler that asks for it there is answered with an error.
#[derive(Clone)]
pub struct Session(Arc<Context>);

impl FromCall for Session {
    fn from_call(call: &Call) -> Result<Self> {
        match call.context().session {
            Some(_) => Ok(Self(Arc::clone(call.context()))),
            None => Err(Error::unknown("there is no session in this call")),
        }
    }
}

impl Session {
    /// The session's id on its gateway. Unique together with [`Session::frontend_id`] only.
    pub fn id(&self) -> i64 {
        self.state().id
    }

    /// The server id of the gateway that owns the session.
    pub fn frontend_id(&self) -> &str {
        &self.0.frontend_id
    }

    /// The bound user id, or none.
    pub fn uid(&self) -> Option<String> {
        let uid = self.state().uid.clone();
        (!uid.is_empty()).then_some(uid)
    }

    /// Binds the session to a user, at its gateway; from then on the user can be pushed to and kicked by uid.
    ///
    /// Fails with Pitaya's texts for an illegal uid and for a session that is bound already, or with what the functions of
    /// [`App::on_bind`](crate::App::on_bind) or the gateway answer. The session is unbound again then.
    pub async fn bind(&self, uid: &str) -> Result<()> {
        if uid.is_empty() || shared::session::check_uid(uid).is_err() {
            return Err(Error::unknown("illegal uid"));
        }
        let id = {
            let mut state = self.state();
            if !state.uid.is_empty() {
                return Err(Error::unknown("session is already bound to an uid"));
            }
            uid.clone_into(&mut state.uid);
            state.id
        };
        // Undone by the guard as well when the call is cancelled while the gateway works on it.
        let mut undo = UndoBind { session: self, is_armed: true };
        let hooks = &self.0.environment.session_hooks;
        session_hooks::run_until_failure(&hooks.on_bind, &self.0).await?;
        let argument = proto::Session { id, uid: uid.to_owned(), data: Bytes::new() };
        self.call_frontend("sys.bindsession", argument.encode_to_vec()).await?;
        undo.is_armed = false;
        session_hooks::run_until_failure(&hooks.after_bind, &self.0).await
    }

    /// Pushes a message to the session's client. On a backend it goes through the user's subject, so the session must be
    /// bound (`you have to bind an UID to the session to do that`); in standalone mode it need not be.
    ///
    /// Ok means sent, not delivered. A push that a handler sends arrives before the handler's own answer. Fails with
    /// `PIT-400` for a route that no message can carry.
    pub async fn push<T: Encode + ?Sized>(&self, route: &str, message: &T) -> Result<()> {
        check_push_route(route)?;
        if self.is_frontend() {
            let uid = self.uid().unwrap_or_default();
            let push = proto::Push { route: route.to_owned(), uid, data: message.encode()? };
            return self.send_to_session("push", push.encode_to_vec()).await;
        }
        let uid = self.bound_uid()?;
        let frontend = self.0.frontend()?;
        let push = proto::Push { route: route.to_owned(), uid, data: message.encode()? };
        send_push(&self.0.environment, &frontend.server_type, &push).await
    }

    /// Disconnects the session's client with a kick: its library will not connect again by itself. On a backend the
    /// session must be bound. The answer to the request of this call is usually lost.
    pub async fn kick(&self) -> Result<()> {
        if self.is_frontend() {
            return self.send_to_session("kick", Vec::new()).await;
        }
        let argument = proto::KickMsg { user_id: self.bound_uid()? };
        self.call_frontend("sys.kick", argument.encode_to_vec()).await
    }

    /// Whether the client's connection is in this process: standalone mode.
    pub fn is_frontend(&self) -> bool {
        self.0.environment.frontend_type.is_some()
    }

    /// A field of the session's data. None when there is none; an error when it is of another type.
    ///
    /// Numbers convert when nothing is lost: what Go made of an integer, 7.0, is read as an integer too.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        self.state().data.get(key)
    }

    /// Whether there is such a field.
    pub fn has(&self, key: &str) -> bool {
        self.state().data.fields().contains_key(key)
    }

    /// The field as an integer; 0 when there is none or it is none. As Pitaya's `Int`, `Int64`, `Uint` and so on, but
    /// for a number that became a float on its way. [`Session::get`] tells what is wrong.
    pub fn int(&self, key: &str) -> i64 {
        self.get(key).ok().flatten().unwrap_or_default()
    }

    /// The field as a number; 0 when there is none or it is none. As Pitaya's `Float64`.
    pub fn float(&self, key: &str) -> f64 {
        self.get(key).ok().flatten().unwrap_or_default()
    }

    /// The field as a text; empty when there is none or it is none. As Pitaya's `String`.
    pub fn string(&self, key: &str) -> String {
        self.get(key).ok().flatten().unwrap_or_default()
    }

    /// The field as it is; none when there is none. As Pitaya's `Value`.
    pub fn value(&self, key: &str) -> Option<Value> {
        self.state().data.fields().get(key).cloned()
    }

    /// Takes the user and all fields out of this copy. The gateway keeps the user, and the fields until they are saved.
    pub fn clear(&self) {
        let mut state = self.state();
        state.uid.clear();
        state.data.replace(Map::new());
    }

    /// Stores a field in this copy. Fails when the value cannot be JSON; nothing is changed then.
    pub fn set(&self, key: &str, value: impl Serialize) -> Result<()> {
        self.state().data.set(key, &value)
    }

    /// Takes a field out of this copy; tells whether it was there.
    pub fn remove(&self, key: &str) -> bool {
        self.state().data.remove(key)
    }

    /// All fields.
    pub fn data(&self) -> Map<String, Value> {
        self.state().data.fields().clone()
    }

    /// Replaces all fields in this copy.
    pub fn set_data(&self, fields: Map<String, Value>) {
        self.state().data.replace(fields);
    }

    /// All fields as the gateway stores them: a JSON object with sorted keys.
    pub fn data_encoded(&self) -> Vec<u8> {
        self.state().data.encode()
    }

    /// Replaces all fields in this copy by those of a JSON object. Empty input changes nothing. Fails with `PIT-500` when
    /// it is no object.
    pub fn set_data_encoded(&self, encoded: impl Into<Bytes>) -> Result<()> {
        let encoded = encoded.into();
        if !encoded.is_empty() {
            let fields = SessionData::new(encoded)?.fields().clone();
            self.set_data(fields);
        }
        Ok(())
    }

    /// Saves what a handler changed and did not save, where sessions are this process's own and so change at once.
    pub(crate) async fn save_changes(context: &Arc<Context>) -> Result<()> {
        let session = Self(Arc::clone(context));
        if session.is_frontend() && session.state().data.is_changed() {
            session.save().await?;
        }
        Ok(())
    }

    /// Sends the data to the gateway, where it replaces everything stored (Pitaya's `PushToFront`). Of two requests
    /// of one session that save at the same time, the later one wins. Needs no call in standalone mode, where changes are
    /// saved when the handler ends.
    pub async fn save(&self) -> Result<()> {
        let argument = {
            let mut state = self.state();
            let data = state.data.encode_for_save().into();
            proto::Session { id: state.id, uid: state.uid.clone(), data }
        };
        self.call_frontend("sys.pushsession", argument.encode_to_vec()).await
    }

    /// Calls one of the gateway's own remotes whose answer holds nothing that is not known from its success.
    async fn call_frontend(&self, route: &str, argument: Vec<u8>) -> Result<()> {
        self.call_frontend_for(route, argument).await.map(drop)
    }

    /// Calls one of the gateway's own remotes and returns what it answers.
    pub(crate) async fn call_frontend_for(&self, route: &str, argument: Vec<u8>) -> Result<Bytes> {
        let frontend = self.0.frontend()?;
        self.0.call_server(&frontend, route, argument).await
    }

    /// Sends to the connection of this very session, in this process.
    async fn send_to_session(&self, channel: &str, payload: Vec<u8>) -> Result<()> {
        let environment = &self.0.environment;
        let frontend_type = environment.frontend_type.as_deref().unwrap_or_default();
        let subject = format!("pitaya/{frontend_type}/session/{}/{channel}", self.id());
        publish_waiting(environment.link.as_ref(), &subject, payload).await?;
        Ok(())
    }

    fn bound_uid(&self) -> Result<String> {
        self.uid()
            .ok_or_else(|| Error::unknown("you have to bind an UID to the session to do that"))
    }

    fn state(&self) -> MutexGuard<'_, SessionState> {
        let state: &Mutex<SessionState> =
            self.0.session.as_ref().expect("a Session is made only from a call with one");
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct UndoBind<'a> {
    session: &'a Session,
    is_armed: bool,
}

impl Drop for UndoBind<'_> {
    fn drop(&mut self) {
        if self.is_armed {
            self.session.state().uid.clear();
        }
    }
}
