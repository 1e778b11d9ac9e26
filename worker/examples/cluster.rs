//! Two kinds of servers: rooms that players talk to, and the metagame that owns the players' gold.
//!
//! `cargo run -p dragonfruit-worker --example cluster -- metagame`, the same without the word for a room, with NATS,
//! etcd and a gateway.

use std::sync::atomic::{AtomicU64, Ordering};

use worker::prelude::*;

/// What servers tell each other: protobuf.
pub mod messages {
    /// Takes gold from a player.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Spend {
        /// The player.
        #[prost(string, tag = "1")]
        pub id: String,
        /// How much.
        #[prost(uint64, tag = "2")]
        pub gold: u64,
    }

    /// A player afterwards.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Player {
        /// Who.
        #[prost(string, tag = "1")]
        pub id: String,
        /// What is left.
        #[prost(uint64, tag = "2")]
        pub gold: u64,
    }
}

use messages::{Player, Spend};

struct Purse(AtomicU64);

async fn spend(State(purse): State<Purse>, Pb(spend): Pb<Spend>) -> Result<Pb<Player>> {
    let take = |gold: u64| gold.checked_sub(spend.gold);
    match purse.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
        Ok(before) => Ok(Pb(Player { id: spend.id, gold: before - spend.gold })),
        Err(gold) => bail!("MG-001", "{} of {gold} cannot be spent by {}", spend.gold, spend.id),
    }
}

/// The servers that other servers ask.
pub fn metagame() -> App {
    App::new("metagame").state(Purse(AtomicU64::new(100))).remote("player.spend", spend)
}

/// What players say to rooms: JSON.
#[derive(Serialize, Deserialize)]
struct Buy {
    price: u64,
}

impl Validate for Buy {
    fn validate(&self) -> Result<()> {
        if !(1..=1000).contains(&self.price) {
            bail!("PIT-000", "price: {} is not within 1 and 1000", self.price)
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Bought {
    gold: u64,
    level: i64,
}

struct Room;

#[handlers("room")]
impl Room {
    /// Logs the player in and keeps a level in the session.
    pub async fn entry(&self, session: Session, uid: String) -> Result<Bought> {
        session.bind(&uid).await?;
        session.set("level", 7)?;
        session.save().await?;
        Ok(Bought { gold: 0, level: session.int("level") })
    }

    /// Asks the metagame for the gold.
    pub async fn buy(&self, session: Session, rpc: Rpc, Valid(buy): Valid<Buy>) -> Result<Bought> {
        let Some(id) = session.uid() else { bail!("RM-401", "enter first") };
        let spend = Spend { id, gold: buy.price };
        let player: Player = rpc.call("metagame.player.spend", &spend).await?;
        Ok(Bought { gold: player.gold, level: session.int("level") })
    }
}

/// The servers that players talk to.
pub fn room() -> App {
    App::new("room").component(Room).every(Duration::from_secs(60), async |ctx: Ctx| {
        println!("{} is still here", ctx.server_id());
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    let is_metagame = std::env::args().nth(1).as_deref() == Some("metagame");
    if is_metagame { metagame().run().await } else { room().run().await }
}
