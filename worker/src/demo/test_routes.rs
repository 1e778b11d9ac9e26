//! Handlers with which tests provoke what a game should not do: slowness, floods, failures.

use serde_json::{Map, Value};

use crate::app::App;
use crate::prelude::*;

/// No flood is longer than this; a test that needs more asks twice.
const PUSHES_MAX: u64 = 1_000_000;

/// Who has joined by `test.join`.
const CROWD: &str = "crowd";

/// The largest push of a flood.
const PUSH_BYTES_MAX: usize = 512 * 1024;

#[derive(Deserialize)]
struct Bind {
    name: String,
}

#[derive(Serialize)]
struct Answer {
    code: i32,
}

const OK: Answer = Answer { code: 200 };

#[derive(Deserialize)]
struct Flood {
    n: u64,
    #[serde(default)]
    size: usize,
}

#[derive(Deserialize)]
struct PushTo {
    name: String,
    n: u64,
    #[serde(default)]
    size: usize,
}

#[derive(Deserialize)]
struct Broadcast {
    #[serde(default)]
    size: usize,
}

#[derive(Deserialize)]
struct Sleep {
    ms: u64,
}

#[derive(Deserialize)]
struct Fail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    msg: String,
}

pub(super) fn add(app: App) -> App {
    app.on_start(async |groups: Groups| groups.create(CROWD).await)
        .on("test.echo", echo)
        .on("test.bind", bind)
        .on("test.flood", flood)
        .on("test.push", push)
        .on("test.join", join)
        .on("test.broadcast", broadcast)
        .on("test.sleep", sleep)
        .on("test.fail", fail)
        .on("test.kick", kick)
        .on("test.data", data)
}

async fn echo(message: Bytes) -> Result<Bytes> {
    Ok(message)
}

async fn bind(session: Session, bind: Bind) -> Result<Answer> {
    session.bind(&bind.name).await?;
    Ok(OK)
}

/// Pushes `n` messages `onFlood` of exactly `size` bytes to the caller, numbered if there is room for
/// that. A caller without a user is bound to its session id.
async fn flood(session: Session, flood: Flood) -> Result<Answer> {
    if session.uid().is_none() {
        session.bind(&session.id().to_string()).await?;
    }
    for sequence in 0..flood.n.min(PUSHES_MAX) {
        let bytes = numbered(sequence, flood.size);
        session.push("onFlood", &bytes.slice(..flood.size.min(bytes.len()))).await?;
    }
    Ok(OK)
}

/// Pushes `n` numbered messages `onPush` of `size` bytes to another user of the same type of gateway.
async fn push(push: Push, to: PushTo) -> Result<Answer> {
    let frontend_type = push.frontend_type()?;
    for sequence in 0..to.n.min(PUSHES_MAX) {
        push.raw(&to.name, &frontend_type, "onPush", numbered(sequence, to.size)).await?;
    }
    Ok(OK)
}

/// Binds the caller and makes it one of the crowd.
async fn join(session: Session, groups: Groups, bind: Bind) -> Result<Answer> {
    session.bind(&bind.name).await?;
    if !groups.contains(CROWD, &bind.name).await? {
        groups.add(CROWD, &bind.name).await?;
    }
    Ok(OK)
}

/// Pushes one message `onBroadcast` of `size` bytes to the whole crowd.
async fn broadcast(groups: Groups, broadcast: Broadcast) -> Result<Answer> {
    groups.broadcast(CROWD, "onBroadcast", &numbered(0, broadcast.size)).await?;
    Ok(OK)
}

async fn sleep(sleep: Sleep) -> Result<Answer> {
    tokio::time::sleep(Duration::from_millis(sleep.ms)).await;
    Ok(OK)
}

async fn fail(fail: Fail) -> Result<Answer> {
    Err(Error::new(fail.code, fail.msg))
}

async fn kick(session: Session) -> Result<Answer> {
    session.kick().await?;
    Ok(OK)
}

/// Stores the fields that the message has, and answers with all.
async fn data(session: Session, fields: Map<String, Value>) -> Result<Map<String, Value>> {
    if !fields.is_empty() {
        for (key, value) in fields {
            session.set(&key, value)?;
        }
        session.save().await?;
    }
    Ok(session.data())
}

/// Eight bytes of sequence number, big endian, then bytes that do not compress.
fn numbered(sequence: u64, size: usize) -> Bytes {
    let size = size.min(PUSH_BYTES_MAX);
    let mut bytes = Vec::with_capacity(size.max(8));
    bytes.extend_from_slice(&sequence.to_be_bytes());
    while bytes.len() < size {
        bytes.extend_from_slice(&fastrand::u64(..).to_ne_bytes());
    }
    bytes.truncate(size.max(8));
    bytes.into()
}
