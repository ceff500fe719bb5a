//! Time of a tunnel, as a pure state machine: pings, silence, lifetime, and its turn in a drain.
//!
//! Activity and ticks go in, actions come out. Silence counts only while a side is read: one that
//! is not, since the other takes no bytes, is neither pinged nor dead.

use std::sync::Arc;
use std::time::Duration;

use super::control::PingPayload;
use super::policy::Policy;
use super::reason::{Cause, CloseOrder};
use super::side::{PerSide, Side};
use super::ticks::{Tick, ticks};

/// Times and signs of life of one tunnel.
#[derive(Debug)]
pub(super) struct KeepAlive {
    sides: PerSide<Liveness>,
    /// Tick of the last data frame in either direction.
    data_seen: Tick,
    lifetime_ends: Option<Tick>,
    /// What others than time want; mostly nothing, and every idle tunnel holds it.
    wanted: Option<Box<Wanted>>,
}

/// No tick: 34 years after the start.
const UNBLOCKED: Tick = Tick::MAX;

/// Ends that somebody wants.
#[derive(Debug, Default)]
struct Wanted {
    /// The proxy shuts down, and this is the tunnel's tick.
    drain: Option<Tick>,
    /// Order to close the tunnel, and its tick.
    order: Option<(Tick, Arc<CloseOrder>)>,
}

/// Signs of life of one side.
#[derive(Clone, Copy, Debug)]
struct Liveness {
    /// Tick of its last byte.
    seen: Tick,
    ping: Option<Ping>,
    /// Bytes written to it when it was last seen not to take those that wait for it.
    blocked_at: u64,
    /// Tick since which it has been blocked there; [`UNBLOCKED`] while nothing waits. An option of
    /// both would take 12 bytes more of each idle tunnel's memory.
    blocked_since: Tick,
    /// Payload of all its Pings, so that a late Pong is known too.
    payload: PingPayload,
    /// A Ping is still on its way to the socket, though the side may have been heard since.
    ping_pends: bool,
    /// Number of its Pings.
    pings: u32,
}

/// A Ping since which a side has shown no sign of life.
#[derive(Clone, Copy, Debug)]
struct Ping {
    /// Tick at which it went out, or at which its way out was last seen to move.
    at: Tick,
    /// A message before it has not been written yet, so it has not gone out.
    is_waiting: bool,
    /// Bytes that had been written to the side by then.
    written: u64,
}

/// State of the way to a side and back, for its pings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PathState {
    /// The side is read as soon as it sends something.
    pub(super) is_read: bool,
    /// Bytes that have been written to it.
    pub(super) written: u64,
    /// A frame for it waits for a boundary.
    pub(super) waits_for_boundary: bool,
    /// Bytes for it wait until it takes them.
    pub(super) waits_for_room: bool,
}

/// State of a tunnel that decides what may be done to it at a tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct TickState {
    pub(super) paths: PerSide<PathState>,
    /// Both sides can be sent a Ping and answer it.
    pub(super) can_ping: bool,
}

/// Actions at a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TickActions {
    /// Ping for each side, whose Pong is to be taken out.
    pub(super) ping: PerSide<Option<PingPayload>>,
    /// Close the tunnel.
    pub(super) close: Option<Cause>,
}

/// Activity of a tunnel in one turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Activity {
    /// Sides that have sent something.
    pub(super) sent: PerSide<bool>,
    /// A part of a data frame has come, from either side.
    pub(super) has_data: bool,
    /// Bytes written so far to each side that does not take those that wait for it.
    pub(super) blocked_at: PerSide<Option<u64>>,
}

impl KeepAlive {
    /// Creates the times of a tunnel that begins now.
    pub(super) fn new(now: Tick, policy: &Policy) -> Self {
        let lifetime = policy.max_lifetime.map(|time| now.saturating_add(ticks(jittered(time))));
        Self { lifetime_ends: lifetime, ..Self::unwatched(now) }
    }

    /// Creates the times of a tunnel that only a drain is going to end.
    pub(super) fn unwatched(now: Tick) -> Self {
        Self {
            sides: PerSide::from_fn(|_| Liveness {
                seen: now,
                ping: None,
                blocked_at: 0,
                blocked_since: UNBLOCKED,
                payload: fastrand::u64(..).to_ne_bytes(),
                ping_pends: false,
                pings: 0,
            }),
            data_seen: now,
            lifetime_ends: None,
            wanted: None,
        }
    }

