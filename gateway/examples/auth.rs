//! A game that lets only players in whose client is new enough and whose token is good: a gateway and its application in
//! one process. `GAME_KEY=secret cargo run -p dragonfruit-gateway --example auth`
//!
//! The token is `uid.expiry.signature`: a user, seconds since 1970, and the HMAC-SHA256 of both in hex, which whoever
//! logs players in has made with the same key.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use gateway::control::plan::Plan;
use gateway::gateway::{Commands, Gateway};
use ring::hmac;
use shared::config::{Binary, Config};
use worker::prelude::*;
use worker::version_at_least;

/// A token for a user that is good until then, in seconds since 1970.
pub fn sign(key: &hmac::Key, uid: &str, expiry_s: u64) -> String {
    let claims = format!("{uid}.{expiry_s}");
    let tag = hmac::sign(key, claims.as_bytes());
    let mut token = format!("{claims}.");
    for byte in tag.as_ref() {
        let _ = write!(token, "{byte:02x}");
    }
    token
}

/// The user of a good token.
fn user_of(key: &hmac::Key, token: &str) -> Result<String> {
    let claims = token.rsplit_once('.').map_or("", |(claims, _)| claims);
    let (uid, expiry) = claims.rsplit_once('.').unwrap_or_default();
    let expiry_s: u64 = expiry.parse().code("AUTH-401")?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let given: Vec<u8> = (claims.len() + 1..token.len())
        .step_by(2)
        .filter_map(|at| u8::from_str_radix(token.get(at..at + 2)?, 16).ok())
        .collect();
    if expiry_s <= now_s || hmac::verify(key, claims.as_bytes(), &given).is_err() {
        bail!("AUTH-401", "the token is not good")
    }
    Ok(uid.to_owned())
}

/// The application with this key.
pub fn app(key: &hmac::Key) -> App {
    let (check, enter) = (key.clone(), key.clone());
    App::new("game")
        .handshake("client version", |handshake| {
            if !version_at_least(&handshake.sys.client_version, "1.0.6") {
                bail!("AUTH-426", "please update to 1.0.6")
            }
            Ok(())
        })
        .handshake("token", move |handshake| {
            user_of(&check, &handshake.user::<String>("token")?).map(drop)
        })
        .on("entry.enter", move |session: Session| {
            let key = enter.clone();
            async move {
                let Some(handshake) = session.handshake().await? else {
                    bail!("AUTH-401", "who are you")
                };
                let uid = user_of(&key, &handshake.user::<String>("token")?)?;
                session.bind(&uid).await?;
                Ok::<_, Error>(uid)
            }
        })
}

fn main() {
    let key = std::env::var("GAME_KEY").expect("GAME_KEY is the key of the tokens");
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let config = Config::load(Binary::Gateway, None, std::env::vars(), &[]);
    let plan = config.map_err(|errors| errors.iter().map(ToString::to_string).collect());
    let plan = plan.and_then(|config| Plan::new(&config, Some(app(&key))));
    let gateway = Gateway::start(plan.expect("a good configuration"), Commands::new());
    gateway.expect("the ports are free").wait();
}
