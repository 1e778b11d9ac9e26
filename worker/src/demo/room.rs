//! The chat room: who is in, who says what, and the session calls of Pitaya's cluster demo.
//!
//! Routes, pushes and JSON are those of Pitaya's demos `chat` and `cluster`, so their clients work here. Gateways of a
//! cluster do not announce closed sessions, so there the room may hold users that are gone: pushes to them vanish, and
//! the room has room for so many only, after which the oldest leaves.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::prelude::*;

/// The one group of the demo.
const ROOM: &str = "room";

/// How many users the room holds, those that are gone and forgot to leave included.
const MEMBERS_MAX: usize = 1000;

pub(super) struct Room;

#[derive(Serialize)]
struct Joined {
    code: i32,
    result: &'static str,
}

#[derive(Serialize)]
struct Entered {
    result: &'static str,
}

#[derive(Serialize, Deserialize)]
struct UserMessage {
    name: String,
    content: String,
}

#[derive(Serialize)]
struct NewUser {
    content: String,
}

/// Both spellings: clients of the chat demo read the first, those of the cluster demo the second.
#[derive(Serialize)]
struct AllMembers<'a> {
    members: &'a [String],
    #[serde(rename = "Members")]
    members_of_cluster_demo: &'a [String],
}

#[derive(Serialize, Deserialize)]
struct SessionData {
    #[serde(rename = "Data", alias = "data", default)]
    data: Map<String, Value>,
}

#[derive(Serialize)]
struct TestPush {
    #[serde(rename = "Msg")]
    msg: &'static str,
}

#[handlers("room")]
impl Room {
    pub async fn on_start(&self, groups: Groups) -> Result<()> {
        groups.create(ROOM).await
    }

    /// Binds the session to a new user.
    pub async fn entry(&self, session: Session) -> Result<Entered> {
        let uid = Uuid::new_v4().to_string();
        session.bind(&uid).await.code("RH-000").with("failed", "bind")?;
        Ok(Entered { result: "ok" })
    }

    /// Tells the newcomer who is there, and them who comes. Joining twice is joining once.
    pub async fn join(&self, session: Session, groups: Groups) -> Result<Joined> {
        let uid = match session.uid() {
            Some(uid) => uid,
            None => self.bind(&session).await?,
        };
        let mut members = groups.members(ROOM).await?;
        let is_new = !members.contains(&uid);
        members.retain(|member| *member != uid);
        let all = AllMembers { members: &members, members_of_cluster_demo: &members };
        session.push("onMembers", &all).await?;
        if is_new {
            let content = format!("New user: {uid}");
            // Who cannot be told misses it; the newcomer is in all the same.
            let _ = groups.broadcast(ROOM, "onNewUser", &NewUser { content }).await;
            if let Some(oldest) = members.first().filter(|_| members.len() >= MEMBERS_MAX) {
                let _ = groups.remove(ROOM, oldest).await;
            }
            // Two requests of one user at two gateways may both have seen the room without it.
            let _ = groups.add(ROOM, &uid).await;
        }
        Ok(Joined { code: 0, result: "success" })
    }

    pub async fn leave(&self, session: Session, groups: Groups) -> Result<Bytes> {
        groups.remove(ROOM, session.uid().unwrap_or_default()).await?;
        Ok(Bytes::from_static(b"success"))
    }

    /// Who has gone is in no room. Only a gateway in the same process tells.
    pub async fn on_close(&self, session: Session, groups: Groups) {
        if let Some(uid) = session.uid() {
            // Most never joined.
            let _ = groups.remove(ROOM, uid).await;
        }
    }

    /// Sends one user's message to all.
    pub async fn message(&self, groups: Groups, message: UserMessage) -> Result<()> {
        groups.broadcast(ROOM, "onMessage", &message).await
    }

    pub async fn get_session_data(&self, session: Session) -> Result<SessionData> {
        Ok(SessionData { data: session.data() })
    }

    /// Replaces the session's data, here and at the gateway.
    pub async fn set_session_data(&self, session: Session, new: SessionData) -> Result<Bytes> {
        session.set_data(new.data);
        session.save().await?;
        Ok(Bytes::from_static(b"success"))
    }

    pub async fn notify_push(&self, session: Session) -> Result<()> {
        session.push("testPush", &TestPush { msg: "test" }).await
    }

    /// A user id for who joins without entering: readable, and another one at each gateway.
    async fn bind(&self, session: &Session) -> Result<String> {
        let gateway: String = session.frontend_id().chars().take(8).collect();
        let uid = format!("{gateway}-{}", session.id());
        session.bind(&uid).await.code("RH-000").with("failed", "bind")?;
        Ok(uid)
    }
}
