mod queue;

use std::time::Duration;

use super::*;
use crate::backend::health::CheckRules;
use crate::backend::health::HealthState;
use crate::backend::health::reasons::{CheckError, FailureKind};
use crate::backend::queue::Ticket;

fn settings(names: &[&str]) -> Vec<BackendSettings> {
    let one = |name: &&str| BackendSettings {
        address: Address::backend(name).unwrap(),
        watched: None,
        weight: 1,
        max_tunnels: None,
        is_backup: false,
    };
    names.iter().map(one).collect()
}

/// Rules by which two failures eject for 10 s, more or less.
fn rules(balance: Balance) -> PoolRules {
    let (eject, trial_timeout) = (Duration::from_secs(10), Duration::from_secs(60));
    let health = HealthRules { max_failures: 2, eject, trial_timeout, ..HealthRules::default() };
    PoolRules { balance, health, max_ejected_percent: 50 }
}

fn create(settings: Vec<BackendSettings>, balance: Balance) -> Arc<Pool> {
    Pool::new(settings, rules(balance))
}

fn next(pool: &Pool, settings: Vec<BackendSettings>, balance: Balance) -> Arc<Pool> {
    pool.successor(settings, rules(balance), Instant::now()).pool
}

fn pool(names: &[&str]) -> Arc<Pool> {
    create(settings(names), Balance::RoundRobin)
}

fn first(pool: &Pool, now: Instant) -> Option<Pick> {
    pool.pick(now, None).next()
}

fn name(pick: &Pick) -> &str {
    pick.lease.backend().name()
}

fn backend(pool: &Pool, index: usize) -> &Backend {
    &pool.members[index].backend
}

/// Fails as often as it takes to be ejected; returns whether it is.
fn eject(pool: &Pool, index: usize, now: Instant) -> bool {
    let backend = backend(pool, index);
    let changes = [(); 2].map(|()| backend.on_failure(FailureKind::Connect, now));
    assert!(changes[0].is_none());
    changes[1].is_some_and(|change| change.to.is_ejected())
}

fn order(pool: &Pool, now: Instant, key: Option<u64>) -> String {
    pool.pick(now, key).map(|pick| name(&pick)[..1].to_owned()).collect()
}

#[test]
fn each_handshake_begins_one_backend_further() {
    let (pool, now) = (pool(&["a:1", "b:2", "c:3"]), Instant::now());
    let orders = [(); 4].map(|()| order(&pool, now, None));
    assert_eq!(orders, ["abc", "bac", "cab", "acb"]);
    assert_eq!(pool.to_string(), "a:1,b:2,c:3");
}

#[test]
fn an_ejected_backend_comes_last_and_the_others_share_its_turns() {
    let (pool, start) = (pool(&["a:1", "b:2", "c:3"]), Instant::now());
    assert!(eject(&pool, 1, start));
    let orders = [(); 4].map(|()| order(&pool, start, None));
    assert_eq!(orders, ["acb", "cab", "acb", "cab"]);
    #[cfg(feature = "metrics")]
    assert_eq!([0, 1, 2].map(|index| backend(&pool, index).ejections()), [0, 1, 0]);
    // One of three is what half of them is at most.
    assert!(!eject(&pool, 0, start));
    assert_eq!(order(&pool, start, None), "acb");
}

#[test]
fn one_handshake_tries_a_backend_whose_ejection_is_over() {
    let (pool, start) = (pool(&["a:1", "b:2"]), Instant::now());
    assert!(eject(&pool, 1, start));
    let later = start + Duration::from_secs(13);
    let trial = loop {
        let pick = first(&pool, later).unwrap();
        if name(&pick) == "b:2" {
            break pick;
        }
    };
    assert!(trial.trial.is_some());
    let others = [(); 4].map(|()| name(&first(&pool, later).unwrap()).to_owned());
    assert_eq!(others, ["a:1", "a:1", "a:1", "a:1"]);
    // Given up, the next one tries it.
    drop(trial);
    let others = [(); 4].map(|()| first(&pool, later).unwrap());
    assert_eq!(others.iter().filter(|pick| pick.trial.is_some()).count(), 1);
    assert!(backend(&pool, 1).on_success(later).is_some());
    drop(others);
    let orders = [(); 2].map(|()| order(&pool, later, None));
    assert!(orders.iter().any(|order| order == "ba"), "{orders:?}");
    assert!(pool.members.iter().all(|one| !one.backend.is_down(later)));
}

