//! Bytes in and out, ends and resets, pauses.

use crate::world::{World, connect, pair, pattern_bytes};
use gateway::driver::{Event, Kind, Options};
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

both_drivers! {
    a_connection_is_accepted_and_echoed
    large_transfers_both_ways_at_once_arrive_exactly
    many_connections_are_served_at_once
    the_end_comes_after_the_bytes_and_sending_goes_on
    a_reset_ends_with_its_error
    a_send_to_a_reset_connection_fails
    what_ends_a_connection_is_told_first_when_a_send_waits
    a_paused_connection_receives_nothing_until_it_is_resumed
    an_end_that_came_in_a_pause_is_told_after_it
    nothing_to_send_is_sent_at_once
    the_fin_follows_the_send_in_flight
    received_bytes_may_be_changed_in_place
    a_tiny_queue_loses_no_operation
    a_socket_that_is_still_connecting_may_be_attached
    a_refused_connection_ends_with_its_error
}

fn a_connection_is_accepted_and_echoed(kind: Kind) {
    let mut world = World::new(kind);
    let (_listener, address) = world.listen();
    let mut client = connect(address);
    client.write_all(b"hello").unwrap();
    world.until("the connection", |world| !world.accepted.is_empty());
    let socket = world.accepted.pop().unwrap();
    let flags = rustix::io::fcntl_getfd(&socket).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "no child inherits a player");
    let token = world.driver.attach(socket).unwrap();
    world.until_received(token, b"hello");
    world.send(token, b"hello back");
    world.until("the send", |world| !world.is_sending(token));
    let mut answer = [0; 10];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello back");
    let stats = world.driver.stats();
    assert_eq!((stats.received_bytes, stats.sent_bytes, stats.sends), (5, 10, 1));
    assert!(stats.enters > 0 && stats.completions > 0);
}

fn large_transfers_both_ways_at_once_arrive_exactly(kind: Kind) {
    const BYTES: usize = 3 << 20;
    let mut world = World::new(kind);
    let (server, client) = pair();
    // Small kernel buffers make every send partial.
    socket2::SockRef::from(&server).set_send_buffer_size(16 << 10).unwrap();
    let token = world.driver.attach(server.into()).unwrap();
    let mut writing = client.try_clone().unwrap();
    let writer = thread::spawn(move || writing.write_all(&pattern_bytes(0, BYTES)).unwrap());
    let mut reading = client;
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; BYTES];
        reading.read_exact(&mut bytes).unwrap();
        bytes
    });
    world.send(token, &pattern_bytes(7, BYTES));
    world.until("both directions", |world| {
        world.text(token).len() >= BYTES && !world.is_sending(token)
    });
    writer.join().unwrap();
    assert!(reader.join().unwrap() == pattern_bytes(7, BYTES), "what the client got");
    assert!(world.text(token) == pattern_bytes(0, BYTES), "what the driver got");
    assert!(world.partial_sends > 0, "the transfer was large enough to be cut");
}

fn many_connections_are_served_at_once(kind: Kind) {
    const CONNECTIONS: usize = 300;
    let mut world = World::new(kind);
    let mut clients = HashMap::new();
    for number in 0..CONNECTIONS {
        let (token, mut client) = world.connect();
        client.write_all(format!("client {number:04}").as_bytes()).unwrap();
        clients.insert(token, client);
    }
    world.until("a message of each", |world| {
        clients.keys().all(|&token| world.text(token).len() == 11)
    });
    for &token in clients.keys() {
        let text = world.text(token).to_vec();
        world.send(token, &text);
    }
    world.until("an answer to each", |world| !clients.keys().any(|&token| world.is_sending(token)));
    for (token, client) in &mut clients {
        let mut answer = [0; 11];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, world.text(*token));
    }
    assert_eq!(world.driver.sockets(), CONNECTIONS);
}

fn the_end_comes_after_the_bytes_and_sending_goes_on(kind: Kind) {
    let mut world = World::new(kind);
    let (token, mut client) = world.connect();
    let bytes = pattern_bytes(0, 100_000);
    client.write_all(&bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    world.until("the end", |world| world.ended.contains_key(&token));
    assert_eq!(world.ended[&token], None);
    assert!(world.text(token) == bytes);
    world.send(token, b"still here");
    world.until("the send", |world| !world.is_sending(token));
    world.driver.shutdown_write(token);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"still here");
}

