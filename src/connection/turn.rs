//! The backends that a handshake comes to, one after the other, and the wait for one while all of
//! them have as many tunnels as they may.

use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::future;

use crate::backend::pool::{Pick, Picks};
use crate::backend::queue::Entered;
use crate::net::reactor::Reactor;
use crate::net::timer::Timer;
use crate::section::Section;

/// Rounds of one handshake: by default a backend that fails in three is ejected before the last.
const MAX_ROUNDS: u32 = 4;

/// The picks for one handshake. A round tries each backend that has a place, once.
pub(super) struct Turns<'a> {
    reactor: &'a Rc<Reactor>,
    section: &'a Section,
    /// What [`Balance::Hash`](crate::Balance::Hash) chooses by.
    key: Option<u64>,
    picks: Picks<'a>,
    began: Instant,
    rounds: u32,
    is_full: bool,
}

impl<'a> Turns<'a> {
    pub(super) fn new(reactor: &'a Rc<Reactor>, section: &'a Section, key: Option<u64>) -> Self {
        let began = reactor.now();
        let picks = section.pool.pick(began, key);
        Self { reactor, section, key, picks, began, rounds: 0, is_full: false }
    }

    /// Returns the next pick: at once, or when it is its turn; `None` where no backend is left, or
    /// where it takes longer than the section has it wait, or too many wait already.
    ///
    /// With `may_wait`, a new round begins where all that are left are full, if there is time left
    /// to wait: until a backend that has died is ejected, it has free places, and whoever met it
    /// would be refused in vain.
    ///
    /// Dropped before its end, it leaves the queue.
    pub(super) async fn next(&mut self, may_wait: bool) -> Option<Pick> {
        if self.rounds > 0 {
            if let Some(pick) = self.picks.next() {
                return Some(pick);
            }
            let waits = may_wait && !self.section.settings.queue_timeout.is_zero();
            if !waits || self.rounds == MAX_ROUNDS || !self.picks.leave_one_in_use() {
                return None;
            }
        }
        let now = self.reactor.now();
        let passed = now.saturating_duration_since(self.began);
        let timeout = self.section.settings.queue_timeout.saturating_sub(passed);
        if self.rounds > 0 {
            if timeout.is_zero() {
                self.is_full = true;
                return None;
            }
            self.picks = self.section.pool.pick(now, self.key);
        }
        self.rounds += 1;
        let pick = first_pick(self.reactor, &mut self.picks, self.section, timeout).await;
        self.is_full = pick.is_none();
        pick
    }

    /// Returns whether the last pick was none since all backends are full.
    pub(super) fn ended_full(&self) -> bool {
        self.is_full
    }
}

/// Returns the first pick of a round; `None` if it takes longer than `timeout`, or too many wait
/// already.
async fn first_pick(
    reactor: &Rc<Reactor>,
    picks: &mut Picks<'_>,
    section: &Section,
    timeout: Duration,
) -> Option<Pick> {
    let pool = &section.pool;
    let max_waiting = if timeout.is_zero() { 0 } else { section.settings.queue_size };
    let mut ticket = match pool.enter(picks, max_waiting) {
        Entered::Place(pick) => return Some(pick),
        Entered::Full => return None,
        Entered::Waits(ticket) => ticket,
    };
    let mut deadline = Timer::after(reactor, timeout);
    let pick = loop {
        // No event tells that the time of an ejection is over.
        let now = reactor.now();
        let next = pool.serve_queue(now).map(|at| at.saturating_duration_since(now));
        let changed = Timer::after(reactor, next.unwrap_or(Duration::MAX));
        let served = async { Woken::Served((&mut ticket).await) };
        let late = async {
            (&mut deadline).await;
            Woken::Late
        };
        let changed = async {
            changed.await;
            Woken::Changed
        };
        match future::or(served, future::or(late, changed)).await {
            Woken::Served(pick) => break pick,
            // It may have been served at this very moment.
            Woken::Late => break ticket.take()?,
            Woken::Changed => {}
        }
    };
    picks.go_on_after(&pick);
    Some(pick)
}

/// What has ended a wait.
enum Woken {
    Served(Pick),
    Late,
    /// Time has changed what use may be made of a backend.
    Changed,
}