#[test]
fn backends_that_are_all_out_are_tried_in_turn() {
    let (start, settings) = (Instant::now(), settings(&["a:1", "b:2"]));
    let mut rules = rules(Balance::RoundRobin);
    rules.health.checks =
        Some(CheckRules { healthy_threshold: 1, unhealthy_threshold: 1, is_beyond_connect: false });
    let pool = Pool::new(settings, rules);
    for index in [0, 1] {
        assert!(backend(&pool, index).on_check(Err(CheckError::Connect), start).is_some());
    }
    assert!(!pool.has_usable(start));
    let orders = [(); 3].map(|()| order(&pool, start, None));
    assert_eq!(orders, ["ab", "ba", "ab"]);
    backend(&pool, 1).on_check(Ok(()), start);
    assert!(pool.has_usable(start));
    assert_eq!([(); 2].map(|()| order(&pool, start, None)), ["ba", "ba"]);
}

#[test]
fn failures_count_only_where_the_backend_is_one_of_the_pool() {
    let (pool, start) = (pool(&["a:1", "b:2", "c:3"]), Instant::now());
    let held = first(&pool, start).unwrap();
    assert_eq!(name(&held), "a:1");
    let without = next(&pool, settings(&["b:2", "c:3"]), Balance::RoundRobin);
    assert!(!eject(&pool, 0, start));
    // Back again, it begins where it was.
    let with = next(&without, settings(&["a:1", "b:2", "c:3"]), Balance::RoundRobin);
    assert!(eject(&with, 0, start));
}

#[test]
fn backups_and_backends_at_their_limits_are_passed_over() {
    let now = Instant::now();
    let mut settings = settings(&["s:1", "a:1", "b:1"]);
    settings[0].is_backup = true;
    settings[1].max_tunnels = Some(1);
    settings[2].max_tunnels = Some(2);
    let pool = create(settings, Balance::RoundRobin);
    assert_eq!(order(&pool, now, None), "abs");
    let leases: Vec<_> = (0..4).map(|_| first(&pool, now).unwrap()).collect();
    let mut names: Vec<_> = leases.iter().map(name).collect();
    names.sort_unstable();
    // Where all others are full, the backup serves.
    assert_eq!(names, ["a:1", "b:1", "b:1", "s:1"]);
    assert_eq!(order(&pool, now, None), "s");
    drop(leases);
    assert_eq!(order(&pool, now, None).len(), 3);
    // A backup comes before those that are out of use, and after those that are not.
    assert!(eject(&pool, 0, now));
    assert_eq!(order(&pool, now, None), "bsa");
}

#[test]
fn nobody_gets_a_lease_where_all_are_full() {
    let mut settings = settings(&["a:1"]);
    settings[0].max_tunnels = Some(1);
    let (pool, now) = (create(settings.clone(), Balance::RoundRobin), Instant::now());
    let held = first(&pool, now).unwrap();
    assert!(first(&pool, now).is_none());
    // Right across a reload, which may raise the limit.
    let same = next(&pool, settings.clone(), Balance::LeastTunnels);
    assert!(first(&same, now).is_none());
    settings[0].max_tunnels = Some(2);
    let more = next(&same, settings, Balance::LeastTunnels);
    let second = first(&more, now).unwrap();
    assert!(first(&more, now).is_none());
    drop((held, pool));
    assert!(first(&same, now).is_none());
    drop(second);
    assert!(first(&same, now).is_some());
}

#[test]
fn each_rule_has_its_choice() {
    let now = Instant::now();
    let least = create(settings(&["a:1", "b:1", "c:1"]), Balance::LeastTunnels);
    let mut held: Vec<_> = (0..3).map(|_| first(&least, now).unwrap()).collect();
    let freed = held.remove(1);
    let freed_name = name(&freed).to_owned();
    drop(freed);
    assert_eq!(name(&first(&least, now).unwrap()), freed_name);

    let hash = create(settings(&["a:1", "b:1", "c:1"]), Balance::Hash);
    let firsts = |key| -> Vec<_> { (0..5).map(|_| order(&hash, now, key)).collect() };
    let of_key = firsts(Some(key_of(b"room 7")));
    assert!(of_key.iter().all(|order| *order == of_key[0]), "{of_key:?}");
    let without: std::collections::BTreeSet<_> =
        firsts(None).iter().map(|order| order[..1].to_owned()).collect();
    assert_eq!(without.len(), 3);

    let mut settings = settings(&["a:1", "b:1"]);
    settings[0].weight = 2;
    let weighted = create(settings, Balance::RoundRobin);
    let firsts: String = (0..6).map(|_| order(&weighted, now, None)[..1].to_owned()).collect();
    assert_eq!(firsts.matches('a').count(), 4);
    assert!(!firsts.contains("aaa"), "{firsts}");
}

