//! The settings of the look-ups of names.

use std::time::Duration;

use super::values::{time_or, timeout};
use super::{Invalid, RawSection};

/// Default time for which the addresses of a name are used.
const CONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// Default time between two look-ups of a watched name, in milliseconds.
const WATCH_INTERVAL_MS: i64 = 5_000;

/// Way in which names of backends are looked up; the key `resolve` of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum Resolve {
    /// When a handshake comes to the backend; its addresses are one backend. The default.
    #[default]
    Connect,
    /// Again and again, whether handshakes come or not; each address is a backend of its own.
    Watch,
}

impl RawSection {
    pub(super) fn resolve_interval(&self) -> Result<Duration, Invalid> {
        const KEY: &str = "resolve_interval_ms";
        let given = self.resolve_interval_ms;
        match self.resolve.unwrap_or_default() {
            Resolve::Connect => time_or(KEY, given, CONNECT_INTERVAL, "no use beyond the look-up"),
            Resolve::Watch => timeout(KEY, given, WATCH_INTERVAL_MS).map_err(|invalid| {
                let problem = format!("{} with resolve = \"watch\"", invalid.problem);
                Invalid { problem, ..invalid }
            }),
        }
    }
}
