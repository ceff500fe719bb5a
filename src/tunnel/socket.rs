//! One end of a tunnel.

use std::io;
use std::net::TcpStream;

use rustix::event::epoll::EventFlags;
use rustix::net::sockopt;
use rustix::pipe::{SpliceFlags, splice};

use super::pipes::Pipe;
use crate::net;
use crate::net::reactor::{Key, Reactor};
use crate::net::readiness::{Readiness, retry};
use crate::net::stream::Detached;

/// Most that is read and dropped of a side whose tunnel is over already.
const LEAVE_BYTES: usize = 256 * 1024;

/// How the kernel moves bytes: by their pages, and never waiting.
const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// A registered, non-blocking socket.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    known: Readiness,
    key: Option<Key>,
}

impl Socket {
    /// Takes a socket over from its task; its events come under `label` from now on.
    pub(super) fn new(detached: Detached, reactor: &Reactor, label: u64) -> Self {
        let Detached { socket, readiness, key } = detached;
        if let Some(key) = key {
            reactor.label(key, label);
        }
        Self { stream: socket, known: readiness, key }
    }

    /// Takes an event into account.
    pub(super) fn note(&mut self, flags: EventFlags) {
        self.known.note(flags);
    }

    pub(super) fn is_readable(&self) -> bool {
        self.known.readable
    }

    pub(super) fn is_writable(&self) -> bool {
        self.known.writable
    }

    /// Reads what is there: 0 is the end, `None` is nothing for now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.known.read(&self.stream, buffer)
    }

    /// Writes as much as there is room for; `None` is for no room for now.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        self.known.write(&self.stream, bytes)
    }

    /// Moves what is there into an empty pipe, at most `most` bytes: 0 is the end, `None` is nothing for now.
    pub(super) fn splice_into(&mut self, pipe: &Pipe, most: usize) -> io::Result<Option<usize>> {
        let moved = retry(|| Ok(splice(&self.stream, None, &pipe.entry, None, most, SPLICE)?))?;
        self.known.readable = moved.is_some();
        Ok(moved)
    }

    /// Writes as much of a pipe that holds `held` bytes as there is room for; `None` is for no room for now.
    pub(super) fn splice_from(&mut self, pipe: &Pipe, held: usize) -> io::Result<Option<usize>> {
        let moved = retry(|| Ok(splice(&pipe.exit, None, &self.stream, None, held, SPLICE)?))?;
        // Less than all can also mean that it stopped between two pages: the next call tells.
        self.known.writable = moved.is_some();
        Ok(moved)
    }

    /// Ends this side's sending.
    pub(super) fn end_sending(&self) -> io::Result<()> {
        net::end_sending(&self.stream)
    }

    /// Whether the connection is broken. Asks the system only where an event gave reason to.
    pub(super) fn is_broken(&mut self) -> bool {
        self.known.failed =
            self.known.failed && !matches!(sockopt::socket_error(&self.stream), Ok(Ok(())));
        self.known.failed
    }

    /// Ends the sending, and reads what has come: a socket closed with unread bytes in it resets the connection, which
    /// throws away what is on its way to the peer.
    pub(super) fn leave(&mut self, scratch: &mut [u8]) {
        // An error changes nothing any more: the connection is closed next.
        if self.end_sending().is_err() {
            return;
        }
        let mut left = LEAVE_BYTES;
        while let Ok(Some(count @ 1..)) = self.read(scratch) {
            left = left.saturating_sub(count);
            if left == 0 {
                return;
            }
        }
    }

    /// Closes the connection.
    pub(super) fn close(self, reactor: &Reactor) {
        if let Some(key) = self.key {
            reactor.forget(key);
        }
    }
}
