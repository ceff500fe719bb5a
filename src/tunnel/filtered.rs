//! Results of filtering.

use super::limits::Violation;

/// Result of filtering a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filtered<'a> {
    /// Bytes that pass, insertions included.
    pub(crate) bytes: &'a [u8],
    /// Reason for which the frame that follows them does not pass; `None` if all have passed.
    pub(crate) stop: Option<Stop>,
}

/// Reason for which a frame does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It may not pass, nor does anything after it.
    Violation(Violation),
    /// The client is above its rate. The rest of the chunk is held until
    /// [`take_held`](super::filter::FrameFilter::take_held).
    Held,
}
