//! What passes in one direction: follows the frames, counts them, judges them, puts frames of our own between them.

use super::control::{PingPayload, unmask};
use super::frames::{Event, Frames, Header, Opcode};
use super::rules::Rules;
use super::tally::Tally;

/// The state of one direction. It knows bytes only, and where nothing is asked of it, changes none.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    frames: Frames,
    tally: Tally,
    /// Nothing passes any more.
    is_shut: bool,
    /// It has been shut within a frame, by its header.
    is_cut: bool,
    /// Bytes of a data frame have come since this was last asked.
    has_fresh_data: bool,
    /// What is more to be done than to follow, while there is any.
    errand: Option<Box<Errand>>,
}

/// What is to be put in, taken out or judged.
#[derive(Debug, Default)]
struct Errand {
    /// What is known of the open message, where there are rules for it.
    judge: Option<Judge>,
    /// Goes in at the next boundary.
    insert: Vec<u8>,
    /// Nothing passes after that.
    shut_after: bool,
    /// So many Pongs with this payload are taken out.
    awaited: Option<(PingPayload, u32)>,
    /// A frame that may be that Pong, as far as it has come.
    kept: Option<Vec<u8>>,
}

/// Why a frame does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    MessageTooBig,
    Protocol,
}

/// What passes of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passage<'a> {
    pub(crate) bytes: &'a [u8],
    /// Why what follows them does not.
    pub(crate) refusal: Option<Refusal>,
}

/// What must be known of a message to judge its frames.
#[derive(Debug)]
struct Judge {
    /// Whether frames must have a masking key: those of a client (RFC 6455, 5.1).
    masked: bool,
    /// Whether an extension may give the reserved bits a meaning.
    extended: bool,
    /// Payload of the open message so far, if one is open.
    message: Option<u64>,
}

impl Gate {
    /// A direction at its start. `from_client` and `extended` (an extension has been negotiated) matter to the judging
    /// of frames.
    pub(crate) fn new(rules: &Rules, from_client: bool, extended: bool) -> Self {
        let errand = rules.judge_frames().then(|| {
            let judge = Some(Judge { masked: from_client, extended, message: None });
            Box::new(Errand { judge, ..Errand::default() })
        });
        Self { errand, ..Self::default() }
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether it has come to a header that it cannot follow.
    pub(crate) fn is_blind(&self) -> bool {
        self.frames.is_blind()
    }

    /// Whether bytes of a data frame have come since this was last asked; all bytes may be, once it is blind.
    pub(crate) fn take_fresh_data(&mut self) -> bool {
        std::mem::take(&mut self.has_fresh_data)
    }

    /// How many of the bytes to come may pass unseen; then [`skip`](Gate::skip) must be told.
    pub(crate) fn unseen(&self) -> u64 {
        if self.is_shut { 0 } else { self.frames.unseen() }
    }

    pub(crate) fn skip(&mut self, count: u64) {
        self.has_fresh_data |= self.frames.is_in_data();
        self.frames.skip(count);
    }

    /// Whether what has come so far ends with a frame, as far as that can be known.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.frames.is_at_boundary() || self.frames.is_blind()
    }

    /// Whether nothing passes any more.
    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// Whether what has passed so far ends with a frame.
    pub(crate) fn is_at_boundary(&self) -> bool {
        let keeps = self.errand.as_ref().is_some_and(|errand| errand.kept.is_some());
        if self.is_shut { !self.is_cut } else { self.frames.is_at_boundary() || keeps }
    }

    /// Lets nothing pass any more. What is awaited or kept is not any more.
    pub(crate) fn shut(&mut self) {
        self.is_cut = !self.is_at_boundary();
        self.is_shut = true;
        self.errand = None;
    }

    /// Whether something still waits for a boundary.
    pub(crate) fn has_errand(&self) -> bool {
        self.errand.as_ref().is_some_and(|errand| !errand.insert.is_empty())
    }

