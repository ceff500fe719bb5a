//! Choices by several threads, after changes, and of any pool.

use std::sync::Barrier;
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[test]
fn counts_outlive_boards_and_slots_are_reused() {
    let slab = CountSlab::default();
    let first = candidate(&slab, 0, 256, 2);
    let old = Board::new([first.clone(), candidate(&slab, 1, 256, NO_CAP)]);
    let claims = [old.try_take(0), old.try_take(1)];
    let new = Board::new([candidate(&slab, 2, 256, NO_CAP), first]);
    assert_eq!(counts(&new), [0, 1]);
    let more = new.try_take(1).unwrap();
    assert!(old.is_full(0) && old.try_take(0).is_none());
    drop(old);
    // The claim holds the slot of a backend that no board has.
    let third = slab.take();
    assert_eq!((third.get(), format!("{third:?}")), (0, "SharedCount(0)".to_owned()));
    drop(claims);
    assert_eq!(counts(&new), [0, 1]);
    drop((more, new));
    // More than one chunk, all of them 0.
    let many: Vec<_> = (0..600).map(|number| candidate(&slab, number, 256, 1)).collect();
    let board = Board::new(many);
    assert_eq!(counts(&board), [0; 600]);
    let claims: Vec<_> = (0..600).map(|index| board.try_take(index).unwrap()).collect();
    assert_eq!(Chooser::default().first(&board, None), None);
    drop((board, claims));
    assert_eq!(slab.take().get(), 0);
}

/// Runs `f` in eight threads that start together.
fn hammer(f: impl Fn(usize) + Sync) {
    let barrier = Barrier::new(8);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (f, barrier) = (&f, &barrier);
            scope.spawn(move || {
                barrier.wait();
                f(thread);
            });
        }
    });
}

#[test]
fn caps_are_never_exceeded() {
    for algorithm in ALGORITHMS {
        for weights in [[256, 256, 256], [256, 512, 768]] {
            let slab = CountSlab::default();
            let caps = [1, 2, 5];
            let board = Board::new(
                (0..3).map(|number| candidate(&slab, number, weights[number], caps[number])),
            );
            let balance = Chooser::new(algorithm);
            hammer(|thread| {
                let mut held = Vec::new();
                for step in 0..5000 {
                    let mut order = balance.order(&board, Some(key(step * 8 + thread)));
                    held.extend(order.find_map(|index| board.try_take(index)));
                    for (index, cap) in caps.into_iter().enumerate() {
                        assert!(board.count(index) <= cap);
                    }
                    if held.len() > step % 4 {
                        held.swap_remove(step % held.len());
                    }
                }
            });
            assert_eq!(counts(&board), [0; 3]);
        }
    }
}

#[test]
fn shares_are_exact_with_many_threads() {
    for weights in [[256; 5], [256, 0, 256, 256, 256], [256, 512, 256, 256, 1280]] {
        let (balance, board) = (Chooser::default(), board(&weights));
        let chosen = [(); 5].map(|()| AtomicUsize::new(0));
        let total: u32 = weights.iter().sum();
        hammer(|_| {
            for _ in 0..total / 256 * 500 {
                let index = balance.first(&board, None).unwrap();
                chosen[index].fetch_add(1, Ordering::Relaxed);
            }
        });
        let chosen = chosen.map(AtomicUsize::into_inner);
        assert_eq!(chosen, weights.map(|weight| weight as usize / 256 * 4000));
    }
}

#[test]
fn threads_do_not_rush_to_one_backend() {
    let (balance, board) = (Chooser::new(Balance::LeastTunnels), board(&[256; 64]));
    let (barrier, board, balance) = (&Barrier::new(8), &board, &balance);
    hammer(|_| {
        let mut claims = Vec::new();
        for _ in 0..640 {
            claims.push(board.try_take(balance.first(board, None).unwrap()).unwrap());
        }
        barrier.wait();
        // 5120 in all, 80 for each. Each thread may have chosen once by what it saw before.
        let counts = counts(board);
        assert!(counts.iter().all(|count| (72..=88).contains(count)), "{counts:?}");
        barrier.wait();
    });
    assert_eq!(counts(board), [0; 64]);
}

