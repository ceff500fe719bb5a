//! The end of a tunnel, as a pure state machine: events and ticks in, actions out.
//!
//! A tunnel is open until something begins to end it: an endpoint's Close, the end or the break of
//! a connection, or a [`Cause`] of the proxy. What came first names the end, except that an EOF
//! alone is not yet the end of the tunnel and gives way to whatever follows. `docs/closing.md`
//! tells the same rules from the outside.

use std::num::NonZero;

use super::control::code;
use super::policy::Policy;
use super::reason::{BY_ORDER, Cause, CloseFrame, Reason};
use super::side::{PerSide, Side};
use super::ticks::{Tick, ticks};

/// State of one side's connection, as the directions of the tunnel report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SideState {
    /// It has sent a Close.
    pub(super) sent_close: bool,
    /// Its last frame has come as a whole, as far as frames can be followed.
    pub(super) is_between_frames: bool,
    /// It has ended its sending, and all of it has been relayed, the end included.
    pub(super) has_ended: bool,
    /// All that is meant for it has been written.
    pub(super) is_flushed: bool,
    /// Bytes that it has taken.
    pub(super) taken: u64,
    /// Nothing more is relayed to it: it has got a Close of the proxy, is dead, or waits for one
    /// after a violation.
    pub(super) is_closed: bool,
}

/// Actions for the tunnel to carry out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Actions {
    /// Close frame for each side, as the last thing that it gets.
    pub(super) close: PerSide<Option<CloseFrame>>,
    /// Relay nothing more to this side, not even a Close.
    pub(super) abandon: Option<Side>,
    /// Read a client again that its rate has paused: a pause holds up no end.
    pub(super) resume: bool,
    /// The tunnel is over.
    pub(super) finish: Option<Reason>,
}

/// Progress of a tunnel towards its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Closing {
    /// First reason for the end; `None` while the tunnel is open.
    reason: Option<Reason>,
    /// Codes of the Closes of the proxy that the sides were sent. None gets a second one.
    close_sent: PerSide<Option<NonZero<u16>>>,
    /// Sides that have to answer it (RFC 6455, 5.5.1).
    awaiting_close: PerSide<bool>,
    /// Side that is dead or takes no bytes: nothing is written to it any more.
    abandoned: Option<Side>,
    /// Side whose connection broke. What it had sent before is still relayed.
    broken: Option<Side>,
    /// Bytes that the other one had taken when it was last seen to move, with wrapping.
    taken: u32,
    /// Tick at which the tunnel is over, whatever is missing then.
    close_deadline: Option<Tick>,
}

impl Closing {
    /// Returns whether nothing has begun to end the tunnel.
    pub(super) fn is_open(&self) -> bool {
        self.reason.is_none()
    }

    /// Returns whether this side's connection is known to be broken.
    pub(super) fn is_broken(&self, side: Side) -> bool {
        self.broken == Some(side)
    }

    /// Returns the codes of the Closes that the proxy has sent.
    pub(super) fn sent_codes(&self) -> PerSide<Option<u16>> {
        PerSide::from_fn(|side| self.close_sent[side].map(NonZero::get))
    }

