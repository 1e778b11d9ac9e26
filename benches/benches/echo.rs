//! What a driver costs by itself: small packets echoed over loopback, by the ring and by epoll.
//!
//! A round writes one packet to each connection and then reads one answer from each, with blocking
//! sockets, so the client's cost is the same for both. What differs is the driver. The figures include
//! the client and the kernel's TCP; compare the two, not with anything else.

use anyhow::{Context, Result};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway::driver::{Driver, DriverStats, Event, Kind, Options, Waker};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

/// A header and a small body, as most of a game's messages are.
const PACKET: [u8; 68] = [0x5a; 68];
const CONNECTIONS: [usize; 3] = [1, 100, 1000];
/// Far beyond any round; a bug ends the benchmark instead of hanging it.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// A thread with one driver that sends back what it receives.
struct EchoServer {
    address: SocketAddr,
    waker: Waker,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<DriverStats>>,
}

impl EchoServer {
    fn start(kind: Kind) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stops = Arc::new(AtomicBool::new(false));
        let (ready, opened) = mpsc::channel();
        let stops_too = Arc::clone(&stops);
        let thread = std::thread::spawn(move || {
            let (mut driver, _) = Driver::open(kind, &Options::default()).expect("a driver");
            driver.listen(listener.into()).expect("a listener");
            ready.send(driver.waker()).expect("somebody waits for it");
            echo(&mut driver, &stops_too);
            driver.stats()
        });
        let waker = opened.recv().context("no driver of this kind here")?;
        Ok(Self { address, waker, stops, thread: Some(thread) })
    }

    fn connect(&self, connections: usize) -> Result<Vec<TcpStream>> {
        (0..connections)
            .map(|_| {
                let client = TcpStream::connect(self.address)?;
                client.set_nodelay(true)?;
                client.set_read_timeout(Some(WAIT_MAX))?;
                Ok(client)
            })
            .collect()
    }

    fn stop(&mut self) -> Option<DriverStats> {
        self.stops.store(true, Ordering::Release);
        self.waker.wake();
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn echo(driver: &mut Driver, stops: &AtomicBool) {
    // Send buffers go round: nothing is allocated in the steady state.
    let mut spare: Vec<Vec<u8>> = Vec::new();
    while !stops.load(Ordering::Acquire) {
        driver.wait(None).expect("a wait");
        while let Some(event) = driver.next() {
            match event {
                Event::Accepted { socket, .. } => {
                    driver.attach(socket).expect("an accepted socket can be attached");
                }
                Event::Received { token, buffer } => {
                    let mut answer = spare.pop().unwrap_or_default();
                    answer.clear();
                    answer.extend_from_slice(driver.bytes(&buffer));
                    driver.recycle(buffer);
                    driver.send(token, answer, 0);
                }
                Event::Sent { buffer, .. } | Event::Released { buffer } => spare.push(buffer),
                Event::Ended { token, .. } => driver.close(token),
                Event::AcceptFailed { .. } | Event::Detached { .. } | Event::Woken => {}
            }
        }
    }
}

fn round(clients: &mut [TcpStream]) -> std::io::Result<()> {
    for client in &mut *clients {
        client.write_all(&PACKET)?;
    }
    let mut answer = [0; PACKET.len()];
    for client in clients {
        client.read_exact(&mut answer)?;
    }
    Ok(())
}

fn bench_echo(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("echo");
    for connections in CONNECTIONS {
        group.throughput(Throughput::Elements(connections as u64));
        for (name, kind) in [("uring", Kind::Uring), ("epoll", Kind::Epoll)] {
            let mut server = match EchoServer::start(kind) {
                Ok(server) => server,
                Err(error) => {
                    println!("echo/{name} is left out: {error:#}");
                    continue;
                }
            };
            let mut clients = server.connect(connections).expect("loopback connections");
            group.bench_function(BenchmarkId::new(name, connections), |bencher| {
                bencher.iter(|| round(&mut clients).expect("an echo of each"));
            });
            drop(clients);
            if let Some(stats) = server.stop() {
                println!("{name} {connections}: {stats:?}");
            }
        }
    }
    group.finish();
}

criterion_group!(benches, bench_echo);
criterion_main!(benches);
