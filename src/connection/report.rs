//! What handshakes and tunnels tell of the health of a backend.

use std::time::{Duration, Instant};

use crate::backend::health::HealthChange;
use crate::backend::health::reasons::FailureKind;
use crate::backend::{Backend, Trial};
use crate::events::BackendEvent;
use crate::section::Section;
use crate::tunnel::{Reason, Side};

/// Tells of a trial that begins.
pub(super) fn trial(section: &Section, backend: &Backend, trial: Option<&Trial>) {
    if let Some(Trial { begun: change, .. }) = trial {
        BackendEvent::Health { backend, change }.emit(section);
    }
}

/// Reports that a backend has answered a handshake by itself, or the failure.
pub(super) fn handshake(
    section: &Section,
    backend: &Backend,
    outcome: Result<(), FailureKind>,
    now: Instant,
) {
    tell(
        section,
        backend,
        match outcome {
            Ok(()) => backend.on_success(now),
            Err(kind) => backend.on_failure(kind, now),
        },
    );
}

/// Reports the end of a tunnel, `age` after its 101, where the section asks for it.
pub(super) fn tunnel(section: &Section, backend: &Backend, reason: Reason, age: Duration) {
    let Some(early) = section.settings.early_reset else { return };
    let now = Instant::now();
    let is_early_reset = reason == Reason::Reset(Side::Backend) && age < early;
    tell(
        section,
        backend,
        if is_early_reset {
            backend.on_failure(FailureKind::EarlyReset, now)
        } else {
            backend.on_lasting_tunnel(now)
        },
    );
}

fn tell(section: &Section, backend: &Backend, change: Option<HealthChange>) {
    if let Some(change) = &change {
        BackendEvent::Health { backend, change }.emit(section);
    }
}
