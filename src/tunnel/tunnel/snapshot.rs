//! A tunnel at one moment, as its state machines and those who count and list tunnels see it.

use super::Tunnel;
use crate::tunnel::closing::SideState;
use crate::tunnel::direction::Direction;
use crate::tunnel::keepalive::{PathState, TickState};
use crate::tunnel::side::{PerSide, Side};
use crate::tunnel::totals::{SideTotals, Totals};
#[cfg(feature = "admin")]
use crate::tunnel::view::TunnelState;

impl Tunnel {
    /// Returns what each side has sent so far.
    pub(in crate::tunnel) fn totals(&self) -> Totals {
        PerSide::from_fn(|side| {
            let from = &self.from[side];
            SideTotals {
                counters: *from.filter().counters(),
                relayed: from.relayed(),
                pinged: self.keepalive.as_ref().map_or(0, |times| times.pings_sent(side)),
            }
        })
    }

    /// Returns whether bytes wait for a side that takes none.
    pub(in crate::tunnel) fn is_blocked(&self) -> bool {
        !self.from.all(Direction::is_flushed)
    }

    /// Returns whether the tunnel's end has begun, or is to begin at some tick: nobody needs to
    /// order it any more.
    pub(in crate::tunnel) fn is_ending(&self) -> bool {
        let is_end_wanted = self.keepalive.as_ref().is_some_and(|times| times.is_end_wanted());
        is_end_wanted || !self.closing.is_open()
    }

    /// Returns the tunnel's state.
    #[cfg(feature = "admin")]
    pub(in crate::tunnel) fn state(&self) -> TunnelState {
        if !self.closing.is_open() {
            TunnelState::Closing
        } else if self.is_blocked() {
            TunnelState::Blocked
        } else if self.from.client.is_paused() {
            TunnelState::Paused
        } else {
            TunnelState::Open
        }
    }

    pub(super) fn states(&self) -> PerSide<SideState> {
        PerSide::from_fn(|side| {
            let (from, to) = (&self.from[side], &self.from[side.other()]);
            SideState {
                sent_close: from.filter().counters().has_close(),
                is_between_frames: from.filter().is_between_frames(),
                has_ended: from.is_done(),
                taken: to.written(),
                // A Close for the backend that still waits for a boundary waits for the client,
                // which may be dead.
                is_flushed: to.is_flushed()
                    && (side == Side::Backend || !to.filter().has_insertion()),
                is_closed: to.filter().is_closed(),
            }
        })
    }

    pub(super) fn tick_state(&self) -> TickState {
        TickState {
            paths: PerSide::from_fn(|side| {
                let to = &self.from[side.other()];
                PathState {
                    is_read: self.from[side].is_reading(),
                    written: to.written(),
                    waits_for_boundary: to.filter().has_insertion(),
                    waits_for_room: !to.is_flushed(),
                }
            }),
            can_ping: self.can_ping(),
        }
    }

    /// Returns whether both sides could be sent a Ping and answer it.
    pub(super) fn can_ping(&self) -> bool {
        let is_open = |direction: &Direction| {
            let filter = direction.filter();
            !direction.is_done() && !filter.is_opaque() && !filter.is_closed()
        };
        self.closing.is_open() && self.from.all(is_open)
    }
}