#[test]
fn a_successor_keeps_turns_and_counts_and_what_is_still_held() {
    let now = Instant::now();
    let next = |pool: &Pool, names: &[&str]| next(pool, settings(names), Balance::RoundRobin);
    let first = pool(&["a:1", "b:2", "c:3"]);
    let tunnel = first.pick(now, None).next().unwrap().lease.into_tunnel();
    let second = next(&first, &["c:3", "b:2"]);
    // The turn that comes next begins with the second one.
    assert_eq!(order(&second, now, None), "bc");
    assert!(Arc::ptr_eq(&second.members[0].backend, &first.members[2].backend));
    assert_eq!(second.tunnels(), 1);
    drop(first);
    // Back again, it has the tunnel that it has had all the while.
    let third = next(&next(&second, &["b:2"]), &["a:1", "a:1"]);
    assert_eq!(third.backends().map(Backend::tunnels).collect::<Vec<_>>(), [1, 0]);
    let fourth = next(&third, &["b:2"]);
    drop((second, third));
    assert_eq!(fourth.removed().map(|one| one.name().to_owned()).collect::<Vec<_>>(), ["a:1"]);
    #[cfg(feature = "metrics")]
    assert_eq!(fourth.leaving().count(), 1);
    drop(tunnel);
    assert_eq!((fourth.tunnels(), fourth.removed().count()), (0, 0));
    assert_eq!(next(&fourth, &["b:2"]).removed.len(), 0);
}

#[test]
fn a_lease_is_taken_when_its_backend_is_reached() {
    let pool = pool(&["a:1", "b:2"]);
    let held = |index: usize| pool.members[index].backend.leases.get();
    let mut candidates = pool.pick(Instant::now(), None);
    assert_eq!((held(0), held(1)), (0, 0));
    let first = candidates.next().unwrap();
    assert_eq!((held(0), held(1)), (1, 0));
    drop((first, candidates));
    assert_eq!((held(0), held(1)), (0, 0));
}

#[test]
fn a_backend_that_was_added_starts_slowly_unless_it_is_what_a_name_has_come_to() {
    let now = Instant::now();
    let mut rules = rules(Balance::RoundRobin);
    rules.health.slow_start = Duration::from_secs(60);
    let weight = |pool: &Pool, index: usize| {
        pool.update_weights(now);
        pool.board.weight(index)
    };
    let mut settings = settings(&["name:1", "b:2"]);
    let before = Pool::new(settings.clone(), rules);
    assert_eq!([0, 1].map(|index| weight(&before, index)), [WEIGHT_ONE; 2]);
    settings[0].address = Address::backend("192.0.2.1:1").unwrap();
    settings[0].watched = Some("name:1".into());
    let Succession { pool: resolved, added, removed, .. } =
        before.successor(settings.clone(), rules, now);
    assert_eq!((added.len(), removed.len()), (0, 0));
    assert_eq!([0, 1].map(|index| weight(&resolved, index)), [WEIGHT_ONE; 2]);
    assert_eq!(backend(&resolved, 0).host(), "name:1");
    settings[1].address = Address::backend("c:3").unwrap();
    let Succession { pool: after, added, removed, .. } = resolved.successor(settings, rules, now);
    let names =
        |of: &[Arc<Backend>]| of.iter().map(|one| one.name().to_owned()).collect::<Vec<_>>();
    assert_eq!((names(&added), names(&removed)), (vec!["c:3".to_owned()], vec!["b:2".to_owned()]));
    assert_eq!([0, 1].map(|index| weight(&after, index)), [WEIGHT_ONE, 26]);
    after.update_weights(now + Duration::from_secs(60));
    assert_eq!(after.board.weight(1), WEIGHT_ONE);
}

#[test]
fn a_backend_that_is_added_again_starts_slowly_again() {
    let now = Instant::now();
    let mut rules = rules(Balance::RoundRobin);
    rules.health.slow_start = Duration::from_secs(60);
    let all = settings(&["a:1", "b:2"]);
    let first = Pool::new(all.clone(), rules);
    let held = first_of(&first, "b:2", now);
    assert!(held.lease.backend().on_success(now).is_some());
    let without = first.successor(settings(&["a:1"]), rules, now).pool;
    let Succession { pool: again, added, .. } = without.successor(all.clone(), rules, now);
    assert!(Arc::ptr_eq(&added[0], &held.lease.backend));
    again.update_weights(now);
    assert_eq!([0, 1].map(|index| again.board.weight(index)), [WEIGHT_ONE, 26]);
    // One that stays is not ramped anew.
    let later = now + Duration::from_secs(60);
    let stays = again.successor(all, rules, later).pool;
    stays.update_weights(later);
    assert_eq!([0, 1].map(|index| stays.board.weight(index)), [WEIGHT_ONE; 2]);
}

