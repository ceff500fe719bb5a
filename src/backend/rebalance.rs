//! Tunnels to close so that a backend that was added gets its share. Pure: counts and time are
//! arguments.
//!
//! The **share** of a backend is the part of all tunnels that belongs to its weight. One that would
//! be over the backend's cap is the cap, and the others share the rest. A backend that is not
//! eligible (out of use, or draining) or has no weight takes no part: it has no share, its tunnels
//! are nobody's, and none of them is closed.
//!
//! A plan is made once, when a backend was added, and only ever shrinks. Made anew while the
//! clients of closed tunnels are still on their way back, it would find shares of a smaller whole,
//! and close more and more.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Tunnels of a backend, and the figures by which it gets its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) tunnels: usize,
    /// As configured, without the ramp of a slow start.
    pub(crate) weight: u32,
    /// Most tunnels that it may have; `None` without a limit.
    pub(crate) cap: Option<usize>,
    pub(crate) is_eligible: bool,
}

/// Tunnels that are to be closed, by the index of their backend.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Surplus {
    left: Vec<usize>,
}

/// Even pace: at most the given number of steps within any second.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    next: Option<Instant>,
}

/// A share, as the fraction that it is.
#[derive(Clone, Copy, Debug)]
struct Share {
    numerator: u128,
    denominator: u128,
}

impl Surplus {
    /// Plans to close all that backends have above their shares, rounded up; nothing if none of
    /// them is more than 10 % above. Once the clients have come back to the others, all have their
    /// shares, and a new plan is empty. Where all are at their caps or above, it may have a rest of
    /// less than one tunnel for each of them.
    pub(crate) fn of(holdings: &[Holding]) -> Self {
        let shares = shares(holdings);
        let mut with_shares = holdings.iter().zip(&shares);
        let is_uneven = with_shares.any(|(holding, share)| {
            share.is_some_and(|share| share.is_far_exceeded_by(holding.tunnels))
        });
        let left = if is_uneven { above(holdings, &shares) } else { vec![0; holdings.len()] };
        Self { left }
    }

    /// Returns the number of tunnels that are still to be closed, of all backends.
    pub(crate) fn left(&self) -> usize {
        self.left.iter().sum()
    }

    /// Has the plan follow its backends to other places: `before` returns where the backend at an
    /// index was. Those that were nowhere have nothing to close.
    pub(crate) fn follow(&mut self, count: usize, before: impl Fn(usize) -> Option<usize>) {
        let left = |index| before(index).and_then(|before| self.left.get(before)).copied();
        self.left = (0..count).map(|index| left(index).unwrap_or(0)).collect();
    }

    /// Returns the index of the backend that is to close its oldest tunnel now: the one that has
    /// the most of them left to close. `None` once the plan is done.
    ///
    /// `holdings` are those of now, of the same backends as before. A backend that has lost tunnels
    /// meanwhile, or its part in this, closes no more than it now has above its share.
    pub(crate) fn next(&mut self, holdings: &[Holding]) -> Option<usize> {
        let above = above(holdings, &shares(holdings));
        self.left.resize(above.len(), 0);
        for (left, above) in self.left.iter_mut().zip(above) {
            *left = above.min(*left);
        }
        let first_of_most = |&(index, left): &(usize, &usize)| (*left, std::cmp::Reverse(index));
        let (index, _) = self.left.iter().enumerate().max_by_key(first_of_most)?;
        self.left[index] = self.left[index].checked_sub(1)?;
        Some(index)
    }
}

impl Pace {
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        // Rounded up, so that no second has one too many.
        let nanos = 1_000_000_000_u64.div_ceil(u64::from(per_second.get()));
        Self { interval: Duration::from_nanos(nanos), next: None }
    }

    /// Takes the next step.
    ///
    /// # Errors
    ///
    /// The time of the next step, if that is later than `now`.
    pub(crate) fn step(&mut self, now: Instant) -> Result<(), Instant> {
        match self.next {
            Some(next) if next > now => Err(next),
            _ => {
                self.next = Some(now + self.interval);
                Ok(())
            }
        }
    }
}

