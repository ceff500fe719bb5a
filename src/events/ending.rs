//! Endings that events become, where an admin listener tells of them.

use std::time::SystemTime;

use super::Event;
use crate::endings::{Ending, Endings};
use crate::handshake::summary::Summary;

impl Event<'_> {
    /// Adds the end of a tunnel to the endings of all sections.
    pub(super) fn keep(&self, endings: &Endings) {
        let Self::TunnelEnded { client, lease, lifetime, end, summary, .. } = self else { return };
        let proxy = end.closed_with.client.or(end.closed_with.backend);
        endings.push(Ending {
            time: SystemTime::now(),
            lifetime: *lifetime,
            section: client.section.name.clone(),
            id: client.id,
            client: client.peer,
            backend: lease.backend().name().to_owned(),
            path: summary.and_then(Summary::path).map(str::to_owned),
            ended_by: end.reason.ended_by(),
            reason: end.reason.name(),
            closes: [end.sent_by.client.close_code(), end.sent_by.backend.close_code(), proxy],
        });
    }
}
