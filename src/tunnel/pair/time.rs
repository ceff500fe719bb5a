//! What time does to a tunnel: pings, idleness, lifetimes, rates, and its place in a drain.

use std::time::Duration;

use super::Pair;
use crate::tunnel::clock::{Clock, TICKS_PER_SECOND, Tick, ticks};
use crate::tunnel::control::{self, PingPayload, code};
use crate::tunnel::half::Half;
use crate::tunnel::rules::{RateAction, Rules};
use crate::tunnel::{Reason, Side};

/// What is known of a tunnel's time.
#[derive(Debug)]
pub(super) struct Watch {
    client: SideWatch,
    backend: SideWatch,
    /// When the last data frame began, in either direction.
    data_seen: Tick,
    lifetime_ends: Option<Tick>,
    drain_begins: Option<Tick>,
    rate: RateWatch,
}

/// Signs of life of one side.
#[derive(Clone, Copy, Debug)]
struct SideWatch {
    /// When it sent its last byte.
    seen: Tick,
    ping: Option<Ping>,
    /// Payload of all its Pings, so that a late Pong is known as well.
    payload: PingPayload,
}

/// A Ping after which a side has not shown a sign of life.
#[derive(Clone, Copy, Debug)]
struct Ping {
    /// When it went out, or when its way out was last seen to be free.
    at: Tick,
    /// It has not gone out: a message is in its way.
    waits: bool,
    /// What had been carried to the side by then.
    carried: u64,
}

/// The client's messages within a second.
#[derive(Clone, Copy, Debug)]
struct RateWatch {
    since: Tick,
    /// The count of messages at that tick, and those that are owed from before.
    base: u32,
}

impl Watch {
    /// What the rules of a section have watched from now on.
    pub(super) fn by(rules: &Rules, now: Tick) -> Self {
        let lifetime_ends =
            rules.max_lifetime.map(|lifetime| now.saturating_add(ticks(jittered(lifetime))));
        Self { lifetime_ends, ..Self::new(now) }
    }

    fn new(now: Tick) -> Self {
        let alive =
            |payload: u64| SideWatch { seen: now, ping: None, payload: payload.to_ne_bytes() };
        Self {
            client: alive(fastrand::u64(..)),
            backend: alive(fastrand::u64(..)),
            data_seen: now,
            lifetime_ends: None,
            drain_begins: None,
            rate: RateWatch { since: now, base: 0 },
        }
    }
}

impl SideWatch {
    fn is_alive(&mut self, now: Tick) {
        self.seen = now;
        self.ping = None;
    }
}

impl Pair {
    /// Does what the time asks for.
    pub(in crate::tunnel) fn on_tick(&mut self, now: Tick) -> Option<Reason> {
        if self.last_tick.is_some_and(|last| last <= now) {
            return Some(self.ending.unwrap_or(Reason::Admin));
        }
        let Some(watch) = &mut self.watch else { return None };
        // A tunnel that is ending needs no more reasons.
        if self.last_tick.is_some() {
            return None;
        }
        let is_due = |at: Option<Tick>| at.is_some_and(|at| at <= now);
        let idle_ends =
            self.rules.idle_timeout.map(|idle| watch.data_seen.saturating_add(ticks(idle)));
        // A Close that nobody answers gets no second one, but no more time than it would have otherwise.
        if matches!(self.ending, Some(Reason::Close(_))) {
            if [watch.drain_begins, watch.lifetime_ends, idle_ends].into_iter().any(is_due) {
                self.bound_end(now);
            }
            return None;
        }
        if is_due(watch.drain_begins) {
            let drain_code = self.rules.drain_close_code;
            self.say_goodbye(Reason::Drain, Some((drain_code, "shutting down")), None, now);
            return None;
        }
        if is_due(watch.lifetime_ends) {
            let lifetime_code = self.rules.lifetime_close_code;
            self.say_goodbye(
                Reason::Lifetime,
                Some((lifetime_code, "maximum lifetime reached")),
                None,
                now,
            );
            return None;
        }
        if is_due(idle_ends) {
            let close = Some((code::GOING_AWAY, "idle"));
            self.say_goodbye(Reason::Idle, close, close, now);
            return None;
        }
        self.roll_rate(now);
        // Silence says nothing of a side that is not listened to, as the other one takes no bytes.
        let (hears_client, hears_backend) = (self.up.is_reading(), self.down.is_reading());
        self.ping(Side::Client, hears_client, now);
        self.ping(Side::Backend, hears_backend, now);
        None
    }

    /// The next tick at which [`on_tick`](Pair::on_tick) has something to do, if there is one.
    pub(in crate::tunnel) fn next_tick(&self) -> Option<Tick> {
        if self.last_tick.is_some() {
            return self.last_tick;
        }
        let watch = self.watch.as_ref()?;
        let rules = &self.rules;
        let of_side = |side: Side, watch: &SideWatch| {
            let interval = ticks(rules.ping_interval.filter(|_| self.can_ping(side))?);
            Some(match watch.ping {
                // Its way out is looked at every tick.
                Some(Ping { at, waits: true, .. }) => at.saturating_add(1),
                Some(Ping { at, waits: false, .. }) => at.saturating_add(ticks(rules.pong_timeout)),
                None => watch.seen.saturating_add(interval),
            })
        };
        let client = of_side(Side::Client, &watch.client);
        let backend = of_side(Side::Backend, &watch.backend);
        let idle = rules.idle_timeout.map(|idle| watch.data_seen.saturating_add(ticks(idle)));
        let rate = self.up.is_paused().then(|| watch.rate.since.saturating_add(TICKS_PER_SECOND));
        let all = [watch.drain_begins, watch.lifetime_ends, idle, rate, client, backend];
        all.into_iter().flatten().min()
    }

