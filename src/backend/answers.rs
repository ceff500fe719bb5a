//! Answers to the look-ups of one name, and the time for which each is good. Pure: knows no clock
//! and no resolver.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for which an answer that has expired still serves, where no newer one comes.
const STALE: Duration = Duration::from_secs(30);
/// Longest wait for a look-up while an expired answer could serve instead.
const PATIENCE: Duration = Duration::from_secs(1);

/// Socket addresses of a name, sorted and each once; shared by all that use them.
pub(crate) type Addresses = Arc<[SocketAddr]>;

/// Answers to the look-ups of one name.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Latest good answer, and when it came.
    good: Option<(Addresses, Instant)>,
    /// Failure of the latest look-up, and when it came; `None` after a good one.
    failure: Option<(Failure, Instant)>,
    /// Start of the look-up under way.
    pending: Option<Instant>,
}

/// Advice to somebody who needs the addresses now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Use these.
    Use(Addresses),
    /// Use these, and start a look-up, which is taken to be under way from now on.
    Refresh(Addresses),
    /// Start a look-up, which is taken to be under way from now on, and wait for it.
    LookUp,
    /// Wait for the look-up under way.
    Wait,
}

/// An error of a look-up, for each of those who waited for it.
#[derive(Clone, Debug)]
struct Failure {
    kind: io::ErrorKind,
    code: Option<i32>,
    text: String,
}

impl Answers {
    /// Returns what to do at `now`. `interval` is the time for which a good answer is used; with
    /// zero each look-up serves only those who wait for it.
    pub(super) fn ask(&mut self, now: Instant, interval: Duration) -> Advice {
        if let Some((addresses, at)) = &self.good
            && now.saturating_duration_since(*at) < interval
        {
            return Advice::Use(Arc::clone(addresses));
        }
        if self.pending.is_some() {
            return self.overdue(now, interval).map_or(Advice::Wait, Advice::Use);
        }
        // After a failure nobody waits for a name server that may fail again, nor is it asked each
        // time, while there is something to use.
        match (&self.failure, self.usable(now, interval)) {
            (Some((_, at)), Some(addresses)) => {
                if now.saturating_duration_since(*at) < patience(interval) {
                    return Advice::Use(addresses);
                }
                self.pending = Some(now);
                Advice::Refresh(addresses)
            }
            _ => {
                self.pending = Some(now);
                Advice::LookUp
            }
        }
    }

    /// Begins a look-up, unless one is under way.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = self.pending.is_none();
        self.pending.get_or_insert(now);
        begins
    }

    /// Returns the outcome of the latest look-up that has ended.
    ///
    /// # Errors
    ///
    /// Its failure.
    pub(super) fn latest(&self) -> io::Result<Addresses> {
        match (&self.failure, &self.good) {
            (None, Some((addresses, _))) => Ok(Arc::clone(addresses)),
            (Some((failure, _)), _) => Err(failure.to_error()),
            (None, None) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Returns the latest good answer, if it may serve still: to the end of its interval, and 30 s
    /// longer.
    pub(super) fn usable(&self, now: Instant, interval: Duration) -> Option<Addresses> {
        let (addresses, at) = self.good.as_ref()?;
        let age = now.saturating_duration_since(*at);
        (age < interval.saturating_add(STALE)).then(|| Arc::clone(addresses))
    }

    /// Returns the [usable](Self::usable) answer, if the look-up under way is not worth a wait: the
    /// last one failed, or it takes the interval, or 1 s if that is longer or zero.
    pub(super) fn overdue(&self, now: Instant, interval: Duration) -> Option<Addresses> {
        let is_late = |since| now.saturating_duration_since(since) >= patience(interval);
        let is_overdue = self.failure.is_some() || self.pending.is_none_or(is_late);
        self.usable(now, interval).filter(|_| is_overdue)
    }

    /// Records the end of the look-up under way. No addresses are a failure.
    pub(super) fn record(&mut self, result: io::Result<Vec<SocketAddr>>, now: Instant) {
        self.pending = None;
        match result {
            Ok(addresses) if addresses.is_empty() => {
                let none = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
                self.failure = Some((Failure::from(none), now));
            }
            Ok(mut addresses) => {
                // Name servers shuffle; the turns of the addresses are to be even all the same.
                addresses.sort_unstable();
                addresses.dedup();
                self.good = Some((addresses.into(), now));
                self.failure = None;
            }
            Err(error) => self.failure = Some((error.into(), now)),
        }
    }

    /// Returns what a look-up that has ended means for those who waited for it: its answer, else
    /// the [usable](Self::usable) one.
    ///
    /// # Errors
    ///
    /// The failure of the look-up.
    pub(super) fn outcome(&self, now: Instant, interval: Duration) -> io::Result<Addresses> {
        self.usable(now, interval).ok_or_else(|| match &self.failure {
            Some((failure, _)) => failure.to_error(),
            None => io::ErrorKind::TimedOut.into(),
        })
    }
}

/// Returns the longest wait for a look-up while an expired answer could serve.
pub(super) fn patience(interval: Duration) -> Duration {
    if interval.is_zero() { PATIENCE } else { interval.min(PATIENCE) }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { kind: error.kind(), code: error.raw_os_error(), text: error.to_string() }
    }
}

