//! A caller of chance against a kernel of chance: the driver between them keeps every promise.

use std::collections::{HashMap, HashSet};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::{About, Uring};
use super::Ring;
use crate::driver::{Event, Options, Token};

/// Steps of one walk. Miri is some thousand times slower.
const STEPS: usize = if cfg!(miri) { 300 } else { 30_000 };
const SOCKETS_MAX: usize = 12;
/// Turns in which a kernel that is asked to let go has let go.
const TURNS_TO_REST: usize = 2_000;

/// What was sent and has not come back.
struct Sending {
    content: Vec<u8>,
    address: usize,
}

struct Caller {
    uring: Uring,
    random: fastrand::Rng,
    /// Tokens that may be used, and whether they are listeners.
    known: Vec<(Token, bool)>,
    leaving: HashSet<Token>,
    gone: HashSet<Token>,
    ended: HashSet<Token>,
    sending: HashMap<Token, Sending>,
    /// Buffers in flight of tokens that were closed: they come back as released.
    orphans: HashMap<usize, Vec<u8>>,
    received: HashMap<Token, Vec<u8>>,
    events: [usize; 8],
}

impl Caller {
    fn new(seed: u64) -> Self {
        let options = Options {
            receive_buffers: 4,
            receive_buffer_bytes: 24,
            accept_rest: Duration::ZERO,
            ..Options::default()
        };
        let mut uring = Uring::over(Ring::seeded(seed), &options).unwrap();
        uring.listen_to_waker();
        Self {
            uring,
            random: fastrand::Rng::with_seed(!seed),
            known: Vec::new(),
            leaving: HashSet::new(),
            gone: HashSet::new(),
            ended: HashSet::new(),
            sending: HashMap::new(),
            orphans: HashMap::new(),
            received: HashMap::new(),
            events: [0; 8],
        }
    }

    fn attach(&mut self) {
        if self.known.len() >= SOCKETS_MAX {
            return;
        }
        // The peer's end goes: what the socket has to say is the model's.
        let (ours, _) = UnixStream::pair().unwrap();
        let is_listener = self.random.u8(..4) == 0;
        let token = if is_listener {
            self.uring.listen(ours.into()).unwrap()
        } else {
            self.uring.attach(ours.into()).unwrap()
        };
        // A slot is used again, a token is not.
        assert!(!self.gone.contains(&token), "{token:?} is given out twice");
        self.known.push((token, is_listener));
    }

    fn send(&mut self, token: Token) {
        if self.sending.contains_key(&token) {
            return;
        }
        let content: Vec<u8> = (0..self.random.usize(1..200)).map(|_| self.random.u8(..)).collect();
        let start = self.random.usize(..=content.len());
        self.send_from(token, content, start);
    }

    fn send_from(&mut self, token: Token, buffer: Vec<u8>, start: usize) {
        let sending = Sending { content: buffer.clone(), address: buffer.as_ptr() as usize };
        self.sending.insert(token, sending);
        self.uring.send(token, buffer, start);
    }

    fn close(&mut self, token: Token) {
        self.uring.close(token);
        self.known.retain(|(other, _)| *other != token);
        self.gone.insert(token);
        if let Some(Sending { content, address }) = self.sending.remove(&token) {
            self.orphans.insert(address, content);
        }
    }

    fn act(&mut self) {
        let choice = self.random.u8(..12);
        let picked = (!self.known.is_empty()).then(|| self.random.usize(..self.known.len()));
        let Some((token, is_listener)) = picked.map(|index| self.known[index]) else {
            return self.attach();
        };
        match choice {
            0..2 => self.attach(),
            2 => self.uring.pause(token),
            3..5 => self.uring.resume(token),
            5..8 if !is_listener && !self.leaving.contains(&token) => self.send(token),
            8 => self.uring.shutdown_write(token),
            9 if self.random.u8(..3) == 0 => self.close(token),
            10 if self.random.u8(..3) == 0 => {
                self.leaving.insert(token);
                self.uring.detach(token);
            }
            11 => self.uring.waker().wake(),
            _ => {}
        }
    }

