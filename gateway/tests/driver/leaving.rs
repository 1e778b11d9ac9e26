//! Closing and detaching with operations in flight: nothing lost, nothing doubled, nothing left over.

use crate::{
    accepting::other,
    world::{World, is_open, pair, pattern_bytes, socket_name},
};
use gateway::driver::{Driver, Kind, Options};
use std::{
    io::{Read, Write},
    os::fd::OwnedFd,
    thread,
};

both_drivers! {
    closing_with_a_send_in_flight_gives_the_buffer_back
    closing_a_quiet_connection_closes_the_descriptor
    a_slot_is_reused_with_a_new_name
    a_detached_connection_goes_on_in_the_same_kind_of_driver
    a_detached_connection_goes_on_in_the_other_kind_of_driver
    a_detach_may_be_overtaken_by_a_close
    dropping_the_driver_closes_everything
}

fn closing_with_a_send_in_flight_gives_the_buffer_back(kind: Kind) {
    let mut world = World::new(kind);
    let (server, mut client) = pair();
    let name = socket_name(&server);
    socket2::SockRef::from(&server).set_send_buffer_size(16 << 10).unwrap();
    socket2::SockRef::from(&client).set_recv_buffer_size(16 << 10).unwrap();
    let token = world.driver.attach(server.into()).unwrap();
    // More than the kernel takes: after some partial sends one is stuck, since nobody reads.
    let bytes = pattern_bytes(0, 8 << 20);
    world.send(token, &bytes);
    world.until("the kernel to be full", |world| {
        world.sent.get(&token).is_some_and(|&sent| sent > 10_000)
    });
    let mut sent = 0;
    while sent != world.sent[&token] {
        sent = world.sent[&token];
        world.turn();
    }
    assert!(world.is_sending(token));
    assert!(world.released.is_empty());
    world.close(token);
    world.until("the buffer", |world| !world.released.is_empty());
    assert!(world.released[0] == bytes, "unchanged");
    world.until("the slot", |world| world.driver.sockets() == 0);
    assert!(!is_open(&name), "the descriptor is closed");
    // What the kernel took is still delivered: nothing was reset.
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert!(received == pattern_bytes(0, sent));
    assert_eq!(world.released.len(), 1);
}

fn closing_a_quiet_connection_closes_the_descriptor(kind: Kind) {
    let mut world = World::new(kind);
    let (server, mut client) = pair();
    let name = socket_name(&server);
    let token = world.driver.attach(server.into()).unwrap();
    world.turn();
    world.close(token);
    world.until("the slot", |world| world.driver.sockets() == 0);
    assert!(!is_open(&name));
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert!(world.released.is_empty());
}

fn a_slot_is_reused_with_a_new_name(kind: Kind) {
    let mut world = World::new(kind);
    let (first, _first_client) = world.connect();
    world.close(first);
    world.until("the slot", |world| world.driver.sockets() == 0);
    let (second, mut client) = world.connect();
    assert_eq!(second.slot(), first.slot());
    assert_ne!(second, first);
    // Whatever is asked of the first one, the second does not feel it.
    world.driver.pause_receive(first);
    world.driver.shutdown_write(first);
    world.driver.detach(first);
    world.driver.close(first);
    world.driver.send(first, b"lost".to_vec(), 0);
    client.write_all(b"mine").unwrap();
    world.until_received(second, b"mine");
    assert_eq!(world.released, [b"lost".to_vec()]);
    world.send(second, b"yours");
    let mut bytes = [0; 5];
    world.until("the send", |world| !world.is_sending(second));
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"yours");
}

fn a_detached_connection_goes_on_in_the_same_kind_of_driver(kind: Kind) {
    move_under_traffic(kind, kind);
}

fn a_detached_connection_goes_on_in_the_other_kind_of_driver(kind: Kind) {
    move_under_traffic(kind, other(kind));
}

/// A connection that is saturated both ways moves back and forth between two drivers. Each side counts
/// the bytes: one that is lost, doubled or exchanged shows.
fn move_under_traffic(one: Kind, two: Kind) {
    const MOVES: usize = 40;
    const BYTES: usize = 4 << 20;
    let mut worlds = [World::new(one), World::new(two)];
    let (server, client) = pair();
    let mut writing = client.try_clone().unwrap();
    let writer = thread::spawn(move || writing.write_all(&pattern_bytes(0, BYTES)).unwrap());
    let mut reading = client;
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; BYTES];
        reading.read_exact(&mut bytes).unwrap();
        bytes
    });
    let expected = pattern_bytes(0, BYTES);
    let mut unsent = pattern_bytes(3, BYTES);
    let mut received = Vec::new();
    let mut socket = OwnedFd::from(server);
    let mut raced = 0;
    for number in 0..=MOVES {
        let world = &mut worlds[number % 2];
        let token = world.driver.attach(socket).unwrap();
        world.send(token, &unsent);
        let share = BYTES / (MOVES + 1) * number;
        let before = received.len();
        if number == MOVES {
            world.until("the rest", |world| {
                before + world.text(token).len() >= BYTES && !world.is_sending(token)
            });
            received.extend_from_slice(world.text(token));
            break;
        }
        world.until("its share", |world| before + world.text(token).len() >= share);
        let early = world.text(token).len();
        world.detach(token);
        world.until("the socket", |world| world.detached.contains_key(&token));
        raced += world.text(token).len() - early;
        received.extend_from_slice(world.text(token));
        if let Some(rest) = world.unsent.remove(&token) {
            unsent = rest;
        } else {
            unsent.clear();
        }
        socket = world.detached.remove(&token).unwrap();
        assert_eq!(world.driver.sockets(), 0);
    }
    println!("{raced} bytes won a race against a detach");
    writer.join().unwrap();
    assert!(received == expected, "what the drivers got");
    assert!(reader.join().unwrap() == pattern_bytes(3, BYTES), "what the client got");
}

fn a_detach_may_be_overtaken_by_a_close(kind: Kind) {
    let mut world = World::new(kind);
    let (server, mut client) = pair();
    let name = socket_name(&server);
    let token = world.driver.attach(server.into()).unwrap();
    world.turn();
    world.driver.detach(token);
    world.close(token);
    world.until("the slot", |world| world.driver.sockets() == 0);
    assert!(!is_open(&name));
    assert!(world.detached.is_empty());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

fn dropping_the_driver_closes_everything(kind: Kind) {
    let (mut driver, _) = Driver::open(kind, &Options::default()).unwrap();
    let mut clients = Vec::new();
    let mut names = Vec::new();
    for number in 0..20 {
        let (server, client) = pair();
        socket2::SockRef::from(&server).set_send_buffer_size(16 << 10).unwrap();
        names.push(socket_name(&server));
        let token = driver.attach(server.into()).unwrap();
        if number % 2 == 0 {
            driver.send(token, vec![b'x'; 8 << 20], 0);
        }
        clients.push(client);
    }
    driver.wait(Some(std::time::Duration::ZERO)).unwrap();
    let waker = driver.waker();
    drop(driver);
    for name in names {
        assert!(!is_open(&name));
    }
    for client in &mut clients {
        client.read_to_end(&mut Vec::new()).unwrap();
    }
    waker.wake();
}
