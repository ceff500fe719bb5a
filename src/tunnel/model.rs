//! A tunnel without sockets, for property tests and the fuzz target: the machines of its end and of
//! its time, driven by arbitrary events as a tunnel drives them, with what must always hold checked
//! at each step.

use std::time::Duration;

use super::closing::{Actions, Closing, SideState};
use super::keepalive::{Activity, KeepAlive, PathState, TickActions, TickState};
use super::limits::Violation;
use super::policy::Policy;
use super::reason::{Cause, Reason};
use super::side::{PerSide, Side};
use super::ticks::{Tick, ticks};

/// A tunnel as its machines see it.
#[derive(Debug)]
pub(crate) struct Model {
    policy: Policy,
    now: Tick,
    closing: Closing,
    keepalive: KeepAlive,
    states: PerSide<SideState>,
    /// Sides that take no bytes.
    is_blocked: PerSide<bool>,
    /// Sides for which what is pending has been dropped.
    is_abandoned: PerSide<bool>,
    /// Sides that have ended or broken, with bytes of them still to be relayed.
    is_ending: PerSide<bool>,
    /// Sides to which a Close has gone, the proxy's or the other side's.
    got_close: PerSide<bool>,
    /// Last tick at which it must be over, and at which some of a broken side's last bytes moved.
    must_end: Option<Tick>,
    reason: Option<Reason>,
}

/// Something that happens to a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// This side sends data, or a part of a frame.
    Data(Side, bool),
    Close(Side),
    Eof(Side),
    Reset(Side),
    Violation(Side),
    /// This side takes no bytes any more, or takes them again.
    Blocked(Side, bool),
    /// A drain begins, after a wait of so many ticks.
    Drain(u8),
    /// So many ticks pass, each looked at.
    Ticks(u8),
    /// The tunnel is cut.
    Abort,
}

impl Model {
    /// Creates a tunnel with everything that time can do to it. `codes` has lost peers told.
    pub(crate) fn new(codes: bool) -> Self {
        let time = |ms| Some(Duration::from_millis(ms));
        let policy = Policy {
            ping_interval: time(2_000),
            pong_timeout: Duration::from_millis(1_000),
            idle_timeout: time(20_000),
            blocked_timeout: time(8_000),
            max_lifetime: time(40_000),
            backend_lost_code: codes.then_some(1014),
            client_lost_code: codes.then_some(1001),
            close_grace: Duration::from_millis(1_500),
            ..Policy::default()
        };
        let open = SideState { is_between_frames: true, is_flushed: true, ..SideState::default() };
        Self {
            now: 100,
            closing: Closing::default(),
            keepalive: KeepAlive::new(100, &policy),
            states: PerSide { client: open, backend: open },
            is_blocked: PerSide::default(),
            is_abandoned: PerSide::default(),
            is_ending: PerSide::default(),
            got_close: PerSide::default(),
            must_end: None,
            reason: None,
            policy,
        }
    }

    /// Returns whether the tunnel is over.
    pub(crate) fn is_over(&self) -> bool {
        self.reason.is_some()
    }

    /// Has something happen, unless the tunnel is over, and judges what has come of it.
    ///
    /// # Panics
    ///
    /// If a side is sent a second Close, or anything after a Close; if the tunnel is not over when
    /// its grace time is.
    pub(crate) fn happen(&mut self, happening: Happening) {
        match happening {
            _ if self.is_over() => {}
            Happening::Ticks(count) => (0..count).for_each(|_| self.tick()),
            Happening::Abort => {
                let actions = self.closing.abort(false, &self.states, &self.policy);
                self.carry_out(actions);
                assert!(self.is_over(), "a cut tunnel goes on");
            }
            Happening::Drain(wait) => {
                self.keepalive.drain_at(self.now.saturating_add(wait.into()));
            }
            Happening::Blocked(side, is_blocked) => self.is_blocked[side] = is_blocked,
            Happening::Data(side, is_whole) => self.send(side, is_whole),
            Happening::Close(side) => self.send_close(side),
            Happening::Eof(side) => self.is_ending[side] |= !self.states[side].has_ended,
            Happening::Reset(side) => self.reset(side),
            Happening::Violation(side) => self.violate(side),
        }
        self.turn();
    }

    /// Has all that happens end, and time pass: a tunnel whose end has begun is over then, unless
    /// its endpoints may go on.
    pub(crate) fn finish(mut self) {
        let begun = self.closing.deadline().is_some();
        self.happen(Happening::Ticks(u8::MAX));
        assert!(!begun || self.is_over(), "the grace time does not end it: {self:?}");
    }

    fn send(&mut self, side: Side, is_whole: bool) {
        if self.is_silent(side) {
            return;
        }
        self.states[side].is_between_frames = is_whole;
        let to = &mut self.states[side.other()];
        to.is_flushed &= to.is_closed || !self.is_blocked[side.other()];
        self.record(PerSide::with(side, true, false));
    }

    fn send_close(&mut self, side: Side) {
        if self.is_silent(side) || self.states[side].sent_close {
            return;
        }
        self.send(side, true);
        self.states[side].sent_close = true;
        self.got_close[side.other()] |= !self.states[side.other()].is_closed;
    }

    fn reset(&mut self, side: Side) {
        if self.closing.is_broken(side) {
            return;
        }
        self.states[side].is_flushed = true;
        let actions = self.closing.on_reset(side, &self.states);
        self.carry_out(actions);
        self.is_ending[side] |= !self.states[side].has_ended;
    }

