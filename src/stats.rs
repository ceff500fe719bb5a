//! Counts of one section, for metrics: what happens adds to them, and whoever asks reads them.
//!
//! All are relaxed atomics: they guard no other memory, and no reader holds anybody up. On a
//! machine without 64-bit atomics they begin anew after 2^32, as counters may (OpenMetrics, 5.1).

#[cfg(feature = "admin")]
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[cfg(feature = "admin")]
use crate::endings::Endings;

/// Counts of a section.
#[derive(Debug)]
pub(crate) struct SectionStats {
    /// Clients that were accepted.
    pub(crate) accepted: Count,
    /// Handshakes by their outcome.
    pub(crate) handshakes: NamedCounts,
    /// Times from the accept to the verified 101.
    pub(crate) handshake_time: Histogram,
    /// Exchanges that are no handshakes by the class of their status.
    pub(crate) requests: NamedCounts,
    /// Times of these.
    pub(crate) request_time: Histogram,
    /// Tunnels that are over by the reason for their end.
    pub(crate) ended: NamedCounts,
    /// Times from the accept to the end of the tunnel.
    pub(crate) tunnel_time: Histogram,
    /// Closes by who sent them: client, backend, proxy.
    pub(crate) closes: [CloseCounts; 3],
    /// Frames and bytes of the tunnels of each worker, which alone adds to it.
    pub(crate) traffic: Box<[Traffic]>,
    /// Endings of all sections; `None` without an admin listener.
    #[cfg(feature = "admin")]
    pub(crate) endings: Option<Arc<Endings>>,
}

/// Counter that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicUsize);

/// Counters by a name of a closed set.
#[derive(Debug)]
pub(crate) struct NamedCounts {
    names: &'static [&'static str],
    counts: Box<[Count]>,
}

/// Number of times by their length.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// Upper bounds of the buckets, in seconds, in ascending order.
    bounds: &'static [f64],
    /// Counts of the buckets, and of what is above them.
    buckets: Box<[Count]>,
    /// Sum of all times, in microseconds.
    sum: Count,
}

/// Counters of close codes (RFC 6455, 7.4).
#[derive(Debug, Default)]
pub(crate) struct CloseCounts([Count; CODES.len()]);

/// Labels of close codes: those of RFC 6455 and IANA's registry one by one, the others by range.
const CODES: [&str; 19] = [
    "1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009", "1010", "1011",
    "1012", "1013", "1014", "1015", "3xxx", "4xxx", "other",
];

/// What the tunnels of one worker relay. Aligned, so that no two workers share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Traffic {
    pub(crate) client: SideTraffic,
    pub(crate) backend: SideTraffic,
    /// Tunnels of which a side takes no bytes, now.
    pub(crate) blocked: OwnCount,
}

/// What one side of the tunnels sends.
#[derive(Debug, Default)]
pub(crate) struct SideTraffic {
    pub(crate) text: OwnCount,
    pub(crate) binary: OwnCount,
    pub(crate) pings: OwnCount,
    pub(crate) pongs: OwnCount,
    /// Payload bytes, as the headers announce them.
    pub(crate) payload: OwnCount,
    /// Bytes that were relayed to the other side.
    pub(crate) bytes: OwnCount,
    /// Pings that the proxy sent to this side.
    pub(crate) pinged: OwnCount,
}

/// Counter that one thread alone changes, which needs no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct OwnCount(AtomicUsize);

/// Bounds of the times of handshakes: from a connection on the same host to the usual timeouts.
const HANDSHAKE_BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// Bounds of the times of other requests: long polls take half a minute, streams as long as they
/// like.
const REQUEST_BOUNDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];
/// Classes of the statuses of answers; `none` where the client got none.
pub(crate) const STATUS_CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "none"];
/// Bounds of the times of tunnels: from a second to a day.
const TUNNEL_BOUNDS: [f64; 11] =
    [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0];

impl SectionStats {
    /// Creates counts that are all zero, for so many workers.
    pub(crate) fn new(
        outcomes: &'static [&'static str],
        reasons: &'static [&'static str],
        workers: usize,
    ) -> Self {
        Self {
            accepted: Count::default(),
            handshakes: NamedCounts::new(outcomes),
            handshake_time: Histogram::new(&HANDSHAKE_BOUNDS),
            requests: NamedCounts::new(&STATUS_CLASSES),
            request_time: Histogram::new(&REQUEST_BOUNDS),
            ended: NamedCounts::new(reasons),
            tunnel_time: Histogram::new(&TUNNEL_BOUNDS),
            closes: Default::default(),
            traffic: (0..workers).map(|_| Traffic::default()).collect(),
            #[cfg(feature = "admin")]
            endings: None,
        }
    }
}

