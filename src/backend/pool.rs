//! The backends of one section.

mod lineage;
mod picks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

pub(super) use self::lineage::Lineage;
pub(crate) use self::picks::{Pick, Picks};
use super::balance::{Balance, Board, Candidate, Chooser, NO_CAP, WEIGHT_ONE, key_of};
use super::health::shared::HealthView;
use super::health::states::{HealthChange, Usage};
use super::health::{BackendHealth, HealthRules, may_eject};
use super::queue::Entered;
use super::rebalance::Holding;
use super::{Backend, Lease};
use crate::lock::lock;
use crate::net::address::Address;

/// Settings of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackendSettings {
    pub(crate) address: Address,
    /// The configured name whose address this is, where that is watched.
    pub(crate) watched: Option<Arc<str>>,
    /// Share of the tunnels, relative to the other backends.
    pub(crate) weight: u32,
    /// Tunnels and handshakes at a time; `None` for no limit.
    pub(crate) max_tunnels: Option<u32>,
    /// Used only while no other backend is to be had.
    pub(crate) is_backup: bool,
}

/// Rules for the backends of a pool.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PoolRules {
    pub(crate) balance: Balance,
    pub(crate) health: HealthRules,
    /// Most backends that are ejected at a time, in percent of all.
    pub(crate) max_ejected_percent: u32,
}

/// The backends of a section, and the rule by which handshakes are spread over them.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Those that are no backups come first.
    members: Vec<Member>,
    /// The same, as the chooser sees them.
    board: Board,
    chooser: Chooser,
    max_ejected_percent: u32,
    /// Begins the turns of backends that are all out of use.
    next_out: AtomicUsize,
    /// Changes of health that the weights on the board follow.
    followed: AtomicUsize,
    /// A weight changes with time.
    is_timed: AtomicBool,
    /// Time of the next such change.
    next_change: Mutex<Option<Instant>>,
    /// Backends of earlier settings, for as long as a connection holds one.
    removed: Vec<Weak<Backend>>,
    lineage: Arc<Lineage>,
}

/// A backend, and its settings in this pool.
#[derive(Debug)]
struct Member {
    backend: Arc<Backend>,
    /// Weight on the board while it is in full use.
    weight: u32,
    cap: u32,
}

/// A pool that follows another one, and what is different.
#[derive(Debug)]
pub(crate) struct Succession {
    pub(crate) pool: Arc<Pool>,
    /// Backends that the other one did not have.
    pub(crate) added: Vec<Arc<Backend>>,
    /// The first addresses of names, which serve in the place of the name from now on.
    pub(crate) resolved: Vec<Arc<Backend>>,
    /// Backends that the other one had, and this one has not.
    pub(crate) removed: Vec<Arc<Backend>>,
    /// Changes of health that come with the rules.
    pub(crate) changes: Vec<(Arc<Backend>, HealthChange)>,
}

impl Pool {
    /// Creates a pool of these backends.
    pub(crate) fn new(
        settings: impl IntoIterator<Item = BackendSettings>,
        rules: PoolRules,
    ) -> Arc<Self> {
        let lineage = Arc::new(Lineage::default());
        let (members, board) = members(settings, |address, watched| {
            let health = BackendHealth::new(rules.health);
            Arc::new(Backend::new(address, watched, health, &lineage))
        });
        let chooser = Chooser::new(rules.balance);
        Self::published(members, board, chooser, rules, &lineage, Vec::new())
    }

    fn published(
        members: Vec<Member>,
        board: Board,
        chooser: Chooser,
        rules: PoolRules,
        lineage: &Arc<Lineage>,
        removed: Vec<Weak<Backend>>,
    ) -> Arc<Self> {
        let pool = Arc::new(Self {
            members,
            board,
            chooser,
            max_ejected_percent: rules.max_ejected_percent,
            next_out: AtomicUsize::new(0),
            // Of none: the first handshake has the weights computed.
            followed: AtomicUsize::new(lineage.changes().wrapping_sub(1)),
            is_timed: AtomicBool::new(false),
            next_change: Mutex::new(None),
            removed,
            lineage: Arc::clone(lineage),
        });
        lineage.set_current(&pool);
        pool
    }

