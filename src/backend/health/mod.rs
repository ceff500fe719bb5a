//! Health of one backend, from the outcomes of its handshakes and of its checks. Pure: time, random
//! numbers and the pool's consent are arguments.
//!
//! Two rules take a backend out of use. **Ejection** is passive: `max_failures` failures in a row,
//! each of a client's handshake or tunnel, take it out for a time, after which one connection, the
//! trial, decides. **Checks** are active: once enough of them have failed in a row, it is out of
//! use until enough have passed. The later rule in this list is the stronger one: it has been asked
//! for, and its connections cost no client anything.
//!
//! | event | in use | spared | ejected | ejected, time over | on trial | unhealthy by check |
//! |---|---|---|---|---|---|---|
//! | handshake succeeds | healthy | healthy | - | healthy (1) | healthy (1) | - |
//! | handshake fails | ejected or spared (2) | ejected (2) | - | - | ejected, twice as long | - |
//! | check passes | healthy | healthy (3) | back (1, 3) | back (1, 3) | back (1, 3) | back (1, 3) |
//! | check fails | out (4) | out (4) | out (4) | out (4) | out (4) | - |
//!
//! - "Back" is healthy, "out" is unhealthy by check, "-" is no change.
//! - In use are unknown and healthy backends. A spared one is in use, too: it would have been
//!   ejected, but the pool cannot do without it. It is shown as unhealthy, though not by a check.
//! - (1) With the ramp of `slow_start_ms`.
//! - (2) At the `max_failures`-th failure in a row. Spared without the pool's consent, for which
//!   each further failure asks again.
//! - (3) After `healthy_threshold` passed checks in a row since it went out or was spared. A check
//!   that only connects brings an ejected or spared one back only where all failures were ones to
//!   connect: it proves nothing about handshakes.
//! - (4) After `unhealthy_threshold` failed checks in a row. A backend that is still unknown is
//!   judged by its first check, either way.
//! - An ejection is not ended by handshakes that succeed before its time is over: they began before
//!   it, or while nothing else was left, and a backend that fails three of four would never be out.
//! - A backend that checks take out is no longer ejected or on trial: only checks bring it back.
//!   How often it was ejected is remembered.
//! - Early resets have a row of their own, as a 101 precedes each: that row ends with a tunnel that
//!   lasts. The first one after a trial, before any tunnel has lasted, makes the trial a failed
//!   one.

pub(crate) mod checks;
mod jitter;
mod ramp;
pub(crate) mod reasons;
pub(crate) mod shared;
pub(crate) mod states;

use std::time::{Duration, Instant};

use self::jitter::jittered;
use self::reasons::{CheckError, FailureKind, FailureRow, HealthReason};
pub(crate) use self::states::{CheckRules, HealthChange, HealthRules, HealthState, Usage};

/// Doublings of the time of an ejection.
const MAX_DOUBLINGS: u32 = 10;

/// Health of one backend.
#[derive(Debug)]
pub(crate) struct BackendHealth {
    rules: HealthRules,
    condition: Condition,
    /// Failures to get a 101, since the last 101.
    failures: FailureRow,
    /// Early resets, since the last tunnel that lasted.
    resets: FailureRow,
    /// Back by a trial, and no tunnel has lasted since.
    is_on_probation: bool,
    /// Ejected or spared after nothing but failures to connect.
    is_out_by_connect: bool,
    /// Ejections that count for the time of the next one.
    ejections: u32,
    /// Time of the last ejection.
    ejected_for: Duration,
    /// Time since which it is healthy.
    well_since: Option<Instant>,
    /// Beginning of its ramp.
    ramp: Option<Instant>,
    /// Passed checks since one failed, or since it was ejected or spared.
    passed: u32,
    /// Failed checks since one passed.
    failed: u32,
}

/// State as it was left by the last event; time may have moved it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Unknown,
    Healthy,
    Spared,
    FailsChecks,
    Ejected { until: Instant },
    OnTrial { ejected_until: Instant, timeout: Instant },
}

/// Returns whether one more of `total` backends may be ejected while `ejected` are (those on trial
/// included) and checks have taken out `unhealthy`: at most `percent` of all are ejected at a time,
/// and never the last one in use.
pub(crate) fn may_eject(ejected: usize, unhealthy: usize, total: usize, percent: u32) -> bool {
    let (ejected, unhealthy) = (ejected as u128 + 1, unhealthy as u128);
    let total = total as u128;
    ejected * 100 <= total * u128::from(percent) && ejected + unhealthy < total
}

impl BackendHealth {
    /// Creates the health of a backend of the first configuration, which nothing is known about.
    pub(crate) fn new(rules: HealthRules) -> Self {
        Self {
            rules,
            condition: Condition::Unknown,
            failures: FailureRow::default(),
            resets: FailureRow::default(),
            is_on_probation: false,
            is_out_by_connect: false,
            ejections: 0,
            ejected_for: Duration::ZERO,
            well_since: None,
            ramp: None,
            passed: 0,
            failed: 0,
        }
    }

    /// Has a backend that joins others at `now` start slowly.
    pub(crate) fn start_slowly(&mut self, now: Instant) {
        self.ramp = Some(now);
    }

    /// Replaces the rules. A backend that is out of use, or spared, by one that is no longer there
    /// is unknown again.
    pub(crate) fn set_rules(&mut self, rules: HealthRules, now: Instant) -> Option<HealthChange> {
        self.rules = rules;
        if rules.checks.is_none() {
            (self.passed, self.failed) = (0, 0);
        }
        if !rules.has_early_resets {
            // Nobody would tell of the tunnel that ends the row.
            self.resets = FailureRow::default();
            self.is_on_probation = false;
        }
        let most = self.failures.count.max(self.resets.count);
        let is_void = match self.condition {
            Condition::Unknown | Condition::Healthy => false,
            Condition::FailsChecks => rules.checks.is_none(),
            Condition::Spared => rules.max_failures == 0 || most < rules.max_failures,
            Condition::Ejected { .. } | Condition::OnTrial { .. } => rules.max_failures == 0,
        };
        is_void.then(|| self.put_in_use(Condition::Unknown, HealthReason::SettingsChanged, now))
    }

