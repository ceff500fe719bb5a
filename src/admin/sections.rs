//! `GET /sections` and `GET /backends`: what is configured, and how it is.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::call::Call;
use super::reply::Reply;
use crate::backend::Backend;
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
    let mut backends: Vec<_> = { section.pool.backends() }
        .map(|backend| {
            let state = if backend.is_down(now) { "failing" } else { "usable" };
            backend_of(section, backend, state)
        })
        .collect();
    let leaving = section.pool.leaving();
    backends.extend(leaving.map(|backend| backend_of(section, &backend, "removed")));
    backends
}

/// Returns a section's object.
pub(super) fn section_of(live: &LiveSection) -> Value {
    let section = live.current();
    let backends: Vec<_> = section.pool.backends().map(Backend::name).collect();
    let state = if live.is_draining.is_set() {
        "draining"
    } else if live.retirement.has_begun() {
        "removed"
    } else if live.is_accepting.is_set() {
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
    })
}

fn backend_of(section: &Section, backend: &Backend, state: &str) -> Value {
    let failures: Map<_, _> =
        backend.connect_failures().map(|(kind, count)| (kind.to_owned(), count.into())).collect();
    json!({
        "section": section.name,
        "backend": backend.name(),
        "state": state,
        "tunnels": backend.tunnels(),
        "connect_failures": failures,
    })
}
