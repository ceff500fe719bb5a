//! All tunnels of one event loop.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use slab::Slab;

use super::clock::{Clock, TICK, Tick, ticks};
use super::half::{Tools, Turn};
use super::pair::{Pair, Progress};
use super::{Reason, Side, Tunnel, TunnelEnd};
use crate::net::reactor::Reactor;

/// What the ticks' events are known by.
const TICKS: u64 = u64::MAX;

/// What is done with the end of a tunnel. It runs on the event loop's thread.
pub(crate) type OnEnd = Box<dyn FnOnce(TunnelEnd)>;

/// The tunnels, and what they share: a tunnel owns memory only while it holds bytes.
pub(crate) struct Carrier {
    tunnels: Slab<Box<Carried>>,
    /// Tunnels that have something to do, in the order in which they get their turns.
    ready: VecDeque<usize>,
    /// Tunnels for which time plays a part, by the tick at which they are looked at.
    due: BTreeSet<(Tick, usize)>,
    /// Groups whose tunnels are being closed.
    draining: HashSet<u64>,
    clock: Clock,
    /// Rings once a tick, while a tunnel is due some time. It is there from the start, so that no shortage of descriptors
    /// can take the time away later.
    ticker: OwnedFd,
    is_ticking: bool,
    has_ticked: bool,
    tools: Tools,
}

/// A tunnel, and what goes with it.
struct Carried {
    pair: Pair,
    group: u64,
    on_end: OnEnd,
    /// It stands in `ready`.
    is_ready: bool,
    /// It stands in `due` with this tick.
    due: Option<Tick>,
}

impl Carrier {
    /// No tunnels yet, on this event loop.
    ///
    /// # Errors
    ///
    /// Those of the system, as when there are no descriptors left.
    pub(crate) fn new(reactor: &Reactor) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let ticker = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        reactor.register_labelled(&ticker, TICKS)?;
        Ok(Self {
            tunnels: Slab::new(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            draining: HashSet::new(),
            clock: Clock::default(),
            ticker,
            is_ticking: false,
            has_ticked: false,
            tools: Tools::default(),
        })
    }

    /// Takes a tunnel over. `group` is for [`cut`](Carrier::cut) and [`drain`](Carrier::drain).
    pub(crate) fn carry(&mut self, reactor: &Reactor, tunnel: Tunnel, group: u64, on_end: OnEnd) {
        let entry = self.tunnels.vacant_entry();
        let key = entry.key();
        let mut pair = Pair::new(tunnel, reactor, |side| to_label(key, side), &self.clock);
        if self.draining.contains(&group) {
            let now = self.clock.now();
            pair.drain_at(now, now);
        }
        entry.insert(Box::new(Carried { pair, group, on_end, is_ready: false, due: None }));
        // There will be no event for what is held, nor for what is believed of the sockets already.
        self.enqueue(key);
    }

    /// Takes the event of one socket into account.
    pub(crate) fn note(&mut self, label: u64, flags: EventFlags) {
        if label == TICKS {
            self.has_ticked = true;
            return;
        }
        let (key, side) = from_label(label);
        if let Some(carried) = self.tunnels.get_mut(key) {
            carried.pair.note(side, flags);
            self.enqueue(key);
        }
    }

    /// Whether some tunnel has something to do.
    pub(crate) fn is_busy(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives each tunnel that has something to do one turn.
    pub(crate) fn advance(&mut self, reactor: &Reactor) {
        if std::mem::take(&mut self.has_ticked) {
            self.tick(reactor);
        }
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { return };
            let Some(carried) = self.tunnels.get_mut(key) else { continue };
            carried.is_ready = false;
            let progress = carried.pair.advance(&self.clock, &mut self.tools);
            let has_time = carried.pair.has_time();
            match progress {
                Progress::On(turn) => {
                    if turn == Turn::More {
                        self.enqueue(key);
                    }
                    if has_time {
                        self.schedule(key);
                    }
                }
                Progress::Over(reason) => self.end(reactor, key, reason),
            }
        }
    }

