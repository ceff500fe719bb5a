//! `ws-proxy tunnels`: lists the open tunnels of a running proxy.

use std::time::Duration;

use serde_json::Value;

use crate::admin_client::AdminClient;
use crate::cli::{Arguments, Tunnels};
use crate::query::target;
use crate::{Failure, print};

/// Time for the admin listener to answer; it waits a second for its workers.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Most characters of a cell: a client's long path must not widen the table for all.
const CELL_MAX: usize = 60;

const HEADER: [&str; 9] = [
    "ID",
    "SECTION",
    "CLIENT",
    "BACKEND",
    "PATH",
    "AGE",
    "IDLE",
    "MESSAGES(client/backend)",
    "STATE",
];

/// Prints the tunnels that the admin listener lists: as a table, or as its JSON.
pub(crate) fn run(tunnels: &Tunnels, arguments: &Arguments) -> Result<(), Failure> {
    let admin =
        AdminClient::require(tunnels.admin.as_deref(), tunnels.config.as_deref(), arguments)?;
    let pairs = [
        ("section", tunnels.section.clone()),
        ("backend", tunnels.backend.clone()),
        ("client", tunnels.client.map(|client| client.to_string())),
        ("limit", tunnels.limit.map(|limit| limit.to_string())),
    ];
    let address = admin.address();
    let response = admin.ask("GET", &target("/tunnels", &pairs), Some(ANSWER_TIME))?;
    let response = response.expect_ok(address)?;
    let listed: Vec<Value> = serde_json::from_str(&response.body).map_err(|error| {
        Failure::Runtime(format!("{address} answers no list of tunnels: {error}"))
    })?;
    if tunnels.json { print(response.body.trim_end()) } else { print(&table(&listed)) }
}

/// Returns a header and a line for each tunnel, in aligned columns.
fn table(tunnels: &[Value]) -> String {
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(tunnels.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADER.len()).filter_map(width).collect();
    let line = |row: &[String; 9]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(tunnel: &Value) -> [String; 9] {
    let text = |key: &str| cell(&tunnel[key]);
    let time = |key: &str| age(&tunnel[key]);
    [
        text("id"),
        text("section"),
        text("client"),
        text("backend"),
        text("path"),
        time("age_s"),
        time("idle_s"),
        format!("{}/{}", text("client_messages"), text("backend_messages")),
        text("state"),
    ]
}

/// Returns a value on one line, without anything that could drive a terminal; `-` for none.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut cell = String::new();
    let mut count = 0;
    for character in text.chars() {
        let escaped = character.escape_debug();
        let is_plain = matches!(character, '"' | '\'') || escaped.len() == 1;
        count += if is_plain { 1 } else { escaped.len() };
        if count > CELL_MAX {
            return cell + "...";
        }
        if is_plain { cell.push(character) } else { cell.extend(escaped) }
    }
    if cell.is_empty() { "-".to_owned() } else { cell }
}

/// Returns a time in whole seconds, such as `2h5m3s`; `-` for none.
fn age(seconds: &Value) -> String {
    let time = seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.map_or("-".to_owned(), |time| {
        humantime::format_duration(Duration::from_secs(time.as_secs())).to_string().replace(' ', "")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned() {
        let tunnels = [
            json!({
                "id": 12, "section": "chat", "client": "[::1]:5", "backend": "a:1",
                "path": "/ünder", "age_s": 7503.4, "idle_s": 0.9, "client_messages": 3,
                "backend_messages": 40, "state": "open",
            }),
            json!({ "id": 7, "path": "", "idle_s": null, "age_s": -1.0, "state": "closing" }),
        ];
        let expected = "\
ID  SECTION  CLIENT   BACKEND  PATH    AGE     IDLE  MESSAGES(client/backend)  STATE
12  chat     [::1]:5  a:1      /ünder  2h5m3s  0s    3/40                      open
7   -        -        -        -       -       -     -/-                       closing";
        assert_eq!(table(&tunnels), expected);
        assert_eq!(table(&[]), HEADER.join("  "));
    }

    #[test]
    fn a_client_cannot_drive_the_terminal_or_widen_the_table() {
        let shown = |text: &str| cell(&Value::from(text));
        assert_eq!(shown("/a\x1b[2J\r\n\t\u{9b}b"), r"/a\u{1b}[2J\r\n\t\u{9b}b");
        assert_eq!(shown("/\u{202e}\u{85}\u{2028}\x7f"), r"/\u{202e}\u{85}\u{2028}\u{7f}");
        assert_eq!(shown(r#"/'"\"#), r#"/'"\\"#);
        assert_eq!(shown(&"x".repeat(CELL_MAX)), "x".repeat(CELL_MAX));
        assert_eq!(shown(&"x".repeat(CELL_MAX + 1)), "x".repeat(CELL_MAX) + "...");
    }
}
