//! The log's way out of the process: a bounded queue, and one thread that this file spawns, which writes.
//!
//! Whoever logs never waits and never fails, whatever becomes of standard error: a full disk costs the lines that it
//! does not take, and a reader that has stopped costs those that do not fit the queue. What was lost is counted and
//! said as soon as lines pass again. Both binaries use it; it decides nothing about format or level.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that wait to be written at most.
const LINES_MAX: usize = 8_192;
/// Bytes that wait to be written at most.
const BYTES_MAX: usize = 4 << 20;
/// How long the end of the process waits for the last lines.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

enum Entry {
    Line(Vec<u8>),
    /// Everything before it has been written.
    Flush(SyncSender<()>),
}

#[derive(Default)]
struct Shared {
    queued_bytes: AtomicUsize,
    lost: AtomicU64,
}

/// Takes lines; to be given to a subscriber as its writer, one clone a line. One `write` is one line.
#[derive(Clone)]
pub struct LogWriter {
    entries: SyncSender<Entry>,
    shared: Arc<Shared>,
}

/// Keeps the end of the process waiting for the last lines, a second at most. To be held by `main`.
#[must_use = "dropped at once it waits for nothing"]
pub struct LogGuard {
    entries: SyncSender<Entry>,
}

impl LogWriter {
    /// Starts the thread that writes to `output`.
    ///
    /// Errors: the thread cannot be started.
    pub fn start(output: impl Write + Send + 'static) -> io::Result<(Self, LogGuard)> {
        let (entries, queue) = sync_channel(LINES_MAX);
        let shared = Arc::<Shared>::default();
        let writer = Self { entries: entries.clone(), shared: shared.clone() };
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(output, &queue, &shared))?;
        Ok((writer, LogGuard { entries }))
    }

    /// Lines that found no room since that was last said.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let queued_bytes = &self.shared.queued_bytes;
        // Relaxed: the sum is a limit, not a promise about the queue's content.
        let before = queued_bytes.fetch_add(line.len(), Ordering::Relaxed);
        let has_room = before + line.len() <= BYTES_MAX;
        if !has_room || self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (done, when_done) = sync_channel(1);
        // A queue that is full is one that nobody empties: there is nothing to wait for.
        if self.entries.try_send(Entry::Flush(done)).is_ok() {
            let _ = when_done.recv_timeout(FLUSH_WAIT);
        }
    }
}

fn write_all(mut output: impl Write, queue: &Receiver<Entry>, shared: &Shared) {
    while let Ok(entry) = queue.recv() {
        match entry {
            Entry::Line(line) => {
                // A line that cannot be written is lost like one without room; there is nowhere to say so.
                if output.write_all(&line).is_err() {
                    shared.lost.fetch_add(1, Ordering::Relaxed);
                } else {
                    tell_lost(shared);
                }
                shared.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Entry::Flush(done) => {
                let _ = output.flush();
                // Whoever asked may have lost patience.
                let _ = done.try_send(());
            }
        }
    }
}

/// Lines pass again: says how many did not. The line itself takes the way of all others.
fn tell_lost(shared: &Shared) {
    if shared.lost.load(Ordering::Relaxed) > 0 {
        let lost = shared.lost.swap(0, Ordering::Relaxed);
        tracing::warn!(lost, "lines of the log were lost: it could not be written fast enough");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Hands on what is written, each write only after it was allowed.
    struct Gate {
        allowed: Receiver<bool>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.allowed.recv() {
                Ok(true) => {
                    self.written.send(bytes.to_vec()).unwrap();
                    Ok(bytes.len())
                }
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (LogWriter, LogGuard, Sender<bool>, Receiver<Vec<u8>>) {
        let (allow, allowed) = channel();
        let (written, output) = channel();
        let (writer, guard) = LogWriter::start(Gate { allowed, written }).unwrap();
        (writer, guard, allow, output)
    }

    #[test]
    fn lines_are_written_whole_and_in_order_and_the_guard_waits_for_the_last() {
        let (mut writer, guard, allow, output) = gated();
        for number in 0..100 {
            allow.send(true).unwrap();
            writer.write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        drop(guard);
        let written: Vec<Vec<u8>> = output.try_iter().collect();
        let expected: Vec<Vec<u8>> =
            (0..100).map(|number| format!("line {number}\n").into_bytes()).collect();
        assert_eq!(written, expected);
    }

    #[test]
    fn an_output_that_takes_nothing_costs_lines_beyond_the_bound_and_no_time() {
        let (mut writer, guard, allow, output) = gated();
        let line = vec![b'x'; 1_000];
        let begun = std::time::Instant::now();
        for _ in 0..2 * LINES_MAX {
            writer.write_all(&line).unwrap();
        }
        // One more is in the hands of the thread.
        let kept = 2 * LINES_MAX as u64 - writer.lost();
        assert!((4_000..=1 + BYTES_MAX as u64 / 1_000).contains(&kept), "{kept}");
        drop(guard);
        assert!(begun.elapsed() < FLUSH_WAIT + Duration::from_secs(9));
        // A full disk: each line is lost, the thread goes on.
        for _ in 0..kept - 1 {
            allow.send(false).unwrap();
        }
        allow.send(true).unwrap();
        assert_eq!(output.recv().unwrap(), line);
    }
}
