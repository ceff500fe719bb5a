//! The settings of one section, those of the [`drain`], of the log and of the `admin` listener: as
//! given, and as checked by their [`values`].

use std::sync::Arc;
use std::time::Duration;

use crate::backend::balance::Balance;
use crate::backend::dial::DialSettings;
use crate::backend::health::states::HealthRules;
use crate::backend::pool::{BackendSettings, PoolRules};
use crate::handshake::forward::{Forwarded, HostHeader};
use crate::handshake::hash_on::HashOn;
use crate::handshake::learn_from::LearnFrom;
use crate::handshake::origin::OriginList;
use crate::handshake::retry::RetryOn;
use crate::handshake::upgrade::HandshakeRules;
use crate::net::address::Address;
use crate::tunnel::policy::{Policy, RateAction};

/// Default time for a connection attempt, in milliseconds.
const CONNECT_TIMEOUT_MS: i64 = 5_000;
/// Default time for the client's whole head, in milliseconds.
const READ_TIMEOUT_MS: i64 = 30_000;
/// Default size of the largest request head, in bytes.
const HEAD_DEFAULT: i64 = 8_192;
/// Smallest such size: about that of a bare handshake.
const HEAD_MIN: i64 = 256;
/// Largest such size.
const HEAD_MAX: i64 = 1_048_576;
/// Smallest size of a socket's buffer, in bytes; the kernel silently rounds up a smaller one.
const SOCKET_BUFFER_MIN: i64 = 4_096;
/// Largest size of a socket's buffer, in bytes: `setsockopt` takes an int.
const SOCKET_BUFFER_MAX: i64 = i32::MAX as i64;

