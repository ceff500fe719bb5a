//! The settings of one section: as they are given, and as they are used.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::handshake::forward::{Forwarded, HostHeader};
use crate::handshake::origin::OriginList;
use crate::net::address::Address;
use crate::tunnel::policy::{Policy, RateAction};

/// Milliseconds that a connect may take where nothing else is said.
pub(crate) const CONNECT_TIMEOUT_MS: i64 = 5_000;
/// Milliseconds for the client's whole head where nothing else is said.
pub(crate) const READ_TIMEOUT_MS: i64 = 30_000;
/// Bytes of a socket's buffer below which the kernel would take something larger.
const SOCKET_BUFFER_MIN: i32 = 4_096;
/// The code of a Close of ours where nothing else is said: going away (RFC 6455, 7.4.1).
const CLOSE_CODE: u16 = 1_001;

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
    pub(crate) socket_buffer_bytes: Option<i64>,
    pub(crate) ping_interval_ms: Option<i64>,
    pub(crate) pong_timeout_ms: Option<i64>,
    pub(crate) idle_timeout_ms: Option<i64>,
    pub(crate) max_lifetime_ms: Option<i64>,
    pub(crate) lifetime_close_code: Option<i64>,
    pub(crate) max_message_bytes: Option<i64>,
    pub(crate) max_frame_bytes: Option<i64>,
    pub(crate) max_messages_per_second: Option<i64>,
    pub(crate) rate_action: Option<RateAction>,
    pub(crate) strict_frames: Option<bool>,
    pub(crate) backend_lost_code: Option<i64>,
    pub(crate) client_lost_code: Option<i64>,
}

/// How the proxy leaves, as given; nothing is checked yet.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RawDrain {
    pub(crate) delay_ms: Option<i64>,
    pub(crate) spread_ms: Option<i64>,
    pub(crate) timeout_ms: Option<i64>,
    pub(crate) close_code: Option<i64>,
    pub(crate) close_grace_ms: Option<i64>,
}

/// Every key of `[drain]`, as the fields above.
pub(crate) const DRAIN_KEYS: [&str; 5] =
    ["delay_ms", "spread_ms", "timeout_ms", "close_code", "close_grace_ms"];

/// How the proxy leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    /// It still accepts for so long.
    pub(crate) delay: Duration,
    /// Then it closes its tunnels over so long.
    pub(crate) spread: Duration,
    /// It is gone after so long, all in all.
    pub(crate) timeout: Duration,
    pub(crate) close_code: u16,
    /// How long a closed tunnel may take to end.
    pub(crate) close_grace: Duration,
}

