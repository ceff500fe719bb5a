//! Totals of a tunnel, of which metrics get what is new.

use super::counters::FrameCounters;
use super::side::{PerSide, Side};
use crate::stats::{SideTraffic, Traffic};

/// What each side has sent so far.
pub(super) type Totals = PerSide<SideTotals>;

/// What one side has sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SideTotals {
    pub(crate) counters: FrameCounters,
    /// Bytes that the other side has taken of it.
    pub(crate) relayed: u64,
    /// Pings of the proxy that the side was sent.
    pub(crate) pinged: u32,
}

/// Adds what is new since `before` to the counts of a worker; returns whether there is anything.
pub(super) fn publish(before: &Totals, after: &Totals, traffic: &Traffic) -> bool {
    let mut is_new = false;
    for side in Side::BOTH {
        // In a turn, mostly one side alone has sent something.
        if before[side] != after[side] {
            let counts = match side {
                Side::Client => &traffic.client,
                Side::Backend => &traffic.backend,
            };
            after[side].publish(&before[side], counts);
            is_new = true;
        }
    }
    is_new
}

impl SideTotals {
    fn publish(&self, before: &Self, counts: &SideTraffic) {
        let (now, then) = (&self.counters, &before.counters);
        // The counters of a tunnel wrap, and so do these. A Pong to the proxy takes its count back.
        let new = |now: u32, then: u32| now.wrapping_sub(then).cast_signed() as usize;
        counts.text.add(new(now.text, then.text));
        counts.binary.add(new(now.binary, then.binary));
        counts.pings.add(new(now.pings, then.pings));
        counts.pongs.add(new(now.pongs, then.pongs));
        counts.payload.add(now.payload.wrapping_sub(then.payload) as usize);
        counts.bytes.add(self.relayed.wrapping_sub(before.relayed) as usize);
        counts.pinged.add(new(self.pinged, before.pinged));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_added_also_over_a_wrap() {
        let traffic = Traffic::default();
        let at = |text, payload, relayed| {
            let counters =
                FrameCounters { text, payload, frames: text, ..FrameCounters::default() };
            PerSide::with(
                Side::Client,
                SideTotals { counters, relayed, pinged: 0 },
                SideTotals::default(),
            )
        };
        assert!(publish(&at(u32::MAX, 5, 9), &at(2, 12, 30), &traffic));
        assert!(!publish(&at(2, 12, 30), &at(2, 12, 30), &traffic));
        let client = &traffic.client;
        assert_eq!(
            [client.text.get(), client.payload.get(), client.bytes.get(), client.pings.get()],
            [3, 7, 21, 0]
        );
        assert_eq!(traffic.backend.bytes.get(), 0);
        // A Pong that was taken out takes its count back.
        assert!(publish(&at(2, 12, 30), &at(1, 12, 30), &traffic));
        assert_eq!(client.text.get(), 2);
    }
}
