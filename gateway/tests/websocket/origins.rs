//! Which pages may connect (hostile inputs 70).

use std::time::Duration;

use shared::close::CloseReason;

use crate::metrics::eventually;
use crate::peer::{Echo, on_all_with};

const SOON: Duration = Duration::from_secs(10);

/// The status of an upgrade from a page of this origin, at the host `game.example:3251`.
fn status(echo: &Echo, origin: Option<&str>) -> u16 {
    let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
    let mut client = echo.raw();
    let request = format!(
        "GET /?token=secret HTTP/1.1\r\nHost: game.example:3251\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n{origin}\r\n"
    );
    client.send_bytes(request.as_bytes()).unwrap();
    let answer = client.read_bytes(SOON).unwrap();
    let text = String::from_utf8_lossy(&answer);
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Refusals are ends for one reason; who may connect and leaves is none of them.
fn expect_ends(echo: &Echo, refused: u64, left: u64) {
    eventually("ends", || {
        echo.ended(CloseReason::WebSocketProtocol) == refused
            && echo.ended(CloseReason::PeerClosed) == left
    });
}

#[test]
fn every_page_may_connect_unless_somebody_says_which() {
    on_all_with(&[], |echo| {
        for origin in [None, Some("https://evil.example"), Some("null")] {
            assert_eq!(status(echo, origin), 101, "{origin:?}");
        }
        expect_ends(echo, 0, 3);
    });
    let listed = "https://game.example,play.example:8443";
    on_all_with(&[("pitaya.gateway.origins", listed)], |echo| {
        for (origin, expected) in [
            (None, 101),
            (Some("https://game.example"), 101),
            (Some("HTTPS://GAME.example"), 101),
            (Some("https://play.example:8443"), 101),
            (Some("http://game.example"), 403),
            (Some("https://game.example.evil.example"), 403),
            (Some("https://evil.example"), 403),
            (Some("null"), 403),
        ] {
            assert_eq!(status(echo, origin), expected, "{origin:?}");
        }
        expect_ends(echo, 4, 4);
    });
    on_all_with(&[("pitaya.gateway.origins", "same-host")], |echo| {
        for (origin, expected) in [
            (None, 101),
            (Some("https://game.example:3251"), 101),
            (Some("http://game.example"), 403),
            (Some("https://evil.example"), 403),
        ] {
            assert_eq!(status(echo, origin), expected, "{origin:?}");
        }
        expect_ends(echo, 2, 2);
    });
}