/// Declares a table as given, an optional field for each key, together with the list of its keys.
///
/// Numbers are wider than their range, so that the checks word the error of one outside of it.
macro_rules! raw_table {
    ($(#[$attribute:meta])* $name:ident { $($key:ident: $value:ty,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, Default)]
        #[cfg_attr(feature = "config", derive(serde::Deserialize, serde::Serialize))]
        pub(crate) struct $name {
            $(pub(crate) $key: Option<$value>,)*
        }

        #[cfg(feature = "config")]
        impl $name {
            /// Keys of the table, in the order of its fields.
            pub(crate) const KEYS: &[&str] = &[$(stringify!($key)),*];
        }
    };
}

// After the macro that they use.
#[cfg(feature = "admin")]
mod admin;
mod backend;
mod drain;
#[cfg(feature = "config")]
mod effective;
mod health;
mod health_check;
mod lists;
#[cfg(feature = "config")]
mod log;
mod names;
mod plain;
mod policy;
mod queue;
mod rebalance;
mod removal;
mod values;

#[cfg(feature = "admin")]
pub use self::admin::AdminConfig;
#[cfg(all(feature = "admin", feature = "config"))]
pub(crate) use self::admin::RawAdmin;
#[cfg(feature = "admin")]
pub(crate) use self::admin::{AdminSettings, Token};
pub use self::backend::BackendConfig;
pub(crate) use self::drain::{Drain, RawDrain};
pub use self::health_check::{CheckKind, HealthCheck, OnUnhealthy};
pub(crate) use self::health_check::{HealthCheckSettings, RawHealthCheck};
#[cfg(feature = "config")]
pub use self::log::LogFormat;
#[cfg(feature = "config")]
pub(crate) use self::log::RawLog;
pub use self::names::Resolve;
pub use self::plain::PlainHttp;
pub(crate) use self::plain::PlainSettings;
pub(crate) use self::rebalance::RebalanceSettings;
pub use self::removal::OnRemoved;
#[cfg(feature = "admin")]
pub(crate) use self::values::{SENDABLE, is_sendable};
use self::values::{limit, refuse_itself, time, timeout};

raw_table! {
    /// A section as given by TOML, the command line or the builder; nothing is checked yet.
    RawSection {
        name: String,
        bind: String,
        backends: Vec<BackendConfig>,
        balance: Balance,
        hash_on: String,
        learn_from: String,
        connect_timeout_ms: i64,
        resolve: Resolve,
        resolve_interval_ms: i64,
        on_removed: OnRemoved,
        queue_timeout_ms: i64,
        queue_size: i64,
        max_failures: i64,
        eject_ms: i64,
        max_ejected_percent: i64,
        early_reset_ms: i64,
        slow_start_ms: i64,
        rebalance: bool,
        rebalance_code: i64,
        rebalance_per_second: i64,
        read_timeout_ms: i64,
        response_timeout_ms: i64,
        host: HostHeader,
        forwarded: Forwarded,
        origins: Vec<String>,
        strict_handshake: bool,
        retry_on: Vec<String>,
        max_head_bytes: i64,
        max_connections: i64,
        socket_buffer_bytes: i64,
        socket_mode: String,
        ping_interval_ms: i64,
        pong_timeout_ms: i64,
        idle_timeout_ms: i64,
        blocked_timeout_ms: i64,
        max_lifetime_ms: i64,
        lifetime_close_code: i64,
        max_message_bytes: i64,
        max_frame_bytes: i64,
        max_messages_per_second: i64,
        max_frames_per_second: i64,
        rate_action: RateAction,
        strict_frames: bool,
        backend_lost_code: i64,
        client_lost_code: i64,
        tunnel_start: bool,
        health_path: String,
        plain_http: PlainHttp,
        max_body_bytes: i64,
        keep_alive_timeout_ms: i64,
        body_timeout_ms: i64,
        // TOML has the tables after everything else.
        health_check: RawHealthCheck,
    }
}

/// Checked settings of a section.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Name in the log; `None` for the address that the section listens on.
    pub(crate) name: Option<String>,
    /// Address to listen on.
    pub(crate) bind: Address,
    /// Backends; at least one.
    pub(crate) backends: Vec<BackendSettings>,
    pub(crate) balance: Balance,
    /// What [`Balance::Hash`] chooses by; `None` for the other rules.
    pub(crate) hash_on: Option<HashOn>,
    /// What tells of the value that later requests have for [`Self::hash_on`].
    pub(crate) learn_from: Option<LearnFrom>,
    /// Time for each connection attempt to a backend, and for each look-up of its name.
    pub(crate) connect_timeout: Duration,
    /// Whether names are looked up for each handshake, or watched.
    pub(crate) resolve: Resolve,
    /// Time for which the addresses of a name are used; zero shares only look-ups under way. Of a
    /// name that is watched, time between two look-ups.
    pub(crate) resolve_interval: Duration,
    /// Treatment of the tunnels of backends that are removed.
    pub(crate) on_removed: OnRemoved,
    /// Time for which a handshake waits while all backends are full; zero for no waiting.
    pub(crate) queue_timeout: Duration,
    /// Handshakes that wait at a time.
    pub(crate) queue_size: usize,
    /// Rules by which backends are ejected and come back, with those of the checks.
    pub(crate) health: HealthRules,
    /// Most backends that are ejected at a time, in percent of all.
    pub(crate) max_ejected_percent: u32,
    /// Time from the 101 within which a reset by the backend is a failure; `None` for none.
    pub(crate) early_reset: Option<Duration>,
    /// Active checks; `None` for none. [`HealthRules::checks`] is there if and only if this is.
    pub(crate) health_check: Option<Arc<HealthCheckSettings>>,
    /// How tunnels are moved to a backend that was added; `None` for not at all.
    pub(crate) rebalance: Option<RebalanceSettings>,
    /// Time for the client's whole head.
    pub(crate) read_timeout: Duration,
    /// Time for the head of the backend's response, and for each read of a declined one's body.
    pub(crate) response_timeout: Duration,
    /// Host of the forwarded request.
    pub(crate) host: HostHeader,
    /// Treatment of the X-Forwarded fields.
    pub(crate) forwarded: Forwarded,
    /// Origins that may connect; `None` for every client, with an origin or without.
    pub(crate) origins: Option<OriginList>,
    /// Whether handshakes must be as RFC 6455 and RFC 9112 have them in every detail.
    pub(crate) strict_handshake: bool,
    /// Answers of a backend after which the next one is tried.
    pub(crate) retry_on: RetryOn,
    /// Most bytes of a request head, its blank line included.
    pub(crate) max_head: usize,
    /// Connections at a time, handshakes included; `None` for no limit.
    pub(crate) max_connections: Option<usize>,
    /// Size of each buffer of each socket, in bytes; `None` for the system's default.
    pub(crate) socket_buffer: Option<usize>,
    /// Permissions of the file of a Unix socket that it listens on.
    pub(crate) socket_mode: Option<u32>,
    /// Whether the log tells of each tunnel that opens.
    pub(crate) tunnel_start: bool,
    /// Requests that are no upgrades.
    pub(crate) plain: PlainSettings,
    /// Policy for the section's tunnels.
    pub(crate) policy: Arc<Policy>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// Key, named as the builder's method.
    pub(crate) key: &'static str,
    /// Position in the list, where the key has one and an element of it is at fault.
    pub(crate) index: Option<usize>,
    /// Problem: the value found, the values allowed, the mend.
    pub(crate) problem: String,
}

