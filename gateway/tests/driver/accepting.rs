//! Listeners: pausing, leaving with a full queue, running out of descriptors.

use crate::world::{World, connect};
use gateway::driver::{Kind, Options};
use std::{
    io::{Read, Write},
    process::Command,
    time::Duration,
};

both_drivers! {
    a_storm_of_connections_is_accepted_completely
    an_accepted_socket_has_the_options_of_its_listener
    a_paused_listener_leaves_connections_in_the_queue
    an_unlistened_socket_keeps_its_queue_for_the_next_driver
    a_closed_listener_is_never_heard_of_again
    out_of_descriptors_accepting_rests_and_goes_on_by_itself
}

pub(crate) fn other(kind: Kind) -> Kind {
    if kind == Kind::Uring { Kind::Epoll } else { Kind::Uring }
}

fn a_storm_of_connections_is_accepted_completely(kind: Kind) {
    let mut world = World::new(kind);
    let (_listener, address) = world.listen();
    // Fewer than the backlog of the listener: connecting does not wait for the driver.
    let _clients: Vec<_> = (0..100).map(|_| connect(address)).collect();
    world.until("all of them", |world| world.accepted.len() >= 100);
    assert_eq!(world.accepted.len(), 100);
}

fn an_accepted_socket_has_the_options_of_its_listener(kind: Kind) {
    // From the shortest that can be configured to the longest.
    for timeout in [10, 1_234, 3_600_000].map(Duration::from_millis) {
        let mut world = World::new(kind);
        let any = "127.0.0.1:0".parse().unwrap();
        let (address, sockets) = gateway::listener::bind(any, 1, timeout).unwrap();
        for socket in sockets {
            world.driver.listen(socket).unwrap();
        }
        let _client = connect(address);
        world.until("the connection", |world| world.accepted.len() == 1);
        let accepted = socket2::SockRef::from(&world.accepted[0]);
        assert!(accepted.keepalive().unwrap() && accepted.tcp_nodelay().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(timeout));
    }
}

fn a_paused_listener_leaves_connections_in_the_queue(kind: Kind) {
    let mut world = World::new(kind);
    let (listener, address) = world.listen();
    let _first = connect(address);
    world.until("the first", |world| world.accepted.len() == 1);
    world.driver.pause_accept(listener);
    let (mark, mut client) = world.connect();
    client.write_all(b"a").unwrap();
    world.until_received(mark, b"a");
    world.turn();
    let _second = connect(address);
    client.write_all(b"b").unwrap();
    world.until_received(mark, b"ab");
    assert_eq!(world.accepted.len(), 1);
    world.driver.resume_accept(listener);
    world.until("the second", |world| world.accepted.len() == 2);
}

fn an_unlistened_socket_keeps_its_queue_for_the_next_driver(kind: Kind) {
    let mut world = World::new(kind);
    let (listener, address) = world.listen();
    let _before: Vec<_> = (0..5).map(|_| connect(address)).collect();
    world.detach_listener(listener);
    let _after: Vec<_> = (0..5).map(|_| connect(address)).collect();
    let socket = world.detached.remove(&listener).unwrap();
    assert_eq!(world.driver.sockets(), 0);
    let mut next = World::new(other(kind));
    next.driver.listen(socket).unwrap();
    let early = world.accepted.len();
    next.until("the others", |next| next.accepted.len() + early >= 10);
    assert_eq!(next.accepted.len() + early, 10, "each connection has one owner");
}

impl World {
    fn detach_listener(&mut self, listener: gateway::driver::Token) {
        self.driver.unlisten(listener);
        self.until("the listener", |world| world.detached.contains_key(&listener));
    }
}

fn a_closed_listener_is_never_heard_of_again(kind: Kind) {
    let mut world = World::new(kind);
    let (listener, address) = world.listen();
    let mut client = connect(address);
    world.driver.flush().unwrap();
    world.close(listener);
    world.until("the slot", |world| world.driver.sockets() == 0);
    assert!(world.accepted.is_empty());
    // Whether it was still in the queue or taken already: the connection is closed.
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
}

/// A limit on descriptors is one of the whole process: the test runs itself again in one of its own.
fn out_of_descriptors_accepting_rests_and_goes_on_by_itself(kind: Kind) {
    let kind_name = if kind == Kind::Uring { "uring" } else { "epoll" };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "accepting::in_a_process_of_its_own", "--nocapture"])
        .env("DRIVER_TEST_KIND", kind_name)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("descriptors ran out and came back"), "it did run: {text}");
}

#[test]
fn in_a_process_of_its_own() {
    let kind = match std::env::var("DRIVER_TEST_KIND").as_deref() {
        Ok("uring") => Kind::Uring,
        Ok(_) => Kind::Epoll,
        // The tests above start it; by itself it has nothing to do.
        Err(_) => return,
    };
    let options = Options { accept_rest: Duration::from_millis(20), ..Options::default() };
    let mut world = World::with(kind, &options);
    let (listener, address) = world.listen();
    let (steady, mut player) = world.connect();
    world.driver.pause_accept(listener);
    player.write_all(b"a").unwrap();
    world.until_received(steady, b"a");
    world.turn();
    let clients: Vec<_> = (0..4).map(|_| connect(address)).collect();
    let limit = set_descriptors(Some(0));
    world.driver.resume_accept(listener);
    world.until("the second failure", |world| world.accept_failures.len() >= 2);
    for error in &world.accept_failures {
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    }
    player.write_all(b"b").unwrap();
    world.until_received(steady, b"ab");
    world.send(steady, b"players go on");
    world.until("the send", |world| !world.is_sending(steady));
    player.read_exact(&mut [0; 13]).unwrap();
    assert!(world.accepted.is_empty());
    set_descriptors(limit);
    world.until("the connections", |world| world.accepted.len() >= clients.len());
    assert!(world.driver.stats().accept_errors >= 2);
    assert!(world.driver.stats().enters < 1000, "resting is not spinning");
    println!("descriptors ran out and came back");
}

/// Sets the soft limit and returns the one before. Zero refuses every new descriptor; those that are
/// open stay.
fn set_descriptors(soft: Option<u64>) -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: soft, ..before }).unwrap();
    before.current
}
