//! Moves tunnels to backends that were added.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SectionAccess;
use crate::backend::Backend;
use crate::backend::health::HealthState;
use crate::backend::pool::Pool;
use crate::backend::rebalance::{Pace, Surplus};
use crate::events::BackendEvent;
use crate::net::timer::Timer;
use crate::section::Section;
use crate::settings::RebalanceSettings;
use crate::tunnel::{CloseOrder, OrderCause, TunnelFilter};

/// Time between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for the first checks of a backend to pass.
const READY_TIME: Duration = Duration::from_secs(600);
/// Longest wait for clients to come back.
const RETURN_TIME: Duration = Duration::from_secs(30);

/// Moves tunnels to these backends, once they are ready.
pub(super) async fn rebalance(
    access: &SectionAccess,
    added: Vec<Arc<Backend>>,
    by: RebalanceSettings,
) {
    wait_until_ready(access, &added).await;
    let Some(section) = access.section() else { return };
    let now = access.handle.reactor().now();
    let holdings = section.pool.holdings(now);
    let before: usize = holdings.iter().map(|one| one.tunnels).sum();
    let surplus = Surplus::of(&holdings);
    if surplus.left() == 0 {
        return;
    }
    BackendEvent::Rebalancing { tunnels: surplus.left() }.emit(&section);
    // Clients that went round would come back to where they were.
    let evening = EveningOut { access, section };
    evening.section.pool.even_out(true);
    let closed = close_surplus(access, &evening.section, surplus, by).await;
    let count = closed.len();
    wait_for_return(access, closed, before).await;
    drop(evening);
    if let Some(section) = access.section() {
        BackendEvent::Rebalanced { tunnels: count }.emit(&section);
    }
}

/// Has handshakes even the tunnels out until it is dropped.
struct EveningOut<'a> {
    access: &'a SectionAccess,
    section: Arc<Section>,
}

impl Drop for EveningOut<'_> {
    fn drop(&mut self) {
        self.section.pool.even_out(false);
        // The pools that have followed.
        if let Some(section) = self.access.section() {
            section.pool.even_out(false);
        }
    }
}

/// Waits until the slow start of these backends is over, and their checks have passed. Those that
/// are removed meanwhile are not waited for.
async fn wait_until_ready(access: &SectionAccess, added: &[Arc<Backend>]) {
    let Some(section) = access.section() else { return };
    let reactor = access.handle.reactor();
    Timer::after(reactor, section.settings.health.slow_start).await;
    let is_checked = section.settings.health_check.is_some();
    drop(section);
    if is_checked {
        let begin = reactor.now();
        let is_ready = |section: &Section, backend: &Backend, now| {
            backend.health(now).state == HealthState::Healthy || !section.pool.has(backend)
        };
        wait_for(access, begin, READY_TIME, |section, now| {
            added.iter().all(|one| is_ready(section, one, now))
        })
        .await;
    }
}

/// Waits until the clients of tunnels that were closed are back: until these have ended, and there
/// are as many as `before` again.
async fn wait_for_return(access: &SectionAccess, closed: Vec<u64>, before: usize) {
    let reactor = access.handle.reactor();
    let begin = reactor.now();
    // A tunnel counts as one of its backend until its end.
    let closed = TunnelFilter::with_ids(closed);
    while access.handle.count(closed.clone()).await > 0
        && reactor.now().saturating_duration_since(begin) < RETURN_TIME
    {
        Timer::after(reactor, LOOK).await;
    }
    let are_back = |pool: &Pool, now| {
        let back: usize = pool.holdings(now).iter().map(|one| one.tunnels).sum();
        back >= before
    };
    wait_for(access, begin, RETURN_TIME, |section, now| are_back(&section.pool, now)).await;
}

/// Waits until this holds for the section of the moment, or the time since `begin` is over.
async fn wait_for(
    access: &SectionAccess,
    begin: Instant,
    time: Duration,
    is_so: impl Fn(&Section, Instant) -> bool,
) {
    let reactor = access.handle.reactor();
    while let Some(section) = access.section() {
        let now = reactor.now();
        if is_so(&section, now) || now.saturating_duration_since(begin) >= time {
            return;
        }
        drop(section);
        Timer::after(reactor, LOOK).await;
    }
}

/// Closes what the plan tells, the oldest first; returns the numbers of the tunnels.
async fn close_surplus(
    access: &SectionAccess,
    section: &Arc<Section>,
    mut surplus: Surplus,
    by: RebalanceSettings,
) -> Vec<u64> {
    let (handle, reactor) = (&access.handle, access.handle.reactor());
    let order = CloseOrder::by_proxy(OrderCause::Rebalance, by.code, Duration::ZERO);
    let order = Arc::new(order);
    let mut pace = Pace::new(by.per_second);
    let mut pool = Arc::clone(&section.pool);
    // The oldest tunnels of each backend when they were first asked for, the oldest last.
    let mut oldest: HashMap<usize, Vec<u64>> = HashMap::new();
    let mut closed = Vec::new();
    loop {
        while let Err(next) = pace.step(reactor.now()) {
            let pause = next.saturating_duration_since(reactor.now());
            Timer::after(reactor, pause).await;
        }
        let Some(section) = access.section() else { return closed };
        if !Arc::ptr_eq(&section.pool, &pool) {
            let before = |index| pool.position(section.pool.member(index)?);
            surplus.follow(section.pool.members().count(), before);
            pool = Arc::clone(&section.pool);
        }
        drop(section);
        let Some(index) = surplus.next(&pool.holdings(reactor.now())) else { return closed };
        let Some(backend) = pool.member(index) else { return closed };
        let left = surplus.left() + 1;
        let numbers = match oldest.entry(backend.id()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let mut found = handle.oldest(backend.id(), left).await;
                found.reverse();
                place.insert(found)
            }
        };
        // One that has ended by itself counts for one that was to be closed.
        if let Some(number) = numbers.pop() {
            let this = TunnelFilter::with_ids(vec![number]);
            if handle.close(this, Arc::clone(&order)).await > 0 {
                closed.push(number);
            }
        }
    }
}
