//! One message for many users: once for all gateways of ours, once for each user towards others.
//!
//! Gateways that announce it take one message on the subject of their type, and each delivers it to the users that it
//! holds (see `PushMany` in `pitaya.proto`). Nobody needs to know who is where, a gateway that is missing in the server
//! table is reached as it is by a single push, and as with a single push nobody learns who was absent. When frontends
//! of the type do not announce it, ours are asked first whom they hold; everybody else is pushed to one by one, so
//! that each user gets the message once. A gateway that does not say counts as holding nobody.
//!
//! The order of one sender's pushes to one user is kept, whichever way each takes: all of them leave over one
//! connection, and a gateway receives both kinds of a user's pushes over one connection.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use proto::wire::encode_push_many;
use shared::server::{PROTOCOL_PUSHES, Server};
use shared::session::check_uid;

use crate::call::{Context, Environment};
use crate::link::publish_waiting;
use crate::push::send_push;

/// Users of one message at most, so that a gateway serves others in between.
const USERS_MAX: usize = 1_024;

/// Bytes of the users' ids in one message at most.
const USER_BYTES_MAX: usize = 256 * 1024;

/// Longest payload, bytes. With the users it stays below the megabyte that NATS takes unless it is told otherwise.
const DATA_BYTES_MAX: usize = 512 * 1024;

/// Below so many users for each gateway single pushes cost less: every connection of every gateway gets a copy.
const USERS_PER_GATEWAY_MIN: usize = 4;

/// How long gateways are asked whom they hold. Whoever is slower is served by single pushes, which nobody misses.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The call that asks; see `PushMany` in `pitaya.proto`.
const HOLDERS: &str = "dragonfruit.holders";

/// One encoded message for users of one type of frontend.
pub(crate) struct ForMany<'a> {
    pub(crate) frontend_type: &'a str,
    pub(crate) route: &'a str,
    pub(crate) data: Bytes,
}

impl ForMany<'_> {
    /// Sends it; returns the users to whom it could not be sent, in their order.
    pub(crate) async fn send<'u>(&self, context: &Context, uids: &[&'u str]) -> Vec<&'u str> {
        let environment = &*context.environment;
        let table = environment.servers.table();
        let frontends = table.by_type(self.frontend_type).iter().filter(|server| server.frontend);
        let (ours, others): (Vec<_>, Vec<_>) =
            frontends.partition(|server| server.speaks(PROTOCOL_PUSHES));
        let is_worth_it = !ours.is_empty()
            && uids.len() >= ours.len() * USERS_PER_GATEWAY_MIN
            && self.data.len() <= DATA_BYTES_MAX;
        if !is_worth_it {
            return self.send_one_by_one(environment, uids).await;
        }
        let mut unreached = Vec::new();
        for chunk in chunks(uids) {
            let (good, bad): (Vec<&str>, Vec<&str>) =
                chunk.iter().partition(|uid| check_uid(uid).is_ok());
            unreached.extend(bad);
            if others.is_empty() {
                unreached.extend(self.send_to_ours(environment, &good).await);
                continue;
            }
            let is_held = holders(context, &ours, &good).await;
            let mut held = is_held.into_iter();
            let (here, elsewhere): (Vec<&str>, Vec<&str>) =
                good.iter().partition(|_| held.next().unwrap_or(false));
            unreached.extend(self.send_to_ours(environment, &here).await);
            unreached.extend(self.send_one_by_one(environment, &elsewhere).await);
        }
        let unreached: HashSet<&str> = unreached.into_iter().collect();
        uids.iter().copied().filter(|uid| unreached.contains(uid)).collect()
    }

    /// One message for all of them.
    async fn send_to_ours<'u>(&self, environment: &Environment, uids: &[&'u str]) -> Vec<&'u str> {
        if uids.is_empty() {
            return Vec::new();
        }
        let mut message = Vec::new();
        encode_push_many(self.route, &self.data, uids.iter().copied(), &mut message);
        let subject = format!("pitaya/{}/pushes", self.frontend_type);
        match publish_waiting(environment.link.as_ref(), &subject, message).await {
            Ok(()) => Vec::new(),
            // Too large for this NATS server, perhaps; one by one is smaller, and says who was not reached.
            Err(_) => self.send_one_by_one(environment, uids).await,
        }
    }

    async fn send_one_by_one<'u>(
        &self,
        environment: &Environment,
        uids: &[&'u str],
    ) -> Vec<&'u str> {
        let mut unreached = Vec::new();
        for uid in uids {
            let (route, uid_text) = (self.route.to_owned(), (*uid).to_owned());
            let push = proto::Push { route, uid: uid_text, data: self.data.clone() };
            if send_push(environment, self.frontend_type, &push).await.is_err() {
                unreached.push(*uid);
            }
        }
        unreached
    }
}

/// Parts of the list that fit one message each.
fn chunks<'a, 'u>(mut uids: &'a [&'u str]) -> impl Iterator<Item = &'a [&'u str]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |uid: &&&str| {
            bytes += uid.len();
            bytes <= USER_BYTES_MAX
        };
        let count = uids.iter().take(USERS_MAX).take_while(fits).count();
        // A single one is never too long to be sent, or is refused for its length.
        let (chunk, rest) = uids.split_at(count.max(1).min(uids.len()));
        uids = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Whether one of the gateways holds the user, for each of them.
async fn holders(context: &Context, gateways: &[&Arc<Server>], uids: &[&str]) -> Vec<bool> {
    let mut list = Vec::new();
    encode_push_many("", &[], uids.iter().copied(), &mut list);
    let ask = |gateway: &Arc<Server>| {
        let (gateway, list) = (Arc::clone(gateway), list.clone());
        async move {
            let asked = context.call_server(&gateway, HOLDERS, list);
            tokio::time::timeout(ASK_TIMEOUT, asked).await
        }
    };
    let mut is_held = vec![false; uids.len()];
    for answer in join_all(gateways.iter().map(|gateway| ask(gateway))).await {
        let Ok(Ok(bits)) = answer else { continue };
        for (number, is_held) in is_held.iter_mut().enumerate() {
            *is_held |= bits.get(number / 8).is_some_and(|byte| byte >> (number % 8) & 1 == 1);
        }
    }
    is_held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded_in_number_and_bytes_and_lose_nobody() {
        let few: Vec<String> = (0..USERS_MAX).map(|number| number.to_string()).collect();
        let all: Vec<&str> = few.iter().map(String::as_str).collect();
        assert_eq!(chunks(&all).map(<[_]>::len).collect::<Vec<_>>(), [USERS_MAX]);
        let one_more = [&all[..], &["x"]].concat();
        assert_eq!(chunks(&one_more).map(<[_]>::len).collect::<Vec<_>>(), [USERS_MAX, 1]);
        assert_eq!(chunks(&[]).count(), 0);
        let long = "x".repeat(USER_BYTES_MAX / 4 + 1);
        let long = [long.as_str(); 7];
        assert_eq!(chunks(&long).map(<[_]>::len).collect::<Vec<_>>(), [3, 3, 1]);
        let giant = "x".repeat(USER_BYTES_MAX + 1);
        assert_eq!(chunks(&[&giant, "a"]).map(<[_]>::len).collect::<Vec<_>>(), [1, 1]);
    }
}