    /// Has the tunnel closed at this tick, because the proxy is leaving.
    pub(in crate::tunnel) fn drain_at(&mut self, at: Tick, now: Tick) {
        let watch = self.watch.get_or_insert_with(|| Box::new(Watch::new(now)));
        watch.drain_begins = Some(at);
    }

    /// Whether it is to be closed because the proxy is leaving.
    pub(super) fn is_draining(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.drain_begins.is_some())
    }

    /// Notes who has shown signs of life.
    pub(super) fn note_life(&mut self, clock: &Clock) {
        let Some(watch) = &mut self.watch else { return };
        let now = clock.now();
        if self.up.take_fresh() {
            watch.client.is_alive(now);
        }
        if self.down.take_fresh() {
            watch.backend.is_alive(now);
        }
        if self.up.gate_mut().take_fresh_data() | self.down.gate_mut().take_fresh_data() {
            watch.data_seen = now;
        }
        let Some(most) = self.rules.max_messages_per_second else { return };
        if now.saturating_sub(watch.rate.since) >= TICKS_PER_SECOND {
            self.roll_rate(now);
        } else if self.messages_in_window() > most && !self.up.is_paused() && self.ending.is_none()
        {
            match self.rules.rate_action {
                RateAction::Pause => self.up.pause(true),
                RateAction::Close => {
                    let to_client = Some((code::POLICY_VIOLATION, "too many messages"));
                    let to_backend = Some((code::GOING_AWAY, "too many messages"));
                    self.say_goodbye(Reason::Rate, to_client, to_backend, now);
                }
            }
        }
    }

    /// Messages of the client since its second began, with those that it owes.
    fn messages_in_window(&self) -> u32 {
        let base = self.watch.as_ref().map_or(0, |watch| watch.rate.base);
        self.up.gate().tally().messages().wrapping_sub(base)
    }

    /// Begins a new second for the client's messages, if the last one is over.
    fn roll_rate(&mut self, now: Tick) {
        let Some(most) = self.rules.max_messages_per_second else { return };
        if self.ending.is_some() {
            return;
        }
        let counted = self.messages_in_window();
        let Some(watch) = &mut self.watch else { return };
        let seconds = now.saturating_sub(watch.rate.since) / TICKS_PER_SECOND;
        if seconds == 0 {
            return;
        }
        // What came over the limit, several messages in one read, is owed to the seconds that follow.
        let paid = counted.min(most.saturating_mul(seconds));
        watch.rate = RateWatch { since: now, base: watch.rate.base.wrapping_add(paid) };
        self.up.pause(counted - paid > most);
    }

    /// Pings one side if it is due, or takes it for dead.
    fn ping(&mut self, side: Side, is_heard: bool, now: Tick) {
        let Some(interval) = self.rules.ping_interval else { return };
        if !self.can_ping(side) {
            return;
        }
        let timeout = ticks(self.rules.pong_timeout);
        let to = self.half_to(side);
        let (carried, waits_for_boundary, waits_for_room) =
            (to.carried(), to.gate().has_errand(), !to.is_flushed());
        let Some(watch) = &mut self.watch else { return };
        let of_side = match side {
            Side::Client => &mut watch.client,
            Side::Backend => &mut watch.backend,
        };
        if !is_heard {
            of_side.is_alive(now);
            return;
        }
        match &mut of_side.ping {
            // While its way out is not free, only a side that takes no bytes at all can be found dead.
            Some(ping) if ping.waits && (!waits_for_room || ping.carried != carried) => {
                *ping = Ping { at: now, waits: waits_for_boundary || waits_for_room, carried };
            }
            Some(ping) if ping.at.saturating_add(timeout) <= now => self.give_up(side, now),
            Some(_) => {}
            None if of_side.seen.saturating_add(ticks(interval)) <= now => {
                of_side.ping = Some(Ping { at: now, waits: true, carried });
                let payload = of_side.payload;
                let mask = (side == Side::Backend).then(control::fresh_mask);
                self.half_from(side).gate_mut().await_pong(payload);
                self.half_to(side).insert(control::ping(payload, mask), false);
            }
            None => {}
        }
    }

    /// Whether this side could get a Ping and answer it.
    fn can_ping(&self, side: Side) -> bool {
        let (to, from) = match side {
            Side::Client => (&self.down, &self.up),
            Side::Backend => (&self.up, &self.down),
        };
        let is_open =
            |half: &Half| !half.is_done() && !half.gate().is_blind() && !half.gate().is_shut();
        self.ending.is_none() && is_open(to) && is_open(from)
    }

    /// Ends a tunnel one side of which is dead.
    fn give_up(&mut self, dead: Side, now: Tick) {
        match dead {
            Side::Client => {
                self.say_goodbye(
                    Reason::PongTimeout,
                    None,
                    Some((code::GOING_AWAY, "the client is dead")),
                    now,
                );
                self.down.gate_mut().shut();
            }
            Side::Backend => {
                self.say_goodbye(
                    Reason::PongTimeout,
                    Some((code::BAD_GATEWAY, "the backend is dead")),
                    None,
                    now,
                );
                self.up.gate_mut().shut();
            }
        }
    }
}

/// A time, a tenth more or less.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.9 + 0.2 * fastrand::f64())
}
