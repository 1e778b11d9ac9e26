//! The tidy test: rules of the house style that neither the compiler nor clippy can hold up.
//!
//! It reads the source tree as text. It is not a parser of Rust: `source` blanks comments and strings and matches
//! braces, which is enough for rules about lengths, names and words. A finding names file, line, rule and what to do.
//! The limits and the exceptions stand here, at the top, so that a change of either is seen in review.

// Names of files are compared exactly: a file called `a.RS` is none of ours.
#![allow(clippy::case_sensitive_file_extension_comparisons)]

#[path = "tidy/constructs.rs"]
mod constructs;
#[path = "tidy/dashboards.rs"]
mod dashboards;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/lengths.rs"]
mod lengths;
#[path = "tidy/modules.rs"]
mod modules;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/promises.rs"]
mod promises;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/texts.rs"]
mod texts;
#[path = "tidy/tree.rs"]
mod tree;

use std::fmt;

use tree::Tree;

/// Code lines (no comments, no blank lines, no tests) that a file may have. The style aims at 250; here is the wall.
const FILE_LINES_MAX: usize = 400;
/// Code lines of one function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Files of the gateway where a lock or a clock read costs every message. A file counts by its own name or by that of a
/// folder above it.
const HOT_NAMES: &[&str] = &["agent", "connection", "reactor", "forward", "forwarding", "outbox"];

/// Places where a rule is broken on purpose. Each needs a reason that a reviewer can weigh; an entry that no longer
/// matches anything in a file that is still there is itself a finding.
const EXCEPTIONS: &[Exception] = &[
    Exception {
        rule: "constructs",
        path: "benches/src/programs.rs",
        contains: "thread::sleep",
        reason: "the harness waits for programs of others, whose progress only asking shows",
    },
    Exception {
        rule: "constructs",
        path: "client/src/load/mod.rs",
        contains: "thread::sleep",
        reason: "the load tool's first thread only draws progress; the load runs on others",
    },
    Exception {
        rule: "names",
        path: "worker/src/demo/room.rs",
        contains: "get_session_data",
        reason: "becomes the route getsessiondata, which Pitaya's own load script calls",
    },
];

/// One place where one rule does not hold.
struct Exception {
    rule: &'static str,
    /// Path from the root of the workspace.
    path: &'static str,
    /// Part of the finding's message; empty matches all findings of this rule in this file.
    contains: &'static str,
    reason: &'static str,
}

/// Something that a rule found.
#[derive(Debug)]
struct Finding {
    rule: &'static str,
    path: String,
    /// Counted from 1.
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: [{}] {}", self.path, self.line, self.rule, self.message)
    }
}

impl Exception {
    fn covers(&self, finding: &Finding) -> bool {
        self.rule == finding.rule
            && self.path == finding.path
            && finding.message.contains(self.contains)
    }
}

fn all_findings(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in &tree.sources {
        lengths::check(source, &mut findings);
        names::check(source, &mut findings);
        constructs::check(source, HOT_NAMES, &mut findings);
        layers::check_source(source, HOT_NAMES, &mut findings);
    }
    for text in &tree.texts {
        texts::check(text, &mut findings);
    }
    for manifest in &tree.manifests {
        layers::check_manifest(manifest, &mut findings);
    }
    modules::check(&tree.sources, &mut findings);
    dashboards::check(&tree.texts, &mut findings);
    promises::check(&tree.texts, &mut findings);
    findings
}

fn stale_exceptions(
    exceptions: &[Exception],
    paths: &[&str],
    findings: &[Finding],
) -> Vec<Finding> {
    exceptions
        .iter()
        .filter(|exception| paths.contains(&exception.path))
        .filter(|exception| !findings.iter().any(|finding| exception.covers(finding)))
        .map(|exception| Finding {
            rule: "exceptions",
            path: exception.path.to_owned(),
            line: 1,
            message: format!(
                "the exception from [{}] ({}) matches nothing any more; remove it from tidy.rs",
                exception.rule, exception.reason
            ),
        })
        .collect()
}

#[test]
fn the_source_tree_keeps_the_rules_of_the_house() {
    let tree = Tree::read();
    assert!(tree.sources.len() > 10, "the test looks at the wrong folder: {}", tree.root.display());

    let mut findings = all_findings(&tree);
    let paths: Vec<&str> = tree.texts.iter().map(|text| text.path.as_str()).collect();
    let stale = stale_exceptions(EXCEPTIONS, &paths, &findings);
    findings.retain(|finding| !EXCEPTIONS.iter().any(|exception| exception.covers(finding)));
    findings.extend(stale);
    findings.sort_by(|a, b| (&a.path, a.line, a.rule).cmp(&(&b.path, b.line, b.rule)));

    let report = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(findings.is_empty(), "{} findings:\n{report}\n", findings.len());
}

#[test]
fn an_exception_that_matches_nothing_is_found() {
    let exceptions = [Exception { rule: "length", path: "a.rs", contains: "", reason: "a table" }];
    assert_eq!(stale_exceptions(&exceptions, &["a.rs"], &[]).len(), 1);

    let finding =
        Finding { rule: "length", path: "a.rs".to_owned(), line: 1, message: String::new() };
    assert!(stale_exceptions(&exceptions, &["a.rs"], &[finding]).is_empty());
}
