//! Rule: every text reads the same on every machine, and every Rust file says first what it is.

use crate::Finding;
use crate::tree::Text;

/// Folders of one person's machine. Written in parts, so that this file does not find itself.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];
/// Hosts that packages come from: which one is used is the business of each machine's own settings.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("proxy.golang", ".org"),
    concat!("npmjs", ".org"),
    concat!("debian", ".org"),
];

pub(crate) fn check(text: &Text, findings: &mut Vec<Finding>) {
    if text.path.ends_with(".rs") {
        check_head(text, findings);
    }
    for (line, content) in text.content.lines().enumerate() {
        let mut report = |rule, message| {
            findings.push(Finding { rule, path: text.path.clone(), line: line + 1, message });
        };
        if let Some(path) = MACHINE_PATHS.iter().find(|path| content.contains(**path)) {
            report("paths", format!("`{path}` is a folder of one machine"));
        }
        if let Some(host) = REGISTRY_HOSTS.iter().find(|host| content.contains(**host)) {
            report(
                "paths",
                format!("`{host}` is a host; name the registry's package, not where it lies"),
            );
        }
    }
}

fn check_head(text: &Text, findings: &mut Vec<Finding>) {
    if !text.content.starts_with("//! ") {
        findings.push(Finding {
            rule: "head",
            path: text.path.clone(),
            line: 1,
            message: "the first line says what the file is: `//! …`".to_owned(),
        });
    }
}

#[test]
fn a_missing_head_and_a_machines_path_are_found() {
    let content = format!("use a;\nlet b = \"{}me\";\n", MACHINE_PATHS[1]);
    let mut findings = Vec::new();
    check(&Text { path: "a/src/b.rs".to_owned(), content }, &mut findings);
    let rules: Vec<&str> = findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, ["head", "paths"]);
}
