//! The documents against the program: what they name exists, and what exists is named. What there
//! is, is asked of the program, or read in its sources; there is no second list here.

mod pages;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use ws_proxy::Config;

use self::pages::{Page, Table, files, read, root};
use crate::support::{
    Backend, From, Peer, Program, ProxyProgram, Site, ask, element, section, table, wait_until,
};

const CONFIGURATION: &str = "docs/configuration.md";
const OPERATIONS: &str = "docs/operations.md";

/// Names with an underscore that are the kernel's, and stand in no file here.
const FOREIGN: [&str; 2] = ["ptrace_scope", "tcp_mem"];

/// Asserts that a document names just what there is.
fn assert_same(what: &str, named: &BTreeSet<String>, existing: &BTreeSet<String>) {
    assert!(!existing.is_empty(), "{what}");
    let unknown: Vec<_> = named.difference(existing).collect();
    let missing: Vec<_> = existing.difference(named).collect();
    assert!(
        unknown.is_empty() && missing.is_empty(),
        "{what}: named, but not there: {unknown:?}; there, but not named: {missing:?}"
    );
}

fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// A whole configuration: one section, and every table.
const WHOLE: &str = "[drain]\n[log]\n[admin]\nbind = \"127.0.0.1:1\"\n[[ws_proxy]]\n\
                     bind = \"127.0.0.1:2\"\nbackends = [\"a:1\"]\n[ws_proxy.health_check]\n\
                     path = \"/\"\n";

/// Tables of the configuration with the headings of their keys, and of what is within those and
/// of another table.
const TABLES: [(&str, &str, &[&str]); 6] = [
    ("[[ws_proxy]]", "## Keys of a section", &["### Backends", "### Health checks"]),
    ("[ws_proxy.health_check]", "### Health checks", &[]),
    ("[admin]", "## Keys of `[admin]`", &[]),
    ("[drain]", "## Keys of `[drain]`", &[]),
    ("[log]", "## Keys of `[log]`", &[]),
    ("", "## Keys at the top level", &[]),
];

mod configuration {
    use super::*;

    /// Returns the keys of a table, as the error of an unknown one tells them.
    fn keys(header: &str) -> BTreeSet<String> {
        let text = WHOLE.replace(header, &format!("{header}\nzzzzzzzzzzzz = 1"));
        let problem = Config::parse(&text).unwrap_err().problem;
        let (_, keys) = problem.split_once(&format!("the keys of {header} are ")).unwrap();
        set(keys.split(", "))
    }

    /// Returns the keys of the tables below a heading.
    fn rows(page: &Page, heading: &str, without: &[&str]) -> BTreeSet<String> {
        let below = page.under(heading);
        let others = without.iter().flat_map(|other| below.under(other).column("key"));
        let others: BTreeSet<_> = others.collect();
        let tables = below.tables();
        let of_keys = tables.iter().filter(|table| table.header[0] == "key");
        let rows = of_keys.flat_map(|table| table.rows.iter().map(|row| &row[0]));
        // A key of two tables has two rows.
        let mut counts = BTreeMap::<String, u32>::new();
        rows.for_each(|key| *counts.entry(key.trim_matches('`').to_owned()).or_default() += 1);
        counts.retain(|key, count| {
            *count -= u32::from(others.contains(key));
            *count > 0
        });
        counts.into_keys().collect()
    }

    #[test]
    fn each_key_has_a_row_and_each_row_a_key() {
        let page = Page::read(CONFIGURATION);
        for (header, heading, without) in table(TABLES) {
            if header.is_empty() {
                continue;
            }
            let mut named = rows(&page, heading, without);
            if without.contains(&"### Health checks") {
                // A table, whose heading tells of it.
                named.insert("health_check".to_owned());
            }
            assert_same(heading, &named, &keys(header));
        }
    }

    #[test]
    fn each_key_of_a_backend_has_a_row() {
        let text = section("a:1").replace("\"a:1\"", "{ zz = 1 }");
        let problem = Config::parse(&text).unwrap_err().problem;
        let (_, keys) = problem.split_once("expected one of ").unwrap();
        let keys = keys.split(", ").map(|key| key.trim_matches('`'));
        let named = Page::read(CONFIGURATION).under("### Backends").column("key");
        assert_same("keys of a backend", &named, &set(keys));
    }

