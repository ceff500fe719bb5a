//! Configuration text: TOML, read and checked.
//!
//! [`table`] reads a table, and gives each fault its line; [`effective`] writes what is in force.

mod effective;
mod table;

use std::collections::BTreeSet;
use std::time::Duration;

use log::LevelFilter;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use self::table::ConfigError;
use self::table::{SourceText, Table, entry};
use crate::builder::WsProxy;
use crate::net::address::Address;
#[cfg(feature = "admin")]
use crate::settings::{AdminConfig, RawAdmin};
use crate::settings::{
    Drain, Invalid, LogFormat, OnRemoved, RawDrain, RawHealthCheck, RawLog, RawSection,
};

/// Key of the sections.
const SECTIONS: &str = "ws_proxy";
/// Key of the table of a section's health checks.
const HEALTH_CHECK: &str = "health_check";
/// Key of the number of worker threads.
const WORKERS: &str = "workers";
/// Key of the time between two looks at the file.
const WATCH: &str = "watch_config_ms";
/// Key of the treatment of sections that a reload removes.
const ON_REMOVED: &str = "on_removed";
/// Key of the drain's table.
const DRAIN: &str = "drain";
/// Key of the log's table.
const LOG: &str = "log";
/// Key of the admin listener's table.
#[cfg(feature = "admin")]
const ADMIN: &str = "admin";
/// Keys at the top level that are ws-proxy's.
const OWN_KEYS: &[&str] = &[
    SECTIONS,
    WORKERS,
    WATCH,
    ON_REMOVED,
    DRAIN,
    LOG,
    #[cfg(feature = "admin")]
    ADMIN,
];
/// Largest number of worker threads, above any use for them.
const MAX_WORKERS: i64 = 1_024;
/// Error text where there is no section.
const NO_SECTION: &str = "there is no [[ws_proxy]] section: add one with bind and backends";

/// A checked configuration: everything in it can be used, though nothing has been opened yet.
///
/// ```
/// let config = ws_proxy::Config::parse(
///     r#"
///     [[ws_proxy]]
///     bind = "0.0.0.0:8080"
///     backends = ["chat-backend:9000", "chat-backend:9001"]
///     "#,
/// )?;
/// assert_eq!(config.sections.len(), 1);
/// assert_eq!(config.sections[0].bind, "0.0.0.0:8080");
/// # Ok::<(), ws_proxy::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The `[[ws_proxy]]` sections in the order of the text; at least one.
    pub sections: Vec<SectionConfig>,
    /// Number of worker threads that all sections share, as [`Workers::start`](crate::Workers)
    /// takes it. Default: 0, one per CPU.
    pub workers: usize,
    /// Time between two looks at the file for changes, `watch_config_ms`, for the program that
    /// reloads it. Default: zero, it is not watched.
    pub watch_interval: Duration,
    /// Treatment of the tunnels of sections that a reload removes, for that program likewise.
    /// Default: [`OnRemoved::Keep`].
    pub on_removed: OnRemoved,
    /// Format of the log's lines, `format` in `[log]`, for the program's logger: the library emits
    /// records of the [`log`] crate, and writes none. Default: [`LogFormat::Text`].
    pub log_format: LogFormat,
    /// Most verbose level that is logged, `level` in `[log]`, for the program's logger likewise.
    /// Default: [`LevelFilter::Info`].
    pub log_level: LevelFilter,
    /// Settings of the admin listener, the table `[admin]`. Default: `None`, no such listener.
    /// Without the feature `admin` the table is none of ws-proxy's.
    #[cfg(feature = "admin")]
    pub admin: Option<AdminConfig>,
    /// Top-level keys and tables that are not ws-proxy's, in alphabetical order.
    pub ignored: Vec<String>,
}

/// One `[[ws_proxy]]` section.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SectionConfig {
    /// Address to listen on, for [`WsProxy::listen`].
    pub bind: String,
    /// Proxy with all other settings of the section, and with those of `[drain]`.
    pub proxy: WsProxy,
}

impl SectionConfig {
    /// Returns a section that no text was read for, as from a command line.
    #[must_use]
    pub fn new(bind: impl Into<String>, proxy: WsProxy) -> Self {
        Self { bind: bind.into(), proxy }
    }
}

impl Config {
    /// Reads TOML text with one or more `[[ws_proxy]]` sections.
    ///
    /// Other tables and keys at the top level are left alone and listed in [`Config::ignored`], so
    /// that the text may configure other programs too.
    ///
    /// # Errors
    ///
    /// The first fault: broken TOML, a wrong type, an unknown key in a section, a value that
    /// cannot be used, no section, two sections on one port.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let source = SourceText(text);
        let document =
            DeTable::parse(text).map_err(|error| source.toml_error(&error, None))?.into_inner();

        let sections = read_sections(&document, source)?;
        let workers = read_workers(&document, source)?;
        let watch_interval = read_watch_interval(&document, source)?;
        let on_removed = read_value(&document, ON_REMOVED, source)?.unwrap_or_default();
        let drain = read_drain(&document, source)?;
        let (log_format, log_level) = read_log(&document, source)?;
        #[cfg(feature = "admin")]
        let admin = read_admin(&document, &sections, source)?;