#[test]
fn weights_may_change_while_others_choose() {
    for algorithm in ALGORITHMS {
        let (balance, board) = (Chooser::new(algorithm), board(&[256; 70]));
        hammer(|thread| {
            for step in 0..3000 {
                if thread == 0 {
                    // The last one is always there.
                    board.set_weight(step % 69, key(step) as u32 % 3 * 256);
                } else {
                    let key = (step % 2 == 0).then_some(key(step));
                    assert!(balance.order(&board, key).take(3).count() > 0);
                }
            }
        });
        (0..70).for_each(|index| board.set_weight(index, 256 + 256 * (index as u32 % 2)));
        if algorithm == Balance::RoundRobin {
            shares(&balance, &board, 105);
            let shares = shares(&balance, &board, 1050);
            let even = shares.iter().step_by(2).chain([&10]).all(|share| (9..=11).contains(share));
            let odd = shares.iter().skip(1).step_by(2).all(|share| (19..=21).contains(share));
            assert!(even && odd, "{shares:?}");
        }
    }
}

/// A backend of a random board: weight, cap, count.
fn backends(max: usize) -> impl Strategy<Value = Vec<(u32, u32, u32)>> {
    let weight = prop_oneof![Just(0), Just(256), 1..2000_u32];
    let cap = prop_oneof![3 => Just(NO_CAP), 1 => 0..5_u32];
    vec((weight, cap, 0..5_u32), 0..max)
}

