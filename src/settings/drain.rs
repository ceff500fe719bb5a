//! The settings of the drain, which begins at the shutdown.

use std::time::Duration;

use super::Invalid;
use super::values::{close_code, time_or, timeout};
use crate::tunnel::control::code;

raw_table! {
    /// The table `[drain]` as given; nothing is checked yet.
    RawDrain {
        delay_ms: i64,
        spread_ms: i64,
        timeout_ms: i64,
        close_code: i64,
        close_grace_ms: i64,
    }
}

/// Checked settings of the drain, which begins at the shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    /// Time for which the proxy goes on accepting.
    pub(crate) delay: Duration,
    /// Time over which the tunnels are then closed.
    pub(crate) spread: Duration,
    /// Time for the whole drain, at the end of which the remaining tunnels are cut.
    pub(crate) timeout: Duration,
    /// Code of the Close that the clients get.
    pub(crate) close_code: u16,
    /// Time in which a closed tunnel must end.
    pub(crate) close_grace: Duration,
}

impl Default for Drain {
    /// Returns times that fit into Docker's ten seconds between SIGTERM and SIGKILL.
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            spread: Duration::from_secs(5),
            timeout: Duration::from_secs(8),
            close_code: code::GOING_AWAY,
            close_grace: Duration::from_secs(2),
        }
    }
}

impl RawDrain {
    /// Checks everything, and shortens the spread to what the other times leave of the timeout.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub(crate) fn check(&self) -> Result<Drain, Invalid> {
        let default = Drain::default();
        let delay = time_or("drain_delay_ms", self.delay_ms, default.delay, "no delay")?;
        let spread = time_or("drain_spread_ms", self.spread_ms, default.spread, "all at once")?;
        let close_grace =
            time_or("close_grace_ms", self.close_grace_ms, default.close_grace, "a moment")?;
        let timeout = match self.timeout_ms {
            None => default.timeout,
            given => timeout("drain_timeout_ms", given, 0)?,
        };
        if delay >= timeout {
            let (delay, timeout) = (delay.as_millis(), timeout.as_millis());
            let problem = format!(
                "{delay} leaves no time to close tunnels: it must be below the drain's \
                 timeout_ms ({timeout}), so raise that as well"
            );
            return Err(Invalid::new("drain_delay_ms", problem));
        }
        // The last tunnel to be closed has its grace time too, if the timeout leaves any.
        let spread = spread.min(timeout.saturating_sub(delay).saturating_sub(close_grace));
        Ok(Drain {
            delay,
            spread,
            timeout,
            close_code: close_code("drain_close_code", self.close_code)?,
            close_grace,
        })
    }
}