    /// Has a control frame put in, now or at the next boundary; with `shut`, as the last thing that passes. What is
    /// given back goes out now, behind all that has passed. A direction that is blind, in
    /// which a Close has passed, or which was shut within a frame, takes none.
    pub(crate) fn insert(&mut self, frame: Vec<u8>, shut: bool) -> Option<Vec<u8>> {
        if !self.is_shut && (self.frames.is_blind() || self.tally.has_close()) {
            return None;
        }
        if self.is_at_boundary() {
            self.is_shut |= shut;
            return Some(frame);
        }
        if self.is_shut {
            return None;
        }
        let errand = self.errand.get_or_insert_default();
        // A Close makes a Ping that waits pointless.
        if shut {
            errand.insert.clear();
        }
        errand.insert.extend_from_slice(&frame);
        errand.shut_after |= shut;
        None
    }

    /// Has a Pong with this payload taken out, when it comes: one more for each call, all with the same payload.
    pub(crate) fn await_pong(&mut self, payload: PingPayload) {
        let awaited = &mut self.errand.get_or_insert_default().awaited;
        *awaited = Some((payload, awaited.map_or(1, |(_, count)| count.saturating_add(1))));
    }

    /// What of `chunk` passes, with what is put in. `out` is where that is made if it is not the chunk as it is.
    pub(crate) fn pass<'a>(
        &mut self,
        chunk: &'a [u8],
        rules: &Rules,
        out: &'a mut Vec<u8>,
    ) -> Passage<'a> {
        if self.errand.is_none() && !self.is_shut {
            self.follow(chunk);
            return Passage { bytes: chunk, refusal: None };
        }
        out.clear();
        let refusal = self.sort(chunk, rules, out);
        if self.errand.as_ref().is_some_and(|errand| errand.is_done()) {
            self.errand = None;
        }
        Passage { bytes: out, refusal }
    }

    /// What was kept of a frame when the source ends within it: it passes after all.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        let kept = self.errand.as_mut()?.kept.take()?;
        (!self.is_shut).then_some(kept)
    }

    /// Follows frames that all pass.
    fn follow(&mut self, chunk: &[u8]) {
        let mut at = 0;
        loop {
            let (taken, event) = self.next(&chunk[at..]);
            at += taken;
            match event {
                Some(Event::Header(header)) => self.tally.count(&header),
                // Most chunks end with a frame.
                Some(Event::End) if at == chunk.len() => return,
                Some(Event::End | Event::Blind) => {}
                None => return,
            }
        }
    }

    /// Takes bytes into account up to the next event, and what they say of a close code.
    fn next(&mut self, bytes: &[u8]) -> (usize, Option<Event>) {
        let of_close = self.frames.close_mask();
        self.has_fresh_data |= self.frames.is_in_data() && !bytes.is_empty();
        let (taken, event) = self.frames.next(bytes);
        if let Some(mask) = of_close {
            self.tally.note_close_payload(&bytes[..taken], mask);
        }
        (taken, event)
    }

    /// Follows frames of which not all pass.
    fn sort(&mut self, chunk: &[u8], rules: &Rules, out: &mut Vec<u8>) -> Option<Refusal> {
        let mut at = 0;
        let mut refusal = None;
        loop {
            let begins_here = self.frames.is_at_boundary();
            if begins_here {
                self.run_errand(out);
                self.keep_what_may_be_ours(&chunk[at..]);
            }
            let (taken, event) = self.next(&chunk[at..]);
            let piece = &chunk[at..at + taken];
            at += taken;
            if let Some(Event::Header(header)) = &event {
                let verdict = if self.is_shut { None } else { self.judge(header, rules) };
                if verdict.is_some() {
                    // Neither this header passes nor what follows it. What came of it in an earlier chunk has passed.
                    self.is_shut = true;
                    self.is_cut = !begins_here;
                    refusal = verdict;
                } else {
                    self.tally.count(header);
                }
            }
            self.let_pass(piece, out);
            match event {
                Some(Event::Header(header)) => self.release_unless(header.length == 8, out),
                Some(Event::End) => self.end_frame(out),
                Some(Event::Blind) => self.release_unless(false, out),
                None => return refusal,
            }
        }
    }

    fn judge(&mut self, header: &Header, rules: &Rules) -> Option<Refusal> {
        self.errand.as_mut()?.judge.as_mut()?.judge(header, rules)
    }

    /// At a boundary: puts in what is to be put in. Nothing follows a Close (RFC 6455, 5.5.1): where one has passed in
    /// the meantime, it stands for ours.
    fn run_errand(&mut self, out: &mut Vec<u8>) {
        let Some(errand) = &mut self.errand else { return };
        if errand.insert.is_empty() {
            return;
        }
        let insert = std::mem::take(&mut errand.insert);
        let shut = std::mem::take(&mut errand.shut_after);
        if !self.is_shut && !self.tally.has_close() {
            out.extend_from_slice(&insert);
            self.is_shut = shut;
        }
    }

    /// At a boundary: what begins like a Pong, while one of ours is awaited, is kept until it is known.
    fn keep_what_may_be_ours(&mut self, rest: &[u8]) {
        const FINAL_PONG: u8 = 0x8a;
        if let Some(errand) = &mut self.errand
            && errand.awaited.is_some()
            && rest.first() == Some(&FINAL_PONG)
        {
            errand.kept = Some(Vec::with_capacity(14));
        }
    }

    fn let_pass(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        if self.is_shut {
            return;
        }
        match self.errand.as_mut().and_then(|errand| errand.kept.as_mut()) {
            Some(kept) => kept.extend_from_slice(piece),
            None => out.extend_from_slice(piece),
        }
    }

    /// Lets go what was kept, unless it may still be the awaited Pong.
    fn release_unless(&mut self, may_be_ours: bool, out: &mut Vec<u8>) {
        if may_be_ours || self.is_shut {
            return;
        }
        if let Some(kept) = self.errand.as_mut().and_then(|errand| errand.kept.take()) {
            out.extend_from_slice(&kept);
        }
    }

    /// At the end of a frame: drops it if it is the awaited Pong.
    fn end_frame(&mut self, out: &mut Vec<u8>) {
        let Some(errand) = &mut self.errand else { return };
        let Some(kept) = errand.kept.take() else { return };
        if let Some((payload, count)) = errand.awaited
            && is_pong(&kept, payload)
        {
            errand.awaited = (count > 1).then(|| (payload, count - 1));
            self.tally.uncount_pong(awaited_length());
        } else if !self.is_shut {
            out.extend_from_slice(&kept);
        }
    }
}