/// Every key of a section, as the fields above.
pub(crate) const SECTION_KEYS: [&str; 23] = [
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
    "socket_buffer_bytes",
    "ping_interval_ms",
    "pong_timeout_ms",
    "idle_timeout_ms",
    "max_lifetime_ms",
    "lifetime_close_code",
    "max_message_bytes",
    "max_frame_bytes",
    "max_messages_per_second",
    "rate_action",
    "strict_frames",
    "backend_lost_code",
    "client_lost_code",
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
    /// `None`: as the system has it.
    pub(crate) socket_buffer: Option<usize>,
    /// What is asked of its tunnels.
    pub(crate) policy: Arc<Policy>,
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
    pub(crate) fn check(&self, drain: &Drain) -> Result<Settings, Invalid> {
        let bind = self.bind.as_deref().ok_or_else(|| {
            Invalid::new("bind", "is missing: say where to listen, as in bind = \"0.0.0.0:8080\"")
        })?;
        let bind = Address::bind(bind).map_err(|problem| Invalid::new("bind", problem))?;

        let backends = self.backends.as_deref().unwrap_or_default();
        if backends.is_empty() {
            let mend =
                "there are none: name at least one, as in backends = [\"chat-backend:9000\"]";
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
                let mend = "the list is empty, so that nobody could connect: leave the key out, or name an origin";
                return Err(Invalid::new("origins", mend));
            }
            Some(entries) => Some(OriginList::parse(entries).map_err(|(index, problem)| {
                Invalid { key: "origins", index: Some(index), problem }
            })?),
        };

        let max_connections = limit("max_connections", self.max_connections)?;
        Ok(Settings {
            name: self.name.clone(),
            bind,
            backends,
            connect_timeout: timeout(
                "connect_timeout_ms",
                self.connect_timeout_ms,
                CONNECT_TIMEOUT_MS,
            )?,
            read_timeout,
            response_timeout,
            host: self.host.unwrap_or_default(),
            forwarded: self.forwarded.unwrap_or_default(),
            origins,
            max_connections,
            socket_buffer: self.socket_buffer()?,
            policy: Arc::new(self.policy(drain)?),
        })
    }

    fn socket_buffer(&self) -> Result<Option<usize>, Invalid> {
        const KEY: &str = "socket_buffer_bytes";
        match limit::<i32>(KEY, self.socket_buffer_bytes)? {
            Some(bytes) if bytes < SOCKET_BUFFER_MIN => {
                let mend = format!(
                    "{bytes} is too small: write {SOCKET_BUFFER_MIN} or more, or 0 to leave it to the system"
                );
                Err(Invalid::new(KEY, mend))
            }
            bytes => Ok(bytes.and_then(|bytes| usize::try_from(bytes).ok())),
        }
    }

    fn policy(&self, drain: &Drain) -> Result<Policy, Invalid> {
        let time = |key, given| Ok(limit(key, given)?.map(Duration::from_millis));
        let ping_interval = time("ping_interval_ms", self.ping_interval_ms)?;
        let pong_timeout = time("pong_timeout_ms", self.pong_timeout_ms)?;
        Ok(Policy {
            ping_interval,
            pong_timeout: pong_timeout.or(ping_interval).unwrap_or_default(),
            idle_timeout: time("idle_timeout_ms", self.idle_timeout_ms)?,
            max_lifetime: time("max_lifetime_ms", self.max_lifetime_ms)?,
            lifetime_close_code: close_code("lifetime_close_code", self.lifetime_close_code)?,
            max_message: limit("max_message_bytes", self.max_message_bytes)?,
            max_frame: limit("max_frame_bytes", self.max_frame_bytes)?,
            max_messages_per_second: limit(
                "max_messages_per_second",
                self.max_messages_per_second,
            )?,
            rate_action: self.rate_action.unwrap_or_default(),
            strict_frames: self.strict_frames.unwrap_or_default(),
            backend_lost_code: lost_code("backend_lost_code", self.backend_lost_code)?,
            client_lost_code: lost_code("client_lost_code", self.client_lost_code)?,
            close_grace: drain.close_grace,
            drain_close_code: drain.close_code,
        })
    }
}

impl Default for Drain {
    /// All of it fits into Docker's ten seconds.
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            spread: Duration::from_secs(5),
            timeout: Duration::from_secs(8),
            close_code: CLOSE_CODE,
            close_grace: Duration::from_secs(2),
        }
    }
}

impl RawDrain {
    /// Checks everything.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub(crate) fn check(&self) -> Result<Drain, Invalid> {
        let default = Drain::default();
        let time = |key, given: Option<i64>, default: Duration| match given {
            None => Ok(default),
            given => Ok(limit(key, given)?.map_or(Duration::ZERO, Duration::from_millis)),
        };
        let delay = time("delay_ms", self.delay_ms, default.delay)?;
        let close_grace = time("close_grace_ms", self.close_grace_ms, default.close_grace)?;
        let spread = time("spread_ms", self.spread_ms, default.spread)?;
        let timeout = match self.timeout_ms {
            None => default.timeout,
            given => timeout("timeout_ms", given, 0)?,
        };
        // The last tunnel to be closed has its grace time too, as far as the whole allows it.
        let spread = spread.min(timeout.saturating_sub(delay).saturating_sub(close_grace));
        Ok(Drain {
            delay,
            spread,
            timeout,
            close_code: close_code("close_code", self.close_code)?,
            close_grace,
        })
    }
}

