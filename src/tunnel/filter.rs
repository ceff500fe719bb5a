//! Frame filter of one direction: follows the frames, counts and judges them, inserts the proxy's
//! own between them.

use super::control::PingPayload;
use super::counters::FrameCounters;
use super::filtered::{Filtered, Stop};
use super::frames::{FrameEvent, Frames, Header, Opcode};
use super::limits::{FrameLimits, Ruling};
use super::policy::Policy;
use super::pongs::{self, AwaitedPongs, Withheld};
use super::rate::Rate;
use super::ticks::Tick;

/// Filter of one direction. It knows bytes only.
///
/// On the fast path, where nothing is asked of it, it steps through the headers and every chunk
/// passes as it is. An insertion, an awaited Pong or a limit puts it on the slow path, where a
/// chunk is split at its frames, until that is done.
#[derive(Debug, Default)]
pub(crate) struct FrameFilter {
    frames: Frames,
    counters: FrameCounters,
    /// Nothing of the source passes any more.
    closed: bool,
    /// The last byte that passed is not the last of its frame, so nothing can be inserted any more.
    closed_mid_frame: bool,
    /// A Close of the source has passed, after which nothing is inserted (RFC 6455, 5.5.1).
    close_passed: bool,
    /// Bytes of a data frame have come since [`take_fresh_data`](FrameFilter::take_fresh_data).
    has_fresh_data: bool,
    /// Slow-path state; `None` while frames pass unmodified. On the heap, since few tunnels need
    /// it.
    slow_path: Option<Box<SlowPath>>,
}

/// Frames to insert, to take out, or to judge.
#[derive(Debug, Default)]
struct SlowPath {
    /// Limits, where the policy has any.
    limits: Option<FrameLimits>,
    /// Control frames to insert at the next boundary.
    insertion: Vec<u8>,
    /// The insertion is the last thing that passes.
    close_after: bool,
    pongs: AwaitedPongs,
    /// Bytes of a client above its rate, from the frame on that has to wait.
    held: Vec<u8>,
}

impl FrameFilter {
    /// Creates the filter of a direction. `from_client` and `extended` (an extension has been
    /// negotiated) matter where frames are judged.
    pub(crate) fn new(policy: &Policy, from_client: bool, extended: bool) -> Self {
        let slow_path = policy.judges_frames().then(|| {
            let limits = Some(FrameLimits::new(policy, from_client, extended));
            Box::new(SlowPath { limits, ..SlowPath::default() })
        });
        Self { slow_path, ..Self::default() }
    }

    /// Returns the counts of what the source has sent.
    pub(crate) fn counters(&self) -> &FrameCounters {
        &self.counters
    }

    /// Returns whether all that comes passes as it is, for now.
    pub(crate) fn passes_all(&self) -> bool {
        self.slow_path.is_none() && !self.closed
    }

    /// Returns whether the frames cannot be followed any more.
    pub(crate) fn is_opaque(&self) -> bool {
        self.frames.is_opaque()
    }

    /// Returns whether bytes of a data frame have come since the last call. In an opaque direction
    /// all bytes may be.
    pub(crate) fn take_fresh_data(&mut self) -> bool {
        std::mem::take(&mut self.has_fresh_data) && !self.closed
    }

    /// Returns how many of the next bytes may pass unseen; [`skip`](FrameFilter::skip) must follow.
    pub(crate) fn unseen(&self) -> u64 {
        if self.closed { 0 } else { self.frames.unseen() }
    }

    /// Records that bytes have passed unseen.
    pub(crate) fn skip(&mut self, count: u64) {
        self.has_fresh_data |= self.frames.is_in_data();
        self.frames.skip(count);
    }

