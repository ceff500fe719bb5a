//! Configuration text, read and checked.

use std::fmt;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::builder::WsProxy;
use crate::settings::{DRAIN_KEYS, Drain, Invalid, RawDrain, RawSection, SECTION_KEYS};

/// The table of sections.
const SECTIONS: &str = "ws_proxy";
/// What may stand beside the sections and is ours.
const TOP_KEYS: [&str; 2] = ["workers", "drain"];
/// More event loops than any machine has a use for.
const MAX_WORKERS: i64 = 1_024;

/// A checked configuration: everything in it can be used, though nothing has been opened.
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
    /// The `[[ws_proxy]]` sections in their order; at least one.
    pub sections: Vec<Section>,
    /// Number of threads for all sections together, each with an event loop, for [`Workers::start`](crate::Workers);
    /// 0, the default, is one per CPU.
    pub workers: usize,
    /// Top-level keys and tables that are not ws-proxy's, in the order of their names.
    pub ignored: Vec<String>,
}

/// One `[[ws_proxy]]` section.
#[derive(Clone, Debug)]
pub struct Section {
    /// Where it listens.
    pub bind: String,
    /// Everything else that it says.
    pub proxy: WsProxy,
}

/// What is wrong with a configuration, and where.
///
/// It is shown as `line: key: problem`; the program puts the file's name before it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The line, counted from 1; `None` where the fault has no place, as when a section is missing.
    pub line: Option<usize>,
    /// The key that it is about, if it is about one.
    pub key: Option<String>,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "{line}: ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads TOML text with one or more `[[ws_proxy]]` sections.
    ///
    /// Other tables and keys at the top level are left alone and listed in [`Config::ignored`], so that a file
    /// which also configures other programs works.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong: broken TOML, a wrong type, an unknown key in a section, a value that
    /// cannot be used, no section, two sections on one port.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let place = Place(text);
        let document =
            DeTable::parse(text).map_err(|error| place.toml_error(&error, None))?.into_inner();

        let mut sections = Vec::new();
        for table in section_tables(&document, &place)? {
            sections.push(CheckedSection::read(table, &place)?);
        }
        refuse_collisions(&sections, &place)?;

        let number =
            |key: &'static str| match document.iter().find(|(name, _)| name.get_ref() == key) {
                None => Ok(None),
                Some((name, value)) => i64::deserialize(value.clone().into_deserializer())
                    .map(|number| Some((number, name.span().start)))
                    .map_err(|error| place.toml_error(&error, Some(key))),
            };
        let workers = match number("workers")? {
            None => 0,
            Some((given @ 0..=MAX_WORKERS, _)) => usize::try_from(given).unwrap_or_default(),
            Some((given, at)) => {
                let problem = format!("{given} is out of range: 0 (one per CPU) to {MAX_WORKERS}");
                return Err(place.error(at, Some("workers"), problem));
            }
        };
        let drain = read_drain(&document, &place)?;

        let is_ours = |name: &str| name == SECTIONS || TOP_KEYS.contains(&name);
        let ignored =
            document.keys().map(|name| name.get_ref().as_ref()).filter(|name| !is_ours(name));
        let ignored = ignored.map(str::to_owned).collect();

        let with_drain = |CheckedSection { section: Section { bind, proxy }, .. }| Section {
            bind,
            proxy: proxy.with_drain(drain.clone()),
        };
        Ok(Self { sections: sections.into_iter().map(with_drain).collect(), workers, ignored })
    }
}

/// The `[drain]` table, checked.
fn read_drain(document: &DeTable<'_>, place: &Place<'_>) -> Result<RawDrain, ConfigError> {
    let mut drain = RawDrain::default();
    if let Some((_, table)) = document.iter().find(|(name, _)| name.get_ref() == "drain") {
        let DeValue::Table(keys) = table.get_ref() else {
            return Err(place.error(
                table.span().start,
                Some("drain"),
                "this is a table: write [drain]",
            ));
        };
        refuse_unknown(keys, &DRAIN_KEYS, "[drain]", place)?;
        drain = deserialize(table, keys, place)?;
        let at = |key: &str| {
            keys.keys().find(|name| name.get_ref() == key).map(|name| name.span().start)
        };
        drain.check().map_err(|Invalid { key, problem, .. }| {
            place.error(at(key).unwrap_or(table.span().start), Some(key), problem)
        })?;
    }
    Ok(drain)
}

