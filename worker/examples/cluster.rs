//! Two kinds of servers: rooms that players talk to, and the metagame that owns the players' gold. Rooms call the
//! metagame (user RPC), and leave it jobs that are kept until they succeed (reliable RPC).
//!
//! `cargo run -p dragonfruit-worker --example cluster -- metagame`, the same without the word for a room, with NATS,
//! etcd, Redis and a gateway.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

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

/// What the metagame owns. A real one keeps it in a database.
struct Purse {
    gold: u64,
    /// The coupons that were paid out.
    paid: HashSet<String>,
}

type Purses = State<Mutex<Purse>>;

async fn spend(State(purse): Purses, Pb(spend): Pb<Spend>) -> Result<Pb<Player>> {
    let mut purse = purse.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(left) = purse.gold.checked_sub(spend.gold) else {
        bail!("MG-001", "{} of {} cannot be spent by {}", spend.gold, purse.gold, spend.id)
    };
    purse.gold = left;
    Ok(Pb(Player { id: spend.id, gold: left }))
}

/// A coupon: what a job carries, in JSON.
#[derive(Serialize, Deserialize)]
struct Coupon {
    number: String,
    gold: u64,
}

/// A job may run more than once, so what was paid out already is not paid again.
async fn pay(State(purse): Purses, coupon: Coupon) -> Result<()> {
    let mut purse = purse.lock().unwrap_or_else(PoisonError::into_inner);
    if purse.paid.insert(coupon.number) {
        purse.gold = purse.gold.saturating_add(coupon.gold);
    }
    Ok(())
}

/// The servers that other servers ask.
pub fn metagame() -> App {
    App::new("metagame")
        .state(Mutex::new(Purse { gold: 100, paid: HashSet::new() }))
        .remote("player.spend", spend)
        .on_job("metagame.player.pay", pay)
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

    /// Has a coupon paid out, even if no metagame runs at the moment: the job waits in Redis. Gives the job's id.
    pub async fn redeem(&self, jobs: Jobs, coupon: Coupon) -> Result<String> {
        jobs.enqueue("metagame.player.pay", &coupon).await
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