    /// Returns the tick at which the tunnel is over in any case, once its grace time runs.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.close_deadline
    }

    /// Begins to close the tunnel for a cause of the proxy.
    ///
    /// A closing under way is left alone: no side gets a second Close. But one that the endpoints
    /// have begun and nobody answers gets no more time than the drain, the lifetime or the idle
    /// timeout would have given it.
    pub(super) fn start_close(
        &mut self,
        cause: Cause,
        states: &PerSide<SideState>,
        now: Tick,
        policy: &Policy,
    ) -> Actions {
        self.record_close(states);
        // A Close after an EOF does not name the end, but is a Close all the same.
        match self.standing_reason().or_else(|| first_close(states)) {
            None => {}
            // The endpoints are closing. A second Close would be against RFC 6455, 5.5.1; that the
            // time has run out only bounds how long they may take.
            Some(Reason::Close(_)) if cause.is_timed() => {
                self.start_grace(now, policy);
                return Actions::default();
            }
            // The proxy is closing for another cause, which was first.
            Some(_) => return Actions::default(),
        }
        let close = cause.close_frames(policy);
        self.reason = Some(cause.reason());
        self.awaiting_close = PerSide::from_fn(|side| close[side].is_some());
        self.start_grace(now, policy);
        let close = self.once(close);
        self.abandoned = match cause {
            Cause::PongTimeout(side) | Cause::Blocked(side) => Some(side),
            _ => None,
        };
        Actions { close, abandon: self.abandoned, ..Actions::default() }
    }

    /// Handles the end of a side's sending, be it by a FIN or by a break, before the end itself is
    /// relayed: the last moment for a Close to the other side, whose reading ends with it.
    pub(super) fn on_eof(
        &mut self,
        side: Side,
        states: &PerSide<SideState>,
        policy: &Policy,
    ) -> Actions {
        let close = self.once(lost(side, states, policy));
        Actions { close, ..Actions::default() }
    }

    /// Handles a broken connection. Nothing can be written to its side any more, but what the side
    /// had sent is still to be read and relayed: the kernel keeps it.
    pub(super) fn on_reset(&mut self, side: Side, states: &PerSide<SideState>) -> Actions {
        self.record_close(states);
        let reason = self.standing_reason().unwrap_or(Reason::Reset(side));
        self.reason = Some(reason);
        // There is nobody left to relay to, or nothing.
        let is_second = self.broken.replace(side).is_some();
        let finish = (is_second || states[side].has_ended).then_some(reason);
        Actions { abandon: Some(side), resume: true, finish, ..Actions::default() }
    }

    /// Handles what the directions have relayed in a turn. `now` is called only where a grace time
    /// begins.
    pub(super) fn on_progress(
        &mut self,
        states: &PerSide<SideState>,
        now: impl Fn() -> Tick,
        policy: &Policy,
    ) -> Actions {
        let Some(reason) = self.reason.or_else(|| first_end(states)) else {
            return Actions::default();
        };
        let reason = match reason {
            // A Close among what was still to be read came before the break.
            Reason::Reset(side) if states[side].sent_close => Reason::Close(side),
            reason => reason,
        };
        self.reason = Some(reason);
        // Both directions have relayed everything, the ends included.
        if states.all(|state| state.has_ended) {
            return Actions { finish: Some(reason), ..Actions::default() };
        }
        if let Some(side) = self.broken {
            // A closing of the proxy has its own deadline, and needs no answer to nobody.
            if !reason.is_of_endpoints() {
                let finish = states[side].has_ended.then_some(reason);
                return Actions { finish, resume: true, ..Actions::default() };
            }
            // The other side may be sending, and a connection that is closed under what it sends is
            // reset, which discards what is still on its way there (RFC 9112, 9.6). So it is read
            // until it has ended too.
            self.wait_for_progress(states[side.other()].taken, now, policy);
            return Actions { resume: true, ..Actions::default() };
        }
        match reason {
            // The closing handshake is complete. The server closes the connection first (RFC 6455,
            // 7.1.1); if neither does, the proxy ends both.
            Reason::Close(_) if states.all(|state| state.sent_close) => {
                self.start_grace(now(), policy);
            }
            // A side that has sent a Close and a FIN sends nothing more: the other one is not
            // waited for without an end.
            Reason::Close(_) if has_left(states) => self.start_grace(now(), policy),
            // The side that is left has been told of the loss, and is not waited for.
            Reason::Close(_) | Reason::Eof(_) if was_told_of_loss(states, policy) => {
                self.start_grace(now(), policy);
            }
            // The endpoints end it among themselves; a half-closed connection may stay so.
            Reason::Close(_) | Reason::Eof(_) | Reason::Reset(_) => {}
            // The proxy's closing is over when every Close has been written and answered.
            _ if self.is_answered(states) => {
                return Actions { finish: Some(reason), ..Actions::default() };
            }
            _ => {}
        }
        Actions { resume: true, ..Actions::default() }
    }

    /// Handles a tick. At the deadline a backend whose client has not answered the proxy's Close
    /// gets one of its own, if it has got none: it is still owed the reason for the end.
    pub(super) fn on_tick(&mut self, now: Tick, states: &PerSide<SideState>) -> Actions {
        if self.close_deadline.is_none_or(|deadline| now < deadline) {
            return Actions::default();
        }
        let reason = self.reason.unwrap_or(Reason::Admin);
        let text = match reason {
            Reason::Drain => Some("shutting down"),
            Reason::Lifetime => Some("maximum lifetime reached"),
            Reason::Admin
            | Reason::BackendRemoved
            | Reason::BackendUnhealthy
            | Reason::Rebalance => Some(BY_ORDER),
            // The others have told the backend, or it is the one at fault.
            _ => None,
        };
        let text = text.filter(|_| is_owed_close(Side::Backend, states));
        let frame = text.map(|reason| CloseFrame { code: code::GOING_AWAY, reason });
        let close = self.once(PerSide { client: None, backend: frame });
        Actions { close, finish: Some(reason), ..Actions::default() }
    }

    /// Ends the tunnel now, from the outside and without waiting.
    pub(super) fn abort(
        &mut self,
        is_draining: bool,
        states: &PerSide<SideState>,
        policy: &Policy,
    ) -> Actions {
        let cut = if is_draining { Reason::Drain } else { Reason::Admin };
        let reason = self.standing_reason().unwrap_or(cut);
        let frame = |code| CloseFrame { code, reason: "shutting down" };
        let codes = PerSide { client: policy.drain_close_code, backend: code::GOING_AWAY };
        let close =
            PerSide::from_fn(|side| is_owed_close(side, states).then(|| frame(codes[side])));
        let close = self.once(close);
        Actions { close, finish: Some(reason), ..Actions::default() }
    }

    /// Records a Close that came in the same turn as what is handled now: it was first.
    fn record_close(&mut self, states: &PerSide<SideState>) {
        self.reason = self.reason.or_else(|| first_close(states));
    }

    /// Returns the reason that no other one replaces. An EOF alone may be a half-close, and gives
    /// way.
    fn standing_reason(&self) -> Option<Reason> {
        self.reason.filter(|reason| !matches!(reason, Reason::Eof(_)))
    }

    /// Leaves out the Close of a side that was sent one before.
    fn once(&mut self, mut close: PerSide<Option<CloseFrame>>) -> PerSide<Option<CloseFrame>> {
        for side in Side::BOTH {
            close[side] = close[side].filter(|_| self.close_sent[side].is_none());
            // No code is 0 (RFC 6455, 7.4.2).
            let code = close[side].and_then(|frame| NonZero::new(frame.code));
            self.close_sent[side] = self.close_sent[side].or(code);
        }
        close
    }

    /// Sets the deadline, unless there is one.
    fn start_grace(&mut self, now: Tick, policy: &Policy) {
        self.close_deadline.get_or_insert(now.saturating_add(ticks(policy.close_grace)));
    }

    /// Gives the reader of a broken side's last bytes its grace time anew whenever it has taken
    /// some.
    fn wait_for_progress(&mut self, taken: u64, now: impl Fn() -> Tick, policy: &Policy) {
        let taken = taken as u32;
        if self.close_deadline.is_none() || taken != self.taken {
            self.taken = taken;
            self.close_deadline = None;
            self.start_grace(now(), policy);
        }
    }

    /// Returns whether the proxy's Closes have been written, and answered by a whole Close or by
    /// the end.
    fn is_answered(&self, states: &PerSide<SideState>) -> bool {
        let has_answered = |side: Side| {
            let state = &states[side];
            !self.awaiting_close[side]
                || state.has_ended
                || state.sent_close && state.is_between_frames
        };
        let is_written = |side: Side| states[side].is_flushed || self.abandoned == Some(side);
        Side::BOTH.into_iter().all(|side| is_written(side) && has_answered(side))
    }
}

