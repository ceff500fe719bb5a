//! Closes the tunnels of backends that are removed, or unhealthy.

use std::sync::Arc;
use std::time::Duration;

use super::SectionAccess;
use crate::backend::Backend;
use crate::net::timer::Timer;
use crate::section::Section;
use crate::settings::Settings;
use crate::tunnel::{CloseOrder, OrderCause, TunnelFilter};

/// Time after which is looked for tunnels whose handshakes were under way.
const AGAIN: Duration = Duration::from_secs(1);

/// Closes the tunnels of a backend that was removed, those included whose handshake is under way,
/// unless it comes back.
pub(super) async fn drain_removed(access: &SectionAccess, backend: Arc<Backend>) {
    let reactor = access.handle.reactor();
    let removed = reactor.now();
    while let Some(section) = access.section() {
        // A client that connected before the removal may be brought to it still.
        let since = reactor.now().saturating_duration_since(removed);
        let has_leases = backend.leases() > 0;
        let may_get_some = since < handshake_time(&section.settings);
        if section.pool.has(&backend) || !(has_leases || may_get_some) {
            return;
        }
        if has_leases {
            close_tunnels(access, &section, &backend, OrderCause::BackendRemoved).await;
        }
        let pause = section.drain.spread.saturating_add(AGAIN);
        drop(section);
        Timer::after(reactor, pause).await;
    }
}

/// Returns the time within which a client that has connected is brought to its last backend.
fn handshake_time(settings: &Settings) -> Duration {
    let backends = u32::try_from(settings.backends.len()).unwrap_or(u32::MAX);
    let dials = settings.connect_timeout.saturating_mul(backends);
    settings.read_timeout.saturating_add(settings.queue_timeout).saturating_add(dials)
}

/// Closes all tunnels to a backend, as `[drain]` says.
pub(super) async fn close_tunnels(
    access: &SectionAccess,
    section: &Section,
    backend: &Backend,
    cause: OrderCause,
) {
    let order = CloseOrder::by_proxy(cause, section.drain.close_code, section.drain.spread);
    access.handle.close(TunnelFilter::to_backend(backend.id()), Arc::new(order)).await;
}
