//! Counts of the frames of one direction.

use super::frames::{Header, Opcode};

/// Counts for the log and for metrics, right at any time.
///
/// Four bytes wrap after 4 billion messages, as metrics expect of counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameCounters {
    /// Payload bytes of all frames that passed, as their headers announce them.
    pub(crate) payload: u64,
    /// Text messages, counted at their first frame.
    pub(crate) text: u32,
    /// Binary messages, counted at their first frame.
    pub(crate) binary: u32,
    /// Frames of any kind.
    pub(crate) frames: u32,
    pub(crate) pings: u32,
    pub(crate) pongs: u32,
    /// The first Close.
    pub(crate) close: CloseSeen,
}

/// Knowledge of a direction's first Close.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CloseSeen {
    /// None has come.
    #[default]
    None,
    /// One has come, without a code as far as is known.
    WithoutCode,
    /// One has come, and the first byte of its code.
    Half(u8),
    /// One has come with this code.
    Code(u16),
}

impl FrameCounters {
    /// Counts a number of frames with this kind and length.
    pub(crate) fn count(&mut self, header: &Header, number: u32) {
        self.frames = self.frames.wrapping_add(number);
        self.payload = self.payload.wrapping_add(header.length.wrapping_mul(number.into()));
        let counter = match header.opcode() {
            Opcode::Text => &mut self.text,
            Opcode::Binary => &mut self.binary,
            Opcode::Ping => &mut self.pings,
            Opcode::Pong => &mut self.pongs,
            Opcode::Close => return self.record_close(header),
            Opcode::Continuation | Opcode::Other => return,
        };
        *counter = counter.wrapping_add(number);
    }

    /// Records a Close, and no count.
    pub(crate) fn record_close(&mut self, header: &Header) {
        if header.opcode() == Opcode::Close && self.close == CloseSeen::None {
            self.close = CloseSeen::WithoutCode;
        }
    }

    /// Records the next payload bytes of a Close: the first two are its code (RFC 6455, 5.5.1).
    pub(crate) fn record_close_payload(&mut self, payload: &[u8], mask: [u8; 4]) {
        for &byte in payload.iter().take(2) {
            self.close = match self.close {
                CloseSeen::WithoutCode => CloseSeen::Half(byte ^ mask[0]),
                CloseSeen::Half(first) => {
                    CloseSeen::Code(u16::from_be_bytes([first, byte ^ mask[1]]))
                }
                done => done,
            };
        }
    }

    /// Takes back the count of a Pong that was meant for the proxy.
    pub(crate) fn uncount_pong(&mut self, length: u64) {
        self.frames = self.frames.wrapping_sub(1);
        self.pongs = self.pongs.wrapping_sub(1);
        self.payload = self.payload.wrapping_sub(length);
    }

    /// Returns the code of the first Close, if it has one.
    pub(crate) fn close_code(&self) -> Option<u16> {
        match self.close {
            CloseSeen::Code(code) => Some(code),
            _ => None,
        }
    }

    /// Returns whether a Close has come.
    pub(crate) fn has_close(&self) -> bool {
        self.close != CloseSeen::None
    }

    /// Returns the number of messages that have begun.
    pub(crate) fn messages(&self) -> u32 {
        self.text.wrapping_add(self.binary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_code_may_come_in_pieces() {
        let mut counters =
            FrameCounters { close: CloseSeen::WithoutCode, ..FrameCounters::default() };
        counters.record_close_payload(&[0x03 ^ 0xaa], [0xaa, 0xbb, 0, 0]);
        assert_eq!(counters.close_code(), None);
        counters.record_close_payload(&[0xe9 ^ 0xbb, 1, 2], [0xaa, 0xbb, 0, 0]);
        assert_eq!(counters.close_code(), Some(1001));
        // What follows is the reason.
        counters.record_close_payload(&[3, 4], [0xaa, 0xbb, 0, 0]);
        assert_eq!(counters.close_code(), Some(1001));
    }

    #[test]
    fn counts_wrap_and_an_own_pong_is_taken_back() {
        let mut counters = FrameCounters { pongs: u32::MAX, ..FrameCounters::default() };
        counters.uncount_pong(8);
        assert_eq!((counters.pongs, counters.frames), (u32::MAX - 1, u32::MAX));
        assert_eq!(counters.payload, u64::MAX - 7);
    }
}
