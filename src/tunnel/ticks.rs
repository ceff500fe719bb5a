//! Time of tunnels, in ticks: coarse, so that a message costs no clock call.

use std::time::{Duration, Instant};

/// Length of a tick: fine enough for times that are set in seconds.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// Ticks of a second.
pub(super) const TICKS_PER_SECOND: Tick = 4;

/// Number of a tick since the event loop began. It wraps after 34 years.
pub(super) type Tick = u32;

/// Tells the tick.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    /// The tick, while the caller keeps it up to date.
    cached: Option<Tick>,
}

impl Clock {
    /// Creates a clock whose tick 0 begins at `start`.
    pub(super) fn new(start: Instant) -> Self {
        Self { start, cached: None }
    }

    /// Returns the tick. While it is cached, no clock is read.
    pub(super) fn now(&self) -> Tick {
        self.cached.unwrap_or_else(|| self.at(Instant::now()))
    }

    /// Reads the clock and caches its tick. The caller does this once a tick, until
    /// [`stop`](Clock::stop).
    ///
    /// A tick that comes late counts as one: after a stall of this process (a paused container, a
    /// moved machine) the time of the tunnels goes on where it was, so that nobody's silence is
    /// taken for longer than it could be heard.
    pub(super) fn update(&mut self) -> Tick {
        let mut now = self.at(Instant::now());
        if let Some(late) = self.cached.and_then(|cached| now.checked_sub(cached.wrapping_add(1))) {
            self.start += TICK * late;
            now -= late;
        }
        *self.cached.insert(now)
    }

    /// Drops the cached tick, which nobody keeps up to date any more.
    pub(super) fn stop(&mut self) {
        self.cached = None;
    }

    /// Returns the tick of a time.
    fn at(&self, time: Instant) -> Tick {
        (time.saturating_duration_since(self.start).as_millis() / TICK.as_millis()) as Tick
    }
}

/// Returns the ticks after which `time` has surely passed, wherever within a tick it began: at most
/// two ticks late, never early.
pub(super) fn ticks(time: Duration) -> Tick {
    let ticks = time.as_millis().div_ceil(TICK.as_millis()) + 1;
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_lasts_its_length() {
        let clock = Clock::new(Instant::now());
        for (ms, tick) in [(0, 0), (249, 0), (250, 1), (499, 1), (500, 2), (3_600_000, 14_400)] {
            assert_eq!(clock.at(clock.start + Duration::from_millis(ms)), tick, "{ms} ms");
        }
        assert_eq!(TICK * TICKS_PER_SECOND, Duration::from_secs(1));
    }

    #[test]
    fn a_time_before_the_start_is_tick_zero() {
        let clock = Clock::new(Instant::now() + Duration::from_secs(60));
        assert_eq!(clock.now(), 0);
    }

    #[test]
    fn no_time_ends_early_wherever_in_a_tick_it_began() {
        let clock = Clock::new(Instant::now());
        for ms in [0, 1, 249, 250, 251, 1_000, 25_000] {
            let time = Duration::from_millis(ms);
            for began in [0, 1, 124, 249].map(|ms| clock.start + Duration::from_millis(ms)) {
                let due = clock.at(began) + ticks(time);
                // The first moment of the tick at which it counts as over.
                let over = clock.start + TICK * due;
                assert!(over >= began + time, "{ms} ms ended early");
                assert!(over <= began + time + 2 * TICK, "{ms} ms ended late");
            }
        }
        assert_eq!(ticks(Duration::MAX), Tick::MAX);
    }

    #[test]
    fn a_cached_tick_stays_until_it_is_updated_or_dropped() {
        let mut clock = Clock::new(Instant::now() - Duration::from_secs(3_600));
        let first = clock.update();
        assert!(first >= 14_400);
        clock.start -= Duration::from_secs(10);
        assert_eq!(clock.now(), first);
        clock.stop();
        assert!(clock.now() >= first + 40);
    }

    #[test]
    fn a_tick_that_comes_late_counts_as_one() {
        let mut clock = Clock::new(Instant::now());
        let first = clock.update();
        // As if 10 s had passed without a tick.
        clock.start -= Duration::from_secs(10);
        assert_eq!(clock.update(), first + 1);
        assert!(clock.now() == first + 1 && clock.update() <= first + 2);
    }
}
