//! The settings by which tunnels are moved to a backend that was added.

use std::num::NonZeroU32;

use super::values::{positive, sendable};
use super::{Invalid, RawSection};

/// Default code of the Close, service restart: clients connect again.
pub(super) const CODE: i64 = 1_012;
/// Default of the most tunnels that are closed within a second.
pub(super) const PER_SECOND: u32 = 10;

/// Checked settings of the rebalancing of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RebalanceSettings {
    /// Code of the Close for the client.
    pub(crate) code: u16,
    /// Most tunnels that are closed within a second.
    pub(crate) per_second: NonZeroU32,
}

impl RawSection {
    /// Returns the settings, `None` where tunnels stay where they are. They are checked either way.
    pub(super) fn rebalance(&self) -> Result<Option<RebalanceSettings>, Invalid> {
        let per_second = self.rebalance_per_second;
        let settings = RebalanceSettings {
            code: sendable("rebalance_code", self.rebalance_code.unwrap_or(CODE), "")?,
            per_second: positive("rebalance_per_second", per_second, PER_SECOND, u32::MAX)?,
        };
        Ok(self.rebalance.unwrap_or_default().then_some(settings))
    }
}
