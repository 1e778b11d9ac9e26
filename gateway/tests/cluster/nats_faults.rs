//! Faults of NATS beyond its death: partitions, loss, a gateway that reads too slowly, another password, lame ducks.
//!
//! In all of them no client is dropped, requests end with a code in time, the operator is told why, and service is back
//! by itself soon after the fault is over.

use std::time::{Duration, Instant};

use client::raw::RawClient;
use gateway::gateway::Gateway;

use crate::backend::Backend;
use crate::fault_proxy::FaultProxy;
use crate::servers::Nats;
use crate::watching::{collect_log, counter, until_logged};
use crate::world::{DRIVERS, SOON, World, http_get, tcp, until, web_socket};

/// NATS is asked for a sign of life often, and requests are given up soon, so that tests are over soon.
const IMPATIENT: [(&str, &str); 4] = [
    ("pitaya.cluster.rpc.client.nats.pinginterval", "1s"),
    ("pitaya.cluster.rpc.client.nats.maxpingsoutstanding", "1"),
    ("pitaya.cluster.rpc.client.nats.requesttimeout", "1s"),
    ("pitaya.cluster.rpc.client.nats.connectiontimeout", "1s"),
];
/// Far beyond what is measured on a quiet machine (below a second), for busy ones.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// A gateway behind a proxy, an echoing backend that NATS serves directly, and bound clients.
struct Scene {
    proxy: FaultProxy,
    gateway: Gateway,
    clients: Vec<RawClient>,
    closed_before: u64,
}

impl Scene {
    fn new(world: &World, driver: &str, more: &[(&str, &str)]) -> Self {
        collect_log();
        let proxy = FaultProxy::start(world.nats.address());
        let url = format!("nats://{}", proxy.address());
        let mut settings = vec![("pitaya.nats.connect", url.as_str())];
        settings.extend(IMPATIENT);
        settings.extend(more);
        let gateway = world.gateway(driver, &settings);
        let clients: Vec<RawClient> =
            (0..6).map(|n| if n % 2 == 0 { tcp(&gateway) } else { web_socket(&gateway) }).collect();
        let closed_before = closed(&gateway);
        Self { proxy, gateway, clients, closed_before }
    }

    fn bind(&mut self, backend: &Backend) {
        for (number, client) in self.clients.iter_mut().enumerate() {
            let session = backend.session_id(client);
            backend.caller.bind(session, &format!("user-{number}"));
        }
    }

    /// While NATS is not to be had, each request is answered with a code, in time.
    fn check_refused(&mut self) {
        for client in &mut self.clients {
            let begun = Instant::now();
            let id = client.send_request("room.room.echo", b"lost").unwrap();
            let answer = client.read_response(id, SOON).unwrap();
            let text = answer.text();
            assert!(answer.is_error, "{text}");
            assert!(text.contains("PIT-408") || text.contains("PIT-503"), "{text}");
            assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
        }
    }

    /// The fault is over: the same clients are served again, requests and pushes. Prints how long it took.
    fn check_back(&mut self, backend: &Backend, what: &str) {
        let begun = Instant::now();
        until("ready", || is_ready(&self.gateway).then_some(()));
        for (number, client) in self.clients.iter_mut().enumerate() {
            until("served again", || {
                let id = client.send_request("room.room.echo", b"again").unwrap();
                while let Some(call) = backend.next_within(Duration::from_millis(50)) {
                    // Calls of the time before the fault may come first; nobody waits for their answers.
                    call.answer(&call.data());
                }
                let answer = client.read_response(id, SOON).unwrap();
                (!answer.is_error).then_some(())
            });
            if number == 0 {
                println!("{what}: served {:?} after the fault was over", begun.elapsed());
            }
        }
        assert!(begun.elapsed() < BACK_WITHIN, "{what}: {:?}", begun.elapsed());
        for (number, client) in self.clients.iter_mut().enumerate() {
            // Pushes of before the fault may come first.
            until("a push arrives", || {
                backend.caller.push(&format!("user-{number}"), b"welcome back");
                client.read_push(Duration::from_millis(500)).ok()
            });
        }
        assert_eq!(closed(&self.gateway), self.closed_before, "{what}: a client was dropped");
    }
}

fn closed(gateway: &Gateway) -> u64 {
    counter(gateway, "pitaya_acceptor_closed_total")
}

fn reconnects(gateway: &Gateway) -> u64 {
    counter(gateway, "pitaya_nats_reconnects_total")
}

fn is_ready(gateway: &Gateway) -> bool {
    http_get(gateway.addresses().admin[0], "/readyz").unwrap().0 == 200
}

#[test]
fn a_partition_from_nats_is_noticed_by_its_silence_and_heals() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let mut scene = Scene::new(&world, driver, &[]);
        scene.bind(&backend);
        scene.proxy.stand_still(true);
        scene.check_refused();
        until("not ready", || (!is_ready(&scene.gateway)).then_some(()));
        let address = scene.proxy.address().to_string();
        until_logged(&["lost the connection to NATS", &address, "does not answer"]);
        assert!(reconnects(&scene.gateway) >= 1, "{driver}");
        scene.check_refused();
        scene.proxy.heal();
        scene.check_back(&backend, "partition");
        scene.gateway.stop();
    }
    backend.leave(&world);
}

