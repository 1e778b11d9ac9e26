//! Rule: nothing that ships panics for convenience, is unfinished, queues without a bound, or blocks a thread.

use crate::Finding;
use crate::layers::is_hot;
use crate::source::{Source, has_word};

/// Words that must not stand in code that ships, each with what to do instead.
const BANNED: &[(&str, &str)] = &[
    (".unwrap()", "return an error, or `expect` with the invariant that makes it impossible"),
    ("todo!", "unfinished code does not ship"),
    ("unimplemented!", "unfinished code does not ship"),
    ("dbg!", "left over from a search for a fault"),
    ("unbounded", "every queue has a named limit, and being full is a tested event"),
    ("unbounded_channel", "every queue has a named limit, and being full is a tested event"),
    ("UnboundedSender", "every queue has a named limit, and being full is a tested event"),
    ("thread::sleep", "blocks a thread that others wait for; use the tick, or a timer"),
    ("mem::forget", "leaks; use ManuallyDrop where ownership moves to the kernel"),
];

/// Also banned where every message passes, and in the pure core: nothing there waits.
const BANNED_WHERE_NOTHING_WAITS: &[(&str, &str)] =
    &[("sleep", "nothing waits here; the caller passes the time in, or the tick comes")];

pub(crate) fn check(source: &Source, hot_names: &[&str], findings: &mut Vec<Finding>) {
    let nothing_waits = is_hot(source, hot_names)
        || (source.path.starts_with("shared/src/")
            && !source.path.starts_with("shared/src/cluster/"));
    for (line, text) in source.shipped_code() {
        let extra = if nothing_waits { BANNED_WHERE_NOTHING_WAITS } else { &[] };
        for (word, instead) in BANNED.iter().chain(extra) {
            if has_word(text, word) {
                findings.push(finding(source, line, format!("`{word}`: {instead}")));
            }
        }
    }
    check_ignored_tests(source, findings);
}

fn check_ignored_tests(source: &Source, findings: &mut Vec<Finding>) {
    for (line, text) in source.code.iter().enumerate() {
        if text.contains("#[ignore]") {
            findings.push(finding(source, line, "`#[ignore]` without a reason".to_owned()));
        }
    }
}

fn finding(source: &Source, line: usize, message: String) -> Finding {
    Finding { rule: "constructs", path: source.path.clone(), line: line + 1, message }
}

#[cfg(test)]
fn found(path: &str, text: &str) -> Vec<usize> {
    let mut findings = Vec::new();
    check(&Source::new(path, text), &["reactor"], &mut findings);
    findings.iter().map(|finding| finding.line).collect()
}

#[test]
fn banned_words_are_found_in_code_that_ships_only() {
    let text = "a.unwrap();\n// a.unwrap()\nlet b = \"todo!\";\n#[cfg(test)]\nmod tests {\n  a.unwrap();\n}\n";
    assert_eq!(found("a/src/b.rs", text), [1]);
    assert!(found("a/tests/b.rs", text).is_empty());
    assert!(found("a/src/b.rs", "a.unwrap_or(1); unbounded_by_design();").is_empty());
}

#[test]
fn waiting_is_found_on_the_hot_path_and_in_the_pure_core() {
    assert_eq!(found("gateway/src/reactor/mod.rs", "sleep(a).await;"), [1]);
    assert_eq!(found("shared/src/packet.rs", "sleep(a);"), [1]);
    assert!(found("shared/src/cluster/etcd.rs", "tokio::time::sleep(a).await;").is_empty());
    assert!(found("worker/src/app.rs", "tokio::time::sleep(a).await;").is_empty());
    assert_eq!(found("worker/src/app.rs", "std::thread::sleep(a);"), [1]);
}