    /// Returns whether what the source has sent so far ends with a frame, as far as can be known.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.frames.is_at_boundary() || self.frames.is_opaque()
    }

    /// Returns whether nothing of the source passes any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Returns whether what the sink has got so far ends with a frame.
    pub(crate) fn is_at_boundary(&self) -> bool {
        let withholds = || self.slow_path.as_ref().is_some_and(|slow| slow.pongs.withholds());
        !self.closed_mid_frame && (self.closed || self.frames.is_at_boundary() || withholds())
    }

    /// Lets nothing pass any more, and drops what is awaited or withheld.
    pub(crate) fn close(&mut self) {
        self.closed_mid_frame = !self.is_at_boundary();
        self.closed = true;
        // What is held is followed as what comes after it: its Close may be among it.
        let held = self.take_held();
        self.slow_path = None;
        self.follow(&held);
    }

    /// Returns whether a last insertion, if there was one, has found its boundary before a Close.
    pub(crate) fn ends_with_insertion(&self) -> bool {
        self.closed && !self.closed_mid_frame && !self.close_passed
    }

    /// Returns whether an insertion waits for a boundary.
    pub(crate) fn has_insertion(&self) -> bool {
        self.slow_path.as_ref().is_some_and(|slow| !slow.insertion.is_empty())
    }

    /// Inserts a control frame now or at the next boundary; `is_last` closes the direction after
    /// it.
    ///
    /// Returns the frame if it is to go out now, after all that has passed. An opaque direction
    /// takes none, nor one in which a Close has passed or which was closed within a frame.
    pub(crate) fn insert(&mut self, frame: Vec<u8>, is_last: bool) -> Option<Vec<u8>> {
        if self.close_passed || !self.closed && self.frames.is_opaque() {
            return None;
        }
        if self.is_at_boundary() {
            self.closed |= is_last;
            return Some(frame);
        }
        if self.closed {
            return None;
        }
        let slow = self.slow_path.get_or_insert_default();
        // A Close makes a waiting Ping pointless.
        if is_last {
            slow.insertion.clear();
        }
        slow.insertion.extend_from_slice(&frame);
        slow.close_after |= is_last;
        None
    }

    /// Has the next Pong with this payload taken out: one more for each call, all with the same
    /// payload.
    pub(crate) fn await_pong(&mut self, payload: PingPayload) {
        self.slow_path.get_or_insert_default().pongs.add(payload);
    }

    /// Adds what the client's rate allows by this tick.
    pub(crate) fn refill_rate(&mut self, now: Tick) {
        if let Some(rate) = self.limits().and_then(FrameLimits::rate) {
            rate.refill(now);
        }
    }

    /// Returns the tick of the last refill.
    pub(crate) fn rate_refilled(&self) -> Option<Tick> {
        self.slow_path.as_ref()?.limits.as_ref()?.rate_refilled()
    }

    /// Has one second's worth more pass at once, and nothing after it wait: the client is gone.
    /// Returns false if that was so already, or the rate is not limited.
    pub(crate) fn end_rate(&mut self) -> bool {
        self.limits().and_then(FrameLimits::rate).is_some_and(Rate::end)
    }

    /// Limits the client's rate no longer; returns false if it was not limited, or the client left.
    pub(crate) fn lift_rate(&mut self) -> bool {
        self.limits().is_some_and(FrameLimits::lift_rate)
    }

    /// Takes the bytes that are held, to be filtered again before any other.
    pub(crate) fn take_held(&mut self) -> Vec<u8> {
        self.slow_path.as_mut().map(|slow| std::mem::take(&mut slow.held)).unwrap_or_default()
    }

    /// Filters a chunk. `out` holds what passes where that is not the chunk as it is.
    pub(crate) fn filter<'a>(
        &mut self,
        chunk: &'a [u8],
        policy: &Policy,
        out: &'a mut Vec<u8>,
    ) -> Filtered<'a> {
        if self.passes_all() {
            self.follow(chunk);
            return Filtered { bytes: chunk, stop: None };
        }
        out.clear();
        let stop = self.split(chunk, policy, out);
        if self.slow_path.as_ref().is_some_and(|slow| slow.is_done()) {
            self.slow_path = None;
        }
        Filtered { bytes: out, stop }
    }

    /// Returns what was withheld of a frame when the source ends within it: it passes after all.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        let withheld = self.slow_path.as_mut()?.pongs.release()?;
        (!self.closed).then_some(withheld)
    }

    /// Fast path: counts frames that all pass.
    fn follow(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        loop {
            // Nearly all frames are there as a whole, and many are like the one before.
            while let Some(run) = self.frames.run(rest) {
                self.count(&run.header, run.count);
                rest = &rest[run.size..];
                if rest.is_empty() {
                    return;
                }
            }
            let (taken, event) = self.next(rest);
            rest = &rest[taken..];
            match event {
                Some(FrameEvent::Header(header)) => self.count(&header, 1),
                // Most chunks end with a frame.
                Some(FrameEvent::End) if rest.is_empty() => return,
                Some(FrameEvent::End | FrameEvent::Opaque) => {}
                None => return,
            }
        }
    }

    /// Consumes bytes up to the next event, and records what they say of a close code.
    fn next(&mut self, bytes: &[u8]) -> (usize, Option<FrameEvent>) {
        let close_mask = self.frames.close_mask();
        self.has_fresh_data |= self.frames.is_in_data() && !bytes.is_empty();
        let (taken, event) = self.frames.next(bytes);
        if let Some(mask) = close_mask {
            self.counters.record_close_payload(&bytes[..taken], mask);
        }
        (taken, event)
    }

    /// Slow path: walks the chunk piece by piece, each the rest of a header, of a payload, or of
    /// the chunk.
    ///
    /// At each boundary the insertion goes in first, since a control frame may stand between any
    /// two frames (RFC 6455, 5.4). Then a frame that begins like an awaited Pong is withheld, from
    /// its first byte on, until its header or its payload tells: nothing else is ever held back. A
    /// header is judged when its last byte is there; if its first bytes came in an earlier chunk,
    /// they have passed, and the sink is left in the middle of a frame. Where a frame has to wait
    /// for the rate, the state is that before the rest of its header, with which the held bytes
    /// begin.
    fn split(&mut self, chunk: &[u8], policy: &Policy, out: &mut Vec<u8>) -> Option<Stop> {
        let mut at = 0;
        let mut stop = None;
        loop {
            // Between two frames, the only place where something may go in. That a frame begins in
            // this chunk also means that none of its header has passed yet.
            let begins_here = self.frames.is_at_boundary();
            if begins_here {
                self.run_insertion(out);
                if let Some(slow) = self.slow_path.as_mut().filter(|_| !self.closed) {
                    slow.pongs.begin_frame(&chunk[at..]);
                }
            }
            // One step: up to the end of a header, of a payload, or of the chunk.
            let before = self.frames;
            let (taken, event) = self.next(&chunk[at..]);
            let piece = &chunk[at..at + taken];
            // Judged before its last byte passes, so a refused frame leaves nothing behind, unless
            // an earlier chunk ended within its header.
            match self.judge(event.as_ref(), policy) {
                Ruling::Passes => {
                    if let Some(FrameEvent::Header(header)) = &event {
                        self.count(header, 1);
                    }
                }
                Ruling::Waits => {
                    self.frames = before;
                    if let Some(slow) = &mut self.slow_path {
                        slow.held = chunk[at..].to_vec();
                    }
                    return Some(Stop::Held);
                }
                Ruling::Violates(violation) => {
                    self.closed = true;
                    self.closed_mid_frame = !begins_here;
                    stop = Some(Stop::Violation(violation));
                }
            }
            at += taken;
            self.push(piece, out);
            match event {
                // A withheld frame of another length than the Ping's is nobody's answer to it.
                Some(FrameEvent::Header(header)) if header.length != pongs::LENGTH => {
                    self.release_withheld(out);
                }
                Some(FrameEvent::Opaque) => self.release_withheld(out),
                Some(FrameEvent::End) => self.end_frame(out),
                // Its payload has to tell.
                Some(FrameEvent::Header(_)) => {}
                None => return stop,
            }
        }
    }

    /// Counts a number of frames of this kind and size that pass. What is dropped after a violation
    /// or a Close of the proxy is followed for a Close alone.
    fn count(&mut self, header: &Header, number: u32) {
        if self.closed {
            self.counters.record_close(header);
            return;
        }
        self.counters.count(header, number);
        self.close_passed |= header.opcode() == Opcode::Close;
        // A data frame without payload is data as well.
        self.has_fresh_data |= !header.is_control();
    }

    /// Judges a header, where anything is judged and still passes.
    fn judge(&mut self, event: Option<&FrameEvent>, policy: &Policy) -> Ruling {
        let slow = self.slow_path.as_deref_mut().filter(|_| !self.closed);
        match (event, slow) {
            (
                Some(FrameEvent::Header(header)),
                Some(SlowPath { limits: Some(limits), pongs, .. }),
            ) => limits.judge(header, pongs.withholds(), policy),
            (Some(FrameEvent::Opaque), Some(SlowPath { limits: Some(_), .. })) => {
                Ruling::Violates(FrameLimits::judge_opaque(policy))
            }
            _ => Ruling::Passes,
        }
    }

    fn limits(&mut self) -> Option<&mut FrameLimits> {
        self.slow_path.as_mut()?.limits.as_mut()
    }

    /// Inserts what waits for a boundary, unless a Close has passed meanwhile: nothing follows a
    /// Close (RFC 6455, 5.5.1), and the endpoint's own stands for the proxy's.
    fn run_insertion(&mut self, out: &mut Vec<u8>) {
        let Some(slow) = &mut self.slow_path else { return };
        if slow.insertion.is_empty() {
            return;
        }
        // Taken in any case: what cannot go in here never can.
        let insertion = std::mem::take(&mut slow.insertion);
        let close_after = std::mem::take(&mut slow.close_after);
        if !self.closed && !self.close_passed {
            out.extend_from_slice(&insertion);
            self.closed = close_after;
        }
    }

    /// Lets a piece pass, or withholds it with the frame that it belongs to.
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let withholds = |slow: &mut Box<SlowPath>| slow.pongs.withhold(piece);
        if !self.closed && !self.slow_path.as_mut().is_some_and(withholds) {
            out.extend_from_slice(piece);
        }
    }

    /// Lets pass what was withheld: its header shows that it is not the awaited Pong.
    fn release_withheld(&mut self, out: &mut Vec<u8>) {
        if self.closed {
            return;
        }
        if let Some(withheld) = self.slow_path.as_mut().and_then(|slow| slow.pongs.release()) {
            out.extend_from_slice(&withheld);
        }
    }

    /// Drops a withheld frame that turns out to be an awaited Pong; lets any other pass.
    fn end_frame(&mut self, out: &mut Vec<u8>) {
        let Some(slow) = &mut self.slow_path else { return };
        match slow.pongs.end_frame() {
            Some(Withheld::Awaited) => {
                self.counters.uncount_pong(pongs::LENGTH);
                if let Some(rate) = slow.limits.as_mut().and_then(FrameLimits::rate) {
                    rate.refund_frame();
                }
            }
            Some(Withheld::Other(frame)) if !self.closed => out.extend_from_slice(&frame),
            Some(Withheld::Other(_)) | None => {}
        }
    }
}

