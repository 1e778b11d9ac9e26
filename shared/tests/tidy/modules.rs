//! Rule: every Rust file is compiled. A file that no `mod` reaches looks alive and is not.

use std::collections::{BTreeMap, BTreeSet};

use crate::Finding;
use crate::source::Source;

pub(crate) fn check(sources: &[Source], findings: &mut Vec<Finding>) {
    let by_path: BTreeMap<&str, &Source> =
        sources.iter().map(|source| (source.path.as_str(), source)).collect();
    let mut reached = BTreeSet::new();
    let mut open: Vec<String> =
        by_path.keys().filter(|path| is_root(path)).map(|path| (*path).to_owned()).collect();
    while let Some(path) = open.pop() {
        if !reached.insert(path.clone()) {
            continue;
        }
        let Some(source) = by_path.get(path.as_str()) else { continue };
        open.extend(
            children(source).into_iter().filter(|child| by_path.contains_key(child.as_str())),
        );
    }
    for path in by_path.keys().filter(|path| !reached.contains(**path)) {
        findings.push(Finding {
            rule: "modules",
            path: (*path).to_owned(),
            line: 1,
            message: "no `mod` leads to this file; declare it or delete it".to_owned(),
        });
    }
}

/// Files that cargo finds by itself.
fn is_root(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(
        parts.as_slice(),
        [.., "src", "lib.rs" | "main.rs"]
            | [.., "build.rs"]
            | [.., "src", "bin", _]
            | [.., "bin" | "tests" | "benches" | "examples", _, "main.rs"]
            | [.., "tests" | "benches" | "examples", _]
    )
}

/// Where the modules that this file declares could lie. A declaration inside an inline module lies one folder deeper.
fn children(source: &Source) -> Vec<String> {
    let (folder, file) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let stem = file.trim_end_matches(".rs");
    let own_folder = if matches!(stem, "mod" | "lib" | "main") || is_root(&source.path) {
        folder.to_owned()
    } else {
        format!("{folder}/{stem}")
    };
    let mut found = Vec::new();
    let mut given_path = None;
    let mut inline: Vec<String> = Vec::new();
    for (text, code) in source.lines.iter().zip(&source.code) {
        if let Some(path) = path_attribute(text, code) {
            given_path = Some(path.to_owned());
        }
        let Some(name) = module_name(code) else { continue };
        if code.trim_end().ends_with('{') {
            inline.push(name.to_owned());
            continue;
        }
        if let Some(path) = given_path.take() {
            found.push(format!("{folder}/{path}"));
        }
        for prefix in std::iter::once(own_folder.clone())
            .chain(inline.iter().map(|name| format!("{own_folder}/{name}")))
        {
            found.push(format!("{prefix}/{name}.rs"));
            found.push(format!("{prefix}/{name}/mod.rs"));
        }
    }
    found
}

fn path_attribute<'a>(text: &'a str, code: &str) -> Option<&'a str> {
    if !code.trim_start().starts_with("#[path") {
        return None;
    }
    text.split('"').nth(1)
}

fn module_name(code: &str) -> Option<&str> {
    let words = code.split_once("mod ")?;
    let before = words.0.trim();
    let is_declaration = before.is_empty() || before.starts_with("pub") || before.ends_with(']');
    let end = words.1.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (is_declaration && end > 0).then(|| &words.1[..end])
}

#[test]
fn a_file_that_no_module_declares_is_found() {
    let sources = [
        Source::new("a/src/lib.rs", "//! A.\npub mod b;\n#[path = \"odd/place.rs\"]\nmod c;\n"),
        Source::new("a/src/b/mod.rs", "mod inner;\n"),
        Source::new("a/src/b/inner.rs", "mod deeper;\n"),
        Source::new("a/src/b/inner/deeper.rs", ""),
        Source::new("a/src/odd/place.rs", ""),
        Source::new("a/src/dead.rs", "// mod dead;\n"),
        Source::new("a/src/bin/tool.rs", ""),
        Source::new("a/tests/case.rs", ""),
    ];
    let mut findings = Vec::new();
    check(&sources, &mut findings);
    let paths: Vec<&str> = findings.iter().map(|finding| finding.path.as_str()).collect();
    assert_eq!(paths, ["a/src/dead.rs"]);
}
