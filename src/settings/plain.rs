//! The settings of requests that are no upgrades.

use std::time::Duration;

use super::values::{limit, time, timeout};
use super::{Invalid, RawSection};

/// Default time between two requests on a connection, in milliseconds.
const KEEP_ALIVE_TIMEOUT_MS: i64 = 60_000;
/// Default time between two bytes of a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Treatment of requests that are no upgrades; the key `plain_http` of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum PlainHttp {
    /// They get 400, and their connection is closed. The default.
    #[default]
    Reject,
    /// They are forwarded to the backends as well.
    Forward,
}

/// Checked settings of requests that are no upgrades.
#[derive(Clone, Debug)]
pub(crate) struct PlainSettings {
    pub(crate) treatment: PlainHttp,
    /// Most bytes of a request's body; `None` for no limit.
    pub(crate) max_body: Option<u64>,
    /// Time for the next request on a connection to begin.
    pub(crate) keep_alive_timeout: Duration,
    /// Time without a byte of a body, either way; `None` for no limit.
    pub(crate) body_timeout: Option<Duration>,
    /// Path at which clients are told whether the section is ready; `None` for none.
    pub(crate) health_path: Option<String>,
}

impl RawSection {
    pub(super) fn plain(&self) -> Result<PlainSettings, Invalid> {
        let keep_alive = self.keep_alive_timeout_ms;
        Ok(PlainSettings {
            treatment: self.plain_http.unwrap_or_default(),
            max_body: limit("max_body_bytes", self.max_body_bytes)?,
            keep_alive_timeout: timeout(
                "keep_alive_timeout_ms",
                keep_alive,
                KEEP_ALIVE_TIMEOUT_MS,
            )?,
            body_timeout: match self.body_timeout_ms {
                None => Some(BODY_TIMEOUT),
                given => time("body_timeout_ms", given, "no limit")?,
            },
            health_path: self.health_path()?,
        })
    }

    fn health_path(&self) -> Result<Option<String>, Invalid> {
        let Some(path) = self.health_path.as_deref() else { return Ok(None) };
        let is_path_byte = |byte: u8| byte.is_ascii_graphic() && byte != b'#' && byte != b'?';
        if path.starts_with('/') && path.bytes().all(is_path_byte) {
            return Ok(Some(path.to_owned()));
        }
        let problem = format!(
            "{path:?} is not a path: write one that begins with /, of visible ASCII without ? and \
             #, as in health_path = \"/healthz\""
        );
        Err(Invalid::new("health_path", problem))
    }
}
