//! The settings of one section: as they are given, and as they are used.

use std::time::Duration;

use serde::Deserialize;

use crate::backend::address::Address;
use crate::handshake::forward::{Forwarded, HostHeader};
use crate::handshake::origin::OriginList;

/// Milliseconds that a connect may take where nothing else is said.
pub(crate) const CONNECT_TIMEOUT_MS: i64 = 5_000;
/// Milliseconds for the client's whole head where nothing else is said.
pub(crate) const READ_TIMEOUT_MS: i64 = 30_000;
/// Milliseconds for a drain where nothing else is said: inside Docker's ten seconds.
pub(crate) const DRAIN_TIMEOUT_MS: i64 = 8_000;

/// A section as given, from TOML, the command line or the builder; nothing is checked yet.
///
/// Numbers are wider than their range, so that one outside of it is answered in our words.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RawSection {
    pub(crate) name: Option<String>,
    pub(crate) bind: Option<String>,
    pub(crate) backends: Option<Vec<String>>,
    pub(crate) connect_timeout_ms: Option<i64>,
    pub(crate) read_timeout_ms: Option<i64>,
    pub(crate) response_timeout_ms: Option<i64>,
    pub(crate) host: Option<HostHeader>,
    pub(crate) forwarded: Option<Forwarded>,
    pub(crate) origins: Option<Vec<String>>,
    pub(crate) max_connections: Option<i64>,
}

/// Every key of a section, as the fields above.
pub(crate) const SECTION_KEYS: [&str; 10] = [
    "name",
    "bind",
    "backends",
    "connect_timeout_ms",
    "read_timeout_ms",
    "response_timeout_ms",
    "host",
    "forwarded",
    "origins",
    "max_connections",
];

/// A section whose settings are good.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// What the log calls the section; `None` for its listening address.
    pub(crate) name: Option<String>,
    pub(crate) bind: Address,
    /// At least one.
    pub(crate) backends: Vec<Address>,
    /// For each address that is tried, and for each look-up of a name.
    pub(crate) connect_timeout: Duration,
    /// For the client's whole head.
    pub(crate) read_timeout: Duration,
    /// For the head of the backend's answer; for each wait on the body of a refusal.
    pub(crate) response_timeout: Duration,
    pub(crate) host: HostHeader,
    pub(crate) forwarded: Forwarded,
    /// `None`: every origin may come, and none too.
    pub(crate) origins: Option<OriginList>,
    /// `None`: no limit.
    pub(crate) max_connections: Option<usize>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// Its key.
    pub(crate) key: &'static str,
    /// Which element of a list it is.
    pub(crate) index: Option<usize>,
    /// What is wrong, and what to write instead.
    pub(crate) problem: String,
}

impl Invalid {
    fn new(key: &'static str, problem: impl Into<String>) -> Self {
        Self { key, index: None, problem: problem.into() }
    }
}

impl RawSection {
    /// Checks everything that can be checked without opening anything.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub(crate) fn check(&self) -> Result<Settings, Invalid> {
        let bind = self.bind.as_deref().ok_or_else(|| {
            Invalid::new("bind", "is missing: say where to listen, as in bind = \"0.0.0.0:8080\"")
        })?;
        let bind = Address::bind(bind).map_err(|problem| Invalid::new("bind", problem))?;

        let backends = self.backends.as_deref().unwrap_or_default();
        if backends.is_empty() {
            let mend = "there are none: name at least one, as in backends = [\"chat-backend:9000\"]";
            return Err(Invalid::new("backends", mend));
        }
        let backends = backends
            .iter()
            .enumerate()
            .map(|(index, backend)| {
                Address::backend(backend).map_err(|problem| Invalid {
                    key: "backends",
                    index: Some(index),
                    problem,
                })
            })
            .collect::<Result<_, _>>()?;

        let read_timeout = timeout("read_timeout_ms", self.read_timeout_ms, READ_TIMEOUT_MS)?;
        let response_timeout = match self.response_timeout_ms {
            None => read_timeout,
            given => timeout("response_timeout_ms", given, READ_TIMEOUT_MS)?,
        };