    /// Returns each key with its value in force, by the header of its table.
    fn in_force() -> BTreeMap<(String, String), String> {
        let text = Config::parse(WHOLE).unwrap().to_toml().unwrap();
        let mut header = "";
        let mut values = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.split_once(" = ") {
                Some((key, value)) => {
                    values.insert((header.to_owned(), key.to_owned()), value.to_owned());
                }
                None => header = line,
            }
        }
        values
    }

    #[test]
    fn each_table_and_each_key_of_the_top_level_is_described() {
        let values = in_force();
        let top = values.keys().filter(|(header, _)| header.is_empty());
        let top = top.map(|(_, key)| key.clone()).collect();
        let named = Page::read(CONFIGURATION).under("## Keys at the top level").column("key");
        assert_same("keys at the top level", &named, &top);
        let headers = values.keys().map(|(header, _)| &**header);
        let known = TABLES.iter().map(|(header, ..)| *header);
        assert_same("tables", &set(known), &set(headers));
    }

    #[test]
    fn the_defaults_are_those_in_force() {
        let page = Page::read(CONFIGURATION);
        let values = in_force();
        let mut compared = BTreeSet::new();
        for (header, heading, without) in table(TABLES) {
            let of = |key: &str| values.get(&(header.to_owned(), key.to_owned()));
            // What is of another table stands there with its own values.
            let others: Vec<_> = { without.iter() }
                .flat_map(|other| page.under(other).tables())
                .flat_map(|table| table.rows)
                .collect();
            let tables = page.under(heading).tables();
            for Table { header: titles, rows } in tables {
                let Some(column) = titles.iter().position(|title| title == "default") else {
                    continue;
                };
                for row in rows.iter().filter(|row| !others.contains(row)) {
                    let key = row[0].trim_matches('`');
                    // The first of several, the others being conditional.
                    let default = row[column].split(", ").next().unwrap();
                    let default = default.split(" with ").next().unwrap().trim_matches('`');
                    let expected = match default {
                        "required" | "not set" | "the bound address" => continue,
                        // What is beside it is told in words.
                        words if words.starts_with("not set:") || words.contains("`'s") => continue,
                        "the backend's `host:port" => continue,
                        "empty" => "[]".to_owned(),
                        // That of another key.
                        name if of(name).is_some() => of(name).unwrap().clone(),
                        value => value.to_owned(),
                    };
                    assert_eq!(of(key), Some(&expected), "{heading} {key}");
                    compared.insert((header, key.to_owned()));
                }
            }
        }
        // Few keys have no default.
        assert!(compared.len() > values.len() - 6, "{compared:?}");
    }

    #[test]
    fn each_sample_is_valid() {
        let mut count = 0;
        for page in Page::all() {
            for sample in page.blocks("toml") {
                // A dependency in Cargo's own file.
                if sample.starts_with("ws-proxy = ") {
                    continue;
                }
                let prefix = match () {
                    () if sample.contains("[[ws_proxy]]") => String::new(),
                    () if sample.starts_with("backends = ") => {
                        "[[ws_proxy]]\nbind = \"127.0.0.1:0\"\n".to_owned()
                    }
                    () => section("a:1"),
                };
                let config = Config::parse(&format!("{prefix}{sample}"));
                let config = config.unwrap_or_else(|error| panic!("{}: {error}", page.path));
                assert!(config.ignored.is_empty(), "{}: {:?}", page.path, config.ignored);
                count += 1;
            }
        }
        assert!(count >= 5, "{count}");
    }
}

mod command_line {
    use super::*;

    fn help(arguments: &[&str]) -> String {
        let (code, text, _) = Program::output(&[arguments, &["--help"]].concat(), None);
        assert_eq!(code, 0, "{arguments:?}");
        text
    }

    /// Returns the first words of the lines below a title.
    fn listed(help: &str, title: &str) -> BTreeSet<String> {
        let (_, rest) = help.split_once(&format!("\n{title}:\n")).unwrap();
        let lines = rest.lines().take_while(|line| !line.is_empty());
        let own = lines.filter_map(|line| line.strip_prefix("  ")?.split([' ', ',']).next());
        set(own.filter(|word| !word.is_empty()))
    }

