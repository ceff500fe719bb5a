//! `GET /status`: all that the page shows but the open tunnels, as one object.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::call::Call;
use super::reply::Reply;
use super::sections::{backends_of, section_of};
use super::tunnels::seconds;
use crate::endings::Ending;
use crate::live::LiveSection;
use crate::stats::{NamedCounts, SectionStats, Traffic};

/// `GET /status`.
pub(super) async fn status(call: Call<'_>) -> Reply {
    let (site, now) = (call.site, Instant::now());
    let reasons = site.unready_reasons(now);
    let live = site.sections();
    let sections: Vec<_> = live.iter().map(|live| counted_section(live)).collect();
    let backends: Vec<_> = live.iter().flat_map(|live| backends_of(&live.current(), now)).collect();
    let draining = reasons.iter().any(|reason| reason == "draining");
    let endings = site.metrics.endings().map(|endings| endings.map(ending_of));
    Reply::json(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "time": unix_ms(SystemTime::now()),
        "since": site.metrics.endings().map(|endings| unix_ms(endings.since())),
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "reload_error": site.metrics.reload_error(),
        "draining": draining,
        "sections": sections,
        "backends": backends,
        "endings": endings,
    }))
}

/// Returns a section's object, with its counts where there are any.
fn counted_section(live: &LiveSection) -> Value {
    let mut object = section_of(live);
    if let (Some(object), Some(stats)) = (object.as_object_mut(), &live.current().stats) {
        object.extend(counts_of(stats));
    }
    object
}

/// Returns the counts of a section since it was started.
fn counts_of(stats: &SectionStats) -> Map<String, Value> {
    let sum = |count: fn(&Traffic) -> u64| stats.sum(count);
    let counts = [
        ("accepted", stats.accepted.get().into()),
        ("handshakes", named(&stats.handshakes)),
        ("ended", named(&stats.ended)),
        ("client_messages", sum(|of| of.client.text.get() + of.client.binary.get()).into()),
        ("backend_messages", sum(|of| of.backend.text.get() + of.backend.binary.get()).into()),
        ("bytes_to_backend", sum(|of| of.client.bytes.get()).into()),
        ("bytes_to_client", sum(|of| of.backend.bytes.get()).into()),
        ("blocked", sum(|of| of.blocked.get()).into()),
    ];
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// Returns the counts that are not zero, by their names.
fn named(counts: &NamedCounts) -> Value {
    let counted = counts.iter().filter(|&(_, count)| count > 0);
    counted.map(|(name, count)| (name.to_owned(), Value::from(count))).collect::<Map<_, _>>().into()
}

/// Returns the object of a tunnel that is over, with the names that `tunnel_end` has in the log.
fn ending_of(ending: &Ending) -> Value {
    let [client_close, backend_close, proxy_close] = ending.closes;
    json!({
        "time": unix_ms(ending.time),
        "section": ending.section,
        "id": ending.id,
        "client": ending.client.to_string(),
        "backend": ending.backend,
        "path": ending.path,
        "lifetime_s": seconds(ending.lifetime),
        "ended_by": ending.ended_by,
        "reason": ending.reason,
        "client_close": client_close,
        "backend_close": backend_close,
        "proxy_close": proxy_close,
    })
}

/// Returns a time in milliseconds since 1970; 0 for one before.
fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