impl RawSection {
    /// Checks everything that can be checked without opening anything.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub(crate) fn check(&self, drain: &Drain) -> Result<Settings, Invalid> {
        let bind = self.bind()?;
        let backends = self.backends()?;
        refuse_itself(&bind, &backends)?;
        let read_timeout = timeout("read_timeout_ms", self.read_timeout_ms, READ_TIMEOUT_MS)?;
        let response_timeout = match self.response_timeout_ms {
            None => read_timeout,
            given => timeout("response_timeout_ms", given, READ_TIMEOUT_MS)?,
        };
        let connect_timeout =
            timeout("connect_timeout_ms", self.connect_timeout_ms, CONNECT_TIMEOUT_MS)?;
        let max_connections = limit("max_connections", self.max_connections)?;
        let (health_check, checks) = self.health_check()?.unzip();
        let hash_on = self.hash_on()?;
        Ok(Settings {
            name: self.name.clone(),
            bind,
            backends,
            balance: self.balance.unwrap_or_default(),
            learn_from: self.learn_from(hash_on.as_ref())?,
            hash_on,
            connect_timeout,
            resolve: self.resolve.unwrap_or_default(),
            resolve_interval: self.resolve_interval()?,
            on_removed: self.on_removed.unwrap_or_default(),
            queue_timeout: self.queue_timeout()?,
            queue_size: self.queue_size()?,
            health: HealthRules { checks, ..self.health(connect_timeout, response_timeout)? },
            max_ejected_percent: self.max_ejected_percent()?,
            early_reset: time("early_reset_ms", self.early_reset_ms, "no such failure")?,
            health_check: health_check.map(Arc::new),
            rebalance: self.rebalance()?,
            read_timeout,
            response_timeout,
            host: self.host.unwrap_or_default(),
            forwarded: self.forwarded.unwrap_or_default(),
            origins: self.origins()?,
            strict_handshake: self.strict_handshake.unwrap_or_default(),
            retry_on: self.retry_on()?,
            max_head: self.max_head()?,
            // More than can be counted is as good as no limit.
            max_connections: max_connections.and_then(|limit| usize::try_from(limit).ok()),
            socket_buffer: self.socket_buffer()?,
            socket_mode: self.socket_mode()?,
            tunnel_start: self.tunnel_start.unwrap_or_default(),
            plain: self.plain()?,
            policy: Arc::new(self.policy(drain)?),
        })
    }

    fn bind(&self) -> Result<Address, Invalid> {
        const KEY: &str = "bind";
        let missing = "is missing: name the address to listen on, as in bind = \"0.0.0.0:8080\"";
        let bind = self.bind.as_deref().ok_or_else(|| Invalid::new(KEY, missing))?;
        Address::bind(bind).map_err(|problem| Invalid::new(KEY, problem))
    }

    fn origins(&self) -> Result<Option<OriginList>, Invalid> {
        const KEY: &str = "origins";
        match self.origins.as_deref() {
            None => Ok(None),
            Some([]) => {
                let problem = "is empty, so that no client could connect: \
                               name an origin, or leave the key out to allow every client";
                Err(Invalid::new(KEY, problem))
            }
            Some(entries) => OriginList::parse(entries)
                .map(Some)
                .map_err(|(index, problem)| Invalid::element(KEY, index, problem)),
        }
    }

    fn max_head(&self) -> Result<usize, Invalid> {
        let given = self.max_head_bytes.unwrap_or(HEAD_DEFAULT);
        match usize::try_from(given) {
            Ok(bytes) if (HEAD_MIN..=HEAD_MAX).contains(&given) => Ok(bytes),
            _ => {
                let allowed = format!("{HEAD_MIN} to {HEAD_MAX}, by default {HEAD_DEFAULT}");
                Err(Invalid::out_of_range("max_head_bytes", given, &allowed))
            }
        }
    }

    fn socket_buffer(&self) -> Result<Option<usize>, Invalid> {
        match self.socket_buffer_bytes.unwrap_or(0) {
            0 => Ok(None),
            bytes @ SOCKET_BUFFER_MIN..=SOCKET_BUFFER_MAX => Ok(usize::try_from(bytes).ok()),
            bytes => {
                let allowed = format!(
                    "0 for the system's default, or {SOCKET_BUFFER_MIN} to {SOCKET_BUFFER_MAX}"
                );
                Err(Invalid::out_of_range("socket_buffer_bytes", bytes, &allowed))
            }
        }
    }

    fn socket_mode(&self) -> Result<Option<u32>, Invalid> {
        const KEY: &str = "socket_mode";
        let Some(given) = self.socket_mode.as_deref() else { return Ok(None) };
        let is_octal =
            (3..=4).contains(&given.len()) && given.bytes().all(|one| one.is_ascii_digit());
        let mode = u32::from_str_radix(given, 8).ok().filter(|&mode| is_octal && mode <= 0o777);
        let Some(mode) = mode else {
            let problem =
                format!("{given:?} is no set of permissions: write octal digits, \"0660\"");
            return Err(Invalid::new(KEY, problem));
        };
        if self.bind()?.path().is_none() {
            let mend = "has no effect on a port: leave it out, or listen on unix:/path";
            return Err(Invalid::new(KEY, mend));
        }
        Ok(Some(mode))
    }
}