    /// Returns the options in a text.
    fn options(text: &str) -> BTreeSet<String> {
        let words = text.split(|it: char| !it.is_ascii_alphanumeric() && it != '-');
        set(words.filter(|word| word.starts_with("--") && word.len() > 2))
    }

    #[test]
    fn each_command_is_described_with_its_options() {
        let commands = listed(&help(&[]), "Commands");
        let page = Page::read(OPERATIONS).under("## Commands");
        let headings = page.text().lines().filter_map(|line| line.strip_prefix("### "));
        assert_same("commands", &set(headings), &commands);
        for command in &commands {
            let synopsis = page.under(&format!("### {command}")).code().into_iter();
            let start = format!("ws-proxy {command}");
            let named = synopsis.filter(|code| code.starts_with(&start));
            let named = named.flat_map(|code| options(&code)).collect();
            let mut existing = listed(&help(&[command]), "Options");
            assert!(existing.remove("--help"));
            assert_same_or_none(command, &named, &existing);
        }
    }

    /// Asserts the same of sets that may be empty.
    fn assert_same_or_none(what: &str, named: &BTreeSet<String>, existing: &BTreeSet<String>) {
        if !(named.is_empty() && existing.is_empty()) {
            assert_same(what, named, existing);
        }
    }

    #[test]
    fn each_option_has_its_row() {
        let named = Page::read(CONFIGURATION).under("## Command line").column("option");
        let named = named.iter().flat_map(|row| options(row)).collect();
        assert_same("options", &named, &listed(&help(&[]), "Options"));
    }

    #[test]
    fn each_command_that_a_page_calls_exists() {
        let commands = listed(&help(&[]), "Commands");
        let of_command = |command: &str| match command {
            "" => options(&help(&[])),
            name => options(&help(&[name])),
        };
        let mut count = 0;
        for page in Page::all() {
            let lines = page.blocks("sh").into_iter().chain(page.blocks("")).chain(page.code());
            let lines: Vec<_> = lines.flat_map(|code| lines_of(&code)).collect();
            for line in lines {
                let mut words = line.split_whitespace();
                let program = words.next().unwrap_or_default();
                if !["ws-proxy", "/ws-proxy"].contains(&program) {
                    continue;
                }
                let is_name = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
                let command = words.next().filter(is_name).unwrap_or_default();
                let place = format!("{}: {line}", page.path);
                assert!(command.is_empty() || commands.contains(command), "{place}");
                let given = options(line.split(" -- ").next().unwrap());
                let unknown: Vec<_> = given.difference(&of_command(command)).cloned().collect();
                assert!(unknown.is_empty(), "{place}: {unknown:?}");
                count += 1;
            }
        }
        assert!(count > 20, "{count}");
    }

    /// Returns the lines of a script, those that go on as one.
    fn lines_of(code: &str) -> Vec<String> {
        code.replace("\\\n", " ").lines().map(|line| line.trim().to_owned()).collect()
    }
}

mod log {
    use super::*;

    /// Returns the values of a label of a metric.
    fn label_values(metrics: &str, metric: &str, label: &str) -> BTreeSet<String> {
        let samples = metrics.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
        let label = format!("{label}=\"");
        let values = samples.filter_map(|line| line.split_once(&label)?.1.split('"').next());
        set(values)
    }

    fn metrics() -> String {
        let site = Site::start(&["\"127.0.0.1:1\"".to_owned()], "");
        ask(site.admin, "GET /metrics").1
    }

    /// Outcomes of handshakes that are no refusals by the proxy.
    fn outcomes_but_refusals() -> BTreeSet<String> {
        let metrics = Page::read(OPERATIONS).under("### Metrics");
        let tables = metrics.tables();
        let of_name = |row: &&Vec<String>| row[0] == "`ws_proxy_handshakes_total`";
        let row = tables.iter().flat_map(|table| &table.rows).find(of_name).unwrap();
        let (names, _) = row[2].split_once("or the `reason`").unwrap();
        set(names.split('`').skip(1).step_by(2))
    }

