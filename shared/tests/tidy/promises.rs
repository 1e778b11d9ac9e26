//! Rule: a promise names tests that exist. Every test that SECURITY.md names is a function of some source.

use std::collections::BTreeSet;

use crate::Finding;
use crate::tree::Text;

const PROMISES: &str = "SECURITY.md";
/// Names of tests are sentences; words with fewer underscores are names of other things.
const UNDERSCORES_MIN: usize = 3;

pub(crate) fn check(texts: &[Text], findings: &mut Vec<Finding>) {
    let Some(promises) = texts.iter().find(|text| text.path == PROMISES) else { return };
    let sources = texts.iter().filter(|text| text.path.ends_with(".rs"));
    let functions: BTreeSet<&str> = sources.flat_map(|text| functions(&text.content)).collect();
    for (line, content) in promises.content.lines().enumerate() {
        for name in named(content).filter(|name| !functions.contains(name)) {
            findings.push(Finding {
                rule: "promises",
                path: promises.path.clone(),
                line: line + 1,
                message: format!("no test is called `{name}`"),
            });
        }
    }
}

/// The names of all functions of a source.
fn functions(content: &str) -> impl Iterator<Item = &str> {
    content.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next())
}

/// What stands between backquotes and reads like a test.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let quoted = line.split('`').skip(1).step_by(2);
    quoted.filter(|name| {
        name.bytes().filter(|byte| *byte == b'_').count() >= UNDERSCORES_MIN
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
            && !name.starts_with("pitaya_")
    })
}

#[test]
fn a_test_that_does_not_exist_is_found() {
    let text =
        |path: &str, content: &str| Text { path: path.to_owned(), content: content.to_owned() };
    let texts = [
        text(
            "SECURITY.md",
            "Kept: `a_test_that_is_there`, `a_test_that_is_gone`, `pitaya_a_b_c`, `a_b`.\n",
        ),
        text("a/tests/b.rs", "//! A.\n#[test]\nfn a_test_that_is_there() {}\n"),
    ];
    let mut findings = Vec::new();
    check(&texts, &mut findings);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.contains("a_test_that_is_gone"));
}
