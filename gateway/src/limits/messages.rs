//! Rates of messages: by address, by uid, by route, and by route and connection.
//!
//! Checked in this order for each request and notify, before anything is inflated or routed; what is refused costs a few
//! loads. Pitaya's own limit a connection, which counts packets of every kind and answers nothing, is the agent's.

use shared::metrics::LimitLabel;
use shared::rate::LocalRate;

use super::{LimitRules, Seats};

/// Whether a message may go on, as far as its sender is concerned.
///
/// Errors: the limit that it ran into.
pub fn admit_sender(seats: &Seats, rules: &LimitRules, now_us: u64) -> Result<(), LimitLabel> {
    if let (Some(rate), Some(seat)) = (rules.address_messages, &seats.address)
        && !seat.account().messages.allow(rate, now_us)
    {
        return Err(LimitLabel::AddressMessages);
    }
    if let (Some(rate), Some(seat)) = (rules.uid_messages, &seats.user)
        && !seat.account().messages.allow(rate, now_us)
    {
        return Err(LimitLabel::UidMessages);
    }
    Ok(())
}

/// Whether a message may go to this full route. The connection's own rate comes first, so that one that asks too often
/// uses up nothing of what all share.
///
/// Errors: the limit that it ran into.
pub fn admit_route(
    seats: &mut Seats,
    route: &str,
    rules: &LimitRules,
    now_us: u64,
) -> Result<(), LimitLabel> {
    if rules.routes.is_empty() {
        return Ok(());
    }
    let Some(rule) = rules.routes.get(route) else { return Ok(()) };
    if let Some((rate, place)) = rule.each {
        if seats.routes.len() <= place {
            // Once a connection; as many places as routes are configured at most.
            seats.routes.resize(place + 1, LocalRate::default());
        }
        if seats.routes.get_mut(place).is_some_and(|state| !state.allow(rate, now_us)) {
            return Err(LimitLabel::ConnectionRouteMessages);
        }
    }
    match &rule.shared {
        Some((rate, cell)) if !cell.allow(*rate, now_us) => Err(LimitLabel::RouteMessages),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared::rate::{Rate, RateCell};

    use super::*;
    use crate::limits::{Limits, RouteRule};

    const NOW_US: u64 = 86_400_000_000;

    #[test]
    fn connections_of_one_address_share_its_rate() {
        let limits = Limits::new(1);
        let rules = LimitRules { address_messages: Rate::new(4), ..LimitRules::default() };
        let seats = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(|address| Seats {
            address: limits.enter(address.parse().unwrap(), &rules, NOW_US).ok(),
            ..Seats::default()
        });
        for seat in [0, 1, 0, 1] {
            assert_eq!(admit_sender(&seats[seat], &rules, NOW_US), Ok(()));
        }
        for seat in [0, 1] {
            let refused = admit_sender(&seats[seat], &rules, NOW_US);
            assert_eq!(refused, Err(LimitLabel::AddressMessages));
        }
        assert_eq!(admit_sender(&seats[2], &rules, NOW_US), Ok(()));
        assert_eq!(admit_sender(&seats[0], &rules, NOW_US + 250_000), Ok(()));
    }

    #[test]
    fn one_that_asks_too_often_uses_up_nothing_of_what_all_share() {
        let shared = Some((Rate::new(3).unwrap(), Arc::new(RateCell::default())));
        let rule = RouteRule { shared, each: Some((Rate::new(2).unwrap(), 5)) };
        let routes = [(Box::from("room.chat.send"), rule)].into_iter().collect();
        let rules = LimitRules { routes, ..LimitRules::default() };
        let (mut loud, mut quiet) = (Seats::default(), Seats::default());
        let send = |seats: &mut Seats| admit_route(seats, "room.chat.send", &rules, NOW_US);
        assert_eq!((send(&mut loud), send(&mut loud)), (Ok(()), Ok(())));
        for _ in 0..10 {
            assert_eq!(send(&mut loud), Err(LimitLabel::ConnectionRouteMessages));
        }
        assert_eq!(send(&mut quiet), Ok(()));
        assert_eq!(send(&mut quiet), Err(LimitLabel::RouteMessages));
        assert_eq!(admit_route(&mut loud, "room.chat.read", &rules, NOW_US), Ok(()));
    }
}