impl Errand {
    fn is_done(&self) -> bool {
        self.judge.is_none()
            && self.insert.is_empty()
            && self.awaited.is_none()
            && self.kept.is_none()
    }
}

impl Judge {
    /// Whether a frame with this header may pass.
    fn judge(&mut self, header: &Header, rules: &Rules) -> Option<Refusal> {
        if rules.strict_frames && !self.is_lawful(header) {
            return Some(Refusal::Protocol);
        }
        if header.is_control() {
            return None;
        }
        let before = match header.opcode() {
            Opcode::Continuation => self.message.unwrap_or(0),
            _ => 0,
        };
        let message = before.saturating_add(header.length);
        self.message = (!header.is_final()).then_some(message);
        let is_over = |limit: Option<u64>, size: u64| limit.is_some_and(|limit| size > limit);
        (is_over(rules.max_frame, header.length) || is_over(rules.max_message, message))
            .then_some(Refusal::MessageTooBig)
    }

    /// Whether a frame is as RFC 6455, 5.1 to 5.5 have it.
    fn is_lawful(&self, header: &Header) -> bool {
        let is_continued = self.message.is_some();
        let place_is_good = match header.opcode() {
            Opcode::Continuation => is_continued,
            Opcode::Text | Opcode::Binary => !is_continued,
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                header.is_final() && header.length <= 125
            }
            Opcode::Other => false,
        };
        place_is_good
            && header.mask.is_some() == self.masked
            && (self.extended || !header.has_reserved_bits())
    }
}

/// Whether a whole frame is the Pong to a Ping of ours.
fn is_pong(frame: &[u8], awaited: PingPayload) -> bool {
    let Some((head, payload)) = frame.split_last_chunk::<8>() else { return false };
    let mut payload = *payload;
    // With a key, it stands before the payload.
    if frame.get(1).is_some_and(|second| second & 0x80 != 0)
        && let Some((_, mask)) = head.split_last_chunk::<4>()
    {
        unmask(&mut payload, *mask, 0);
    }
    payload == awaited
}