impl Failure {
    fn to_error(&self) -> io::Error {
        // A code says more than a kind: a shortage of descriptors is told by it.
        match self.code {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.kind, self.text.clone()),
        }
    }
}

/// Returns the addresses in the order in which the handshake number `turn` tries them: each is the
/// first in its turn, and from there on the families alternate (RFC 8305, 4).
pub(super) fn in_turn(addresses: &[SocketAddr], turn: usize) -> Vec<SocketAddr> {
    let count = addresses.len();
    if count == 0 {
        return Vec::new();
    }
    let mut rotated = addresses.to_vec();
    rotated.rotate_left(turn % count);
    let first_is_v4 = rotated[0].is_ipv4();
    let (same, mut other): (Vec<_>, Vec<_>) =
        rotated.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    // The second one of the order has its turns as well.
    let shift = turn.checked_rem(other.len()).unwrap_or(0);
    other.sort_unstable();
    other.rotate_left(shift);
    let mut other = other.into_iter();
    let mut order = Vec::with_capacity(count);
    for address in same {
        order.push(address);
        order.extend(other.next());
    }
    order.extend(other);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 0))
    }

    fn addresses(numbers: &[u8]) -> Addresses {
        numbers.iter().copied().map(address).collect()
    }

    fn failed() -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("no luck"))
    }

    #[test]
    fn a_good_answer_serves_for_its_interval_and_a_look_up_for_all_who_wait() {
        let (start, mut answers) = (Instant::now(), Answers::default());
        assert_eq!(answers.ask(start, SECOND), Advice::LookUp);
        assert_eq!(answers.ask(start, SECOND), Advice::Wait);
        answers.record(Ok(vec![address(2), address(1), address(2)]), start);
        assert_eq!(answers.outcome(start, SECOND).unwrap(), addresses(&[1, 2]));
        let almost = start + SECOND - Duration::from_nanos(1);
        assert_eq!(answers.ask(almost, SECOND), Advice::Use(addresses(&[1, 2])));
        assert_eq!(answers.ask(start + SECOND, SECOND), Advice::LookUp);
    }

    #[test]
    fn with_zero_each_look_up_serves_only_those_who_wait() {
        let (start, mut answers) = (Instant::now(), Answers::default());
        assert_eq!(answers.ask(start, Duration::ZERO), Advice::LookUp);
        assert_eq!(answers.ask(start, Duration::ZERO), Advice::Wait);
        answers.record(Ok(vec![address(1)]), start);
        assert_eq!(answers.outcome(start, Duration::ZERO).unwrap(), addresses(&[1]));
        assert_eq!(answers.ask(start, Duration::ZERO), Advice::LookUp);
    }

    #[test]
    fn while_the_name_server_is_silent_the_last_answer_serves_for_half_a_minute() {
        for (interval, patience) in
            [(Duration::ZERO, SECOND), (SECOND / 2, SECOND / 2), (60 * SECOND, SECOND)]
        {
            let (start, mut answers) = (Instant::now(), Answers::default());
            answers.record(Ok(vec![address(1)]), start);
            let expired = start + interval;
            assert_eq!(answers.ask(expired, interval), Advice::LookUp);
            let almost = expired + patience - Duration::from_nanos(1);
            assert_eq!(answers.ask(almost, interval), Advice::Wait, "{interval:?}");
            let last = expired + STALE - Duration::from_nanos(1);
            for time in [expired + patience, last] {
                assert_eq!(answers.ask(time, interval), Advice::Use(addresses(&[1])));
            }
            assert_eq!(answers.ask(expired + STALE, interval), Advice::Wait);
        }
    }

    #[test]
    fn a_failure_keeps_the_last_answer_and_is_tried_again_after_the_interval() {
        let (start, mut answers) = (Instant::now(), Answers::default());
        answers.record(Ok(vec![address(1)]), start);
        let expired = start + SECOND;
        for (result, is_empty) in [(failed(), false), (Ok(vec![]), true)] {
            assert_eq!(answers.ask(expired, SECOND), Advice::LookUp);
            answers.record(result, expired);
            assert_eq!(answers.outcome(expired, SECOND).unwrap(), addresses(&[1]), "{is_empty}");
            assert_eq!(answers.ask(expired, SECOND), Advice::Use(addresses(&[1])));
            answers.failure = None;
        }
        assert_eq!(answers.ask(expired, SECOND), Advice::LookUp);
        answers.record(failed(), expired);
        // Nobody waits for the second try either.
        assert_eq!(answers.ask(expired + SECOND, SECOND), Advice::Refresh(addresses(&[1])));
        assert_eq!(answers.ask(expired + SECOND, SECOND), Advice::Use(addresses(&[1])));
        assert_eq!(answers.ask(expired + STALE, SECOND), Advice::Wait);
        answers.record(failed(), expired + STALE);
        let error = answers.outcome(expired + STALE, SECOND).unwrap_err();
        assert_eq!(error.to_string(), "no luck");
        // Without an answer to fall back on, each one who asks may be luckier.
        assert_eq!(answers.ask(expired + STALE, SECOND), Advice::LookUp);
    }

    #[test]
    fn the_code_of_a_failure_is_kept() {
        let (now, mut answers) = (Instant::now(), Answers::default());
        answers.record(Err(rustix::io::Errno::MFILE.into()), now);
        let error = answers.outcome(now, SECOND).unwrap_err();
        assert!(crate::net::out_of_descriptors(&error));
    }

    #[test]
    fn each_address_is_the_first_in_its_turn() {
        let all = addresses(&[1, 2, 3]);
        let orders: Vec<_> = (0..4).map(|turn| in_turn(&all, turn)).collect();
        let expected = [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]];
        assert_eq!(orders, expected.map(|numbers| addresses(&numbers).to_vec()));
        assert!(in_turn(&[], 7).is_empty());
    }

    #[test]
    fn mixed_families_alternate_from_the_first_one_on() {
        let v6 = |number: u16| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, number], 0));
        let mut all = vec![address(1), address(2), address(3), v6(1), v6(2)];
        all.sort_unstable();
        let mut firsts = Vec::new();
        for turn in 0..10 {
            let order = in_turn(&all, turn);
            firsts.push(order[0]);
            assert_ne!(order[0].is_ipv4(), order[1].is_ipv4(), "{order:?}");
            assert_ne!(order[1].is_ipv4(), order[2].is_ipv4(), "{order:?}");
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, all, "each is tried once");
        }
        assert!(all.iter().all(|one| firsts.iter().filter(|first| *first == one).count() == 2));
    }
}
