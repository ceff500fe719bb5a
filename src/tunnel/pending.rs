//! Bytes of a direction that its sink has not taken yet.

use std::io;

use super::splice::Pipe;
use crate::net::socket::Socket;

/// Bytes that the sink has not taken yet.
#[derive(Debug)]
pub(super) enum Pending {
    /// Those from this offset on.
    Bytes(Vec<u8>, usize),
    /// This many in a pipe.
    Piped(Pipe, usize),
}

impl Pending {
    /// Adds bytes after those that are pending.
    pub(super) fn append(&mut self, more: &[u8]) {
        match self {
            Self::Bytes(bytes, at) => {
                bytes.drain(..std::mem::take(at));
                bytes.extend_from_slice(more);
            }
            // A pipe never ends at a boundary, so nothing is inserted after one.
            Self::Piped(..) => {}
        }
    }

    /// Writes as much as the sink takes; returns how much that is, and whether nothing is left.
    ///
    /// # Errors
    ///
    /// Those of the sink: its connection is broken.
    pub(super) fn write(&mut self, sink: &Socket) -> io::Result<(usize, bool)> {
        match self {
            Self::Bytes(bytes, at) => {
                let written = sink.try_write(&bytes[*at..])?.unwrap_or(0);
                *at += written;
                Ok((written, *at == bytes.len()))
            }
            Self::Piped(pipe, count) => {
                let written = sink.try_splice_from(&pipe.read_end, *count)?.unwrap_or(0);
                *count -= written;
                Ok((written, *count == 0))
            }
        }
    }
}