    /// Creates the pool that follows this one, with these backends, for the handshakes to come and
    /// for those that wait. A backend that stays, or comes back while a connection holds it, keeps
    /// its counts and its health; the turns go on. One that is new, or comes back, starts slowly,
    /// unless it takes the place of the name whose address it is.
    pub(crate) fn successor(
        &self,
        settings: impl IntoIterator<Item = BackendSettings>,
        rules: PoolRules,
        now: Instant,
    ) -> Succession {
        let current = self.members.iter().map(|member| Arc::clone(&member.backend));
        let mut known: Vec<_> = current.chain(self.removed()).collect();
        let mut added = Vec::new();
        let mut changes = Vec::new();
        let mut resolved = Vec::new();
        let mut names = Vec::new();
        let (members, board) = members(settings, |address, watched| {
            // Until the first answer a name that is watched is a backend itself.
            let is_first = self.backends().any(|one| one.is_name(watched.as_deref()));
            names.extend(watched.clone().filter(|_| is_first));
            let is_same =
                |backend: &Arc<Backend>| backend.address == address && backend.watched == watched;
            let backend = match known.iter().position(is_same) {
                Some(index) => {
                    let backend = known.remove(index);
                    let change = backend.set_rules(rules.health, now);
                    changes.extend(change.map(|change| (Arc::clone(&backend), change)));
                    backend
                }
                None => {
                    let health = BackendHealth::new(rules.health);
                    Arc::new(Backend::new(address, watched, health, &self.lineage))
                }
            };
            if is_first {
                resolved.push(Arc::clone(&backend));
            } else if !self.has(&backend) {
                backend.start_slowly(now);
                added.push(Arc::clone(&backend));
            }
            backend
        });
        let chooser = self.chooser.successor(rules.balance, &self.board, &board);
        let leaving = known.iter().map(Arc::downgrade).collect();
        let pool = Self::published(members, board, chooser, rules, &self.lineage, leaving);
        let is_resolved = |backend: &Backend| names.iter().any(|name| backend.is_name(Some(name)));
        let removed = known.into_iter().filter(|one| self.has(one) && !is_resolved(one)).collect();
        Succession { pool, added, resolved, removed, changes }
    }

