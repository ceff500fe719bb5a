//! One tunnel: two sockets, the two directions between them, and the state machines of its end and
//! its time.

mod snapshot;

use std::ops::ControlFlow;
use std::sync::Arc;

use super::buffers::Buffers;
use super::closing::{Actions, Closing};
use super::control;
use super::direction::Direction;
use super::end::TunnelEnd;
use super::filter::FrameFilter;
use super::keepalive::{Activity, KeepAlive, TickActions};
use super::policy::Policy;
use super::progress::{Progress, RelayError};
use super::reason::{BY_ORDER, Cause, CloseFrame, CloseOrder, Reason};
use super::side::{PerSide, Side};
use super::ticks::{Clock, Tick};
use crate::net::close::linger_now;
use crate::net::socket::Socket;

/// Two connections between which all bytes are to flow.
#[derive(Debug)]
pub(crate) struct NewTunnel {
    pub(crate) sockets: PerSide<Socket>,
    /// The 101, which the client gets before anything else.
    pub(crate) head: Vec<u8>,
    /// Bytes that each side has sent already.
    pub(crate) early: PerSide<Vec<u8>>,
    /// An extension has been negotiated.
    pub(crate) is_extended: bool,
    pub(crate) policy: Arc<Policy>,
}

#[cfg(test)]
impl NewTunnel {
    /// Connects a tunnel on this reactor with two peers, which are returned as well.
    pub(crate) fn with_peers(
        reactor: &std::rc::Rc<crate::net::reactor::Reactor>,
        policy: Policy,
    ) -> (Self, PerSide<std::net::TcpStream>) {
        use std::net::{TcpListener, TcpStream};
        let connection = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, _) = listener.accept().unwrap();
            ours.set_nonblocking(true).unwrap();
            (Socket::new(reactor, ours).unwrap(), theirs)
        };
        let ((client, at_client), (backend, at_backend)) = (connection(), connection());
        let new = Self {
            sockets: PerSide { client, backend },
            head: b"101".to_vec(),
            early: PerSide::default(),
            is_extended: false,
            policy: Arc::new(policy),
        };
        (new, PerSide { client: at_client, backend: at_backend })
    }
}

/// A tunnel at work. It only carries out what [`Closing`] and [`KeepAlive`] decide.
#[derive(Debug)]
pub(super) struct Tunnel {
    sockets: PerSide<Socket>,
    /// Directions by the side whose bytes they relay.
    from: PerSide<Direction>,
    policy: Arc<Policy>,
    closing: Closing,
    /// `None` while time plays no part.
    keepalive: Option<Box<KeepAlive>>,
}

impl Tunnel {
    /// Creates a tunnel. The events of both sockets come under `token`: either gives the tunnel a
    /// turn.
    pub(super) fn new(new: NewTunnel, token: u32, clock: &Clock) -> Self {
        let NewTunnel { sockets, mut head, early, is_extended, policy } = new;
        for side in Side::BOTH {
            sockets[side].set_token(token);
        }
        let mut violations = PerSide::default();
        let from = PerSide::from_fn(|side| {
            let filter = FrameFilter::new(&policy, side == Side::Client, is_extended);
            let head = if side == Side::Backend { std::mem::take(&mut head) } else { Vec::new() };
            let (direction, violation) = Direction::new(head, &early[side], filter, &policy);
            violations[side] = violation;
            direction
        });
        let keepalive = policy.watches_time().then(|| KeepAlive::new(clock.now(), &policy));
        let mut tunnel = Self {
            sockets,
            from,
            policy,
            closing: Closing::default(),
            keepalive: keepalive.map(Box::new),
        };
        for side in Side::BOTH {
            if let Some(violation) = violations[side] {
                tunnel.start_close(Cause::Violation(side, violation), clock.now());
            }
        }
        tunnel
    }

