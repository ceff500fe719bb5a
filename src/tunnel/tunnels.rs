//! All tunnels of one event loop: table, run queue and ticks.

use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::io;
use std::iter::Sum;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use slab::Slab;

use super::account::Account;
use super::buffers::Buffers;
use super::group::Group;
use super::progress::Progress;
use super::reason::{CloseOrder, Reason};
use super::selection::TunnelFilter;
use super::tally::Tallies;
use super::ticks::{Clock, TICK, Tick, ticks};
use super::tunnel::{NewTunnel, Tunnel};
#[cfg(feature = "admin")]
use super::view::TunnelView;
use crate::net::reactor::Reactor;

/// Token of the ticker's events.
const TICKER: u32 = u32::MAX;
/// Tick of a tunnel that is not due.
const NEVER: Tick = Tick::MAX;

/// The tunnels of one event loop, and what they share.
pub(crate) struct Tunnels {
    entries: Slab<Box<Entry>>,
    /// Run queue: tunnels with something to do, in the order of their turns.
    ready: VecDeque<usize>,
    /// Tunnels in which time plays a part, by the tick at which they are looked at.
    due: BTreeSet<(Tick, usize)>,
    clock: Clock,
    /// Fires once a tick while a tunnel is due some time. Open from the start, so that no shortage
    /// of descriptors can stop the time later.
    ticker: OwnedFd,
    is_ticking: bool,
    has_ticked: bool,
    buffers: Buffers,
    tallies: Tallies,
}

/// A tunnel and its place in the queues.
struct Entry {
    tunnel: Tunnel,
    group: Group,
    account: Box<dyn Account>,
    /// It stands in `ready`.
    is_ready: bool,
    /// Its news is noted, or nobody counts it.
    is_noted: bool,
    /// It stands in `due` with this tick, unless that is [`NEVER`]. 8 bytes less than an option.
    due: Tick,
}

/// Numbers of tunnels that an order has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ordered {
    /// Those that are meant.
    pub(crate) meant: usize,
    /// Those of them that were not ending, nor waiting for their end, before.
    pub(crate) begun: usize,
}

impl Tunnels {
    /// Creates an empty table on this event loop.
    ///
    /// # Errors
    ///
    /// Those of the system, such as no descriptors left.
    pub(crate) fn new(reactor: &Reactor, worker: usize) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let ticker = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        reactor.register_readable(&ticker, TICKER)?;
        Ok(Self {
            entries: Slab::new(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            clock: Clock::new(reactor.now()),
            ticker,
            is_ticking: false,
            has_ticked: false,
            buffers: Buffers::default(),
            tallies: Tallies::new(worker),
        })
    }

    /// Inserts a tunnel, whose sockets are registered with this event loop.
    pub(crate) fn insert(&mut self, new: NewTunnel, group: Group, account: Box<dyn Account>) {
        let slot = self.entries.vacant_entry();
        let key = slot.key();
        // There are fewer tunnels than descriptors, whose numbers have 31 bits.
        let mut tunnel = Tunnel::new(new, key as u32, &self.clock);
        if group.is_draining() {
            let now = self.clock.now();
            tunnel.drain_at(now, now);
        }
        let is_counted = self.tallies.begin(key, &group, &self.clock);
        slot.insert(Box::new(Entry {
            tunnel,
            group,
            account,
            is_ready: false,
            is_noted: !is_counted,
            due: NEVER,
        }));
        // No event will come for what is pending, nor for what is believed of the sockets already.
        self.enqueue(key);
    }

    /// Takes an event that the reactor reported under a token, the tunnel's key: the tunnel gets a
    /// turn.
    pub(crate) fn on_event(&mut self, token: u32) {
        match token {
            TICKER => self.has_ticked = true,
            key => self.enqueue(key as usize),
        }
    }

