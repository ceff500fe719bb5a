//! The backends of one section.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::balance::key_of;
use super::balance::{Balance, Board, Candidate, Chooser, CountSlab, NO_CAP, Order, WEIGHT_ONE};
use super::{Backend, Lease};
use crate::net::address::Address;

/// Settings of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackendSettings {
    pub(crate) address: Address,
    /// Share of the tunnels, relative to the other backends.
    pub(crate) weight: u32,
    /// Tunnels and handshakes at a time; `None` for no limit.
    pub(crate) max_tunnels: Option<u32>,
    /// Used only while no other backend is to be had.
    pub(crate) is_backup: bool,
}

/// The backends of a section, and the rule by which handshakes are spread over them.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Those that are no backups come first.
    members: Vec<Member>,
    /// The same, as the chooser sees them.
    board: Board,
    chooser: Chooser,
    /// Begins the turns of backends that are all down.
    next_down: AtomicUsize,
    /// Some weights on the board are those of backends that were down.
    has_reduced: AtomicBool,
    /// Backends of earlier settings, for as long as a connection holds one.
    removed: Vec<Weak<Backend>>,
    lineage: Lineage,
}

/// A backend, and its settings in this pool.
#[derive(Debug)]
struct Member {
    backend: Arc<Backend>,
    /// Weight on the board while it is up.
    weight: u32,
}

/// What a pool and its successors share.
#[derive(Clone, Debug, Default)]
struct Lineage {
    /// Counts of leases.
    counts: CountSlab,
    /// Number of backends with recent failures.
    failing: Arc<AtomicUsize>,
}

/// The leases for one handshake, in the order in which they are to be tried.
pub(crate) struct Picks<'a> {
    pool: &'a Pool,
    /// The choice among those that are up.
    order: Option<Order<'a>>,
    /// Those that the choice has not named: spare ones, and those that are down.
    rest: std::vec::IntoIter<usize>,
    /// The one that was tried first. Mostly it is the only one.
    first: Option<usize>,
    /// Those that were tried after it.
    tried: Vec<usize>,
    now: Instant,
}

impl Pool {
    /// Creates a pool of these backends.
    pub(crate) fn new(
        settings: impl IntoIterator<Item = BackendSettings>,
        balance: Balance,
    ) -> Self {
        let lineage = Lineage::default();
        let create = |address| Arc::new(lineage.backend(address));
        let (members, board) = members(settings, create);
        Self {
            members,
            board,
            chooser: Chooser::new(balance),
            next_down: AtomicUsize::new(0),
            has_reduced: AtomicBool::new(false),
            removed: Vec::new(),
            lineage,
        }
    }

    /// Creates the pool that follows this one, with these backends. One that stays, or comes back
    /// while a connection holds it, keeps its counts and its failures; the turns go on.
    pub(crate) fn successor(
        &self,
        settings: impl IntoIterator<Item = BackendSettings>,
        balance: Balance,
    ) -> Self {
        let current = self.members.iter().map(|member| Arc::clone(&member.backend));
        let mut known: Vec<_> = current.chain(self.removed()).collect();
        let (members, board) = members(settings, |address| {
            match known.iter().position(|backend| backend.name() == address.authority) {
                Some(index) => known.remove(index),
                None => Arc::new(self.lineage.backend(address)),
            }
        });
        Self {
            chooser: self.chooser.successor(balance, &self.board, &board),
            members,
            board,
            next_down: AtomicUsize::new(self.next_down.load(Ordering::Relaxed)),
            has_reduced: AtomicBool::new(false),
            removed: known.iter().map(Arc::downgrade).collect(),
            lineage: self.lineage.clone(),
        }
    }

