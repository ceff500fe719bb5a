//! The settings by which backends are taken out and come back.

use std::time::Duration;

use super::values::{count, time_or, timeout};
use super::{Invalid, RawSection};
use crate::backend::health::states::HealthRules;

/// Default number of failures in a row that eject a backend.
const MAX_FAILURES: i64 = 3;
/// Default time of the first ejection, in milliseconds.
const EJECT_MS: i64 = 10_000;
/// Default of the most backends that are ejected at a time, in percent of all.
const MAX_EJECTED_PERCENT: i64 = 50;

impl RawSection {
    /// Returns the rules without those of the checks.
    pub(super) fn health(
        &self,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Result<HealthRules, Invalid> {
        let max_failures = self.max_failures.or(Some(MAX_FAILURES));
        let max_failures = count("max_failures", max_failures, "no ejection")?;
        Ok(HealthRules {
            max_failures: max_failures.unwrap_or(0),
            eject: timeout("eject_ms", self.eject_ms, EJECT_MS)?,
            // A look-up, the attempts at a name's addresses, one after the other, and the answer.
            trial_timeout: 3 * connect_timeout + response_timeout,
            has_early_resets: self.early_reset_ms.is_some_and(|ms| ms > 0),
            slow_start: time_or(
                "slow_start_ms",
                self.slow_start_ms,
                Duration::ZERO,
                "the full share at once",
            )?,
            checks: None,
        })
    }

    pub(super) fn max_ejected_percent(&self) -> Result<u32, Invalid> {
        let given = self.max_ejected_percent.unwrap_or(MAX_EJECTED_PERCENT);
        match u32::try_from(given) {
            Ok(percent @ 0..=100) => Ok(percent),
            _ => {
                let allowed = "0 for no ejection, or 1 to 100";
                Err(Invalid::out_of_range("max_ejected_percent", given, allowed))
            }
        }
    }
}
