//! Fewer buffers than traffic, many peers against one, and a long random walk.

use crate::world::{World, pattern_bytes};
use gateway::driver::{Kind, Options};
use std::{io::Write, net::Shutdown, thread};

both_drivers! {
    with_too_few_buffers_everything_arrives_later
    a_flood_of_one_peer_does_not_silence_another
}

fn with_too_few_buffers_everything_arrives_later(kind: Kind) {
    let options = Options { receive_buffers: 4, receive_buffer_bytes: 64, ..Options::default() };
    let mut world = World::with(kind, &options);
    // Every buffer stays out until the turn is over.
    world.hoards = true;
    let mut clients = Vec::new();
    for number in 0..20 {
        let (token, mut client) = world.connect();
        client.write_all(&pattern_bytes(number, 3000)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        clients.push((token, client));
    }
    world.until("all ends", |world| world.ended.len() == clients.len());
    for (number, (token, _)) in clients.iter().enumerate() {
        assert!(world.text(*token) == pattern_bytes(number, 3000));
    }
    let stats = world.driver.stats();
    assert!(stats.no_buffers > 0);
    assert_eq!(stats.received_bytes, 20 * 3000);
}

fn a_flood_of_one_peer_does_not_silence_another(kind: Kind) {
    let options = Options { receive_buffers: 16, ..Options::default() };
    let mut world = World::with(kind, &options);
    world.hoards = true;
    let (loud, client) = world.connect();
    let mut flooding = client.try_clone().unwrap();
    let flood = thread::spawn(move || {
        let bytes = vec![0; 1 << 20];
        while flooding.write_all(&bytes).is_ok() {}
    });
    world.until("the flood", |world| world.text(loud).len() > 1 << 20);
    for _ in 0..20 {
        let (quiet, mut client) = world.connect();
        client.write_all(b"a word").unwrap();
        world.until_received(quiet, b"a word");
        world.close(quiet);
        world.received.clear();
    }
    world.close(loud);
    drop(client);
    world.until("all slots", |world| world.driver.sockets() == 0);
    flood.join().unwrap();
}
