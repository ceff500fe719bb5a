//! What every choice has to hold. [`many`] has threads, changes and properties.

mod many;

use std::collections::HashMap;

use super::board::WEIGHT_MAX;
use super::*;

/// A lease on a backend of a board.
struct Claim(SharedCount);

impl Board {
    fn try_take(&self, index: usize) -> Option<Claim> {
        self.try_increment(index).then(|| Claim(self.shared_count(index)))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.decrement();
    }
}

const ALGORITHMS: [Balance; 3] = [Balance::RoundRobin, Balance::LeastTunnels, Balance::Hash];

fn id(number: usize) -> u64 {
    key_of(format!("backend-{number}").as_bytes())
}

fn key(number: usize) -> u64 {
    key_of(&number.to_le_bytes())
}

fn candidate(slab: &CountSlab, number: usize, weight: u32, cap: u32) -> Candidate {
    Candidate { id: id(number), weight, cap, is_backup: false, count: slab.take() }
}

/// A board of primaries with these weights and no caps.
fn board(weights: &[u32]) -> Board {
    let slab = CountSlab::default();
    let weights = weights.iter().enumerate();
    Board::new(weights.map(|(number, &weight)| candidate(&slab, number, weight, NO_CAP)))
}

fn order(balance: &Chooser, board: &Board) -> Vec<usize> {
    balance.order(board, None).collect()
}

/// Chooses so often, and returns how often each backend was the first.
fn shares(balance: &Chooser, board: &Board, choices: usize) -> Vec<usize> {
    let mut shares = vec![0; board.len()];
    (0..choices).for_each(|_| shares[balance.first(board, None).unwrap()] += 1);
    shares
}

/// How often each backend is chosen by so many keys.
fn owners(balance: &Chooser, board: &Board, keys: usize) -> Vec<usize> {
    (0..keys).map(|number| balance.first(board, Some(key(number))).unwrap()).collect()
}

fn counts(board: &Board) -> Vec<u32> {
    (0..board.len()).map(|index| board.count(index)).collect()
}

#[test]
fn equal_backends_take_turns_and_each_is_tried_once() {
    let (balance, three) = (Chooser::default(), board(&[256; 3]));
    let orders = [(); 4].map(|()| order(&balance, &three));
    // Those that a lost backend leaves to the others are spread over them.
    assert_eq!(orders, [[0, 1, 2], [1, 0, 2], [2, 0, 1], [0, 2, 1]]);
    // The turns go on, as far as there are backends.
    let (two, four) = (board(&[256; 2]), board(&[256; 4]));
    let next = balance.successor(Balance::RoundRobin, &three, &four);
    assert_eq!(next.first(&four, None), Some(1));
    assert_eq!(next.first(&four, None), Some(2));
    let next = next.successor(Balance::RoundRobin, &four, &two);
    assert_eq!(order(&next, &two), [0, 1]);
    assert_eq!(Chooser::default().first(&board(&[]), None), None);
    assert_eq!(Chooser::default().first(&board(&[0, 0]), None), None);
}

#[test]
fn the_turns_of_a_missing_backend_are_shared() {
    let (balance, board) = (Chooser::default(), board(&[256; 5]));
    board.set_weight(2, 0);
    assert_eq!(shares(&balance, &board, 4000), [1000, 1000, 0, 1000, 1000]);
    board.set_weight(3, 0);
    assert_eq!(shares(&balance, &board, 3000), [1000, 1000, 0, 0, 1000]);
    board.set_weight(2, 256);
    assert_eq!(shares(&balance, &board, 4000), [1000, 1000, 1000, 0, 1000]);
}

#[test]
fn the_turns_of_a_full_backend_are_shared() {
    for weights in [[256; 3], [256, 512, 512]] {
        let slab = CountSlab::default();
        let caps = [NO_CAP, 2, NO_CAP].into_iter().enumerate();
        let board =
            Board::new(caps.map(|(number, cap)| candidate(&slab, number, weights[number], cap)));
        for algorithm in ALGORITHMS {
            let balance = Chooser::new(algorithm);
            let claims = [(); 2].map(|()| board.try_take(1).unwrap());
            assert!(board.try_take(1).is_none() && board.is_full(1) && !board.is_eligible(1));
            let expected = match algorithm {
                Balance::LeastTunnels => [300, 0, 300],
                _ if weights[0] == weights[2] => [300, 0, 300],
                _ => [200, 0, 400],
            };
            assert_eq!(shares(&balance, &board, 600), expected, "{algorithm:?}");
            assert_eq!(owners(&balance, &board, 100).iter().filter(|&&one| one == 1).count(), 0);
            drop(claims);
            assert!(shares(&balance, &board, 600)[1] >= 200);
        }
    }
}

