//! The second try of a request that nobody received, as NATS has said: with another server of the type.
//!
//! There is no third one, and none for a server that a function of the application has chosen: such requests keep no
//! copy (forward.rs). How the answer is awaited is the same as for the first try.

use proto::wire::RequestView;

use crate::bus::batches::Leaving;
use crate::bus::homes::Homes;
use crate::bus::pending::Pending;
use crate::bus::queue::Waiting;
use crate::bus::targets::{Choice, Seeker};
use crate::bus::{BusState, Carrier};
use crate::connection::Client;

/// Sends a request once more, to another server: nobody had received it. While the others have their hands full it waits
/// in front of those that came later.
///
/// Errors: there is nobody to send it to, or it was a second try already; the request is given back.
pub fn retry(
    pending: Pending,
    server_type: &str,
    request: &[u8],
    client: Option<&mut Client>,
    (bus, now_ms): (&mut BusState, u64),
) -> Result<(), Pending> {
    if pending.is_retry || request.is_empty() || now_ms >= pending.deadline_ms {
        return Err(pending);
    }
    let nowhere = Homes::default();
    let (uid, homes) = match &client {
        Some(client) => (client.session.uid(), &client.homes),
        None => ("", &nowhere),
    };
    let seeker = Seeker { uid, homes, chosen: None };
    let key = match bus.targets.choose_next(server_type, &seeker, now_ms) {
        Choice::Target(key) => key,
        Choice::Busy(place) => {
            let waiting = waiting_again(&pending, request).ok_or(pending)?;
            bus.targets.wait_again(server_type, place, waiting);
            return Ok(());
        }
        Choice::NoServers => return Err(pending),
    };
    if !matches!(bus.carrier, Carrier::Nats(_)) {
        return Err(pending);
    }
    let again = Pending { target: key, is_retry: true, sent_ms: now_ms, ..pending };
    // There is room: the first try has just left the table.
    let Some(token) = bus.pending.insert(again) else { return Ok(()) };
    if let Some(target) = bus.targets.begin(key) {
        if let (Some(client), Some(home)) = (client, target.home()) {
            client.homes.set(home);
        }
        let leaving =
            Leaving { target: key, token: Some(token), bytes: request.len(), is_kept: false };
        bus.put(&leaving, |out| out.extend_from_slice(request));
    }
    Ok(())
}

fn waiting_again(pending: &Pending, request: &[u8]) -> Option<Waiting> {
    let message = RequestView::decode(request).ok()?.msg?;
    Some(Waiting {
        connection: pending.connection,
        session: pending.session,
        message_id: pending.message_id,
        route: message.route.into(),
        payload: message.data.to_vec(),
        arrived_us: pending.arrived_us,
        deadline_ms: pending.deadline_ms,
        is_notify: false,
        chosen: None,
        place: 0,
    })
}
