//! What a load run does: command line in, checked options out.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use shared::go::go_duration;

use crate::address::{Address, Transport};

/// JSON around the filling of a payload: `{"data":"` and `"}`.
const PAYLOAD_FRAME: [&str; 2] = [r#"{"data":""#, r#""}"#];

/// Arguments of `client load`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Without --rate the loop is closed: each connection keeps --in-flight requests \
    unanswered. With --rate it is open: requests are due at fixed times, and latency counts from when a \
    request was due, so a stalled server cannot hide the requests that it held up."
)]
pub struct LoadOptions {
    /// host:port, tcp://host:port or ws://host:port/path; without TLS
    #[arg(value_parser = parse_address)]
    pub address: Address,
    /// Transport for an address without scheme
    #[arg(long, value_enum, default_value_t = TransportName::Tcp)]
    pub transport: TransportName,
    /// Connections to open
    #[arg(long, short = 'c', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Connections opened a second, all threads together; 0 = as fast as possible
    #[arg(long, default_value_t = 2000)]
    pub connect_rate: u32,
    /// Unanswered requests a connection
    #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// Requests a second, all connections together (open loop); without it the loop is closed
    #[arg(long, short = 'r', value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Measured time, such as 10s or 1m30s
    #[arg(long, short = 'd', default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Time under load before measuring starts
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Longest wait for an answer
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Route of requests or notifies
    #[arg(long, default_value = "room.test.echo")]
    pub route: String,
    /// Send notifies instead of requests; they have no answers, so --rate is needed
    #[arg(long, requires = "rate")]
    pub notify: bool,
    /// Payload size; it is JSON with letters of little regularity
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=16_000_000))]
    pub payload_bytes: u32,
    /// Payload, sent as it is
    #[arg(long, conflicts_with = "payload_bytes")]
    pub payload: Option<String>,
    /// Route of one request that each connection makes before the load starts
    #[arg(long, value_name = "ROUTE")]
    pub join: Option<String>,
    /// Payload of that request; {n} in it is replaced by the connection's number
    #[arg(long, value_name = "PAYLOAD", default_value = "{}", requires = "join")]
    pub join_payload: String,
    /// Connections that send; the others only receive [default: all]
    #[arg(long, value_name = "CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub senders: Option<u32>,
    /// Only connect, shake hands and send heartbeats
    #[arg(long, conflicts_with_all = ["rate", "notify"])]
    pub idle: bool,
    /// A process of this machine whose CPU time and memory are measured; may be repeated
    #[arg(long = "pid", value_name = "NAME=PID")]
    pub processes: Vec<ProcessName>,
    /// Threads that share the connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Failed requests, connects and lost connections that still count as success
    #[arg(long, default_value_t = 0)]
    pub max_errors: u64,
    /// Write the report as one JSON object to this file; - writes it to standard output instead of the text
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `--transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TransportName {
    /// Plain TCP
    Tcp,
    /// WebSocket
    Ws,
}

/// `--pid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessName {
    /// Name in the report.
    pub name: String,
    /// Process id.
    pub pid: u32,
}

/// A `--pid` that is not `NAME=PID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessNameError;

impl fmt::Display for ProcessNameError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("expected NAME=PID, such as gateway=1234")
    }
}

impl std::error::Error for ProcessNameError {}

impl FromStr for ProcessName {
    type Err = ProcessNameError;

    fn from_str(text: &str) -> Result<Self, ProcessNameError> {
        let (name, pid) = text.split_once('=').ok_or(ProcessNameError)?;
        let pid = pid.parse().ok().filter(|pid| *pid > 0).ok_or(ProcessNameError)?;
        if name.is_empty() {
            Err(ProcessNameError)
        } else {
            Ok(Self { name: name.to_owned(), pid })
        }
    }
}

/// An address without TLS.
fn parse_address(text: &str) -> Result<Address, String> {
    match text.parse::<Address>() {
        Ok(address) if address.is_secured => {
            Err("load is measured without TLS; take tcp:// or ws://".to_owned())
        }
        other => other.map_err(|error| error.to_string()),
    }
}

/// A Go duration, or a plain number of seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) if seconds < 1_000_000 => Ok(Duration::from_secs(seconds)),
        _ => go_duration::parse(text).map_err(|error| error.to_string()),
    }
}

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each answer makes room for the next request.
    Closed,
    /// Requests are due at fixed times.
    Open {
        /// Requests a second.
        rate: u32,
    },
    /// Heartbeats only.
    Idle,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::Idle => "idle",
        })
    }
}

