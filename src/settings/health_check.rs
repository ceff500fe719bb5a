//! The settings of the active checks of a section's backends.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use super::lists::{HeaderList, StatusList};
use super::values::{positive, timeout};
use super::{Invalid, RawSection};
use crate::backend::health::checks::ExpectedStatus;
use crate::backend::health::states::CheckRules;
use crate::handshake::target::is_authority;

/// Default time between two checks, in milliseconds.
const INTERVAL_MS: i64 = 5_000;
/// Default time for a check, in milliseconds.
const TIMEOUT_MS: i64 = 2_000;
/// Default number of passed checks in a row that bring a backend back.
const HEALTHY_THRESHOLD: u32 = 2;
/// Default number of failed checks in a row that take a backend out.
const UNHEALTHY_THRESHOLD: u32 = 3;

raw_table! {
    /// The table `[ws_proxy.health_check]` as given; nothing is checked yet.
    RawHealthCheck {
        kind: CheckKind,
        path: String,
        host: String,
        headers: HeaderList,
        expect_status: StatusList,
        interval_ms: i64,
        timeout_ms: i64,
        healthy_threshold: i64,
        unhealthy_threshold: i64,
        on_unhealthy: OnUnhealthy,
    }
}

/// Active checks of the backends of a proxy, for
/// [`WsProxy::health_check`](crate::WsProxy::health_check): each address is checked again and
/// again, whether handshakes come or not. A backend is used until a check of it has failed.
///
/// ```
/// use ws_proxy::{CheckKind, HealthCheck, WsProxy};
///
/// let check = HealthCheck::new(CheckKind::Http).path("/health").interval_ms(10_000);
/// WsProxy::new(["a:9000", "b:9000"]).health_check(check);
/// ```
#[derive(Clone, Debug)]
#[must_use = "a check is one of a proxy"]
pub struct HealthCheck {
    pub(crate) raw: RawHealthCheck,
}

/// Kind of an active check; the key `kind` of `[ws_proxy.health_check]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum CheckKind {
    /// A connection that is accepted. The default of a table without `path` and `expect_status`.
    #[default]
    Tcp,
    /// A GET whose status is an expected one. The default of a table with one of these.
    Http,
    /// An opening handshake with a valid 101, which ends with a Close 1000.
    Websocket,
}

/// Treatment of the tunnels of a backend that checks take out; the key `on_unhealthy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum OnUnhealthy {
    /// They go on until they end by themselves. The default.
    #[default]
    Keep,
    /// They are closed as `[drain]` says.
    Drain,
}

impl HealthCheck {
    /// Creates checks of this kind.
    pub fn new(kind: CheckKind) -> Self {
        Self { raw: RawHealthCheck { kind: Some(kind), ..RawHealthCheck::default() } }
    }

    /// Sets the path and query of the request. Default: `/`. One that does not begin with `/` or
    /// has other characters than visible ASCII, or a `#`, is an error, and so is any with
    /// [`CheckKind::Tcp`].
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.raw.path = Some(path.into());
        self
    }

    /// Sets the `Host` field of the request, `host` or `host:port`. Default: the `host:port` of the
    /// backend. An error with [`CheckKind::Tcp`].
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.raw.host = Some(host.into());
        self
    }

    /// Adds a header field to the request. Default: none. A name that is no token (RFC 9110,
    /// 5.6.2) or one of a field that the check writes itself, and a value with control characters,
    /// is an error, and so is any with [`CheckKind::Tcp`].
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.raw.headers.get_or_insert_default().0.push((name.into(), value.into()));
        self
    }

    /// Sets the statuses by which a check passes: `"200"`, `"200-299"`, or several with commas
    /// between them. Default: `"200-399"`. Statuses other than 200 to 599 are an error, and so are
    /// any without [`CheckKind::Http`].
    pub fn expect_status(mut self, statuses: impl Into<String>) -> Self {
        self.raw.expect_status = Some(StatusList(vec![statuses.into()]));
        self
    }

    /// Sets the time from the beginning of one check of an address to that of the next one, a fifth
    /// more or less, in milliseconds. Default: 5,000. Zero is an error.
    pub fn interval_ms(mut self, ms: u64) -> Self {
        self.raw.interval_ms = number(ms);
        self
    }

    /// Sets the time for the whole of a check, in milliseconds. It may be longer than the interval:
    /// an address has one check at a time. Default: 2,000. Zero is an error.
    pub fn timeout_ms(mut self, ms: u64) -> Self {
        self.raw.timeout_ms = number(ms);
        self
    }

    /// Sets the number of passed checks in a row that bring a backend back. Default: 2. Zero is an
    /// error.
    pub fn healthy_threshold(mut self, checks: u32) -> Self {
        self.raw.healthy_threshold = Some(checks.into());
        self
    }

    /// Sets the number of failed checks in a row that take a backend out. Default: 3. Zero is an
    /// error.
    pub fn unhealthy_threshold(mut self, checks: u32) -> Self {
        self.raw.unhealthy_threshold = Some(checks.into());
        self
    }

    /// Sets the treatment of the tunnels of a backend that is taken out. Default:
    /// [`OnUnhealthy::Keep`].
    pub fn on_unhealthy(mut self, treatment: OnUnhealthy) -> Self {
        self.raw.on_unhealthy = Some(treatment);
        self
    }
}