    /// Returns the leases for one handshake in the order in which they are to be tried, each
    /// backend once, but those at their limits: backups come after the others, and those whose
    /// dials have failed in the last 10 s last. A lease is taken only when the iterator reaches it.
    /// `key` is what [`Balance::Hash`] chooses by.
    pub(crate) fn pick(&self, now: Instant, key: Option<u64>) -> Picks<'_> {
        self.update_weights(now);
        let order = Some(self.chooser.order(&self.board, key));
        let (rest, tried) = (Vec::new().into_iter(), Vec::new());
        Picks { pool: self, order, rest, first: None, tried, now }
    }

    /// Brings the weights up to date with the failures. While none has failed, this is two loads.
    fn update_weights(&self, now: Instant) {
        let are_failing = self.lineage.failing.load(Ordering::Relaxed) > 0;
        if !are_failing && !self.has_reduced.load(Ordering::Relaxed) {
            return;
        }
        let mut has_reduced = false;
        self.board.set_weights(self.members.iter().map(|member| {
            let is_down = member.backend.is_down(now);
            has_reduced |= is_down;
            if is_down { 0 } else { member.weight }
        }));
        self.has_reduced.store(has_reduced, Ordering::Relaxed);
    }

    /// Takes a lease on a backend, unless it has as many as it may.
    fn take(&self, index: usize) -> Option<Lease> {
        let is_counted = self.board.try_increment(index);
        is_counted.then(|| Lease::counted(&self.members[index].backend))
    }

    /// Returns whether there is a backend whose dials have not failed in the last 10 s.
    #[cfg(feature = "admin")]
    pub(crate) fn has_usable(&self, now: Instant) -> bool {
        self.members.iter().any(|member| !member.backend.is_down(now))
    }

    /// Returns all backends, backups last.
    pub(crate) fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.members.iter().map(|member| &*member.backend)
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

impl Lineage {
    fn backend(&self, address: Address) -> Backend {
        Backend::new(address, self.counts.take(), &self.failing)
    }
}

/// Returns the members with these settings and their board, backups last.
fn members(
    settings: impl IntoIterator<Item = BackendSettings>,
    mut backend: impl FnMut(Address) -> Arc<Backend>,
) -> (Vec<Member>, Board) {
    let mut settings: Vec<_> = settings.into_iter().collect();
    // Stable: each kind keeps its order.
    settings.sort_by_key(|one| one.is_backup);
    let (members, candidates): (Vec<_>, Vec<_>) = settings
        .into_iter()
        .map(|BackendSettings { address, weight, max_tunnels, is_backup }| {
            let (id, weight) = (key_of(address.authority.as_bytes()), weight * WEIGHT_ONE);
            let backend = backend(address);
            let (cap, count) = (max_tunnels.unwrap_or(NO_CAP), backend.leases.clone());
            (Member { backend, weight }, Candidate { id, weight, cap, is_backup, count })
        })
        .unzip();
    (members, Board::new(candidates))
}

impl Picks<'_> {
    /// Returns those that have not been named yet: spare ones that are up first, in turn where all
    /// are down.
    fn rest(&self) -> Vec<usize> {
        let pool = self.pool;
        let count = pool.members.len();
        let is_left = |index: &usize| self.first != Some(*index) && !self.tried.contains(index);
        let first = match self.first {
            None => pool.next_down.fetch_add(1, Ordering::Relaxed) % count.max(1),
            Some(_) => 0,
        };
        let left = (0..count).map(|step| (first + step) % count).filter(is_left);
        let (mut up, down): (Vec<_>, Vec<_>) =
            left.partition(|&index| !pool.members[index].backend.is_down(self.now));
        up.extend(down);
        up
    }
}

