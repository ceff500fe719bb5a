//! All tunnels of one event loop.

use std::collections::VecDeque;

use rustix::event::epoll::EventFlags;
use slab::Slab;

use super::half::{Tools, Turn};
use super::pair::{Pair, Progress};
use super::{Cause, Side, Tunnel, TunnelEnd};
use crate::net::reactor::Reactor;

/// What is done with the end of a tunnel. It runs on the event loop's thread.
pub(crate) type OnEnd = Box<dyn FnOnce(TunnelEnd)>;

/// The tunnels, and what they share: a tunnel owns memory only while it holds bytes.
#[derive(Default)]
pub(crate) struct Carrier {
    tunnels: Slab<Box<Carried>>,
    /// Tunnels that have something to do, in the order in which they get their turns.
    ready: VecDeque<usize>,
    tools: Tools,
}

/// A tunnel, and what goes with it.
struct Carried {
    pair: Pair,
    group: u64,
    on_end: OnEnd,
    /// It stands in `ready`.
    is_ready: bool,
}

impl Carrier {
    /// Takes a tunnel over. `group` is for [`cut`](Carrier::cut).
    pub(crate) fn carry(&mut self, reactor: &Reactor, tunnel: Tunnel, group: u64, on_end: OnEnd) {
        let entry = self.tunnels.vacant_entry();
        let key = entry.key();
        let pair = Pair::new(tunnel, reactor, |side| to_label(key, side));
        entry.insert(Box::new(Carried { pair, group, on_end, is_ready: false }));
        // There will be no event for what is held, nor for what is believed of the sockets already.
        self.enqueue(key);
    }

    /// Takes the event of one socket into account.
    pub(crate) fn note(&mut self, label: u64, flags: EventFlags) {
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
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { return };
            let Some(carried) = self.tunnels.get_mut(key) else { continue };
            carried.is_ready = false;
            match carried.pair.advance(&mut self.tools) {
                Progress::On(Turn::Waiting) => {}
                Progress::On(Turn::More) => self.enqueue(key),
                Progress::Over(cause) => self.end(reactor, key, cause),
            }
        }
    }

    /// Ends all tunnels of a group at once.
    pub(crate) fn cut(&mut self, reactor: &Reactor, group: u64) {
        let of_group = self.tunnels.iter().filter(|(_, carried)| carried.group == group);
        let keys: Vec<usize> = of_group.map(|(key, _)| key).collect();
        for key in keys {
            self.end(reactor, key, Cause::Cut);
        }
    }

    fn enqueue(&mut self, key: usize) {
        if let Some(carried) = self.tunnels.get_mut(key)
            && !std::mem::replace(&mut carried.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }

    fn end(&mut self, reactor: &Reactor, key: usize, cause: Cause) {
        let Carried { pair, on_end, .. } = *self.tunnels.remove(key);
        on_end(pair.close(reactor, cause, &mut self.tools));
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
