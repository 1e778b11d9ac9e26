//! Rule: the layers stay apart. The core is pure, the worker does not know the gateway, the client knows neither, and
//! the hot path of the gateway takes no lock and reads no clock.

use crate::Finding;
use crate::source::{Source, has_word};
use crate::tree::Text;

/// Words that the pure core must not use. Addresses as values are fine (a proxy header carries them); sockets are not.
const IMPURE: &[&str] = &[
    "tokio",
    "mio",
    "async",
    "await",
    "Instant",
    "SystemTime",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "ToSocketAddrs",
];

/// Words that cost every message where they stand.
const COSTLY: &[&str] = &[
    "Mutex",
    "RwLock",
    "Instant::now",
    "SystemTime::now",
    "println!",
    "eprintln!",
    "async",
    "await",
    "block_on",
    "blocking_send",
    "tokio::time",
    "tokio::spawn",
];

/// A crate's folder, the crates it must not use in code, and the packages it may depend on among ours.
struct Layer {
    folder: &'static str,
    foreign: &'static [&'static str],
    packages: &'static [&'static str],
}

const LAYERS: &[Layer] = &[
    Layer { folder: "proto", foreign: &["shared", "gateway", "worker", "client"], packages: &[] },
    Layer {
        folder: "shared",
        foreign: &["gateway", "worker", "client"],
        packages: &["dragonfruit-proto"],
    },
    Layer {
        folder: "worker",
        foreign: &["gateway", "client"],
        packages: &["dragonfruit-proto", "dragonfruit-shared", "dragonfruit-worker-macros"],
    },
    Layer {
        folder: "client",
        foreign: &["gateway", "worker"],
        packages: &["dragonfruit-proto", "dragonfruit-shared"],
    },
    Layer {
        folder: "gateway",
        foreign: &["client"],
        packages: &["dragonfruit-proto", "dragonfruit-shared", "dragonfruit-worker"],
    },
];

/// Whether every message passes through this file.
pub(crate) fn is_hot(source: &Source, hot_names: &[&str]) -> bool {
    let Some(inner) = source.path.strip_prefix("gateway/src/") else { return false };
    inner.split('/').any(|part| hot_names.contains(&part.strip_suffix(".rs").unwrap_or(part)))
}

fn is_pure_core(path: &str) -> bool {
    path.starts_with("proto/src/")
        || (path.starts_with("shared/src/") && !path.starts_with("shared/src/cluster"))
}

pub(crate) fn check_source(source: &Source, hot_names: &[&str], findings: &mut Vec<Finding>) {
    let is_pure = is_pure_core(&source.path);
    let is_hot = is_hot(source, hot_names);
    let layer =
        LAYERS.iter().find(|layer| source.path.starts_with(&format!("{}/src/", layer.folder)));
    for (line, text) in source.shipped_code() {
        let mut report = |message| {
            findings.push(Finding {
                rule: "layers",
                path: source.path.clone(),
                line: line + 1,
                message,
            });
        };
        for word in IMPURE.iter().filter(|word| is_pure && has_word(text, word)) {
            report(format!(
                "`{word}` in the pure core: bytes and time come in, bytes and events go out"
            ));
        }
        for word in COSTLY.iter().filter(|word| is_hot && has_word(text, word)) {
            report(format!(
                "`{word}` on the hot path: the tick brings the time, the mailbox crosses threads"
            ));
        }
        let foreign = layer.map_or(&[][..], |layer| layer.foreign);
        for name in
            foreign.iter().filter(|name| uses_crate(text, name) && !has_module(source, name))
        {
            report(format!("uses the crate `{name}`, which is above this one"));
        }
    }
}

/// Whether the file declares a module of this name, which then is what its paths mean.
fn has_module(source: &Source, name: &str) -> bool {
    source.code.iter().any(|text| has_word(text, &format!("mod {name}")))
}

