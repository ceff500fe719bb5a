//! The settings of the queue of handshakes that wait while every backend is full.

use std::time::Duration;

use super::values::{positive, time_or};
use super::{Invalid, RawSection};

/// Default number of handshakes that wait at a time.
const SIZE: u32 = 1_000;
/// Largest such number: each of them is an open connection.
const SIZE_MAX: u32 = 1_000_000;

impl RawSection {
    pub(super) fn queue_timeout(&self) -> Result<Duration, Invalid> {
        time_or("queue_timeout_ms", self.queue_timeout_ms, Duration::ZERO, "no waiting")
    }

    pub(super) fn queue_size(&self) -> Result<usize, Invalid> {
        let size = positive("queue_size", self.queue_size, SIZE, SIZE_MAX);
        let size = size.map_err(|invalid| match self.queue_size {
            Some(0) => {
                let mend = "set queue_timeout_ms = 0 for no waiting";
                Invalid { problem: format!("{}: {mend}", invalid.problem), ..invalid }
            }
            _ => invalid,
        })?;
        // It fits wherever a connection has a descriptor.
        Ok(usize::try_from(size.get()).unwrap_or(usize::MAX))
    }
}