    /// One turn of a reactor, with a caller that acts between events and keeps buffers to the end of the turn.
    fn turn(&mut self) {
        self.uring.wait(Some(Duration::ZERO)).unwrap();
        let mut kept = Vec::new();
        while let Some(event) = self.uring.next() {
            match event {
                Event::Received { token, buffer } => {
                    self.events[0] += 1;
                    self.check_heard(token);
                    assert!(!self.ended.contains(&token), "bytes after the end");
                    let bytes = self.uring.bytes(&buffer);
                    self.received.entry(token).or_default().extend_from_slice(bytes);
                    bytes.fill(0);
                    kept.push(buffer);
                }
                Event::Sent { token, buffer, result } => {
                    self.handle_sent(token, buffer, result.ok());
                }
                Event::Released { buffer } => {
                    self.events[2] += 1;
                    let content = self.orphans.remove(&(buffer.as_ptr() as usize));
                    assert_eq!(content, Some(buffer), "a released buffer is one that was sent");
                }
                Event::Ended { token, .. } => {
                    self.events[3] += 1;
                    self.check_heard(token);
                    assert!(self.ended.insert(token), "it ends once");
                }
                Event::Detached { token, .. } => {
                    self.events[4] += 1;
                    self.check_heard(token);
                    assert!(self.leaving.remove(&token) && !self.sending.contains_key(&token));
                    self.known.retain(|(other, _)| *other != token);
                    self.gone.insert(token);
                }
                Event::Accepted { listener, .. } => {
                    self.events[5] += 1;
                    self.check_heard(listener);
                }
                Event::AcceptFailed { listener, .. } => {
                    self.events[6] += 1;
                    self.check_heard(listener);
                }
                Event::Woken => self.events[7] += 1,
            }
            if self.random.u8(..4) == 0 {
                self.act();
            }
            if self.random.bool()
                && let Some(buffer) = kept.pop()
            {
                self.uring.recycle(buffer);
            }
        }
        for buffer in kept {
            self.uring.recycle(buffer);
        }
        self.uring.sockets.check_invariants();
    }

    fn handle_sent(&mut self, token: Token, buffer: Vec<u8>, sent: Option<usize>) {
        self.events[1] += 1;
        self.check_heard(token);
        let sending = self.sending.remove(&token).expect("nothing was sent");
        assert_eq!(buffer.as_ptr() as usize, sending.address, "the same memory comes back");
        assert_eq!(buffer, sending.content, "unchanged");
        let is_open = !self.leaving.contains(&token);
        // The rest of a send that was cut, as a reactor does it.
        if let Some(sent) = sent.filter(|sent| *sent > 0 && *sent < buffer.len() && is_open) {
            self.send_from(token, buffer, sent);
        }
    }

    fn check_heard(&self, token: Token) {
        assert!(!self.gone.contains(&token), "{token:?} is gone and heard of");
    }

    /// Nobody got other bytes than the kernel wrote for it, in their order.
    fn check_received(&self) {
        let kernel = self.uring.ring.kernel.borrow();
        for (token, received) in &self.received {
            let written = &kernel.received[&About::Receive.user_data(*token)];
            assert!(written.starts_with(received), "{token:?} received other bytes");
        }
    }

    /// Closes everything, and waits until the kernel has let go.
    fn rest(&mut self) {
        for (token, _) in self.known.clone() {
            self.close(token);
        }
        for _ in 0..TURNS_TO_REST {
            // Nobody acts any more.
            self.uring.wait(Some(Duration::ZERO)).unwrap();
            while let Some(event) = self.uring.next() {
                match event {
                    Event::Released { buffer } => {
                        let content = self.orphans.remove(&(buffer.as_ptr() as usize));
                        assert_eq!(content, Some(buffer));
                    }
                    Event::Woken => {}
                    event => panic!("{event:?} after everything was closed"),
                }
            }
            if self.uring.sockets() == 0 {
                break;
            }
        }
        assert_eq!(self.uring.sockets(), 0, "a socket found no end");
        assert!(self.orphans.is_empty(), "a buffer never came back");
        let kernel = self.uring.ring.kernel.borrow();
        assert_eq!(kernel.in_flight(), 0, "an operation outlived its socket");
        assert_eq!(kernel.buffers_left(), 4, "a receive buffer was lost");
        assert_eq!(self.uring.provided.out(), 0);
    }
}

fn seed() -> u64 {
    let given = std::env::var("FUZZ_SEED").ok().map(|text| text.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("FUZZ_SEED={seed} replays this walk");
    seed
}

#[test]
fn nothing_is_lost_doubled_or_freed_whatever_the_kernel_does_first() {
    let mut caller = Caller::new(seed());
    for _ in 0..STEPS {
        caller.act();
        if caller.random.u8(..3) == 0 {
            caller.turn();
        }
    }
    caller.check_received();
    caller.rest();
    let is_long = cfg!(miri) || caller.events.iter().all(|count| *count > 50);
    assert!(is_long, "the walk was too quiet to mean anything: {:?}", caller.events);
}

#[test]
fn a_driver_that_is_dropped_in_the_middle_waits_until_the_kernel_has_let_go() {
    for _ in 0..if cfg!(miri) { 3 } else { 200 } {
        let mut caller = Caller::new(seed());
        for _ in 0..40 {
            caller.act();
            if caller.random.u8(..3) == 0 {
                caller.turn();
            }
        }
        // The ring checks, when it goes, that nothing is in flight.
        drop(caller);
    }
}

#[test]
#[cfg(not(miri))]
fn a_kernel_that_never_lets_go_costs_memory_and_not_its_integrity() {
    let mut caller = Caller::new(seed());
    let (ours, _) = UnixStream::pair().unwrap();
    let token = caller.uring.attach(ours.into()).unwrap();
    caller.uring.ring.kernel.get_mut().is_stubborn = true;
    caller.send(token);
    let operations = caller.uring.ring.kernel.get_mut().in_flight();
    assert!(operations > 0);
    // It waits for a while, and then leaks what the kernel may yet write to.
    drop(caller);
}
