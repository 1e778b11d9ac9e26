//! What the tidy test looks at: every text file of the workspace that is not built, fetched or generated.

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::Source;

/// Folders that hold nothing of ours.
const SKIPPED_FOLDERS: &[&str] = &["target", "node_modules", "proptest-regressions"];
/// Names and endings of files that people write; everything else (images, locks, checksums) is left alone.
const TEXT_ENDINGS: &[&str] = &[
    "rs", "toml", "md", "yaml", "yml", "json", "go", "mod", "proto", "js", "mjs", "html", "css",
    "service", "sh",
];
const TEXT_NAMES: &[&str] = &["dev", "run", "Dockerfile", ".gitignore"];

/// A text file as it is on disk.
pub(crate) struct Text {
    /// Path from the root of the workspace, with `/` between its parts.
    pub(crate) path: String,
    pub(crate) content: String,
}

/// The workspace, read once.
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    pub(crate) texts: Vec<Text>,
    pub(crate) sources: Vec<Source>,
    pub(crate) manifests: Vec<Text>,
}

impl Tree {
    /// Reads the workspace that this crate stands in. Panics when a file cannot be read: that is a failed test.
    pub(crate) fn read() -> Tree {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the crate stands inside the workspace")
            .to_path_buf();
        let mut texts = Vec::new();
        read_folder(&root, &root, &mut texts);
        texts.sort_by(|a, b| a.path.cmp(&b.path));

        let sources = texts
            .iter()
            .filter(|text| text.path.ends_with(".rs"))
            .map(|text| Source::new(&text.path, &text.content))
            .collect();
        let manifests = texts
            .iter()
            .filter(|text| text.path.ends_with("/Cargo.toml"))
            .map(|text| Text { path: text.path.clone(), content: text.content.clone() })
            .collect();
        Tree { root, texts, sources, manifests }
    }
}

fn read_folder(root: &Path, folder: &Path, texts: &mut Vec<Text>) {
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the folder stays as it is during the test").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            // Hidden folders are those of tools; the one of continuous integration is ours.
            let is_ours = !name.starts_with('.') || name == ".ci";
            if is_ours && !SKIPPED_FOLDERS.contains(&name) {
                read_folder(root, &path, texts);
            }
        } else if is_text(&path, name) {
            let content = fs::read_to_string(&path).expect("a text file is UTF-8");
            let relative = path.strip_prefix(root).expect("the file is below the root");
            texts.push(Text { path: relative.to_string_lossy().replace('\\', "/"), content });
        }
    }
}

fn is_text(path: &Path, name: &str) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    TEXT_ENDINGS.contains(&ending) || TEXT_NAMES.contains(&name)
}