        let origins = match self.origins.as_deref() {
            None => None,
            Some([]) => {
                let mend =
                    "the list is empty, so that nobody could connect: leave the key out, or name an origin";
                return Err(Invalid::new("origins", mend));
            }
            Some(entries) => Some(OriginList::parse(entries).map_err(|(index, problem)| Invalid {
                key: "origins",
                index: Some(index),
                problem,
            })?),
        };

        let max_connections = match self.max_connections.unwrap_or(0) {
            0 => None,
            given => Some(usize::try_from(given).map_err(|_| {
                Invalid::new("max_connections", format!("{given} is below 0; 0 is for no limit"))
            })?),
        };

        Ok(Settings {
            name: self.name.clone(),
            bind,
            backends,
            connect_timeout: timeout("connect_timeout_ms", self.connect_timeout_ms, CONNECT_TIMEOUT_MS)?,
            read_timeout,
            response_timeout,
            host: self.host.unwrap_or_default(),
            forwarded: self.forwarded.unwrap_or_default(),
            origins,
            max_connections,
        })
    }
}

/// A time that must be above zero, or its default.
///
/// # Errors
///
/// If it is not.
pub(crate) fn timeout(key: &'static str, given: Option<i64>, default: i64) -> Result<Duration, Invalid> {
    let given = given.unwrap_or(default);
    match u64::try_from(given) {
        Ok(ms @ 1..) => Ok(Duration::from_millis(ms)),
        _ => Err(Invalid::new(
            key,
            format!("{given} is no time to wait: it is in milliseconds and at least 1"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawSection {
        RawSection {
            bind: Some("127.0.0.1:0".to_owned()),
            backends: Some(vec!["a:1".to_owned(), "b".to_owned()]),
            ..RawSection::default()
        }
    }

    #[test]
    fn defaults_are_those_of_the_readme() {
        let settings = raw().check().unwrap();
        assert_eq!(settings.connect_timeout, Duration::from_secs(5));
        assert_eq!(settings.read_timeout, Duration::from_secs(30));
        assert_eq!(settings.response_timeout, Duration::from_secs(30));
        assert_eq!(settings.host, HostHeader::Backend);
        assert_eq!(settings.forwarded, Forwarded::Append);
        assert!(settings.origins.is_none());
        assert_eq!(settings.max_connections, None);
        assert_eq!(settings.backends[1].port, 80);
    }

    #[test]
    fn the_answer_may_take_as_long_as_the_head_unless_said() {
        let settings = RawSection { read_timeout_ms: Some(7), ..raw() }.check().unwrap();
        assert_eq!(settings.response_timeout, Duration::from_millis(7));
        let settings = RawSection { response_timeout_ms: Some(9), ..raw() }.check().unwrap();
        assert_eq!(settings.response_timeout, Duration::from_millis(9));
        assert_eq!(settings.read_timeout, Duration::from_secs(30));
    }

    #[test]
    fn each_bad_setting_is_named() {
        let strings = |all: &[&str]| Some(all.iter().map(ToString::to_string).collect());
        let cases = [
            (RawSection { bind: None, ..raw() }, "bind", None),
            (RawSection { bind: Some("x".to_owned()), ..raw() }, "bind", None),
            (RawSection { backends: None, ..raw() }, "backends", None),
            (RawSection { backends: Some(vec![]), ..raw() }, "backends", None),
            (RawSection { backends: strings(&["a:1", "b:x"]), ..raw() }, "backends", Some(1)),
            (RawSection { connect_timeout_ms: Some(0), ..raw() }, "connect_timeout_ms", None),
            (RawSection { read_timeout_ms: Some(-1), ..raw() }, "read_timeout_ms", None),
            (RawSection { response_timeout_ms: Some(0), ..raw() }, "response_timeout_ms", None),
            (RawSection { origins: Some(vec![]), ..raw() }, "origins", None),
            (RawSection { origins: strings(&["none", "x"]), ..raw() }, "origins", Some(1)),
            (RawSection { max_connections: Some(-1), ..raw() }, "max_connections", None),
        ];
        for (raw, key, index) in cases {
            let invalid = raw.check().unwrap_err();
            assert_eq!((invalid.key, invalid.index), (key, index), "{invalid:?}");
        }
    }
}
