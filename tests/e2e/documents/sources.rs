//! What the sources say of the log: each event has its name at one place.

use std::collections::BTreeSet;

use super::pages::{files, read, read_bytes};

/// Macros of the `log` crate.
const MACROS: [&str; 5] =
    ["log::error!(", "log::warn!(", "log::info!(", "log::debug!(", "log::trace!("];

/// Returns the names of all events that a literal names: the message of a record, an arm of
/// `Event::name`, an argument of the program's own `event_line`.
pub fn events() -> BTreeSet<String> {
    let mut events = BTreeSet::new();
    for path in sources() {
        let source = read(&path);
        // Test modules stand last.
        let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for start in MACROS {
            let calls = source.split(start).skip(1);
            events.extend(calls.map(|call| {
                last_literal(arguments(call)).unwrap_or_else(|| panic!("{path}: no name: {call}"))
            }));
        }
        let lines = source.split("event_line(").skip(1);
        events.extend(lines.filter_map(|call| last_name(arguments(call))));
        if path.starts_with("src/events/") {
            let names = source.split("fn name(&self)").skip(1);
            events.extend(names.flat_map(|body| literals(body.split("\n    }\n").next().unwrap())));
        }
    }
    for known in ["tunnel_end", "backend_health", "config_reloaded", "admin_drain", "panic"] {
        assert!(events.contains(known), "{known} is not found in the sources");
    }
    events
}

/// Returns the texts of all sources, scripts and manifests.
pub fn texts() -> Vec<String> {
    let folders =
        ["src/", "tests/", "benches/", "deploy/", "examples/", "fuzz/", ".ci/", ".github/"];
    let is_source = |path: &&String| {
        let is_inside = folders.iter().any(|folder| path.starts_with(folder));
        // Documents prove nothing about documents, and neither does their own test.
        is_inside && !path.ends_with(".md") && !path.starts_with("tests/e2e/documents")
    };
    let files = files();
    let sources = files.iter().filter(is_source);
    sources.map(|path| String::from_utf8_lossy(&read_bytes(path)).into_owned()).collect()
}

/// Returns every word of some texts, in code and in strings, a name with its underscores as one.
pub fn words(texts: &[String]) -> BTreeSet<&str> {
    let is_end = |it: char| !it.is_ascii_alphanumeric() && it != '_';
    texts.iter().flat_map(|text| text.split(is_end)).collect()
}

fn sources() -> impl Iterator<Item = String> {
    files().into_iter().filter(|path| path.starts_with("src/") && path.ends_with(".rs"))
}

/// Returns the arguments of a call, up to its closing parenthesis.
fn arguments(call: &str) -> &str {
    let mut depth = 1;
    let mut is_text = false;
    for (at, it) in call.char_indices() {
        match it {
            '"' => is_text = !is_text,
            '(' if !is_text => depth += 1,
            ')' if !is_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &call[..at];
        }
    }
    panic!("a call without an end: {call}")
}

fn literals(code: &str) -> Vec<String> {
    code.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn last_literal(arguments: &str) -> Option<String> {
    literals(arguments).pop()
}

/// Returns the event of a call of `event_line`, its first literal; its definition has none.
fn last_name(arguments: &str) -> Option<String> {
    literals(arguments).into_iter().next()
}