/// Returns how many tunnels each backend has above its share, but in all no more than the others
/// have room for below theirs.
fn above(holdings: &[Holding], shares: &[Option<Share>]) -> Vec<usize> {
    let with_shares = || holdings.iter().zip(shares);
    let mut above: Vec<usize> = with_shares()
        .map(|(holding, share)| {
            share.map_or(0, |share| holding.tunnels.saturating_sub(share.rounded_up()))
        })
        .collect();
    let room: u128 = with_shares()
        .filter_map(|(holding, share)| share.map(|share| (holding.tunnels, share.rounded_up())))
        .map(|(tunnels, share)| share.saturating_sub(tunnels) as u128)
        .sum();
    let sum: u128 = above.iter().map(|&one| one as u128).sum();
    // Only where all are at their caps, or above.
    if sum > room {
        for one in &mut above {
            *one = to_usize(*one as u128 * room / sum);
        }
    }
    above
}

/// Returns the shares of all tunnels of those that take part; `None` for the others.
fn shares(holdings: &[Holding]) -> Vec<Option<Share>> {
    let takes_part = |one: &Holding| one.is_eligible && one.weight > 0;
    let mut is_capped = vec![false; holdings.len()];
    loop {
        let parts = || holdings.iter().zip(&is_capped).filter(|(one, _)| takes_part(one));
        let capped = parts().filter(|(_, is_capped)| **is_capped);
        let at_caps: u128 = capped.filter_map(|(one, _)| one.cap).map(|cap| cap as u128).sum();
        let all: u128 = parts().map(|(one, _)| one.tunnels as u128).sum();
        let uncapped = parts().filter(|(_, is_capped)| !**is_capped);
        let weight: u128 = uncapped.map(|(one, _)| u128::from(one.weight)).sum();
        // Those at their caps would have had more each, so that something is left.
        let rest = all.saturating_sub(at_caps);
        let share =
            |one: &Holding| Share { numerator: rest * u128::from(one.weight), denominator: weight };
        let is_over =
            |one: &Holding| one.cap.is_some_and(|cap| share(one).is_above(cap) && takes_part(one));
        let next: Vec<bool> = holdings
            .iter()
            .zip(&is_capped)
            .map(|(one, is_capped)| *is_capped || is_over(one))
            .collect();
        if next == is_capped {
            let shares = holdings.iter().zip(&is_capped).map(|(one, is_capped)| {
                let cap = one.cap.filter(|_| *is_capped).map(Share::whole);
                takes_part(one).then(|| cap.unwrap_or_else(|| share(one)))
            });
            return shares.collect();
        }
        // What these give away may bring others to their caps.
        is_capped = next;
    }
}

impl Share {
    fn whole(tunnels: usize) -> Self {
        Self { numerator: tunnels as u128, denominator: 1 }
    }

    fn is_above(self, tunnels: usize) -> bool {
        self.numerator > tunnels as u128 * self.denominator
    }

    fn rounded_up(self) -> usize {
        to_usize(self.numerator.div_ceil(self.denominator.max(1)))
    }

    /// Returns whether this number of tunnels is more than 10 % above, and a tunnel or more can go.
    fn is_far_exceeded_by(self, tunnels: usize) -> bool {
        let is_far = tunnels as u128 * self.denominator * 10 > self.numerator * 11;
        is_far && tunnels > self.rounded_up()
    }
}