/// Length of the payload of our Pings.
const fn awaited_length() -> u64 {
    size_of::<PingPayload>() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::control;

    const OURS: PingPayload = *b"our ping";
    const KEY: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

    /// A client's frame with this payload.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut payload = payload.to_vec();
        unmask(&mut payload, KEY, 0);
        // Short payloads only.
        [&[first, 0x80 | payload.len() as u8][..], &KEY, &payload].concat()
    }

    fn passed(gate: &mut Gate, rules: &Rules, bytes: &[u8]) -> (Vec<u8>, Option<Refusal>) {
        let mut spare = Vec::new();
        let Passage { bytes, refusal } = gate.pass(bytes, rules, &mut spare);
        (bytes.to_vec(), refusal)
    }

    /// What passes of these bytes when they come in pieces cut at these places.
    fn passed_in_pieces(
        gate: &mut Gate,
        rules: &Rules,
        bytes: &[u8],
        cuts: &[prop::sample::Index],
    ) -> Vec<u8> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        pieces.flat_map(|piece| passed(gate, rules, piece).0).collect()
    }

    #[test]
    fn a_frame_of_ours_waits_for_the_boundary() {
        let rules = Rules::default();
        let mut gate = Gate::default();
        let message = frame(0x81, b"hello");
        assert_eq!(gate.insert(b"first".to_vec(), false), Some(b"first".to_vec()));
        assert_eq!(passed(&mut gate, &rules, &message[..3]).0, &message[..3]);
        assert_eq!(gate.insert(b"second".to_vec(), false), None);
        assert!(gate.has_errand());
        let rest = [&message[3..], &message[..]].concat();
        let expected = [&message[3..], b"second", &message].concat();
        assert_eq!(passed(&mut gate, &rules, &rest).0, expected);
        assert!(!gate.has_errand());
    }

    #[test]
    fn nothing_passes_behind_a_last_frame_and_all_of_it_is_followed() {
        let rules = Rules::default();
        let mut gate = Gate::default();
        let message = frame(0x81, b"hello");
        passed(&mut gate, &rules, &message[..3]);
        gate.insert(b"last".to_vec(), true);
        let rest = [&message[3..], &message, &frame(0x88, &[0x03, 0xe8])].concat();
        assert_eq!(passed(&mut gate, &rules, &rest).0, [&message[3..], b"last"].concat());
        assert!(gate.is_shut());
        assert_eq!(gate.tally().close_code(), Some(1000));
    }

    #[test]
    fn nothing_is_put_in_behind_a_close() {
        let rules = Rules::default();
        let mut gate = Gate::default();
        let close = frame(0x88, &[0x03, 0xe8]);
        passed(&mut gate, &rules, &close[..1]);
        assert_eq!(gate.insert(b"late".to_vec(), true), None);
        assert_eq!(passed(&mut gate, &rules, &close[1..]).0, &close[1..]);
        assert_eq!(gate.insert(b"later".to_vec(), true), None);
    }

    #[test]
    fn a_message_is_as_large_as_its_fragments() {
        let rules = Rules { max_message: Some(6), ..Rules::default() };
        let first = frame(0x01, b"1234");
        let control = frame(0x89, b"12345678");
        let mut gate = Gate::new(&rules, true, false);
        let good = [&first[..], &control, &frame(0x80, b"56")].concat();
        assert_eq!(passed(&mut gate, &rules, &good), (good.clone(), None));
        let bad = [&first[..], &control, &frame(0x80, b"567"), &first].concat();
        let expected = [&first[..], &control].concat();
        assert_eq!(passed(&mut gate, &rules, &bad), (expected, Some(Refusal::MessageTooBig)));
        assert!(gate.is_shut() && gate.is_at_boundary());
    }

    #[test]
    fn a_header_that_has_passed_in_part_leaves_no_boundary() {
        let rules = Rules { max_frame: Some(4), ..Rules::default() };
        let mut gate = Gate::new(&rules, true, false);
        let large = frame(0x82, b"12345");
        assert_eq!(passed(&mut gate, &rules, &large[..1]), (large[..1].to_vec(), None));
        assert_eq!(
            passed(&mut gate, &rules, &large[1..]),
            (Vec::new(), Some(Refusal::MessageTooBig))
        );
        assert!(gate.is_shut() && !gate.is_at_boundary());
        assert_eq!(gate.insert(b"close".to_vec(), true), None);
    }

    #[test]
    fn unlawful_frames_are_refused_if_they_are_to_be() {
        let rules = Rules { strict_frames: true, ..Rules::default() };
        let unlawful: [&[u8]; 8] = [
            &frame(0x83, b""),
            &frame(0x8b, b""),
            &frame(0xc1, b"reserved bit"),
            &[0x81, 0x00],
            &frame(0x09, b"fragmented"),
            &[0x89, 0xfe, 0x00, 0x7e, 1, 2, 3, 4],
            &frame(0x80, b"no start"),
            &[frame(0x01, b"start"), frame(0x81, b"another")].concat(),
        ];
        for bytes in unlawful {
            let (_, refusal) = passed(&mut Gate::new(&rules, true, false), &rules, bytes);
            assert_eq!(refusal, Some(Refusal::Protocol), "{}", bytes.escape_ascii());
            let (all, refusal) = passed(&mut Gate::default(), &Rules::default(), bytes);
            assert_eq!((&*all, refusal), (bytes, None));
        }
        let (_, refusal) =
            passed(&mut Gate::new(&rules, true, true), &rules, &frame(0xc1, b"compressed"));
        assert_eq!(refusal, None);
    }

    /// Frames as an endpoint sends them, by their first byte and payload.
    fn frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        let first = prop_oneof![Just(0x81_u8), Just(0x02), Just(0x80), Just(0x89), Just(0x8a)];
        prop::collection::vec((first, prop::collection::vec(any::<u8>(), 0..20)), 0..8)
    }

    proptest! {
        #[test]
        fn all_bytes_pass_as_they_are(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts: [prop::sample::Index; 4]) {
            let rules = Rules::default();
            prop_assert_eq!(passed_in_pieces(&mut Gate::default(), &rules, &bytes, &cuts), bytes);
        }

        #[test]
        fn limits_that_are_not_reached_change_nothing(sent in frames(), cuts: [prop::sample::Index; 4]) {
            let rules = Rules { max_message: Some(10_000), max_frame: Some(20), ..Rules::default() };
            let bytes: Vec<u8> = sent.iter().flat_map(|(first, payload)| frame(*first, payload)).collect();
            let mut gate = Gate::new(&rules, true, false);
            prop_assert_eq!(passed_in_pieces(&mut gate, &rules, &bytes, &cuts), bytes);
        }

        #[test]
        fn only_the_pong_to_our_ping_is_taken_out(
            before in frames(), after in frames(), cuts: [prop::sample::Index; 5],
        ) {
            let rules = Rules::default();
            let bytes = |frames: &[(u8, Vec<u8>)]| -> Vec<u8> {
                frames.iter().flat_map(|(first, payload)| frame(*first, payload)).collect()
            };
            let (before, after) = (bytes(&before), bytes(&after));
            let ours = frame(0x8a, &OURS);
            let mut gate = Gate::default();
            gate.await_pong(OURS);
            // The second one is not awaited any more.
            let sent = [&before[..], &ours, &after, &ours].concat();
            let expected = [&before[..], &after, &ours].concat();
            prop_assert_eq!(passed_in_pieces(&mut gate, &rules, &sent, &cuts), expected);
        }

        #[test]
        fn a_ping_lands_between_two_frames(sent in frames(), at: prop::sample::Index, cuts: [prop::sample::Index; 3]) {
            let rules = Rules::default();
            let bytes: Vec<u8> = sent.iter().flat_map(|(first, payload)| frame(*first, payload)).collect();
            let (early, late) = bytes.split_at(at.index(bytes.len() + 1));
            let ping = control::ping(OURS, None);
            let mut gate = Gate::default();
            let mut out = passed(&mut gate, &rules, early).0;
            out.extend(gate.insert(ping.clone(), false).unwrap_or_default());
            out.extend(passed_in_pieces(&mut gate, &rules, late, &cuts));
            // At the end of the last frame it goes in with the next bytes, whatever they are.
            out.extend(passed(&mut gate, &rules, b"").0);

            let mut boundaries = vec![0];
            for (first, payload) in &sent {
                boundaries.push(boundaries[boundaries.len() - 1] + frame(*first, payload).len());
            }
            let landed = boundaries.iter().any(|&boundary| {
                boundary >= early.len() && out == [&bytes[..boundary], &ping, &bytes[boundary..]].concat()
            });
            prop_assert!(landed, "{}", out.escape_ascii());
        }
    }
}
