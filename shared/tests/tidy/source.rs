//! One Rust file, prepared for rules that look at words: comments and the contents of strings are blanked, so that a
//! word in them is never taken for code, and the lines that belong to tests are known.
//!
//! Every blanked text has the same lines and columns as the original: positions in one are positions in the other.

/// A Rust file and what the rules need to know of it.
pub(crate) struct Source {
    /// Path from the root of the workspace.
    pub(crate) path: String,
    /// The lines as they are.
    pub(crate) lines: Vec<String>,
    /// The lines with comments and the contents of strings and characters blanked.
    pub(crate) code: Vec<String>,
    /// Whether the line belongs to an item under `#[cfg(test)]`.
    in_tests: Vec<bool>,
    pub(crate) functions: Vec<Function>,
}

/// A function with a body.
#[derive(Debug, PartialEq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Counted from 0.
    pub(crate) first_line: usize,
    pub(crate) last_line: usize,
}

impl Source {
    pub(crate) fn new(path: &str, content: &str) -> Source {
        let masked = mask(content);
        let to_lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let code = to_lines(&masked);
        let starts = LineStarts::new(&masked);
        Source {
            path: path.to_owned(),
            lines: to_lines(content),
            in_tests: test_lines(&masked, &starts, code.len()),
            functions: functions(&masked, &starts),
            code,
        }
    }

    /// Whether the line (counted from 0) is test code: the whole file is a test, or it is inside `#[cfg(test)]`.
    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.is_test_file() || self.in_tests.get(line).copied().unwrap_or(false)
    }

    /// Integration tests, examples and the modules that a crate keeps for its tests.
    pub(crate) fn is_test_file(&self) -> bool {
        self.path.split('/').any(|part| {
            matches!(part, "tests" | "examples" | "tests.rs" | "testing" | "testing.rs")
                || part.ends_with("_tests.rs")
        })
    }

    /// Lines with code outside tests, each with its number counted from 0.
    pub(crate) fn shipped_code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code
            .iter()
            .enumerate()
            .filter(|(line, text)| !text.trim_start().is_empty() && !self.is_test_line(*line))
            .map(|(line, text)| (line, text.as_str()))
    }
}

/// Whether `word` stands in `text` with no letter, digit or underscore touching its ends.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        let after = text[start + word.len()..].chars().next();
        let starts = !word.starts_with(is_part) || !before.is_some_and(is_part);
        let ends = !word.ends_with(is_part) || !after.is_some_and(is_part);
        starts && ends
    })
}

/// Blanks comments and the contents of literals. Line ends stay where they are.
fn mask(content: &str) -> String {
    let characters: Vec<char> = content.chars().collect();
    let mut out = String::with_capacity(content.len());
    let mut at = 0;
    while at < characters.len() {
        let rest = &characters[at..];
        let (taken, visible) = match rest {
            ['/', '/', ..] => (line_comment(rest), 0),
            ['/', '*', ..] => (block_comment(rest), 0),
            ['"', ..] => (string(rest), 1),
            ['r', ..] | ['b' | 'c', 'r', ..] if !follows_word(&characters, at) => {
                raw_string(rest).map_or((1, 1), |taken| (taken, 1))
            }
            ['\'', ..] => character(rest).map_or((1, 1), |taken| (taken, 1)),
            _ => (1, 1),
        };
        for (index, &c) in rest[..taken].iter().enumerate() {
            out.push(if index < visible || c == '\n' { c } else { ' ' });
        }
        at += taken;
    }
    out
}

fn follows_word(characters: &[char], at: usize) -> bool {
    at > 0 && (characters[at - 1].is_alphanumeric() || characters[at - 1] == '_')
}

fn line_comment(rest: &[char]) -> usize {
    rest.iter().position(|&c| c == '\n').unwrap_or(rest.len())
}