    #[test]
    fn each_event_is_named_and_each_name_is_an_event() {
        let mut events = sources::events();
        let page = Page::read(OPERATIONS).under("## The log");
        // The events of a shortage are named as the refusal that it leads to.
        let outcomes = label_values(&metrics(), "ws_proxy_handshakes_total", "outcome");
        events.extend(outcomes.into_iter().filter(|name| name.starts_with("out_of_")));
        let unknown: Vec<_> = page.column("event").difference(&events).cloned().collect();
        assert!(unknown.is_empty(), "no events: {unknown:?}");

        let tables = page.tables();
        let of_events = tables.iter().filter(|table| table.header[0] == "event");
        let cells = of_events.flat_map(|table| table.rows.iter().map(|row| row[0].clone()));
        let in_tables = cells.collect::<Vec<_>>().join(" ");
        // A refusal of the same name is no mention.
        let refusals = page.column("`reason`");
        let in_words: Vec<_> =
            page.code().into_iter().filter(|it| !refusals.contains(it)).collect();
        let is_named =
            |event: &&String| in_tables.contains(&format!("`{event}`")) || in_words.contains(event);
        let missing: Vec<_> = events.iter().filter(|event| !is_named(event)).collect();
        assert!(missing.is_empty(), "{OPERATIONS} does not name the events {missing:?}");
        let mut count = 0;
        for page in Page::all() {
            for name in assigned(page.text(), "event") {
                assert!(events.contains(&name), "{}: event={name}", page.path);
                count += 1;
            }
        }
        assert!(count >= 3, "{count}");
    }

    #[test]
    fn each_reason_is_named_and_each_name_is_a_reason() {
        let metrics = metrics();
        let reasons = label_values(&metrics, "ws_proxy_tunnels_ended_total", "reason");
        let named = Page::read("docs/closing.md").under("## Names in the log").column("`reason`");
        assert_same("reasons of an end", &named, &reasons);

        let outcomes = label_values(&metrics, "ws_proxy_handshakes_total", "outcome");
        let refusals = Page::read(OPERATIONS).under("### Connections").column("`reason`");
        let named = refusals.union(&outcomes_but_refusals()).cloned().collect();
        assert_same("outcomes of a handshake", &named, &outcomes);

        let causes = Page::read("docs/closing.md").under("## Closing handshake of the proxy");
        let causes = causes.tables().into_iter().flat_map(|table| table.rows);
        let causes: BTreeSet<_> = causes.map(|row| row[1].trim_matches('`').to_owned()).collect();
        assert!(causes.is_subset(&reasons), "{causes:?}");
        for page in Page::all() {
            for name in assigned(page.text(), "reason") {
                let is_known = reasons.contains(&name) || outcomes.contains(&name);
                assert!(is_known, "{}: reason={name}", page.path);
            }
        }
    }