impl LoadOptions {
    /// How packets travel: the address's scheme, or `--transport`.
    pub fn chosen_transport(&self) -> Transport {
        self.address.transport.unwrap_or(match self.transport {
            TransportName::Tcp => Transport::Tcp,
            TransportName::Ws => Transport::WebSocket,
        })
    }

    /// What the run does.
    pub fn mode(&self) -> Mode {
        match self.rate {
            _ if self.idle => Mode::Idle,
            Some(rate) => Mode::Open { rate },
            None => Mode::Closed,
        }
    }

    /// The payload of each request: the given text, or JSON of exactly `payload_bytes`. The filling is the same in
    /// every run and compresses about as badly as game data does, not to nothing.
    pub fn payload_content(&self) -> Vec<u8> {
        if let Some(payload) = &self.payload {
            return payload.clone().into_bytes();
        }
        let payload_bytes = self.payload_bytes as usize;
        let [before, after] = PAYLOAD_FRAME;
        let Some(filling_bytes) = payload_bytes.checked_sub(before.len() + after.len()) else {
            // A JSON number still fits.
            return vec![b'1'; payload_bytes];
        };
        let mut random = fastrand::Rng::with_seed(1);
        let filling: String =
            std::iter::repeat_with(|| random.alphanumeric()).take(filling_bytes).collect();
        [before, &filling, after].concat().into_bytes()
    }

    /// What one of the threads does: its share of connections, rates and the number of its first connection.
    pub(crate) fn share(&self, thread: u32) -> Share {
        let part = |whole: u32| whole / self.threads + u32::from(thread < whole % self.threads);
        let first = (0..thread).map(|earlier| {
            self.connections / self.threads + u32::from(earlier < self.connections % self.threads)
        });
        Share {
            first_connection: first.sum(),
            connections: part(self.connections),
            connect_rate: if self.connect_rate == 0 { 0 } else { part(self.connect_rate).max(1) },
            rate: self.rate.map(part),
        }
    }
}

/// One thread's part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) first_connection: u32,
    pub(crate) connections: u32,
    /// A second; 0 = unlimited.
    pub(crate) connect_rate: u32,
    /// A second.
    pub(crate) rate: Option<u32>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: LoadOptions,
    }

    fn options(arguments: &str) -> Result<LoadOptions, clap::Error> {
        let arguments = std::iter::once("load").chain(arguments.split_whitespace());
        Arguments::try_parse_from(arguments).map(|arguments| arguments.options)
    }

    #[test]
    fn a_payload_has_exactly_the_asked_size_and_is_json() {
        for size in [0, 1, 10, 11, 12, 64, 5000] {
            let payload =
                options(&format!("a:1 --payload-bytes {size}")).unwrap().payload_content();
            assert_eq!(payload.len(), size);
            if size > 0 {
                serde_json::from_slice::<serde_json::Value>(&payload).unwrap();
            }
        }
        assert_eq!(options("a:1 --payload {}").unwrap().payload_content(), b"{}");
    }

    #[test]
    fn threads_share_everything_without_loss() {
        let options = options("a:1 -c 10 --rate 11 --threads 4 --connect-rate 2").unwrap();
        let shares: Vec<Share> = (0..4).map(|thread| options.share(thread)).collect();
        assert_eq!(shares.iter().map(|share| share.connections).sum::<u32>(), 10);
        assert_eq!(shares.iter().filter_map(|share| share.rate).sum::<u32>(), 11);
        let firsts: Vec<u32> = shares.iter().map(|share| share.first_connection).collect();
        assert_eq!(firsts, [0, 3, 6, 8]);
        assert!(shares.iter().all(|share| share.connect_rate == 1));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(options("a:1 --notify").is_err());
        assert!(options("a:1 --notify --rate 5").is_ok());
        assert!(options("a:1 --idle --rate 5").is_err());
        assert!(options("a:1 --pid gateway").is_err());
        assert!(options("a:1 --pid gateway=0").is_err());
        assert!(options("a:1 --in-flight 0").is_err());
        assert!(options("a").is_err());
    }

    #[test]
    fn the_scheme_wins_over_the_transport_option() {
        let transport = |text| options(text).unwrap().chosen_transport();
        assert_eq!(transport("a:1"), Transport::Tcp);
        assert_eq!(transport("a:1 --transport ws"), Transport::WebSocket);
        assert_eq!(transport("tcp://a:1 --transport ws"), Transport::Tcp);
        assert_eq!(options("a:1 -d 5").unwrap().duration, Duration::from_secs(5));
        assert_eq!(options("a:1 -d 1m0.5s").unwrap().duration, Duration::from_millis(60_500));
    }
}