    /// Has the tunnel closed at this tick, because the proxy shuts down.
    pub(super) fn drain_at(&mut self, at: Tick) {
        self.wanted.get_or_insert_default().drain = Some(at);
    }

    /// Has the tunnel closed at this tick by an order. A further one tells code and reason anew,
    /// and does not put the end off, however often it comes.
    pub(super) fn close_at(&mut self, at: Tick, order: &Arc<CloseOrder>) {
        let wanted = &mut self.wanted.get_or_insert_default().order;
        let at = wanted.as_ref().map_or(at, |(before, _)| at.min(*before));
        *wanted = Some((at, Arc::clone(order)));
    }

    fn drain_begins(&self) -> Option<Tick> {
        self.wanted.as_ref()?.drain
    }

    /// Returns the order to close the tunnel, if there is one.
    pub(super) fn order(&self) -> Option<&CloseOrder> {
        self.wanted.as_ref()?.order.as_ref().map(|(_, order)| &**order)
    }

    /// Returns whether somebody wants the end of the tunnel, be it at a later tick.
    pub(super) fn is_end_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// Returns whether the tunnel is to be closed because the proxy shuts down.
    pub(super) fn is_draining(&self) -> bool {
        self.drain_begins().is_some()
    }

    /// Returns the number of Pings that a side was sent.
    pub(super) fn pings_sent(&self, side: Side) -> u32 {
        self.sides[side].pings
    }

    /// Records the activity of a turn.
    pub(super) fn on_activity(&mut self, now: Tick, activity: &Activity) {
        for side in Side::BOTH {
            if activity.sent[side] {
                self.sides[side].is_alive(now);
            }
            self.sides[side].record_blocked(now, activity.blocked_at[side]);
        }
        if activity.has_data {
            self.data_seen = now;
        }
    }

    /// Returns the cause for which the tunnel is closed at this tick, if a time has run out.
    pub(super) fn due(&self, now: Tick, policy: &Policy) -> Option<Cause> {
        let is_due = |at: Option<Tick>| at.is_some_and(|at| at <= now);
        if is_due(self.drain_begins()) {
            Some(Cause::Drain)
        } else if let Some((at, order)) = self.wanted.as_ref().and_then(|it| it.order.as_ref())
            && *at <= now
        {
            Some(Cause::Order(order.cause, order.code))
        } else if is_due(self.lifetime_ends) {
            Some(Cause::Lifetime)
        } else if is_due(self.idle_ends(policy)) {
            Some(Cause::Idle)
        } else {
            let is_stuck = |&side: &Side| is_due(self.sides[side].blocked_until(policy));
            Side::BOTH.into_iter().find(is_stuck).map(Cause::Blocked)
        }
    }

    /// Handles a tick of a tunnel that is open: pings silent sides, and finds dead ones.
    pub(super) fn on_tick(&mut self, now: Tick, state: &TickState, policy: &Policy) -> TickActions {
        let mut actions = TickActions::default();
        let Some(interval) = policy.ping_interval.filter(|_| state.can_ping) else {
            return actions;
        };
        for side in Side::BOTH {
            match self.sides[side].on_tick(now, &state.paths[side], interval, policy.pong_timeout) {
                Verdict::Fine => {}
                Verdict::Silent(payload) => actions.ping[side] = Some(payload),
                // The tunnel ends, so the other side needs no Ping.
                Verdict::Dead => {
                    actions.close = Some(Cause::PongTimeout(side));
                    return actions;
                }
            }
        }
        actions
    }

    /// Returns the next tick with something to do, if there is one.
    pub(super) fn next_tick(&self, can_ping: bool, policy: &Policy) -> Option<Tick> {
        let of_side = |liveness: &Liveness| {
            let interval = policy.ping_interval.filter(|_| can_ping)?;
            Some(liveness.next_tick(interval, policy.pong_timeout))
        };
        let times = [
            self.drain_begins(),
            self.wanted.as_ref().and_then(|it| it.order.as_ref()).map(|(at, _)| *at),
            self.lifetime_ends,
            self.idle_ends(policy),
            of_side(&self.sides.client),
            of_side(&self.sides.backend),
            self.sides.client.blocked_until(policy),
            self.sides.backend.blocked_until(policy),
        ];
        times.into_iter().flatten().min()
    }

    fn idle_ends(&self, policy: &Policy) -> Option<Tick> {
        policy.idle_timeout.map(|idle| self.data_seen.saturating_add(ticks(idle)))
    }
}

/// Judgement of one side at a tick.
enum Verdict {
    Fine,
    /// It is due a Ping with this payload.
    Silent(PingPayload),
    /// It has not answered its Ping in time.
    Dead,
}

