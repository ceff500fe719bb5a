//! The documents as they stand in the repository: headings, tables, spans of code, links.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A Markdown file.
pub struct Page {
    /// Path from the root of the repository.
    pub path: String,
    text: String,
}

/// A table of a page.
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all files of the repository, by their paths from its root, without what git ignores.
pub fn files() -> Vec<String> {
    fn visit(folder: PathBuf, files: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            let is_ignored = entry.file_name() == ".git"
                || entry.file_name() == "target"
                || ["fuzz/corpus", "fuzz/artifacts"].contains(&&*name);
            if kind.is_dir() && !is_ignored {
                visit(path, files);
            } else if kind.is_file() {
                files.push(name);
            }
        }
    }
    let mut files = Vec::new();
    visit(root().to_owned(), &mut files);
    assert!(files.len() > 100, "{files:?}");
    files
}

/// Returns a file's text.
pub fn read(path: &str) -> String {
    String::from_utf8(read_bytes(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns a file's bytes.
pub fn read_bytes(path: &str) -> Vec<u8> {
    fs::read(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

impl Page {
    pub fn read(path: &str) -> Self {
        Self { path: path.to_owned(), text: read(path) }
    }

    /// Returns every page of the repository.
    pub fn all() -> Vec<Self> {
        let files = files();
        let paths = files.iter().filter(|path| path.ends_with(".md"));
        let pages: Vec<_> = paths.map(|path| Self::read(path)).collect();
        assert!(pages.len() > 5);
        pages
    }

    /// Returns the lines after a heading, up to the next one of its level or above.
    pub fn under(&self, heading: &str) -> Self {
        let level = |line: &str| line.bytes().take_while(|&byte| byte == b'#').count();
        let mut lines = self.prose_lines().skip_while(|line| *line != heading);
        assert!(lines.next().is_some(), "{}: no {heading}", self.path);
        let is_inside = |line: &&str| level(line) == 0 || level(line) > level(heading);
        let text = lines.take_while(is_inside).collect::<Vec<_>>().join("\n");
        Self { path: format!("{} {heading}", self.path), text }
    }

    /// Returns the tables, in their order.
    pub fn tables(&self) -> Vec<Table> {
        let cells = |line: &str| -> Vec<String> {
            let inner = line.trim_matches('|');
            inner.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let mut tables = Vec::new();
        let mut lines = self.prose_lines().peekable();
        while let Some(line) = lines.next() {
            let is_rule = |next: &&str| next.starts_with("|-") || next.starts_with("| -");
            if !line.starts_with('|') || lines.next_if(is_rule).is_none() {
                continue;
            }
            let mut rows = Vec::new();
            while let Some(row) = lines.next_if(|next| next.starts_with('|')) {
                rows.push(cells(row));
            }
            tables.push(Table { header: cells(line), rows });
        }
        tables
    }

    /// Returns the spans of code of the tables' first columns with this title.
    pub fn column(&self, title: &str) -> BTreeSet<String> {
        let tables = self.tables();
        let of_title = tables.iter().filter(|table| table.header[0] == title);
        let cells = of_title.flat_map(|table| table.rows.iter().map(|row| &row[0]));
        let found: BTreeSet<_> = cells.flat_map(|cell| spans(cell)).collect();
        assert!(!found.is_empty(), "{}: no table of {title}", self.path);
        found
    }

    /// Returns the spans of code in the columns with this title, wherever they stand.
    pub fn cells(&self, title: &str) -> Vec<String> {
        let mut found = Vec::new();
        for Table { header, rows } in self.tables() {
            if let Some(column) = header.iter().position(|cell| cell == title) {
                found.extend(rows.iter().flat_map(|row| spans(&row[column])));
            }
        }
        found
    }

    /// Returns all spans of code outside of blocks.
    pub fn code(&self) -> Vec<String> {
        spans(&self.prose_lines().collect::<Vec<_>>().join("\n"))
    }

    /// Returns the blocks of code in this language.
    pub fn blocks(&self, language: &str) -> Vec<String> {
        let start = format!("```{language}");
        let mut blocks = Vec::new();
        let mut lines = self.text.lines();
        while lines.by_ref().any(|line| line.split(',').next() == Some(&start)) {
            let block = lines.by_ref().take_while(|line| *line != "```");
            blocks.push(block.map(|line| format!("{line}\n")).collect());
        }
        blocks
    }

    /// Returns the targets of the links.
    pub fn links(&self) -> Vec<String> {
        let prose = self.prose_lines().collect::<Vec<_>>().join("\n");
        let targets = prose.split("](").skip(1);
        targets.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
    }

    /// Returns the anchors of the headings, as the forges make them.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        for heading in self.prose_lines().filter(|line| line.starts_with('#')) {
            let text = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it));
            let anchor: String = kept.map(|it| if it == ' ' { '-' } else { it }).collect();
            // A heading that comes again gets a number.
            let mut next = anchor.clone();
            let mut number = 0;
            while !anchors.insert(next) {
                number += 1;
                next = format!("{anchor}-{number}");
            }
        }
        anchors
    }

    /// Returns the whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the lines outside of blocks of code.
    fn prose_lines(&self) -> impl Iterator<Item = &str> {
        let mut is_code = false;
        self.text.lines().filter(move |line| {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            !is_code && !is_fence
        })
    }
}

/// Returns the spans of code of a text without blocks, in which a line may end.
fn spans(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
}