    /// Returns the picks for one handshake in the order in which they are to be tried, each backend
    /// once, but those at their limits: backups come after the others, and those that are out of
    /// use last, where no other is to be had at all. A lease is taken only when the iterator
    /// reaches it. `key` is what [`Balance::Hash`] chooses by; the backend that it was
    /// [bound](Self::bind) to is tried first.
    pub(crate) fn pick(&self, now: Instant, key: Option<u64>) -> Picks<'_> {
        self.update_weights(now);
        let bound = key.and_then(|key| self.lineage.affinity.get(key));
        let bound = bound.and_then(|id| self.board.ids().iter().position(|&one| one == id));
        Picks::new(self, bound, self.chooser.order(&self.board, key), now)
    }

    /// Has a key belong to a backend for as long as requests with it keep coming, also if the
    /// backend is away for a while: it has the sessions of its address again when it is back.
    pub(crate) fn bind(&self, key: u64, backend: &Backend) {
        self.lineage.affinity.insert(key, key_of(backend.address.authority.as_bytes()));
    }

    /// Takes the first pick of a handshake, or has it wait where all backends in use are full and
    /// fewer than `max_waiting` wait. Nobody is overtaken who waits, but by sessions that are at a
    /// backend already.
    pub(crate) fn enter(&self, picks: &mut Picks<'_>, max_waiting: usize) -> Entered<Pick> {
        let queue = &self.lineage.queue;
        if let Some(pick) = picks.take_bound() {
            return Entered::Place(pick);
        }
        if (max_waiting == 0 || queue.len() == 0)
            && let Some(pick) = picks.next()
        {
            return Entered::Place(pick);
        }
        if max_waiting == 0 {
            return Entered::Full;
        }
        // As of now, which those who wait choose from.
        let pool = self.lineage.current();
        let entered = queue.enter(max_waiting, || pool.as_ref()?.pick(picks.now, None).next());
        if let Entered::Place(pick) = &entered {
            picks.go_on_after(pick);
        }
        entered
    }

    /// Gives places to handshakes that wait, if there are any by now; returns the time at which
    /// there may be more, without any event.
    pub(crate) fn serve_queue(&self, now: Instant) -> Option<Instant> {
        self.lineage.serve();
        let pool = self.lineage.current()?;
        pool.update_weights(now);
        *lock(&pool.next_change)
    }

    /// Returns the number of handshakes that wait.
    #[cfg(feature = "metrics")]
    pub(crate) fn queue_len(&self) -> usize {
        self.lineage.queue.len()
    }

    /// Brings the weights up to date with the health. While nothing changes, this is three loads.
    fn update_weights(&self, now: Instant) {
        let changes = self.lineage.changes();
        let is_old = || self.followed.load(Ordering::Relaxed) != changes;
        if !is_old() && !self.is_timed.load(Ordering::Relaxed) {
            return;
        }
        let mut next_change = lock(&self.next_change);
        if !is_old() && next_change.is_none_or(|at| now < at) {
            return;
        }
        // Before the health is read: what changes meanwhile is found by the next one.
        self.followed.store(changes, Ordering::Relaxed);
        *next_change = None;
        self.board.set_weights(self.members.iter().map(|member| {
            if member.backend.health.is_steady() {
                return member.weight;
            }
            let health = member.backend.health.view(now);
            *next_change = next_change.into_iter().chain(health.next_change).min();
            member.weight_for(health.usage)
        }));
        self.is_timed.store(next_change.is_some(), Ordering::Relaxed);
    }

    /// Takes a backend that is in use, unless it has as many tunnels as it may, or its trial is
    /// under way.
    fn take(&self, index: usize, now: Instant) -> Option<Pick> {
        let trial = self.members[index].backend.admit(now)?;
        Some(Pick { trial, ..self.take_out_of_use(index)? })
    }

    /// Takes a backend whatever its health is, unless it has as many tunnels as it may.
    fn take_out_of_use(&self, index: usize) -> Option<Pick> {
        let is_counted = self.board.try_increment(index);
        is_counted
            .then(|| Pick { trial: None, lease: Lease::counted(&self.members[index].backend) })
    }

    /// Returns whether a backend is in use, be it full.
    fn has_one_in_use(&self) -> bool {
        (0..self.board.len()).any(|index| self.board.weight(index) > 0)
    }

    /// Returns whether one more may be ejected: this one.
    pub(super) fn may_eject(&self, backend: &Backend, now: Instant) -> bool {
        let (mut ejected, mut unhealthy) = (0, 0);
        for (index, other) in self.backends().enumerate() {
            if std::ptr::eq(other, backend) {
                continue;
            }
            let HealthView { state, usage, .. } = other.health.view(now);
            // Nobody may need a backup for long: it keeps none from being ejected while it waits
            // for its trial.
            let is_idle = usage == Usage::Trial && self.board.is_backup(index);
            ejected += usize::from(state.is_ejected() && !is_idle);
            unhealthy += usize::from(state.fails_checks() || is_idle);
        }
        may_eject(ejected, unhealthy, self.members.len(), self.max_ejected_percent)
    }

    /// Returns whether this is one of its backends.
    pub(crate) fn has(&self, backend: &Backend) -> bool {
        self.position(backend).is_some()
    }

    /// Returns the position of a backend.
    pub(crate) fn position(&self, backend: &Backend) -> Option<usize> {
        self.backends().position(|one| std::ptr::eq(one, backend))
    }

    /// Returns the backend at a position.
    pub(crate) fn member(&self, index: usize) -> Option<&Arc<Backend>> {
        self.members.get(index).map(|member| &member.backend)
    }

    /// Returns whether there is a backend in use whose dials have not failed in the last 10 s.
    pub(crate) fn has_usable(&self, now: Instant) -> bool {
        let is_usable =
            |backend: &Backend| backend.health(now).usage != Usage::Out && !backend.is_down(now);
        self.backends().any(is_usable)
    }

    /// Returns all backends, backups last.
    pub(crate) fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.members.iter().map(|member| &*member.backend)
    }

    /// Returns all backends for those who keep one.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.members.iter().map(|member| &member.backend)
    }

    /// Returns the tunnels and the shares of all backends, in their order. Backups have none.
    pub(crate) fn holdings(&self, now: Instant) -> Vec<Holding> {
        let holding = |(index, member): (usize, &Member)| Holding {
            tunnels: member.backend.tunnels(),
            weight: member.weight / WEIGHT_ONE,
            cap: (member.cap != NO_CAP).then_some(member.cap as usize),
            is_eligible: !self.board.is_backup(index)
                && matches!(member.backend.health.view(now).usage, Usage::Share(_)),
        };
        self.members.iter().enumerate().map(holding).collect()
    }

    /// Has handshakes come to the backends with the fewest tunnels instead of going round, or no
    /// longer.
    pub(crate) fn even_out(&self, is_on: bool) {
        self.chooser.even_out(is_on);
    }

    /// Returns all backends with their weights and limits, and whether they are backups.
    #[cfg(feature = "admin")]
    pub(crate) fn places(&self) -> impl Iterator<Item = (&Backend, u32, Option<u32>, bool)> {
        self.members.iter().enumerate().map(|(index, member)| {
            let cap = (member.cap != NO_CAP).then_some(member.cap);
            let (weight, is_backup) = (member.weight / WEIGHT_ONE, self.board.is_backup(index));
            (&*member.backend, weight, cap, is_backup)
        })
    }

    /// Returns the backends of earlier settings that are still there.
    fn removed(&self) -> impl Iterator<Item = Arc<Backend>> {
        self.removed.iter().filter_map(Weak::upgrade)
    }

    /// Returns the backends of earlier settings to which tunnels are open.
    #[cfg(feature = "metrics")]
    pub(crate) fn leaving(&self) -> impl Iterator<Item = Arc<Backend>> {
        self.removed().filter(|backend| backend.tunnels() > 0)
    }

    /// Returns the number of open tunnels, those to backends of earlier settings included.
    pub(crate) fn tunnels(&self) -> usize {
        let removed: usize = self.removed().map(|backend| backend.tunnels()).sum();
        removed + self.backends().map(Backend::tunnels).sum::<usize>()
    }
}