impl Liveness {
    fn is_alive(&mut self, now: Tick) {
        self.seen = now;
        self.ping = None;
    }

    fn on_tick(
        &mut self,
        now: Tick,
        path: &PathState,
        interval: Duration,
        timeout: Duration,
    ) -> Verdict {
        if !path.is_read {
            self.is_alive(now);
            return Verdict::Fine;
        }
        self.ping_pends &= path.waits_for_boundary || path.waits_for_room;
        match &mut self.ping {
            // While its way out is not free, a side is found dead only if it takes no bytes at all.
            Some(ping)
                if ping.is_waiting && (!path.waits_for_room || ping.written != path.written) =>
            {
                let is_waiting = path.waits_for_boundary || path.waits_for_room;
                *ping = Ping { at: now, is_waiting, written: path.written };
                Verdict::Fine
            }
            Some(ping) if ping.at.saturating_add(ticks(timeout)) <= now => Verdict::Dead,
            Some(_) => Verdict::Fine,
            // One that has not gone out, though the side has been heard since, is enough.
            None if self.ping_pends || path.waits_for_boundary => Verdict::Fine,
            None if self.seen.saturating_add(ticks(interval)) <= now => {
                // The next tick tells whether it has gone out.
                self.ping = Some(Ping { at: now, is_waiting: true, written: path.written });
                self.ping_pends = true;
                self.pings = self.pings.wrapping_add(1);
                Verdict::Silent(self.payload)
            }
            None => Verdict::Fine,
        }
    }

    /// Records whether bytes wait for the side, and whether it has taken any since it was blocked.
    fn record_blocked(&mut self, now: Tick, written: Option<u64>) {
        let is_blocked = self.blocked_since != UNBLOCKED;
        match written {
            Some(written) if is_blocked && written == self.blocked_at => {}
            Some(written) => (self.blocked_at, self.blocked_since) = (written, now),
            None => self.blocked_since = UNBLOCKED,
        }
    }

    /// Returns the tick at which a blocked side is stuck.
    fn blocked_until(&self, policy: &Policy) -> Option<Tick> {
        let since = Some(self.blocked_since).filter(|since| *since != UNBLOCKED)?;
        Some(since.saturating_add(ticks(policy.blocked_timeout?)))
    }

    fn next_tick(&self, interval: Duration, timeout: Duration) -> Tick {
        match self.ping {
            // Its way out is looked at every tick.
            Some(Ping { at, is_waiting: true, .. }) => at.saturating_add(1),
            Some(Ping { at, is_waiting: false, .. }) => at.saturating_add(ticks(timeout)),
            None => self.seen.saturating_add(ticks(interval)),
        }
    }
}

