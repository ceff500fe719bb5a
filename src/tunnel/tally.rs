//! What has passed in one direction.

use super::frames::{Header, Opcode};

/// Counts of one direction, for the log and for metrics; they are right at any time.
///
/// Four bytes are enough: they go round after 4 billion messages, which metrics expect of counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Payload bytes of all frames, as their headers say.
    pub(crate) payload: u64,
    /// Messages by their first frame.
    pub(crate) text: u32,
    pub(crate) binary: u32,
    /// Frames of any kind.
    pub(crate) frames: u32,
    pub(crate) pings: u32,
    pub(crate) pongs: u32,
    /// What is known of a Close.
    pub(crate) close: CloseSeen,
}

/// What is known of the Close of one direction.
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

impl Tally {
    /// Counts a frame.
    pub(crate) fn count(&mut self, header: &Header) {
        self.frames = self.frames.wrapping_add(1);
        self.payload = self.payload.wrapping_add(header.length);
        let counter = match header.opcode() {
            Opcode::Text => &mut self.text,
            Opcode::Binary => &mut self.binary,
            Opcode::Ping => &mut self.pings,
            Opcode::Pong => &mut self.pongs,
            Opcode::Close => {
                if self.close == CloseSeen::None {
                    self.close = CloseSeen::WithoutCode;
                }
                return;
            }
            Opcode::Continuation | Opcode::Other => return,
        };
        *counter = counter.wrapping_add(1);
    }

    /// Takes the next bytes of the first Close's payload into account.
    pub(crate) fn note_close_payload(&mut self, payload: &[u8], mask: [u8; 4]) {
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

    /// Takes a Pong out of the counts: it was to us.
    pub(crate) fn uncount_pong(&mut self, length: u64) {
        self.frames = self.frames.wrapping_sub(1);
        self.pongs = self.pongs.wrapping_sub(1);
        self.payload = self.payload.wrapping_sub(length);
    }

    /// The code of the Close that has come, if it has one.
    pub(crate) fn close_code(&self) -> Option<u16> {
        match self.close {
            CloseSeen::Code(code) => Some(code),
            _ => None,
        }
    }

    /// Whether a Close has come.
    pub(crate) fn has_close(&self) -> bool {
        self.close != CloseSeen::None
    }

    /// Messages that have begun.
    pub(crate) fn messages(&self) -> u32 {
        self.text.wrapping_add(self.binary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_code_may_come_in_pieces() {
        let mut tally = Tally { close: CloseSeen::WithoutCode, ..Tally::default() };
        tally.note_close_payload(&[0x03 ^ 0xaa], [0xaa, 0xbb, 0, 0]);
        assert_eq!(tally.close_code(), None);
        tally.note_close_payload(&[0xe9 ^ 0xbb, 1, 2], [0xaa, 0xbb, 0, 0]);
        assert_eq!(tally.close_code(), Some(1001));
        // What follows is the reason.
        tally.note_close_payload(&[3, 4], [0xaa, 0xbb, 0, 0]);
        assert_eq!(tally.close_code(), Some(1001));
    }
}