/// Converts what is no more than all tunnels.
fn to_usize(number: u128) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holding(tunnels: usize, weight: u32) -> Holding {
        Holding { tunnels, weight, cap: None, is_eligible: true }
    }

    fn capped(tunnels: usize, weight: u32, cap: usize) -> Holding {
        Holding { cap: Some(cap), ..holding(tunnels, weight) }
    }

    fn out(tunnels: usize) -> Holding {
        Holding { is_eligible: false, ..holding(tunnels, 1) }
    }

    #[test]
    fn the_surplus_alone_is_closed() {
        let rows: [(&[Holding], &[usize]); 22] = [
            (&[], &[]),
            (&[holding(9, 1)], &[0]),
            (&[holding(100, 1), holding(0, 1)], &[50, 0]),
            (&[holding(100, 1), holding(100, 1), holding(0, 1)], &[33, 33, 0]),
            (&[holding(90, 1), holding(0, 2)], &[60, 0]),
            (&[holding(90, 2), holding(0, 1)], &[30, 0]),
            // At 10 % above, and one more.
            (&[holding(110, 1), holding(90, 1)], &[0, 0]),
            (&[holding(111, 1), holding(89, 1)], &[11, 0]),
            // With one far above, those that are little above close theirs as well.
            (&[holding(120, 1), holding(105, 1), holding(75, 1)], &[20, 5, 0]),
            // Few tunnels: nothing that would leave less than a share.
            (&[holding(1, 1), holding(0, 1)], &[0, 0]),
            (&[holding(2, 1), holding(0, 1)], &[1, 0]),
            (&[holding(3, 1), holding(0, 1)], &[1, 0]),
            (&[holding(2, 1), holding(1, 1)], &[0, 0]),
            (&[holding(2, 3), holding(102, 197), holding(96, 200)], &[0, 0, 0]),
            // No part in it: without weight, or not eligible.
            (&[holding(100, 0), holding(0, 1)], &[0, 0]),
            (&[out(100), holding(0, 1)], &[0, 0]),
            (&[out(100), holding(10, 1), holding(0, 1)], &[0, 5, 0]),
            (&[holding(100, 1), out(0)], &[0, 0]),
            // Caps.
            (&[holding(100, 1), capped(0, 1, 20)], &[20, 0]),
            (&[holding(100, 1), capped(0, 1, 0)], &[0, 0]),
            (&[capped(100, 1, 40), capped(0, 1, 30)], &[30, 0]),
            (&[capped(100, 1, 40), capped(100, 1, 70), capped(0, 1, 30)], &[20, 10, 0]),
        ];
        for (holdings, expected) in rows {
            assert_eq!(Surplus::of(holdings).left, expected, "{holdings:?}");
        }
    }

    #[test]
    fn room_for_few_is_shared_out_and_the_rest_is_next() {
        let before = [capped(2, 1, 268), capped(675, 1, 604), capped(1270, 1, 11)];
        assert_eq!(Surplus::of(&before).left, [0, 14, 251]);
        // 265 of 266.
        let after = [capped(267, 1, 268), capped(661, 1, 604), capped(1019, 1, 11)];
        assert_eq!(Surplus::of(&after).left, [0, 0, 0]);
    }

    #[test]
    fn a_cap_gives_to_the_others_until_they_are_at_theirs() {
        // 300 tunnels: 10, then 40 of 145 each, and the rest of 250.
        let holdings = [holding(300, 1), capped(0, 1, 10), capped(0, 1, 40), holding(0, 1)];
        let shares: Vec<_> =
            shares(&holdings).into_iter().map(|one| one.unwrap().rounded_up()).collect();
        assert_eq!(shares, [125, 10, 40, 125]);
        assert_eq!(Surplus::of(&holdings).left, [175, 0, 0, 0]);
    }

    #[test]
    fn figures_of_any_size_are_no_trouble() {
        let most = Holding {
            tunnels: usize::MAX,
            weight: u32::MAX,
            cap: Some(usize::MAX),
            is_eligible: true,
        };
        assert_eq!(Surplus::of(&[most; 9]).left, [0; 9]);
        let none = Holding { tunnels: 0, ..most };
        assert_eq!(Surplus::of(&[most, none]).left, [usize::MAX / 2, 0]);
    }

    #[test]
    fn a_plan_is_carried_out_where_the_most_is_left() {
        let mut holdings = [holding(13, 1), holding(15, 1), holding(2, 1)];
        let mut plan = Surplus::of(&holdings);
        assert_eq!((plan.left(), &plan.left), (8, &vec![3, 5, 0]));
        let mut order = Vec::new();
        while let Some(index) = plan.next(&holdings) {
            order.push(index);
            holdings[index].tunnels -= 1;
            holdings[2].tunnels += 1;
        }
        assert_eq!(order, [1, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!((plan.left(), plan.next(&holdings)), (0, None));
    }

    #[test]
    fn a_plan_only_shrinks() {
        let mut holdings = [holding(100, 1), holding(0, 1)];
        let mut plan = Surplus::of(&holdings);
        // Clients that do not come back make no share smaller than planned.
        let mut closed = 0;
        while let Some(index) = plan.next(&holdings) {
            holdings[index].tunnels -= 1;
            closed += 1;
        }
        assert_eq!(closed, 50);
        // Tunnels that end by themselves need not be closed.
        let mut holdings = [holding(100, 1), holding(0, 1)];
        let mut plan = Surplus::of(&holdings);
        holdings = [holding(60, 1), holding(40, 1)];
        assert_eq!(plan.next(&holdings), Some(0));
        assert_eq!(plan.left(), 9);
        // It is out, or the new one is.
        holdings[1].is_eligible = false;
        assert_eq!(plan.next(&holdings), None);
        // And it stays so.
        holdings[1].is_eligible = true;
        assert_eq!(plan.next(&holdings), None);
        // Fewer backends than planned for.
        let mut plan = Surplus::of(&[holding(100, 1), holding(0, 1)]);
        assert_eq!(plan.next(&[]), None);
    }

    #[test]
    fn no_second_has_more_steps_than_it_may() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(NonZeroU32::new(10).unwrap());
        assert_eq!(pace.step(ms(0)), Ok(()));
        assert_eq!(pace.step(ms(0)), Err(ms(100)));
        assert_eq!(pace.step(ms(100) - Duration::from_nanos(1)), Err(ms(100)));
        assert_eq!(pace.step(ms(100)), Ok(()));
        // What was not used is not made up for.
        assert_eq!(pace.step(ms(60_000)), Ok(()));
        assert_eq!(pace.step(ms(60_000)), Err(ms(60_100)));
    }

    #[test]
    fn a_step_comes_as_soon_as_the_pace_allows_it() {
        for per_second in [1, 3, 7, 10, 1_000_000_001, u32::MAX] {
            let start = Instant::now();
            let mut now = start;
            let mut pace = Pace::new(NonZeroU32::new(per_second).unwrap());
            for _ in 0..per_second.min(100) {
                assert_eq!(pace.step(now), Ok(()));
                now = pace.step(now).unwrap_err();
            }
            let second = Duration::from_secs(1);
            assert!(per_second > 100 || now >= start + second, "{per_second}");
            assert!(now < start + second + Duration::from_micros(1), "{per_second}");
        }
    }

    #[test]
    fn a_plan_follows_its_backends() {
        let mut plan = Surplus { left: vec![3, 0, 7] };
        plan.follow(3, |index| [Some(2), None, Some(0)][index]);
        assert_eq!(plan, Surplus { left: vec![7, 0, 3] });
        plan.follow(1, |_| Some(9));
        assert_eq!(plan, Surplus { left: vec![0] });
    }

    fn holdings() -> impl Strategy<Value = Vec<Holding>> {
        let tunnels = prop_oneof![0_usize..20, 0_usize..5_000];
        let cap = prop::option::weighted(0.3, 0_usize..3_000);
        let one = (tunnels, 0_u32..5, cap, prop::bool::weighted(0.9));
        let one = one.prop_map(|(tunnels, weight, cap, is_eligible)| Holding {
            tunnels,
            weight,
            cap,
            is_eligible,
        });
        prop::collection::vec(one, 0..8)
    }

    /// Opens a tunnel with the backend that is furthest below its share, as least connections do.
    fn open(holdings: &mut [Holding], shares: &[Option<Share>]) {
        let below = |index: usize| {
            let share = shares[index]?;
            let (full, has) = (share.numerator, holdings[index].tunnels as u128);
            Some(full as f64 / share.denominator as f64 - has as f64)
        };
        let may = |one: &Holding| one.cap.is_none_or(|cap| one.tunnels < cap);
        let index = (0..holdings.len())
            .filter(|index| may(&holdings[*index]) && below(*index).is_some())
            .max_by(|a, b| below(*a).unwrap().total_cmp(&below(*b).unwrap()))
            .unwrap();
        holdings[index].tunnels += 1;
    }

    fn sum(holdings: &[Holding]) -> usize {
        holdings.iter().map(|one| one.tunnels).sum()
    }

    proptest! {
        #[test]
        fn a_plan_brings_all_to_their_shares_and_the_next_one_is_empty(mut now in holdings()) {
            let before = now.clone();
            let shares = shares(&before);
            let mut plan = Surplus::of(&before);
            let planned = plan.left.clone();
            let total = plan.left();
            let is_far = before.iter().zip(&shares).any(|(one, share)| {
                share.is_some_and(|share| share.is_far_exceeded_by(one.tunnels))
            });
            prop_assert!(is_far || total == 0);
            // All are closed before the first client is back, the worst of orders.
            let mut closed = vec![0; before.len()];
            while let Some(index) = plan.next(&now) {
                now[index].tunnels -= 1;
                closed[index] += 1;
            }
            prop_assert_eq!(&closed, &planned);
            for index in 0..now.len() {
                let Some(share) = shares[index] else {
                    prop_assert_eq!(closed[index], 0);
                    continue;
                };
                // Nobody is brought below its share, whole tunnels being what they are.
                let is_kept = now[index].tunnels >= share.rounded_up();
                prop_assert!(closed[index] == 0 || is_kept);
                prop_assert!(before[index].cap.is_none_or(|cap| share.rounded_up() <= cap));
            }
            (0..total).for_each(|_| open(&mut now, &shares));
            prop_assert_eq!(sum(&now), sum(&before));
            let are_all_at_caps = (0..now.len()).all(|index| {
                shares[index].is_none_or(|one| {
                    now[index].cap.is_some_and(|cap| one.rounded_up() >= cap)
                })
            });
            let again = Surplus::of(&now).left();
            // Room that is shared out is rounded down for each.
            let is_rest = are_all_at_caps && again < now.len();
            prop_assert!(again == 0 || is_rest, "it does not oscillate: {again} {now:?}");
            if total > 0 && !are_all_at_caps {
                let parts: Vec<_> = now
                    .iter()
                    .zip(&shares)
                    .filter_map(|(one, share)| Some((one.tunnels as f64, (*share)?)))
                    .map(|(has, share)| (has, share.numerator as f64 / share.denominator as f64))
                    .collect();
                // Within 5 %, or the part of a tunnel that rounding left to each one above.
                let slack = parts.iter().filter(|(has, share)| has > share).count() as f64;
                for (has, share) in parts {
                    prop_assert!(has <= (share * 1.05).max(share.ceil()), "{:?}", now);
                    prop_assert!(has >= (share * 0.95).min(share - slack), "{:?}", now);
                }
            }
        }

        #[test]
        fn shares_add_up_to_all_tunnels_and_keep_to_weights_and_caps(all in holdings()) {
            let shares = shares(&all);
            let parts: Vec<_> =
                all.iter().zip(&shares).filter_map(|(one, share)| Some((one, (*share)?))).collect();
            let total: usize = parts.iter().map(|(one, _)| one.tunnels).sum();
            let value = |share: Share| share.numerator as f64 / share.denominator as f64;
            let sum: f64 = parts.iter().map(|(_, share)| value(*share)).sum();
            let are_at_caps = parts.iter().all(|(one, share)| {
                one.cap.is_some_and(|cap| value(*share) >= cap as f64)
            });
            prop_assert!(are_at_caps || (sum - total as f64).abs() < 1e-3);
            prop_assert!(sum <= total as f64 + 1e-3);
            // Those below their caps have the same for each unit of weight, those at them less.
            let unit = parts
                .iter()
                .map(|(one, share)| value(*share) / f64::from(one.weight))
                .fold(0.0, f64::max);
            for (one, share) in parts {
                let is_even = (value(share) / f64::from(one.weight) - unit).abs() < 1e-3;
                let is_at_cap = one.cap.is_some_and(|cap| value(share) == cap as f64);
                prop_assert!(is_even || is_at_cap);
                prop_assert!(one.cap.is_none_or(|cap| value(share) <= cap as f64));
            }
        }

        #[test]
        fn a_plan_under_way_leaves_nobody_below_its_share(
            mut now in holdings(),
            ends in prop::collection::vec((any::<usize>(), any::<bool>()), 0..300),
        ) {
            let mut plan = Surplus::of(&now);
            let mut left = plan.left();
            for (index, is_end) in ends {
                if is_end && !now.is_empty() {
                    let index = index % now.len();
                    now[index].tunnels = now[index].tunnels.saturating_sub(index);
                    continue;
                }
                let shares = shares(&now);
                let Some(index) = plan.next(&now) else { continue };
                prop_assert!(now[index].tunnels > shares[index].unwrap().rounded_up());
                now[index].tunnels -= 1;
                prop_assert!(plan.left() < left);
                left = plan.left();
            }
        }

        #[test]
        fn any_second_has_at_most_as_many_steps(
            per_second in 1_u32..50,
            waits in prop::collection::vec(0_u64..200, 1..200),
        ) {
            let mut now = Instant::now();
            let mut pace = Pace::new(NonZeroU32::new(per_second).unwrap());
            let mut steps: Vec<Instant> = Vec::new();
            for wait in waits {
                now += Duration::from_millis(wait);
                match pace.step(now) {
                    Ok(()) => steps.push(now),
                    Err(at) => {
                        prop_assert!(at > now);
                        prop_assert!(pace.step(at - Duration::from_nanos(1)).is_err());
                    }
                }
            }
            for (index, first) in steps.iter().enumerate() {
                let is_within = |one: &&Instant| **one - *first < Duration::from_secs(1);
                let second = steps[index..].iter().take_while(is_within);
                prop_assert!(second.count() <= per_second as usize);
            }
        }
    }
}