    /// Returns whether some tunnel has something to do.
    pub(crate) fn is_busy(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives each tunnel that has something to do one turn, and judges the time after it.
    ///
    /// What has come is read first: after a stall, a Pong that waits in the socket shows that its
    /// side is alive. `has_more` tells that further events wait in the system; the time waits for
    /// them too.
    pub(crate) fn advance(&mut self, has_more: bool) {
        let judges_time = self.has_ticked && !has_more;
        if judges_time {
            self.has_ticked = false;
            // The count of expirations does not matter: the clock is read anew. The read re-arms
            // the timer.
            let _ = rustix::io::read(&self.ticker, &mut [0; 8]);
            self.clock.update();
        }
        // Those that are queued meanwhile have to wait for the next round, after the next look at
        // the events.
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { return };
            // It may have ended since it was queued; its key may even be another tunnel's by now,
            // for which a turn too many does no harm.
            let Some(entry) = self.entries.get_mut(key) else { continue };
            entry.is_ready = false;
            let (clock, buffers) = (&self.clock, &mut self.buffers);
            match entry.tunnel.advance(clock, buffers) {
                ControlFlow::Break(reason) => self.end(key, reason),
                ControlFlow::Continue(progress) => {
                    let is_timed = entry.tunnel.is_timed();
                    if !std::mem::replace(&mut entry.is_noted, true) {
                        self.tallies.note(key);
                        self.start_ticking();
                    }
                    if progress == Progress::More {
                        self.enqueue(key);
                    }
                    if is_timed {
                        self.schedule(key);
                    }
                }
            }
        }
        if judges_time {
            self.tick();
        }
    }