#[cfg(feature = "metrics")]
impl SectionStats {
    /// Returns the sum of a count over all workers.
    pub(crate) fn sum(&self, count: impl Fn(&Traffic) -> u64) -> u64 {
        self.traffic.iter().map(count).fold(0, u64::wrapping_add)
    }
}

impl Count {
    /// Adds one.
    pub(crate) fn inc(&self) {
        self.add(1);
    }

    /// Returns the count.
    #[cfg(any(test, feature = "metrics"))]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed) as u64
    }

    fn add(&self, more: usize) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

impl OwnCount {
    /// Adds a number, with wrapping. For the one thread that changes this count.
    pub(crate) fn add(&self, more: usize) {
        if more > 0 {
            self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        }
    }

    /// Takes one off.
    pub(crate) fn dec(&self) {
        self.add(usize::MAX);
    }

    /// Returns the count.
    #[cfg(any(test, feature = "metrics"))]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed) as u64
    }
}

impl NamedCounts {
    /// Creates counts of these names, all zero.
    pub(crate) fn new(names: &'static [&'static str]) -> Self {
        Self { names, counts: names.iter().map(|_| Count::default()).collect() }
    }

    /// Adds one to the count of a name. One that is not in the set is not counted.
    pub(crate) fn inc(&self, name: &str) {
        if let Some(at) = self.names.iter().position(|&known| known == name) {
            self.counts[at].inc();
        }
    }

    /// Returns all names and their counts.
    #[cfg(any(test, feature = "metrics"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.names.iter().copied().zip(self.counts.iter().map(Count::get))
    }
}

impl CloseCounts {
    /// Counts a Close with this code.
    pub(crate) fn inc(&self, code: u16) {
        let label = match code {
            1_000..=1_015 => usize::from(code - 1_000),
            3_000..=3_999 => 16,
            4_000..=4_999 => 17,
            _ => 18,
        };
        self.0[label].inc();
    }

    /// Returns all labels and their counts.
    #[cfg(any(test, feature = "metrics"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CODES.into_iter().zip(self.0.iter().map(Count::get))
    }
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| Count::default()).collect();
        Self { bounds, buckets, sum: Count::default() }
    }

    /// Counts a time.
    pub(crate) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = self.bounds.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].inc();
        self.sum.add(usize::try_from(time.as_micros()).unwrap_or(usize::MAX));
    }

    /// Returns the sum of all times in seconds, their number, and the number of those in each
    /// bucket with its bound.
    #[cfg(any(test, feature = "metrics"))]
    pub(crate) fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.buckets.iter().map(Count::get)).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.get() as f64 / 1e6, count, buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_bucket_of_their_bound() {
        let histogram = Histogram::new(&[1.0, 5.0]);
        for ms in [0, 1_000, 1_001, 5_000, 5_001, 90_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let (sum, count, buckets) = histogram.read();
        assert!((sum - 102.002).abs() < 1e-9, "{sum}");
        assert_eq!((count, buckets), (6, vec![(1.0, 2), (5.0, 2), (f64::INFINITY, 2)]));
        assert!(HANDSHAKE_BOUNDS.is_sorted() && TUNNEL_BOUNDS.is_sorted());
    }

    #[test]
    fn close_codes_have_a_label_each_or_that_of_their_range() {
        let closes = CloseCounts::default();
        for code in [1000, 1015, 3000, 3999, 4000, 4999, 0, 999, 1016, 2999, 5000, u16::MAX] {
            closes.inc(code);
        }
        let counted: Vec<_> = closes.iter().filter(|(_, count)| *count > 0).collect();
        let expected = [("1000", 1), ("1015", 1), ("3xxx", 2), ("4xxx", 2), ("other", 6)];
        assert_eq!(counted, expected);
    }

    #[test]
    fn a_name_of_the_set_is_counted_and_no_other() {
        let counts = NamedCounts::new(&["one", "two"]);
        for name in ["two", "three", "two"] {
            counts.inc(name);
        }
        assert_eq!(counts.iter().collect::<Vec<_>>(), [("one", 0), ("two", 2)]);
    }

    #[test]
    fn a_thread_s_own_count_goes_up_and_down() {
        let count = OwnCount::default();
        count.add(5);
        count.dec();
        count.add(0);
        assert_eq!(count.get(), 4);
    }
}
