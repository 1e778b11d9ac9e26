//! How tests ask a gateway in a cluster: a client that may send, and the patience for servers that come in their own time.

use std::thread;
use std::time::{Duration, Instant};

use client::raw::{OwnedMessage, RawClient};

/// How long anything may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The client, when it may send.
pub(crate) fn established(mut client: RawClient) -> RawClient {
    client.set_timeout(SOON);
    client.establish().unwrap();
    client
}

/// Asks again and again until there is an answer.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it takes too long: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Requests until it is answered with success: servers come and go in their own time.
pub(crate) fn until_answered(client: &mut RawClient, route: &str, payload: &[u8]) -> OwnedMessage {
    until(route, || Some(client.request(route, payload).unwrap()).filter(|answer| !answer.is_error))
}

/// The text of the error that a request is answered with.
pub(crate) fn error_of(client: &mut RawClient, route: &str, payload: &[u8]) -> String {
    let answer = client.request(route, payload).unwrap();
    assert!(answer.is_error, "{route}: {}", answer.text());
    answer.text()
}
