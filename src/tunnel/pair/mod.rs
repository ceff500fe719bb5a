//! A tunnel at work: its two halves, and the rules for its end.

mod time;

use std::sync::Arc;

use rustix::event::epoll::EventFlags;

use self::time::Watch;
use super::clock::{Clock, Tick, ticks};
use super::control::{self, code};
use super::gate::{Gate, Refusal};
use super::half::{Half, Manners, Stop, Tools, Turn};
use super::rules::Rules;
use super::socket::Socket;
use super::{Reason, Side, Tunnel, TunnelEnd};
use crate::net::reactor::Reactor;

/// Two connections and the two directions between them.
#[derive(Debug)]
pub(super) struct Pair {
    client: Socket,
    backend: Socket,
    /// From the client to the backend.
    up: Half,
    /// From the backend to the client.
    down: Half,
    rules: Arc<Rules>,
    /// How many of the bytes for the client are the 101.
    head_len: u32,
    /// What was the first to end the tunnel, if anything has begun to.
    ending: Option<Reason>,
    /// Who has been told by a Close of ours, and is to answer.
    told_client: bool,
    told_backend: bool,
    /// Over at this tick, whatever has been said by then.
    last_tick: Option<Tick>,
    /// What is to happen when, where time plays a part.
    watch: Option<Box<Watch>>,
}

/// What has become of a tunnel in its turn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Progress {
    /// It goes on.
    On(Turn),
    /// It is over.
    Over(Reason),
}

impl Pair {
    /// A tunnel whose sides' events come under these labels.
    pub(super) fn new(
        tunnel: Tunnel,
        reactor: &Reactor,
        label: impl Fn(Side) -> u64,
        clock: &Clock,
    ) -> Self {
        let Tunnel { client, backend, for_backend, head, for_client, is_extended, rules } = tunnel;
        let watch = rules.watch_time().then(|| Box::new(Watch::by(&rules, clock.now())));
        // A head has at most 64 KiB.
        let head_len = head.len() as u32;
        let gate = |from_client| Gate::new(&rules, from_client, is_extended);
        let (up, up_refusal) = Half::new(Vec::new(), &for_backend, gate(true), &rules);
        let (down, down_refusal) = Half::new(head, &for_client, gate(false), &rules);
        let mut pair = Self {
            client: Socket::new(client, reactor, label(Side::Client)),
            backend: Socket::new(backend, reactor, label(Side::Backend)),
            head_len,
            up,
            down,
            rules,
            ending: None,
            told_client: false,
            told_backend: false,
            last_tick: None,
            watch,
        };
        for (side, refusal) in [(Side::Client, up_refusal), (Side::Backend, down_refusal)] {
            if let Some(refusal) = refusal {
                pair.refuse(side, refusal, clock.now());
            }
        }
        pair
    }

    /// Takes an event of one side's socket into account.
    pub(super) fn note(&mut self, side: Side, flags: EventFlags) {
        match side {
            Side::Client => self.client.note(flags),
            Side::Backend => self.backend.note(flags),
        }
    }

