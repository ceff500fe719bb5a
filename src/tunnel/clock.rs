//! The time of tunnels, in ticks: coarse, and read only when somebody asks for it.

use std::time::{Duration, Instant};

/// Often enough for what is asked for in seconds.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// Ticks of a second.
pub(super) const TICKS_PER_SECOND: u32 = 4;

/// Number of a tick since the event loop began.
pub(super) type Tick = u32;

/// Tells the tick.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    /// The tick, while somebody keeps it up to date.
    kept: Option<Tick>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { began: Instant::now(), kept: None }
    }
}

impl Clock {
    /// The tick. While it is kept, no clock is read for it.
    pub(super) fn now(&self) -> Tick {
        self.kept.unwrap_or_else(|| self.read())
    }

    /// Brings the tick up to date, and keeps it until [`stop`](Clock::stop): the caller does this once a tick.
    pub(super) fn keep(&mut self) -> Tick {
        *self.kept.insert(self.read())
    }

    /// Keeps the tick no more.
    pub(super) fn stop(&mut self) {
        self.kept = None;
    }

    fn read(&self) -> Tick {
        let ticks = self.began.elapsed().as_millis() / TICK.as_millis();
        // It goes round after 34 years.
        ticks as Tick
    }
}

/// How many ticks have begun when a time has surely passed, wherever within a tick it began.
pub(super) fn ticks(time: Duration) -> Tick {
    let ticks = time.as_millis().div_ceil(TICK.as_millis()) + 1;
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}