impl Settings {
    /// Returns those for both heads of a handshake.
    pub(crate) fn handshake_rules(&self) -> HandshakeRules {
        let preserves_host = self.host == HostHeader::Preserve;
        HandshakeRules { is_strict: self.strict_handshake, preserves_host }
    }

    /// Returns those for the backends among each other.
    pub(crate) fn pool_rules(&self) -> PoolRules {
        PoolRules {
            balance: self.balance,
            health: self.health,
            max_ejected_percent: self.max_ejected_percent,
        }
    }

    /// Returns those for connections to backends.
    pub(crate) fn dial(&self) -> DialSettings {
        DialSettings {
            timeout: self.connect_timeout,
            resolve_interval: self.resolve_interval,
            buffer: self.socket_buffer,
        }
    }
}

impl Invalid {
    fn new(key: &'static str, problem: impl Into<String>) -> Self {
        Self { key, index: None, problem: problem.into() }
    }

    fn element(key: &'static str, index: usize, problem: String) -> Self {
        Self { key, index: Some(index), problem }
    }

    fn out_of_range(key: &'static str, given: i64, allowed: &str) -> Self {
        Self::new(key, format!("{given} is out of range ({allowed})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawSection {
        RawSection {
            bind: Some("127.0.0.1:0".to_owned()),
            backends: Some(vec!["a:1".into(), "b".into()]),
            ..RawSection::default()
        }
    }

    fn drain() -> Drain {
        RawDrain::default().check().unwrap()
    }

    #[test]
    fn a_drain_fits_into_its_timeout() {
        let whole = drain();
        assert_eq!(whole, Drain::default());
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
        assert_eq!(settings.resolve_interval, Duration::from_secs(1));
        assert_eq!(settings.read_timeout, Duration::from_secs(30));
        assert_eq!(settings.response_timeout, Duration::from_secs(30));
        assert_eq!(settings.host, HostHeader::Backend);
        assert_eq!(settings.forwarded, Forwarded::Append);
        assert!(settings.origins.is_none());
        assert_eq!(settings.max_connections, None);
        assert_eq!(settings.backends[1].address.port(), Some(80));
        assert_eq!((settings.resolve, settings.on_removed), (Resolve::Connect, OnRemoved::Keep));
        assert_eq!((settings.queue_timeout, settings.queue_size), (Duration::ZERO, 1_000));
        let health = HealthRules {
            max_failures: 3,
            eject: Duration::from_secs(10),
            trial_timeout: Duration::from_secs(3 * 5 + 30),
            has_early_resets: false,
            slow_start: Duration::ZERO,
            checks: None,
        };
        assert_eq!(settings.health, health);
        assert_eq!((settings.max_ejected_percent, settings.early_reset), (50, None));
        assert_eq!((settings.health_check, settings.rebalance), (None, None));
    }

    #[test]
    fn a_watched_name_has_another_interval() {
        let watched = RawSection { resolve: Some(Resolve::Watch), ..raw() };
        let settings = watched.check(&drain()).unwrap();
        assert_eq!(settings.resolve_interval, Duration::from_secs(5));
        let unshared = RawSection { resolve_interval_ms: Some(0), ..raw() };
        assert_eq!(unshared.check(&drain()).unwrap().resolve_interval, Duration::ZERO);
    }

    #[test]
    fn rebalancing_is_on_where_it_is_asked_for() {
        let code = RawSection { rebalance_code: Some(4000), ..raw() };
        assert_eq!(code.check(&drain()).unwrap().rebalance, None);
        let asked = |raw| RawSection { rebalance: Some(true), ..raw };
        let of = |raw: RawSection| {
            let settings = raw.check(&drain()).unwrap().rebalance.unwrap();
            (settings.code, settings.per_second.get())
        };
        assert_eq!(of(asked(raw())), (1012, 10));
        assert_eq!(of(asked(code)), (4000, 10));
        assert_eq!(of(RawSection { rebalance_per_second: Some(7), ..asked(raw()) }), (1012, 7));
    }

    #[test]
    fn the_rules_on_checks_are_there_if_and_only_if_checks_are() {
        let check = HealthCheck::new(CheckKind::Http).healthy_threshold(7).raw;
        let settings = RawSection { health_check: Some(check), ..raw() }.check(&drain()).unwrap();
        assert_eq!(settings.health.checks.map(|rules| rules.healthy_threshold), Some(7));
        assert_eq!(settings.health_check.map(|check| check.kind), Some(CheckKind::Http));
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
    fn each_bad_setting_is_named_with_what_is_allowed() {
        let strings = |all: &[&str]| Some(all.iter().map(ToString::to_string).collect());
        let bad = |set: fn(&mut RawSection)| {
            let mut raw = raw();
            set(&mut raw);
            raw
        };
        let codes = "1000-1003, 1007-1014, 3000-4999";
        let cases = [
            (bad(|raw| raw.bind = None), "bind", "is missing: "),
            (bad(|raw| raw.bind = Some("x".to_owned())), "bind", "\"x\": "),
            (bad(|raw| raw.backends = None), "backends", "is missing: "),
            (bad(|raw| raw.backends = Some(vec![])), "backends", "is empty: "),
            (
                bad(|raw| raw.connect_timeout_ms = Some(0)),
                "connect_timeout_ms",
                "must be at least 1 (milliseconds), got 0",
            ),
            (
                bad(|raw| raw.resolve_interval_ms = Some(-1)),
                "resolve_interval_ms",
                "-1 is out of range (0 for no use beyond the look-up, or a positive number of ",
            ),
            (
                bad(|raw| raw.read_timeout_ms = Some(-1)),
                "read_timeout_ms",
                "must be at least 1 (milliseconds), got -1",
            ),
            (
                bad(|raw| raw.response_timeout_ms = Some(0)),
                "response_timeout_ms",
                "must be at least 1 (milliseconds), got 0",
            ),
            (bad(|raw| raw.origins = Some(vec![])), "origins", "is empty, "),
            (
                bad(|raw| raw.max_connections = Some(-1)),
                "max_connections",
                "-1 is out of range (0 for no limit, or a positive number)",
            ),
            (
                bad(|raw| raw.socket_buffer_bytes = Some(1 << 31)),
                "socket_buffer_bytes",
                "2147483648 is out of range (0 for the system's default, or 4096 to 2147483647)",
            ),
            (
                bad(|raw| raw.ping_interval_ms = Some(-1)),
                "ping_interval_ms",
                "-1 is out of range (0 for no Pings, or a positive number of milliseconds)",
            ),
            (
                bad(|raw| raw.pong_timeout_ms = Some(-2)),
                "pong_timeout_ms",
                "-2 is out of range (0 for ping_interval_ms, or ",
            ),
            (
                bad(|raw| raw.idle_timeout_ms = Some(-3)),
                "idle_timeout_ms",
                "-3 is out of range (0 for no limit, or ",
            ),
            (
                bad(|raw| raw.max_lifetime_ms = Some(-4)),
                "max_lifetime_ms",
                "-4 is out of range (0 for no limit, or ",
            ),
            (
                bad(|raw| raw.max_message_bytes = Some(-5)),
                "max_message_bytes",
                "-5 is out of range (0 for no limit, or ",
            ),
            (
                bad(|raw| raw.max_frame_bytes = Some(-6)),
                "max_frame_bytes",
                "-6 is out of range (0 for no limit, or ",
            ),
            (
                bad(|raw| raw.max_messages_per_second = Some(1 << 32)),
                "max_messages_per_second",
                "4294967296 is out of range (0 for no limit, or 1 to 4294967295)",
            ),
            (
                bad(|raw| raw.lifetime_close_code = Some(1005)),
                "lifetime_close_code",
                &format!("1005 is not a sendable close code ({codes})"),
            ),
            (
                bad(|raw| raw.backend_lost_code = Some(1006)),
                "backend_lost_code",
                &format!("1006 is not a sendable close code ({codes}, or 0 for none)"),
            ),
            (
                bad(|raw| {
                    (raw.resolve, raw.resolve_interval_ms) = (Some(Resolve::Watch), Some(0));
                }),
                "resolve_interval_ms",
                "must be at least 1 (milliseconds), got 0 with resolve = \"watch\"",
            ),
            (
                bad(|raw| raw.queue_timeout_ms = Some(-1)),
                "queue_timeout_ms",
                "-1 is out of range (0 for no waiting, or a positive number of milliseconds)",
            ),
            (
                bad(|raw| raw.queue_size = Some(0)),
                "queue_size",
                "0 is out of range (1 to 1000000): set queue_timeout_ms = 0 for no waiting",
            ),
            (
                bad(|raw| raw.queue_size = Some(1_000_001)),
                "queue_size",
                "1000001 is out of range (1 to 1000000)",
            ),
            (
                bad(|raw| raw.max_failures = Some(-1)),
                "max_failures",
                "-1 is out of range (0 for no ejection, or 1 to 4294967295)",
            ),
            (
                bad(|raw| raw.eject_ms = Some(0)),
                "eject_ms",
                "must be at least 1 (milliseconds), got 0",
            ),
            (
                bad(|raw| raw.max_ejected_percent = Some(101)),
                "max_ejected_percent",
                "101 is out of range (0 for no ejection, or 1 to 100)",
            ),
            (
                bad(|raw| raw.max_ejected_percent = Some(-1)),
                "max_ejected_percent",
                "-1 is out of range (0 for no ejection, or 1 to 100)",
            ),
            (
                bad(|raw| raw.early_reset_ms = Some(-1)),
                "early_reset_ms",
                "-1 is out of range (0 for no such failure, or a positive number of milliseconds)",
            ),
            (
                bad(|raw| raw.slow_start_ms = Some(-1)),
                "slow_start_ms",
                "-1 is out of range (0 for the full share at once, or a positive number of ",
            ),
            (
                bad(|raw| raw.health_path = Some("healthz".to_owned())),
                "health_path",
                "\"healthz\" is not a path: write one that begins with /",
            ),
            (
                bad(|raw| raw.health_path = Some("/healthz?deep".to_owned())),
                "health_path",
                "\"/healthz?deep\" is not a path: write one that begins with /",
            ),
            (
                bad(|raw| raw.keep_alive_timeout_ms = Some(0)),
                "keep_alive_timeout_ms",
                "must be at least 1 (milliseconds), got 0",
            ),
            (
                bad(|raw| raw.body_timeout_ms = Some(-1)),
                "body_timeout_ms",
                "-1 is out of range (0 for no limit, or a positive number of milliseconds)",
            ),
            (
                bad(|raw| raw.max_body_bytes = Some(-1)),
                "max_body_bytes",
                "-1 is out of range (0 for no limit, or a positive number)",
            ),
            (
                bad(|raw| raw.rebalance_code = Some(1005)),
                "rebalance_code",
                &format!("1005 is not a sendable close code ({codes})"),
            ),
            (
                bad(|raw| raw.rebalance_per_second = Some(0)),
                "rebalance_per_second",
                "0 is out of range (1 to 4294967295)",
            ),
            (
                bad(|raw| {
                    raw.health_check = Some(HealthCheck::new(CheckKind::Http).timeout_ms(0).raw);
                }),
                "health_check",
                "timeout_ms: must be at least 1 (milliseconds), got 0",
            ),
            (
                bad(|raw| raw.client_lost_code = Some(-1)),
                "client_lost_code",
                &format!("-1 is not a sendable close code ({codes}, or 0 for none)"),
            ),
        ];
        assert!(!cases.is_empty());
        let longest = RawDrain { delay_ms: Some(7_999), ..RawDrain::default() };
        assert_eq!(longest.check().unwrap().spread, Duration::ZERO);
        for (raw, key, problem) in cases {
            let invalid = raw.check(&drain()).unwrap_err();
            assert_eq!((invalid.key, invalid.index), (key, None), "{invalid:?}");
            assert!(invalid.problem.starts_with(problem), "{invalid:?}");
        }
        for (raw, key) in [
            (RawSection { backends: Some(vec!["a:1".into(), "b:x".into()]), ..raw() }, "backends"),
            (RawSection { origins: strings(&["none", "x"]), ..raw() }, "origins"),
        ] {
            let invalid = raw.check(&drain()).unwrap_err();
            assert_eq!((invalid.key, invalid.index), (key, Some(1)), "{invalid:?}");
        }
    }

    #[test]
    fn each_bad_setting_of_the_drain_is_named_as_the_builders_method() {
        let bad = |set: fn(&mut RawDrain)| {
            let mut raw = RawDrain::default();
            set(&mut raw);
            raw
        };
        let cases = [
            (bad(|raw| raw.delay_ms = Some(-1)), "drain_delay_ms", "(0 for no delay, or "),
            (bad(|raw| raw.delay_ms = Some(8_000)), "drain_delay_ms", "timeout_ms (8000)"),
            (bad(|raw| raw.spread_ms = Some(-1)), "drain_spread_ms", "(0 for all at once, or "),
            (bad(|raw| raw.timeout_ms = Some(0)), "drain_timeout_ms", "must be at least 1 "),
            (bad(|raw| raw.close_code = Some(0)), "drain_close_code", "0 is not a sendable "),
            (bad(|raw| raw.close_grace_ms = Some(-1)), "close_grace_ms", "(0 for a moment, or "),
        ];
        assert!(!cases.is_empty());
        for (raw, key, problem) in cases {
            let invalid = raw.check().unwrap_err();
            assert_eq!(invalid.key, key);
            assert!(invalid.problem.contains(problem), "{invalid:?}");
        }
    }

    #[test]
    fn the_largest_numbers_are_taken() {
        let settings = RawSection {
            socket_buffer_bytes: Some(i64::from(i32::MAX)),
            max_messages_per_second: Some(i64::from(u32::MAX)),
            max_connections: Some(i64::MAX),
            ..raw()
        };
        let settings = settings.check(&drain()).unwrap();
        assert_eq!(settings.socket_buffer, usize::try_from(i32::MAX).ok());
        assert_eq!(settings.policy.max_messages_per_second, Some(u32::MAX));
        assert_eq!(settings.max_connections, usize::try_from(i64::MAX).ok());
    }
}