    /// Returns the state at `now`.
    pub(crate) fn state(&self, now: Instant) -> HealthState {
        match self.condition(now) {
            Condition::Unknown => HealthState::Unknown,
            Condition::Healthy => HealthState::Healthy,
            Condition::Spared => HealthState::Unhealthy { by_check: false },
            Condition::FailsChecks => HealthState::Unhealthy { by_check: true },
            Condition::Ejected { until } => HealthState::Ejected { until },
            Condition::OnTrial { .. } => HealthState::OnTrial,
        }
    }

    /// Returns the use that may be made of the backend at `now`.
    pub(crate) fn usage(&self, now: Instant) -> Usage {
        match self.condition(now) {
            Condition::Unknown | Condition::Healthy | Condition::Spared => {
                let time = self.rules.slow_start;
                Usage::Share(self.ramp.map_or(ramp::FULL, |start| ramp::share(start, time, now)))
            }
            Condition::Ejected { until } if until <= now => Usage::Trial,
            Condition::Ejected { .. } | Condition::OnTrial { .. } | Condition::FailsChecks => {
                Usage::Out
            }
        }
    }

    /// Returns the time after `now` at which the usage changes without an event; `None` if it does
    /// not.
    pub(crate) fn next_change_at(&self, now: Instant) -> Option<Instant> {
        match self.condition(now) {
            Condition::Unknown | Condition::Healthy | Condition::Spared => {
                ramp::next(self.ramp?, self.rules.slow_start, now)
            }
            Condition::Ejected { until } => (until > now).then_some(until),
            Condition::OnTrial { timeout, .. } => Some(timeout),
            Condition::FailsChecks => None,
        }
    }

    /// Returns whether the backend is healthy, in full use, and without a failure to remember. Then
    /// successes change nothing, and the usage stays as it is until a failure or a failed check.
    pub(crate) fn is_steady(&self, now: Instant) -> bool {
        self.condition == Condition::Healthy
            && self.failures.count == 0
            && self.resets.count == 0
            && !self.is_on_probation
            && self.next_change_at(now).is_none()
    }

    /// Takes the trial connection of a backend whose ejection is over; `None` if there is none to
    /// take. Its outcome is reported as any other, or given up.
    pub(crate) fn begin_trial(&mut self, now: Instant) -> Option<HealthChange> {
        match self.condition(now) {
            Condition::Ejected { until } if until <= now => {
                // An hour: no handshake takes as long, and any instant has one after it.
                let timeout = now + self.rules.trial_timeout.min(Duration::from_secs(3600));
                let trial = Condition::OnTrial { ejected_until: until, timeout };
                Some(self.change(trial, HealthReason::EjectionOver, now))
            }
            _ => None,
        }
    }

    /// Gives a trial up that has no outcome, as its client has left. The next connection is one.
    pub(crate) fn give_up_trial(&mut self) {
        if let Condition::OnTrial { ejected_until: until, .. } = self.condition {
            self.condition = Condition::Ejected { until };
        }
    }

    /// Records a verified 101.
    pub(crate) fn on_success(&mut self, now: Instant) -> Option<HealthChange> {
        self.failures = FailureRow::default();
        let reason = HealthReason::HandshakeSucceeded;
        let change = match self.condition(now) {
            Condition::Healthy | Condition::FailsChecks => return None,
            Condition::Ejected { until } if until > now => return None,
            Condition::Spared if self.resets.count >= self.rules.max_failures => return None,
            Condition::Unknown | Condition::Spared | Condition::Ejected { .. } => {
                self.put_in_use(Condition::Healthy, reason, now)
            }
            Condition::OnTrial { .. } => {
                self.put_in_use(Condition::Healthy, HealthReason::TrialSucceeded, now)
            }
        };
        self.is_on_probation = change.from.is_ejected() && self.rules.has_early_resets;
        Some(change)
    }

    /// Records that a tunnel was not reset early: it has lasted longer, or ended in another way.
    pub(crate) fn on_lasting_tunnel(&mut self, now: Instant) -> Option<HealthChange> {
        self.resets = FailureRow::default();
        self.is_on_probation = false;
        let is_spared =
            self.condition == Condition::Spared && self.failures.count < self.rules.max_failures;
        is_spared.then(|| self.put_in_use(Condition::Healthy, HealthReason::TunnelLasted, now))
    }

