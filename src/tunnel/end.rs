//! Account of a tunnel.

use super::counters::FrameCounters;
use super::reason::Reason;
use super::side::PerSide;

/// Account of a tunnel that is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunnelEnd {
    /// Bytes that were written to each side, without the 101.
    pub(crate) written_to: PerSide<u64>,
    pub(crate) reason: Reason,
    /// Frames that each side sent.
    pub(crate) sent_by: PerSide<FrameCounters>,
    /// Number of directions whose frames could not be followed to the end.
    pub(crate) opaque: u8,
    /// Code of the proxy's Close that was written to each side.
    pub(crate) closed_with: PerSide<Option<u16>>,
}
