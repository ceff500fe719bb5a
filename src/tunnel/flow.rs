//! How much a source sends, and what is therefore read at once.

use super::buffers::{READ, SCRATCH};

/// How much a source sends, as its last read has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Less than a read takes.
    Trickle,
    /// More than a read takes, and the sink takes it all: reads are large.
    Flood,
    /// Large payloads: they go through a pipe rather than through memory.
    Bulk,
}

impl Flow {
    /// Returns the flow after a read: whether that filled its room, whether what comes next is
    /// payload for which a pipe is worth it, and whether a large read would do no harm.
    pub(super) fn after(is_full: bool, is_worth_a_pipe: bool, may_flood: bool) -> Self {
        match (is_full, is_worth_a_pipe, may_flood) {
            (true, true, _) => Self::Bulk,
            (true, false, true) => Self::Flood,
            _ => Self::Trickle,
        }
    }

    /// Returns the most bytes that the next read takes.
    pub(super) fn room(self) -> usize {
        match self {
            Self::Flood => SCRATCH,
            Self::Trickle | Self::Bulk => READ,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_fills_its_read_is_more_than_a_trickle() {
        for is_worth_a_pipe in [false, true] {
            for may_flood in [false, true] {
                assert_eq!(Flow::after(false, is_worth_a_pipe, may_flood), Flow::Trickle);
            }
        }
        assert_eq!(Flow::after(true, true, false), Flow::Bulk);
        assert_eq!(Flow::after(true, false, true), Flow::Flood);
        assert_eq!(Flow::after(true, false, false), Flow::Trickle);
        assert!(Flow::Flood.room() > Flow::Trickle.room());
    }
}