    /// Relays what can be relayed now, in both directions; breaks with the reason when the tunnel
    /// is over.
    pub(super) fn advance(
        &mut self,
        clock: &Clock,
        buffers: &mut Buffers,
    ) -> ControlFlow<Reason, Progress> {
        let mut has_more = false;
        // A rate is a matter of time, so a tunnel without the one has none of the other.
        if self.keepalive.is_some() && self.policy.limits_rate() {
            self.from.client.filter_mut().refill_rate(clock.now());
        }
        // The client's direction first: its Close wins over one of the backend's in the same turn.
        for side in Side::BOTH {
            has_more |= self.relay(side, clock, buffers)?;
        }
        // A client that has to wait for its rate may be gone meanwhile.
        if self.from.client.is_paused() && self.sockets.client.has_ended() {
            has_more |= self.from.client.filter_mut().end_rate();
        }
        // A side that nobody reads, since it has ended its sending or its direction is blocked, can
        // still break.
        for side in Side::BOTH {
            if !self.from[side].is_reading() && self.sockets[side].is_broken() {
                has_more |= self.on_reset(side, buffers)?;
            }
        }
        self.record_activity(clock);

        // Every message comes past here, and most find a tunnel that nothing is ending.
        if !self.closing.is_open() || !self.from.all(Direction::is_going_on) {
            let states = self.states();
            let actions = self.closing.on_progress(&states, || clock.now(), &self.policy);
            has_more |= self.carry_out(actions)?;
        }
        ControlFlow::Continue(if has_more { Progress::More } else { Progress::Waiting })
    }

    /// Handles a tick; breaks with the reason when the tunnel is over.
    ///
    /// A tunnel whose grace time runs needs no further causes. One whose end has begun is not
    /// pinged. A paused client goes on in the turn that follows.
    pub(super) fn on_tick(&mut self, now: Tick) -> ControlFlow<Reason> {
        self.probe_sinks();
        let actions = self.closing.on_tick(now, &self.states());
        self.carry_out(actions)?;
        let Some(keepalive) = &mut self.keepalive else { return ControlFlow::Continue(()) };
        if self.closing.deadline().is_some() {
            return ControlFlow::Continue(());
        }
        if let Some(cause) = keepalive.due(now, &self.policy) {
            self.start_close(cause, now);
        } else if self.closing.is_open() {
            let state = self.tick_state();
            if let Some(keepalive) = &mut self.keepalive {
                let actions = keepalive.on_tick(now, &state, &self.policy);
                self.carry_out_tick(actions, now);
            }
        }
        ControlFlow::Continue(())
    }

    /// Has the turn after this tick try what is pending, where time judges whether it moves.
    fn probe_sinks(&self) {
        for side in Side::BOTH {
            if !self.from[side].is_flushed() {
                self.sockets[side.other()].assume_writable();
            }
        }
    }

    /// Returns the next tick at which [`on_tick`](Tunnel::on_tick) has something to do, if there is
    /// one.
    pub(super) fn next_tick(&self, now: Tick) -> Option<Tick> {
        let due = self.closing.deadline().or_else(|| {
            let keepalive = self.keepalive.as_ref()?;
            keepalive.next_tick(self.can_ping(), &self.policy)
        });
        let client = &self.from.client;
        let refilled = if client.is_paused() { client.filter().rate_refilled() } else { None };
        let refill = refilled.map(|at| at.saturating_add(1));
        // A reader whose time runs is looked at every tick: its progress shows in no event.
        let is_judged = self.policy.blocked_timeout.is_some() || self.closing.deadline().is_some();
        let is_blocked = !self.from.all(Direction::is_flushed);
        let probe = (is_judged && is_blocked).then(|| now.saturating_add(1));
        due.into_iter().chain(refill).chain(probe).min()
    }

    /// Returns whether time plays a part in the tunnel.
    pub(super) fn is_timed(&self) -> bool {
        self.keepalive.is_some() || self.closing.deadline().is_some()
    }