#[test]
fn backups_wait_until_no_primary_is_eligible() {
    for algorithm in ALGORITHMS {
        for key in [None, Some(7)] {
            let slab = CountSlab::default();
            let candidates = (0..5).map(|number| {
                let candidate = candidate(&slab, number, 256, 1);
                Candidate { is_backup: number >= 3, ..candidate }
            });
            let (balance, board) = (Chooser::new(algorithm), Board::new(candidates));
            let sorted = || -> Vec<usize> {
                let mut order: Vec<_> = balance.order(&board, key).collect();
                order.sort_unstable();
                order
            };
            assert_eq!(sorted(), [0, 1, 2]);
            board.set_weight(0, 0);
            let _claim = board.try_take(1).unwrap();
            assert_eq!(sorted(), [2]);
            board.set_weight(2, 0);
            assert_eq!(sorted(), [3, 4]);
            // Unequal ones as well.
            board.set_weight(4, 100);
            assert_eq!(sorted(), [3, 4]);
            let _other = board.try_take(3).unwrap();
            assert_eq!(sorted(), [4]);
            board.set_weight(0, 256);
            assert_eq!(sorted(), [0]);
        }
    }
}

#[test]
fn unequal_turns_are_those_of_nginx() {
    let name = |(balance, board): (Chooser, Board), choices: usize| -> String {
        let names = (0..choices).map(|_| balance.first(&board, None).unwrap());
        names.map(|index| char::from(b'a' + index as u8)).collect()
    };
    assert_eq!(name((Chooser::default(), board(&[1280, 256, 256])), 14), "aabacaaaabacaa");
    assert_eq!(name((Chooser::default(), board(&[512, 256])), 6), "abaaba");
    assert_eq!(name((Chooser::default(), board(&[256, 1024])), 10), "bbabbbbabb");
    assert_eq!(name((Chooser::default(), board(&[256, 128, 0])), 6), "abaaba");
}

#[test]
fn further_tries_follow_the_weights_too() {
    let (balance, board) = (Chooser::default(), board(&[256, 512, 512, 1024]));
    let mut seconds = [0; 4];
    for _ in 0..1000 {
        let order = order(&balance, &board);
        seconds[order[1]] += 1;
        assert_eq!(order.len(), 4);
    }
    assert!(seconds.iter().all(|&second| second > 0), "{seconds:?}");
}

#[test]
fn the_turns_of_unequal_backends_go_on_across_reloads() {
    let slab = CountSlab::default();
    let candidates: Vec<_> = [1280, 256, 256]
        .into_iter()
        .enumerate()
        .map(|(number, weight)| candidate(&slab, number, weight, NO_CAP))
        .collect();
    let mut board = Board::new(candidates.clone());
    let mut balance = Chooser::default();
    let mut chosen = vec![0; 3];
    // With a reload after each choice the heaviest would be chosen always, if they began anew.
    for step in 0..70 {
        let index = balance.first(&board, None).unwrap();
        let rotated = |by: usize| candidates.iter().cycle().skip(by).take(3).cloned();
        chosen[(index + step) % 3] += 1;
        let next = Board::new(rotated(step + 1));
        balance = balance.successor(Balance::RoundRobin, &board, &next);
        board = next;
    }
    assert_eq!(chosen, [50, 10, 10]);
}

#[test]
fn the_least_loaded_is_chosen_and_equals_take_turns() {
    let (balance, board) = (Chooser::new(Balance::LeastTunnels), board(&[256; 100]));
    // Nothing is taken: all stay equal.
    assert_eq!(shares(&balance, &board, 300), [3; 100]);
    let claims: Vec<_> = (0..100)
        .filter(|index| ![10, 11].contains(index))
        .map(|index| board.try_take(index).unwrap())
        .collect();
    // Two neighbours of many.
    let shares = shares(&balance, &board, 300);
    assert_eq!((shares[10], shares[11]), (150, 150));
    assert_eq!(order(&balance, &board)[..2], [10, 11]);
    drop(claims);
}

#[test]
fn tunnels_converge_to_the_weights() {
    let (balance, board) = (Chooser::new(Balance::LeastTunnels), board(&[256, 512, 1024, 64]));
    let take = || board.try_take(balance.first(&board, None).unwrap()).unwrap();
    let mut claims: Vec<_> = (0..290).map(|_| take()).collect();
    assert_eq!(counts(&board), [40, 80, 160, 10]);
    // Later with another weight.
    board.set_weight(0, 1024);
    claims.extend((0..120).map(|_| take()));
    assert_eq!(counts(&board), [160, 80, 160, 10]);
    drop(claims);
    assert_eq!(counts(&board), [0; 4]);
}

