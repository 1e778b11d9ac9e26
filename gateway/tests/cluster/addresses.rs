//! What a worker learns of a client's address when there is a proxy in front of the gateway (client protocol 11 and 12).

use client::raw::RawClient;
use client::upgrade::UpgradeRequest;
use gateway::gateway::Gateway;
use worker::prelude::*;

use crate::asking::established;
use crate::world::{DRIVERS, World, until_answered};

const HEADER: &[u8] = b"PROXY TCP6 2001:db8::9 2001:db8::1 51234 3250\r\n";
const TRUSTED: (&str, &str) = ("pitaya.gateway.proxy.trusted", "127.0.0.1");
const TOLD: (&str, &str) = ("pitaya.gateway.session.address", "true");

/// Answers with what came along with the request, and with what the gateway says when it is asked.
fn application() -> App {
    App::new("room").on("test.address", async |session: Session| -> Result<[String; 3]> {
        let told = |key| session.get::<String>(key).map(Option::unwrap_or_default);
        let asked = session.remote_address().await?;
        Ok([told("ipversion")?, told("ip")?, asked.map_or_else(String::new, |it| it.to_string())])
    })
}

fn address(client: RawClient) -> String {
    until_answered(&mut established(client), "room.test.address", b"").text()
}

/// Clients on each transport whose connection begins with a PROXY header.
fn behind_header(gateway: &Gateway) -> [RawClient; 2] {
    let begun = |address| {
        let mut client = RawClient::connect_tcp(address).unwrap();
        client.send_bytes(HEADER).unwrap();
        client
    };
    let web_socket = begun(gateway.addresses().ws[0]).upgrade(&UpgradeRequest::new("game", "/"));
    [begun(gateway.addresses().tcp[0]), web_socket.unwrap()]
}

#[test]
fn a_worker_is_told_the_address_of_the_client_and_not_that_of_the_proxy() {
    let world = World::new();
    let worker = world.application(application(), "room-1");
    for driver in DRIVERS {
        let expects = ("pitaya.acceptor.proxyprotocol", "true");
        let gateway = world.gateway(driver, &[TRUSTED, TOLD, expects]);
        for client in behind_header(&gateway) {
            let told = r#"["ipv6","2001:db8::9","[2001:db8::9]:51234"]"#;
            assert_eq!(address(client), told, "{driver}");
        }
        gateway.stop();

        // Requests carry as much as Pitaya's unless the gateway is told to say more; whoever asks is told.
        let gateway = world.gateway(driver, &[TRUSTED, expects]);
        for client in behind_header(&gateway) {
            assert_eq!(address(client), r#"["ipv6","","[2001:db8::9]:51234"]"#, "{driver}");
        }
        gateway.stop();

        let believes = ("pitaya.gateway.proxy.forwarded", "true");
        let gateway = world.gateway(driver, &[TRUSTED, TOLD, believes]);
        let request = UpgradeRequest::new("game", "/")
            .with_header("X-Forwarded-For", "6.6.6.6, 192.0.2.7, 127.0.0.1");
        let client = RawClient::connect_tcp(gateway.addresses().ws[0]).unwrap();
        let told = address(client.upgrade(&request).unwrap());
        assert!(told.starts_with(r#"["ipv4","192.0.2.7","192.0.2.7:"#), "{driver}: {told}");
        gateway.stop();
    }
    world.stop_worker(worker);
}
