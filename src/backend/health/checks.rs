//! Active checks of one address: their times, and the statuses that pass. Pure: time and random
//! numbers are arguments.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::jitter::{jittered, portion};

/// Times of the checks of one address, of which one at most is under way.
#[derive(Debug)]
pub(crate) struct CheckSchedule {
    interval: Duration,
    next: Instant,
    is_running: bool,
}

impl CheckSchedule {
    /// Schedules the first check at a random time within the interval: proxies that are started
    /// together do not check together.
    pub(crate) fn new(interval: Duration, now: Instant, random: u64) -> Self {
        Self { interval, next: now + portion(interval, random), is_running: false }
    }

    /// Returns the time of the next check; `None` while one is under way.
    pub(crate) fn next(&self) -> Option<Instant> {
        (!self.is_running).then_some(self.next)
    }

    /// Begins a check if it is time for one. The one after it comes an interval later, a fifth more
    /// or less, counted from beginning to beginning.
    pub(crate) fn begin(&mut self, now: Instant, random: u64) -> bool {
        let is_due = !self.is_running && self.next <= now;
        if is_due {
            self.is_running = true;
            self.next = now + jittered(self.interval, random);
        }
        is_due
    }

    /// Ends the check under way. If the next one is overdue by then, it comes at once, and those
    /// that were missed do not.
    pub(crate) fn end(&mut self) {
        self.is_running = false;
    }
}

/// Statuses by which an HTTP check passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExpectedStatus {
    /// Sorted, with a gap between each two.
    ranges: Vec<RangeInclusive<u16>>,
}

/// Statuses with which a response ends (RFC 9110, 15): 1xx are followed by another one.
const FINAL: RangeInclusive<u16> = 200..=599;

impl Default for ExpectedStatus {
    /// 200-399.
    fn default() -> Self {
        Self { ranges: vec![200..=399] }
    }
}

impl ExpectedStatus {
    /// Parses statuses and ranges of them: `200`, `200-299`, or several, separated by commas.
    ///
    /// # Errors
    ///
    /// Describes the first part that is neither.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Self::of_items([text])
    }

    /// Parses several texts, each as [`parse`](Self::parse) does, to one set.
    ///
    /// # Errors
    ///
    /// Describes the first part that is no status and no range; or says that there is none.
    pub(crate) fn of_items<'a>(items: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let parts = items.into_iter().flat_map(|item| item.split(','));
        let mut given = parts.map(|part| range(part.trim())).collect::<Result<Vec<_>, _>>()?;
        if given.is_empty() {
            return Err("must name at least one status, such as 200-399".into());
        }
        given.sort_unstable_by_key(|range| *range.start());
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for range in given {
            match ranges.last_mut() {
                Some(last) if *range.start() <= last.end() + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => ranges.push(range),
            }
        }
        Ok(Self { ranges })
    }

    /// Returns whether a check with this status passes.
    pub(crate) fn contains(&self, status: u16) -> bool {
        self.ranges.iter().any(|range| range.contains(&status))
    }
}

impl fmt::Display for ExpectedStatus {
    /// Writes the set as it can be parsed, in the shortest way.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", range.start())?;
            if range.start() != range.end() {
                write!(f, "-{}", range.end())?;
            }
        }
        Ok(())
    }
}

/// Parses a status, or two with a hyphen between them.
fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (status(first.trim(), text)?, status(last.trim(), text)?);
    if first > last {
        return Err(format!("{text:?} is an empty range: write {last}-{first}"));
    }
    Ok(first..=last)
}

