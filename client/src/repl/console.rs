//! Where lines come from and texts go: a terminal with history and completion, or plain files and pipes.

use std::collections::BTreeSet;
use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, ExternalPrinter, Helper};

use super::command::COMMANDS;

/// pitaya-cli's variable for its history file, which this client shares.
const HISTORY_VARIABLE: &str = "PITAYACLI_HISTORY_PATH";
const HISTORY_FILE: &str = ".pitayacli_history";
const PROMPT: &str = ">>> ";

/// Routes seen so far; the completion reads it while the connection's task adds to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes(Arc<Mutex<BTreeSet<String>>>);

impl Routes {
    pub(crate) fn insert(&self, route: &str) {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !routes.contains(route) {
            routes.insert(route.to_owned());
        }
    }

    pub(crate) fn starting_with(&self, prefix: &str) -> Vec<String> {
        let routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        routes.iter().filter(|route| route.starts_with(prefix)).cloned().collect()
    }
}

/// Prints whole lines, above the prompt while one is being edited.
#[derive(Clone)]
pub(crate) struct Printer(Arc<Mutex<dyn FnMut(String) + Send>>);

impl Printer {
    fn new(print: impl FnMut(String) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(print)))
    }

    pub(crate) fn print(&self, text: &str) {
        (self.0.lock().unwrap_or_else(PoisonError::into_inner))(format!("{text}\n"));
    }
}

/// Completes commands, and routes where a command takes one.
pub(crate) struct Completion(Routes);

impl Completer for Completion {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let before = line.get(..position).unwrap_or(line);
        Ok(complete(before, &self.0))
    }
}

impl Hinter for Completion {
    type Hint = String;
}
impl Highlighter for Completion {}
impl Validator for Completion {}
impl Helper for Completion {}

/// Where the word to complete begins, and what it may become.
fn complete(before: &str, routes: &Routes) -> (usize, Vec<String>) {
    let start = before.rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
    let prefix = before.get(start..).unwrap_or_default();
    let earlier: Vec<&str> = before.get(..start).unwrap_or_default().split_whitespace().collect();
    let candidates = match earlier[..] {
        [] => {
            let names = COMMANDS.iter().map(|(name, ..)| *name);
            names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
        }
        ["request" | "notify" | "push" | "watch"] => routes.starting_with(prefix),
        ["sethandshake"] => {
            let fields = ["version", "platform", "buildNumber"];
            fields
                .into_iter()
                .filter(|field| field.starts_with(prefix))
                .map(str::to_owned)
                .collect()
        }
        _ => Vec::new(),
    };
    (start, candidates)
}

/// Source of lines.
pub(crate) enum Console {
    /// A person at a terminal.
    Terminal { editor: Box<Editor<Completion, FileHistory>>, history: Option<PathBuf> },
    /// A script.
    Lines(Box<dyn BufRead>),
}

impl Console {
    /// Lines of a file, or of standard input: with an editor if that is a terminal.
    pub(crate) fn open(file: Option<&Path>, routes: &Routes) -> io::Result<(Self, Printer)> {
        if let Some(path) = file {
            return Ok((Self::Lines(Box::new(BufReader::new(File::open(path)?))), to_output()));
        }
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok((Self::Lines(Box::new(io::stdin().lock())), to_output()));
        }
        let mut editor = Editor::new().map_err(io::Error::other)?;
        editor.set_helper(Some(Completion(routes.clone())));
        let history = history_path();
        if let Some(history) = &history {
            // There is none before the first run.
            let _ = editor.load_history(history);
        }
        let printer = match editor.create_external_printer() {
            Ok(mut printer) => Printer::new(move |text| {
                // Nothing can be told to a terminal that is gone.
                let _ = printer.print(text);
            }),
            Err(_) => to_output(),
        };
        Ok((Self::Terminal { editor: Box::new(editor), history }, printer))
    }

    /// Whether a person reads along.
    pub(crate) fn is_interactive(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line; `None` at the end, which a person reaches with Ctrl-D or Ctrl-C.
    pub(crate) fn read_line(&mut self) -> io::Result<Option<String>> {
        self.read_prompted(PROMPT)
    }

    /// The next line, with a prompt of its own.
    pub(crate) fn read_prompted(&mut self, prompt: &str) -> io::Result<Option<String>> {
        match self {
            Self::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => {
                    // A history that cannot grow is no reason to stop.
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(io::Error::other(error)),
            },
            Self::Lines(lines) => {
                let mut line = String::new();
                Ok((lines.read_line(&mut line)? > 0).then_some(line))
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        if let Self::Terminal { editor, .. } = self {
            let _ = editor.clear_screen();
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Self::Terminal { editor, history: Some(history) } = self {
            let _ = editor.save_history(history);
        }
    }
}

fn to_output() -> Printer {
    Printer::new(|text| {
        // A reader that has gone, such as `head`, has seen enough.
        let mut output = io::stdout().lock();
        let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    })
}

fn history_path() -> Option<PathBuf> {
    if let Some(path) = env::var_os(HISTORY_VARIABLE).filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    env::home_dir().map(|home| home.join(HISTORY_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_routes_and_fields_are_completed_where_they_belong() {
        let routes = Routes::default();
        for route in ["room.room.join", "room.room.leave", "onMessage"] {
            routes.insert(route);
        }
        assert_eq!(complete("re", &routes), (0, vec!["request".to_owned()]));
        assert_eq!(complete("dis", &routes), (0, vec!["disconnect".to_owned()]));
        let (start, found) = complete("request room.room.", &routes);
        assert_eq!((start, found.len()), (8, 2));
        assert_eq!(complete("watch on", &routes).1, ["onMessage"]);
        assert_eq!(complete("sethandshake b", &routes).1, ["buildNumber"]);
        assert!(complete("request room.room.join ro", &routes).1.is_empty());
        assert!(complete("connect ro", &routes).1.is_empty());
        assert_eq!(complete("", &routes).1.len(), COMMANDS.len());
    }
}
