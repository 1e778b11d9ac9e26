//! Start without a cluster, and a stop that finishes what it began.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use gateway::control::{Command, ControlError};
use gateway::gateway::{Commands, Gateway, StartError};

use crate::world::{
    DRIVERS, SOON, World, free_address, http_get, tcp, until, until_answered, web_socket,
};

#[test]
fn a_stop_answers_what_is_in_flight_after_the_gateway_has_left_the_cluster() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let (address, admin) = (gateway.addresses().tcp[0], gateway.addresses().admin[0]);
        let mut clients = [tcp(&gateway), web_socket(&gateway), tcp(&gateway)];
        let mut idle = tcp(&gateway);
        for client in &mut clients {
            client.send_request("room.room.slow", b"").unwrap();
        }
        let calls = [(); 3].map(|()| backend.next());
        let observer = world.observe();
        assert!(observer.tables().borrow().by_id("gate-1").is_some());
        let stopping = thread::spawn(move || gateway.stop());
        let mut tables = observer.tables();
        world.soon(tables.wait_for(|table| table.by_id("gate-1").is_none())).unwrap();
        until("nobody else is let in", || TcpStream::connect(address).is_err().then_some(()));
        idle.expect_close(SOON).unwrap();
        until("its end is counted", || {
            let (_, page) = http_get(admin, "/metrics").unwrap();
            page.contains(",reason=\"shutdown\"} 1\n").then_some(())
        });
        for client in &mut clients {
            client.expect_silence(Duration::from_millis(20)).unwrap();
        }
        for call in &calls {
            call.answer(b"finished");
        }
        for client in &mut clients {
            assert_eq!(client.read_message(SOON).unwrap().payload, b"finished", "{driver}");
            client.expect_close(SOON).unwrap();
        }
        stopping.join().unwrap();
        world.withdraw(observer);
    }
}

#[test]
fn a_stop_does_not_wait_for_ever_for_an_answer() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let timeout = ("pitaya.cluster.rpc.client.nats.requesttimeout", "500ms");
        let gateway = world.gateway(driver, &[timeout]);
        let mut client = tcp(&gateway);
        client.send_request("room.room.slow", b"").unwrap();
        backend.next();
        gateway.stop();
        assert!(client.read_message(SOON).unwrap().text().contains("PIT-408"), "{driver}");
        client.expect_close(SOON).unwrap();
    }
}

#[test]
fn a_stop_without_nats_and_etcd_ends_all_the_same() {
    for driver in DRIVERS {
        let mut world = World::new();
        let settings = [
            ("pitaya.cluster.sd.etcd.dialtimeout", "1s"),
            ("pitaya.cluster.sd.etcd.revoke.timeout", "1s"),
        ];
        let gateway = world.gateway(driver, &settings);
        let mut client = tcp(&gateway);
        world.nats.kill();
        world.etcd.kill();
        let begun = std::time::Instant::now();
        gateway.stop();
        client.expect_close(SOON).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(15), "{driver}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_gateway_waits_for_nats_and_etcd_and_then_serves() {
    for driver in DRIVERS {
        let mut world = World::new();
        world.nats.kill();
        world.etcd.kill();
        let (admin, players) = (free_address(), free_address());
        let (admin_text, players_text) = (admin.to_string(), players.to_string());
        let settings =
            [("pitaya.admin.listen", admin_text.as_str()), ("pitaya.gateway.tcp", &players_text)];
        let plan = world.plan(driver, &settings);
        let starting = thread::spawn(|| Gateway::start(plan, Commands::new()));
        let page = |path: &str| until(path, || http_get(admin, path).ok());
        assert_eq!(page("/healthz").0, 200, "{driver}");
        assert_eq!(page("/readyz").0, 503, "{driver}");
        world.nats.restart_same_port();
        until("NATS is found", || page("/readyz").1.contains(r#""bus":[true,true]"#).then_some(()));
        assert_eq!(page("/readyz").0, 503, "{driver}: not without etcd");
        // NATS goes once more, while etcd is waited for.
        world.nats.kill();
        until("it is missed", || {
            page("/readyz").1.contains(r#""bus":[false,false]"#).then_some(())
        });
        world.nats.restart_same_port();
        until("NATS is found", || page("/readyz").1.contains(r#""bus":[true,true]"#).then_some(()));
        assert!(!starting.is_finished(), "{driver}");
        world.etcd.restart_same_port();
        let gateway = starting.join().unwrap().unwrap();
        until("ready", || (page("/readyz").0 == 200).then_some(()));
        let echo = world.backend("room-1").echo();
        until_answered(&mut tcp(&gateway), "room.room.echo", b"x");
        gateway.stop();
        world.withdraw(echo.discovery);
    }
}

#[test]
fn a_stop_ends_the_wait_for_nats_and_the_wait_for_etcd() {
    for driver in DRIVERS {
        for is_nats_there in [false, true] {
            let mut world = World::new();
            world.etcd.kill();
            if !is_nats_there {
                world.nats.kill();
            }
            let admin = free_address();
            let plan = world.plan(driver, &[("pitaya.admin.listen", &admin.to_string())]);
            let commands = Commands::new();
            let sender = commands.sender();
            let starting = thread::spawn(|| Gateway::start(plan, commands));
            let bus = if is_nats_there { r#""bus":[true,true]"# } else { r#""bus":[false,false]"# };
            until("it waits", || {
                let (_, page) = http_get(admin, "/readyz").ok()?;
                page.contains(bus).then_some(())
            });
            world.soon(sender.send(Command::Stop)).unwrap();
            let outcome = starting.join().unwrap().map(|_| ());
            let is_stopped = matches!(outcome, Err(StartError::Control(ControlError::Stopped)));
            assert!(is_stopped, "{driver}: {outcome:?}");
        }
    }
}
