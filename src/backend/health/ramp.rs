//! Slow start: the share of a backend that came, or came back. Pure: time is an argument.

use std::time::{Duration, Instant};

/// Share of a backend in full use.
pub(super) const FULL: u32 = 256;
/// Share with which a ramp begins: a tenth.
const FIRST: u32 = 26;
/// Steps from the first share to the full one. Weights are computed anew at each.
const STEPS: u32 = 16;

/// Returns the share at `now` of a ramp that began at `start` and takes `time`.
pub(super) fn share(start: Instant, time: Duration, now: Instant) -> u32 {
    FIRST + (FULL - FIRST) * step(start, time, now) / STEPS
}

/// Returns the time after `now` at which the share of the ramp is the next one; `None` once it is
/// the full one.
pub(super) fn next(start: Instant, time: Duration, now: Instant) -> Option<Instant> {
    let next = step(start, time, now) + 1;
    if next > STEPS {
        return None;
    }
    // Rounded up, so that the step has been reached at that time.
    let nanos = (time.as_nanos() * u128::from(next)).div_ceil(u128::from(STEPS));
    let after = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    start.checked_add(after)
}

/// Returns the number of steps that are done at `now`, the last one at the end of `time`.
fn step(start: Instant, time: Duration, now: Instant) -> u32 {
    let passed = now.saturating_duration_since(start);
    if passed >= time {
        return STEPS;
    }
    let steps = passed.as_nanos() * u128::from(STEPS) / time.as_nanos();
    u32::try_from(steps).unwrap_or(STEPS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ramp_begins_with_a_tenth_and_is_linear_in_sixteen_steps() {
        let (start, time) = (Instant::now(), Duration::from_secs(16));
        let nano = Duration::from_nanos(1);
        let second = Duration::from_secs(1);
        let rows = [
            (Duration::ZERO, 26, Some(second)),
            (second - nano, 26, Some(second)),
            (second, 40, Some(2 * second)),
            (8 * second, 141, Some(9 * second)),
            (16 * second - nano, 241, Some(16 * second)),
            (16 * second, 256, None),
            (60 * second, 256, None),
        ];
        for (passed, expected, until) in rows {
            let now = start + passed;
            assert_eq!(share(start, time, now), expected, "{passed:?}");
            assert_eq!(next(start, time, now), until.map(|until| start + until), "{passed:?}");
        }
        assert_eq!(share(start, Duration::ZERO, start), FULL);
        assert_eq!(next(start, Duration::ZERO, start), None);
    }

    proptest! {
        #[test]
        fn the_share_changes_at_the_announced_times_and_at_no_other(
            time in 1_u64..100_000,
            passed in 0_u64..100_000,
        ) {
            let start = Instant::now();
            let (time, now) = (Duration::from_nanos(time), start + Duration::from_nanos(passed));
            let current = share(start, time, now);
            match next(start, time, now) {
                None => prop_assert_eq!(current, FULL),
                Some(at) => {
                    prop_assert!(at > now);
                    prop_assert_eq!(share(start, time, at - Duration::from_nanos(1)), current);
                    prop_assert!(share(start, time, at) > current);
                }
            }
        }
    }
}