        let with_drain = |section: CheckedSection| {
            SectionConfig::new(section.bind, section.proxy.with_drain(drain.clone()))
        };
        Ok(Self {
            sections: sections.into_iter().map(with_drain).collect(),
            workers,
            watch_interval,
            on_removed,
            log_format,
            log_level,
            #[cfg(feature = "admin")]
            admin,
            ignored: foreign_keys(&document),
        })
    }

    /// Returns a configuration that no text was read for, as from a command line: these sections,
    /// and the defaults for everything else.
    #[must_use]
    pub fn new(sections: Vec<SectionConfig>) -> Self {
        Self {
            sections,
            workers: 0,
            watch_interval: Duration::ZERO,
            on_removed: OnRemoved::default(),
            log_format: LogFormat::default(),
            log_level: LevelFilter::Info,
            #[cfg(feature = "admin")]
            admin: None,
            ignored: Vec::new(),
        }
    }
}

/// A section, and what its neighbours are compared with.
struct CheckedSection {
    bind: String,
    proxy: WsProxy,
    address: Address,
    /// Offset of the bind address in the text.
    bind_at: usize,
    /// Backends, each with its offset.
    backends: Vec<(Address, usize)>,
}

fn read_sections(
    document: &DeTable<'_>,
    source: SourceText<'_>,
) -> Result<Vec<CheckedSection>, ConfigError> {
    let Some((name, value)) = entry(document, SECTIONS) else {
        return Err(ConfigError { line: None, key: None, problem: NO_SECTION.to_owned() });
    };
    let fault = |problem: &str| source.error(name.span().start, Some(SECTIONS), problem);
    let tables = match value.get_ref() {
        DeValue::Array(tables) if tables.is_empty() => return Err(fault(NO_SECTION)),
        DeValue::Array(tables) => tables,
        _ => {
            return Err(fault("must be an array of tables: write [[ws_proxy]], with two brackets"));
        }
    };
    let mut sections = Vec::new();
    for table in tables {
        sections.push(read_section(table, source)?);
    }
    refuse_collisions(&sections, source)?;
    refuse_loops(&sections, source)?;
    Ok(sections)
}

fn read_section(
    table: &Spanned<DeValue<'_>>,
    source: SourceText<'_>,
) -> Result<CheckedSection, ConfigError> {
    let table = Table::new(table, SECTIONS, "[[ws_proxy]]", source)?;
    // First, as its faults have lines and keys of their own.
    if let Some(checks) = table.nested(HEALTH_CHECK, "[ws_proxy.health_check]")? {
        let raw: RawHealthCheck = checks.read(RawHealthCheck::KEYS)?;
        raw.check().map_err(|invalid| checks.invalid(invalid))?;
    }
    let raw: RawSection = table.read(RawSection::KEYS)?;
    // The file's own [drain] is checked apart, since its errors belong to its lines.
    let settings = raw.check(&Drain::default()).map_err(|invalid| table.invalid(invalid))?;
    let backends = settings.backends.into_iter().enumerate();
    Ok(CheckedSection {
        backends: backends
            .map(|(index, it)| (it.address, table.element_at("backends", index)))
            .collect(),
        bind: raw.bind.clone().unwrap_or_default(),
        address: settings.bind,
        bind_at: table.at("bind"),
        proxy: WsProxy::from(raw),
    })
}

fn refuse_collisions(
    sections: &[CheckedSection],
    source: SourceText<'_>,
) -> Result<(), ConfigError> {
    for (index, later) in sections.iter().enumerate() {
        let collides = |first: &&CheckedSection| first.address.collides_with(&later.address);
        if let Some(first) = sections[..index].iter().find(collides) {
            let problem = format!(
                "{} is taken by the section whose bind is on line {}: \
                 each section needs a port of its own",
                later.address,
                source.line(first.bind_at),
            );
            return Err(source.error(later.bind_at, Some("bind"), problem));
        }
    }
    Ok(())
}

/// Refuses sections that lead to each other in a circle, of any length.
fn refuse_loops(sections: &[CheckedSection], source: SourceText<'_>) -> Result<(), ConfigError> {
    for (index, section) in sections.iter().enumerate() {
        for (backend, at) in &section.backends {
            let Some(next) = reached_section(sections, backend) else { continue };
            if !sections_behind(sections, next).contains(&index) {
                continue;
            }
            let problem = format!(
                "{backend} leads to the section whose bind is on line {}, whose backends lead back \
                 to this one: name the address of the app",
                source.line(sections[next].bind_at),
            );
            return Err(source.error(*at, Some("backends"), problem));
        }
    }
    Ok(())
}

/// Returns the section that a backend leads to, if it is none of another program.
fn reached_section(sections: &[CheckedSection], backend: &Address) -> Option<usize> {
    sections.iter().position(|section| section.address.is_reached_by(backend))
}

/// Returns this section and all those that its handshakes may come to.
fn sections_behind(sections: &[CheckedSection], first: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![first];
    while let Some(next) = waiting.pop() {
        if found.insert(next) {
            let backends = sections[next].backends.iter();
            waiting.extend(backends.filter_map(|(it, _)| reached_section(sections, it)));
        }
    }
    found
}

/// Reads the value of a key at the top level, if it is given.
fn read_value<'i, T: Deserialize<'i>>(
    document: &DeTable<'i>,
    key: &str,
    source: SourceText<'_>,
) -> Result<Option<T>, ConfigError> {
    let Some((_, value)) = entry(document, key) else { return Ok(None) };
    T::deserialize(value.clone().into_deserializer())
        .map(Some)
        .map_err(|error| source.toml_error(&error, Some(key)))
}

