//! What a tunnel is for, and what is held to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::report;
use crate::backend::TunnelLease;
use crate::events::Event;
use crate::handshake::summary::Summary;
use crate::net::name::Peer;
use crate::section::{Client, Permit, Section};
use crate::shutdown::Guard;
#[cfg(feature = "admin")]
use crate::tunnel::Description;
use crate::tunnel::{Account, Identity, TunnelEnd};
use crate::worker::Load;

/// What is counted until a tunnel is over.
pub(super) type Guards = ((Permit, Load), Guard);

/// Account of a tunnel. Every idle tunnel has one, so that the fields of its [`Client`] stand
/// beside the others, with no room between them.
pub(super) struct TunnelAccount {
    id: u64,
    peer: Peer,
    /// Time from the accept to the verified 101, in microseconds: less than an hour.
    handshake_us: u32,
    accepted: Instant,
    section: Arc<Section>,
    lease: TunnelLease,
    summary: Option<Summary>,
    guards: Guards,
}

impl TunnelAccount {
    pub(super) fn new(
        client: Client,
        lease: TunnelLease,
        summary: Option<Summary>,
        handshake: Duration,
        guards: Guards,
    ) -> Self {
        let Client { id, peer, accepted, section } = client;
        let handshake_us = u32::try_from(handshake.as_micros()).unwrap_or(u32::MAX);
        Self { id, peer, handshake_us, accepted, section, lease, summary, guards }
    }
}

impl Account for TunnelAccount {
    fn identity(&self) -> Identity<'_> {
        let Self { id, peer, section, .. } = self;
        let backend = self.lease.lease().backend();
        Identity {
            id: *id,
            section: &section.name,
            backend_id: backend.id(),
            backend: backend.name(),
            client: peer.ip(),
        }
    }

    #[cfg(feature = "admin")]
    fn describe(&self) -> Description {
        let Self { id, peer, accepted, section, .. } = self;
        let values = self.summary.as_ref().map(Summary::values).unwrap_or_default();
        Description {
            id: *id,
            section: section.name.clone(),
            client: *peer,
            backend: self.lease.lease().backend().name().to_owned(),
            accepted: *accepted,
            request: values.map(|value| value.map(str::to_owned)),
        }
    }

    fn end(self: Box<Self>, end: TunnelEnd) {
        let Self { id, peer, handshake_us, accepted, section, lease, summary, guards } = *self;
        let client = Client { id, peer, accepted, section };
        let handshake = Duration::from_micros(handshake_us.into());
        {
            let (client, lease, summary) = (&client, lease.lease(), summary.as_ref());
            let (end, lifetime) = (&end, client.accepted.elapsed());
            Event::TunnelEnded { client, lease, handshake, lifetime, end, summary }.emit();
            Event::TunnelFrames { client, end }.emit();
            let age = lifetime.saturating_sub(handshake);
            report::tunnel(&client.section, lease.backend(), end.reason, age);
        }
        drop((lease, guards));
    }
}