/// Checked settings of the active checks of a section's backends.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HealthCheckSettings {
    pub(crate) kind: CheckKind,
    /// Target of the request: path and query.
    pub(crate) path: String,
    /// Value of the Host field; `None` for the backend's own, as handshakes have it.
    pub(crate) host: Option<String>,
    /// Further fields of the request: names and values.
    pub(crate) headers: Vec<(String, String)>,
    /// Statuses by which an HTTP check passes.
    pub(crate) expected: ExpectedStatus,
    /// Time from the beginning of one check of an address to that of the next one.
    pub(crate) interval: Duration,
    /// Time for the whole of a check.
    pub(crate) timeout: Duration,
    pub(crate) on_unhealthy: OnUnhealthy,
}

impl RawSection {
    /// Returns the settings of the checks and the rules on their results; `None` without checks.
    pub(super) fn health_check(
        &self,
    ) -> Result<Option<(HealthCheckSettings, CheckRules)>, Invalid> {
        let Some(raw) = &self.health_check else { return Ok(None) };
        raw.check().map(Some).map_err(|Invalid { key, problem, .. }| {
            Invalid::new("health_check", format!("{key}: {problem}"))
        })
    }
}

impl RawHealthCheck {
    /// Checks everything. An error names the key of this table.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub(crate) fn check(&self) -> Result<(HealthCheckSettings, CheckRules), Invalid> {
        let kind = self.kind();
        self.refuse_unused(kind)?;
        let threshold =
            |key, given, default| positive(key, given, default, u32::MAX).map(NonZeroU32::get);
        let (up, down) = (self.healthy_threshold, self.unhealthy_threshold);
        let rules = CheckRules {
            healthy_threshold: threshold("healthy_threshold", up, HEALTHY_THRESHOLD)?,
            unhealthy_threshold: threshold("unhealthy_threshold", down, UNHEALTHY_THRESHOLD)?,
            is_beyond_connect: kind != CheckKind::Tcp,
        };
        let default = ExpectedStatus::default();
        let settings = HealthCheckSettings {
            kind,
            path: self.path()?,
            host: self.host()?,
            headers: self.headers.as_ref().map_or(Ok(Vec::new()), HeaderList::check)?,
            expected: self.expect_status.as_ref().map_or(Ok(default), StatusList::check)?,
            interval: timeout("interval_ms", self.interval_ms, INTERVAL_MS)?,
            timeout: timeout("timeout_ms", self.timeout_ms, TIMEOUT_MS)?,
            on_unhealthy: self.on_unhealthy.unwrap_or_default(),
        };
        Ok((settings, rules))
    }

    /// Returns the kind: where it is not given, the one that the other keys belong to.
    fn kind(&self) -> CheckKind {
        let is_http = self.path.is_some() || self.expect_status.is_some();
        self.kind.unwrap_or(if is_http { CheckKind::Http } else { CheckKind::Tcp })
    }

    /// Refuses keys without effect on checks of this kind.
    fn refuse_unused(&self, kind: CheckKind) -> Result<(), Invalid> {
        const REQUEST: &str = "has no effect on kind = \"tcp\", which sends nothing: set kind = \
                               \"http\" or \"websocket\", or leave it out";
        const STATUS: &str = "has no effect without kind = \"http\": set that, or leave it out";
        let (is_tcp, is_http) = (kind == CheckKind::Tcp, kind == CheckKind::Http);
        let unused = [
            ("path", self.path.is_some() && is_tcp, REQUEST),
            ("host", self.host.is_some() && is_tcp, REQUEST),
            ("headers", self.headers.is_some() && is_tcp, REQUEST),
            ("expect_status", self.expect_status.is_some() && !is_http, STATUS),
        ];
        match unused.into_iter().find(|(_, is_unused, _)| *is_unused) {
            Some((key, _, mend)) => Err(Invalid::new(key, mend)),
            None => Ok(()),
        }
    }

    fn path(&self) -> Result<String, Invalid> {
        let path = self.path.as_deref().unwrap_or("/");
        let is_target_byte = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        if path.starts_with('/') && path.bytes().all(is_target_byte) {
            return Ok(path.to_owned());
        }
        let problem = format!(
            "{path:?} is not a path: write one that begins with /, of visible ASCII without #, as \
             in \"/health\""
        );
        Err(Invalid::new("path", problem))
    }

    fn host(&self) -> Result<Option<String>, Invalid> {
        match self.host.as_deref() {
            Some(host) if !is_authority(host) => {
                let problem = format!(
                    "{host:?} is not a host: write a name with or without a port, as in \
                     \"app.example.com\""
                );
                Err(Invalid::new("host", problem))
            }
            host => Ok(host.map(str::to_owned)),
        }
    }
}

