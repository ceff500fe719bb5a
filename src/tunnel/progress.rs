//! Results of a direction's turn.

use super::limits::Violation;

/// Result of a direction's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing can be done before the next event.
    Waiting,
    /// There is more to do, for which no event will come.
    More,
    /// The source has ended just now, and the end is not relayed yet.
    SourceEnded,
}

/// Reason for which a direction cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RelayError {
    /// The source's connection broke. All that it had sent has been read, and the end is not
    /// relayed yet.
    Source,
    /// The sink's connection broke.
    Sink,
    /// A frame may not pass. What came before it has passed, and the direction is closed.
    Violation(Violation),
}
