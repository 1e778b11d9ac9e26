//! A chat room in one file: `cargo run -p dragonfruit-worker --example chat`, with NATS, etcd and a gateway.

use worker::prelude::*;

#[derive(Serialize, Deserialize)]
struct UserMessage {
    name: String,
    content: String,
}

#[derive(Serialize)]
struct NewUser {
    content: String,
}

#[derive(Serialize)]
struct AllMembers {
    members: Vec<String>,
}

#[derive(Serialize)]
struct Joined {
    code: i32,
    result: String,
}

async fn join(session: Session, groups: Groups) -> Result<Joined> {
    let uid = session.id().to_string();
    session.bind(&uid).await.map_err(|e| e.with("failed", "bind"))?;
    session.push("onMembers", &AllMembers { members: groups.members("room").await? }).await?;
    let content = format!("New user: {uid}");
    groups.broadcast("room", "onNewUser", &NewUser { content }).await?;
    groups.add("room", &uid).await?;
    Ok(Joined { code: 0, result: "success".into() })
}

async fn message(groups: Groups, message: UserMessage) -> Result<()> {
    groups.broadcast("room", "onMessage", &message).await
}

async fn leave(session: Session, groups: Groups) -> Result<()> {
    groups.remove("room", session.uid().unwrap_or_default()).await
}

/// The chat, for a cluster or for a gateway of its own; only the latter tells when somebody has left.
pub fn app() -> App {
    App::new("chat")
        .on("room.join", join)
        .on("room.message", message)
        .on_start(async |groups: Groups| groups.create("room").await)
        .on_close(leave)
}

#[tokio::main]
async fn main() -> Result<()> {
    app().run().await
}