/// Parses a status, which is a part of `text`.
fn status(digits: &str, text: &str) -> Result<u16, String> {
    let is_three = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(status) if is_three && FINAL.contains(&status) => Ok(status),
        Ok(status) if is_three => Err(format!("{status} is not a final status (200-599)")),
        _ => Err(format!("{text:?} is not a status or a range, such as 204 or 200-299")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NANO: Duration = Duration::from_nanos(1);
    /// The random number by which a jittered time is the time itself.
    const MIDDLE: u64 = 1 << 63;

    #[test]
    fn the_first_check_is_at_a_random_time_within_the_interval() {
        let start = Instant::now();
        let rows = [(0, Duration::ZERO), (1 << 62, 2 * SECOND), (u64::MAX, 8 * SECOND - NANO)];
        for (random, expected) in rows {
            let schedule = CheckSchedule::new(8 * SECOND, start, random);
            assert_eq!(schedule.next(), Some(start + expected), "{random}");
        }
    }

    #[test]
    fn a_check_begins_at_its_time_and_only_one() {
        let start = Instant::now();
        let mut schedule = CheckSchedule::new(8 * SECOND, start, 1 << 62);
        let first = start + 2 * SECOND;
        assert!(!schedule.begin(first - NANO, MIDDLE));
        assert!(schedule.begin(first, MIDDLE));
        assert_eq!(schedule.next(), None);
        assert!(!schedule.begin(first + 60 * SECOND, MIDDLE), "it is under way");
        schedule.end();
        assert_eq!(schedule.next(), Some(first + 8 * SECOND));
        // After one that took five intervals the next comes at once, but only one.
        let late = first + 48 * SECOND;
        assert!(schedule.begin(late, 0));
        schedule.end();
        assert_eq!(schedule.next(), Some(late + Duration::from_millis(6400)));
        assert!(!schedule.begin(late, 0));
    }

    #[test]
    fn statuses_are_parsed_and_written() {
        let rows = [
            ("200", "200"),
            ("200-299", "200-299"),
            ("204,200", "200,204"),
            (" 200 - 299 , 426", "200-299,426"),
            ("200-299,300-399", "200-399"),
            ("200-299,250-260", "200-299"),
            ("250-260,200-299", "200-299"),
            ("200,201,202", "200-202"),
            ("200-599", "200-599"),
            ("200-200", "200"),
            ("200,200", "200"),
        ];
        for (text, expected) in rows {
            assert_eq!(ExpectedStatus::parse(text).unwrap().to_string(), expected, "{text}");
        }
        let items = ExpectedStatus::of_items(["500", "200-299,404"]).unwrap();
        assert_eq!(items.to_string(), "200-299,404,500");
        assert_eq!(ExpectedStatus::default().to_string(), "200-399");
    }

    #[test]
    fn what_is_no_status_is_refused() {
        let rows = [
            ("", "\"\" is not a status or a range, such as 204 or 200-299"),
            ("200,", "\"\" is not a status or a range, such as 204 or 200-299"),
            ("2xx", "\"2xx\" is not a status or a range, such as 204 or 200-299"),
            ("200-", "\"200-\" is not a status or a range, such as 204 or 200-299"),
            ("-200", "\"-200\" is not a status or a range, such as 204 or 200-299"),
            ("+20", "\"+20\" is not a status or a range, such as 204 or 200-299"),
            ("0200", "\"0200\" is not a status or a range, such as 204 or 200-299"),
            ("200-299-300", "\"200-299-300\" is not a status or a range, such as 204 or 200-299"),
            ("20", "\"20\" is not a status or a range, such as 204 or 200-299"),
            ("70000", "\"70000\" is not a status or a range, such as 204 or 200-299"),
            ("199", "199 is not a final status (200-599)"),
            ("600", "600 is not a final status (200-599)"),
            ("101", "101 is not a final status (200-599)"),
            ("299-200", "\"299-200\" is an empty range: write 200-299"),
        ];
        for (text, expected) in rows {
            assert_eq!(ExpectedStatus::parse(text).unwrap_err(), expected, "{text}");
        }
        let none = ExpectedStatus::of_items([]).unwrap_err();
        assert_eq!(none, "must name at least one status, such as 200-399");
    }

    #[test]
    fn the_bounds_of_a_range_belong_to_it() {
        let expected = ExpectedStatus::parse("200-299,301").unwrap();
        let rows =
            [(199, false), (200, true), (299, true), (300, false), (301, true), (302, false)];
        for (status, is_expected) in rows {
            assert_eq!(expected.contains(status), is_expected, "{status}");
        }
        let default = [199, 200, 399, 400].map(|one| ExpectedStatus::default().contains(one));
        assert_eq!(default, [false, true, true, false]);
    }

    proptest! {
        #[test]
        fn checks_are_a_fifth_around_the_interval_apart(
            randoms in prop::collection::vec(any::<u64>(), 2..20),
            ms in 1_u64..100_000,
        ) {
            let (start, interval) = (Instant::now(), Duration::from_millis(ms));
            let mut schedule = CheckSchedule::new(interval, start, randoms[0]);
            let mut last = None;
            for random in randoms {
                let at = schedule.next().unwrap();
                if let Some(last) = last {
                    let apart = at - last;
                    prop_assert!(apart >= interval * 4 / 5 && apart < interval * 6 / 5);
                } else {
                    prop_assert!(at - start < interval);
                }
                prop_assert!(schedule.begin(at, random));
                schedule.end();
                last = Some(at);
            }
        }

        #[test]
        fn a_set_is_the_union_of_its_parts(
            parts in prop::collection::vec((200_u16..600, 0_u16..50), 1..8),
        ) {
            let parts: Vec<_> = parts.iter().map(|(a, n)| (*a, (a + n).min(599))).collect();
            let text: Vec<_> = parts.iter().map(|(a, b)| format!("{a}-{b}")).collect();
            let set = ExpectedStatus::parse(&text.join(", ")).unwrap();
            for status in 0..1000 {
                let is_in = parts.iter().any(|(a, b)| (*a..=*b).contains(&status));
                prop_assert_eq!(set.contains(status), is_in);
            }
            prop_assert_eq!(ExpectedStatus::parse(&set.to_string()).unwrap(), set);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,20}") {
            _ = ExpectedStatus::parse(&text);
        }
    }
}
