//! The limits of the configuration, in the form in which reactors check them.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use shared::config::Config;
use shared::rate::{Rate, RateCell};

use super::ledger::EntryRules;
use crate::allowance;

/// What the configuration says. A reload replaces it.
#[derive(Clone, Debug, Default)]
pub struct LimitRules {
    /// Connections that the process accepts a second; more wait in the kernel's queue.
    pub accepts: Option<Rate>,
    /// Connections, and connections a second, of one address.
    pub address: EntryRules,
    /// Messages a second of one address, over all its connections.
    pub address_messages: Option<Rate>,
    /// Messages a second of one uid, over all its sessions.
    pub uid_messages: Option<Rate>,
    /// Messages a second to routes, by full route.
    pub routes: HashMap<Box<str>, RouteRule>,
    /// Bytes held for all clients.
    pub memory_bytes_max: usize,
}

/// What one route may take.
#[derive(Clone, Debug, Default)]
pub struct RouteRule {
    /// From everybody together.
    pub shared: Option<(Rate, Arc<RateCell>)>,
    /// From each connection, and the place of its state there.
    pub each: Option<(Rate, usize)>,
}

impl LimitRules {
    /// Reads the limits; what is wrong with them is added to `mistakes`.
    pub fn new(config: &Config, mistakes: &mut Vec<String>) -> Self {
        let rate = |key: &str| Rate::new(config.int(key) as u32);
        let seats_max = config.int("pitaya.gateway.address.maxconns") as u32;
        let memory_bytes_max = match config.size("pitaya.gateway.memory.maxbytes") {
            0 => allowance::process_bytes(config) / 2,
            bytes => bytes,
        };
        Self {
            accepts: rate("pitaya.gateway.accept.rate"),
            address: EntryRules {
                seats_max: (seats_max > 0).then_some(seats_max),
                rate: rate("pitaya.gateway.address.acceptrate"),
            },
            address_messages: rate("pitaya.gateway.address.rate"),
            uid_messages: rate("pitaya.gateway.uid.rate"),
            routes: routes(config, mistakes),
            memory_bytes_max,
        }
    }
}

fn routes(config: &Config, mistakes: &mut Vec<String>) -> HashMap<Box<str>, RouteRule> {
    let mut routes: HashMap<Box<str>, RouteRule> = HashMap::new();
    for (route, rate) in rates(config, "pitaya.gateway.routes.rate", mistakes) {
        routes.entry(route.into()).or_default().shared =
            Some((rate, Arc::new(RateCell::default())));
    }
    let each = rates(config, "pitaya.gateway.routes.connectionrate", mistakes);
    for (place, (route, rate)) in each.into_iter().enumerate() {
        routes.entry(route.into()).or_default().each = Some((rate, place));
    }
    routes
}

fn rates(config: &Config, key: &str, mistakes: &mut Vec<String>) -> BTreeMap<String, Rate> {
    let mut rates = BTreeMap::new();
    for (route, text) in config.map(key) {
        let per_second = text.parse().ok().filter(|per_second| *per_second <= 1_000_000);
        let is_full = route.split('.').filter(|part| !part.is_empty()).count() == 3;
        match per_second.and_then(Rate::new).filter(|_| is_full) {
            Some(rate) => drop(rates.insert(route, rate)),
            None => mistakes.push(format!(
                "{key}: {route}={text}: expected a full route and a whole number from 1 to 1000000, such as \
                 room.chat.send=20"
            )),
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use shared::config::Binary;

    use super::*;

    fn read(settings: &[(&str, &str)]) -> (LimitRules, Vec<String>) {
        let settings: Vec<_> =
            settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let config = Config::load(Binary::Gateway, None, std::iter::empty(), &settings).unwrap();
        let mut mistakes = Vec::new();
        (LimitRules::new(&config, &mut mistakes), mistakes)
    }

    #[test]
    fn without_settings_only_the_process_is_limited() {
        let (rules, mistakes) = read(&[]);
        assert!(mistakes.is_empty());
        assert!(rules.accepts.is_some() && rules.memory_bytes_max > 1 << 20);
        assert!(rules.address.seats_max.is_none() && rules.address.rate.is_none());
        assert!(rules.address_messages.is_none() && rules.uid_messages.is_none());
        assert!(rules.routes.is_empty());
    }

    #[test]
    fn a_route_can_have_both_rates_and_wrong_ones_are_reported_together() {
        let (rules, mistakes) = read(&[
            ("pitaya.gateway.routes.rate", "room.chat.send=100,room.chat.read=5"),
            ("pitaya.gateway.routes.connectionrate", "room.chat.send=2"),
        ]);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let send = &rules.routes["room.chat.send"];
        assert!(send.shared.is_some() && send.each.is_some());
        assert!(rules.routes["room.chat.read"].each.is_none());
        let wrong = "room.chat=5,room.chat.send=0,room.chat.read=x,room..read=1,a.b.c=1000001";
        let (_, mistakes) = read(&[("pitaya.gateway.routes.rate", wrong)]);
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
    }
}
