//! Rate of a client's messages and frames, as token buckets.

use super::frames::{Header, Opcode};
use super::policy::Policy;
use super::ticks::{TICKS_PER_SECOND, Tick};

/// Price of one message or frame, such that a tick adds as many units as a second allows of them.
const PRICE: i64 = TICKS_PER_SECOND as i64;

/// What a client may still send: at most one second's worth at once, then as much in each second.
#[derive(Debug)]
pub(super) struct Rate {
    messages: Option<Bucket>,
    frames: Option<Bucket>,
    /// Tick of the last refill.
    refilled: Option<Tick>,
    has_ended: bool,
}

#[derive(Debug)]
struct Bucket {
    /// Messages or frames within a second.
    limit: i64,
    /// Below zero by less than a price, where a frame passed in advance.
    level: i64,
}

impl Rate {
    /// Creates full buckets; `None` where the policy has no rate.
    pub(super) fn new(policy: &Policy) -> Option<Self> {
        policy.limits_rate().then(|| Self {
            messages: policy.max_messages_per_second.map(Bucket::new),
            frames: policy.max_frames_per_second.map(Bucket::new),
            refilled: None,
            has_ended: false,
        })
    }

    /// Adds what the ticks since the last call allow.
    pub(super) fn refill(&mut self, now: Tick) {
        let ticks = self.refilled.replace(now).map_or(0, |last| now.saturating_sub(last));
        for bucket in [&mut self.messages, &mut self.frames].into_iter().flatten() {
            bucket.refill(ticks);
        }
    }

    /// Returns the tick of the last refill.
    pub(super) fn refilled(&self) -> Option<Tick> {
        self.refilled
    }

    /// Fills the buckets for the last time, since nobody who is gone is waited for. Returns false
    /// if that was done before.
    pub(super) fn end(&mut self) -> bool {
        if self.has_ended {
            return false;
        }
        self.has_ended = true;
        for bucket in [&mut self.messages, &mut self.frames].into_iter().flatten() {
            bucket.refill(Tick::MAX);
        }
        true
    }

    /// Returns whether [`end`](Rate::end) was called, after which no frame waits.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes the price of a frame with this header, and that of a message with its first frame.
    /// Returns false, and takes nothing, if the client has to wait for it. One frame may pass in
    /// advance that the proxy may have asked for.
    pub(super) fn take(&mut self, header: &Header, may_be_asked_for: bool) -> bool {
        let begins_message = match header.opcode() {
            Opcode::Text | Opcode::Binary => true,
            // It ends what the limit is for.
            Opcode::Close => return true,
            Opcode::Continuation | Opcode::Ping | Opcode::Pong | Opcode::Other => false,
        };
        let messages = self.messages.as_mut().filter(|_| begins_message);
        let mut buckets = [messages, self.frames.as_mut()];
        let least = if may_be_asked_for { 0 } else { PRICE };
        let affords = buckets.iter().flatten().all(|bucket| bucket.level >= least);
        if affords {
            buckets.iter_mut().flatten().for_each(|bucket| bucket.level -= PRICE);
        }
        affords
    }

    /// Gives back the price of a frame that the proxy had asked for.
    pub(super) fn refund_frame(&mut self) {
        if let Some(frames) = &mut self.frames {
            frames.add(PRICE);
        }
    }
}

impl Bucket {
    fn new(limit: u32) -> Self {
        let mut bucket = Self { limit: limit.into(), level: 0 };
        bucket.refill(Tick::MAX);
        bucket
    }

    fn refill(&mut self, ticks: Tick) {
        self.add(self.limit.saturating_mul(ticks.into()));
    }

