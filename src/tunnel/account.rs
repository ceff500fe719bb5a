//! The owner of a tunnel.

use super::end::TunnelEnd;
#[cfg(feature = "admin")]
use super::view::{Description, TunnelFilter};

/// Owner of a tunnel, who knows what it is for and hears of its end, on the event loop's thread.
pub(crate) trait Account {
    /// Returns whether the tunnel is one of those that are meant.
    #[cfg(feature = "admin")]
    fn matches(&self, filter: &TunnelFilter) -> bool;
    /// Returns its number, which grows with the time of the accept.
    #[cfg(feature = "admin")]
    fn id(&self) -> u64;
    /// Returns what the tunnel is for.
    #[cfg(feature = "admin")]
    fn describe(&self) -> Description;
    /// Takes the account of the tunnel, which is over.
    fn end(self: Box<Self>, end: TunnelEnd);
}