    fn violate(&mut self, side: Side) {
        if self.is_silent(side) || self.states[side.other()].is_closed {
            return;
        }
        self.states[side.other()].is_closed = true;
        let cause = Cause::Violation(side, Violation::Protocol);
        let actions = self.closing.start_close(cause, &self.states, self.now, &self.policy);
        self.carry_out(actions);
    }

    /// Returns whether nothing can come of a side any more.
    fn is_silent(&self, side: Side) -> bool {
        self.is_ending[side] || self.states[side].has_ended || self.closing.is_broken(side)
    }

    /// Relays what can be relayed, and judges it, as a turn of a tunnel does.
    fn turn(&mut self) {
        for side in Side::BOTH {
            if self.is_over() {
                return;
            }
            let to = &mut self.states[side.other()];
            if self.is_abandoned[side.other()] || !self.is_blocked[side.other()] {
                to.taken += u64::from(!to.is_flushed);
                to.is_flushed = true;
            }
            if self.is_ending[side] && self.states[side.other()].is_flushed {
                self.is_ending[side] = false;
                let actions = self.closing.on_eof(side, &self.states, &self.policy);
                self.carry_out(actions);
                self.states[side].has_ended = true;
            }
        }
        if self.is_over() {
            return;
        }
        self.record(PerSide::default());
        let now = self.now;
        let actions = self.closing.on_progress(&self.states, || now, &self.policy);
        self.carry_out(actions);
        self.check_deadline();
    }

    fn tick(&mut self) {
        if self.is_over() {
            return;
        }
        self.now += 1;
        let actions = self.closing.on_tick(self.now, &self.states);
        self.carry_out(actions);
        if self.is_over() || self.closing.deadline().is_some() {
            return;
        }
        if let Some(cause) = self.keepalive.due(self.now, &self.policy) {
            let actions = self.closing.start_close(cause, &self.states, self.now, &self.policy);
            self.carry_out(actions);
        } else if self.closing.is_open() {
            let state = self.tick_state();
            let TickActions { ping, close } =
                self.keepalive.on_tick(self.now, &state, &self.policy);
            for side in Side::BOTH {
                assert!(
                    ping[side].is_none() || !self.got_close[side],
                    "a Ping for the {} after a Close",
                    side.name()
                );
            }
            if let Some(cause) = close {
                let actions = self.closing.start_close(cause, &self.states, self.now, &self.policy);
                self.carry_out(actions);
            }
        }
        self.turn();
    }

    fn tick_state(&self) -> TickState {
        TickState {
            paths: PerSide::from_fn(|side| PathState {
                is_read: !self.is_silent(side) && self.states[side.other()].is_flushed,
                written: self.states[side].taken,
                waits_for_boundary: !self.states[side.other()].is_between_frames,
                waits_for_room: !self.states[side].is_flushed,
            }),
            can_ping: self.states.all(|state| !state.has_ended && !state.is_closed),
        }
    }

    fn record(&mut self, sent: PerSide<bool>) {
        let blocked_at =
            |side: Side| (!self.states[side].is_flushed).then_some(self.states[side].taken);
        let activity = Activity {
            sent,
            has_data: sent.client || sent.backend,
            blocked_at: PerSide::from_fn(blocked_at),
        };
        self.keepalive.on_activity(self.now, &activity);
    }

    fn carry_out(&mut self, actions: Actions) {
        for side in Side::BOTH {
            if actions.close[side].is_some() {
                assert!(!self.got_close[side], "a second Close for the {}", side.name());
                self.got_close[side] = true;
                let state = &mut self.states[side];
                state.is_closed = true;
                state.is_flushed &= !self.is_blocked[side];
            }
        }
        if let Some(side) = actions.abandon {
            self.states[side].is_closed = true;
            self.is_abandoned[side] = true;
        }
        self.reason = self.reason.or(actions.finish);
    }

    /// Checks that the grace time is set once, but for the reader of a broken side's last bytes.
    fn check_deadline(&mut self) {
        let Some(deadline) = self.closing.deadline() else {
            assert!(self.must_end.is_none(), "the grace time is forgotten");
            return;
        };
        let latest = self.now.saturating_add(ticks(self.policy.close_grace));
        assert!(deadline <= latest, "the grace time is longer than it is set");
        let is_broken = Side::BOTH.into_iter().any(|side| self.closing.is_broken(side));
        assert!(
            is_broken || self.must_end.is_none_or(|end| deadline <= end),
            "the grace time is prolonged"
        );
        self.must_end = Some(deadline);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn happening() -> impl Strategy<Value = Happening> {
        let side = prop_oneof![Just(Side::Client), Just(Side::Backend)];
        (side, 0..10, any::<bool>(), 0_u8..60).prop_map(|(side, kind, flag, ticks)| match kind {
            0 | 1 => Happening::Data(side, flag),
            2 => Happening::Close(side),
            3 => Happening::Eof(side),
            4 => Happening::Reset(side),
            5 => Happening::Violation(side),
            6 => Happening::Blocked(side, flag),
            7 => Happening::Drain(ticks),
            8 => Happening::Ticks(ticks),
            _ if flag && ticks > 50 => Happening::Abort,
            _ => Happening::Ticks(ticks / 8),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn whatever_happens_the_rules_hold(
            codes: bool, happenings in prop::collection::vec(happening(), 0..30),
        ) {
            let mut model = Model::new(codes);
            happenings.into_iter().for_each(|happening| model.happen(happening));
            model.finish();
        }
    }

    #[test]
    fn a_tunnel_of_which_nothing_is_heard_ends() {
        let mut model = Model::new(true);
        model.happen(Happening::Ticks(40));
        assert!(model.is_over());
    }
}