/// Block comments nest in Rust.
fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`, and the same after `b` or `c`; None when it is an ordinary name that starts with these letters.
fn raw_string(rest: &[char]) -> Option<usize> {
    let prefix = rest.iter().take_while(|c| matches!(c, 'r' | 'b' | 'c')).count();
    let hashes = rest[prefix..].iter().take_while(|&&c| c == '#').count();
    let opening = prefix + hashes;
    if prefix > 2 || rest.get(opening) != Some(&'"') {
        return None;
    }
    let mut at = opening + 1;
    while at < rest.len() {
        let closes = rest[at] == '"'
            && rest[at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes;
        if closes {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(rest.len())
}

/// A character literal; None for a lifetime.
fn character(rest: &[char]) -> Option<usize> {
    match rest {
        ['\'', '\\', _, ..] => {
            rest.iter().skip(3).position(|&c| c == '\'').map(|length| length + 4)
        }
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// Marks the lines of items under an attribute like `#[cfg(test)]`.
fn test_lines(masked: &str, starts: &LineStarts, lines: usize) -> Vec<bool> {
    let mut marks = vec![false; lines];
    for (start, _) in masked.match_indices("#[cfg(") {
        let attribute_end = masked[start..].find(']').map_or(masked.len(), |end| start + end);
        let attribute = &masked[start..attribute_end];
        if !has_word(attribute, "test") || attribute.contains("not(test") {
            continue;
        }
        let end = item_end(masked, attribute_end);
        let (first, last) = (starts.line_of(start), starts.line_of(end));
        for mark in marks.iter_mut().take(last + 1).skip(first) {
            *mark = true;
        }
    }
    marks
}

/// The end of the item that starts after `from`: its closing brace, or its semicolon when it has no body.
fn item_end(masked: &str, from: usize) -> usize {
    match body_start(masked, from) {
        Some(open) => closing_brace(masked, open),
        None => masked[from..].find(';').map_or(masked.len(), |end| from + end),
    }
}

/// The first `{` outside parentheses and brackets, unless a `;` comes before it.
fn body_start(masked: &str, from: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, c) in masked[from..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '{' if depth == 0 => return Some(from + offset),
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn closing_brace(masked: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, c) in masked[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return open + offset;
        }
    }
    masked.len()
}

/// Where each line begins, so that positions become line numbers without counting from the start each time.
struct LineStarts(Vec<usize>);

impl LineStarts {
    fn new(text: &str) -> LineStarts {
        let after_ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        LineStarts(std::iter::once(0).chain(after_ends.map(|(at, _)| at + 1)).collect())
    }

    /// The line, counted from 0, that the position is in.
    fn line_of(&self, at: usize) -> usize {
        self.0.partition_point(|start| *start <= at) - 1
    }
}

fn functions(masked: &str, starts: &LineStarts) -> Vec<Function> {
    let mut found = Vec::new();
    for (start, _) in masked.match_indices("fn ") {
        let follows_name =
            masked[..start].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let name: String =
            masked[start + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if follows_name || name.is_empty() {
            continue;
        }
        if let Some(open) = body_start(masked, start) {
            found.push(Function {
                name,
                first_line: starts.line_of(start),
                last_line: starts.line_of(closing_brace(masked, open)),
            });
        }
    }
    found
}

#[test]
fn comments_and_literals_are_blanked_and_lifetimes_are_not() {
    assert_eq!(mask("a = \"{x}\"; // fn\nb"), "a = \"    ;      \nb");
    assert_eq!(mask("c = '{'; d<'a>"), "c = '  ; d<'a>");
    assert_eq!(mask("'\\'' x"), "'    x");
    assert_eq!(mask("r#\"a\"b\"# + 1"), "r        + 1");
    assert_eq!(mask("br\"x\" y"), "b     y");
    assert_eq!(mask("/* a /* b */ c */ d").trim(), "d");
}

#[test]
fn lines_under_cfg_test_are_test_lines() {
    let source =
        Source::new("a.rs", "fn a() {\n}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n");
    let marks: Vec<bool> = (0..7).map(|line| source.is_test_line(line)).collect();
    assert_eq!(marks, [false, false, true, true, true, true, false]);
    let shipped: Vec<usize> = source.shipped_code().map(|(line, _)| line).collect();
    assert_eq!(shipped, [0, 1, 6]);
}

#[test]
fn functions_end_at_their_own_brace() {
    let source = Source::new(
        "a.rs",
        "trait T {\n  fn none();\n  fn one(a: [u8; 2]) {\n    if a {\n}\n  }\n}\n",
    );
    assert_eq!(
        source.functions,
        [Function { name: "one".to_owned(), first_line: 2, last_line: 5 }]
    );
}

#[test]
fn a_word_is_found_only_when_it_stands_alone() {
    assert!(has_word("use tokio::net;", "tokio"));
    assert!(!has_word("use tokio_util;", "tokio"));
    assert!(has_word("x.unwrap()", ".unwrap()"));
    assert!(!has_word("my_async", "async"));
}