/// Returns a time, a tenth more or less, so that tunnels that began together do not end together.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Tick = 1_000;

    fn policy() -> Policy {
        Policy {
            ping_interval: Some(Duration::from_millis(2_000)),
            pong_timeout: Duration::from_millis(1_000),
            idle_timeout: Some(Duration::from_millis(10_000)),
            ..Policy::default()
        }
    }

    /// State of a tunnel whose sides are read and whose ways are free.
    fn free() -> TickState {
        let path = PathState { is_read: true, ..PathState::default() };
        let paths = PerSide { client: path, backend: path };
        TickState { paths, can_ping: true }
    }

    /// Activity of an open tunnel in which these sides have sent something.
    fn sent(client: bool, backend: bool) -> Activity {
        Activity { sent: PerSide { client, backend }, ..Activity::default() }
    }

    #[test]
    fn a_further_order_changes_the_close_and_does_not_put_it_off() {
        use crate::tunnel::reason::OrderCause::{BackendRemoved, Operator, Rebalance};
        let spread = Duration::ZERO;
        let order = |cause, code| CloseOrder { cause, code, reason: String::new(), spread };
        let policy = Policy::default();
        let mut times = KeepAlive::unwatched(START);
        assert!(!times.is_end_wanted());
        let rows = [
            (50, Rebalance, 4_001, 50),
            (70, Operator, 4_002, 50),
            (20, BackendRemoved, 4_003, 20),
        ];
        for (at, cause, code, next) in rows {
            times.close_at(START + at, &Arc::new(order(cause, code)));
            assert!(times.is_end_wanted());
            assert_eq!(times.next_tick(true, &policy), Some(START + next));
            assert_eq!(times.due(START + next - 1, &policy), None);
            assert_eq!(times.due(START + next, &policy), Some(Cause::Order(cause, code)));
        }
    }

    #[test]
    fn a_silent_side_is_pinged_and_a_side_that_stays_silent_is_dead() {
        for dead in Side::BOTH {
            let policy = policy();
            let mut times = KeepAlive::new(START, &policy);
            let due = START + ticks(Duration::from_millis(2_000));
            assert_eq!(times.next_tick(true, &policy), Some(due));
            assert_eq!(times.on_tick(due - 1, &free(), &policy), TickActions::default());
            let pings = times.on_tick(due, &free(), &policy).ping;
            assert!(pings.client.is_some() && pings.backend.is_some());
            // The next tick sees that they have gone out; from there on the answer has its time.
            assert_eq!(times.on_tick(due + 1, &free(), &policy), TickActions::default());
            let alive = dead.other();
            let heard = sent(alive == Side::Client, alive == Side::Backend);
            times.on_activity(due + 2, &heard);
            let end = due + 1 + ticks(Duration::from_millis(1_000));
            assert_eq!(times.next_tick(true, &policy), Some(end));
            assert_eq!(times.on_tick(end - 1, &free(), &policy), TickActions::default());
            let actions = times.on_tick(end, &free(), &policy);
            assert_eq!(actions.close, Some(Cause::PongTimeout(dead)));
            assert_eq!(actions.ping, PerSide::default());
        }
    }

    #[test]
    fn all_pings_of_a_side_have_one_payload() {
        let policy = policy();
        let mut times = KeepAlive::new(START, &policy);
        let mut seen = Vec::new();
        for round in 1..4 {
            let now = START + 100 * round;
            let ping = times.on_tick(now, &free(), &policy).ping;
            seen.push((ping.client.unwrap(), ping.backend.unwrap()));
            times.on_activity(now + 1, &sent(true, true));
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    }

    #[test]
    fn silence_of_a_side_that_is_not_read_means_nothing() {
        let policy = policy();
        let mut state = free();
        state.paths.client.is_read = false;
        let mut times = KeepAlive::new(START, &policy);
        for tick in 0..100 {
            let actions = times.on_tick(START + tick, &state, &policy);
            assert_eq!(actions.ping.client, None);
            assert_ne!(actions.close, Some(Cause::PongTimeout(Side::Client)));
            if actions.close.is_some() {
                break;
            }
        }
        // Its silence begins when it is read again.
        let now = START + 200;
        let mut times = KeepAlive::new(START, &policy);
        times.on_tick(now, &state, &policy);
        let again = times.on_tick(now + 1, &free(), &policy);
        assert_eq!(again.ping.client, None);
        let due = now + ticks(Duration::from_millis(2_000));
        assert!(times.on_tick(due, &free(), &policy).ping.client.is_some());
    }

    #[test]
    fn while_the_way_out_is_blocked_only_a_side_that_takes_nothing_is_dead() {
        let policy = policy();
        let timeout = ticks(Duration::from_millis(1_000));
        let due = START + ticks(Duration::from_millis(2_000));
        let blocked = |written| {
            let mut state = free();
            state.paths.client.waits_for_room = true;
            state.paths.client.written = written;
            state
        };
        // It takes a byte now and then.
        let mut times = KeepAlive::new(START, &policy);
        assert!(times.on_tick(due, &blocked(0), &policy).ping.client.is_some());
        for step in 1..20 {
            times.on_activity(due + step, &sent(false, true));
            let actions = times.on_tick(due + step, &blocked(u64::from(step)), &policy);
            assert_eq!(actions.close, None);
        }
        // It takes nothing more.
        let now = due + 19;
        times.on_activity(now, &sent(false, true));
        assert_eq!(times.on_tick(now + timeout - 1, &blocked(19), &policy).close, None);
        let close = times.on_tick(now + timeout, &blocked(19), &policy).close;
        assert_eq!(close, Some(Cause::PongTimeout(Side::Client)));
    }

    #[test]
    fn a_ping_that_waits_for_a_boundary_is_not_followed_by_another() {
        let policy = policy();
        let mut times = KeepAlive::new(START, &policy);
        let mut state = free();
        state.paths.client.waits_for_boundary = true;
        // The client talks all the while, in one long frame of the backend's.
        for step in 1..20 {
            let now = START + 10 * step;
            assert_eq!(times.on_tick(now, &state, &policy).ping.client, None);
            times.on_activity(now, &sent(true, true));
        }
        assert!(times.on_tick(START + 400, &free(), &policy).ping.client.is_some());
    }

    #[test]
    fn pings_do_not_pile_up_behind_a_side_that_talks_and_takes_nothing() {
        let policy = policy();
        let mut times = KeepAlive::new(START, &policy);
        let mut state = free();
        state.paths.client.waits_for_room = true;
        let (mut pings, mut now) = (0, START);
        for _ in 0..5 {
            times.on_activity(now, &sent(true, true));
            for _ in 0..10 {
                now += 1;
                pings += u32::from(times.on_tick(now, &state, &policy).ping.client.is_some());
            }
        }
        assert_eq!(pings, 1);
        // It has gone out, and the next silence is asked about again.
        times.on_activity(now, &sent(true, true));
        times.on_tick(now + 1, &free(), &policy);
        assert!(times.on_tick(now + 20, &free(), &policy).ping.client.is_some());
    }

    #[test]
    fn a_side_that_takes_no_bytes_for_too_long_is_stuck() {
        let timeout = Duration::from_millis(5_000);
        let policy = Policy { blocked_timeout: Some(timeout), ..Policy::default() };
        for side in Side::BOTH {
            let mut times = KeepAlive::new(START, &policy);
            let blocked = |written| Activity {
                blocked_at: PerSide::with(side, written, None),
                ..Activity::default()
            };
            assert_eq!(times.next_tick(true, &policy), None);
            times.on_activity(START, &blocked(Some(7)));
            let due = START + ticks(timeout);
            assert_eq!(times.next_tick(true, &policy), Some(due));
            assert_eq!(times.due(due - 1, &policy), None);
            assert_eq!(times.due(due, &policy), Some(Cause::Blocked(side)));
            // A turn in which it has taken nothing changes nothing, one byte does.
            times.on_activity(START + 4, &blocked(Some(7)));
            assert_eq!(times.due(due, &policy), Some(Cause::Blocked(side)));
            times.on_activity(START + 4, &blocked(Some(8)));
            assert_eq!(times.due(due + 3, &policy), None);
            assert_eq!(times.due(due + 4, &policy), Some(Cause::Blocked(side)));
            times.on_activity(START + 8, &blocked(None));
            assert_eq!(times.due(Tick::MAX, &policy), None);
        }
    }

    #[test]
    fn a_tunnel_that_cannot_be_pinged_is_not() {
        let policy = policy();
        let mut times = KeepAlive::new(START, &policy);
        let state = TickState { can_ping: false, ..free() };
        assert_eq!(times.on_tick(START + 1_000, &state, &policy), TickActions::default());
        let idle = START + ticks(Duration::from_millis(10_000));
        assert_eq!(times.next_tick(false, &policy), Some(idle));
    }

    #[test]
    fn the_first_time_to_run_out_is_the_cause() {
        let policy = Policy { max_lifetime: Some(Duration::from_millis(5_000)), ..policy() };
        let mut times = KeepAlive::new(START, &policy);
        assert_eq!(times.due(START, &policy), None);
        let idle = START + ticks(Duration::from_millis(10_000));
        times.lifetime_ends = Some(idle + 10);
        assert_eq!(times.due(idle - 1, &policy), None);
        assert_eq!(times.due(idle, &policy), Some(Cause::Idle));
        // Data keeps it from being idle, control frames do not.
        times.on_activity(idle - 1, &sent(true, true));
        assert_eq!(times.due(idle, &policy), Some(Cause::Idle));
        let data = Activity { has_data: true, ..sent(true, false) };
        times.on_activity(idle - 1, &data);
        assert_eq!(times.due(idle, &policy), None);
        assert_eq!(times.due(idle + 10, &policy), Some(Cause::Lifetime));
        assert!(!times.is_draining());
        times.drain_at(idle + 5);
        assert!(times.is_draining());
        assert_eq!(times.due(idle + 4, &policy), None);
        assert_eq!(times.due(idle + 5, &policy), Some(Cause::Drain));
        assert_eq!(times.due(idle + 10, &policy), Some(Cause::Drain));
    }

    #[test]
    fn lifetimes_differ_by_a_tenth_at_most() {
        let policy = Policy { max_lifetime: Some(Duration::from_secs(1_000)), ..Policy::default() };
        let mut ends: Vec<Tick> =
            (0..100).filter_map(|_| KeepAlive::new(0, &policy).lifetime_ends).collect();
        ends.sort_unstable();
        assert!(ends[0] >= 3_600 && ends[99] <= 4_402, "{ends:?}");
        assert!(ends[99] - ends[0] > 100, "{ends:?}");
    }
}