impl Member {
    /// Returns the weight on the board.
    fn weight_for(&self, usage: Usage) -> u32 {
        match usage {
            Usage::Out => 0,
            Usage::Trial => self.weight,
            // The weight is a multiple of 256, so that nothing is lost.
            Usage::Share(share) => self.weight / WEIGHT_ONE * share,
        }
    }
}

/// Returns the members with these settings and their board, backups last.
fn members(
    settings: impl IntoIterator<Item = BackendSettings>,
    mut backend: impl FnMut(Address, Option<Arc<str>>) -> Arc<Backend>,
) -> (Vec<Member>, Board) {
    let mut settings: Vec<_> = settings.into_iter().collect();
    // Stable: each kind keeps its order.
    settings.sort_by_key(|one| one.is_backup);
    let (members, candidates): (Vec<_>, Vec<_>) = settings
        .into_iter()
        .map(|BackendSettings { address, watched, weight, max_tunnels, is_backup }| {
            let (id, weight) = (key_of(address.authority.as_bytes()), weight * WEIGHT_ONE);
            let backend = backend(address, watched);
            let (cap, count) = (max_tunnels.unwrap_or(NO_CAP), backend.leases.clone());
            (Member { backend, weight, cap }, Candidate { id, weight, cap, is_backup, count })
        })
        .unzip();
    (members, Board::new(candidates))
}

impl fmt::Display for Pool {
    /// Writes the backends' names, separated by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, backend) in self.backends().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", backend.name())?;
        }
        Ok(())
    }
}
