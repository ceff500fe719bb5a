//! A tunnel at work: its two halves, and the rule for the end.

use rustix::event::epoll::EventFlags;

use super::half::{Broken, Half, Tools, Turn};
use super::socket::Socket;
use super::{Cause, Side, Tunnel, TunnelEnd};
use crate::net::reactor::Reactor;

/// Two connections and the two directions between them.
#[derive(Debug)]
pub(super) struct Pair {
    client: Socket,
    backend: Socket,
    up: Half,
    down: Half,
    /// The side that was the first to end its sending, when all that it sent has been carried.
    ended_first: Option<Side>,
}

/// What has become of a tunnel in its turn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Progress {
    /// It goes on.
    On(Turn),
    /// It is over.
    Over(Cause),
}

impl Pair {
    /// A tunnel whose sides' events come under these labels.
    pub(super) fn new(tunnel: Tunnel, reactor: &Reactor, label: impl Fn(Side) -> u64) -> Self {
        Self {
            client: Socket::new(tunnel.client, reactor, label(Side::Client)),
            backend: Socket::new(tunnel.backend, reactor, label(Side::Backend)),
            up: Half::new(tunnel.for_backend),
            down: Half::new(tunnel.for_client),
            ended_first: None,
        }
    }

    /// Takes an event of one side's socket into account.
    pub(super) fn note(&mut self, side: Side, flags: EventFlags) {
        match side {
            Side::Client => self.client.note(flags),
            Side::Backend => self.backend.note(flags),
        }
    }

    /// Carries what can be carried now, in both directions. The end of one direction does not end the other; a break
    /// of either connection ends both.
    pub(super) fn advance(&mut self, tools: &mut Tools) -> Progress {
        let last = self.down.is_done();
        let up = match self.up.advance(&mut self.client, &mut self.backend, last, tools) {
            Ok(turn) => turn,
            Err(broken) => return Progress::Over(Cause::Reset(broken.side(Side::Client))),
        };
        let last = self.up.is_done();
        let down = match self.down.advance(&mut self.backend, &mut self.client, last, tools) {
            Ok(turn) => turn,
            Err(broken) => return Progress::Over(Cause::Reset(broken.side(Side::Backend))),
        };
        // A side that nobody reads, since it has ended its sending or its direction is blocked, can still break.
        if !self.up.is_reading() && self.client.is_broken() {
            return Progress::Over(Cause::Reset(Side::Client));
        }
        if !self.down.is_reading() && self.backend.is_broken() {
            return Progress::Over(Cause::Reset(Side::Backend));
        }
        match (self.up.is_done(), self.down.is_done(), self.ended_first) {
            (true, true, first) => Progress::Over(Cause::Eof(first.unwrap_or(Side::Client))),
            (up_is_done, down_is_done, first) => {
                if first.is_none() && (up_is_done || down_is_done) {
                    self.ended_first = Some(if up_is_done { Side::Client } else { Side::Backend });
                }
                let more = up == Turn::More || down == Turn::More;
                Progress::On(if more { Turn::More } else { Turn::Waiting })
            }
        }
    }

    /// Closes both connections.
    pub(super) fn close(mut self, reactor: &Reactor, cause: Cause, tools: &mut Tools) -> TunnelEnd {
        let end = TunnelEnd { to_backend: self.up.carried(), to_client: self.down.carried(), cause };
        match cause {
            // What the side that is left was sent last, perhaps a Close frame, still reaches it.
            Cause::Reset(Side::Client) => self.backend.leave(&mut tools.scratch),
            Cause::Reset(Side::Backend) => self.client.leave(&mut tools.scratch),
            Cause::Eof(_) | Cause::Cut => {}
        }
        self.up.release(&mut tools.pipes);
        self.down.release(&mut tools.pipes);
        self.client.close(reactor);
        self.backend.close(reactor);
        end
    }
}

impl Broken {
    /// Which side broke, for a direction that comes from `source`.
    fn side(self, source: Side) -> Side {
        match self {
            Self::Source => source,
            Self::Sink => source.other(),
        }
    }
}
