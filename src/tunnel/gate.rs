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
    pub(crate) fn pass<'a>(&mut self, chunk: &'a [u8], rules: &Rules, out: &'a mut Vec<u8>) -> Passage<'a> {
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

    /// At a boundary: puts in what is to be put in. Nothing follows a Close (RFC 6455, 5.5.1).
    fn run_errand(&mut self, out: &mut Vec<u8>) {
        if let Some(errand) = &mut self.errand
            && !errand.insert.is_empty()
        {
            if !self.is_shut && !self.tally.has_close() {
                out.append(&mut errand.insert);
            }
            errand.insert.clear();
            self.is_shut |= errand.shut_after;
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
        self.judge.is_none() && self.insert.is_empty() && self.awaited.is_none() && self.kept.is_none()
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
            Opcode::Close | Opcode::Ping | Opcode::Pong => header.is_final() && header.length <= 125,
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
