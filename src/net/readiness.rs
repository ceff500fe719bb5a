//! What an edge-triggered epoll has told of a socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use rustix::event::epoll::EventFlags;

/// What is believed of a socket. It holds until a system call has shown the contrary, since epoll will not say it
/// again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    /// There may be something to read.
    pub(crate) readable: bool,
    /// There may be room to write.
    pub(crate) writable: bool,
    /// Behind the data there is more, for which there will be no further event: the peer's end, or what follows urgent
    /// data (RFC 9293, 3.8.5), at which a read stops short.
    pub(crate) ending: bool,
    /// The connection may be broken.
    pub(crate) failed: bool,
}

impl Readiness {
    /// Nothing but that what is read and written must be asked for.
    pub(crate) const UNKNOWN: Self =
        Self { readable: true, writable: true, ending: false, failed: false };

    /// Nothing, until the first event.
    pub(crate) const NONE: Self =
        Self { readable: false, writable: false, ending: false, failed: false };

    /// Takes an event into account.
    pub(crate) fn note(&mut self, flags: EventFlags) {
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.ending |= ended || flags.contains(EventFlags::PRI);
        self.readable |= ended || flags.contains(EventFlags::IN);
        self.writable |= flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
        self.failed |= flags.contains(EventFlags::ERR);
    }

    /// Reads what is there: 0 is the end, `None` is nothing for now.
    pub(crate) fn read(
        &mut self,
        mut socket: &TcpStream,
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let read = retry(|| socket.read(buffer))?;
        match read {
            // A stream that gives less than it could has no more (epoll(7)), which saves asking it.
            Some(count) if count < buffer.len() => self.readable = self.ending,
            Some(_) => {}
            None => self.readable = false,
        }
        Ok(read)
    }

    /// Writes as much as there is room for; `None` is for no room for now.
    pub(crate) fn write(
        &mut self,
        mut socket: &TcpStream,
        bytes: &[u8],
    ) -> io::Result<Option<usize>> {
        let written = retry(|| socket.write(bytes))?;
        self.writable = written == Some(bytes.len());
        Ok(written)
    }
}

/// Makes a call again if a signal came in between; `None` if it would have to wait.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<Option<T>> {
    loop {
        match call() {
            Ok(done) => return Ok(Some(done)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