/// Returns the error of a number at the top level that is not allowed.
fn out_of_range(
    document: &DeTable<'_>,
    key: &str,
    (given, allowed): (i64, &str),
    source: SourceText<'_>,
) -> ConfigError {
    let at = entry(document, key).map_or(0, |(name, _)| name.span().start);
    source.error(at, Some(key), format!("{given} is out of range ({allowed})"))
}

fn read_workers(document: &DeTable<'_>, source: SourceText<'_>) -> Result<usize, ConfigError> {
    let workers = read_value(document, WORKERS, source)?.unwrap_or(0);
    match usize::try_from(workers) {
        Ok(number) if workers <= MAX_WORKERS => Ok(number),
        _ => {
            let allowed = format!("0 for one per CPU, or 1 to {MAX_WORKERS}");
            Err(out_of_range(document, WORKERS, (workers, &allowed), source))
        }
    }
}

fn read_watch_interval(
    document: &DeTable<'_>,
    source: SourceText<'_>,
) -> Result<Duration, ConfigError> {
    let ms: i64 = read_value(document, WATCH, source)?.unwrap_or(0);
    u64::try_from(ms).map(Duration::from_millis).map_err(|_| {
        let allowed = "0 for not at all, or a positive number of milliseconds";
        out_of_range(document, WATCH, (ms, allowed), source)
    })
}

fn read_drain(document: &DeTable<'_>, source: SourceText<'_>) -> Result<RawDrain, ConfigError> {
    let Some((_, value)) = entry(document, DRAIN) else { return Ok(RawDrain::default()) };
    let table = Table::new(value, DRAIN, "[drain]", source)?;
    let drain: RawDrain = table.read(RawDrain::KEYS)?;
    drain.check().map_err(|invalid| {
        // The builder's methods have the table's name before the key, the table has not.
        let key = invalid.key.strip_prefix("drain_").unwrap_or(invalid.key);
        table.invalid(Invalid { key, ..invalid })
    })?;
    Ok(drain)
}

fn read_log(
    document: &DeTable<'_>,
    source: SourceText<'_>,
) -> Result<(LogFormat, LevelFilter), ConfigError> {
    let log = match entry(document, LOG) {
        Some((_, value)) => Table::new(value, LOG, "[log]", source)?.read(RawLog::KEYS)?,
        None => RawLog::default(),
    };
    Ok((log.format.unwrap_or_default(), log.level.unwrap_or_default().into()))
}

/// Reads the admin listener's table, and compares its address with those of the sections.
#[cfg(feature = "admin")]
fn read_admin(
    document: &DeTable<'_>,
    sections: &[CheckedSection],
    source: SourceText<'_>,
) -> Result<Option<AdminConfig>, ConfigError> {
    let Some((_, value)) = entry(document, ADMIN) else { return Ok(None) };
    let table = Table::new(value, ADMIN, "[admin]", source)?;
    let raw: RawAdmin = table.read(RawAdmin::KEYS)?;
    let settings = raw.check().map_err(|invalid| table.invalid(invalid))?;
    if let Some(section) = sections.iter().find(|one| one.address.collides_with(&settings.bind)) {
        let problem = format!(
            "{} is taken by the section whose bind is on line {}: \
             the admin listener needs a port of its own",
            settings.bind,
            source.line(section.bind_at),
        );
        return Err(source.error(table.at("bind"), Some("bind"), problem));
    }
    Ok(Some(raw.into()))
}

