//! The end of a process that serves: SIGTERM under load (hostile inputs 86).

use std::thread;

use client::raw::{Closed, RawClient, RawError};
use rustix::process::Signal;
use shared::close::CloseReason;

use crate::field::{LONG, eventually};
use crate::local::DRIVERS;
use crate::metrics::{metrics, value};
use crate::process::Process;

/// Of each kind of client, on each transport.
const CLIENTS: usize = 4;
/// What each slow client asks at once. Those of one session are handled one after the other.
const REQUESTS: usize = 5;

/// Clients that may send, first those on TCP, each with how it is to be told of the end.
fn clients(process: &Process) -> Vec<(RawClient, Closed)> {
    let code = Some(CloseReason::Shutdown.web_socket_code());
    let tcp = (0..CLIENTS).map(|_| (RawClient::connect_tcp(process.tcp), Closed::Finished));
    let web_socket =
        (0..CLIENTS).map(|_| (RawClient::connect_ws(process.ws, "/"), Closed::CloseFrame { code }));
    let established = tcp.chain(web_socket).map(|(client, end)| {
        let mut client = client.unwrap();
        client.set_timeout(LONG);
        client.establish().unwrap();
        (client, end)
    });
    established.collect()
}

/// Asks and is answered until the connection ends; how it ended. A request that crosses the end may go without an
/// answer, none before it.
fn ask_on(mut client: RawClient) -> Closed {
    loop {
        match client.request("room.test.echo", b"on") {
            Ok(answer) => assert_eq!((answer.is_error, &answer.payload[..]), (false, &b"on"[..])),
            Err(RawError::Closed(closed, _)) => return closed,
            // The gateway had gone before it was written.
            Err(RawError::Io(_)) => return client.expect_close(LONG).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_terminated_gateway_answers_what_is_in_flight_tells_everybody_and_ends_with_success() {
    for driver in DRIVERS {
        let mut process = Process::start(driver, 4_096, &[]);
        let count = |name| value(&metrics(process.admin), name, "");
        let asking = clients(&process).into_iter().map(|(mut client, end)| {
            let ask = |_| client.send_request("room.test.sleep", br#"{"ms":300}"#).unwrap();
            let ids: Vec<u64> = (0..REQUESTS).map(ask).collect();
            (client, end, ids)
        });
        let asking: Vec<_> = asking.collect();
        let slow = (2 * CLIENTS * REQUESTS) as u64;
        eventually("all are in", || count("pitaya_handler_requests_total") == slow);
        // Each session waits for the last of its answers far longer than what follows takes.
        let idle = clients(&process);
        let eager = clients(&process).into_iter().map(|(client, end)| {
            let asking = thread::spawn(move || ask_on(client));
            (asking, end)
        });
        let eager: Vec<_> = eager.collect();
        eventually("a load", || count("pitaya_handler_requests_replied_total") > slow + 20);
        process.signal(Signal::TERM);

        let mut answered = 0;
        for (mut client, end, ids) in asking {
            for id in ids {
                let answer = client.read_message(LONG).unwrap();
                let told = (answer.id, answer.is_error, answer.text());
                assert_eq!(told, (id, false, r#"{"code":200}"#.to_owned()), "{driver}");
                answered += 1;
            }
            // A kick would be a packet, and fail here.
            assert_eq!(client.expect_close(LONG).unwrap(), end, "{driver}");
        }
        assert_eq!(answered, slow, "{driver}");
        for (mut client, end) in idle {
            assert_eq!(client.expect_close(LONG).unwrap(), end, "{driver}");
        }
        for (client, end) in eager {
            assert_eq!(client.join().unwrap(), end, "{driver}");
        }
        assert!(process.ends_well(), "{driver}: {}", process.log());
        assert!(process.log().contains("\"stopped\""), "{driver}: {}", process.log());
    }
}
