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
    /// More follows the data without a further event: the peer's end, or the bytes after urgent
    /// data (RFC 9293, 3.8.5), at which a read stops short.
    pub(super) ending: bool,
    /// The peer has ended its sending, or the connection is over. It stays so.
    pub(super) ended: bool,
    /// The connection may be broken.
    pub(super) failed: bool,
}

impl Readiness {
    /// An established socket before its first event: reading and writing are tried.
    pub(super) const UNKNOWN: Self =
        Self { readable: true, writable: true, ending: false, ended: false, failed: false };

    /// A connecting socket before its first event: nothing is tried.
    pub(super) const NONE: Self =
        Self { readable: false, writable: false, ending: false, ended: false, failed: false };

    /// Records an epoll event. The only place that does.
    pub(super) fn record(&mut self, event: &Event) {
        // Reported with unread bytes before the end, too (EPOLLRDHUP).
        self.ended |= event.is_read_closed();
        let is_over = event.is_read_closed() || event.is_error();
        self.ending |= is_over || event.is_priority();
        self.readable |= is_over || event.is_readable();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.failed |= event.is_error();
    }

    /// Records the result of a read into a buffer of `room` bytes; `None` is a read that would
    /// block.
    pub(super) fn after_read(&mut self, count: Option<usize>, room: usize) {
        self.readable = match count {
            // A stream that gives less than there is room for has no more (epoll(7)), which saves
            // the read that would only show it.
            Some(count) if count < room => self.ending,
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
    fn a_short_read_ends_reading_unless_the_end_follows() {
        for (ending, count, room, readable) in [
            (false, Some(5), 10, false),
            (true, Some(5), 10, true),
            (false, Some(10), 10, true),
            (true, Some(0), 10, true),
            (false, None, 10, false),
            (true, None, 10, false),
        ] {
            let mut readiness = Readiness { ending, ..Readiness::UNKNOWN };
            readiness.after_read(count, room);
            assert_eq!(readiness.readable, readable, "{ending} {count:?} of {room}");
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