/// Returns the top-level keys that belong to other programs.
fn foreign_keys(document: &DeTable<'_>) -> Vec<String> {
    let keys = document.keys().map(|name| name.get_ref().as_ref());
    keys.filter(|key| !OWN_KEYS.contains(key)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handshake::hash_on::HashOn;
    use crate::handshake::learn_from::LearnFrom;

    const GOOD: &str = "[[ws_proxy]]\nbind = \"127.0.0.1:8080\"\nbackends = [\"a:1\"]\n";

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_file_of_another_program_works() {
        let text = format!(
            "ip = '127.0.0.1'\nport = 7888\n[cors]\nallow_all = false\n{GOOD}{}",
            GOOD.replace("8080", "0")
        );
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.sections.len(), 2);
        assert_eq!(config.ignored, ["cors", "ip", "port"]);
        assert_eq!(config.workers, 0);
    }

    #[test]
    fn an_error_is_one_line_whatever_the_text_has() {
        for (line, expected) in [
            (r#""a\nb\u001b[31m\u2028" = 1"#, r"4: a\nb\u{1b}[31m\u{2028}: unknown key; "),
            (r#"balance = "a\u001bb""#, r"4: balance: unknown value `a\u{1b}b`, "),
        ] {
            let error = error(&format!("{GOOD}{line}\n"));
            assert!(error.starts_with(expected) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_key_that_stands_there_twice_is_named() {
        for (text, expected) in [
            (format!("{GOOD}name = \"a\"\nname = \"b\"\n"), "5: name: duplicate key"),
            (format!("{GOOD}[drain]\n[drain]\n"), "5: drain: duplicate key"),
            (format!("[ws_proxy.health_check]\n{GOOD}"), "2: ws_proxy: duplicate key"),
        ] {
            assert_eq!(error(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_number_beyond_toml_is_called_one() {
        for number in ["99999999999999999999", "-99999999999999999999", &"9".repeat(38)] {
            let expected =
                format!("4: eject_ms: `{number}` is out of range: a number has at most 64 bits");
            assert_eq!(error(&format!("{GOOD}eject_ms = {number}\n")), expected);
        }
    }

    #[test]
    fn sections_that_lead_to_themselves_are_refused() {
        let section = |bind: &str, backends: &str| {
            format!("[[ws_proxy]]\nbind = \"{bind}\"\nbackends = [{backends}]\n")
        };
        let itself = section("0.0.0.0:80", "\"app:1\",\n\"localhost\"");
        let expected = "4: backends: localhost is this section's own listener (bind 0.0.0.0:80): \
                        name the address of the app";
        assert_eq!(error(&itself), expected);
        // A leads to B, B to C, and C back to A, beside an app.
        let one = section("127.0.0.1:1", "\"127.0.0.1:2\"");
        let two = section("0.0.0.0:2", "\"app:1\", \"127.0.0.1:3\"");
        let chain = section("127.0.0.1:3", "\"app:1\"");
        let back = section("127.0.0.1:3", "\"app:1\", \"127.0.0.1:1\"");
        assert!(Config::parse(&[&*one, &two, &chain].concat()).is_ok());
        assert_eq!(
            error(&[&*one, &two, &back].concat()),
            "3: backends: 127.0.0.1:2 leads to the section whose bind is on line 5, whose backends \
             lead back to this one: name the address of the app"
        );
        // A chain into a circle is none itself.
        let into = section("127.0.0.1:4", "\"127.0.0.1:1\"");
        assert!(error(&[&*into, &one, &two, &back].concat()).starts_with("6: backends: "));
        // Ports that are free for the taking are nobody's.
        assert!(Config::parse(&section("127.0.0.1:0", "\"127.0.0.1:1\"")).is_ok());
    }

    #[test]
    fn settings_without_effect_are_refused() {
        let with = |lines: &str| Config::parse(&format!("{GOOD}{lines}"));
        for (lines, key) in [
            ("pong_timeout_ms = 5000", "pong_timeout_ms"),
            ("pong_timeout_ms = 5000\nping_interval_ms = 0", "pong_timeout_ms"),
            ("rate_action = \"close\"", "rate_action"),
            ("rate_action = \"close\"\nmax_messages_per_second = 0", "rate_action"),
        ] {
            let error = with(lines).unwrap_err();
            assert_eq!((error.line, error.key.as_deref()), (Some(4), Some(key)), "{lines}");
            assert!(error.problem.contains("no effect without"), "{}", error.problem);
        }
        for lines in [
            "pong_timeout_ms = 0",
            "pong_timeout_ms = 5000\nping_interval_ms = 1",
            "rate_action = \"pause\"",
            "rate_action = \"close\"\nmax_frames_per_second = 1",
            "lifetime_close_code = 4000",
        ] {
            assert!(with(lines).is_ok(), "{lines}");
        }
    }

    #[test]
    fn a_head_has_a_bound_within_bounds() {
        let with = |bytes: &str| Config::parse(&format!("{GOOD}max_head_bytes = {bytes}"));
        for bytes in ["256", "8192", "1048576"] {
            assert!(with(bytes).is_ok(), "{bytes}");
        }
        for bytes in ["0", "-1", "255", "1048577"] {
            let error = with(bytes).unwrap_err().to_string();
            let expected = format!(
                "4: max_head_bytes: {bytes} is out of range (256 to 1048576, by default 8192)"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
workers = 2
[drain]
delay_ms = 1
spread_ms = 2
timeout_ms = 50
close_code = 4000
close_grace_ms = 3
[log]
format = "json"
level = "debug"
[[ws_proxy]]
name = "n"
bind = "unix:/run/ws-proxy.sock"
backends = ["ws://a:1", { address = "[::1]", weight = 3, max_tunnels = 5, backup = true }]
balance = "hash"
hash_on = "query:sid"
learn_from = "json:id"
connect_timeout_ms = 1
resolve = "watch"
resolve_interval_ms = 12
on_removed = "drain"
queue_timeout_ms = 14
queue_size = 15
max_failures = 16
eject_ms = 17
max_ejected_percent = 18
early_reset_ms = 19
slow_start_ms = 20
rebalance = true
rebalance_code = 4021
rebalance_per_second = 22
read_timeout_ms = 2
response_timeout_ms = 3
host = "preserve"
forwarded = "off"
origins = ["https://*.example.com", "none"]
max_connections = 4
socket_buffer_bytes = 4096
socket_mode = "0660"
ping_interval_ms = 5
pong_timeout_ms = 6
idle_timeout_ms = 7
max_lifetime_ms = 8
blocked_timeout_ms = 12
lifetime_close_code = 1012
max_message_bytes = 9
max_frame_bytes = 10
max_messages_per_second = 11
max_frames_per_second = 13
rate_action = "close"
strict_frames = true
strict_handshake = true
retry_on = ["502", "bad_answer"]
max_head_bytes = 16384
backend_lost_code = 1014
client_lost_code = 1001
tunnel_start = true
health_path = "/healthz"
plain_http = "forward"
max_body_bytes = 24
keep_alive_timeout_ms = 25
body_timeout_ms = 26
[ws_proxy.health_check]
kind = "http"
path = "/up"
interval_ms = 23
timeout_ms = 24
healthy_threshold = 25
unhealthy_threshold = 26
headers = { X-Probe = "1", Authorization = "Bearer x" }
host = "app.test"
expect_status = [204, "200-201"]
on_unhealthy = "drain"
"#;
        let keys = [RawSection::KEYS, RawDrain::KEYS, RawLog::KEYS, RawHealthCheck::KEYS].concat();
        for key in keys.into_iter().filter(|&key| key != HEALTH_CHECK) {
            assert!(text.contains(&format!("\n{key} = ")), "{key} is not in this test");
        }
        #[cfg(feature = "admin")]
        {
            let admin = "[admin]\nbind = \"[::1]:9600\"\nhosts = [\"proxy.example\"]\n\
                         token_file = \"/nothing/here\"\n";
            for key in RawAdmin::KEYS {
                assert!(admin.contains(&format!("\n{key} = ")), "{key} is not in this test");
            }
            assert!(error(&format!("{text}{admin}")).contains(": token_file: /nothing/here"));
            let admin = admin.rsplit_once("token_file").unwrap().0;
            let config = Config::parse(&format!("{text}{admin}")).unwrap();
            assert_eq!(config.admin.unwrap().bind_address(), "[::1]:9600");
            assert!(config.ignored.is_empty());
        }
        let config = Config::parse(text).unwrap();
        assert_eq!(config.workers, 2);
        assert_eq!((config.log_format, config.log_level), (LogFormat::Json, LevelFilter::Debug));
        let (settings, drain) =
            config.sections[0].proxy.settings("unix:/run/ws-proxy.sock").unwrap();
        assert_eq!(settings.name.as_deref(), Some("n"));
        let [first, second] = &*settings.backends else { panic!("{settings:?}") };
        assert_eq!((first.weight, first.max_tunnels, first.is_backup), (1, None, false));
        assert_eq!((second.weight, second.max_tunnels, second.is_backup), (3, Some(5), true));
        assert_eq!(second.address.authority, "[::1]");
        assert_eq!(settings.balance, crate::Balance::Hash);
        assert_eq!(settings.hash_on, Some(HashOn::Query("sid".to_owned())));
        assert_eq!(settings.learn_from, Some(LearnFrom::Json("id".to_owned())));
        assert_eq!(settings.connect_timeout, Duration::from_millis(1));
        assert_eq!(settings.resolve, crate::Resolve::Watch);
        assert_eq!(settings.resolve_interval, Duration::from_millis(12));
        assert_eq!(settings.on_removed, OnRemoved::Drain);
        assert_eq!((settings.queue_timeout.as_millis(), settings.queue_size), (14, 15));
        let health = settings.health;
        assert_eq!((health.max_failures, health.eject.as_millis()), (16, 17));
        assert_eq!((settings.max_ejected_percent, health.slow_start.as_millis()), (18, 20));
        assert_eq!(settings.early_reset, Some(Duration::from_millis(19)));
        let rebalance = settings.rebalance.unwrap();
        assert_eq!((rebalance.code, rebalance.per_second.get()), (4021, 22));
        let checks = health.checks.unwrap();
        assert_eq!((checks.healthy_threshold, checks.unhealthy_threshold), (25, 26));
        let check = settings.health_check.unwrap();
        assert_eq!((check.kind, &*check.path), (crate::CheckKind::Http, "/up"));
        assert_eq!((check.interval.as_millis(), check.timeout.as_millis()), (23, 24));
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = [header("Authorization", "Bearer x"), header("X-Probe", "1")];
        assert_eq!(check.headers, headers);
        assert_eq!(
            (check.host.as_deref(), &*check.expected.to_string()),
            (Some("app.test"), "200-201,204")
        );
        assert_eq!(check.on_unhealthy, crate::OnUnhealthy::Drain);
        assert_eq!(settings.read_timeout, Duration::from_millis(2));
        assert_eq!(settings.response_timeout, Duration::from_millis(3));
        assert_eq!(settings.host, crate::HostHeader::Preserve);
        assert_eq!(settings.forwarded, crate::Forwarded::Off);
        assert!(settings.origins.is_some_and(|origins| origins.allows(None)));
        assert_eq!((settings.max_connections, settings.socket_buffer), (Some(4), Some(4096)));
        assert_eq!((settings.strict_handshake, settings.max_head), (true, 16_384));
        assert!(settings.retry_on.has_status(502) && settings.retry_on.has_bad_answer());
        assert_eq!((settings.tunnel_start, settings.socket_mode), (true, Some(0o660)));
        let plain = &settings.plain;
        assert_eq!(plain.health_path.as_deref(), Some("/healthz"));
        assert_eq!((plain.treatment, plain.max_body), (crate::PlainHttp::Forward, Some(24)));
        assert_eq!(plain.keep_alive_timeout, Duration::from_millis(25));
        assert_eq!(plain.body_timeout, Some(Duration::from_millis(26)));
        let policy = &settings.policy;
        assert_eq!(policy.ping_interval, Some(Duration::from_millis(5)));
        assert_eq!(policy.pong_timeout, Duration::from_millis(6));
        assert_eq!(policy.idle_timeout, Some(Duration::from_millis(7)));
        assert_eq!(policy.max_lifetime, Some(Duration::from_millis(8)));
        assert_eq!(policy.blocked_timeout, Some(Duration::from_millis(12)));
        assert_eq!(policy.lifetime_close_code, 1012);
        assert_eq!((policy.max_message, policy.max_frame), (Some(9), Some(10)));
        assert_eq!(
            (policy.max_messages_per_second, policy.max_frames_per_second, policy.rate_action),
            (Some(11), Some(13), crate::RateAction::Close)
        );
        assert!(policy.strict_frames);
        assert_eq!((policy.backend_lost_code, policy.client_lost_code), (Some(1014), Some(1001)));
        assert_eq!(
            (drain.delay, drain.spread),
            (Duration::from_millis(1), Duration::from_millis(2))
        );
        assert_eq!((drain.timeout, drain.close_code), (Duration::from_millis(50), 4000));
        assert_eq!(drain.close_grace, Duration::from_millis(3));
    }

    #[test]
    fn the_log_has_a_format_and_a_level() {
        let read = |lines: &str| {
            let config = Config::parse(&format!("{lines}\n{GOOD}")).unwrap();
            (config.log_format, config.log_level)
        };
        assert_eq!(read(""), (LogFormat::Text, LevelFilter::Info));
        assert_eq!(read("[log]"), (LogFormat::Text, LevelFilter::Info));
        assert_eq!(read("[log]\nformat = \"json\""), (LogFormat::Json, LevelFilter::Info));
        let rows = [
            ("off", LevelFilter::Off),
            ("error", LevelFilter::Error),
            ("warn", LevelFilter::Warn),
            ("info", LevelFilter::Info),
            ("debug", LevelFilter::Debug),
            ("trace", LevelFilter::Trace),
        ];
        for (name, level) in rows {
            assert_eq!(read(&format!("[log]\nlevel = \"{name}\"")), (LogFormat::Text, level));
        }
    }

    #[test]
    fn faults_are_named_with_line_and_key() {
        let with = |line: &str| format!("{GOOD}{line}\n");
        let backends =
            |list: &str| format!("[[ws_proxy]]\nbind = \"127.0.0.1:1\"\nbackends = [{list}]\n");
        let cases = [
            (String::new(), "there is no [[ws_proxy]] section"),
            ("x = 1\n".to_owned(), "there is no [[ws_proxy]] section"),
            ("ws_proxy = []".to_owned(), "1: ws_proxy: there is no [[ws_proxy]]"),
            ("\n[ws_proxy]\nbind = 1".to_owned(), "2: ws_proxy: must be an array of tables"),
            (
                "ws_proxy = [1]".to_owned(),
                "1: ws_proxy: must be a table, but is of type integer: write [[ws_proxy]]",
            ),
            (with("bind = "), "4: "),
            (
                with("connect_timeout_ms = \"5\""),
                "4: connect_timeout_ms: invalid type: string \"5\", expected an integer",
            ),
            (
                with("read_timeout_ms = 1.5"),
                "4: read_timeout_ms: invalid type: floating point `1.5`, expected an integer",
            ),
            (
                with("read_timeout_ms = 0"),
                "4: read_timeout_ms: must be at least 1 (milliseconds), got 0",
            ),
            (
                with("socket_buffer_bytes = 4095"),
                "4: socket_buffer_bytes: 4095 is out of range (0 for the system's default, or ",
            ),
            (
                with("socket_buffer_bytes = 4294967296"),
                "4: socket_buffer_bytes: 4294967296 is out of range",
            ),
            (
                with("\nresponse_timeout_ms = -3"),
                "5: response_timeout_ms: must be at least 1 (milliseconds), got -3",
            ),
            (
                with("host = \"both\""),
                "4: host: unknown value `both`, expected `backend` or `preserve`",
            ),
            (
                with("conect_timeout_ms = 5"),
                "4: conect_timeout_ms: unknown key; did you mean connect_timeout_ms?",
            ),
            (
                with("connect-timeout-ms = 5"),
                "4: connect-timeout-ms: unknown key; did you mean connect_timeout_ms?",
            ),
            (with("backend = 5"), "4: backend: unknown key; did you mean backends?"),
            (
                with("colour = 5"),
                "4: colour: unknown key; the keys of [[ws_proxy]] are name, bind, ",
            ),
            ("[[ws_proxy]]\nbackends = [\"a:1\"]".to_owned(), "1: bind: is missing"),
            (
                "\n[[ws_proxy]]\nbind = \"a:1\"".to_owned(),
                "2: backends: is missing: name at least one",
            ),
            (
                "[[ws_proxy]]\nbind = \"a\"\nbackends = [\"a:1\"]".to_owned(),
                "2: bind: \"a\": the port is missing",
            ),
            (
                "[[ws_proxy]]\nbind = \"a:1\"\nbackends = [\n \"a:1\",\n \"a:b\"\n]".to_owned(),
                "5: backends: \"a:b\": the port",
            ),
            (
                "[[ws_proxy]]\nbind = \"a:1\"\nbackends = \"a:1\"".to_owned(),
                "3: backends: invalid type: string \"a:1\", expected an array",
            ),
            (
                "[[ws_proxy]]\nbind = \"a:1\"\nbackends = [\n 1]".to_owned(),
                "4: backends: invalid type: integer `1`, expected a string",
            ),
            (
                backends("\"a:1\", { adress = \"a:1\" }"),
                "3: backends: unknown key `adress`, expected one of `address`, `weight`, ",
            ),
            (backends("{ weight = 2 }"), "3: backends: missing field `address`"),
            (
                backends("\"a:1\",\n { address = \"b:1\", weight = 0 }"),
                "4: backends: \"b:1\": weight: 0 is out of range (1 to 1000)",
            ),
            (
                backends("{ address = \"b:1\", max_tunnels = -1 }"),
                "3: backends: \"b:1\": max_tunnels: -1 is out of range (0 for no limit, or a ",
            ),
            (backends("{ address = \"b:x\" }"), "3: backends: \"b:x\": the port"),
            (
                with("balance = \"random\""),
                "4: balance: unknown value `random`, expected one of `round_robin`, ",
            ),
            (
                with("retry_on = [\"503\",\n \"404\"]"),
                "5: retry_on: \"404\" is no answer to retry on: write bad_answer, or a status from",
            ),
            (
                with("resolve = \"always\""),
                "4: resolve: unknown value `always`, expected `connect` or `watch`",
            ),
            (
                with("on_removed = \"cut\""),
                "4: on_removed: unknown value `cut`, expected `keep` or `drain`",
            ),
            (
                with("queue_size = 0"),
                "4: queue_size: 0 is out of range (1 to 1000000): set queue_timeout_ms = 0 for no ",
            ),
            (with("rebalance = 1"), "4: rebalance: invalid type: integer `1`, expected a boolean"),
            (with("balance = \"hash\""), "1: hash_on: is missing: name what balance"),
            (with("hash_on = \"path\""), "4: hash_on: has no effect without balance"),
            (
                with("learn_from = \"none\""),
                "4: learn_from: has no effect without plain_http = \"forward\" and a hash_on of ",
            ),
            (
                with(
                    "balance = \"hash\"\nhash_on = \"path\"\nplain_http = \"forward\"\n\
                      learn_from = \"none\"",
                ),
                "7: learn_from: has no effect without",
            ),
            (
                with(
                    "balance = \"hash\"\nhash_on = \"query:id\"\nplain_http = \"forward\"\n\
                      learn_from = \"query:id\"",
                ),
                "7: learn_from: \"query:id\" is no part of an answer: write cookie:NAME, json:NAME",
            ),
            (
                with("hash_on = \"ip\"\nbalance = \"hash\""),
                "4: hash_on: \"ip\" is no part of a request: write client_ip, path, header:NAME",
            ),
            (
                format!("{GOOD}\n{GOOD}"),
                "6: bind: 127.0.0.1:8080 is taken by the section whose bind is on line 2",
            ),
            (
                format!("workers = -1\n{GOOD}"),
                "1: workers: -1 is out of range (0 for one per CPU, or 1 to 1024)",
            ),
            (
                format!("workers = 1025\n{GOOD}"),
                "1: workers: 1025 is out of range (0 for one per CPU, or 1 to 1024)",
            ),
            (
                format!("workers = \"x\"\n{GOOD}"),
                "1: workers: invalid type: string \"x\", expected an integer",
            ),
            (
                format!("\n[drain]\ntimeout_ms = 0\n{GOOD}"),
                "3: timeout_ms: must be at least 1 (milliseconds), got 0",
            ),
            (
                format!("drain = 5\n{GOOD}"),
                "1: drain: must be a table, but is of type integer: write [drain]",
            ),
            (
                format!("[drain]\ntimeout = 5\n{GOOD}"),
                "2: timeout: unknown key; did you mean timeout_ms?",
            ),
            (
                format!("[drain]\nspread_ms = -5\n{GOOD}"),
                "2: spread_ms: -5 is out of range (0 for all at once, or a positive",
            ),
            (
                format!("[drain]\nclose_code = \"x\"\n{GOOD}"),
                "2: close_code: invalid type: string \"x\", expected an integer",
            ),
            (
                format!("log = \"debug\"\n{GOOD}"),
                "1: log: must be a table, but is of type string: write [log]",
            ),
            (
                format!("[log]\nlevels = \"info\"\n{GOOD}"),
                "2: levels: unknown key; did you mean level?",
            ),
            (
                format!("[log]\nfile = \"x\"\n{GOOD}"),
                "2: file: unknown key; the keys of [log] are format, level",
            ),
            (
                format!("\n[log]\nformat = \"xml\"\n{GOOD}"),
                "3: format: unknown value `xml`, expected `text` or `json`",
            ),
            (
                format!("[log]\nlevel = \"loud\"\n{GOOD}"),
                "2: level: unknown value `loud`, expected one of `off`, `error`, `warn`, `info`, \
                 `debug`, `trace`",
            ),
            (format!("[log]\nlevel = 3\n{GOOD}"), "2: level: "),
        ];
        assert!(!cases.is_empty());
        for (text, expected) in cases {
            let message = error(&text);
            assert!(message.starts_with(expected), "{message:?} for {text:?}");
            assert!(!message.contains('\n'), "{message:?}");
        }
    }

    #[test]
    fn faults_of_a_health_check_are_named_with_line_and_key() {
        let with = |lines: &str| format!("{GOOD}[ws_proxy.health_check]\n{lines}\n");
        let cases = [
            (
                format!("{GOOD}health_check = \"tcp\""),
                "4: health_check: must be a table, but is of type string: write \
                 [ws_proxy.health_check]",
            ),
            (
                format!("{GOOD}[[ws_proxy.health_check]]\n"),
                "4: health_check: must be a table, but is of type array: write",
            ),
            (format!("[ws_proxy.health_check]\n{GOOD}"), "2: "),
            (
                format!("{GOOD}[ws_proxy.healthcheck]\n"),
                "4: healthcheck: unknown key; did you mean health_check?",
            ),
            (with("pth = \"/\""), "5: pth: unknown key; did you mean path?"),
            (with("\ninterval = 1"), "6: interval: unknown key; did you mean interval_ms?"),
            (
                with("colour = 1"),
                "5: colour: unknown key; the keys of [ws_proxy.health_check] are kind, path, ",
            ),
            (
                with("interval_ms = 5\nkind = \"udp\""),
                "6: kind: unknown value `udp`, expected one of `tcp`, `http`, `websocket`",
            ),
            (with("path = \"up\""), "5: path: \"up\" is not a path"),
            (
                with("path = \"/up\"\nhost = \"a b\""),
                "6: host: \"a b\" is not a host: write a name",
            ),
            (
                with("path = \"/\"\nkind = \"tcp\""),
                "5: path: has no effect on kind = \"tcp\", which sends nothing: set kind",
            ),
            (with("\nhost = \"a\""), "6: host: has no effect on kind = \"tcp\""),
            (
                with("kind = \"websocket\"\nexpect_status = 200"),
                "6: expect_status: has no effect without kind = \"http\"",
            ),
            (
                with("timeout_ms = \"2s\""),
                "5: timeout_ms: invalid type: string \"2s\", expected an integer",
            ),
            (with("timeout_ms = 0"), "5: timeout_ms: must be at least 1 (milliseconds), got 0"),
            (
                with("healthy_threshold = 0"),
                "5: healthy_threshold: 0 is out of range (1 to 4294967295)",
            ),
            (
                with("unhealthy_threshold = -1"),
                "5: unhealthy_threshold: -1 is out of range (1 to 4294967295)",
            ),
            (
                with("on_unhealthy = \"cut\""),
                "5: on_unhealthy: unknown value `cut`, expected `keep` or `drain`",
            ),
            (with("expect_status = 99"), "5: expect_status: \"99\" is not a status or a range"),
            (with("expect_status = []"), "5: expect_status: must name at least one status"),
            (
                with("expect_status = [\n200,\n\"2xx\"]"),
                "7: expect_status: \"2xx\" is not a status or a range, such as 204 or 200-299",
            ),
            (
                with("expect_status = [\n200,\n2.5]"),
                "7: expect_status: invalid type: floating point `2.5`, expected a status, or a ",
            ),
            (
                with("expect_status = true"),
                "5: expect_status: invalid type: boolean `true`, expected a status, a text such ",
            ),
            (
                with("path = \"/\"\nheaders = { A = \"b\", \"b c\" = \"d\" }"),
                "6: headers: \"b c\" is not the name of a header field",
            ),
            (
                with("path = \"/\"\n[ws_proxy.health_check.headers]\nA = \"b\"\nHost = \"d\""),
                "8: headers: Host has a key of its own: set host",
            ),
            (
                with("path = \"/\"\nheaders = [\n\"A: b\",\n\"Upgrade: c\"]"),
                "8: headers: Upgrade is not for a check to change: leave it out",
            ),
            (
                with("path = \"/\"\nheaders = [\n\"A: b\",\n\"Bearer c\"]"),
                "8: headers: invalid value: a text without a colon, expected \"Name: value\"",
            ),
            (
                with("path = \"/\"\nheaders = { A = 1 }"),
                "6: headers: invalid type: integer `1`, expected a string",
            ),
            (
                with("path = \"/\"\nheaders = \"A: b\""),
                "6: headers: invalid type: a text, expected a table of texts, or an array ",
            ),
        ];
        assert!(!cases.is_empty());
        for (text, expected) in cases {
            let message = error(&text);
            assert!(message.starts_with(expected), "{message:?} for {text:?}");
            assert!(!message.contains('\n'), "{message:?}");
        }
    }

    #[test]
    fn a_health_check_belongs_to_the_section_before_it() {
        // The keys as rust-web-server has them.
        let check = "[ws_proxy.health_check]\npath = \"/health\"\ninterval_ms = 10000\n\
                     timeout_ms = 3000\nhealthy_threshold = 1\nunhealthy_threshold = 5\n";
        let text = format!("{GOOD}{check}{}", GOOD.replace("8080", "0"));
        let config = Config::parse(&text).unwrap();
        let settings =
            |index: usize| config.sections[index].proxy.settings("127.0.0.1:0").unwrap().0;
        let first = settings(0);
        let check = first.health_check.unwrap();
        assert_eq!((check.kind, &*check.path), (crate::CheckKind::Http, "/health"));
        assert_eq!((check.interval.as_millis(), check.timeout.as_millis()), (10_000, 3_000));
        assert_eq!(&*check.expected.to_string(), "200-399");
        let rules = first.health.checks.unwrap();
        assert_eq!((rules.healthy_threshold, rules.unhealthy_threshold), (1, 5));
        let second = settings(1);
        assert_eq!((second.health_check, second.health.checks), (None, None));
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "[a-z_=\\[\\]\"0-9. \n]{0,80}") {
            let _ = Config::parse(&text);
            let _ = Config::parse(&format!("{GOOD}{text}"));
            let _ = Config::parse(&format!("{GOOD}[ws_proxy.health_check]\n{text}"));
        }
    }
}