#[test]
fn a_key_is_always_with_the_same_backend() {
    let names = ["chat-1:9000", "chat-2:9000", "chat-3:9000"];
    let keys = ["", "a", "192.0.2.1", "192.0.2.2", "2001:db8::1", "alice", "bob", "carol"];
    let slab = CountSlab::default();
    let of = |weights: [u32; 3]| -> Vec<_> {
        let board = Board::new(names.iter().zip(weights).map(|(name, weight)| Candidate {
            id: key_of(name.as_bytes()),
            ..candidate(&slab, 0, weight, NO_CAP)
        }));
        let balance = Chooser::new(Balance::Hash);
        let first = |key: &&str| balance.first(&board, Some(key_of(key.as_bytes()))).unwrap();
        keys.iter().map(first).collect()
    };
    // From another implementation, in floating point. Never change these: proxies of two versions
    // would disagree during an update.
    assert_eq!(of([256; 3]), [1, 0, 1, 0, 2, 2, 0, 2]);
    assert_eq!(of([256, 512, 1024]), [1, 0, 2, 0, 2, 2, 0, 2]);
}

#[test]
fn keys_are_shared_by_weight() {
    const KEYS: usize = 100_000;
    for (set, weights) in [
        vec![256; 2],
        vec![256; 10],
        vec![256; 100],
        vec![256, 512],
        vec![256, 512, 768, 1280, 128, 0],
        vec![16_777_216, 256 * 1000, 256 * 3000],
        (1..=40).map(|weight| weight * 100).collect(),
    ]
    .into_iter()
    .enumerate()
    {
        let board = board(&weights);
        let balance = Chooser::new(Balance::Hash);
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let mut firsts = vec![0_f64; weights.len()];
        let mut pairs: HashMap<_, f64> = HashMap::new();
        for number in 0..KEYS {
            let mut order = balance.order(&board, Some(key(number)));
            let (first, second) = (order.next().unwrap(), order.next().unwrap());
            firsts[first] += 1.0;
            *pairs.entry((first, second)).or_default() += 1.0;
        }
        let share = |index: usize| f64::from(weights[index]) / total;
        // Each within 4.5 standard deviations.
        for (index, &first) in firsts.iter().enumerate() {
            let (share, keys) = (share(index), KEYS as f64);
            let bound = 4.5 * (share * (1.0 - share) * keys).sqrt();
            assert!((first - share * keys).abs() <= bound, "set {set}: {index} has {first}");
        }
        // As a whole: chi square of the pairs of first and second, which shows that the keys of one
        // that fails are shared by weight as well.
        let (mut chi_square, mut freedom) = (0.0, -1.0_f64);
        for first in 0..weights.len() {
            for second in (0..weights.len()).filter(|&second| second != first) {
                let expected = share(first) * share(second) / (1.0 - share(first)) * KEYS as f64;
                if expected > 5.0 {
                    let found = pairs.get(&(first, second)).copied().unwrap_or_default();
                    chi_square += (found - expected).powi(2) / expected;
                    freedom += 1.0;
                }
            }
        }
        let bound = freedom + 4.5 * f64::sqrt(2.0 * freedom.max(1.0));
        assert!(chi_square <= bound, "set {set}: chi square {chi_square} of {freedom}");
    }
}

#[test]
fn without_a_key_they_take_turns() {
    let balance = Chooser::new(Balance::Hash);
    assert_eq!(shares(&balance, &board(&[256; 4]), 400), [100; 4]);
    assert_eq!(shares(&balance, &board(&[256, 768]), 400), [100, 300]);
}

#[test]
fn the_greatest_weights_and_pools_do_not_overflow() {
    let mut weights = vec![u32::MAX; 3000];
    weights[7] = 1;
    let board = board(&weights);
    assert_eq!(board.weight(0), WEIGHT_MAX);
    for algorithm in ALGORITHMS {
        let balance = Chooser::new(algorithm);
        let mut seen = vec![false; 3000];
        for _ in 0..3 {
            for number in 0..3000 {
                seen[balance.first(&board, None).unwrap()] = true;
                seen[balance.first(&board, Some(key(number))).unwrap()] = true;
            }
        }
        assert!(seen.iter().filter(|&&seen| seen).count() >= 1500, "{algorithm:?}");
    }
    // Most of them full: the search by keys changes its way.
    let slab = CountSlab::default();
    for weight in [256, 257] {
        let caps = (0..3000).map(|number| if number % 50 == 0 { 1 } else { 0 });
        let board = Board::new(caps.enumerate().map(|(number, cap)| {
            candidate(&slab, number, if number == 0 { weight } else { 256 }, cap)
        }));
        let open = Board::new((0..60).map(|number| {
            candidate(&slab, number * 50, if number == 0 { weight } else { 256 }, NO_CAP)
        }));
        let balance = Chooser::new(Balance::Hash);
        for number in 0..1000 {
            let key = Some(key(number));
            let first = balance.first(&open, key).map(|index| index * 50);
            assert_eq!(balance.first(&board, key), first);
        }
    }
}

#[test]
fn the_handshakes_of_a_lost_backend_are_spread_over_all_others() {
    let (balance, four) = (Chooser::default(), board(&[256; 4]));
    let mut counts = [0; 4];
    for _ in 0..120 {
        // The first backend is lost, and is found so each time.
        let second = balance.order(&four, None).find(|&index| index != 0);
        counts[second.unwrap()] += 1;
    }
    assert_eq!(counts, [0, 40, 40, 40]);
}
