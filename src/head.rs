//! Reads bytes up to the blank line.

use std::future::Future;

use futures_lite::{AsyncRead, AsyncReadExt, future};

use crate::handshake::scan::{HeadScan, Scan};

/// Most that is read at once. Small, since a stalled client holds what has been made room for.
const STEP: usize = 1_024;

/// A complete head, and what came behind it.
#[derive(Debug)]
pub(crate) struct Head {
    bytes: Vec<u8>,
    /// Where the head ends, its blank line included.
    end: usize,
}

/// Why there is no head.
#[derive(Debug)]
pub(crate) enum NoHead {
    /// The deadline passed; whether anything had come by then.
    TimedOut { begun: bool },
    /// The connection ended; whether anything had come by then.
    Ended { begun: bool },
    /// The connection broke; whether anything had come by then.
    Broken { begun: bool },
    /// It does not end within `max` bytes; whether at least its first line does.
    TooLong { first_line_ends: bool },
    /// It is no head.
    Malformed(&'static str),
}

impl Head {
    /// The head itself, its blank line included.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// What came behind it.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.end..]
    }
}

/// Reads a head of at most `max` bytes, the blank line included, that begins with `bytes` already read.
///
/// `deadline` bounds the whole head, however slowly it trickles in. What comes behind the head is read only as
/// far as it came together with it.
///
/// # Errors
///
/// See [`NoHead`]; the socket is left as it is.
pub(crate) async fn read(
    socket: &mut (impl AsyncRead + Unpin),
    mut bytes: Vec<u8>,
    max: usize,
    deadline: impl Future,
) -> Result<Head, NoHead> {
    let mut begun = !bytes.is_empty();
    let whole_head = async {
        let mut scan = HeadScan::default();
        loop {
            let searched = &bytes[..bytes.len().min(max)];
            match scan.advance(searched) {
                Scan::End(end) => return Ok(Head { bytes, end }),
                Scan::Fault(what) => return Err(NoHead::Malformed(what)),
                Scan::More if searched.len() == max => {
                    return Err(NoHead::TooLong { first_line_ends: scan.has_start_line() });
                }
                Scan::More => {}
            }
            // One byte more than fits is never read: what has come in full either holds the end or is too long.
            let filled = bytes.len();
            bytes.resize(max.min(filled + STEP), 0);
            let count =
                socket.read(&mut bytes[filled..]).await.map_err(|_| NoHead::Broken { begun })?;
            bytes.truncate(filled + count);
            if count == 0 {
                return Err(NoHead::Ended { begun });
            }
            begun = true;
        }
    };
    let result = future::or(async { Some(whole_head.await) }, async {
        deadline.await;
        None
    })
    .await;
    result.unwrap_or(Err(NoHead::TimedOut { begun }))
}
