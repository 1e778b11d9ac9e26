//! The other end of a conversation: frames in any shape out, frames in, on each kind of connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::raw::{RawClient, RawError};
use client::upgrade::UpgradeRequest;
use gateway::control::plan::Plan;
use gateway::gateway::Gateway;
use gateway::wire::Content;
use shared::close::CloseReason;
use shared::websocket::Opcode;
use shared::websocket::frame::{FrameHead, FrameLimits, frame_head};

use crate::local::{self, DRIVERS};
use crate::metrics;
use crate::tls::{self, Identity};

const SOON: Duration = Duration::from_secs(10);
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A gateway that echoes, and how to reach it.
pub(crate) struct Echo {
    gateway: Gateway,
    identity: Option<Identity>,
}

/// Runs a test against each driver, with and without TLS.
pub(crate) fn on_all(test: impl Fn(&Echo)) {
    on_all_with(&[], test);
}

/// The same with settings.
pub(crate) fn on_all_with(settings: &[(&str, &str)], test: impl Fn(&Echo)) {
    for driver in DRIVERS {
        for identity in [None, Some(Identity::new())] {
            let mut all = settings.to_vec();
            all.push(("pitaya.gateway.outbox.maxbytes", "67108864"));
            let secured = identity.as_ref().map(Identity::settings);
            for (key, value) in secured.iter().flatten() {
                all.push((key, value));
            }
            let gateway = local::start_changed(driver, &all, echoing);
            let echo = Echo { gateway, identity };
            test(&echo);
            echo.gateway.stop();
        }
    }
}

fn echoing(plan: &mut Plan) {
    let rules = Arc::get_mut(&mut plan.rules).expect("nobody shares the rules yet");
    rules.wire.content = Content::Echo;
    rules.wire.frames = FrameLimits { message_bytes_max: MESSAGE_BYTES_MAX, fragments_max: 70_000 };
}

impl Echo {
    /// A connection before its upgrade.
    pub(crate) fn raw(&self) -> RawClient {
        let addresses = self.gateway.addresses();
        let mut client = match &self.identity {
            None => RawClient::connect_tcp(addresses.ws[0]).unwrap(),
            Some(identity) => tls::connect(addresses.wss[0], &identity.client()).unwrap(),
        };
        client.set_timeout(SOON);
        client
    }

    /// How many connections ended for this reason so far.
    pub(crate) fn ended(&self, reason: CloseReason) -> u64 {
        metrics::closed_total(&metrics::metrics(self.gateway.addresses().admin[0]), reason)
    }

    /// A WebSocket.
    pub(crate) fn open(&self) -> Peer {
        let mut client = self.raw();
        client.send_bytes(UpgradeRequest::new("game", "/").bytes()).unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"\r\n\r\n") {
            received.extend(client.read_bytes(SOON).unwrap());
        }
        assert!(received.starts_with(b"HTTP/1.1 101 "), "{}", received.escape_ascii());
        Peer { client, received: Vec::new() }
    }
}

/// A frame as it goes out.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame_head(Opcode::Binary, payload.len(), Some(MASK), &mut out);
    out[0] = first;
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

/// A final frame of this kind.
pub(crate) fn whole(kind: Opcode, payload: &[u8]) -> Vec<u8> {
    frame(0x80 | kind as u8, payload)
}

/// A close frame.
pub(crate) fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    whole(Opcode::Close, &[&code.to_be_bytes(), reason].concat())
}

/// One conversation.
pub(crate) struct Peer {
    client: RawClient,
    received: Vec<u8>,
}

impl Peer {
    /// Sends bytes in one piece. The other end may have closed already.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.client.send_bytes(bytes);
    }

    /// Sends bytes in pieces of this size.
    pub(crate) fn send_in(&mut self, piece_bytes: usize, bytes: &[u8]) {
        bytes.chunks(piece_bytes).for_each(|piece| self.send(piece));
    }

    /// The next frame that comes, which must be whole and unmasked, with no reserved bit.
    fn read(&mut self) -> Option<(Opcode, Vec<u8>)> {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(head) = FrameHead::decode(&self.received).expect("a good frame") {
                let end = head.head_bytes + head.payload_bytes as usize;
                if self.received.len() >= end {
                    assert!(head.is_final && head.mask.is_none(), "{head:?}");
                    let rest = self.received.split_off(end);
                    let frame = std::mem::replace(&mut self.received, rest);
                    return Some((head.opcode, frame[head.head_bytes..].to_vec()));
                }
            }
            match self.client.read_bytes(deadline - Instant::now()) {
                Ok(bytes) => self.received.extend(bytes),
                Err(RawError::Closed(..)) => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads one frame of this kind and content.
    pub(crate) fn expect(&mut self, kind: Opcode, payload: &[u8]) {
        let (got, content) = self.read().expect("a frame");
        assert!(
            got == kind && content == payload,
            "{got:?} of {} bytes instead of {kind:?} of {}",
            content.len(),
            payload.len()
        );
    }

    /// Reads a close frame with this code, then the end of the connection and nothing between.
    pub(crate) fn expect_close(&mut self, code: Option<u16>, case: &str) {
        match self.read() {
            Some((Opcode::Close, content)) => {
                let got = content.first_chunk().map(|code| u16::from_be_bytes(*code));
                assert_eq!(got, code, "{case}");
            }
            other => panic!("{case}: {other:?} instead of a close frame"),
        }
        assert_eq!(self.read(), None, "{case}: nothing comes behind a close frame");
    }

    /// Says goodbye as a good client, and is answered.
    pub(crate) fn finish(mut self) {
        self.send(&close(1000, b""));
        self.expect_close(Some(1000), "a good end");
    }
}