impl SlowPath {
    fn is_done(&self) -> bool {
        self.limits.is_none() && self.insertion.is_empty() && self.pongs.is_done()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::control::{self, unmask};
    use crate::tunnel::counters::CloseSeen;
    use crate::tunnel::limits::Violation;
    use crate::tunnel::policy::RateAction;

    const TOO_BIG: Option<Stop> = Some(Stop::Violation(Violation::MessageTooBig));
    const INVALID: Option<Stop> = Some(Stop::Violation(Violation::Protocol));
    const TOO_MANY: Option<Stop> = Some(Stop::Violation(Violation::Rate));
    const HELD: Option<Stop> = Some(Stop::Held);
    const OURS: PingPayload = *b"our ping";
    const KEY: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

    /// Returns a client's frame with this payload.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut payload = payload.to_vec();
        unmask(&mut payload, KEY, 0);
        // Short payloads only.
        [&[first, 0x80 | payload.len() as u8][..], &KEY, &payload].concat()
    }

    fn passed(filter: &mut FrameFilter, policy: &Policy, bytes: &[u8]) -> (Vec<u8>, Option<Stop>) {
        let mut spare = Vec::new();
        let Filtered { bytes, stop } = filter.filter(bytes, policy, &mut spare);
        (bytes.to_vec(), stop)
    }