/// Returns whether a side is still owed a Close when nobody is waited for any more: it has got
/// none, neither the proxy's nor the other side's, and is neither lost nor dead. One that has sent
/// a Close gets no answer in the other one's name.
fn is_owed_close(side: Side, states: &PerSide<SideState>) -> bool {
    let (own, other) = (&states[side], &states[side.other()]);
    !own.is_closed && !own.has_ended && !own.sent_close && !other.sent_close
}

/// Returns the first end that the endpoints have made: a Close before an EOF, the client's before
/// the backend's.
fn first_end(states: &PerSide<SideState>) -> Option<Reason> {
    let closed = first_close(states);
    closed.or_else(|| Side::BOTH.into_iter().find(|&side| states[side].has_ended).map(Reason::Eof))
}

/// Returns the end by a Close of an endpoint, if there is one.
fn first_close(states: &PerSide<SideState>) -> Option<Reason> {
    Side::BOTH.into_iter().find(|&side| states[side].sent_close).map(Reason::Close)
}

/// Returns whether a side has sent a Close and ended its sending.
fn has_left(states: &PerSide<SideState>) -> bool {
    Side::BOTH.into_iter().any(|side| states[side].sent_close && states[side].has_ended)
}

/// Returns the Close for the opposite of a side that is lost, if the policy has one: a side whose
/// connection ended or broke without a Close. Without a code the bare end is relayed.
fn lost(side: Side, states: &PerSide<SideState>, policy: &Policy) -> PerSide<Option<CloseFrame>> {
    let other = side.other();
    let code =
        lost_code(side, policy).filter(|_| !states[side].sent_close && !states[other].is_closed);
    let reason = match side {
        Side::Client => "the client is lost",
        Side::Backend => "the backend is lost",
    };
    PerSide::with(other, code.map(|code| CloseFrame { code, reason }), None)
}

fn lost_code(lost: Side, policy: &Policy) -> Option<u16> {
    match lost {
        Side::Client => policy.client_lost_code,
        Side::Backend => policy.backend_lost_code,
    }
}

