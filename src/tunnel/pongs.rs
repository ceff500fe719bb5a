//! Pongs to the proxy's own Pings, which are taken out of the stream (RFC 6455, 5.5.3).

use super::control::{PingPayload, unmask};

/// Length of the payload of the proxy's Pings.
pub(super) const LENGTH: u64 = size_of::<PingPayload>() as u64;
/// First byte of a Pong as it should be.
const FINAL_PONG: u8 = 0x8a;
/// Longest header of a frame.
const HEADER_MAX: usize = 14;

/// Pongs that are awaited, and the frame that may be one.
#[derive(Debug, Default)]
pub(super) struct AwaitedPongs {
    /// Payload and number of the Pongs to take out.
    awaited: Option<(PingPayload, u32)>,
    /// Start of a frame that may be such a Pong.
    withheld: Option<Vec<u8>>,
}

/// Whole frame that was withheld.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Withheld {
    /// It is an awaited Pong.
    Awaited,
    /// It is somebody else's, and passes after all.
    Other(Vec<u8>),
}

impl AwaitedPongs {
    /// Awaits one Pong more with this payload; all have the same.
    pub(super) fn add(&mut self, payload: PingPayload) {
        let count = self.awaited.map_or(1, |(_, count)| count.saturating_add(1));
        self.awaited = Some((payload, count));
    }

    /// Returns whether nothing is awaited or withheld.
    pub(super) fn is_done(&self) -> bool {
        self.awaited.is_none() && !self.withholds()
    }

    /// Returns whether a frame is withheld.
    pub(super) fn withholds(&self) -> bool {
        self.withheld.is_some()
    }

    /// Begins to withhold a frame that begins like an awaited Pong.
    pub(super) fn begin_frame(&mut self, bytes: &[u8]) {
        if self.awaited.is_some() && bytes.first() == Some(&FINAL_PONG) {
            self.withheld = Some(Vec::with_capacity(HEADER_MAX));
        }
    }

    /// Withholds a piece with the frame that it belongs to; returns false if none is withheld.
    pub(super) fn withhold(&mut self, piece: &[u8]) -> bool {
        if let Some(withheld) = &mut self.withheld {
            withheld.extend_from_slice(piece);
        }
        self.withholds()
    }

    /// Returns what is withheld, to let it pass: it is no awaited Pong.
    pub(super) fn release(&mut self) -> Option<Vec<u8>> {
        self.withheld.take()
    }

    /// Judges the withheld frame at its end; `None` if none is withheld.
    pub(super) fn end_frame(&mut self) -> Option<Withheld> {
        let frame = self.withheld.take()?;
        match self.awaited {
            Some((payload, count)) if is_pong_to(payload, &frame) => {
                self.awaited = (count > 1).then(|| (payload, count - 1));
                Some(Withheld::Awaited)
            }
            _ => Some(Withheld::Other(frame)),
        }
    }
}

/// Returns whether a whole frame is the Pong to a Ping with this payload.
fn is_pong_to(ping: PingPayload, frame: &[u8]) -> bool {
    let Some((head, payload)) = frame.split_last_chunk() else { return false };
    let mut payload: PingPayload = *payload;
    // A masking key stands before the payload.
    if frame.get(1).is_some_and(|second| second & 0x80 != 0)
        && let Some((_, mask)) = head.split_last_chunk::<4>()
    {
        unmask(&mut payload, *mask, 0);
    }
    payload == ping
}
