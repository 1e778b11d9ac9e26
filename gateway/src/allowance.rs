//! The allowance: how much memory this process may use and uses, as the system tells.
//!
//! Read by the control thread and at start, never by a reactor. Where the system tells nothing the answers are generous:
//! a guess must not close players.

/// Assumed where nothing is told, bytes.
const UNKNOWN_BYTES: usize = 4 << 30;

/// What the process may use, bytes: the limit of its container, or the memory of the machine.
pub fn process_bytes() -> usize {
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let container = limits.iter().find_map(|path| number(&std::fs::read_to_string(path).ok()?));
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| kilobytes(&text, "MemTotal:"));
    match (container, machine) {
        (Some(container), Some(machine)) => container.min(machine),
        (container, machine) => container.or(machine).unwrap_or(UNKNOWN_BYTES),
    }
}

/// What the process uses, bytes resident; `None` where the system does not tell.
pub fn resident_bytes() -> Option<usize> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// A number; `max`, which means no limit, is none.
fn number(text: &str) -> Option<usize> {
    text.trim().parse().ok()
}

/// The bytes that a line such as `MemTotal:  16384 kB` names.
fn kilobytes(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(number(line.trim().strip_suffix("kB")?)? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_s_texts_are_read() {
        assert_eq!(number("268435456\n"), Some(256 << 20));
        assert_eq!(number("max\n"), None);
        assert_eq!(
            kilobytes("MemTotal:       16384 kB\nMemFree: 1 kB\n", "MemTotal:"),
            Some(16 << 20)
        );
        assert_eq!(kilobytes("", "MemTotal:"), None);
        assert!(resident_bytes().is_none_or(|bytes| bytes > 1 << 16));
        assert!(process_bytes() > 1 << 20);
    }
}
