//! Reads a head: bytes up to the blank line.

use std::future::Future;

use futures_lite::{AsyncRead, AsyncReadExt, future};

use crate::handshake::scan::{HeadScan, Scan};

/// Bytes that one read has room for. Few, since a stalled client holds that room.
const STEP: usize = 1_024;

/// A complete head, and the bytes that came with it.
#[derive(Debug)]
pub(crate) struct Head {
    bytes: Vec<u8>,
    /// Offset of the head's end, its blank line included.
    end: usize,
    /// A line of it ends in LF alone.
    has_bare_lf: bool,
}

/// Reason for which there is no head. `begun` tells whether anything had come before.
#[derive(Debug)]
pub(crate) enum HeadError {
    /// The deadline passed.
    TimedOut { begun: bool },
    /// The peer ended its sending.
    Ended { begun: bool },
    /// The connection broke.
    Broken { begun: bool },
    /// The head does not end within its bound; `first_line_ends` tells whether its first line does.
    TooLong { first_line_ends: bool },
    /// The bytes are no head; the text names what stands in them.
    Malformed(&'static str),
}

impl Head {
    /// Returns the head itself, its blank line included.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// Returns whether one of its lines ends in LF alone.
    pub(crate) fn has_bare_lf(&self) -> bool {
        self.has_bare_lf
    }

    /// Returns the bytes that came after it in the same reads.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.end..]
    }
}

/// Reads a head of at most `max` bytes, the blank line included, that begins with `bytes` already
/// read.
///
/// `deadline` bounds the whole head, however slowly it trickles in.
///
/// # Errors
///
/// See [`HeadError`]; the socket is left as it is, and `bytes` holds what has come.
pub(crate) async fn read(
    socket: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
    (max, mut scan): (usize, HeadScan),
    deadline: impl Future,
) -> Result<Head, HeadError> {
    let mut begun = !bytes.is_empty();
    let whole_head = async {
        loop {
            let searched = &bytes[..bytes.len().min(max)];
            match scan.advance(searched) {
                Scan::End(end) => {
                    let has_bare_lf = scan.has_bare_lf();
                    return Ok(Head { bytes: std::mem::take(bytes), end, has_bare_lf });
                }
                Scan::Fault(what) => return Err(HeadError::Malformed(what)),
                Scan::More if searched.len() == max => {
                    return Err(HeadError::TooLong { first_line_ends: scan.has_start_line() });
                }
                Scan::More => {}
            }
            // No byte beyond `max` is ever read: bytes that fill it hold the end, or the head is
            // too long.
            let filled = bytes.len();
            bytes.resize(max.min(filled + STEP), 0);
            let read = socket.read(&mut bytes[filled..]).await;
            let count = read.map_err(|_| HeadError::Broken { begun })?;
            bytes.truncate(filled + count);
            if count == 0 {
                return Err(HeadError::Ended { begun });
            }
            begun = true;
        }
    };
    let too_late = async {
        deadline.await;
        None
    };
    let result = future::or(async { Some(whole_head.await) }, too_late).await;
    result.unwrap_or(Err(HeadError::TimedOut { begun }))
}
