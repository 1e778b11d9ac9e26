//! A small reactor for the tests: takes events, checks what must hold for all of them, keeps the rest.

use gateway::driver::{Buffer, Driver, Event, Kind, Options, Token};
use std::{
    collections::{HashMap, HashSet},
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// Nothing in these tests takes a second; this is where a bug ends instead of hanging.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) driver: Driver,
    deadline: Instant,
    /// Whether received buffers are kept until the end of the turn.
    pub(crate) hoards: bool,
    pub(crate) received: HashMap<Token, Vec<u8>>,
    pub(crate) ended: HashMap<Token, Option<io::ErrorKind>>,
    pub(crate) accepted: Vec<OwnedFd>,
    pub(crate) accept_failures: Vec<io::Error>,
    /// Rests of sends that were partial are sent by `turn`; what is done lands in `sent`.
    starts: HashMap<Token, usize>,
    pub(crate) sent: HashMap<Token, usize>,
    pub(crate) failed: HashMap<Token, io::Error>,
    pub(crate) partial_sends: usize,
    pub(crate) released: Vec<Vec<u8>>,
    pub(crate) detached: HashMap<Token, OwnedFd>,
    /// Send buffers that came back before a detach, with what is left of them.
    pub(crate) unsent: HashMap<Token, Vec<u8>>,
    leaving: HashSet<Token>,
    gone: HashSet<Token>,
    pub(crate) woken: usize,
}

impl World {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::with(kind, &Options::default())
    }

    pub(crate) fn with(kind: Kind, options: &Options) -> Self {
        let (driver, chosen) = Driver::open(kind, options).unwrap_or_else(|error| {
            panic!("{kind:?} must be there to be tested (allow io_uring for this run): {error}")
        });
        assert_eq!(chosen.kind, kind);
        Self {
            driver,
            deadline: Instant::now() + DEADLINE,
            hoards: false,
            received: HashMap::new(),
            ended: HashMap::new(),
            accepted: Vec::new(),
            accept_failures: Vec::new(),
            starts: HashMap::new(),
            sent: HashMap::new(),
            failed: HashMap::new(),
            partial_sends: 0,
            released: Vec::new(),
            detached: HashMap::new(),
            unsent: HashMap::new(),
            leaving: HashSet::new(),
            gone: HashSet::new(),
            woken: 0,
        }
    }

    /// Attaches the server's end of a new connection; the client's end is an ordinary blocking one.
    pub(crate) fn connect(&mut self) -> (Token, TcpStream) {
        let (server, client) = pair();
        (self.driver.attach(server.into()).unwrap(), client)
    }

    pub(crate) fn listen(&mut self) -> (Token, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (self.driver.listen(listener.into()).unwrap(), address)
    }

    pub(crate) fn send(&mut self, token: Token, bytes: &[u8]) {
        self.starts.insert(token, 0);
        self.driver.send(token, bytes.to_vec(), 0);
    }

    pub(crate) fn close(&mut self, token: Token) {
        self.driver.close(token);
        self.gone.insert(token);
    }

    pub(crate) fn detach(&mut self, token: Token) {
        self.leaving.insert(token);
        self.driver.detach(token);
    }

    /// Turns until `is_done`, or fails with what was waited for.
    pub(crate) fn until(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        while !is_done(self) {
            assert!(Instant::now() < self.deadline, "waited too long for: {what}");
            self.turn();
        }
    }

    pub(crate) fn until_received(&mut self, token: Token, bytes: &[u8]) {
        self.until("bytes", |world| world.text(token).len() >= bytes.len());
        assert_eq!(self.text(token), bytes);
    }

    pub(crate) fn text(&self, token: Token) -> &[u8] {
        self.received.get(&token).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn turn(&mut self) {
        self.driver.wait(Some(Duration::from_millis(200))).unwrap();
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        let mut hoard = Vec::new();
        while let Some(event) = self.driver.next() {
            self.handle(event, &mut hoard);
        }
        for buffer in hoard {
            self.driver.recycle(buffer);
        }
    }

    fn handle(&mut self, event: Event, hoard: &mut Vec<Buffer>) {
        if let Some(token) = subject(&event) {
            assert!(!self.gone.contains(&token), "an event after the end of its token: {event:?}");
        }
        match event {
            Event::Accepted { socket, .. } => self.accepted.push(socket),
            Event::AcceptFailed { error, .. } => self.accept_failures.push(error),
            Event::Received { token, buffer } => {
                assert!(!self.ended.contains_key(&token), "bytes after the end");
                assert!(!buffer.is_empty(), "an empty buffer says nothing");
                self.received.entry(token).or_default().extend(&*self.driver.bytes(&buffer));
                if self.hoards {
                    hoard.push(buffer);
                } else {
                    self.driver.recycle(buffer);
                }
            }
            Event::Ended { token, error } => {
                let earlier = self.ended.insert(token, error.map(|error| error.kind()));
                assert_eq!(earlier, None, "a connection ends once");
            }
            Event::Sent { token, buffer, result } => self.handle_sent(token, buffer, result),
            Event::Released { buffer } => self.released.push(buffer),
            Event::Detached { token, socket } => {
                assert!(!self.starts.contains_key(&token), "the buffer comes back first");
                self.gone.insert(token);
                self.detached.insert(token, socket);
            }
            Event::Woken => self.woken += 1,
        }
    }

    fn handle_sent(&mut self, token: Token, buffer: Vec<u8>, result: io::Result<usize>) {
        let start = self.starts.remove(&token).expect("only what is in flight completes");
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(error) => {
                self.failed.insert(token, error);
                return;
            }
        };
        *self.sent.entry(token).or_default() += bytes;
        let start = start + bytes;
        assert!(start <= buffer.len(), "no more than there was");
        if self.leaving.contains(&token) {
            self.unsent.insert(token, buffer[start..].to_vec());
        } else if start < buffer.len() {
            self.partial_sends += 1;
            self.starts.insert(token, start);
            self.driver.send(token, buffer, start);
        }
    }

    pub(crate) fn is_sending(&self, token: Token) -> bool {
        self.starts.contains_key(&token)
    }
}

fn subject(event: &Event) -> Option<Token> {
    match event {
        Event::Accepted { listener: token, .. }
        | Event::AcceptFailed { listener: token, .. }
        | Event::Received { token, .. }
        | Event::Ended { token, .. }
        | Event::Sent { token, .. }
        | Event::Detached { token, .. } => Some(*token),
        Event::Released { .. } | Event::Woken => None,
    }
}

/// Two ends of a connection over loopback, blocking, with deadlines.
pub(crate) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = connect(listener.local_addr().unwrap());
    let (server, _) = listener.accept().unwrap();
    (server, client)
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    client
}

/// Byte number `offset` of a stream in which any shift, loss or repetition shows.
pub(crate) fn pattern(offset: usize) -> u8 {
    (offset.wrapping_mul(2_654_435_761) >> 13) as u8
}

pub(crate) fn pattern_bytes(start: usize, length: usize) -> Vec<u8> {
    (start..start + length).map(pattern).collect()
}

/// The kernel's name of the socket behind a descriptor.
pub(crate) fn socket_name(socket: &impl AsRawFd) -> String {
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    std::fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

/// Whether this process still has a descriptor of that socket.
pub(crate) fn is_open(name: &str) -> bool {
    std::fs::read_dir("/proc/self/fd").unwrap().flatten().any(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy() == name)
    })
}