    /// Records a failure of a handshake or an early reset. `may_eject` is asked only if it makes
    /// the backend leave its use, and its true is taken: it may reserve the place among those that
    /// the pool can do without. `random` is for the time of the ejection.
    pub(crate) fn on_failure(
        &mut self,
        kind: FailureKind,
        now: Instant,
        may_eject: impl FnOnce() -> bool,
        random: u64,
    ) -> Option<HealthChange> {
        let max = self.rules.max_failures;
        match self.condition(now) {
            _ if max == 0 => return None,
            // Of a tunnel that began by other rules.
            _ if kind == FailureKind::EarlyReset && !self.rules.has_early_resets => return None,
            Condition::FailsChecks | Condition::Ejected { .. } => return None,
            Condition::OnTrial { .. } => {
                self.is_out_by_connect = kind.is_of_connect();
                return Some(self.eject(HealthReason::TrialFailed(kind), now, random));
            }
            Condition::Unknown | Condition::Healthy | Condition::Spared => {}
        }
        let row = match kind {
            FailureKind::EarlyReset => &mut self.resets,
            _ => &mut self.failures,
        };
        row.add(kind);
        let row = *row;
        // The tunnel of the trial, or one that is no better.
        let is_of_trial = kind == FailureKind::EarlyReset && self.is_on_probation;
        if row.count < max && !is_of_trial {
            return None;
        }
        self.is_out_by_connect = !row.is_beyond_connect;
        let reason = if is_of_trial { HealthReason::TrialFailed(kind) } else { row.reason(kind) };
        if may_eject() {
            return Some(self.eject(reason, now, random));
        }
        self.is_on_probation = false;
        let is_news = row.count >= max && self.condition != Condition::Spared;
        self.passed = 0;
        is_news.then(|| self.change(Condition::Spared, reason, now))
    }

    /// Records the result of a check. Without rules for checks it is ignored.
    pub(crate) fn on_check(
        &mut self,
        result: Result<(), CheckError>,
        now: Instant,
    ) -> Option<HealthChange> {
        let rules = self.rules.checks?;
        match result {
            Ok(()) => self.on_passed_check(rules, now),
            Err(error) => self.on_failed_check(rules, error, now),
        }
    }

    fn on_passed_check(&mut self, rules: CheckRules, now: Instant) -> Option<HealthChange> {
        self.failed = 0;
        self.passed = self.passed.saturating_add(1);
        let is_enough = self.passed >= rules.healthy_threshold;
        let is_back = match self.condition(now) {
            Condition::Healthy => false,
            Condition::Unknown => true,
            Condition::FailsChecks => is_enough,
            Condition::Spared | Condition::Ejected { .. } | Condition::OnTrial { .. } => {
                is_enough && (rules.is_beyond_connect || self.is_out_by_connect)
            }
        };
        let reason = HealthReason::ChecksPassed { count: self.passed };
        is_back.then(|| self.put_in_use(Condition::Healthy, reason, now))
    }

    fn on_failed_check(
        &mut self,
        rules: CheckRules,
        error: CheckError,
        now: Instant,
    ) -> Option<HealthChange> {
        self.passed = 0;
        self.failed = self.failed.saturating_add(1);
        let is_out = match self.condition(now) {
            Condition::FailsChecks => false,
            Condition::Unknown => true,
            _ => self.failed >= rules.unhealthy_threshold,
        };
        let reason = HealthReason::ChecksFailed { count: self.failed, last: error };
        is_out.then(|| self.change(Condition::FailsChecks, reason, now))
    }

    /// Returns the condition at `now`: a trial whose outcome is overdue has ended without one.
    fn condition(&self, now: Instant) -> Condition {
        match self.condition {
            Condition::OnTrial { ejected_until: until, timeout } if timeout <= now => {
                Condition::Ejected { until }
            }
            condition => condition,
        }
    }

    /// Ejects the backend, for twice the time of the last ejection unless it has been healthy for
    /// as long as that one.
    fn eject(&mut self, reason: HealthReason, now: Instant, random: u64) -> HealthChange {
        self.end_well(now);
        let doublings = self.ejections.min(MAX_DOUBLINGS);
        let time = jittered(self.rules.eject.saturating_mul(1 << doublings), random);
        self.ejections = doublings + 1;
        self.ejected_for = time;
        self.forget();
        self.passed = 0;
        self.change(Condition::Ejected { until: now + time }, reason, now)
    }

    /// Puts the backend in use; with a slow start if it was out.
    fn put_in_use(
        &mut self,
        condition: Condition,
        reason: HealthReason,
        now: Instant,
    ) -> HealthChange {
        let was_out = !matches!(self.usage(now), Usage::Share(_));
        self.forget();
        if was_out {
            self.ramp = Some(now);
        }
        let change = self.change(condition, reason, now);
        self.well_since = Some(now);
        change
    }

    fn forget(&mut self) {
        self.failures = FailureRow::default();
        self.resets = FailureRow::default();
        self.is_on_probation = false;
    }

    /// Ends the time of being healthy. If it was long enough, earlier ejections no longer count.
    fn end_well(&mut self, now: Instant) {
        if let Some(since) = self.well_since.take()
            && now.saturating_duration_since(since) >= self.ejected_for
        {
            self.ejections = 0;
        }
    }