    /// Closes all tunnels of a group, each at a random time within `spread`, so that their clients
    /// do not all come back at once.
    pub(crate) fn drain(&mut self, group: &Group, spread: Duration) {
        let now = self.clock.now();
        for key in self.keys_of(group) {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.tunnel.drain_at(random_tick(now, spread), now);
                self.schedule(key);
            }
        }
    }

    /// Ends all tunnels of a group at once.
    pub(crate) fn cut(&mut self, group: &Group) {
        for key in self.keys_of(group) {
            if let Some(entry) = self.entries.get_mut(key) {
                let reason = entry.tunnel.abort();
                self.end(key, reason);
            }
        }
    }

    /// Closes those that are meant by an order from outside.
    pub(crate) fn close(&mut self, filter: &TunnelFilter, order: &Arc<CloseOrder>) -> Ordered {
        let now = self.clock.now();
        let keys: Vec<_> = self.meant(filter).map(|(_, key, _)| key).collect();
        let mut ordered = Ordered { meant: keys.len(), begun: 0 };
        for key in keys {
            if let Some(entry) = self.entries.get_mut(key) {
                ordered.begun += usize::from(!entry.tunnel.is_ending());
                entry.tunnel.close_at(random_tick(now, order.spread), now, order);
                self.schedule(key);
            }
        }
        ordered
    }

    /// Returns the numbers of the oldest tunnels of those that are meant, at most so many,
    /// ascending. Those that are ending, or wait for their end, are left out.
    pub(crate) fn oldest(&self, filter: &TunnelFilter, count: usize) -> Vec<u64> {
        let mut oldest = BinaryHeap::new();
        for (id, ..) in self.meant(filter).filter(|(.., entry)| !entry.tunnel.is_ending()) {
            oldest.push(id);
            if oldest.len() > count {
                oldest.pop();
            }
        }
        oldest.into_sorted_vec()
    }

    /// Returns the number of those that are meant, be they ending.
    pub(crate) fn count_meant(&self, filter: &TunnelFilter) -> usize {
        self.meant(filter).count()
    }

    /// Returns those that are meant, each with its number and its key.
    fn meant(&self, filter: &TunnelFilter) -> impl Iterator<Item = (u64, usize, &Entry)> {
        let of_group = self.entries.iter().filter(|(_, entry)| filter.admits_group(&entry.group));
        of_group.filter_map(|(key, entry)| {
            let identity = entry.account.identity();
            filter.admits(&identity).then_some((identity.id, key, &**entry))
        })
    }

    fn keys_of(&self, group: &Group) -> Vec<usize> {
        let members = self.entries.iter().filter(|(_, entry)| entry.group.is(group));
        members.map(|(key, _)| key).collect()
    }

    fn enqueue(&mut self, key: usize) {
        if let Some(entry) = self.entries.get_mut(key)
            && !std::mem::replace(&mut entry.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Has a tunnel looked at in time.
    ///
    /// One that stands here with an earlier tick is looked at too early, and scheduled anew then:
    /// that costs less than moving it at every message.
    fn schedule(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some(next) = entry.tunnel.next_tick(self.clock.now()) else { return };
        if entry.due <= next {
            return;
        }
        let due = std::mem::replace(&mut entry.due, next);
        if due != NEVER {
            self.due.remove(&(due, key));
        }
        self.due.insert((next, key));
        self.start_ticking();
    }

    fn start_ticking(&mut self) {
        if !self.is_ticking {
            self.is_ticking = true;
            self.clock.update();
            self.set_ticker(TICK);
        }
    }

    /// Adds what is new of all tunnels to the counts of their sections.
    fn count(&mut self, now: Tick) {
        for key in self.tallies.take_changed() {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            let is_counted = self.tallies.add(key, &entry.group, &entry.tunnel, now);
            entry.is_noted = !is_counted;
        }
    }

    /// Looks at the tunnels that are due.
    fn tick(&mut self) {
        let now = self.clock.now();
        self.count(now);
        while let Some(&(due, key)) = self.due.first() {
            if due > now {
                break;
            }
            self.due.pop_first();
            let Some(entry) = self.entries.get_mut(key) else { continue };
            entry.due = NEVER;
            match entry.tunnel.on_tick(now) {
                ControlFlow::Break(reason) => self.end(key, reason),
                // What it has inserted is written in its turn, after which it is scheduled again.
                ControlFlow::Continue(()) => self.enqueue(key),
            }
        }
        // Ready tunnels are scheduled in their turns, so nothing is due only if nobody is ready
        // either.
        if self.due.is_empty() && self.ready.is_empty() {
            self.is_ticking = false;
            self.clock.stop();
            self.set_ticker(Duration::ZERO);
        }
    }

    /// Has the ticker fire at this interval; zero stops it.
    fn set_ticker(&self, interval: Duration) {
        let interval = Timespec { tv_sec: 0, tv_nsec: i64::from(interval.subsec_nanos()) };
        let timer = Itimerspec { it_interval: interval, it_value: interval };
        if let Err(error) = timerfd_settime(&self.ticker, TimerfdTimerFlags::empty(), &timer) {
            log::error!(error:% = io::Error::from(error); "no_ticks");
        }
    }

    fn end(&mut self, key: usize, reason: Reason) {
        let Entry { mut tunnel, group, account, due, .. } = *self.entries.remove(key);
        if due != NEVER {
            self.due.remove(&(due, key));
        }
        let end = tunnel.close(reason, &mut self.buffers);
        self.tallies.end(key, &group, &tunnel, &self.clock);
        // Whoever hears of the end finds the sockets closed.
        drop(tunnel);
        account.end(end);
    }
}

#[cfg(feature = "admin")]
impl Tunnels {
    /// Returns the newest tunnels of those that are meant, at most so many, the newest first.
    pub(crate) fn list(&self, filter: &TunnelFilter, limit: usize) -> Vec<TunnelView> {
        let now = self.clock.now();
        let mut meant: Vec<_> = self.meant(filter).collect();
        meant.sort_unstable_by_key(|&(id, ..)| std::cmp::Reverse(id));
        meant.truncate(limit);
        let view = |(_, key, entry): (u64, usize, &Entry)| {
            let Entry { tunnel, group, account, .. } = entry;
            let active = self.tallies.active(key, group);
            TunnelView {
                description: account.describe(),
                idle: active.map(|active| TICK * now.saturating_sub(active)),
                sent_by: tunnel.totals(),
                state: tunnel.state(),
            }
        };
        meant.into_iter().map(view).collect()
    }
}

impl Sum for Ordered {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            meant: sum.meant + one.meant,
            begun: sum.begun + one.begun,
        })
    }
}

