//! The commands of the interactive client: one line in, one command out.
//!
//! Names and arguments are those of pitaya-cli. Data is taken to the end of the line as it stands, so JSON may contain
//! blanks.

use std::time::Duration;

/// Name, arguments, and what it does; for help and completion.
pub(crate) const COMMANDS: &[(&str, &str, &str)] = &[
    ("connect", "ADDRESS", "connects to host:port (WebSocket is tried first), tcp:// or ws://"),
    ("disconnect", "", "disconnects"),
    ("request", "ROUTE [DATA]", "sends a request and prints its answer"),
    ("notify", "ROUTE [DATA]", "sends a notify"),
    ("push", "ROUTE TYPE", "before connect: the protobuf type of a route's pushes"),
    ("sethandshake", "JSON | version|platform|buildNumber VALUE", "changes the next handshake"),
    ("watch", "ROUTE [COUNT] [SECONDS]", "waits for pushes not watched yet; 1 push, 10 s"),
    ("routes", "", "prints the routes that are known"),
    ("clear", "", "clears the screen"),
    ("help", "", "prints this"),
    ("exit", "", "leaves"),
];

/// Longest wait of `watch`.
const WATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// A line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Empty, or a comment.
    Nothing,
    /// `None`: the address is to be asked for.
    Connect(Option<String>),
    Disconnect,
    Request {
        route: String,
        data: String,
    },
    Notify {
        route: String,
        data: String,
    },
    Push {
        route: String,
        kind: String,
    },
    SetHandshake(HandshakeChange),
    Watch {
        route: String,
        count: u64,
        timeout: Duration,
    },
    Routes,
    Clear,
    Help,
    Exit,
}

/// What `sethandshake` changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeChange {
    /// All of it.
    Json(String),
    Version(String),
    Platform(String),
    BuildNumber(String),
}

/// Why a line is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("command not found: {0}; try help")]
    Unknown(String),
    #[error("usage: {0} {1}")]
    Usage(&'static str, &'static str),
}

impl Command {
    pub(crate) fn parse(line: &str) -> Result<Self, CommandError> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(Self::Nothing);
        }
        let (name, rest) = split_word(line);
        let unknown = || CommandError::Unknown(name.to_owned());
        let &(name, arguments, _) =
            COMMANDS.iter().find(|(known, ..)| *known == name).ok_or_else(unknown)?;
        Self::parse_arguments(name, rest).ok_or(CommandError::Usage(name, arguments))
    }

    fn parse_arguments(name: &str, rest: &str) -> Option<Self> {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let routed = || {
            let (route, data) = split_word(rest);
            (!route.is_empty()).then(|| (route.to_owned(), data.to_owned()))
        };
        let alone = |command: Self| words.is_empty().then_some(command);
        match name {
            "connect" => match words[..] {
                [] => Some(Self::Connect(None)),
                [address] => Some(Self::Connect(Some(address.to_owned()))),
                _ => None,
            },
            "request" => routed().map(|(route, data)| Self::Request { route, data }),
            "notify" => routed().map(|(route, data)| Self::Notify { route, data }),
            "push" => match words[..] {
                [route, kind] => {
                    Some(Self::Push { route: route.to_owned(), kind: kind.to_owned() })
                }
                _ => None,
            },
            "sethandshake" => HandshakeChange::parse(rest).map(Self::SetHandshake),
            "watch" => {
                let mut words = words.into_iter();
                let route = words.next()?.to_owned();
                let count = words.next().map_or(Some(1), |count| count.parse().ok())?;
                let timeout = match words.next() {
                    Some(seconds) => Duration::try_from_secs_f64(seconds.parse().ok()?).ok()?,
                    None => WATCH_TIMEOUT,
                };
                words.next().is_none().then_some(Self::Watch { route, count, timeout })
            }
            "disconnect" => alone(Self::Disconnect),
            "routes" => alone(Self::Routes),
            "clear" => alone(Self::Clear),
            "help" => alone(Self::Help),
            "exit" => alone(Self::Exit),
            _ => None,
        }
    }
}

impl HandshakeChange {
    fn parse(rest: &str) -> Option<Self> {
        if rest.starts_with('{') {
            return Some(Self::Json(rest.to_owned()));
        }
        let (name, value) = split_word(rest);
        if value.is_empty() {
            return None;
        }
        match name {
            "version" => Some(Self::Version(value.to_owned())),
            "platform" => Some(Self::Platform(value.to_owned())),
            "buildNumber" => Some(Self::BuildNumber(value.to_owned())),
            _ => None,
        }
    }
}

/// The first word, and what follows it.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    match text.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim_start()),
        None => (text, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_runs_to_the_end_of_the_line() {
        let command = Command::parse("  request  room.room.join  {\"a\": [1, 2]} ").unwrap();
        let data = "{\"a\": [1, 2]}".to_owned();
        assert_eq!(command, Command::Request { route: "room.room.join".into(), data });
        let command = Command::parse("notify a").unwrap();
        assert_eq!(command, Command::Notify { route: "a".into(), data: String::new() });
    }

    #[test]
    fn a_handshake_is_changed_as_a_whole_or_by_field() {
        let change = |text: &str| match Command::parse(text) {
            Ok(Command::SetHandshake(change)) => Some(change),
            _ => None,
        };
        assert_eq!(
            change("sethandshake {\"sys\": {}}"),
            Some(HandshakeChange::Json("{\"sys\": {}}".into()))
        );
        assert_eq!(
            change("sethandshake buildNumber 30"),
            Some(HandshakeChange::BuildNumber("30".into()))
        );
        assert_eq!(change("sethandshake nonsense 30"), None);
        assert_eq!(change("sethandshake version"), None);
    }

    #[test]
    fn a_watch_has_a_count_and_a_time() {
        let watch = |count, seconds| Command::Watch {
            route: "onMessage".into(),
            count,
            timeout: Duration::from_secs_f64(seconds),
        };
        assert_eq!(Command::parse("watch onMessage"), Ok(watch(1, 10.0)));
        assert_eq!(Command::parse("watch onMessage 3 0.5"), Ok(watch(3, 0.5)));
        assert!(Command::parse("watch onMessage 3 -1").is_err());
        assert!(Command::parse("watch").is_err());
    }

    #[test]
    fn what_is_no_command_says_what_would_be() {
        let error = |line: &str| Command::parse(line).unwrap_err().to_string();
        assert_eq!(error("request"), "usage: request ROUTE [DATA]");
        assert_eq!(error("connect a b"), "usage: connect ADDRESS");
        assert_eq!(error("jump"), "command not found: jump; try help");
        assert_eq!(Command::parse(" # note"), Ok(Command::Nothing));
        for (name, arguments, _) in COMMANDS {
            let line = format!("{name} {}", if arguments.contains("TYPE") { "a b" } else { "" });
            let is_known = !matches!(Command::parse(&line), Err(CommandError::Unknown(_)));
            assert!(is_known, "{name}");
        }
    }
}