impl fmt::Debug for HealthCheckSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, path, interval, timeout, .. } = self;
        // The values of the headers may be secrets.
        f.debug_struct("HealthCheckSettings")
            .field("kind", kind)
            .field("path", path)
            .field("interval", interval)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}

/// Returns a number of the builder as the checks take it. One that does not fit is far out of every
/// range.
fn number(given: u64) -> Option<i64> {
    Some(i64::try_from(given).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> HealthCheck {
        HealthCheck::new(CheckKind::Http)
    }

    #[test]
    fn a_check_without_keys_is_one_of_the_port() {
        let (settings, rules) = RawHealthCheck::default().check().unwrap();
        let expected = HealthCheckSettings {
            kind: CheckKind::Tcp,
            path: "/".to_owned(),
            host: None,
            headers: Vec::new(),
            expected: ExpectedStatus::default(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            on_unhealthy: OnUnhealthy::Keep,
        };
        assert_eq!(settings, expected);
        assert_eq!((rules.healthy_threshold, rules.unhealthy_threshold), (2, 3));
        assert!(!rules.is_beyond_connect);
    }

    #[test]
    fn the_kind_follows_the_keys_unless_it_is_given() {
        let raw = RawHealthCheck::default();
        let path = RawHealthCheck { path: Some("/up".to_owned()), ..raw.clone() };
        let statuses = Some(StatusList(vec!["204".to_owned()]));
        let status = RawHealthCheck { expect_status: statuses, ..raw };
        let websocket = RawHealthCheck { kind: Some(CheckKind::Websocket), ..path.clone() };
        for (raw, kind) in [
            (path, CheckKind::Http),
            (status, CheckKind::Http),
            (websocket, CheckKind::Websocket),
            (http().raw, CheckKind::Http),
        ] {
            let (settings, rules) = raw.check().unwrap();
            assert_eq!(settings.kind, kind);
            assert!(rules.is_beyond_connect);
        }
    }

    #[test]
    fn every_method_sets_its_key() {
        let check = http()
            .path("/up?deep=1")
            .host("app.test:8080")
            .header("X-Probe", "1")
            .header("X-Probe", "2")
            .expect_status("204,200")
            .interval_ms(1)
            .timeout_ms(2)
            .healthy_threshold(3)
            .unhealthy_threshold(4)
            .on_unhealthy(OnUnhealthy::Drain);
        let (settings, rules) = check.raw.check().unwrap();
        let expected = HealthCheckSettings {
            kind: CheckKind::Http,
            path: "/up?deep=1".to_owned(),
            host: Some("app.test:8080".to_owned()),
            headers: ["1", "2"].map(|value| ("X-Probe".to_owned(), value.to_owned())).into(),
            expected: ExpectedStatus::parse("200,204").unwrap(),
            interval: Duration::from_millis(1),
            timeout: Duration::from_millis(2),
            on_unhealthy: OnUnhealthy::Drain,
        };
        assert_eq!(settings, expected);
        assert_eq!((rules.healthy_threshold, rules.unhealthy_threshold), (3, 4));
    }

    #[test]
    fn each_bad_setting_is_named_with_what_is_allowed() {
        let tcp = || HealthCheck::new(CheckKind::Tcp);
        let websocket = || HealthCheck::new(CheckKind::Websocket);
        let cases = [
            (http().path(""), "path", "\"\" is not a path: write one that begins with /"),
            (http().path("up"), "path", "\"up\" is not a path"),
            (http().path("/a b"), "path", "\"/a b\" is not a path"),
            (http().path("/a#b"), "path", "\"/a#b\" is not a path"),
            (http().path("/\r\n"), "path", "\"/\\r\\n\" is not a path"),
            (websocket().path("/gr\u{fc}n"), "path", "\"/gr\u{fc}n\" is not a path"),
            (tcp().path("/"), "path", "has no effect on kind = \"tcp\", which sends nothing: "),
            (tcp().host("a"), "host", "has no effect on kind = \"tcp\""),
            (tcp().header("A", "b"), "headers", "has no effect on kind = \"tcp\""),
            (tcp().expect_status("200"), "expect_status", "has no effect without kind = \"http\""),
            (websocket().expect_status("200"), "expect_status", "has no effect without kind = "),
            (http().host("a b"), "host", "\"a b\" is not a host: write a name"),
            (http().host(""), "host", "\"\" is not a host: write a name"),
            (http().header("", "b"), "headers", "\"\" is not the name of a header field"),
            (http().expect_status("199"), "expect_status", "199 is not a final status (200-599)"),
            (http().interval_ms(0), "interval_ms", "must be at least 1 (milliseconds), got 0"),
            (tcp().timeout_ms(0), "timeout_ms", "must be at least 1 (milliseconds), got 0"),
            (
                tcp().healthy_threshold(0),
                "healthy_threshold",
                "0 is out of range (1 to 4294967295)",
            ),
            (
                tcp().unhealthy_threshold(0),
                "unhealthy_threshold",
                "0 is out of range (1 to 4294967295)",
            ),
        ];
        assert!(!cases.is_empty());
        for (check, key, problem) in cases {
            let invalid = check.raw.check().unwrap_err();
            assert_eq!(invalid.key, key, "{invalid:?}");
            assert!(invalid.problem.starts_with(problem), "{invalid:?}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let check = http().header("Authorization", "Bearer s3cret");
        let proxy = crate::WsProxy::new(["a:1"]).health_check(check.clone());
        let (settings, _) = proxy.settings("127.0.0.1:0").unwrap();
        for text in [format!("{check:?}"), format!("{proxy:?}"), format!("{settings:?}")] {
            assert!(text.contains("Http") && !text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    #[cfg(feature = "config")]
    fn every_key_has_its_method() {
        const SOURCE: &str = include_str!("health_check.rs");
        assert!(!RawHealthCheck::KEYS.is_empty());
        for &key in RawHealthCheck::KEYS {
            let method = match key {
                "kind" => "new",
                "headers" => "header",
                key => key,
            };
            assert!(SOURCE.contains(&format!("    pub fn {method}(")), "{method} is no method");
        }
    }
}
