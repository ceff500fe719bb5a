//! A tunnel at work: its two halves, and the rules for its end.

use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;

use super::clock::{Clock, TICKS_PER_SECOND, Tick, ticks};
use super::control::{self, PingPayload, code};
use super::gate::{Gate, Refusal};
use super::half::{Half, Manners, Stop, Tools, Turn};
use super::rules::{RateAction, Rules};
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

/// What is known of a tunnel's time.
#[derive(Debug)]
struct Watch {
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
    fn new(now: Tick) -> Self {
        let alive = |payload: u64| SideWatch { seen: now, ping: None, payload: payload.to_ne_bytes() };
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
    pub(super) fn new(tunnel: Tunnel, reactor: &Reactor, label: impl Fn(Side) -> u64, clock: &Clock) -> Self {
        let Tunnel { client, backend, for_backend, head, for_client, is_extended, rules } = tunnel;
        let lifetime_ends =
            rules.max_lifetime.map(|lifetime| clock.now().saturating_add(ticks(jittered(lifetime))));
        let watch = rules.watch_time().then(|| Box::new(Watch { lifetime_ends, ..Watch::new(clock.now()) }));
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
                Side::Client => (&mut self.up, &mut self.client, &mut self.backend, self.down.is_done()),
                Side::Backend => (&mut self.down, &mut self.backend, &mut self.client, self.up.is_done()),
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
        Progress::On(if more { Turn::More } else { Turn::Waiting })
    }

    /// Does what the time asks for.
    pub(super) fn on_tick(&mut self, now: Tick) -> Option<Reason> {
        if self.last_tick.is_some_and(|last| last <= now) {
            return Some(self.ending.unwrap_or(Reason::Admin));
        }
        let Some(watch) = &mut self.watch else { return None };
        // A tunnel that is ending needs no more reasons.
        if self.last_tick.is_some() {
            return None;
        }
        let is_due = |at: Option<Tick>| at.is_some_and(|at| at <= now);
        let idle_ends = self.rules.idle_timeout.map(|idle| watch.data_seen.saturating_add(ticks(idle)));
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
            self.say_goodbye(Reason::Lifetime, Some((lifetime_code, "maximum lifetime reached")), None, now);
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
    pub(super) fn next_tick(&self) -> Option<Tick> {
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
    pub(super) fn drain_at(&mut self, at: Tick, now: Tick) {
        let watch = self.watch.get_or_insert_with(|| Box::new(Watch::new(now)));
        watch.drain_begins = Some(at);
    }

    /// Why a tunnel ends that is cut: the goodbye that was under way, if there was one.
    pub(super) fn reason_of_cut(&self) -> Reason {
        match self.ending {
            None | Some(Reason::Close(_) | Reason::Eof(_) | Reason::Reset(_)) => Reason::Admin,
            Some(reason) => reason,
        }
    }

    /// Closes both connections.
    pub(super) fn close(mut self, reactor: &Reactor, reason: Reason, tools: &mut Tools) -> TunnelEnd {
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
        let is_goodbye = !matches!(self.ending, None | Some(Reason::Close(_) | Reason::Eof(_)));
        let is_lost = !is_goodbye && !self.half_from(side).gate().tally().has_close();
        if self.rules.announce_loss && is_lost {
            let frame = Manners { rules: &self.rules, from: side }.loss();
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
            Refusal::MessageTooBig => (Reason::MessageTooBig, code::MESSAGE_TOO_BIG, "message too big"),
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
        self.up.pause(false);
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
            self.ending = match (client_closed, backend_closed, self.up.is_done(), self.down.is_done()) {
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
        match reason {
            Reason::Close(_) if client_closed && backend_closed => self.bound_end(clock.now()),
            // The side that is left has been told, and is not waited for.
            Reason::Eof(_) if self.rules.announce_loss => self.bound_end(clock.now()),
            Reason::Close(_) | Reason::Eof(_) | Reason::Reset(_) => {}
            // A goodbye of ours is over when everyone who was told has answered, and what was said has been written.
            _ => {
                let all_told =
                    self.up.is_flushed() && self.down.is_flushed() && !self.down.gate().has_errand();
                let has_answered = |half: &Half| {
                    half.is_done() || half.gate().tally().has_close() && half.gate().is_between_frames()
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

    /// Notes who has shown signs of life.
    fn note_life(&mut self, clock: &Clock) {
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
        } else if self.messages_in_window() > most && !self.up.is_paused() && self.ending.is_none() {
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
        let counted = self.messages_in_window();
        let Some(watch) = &mut self.watch else { return };
        if self.ending.is_some() {
            self.up.pause(false);
            return;
        }
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
        let is_open = |half: &Half| !half.is_done() && !half.gate().is_blind() && !half.gate().is_shut();
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