    fn change(&mut self, to: Condition, reason: HealthReason, now: Instant) -> HealthChange {
        self.end_well(now);
        let from = self.state(now);
        self.condition = to;
        HealthChange { from, to: self.state(now), reason }
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
    const OUT: HealthState = HealthState::Unhealthy { by_check: true };
    const SPARED: HealthState = HealthState::Unhealthy { by_check: false };

    const RULES: HealthRules = HealthRules {
        max_failures: 3,
        eject: Duration::from_secs(10),
        trial_timeout: Duration::from_secs(30),
        has_early_resets: true,
        slow_start: Duration::ZERO,
        checks: Some(CheckRules {
            healthy_threshold: 2,
            unhealthy_threshold: 3,
            is_beyond_connect: true,
        }),
    };

    fn fail(health: &mut BackendHealth, kind: FailureKind, now: Instant) -> Option<HealthChange> {
        health.on_failure(kind, now, || true, MIDDLE)
    }

    /// Fails until the backend is ejected, and returns the end of that.
    fn eject(health: &mut BackendHealth, kind: FailureKind, now: Instant) -> Instant {
        for _ in 0..2 {
            assert_eq!(fail(health, kind, now), None);
        }
        match fail(health, kind, now).unwrap().to {
            HealthState::Ejected { until } => until,
            other => panic!("{other:?}"),
        }
    }

    fn failed_check(health: &mut BackendHealth, now: Instant) -> Option<HealthChange> {
        health.on_check(Err(CheckError::Timeout), now)
    }

    /// Creates one in each state: unknown, healthy, spared, ejected, due for its trial, on trial
    /// and unhealthy by checks.
    fn in_each_state(rules: HealthRules, now: Instant) -> [BackendHealth; 7] {
        [0, 1, 2, 3, 4, 5, 6].map(|number| {
            let mut health = BackendHealth::new(rules);
            let early = now - 10 * SECOND;
            match number {
                0 => {}
                1 => assert!(health.on_success(now).is_some()),
                2 => {
                    for _ in 0..3 {
                        health.on_failure(FailureKind::Connect, now, || false, 0);
                    }
                }
                3 => _ = eject(&mut health, FailureKind::Connect, now),
                4 => _ = eject(&mut health, FailureKind::Connect, early),
                5 => {
                    _ = eject(&mut health, FailureKind::Connect, early);
                    assert!(health.begin_trial(now).is_some());
                }
                _ => assert!(failed_check(&mut health, now).is_some()),
            }
            health
        })
    }

    #[test]
    fn the_table_of_the_module_holds() {
        let now = Instant::now() + 60 * SECOND;
        let (ten, twenty) = (now + 10 * SECOND, now + 20 * SECOND);
        let ejected = |until| HealthState::Ejected { until };
        let (healthy, unknown) = (HealthState::Healthy, HealthState::Unknown);
        let before = [unknown, healthy, SPARED, ejected(ten), ejected(now), HealthState::OnTrial];
        type Act = fn(&mut BackendHealth, Instant);
        let rows: [(&str, Act, [HealthState; 7]); 7] = [
            (
                "nothing",
                |_, _| {},
                [before[0], before[1], before[2], before[3], before[4], before[5], OUT],
            ),
            (
                "a handshake succeeds",
                |health, now| _ = health.on_success(now),
                [healthy, healthy, healthy, ejected(ten), healthy, healthy, OUT],
            ),
            (
                "a handshake fails",
                |health, now| _ = fail(health, FailureKind::Status(503), now),
                [unknown, healthy, ejected(ten), ejected(ten), ejected(now), ejected(twenty), OUT],
            ),
            (
                "three handshakes fail, and the pool cannot do without it",
                |health, now| {
                    for _ in 0..3 {
                        health.on_failure(FailureKind::Connect, now, || false, MIDDLE);
                    }
                },
                [SPARED, SPARED, SPARED, ejected(ten), ejected(now), ejected(twenty), OUT],
            ),
            (
                "a check passes",
                |health, now| _ = health.on_check(Ok(()), now),
                [healthy, healthy, SPARED, ejected(ten), ejected(now), HealthState::OnTrial, OUT],
            ),
            ("two checks pass", |health, now| pass(health, now, 2), [healthy; 7]),
            (
                "a check fails",
                |health, now| _ = failed_check(health, now),
                [OUT, healthy, SPARED, ejected(ten), ejected(now), HealthState::OnTrial, OUT],
            ),
        ];
        for (name, act, expected) in rows {
            for (mut health, expected) in in_each_state(RULES, now).into_iter().zip(expected) {
                let from = health.state(now);
                act(&mut health, now);
                assert_eq!(health.state(now), expected, "{name}, {from:?}");
            }
        }
        for mut health in in_each_state(RULES, now) {
            (0..3).for_each(|_| _ = failed_check(&mut health, now));
            assert_eq!(health.state(now), OUT);
        }
    }

    fn pass(health: &mut BackendHealth, now: Instant, count: usize) {
        (0..count).for_each(|_| _ = health.on_check(Ok(()), now));
    }

    #[test]
    fn as_many_failures_in_a_row_eject_and_a_success_ends_the_row() {
        let now = Instant::now();
        let mut health = BackendHealth::new(RULES);
        for _ in 0..2 {
            assert_eq!(fail(&mut health, FailureKind::Connect, now), None);
        }
        assert_eq!(health.on_success(now).unwrap().to, HealthState::Healthy);
        assert_eq!(health.on_success(now), None);
        assert_eq!(fail(&mut health, FailureKind::Connect, now), None);
        assert_eq!(fail(&mut health, FailureKind::Status(502), now), None);
        let change = fail(&mut health, FailureKind::ConnectTimeout, now).unwrap();
        let reason = "3 failures in a row, the last: connect timeout";
        assert_eq!(change.reason.to_string(), reason);
        assert_eq!((change.from, change.to.is_ejected()), (HealthState::Healthy, true));
        assert_eq!(change.to, HealthState::Ejected { until: now + 10 * SECOND });
    }

    #[test]
    fn with_zero_failures_none_ejects() {
        let now = Instant::now();
        let mut health = BackendHealth::new(HealthRules { max_failures: 0, ..RULES });
        for _ in 0..9 {
            assert_eq!(fail(&mut health, FailureKind::Connect, now), None);
            assert_eq!(fail(&mut health, FailureKind::EarlyReset, now), None);
        }
        assert_eq!(health.usage(now), Usage::Share(256));
    }

    #[test]
    fn consent_is_asked_for_only_where_it_decides() {
        let now = Instant::now();
        let mut health = BackendHealth::new(RULES);
        let mut asked = 0;
        for _ in 0..4 {
            let mut may_eject = || {
                asked += 1;
                false
            };
            health.on_failure(FailureKind::Connect, now, &mut may_eject, 0);
        }
        // At the third failure and at the fourth.
        assert_eq!((asked, health.state(now)), (2, SPARED));
        assert_eq!(health.usage(now), Usage::Share(256));
        let change = fail(&mut health, FailureKind::Connect, now).unwrap();
        assert_eq!(change.reason.to_string(), "5 connect failures in a row");
        assert_eq!(change.from, SPARED);
    }

    #[test]
    fn an_ejection_ends_with_one_trial() {
        let start = Instant::now();
        let mut health = BackendHealth::new(RULES);
        let until = eject(&mut health, FailureKind::Connect, start);
        assert_eq!(health.usage(until - NANO), Usage::Out);
        assert!(health.begin_trial(until - NANO).is_none());
        assert_eq!(health.next_change_at(start), Some(until));
        assert_eq!(health.usage(until), Usage::Trial);
        assert_eq!(health.next_change_at(until), None);
        assert!(health.begin_trial(until).is_some());
        assert_eq!(health.usage(until), Usage::Out);
        assert!(health.begin_trial(until).is_none(), "one at a time");
        let change = health.on_success(until + SECOND).unwrap();
        assert_eq!(change.reason.to_string(), "trial succeeded");
        assert_eq!((change.from, change.to.is_ejected()), (HealthState::OnTrial, false));
        assert_eq!(health.usage(until + SECOND), Usage::Share(256));
    }

    #[test]
    fn a_trial_without_an_outcome_makes_place_for_the_next() {
        let start = Instant::now();
        let mut health = BackendHealth::new(RULES);
        let until = eject(&mut health, FailureKind::Connect, start);
        assert!(health.begin_trial(until).is_some());
        let overdue = until + RULES.trial_timeout;
        assert_eq!(health.next_change_at(until), Some(overdue));
        assert_eq!(health.state(overdue - NANO), HealthState::OnTrial);
        assert!(health.begin_trial(overdue - NANO).is_none());
        assert_eq!(health.state(overdue), HealthState::Ejected { until });
        assert!(health.begin_trial(overdue).is_some());
        health.give_up_trial();
        assert!(health.begin_trial(overdue).is_some());
        // It was no failure: the time of the next ejection is the second one, not the fourth.
        let change = fail(&mut health, FailureKind::NoAnswer, overdue).unwrap();
        assert_eq!(change.reason.to_string(), "trial failed: closed without an answer");
        assert_eq!(change.to, HealthState::Ejected { until: overdue + 20 * SECOND });
        assert!(change.to.is_ejected());
    }

    #[test]
    fn the_time_doubles_ten_times() {
        let mut now = Instant::now();
        let mut health = BackendHealth::new(RULES);
        let mut until = eject(&mut health, FailureKind::Connect, now);
        let mut times = vec![(until - now).as_secs()];
        for _ in 0..12 {
            now = until;
            assert!(health.begin_trial(now).is_some());
            match fail(&mut health, FailureKind::Connect, now).unwrap().to {
                HealthState::Ejected { until: next } => until = next,
                other => panic!("{other:?}"),
            }
            times.push((until - now).as_secs());
        }
        let doubled: Vec<u64> = (0..13).map(|n: u32| 10 << n.min(10)).collect();
        assert_eq!(times, doubled);
    }

    #[test]
    fn the_time_begins_anew_after_as_long_a_time_of_health() {
        for (well, expected) in [(20 * SECOND - NANO, 40 * SECOND), (20 * SECOND, 10 * SECOND)] {
            let start = Instant::now();
            let mut health = BackendHealth::new(RULES);
            let trial = eject(&mut health, FailureKind::Connect, start);
            assert!(health.begin_trial(trial).is_some());
            _ = fail(&mut health, FailureKind::Connect, trial);
            let back = trial + 20 * SECOND;
            assert!(health.begin_trial(back).is_some());
            assert!(health.on_success(back).is_some());
            let again = eject(&mut health, FailureKind::Connect, back + well);
            assert_eq!(again - (back + well), expected, "{well:?}");
        }
    }

    #[test]
    fn a_time_spared_is_no_time_of_health() {
        let start = Instant::now();
        let mut health = BackendHealth::new(RULES);
        let back = eject(&mut health, FailureKind::Connect, start);
        assert!(health.begin_trial(back).is_some());
        assert!(health.on_success(back).is_some());
        for _ in 0..3 {
            health.on_failure(FailureKind::Connect, back + SECOND, || false, 0);
        }
        let late = back + 60 * SECOND;
        let change = fail(&mut health, FailureKind::Connect, late).unwrap();
        assert_eq!(change.to, HealthState::Ejected { until: late + 20 * SECOND });
    }

    #[test]
    fn the_time_is_jittered_and_never_out_of_range() {
        let now = Instant::now();
        for (random, expected) in [(0, 8 * SECOND), (u64::MAX, 12 * SECOND - NANO)] {
            let mut health = BackendHealth::new(HealthRules { max_failures: 1, ..RULES });
            _ = health.on_failure(FailureKind::Connect, now, || true, random);
            assert_eq!(health.state(now), HealthState::Ejected { until: now + expected });
        }
        let rules = HealthRules {
            max_failures: 1,
            eject: Duration::MAX,
            trial_timeout: Duration::MAX,
            has_early_resets: true,
            slow_start: Duration::MAX,
            checks: None,
        };
        let mut health = BackendHealth::new(rules);
        health.start_slowly(now);
        assert_eq!(health.usage(now), Usage::Share(26));
        assert!(health.next_change_at(now).is_none_or(|at| at > now));
        _ = health.on_failure(FailureKind::Connect, now, || true, u64::MAX);
        assert_eq!(health.usage(now), Usage::Out);
    }

    #[test]
    fn early_resets_eject_though_a_101_precedes_each() {
        let now = Instant::now();
        let mut health = BackendHealth::new(RULES);
        for _ in 0..2 {
            _ = health.on_success(now);
            assert_eq!(fail(&mut health, FailureKind::EarlyReset, now), None);
        }
        assert_eq!(health.on_lasting_tunnel(now), None);
        for _ in 0..2 {
            _ = health.on_success(now);
            assert_eq!(fail(&mut health, FailureKind::EarlyReset, now), None);
        }
        _ = health.on_success(now);
        let change = fail(&mut health, FailureKind::EarlyReset, now).unwrap();
        assert_eq!(change.reason.to_string(), "3 early resets in a row");
    }

    #[test]
    fn an_early_reset_after_a_trial_makes_it_a_failed_one() {
        let start = Instant::now();
        let mut health = BackendHealth::new(RULES);
        let back = eject(&mut health, FailureKind::EarlyReset, start);
        assert!(health.begin_trial(back).is_some());
        assert!(health.on_success(back).is_some());
        let change = fail(&mut health, FailureKind::EarlyReset, back).unwrap();
        assert_eq!(change.reason.to_string(), "trial failed: early reset");
        let HealthState::Ejected { until } = change.to else { panic!("{change:?}") };
        assert_eq!(until, back + 20 * SECOND);
        // Once a tunnel has lasted, it takes as many as ever.
        assert!(health.begin_trial(until).is_some());
        assert!(health.on_success(until).is_some());
        assert_eq!(health.on_lasting_tunnel(until), None);
        assert_eq!(fail(&mut health, FailureKind::EarlyReset, until), None);
        // Without consent it counts as any other.
        let mut health = BackendHealth::new(RULES);
        let back = eject(&mut health, FailureKind::EarlyReset, start);
        assert!(health.on_success(back).is_some());
        let refused = |health: &mut BackendHealth| {
            health.on_failure(FailureKind::EarlyReset, back, || false, 0).map(|change| change.to)
        };
        assert_eq!([(); 4].map(|()| refused(&mut health)), [None, None, Some(SPARED), None]);
        // It takes a tunnel that lasts.
        assert_eq!(health.on_success(back), None);
        assert_eq!(health.on_lasting_tunnel(back).unwrap().to, HealthState::Healthy);
    }

    #[test]
    fn an_unknown_backend_is_judged_by_its_first_check() {
        let now = Instant::now();
        let mut health = BackendHealth::new(RULES);
        assert_eq!((health.state(now), health.usage(now)), (HealthState::Unknown, FULL));
        let change = failed_check(&mut health, now).unwrap();
        assert_eq!(change.reason.to_string(), "check failed: timeout");
        assert_eq!((change.to, health.usage(now)), (OUT, Usage::Out));
        let mut health = BackendHealth::new(RULES);
        let change = health.on_check(Ok(()), now).unwrap();
        assert_eq!((change.to, health.usage(now)), (HealthState::Healthy, FULL));
        assert_eq!(change.reason.to_string(), "check passed");
    }

    const FULL: Usage = Usage::Share(256);

    #[test]
    fn thresholds_count_results_in_a_row() {
        let now = Instant::now();
        let mut health = BackendHealth::new(RULES);
        pass(&mut health, now, 1);
        for _ in 0..3 {
            assert_eq!(failed_check(&mut health, now), None);
            assert_eq!(failed_check(&mut health, now), None);
            pass(&mut health, now, 1);
        }
        assert_eq!(failed_check(&mut health, now), None);
        assert_eq!(failed_check(&mut health, now), None);
        let change = health.on_check(Err(CheckError::Status(500)), now).unwrap();
        assert_eq!(change.reason.to_string(), "3 checks failed in a row, the last: status 500");
        pass(&mut health, now, 1);
        assert_eq!(failed_check(&mut health, now), None);
        assert_eq!(health.on_check(Ok(()), now), None);
        let change = health.on_check(Ok(()), now).unwrap();
        assert_eq!(change.reason.to_string(), "2 checks passed in a row");
    }

    #[test]
    fn checks_that_only_connect_end_only_ejections_for_failures_to_connect() {
        let now = Instant::now();
        let checks = RULES.checks.map(|checks| CheckRules { is_beyond_connect: false, ..checks });
        let rows = [
            (FailureKind::Connect, true),
            (FailureKind::ConnectTimeout, true),
            (FailureKind::Status(503), false),
            (FailureKind::NoAnswer, false),
        ];
        for (kind, is_back) in rows {
            let mut health = BackendHealth::new(HealthRules { checks, ..RULES });
            let until = eject(&mut health, kind, now);
            pass(&mut health, now, 9);
            assert_eq!(health.usage(now) == FULL, is_back, "{kind}");
            // The trial is the way for the others.
            assert_eq!(health.begin_trial(until).is_some(), !is_back, "{kind}");
        }
        // The latest failure counts, which may be that of the trial.
        for (first, last) in [
            (FailureKind::Connect, FailureKind::Status(503)),
            (FailureKind::Status(503), FailureKind::Connect),
        ] {
            let mut health = BackendHealth::new(HealthRules { checks, ..RULES });
            let until = eject(&mut health, first, now);
            assert!(health.begin_trial(until).is_some());
            assert!(fail(&mut health, last, until).is_some());
            pass(&mut health, until, 9);
            assert_eq!(health.usage(until) == FULL, last == FailureKind::Connect);
        }
    }

    #[test]
    fn earlier_checks_bring_nothing_back_and_those_that_do_end_the_row() {
        let now = Instant::now();
        let mut health = BackendHealth::new(RULES);
        pass(&mut health, now, 9);
        for _ in 0..3 {
            health.on_failure(FailureKind::Connect, now, || false, 0);
        }
        pass(&mut health, now, 1);
        assert_eq!(health.state(now), SPARED);
        assert!(health.on_check(Ok(()), now).is_some());
        // From here on it takes as many failures as ever.
        assert_eq!(eject(&mut health, FailureKind::Connect, now), now + 10 * SECOND);
        let mut health = BackendHealth::new(RULES);
        pass(&mut health, now, 9);
        _ = eject(&mut health, FailureKind::Connect, now);
        pass(&mut health, now, 1);
        assert_eq!(health.usage(now), Usage::Out);
        assert!(health.on_check(Ok(()), now).is_some());
    }

    #[test]
    fn ejections_are_remembered_while_checks_fail() {
        let now = Instant::now();
        let mut health = BackendHealth::new(RULES);
        _ = eject(&mut health, FailureKind::Connect, now);
        (0..3).for_each(|_| _ = failed_check(&mut health, now));
        assert_eq!(fail(&mut health, FailureKind::Connect, now), None);
        assert_eq!(health.on_success(now), None);
        assert!(health.begin_trial(now + 60 * SECOND).is_none());
        pass(&mut health, now, 2);
        assert_eq!(eject(&mut health, FailureKind::Connect, now), now + 20 * SECOND);
    }

    #[test]
    fn a_backend_that_came_or_came_back_is_ramped() {
        let start = Instant::now();
        let rules = HealthRules { slow_start: 16 * SECOND, ..RULES };
        assert_eq!(BackendHealth::new(rules).usage(start), FULL);
        let mut added = BackendHealth::new(rules);
        added.start_slowly(start);
        assert_eq!(added.usage(start), Usage::Share(26));
        assert_eq!(added.next_change_at(start), Some(start + SECOND));
        // That it is known now to be well does not change its ramp.
        assert!(added.on_success(start + SECOND).is_some());
        assert_eq!(added.usage(start + SECOND), Usage::Share(40));
        assert_eq!(added.usage(start + 16 * SECOND - NANO), Usage::Share(241));
        assert!(!added.is_steady(start + 16 * SECOND - NANO));
        assert_eq!(added.usage(start + 16 * SECOND), FULL);
        assert_eq!(added.next_change_at(start + 16 * SECOND), None);
        assert!(added.is_steady(start + 16 * SECOND));
        for mut health in in_each_state(rules, start + 60 * SECOND) {
            let now = start + 60 * SECOND;
            let was_in_use = matches!(health.usage(now), Usage::Share(_));
            pass(&mut health, now, 2);
            assert_eq!(health.usage(now) == FULL, was_in_use);
            assert_eq!(health.usage(now + 16 * SECOND), FULL);
        }
    }

    #[test]
    fn a_backend_is_steady_where_successes_change_nothing() {
        let now = Instant::now();
        let steady = in_each_state(RULES, now + 60 * SECOND).map(|one| one.is_steady(now));
        assert_eq!(steady, [false, true, false, false, false, false, false]);
        let mut health = BackendHealth::new(RULES);
        _ = health.on_success(now);
        for kind in [FailureKind::Connect, FailureKind::EarlyReset] {
            _ = fail(&mut health, kind, now);
            assert!(!health.is_steady(now));
            _ = health.on_success(now);
            _ = health.on_lasting_tunnel(now);
            assert!(health.is_steady(now));
        }
        // After a trial it takes a tunnel that lasts.
        let until = eject(&mut health, FailureKind::Connect, now);
        assert!(health.begin_trial(until).is_some());
        assert!(health.on_success(until).is_some());
        assert!(!health.is_steady(until));
        assert_eq!(health.on_lasting_tunnel(until), None);
        assert!(health.is_steady(until));
    }

    #[test]
    fn resets_that_nobody_tells_of_any_more_are_forgotten() {
        let now = Instant::now();
        let without = HealthRules { has_early_resets: false, ..RULES };
        let mut spared = BackendHealth::new(RULES);
        for _ in 0..3 {
            _ = spared.on_failure(FailureKind::EarlyReset, now, || false, 0);
        }
        assert_eq!((spared.set_rules(RULES, now), spared.state(now)), (None, SPARED));
        let freed = spared.set_rules(without, now).map(|change| change.to);
        assert_eq!(freed, Some(HealthState::Unknown));
        // A tunnel of the settings before may still be reset.
        for _ in 0..3 {
            assert_eq!(fail(&mut spared, FailureKind::EarlyReset, now), None);
        }
        assert!(spared.on_success(now).is_some() && spared.is_steady(now));

        let mut on_probation = BackendHealth::new(RULES);
        let until = eject(&mut on_probation, FailureKind::Connect, now);
        assert!(on_probation.begin_trial(until).is_some());
        assert!(on_probation.on_success(until).is_some());
        assert_eq!(on_probation.set_rules(without, until), None);
        assert!(on_probation.is_steady(until));
    }

    #[test]
    fn new_rules_free_those_whom_no_rule_keeps_out() {
        let now = Instant::now() + 60 * SECOND;
        let without = |max_failures, checks| HealthRules { max_failures, checks, ..RULES };
        let rows = [
            (without(3, RULES.checks), [false; 7]),
            (without(0, RULES.checks), [false, false, true, true, true, true, false]),
            (without(3, None), [false, false, false, false, false, false, true]),
            (without(0, None), [false, false, true, true, true, true, true]),
        ];
        for (rules, expected) in rows {
            for (mut health, is_freed) in in_each_state(RULES, now).into_iter().zip(expected) {
                let change = health.set_rules(rules, now);
                assert_eq!(change.is_some(), is_freed, "{rules:?}");
                if let Some(change) = change {
                    assert_eq!(change.to, HealthState::Unknown);
                    assert_eq!(health.usage(now), FULL);
                }
            }
        }
        let mut health = BackendHealth::new(without(3, None));
        assert_eq!(failed_check(&mut health, now), None);
        assert_eq!(health.state(now), HealthState::Unknown);
    }

    #[test]
    fn never_more_than_the_percentage_are_ejected_and_never_the_last_one() {
        let rows = [
            ((0, 0, 0, 100), false),
            ((0, 0, 1, 100), false),
            ((0, 0, 2, 50), true),
            ((0, 0, 2, 49), false),
            ((1, 0, 2, 100), false),
            ((0, 1, 2, 50), false),
            ((0, 0, 3, 50), true),
            ((1, 0, 3, 50), false),
            ((1, 0, 4, 50), true),
            ((2, 0, 4, 50), false),
            ((1, 2, 4, 50), false),
            ((1, 1, 4, 50), true),
            ((98, 0, 100, 100), true),
            ((99, 0, 100, 100), false),
            ((0, 0, 100, 0), false),
            ((0, 0, 100, 1), true),
            ((usize::MAX, usize::MAX, usize::MAX, u32::MAX), false),
        ];
        for (row, expected) in rows {
            let (ejected, unhealthy, total, percent) = row;
            assert_eq!(may_eject(ejected, unhealthy, total, percent), expected, "{row:?}");
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Success,
        Lasting,
        Failure(FailureKind, bool, u64),
        Trial,
        GiveUp,
        Check(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let kind = prop_oneof![
            Just(FailureKind::Connect),
            Just(FailureKind::Status(503)),
            Just(FailureKind::EarlyReset),
        ];
        prop_oneof![
            3 => (0_u64..40_000).prop_map(Step::Wait),
            2 => Just(Step::Success),
            1 => Just(Step::Lasting),
            6 => (kind, any::<bool>(), any::<u64>())
                .prop_map(|(kind, may, random)| Step::Failure(kind, may, random)),
            3 => Just(Step::Trial),
            1 => Just(Step::GiveUp),
            2 => any::<bool>().prop_map(Step::Check),
        ]
    }

    proptest! {
        #[test]
        fn no_order_of_events_breaks_the_rules(
            steps in prop::collection::vec(step(), 0..80),
            is_beyond_connect in any::<bool>(),
            slow_start in 0_u64..20_000,
        ) {
            let rules = HealthRules {
                slow_start: Duration::from_millis(slow_start),
                checks: RULES.checks.map(|rules| CheckRules { is_beyond_connect, ..rules }),
                ..RULES
            };
            let mut now = Instant::now();
            let mut health = BackendHealth::new(rules);
            for step in steps {
                let from = health.state(now);
                let was_in_use = matches!(health.usage(now), Usage::Share(_));
                let change = match step {
                    Step::Wait(ms) => {
                        let later = now + Duration::from_millis(ms);
                        let usage = health.usage(now);
                        // Until the announced time the usage is the same.
                        let next = health.next_change_at(now);
                        if let Some(at) = next {
                            prop_assert!(at > now);
                            prop_assert_eq!(health.usage(at - NANO), usage);
                            prop_assert_ne!(health.usage(at), usage);
                        }
                        if next.is_none_or(|at| later < at) {
                            prop_assert_eq!(health.usage(later), usage);
                        }
                        now = later;
                        None
                    }
                    Step::Success => health.on_success(now),
                    Step::Lasting => health.on_lasting_tunnel(now),
                    Step::Failure(kind, may, random) => {
                        let change = health.on_failure(kind, now, || may, random);
                        // Only with consent does a failure take it out.
                        let is_in_use = matches!(health.usage(now), Usage::Share(_));
                        prop_assert!(may || is_in_use == was_in_use);
                        change
                    }
                    Step::Trial => {
                        let is_due = health.usage(now) == Usage::Trial;
                        prop_assert_eq!(health.begin_trial(now).is_some(), is_due);
                        prop_assert!(health.begin_trial(now).is_none());
                        prop_assert!(health.usage(now) != Usage::Trial);
                        None
                    }
                    Step::GiveUp => {
                        health.give_up_trial();
                        None
                    }
                    Step::Check(true) => health.on_check(Ok(()), now),
                    Step::Check(false) => failed_check(&mut health, now),
                };
                let to = health.state(now);
                if let Some(change) = change {
                    prop_assert_eq!((change.from, change.to), (from, to));
                    prop_assert_ne!(from, to);
                    // Only checks put back in use what checks have taken out.
                    let is_by_check = matches!(step, Step::Check(_));
                    prop_assert!(is_by_check || from != OUT);
                    prop_assert!(is_by_check || to != OUT);
                } else if matches!(step, Step::Success | Step::Failure(..) | Step::Check(_)) {
                    prop_assert_eq!(from, to);
                }
                if health.is_steady(now) {
                    prop_assert_eq!(health.on_success(now), None);
                    prop_assert_eq!(health.on_lasting_tunnel(now), None);
                    prop_assert_eq!(health.usage(now), FULL);
                }
            }
            // There is always a way back.
            if to_be_tried(&mut health, now) {
                prop_assert!(health.on_success(now + 60 * 60 * 24 * SECOND).is_some());
            }
            pass(&mut health, now, 2);
            let state = health.state(now + 60 * 60 * 24 * SECOND);
            prop_assert!(matches!(state, HealthState::Healthy) || state == SPARED, "{:?}", state);
        }
    }

    /// Begins the trial of an ejected backend a day later.
    fn to_be_tried(health: &mut BackendHealth, now: Instant) -> bool {
        let day = now + 60 * 60 * 24 * SECOND;
        let is_ejected = health.state(day).is_ejected();
        assert_eq!(health.begin_trial(day).is_some(), is_ejected);
        is_ejected
    }
}
