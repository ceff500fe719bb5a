//! `GET /sections` and `GET /backends`: what is configured, and how it is.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::call::Call;
use super::reply::Reply;
use super::tunnels::seconds;
use crate::backend::Backend;
use crate::backend::health::shared::HealthView;
use crate::backend::health::states::Usage;
use crate::live::LiveSection;
use crate::section::Section;

/// `GET /sections`.
pub(super) async fn sections(call: Call<'_>) -> Reply {
    Reply::json(&call.site.sections().iter().map(|live| section_of(live)).collect())
}

/// `GET /backends`: those of all sections, in their order.
pub(super) async fn backends(call: Call<'_>) -> Reply {
    let sections = call.site.sections();
    let now = Instant::now();
    Reply::json(&sections.iter().flat_map(|live| backends_of(&live.current(), now)).collect())
}

/// Returns the objects of a section's backends, with those that a reload has removed.
pub(super) fn backends_of(section: &Section, now: Instant) -> Vec<Value> {
    let pool = &section.pool;
    let placed = pool.places().map(|(backend, weight, max_tunnels, is_backup)| {
        let HealthView { state, usage, latest, .. } = backend.health(now);
        let mut object = backend_of(section, backend, &state.to_string());
        let since = latest.map(|(at, _)| seconds(now.saturating_duration_since(at)));
        let reason = latest.map(|(_, reason)| reason.to_string());
        // Of a slow start, the part of the weight that is in force.
        let share = match usage {
            Usage::Out => 0.0,
            Usage::Trial => 1.0,
            Usage::Share(share) => (f64::from(share) / 2.56).round() / 100.0,
        };
        object.extend(entries([
            ("weight", weight.into()),
            ("share", share.into()),
            ("max_tunnels", max_tunnels.into()),
            ("backup", is_backup.into()),
            ("since_s", since.into()),
            ("reason", reason.into()),
        ]));
        object.into()
    });
    let leaving = pool.leaving().map(|backend| backend_of(section, &backend, "removed").into());
    placed.chain(leaving).collect()
}

/// Returns a section's object.
pub(super) fn section_of(live: &LiveSection) -> Value {
    let section = live.current();
    let backends: Vec<_> = section.pool.backends().map(Backend::name).collect();
    let state = if live.life.is_draining.is_set() {
        "draining"
    } else if live.retirement.has_begun() {
        "removed"
    } else if live.life.is_accepting.is_set() {
        "accepting"
    } else {
        "starting"
    };
    json!({
        "section": section.name,
        "bind": section.local.to_string(),
        "state": state,
        "backends": backends,
        "connections": section.connections.taken(),
        "max_connections": section.connections.limit(),
        "tunnels": section.pool.tunnels(),
        "queue": section.pool.queue_len(),
    })
}

/// Returns what is known of a backend whether it is configured or was removed.
fn backend_of(section: &Section, backend: &Backend, state: &str) -> Map<String, Value> {
    let count = |(name, count): (_, u64)| (name, Value::from(count));
    let failures = entries(backend.connect_failures().map(count));
    let checks = entries(backend.checks().map(count));
    entries([
        ("section", section.name.clone().into()),
        ("backend", backend.name().into()),
        ("name", backend.watched_name().into()),
        ("state", state.into()),
        ("tunnels", backend.tunnels().into()),
        ("connect_failures", failures.into()),
        ("ejections", backend.ejections().into()),
        ("health_checks", checks.into()),
    ])
}

/// Returns an object with these entries.
fn entries(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