fn reset(client: TcpStream) {
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

fn a_reset_ends_with_its_error(kind: Kind) {
    let mut world = World::new(kind);
    let (token, client) = world.connect();
    world.driver.flush().unwrap();
    reset(client);
    world.until("the end", |world| world.ended.contains_key(&token));
    assert_eq!(world.ended[&token], Some(io::ErrorKind::ConnectionReset));
    world.close(token);
    world.until("the slot", |world| world.driver.sockets() == 0);
}

fn a_send_to_a_reset_connection_fails(kind: Kind) {
    let mut world = World::new(kind);
    let (token, client) = world.connect();
    reset(client);
    world.until("the end", |world| world.ended.contains_key(&token));
    world.send(token, b"anybody?");
    world.until("the failure", |world| world.failed.contains_key(&token));
    assert_eq!(world.failed[&token].kind(), io::ErrorKind::BrokenPipe);
}

/// Brings the driver to a point where all that was sent before is in: bytes over loopback are there
/// when the write returns, so a mark on a second connection that was written later is received later.
fn let_all_arrive(world: &mut World) {
    let (mark, mut client) = world.connect();
    client.write_all(b"mark").unwrap();
    world.until_received(mark, b"mark");
    world.turn();
    world.close(mark);
}

/// A socket gives its error to whoever asks first, and a clean end to the next.
fn what_ends_a_connection_is_told_first_when_a_send_waits(kind: Kind) {
    let mut world = World::new(kind);
    let (token, client) = world.connect();
    world.send(token, &pattern_bytes(0, 16 << 20));
    // Until a whole turn brings no progress: the kernel's buffers are full.
    let mut before = None;
    loop {
        world.turn();
        let sent = world.sent.get(&token).copied();
        if before.replace(sent) == Some(sent) {
            break;
        }
    }
    assert!(world.is_sending(token));
    reset(client);
    let first = loop {
        world.driver.wait(Some(Duration::from_millis(200))).unwrap();
        match world.driver.next() {
            Some(Event::Sent { result: Err(error), .. }) => break Some(error),
            Some(Event::Ended { error, .. }) => break error,
            Some(event) => panic!("{event:?}"),
            None => {}
        }
    };
    assert_eq!(first.map(|error| error.kind()), Some(io::ErrorKind::ConnectionReset));
}

fn a_paused_connection_receives_nothing_until_it_is_resumed(kind: Kind) {
    let mut world = World::new(kind);
    let (token, mut client) = world.connect();
    client.write_all(b"one ").unwrap();
    world.until_received(token, b"one ");
    world.driver.pause_receive(token);
    let_all_arrive(&mut world);
    client.write_all(b"two ").unwrap();
    let_all_arrive(&mut world);
    assert_eq!(world.text(token), b"one ");
    // A change of mind before the kernel has heard of it must not lose or double anything.
    world.driver.resume_receive(token);
    world.driver.pause_receive(token);
    world.driver.resume_receive(token);
    world.until_received(token, b"one two ");
    client.write_all(b"three").unwrap();
    world.until_received(token, b"one two three");
}

fn an_end_that_came_in_a_pause_is_told_after_it(kind: Kind) {
    let mut world = World::new(kind);
    let (token, client) = world.connect();
    world.driver.pause_receive(token);
    let_all_arrive(&mut world);
    drop(client);
    let_all_arrive(&mut world);
    assert!(world.ended.is_empty());
    world.driver.resume_receive(token);
    world.until("the end", |world| world.ended.contains_key(&token));
    assert_eq!(world.ended[&token], None);
}

fn nothing_to_send_is_sent_at_once(kind: Kind) {
    let mut world = World::new(kind);
    let (token, _client) = world.connect();
    world.send(token, b"");
    world.until("the send", |world| !world.is_sending(token));
    assert_eq!(world.sent[&token], 0);
    assert_eq!(world.driver.stats().sends, 0);
}

fn the_fin_follows_the_send_in_flight(kind: Kind) {
    let mut world = World::new(kind);
    let (token, mut client) = world.connect();
    world.send(token, b"the last words");
    world.driver.shutdown_write(token);
    world.until("the send", |world| !world.is_sending(token));
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"the last words");
}

fn received_bytes_may_be_changed_in_place(kind: Kind) {
    use gateway::driver::{Driver, Event};
    let (mut driver, _) = Driver::open(kind, &Options::default()).unwrap();
    let (server, mut client) = pair();
    driver.attach(OwnedFd::from(server)).unwrap();
    client.write_all(b"masked").unwrap();
    let buffer = loop {
        driver.wait(Some(crate::world::DEADLINE)).unwrap();
        if let Some(Event::Received { buffer, .. }) = driver.next() {
            break buffer;
        }
    };
    driver.bytes(&buffer).make_ascii_uppercase();
    assert_eq!(driver.bytes(&buffer), b"MASKED");
    assert_eq!(buffer.len(), 6);
    driver.recycle(buffer);
}

fn a_tiny_queue_loses_no_operation(kind: Kind) {
    let options = Options { entries: 2, completions: 4, ..Options::default() };
    let mut world = World::with(kind, &options);
    let mut clients: Vec<_> = (0..100).map(|_| world.connect()).collect();
    for round in 0..3 {
        for (token, client) in &mut clients {
            client.write_all(format!("ping {round} ").as_bytes()).unwrap();
            world.send(*token, format!("pong {round} ").as_bytes());
        }
        world.until("all of a round", |world| {
            clients.iter().all(|(token, _)| {
                !world.is_sending(*token) && world.text(*token).len() == 7 * (round + 1)
            })
        });
    }
    for (token, client) in &mut clients {
        let mut bytes = [0; 21];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"pong 0 pong 1 pong 2 ");
        assert_eq!(world.text(*token), b"ping 0 ping 1 ping 2 ");
        world.close(*token);
    }
    world.until("all slots", |world| world.driver.sockets() == 0);
}

/// A non-blocking connect that is in progress when the driver gets the socket.
fn connecting(address: std::net::SocketAddr) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let error = socket.connect(&address.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
    socket
}

fn a_socket_that_is_still_connecting_may_be_attached(kind: Kind) {
    let mut world = World::new(kind);
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    listener.bind(&loopback.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    // The queue holds one; the next one's handshake is not answered until there is room.
    let _first = connect(address);
    let token = world.driver.attach(connecting(address).into()).unwrap();
    world.send(token, b"early");
    world.turn();
    assert!(world.is_sending(token), "it is not connected yet");
    let peer = thread::spawn(move || {
        drop(listener.accept().unwrap());
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(crate::world::DEADLINE)).unwrap();
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"early");
        server.write_all(b"late").unwrap();
        server
    });
    world.until_received(token, b"late");
    assert!(!world.is_sending(token));
    peer.join().unwrap();
}

fn a_refused_connection_ends_with_its_error(kind: Kind) {
    let mut world = World::new(kind);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let token = world.driver.attach(connecting(address).into()).unwrap();
    world.until("the end", |world| world.ended.contains_key(&token));
    assert_eq!(world.ended[&token], Some(io::ErrorKind::ConnectionRefused));
}
