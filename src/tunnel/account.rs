//! The owner of a tunnel.

use super::end::TunnelEnd;
use super::selection::Identity;
#[cfg(feature = "admin")]
use super::view::Description;

/// Owner of a tunnel, who knows what it is for and hears of its end, on the event loop's thread.
pub(crate) trait Account {
    /// Returns what the tunnel is known by.
    fn identity(&self) -> Identity<'_>;
    /// Returns what the tunnel is for.
    #[cfg(feature = "admin")]
    fn describe(&self) -> Description;
    /// Takes the account of the tunnel, which is over.
    fn end(self: Box<Self>, end: TunnelEnd);
}