    /// Returns the values of a field that a text shows, as in `event=stopped`.
    fn assigned(text: &str, field: &str) -> Vec<String> {
        let start = format!("{field}=");
        let values = text.split(&start).skip(1);
        let names = values.map(|rest| {
            rest.split(|it: char| !it.is_ascii_lowercase() && it != '_').next().unwrap()
        });
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// Returns the keys of a line.
    fn fields(line: &str) -> BTreeSet<String> {
        set(line.split(' ').filter_map(|field| Some(field.split_once('=')?.0)))
    }

    #[test]
    fn the_fields_of_a_tunnel_are_those_in_the_log() {
        let mut proxy = ProxyProgram::start("", "[log]\nlevel = \"debug\"");
        let (client, server) = proxy.tunnel();
        drop((client, server));
        let end = proxy.program.wait_for("event=tunnel_end");
        let frames = proxy.program.wait_for("event=tunnel_frames");
        let page = Page::read(OPERATIONS).under("### Connections");
        let common = ["time", "level", "event", "section", "id", "client"];
        let mut existing = fields(&end);
        common.iter().for_each(|name| assert!(existing.remove(*name), "{name} in {end}"));
        assert_same("fields of tunnel_end", &page.column("field"), &existing);

        // Those of the frames are named by their ends, for both sides.
        let code = page.code();
        let endings = code.iter().filter(|name| name.starts_with('_'));
        let named = endings.flat_map(|end| ["client", "backend"].map(|side| side.to_owned() + end));
        let mut existing = fields(&frames);
        let of_line = ["time", "level", "event", "section", "id"];
        of_line.iter().for_each(|name| assert!(existing.remove(*name), "{name} in {frames}"));
        assert_same("fields of tunnel_frames", &named.collect(), &existing);
    }

    #[test]
    fn each_metric_has_its_row_with_its_labels() {
        let metrics = metrics();
        let mut existing = BTreeMap::<String, BTreeSet<String>>::new();
        for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            existing.insert(line.split(' ').next().unwrap().to_owned(), BTreeSet::new());
        }
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            let (name, labels) = line.split_once('{').unwrap_or((line, ""));
            let name = name.split(' ').next().unwrap();
            let parts = ["_bucket", "_sum", "_count"];
            let whole = parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
            let Some(known) = existing.get_mut(whole) else { panic!("no type of {name}") };
            let labels = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0));
            // Each has the section, and each bucket its bound.
            known.extend(labels.filter(|label| !["section", "le"].contains(label)).map(Into::into));
        }
        existing.retain(|name, _| !name.starts_with("process_"));

        let page = Page::read(OPERATIONS).under("### Metrics");
        let tables = page.tables();
        let mut named = BTreeMap::new();
        for row in tables.iter().flat_map(|table| &table.rows) {
            let labels = set(row[1].split('`').skip(1).step_by(2));
            named.insert(row[0].trim_matches('`').to_owned(), labels);
        }
        assert!(named.remove("process_*").is_some());
        let names = |metrics: &BTreeMap<_, _>| metrics.keys().cloned().collect();
        assert_same("metrics", &names(&named), &names(&existing));
        for (name, labels) in &existing {
            assert_eq!(&named[name], labels, "labels of {name}");
        }

        // The values of labels are closed sets, and are named as well.
        let code = Page::read(OPERATIONS).code();
        for (metric, label) in table([
            ("ws_proxy_connect_failures_total", "kind"),
            ("ws_proxy_backend_health_checks_total", "result"),
            ("ws_proxy_close_codes_total", "from"),
            ("ws_proxy_messages_total", "kind"),
            ("ws_proxy_config_reloads_total", "result"),
        ]) {
            let values = label_values(&metrics, metric, label);
            assert!(!values.is_empty(), "{metric} {label}");
            for value in values {
                assert!(code.contains(&value), "{OPERATIONS}: {metric}: {label}=\"{value}\"");
            }
        }
        // Names of metrics elsewhere, with or without labels.
        for page in Page::all() {
            for code in page.code() {
                let name = code.split('{').next().unwrap();
                if name.starts_with("ws_proxy_") {
                    assert!(existing.contains_key(name), "{}: {code}", page.path);
                }
            }
        }
    }
}

mod admin {
    use super::*;

    /// Returns the names of an object.
    fn names(object: &Value) -> BTreeSet<String> {
        object.as_object().unwrap().keys().cloned().collect()
    }

    /// Returns the cell beside a request.
    fn response(request: &str) -> String {
        let tables = Page::read(OPERATIONS).under("## Admin").tables();
        let mut rows = tables.into_iter().flat_map(|table| table.rows);
        let name = format!("`{request}`");
        rows.find(|row| row[0] == name).unwrap_or_else(|| panic!("no row of {request}"))[1].clone()
    }

    #[test]
    fn each_path_has_a_row_and_each_row_is_answered() {
        let site = Site::start(&["\"127.0.0.1:1\"".to_owned()], "");
        let named = Page::read(OPERATIONS).under("## Admin").column("request");
        let (status, body) = ask(site.admin, "GET /nothing");
        assert_eq!(status, 404);
        let (_, paths) = body.trim_end().split_once("ask for one of ").unwrap();
        let path = |request: &str| {
            let path = request.split(' ').nth(1).unwrap();
            path.split('?').next().unwrap().to_owned()
        };
        let named_paths = named.iter().map(|request| path(request)).collect();
        assert_same("paths", &named_paths, &set(paths.split(", ")));
        for request in named.iter().filter(|request| !request.starts_with("POST ")) {
            // There is no such tunnel, and no filter, which is told where they belong.
            let start = request.replace("{id}", "1").replace("?…", "");
            let (status, body) = ask(site.admin, &start);
            assert!(status != 405 && !body.contains("no such page"), "{start}: {status} {body}");
        }
    }