/// Returns the first pick that is this backend.
fn first_of(pool: &Pool, wanted: &str, now: Instant) -> Pick {
    let picks = (0..pool.members.len()).filter_map(|_| first(pool, now));
    picks.into_iter().find(|pick| name(pick) == wanted).unwrap()
}

#[test]
fn a_backup_that_nobody_needs_does_not_keep_others_from_being_ejected() {
    let (start, mut settings) = (Instant::now(), settings(&["a:1", "b:2", "s:3"]));
    settings[2].is_backup = true;
    let pool = create(settings, Balance::RoundRobin);
    assert!(eject(&pool, 2, start));
    assert!(!eject(&pool, 0, start));
    // Its trial comes when the others are full, or out of use: perhaps never.
    let later = start + Duration::from_secs(13);
    assert!(backend(&pool, 0).on_failure(FailureKind::Connect, later).is_some());
    assert_eq!(order(&pool, later, None), "bsa");
    // It has yet to show that it is one that others can do with.
    assert!(!eject(&pool, 1, later));
}

#[test]
fn rules_that_are_gone_free_those_that_they_had_taken_out() {
    let (pool, now) = (pool(&["a:1", "b:2"]), Instant::now());
    assert!(eject(&pool, 0, now));
    let mut rules = rules(Balance::RoundRobin);
    rules.health.max_failures = 0;
    let Succession { pool, changes, .. } = pool.successor(settings(&["a:1", "b:2"]), rules, now);
    let changed: Vec<_> = changes.iter().map(|(one, change)| (one.name(), change.to)).collect();
    assert_eq!(changed, [("a:1", HealthState::Unknown)]);
    assert_eq!(order(&pool, now, None).len(), 2);
    assert!(!eject_without_rules(&pool, now));
}

fn eject_without_rules(pool: &Pool, now: Instant) -> bool {
    (0..9).any(|_| backend(pool, 0).on_failure(FailureKind::Connect, now).is_some())
}

#[test]
fn evening_out_brings_handshakes_to_those_with_few_tunnels() {
    let (pool, now) = (pool(&["a:1", "b:2"]), Instant::now());
    let mut held: Vec<_> = (0..4).map(|_| first(&pool, now).unwrap()).collect();
    held.retain(|pick| name(pick) == "a:1");
    pool.even_out(true);
    held.extend((0..2).map(|_| first(&pool, now).unwrap()));
    assert_eq!(held.iter().filter(|pick| name(pick) == "b:2").count(), 2);
    pool.even_out(false);
    let names: Vec<_> = (0..4).map(|_| name(&first(&pool, now).unwrap()).to_owned()).collect();
    assert_eq!(names.iter().filter(|name| *name == "a:1").count(), 2);
}

#[test]
fn a_key_comes_to_the_backend_that_it_is_bound_to() {
    let (pool, now) = (create(settings(&["a:1", "b:2", "c:3"]), Balance::Hash), Instant::now());
    let by_hash = order(&pool, now, Some(7));
    let last = by_hash[2..].to_owned();
    let index = usize::from(last.as_bytes()[0] - b'a');
    pool.bind(7, backend(&pool, index));
    let bound = format!("{last}{}", &by_hash[..2]);
    assert_eq!(order(&pool, now, Some(7)), bound);
    // Of others nothing has changed.
    let fresh = create(settings(&["a:1", "b:2", "c:3"]), Balance::Hash);
    assert!((8..40).all(|key| order(&pool, now, Some(key)) == order(&fresh, now, Some(key))));

    // Through a reload; one that new sessions do not come to keeps those that it has.
    let mut closed = settings(&["a:1", "b:2", "c:3"]);
    closed[index].weight = 0;
    let closed = next(&pool, closed, Balance::Hash);
    assert_eq!(order(&closed, now, Some(7))[..1], last);
    assert_ne!(order(&closed, now, Some(8))[..1], last);
    let other = next(&closed, settings(&["a:1", "b:2", "c:3"]), Balance::Hash);
    assert_eq!(order(&other, now, Some(7)), bound);

    // Out of use it comes last.
    assert!(eject(&other, index, now));
    assert_eq!(order(&other, now, Some(7)), by_hash);
    // Back at its address, it has its sessions again.
    let mut without = settings(&["a:1", "b:2", "c:3"]);
    without.remove(index);
    let without = next(&other, without, Balance::Hash);
    assert_eq!(order(&without, now, Some(7)), by_hash[..2]);
    drop((pool, closed, other));
    let again = next(&without, settings(&["a:1", "b:2", "c:3"]), Balance::Hash);
    assert_eq!(order(&again, now, Some(7)), bound);
}
