//! The metrics as text, through Prometheus' own library.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::MetricsFormat;
use super::process::Process;
use super::writer::{Writer, labels, section_label};
use crate::live::LiveSection;
use crate::section::Section;
use crate::stats::{SectionStats, SideTraffic, Traffic};

/// Returns the metrics of these sections and of the process.
pub(super) fn render(
    format: MetricsFormat,
    sections: &[Arc<LiveSection>],
    process: ProcessCounts,
) -> String {
    let draining = sections.iter().map(|live| live.life.is_draining.is_set()).collect();
    let sections = sections.iter().map(|live| live.current()).collect();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot { sections, draining, process }));
    let mut text = String::new();
    let written = match format {
        MetricsFormat::Prometheus => prometheus_text::encode(&mut text, &registry),
        MetricsFormat::OpenMetrics => text::encode(&mut text, &registry),
    };
    // A string takes everything.
    debug_assert!(written.is_ok());
    text
}

/// Counts that are of no section.
#[derive(Clone, Copy)]
pub(super) struct ProcessCounts {
    pub(super) dropped_lines: u64,
    pub(super) reloads: u64,
    pub(super) failed_reloads: u64,
    /// Time at which the configuration in force was loaded, in seconds since 1970.
    pub(super) loaded: f64,
}

/// The sections at the time of a scrape.
struct Snapshot {
    sections: Vec<Arc<Section>>,
    /// For each section, whether it drains.
    draining: Vec<bool>,
    process: ProcessCounts,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").finish_non_exhaustive()
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer::new(&mut encoder);
        out.info("ws_proxy_build", "Version of ws-proxy", env!("CARGO_PKG_VERSION"))?;
        self.handshakes(&mut out)?;
        self.requests(&mut out)?;
        self.backends(&mut out)?;
        self.tunnels(&mut out)?;
        self.traffic(&mut out)?;
        out.counter(
            "ws_proxy_log_lines_dropped",
            "Log lines that were dropped because nobody read the log",
            [(Vec::new(), self.process.dropped_lines)],
        )?;
        self.reloads(&mut out)?;
        Process::read().encode(&mut out)
    }
}

impl Snapshot {
    fn stats(&self) -> impl Iterator<Item = (&str, &SectionStats)> {
        let sections = self.sections.iter();
        sections.filter_map(|section| Some((&*section.name, section.stats.as_deref()?)))
    }

    fn reloads(&self, out: &mut Writer<'_, '_>) -> fmt::Result {
        let results = [("success", self.process.reloads), ("failure", self.process.failed_reloads)];
        out.counter(
            "ws_proxy_config_reloads",
            "Reloads of the configuration, by their result",
            results.map(|(result, count)| (vec![("result", result)], count)),
        )?;
        out.value(
            "ws_proxy_config_last_reload_success_timestamp_seconds",
            "Time at which the configuration in force was loaded",
            MetricType::Gauge,
            self.process.loaded,
        )
    }

    fn handshakes(&self, out: &mut Writer<'_, '_>) -> fmt::Result {
        out.counter(
            "ws_proxy_accepted",
            "Clients that were accepted",
            self.stats().map(|(section, stats)| (section_label(section), stats.accepted.get())),
        )?;
        let outcomes = self.stats().flat_map(|(section, stats)| {
            let named = stats.handshakes.iter();
            named.map(move |(name, count)| (labels(section, [("outcome", name)]), count))
        });
        out.counter("ws_proxy_handshakes", "Handshakes by their outcome", outcomes)?;
        out.histogram(
            "ws_proxy_handshake_duration_seconds",
            "Time from the accept to the verified 101",
            self.stats().map(|(section, stats)| (section, &stats.handshake_time)),
        )
    }

    fn requests(&self, out: &mut Writer<'_, '_>) -> fmt::Result {
        let classes = self.stats().flat_map(|(section, stats)| {
            let named = stats.requests.iter();
            named.map(move |(name, count)| (labels(section, [("status_class", name)]), count))
        });
        out.counter(
            "ws_proxy_requests",
            "Requests that were no upgrades, by their answer",
            classes,
        )?;
        out.histogram(
            "ws_proxy_request_duration_seconds",
            "Time from the head of a request that was no upgrade to the end of its answer",
            self.stats().map(|(section, stats)| (section, &stats.request_time)),
        )
    }