impl Iterator for Picks<'_> {
    type Item = Lease;

    fn next(&mut self) -> Option<Lease> {
        loop {
            let index = match self.order.as_mut().map(Iterator::next) {
                Some(Some(index)) => {
                    if self.first.is_some() {
                        self.tried.push(index);
                    } else {
                        self.first = Some(index);
                        let failures = &self.pool.members[index].backend.failures;
                        failures.with_any(|failures| failures.try_again(self.now));
                    }
                    index
                }
                Some(None) => {
                    self.rest = self.rest().into_iter();
                    self.order = None;
                    continue;
                }
                None => self.rest.next()?,
            };
            if let Some(lease) = self.pool.take(index) {
                return Some(lease);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(names: &[&str]) -> Vec<BackendSettings> {
        let one = |name: &&str| BackendSettings {
            address: Address::backend(name).unwrap(),
            weight: 1,
            max_tunnels: None,
            is_backup: false,
        };
        names.iter().map(one).collect()
    }

    fn pool(names: &[&str]) -> Pool {
        Pool::new(settings(names), Balance::RoundRobin)
    }

    fn order(pool: &Pool, now: Instant, key: Option<u64>) -> String {
        pool.pick(now, key).map(|lease| lease.backend().name()[..1].to_owned()).collect()
    }

    #[test]
    fn each_handshake_begins_one_backend_further() {
        let (pool, now) = (pool(&["a:1", "b:2", "c:3"]), Instant::now());
        let orders = [(); 4].map(|()| order(&pool, now, None));
        assert_eq!(orders, ["abc", "bca", "cab", "abc"]);
        assert_eq!(pool.to_string(), "a:1,b:2,c:3");
    }

    #[test]
    fn a_backend_that_has_failed_comes_last_and_the_others_share_its_turns() {
        let (pool, start) = (pool(&["a:1", "b:2", "c:3"]), Instant::now());
        pool.members[1].backend.failures.with(|failures| failures.record_dial(start));
        let orders = [(); 4].map(|()| order(&pool, start, None));
        assert_eq!(orders, ["acb", "cab", "acb", "cab"]);
        #[cfg(feature = "admin")]
        assert!(pool.has_usable(start));
        // Later one handshake tries it in its turn, and the others wait for what comes of that.
        let later = start + Duration::from_secs(10);
        let orders = [(); 9].map(|()| order(&pool, later, None));
        assert_eq!(orders.iter().filter(|order| order.starts_with('b')).count(), 1, "{orders:?}");
        // If all have failed, they take turns as ever.
        for member in &pool.members {
            member.backend.failures.with(|failures| failures.record_dial(later));
        }
        #[cfg(feature = "admin")]
        assert_eq!([9, 10].map(|s| pool.has_usable(later + Duration::from_secs(s))), [false, true]);
        let mut firsts = [(); 3].map(|()| order(&pool, later, None)[..1].to_owned());
        firsts.sort_unstable();
        assert_eq!(firsts, ["a", "b", "c"]);
        // Well again, they are on the board as if nothing had been.
        for member in &pool.members {
            member.backend.failures.with(|failures| failures.forget_dial());
        }
        assert_eq!(pool.lineage.failing.load(Ordering::Relaxed), 0);
        let mut firsts = [(); 3].map(|()| order(&pool, later, None)[..1].to_owned());
        firsts.sort_unstable();
        assert_eq!(firsts, ["a", "b", "c"]);
        assert!(!pool.has_reduced.load(Ordering::Relaxed));
        assert!((0..3).all(|index| pool.board.weight(index) == WEIGHT_ONE));
        // One that goes while it is down is counted no more.
        pool.members[0].backend.failures.with(|failures| failures.record_dial(later));
        assert_eq!(pool.lineage.failing.load(Ordering::Relaxed), 1);
        let without = pool.successor(settings(&["b:2"]), Balance::RoundRobin);
        drop(pool);
        assert_eq!(without.lineage.failing.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn backups_and_backends_at_their_limits_are_passed_over() {
        let now = Instant::now();
        let mut settings = settings(&["s:1", "a:1", "b:1"]);
        settings[0].is_backup = true;
        settings[1].max_tunnels = Some(1);
        settings[2].max_tunnels = Some(2);
        let pool = Pool::new(settings, Balance::RoundRobin);
        let first = |pool: &Pool| pool.pick(now, None).next();
        assert_eq!(order(&pool, now, None), "abs");
        let leases: Vec<_> = (0..4).map(|_| first(&pool).unwrap()).collect();
        let mut names: Vec<_> = leases.iter().map(|lease| lease.backend().name()).collect();
        names.sort_unstable();
        // Where all others are full, the backup serves.
        assert_eq!(names, ["a:1", "b:1", "b:1", "s:1"]);
        assert_eq!(order(&pool, now, None), "s");
        drop(leases);
        assert_eq!(order(&pool, now, None).len(), 3);
        // A backup comes before those that are down, and after those that are not.
        pool.members[0].backend.failures.with(|failures| failures.record_dial(now));
        assert_eq!(order(&pool, now, None), "bsa");
        pool.members[1].backend.failures.with(|failures| failures.record_dial(now));
        assert_eq!(&order(&pool, now, None)[..1], "s");
    }

    #[test]
    fn nobody_gets_a_lease_where_all_are_full() {
        let mut settings = settings(&["a:1"]);
        settings[0].max_tunnels = Some(1);
        let (pool, now) = (Pool::new(settings.clone(), Balance::RoundRobin), Instant::now());
        let held = pool.pick(now, None).next().unwrap();
        assert!(pool.pick(now, None).next().is_none());
        // Right across a reload, which may raise the limit.
        let same = pool.successor(settings.clone(), Balance::LeastTunnels);
        assert!(same.pick(now, None).next().is_none());
        settings[0].max_tunnels = Some(2);
        let more = same.successor(settings, Balance::LeastTunnels);
        let second = more.pick(now, None).next().unwrap();
        assert!(more.pick(now, None).next().is_none());
        drop((held, pool));
        assert!(same.pick(now, None).next().is_none());
        drop(second);
        assert!(same.pick(now, None).next().is_some());
    }

    #[test]
    fn each_rule_has_its_choice() {
        let now = Instant::now();
        let least = Pool::new(settings(&["a:1", "b:1", "c:1"]), Balance::LeastTunnels);
        let mut held: Vec<_> = (0..3).map(|_| least.pick(now, None).next().unwrap()).collect();
        let freed = held.remove(1);
        let name = freed.backend().name().to_owned();
        drop(freed);
        assert_eq!(least.pick(now, None).next().unwrap().backend().name(), name);

        let hash = Pool::new(settings(&["a:1", "b:1", "c:1"]), Balance::Hash);
        let firsts = |key| -> Vec<_> { (0..5).map(|_| order(&hash, now, key)).collect() };
        let of_key = firsts(Some(key_of(b"room 7")));
        assert!(of_key.iter().all(|order| *order == of_key[0]), "{of_key:?}");
        let without: std::collections::BTreeSet<_> = firsts(None).into_iter().collect();
        assert_eq!(without.len(), 3);

        let mut settings = settings(&["a:1", "b:1"]);
        settings[0].weight = 2;
        let weighted = Pool::new(settings, Balance::RoundRobin);
        let firsts: String = (0..6).map(|_| order(&weighted, now, None)[..1].to_owned()).collect();
        assert_eq!(firsts.matches('a').count(), 4);
        assert!(!firsts.contains("aaa"), "{firsts}");
    }

    #[test]
    fn a_successor_keeps_turns_and_counts_and_what_is_still_held() {
        let now = Instant::now();
        let next =
            |pool: &Pool, names: &[&str]| pool.successor(settings(names), Balance::RoundRobin);
        let first = pool(&["a:1", "b:2", "c:3"]);
        let tunnel = first.pick(now, None).next().unwrap().into_tunnel();
        let second = next(&first, &["c:3", "b:2"]);
        // The turn that comes next begins with the second one.
        assert_eq!(order(&second, now, None), "bc");
        assert!(Arc::ptr_eq(&second.members[0].backend, &first.members[2].backend));
        assert_eq!(second.tunnels(), 1);
        drop(first);
        // Back again, it has the tunnel that it has had all the while.
        let third = next(&next(&second, &["b:2"]), &["a:1", "a:1"]);
        assert_eq!(third.backends().map(Backend::tunnels).collect::<Vec<_>>(), [1, 0]);
        let fourth = next(&third, &["b:2"]);
        drop((second, third));
        assert_eq!(fourth.removed().map(|one| one.name().to_owned()).collect::<Vec<_>>(), ["a:1"]);
        #[cfg(feature = "metrics")]
        assert_eq!(fourth.leaving().count(), 1);
        drop(tunnel);
        assert_eq!((fourth.tunnels(), fourth.removed().count()), (0, 0));
        assert_eq!(next(&fourth, &["b:2"]).removed.len(), 0);
    }

    #[test]
    fn a_lease_is_taken_when_its_backend_is_reached() {
        let pool = pool(&["a:1", "b:2"]);
        let held = |index: usize| pool.members[index].backend.leases.get();
        let mut candidates = pool.pick(Instant::now(), None);
        assert_eq!((held(0), held(1)), (0, 0));
        let first = candidates.next().unwrap();
        assert_eq!((held(0), held(1)), (1, 0));
        drop((first, candidates));
        assert_eq!((held(0), held(1)), (0, 0));
    }
}
