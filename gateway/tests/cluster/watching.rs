//! What an operator sees of a fault: the log of the process, and the counters of a gateway.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use gateway::gateway::Gateway;

use crate::world::{http_get, until};

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Collector;

impl io::Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to collect what all gateways of this process log from here on.
pub(crate) fn collect_log() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        tracing_subscriber::fmt()
            .with_writer(|| Collector)
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .init();
    });
}

/// Waits for a line with all of these words. Tests run at the same time, so one of them must be this test's own, such
/// as an address.
pub(crate) fn until_logged(words: &[&str]) {
    until(&format!("a line with {words:?}"), || {
        let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&lines);
        text.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
    });
}

/// A counter of the gateway, added up over its labels.
pub(crate) fn counter(gateway: &Gateway, name: &str) -> u64 {
    let (_, page) = http_get(gateway.addresses().admin[0], "/metrics").unwrap();
    let lines = page
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}