proptest! {
    #[test]
    fn an_order_is_a_permutation_of_the_eligible(
        backends in backends(150),
        primaries in 0..150_usize,
        is_equal: bool,
        has_caps: bool,
        keys in vec(any::<Option<u64>>(), 1..5),
    ) {
        let slab = CountSlab::default();
        let candidates = backends.iter().enumerate().map(|(number, &(weight, cap, _))| Candidate {
            is_backup: number >= primaries,
            ..candidate(
                &slab,
                number,
                if is_equal { weight.min(1) * 256 } else { weight },
                if has_caps { cap } else { NO_CAP },
            )
        });
        let board = Board::new(candidates);
        let mut claims = Vec::new();
        for (index, backend) in backends.iter().enumerate() {
            claims.extend((0..backend.2).filter_map(|_| board.try_take(index)));
        }
        let eligible = |is_backup: bool| -> Vec<usize> {
            let all = 0..backends.len();
            all.filter(|&one| board.is_eligible(one) && (one >= primaries) == is_backup).collect()
        };
        let mut expected = eligible(false);
        if expected.is_empty() {
            expected = eligible(true);
        }
        for algorithm in ALGORITHMS {
            let balance = Chooser::new(algorithm);
            for &key in &keys {
                let order: Vec<_> = balance.order(&board, key).collect();
                if algorithm == Balance::LeastTunnels {
                    let ratio = |&one: &usize| {
                        f64::from(board.count(one)) / f64::from(board.weight(one))
                    };
                    prop_assert!(order.is_sorted_by(|one, next| ratio(one) <= ratio(next)));
                }
                let mut sorted = order;
                sorted.sort_unstable();
                prop_assert_eq!(&sorted, &expected);
            }
        }
    }

    #[test]
    fn shares_follow_the_weights_at_any_time(weights in vec(0..12_u32, 1..12)) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let effective: Vec<_> = weights.iter().map(|weight| weight * 256).collect();
        let (balance, board) = (Chooser::default(), board(&effective));
        let mut chosen = vec![0_u32; weights.len()];
        for choices in 1..=3 * total {
            chosen[balance.first(&board, None).unwrap()] += 1;
            for (&chosen, &weight) in chosen.iter().zip(&weights) {
                let due = f64::from(choices) * f64::from(weight) / f64::from(total);
                prop_assert!((f64::from(chosen) - due).abs() <= 1.5);
            }
            if choices % total == 0 {
                let due: Vec<_> = weights.iter().map(|weight| weight * choices / total).collect();
                prop_assert_eq!(&chosen, &due);
            }
        }
    }

    #[test]
    fn shares_are_right_after_changes(
        changes in vec((0..8_usize, 0..9_u32, 0..20_usize), 0..40),
        last in vec(1..9_u32, 8),
        cap in prop_oneof![Just(NO_CAP), Just(1)],
    ) {
        let slab = CountSlab::default();
        let board = Board::new((0..8).map(|number| candidate(&slab, number, 256, cap)));
        let balance = Chooser::default();
        for (index, weight, choices) in changes {
            board.set_weight(index, weight * 256);
            let mut claims = Vec::new();
            for _ in 0..choices {
                claims.extend(balance.first(&board, None).and_then(|index| board.try_take(index)));
            }
        }
        (0..8).for_each(|index| board.set_weight(index, last[index] * 256));
        let total: u32 = last.iter().sum();
        let mut chosen = [0; 8];
        for cycle in 1..=10 {
            let more = shares(&balance, &board, total as usize);
            chosen.iter_mut().zip(more).for_each(|(chosen, more)| *chosen += more);
            for (index, &chosen) in chosen.iter().enumerate() {
                prop_assert!(chosen.abs_diff(cycle * last[index] as usize) <= 2);
            }
        }
    }

    #[test]
    fn the_least_loaded_gets_each_tunnel(
        weights in vec(1..2000_u32, 1..20),
        ends in vec(any::<prop::sample::Index>(), 0..200),
    ) {
        let (balance, board) = (Chooser::new(Balance::LeastTunnels), board(&weights));
        let mut claims = Vec::new();
        let take = |claims: &mut Vec<Claim>| {
            let index = balance.first(&board, None).unwrap();
            let of = |one: usize| u64::from(board.count(one));
            for other in 0..weights.len() {
                let (own, its) = (u64::from(weights[index]), u64::from(weights[other]));
                assert!(of(index) * its <= of(other) * own);
            }
            claims.push(board.try_take(index).unwrap());
        };
        (0..200).for_each(|_| take(&mut claims));
        for end in ends {
            claims.swap_remove(end.index(claims.len()));
            take(&mut claims);
        }
    }

    #[test]
    fn a_change_moves_only_the_keys_of_what_has_changed(
        mut weights in vec(prop_oneof![Just(256), 1..3000_u32], 2..20),
        changed in any::<prop::sample::Index>(),
        weight in prop_oneof![Just(256), 1..3000_u32],
        is_equal: bool,
    ) {
        if is_equal {
            weights.fill(256);
        }
        let changed = changed.index(weights.len());
        let balance = Chooser::new(Balance::Hash);
        let board = board(&weights);
        let before = owners(&balance, &board, 300);
        // Ejected, its keys go to the second choice of each; the others stay.
        let seconds: Vec<_> = (0..300)
            .map(|number| balance.order(&board, Some(key(number))).nth(1).unwrap())
            .collect();
        board.set_weight(changed, 0);
        let ejected = owners(&balance, &board, 300);
        for ((&before, &second), &ejected) in before.iter().zip(&seconds).zip(&ejected) {
            prop_assert_eq!(ejected, if before == changed { second } else { before });
        }
        // Without it in the board at all, in another order of the backends.
        let slab = CountSlab::default();
        let others: Vec<_> = (0..weights.len()).rev().filter(|&one| one != changed).collect();
        let smaller =
            Board::new(others.iter().map(|&one| candidate(&slab, one, weights[one], NO_CAP)));
        let removed: Vec<_> =
            owners(&balance, &smaller, 300).into_iter().map(|index| others[index]).collect();
        prop_assert_eq!(&removed, &ejected);
        // With another weight, keys move only to it or only from it.
        board.set_weight(changed, weight);
        let after = owners(&balance, &board, 300);
        for (&before, &after) in before.iter().zip(&after) {
            let gained = before != changed && after == changed && weight > weights[changed];
            let lost = before == changed && after != changed && weight < weights[changed];
            prop_assert!(before == after || gained || lost);
        }
    }

    #[test]
    fn counts_never_drift(
        steps in vec((0..5_u8, any::<prop::sample::Index>(), 0..12_usize), 1..300),
    ) {
        let slab = CountSlab::default();
        // The backends by name while anything holds them, as a pool keeps them.
        let mut names = vec![0, 1, 2];
        let mut known: HashMap<usize, Candidate> = HashMap::new();
        let mut balance = Chooser::new(Balance::LeastTunnels);
        let mut make = |names: &[usize], held: &[(usize, Claim)]| {
            known.retain(|name, _| {
                names.contains(name) || held.iter().any(|(held, _)| held == name)
            });
            Board::new(names.iter().map(|&name| {
                known.entry(name).or_insert_with(|| candidate(&slab, name, 256, 6)).clone()
            }))
        };
        let mut board = make(&names, &[]);
        let mut claims: Vec<(usize, Claim)> = Vec::new();
        for (step, which, name) in steps {
            match step {
                0..=2 => {
                    let index = balance.first(&board, None);
                    let claim = index.map(|index| (names[index], board.try_take(index).unwrap()));
                    claims.extend(claim);
                }
                3 if !claims.is_empty() => {
                    claims.swap_remove(which.index(claims.len()));
                }
                _ => {
                    match names.iter().position(|&one| one == name) {
                        Some(index) => drop(names.remove(index)),
                        None => names.insert(which.index(names.len() + 1), name),
                    }
                    let next = make(&names, &claims);
                    balance = balance.successor(Balance::LeastTunnels, &board, &next);
                    board = next;
                }
            }
            for (index, name) in names.iter().enumerate() {
                let held = claims.iter().filter(|(held, _)| held == name).count();
                prop_assert_eq!(board.count(index), held as u32);
                prop_assert!(held <= 6);
            }
        }
    }
}
