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

#[tokio::main]
async fn main() -> Result<()> {
    App::new("chat")
        .on("room.join", join)
        .on("room.message", message)
        .on_start(async |groups: Groups| groups.create("room").await)
        .run()
        .await
}