    /// Carries what can be carried now, in both directions, and sees whether that was the end.
    pub(super) fn advance(&mut self, clock: &Clock, tools: &mut Tools) -> Progress {
        let mut more = false;
        for side in [Side::Client, Side::Backend] {
            let (half, source, sink, last) = match side {
                Side::Client => {
                    (&mut self.up, &mut self.client, &mut self.backend, self.down.is_done())
                }
                Side::Backend => {
                    (&mut self.down, &mut self.backend, &mut self.client, self.up.is_done())
                }
            };
            let manners = Manners { rules: &self.rules, from: side };
            match half.advance(source, sink, last, manners, tools) {
                Ok(turn) => more |= turn == Turn::More,
                Err(Stop::Source) => return Progress::Over(self.reset(side)),
                Err(Stop::Sink) => {
                    self.read_last_words(side.other(), tools);
                    return Progress::Over(self.reset(side.other()));
                }
                Err(Stop::Refused(refusal)) => {
                    self.refuse(side, refusal, clock.now());
                    more = true;
                }
            }
        }
        // A side that nobody reads, since it has ended its sending or its direction is blocked, can still break.
        if !self.up.is_reading() && self.client.is_broken() {
            return Progress::Over(self.reset(Side::Client));
        }
        if !self.down.is_reading() && self.backend.is_broken() {
            return Progress::Over(self.reset(Side::Backend));
        }
        self.note_life(clock);
        if let Some(reason) = self.note_end(clock) {
            return Progress::Over(reason);
        }
        // The rate holds no end up, and for what has come already there will be no event.
        if self.ending.is_some() && self.up.is_paused() {
            self.up.pause(false);
            more = true;
        }
        Progress::On(if more { Turn::More } else { Turn::Waiting })
    }

    /// Whether time plays a part in it.
    pub(super) fn has_time(&self) -> bool {
        self.watch.is_some() || self.last_tick.is_some()
    }

    /// Why a tunnel ends that is cut: what was ending it, or else the drain, if there is one.
    pub(super) fn reason_of_cut(&self) -> Reason {
        match self.ending {
            // An end that was not the whole one is none.
            None | Some(Reason::Eof(_)) if self.is_draining() => Reason::Drain,
            None | Some(Reason::Eof(_)) => Reason::Admin,
            Some(reason) => reason,
        }
    }

    /// Closes both connections.
    pub(super) fn close(
        mut self,
        reactor: &Reactor,
        reason: Reason,
        tools: &mut Tools,
    ) -> TunnelEnd {
        let end = TunnelEnd {
            to_backend: self.up.carried(),
            to_client: self.down.carried().saturating_sub(u64::from(self.head_len)),
            reason,
            up: *self.up.gate().tally(),
            down: *self.down.gate().tally(),
            blind: u8::from(self.up.gate().is_blind()) + u8::from(self.down.gate().is_blind()),
        };
        // What a side was sent last, perhaps a Close frame, still reaches it.
        if !(self.up.is_done() && self.down.is_done()) {
            self.up.flush_last(&mut self.backend, tools);
            self.down.flush_last(&mut self.client, tools);
            self.client.leave(&mut tools.scratch);
            self.backend.leave(&mut tools.scratch);
        }
        self.up.release(&mut tools.pipes);
        self.down.release(&mut tools.pipes);
        self.client.close(reactor);
        self.backend.close(reactor);
        end
    }

