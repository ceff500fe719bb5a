//! What a tunnel is for, and what is held to its end.

use std::time::Duration;

use super::report;
use crate::backend::TunnelLease;
use crate::events::Event;
use crate::handshake::summary::Summary;
use crate::section::{Client, Permit};
use crate::shutdown::Guard;
#[cfg(feature = "admin")]
use crate::tunnel::Description;
use crate::tunnel::{Account, Identity, TunnelEnd};
use crate::worker::Load;

/// What is counted until a tunnel is over.
pub(super) type Guards = ((Permit, Load), Guard);

/// Account of a tunnel. Every idle tunnel has one.
pub(super) struct TunnelAccount {
    pub(super) client: Client,
    pub(super) lease: TunnelLease,
    pub(super) summary: Option<Summary>,
    /// Time from the accept to the verified 101, in microseconds.
    pub(super) handshake_us: u32,
    pub(super) guards: Guards,
}

impl Account for TunnelAccount {
    fn identity(&self) -> Identity<'_> {
        let Client { id, peer, section, .. } = &self.client;
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
        let Client { id, peer, accepted, section } = &self.client;
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
        let Self { client, lease, summary, handshake_us, guards } = *self;
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