    #[test]
    fn the_names_in_lists_and_in_the_status_are_those_of_the_program() {
        let backend = Backend::start();
        let site = Site::start(&[element(backend.address, "")], "");
        let (mut client, mut server) = Peer::tunnel(site.proxy, &backend);
        let json = |path: &str| -> Value {
            let (status, body) = ask(site.admin, &format!("GET {path}"));
            assert_eq!(status, 200, "{path}: {body}");
            serde_json::from_str(&body).unwrap()
        };
        let page = Page::read(OPERATIONS).under("## Admin");
        // The client may have its 101 before the tunnel is in the list.
        wait_until("the tunnel is listed", || json("/tunnels")[0].is_object());
        let tunnels = page.under("### Open tunnels").column("name");
        assert_same("/tunnels", &tunnels, &names(&json("/tunnels")[0]));
        let status = page.under("### Status");
        assert_same("/status", &status.column("name"), &names(&json("/status")));
        for path in table(["/sections", "/backends"]) {
            let cell = response(&format!("GET {path}"));
            for name in names(&json(path)[0]) {
                assert!(cell.contains(&format!("`{name}`")), "{path}: {name} is not described");
            }
        }
        client.send(From::Client.close(1000));
        server.read_frame();
        server.send(From::Backend.close(1000));
        drop((client, server));
        let ended = || json("/status")["endings"][0].is_object();
        wait_until("the ending is told", ended);
        let tables = status.tables();
        let row_of = |name: &str| {
            let name = format!("`{name}`");
            tables.iter().flat_map(|table| &table.rows).find(|row| row[0] == name).unwrap()
        };
        let known = names(&json("/sections")[0]);
        for (list, others) in table([("endings", BTreeSet::new()), ("sections", known)]) {
            for name in names(&json("/status")[list][0]).difference(&others) {
                let cell = &row_of(list)[1];
                assert!(cell.contains(&format!("`{name}`")), "{list}: {name} is not described");
            }
        }
    }
}

mod names {
    use super::*;

    #[test]
    fn each_link_leads_somewhere() {
        let mut count = 0;
        for page in Page::all() {
            let folder = Path::new(&page.path).parent().unwrap();
            for link in page.links() {
                if link.contains("://") {
                    continue;
                }
                let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
                let place = format!("{}: ({link})", page.path);
                let target = match path {
                    "" => page.path.clone(),
                    path => resolved(&folder.join(path)),
                };
                assert!(root().join(&target).exists(), "{place}");
                if !anchor.is_empty() {
                    assert!(Page::read(&target).anchors().contains(anchor), "{place}");
                }
                count += 1;
            }
        }
        assert!(count > 50, "{count}");
    }

    /// Returns a path without its steps back.
    fn resolved(path: &Path) -> String {
        let mut parts = Vec::new();
        for part in path.to_str().unwrap().split('/') {
            match part {
                ".." => assert!(parts.pop().is_some(), "{path:?} leads out of the repository"),
                "." | "" => {}
                part => parts.push(part),
            }
        }
        parts.join("/")
    }

    /// Returns whether a word is the path of a file or of a folder.
    fn is_path(word: &str) -> bool {
        let ends = [
            ".rs", ".md", ".sh", ".py", ".toml", ".yaml", ".yml", ".cfg", ".conf", ".service",
            ".html", ".txt",
        ];
        let folders = [
            "src/",
            "tests/",
            "docs/",
            "deploy/",
            "benches/",
            "fuzz/",
            "examples/",
            ".github/",
            ".ci/",
            ".cargo/",
        ];
        let is_plain = |it: char| it.is_ascii_alphanumeric() || ['.', '_', '-', '/'].contains(&it);
        let is_relative = !word.starts_with(['/', '.', '-']) || word.starts_with(".ci/");
        word.chars().all(is_plain)
            && is_relative
            && (ends.iter().any(|end| word.ends_with(end) && word.len() > end.len())
                || folders.iter().any(|folder| word.starts_with(folder)))
    }

