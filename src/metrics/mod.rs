//! Metrics of the sections that are given to it.
//!
//! Reading them walks no tunnel and takes no lock that a connection could wait for: the counts of a
//! section ([`stats`](crate::stats)) are atomics. [`exposition`] tells them to a [`writer`],
//! [`process`] adds those of the whole process.

#[cfg(feature = "metrics")]
mod exposition;
#[cfg(feature = "metrics")]
mod process;
#[cfg(feature = "metrics")]
mod writer;

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

#[cfg(feature = "admin")]
use crate::endings::Endings;
use crate::live::LiveSection;
use crate::lock::lock;
use crate::stats::SectionStats;

/// Counts of one or more proxies, for a monitoring system.
///
/// All clones are the same metrics. A proxy counts for them as soon as it
/// [listens](crate::WsProxy::metrics), until it is dropped.
///
/// ```
/// use ws_proxy::{Metrics, WsProxy};
///
/// let metrics = Metrics::new();
/// let bound = WsProxy::new(["127.0.0.1:9000"]).metrics(&metrics).listen("127.0.0.1:0")?;
/// # drop(bound);
/// # Ok::<(), ws_proxy::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Metrics(Arc<Sources>);

#[derive(Default)]
struct Sources {
    reloads: Mutex<Reloads>,
    sections: Mutex<Vec<Weak<LiveSection>>>,
    /// Source of the number of log lines that were dropped.
    dropped_lines: Mutex<Option<Box<dyn Fn() -> u64 + Send + Sync>>>,
    /// Endings of the sections, where an admin listener asks for them.
    #[cfg(feature = "admin")]
    endings: Option<Arc<Endings>>,
}

/// Reloads of the configuration.
struct Reloads {
    successes: u64,
    failures: u64,
    /// Time of the last success, or else of the start.
    loaded: SystemTime,
    /// Error of the last one, if it failed.
    error: Option<String>,
}

impl Default for Reloads {
    fn default() -> Self {
        Self { successes: 0, failures: 0, loaded: SystemTime::now(), error: None }
    }
}

/// Text format of metrics.
#[cfg(feature = "metrics")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricsFormat {
    /// Prometheus' own, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Metrics {
    /// Creates metrics that no proxy counts for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates metrics of an admin listener, which keep the endings of tunnels as well.
    #[cfg(feature = "admin")]
    pub(crate) fn with_endings() -> Self {
        Self(Arc::new(Sources { endings: Some(Arc::default()), ..Sources::default() }))
    }

    /// Returns the endings, if they are kept.
    #[cfg(feature = "admin")]
    pub(crate) fn endings(&self) -> Option<&Endings> {
        self.0.endings.as_deref()
    }

    /// Completes the counts of a section with what all sections share.
    pub(crate) fn complete(&self, stats: SectionStats) -> SectionStats {
        #[cfg(feature = "admin")]
        let stats = SectionStats { endings: self.0.endings.clone(), ..stats };
        stats
    }

    /// Has the metrics tell how many log lines were dropped. Default: none.
    pub fn set_dropped_lines(&self, source: impl Fn() -> u64 + Send + Sync + 'static) {
        *lock(&self.0.dropped_lines) = Some(Box::new(source));
    }

    /// Counts a reload of the configuration, or the error for which it changed nothing. A reload of
    /// several [proxies](crate::ProxyHandle::reload) is one.
    pub fn record_reload(&self, result: Result<(), String>) {
        let mut reloads = lock(&self.0.reloads);
        match result {
            Ok(()) => {
                reloads.successes += 1;
                reloads.loaded = SystemTime::now();
                reloads.error = None;
            }
            Err(error) => {
                reloads.failures += 1;
                reloads.error = Some(error);
            }
        }
    }

    /// Returns the error of the last reload, if it failed.
    #[must_use]
    pub fn reload_error(&self) -> Option<String> {
        lock(&self.0.reloads).error.clone()
    }

    /// Returns all metrics as text.
    #[cfg(feature = "metrics")]
    #[must_use]
    pub fn render(&self, format: MetricsFormat) -> String {
        let dropped_lines = lock(&self.0.dropped_lines).as_ref().map_or(0, |source| source());
        let process = {
            let reloads = lock(&self.0.reloads);
            let loaded = reloads.loaded.duration_since(SystemTime::UNIX_EPOCH);
            exposition::ProcessCounts {
                dropped_lines,
                reloads: reloads.successes,
                failed_reloads: reloads.failures,
                loaded: loaded.unwrap_or_default().as_secs_f64(),
            }
        };
        exposition::render(format, &self.sections(), process)
    }

    /// Adds a section, until it is dropped.
    pub(crate) fn add(&self, section: &Arc<LiveSection>) {
        let mut sections = lock(&self.0.sections);
        sections.retain(|known| known.strong_count() > 0);
        sections.push(Arc::downgrade(section));
    }

    /// Returns the sections that are there, in the order in which they came.
    #[cfg(feature = "metrics")]
    fn sections(&self) -> Vec<Arc<LiveSection>> {
        lock(&self.0.sections).iter().filter_map(Weak::upgrade).collect()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(feature = "metrics")]
impl MetricsFormat {
    /// Returns the format that an `Accept` field asks for: OpenMetrics if it is named, else that of
    /// Prometheus.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let names_it = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            // A weight of 0 says that it is not wanted (RFC 9110, 12.4.2).
            let is_refused = parts.any(|part| {
                let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
                weight.and_then(|weight| weight.parse().ok()) == Some(0.0)
            });
            name.eq_ignore_ascii_case("application/openmetrics-text") && !is_refused
        };
        if accept.split(',').any(names_it) { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Returns the media type of the text.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use super::*;
    use crate::net::name::BoundAddress;
    use crate::section::Section;
    use crate::settings::{RawDrain, RawSection};

    #[test]
    fn sections_that_are_gone_take_no_memory() {
        let metrics = Metrics::new();
        let add = || {
            let (bind, backends) = ("127.0.0.1:0".to_owned(), vec!["a:1".into()]);
            let drain = RawDrain::default().check().unwrap();
            let (backends, default) = (Some(backends), RawSection::default());
            let raw = RawSection { bind: Some(bind.clone()), backends, ..default };
            let settings = (raw.check(&drain).unwrap(), drain);
            let section = Section::new(settings, BoundAddress::Ip(bind.parse().unwrap()), None);
            let live = Arc::new(LiveSection::new(bind, section));
            metrics.add(&live);
            live
        };
        let kept = add();
        (0..9).for_each(|_| drop(add()));
        assert!(lock(&metrics.0.sections).len() <= 2);
        assert_eq!(metrics.sections().len(), 1);
        drop(kept);
        assert!(metrics.sections().is_empty());
    }

    #[test]
    fn openmetrics_has_to_be_asked_for() {
        for (accept, format) in [
            ("", MetricsFormat::Prometheus),
            ("*/*", MetricsFormat::Prometheus),
            ("text/plain;version=0.0.4", MetricsFormat::Prometheus),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2",
                MetricsFormat::OpenMetrics,
            ),
            ("text/html, Application/OpenMetrics-Text", MetricsFormat::OpenMetrics),
            ("application/openmetrics-text2", MetricsFormat::Prometheus),
            ("application/openmetrics-text; version=1.0.0; q=0.0, */*", MetricsFormat::Prometheus),
            ("application/openmetrics-text;q=0.1", MetricsFormat::OpenMetrics),
        ] {
            assert_eq!(MetricsFormat::accepted(accept), format, "{accept}");
        }
    }
}
