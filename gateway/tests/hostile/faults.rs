//! Defects of our own code (hostile inputs 89): what one client brings out ends that client only.

use std::sync::Arc;

use client::raw::Closed;

use crate::field::{LONG, under_attack_of};

#[test]
fn a_panic_ends_the_one_connection_that_met_it() {
    let add_defect = |plan: &mut gateway::control::plan::Plan| {
        let rules = Arc::get_mut(&mut plan.rules).expect("nobody shares the rules yet");
        let check = |request: &shared::handshake::HandshakeRequest| {
            assert_ne!(request.sys.platform, "defect", "as the test wants it");
            Ok(())
        };
        rules.agent.checks.push(("defect".to_owned(), std::sync::Arc::new(check)));
    };
    under_attack_of(&[], add_defect, |field| {
        for _ in 0..20 {
            for (mut client, is_web_socket) in field.fresh().into_iter().zip([false, true]) {
                let body = br#"{"sys":{"platform":"defect"}}"#;
                client.send_packet(shared::packet::PacketType::Handshake, body).unwrap();
                let code = Closed::CloseFrame { code: Some(1011) };
                let expected = if is_web_socket { code } else { Closed::Finished };
                assert_eq!(client.expect_close(LONG).unwrap(), expected);
            }
        }
    });
}