    /// Has the tunnel closed at this tick, because the proxy shuts down.
    pub(super) fn drain_at(&mut self, at: Tick, now: Tick) {
        self.keepalive.get_or_insert_with(|| Box::new(KeepAlive::unwatched(now))).drain_at(at);
    }

    /// Has the tunnel closed at this tick by an order. One that ends anyway within its grace time
    /// is left alone: what its client has been told stands, and goes for its backend too.
    pub(super) fn close_at(&mut self, at: Tick, now: Tick, order: &Arc<CloseOrder>) {
        if self.closing.deadline().is_some() {
            return;
        }
        self.keepalive
            .get_or_insert_with(|| Box::new(KeepAlive::unwatched(now)))
            .close_at(at, order);
    }

    /// Prepares the tunnel to be cut now; returns the reason for its end.
    pub(super) fn abort(&mut self) -> Reason {
        let is_draining = self.keepalive.as_ref().is_some_and(|times| times.is_draining());
        let actions = self.closing.abort(is_draining, &self.states(), &self.policy);
        match self.carry_out(actions) {
            ControlFlow::Break(reason) => reason,
            ControlFlow::Continue(_) => Reason::Admin,
        }
    }

    /// Closes both connections, such that what was sent last, perhaps a Close, still arrives.
    pub(super) fn close(&mut self, reason: Reason, buffers: &mut Buffers) -> TunnelEnd {
        // Where both directions have relayed their ends, everything is on its way already.
        if !self.from.all(Direction::is_done) {
            for side in Side::BOTH {
                self.from[side].flush_last(&self.sockets[side.other()], &mut buffers.pipes);
            }
            for side in Side::BOTH {
                linger_now(&self.sockets[side], &mut buffers.scratch);
            }
        }
        // What the sinks took just now is of the account, as it is of the counts.
        let end = TunnelEnd {
            written_to: PerSide {
                client: self.from.backend.relayed(),
                backend: self.from.client.relayed(),
            },
            reason,
            sent_by: PerSide::from_fn(|side| *self.from[side].filter().counters()),
            opaque: Side::BOTH
                .map(|side| u8::from(self.from[side].filter().is_opaque()))
                .iter()
                .sum(),
            closed_with: PerSide::from_fn(|side| {
                let to = &self.from[side.other()];
                let has_got_it = to.is_flushed() && to.filter().ends_with_insertion();
                self.closing.sent_codes()[side].filter(|_| has_got_it)
            }),
        };
        self.from.client.abandon(&mut buffers.pipes);
        self.from.backend.abandon(&mut buffers.pipes);
        end
    }

    /// Gives the direction from a side its turn; returns whether it has more to do.
    fn relay(
        &mut self,
        side: Side,
        clock: &Clock,
        buffers: &mut Buffers,
    ) -> ControlFlow<Reason, bool> {
        loop {
            let leave_open = self.from[side.other()].is_done();
            match self.advance_direction(side, leave_open, buffers) {
                Ok(Progress::Waiting) => return ControlFlow::Continue(false),
                Ok(Progress::More) => return ControlFlow::Continue(true),
                // A Close for the sink, if there is one, goes in before the end is relayed; then
                // the direction goes on from where it stopped.
                Ok(Progress::SourceEnded) => {
                    let actions = self.closing.on_eof(side, &self.states(), &self.policy);
                    self.carry_out(actions)?;
                }
                Err(RelayError::Source) => {
                    self.on_reset(side, buffers)?;
                    let actions = self.closing.on_eof(side, &self.states(), &self.policy);
                    self.carry_out(actions)?;
                }
                // The side that could not be written to is the one that broke. From here on the
                // direction drops what it reads.
                Err(RelayError::Sink) if !self.closing.is_broken(side.other()) => {
                    self.on_reset(side.other(), buffers)?;
                }
                Err(RelayError::Sink) => return ControlFlow::Continue(false),
                // The direction is closed already. The Closes that are inserted now need a turn.
                Err(RelayError::Violation(violation)) => {
                    self.start_close(Cause::Violation(side, violation), clock.now());
                    return ControlFlow::Continue(true);
                }
            }
        }
    }