    /// Adds up to one second's worth, and less than one message more: ticks are coarse, and a
    /// client that keeps to the limit may be up to one of them early.
    fn add(&mut self, amount: i64) {
        let room = self.limit * PRICE + (PRICE - 1);
        self.level = self.level.saturating_add(amount).min(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::frames::{FrameEvent, Frames};

    fn header(first: u8) -> Header {
        match Frames::default().next(&[first, 0]) {
            (_, Some(FrameEvent::Header(header))) => header,
            other => panic!("{other:?}"),
        }
    }

    fn rate(messages: u32, frames: Option<u32>) -> Rate {
        let policy = Policy {
            max_messages_per_second: (messages > 0).then_some(messages),
            max_frames_per_second: frames,
            ..Policy::default()
        };
        Rate::new(&policy).unwrap()
    }

    /// Returns how many frames pass at once.
    fn burst(rate: &mut Rate, first: u8) -> u32 {
        (0..10_000).take_while(|_| rate.take(&header(first), false)).count() as u32
    }

    #[test]
    fn a_burst_is_one_second_s_worth_and_a_second_allows_as_much_again() {
        for limit in [1, 3, 10, 1_000] {
            let mut rate = rate(limit, None);
            rate.refill(100);
            assert_eq!(burst(&mut rate, 0x81), limit);
            let in_a_second: u32 = (101..=104)
                .map(|tick| {
                    rate.refill(tick);
                    burst(&mut rate, 0x82)
                })
                .sum();
            assert!((limit..=limit + 1).contains(&in_a_second), "{in_a_second} of {limit}");
            // Nothing is saved up beyond a burst, however long the client is silent.
            rate.refill(1_000_000);
            assert_eq!(burst(&mut rate, 0x81), limit);
        }
    }

    #[test]
    fn over_any_time_the_limit_holds() {
        let mut rate = rate(7, None);
        let mut passed = 0;
        for tick in 0..4_000 {
            rate.refill(tick);
            passed += burst(&mut rate, 0x81);
            assert!(passed <= 7 + 7 * (tick + 1) / 4 + 1, "{passed} by tick {tick}");
        }
        assert!(passed >= 7 * 1_000 - 7);
    }

    #[test]
    fn a_client_at_its_limit_may_be_a_tick_early() {
        let mut rate = rate(1, None);
        let mut tick = 1;
        for round in 0..100 {
            rate.refill(tick);
            assert!(rate.take(&header(0x81), false), "round {round}");
            tick += if round % 2 == 0 { 3 } else { 5 };
        }
    }

    #[test]
    fn control_frames_and_fragments_count_as_frames_only_and_a_close_never() {
        for first in [0x80, 0x89, 0x8a, 0x83] {
            let mut both = rate(2, Some(5));
            assert_eq!(burst(&mut both, first), 5, "{first:#x}");
            assert!(both.take(&header(0x88), false));
            assert!(!both.take(&header(0x81), false), "a message is a frame too");
            both.refund_frame();
            assert!(both.take(&header(0x81), false));
            let mut messages = rate(2, None);
            assert_eq!(burst(&mut messages, first), 10_000, "{first:#x}");
            assert_eq!(burst(&mut messages, 0x81), 2);
        }
    }

    #[test]
    fn one_frame_that_may_be_asked_for_passes_in_advance() {
        let mut rate = rate(0, Some(2));
        rate.refill(0);
        assert_eq!(burst(&mut rate, 0x8a), 2);
        assert!(rate.take(&header(0x8a), true));
        assert!(!rate.take(&header(0x8a), true), "a second one");
        // If it was asked for, it costs nothing; if not, it is paid for later.
        rate.refund_frame();
        assert!(!rate.take(&header(0x89), false));
        assert!(rate.take(&header(0x8a), true));
        rate.refill(2);
        assert!(!rate.take(&header(0x89), false));
        rate.refill(4);
        assert!(rate.take(&header(0x89), false));
    }

    #[test]
    fn an_ended_rate_is_filled_once_and_no_frame_waits_after_it() {
        let mut rate = rate(3, None);
        assert_eq!(burst(&mut rate, 0x81), 3);
        assert!(!rate.has_ended() && rate.end() && rate.has_ended());
        assert_eq!(burst(&mut rate, 0x81), 3);
        assert!(!rate.end(), "it would be filled for ever");
        assert_eq!(burst(&mut rate, 0x81), 0);
    }

    #[test]
    fn the_largest_limits_do_not_overflow() {
        let mut rate = rate(u32::MAX, Some(u32::MAX));
        rate.refill(0);
        rate.refill(Tick::MAX);
        assert!(rate.take(&header(0x81), false));
    }
}