/// Refuses keys that a table has not.
fn refuse_unknown(
    keys: &DeTable<'_>,
    known: &[&str],
    table: &str,
    place: &Place<'_>,
) -> Result<(), ConfigError> {
    let unknown = keys.keys().filter(|name| !known.contains(&name.get_ref().as_ref()));
    let Some(name) = unknown.min_by_key(|name| name.span().start) else { return Ok(()) };
    let problem = match nearest(name.get_ref(), known) {
        Some(known) => format!("there is no such key; did you mean {known}?"),
        None => format!("there is no such key; {table} has {}", known.join(", ")),
    };
    Err(place.error(name.span().start, Some(name.get_ref()), problem))
}

/// Reads a table whose keys are known.
fn deserialize<'i, T: Deserialize<'i>>(
    table: &Spanned<DeValue<'i>>,
    keys: &DeTable<'i>,
    place: &Place<'_>,
) -> Result<T, ConfigError> {
    T::deserialize(table.clone().into_deserializer()).map_err(|error| {
        // The value that the error is about stands in one of the keys.
        let span = error.span().unwrap_or_default();
        let holds = |value: &Spanned<DeValue<'_>>| value.span().contains(&span.start);
        let key =
            keys.iter().find(|(_, value)| holds(value)).map(|(name, _)| name.get_ref().as_ref());
        place.toml_error(&error, key)
    })
}

/// A section together with where its address stands in the text.
struct CheckedSection {
    section: Section,
    address: crate::net::address::Address,
    bind_at: usize,
}

impl CheckedSection {
    fn read(table: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Result<Self, ConfigError> {
        let keys = match table.get_ref() {
            DeValue::Table(keys) => keys,
            _ => {
                return Err(place.error(
                    table.span().start,
                    Some(SECTIONS),
                    "a section is a table: write [[ws_proxy]]",
                ));
            }
        };
        let at = |key: &str| {
            keys.keys().find(|name| name.get_ref() == key).map(|name| name.span().start)
        };
        refuse_unknown(keys, &SECTION_KEYS, "a section", place)?;
        let raw: RawSection = deserialize(table, keys, place)?;
        // What the file says of the drain is checked where it stands.
        let settings =
            raw.check(&Drain::default()).map_err(|Invalid { key, index, problem }| {
                let element = index.and_then(|index| match keys.get(key)?.get_ref() {
                    DeValue::Array(elements) => {
                        elements.get(index).map(|element| element.span().start)
                    }
                    _ => None,
                });
                place.error(
                    element.or_else(|| at(key)).unwrap_or(table.span().start),
                    Some(key),
                    problem,
                )
            })?;

        let bind = raw.bind.clone().unwrap_or_default();
        let bind_at = at("bind").unwrap_or(table.span().start);
        Ok(Self {
            section: Section { bind, proxy: WsProxy::from(raw) },
            address: settings.bind,
            bind_at,
        })
    }
}

/// The tables of `[[ws_proxy]]`.
fn section_tables<'t, 'i>(
    document: &'t DeTable<'i>,
    place: &Place<'_>,
) -> Result<&'t [Spanned<DeValue<'i>>], ConfigError> {
    let none = "there is no [[ws_proxy]] section: add one with bind and backends";
    let Some((name, value)) = document.iter().find(|(name, _)| name.get_ref() == SECTIONS) else {
        return Err(ConfigError { line: None, key: None, problem: none.to_owned() });
    };
    match value.get_ref() {
        DeValue::Array(tables) if tables.is_empty() => {
            Err(place.error(name.span().start, Some(SECTIONS), none))
        }
        DeValue::Array(tables) => Ok(tables),
        _ => Err(place.error(
            name.span().start,
            Some(SECTIONS),
            "sections are a list: write [[ws_proxy]] with two brackets",
        )),
    }
}

