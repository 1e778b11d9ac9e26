//! A long random walk over everything that can be asked of a driver, with every byte accounted for.
//!
//! A few connections live in two drivers at once. Clients and caller do random things; each side knows
//! which byte comes next. A failure prints the seed.

use crate::{
    accepting::other,
    world::{DEADLINE, pair, pattern, pattern_bytes},
};
use gateway::driver::{Driver, Event, Kind, Options, Token};
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

both_drivers! {
    a_random_walk_loses_no_byte
}

/// One connection: where it is, and the next byte of each of the four sides.
struct Line {
    client: TcpStream,
    home: usize,
    token: Token,
    is_sending: bool,
    is_paused: bool,
    is_leaving: bool,
    client_wrote: usize,
    driver_received: usize,
    driver_sent: usize,
    client_read: usize,
}

struct Walk {
    random: fastrand::Rng,
    drivers: [Driver; 2],
    lines: Vec<Line>,
    /// Which line a token of a driver is.
    names: [HashMap<Token, usize>; 2],
    released: usize,
    closed_while_sending: usize,
    moves: usize,
}

impl Walk {
    fn new(kind: Kind, seed: u64) -> Self {
        // Small enough that queues overflow and buffers run out now and then.
        let options = Options {
            receive_buffers: 16,
            receive_buffer_bytes: 512,
            entries: 8,
            completions: 16,
            ..Options::default()
        };
        let drivers = [kind, other(kind)].map(|kind| Driver::open(kind, &options).unwrap().0);
        let mut walk = Self {
            random: fastrand::Rng::with_seed(seed),
            drivers,
            lines: Vec::new(),
            names: [HashMap::new(), HashMap::new()],
            released: 0,
            closed_while_sending: 0,
            moves: 0,
        };
        for number in 0..12 {
            let line = walk.open_line(number);
            walk.lines.push(line);
        }
        walk
    }

    fn open_line(&mut self, number: usize) -> Line {
        let (server, client) = pair();
        socket2::SockRef::from(&server).set_send_buffer_size(8 << 10).unwrap();
        client.set_nonblocking(true).unwrap();
        let token = self.drivers[0].attach(server.into()).unwrap();
        self.names[0].insert(token, number);
        Line {
            client,
            home: 0,
            token,
            is_sending: false,
            is_paused: false,
            is_leaving: false,
            client_wrote: 0,
            driver_received: 0,
            driver_sent: 0,
            client_read: 0,
        }
    }

    fn step(&mut self) {
        let number = self.random.usize(..self.lines.len());
        let choice = self.random.u8(..40);
        let length = self.random.usize(1..20_000);
        let line = &mut self.lines[number];
        let driver = &mut self.drivers[line.home];
        match choice {
            0..10 => line.client_writes(length),
            10..20 => line.client_reads(),
            20..30 if !line.is_sending && !line.is_leaving => {
                line.is_sending = true;
                let start = self.random.usize(..3);
                let mut buffer = vec![0xee; start];
                buffer.extend(pattern_bytes(line.driver_sent, length));
                driver.send(line.token, buffer, start);
            }
            30 | 31 if !line.is_leaving => {
                line.is_paused = true;
                driver.pause_receive(line.token);
            }
            32 | 33 if !line.is_leaving => {
                line.is_paused = false;
                driver.resume_receive(line.token);
            }
            34 if !line.is_leaving => {
                line.is_leaving = true;
                driver.detach(line.token);
            }
            35 => {
                let (home, token) = (line.home, line.token);
                self.closed_while_sending += usize::from(line.is_sending);
                driver.close(token);
                self.names[home].remove(&token);
                let line = self.open_line(number);
                self.lines[number] = line;
            }
            36 => driver.flush().unwrap(),
            _ => {}
        }
    }

    fn turn(&mut self, home: usize) {
        self.drivers[home].wait(Some(Duration::ZERO)).unwrap();
        let mut hoard = Vec::new();
        while let Some(event) = self.drivers[home].next() {
            match event {
                Event::Received { token, buffer } => {
                    let line = &mut self.lines[self.names[home][&token]];
                    for &byte in &*self.drivers[home].bytes(&buffer) {
                        assert_eq!(byte, pattern(line.driver_received), "received in order");
                        line.driver_received += 1;
                    }
                    hoard.push(buffer);
                }
                Event::Sent { token, result, .. } => {
                    let line = &mut self.lines[self.names[home][&token]];
                    line.driver_sent += result.expect("the client is alive");
                    line.is_sending = false;
                }
                Event::Released { buffer } => {
                    assert!(!buffer.is_empty());
                    self.released += 1;
                }
                Event::Detached { token, socket } => {
                    let number = self.names[home].remove(&token).unwrap();
                    let line = &mut self.lines[number];
                    assert!(!line.is_sending, "the buffer comes back first");
                    line.home = 1 - home;
                    line.token = self.drivers[line.home].attach(socket).unwrap();
                    (line.is_leaving, line.is_paused) = (false, false);
                    self.names[line.home].insert(line.token, number);
                    self.moves += 1;
                }
                event => panic!("nobody ended or woke anything: {event:?}"),
            }
        }
        for buffer in hoard {
            self.drivers[home].recycle(buffer);
        }
    }

    fn settle(&mut self) {
        for line in &self.lines {
            if !line.is_leaving {
                self.drivers[line.home].resume_receive(line.token);
            }
        }
        let deadline = Instant::now() + DEADLINE;
        let is_settled = |walk: &Self| {
            walk.released == walk.closed_while_sending
                && walk.lines.iter().all(|line| {
                    !line.is_sending
                        && !line.is_leaving
                        && line.driver_received == line.client_wrote
                        && line.client_read == line.driver_sent
                })
        };
        while !is_settled(self) {
            assert!(Instant::now() < deadline, "the rest does not arrive");
            self.turn(0);
            self.turn(1);
            self.lines.iter_mut().for_each(Line::client_reads);
        }
        let sockets: usize = self.drivers.iter().map(Driver::sockets).sum();
        assert!(sockets >= self.lines.len());
    }
}

impl Line {
    fn client_writes(&mut self, length: usize) {
        match self.client.write(&pattern_bytes(self.client_wrote, length)) {
            Ok(bytes) => self.client_wrote += bytes,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }

    fn client_reads(&mut self) {
        let mut bytes = [0; 8192];
        loop {
            match self.client.read(&mut bytes) {
                Ok(0) => panic!("nobody closed this connection"),
                Ok(length) => {
                    for &byte in &bytes[..length] {
                        assert_eq!(byte, pattern(self.client_read), "sent in order");
                        self.client_read += 1;
                    }
                }
                Err(error) => return assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }
}

fn a_random_walk_loses_no_byte(kind: Kind) {
    let seed = std::env::var("DRIVER_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("DRIVER_TEST_SEED={seed}");
    let mut walk = Walk::new(kind, seed);
    for _ in 0..6_000 {
        walk.step();
        if walk.random.u8(..4) == 0 {
            let home = walk.random.usize(..2);
            walk.turn(home);
        }
    }
    walk.settle();
    println!("{} moves, {} sends cut by a close", walk.moves, walk.closed_while_sending);
    assert!(walk.moves > 10 && walk.closed_while_sending > 3);
}
