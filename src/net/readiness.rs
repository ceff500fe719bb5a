//! Readiness of one socket, as an edge-triggered epoll reports it.

use std::io::{self, ErrorKind};

use mio::event::Event;

/// What is believed of a socket.
///
/// Edge-triggered epoll reports each change once (epoll(7)), so a flag stays set until a system
/// call has shown the contrary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Readiness {
    /// There may be something to read.
    pub(super) readable: bool,
    /// There may be room to write.
    pub(super) writable: bool,
    pub(super) tail: Tail,
    /// The connection may be broken.
    pub(super) failed: bool,
}

/// What follows the data that a read finds, without a further event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing.
    None,
    /// Bytes after urgent data (RFC 9293, 3.8.5), at which a read stops short, or an error.
    More,
    /// The peer's end: it has ended its sending, or the connection is over. It stays so.
    End,
}

impl Readiness {
    /// An established socket before its first event: reading and writing are tried.
    pub(super) const UNKNOWN: Self =
        Self { readable: true, writable: true, tail: Tail::None, failed: false };

    /// A connecting socket before its first event: nothing is tried.
    pub(super) const NONE: Self =
        Self { readable: false, writable: false, tail: Tail::None, failed: false };

    /// Records an epoll event. The only place that does.
    pub(super) fn record(&mut self, event: &Event) {
        if event.is_read_closed() {
            // Reported with unread bytes before the end, too (EPOLLRDHUP).
            self.tail = Tail::End;
        } else if self.tail == Tail::None && (event.is_error() || event.is_priority()) {
            self.tail = Tail::More;
        }
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.failed |= event.is_error();
    }

    /// Returns whether the peer has ended its sending, or the connection is over.
    pub(super) fn has_ended(&self) -> bool {
        self.tail == Tail::End
    }

    /// Records the result of a read into a buffer of `room` bytes; `None` is a read that would
    /// block.
    pub(super) fn after_read(&mut self, count: Option<usize>, room: usize) {
        self.readable = match count {
            // A stream that gives less than there is room for has no more (epoll(7)), which saves
            // the read that would only show it.
            Some(count) if count < room => self.tail != Tail::None,
            Some(_) => true,
            None => false,
        };
    }

    /// Records the result of a write of `len` bytes; `None` is a write that would block.
    pub(super) fn after_write(&mut self, count: Option<usize>, len: usize) {
        self.writable = count == Some(len);
    }
}

/// Makes a call again if a signal interrupted it; `None` if it would block.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<Option<T>> {
    loop {
        match call() {
            Ok(done) => return Ok(Some(done)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_read_ends_reading_unless_something_follows() {
        for (tail, count, room, readable) in [
            (Tail::None, Some(5), 10, false),
            (Tail::More, Some(5), 10, true),
            (Tail::End, Some(5), 10, true),
            (Tail::None, Some(10), 10, true),
            (Tail::End, Some(0), 10, true),
            (Tail::None, None, 10, false),
            (Tail::End, None, 10, false),
        ] {
            let mut readiness = Readiness { tail, ..Readiness::UNKNOWN };
            readiness.after_read(count, room);
            assert_eq!(readiness.readable, readable, "{tail:?} {count:?} of {room}");
        }
    }

    #[test]
    fn a_short_write_ends_writing() {
        for (count, writable) in [(Some(10), true), (Some(9), false), (None, false)] {
            let mut readiness = Readiness::UNKNOWN;
            readiness.after_write(count, 10);
            assert_eq!(readiness.writable, writable, "{count:?}");
        }
    }

    #[test]
    fn a_call_is_made_again_after_a_signal_only() {
        let mut results = [ErrorKind::Interrupted, ErrorKind::WouldBlock].into_iter();
        let would_block = retry(|| Err::<(), _>(results.next().unwrap().into()));
        assert!(matches!(would_block, Ok(None)));
        assert!(results.next().is_none());
        let failed = retry(|| Err::<(), _>(ErrorKind::ConnectionReset.into()));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