#[test]
fn connections_to_nats_that_are_cut_again_and_again_cost_no_client() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let mut scene = Scene::new(&world, driver, &[]);
        scene.bind(&backend);
        // Also while they are being made anew.
        until("several cuts", || {
            scene.proxy.cut();
            (reconnects(&scene.gateway) >= 8).then_some(())
        });
        let address = scene.proxy.address().to_string();
        until_logged(&["lost the connection to NATS", &address, "closed the connection"]);
        scene.proxy.refuse(true);
        until("not ready", || (!is_ready(&scene.gateway)).then_some(()));
        scene.check_refused();
        scene.proxy.heal();
        scene.check_back(&backend, "cuts");
        scene.gateway.stop();
    }
    backend.leave(&world);
}

/// From nothing to everything: what is lost is sent again, and all of it lost is a partition.
#[test]
fn packet_loss_on_the_way_to_nats_slows_requests_down_and_breaks_nothing() {
    let world = World::new();
    let backend = world.backend("room-1");
    let mut scene = Scene::new(&world, "uring", &[]);
    scene.bind(&backend);
    for percent in [10, 60, 100] {
        scene.proxy.lose(percent);
        for client in scene.clients.iter_mut().take(2) {
            let begun = Instant::now();
            let id = client.send_request("room.room.echo", b"slow").unwrap();
            while let Some(call) = backend.next_within(Duration::from_millis(100)) {
                call.answer(&call.data());
            }
            let answer = client.read_response(id, SOON).unwrap();
            let is_timely = begun.elapsed() < Duration::from_secs(8);
            assert!(is_timely, "{percent} %: {} after {:?}", answer.text(), begun.elapsed());
        }
    }
    scene.proxy.heal();
    scene.check_back(&backend, "loss");
    scene.gateway.stop();
    backend.leave(&world);
}

#[test]
fn a_gateway_that_nats_finds_too_slow_is_sent_away_and_comes_back() {
    let configuration = "write_deadline: \"500ms\"\nmax_pending: 1048576\n";
    let world = World::over(Nats::start_configured(configuration));
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        // Nobody else may notice: the gateway must not find out by its own pings first.
        let patient = [("pitaya.cluster.rpc.client.nats.pinginterval", "60s")];
        let mut scene = Scene::new(&world, driver, &patient);
        scene.bind(&backend);
        scene.proxy.stall_client(true);
        let before = reconnects(&scene.gateway);
        let noise = vec![7; 60_000];
        // More than the buffers between NATS and the gateway hold, which may be tens of megabytes, and more than NATS queues.
        until("given up by NATS", || {
            for _ in 0..100 {
                backend.caller.push("user-0", &noise);
            }
            (!backend.caller.is_heard("user-0")).then_some(())
        });
        scene.proxy.stall_client(false);
        until("sent away", || (reconnects(&scene.gateway) > before).then_some(()));
        until_logged(&["lost the connection to NATS", &scene.proxy.address().to_string()]);
        // Its own pushes were more than fit, so that this one may have been closed, with a reason; the others not.
        scene.clients.remove(0);
        until("served again", || {
            let client = &mut scene.clients[0];
            let id = client.send_request("room.room.echo", b"again").unwrap();
            while let Some(call) = backend.next_within(Duration::from_millis(50)) {
                call.answer(&call.data());
            }
            (!client.read_response(id, SOON).unwrap().is_error).then_some(())
        });
        for client in &mut scene.clients {
            let id = client.send_request("room.room.echo", b"x").unwrap();
            backend.next().answer(b"x");
            assert!(!client.read_response(id, SOON).unwrap().is_error, "{driver}");
        }
        scene.gateway.stop();
    }
    backend.leave(&world);
}

#[test]
fn a_password_that_was_changed_ends_connections_to_nats_and_no_client() {
    let configured = |password: &str| {
        format!(
            "authorization {{ users = [ {{ user: gw, password: {password} }}, {{ user: room, password: room }} ] }}"
        )
    };
    let world = World::over(Nats::start_configured(&configured("right")));
    let options = async_nats::ConnectOptions::with_user_and_password("room".into(), "room".into());
    let client = world.soon(options.connect(world.nats.url())).unwrap();
    let backend = Backend::start(&world, "room-1", client);
    for driver in DRIVERS {
        let login = [("pitaya.nats.user", "gw"), ("pitaya.nats.password", "right")];
        let mut scene = Scene::new(&world, driver, &login);
        scene.bind(&backend);
        world.nats.reconfigure(&configured("wrong"));
        until("not ready", || (!is_ready(&scene.gateway)).then_some(()));
        let address = scene.proxy.address().to_string();
        until_logged(&["lost the connection to NATS", &address, "uthoriz"]);
        scene.check_refused();
        world.nats.reconfigure(&configured("right"));
        scene.check_back(&backend, "password");
        scene.gateway.stop();
    }
    backend.leave(&world);
}

#[test]
fn a_lame_duck_is_left_for_another_server_without_a_client_noticing_but_by_codes() {
    for driver in DRIVERS {
        collect_log();
        let mut world = World::new();
        let other = Nats::start(&[]);
        let urls = format!("{},{}", world.nats.url(), other.url());
        let gateway = world.gateway(driver, &[("pitaya.nats.connect", &urls)]);
        let mut client = tcp(&gateway);
        let before = closed(&gateway);
        // Which of the two each reactor took is chance; both say goodbye, one after the other.
        world.nats.lame_duck();
        world.nats.stop();
        until("ready on the other", || is_ready(&gateway).then_some(()));
        let backend = world.backend_at("room-2", &other.url());
        until("served", || {
            let id = client.send_request("room.room.echo", b"x").unwrap();
            if let Some(call) = backend.next_within(Duration::from_millis(50)) {
                call.answer(b"x");
            }
            (!client.read_response(id, SOON).unwrap().is_error).then_some(())
        });
        assert_eq!(closed(&gateway), before, "{driver}: a client was dropped");
        backend.leave(&world);
        gateway.stop();
    }
}