fn refuse_collisions(sections: &[CheckedSection], place: &Place<'_>) -> Result<(), ConfigError> {
    for (index, later) in sections.iter().enumerate() {
        if let Some(first) =
            sections[..index].iter().find(|first| first.address.collides_with(&later.address))
        {
            let line = place.line(first.bind_at);
            let problem = format!(
                "{} is taken by the section whose bind is on line {line}: each needs its own port",
                later.address
            );
            return Err(place.error(later.bind_at, Some("bind"), problem));
        }
    }
    Ok(())
}

/// The known key that an unknown one is a likely misspelling of.
fn nearest<'k>(unknown: &str, known: &[&'k str]) -> Option<&'k str> {
    let unknown = unknown.to_ascii_lowercase().replace('-', "_");
    let close = known.iter().map(|key| (strsim::damerau_levenshtein(&unknown, key), *key));
    let (distance, key) = close.min()?;
    // A third of the letters wrong is another word; so is a word that only begins alike.
    (distance <= 1 + key.len() / 4).then_some(key)
}

/// The text, for telling lines.
struct Place<'t>(&'t str);

impl Place<'_> {
    fn line(&self, at: usize) -> usize {
        self.0.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
    }

    fn error(&self, at: usize, key: Option<&str>, problem: impl Into<String>) -> ConfigError {
        ConfigError {
            line: Some(self.line(at)),
            key: key.map(str::to_owned),
            problem: problem.into(),
        }
    }

    fn toml_error(&self, error: &toml::de::Error, key: Option<&str>) -> ConfigError {
        // Some messages of the parser go over several lines; ours are one.
        let problem = error.message().trim().replace('\n', ", ");
        ConfigError {
            line: error.span().map(|span| self.line(span.start)),
            key: key.map(str::to_owned),
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

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
    fn every_key_is_read() {
        let text = "workers = 2\n[drain]\ndelay_ms = 1\nspread_ms = 2\ntimeout_ms = 50\nclose_code = 4000\nclose_grace_ms = 3\n[[ws_proxy]]\nname = \"n\"\nbind = \"[::1]:0\"\nbackends = [\"ws://a:1\", \"[::1]\"]\n\
            connect_timeout_ms = 1\nread_timeout_ms = 2\nresponse_timeout_ms = 3\nhost = \"preserve\"\nforwarded = \"off\"\n\
            origins = [\"https://*.example.com\", \"none\"]\nmax_connections = 4\nsocket_buffer_bytes = 4096\n\
            ping_interval_ms = 5\npong_timeout_ms = 6\nidle_timeout_ms = 7\nmax_lifetime_ms = 8\nlifetime_close_code = 1012\n\
            max_message_bytes = 9\nmax_frame_bytes = 10\nmax_messages_per_second = 11\nrate_action = \"close\"\n\
            strict_frames = true\nbackend_lost_code = 1014\nclient_lost_code = 1001\n";
        for key in SECTION_KEYS.into_iter().chain(DRAIN_KEYS) {
            assert!(text.contains(&format!("\n{key} = ")), "{key} is not in this test");
        }
        let config = Config::parse(text).unwrap();
        assert_eq!(config.workers, 2);
        let (settings, drain) = config.sections[0].proxy.settings("[::1]:0").unwrap();
        assert_eq!(settings.name.as_deref(), Some("n"));
        assert_eq!(settings.backends.len(), 2);
        assert_eq!(settings.connect_timeout, Duration::from_millis(1));
        assert_eq!(settings.read_timeout, Duration::from_millis(2));
        assert_eq!(settings.response_timeout, Duration::from_millis(3));
        assert_eq!(settings.host, crate::HostHeader::Preserve);
        assert_eq!(settings.forwarded, crate::Forwarded::Off);
        assert!(settings.origins.is_some_and(|origins| origins.allows(None)));
        assert_eq!((settings.max_connections, settings.socket_buffer), (Some(4), Some(4096)));
        let policy = &settings.policy;
        assert_eq!(policy.ping_interval, Some(Duration::from_millis(5)));
        assert_eq!(policy.pong_timeout, Duration::from_millis(6));
        assert_eq!(policy.idle_timeout, Some(Duration::from_millis(7)));
        assert_eq!(policy.max_lifetime, Some(Duration::from_millis(8)));
        assert_eq!(policy.lifetime_close_code, 1012);
        assert_eq!((policy.max_message, policy.max_frame), (Some(9), Some(10)));
        assert_eq!(
            (policy.max_messages_per_second, policy.rate_action),
            (Some(11), crate::RateAction::Close)
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
    fn faults_are_named_with_line_and_key() {
        let with = |line: &str| format!("{GOOD}{line}\n");
        let cases = [
            (String::new(), "there is no [[ws_proxy]] section"),
            ("x = 1\n".to_owned(), "there is no [[ws_proxy]] section"),
            ("ws_proxy = []".to_owned(), "1: ws_proxy: there is no [[ws_proxy]]"),
            ("\n[ws_proxy]\nbind = 1".to_owned(), "2: ws_proxy: sections are a list"),
            ("ws_proxy = [1]".to_owned(), "1: ws_proxy: a section is a table"),
            (with("bind = "), "4: "),
            (
                with("connect_timeout_ms = \"5\""),
                "4: connect_timeout_ms: invalid type: string \"5\", expected i64",
            ),
            (
                with("read_timeout_ms = 1.5"),
                "4: read_timeout_ms: invalid type: floating point `1.5`, expected i64",
            ),
            (with("read_timeout_ms = 0"), "4: read_timeout_ms: 0 is no time to wait"),
            (
                with("socket_buffer_bytes = 4095"),
                "4: socket_buffer_bytes: 4095 is too small: write 4096 or more",
            ),
            (
                with("socket_buffer_bytes = 4294967296"),
                "4: socket_buffer_bytes: 4294967296 is out of range",
            ),
            (with("\nresponse_timeout_ms = -3"), "5: response_timeout_ms: -3 is no time to wait"),
            (
                with("host = \"both\""),
                "4: host: unknown variant `both`, expected `backend` or `preserve`",
            ),
            (
                with("conect_timeout_ms = 5"),
                "4: conect_timeout_ms: there is no such key; did you mean connect_timeout_ms?",
            ),
            (
                with("connect-timeout-ms = 5"),
                "4: connect-timeout-ms: there is no such key; did you mean connect_timeout_ms?",
            ),
            (with("backend = 5"), "4: backend: there is no such key; did you mean backends?"),
            (with("colour = 5"), "4: colour: there is no such key; a section has name, bind, "),
            ("[[ws_proxy]]\nbackends = [\"a:1\"]".to_owned(), "1: bind: is missing"),
            ("\n[[ws_proxy]]\nbind = \"a:1\"".to_owned(), "2: backends: there are none"),
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
                "3: backends: invalid type: string \"a:1\", expected a sequence",
            ),
            (
                "[[ws_proxy]]\nbind = \"a:1\"\nbackends = [\n 1]".to_owned(),
                "4: backends: invalid type: integer `1`, expected a string",
            ),
            (
                format!("{GOOD}\n{GOOD}"),
                "6: bind: 127.0.0.1:8080 is taken by the section whose bind is on line 2",
            ),
            (format!("workers = -1\n{GOOD}"), "1: workers: -1 is out of range"),
            (
                format!("workers = \"x\"\n{GOOD}"),
                "1: workers: invalid type: string \"x\", expected i64",
            ),
            (format!("\n[drain]\ntimeout_ms = 0\n{GOOD}"), "3: timeout_ms: 0 is no time to wait"),
            (format!("drain = 5\n{GOOD}"), "1: drain: this is a table"),
            (
                format!("[drain]\ntimeout = 5\n{GOOD}"),
                "2: timeout: there is no such key; did you mean timeout_ms?",
            ),
            (format!("[drain]\nspread_ms = -5\n{GOOD}"), "2: spread_ms: -5 is out of range"),
            (
                format!("[drain]\nclose_code = \"x\"\n{GOOD}"),
                "2: close_code: invalid type: string \"x\", expected i64",
            ),
        ];
        for (text, expected) in cases {
            let message = error(&text);
            assert!(message.starts_with(expected), "{message:?} for {text:?}");
            assert!(!message.contains('\n'), "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "[a-z_=\\[\\]\"0-9. \n]{0,80}") {
            let _ = Config::parse(&text);
            let _ = Config::parse(&format!("{GOOD}{text}"));
        }
    }
}
