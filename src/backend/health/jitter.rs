//! Random times. Pure: the random numbers are arguments, uniform over all of `u64`.

use std::time::Duration;

/// Returns a time within a fifth of `time`, more or less, and of 480 years at most: it can be added
/// to any instant.
pub(super) fn jittered(time: Duration, random: u64) -> Duration {
    let time = time.min(LONGEST);
    time / 5 * 4 + portion(time / 5 * 2, random)
}

/// Returns a time from zero up to, but without, `time`; zero for zero.
pub(super) fn portion(time: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(time.min(LONGEST).as_nanos()).unwrap_or(u64::MAX);
    let product = u128::from(nanos) * u128::from(random);
    // The upper half of the product is below `nanos`.
    Duration::from_nanos(u64::try_from(product >> 64).unwrap_or(nanos))
}

/// Longest time that is told from a longer one: 400 years.
const LONGEST: Duration = Duration::from_secs(400 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_jittered_time_is_within_a_fifth() {
        let rows = [
            (0, Duration::from_millis(800)),
            (1 << 63, SECOND),
            (u64::MAX, Duration::from_nanos(1_199_999_999)),
        ];
        for (random, expected) in rows {
            assert_eq!(jittered(SECOND, random), expected, "{random}");
        }
        assert_eq!(jittered(Duration::ZERO, u64::MAX), Duration::ZERO);
        let _in_time = Instant::now() + jittered(Duration::MAX, u64::MAX);
    }

    #[test]
    fn a_portion_is_never_the_whole() {
        assert_eq!(portion(SECOND, 0), Duration::ZERO);
        assert_eq!(portion(SECOND, 1 << 62), SECOND / 4);
        assert_eq!(portion(SECOND, u64::MAX), Duration::from_nanos(999_999_999));
        assert_eq!(portion(Duration::from_nanos(1), u64::MAX), Duration::ZERO);
        assert_eq!(portion(Duration::ZERO, u64::MAX), Duration::ZERO);
    }
}
