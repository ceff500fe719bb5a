//! `GET /sections` and `GET /backends`: what is configured, and how it is.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::call::Call;
use super::reply::Reply;
use crate::backend::Backend;
use crate::section::Section;

/// `GET /sections`.
pub(super) async fn sections(call: Call<'_>) -> Reply {
    Reply::json(&call.site.sections.iter().map(|section| section_of(section)).collect())
}

/// `GET /backends`: those of all sections, in their order.
pub(super) async fn backends(call: Call<'_>) -> Reply {
    let now = Instant::now();
    let backends = call.site.sections.iter().flat_map(|section| {
        section.pool.backends().map(move |backend| backend_of(section, backend, now))
    });
    Reply::json(&backends.collect())
}

fn section_of(section: &Section) -> Value {
    let backends: Vec<_> = section.pool.backends().map(Backend::name).collect();
    let tunnels: usize = section.pool.backends().map(Backend::tunnels).sum();
    let state = if section.is_draining.is_set() {
        "draining"
    } else if section.is_accepting.is_set() {
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
        "tunnels": tunnels,
    })
}

fn backend_of(section: &Section, backend: &Backend, now: Instant) -> Value {
    let failures: Map<_, _> =
        backend.connect_failures().map(|(kind, count)| (kind.to_owned(), count.into())).collect();
    json!({
        "section": section.name,
        "backend": backend.name(),
        "state": if backend.is_down(now) { "failing" } else { "usable" },
        "tunnels": backend.tunnels(),
        "connect_failures": failures,
    })
}
