//! Draining: a gateway that is to end waits for its players.

use std::net::TcpStream;
use std::thread;

use gateway::control::Command;
use gateway::gateway::{Commands, Gateway};

use crate::world::{DRIVERS, SOON, World, http_get, tcp, until, until_answered, web_socket};

/// A gateway and its commands.
fn start(world: &World, driver: &str, settings: &[(&str, &str)]) -> (Gateway, Commander) {
    let commands = Commands::new();
    let sender = commands.sender();
    let gateway = Gateway::start(world.plan(driver, settings), commands).unwrap();
    let send = Box::new(move |command| sender.blocking_send(command).unwrap());
    (gateway, send)
}

type Commander = Box<dyn Fn(Command)>;

const ON: (&str, &str) = ("pitaya.session.drain.enabled", "true");
const OFTEN: (&str, &str) = ("pitaya.session.drain.period", "20ms");

#[test]
fn a_gateway_that_drains_lets_nobody_in_and_ends_when_the_last_player_has_left() {
    let world = World::new();
    for driver in DRIVERS {
        let echo = world.backend("room-1").echo();
        let (gateway, send) = start(&world, driver, &[ON, OFTEN]);
        let (mut ann, mut bob) = (tcp(&gateway), web_socket(&gateway));
        until_answered(&mut ann, "room.room.echo", b"before");
        let (address, admin) = (gateway.addresses().tcp[0], gateway.addresses().admin[0]);
        send(Command::Drain);
        until("nobody is let in", || TcpStream::connect(address).is_err().then_some(()));
        assert_eq!(http_get(admin, "/readyz").unwrap().0, 503, "{driver}");
        send(Command::Drain);
        for client in [&mut ann, &mut bob] {
            let answer = client.request("room.room.echo", b"still here").unwrap();
            assert!(!answer.is_error, "{driver}: {}", answer.text());
        }
        let ended = thread::spawn(|| gateway.wait());
        drop(ann);
        let answer = bob.request("room.room.echo", b"alone").unwrap();
        assert!(!answer.is_error && !ended.is_finished(), "{driver}");
        drop(bob);
        until("it ends", || ended.is_finished().then_some(()));
        ended.join().unwrap();
        world.withdraw(echo.discovery);
    }
}

#[test]
fn the_wait_for_players_ends_at_its_limit_and_by_a_stop() {
    let world = World::new();
    let short = ("pitaya.session.drain.timeout", "100ms");
    for (driver, settings, is_stopped) in
        [("uring", &[ON, short][..], false), ("epoll", &[ON, OFTEN][..], true)]
    {
        let (gateway, send) = start(&world, driver, settings);
        let mut client = tcp(&gateway);
        send(Command::Drain);
        if is_stopped {
            let address = gateway.addresses().tcp[0];
            until("it drains", || TcpStream::connect(address).is_err().then_some(()));
            send(Command::Stop);
        }
        gateway.wait();
        assert!(client.read_message(SOON).is_err(), "{driver}: the connection has ended");
    }
}

#[test]
fn players_are_not_waited_for_unless_it_is_configured() {
    let world = World::new();
    let (gateway, send) = start(&world, "uring", &[]);
    let _client = tcp(&gateway);
    send(Command::Drain);
    gateway.wait();
}