    /// Has all tunnels of a group closed, each at a time of its own within `spread`, so that their clients do not all
    /// come back at once.
    pub(crate) fn drain(&mut self, group: u64, spread: Duration) {
        self.draining.insert(group);
        let now = self.clock.now();
        for key in self.keys_of(group) {
            if let Some(carried) = self.tunnels.get_mut(key) {
                let wait = if spread.is_zero() { 0 } else { fastrand::u32(0..=ticks(spread)) };
                carried.pair.drain_at(now.saturating_add(wait), now);
                self.schedule(key);
            }
        }
    }

    /// Ends all tunnels of a group at once.
    pub(crate) fn cut(&mut self, reactor: &Reactor, group: u64) {
        for key in self.keys_of(group) {
            let reason =
                self.tunnels.get(key).map_or(Reason::Admin, |carried| carried.pair.reason_of_cut());
            self.end(reactor, key, reason);
        }
    }

    fn keys_of(&self, group: u64) -> Vec<usize> {
        let of_group = self.tunnels.iter().filter(|(_, carried)| carried.group == group);
        of_group.map(|(key, _)| key).collect()
    }

    fn enqueue(&mut self, key: usize) {
        if let Some(carried) = self.tunnels.get_mut(key)
            && !std::mem::replace(&mut carried.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Sees to it that a tunnel is looked at in time. One that is due later than it stands here is looked at too early,
    /// which costs less than to move it at every message.
    fn schedule(&mut self, key: usize) {
        let Some(carried) = self.tunnels.get_mut(key) else { return };
        let Some(next) = carried.pair.next_tick() else { return };
        if carried.due.is_some_and(|due| due <= next) {
            return;
        }
        if let Some(due) = carried.due.replace(next) {
            self.due.remove(&(due, key));
        }
        self.due.insert((next, key));
        if !self.is_ticking {
            self.is_ticking = true;
            self.clock.keep();
            self.set_ticker(TICK);
        }
    }

    /// Looks at the tunnels that are due.
    fn tick(&mut self, reactor: &Reactor) {
        // How often it rang is not asked for: the clock knows.
        let _ = rustix::io::read(&self.ticker, &mut [0; 8]);
        let now = self.clock.keep();
        while let Some(&(due, key)) = self.due.first() {
            if due > now {
                break;
            }
            self.due.pop_first();
            let Some(carried) = self.tunnels.get_mut(key) else { continue };
            carried.due = None;
            match carried.pair.on_tick(now) {
                Some(reason) => self.end(reactor, key, reason),
                None => {
                    // What it has put in is written in its turn, after which it is scheduled again.
                    self.enqueue(key);
                }
            }
        }
        // Ready tunnels are scheduled in their turns, so that nothing is due only if nobody is ready either.
        if self.due.is_empty() && self.ready.is_empty() {
            self.is_ticking = false;
            self.clock.stop();
            self.set_ticker(Duration::ZERO);
        }
    }

    /// Has the ticker ring at this interval; zero stops it.
    fn set_ticker(&self, interval: Duration) {
        let interval = Timespec { tv_sec: 0, tv_nsec: i64::from(interval.subsec_nanos()) };
        let timer = Itimerspec { it_interval: interval, it_value: interval };
        if let Err(error) = timerfd_settime(&self.ticker, TimerfdTimerFlags::empty(), &timer) {
            log::error!("event=no_ticks error={:?}", io::Error::from(error).to_string());
        }
    }

    fn end(&mut self, reactor: &Reactor, key: usize, reason: Reason) {
        let Carried { pair, on_end, due, .. } = *self.tunnels.remove(key);
        if let Some(due) = due {
            self.due.remove(&(due, key));
        }
        on_end(pair.close(reactor, reason, &mut self.tools));
    }
}

/// The number by which the event loop knows one side of a tunnel.
fn to_label(key: usize, side: Side) -> u64 {
    (key as u64) << 1 | u64::from(side == Side::Backend)
}

fn from_label(label: u64) -> (usize, Side) {
    let side = if label & 1 == 1 { Side::Backend } else { Side::Client };
    // It was made of a usize.
    ((label >> 1) as usize, side)
}