/// Whether the line names `name` as a crate: at the start of a path, not as a module of another path.
fn uses_crate(text: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let extern_path = format!("dragonfruit_{name}");
    text.match_indices(&path).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        // Inside braces it could be `use crate::{worker::…}`; a crate's own use stands at the start of a `use`.
        let is_path_start = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
        is_path_start && !text[..start].contains("crate::{") && !text[..start].contains("self::{")
    }) && text.trim_start().trim_start_matches("pub ").starts_with("use ")
        || has_word(text, &extern_path)
}

/// Looks at `[dependencies]` only: a test may use a crate from above.
pub(crate) fn check_manifest(manifest: &Text, findings: &mut Vec<Finding>) {
    let folder = manifest.path.trim_end_matches("/Cargo.toml");
    let Some(layer) = LAYERS.iter().find(|layer| layer.folder == folder) else { return };
    let mut section = "";
    for (line, text) in manifest.content.lines().enumerate() {
        let text = text.trim();
        if text.starts_with('[') {
            section = text;
        }
        let name: &str = text.split(['.', '=', ' ']).next().unwrap_or_default();
        let is_dependency = section.ends_with("dependencies]") && !section.contains("dev-");
        if is_dependency && name.starts_with("dragonfruit-") && !layer.packages.contains(&name) {
            findings.push(Finding {
                rule: "layers",
                path: manifest.path.clone(),
                line: line + 1,
                message: format!("{folder} must not depend on {name}"),
            });
        }
        let is_own = text.contains("workspace = true") || text.starts_with('#') || text.is_empty();
        let is_pinned_here = is_dependency || section == "[dev-dependencies]";
        if is_pinned_here && !text.starts_with('[') && !is_own && !text.contains("workspace") {
            findings.push(Finding {
                rule: "layers",
                path: manifest.path.clone(),
                line: line + 1,
                message: format!("{name}: versions stand in the workspace's manifest only"),
            });
        }
    }
}

#[cfg(test)]
fn found(path: &str, text: &str) -> Vec<usize> {
    let mut findings = Vec::new();
    check_source(&Source::new(path, text), &["agent", "connection"], &mut findings);
    findings.iter().map(|finding| finding.line).collect()
}

#[test]
fn the_core_is_pure_outside_its_tests_and_its_cluster_clients() {
    let text = "use std::time::Instant;\nuse std::net::IpAddr;\nasync fn a() {}\n";
    assert_eq!(found("shared/src/packet.rs", text), [1, 3]);
    assert!(found("shared/src/cluster/etcd.rs", text).is_empty());
    assert!(found("shared/tests/a.rs", text).is_empty());
    assert!(found("worker/src/app.rs", text).is_empty());
}

#[test]
fn a_crate_from_above_is_found_and_a_module_of_the_same_name_is_not() {
    assert_eq!(found("worker/src/app.rs", "use gateway::driver;"), [1]);
    assert!(found("worker/src/app.rs", "use crate::gateway::driver;").is_empty());
    assert!(found("shared/src/nats/mod.rs", "pub mod client;\npub use client::Client;").is_empty());
    assert_eq!(found("client/src/lib.rs", "use worker::App;"), [1]);
    assert!(found("gateway/src/main.rs", "use worker::App;").is_empty());
}

#[test]
fn locks_and_clocks_are_found_on_the_hot_path_only() {
    let text = "use std::sync::Mutex;\nlet a = Instant::now();\n";
    assert_eq!(found("gateway/src/connection/mod.rs", text), [1, 2]);
    assert_eq!(found("gateway/src/agent.rs", text), [1, 2]);
    assert!(found("gateway/src/control.rs", text).is_empty());
}

#[test]
fn a_manifest_that_depends_upwards_is_found() {
    let mut findings = Vec::new();
    let content = "[dependencies]\ndragonfruit-gateway.workspace = true\nserde = \"1\"\n\
                   [dev-dependencies]\ndragonfruit-client.workspace = true\n";
    check_manifest(
        &Text { path: "worker/Cargo.toml".to_owned(), content: content.to_owned() },
        &mut findings,
    );
    let lines: Vec<usize> = findings.iter().map(|finding| finding.line).collect();
    assert_eq!(lines, [2, 3]);
}