    fn advance_direction(
        &mut self,
        side: Side,
        leave_open: bool,
        buffers: &mut Buffers,
    ) -> Result<Progress, RelayError> {
        let sockets = [&self.sockets[side], &self.sockets[side.other()]];
        self.from[side].advance(sockets, leave_open, &self.policy, buffers)
    }

    /// Handles the break of a side's connection, to which nothing can be written any more. What it
    /// had sent is read on from its socket. Returns whether that gives more to do.
    fn on_reset(&mut self, side: Side, buffers: &mut Buffers) -> ControlFlow<Reason, bool> {
        if self.closing.is_broken(side) {
            return ControlFlow::Continue(false);
        }
        self.to(side).abandon(&mut buffers.pipes);
        let actions = self.closing.on_reset(side, &self.states());
        self.carry_out(actions)
    }

    /// Tells the keep-alive what has moved.
    fn record_activity(&mut self, clock: &Clock) {
        let Some(keepalive) = &mut self.keepalive else { return };
        let PerSide { client, backend } = &mut self.from;
        let blocked_at = |to: &Direction| (!to.is_flushed()).then(|| to.written());
        let activity = Activity {
            blocked_at: PerSide { client: blocked_at(backend), backend: blocked_at(client) },
            sent: PerSide { client: client.take_fresh(), backend: backend.take_fresh() },
            has_data: client.filter_mut().take_fresh_data()
                | backend.filter_mut().take_fresh_data(),
        };
        keepalive.on_activity(clock.now(), &activity);
    }

    /// Begins to close the tunnel for a cause of the proxy, which needs a turn after it.
    fn start_close(&mut self, cause: Cause, now: Tick) {
        let actions = self.closing.start_close(cause, &self.states(), now, &self.policy);
        // A cause never ends a tunnel at once.
        let _ = self.carry_out(actions);
    }

    /// Carries out what [`Closing`] has decided; returns whether that gives more to do.
    fn carry_out(&mut self, actions: Actions) -> ControlFlow<Reason, bool> {
        let mut has_more = false;
        for side in Side::BOTH {
            if let Some(CloseFrame { code, reason }) = actions.close[side] {
                let order = self.keepalive.as_ref().and_then(|times| times.order());
                let ordered = order.filter(|_| reason == BY_ORDER);
                let reason = ordered.map_or(reason, |order| &order.reason);
                let frame = control::close(code, reason, mask_for(side));
                self.to(side).insert(frame, true);
                has_more = true;
            }
        }
        if let Some(dead) = actions.abandon {
            self.to(dead).give_up();
        }
        if let Some(reason) = actions.finish {
            return ControlFlow::Break(reason);
        }
        // No event will come for what is held.
        has_more |= actions.resume && self.from.client.filter_mut().lift_rate();
        ControlFlow::Continue(has_more)
    }

    /// Carries out what [`KeepAlive`] has decided.
    fn carry_out_tick(&mut self, actions: TickActions, now: Tick) {
        for side in Side::BOTH {
            if let Some(payload) = actions.ping[side] {
                self.from[side].filter_mut().await_pong(payload);
                self.to(side).insert(control::ping(payload, mask_for(side)), false);
            }
        }
        if let Some(cause) = actions.close {
            self.start_close(cause, now);
        }
    }

    /// Returns the direction to a side.
    fn to(&mut self, side: Side) -> &mut Direction {
        &mut self.from[side.other()]
    }
}

/// Returns a masking key for a frame to this side: frames to a backend have one (RFC 6455, 5.3).
fn mask_for(side: Side) -> Option<[u8; 4]> {
    (side == Side::Backend).then(control::fresh_mask)
}