/// Returns whether a side has ended without a Close, and the policy had the other one told.
fn was_told_of_loss(states: &PerSide<SideState>, policy: &Policy) -> bool {
    Side::BOTH.into_iter().any(|side| {
        let state = &states[side];
        state.has_ended && !state.sent_close && lost_code(side, policy).is_some()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tunnel::limits::Violation;
    use crate::tunnel::reason::OrderCause::{
        BackendRemoved, BackendUnhealthy, Operator, Rebalance,
    };

    const NOW: Tick = 100;

    fn policy() -> Policy {
        Policy {
            backend_lost_code: Some(1014),
            client_lost_code: Some(1001),
            drain_close_code: 1012,
            close_grace: Duration::from_secs(2),
            ..Policy::default()
        }
    }

    /// What has happened at one side of a tunnel.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum At {
        Open,
        CloseSent,
        CloseSeen,
        Eof,
        Reset,
        Violation,
        Drained,
        Paused,
        Blocked,
    }

    const ALL: [At; 9] = [
        At::Open,
        At::CloseSent,
        At::CloseSeen,
        At::Eof,
        At::Reset,
        At::Violation,
        At::Drained,
        At::Paused,
        At::Blocked,
    ];

    /// A tunnel of which only the decisions are real.
    struct Model {
        closing: Closing,
        states: PerSide<SideState>,
        got_close: PerSide<bool>,
        is_paused: bool,
        /// All actions so far, in order.
        done: Vec<String>,
    }

    impl Model {
        fn new() -> Self {
            let open =
                SideState { is_flushed: true, is_between_frames: true, ..SideState::default() };
            Self {
                closing: Closing::default(),
                states: PerSide { client: open, backend: open },
                got_close: PerSide::default(),
                is_paused: false,
                done: Vec::new(),
            }
        }

        fn is_over(&self) -> bool {
            self.done.last().is_some_and(|done| done.starts_with('='))
        }

        /// Has something happen at a side, and the turn that follows it.
        fn happen(&mut self, side: Side, at: At) {
            let policy = policy();
            let actions = match at {
                At::Open => Actions::default(),
                // The other side is dead, which tells this one alone.
                At::CloseSent => self.closing.start_close(
                    Cause::PongTimeout(side.other()),
                    &self.states,
                    NOW,
                    &policy,
                ),
                At::CloseSeen => {
                    self.states[side].sent_close = true;
                    Actions::default()
                }
                At::Eof => {
                    let actions = self.closing.on_eof(side, &self.states, &policy);
                    self.states[side].has_ended = true;
                    actions
                }
                At::Reset => {
                    let actions = self.closing.on_reset(side, &self.states);
                    self.carry_out(actions);
                    // All that it had sent is read and relayed, unless the other side is blocked.
                    if self.is_over() || !self.states[side.other()].is_flushed {
                        Actions::default()
                    } else {
                        let actions = self.closing.on_eof(side, &self.states, &policy);
                        self.states[side].has_ended = true;
                        actions
                    }
                }
                At::Violation => {
                    // The filter lets nothing more pass to the other side.
                    self.states[side.other()].is_closed = true;
                    let cause = Cause::Violation(side, Violation::Protocol);
                    self.closing.start_close(cause, &self.states, NOW, &policy)
                }
                At::Drained => self.closing.start_close(Cause::Drain, &self.states, NOW, &policy),
                At::Paused => {
                    self.is_paused = true;
                    Actions::default()
                }
                At::Blocked => {
                    self.states[side].is_flushed = false;
                    Actions::default()
                }
            };
            self.carry_out(actions);
            self.turn();
        }

        /// Judges what has been relayed by now.
        fn turn(&mut self) {
            if !self.is_over() {
                let actions = self.closing.on_progress(&self.states, || NOW, &policy());
                self.carry_out(actions);
            }
        }

        fn carry_out(&mut self, actions: Actions) {
            for side in Side::BOTH {
                if let Some(frame) = actions.close[side] {
                    assert!(!self.got_close[side], "a second Close for the {}", side.name());
                    self.got_close[side] = true;
                    self.states[side].is_closed = true;
                    self.done.push(format!("{}:{}", &side.name()[..1], frame.code));
                }
            }
            if let Some(dead) = actions.abandon {
                self.states[dead].is_closed = true;
                self.done.push(format!("{}:abandon", &dead.name()[..1]));
            }
            if std::mem::take(&mut self.is_paused) {
                self.is_paused = !actions.resume;
                if actions.resume {
                    self.done.push("resume".to_owned());
                }
            }
            if let Some(reason) = actions.finish {
                self.done.push(format!("={}", reason.name()));
            }
        }

        /// Returns all actions, and what is going to end the tunnel: `=reason` where it is over,
        /// `reason+` where the grace time runs, `reason` where the endpoints are left to it.
        fn tell(&self) -> String {
            let mut told = self.done.clone();
            if !self.is_over()
                && let Some(reason) = self.closing.reason
            {
                let runs = if self.closing.deadline().is_some() { "+" } else { "" };
                told.push(format!("{}{runs}", reason.name()));
            }
            told.join(" ")
        }
    }

    fn pair(client: At, backend: At) -> String {
        let mut model = Model::new();
        model.happen(Side::Client, client);
        if !model.is_over() {
            model.happen(Side::Backend, backend);
        }
        model.tell()
    }

    /// Every pair of events, the client's first: actions and end, as [`Model::tell`] writes them.
    /// The columns are the backend's, in the order of [`ALL`].
    const PAIRS: [(At, [&str; 9]); 9] = [
        (
            At::Open,
            [
                "",
                "b:1001 c:abandon pong_timeout+",
                "backend_close",
                "c:1014 backend_eof+",
                "b:abandon c:1014 backend_reset+",
                "c:1001 b:1002 protocol+",
                "c:1012 drain+",
                "",
                "",
            ],
        ),
        (
            At::CloseSent,
            [
                "c:1014 b:abandon pong_timeout+",
                "c:1014 b:abandon pong_timeout+",
                "c:1014 b:abandon pong_timeout+",
                "c:1014 b:abandon pong_timeout+",
                "c:1014 b:abandon b:abandon =pong_timeout",
                "c:1014 b:abandon pong_timeout+",
                "c:1014 b:abandon pong_timeout+",
                "c:1014 b:abandon resume pong_timeout+",
                "c:1014 b:abandon pong_timeout+",
            ],
        ),
        (
            At::CloseSeen,
            [
                "client_close",
                "client_close",
                "client_close+",
                "c:1014 client_close+",
                "b:abandon c:1014 client_close+",
                "client_close",
                "client_close+",
                "resume client_close",
                "client_close",
            ],
        ),
        (
            At::Eof,
            [
                "b:1001 client_eof+",
                "b:1001 c:abandon pong_timeout+",
                "b:1001 client_eof+",
                "b:1001 c:1014 =client_eof",
                "b:1001 b:abandon c:1014 =backend_reset",
                "b:1001 c:1001 protocol+",
                "b:1001 c:1012 =drain",
                "b:1001 resume client_eof+",
                "b:1001 client_eof+",
            ],
        ),
        (
            At::Reset,
            [
                "c:abandon b:1001 client_reset+",
                "c:abandon b:1001 client_reset+",
                "c:abandon b:1001 client_reset+",
                "c:abandon b:1001 =client_reset",
                "c:abandon b:1001 b:abandon =client_reset",
                "c:abandon b:1001 client_reset+",
                "c:abandon b:1001 client_reset+",
                "c:abandon b:1001 resume client_reset+",
                "c:abandon b:1001 client_reset+",
            ],
        ),
        (
            At::Violation,
            [
                "c:1002 b:1001 protocol+",
                "c:1002 b:1001 protocol+",
                "c:1002 b:1001 protocol+",
                "c:1002 b:1001 protocol+",
                "c:1002 b:1001 b:abandon =protocol",
                "c:1002 b:1001 protocol+",
                "c:1002 b:1001 protocol+",
                "c:1002 b:1001 resume protocol+",
                "c:1002 b:1001 protocol+",
            ],
        ),
        (
            At::Drained,
            [
                "c:1012 drain+",
                "c:1012 drain+",
                "c:1012 drain+",
                "c:1012 drain+",
                "c:1012 b:abandon =drain",
                "c:1012 drain+",
                "c:1012 drain+",
                "c:1012 resume drain+",
                "c:1012 drain+",
            ],
        ),
        (
            At::Paused,
            [
                "",
                "b:1001 c:abandon resume pong_timeout+",
                "resume backend_close",
                "c:1014 resume backend_eof+",
                "b:abandon resume c:1014 backend_reset+",
                "c:1001 b:1002 resume protocol+",
                "c:1012 resume drain+",
                "",
                "",
            ],
        ),
        (
            At::Blocked,
            [
                "",
                "b:1001 c:abandon pong_timeout+",
                "backend_close",
                "c:1014 backend_eof+",
                "b:abandon backend_reset+",
                "c:1001 b:1002 protocol+",
                "c:1012 drain+",
                "",
                "",
            ],
        ),
    ];

    #[test]
    fn every_pair_of_events_ends_as_the_table_says() {
        for ((client, row), expected) in PAIRS.iter().zip(ALL) {
            assert_eq!(*client, expected);
            for (backend, told) in ALL.into_iter().zip(row) {
                assert_eq!(pair(*client, backend), *told, "client {client:?}, backend {backend:?}");
            }
        }
    }

    #[test]
    fn without_codes_a_loss_is_relayed_as_it_comes() {
        let policy = Policy::default();
        let states = Model::new().states;
        for side in Side::BOTH {
            let mut closing = Closing::default();
            assert_eq!(closing.on_eof(side, &states, &policy), Actions::default());
            let mut ended = states;
            ended[side].has_ended = true;
            let actions = closing.on_progress(&ended, || NOW, &policy);
            assert_eq!(actions, Actions { resume: true, ..Actions::default() });
            // A half-closed tunnel may stay so.
            assert_eq!((closing.reason, closing.deadline()), (Some(Reason::Eof(side)), None));
            closing.on_reset(side.other(), &ended);
            ended[side.other()].has_ended = true;
            let finish = closing.on_progress(&ended, || NOW, &policy).finish;
            assert_eq!(finish, Some(Reason::Reset(side.other())));
            // One that had ended before has nothing more to say.
            let mut closing = Closing::default();
            let finish = closing.on_reset(side, &ended).finish;
            assert_eq!(finish, Some(Reason::Reset(side)));
        }
    }

    #[test]
    fn a_side_that_has_sent_a_close_is_not_lost() {
        for side in Side::BOTH {
            let mut states = Model::new().states;
            states[side].sent_close = true;
            let mut closing = Closing::default();
            assert_eq!(closing.on_reset(side, &states).close, PerSide::default());
            assert_eq!(closing.on_eof(side, &states, &policy()), Actions::default());
        }
    }

    #[test]
    fn the_grace_time_ends_a_tunnel_for_its_first_reason() {
        let policy = policy();
        let mut closing = Closing::default();
        let states = Model::new().states;
        closing.start_close(Cause::Idle, &states, NOW, &policy);
        let deadline = NOW + ticks(policy.close_grace);
        assert_eq!(closing.deadline(), Some(deadline));
        // A later cause neither prolongs it nor names the end.
        closing.start_close(Cause::Drain, &states, NOW + 1, &policy);
        assert_eq!(closing.on_tick(deadline - 1, &states), Actions::default());
        assert_eq!(closing.on_tick(deadline, &states).finish, Some(Reason::Idle));
        assert_eq!(Closing::default().on_tick(Tick::MAX, &states), Actions::default());
    }

    #[test]
    fn a_time_that_runs_out_bounds_an_unanswered_close() {
        for cause in [Cause::Drain, Cause::Lifetime, Cause::Idle, Cause::Blocked(Side::Client)] {
            let mut states = Model::new().states;
            states.client.sent_close = true;
            let mut closing = Closing::default();
            let actions = closing.start_close(cause, &states, NOW, &policy());
            assert_eq!(actions, Actions::default(), "{cause:?}");
            assert_eq!(closing.deadline(), Some(NOW + ticks(policy().close_grace)), "{cause:?}");
        }
    }

    #[test]
    fn a_backend_whose_client_does_not_answer_gets_a_close_at_the_deadline() {
        let policy = Policy { lifetime_close_code: 4000, ..policy() };
        let told = |cause, change: fn(&mut PerSide<SideState>)| {
            let mut closing = Closing::default();
            let mut states = Model::new().states;
            closing.start_close(cause, &states, NOW, &policy);
            states.client.is_closed = true;
            change(&mut states);
            let actions = closing.on_tick(closing.deadline().unwrap(), &states);
            assert_eq!(actions.finish, Some(cause.reason()));
            assert_eq!(actions.close.client, None, "the client has got one");
            actions.close.backend.map(|frame| (frame.code, frame.reason))
        };
        let drain = Some((1001, "shutting down"));
        assert_eq!(told(Cause::Drain, |_| {}), drain);
        let lifetime = Some((1001, "maximum lifetime reached"));
        assert_eq!(told(Cause::Lifetime, |_| {}), lifetime);
        // Which text that is, the order tells.
        for cause in [Operator, BackendRemoved, BackendUnhealthy, Rebalance] {
            assert_eq!(told(Cause::Order(cause, 4001), |_| {}), Some((1001, BY_ORDER)));
        }
        // These have told it, or have nothing to tell.
        for cause in [Cause::Idle, Cause::PongTimeout(Side::Backend)] {
            assert_eq!(told(cause, |_| {}), None, "{cause:?}");
        }
        assert_eq!(told(Cause::Drain, |states| states.client.sent_close = true), None);
        assert_eq!(told(Cause::Drain, |states| states.backend.sent_close = true), None);
        assert_eq!(told(Cause::Drain, |states| states.backend.has_ended = true), None);
        assert_eq!(told(Cause::Drain, |states| states.backend.is_closed = true), None);
    }

    #[test]
    fn the_last_bytes_of_a_broken_side_have_time_as_long_as_some_are_taken() {
        let policy = policy();
        let grace = ticks(policy.close_grace);
        for side in Side::BOTH {
            let mut states = Model::new().states;
            let mut closing = Closing::default();
            let broken = closing.on_reset(side, &states);
            assert_eq!((broken.abandon, broken.finish), (Some(side), None));
            for step in 0..10 {
                let now = NOW + step * grace;
                states[side.other()].taken = u64::from(step / 2);
                let actions = closing.on_progress(&states, || now, &policy);
                assert_eq!(actions.finish, None);
                // Only the even steps move something.
                let since = NOW + (step - step % 2) * grace;
                assert_eq!(closing.deadline(), Some(since + grace), "step {step}");
            }
            let over = closing.on_tick(closing.deadline().unwrap(), &states);
            assert_eq!(over.finish, Some(Reason::Reset(side)));
            // All of it has been relayed, and the other side is waited for as well: it may be
            // sending.
            states[side].has_ended = true;
            assert_eq!(closing.on_progress(&states, || NOW, &policy).finish, None);
            states[side.other()].has_ended = true;
            let actions = closing.on_progress(&states, || NOW, &policy);
            assert_eq!(actions.finish, Some(Reason::Reset(side)));
        }
    }

    #[test]
    fn a_break_prolongs_no_closing_of_the_proxy_and_two_breaks_end_the_tunnel() {
        let policy = policy();
        for side in Side::BOTH {
            let mut states = Model::new().states;
            let mut closing = Closing::default();
            closing.start_close(Cause::Drain, &states, NOW, &policy);
            let deadline = closing.deadline();
            closing.on_reset(side, &states);
            states[side.other()].taken = 7;
            closing.on_progress(&states, || NOW + 4, &policy);
            assert_eq!(closing.deadline(), deadline);
            assert_eq!(closing.on_reset(side.other(), &states).finish, Some(Reason::Drain));
        }
    }

    #[test]
    fn a_close_among_the_last_bytes_of_a_broken_side_names_the_end() {
        for side in Side::BOTH {
            let mut states = Model::new().states;
            let mut closing = Closing::default();
            closing.on_reset(side, &states);
            states[side].sent_close = true;
            states[side].has_ended = true;
            states[side.other()].has_ended = true;
            let actions = closing.on_progress(&states, || NOW, &policy());
            assert_eq!(actions.finish, Some(Reason::Close(side)));
        }
    }

    #[test]
    fn a_side_that_is_owed_a_close_gets_it_when_the_tunnel_is_cut() {
        let codes = |actions: Actions| {
            let code = |frame: Option<CloseFrame>| frame.map_or(0, |frame| frame.code);
            [code(actions.close.client), code(actions.close.backend)]
        };
        type Row = (&'static [(Side, At)], [u16; 2]);
        // (what happened, codes for client and backend)
        let rows: [Row; 8] = [
            (&[], [1012, 1001]),
            (&[(Side::Client, At::Drained)], [0, 1001]),
            (&[(Side::Client, At::Violation)], [0, 0]),
            (&[(Side::Client, At::CloseSent)], [0, 0]),
            (&[(Side::Client, At::CloseSeen)], [0, 0]),
            (&[(Side::Client, At::CloseSeen), (Side::Client, At::Drained)], [0, 0]),
            (&[(Side::Client, At::CloseSeen), (Side::Backend, At::CloseSeen)], [0, 0]),
            (&[(Side::Backend, At::Eof)], [0, 0]),
        ];
        for (events, expected) in rows {
            let mut model = Model::new();
            for &(side, at) in events {
                model.happen(side, at);
            }
            let actions = model.closing.abort(false, &model.states, &policy());
            assert_eq!(codes(actions), expected, "{events:?}");
        }
    }

    #[test]
    fn a_close_in_the_same_turn_comes_before_a_reset_and_a_violation() {
        for side in Side::BOTH {
            let mut states = Model::new().states;
            states[side].sent_close = true;
            let closed = Some(Reason::Close(side));
            for broken in Side::BOTH {
                let mut closing = Closing::default();
                closing.on_reset(broken, &states);
                assert_eq!(closing.reason, closed, "{broken:?}");
            }
            let mut closing = Closing::default();
            let cause = Cause::Violation(side.other(), Violation::Protocol);
            assert_eq!(closing.start_close(cause, &states, NOW, &policy()), Actions::default());
            assert_eq!(closing.reason, closed);
        }
    }

    #[test]
    fn a_close_and_an_end_bound_the_wait_for_the_other_side() {
        for side in Side::BOTH {
            let mut states = Model::new().states;
            states[side].sent_close = true;
            let mut closing = Closing::default();
            closing.on_progress(&states, || NOW, &policy());
            assert_eq!(closing.deadline(), None);
            states[side].has_ended = true;
            closing.on_progress(&states, || NOW, &policy());
            assert!(closing.deadline().is_some());
        }
    }

    #[test]
    fn a_closing_of_the_proxy_waits_for_what_is_to_be_written_and_for_each_answer() {
        let answered = SideState {
            sent_close: true,
            is_between_frames: true,
            is_flushed: true,
            ..SideState::default()
        };
        let silent = SideState { sent_close: false, ..answered };
        let rows = [
            // (cause, client, backend, is it over)
            (Cause::Idle, answered, answered, true),
            (Cause::Idle, silent, answered, false),
            (Cause::Idle, answered, silent, false),
            (Cause::Idle, SideState { has_ended: true, ..silent }, answered, true),
            (Cause::Idle, SideState { is_between_frames: false, ..answered }, answered, false),
            (Cause::Idle, SideState { is_flushed: false, ..answered }, answered, false),
            (Cause::Idle, answered, SideState { is_flushed: false, ..answered }, false),
            // Only the client is told, so only the client has to answer.
            (Cause::Drain, answered, silent, true),
            (Cause::Drain, silent, answered, false),
            (Cause::Drain, answered, SideState { is_flushed: false, ..silent }, false),
            (Cause::PongTimeout(Side::Client), silent, answered, true),
            // What is left for a side that takes nothing holds up no end.
            (
                Cause::Blocked(Side::Client),
                SideState { is_flushed: false, ..silent },
                answered,
                true,
            ),
            (
                Cause::Blocked(Side::Client),
                answered,
                SideState { is_flushed: false, ..answered },
                false,
            ),
            (Cause::PongTimeout(Side::Backend), answered, silent, true),
        ];
        for (cause, client, backend, is_over) in rows {
            let mut closing = Closing::default();
            let open = Model::new().states;
            closing.start_close(cause, &open, NOW, &policy());
            let states = PerSide { client, backend };
            let finish = closing.on_progress(&states, || NOW, &policy()).finish;
            let expected = is_over.then(|| cause.reason());
            assert_eq!(finish, expected, "{cause:?} with {client:?} and {backend:?}");
        }
    }

    #[test]
    fn each_cause_has_its_reason_and_its_codes() {
        use Violation::{MessageTooBig, Protocol, Rate};
        let policy = Policy { lifetime_close_code: 4000, drain_close_code: 1012, ..policy() };
        let rows = [
            // (cause, name, client's code, backend's code)
            (Cause::Violation(Side::Client, MessageTooBig), "message_too_big", 1009, 1001),
            (Cause::Violation(Side::Backend, MessageTooBig), "message_too_big", 1001, 1009),
            (Cause::Violation(Side::Client, Protocol), "protocol", 1002, 1001),
            (Cause::Violation(Side::Backend, Protocol), "protocol", 1001, 1002),
            (Cause::Violation(Side::Client, Rate), "rate", 1008, 1001),
            (Cause::Drain, "drain", 1012, 0),
            (Cause::Lifetime, "lifetime", 4000, 0),
            (Cause::Order(Operator, 4001), "admin", 4001, 0),
            (Cause::Order(BackendRemoved, 1012), "backend_removed", 1012, 0),
            (Cause::Order(BackendUnhealthy, 1012), "backend_unhealthy", 1012, 0),
            (Cause::Order(Rebalance, 1012), "rebalance", 1012, 0),
            (Cause::Idle, "idle", 1001, 1001),
            (Cause::PongTimeout(Side::Client), "pong_timeout", 0, 1001),
            (Cause::PongTimeout(Side::Backend), "pong_timeout", 1014, 0),
            (Cause::Blocked(Side::Client), "blocked", 0, 1001),
            (Cause::Blocked(Side::Backend), "blocked", 1014, 0),
        ];
        for (cause, name, client, backend) in rows {
            let close = cause.close_frames(&policy);
            let code = |frame: Option<CloseFrame>| frame.map_or(0, |frame| frame.code);
            assert_eq!((code(close.client), code(close.backend)), (client, backend), "{cause:?}");
            assert_eq!((cause.reason().name(), cause.reason().ended_by()), (name, "proxy"));
            assert!(Reason::NAMES.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_cut_is_named_by_what_was_ending_the_tunnel() {
        let after = |at: At| {
            let mut model = Model::new();
            model.happen(Side::Client, at);
            [true, false].map(|is_draining| {
                let mut closing = model.closing;
                let actions = closing.abort(is_draining, &model.states, &policy());
                actions.finish.unwrap().name()
            })
        };
        assert_eq!(after(At::Open), ["drain", "admin"]);
        assert_eq!(after(At::Eof), ["drain", "admin"]);
        assert_eq!(after(At::CloseSeen), ["client_close", "client_close"]);
        assert_eq!(after(At::Violation), ["protocol", "protocol"]);
    }
}