    #[test]
    fn each_file_that_is_named_exists() {
        let files = files();
        let texts = sources::texts();
        let mut count = 0;
        for page in Page::all() {
            let blocks = page.blocks("sh").into_iter().chain(page.blocks(""));
            let code = blocks.chain(page.code()).collect::<Vec<_>>().join(" ");
            for word in code.split_whitespace().filter(|word| is_path(word)) {
                let name = word.trim_end_matches('/');
                // Pages name what is in their own folder, or in one that they have named before.
                let ends_so = |file: &String| {
                    format!("/{file}").ends_with(&format!("/{name}"))
                        || format!("/{file}").contains(&format!("/{name}/"))
                };
                // Some are files of the user, whose names the program knows.
                let is_known = || texts.iter().any(|text| text.contains(name));
                // A Deployment, to kubectl.
                if name == "deploy/chat" {
                    continue;
                }
                assert!(files.iter().any(ends_so) || is_known(), "{}: {word}", page.path);
                count += 1;
            }
        }
        assert!(count > 50, "{count}");
    }

    /// Every name with an underscore in it is one of the sources', be it a key, a field or a
    /// function: what has been renamed there is found here.
    #[test]
    fn each_name_in_code_is_one_of_the_sources() {
        let texts = sources::texts();
        let words = sources::words(&texts);
        let mut foreign = BTreeSet::new();
        let mut count = 0;
        for page in Page::all() {
            // The changes name what is no more.
            if page.path == "CHANGELOG.md" {
                continue;
            }
            // That page names options of other programs, beside a column of ours.
            let is_comparison = page.path == "docs/comparison.md";
            let code = if is_comparison { page.cells("ws-proxy") } else { page.code() };
            for code in code {
                let names = code.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
                for name in names.filter(|name| name.trim_matches('_').contains('_')) {
                    // Histograms and counters get an ending when they are written.
                    let whole = name.trim_end_matches("_total").trim_end_matches("_info");
                    if words.contains(name) || words.contains(whole) {
                        count += 1;
                    } else {
                        assert!(FOREIGN.contains(&name), "{}: {name} is in no source", page.path);
                        foreign.insert(name.to_owned());
                    }
                }
            }
        }
        assert!(count > 200, "{count}");
        assert_same("foreign names", &set(FOREIGN), &foreign);
    }

    #[test]
    fn each_feature_is_described_in_the_library() {
        let manifest = read("Cargo.toml");
        let (_, features) = manifest.split_once("\n[features]\n").unwrap();
        let features = features.split("\n[").next().unwrap();
        let names =
            features.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
        // Of these nothing is promised, and the default is no feature of its own.
        let names = names.filter(|name| !["default", "internals"].contains(name));
        let library = read("src/lib.rs");
        let (_, described) = library.split_once("//! # Features\n").unwrap();
        let described = described.split("//! # ").next().unwrap();
        let rows = described.lines().filter_map(|line| line.strip_prefix("//! - `"));
        let named = rows.filter_map(|row| row.split('`').next());
        assert_same("features", &set(named), &set(names));
    }

    #[test]
    fn the_layout_names_every_folder_of_the_sources() {
        let layout = Page::read("docs/design.md").under("## Code layout");
        let text = layout.text();
        for file in files().iter().filter(|file| file.starts_with("src/") && file.ends_with(".rs"))
        {
            let parts: Vec<_> = file.split('/').collect();
            let is_named = match parts[..] {
                ["src", name] => {
                    let name = name.trim_end_matches(".rs");
                    // The roots of the library and of its doors.
                    ["lib", "internals"].contains(&name)
                        || text.contains(&format!("`{name}`"))
                        || text.contains(&format!("`src/{name}.rs`"))
                }
                ["src", folder, ..] => {
                    text.contains(&format!("`src/{folder}/`"))
                        || text.contains(&format!("`src/{folder}/ws-proxy/`"))
                        // A room that is a file and its parts.
                        || text.contains(&format!("`{folder}`"))
                }
                _ => false,
            };
            assert!(is_named, "the code layout does not name {file}");
        }
    }
}