    /// The half whose sink is this side.
    fn half_to(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Client => &mut self.down,
            Side::Backend => &mut self.up,
        }
    }

    /// The half whose source is this side.
    fn half_from(&mut self, side: Side) -> &mut Half {
        self.half_to(side.other())
    }

    /// Carries what a side whose connection broke under a write had sent before: it may be a Close that says why.
    fn read_last_words(&mut self, side: Side, tools: &mut Tools) {
        let (half, source, sink) = match side {
            Side::Client => (&mut self.up, &mut self.client, &mut self.backend),
            Side::Backend => (&mut self.down, &mut self.backend, &mut self.client),
        };
        let manners = Manners { rules: &self.rules, from: side };
        // The tunnel is over whatever comes of it.
        let _ = half.advance(source, sink, true, manners, tools);
    }

    /// Why a tunnel is over whose connection to this side broke. The other side is told if it is to be.
    fn reset(&mut self, side: Side) -> Reason {
        // Where a Close has passed, the gate lets none of ours pass any more.
        if !self.half_from(side).gate().is_shut()
            && let Some(frame) = (Manners { rules: &self.rules, from: side }).loss()
        {
            self.half_to(side.other()).insert(frame, true);
        }
        match self.ending {
            // An end that was not the whole one is none.
            None | Some(Reason::Eof(_)) => Reason::Reset(side),
            Some(reason) => reason,
        }
    }

    /// Ends a tunnel because of a frame of this side.
    fn refuse(&mut self, side: Side, refusal: Refusal, now: Tick) {
        let (reason, close_code, text) = match refusal {
            Refusal::MessageTooBig => {
                (Reason::MessageTooBig, code::MESSAGE_TOO_BIG, "message too big")
            }
            Refusal::Protocol => (Reason::Protocol, code::PROTOCOL_ERROR, "protocol error"),
        };
        let (to_sender, to_other) = (Some((close_code, text)), Some((code::GOING_AWAY, text)));
        match side {
            Side::Client => self.say_goodbye(reason, to_sender, to_other, now),
            Side::Backend => self.say_goodbye(reason, to_other, to_sender, now),
        }
    }

    /// Sends a Close to one side or both, as the last thing that it gets, and bounds the time that is left.
    fn say_goodbye(
        &mut self,
        reason: Reason,
        to_client: Option<(u16, &str)>,
        to_backend: Option<(u16, &str)>,
        now: Tick,
    ) {
        // A closing that is under way is left alone.
        if !matches!(self.ending, None | Some(Reason::Eof(_))) {
            return;
        }
        self.ending = Some(reason);
        (self.told_client, self.told_backend) = (to_client.is_some(), to_backend.is_some());
        if let Some((close_code, text)) = to_client {
            self.down.insert(control::close(close_code, text, None), true);
        }
        if let Some((close_code, text)) = to_backend {
            self.up.insert(control::close(close_code, text, Some(control::fresh_mask())), true);
        }
        self.bound_end(now);
    }

    /// From now on there is only the grace time left.
    fn bound_end(&mut self, now: Tick) {
        let grace = ticks(self.rules.close_grace);
        self.last_tick.get_or_insert(now.saturating_add(grace));
    }

    /// Sees whether the tunnel ends, or has ended.
    fn note_end(&mut self, clock: &Clock) -> Option<Reason> {
        let (client_closed, backend_closed) =
            (self.up.gate().tally().has_close(), self.down.gate().tally().has_close());
        if self.ending.is_none() {
            self.ending =
                match (client_closed, backend_closed, self.up.is_done(), self.down.is_done()) {
                    (true, ..) => Some(Reason::Close(Side::Client)),
                    (_, true, ..) => Some(Reason::Close(Side::Backend)),
                    (_, _, true, _) => Some(Reason::Eof(Side::Client)),
                    (_, _, _, true) => Some(Reason::Eof(Side::Backend)),
                    _ => None,
                };
        }
        let reason = self.ending?;
        if self.up.is_done() && self.down.is_done() {
            return Some(reason);
        }
        let is_told_lost =
            self.rules.client_lost_code.is_some() && self.up.is_done() && !client_closed
                || self.rules.backend_lost_code.is_some() && self.down.is_done() && !backend_closed;
        match reason {
            Reason::Close(_) if client_closed && backend_closed => self.bound_end(clock.now()),
            // The side that is left has been told, and is not waited for.
            Reason::Close(_) | Reason::Eof(_) if is_told_lost => self.bound_end(clock.now()),
            Reason::Close(_) | Reason::Eof(_) | Reason::Reset(_) => {}
            // A goodbye of ours is over when everyone who was told has answered, and what was said has been written.
            _ => {
                let all_told = self.up.is_flushed()
                    && self.down.is_flushed()
                    && !self.down.gate().has_errand();
                let has_answered = |half: &Half| {
                    half.is_done()
                        || half.gate().tally().has_close() && half.gate().is_between_frames()
                };
                let client_is_done = !self.told_client || has_answered(&self.up);
                let backend_is_done = !self.told_backend || has_answered(&self.down);
                if all_told && client_is_done && backend_is_done {
                    return Some(reason);
                }
            }
        }
        None
    }
}