/// Returns a random tick within this time.
fn random_tick(now: Tick, spread: Duration) -> Tick {
    let wait = if spread.is_zero() { 0 } else { fastrand::u32(0..=ticks(spread)) };
    now.saturating_add(wait)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::rc::Rc;
    use std::sync::Arc;
    #[cfg(feature = "admin")]
    use std::time::Instant;

    use super::*;
    #[cfg(feature = "admin")]
    use crate::net::name::Peer;
    use crate::stats::SectionStats;
    #[cfg(feature = "admin")]
    use crate::tunnel::Description;
    use crate::tunnel::policy::Policy;
    use crate::tunnel::{Identity, OrderCause, PerSide, TunnelEnd};

    /// The tunnels of a reactor, and the reasons of those that have ended.
    struct Bench {
        reactor: Rc<Reactor>,
        tunnels: Tunnels,
        ended: Rc<RefCell<Vec<&'static str>>>,
        inserted: u64,
        held: Rc<Cell<usize>>,
    }

    /// Notes the reason for the end of its tunnel.
    struct Noted {
        ended: Rc<RefCell<Vec<&'static str>>>,
        id: u64,
        reactor: Rc<Reactor>,
        /// Is set to the number of those that hold the reactor when the tunnel ends.
        held: Rc<Cell<usize>>,
    }

    impl Account for Noted {
        fn identity(&self) -> Identity<'_> {
            // Two backends take turns.
            let backend_id = (self.id % 2) as usize;
            Identity { id: self.id, section: "", backend_id, backend: "", client: None }
        }

        #[cfg(feature = "admin")]
        fn describe(&self) -> Description {
            Description {
                id: self.id,
                section: String::new(),
                client: Peer::Ip([127, 0, 0, 1].into(), 1),
                backend: String::new(),
                accepted: Instant::now(),
                request: Default::default(),
            }
        }

        fn end(self: Box<Self>, end: TunnelEnd) {
            self.held.set(Rc::strong_count(&self.reactor));
            self.ended.borrow_mut().push(end.reason.name());
        }
    }

    impl Bench {
        fn new() -> Self {
            let reactor = Rc::new(Reactor::new().unwrap().0);
            let tunnels = Tunnels::new(&reactor, 0).unwrap();
            Self { reactor, tunnels, ended: Rc::default(), inserted: 0, held: Rc::default() }
        }

        /// Inserts a tunnel; returns the peers at its ends.
        fn insert(&mut self, group: &Group, policy: Policy) -> PerSide<TcpStream> {
            let (new, peers) = NewTunnel::with_peers(&self.reactor, policy);
            self.inserted += 1;
            let noted = Noted {
                ended: Rc::clone(&self.ended),
                id: self.inserted,
                reactor: Rc::clone(&self.reactor),
                held: Rc::clone(&self.held),
            };
            self.tunnels.insert(new, group.clone(), Box::new(noted));
            peers
        }

        /// Runs the loop until this many tunnels have ended.
        fn run_until_ended(&mut self, count: usize) {
            while self.ended.borrow().len() < count {
                self.turn();
            }
        }

        fn turn(&mut self) {
            self.reactor.wait(self.tunnels.is_busy()).unwrap();
            let has_more = self.reactor.dispatch(|token| self.tunnels.on_event(token));
            self.tunnels.advance(has_more);
        }

        /// Has a tick come now.
        fn tick(&mut self) {
            self.tunnels.on_event(TICKER);
            self.tunnels.advance(false);
        }
    }

    /// An order with code 1012.
    fn order(cause: OrderCause, reason: &str, spread: Duration) -> Arc<CloseOrder> {
        Arc::new(CloseOrder { cause, code: 1_012, reason: reason.to_owned(), spread })
    }

    /// A group that is counted.
    fn counted() -> (Group, Arc<SectionStats>) {
        let stats = Arc::new(SectionStats::new(&[], &[], 1));
        (Group::new(Some(Arc::clone(&stats))), stats)
    }

    #[test]
    fn a_tunnel_relays_both_ways_and_ends_with_its_ends() {
        let mut bench = Bench::new();
        let mut peers = bench.insert(&Group::default(), Policy::default());
        peers.client.write_all(b"\x81\x82maskhi").unwrap();
        peers.backend.write_all(b"\x81\x02ho").unwrap();
        peers.client.shutdown(std::net::Shutdown::Write).unwrap();
        peers.backend.shutdown(std::net::Shutdown::Write).unwrap();
        bench.run_until_ended(1);
        let mut got = [Vec::new(), Vec::new()];
        peers.client.read_to_end(&mut got[0]).unwrap();
        peers.backend.read_to_end(&mut got[1]).unwrap();
        assert_eq!(got, [&b"101\x81\x02ho"[..], b"\x81\x82maskhi"]);
        assert!(bench.tunnels.entries.is_empty());
        assert!(matches!(bench.ended.borrow()[..], ["client_eof" | "backend_eof"]));
    }

    #[test]
    fn time_is_judged_only_after_all_events_have_been_taken() {
        let mut bench = Bench::new();
        let group = Group::default();
        let _peers = bench.insert(&group, Policy::default());
        bench.turn();
        // It is due at once.
        bench.tunnels.drain(&group, Duration::ZERO);
        let due = bench.tunnels.due.len();
        assert_eq!(due, 1);
        bench.tunnels.on_event(TICKER);
        bench.tunnels.advance(true);
        assert_eq!(bench.tunnels.due.len(), due, "more events wait in the system");
        bench.tunnels.advance(false);
        assert!(bench.tunnels.is_busy(), "its Close is to be written");
    }

    #[test]
    fn a_cut_and_a_drain_concern_their_group_alone() {
        let mut bench = Bench::new();
        let (cut, drained) = (Group::default(), Group::default());
        let _kept = bench.insert(&Group::default(), Policy::default());
        let _cut = bench.insert(&cut, Policy::default());
        let soon = || Policy { close_grace: Duration::from_millis(1), ..Policy::default() };
        let mut old = bench.insert(&drained, soon());
        bench.turn();
        bench.tunnels.cut(&cut);
        assert_eq!(*bench.ended.borrow(), ["admin"]);

        drained.drain();
        bench.tunnels.drain(&drained, Duration::ZERO);
        // One that joins a group that is draining is closed as well.
        let mut new = bench.insert(&drained, soon());
        bench.run_until_ended(3);
        assert_eq!(bench.ended.borrow()[1..], ["drain", "drain"]);
        for peers in [&mut old, &mut new] {
            let mut got = Vec::new();
            peers.client.read_to_end(&mut got).unwrap();
            assert!(got.starts_with(b"101\x88\x0f\x03\xe9shutting down"), "{got:?}");
        }
        assert_eq!(bench.tunnels.entries.len(), 1);
    }

    #[test]
    fn the_ticker_runs_while_a_tunnel_is_due_and_stops_after_it() {
        let mut bench = Bench::new();
        let idle = Policy {
            idle_timeout: Some(Duration::from_millis(1)),
            close_grace: Duration::from_millis(1),
            ..Policy::default()
        };
        let _kept = bench.insert(&Group::default(), Policy::default());
        bench.turn();
        assert!(!bench.tunnels.is_ticking && bench.tunnels.due.is_empty());
        let mut peers = bench.insert(&Group::default(), idle);
        bench.turn();
        assert!(bench.tunnels.is_ticking && bench.tunnels.due.len() == 1);
        bench.run_until_ended(1);
        assert_eq!(*bench.ended.borrow(), ["idle"]);
        let mut got = Vec::new();
        peers.client.read_to_end(&mut got).unwrap();
        assert_eq!(got.escape_ascii().to_string(), "101\\x88\\x06\\x03\\xe9idle");
        // The next tick finds nothing due.
        while bench.tunnels.is_ticking {
            bench.turn();
        }
        assert!(bench.tunnels.due.is_empty());
    }

    #[test]
    fn what_comes_after_the_last_tick_is_counted_at_the_end() {
        let mut bench = Bench::new();
        let (group, stats) = counted();
        let mut peers = bench.insert(&group, Policy::default());
        peers.client.write_all(b"\x81\x82maskhi").unwrap();
        peers.backend.set_nonblocking(true).unwrap();
        while peers.backend.read(&mut [0; 8]).is_err() {
            bench.turn();
        }
        bench.tunnels.cut(&group);
        let [traffic] = &*stats.traffic else { panic!("one worker") };
        assert_eq!((traffic.client.text.get(), traffic.client.payload.get()), (1, 2));
    }

    #[test]
    fn a_blocked_tunnel_is_one_from_a_tick_to_its_end() {
        let mut bench = Bench::new();
        let (group, stats) = counted();
        let mut peers = bench.insert(&group, Policy::default());
        peers.backend.set_nonblocking(true).unwrap();
        let [traffic] = &*stats.traffic else { panic!("one worker") };
        while traffic.blocked.get() == 0 {
            while peers.backend.write(&[0x81; 16 * 1024]).is_ok() {}
            bench.turn();
        }
        bench.tick();
        assert_eq!(traffic.blocked.get(), 1);
        bench.tunnels.cut(&group);
        assert_eq!(traffic.blocked.get(), 0);
    }

    #[test]
    fn whoever_hears_of_an_end_finds_the_sockets_closed() {
        let mut bench = Bench::new();
        let group = Group::default();
        let without = Rc::strong_count(&bench.reactor);
        let _peers = bench.insert(&group, Policy::default());
        assert!(Rc::strong_count(&bench.reactor) > without + 1);
        bench.tunnels.cut(&group);
        // That of the account itself is left.
        assert_eq!(bench.held.get(), without + 1);
    }

    #[cfg(feature = "admin")]
    #[test]
    fn the_newest_are_listed_first_with_the_time_since_their_last_byte() {
        let mut bench = Bench::new();
        let (group, _stats) = counted();
        let ago = |seconds| Clock::new(Instant::now() - Duration::from_secs(seconds));
        bench.tunnels.clock = ago(3_600);
        let mut peers: Vec<_> = (0..3).map(|_| bench.insert(&group, Policy::default())).collect();
        bench.tunnels.clock = ago(7_200);
        let listed = |bench: &Bench, limit| {
            let views = bench.tunnels.list(&TunnelFilter::default(), limit);
            let hours =
                |view: TunnelView| (view.description.id, view.idle.unwrap().as_secs() / 3_600);
            views.into_iter().map(hours).collect::<Vec<_>>()
        };
        assert_eq!(listed(&bench, 2), [(3, 1), (2, 1)]);
        peers[1].client.write_all(b"\x81\x82maskhi").unwrap();
        bench.turn();
        bench.tick();
        assert_eq!(listed(&bench, 9), [(3, 1), (2, 0), (1, 1)]);
    }

    #[test]
    fn ordered_ends_are_spread_over_their_time() {
        let mut bench = Bench::new();
        let group = Group::default();
        let _peers: Vec<_> = (0..20).map(|_| bench.insert(&group, Policy::default())).collect();
        let order = |spread| order(OrderCause::Operator, "", spread);
        let slowly = order(Duration::from_secs(3_600));
        let ordered = bench.tunnels.close(&TunnelFilter::default(), &slowly);
        assert_eq!(ordered, Ordered { meant: 20, begun: 20 });
        let ticks = |bench: &Bench| bench.tunnels.due.iter().map(|&(at, _)| at).collect::<Vec<_>>();
        let spread = ticks(&bench);
        let now = bench.tunnels.clock.now();
        assert!(spread[0] < now + 7_200 && spread[19] > now + 7_200, "{spread:?}");
        assert!(spread[19] <= now + 4 * 3_600 + 1, "{spread:?}");
        // They wait for their end already, and come to it earlier.
        let ordered = bench.tunnels.close(&TunnelFilter::default(), &order(Duration::ZERO));
        assert_eq!(ordered, Ordered { meant: 20, begun: 0 });
        assert!(ticks(&bench).iter().all(|&at| at <= now + 1));
    }

    #[test]
    fn an_order_names_the_end_and_both_sides_get_its_reason() {
        use OrderCause::{BackendRemoved, BackendUnhealthy, Operator, Rebalance};
        let rows = [
            (Operator, "go away", "admin"),
            (BackendRemoved, "backend removed", "backend_removed"),
            (BackendUnhealthy, "backend unhealthy", "backend_unhealthy"),
            (Rebalance, "rebalancing", "rebalance"),
        ];
        let mut bench = Bench::new();
        let policy = || Policy { close_grace: Duration::from_millis(1), ..Policy::default() };
        let mut peers = rows.map(|_| bench.insert(&Group::default(), policy()));
        for (id, (cause, text, _)) in (1..).zip(rows) {
            let this = TunnelFilter::with_ids(vec![id]);
            let ordered = bench.tunnels.close(&this, &order(cause, text, Duration::ZERO));
            assert_eq!(ordered, Ordered { meant: 1, begun: 1 });
        }
        for (peers, (_, text, _)) in peers.iter_mut().zip(rows) {
            let length = u8::try_from(text.len() + 2).unwrap();
            let expected = [&b"101\x88"[..], &[length, 3, 0xf4], text.as_bytes()].concat();
            peers.client.set_nonblocking(true).unwrap();
            let mut got = vec![0; expected.len()];
            while peers.client.peek(&mut got).unwrap_or(0) < expected.len() {
                bench.turn();
            }
            assert_eq!(got, expected);
        }
        // What the clients have been told stands.
        let late = order(Operator, "too late", Duration::ZERO);
        bench.tunnels.close(&TunnelFilter::default(), &late);
        bench.run_until_ended(rows.len());
        assert_eq!(bench.ended.borrow()[..], rows.map(|(_, _, name)| name));
        for (peers, (_, text, _)) in peers.iter_mut().zip(rows) {
            let mut got = Vec::new();
            peers.backend.read_to_end(&mut got).unwrap();
            let (head, payload) = got.split_at(6);
            let mask = head[2..].iter().cycle();
            let payload: Vec<_> =
                payload.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
            assert_eq!(payload, [&b"\x03\xe9"[..], text.as_bytes()].concat());
        }
    }

    #[test]
    fn the_oldest_are_those_of_a_backend_and_a_group_that_are_not_ending() {
        let mut bench = Bench::new();
        let (group, other) = (Group::default(), Group::default());
        let mut peers: Vec<_> =
            (0..9).map(|at| bench.insert([&group, &other][at / 8], Policy::default())).collect();
        // The freed place is the newest one's, so places tell nothing of the age.
        bench.tunnels.end(0, Reason::Admin);
        peers.push(bench.insert(&group, Policy::default()));
        peers.push(bench.insert(&group, Policy::default()));
        bench.turn();
        let to = |backend| TunnelFilter {
            group: Some(group.clone()),
            ..TunnelFilter::to_backend(backend)
        };
        let oldest = |bench: &Bench, backend, count| bench.tunnels.oldest(&to(backend), count);
        assert_eq!(oldest(&bench, 1, 2), [3, 5]);
        assert_eq!(oldest(&bench, 1, 99), [3, 5, 7, 11]);
        assert_eq!(oldest(&bench, 0, 99), [2, 4, 6, 8, 10]);
        assert_eq!(oldest(&bench, 0, 0), [0; 0]);

        // Tunnel 4 closes by itself, and tunnel 2 by an order, be it later.
        peers[3].client.write_all(b"\x88\x80mask").unwrap();
        while bench.tunnels.entries.iter().all(|(_, entry)| !entry.tunnel.is_ending()) {
            bench.turn();
        }
        let later = order(OrderCause::Rebalance, "", Duration::from_secs(3_600));
        let two = TunnelFilter { group: Some(group.clone()), ..TunnelFilter::with_ids(vec![9, 2]) };
        assert_eq!(bench.tunnels.close(&two, &later), Ordered { meant: 1, begun: 1 });
        assert_eq!(oldest(&bench, 0, 2), [6, 8]);

        let soon = order(OrderCause::BackendRemoved, "", Duration::ZERO);
        assert_eq!(bench.tunnels.close(&to(0), &soon), Ordered { meant: 5, begun: 3 });
        assert_eq!((bench.tunnels.count_meant(&to(0)), bench.tunnels.count_meant(&two)), (5, 1));
        assert_eq!(oldest(&bench, 0, 99), [0; 0]);
        assert_eq!(oldest(&bench, 1, 99), [3, 5, 7, 11]);
        let others = TunnelFilter { group: Some(other), ..TunnelFilter::default() };
        assert_eq!(bench.tunnels.oldest(&others, 99), [9]);
    }
}