    /// Returns what passes of bytes that come in pieces cut at these places.
    fn passed_in_pieces(
        filter: &mut FrameFilter,
        policy: &Policy,
        bytes: &[u8],
        cuts: &[prop::sample::Index],
    ) -> Vec<u8> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        pieces.flat_map(|piece| passed(filter, policy, piece).0).collect()
    }

    #[test]
    fn an_insertion_waits_for_the_boundary() {
        let policy = Policy::default();
        let mut filter = FrameFilter::default();
        let message = frame(0x81, b"hello");
        assert_eq!(filter.insert(b"first".to_vec(), false), Some(b"first".to_vec()));
        assert_eq!(passed(&mut filter, &policy, &message[..3]).0, &message[..3]);
        assert_eq!(filter.insert(b"second".to_vec(), false), None);
        assert!(filter.has_insertion());
        let rest = [&message[3..], &message[..]].concat();
        let expected = [&message[3..], b"second", &message].concat();
        assert_eq!(passed(&mut filter, &policy, &rest).0, expected);
        assert!(!filter.has_insertion());
    }

    #[test]
    fn nothing_passes_after_a_last_frame_and_all_of_it_is_followed() {
        let policy = Policy::default();
        let mut filter = FrameFilter::default();
        let message = frame(0x81, b"hello");
        passed(&mut filter, &policy, &message[..3]);
        filter.insert(b"last".to_vec(), true);
        let rest = [&message[3..], &message, &frame(0x88, &[0x03, 0xe8])].concat();
        assert_eq!(passed(&mut filter, &policy, &rest).0, [&message[3..], b"last"].concat());
        assert!(filter.is_closed());
        assert_eq!(filter.counters().close_code(), Some(1000));
    }

    #[test]
    fn nothing_is_inserted_after_a_close() {
        let policy = Policy::default();
        let mut filter = FrameFilter::default();
        let close = frame(0x88, &[0x03, 0xe8]);
        passed(&mut filter, &policy, &close[..1]);
        assert_eq!(filter.insert(b"late".to_vec(), true), None);
        assert_eq!(passed(&mut filter, &policy, &close[1..]).0, &close[1..]);
        assert_eq!(filter.insert(b"later".to_vec(), true), None);
    }

    #[test]
    fn a_message_is_as_large_as_its_fragments() {
        let policy = Policy { max_message: Some(6), ..Policy::default() };
        let first = frame(0x01, b"1234");
        let control = frame(0x89, b"12345678");
        let mut filter = FrameFilter::new(&policy, true, false);
        let good = [&first[..], &control, &frame(0x80, b"56")].concat();
        assert_eq!(passed(&mut filter, &policy, &good), (good.clone(), None));
        let bad = [&first[..], &control, &frame(0x80, b"567"), &first].concat();
        let expected = [&first[..], &control].concat();
        assert_eq!(passed(&mut filter, &policy, &bad), (expected, TOO_BIG));
        assert!(filter.is_closed() && filter.is_at_boundary());
    }

    #[test]
    fn a_frame_limit_holds_for_every_kind_of_frame() {
        let policy = Policy { max_frame: Some(5), ..Policy::default() };
        for first in [0x81, 0x02, 0x80, 0x88, 0x89, 0x8a, 0x83, 0x8b] {
            let mut filter = FrameFilter::new(&policy, true, false);
            let good = frame(first, b"12345");
            assert_eq!(passed(&mut filter, &policy, &good), (good.clone(), None), "{first:#x}");
            let mut filter = FrameFilter::new(&policy, true, false);
            let (bytes, violation) = passed(&mut filter, &policy, &frame(first, b"123456"));
            assert_eq!((bytes, violation), (vec![], TOO_BIG), "{first:#x}");
        }
    }

    #[test]
    fn no_frame_goes_round_the_limit_of_a_message() {
        let policy = Policy { max_message: Some(200), ..Policy::default() };
        let violation = |frames: &[&[u8]]| {
            passed(&mut FrameFilter::new(&policy, true, false), &policy, &frames.concat()).1
        };
        let start = frame(0x01, &[7; 120]);
        assert_eq!(violation(&[&start, &frame(0x80, &[7; 80])]), None);
        // An unknown opcode between the fragments does not begin the count anew.
        for between in [frame(0x03, b""), frame(0x83, b""), frame(0x8b, b""), frame(0x89, b"")] {
            let found = violation(&[&start, &between, &frame(0x80, &[7; 81])]);
            assert_eq!(found, TOO_BIG, "{}", between.escape_ascii());
        }
        // Nor does a frame that is too large for what it is.
        for first in [0x89, 0x83] {
            let large = [&[first, 0xfe, 0x00, 201][..], &KEY, &[7; 201]].concat();
            assert_eq!(violation(&[&large]), TOO_BIG, "{first:#x}");
        }
    }

    #[test]
    fn a_violation_after_a_close_gets_no_second_one() {
        let policy = Policy { max_frame: Some(5), ..Policy::default() };
        let mut filter = FrameFilter::new(&policy, true, false);
        let close = frame(0x88, &[0x03, 0xe8]);
        let bytes = [&close[..], &frame(0x82, b"123456")].concat();
        assert_eq!(passed(&mut filter, &policy, &bytes), (close, TOO_BIG));
        assert_eq!(filter.insert(b"close".to_vec(), true), None);
    }

    /// A policy with a rate of messages, and of frames ten times that.
    fn with_rate(messages: u32, rate_action: RateAction) -> Policy {
        Policy {
            max_messages_per_second: Some(messages),
            max_frames_per_second: Some(10 * messages),
            rate_action,
            ..Policy::default()
        }
    }

    #[test]
    fn what_is_above_the_rate_is_held_and_passes_in_order() {
        let policy = with_rate(4, RateAction::Pause);
        let bytes: Vec<u8> = (0..20).flat_map(|number| frame(0x81, &[number; 3])).collect();
        let one = frame(0x81, b"abc").len();
        // The chunk ends within a frame, and so does what is held.
        let (chunk, rest) = bytes.split_at(9 * one + 2);
        let mut filter = FrameFilter::new(&policy, true, false);
        filter.refill_rate(100);
        assert_eq!(passed(&mut filter, &policy, chunk), (chunk[..4 * one].to_vec(), HELD));
        assert!(filter.is_at_boundary());
        assert_eq!(filter.counters().messages(), 4);
        let mut out = chunk[..4 * one].to_vec();
        for tick in 101..200 {
            filter.refill_rate(tick);
            let mut held = filter.take_held();
            if tick == 110 {
                held.extend_from_slice(rest);
            }
            let (bytes, _) = passed(&mut filter, &policy, &held);
            let messages = filter.counters().messages();
            assert!(messages <= 5 + (tick - 100), "{messages} at {tick}");
            out.extend_from_slice(&bytes);
        }
        assert_eq!(out, bytes);
        assert_eq!(filter.counters().messages(), 20);
    }

    #[test]
    fn with_close_the_first_message_too_many_does_not_pass() {
        let policy = with_rate(3, RateAction::Close);
        let message = frame(0x82, b"x");
        let mut filter = FrameFilter::new(&policy, true, false);
        let found = passed(&mut filter, &policy, &message.repeat(1_000));
        assert_eq!(found, (message.repeat(3), TOO_MANY));
        assert_eq!(filter.counters().messages(), 3);
        assert!(filter.is_closed() && filter.is_at_boundary());
        // The backend's frames are not limited.
        let mut filter = FrameFilter::new(&policy, false, false);
        let bytes = message.repeat(1_000);
        assert_eq!(passed(&mut filter, &policy, &bytes), (bytes, None));
    }

    #[test]
    fn control_frames_have_a_rate_too_and_the_pong_to_our_ping_costs_nothing() {
        let policy = with_rate(1, RateAction::Close);
        let ping = frame(0x89, b"");
        let mut filter = FrameFilter::new(&policy, true, false);
        let found = passed(&mut filter, &policy, &ping.repeat(2_000));
        assert_eq!(found, (ping.repeat(10), TOO_MANY));
        let mut filter = FrameFilter::new(&policy, true, false);
        for _ in 0..5 {
            filter.await_pong(OURS);
        }
        let bytes = [frame(0x8a, &OURS).repeat(5), ping.repeat(10)].concat();
        assert_eq!(passed(&mut filter, &policy, &bytes), (ping.repeat(10), None));
    }

    #[test]
    fn the_pong_to_our_ping_does_not_wait_for_a_rate_that_is_used_up() {
        for action in [RateAction::Close, RateAction::Pause] {
            let policy = with_rate(1, action);
            let mut filter = FrameFilter::new(&policy, true, false);
            filter.refill_rate(0);
            filter.await_pong(OURS);
            let ping = frame(0x89, b"");
            let bytes = [&ping.repeat(10)[..], &frame(0x8a, &OURS)].concat();
            assert_eq!(passed(&mut filter, &policy, &bytes), (ping.repeat(10), None));
            assert_ne!(passed(&mut filter, &policy, &ping).1, None);
        }
    }

    #[test]
    fn what_is_held_when_a_direction_is_closed_is_followed_for_a_close() {
        let policy = with_rate(1, RateAction::Pause);
        let second = frame(0x81, b"held back");
        for cut in 1..=second.len() {
            let mut filter = FrameFilter::new(&policy, true, false);
            filter.refill_rate(0);
            let chunk = [&frame(0x81, b"x")[..], &second[..cut]].concat();
            passed(&mut filter, &policy, &chunk);
            filter.close();
            assert!(filter.take_held().is_empty());
            let rest = [&second[cut..], &frame(0x88, &[0x03, 0xe8])].concat();
            assert_eq!(passed(&mut filter, &policy, &rest).0, b"");
            assert_eq!(filter.counters().close_code(), Some(1000), "cut at {cut}");
            assert_eq!(filter.counters().messages(), 1);
        }
    }

    #[test]
    fn a_header_that_waits_is_as_if_it_had_not_come() {
        let policy = with_rate(1, RateAction::Pause);
        let message = frame(0x81, b"hello");
        let bytes = message.repeat(2);
        // The second frame's header comes in two chunks: its first part has passed.
        for cut in message.len() + 1..message.len() + 6 {
            let mut filter = FrameFilter::new(&policy, true, false);
            filter.refill_rate(0);
            assert_eq!(passed(&mut filter, &policy, &bytes[..cut]).0, &bytes[..cut]);
            assert_eq!(passed(&mut filter, &policy, &bytes[cut..]), (vec![], HELD), "{cut}");
            assert_eq!(filter.counters().messages(), 1);
            assert!(filter.lift_rate());
            let held = filter.take_held();
            assert_eq!(passed(&mut filter, &policy, &held), (bytes[cut..].to_vec(), None));
            assert!(!filter.lift_rate());
        }
    }

    #[test]
    fn a_stream_that_cannot_be_followed_is_a_violation_wherever_something_is_limited() {
        let opaque = [0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 1, 7, 7, 7];
        let limits = [
            (Policy { max_frame: Some(5), ..Policy::default() }, TOO_BIG),
            (Policy { max_message: Some(5), ..Policy::default() }, TOO_BIG),
            (Policy { strict_frames: true, ..Policy::default() }, INVALID),
            (Policy { strict_frames: true, max_frame: Some(5), ..Policy::default() }, INVALID),
            (with_rate(5, RateAction::Pause), INVALID),
            (Policy { max_frames_per_second: Some(5), ..Policy::default() }, INVALID),
        ];
        for (policy, expected) in limits {
            for from_client in [true, false] {
                let mut filter = FrameFilter::new(&policy, from_client, false);
                assert_eq!(passed(&mut filter, &policy, &opaque), (vec![], expected), "{policy:?}");
                assert!(filter.is_closed() && filter.is_at_boundary());
            }
        }
        let mut filter = FrameFilter::default();
        assert_eq!(passed(&mut filter, &Policy::default(), &opaque), (opaque.to_vec(), None));
    }

    #[test]
    fn what_is_dropped_is_not_counted() {
        let policy = Policy { max_frame: Some(5), ..Policy::default() };
        let rest = [frame(0x81, b"ok"), frame(0x89, b""), frame(0x88, &[0x03, 0xe8])].concat();
        // After a violation, and after a Close of the proxy.
        let mut refused = FrameFilter::new(&policy, true, false);
        passed(&mut refused, &policy, &frame(0x82, b"123456"));
        let mut closed = FrameFilter::default();
        closed.insert(b"close".to_vec(), true);
        for mut filter in [refused, closed] {
            filter.await_pong(OURS);
            let bytes = [&frame(0x8a, &OURS)[..], &rest].concat();
            assert_eq!(passed(&mut filter, &policy, &bytes).0, b"");
            let expected =
                FrameCounters { close: CloseSeen::Code(1000), ..FrameCounters::default() };
            assert_eq!(*filter.counters(), expected);
        }
    }

    #[test]
    fn an_empty_data_frame_is_data() {
        for (first, is_data) in [(0x81, true), (0x80, true), (0x89, false), (0x8a, false)] {
            for policy in [Policy::default(), Policy { strict_frames: true, ..Policy::default() }] {
                let mut filter = FrameFilter::new(&policy, true, false);
                passed(&mut filter, &policy, &frame(first, b""));
                let is_invalid = policy.strict_frames && first == 0x80;
                assert_eq!(filter.take_fresh_data(), is_data && !is_invalid, "{first:#x}");
            }
        }
    }

    #[test]
    fn a_header_that_has_passed_in_part_leaves_no_boundary() {
        let policy = Policy { max_frame: Some(4), ..Policy::default() };
        let mut filter = FrameFilter::new(&policy, true, false);
        let large = frame(0x82, b"12345");
        assert_eq!(passed(&mut filter, &policy, &large[..1]), (large[..1].to_vec(), None));
        assert_eq!(passed(&mut filter, &policy, &large[1..]), (Vec::new(), TOO_BIG));
        assert!(filter.is_closed() && !filter.is_at_boundary());
        assert_eq!(filter.insert(b"close".to_vec(), true), None);
    }

    #[test]
    fn invalid_frames_are_violations_where_frames_are_judged() {
        let policy = Policy { strict_frames: true, ..Policy::default() };
        let invalid: [&[u8]; 8] = [
            &frame(0x83, b""),
            &frame(0x8b, b""),
            &frame(0xc1, b"reserved bit"),
            &[0x81, 0x00],
            &frame(0x09, b"fragmented"),
            &[0x89, 0xfe, 0x00, 0x7e, 1, 2, 3, 4],
            &frame(0x80, b"no start"),
            &[frame(0x01, b"start"), frame(0x81, b"another")].concat(),
        ];
        for bytes in invalid {
            let (_, violation) =
                passed(&mut FrameFilter::new(&policy, true, false), &policy, bytes);
            assert_eq!(violation, INVALID, "{}", bytes.escape_ascii());
            let (all, violation) = passed(&mut FrameFilter::default(), &Policy::default(), bytes);
            assert_eq!((&*all, violation), (bytes, None));
        }
        let (_, violation) = passed(
            &mut FrameFilter::new(&policy, true, true),
            &policy,
            &frame(0xc1, b"compressed"),
        );
        assert_eq!(violation, None);
    }

    /// Frames as an endpoint sends them: first byte and payload.
    fn frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        let first = prop_oneof![Just(0x81_u8), Just(0x02), Just(0x80), Just(0x89), Just(0x8a)];
        prop::collection::vec((first, prop::collection::vec(any::<u8>(), 0..20)), 0..8)
    }

    /// Frames of any kind, most of them several times in a row: with each form of a length, also
    /// where a shorter one would do, and some with one that cannot be followed.
    fn any_frames() -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![any::<u8>(), Just(0x88), Just(0x82), Just(0x89)];
        let length = prop_oneof![0..4_usize, 0..200_usize, 65_530..65_540_usize];
        let form = prop_oneof![4 => Just(0), 1 => Just(2), 1 => Just(8)];
        let frame = (first, any::<bool>(), form, length, 1..6_usize, any::<u8>());
        let opaque = prop::option::weighted(0.1, any::<prop::sample::Index>());
        (prop::collection::vec(frame, 0..12), opaque).prop_map(|(frames, opaque)| {
            let opaque = opaque.filter(|_| !frames.is_empty()).map(|at| at.index(frames.len()));
            let mut bytes = Vec::new();
            for (index, &(first, is_masked, form, length, times, filling)) in
                frames.iter().enumerate()
            {
                let least = [0, 2, 8][usize::from(length > 125) + usize::from(length > 0xffff)];
                let mask_bit = u8::from(is_masked) << 7;
                let announced = length as u64 | u64::from(opaque == Some(index)) << 63;
                // Only few are long, so that most runs are short.
                for time in 0..if length > 1000 { 1 } else { times } {
                    bytes.push(first);
                    match least.max(if opaque == Some(index) { 8 } else { form }) {
                        0 => bytes.push(mask_bit | length as u8),
                        form => {
                            bytes.push(mask_bit | if form == 2 { 126 } else { 127 });
                            bytes.extend_from_slice(&announced.to_be_bytes()[8 - form..]);
                        }
                    }
                    let filling = filling.wrapping_add(time as u8);
                    bytes.resize(bytes.len() + usize::from(is_masked) * 4 + length, filling);
                }
            }
            bytes
        })
    }

    /// Returns everything that a filter on its fast path knows: boundary, unseen bytes and close
    /// code follow from it.
    fn state(filter: &FrameFilter) -> impl PartialEq + std::fmt::Debug + use<> {
        (filter.frames, filter.counters, filter.has_fresh_data, filter.close_passed)
    }

    fn to_bytes(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
        frames.iter().flat_map(|(first, payload)| frame(*first, payload)).collect()
    }

    proptest! {
        #[test]
        fn all_bytes_pass_as_they_are(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            cuts: [prop::sample::Index; 4],
        ) {
            let policy = Policy::default();
            let mut filter = FrameFilter::default();
            prop_assert_eq!(passed_in_pieces(&mut filter, &policy, &bytes, &cuts), bytes);
        }

        #[test]
        fn frames_are_followed_alike_as_a_whole_and_byte_by_byte(
            bytes in any_frames(), cuts: [prop::sample::Index; 4], takes: [bool; 5],
        ) {
            let policy = Policy::default();
            let [mut whole, mut stepped] = [FrameFilter::default(), FrameFilter::default()];
            let mut cuts = cuts.map(|cut| cut.index(bytes.len() + 1)).to_vec();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            for (pair, take) in cuts.windows(2).zip(takes) {
                let piece = &bytes[pair[0]..pair[1]];
                passed(&mut whole, &policy, piece);
                for byte in piece.chunks(1) {
                    passed(&mut stepped, &policy, byte);
                }
                prop_assert_eq!(state(&whole), state(&stepped));
                if take {
                    prop_assert_eq!(whole.take_fresh_data(), stepped.take_fresh_data());
                }
            }
        }

        #[test]
        fn limits_that_are_not_reached_change_nothing(
            sent in frames(), cuts: [prop::sample::Index; 4],
        ) {
            let limits = (Some(10_000), Some(20));
            let policy =
                Policy { max_message: limits.0, max_frame: limits.1, ..Policy::default() };
            let bytes = to_bytes(&sent);
            let mut filter = FrameFilter::new(&policy, true, false);
            prop_assert_eq!(passed_in_pieces(&mut filter, &policy, &bytes, &cuts), bytes);
        }

        #[test]
        fn only_the_pong_to_our_ping_is_taken_out(
            before in frames(), after in frames(), cuts: [prop::sample::Index; 5],
        ) {
            let policy = Policy::default();
            let (before, after) = (to_bytes(&before), to_bytes(&after));
            let ours = frame(0x8a, &OURS);
            let mut filter = FrameFilter::default();
            filter.await_pong(OURS);
            // The second one is not awaited any more.
            let sent = [&before[..], &ours, &after, &ours].concat();
            let expected = [&before[..], &after, &ours].concat();
            prop_assert_eq!(passed_in_pieces(&mut filter, &policy, &sent, &cuts), expected);
        }

        #[test]
        fn a_ping_lands_between_two_frames(
            sent in frames(), at: prop::sample::Index, cuts: [prop::sample::Index; 3],
        ) {
            let policy = Policy::default();
            let bytes = to_bytes(&sent);
            let (early, late) = bytes.split_at(at.index(bytes.len() + 1));
            let ping = control::ping(OURS, None);
            let mut filter = FrameFilter::default();
            let mut out = passed(&mut filter, &policy, early).0;
            out.extend(filter.insert(ping.clone(), false).unwrap_or_default());
            out.extend(passed_in_pieces(&mut filter, &policy, late, &cuts));
            // At the end of the last frame it goes in with the next bytes, whatever they are.
            out.extend(passed(&mut filter, &policy, b"").0);

            let mut boundaries = vec![0];
            for (first, payload) in &sent {
                boundaries.push(boundaries[boundaries.len() - 1] + frame(*first, payload).len());
            }
            let landed = boundaries.iter().any(|&boundary| {
                let (before, after) = bytes.split_at(boundary);
                boundary >= early.len() && out == [before, &ping, after].concat()
            });
            prop_assert!(landed, "{}", out.escape_ascii());
        }
    }
}