    fn backends(&self, out: &mut Writer<'_, '_>) -> fmt::Result {
        let leaving: Vec<_> = { self.sections.iter() }
            .flat_map(|section| section.pool.leaving().map(|backend| (&*section.name, backend)))
            .collect();
        let configured = || {
            self.sections.iter().flat_map(|section| {
                section.pool.backends().map(move |backend| (&*section.name, backend))
            })
        };
        let backends =
            || configured().chain(leaving.iter().map(|(section, backend)| (*section, &**backend)));
        let failures = backends().flat_map(|(section, backend)| {
            backend.connect_failures().map(move |(kind, count)| {
                (labels(section, [("backend", backend.name()), ("kind", kind)]), count)
            })
        });
        out.counter("ws_proxy_connect_failures", "Failures to connect to a backend", failures)?;
        let now = Instant::now();
        // One that stands in a section twice is well if both are.
        let mut up = BTreeMap::new();
        for (section, backend) in configured() {
            let is_well = u64::from(backend.health(now).state.is_well());
            let labels = labels(section, [("backend", backend.name())]);
            up.entry(labels).and_modify(|up: &mut u64| *up &= is_well).or_insert(is_well);
        }
        out.gauge("ws_proxy_backend_up", "Whether nothing is known against a backend", up)?;
        let ejections = backends().map(|(section, backend)| {
            (labels(section, [("backend", backend.name())]), backend.ejections())
        });
        out.counter(
            "ws_proxy_backend_ejections",
            "Times that a backend was taken out after failures in a row",
            ejections,
        )?;
        let checks = backends().flat_map(|(section, backend)| {
            backend.checks().map(move |(result, count)| {
                (labels(section, [("backend", backend.name()), ("result", result)]), count)
            })
        });
        out.counter(
            "ws_proxy_backend_health_checks",
            "Active checks of a backend by their result",
            checks,
        )?;
        let waiting = { self.sections.iter() }
            .map(|section| (section_label(&section.name), section.pool.queue_len() as u64));
        out.gauge("ws_proxy_queue", "Handshakes that wait while all backends are full", waiting)?;
        out.gauge(
            "ws_proxy_tunnels",
            "Tunnels that are open",
            backends().map(|(section, backend)| {
                (labels(section, [("backend", backend.name())]), backend.tunnels() as u64)
            }),
        )
    }

    fn tunnels(&self, out: &mut Writer<'_, '_>) -> fmt::Result {
        let reasons = self.stats().flat_map(|(section, stats)| {
            let named = stats.ended.iter();
            named.map(move |(name, count)| (labels(section, [("reason", name)]), count))
        });
        out.counter(
            "ws_proxy_tunnels_ended",
            "Tunnels that are over, by the reason for their end",
            reasons,
        )?;
        out.histogram(
            "ws_proxy_tunnel_duration_seconds",
            "Time from the accept to the end of a tunnel",
            self.stats().map(|(section, stats)| (section, &stats.tunnel_time)),
        )?;
        let codes = self.stats().flat_map(|(section, stats)| {
            let senders = ["client", "backend", "proxy"].into_iter().zip(&stats.closes);
            senders.flat_map(move |(from, counts)| {
                let counts = counts.iter();
                counts.map(move |(code, count)| {
                    (labels(section, [("from", from), ("code", code)]), count)
                })
            })
        });
        out.counter("ws_proxy_close_codes", "Close frames by their sender and code", codes)?;
        let blocked = |traffic: &Traffic| traffic.blocked.get();
        out.gauge(
            "ws_proxy_blocked_tunnels",
            "Tunnels of which a side takes no bytes",
            self.stats().map(|(section, stats)| (section_label(section), stats.sum(blocked))),
        )?;
        let draining = { self.sections.iter().zip(&self.draining) }
            .map(|(section, is_draining)| (section_label(&section.name), u64::from(*is_draining)));
        out.gauge("ws_proxy_draining", "Sections with this name that are shutting down", draining)
    }

    fn traffic(&self, out: &mut Writer<'_, '_>) -> fmt::Result {
        let messages = self.stats().flat_map(|(section, stats)| {
            SIDES.into_iter().flat_map(move |(from, side)| {
                let kinds: [(_, CountOf); 4] = [
                    ("text", |side| side.text.get()),
                    ("binary", |side| side.binary.get()),
                    ("ping", |side| side.pings.get()),
                    ("pong", |side| side.pongs.get()),
                ];
                kinds.into_iter().map(move |(kind, count)| {
                    let count = stats.sum(|traffic| count(side(traffic)));
                    (labels(section, [("from", from), ("kind", kind)]), count)
                })
            })
        });
        out.counter("ws_proxy_messages", "Messages, Pings and Pongs by their sender", messages)?;
        let payload: CountOf = |side| side.payload.get();
        let bytes: CountOf = |side| side.bytes.get();
        let pinged: CountOf = |side| side.pinged.get();
        let rows = [
            ("ws_proxy_payload_bytes", "Payload of all frames, by their sender", "from", payload),
            ("ws_proxy_bytes", "Bytes that were relayed, by their sender", "from", bytes),
            ("ws_proxy_pings_sent", "Pings of the proxy, by their receiver", "to", pinged),
        ];
        for (name, help, label, field) in rows {
            let samples = self.stats().flat_map(|(section, stats)| {
                SIDES.into_iter().map(move |(name, side)| {
                    let count = stats.sum(|traffic| field(side(traffic)));
                    (labels(section, [(label, name)]), count)
                })
            });
            out.counter(name, help, samples)?;
        }
        Ok(())
    }
}

/// One count of a side.
type CountOf = fn(&SideTraffic) -> u64;
/// One side of the traffic.
type SideOf = fn(&Traffic) -> &SideTraffic;

/// Both sides of the traffic, with their labels.
const SIDES: [(&str, SideOf); 2] =
    [("client", |traffic| &traffic.client), ("backend", |traffic| &traffic.backend)];
