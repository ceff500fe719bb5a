//! Checks each backend in its own time.

use std::sync::Arc;

use super::SectionAccess;
use super::check::check;
use super::leave::close_tunnels;
use crate::backend::Backend;
use crate::backend::dial::DialSettings;
use crate::backend::health::checks::CheckSchedule;
use crate::events::BackendEvent;
use crate::net::timer::Timer;
use crate::section::Section;
use crate::settings::{HealthCheckSettings, OnUnhealthy};
use crate::tunnel::OrderCause;

/// Settings by which a backend is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checked {
    settings: Arc<HealthCheckSettings>,
    dial: DialSettings,
}

impl Checked {
    /// Returns those of a section; `None` without checks.
    pub(super) fn of(section: &Section) -> Option<Self> {
        let settings = section.settings.health_check.clone()?;
        Some(Self { settings, dial: section.settings.dial() })
    }
}

/// Checks a backend again and again, one check at a time.
pub(super) async fn keep_checking(access: &SectionAccess, backend: Arc<Backend>, by: Checked) {
    let Checked { settings, dial } = by;
    let reactor = access.handle.reactor();
    let mut schedule = CheckSchedule::new(settings.interval, reactor.now(), fastrand::u64(..));
    loop {
        if let Some(next) = schedule.next() {
            let pause = next.saturating_duration_since(reactor.now());
            Timer::after(reactor, pause).await;
        }
        if !schedule.begin(reactor.now(), fastrand::u64(..)) {
            continue;
        }
        let result = check(reactor, &backend, &settings, dial).await;
        schedule.end();
        // A shortage of this host tells nothing of the backend.
        let Some(result) = result else { continue };
        let Some(change) = backend.on_check(result, reactor.now()) else { continue };
        let Some(live) = access.live.upgrade() else { return };
        let section = live.current();
        BackendEvent::Health { backend: &backend, change: &change }.emit(&section);
        if change.to.fails_checks() && settings.on_unhealthy == OnUnhealthy::Drain {
            close_tunnels(access, &section, &backend, OrderCause::BackendUnhealthy).await;
        }
    }
}
