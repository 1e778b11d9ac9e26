//! Rule: names say what a thing is. Words that fit everything say nothing.

use crate::Finding;
use crate::source::Source;

/// Parts of a type's name that say nothing about it.
const EMPTY_TYPE_WORDS: &[&str] = &["Manager", "Helper", "Utils", "Util"];
/// Modules that collect what nobody found a place for.
const EMPTY_MODULES: &[&str] = &["core", "utils", "util", "helpers", "helper", "common", "misc"];
/// Names with `get_` that the standard library has given their meaning.
const STANDARD_GETTERS: &[&str] = &["get_mut", "get_unchecked", "get_unchecked_mut"];
const TYPE_KEYWORDS: &[&str] = &["struct ", "enum ", "trait ", "type ", "union "];

pub(crate) fn check(source: &Source, findings: &mut Vec<Finding>) {
    check_file_name(source, findings);
    for (line, text) in source.code.iter().enumerate() {
        if let Some(message) = line_message(text, source.is_test_line(line)) {
            findings.push(Finding {
                rule: "names",
                path: source.path.clone(),
                line: line + 1,
                message,
            });
        }
    }
}

/// Cargo's own convention for what several integration tests share is a module `common`; only what ships is checked.
fn check_file_name(source: &Source, findings: &mut Vec<Finding>) {
    if source.is_test_file() {
        return;
    }
    for part in source.path.split('/') {
        let name = part.strip_suffix(".rs").unwrap_or(part);
        if EMPTY_MODULES.contains(&name) {
            findings.push(Finding {
                rule: "names",
                path: source.path.clone(),
                line: 1,
                message: format!("`{name}` names no noun; call the file after what is in it"),
            });
        }
    }
}

fn line_message(text: &str, is_test: bool) -> Option<String> {
    if let Some(name) = defined(text, &["fn "])
        && name.starts_with("get_")
        && !STANDARD_GETTERS.contains(&name)
        && !is_test
    {
        return Some(format!("fn {name}: a getter is called after the thing, without `get_`"));
    }
    if let Some(name) = defined(text, &["mod "])
        && EMPTY_MODULES.contains(&name)
        && !is_test
    {
        return Some(format!("mod {name} names no noun"));
    }
    let name = defined(text, TYPE_KEYWORDS)?;
    let word = EMPTY_TYPE_WORDS.iter().find(|word| name.ends_with(**word))?;
    Some(format!("{name}: `{word}` says nothing; what does it do?"))
}

/// The name that the line defines with one of these keywords.
fn defined<'a>(text: &'a str, keywords: &[&str]) -> Option<&'a str> {
    keywords.iter().find_map(|keyword| {
        let start = text.find(keyword)?;
        let is_keyword =
            text[..start].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
        let rest = &text[start + keyword.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        (is_keyword && end > 0).then(|| &rest[..end])
    })
}

#[test]
fn empty_words_are_found_and_pitayas_nouns_are_not() {
    let text = "pub struct SessionManager;\nfn get_uid() {}\nmod utils;\nstruct Session;\nfn target_type() {}\nfn budget_bytes() {}\n";
    let mut findings = Vec::new();
    check(&Source::new("a/src/b.rs", text), &mut findings);
    let lines: Vec<usize> = findings.iter().map(|finding| finding.line).collect();
    assert_eq!(lines, [1, 2, 3]);
    check(&Source::new("a/src/core.rs", ""), &mut findings);
    assert_eq!(findings.len(), 4);
}
