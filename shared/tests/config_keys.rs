//! Every configuration key that the code of any crate asks for is a row of the table.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::{Path, PathBuf};

use shared::config::KEYS;

/// The calls that ask for a key.
const ACCESSORS: [&str; 11] = [
    ".duration(\"",
    ".int(\"",
    ".size(\"",
    ".float(\"",
    ".bool(\"",
    ".string(\"",
    ".list(\"",
    ".map(\"",
    ".secret(\"",
    ".source(\"",
    ".is_set(\"",
];

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn no_code_asks_for_a_key_that_is_not_in_the_table() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    rust_files(workspace, &mut files);
    let mut asked = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        // A call may stand in the line before its key.
        let text: String = text.split_whitespace().collect();
        for accessor in ACCESSORS {
            for (at, _) in text.match_indices(accessor) {
                let Some((key, _)) = text[at + accessor.len()..].split_once('"') else { continue };
                if key.starts_with("pitaya.") && !key.contains('{') {
                    let is_known = KEYS.iter().any(|row| row.name == key);
                    assert!(is_known, "{} asks for {key}", file.display());
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 10, "the search itself is broken: it found {asked} keys");
}
