//! Rule: a file and a function stay short enough to be read in one go.

use crate::source::Source;
use crate::{FILE_LINES_MAX, FUNCTION_LINES_MAX, Finding};

pub(crate) fn check(source: &Source, findings: &mut Vec<Finding>) {
    check_file(source, findings);
    check_functions(source, findings);
}

fn is_code(text: &str) -> bool {
    !text.trim().is_empty()
}

fn check_file(source: &Source, findings: &mut Vec<Finding>) {
    let lines = source.shipped_code().filter(|(_, text)| is_code(text)).count();
    if lines > FILE_LINES_MAX {
        findings.push(Finding {
            rule: "length",
            path: source.path.clone(),
            line: 1,
            message: format!(
                "{lines} code lines without tests, the limit is {FILE_LINES_MAX}; split it by noun"
            ),
        });
    }
}

fn check_functions(source: &Source, findings: &mut Vec<Finding>) {
    for function in &source.functions {
        if source.is_test_line(function.first_line) {
            continue;
        }
        let body =
            &source.code[function.first_line..=function.last_line.min(source.code.len() - 1)];
        let lines = body.iter().filter(|text| is_code(text)).count();
        if lines > FUNCTION_LINES_MAX {
            findings.push(Finding {
                rule: "length",
                path: source.path.clone(),
                line: function.first_line + 1,
                message: format!(
                    "fn {} has {lines} code lines, the limit is {FUNCTION_LINES_MAX}; \
                     keep the branching here and move the plain work out",
                    function.name
                ),
            });
        }
    }
}

#[test]
fn comments_blank_lines_and_tests_do_not_count() {
    let long_test =
        format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "let a = 1;\n".repeat(FILE_LINES_MAX));
    let text = format!(
        "//! Head.\n{}{}{long_test}",
        "// why\n\n".repeat(FILE_LINES_MAX),
        "const A: u8 = 1;\n".repeat(FILE_LINES_MAX)
    );
    let mut findings = Vec::new();
    check(&Source::new("a/src/b.rs", &text), &mut findings);
    assert!(findings.is_empty(), "{findings:?}");
}

#[test]
fn one_line_over_is_found() {
    let file = "const A: u8 = 1;\n".repeat(FILE_LINES_MAX + 1);
    let function = format!("fn a() {{\n{}}}\n", "b();\n".repeat(FUNCTION_LINES_MAX - 1));
    let mut findings = Vec::new();
    check(&Source::new("a/src/b.rs", &file), &mut findings);
    check(&Source::new("a/src/c.rs", &function), &mut findings);
    assert_eq!(findings.len(), 2, "{findings:?}");
}
