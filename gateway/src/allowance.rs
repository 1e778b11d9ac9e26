//! The allowance: how much memory this process may use and uses, as the configuration or the system tells.
//!
//! Read by the control thread and at start, never by a reactor. Where the system tells nothing the answers are generous:
//! a guess must not close players.

use std::path::Path;
use std::sync::OnceLock;

use shared::config::Config;

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// Assumed where nothing is told, bytes.
const UNKNOWN_BYTES: usize = 4 << 30;

/// What the process may use, bytes: what is configured, or else the limit of its container or service, or the memory of
/// the machine.
pub fn process_bytes(config: &Config) -> usize {
    match config.size("pitaya.gateway.memory.processbytes") {
        0 => system_bytes(),
        bytes => bytes,
    }
}

fn system_bytes() -> usize {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let container = group_bytes(Path::new(GROUPS), &own);
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| kilobytes(&text, "MemTotal:"));
    match (container, machine) {
        (Some(container), Some(machine)) => container.min(machine),
        (container, machine) => container.or(machine).unwrap_or(UNKNOWN_BYTES),
    }
}

/// The smallest limit of the groups that hold the process, which `own` names: a line `0::/path` for the second version of
/// control groups, `7:memory:/path` for the first. A container sees its own group as the root; systemd's services see
/// the whole tree, and a limit may lie on any group on the way.
fn group_bytes(root: &Path, own: &str) -> Option<usize> {
    let limits = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (root, name) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            "memory" => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        let limit = |group| number(&std::fs::read_to_string(root.join(group).join(name)).ok()?);
        groups.filter_map(limit).min()
    });
    limits.min()
}

static GIVE_BACK: OnceLock<fn()> = OnceLock::new();

/// Says how the allocator of this process gives back what it keeps for later; the first time counts. Allocators keep
/// freed memory, of each thread its own, and some of it for as long as nothing else is allocated: by the resident
/// memory alone a process that is idle again would look short of memory for ever.
pub fn set_give_back(give_back: fn()) {
    // Whoever came first has said the same: there is one allocator in a process.
    let _ = GIVE_BACK.set(give_back);
}

/// Has the allocator give back what it keeps for the calling thread, and for all. Costs milliseconds: for scarcity.
pub fn give_back() {
    if let Some(give_back) = GIVE_BACK.get() {
        give_back();
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
        assert!(system_bytes() > 1 << 20);
    }

    #[test]
    fn the_smallest_limit_on_the_way_to_the_own_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let bytes = |own: &str| group_bytes(root.path(), own);
        let service = "0::/system.slice/gateway.service\n";
        assert_eq!(bytes(service), None);
        write("system.slice/gateway.service/memory.max", "max\n");
        assert_eq!(bytes(service), None);
        write("system.slice/memory.max", "1000000\n");
        assert_eq!(bytes(service), Some(1_000_000));
        write("system.slice/gateway.service/memory.max", "500000\n");
        assert_eq!(bytes(service), Some(500_000));
        write("memory.max", "400000\n");
        assert_eq!(bytes("0::/\n"), Some(400_000), "the root of a container");
        write("memory/docker/one/memory.limit_in_bytes", "300000\n");
        assert_eq!(bytes("9:cpu,cpuacct:/a\n4:memory:/docker/one\n0::/x\n"), Some(300_000));
        assert_eq!(bytes(""), None);
    }
}