/// A number above zero, or `None` for no limit.
fn limit<T: TryFrom<i64>>(key: &'static str, given: Option<i64>) -> Result<Option<T>, Invalid> {
    match given.unwrap_or(0) {
        0 => Ok(None),
        given => match T::try_from(given) {
            Ok(limit) if given > 0 => Ok(Some(limit)),
            _ => Err(Invalid::new(
                key,
                format!("{given} is out of range: write 0 for none, or a number above it"),
            )),
        },
    }
}

/// A code that an endpoint may put into a Close (RFC 6455, 7.4.2, and IANA's registry).
fn close_code(key: &'static str, given: Option<i64>) -> Result<u16, Invalid> {
    let given = given.unwrap_or(CLOSE_CODE.into());
    match u16::try_from(given) {
        Ok(code @ (1_000..=1_003 | 1_007..=1_014 | 3_000..=4_999)) => Ok(code),
        _ => Err(Invalid::new(
            key,
            format!("{given} is no code for a Close: 1001, 1012 and 4000 are"),
        )),
    }
}

/// A [close code](close_code), or `None` for zero.
fn lost_code(key: &'static str, given: Option<i64>) -> Result<Option<u16>, Invalid> {
    match given.unwrap_or(0) {
        0 => Ok(None),
        _ => close_code(key, given).map(Some),
    }
}

/// A time that must be above zero, or its default.
///
/// # Errors
///
/// If it is not.
pub(crate) fn timeout(
    key: &'static str,
    given: Option<i64>,
    default: i64,
) -> Result<Duration, Invalid> {
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

    fn drain() -> Drain {
        RawDrain::default().check().unwrap()
    }

    #[test]
    fn a_drain_fits_into_its_timeout() {
        let whole = drain();
        assert_eq!((whole.delay, whole.spread), (Duration::ZERO, Duration::from_secs(5)));
        assert_eq!(
            (whole.timeout, whole.close_grace),
            (Duration::from_secs(8), Duration::from_secs(2))
        );
        let short = RawDrain { timeout_ms: Some(3_000), ..RawDrain::default() }.check().unwrap();
        assert_eq!(short.spread, Duration::from_secs(1));
        let tiny = RawDrain { timeout_ms: Some(100), ..RawDrain::default() }.check().unwrap();
        assert_eq!(tiny.spread, Duration::ZERO);
    }

    #[test]
    fn close_codes_are_those_that_may_be_sent() {
        for (code, is_good) in [
            (999, false),
            (1000, true),
            (1004, false),
            (1005, false),
            (1006, false),
            (1012, true),
            (1015, false),
            (2999, false),
            (4999, true),
            (5000, false),
            (-1, false),
        ] {
            let raw = RawDrain { close_code: Some(code), ..RawDrain::default() };
            assert_eq!(raw.check().is_ok(), is_good, "{code}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_readme() {
        let settings = raw().check(&drain()).unwrap();
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
        let settings = RawSection { read_timeout_ms: Some(7), ..raw() }.check(&drain()).unwrap();
        assert_eq!(settings.response_timeout, Duration::from_millis(7));
        let settings =
            RawSection { response_timeout_ms: Some(9), ..raw() }.check(&drain()).unwrap();
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
            (RawSection { ping_interval_ms: Some(-1), ..raw() }, "ping_interval_ms", None),
            (
                RawSection { max_messages_per_second: Some(1 << 40), ..raw() },
                "max_messages_per_second",
                None,
            ),
            (RawSection { lifetime_close_code: Some(1005), ..raw() }, "lifetime_close_code", None),
            (RawSection { backend_lost_code: Some(1006), ..raw() }, "backend_lost_code", None),
            (RawSection { client_lost_code: Some(-1), ..raw() }, "client_lost_code", None),
        ];
        for (raw, key, index) in cases {
            let invalid = raw.check(&drain()).unwrap_err();
            assert_eq!((invalid.key, invalid.index), (key, index), "{invalid:?}");
        }
    }
}
