//! The wait while all backends are full.

use super::*;

/// Enters with no turn of its own: the place, or the ticket to wait with.
fn enter(pool: &Pool, now: Instant) -> Entered<Pick> {
    pool.enter(&mut pool.pick(now, None), 2)
}

/// Returns the pick that a ticket was served with.
fn served(ticket: &mut Ticket<Pick>) -> Option<Pick> {
    ticket.take()
}

#[test]
fn handshakes_wait_in_their_order_while_all_are_full() {
    let (now, mut settings) = (Instant::now(), settings(&["a:1"]));
    settings[0].max_tunnels = Some(1);
    let pool = create(settings.clone(), Balance::RoundRobin);
    let Entered::Place(held) = enter(&pool, now) else { panic!("there is a place") };
    let [Entered::Waits(mut one), Entered::Waits(mut two), Entered::Full] =
        [(); 3].map(|()| enter(&pool, now))
    else {
        panic!("two may wait")
    };
    #[cfg(feature = "metrics")]
    assert_eq!(pool.queue_len(), 2);
    assert!(served(&mut one).is_none());
    drop(held);
    let held = served(&mut one).unwrap();
    assert!(served(&mut two).is_none());
    // Nobody overtakes, though a reload has made room: that is for those who wait.
    settings[0].max_tunnels = Some(2);
    let more = next(&pool, settings, Balance::RoundRobin);
    let second = served(&mut two).unwrap();
    assert!(matches!(enter(&more, now), Entered::Waits(_)));
    assert!(first(&more, now).is_none());
    drop((held, second));
    assert!(first(&more, now).is_some());
}

#[test]
fn who_comes_later_lets_those_before_it_have_theirs_and_goes_on_after_its_own() {
    let (start, mut settings) = (Instant::now(), settings(&["a:1", "b:2", "c:3"]));
    settings[0].max_tunnels = Some(1);
    let rules = PoolRules { max_ejected_percent: 100, ..rules(Balance::RoundRobin) };
    let pool = Pool::new(settings, rules);
    assert!(eject(&pool, 1, start) && eject(&pool, 2, start));
    let _held = first(&pool, start).unwrap();
    let Entered::Waits(mut before) = enter(&pool, start) else { panic!("a is full") };
    // Two places, for one trial each, of which no event has told.
    let later = start + Duration::from_secs(13);
    let mut picks = pool.pick(later, None);
    let Entered::Place(own) = pool.enter(&mut picks, 2) else { panic!("there is a place") };
    let others = served(&mut before).unwrap();
    assert!(own.trial.is_some() && others.trial.is_some());
    let next = picks.next().unwrap();
    assert!(next.trial.is_none() && name(&next) == name(&others));
    assert!(picks.next().is_none());
}

#[test]
fn where_another_handshake_has_the_only_trial_one_that_is_out_of_use_is_tried() {
    let (start, settings) = (Instant::now(), settings(&["a:1", "b:2"]));
    let mut rules = rules(Balance::RoundRobin);
    rules.health.checks =
        Some(CheckRules { healthy_threshold: 1, unhealthy_threshold: 1, is_beyond_connect: false });
    let pool = Pool::new(settings, rules);
    assert!(eject(&pool, 0, start));
    assert!(backend(&pool, 1).on_check(Err(CheckError::Connect), start).is_some());
    let later = start + Duration::from_secs(13);
    let mut picks = pool.pick(later, None);
    let other = first(&pool, later).unwrap();
    assert!(other.trial.is_some() && name(&other) == "a:1");
    assert_eq!(picks.by_ref().filter(|pick| pick.trial.is_none()).count(), 2);
}

#[test]
fn who_waits_is_served_by_a_backend_that_comes_back() {
    let (start, mut settings) = (Instant::now(), settings(&["a:1", "b:2"]));
    settings[0].max_tunnels = Some(1);
    let pool = create(settings, Balance::RoundRobin);
    assert!(eject(&pool, 1, start));
    let held = first(&pool, start).unwrap();
    assert_eq!(name(&held), "a:1");
    // What is out of use is no place to go while others are only full.
    assert!(first(&pool, start).is_none());
    let Entered::Waits(mut ticket) = enter(&pool, start) else { panic!("all are full") };
    let until = pool.serve_queue(start).unwrap();
    assert!(served(&mut ticket).is_none() && until > start);
    // The queue is served by the clock of the day.
    backend(&pool, 1).on_success(until);
    let pick = served(&mut ticket).unwrap();
    assert_eq!(name(&pick), "b:2");
}

#[test]
fn a_session_that_is_at_a_backend_does_not_wait_behind_new_ones() {
    let (now, mut settings) = (Instant::now(), settings(&["a:1", "b:2"]));
    settings.iter_mut().for_each(|one| one.max_tunnels = Some(1));
    // It gets no new ones.
    settings[1].weight = 0;
    let pool = create(settings, Balance::Hash);
    let Entered::Place(_held) = enter(&pool, now) else { panic!("there is a place") };
    let Entered::Waits(_new) = enter(&pool, now) else { panic!("the one in use is full") };
    pool.bind(7, backend(&pool, 1));
    let of_session = || pool.enter(&mut pool.pick(now, Some(7)), 2);
    let Entered::Place(poll) = of_session() else { panic!("its backend has a place") };
    assert_eq!(name(&poll), "b:2");
    let Entered::Waits(_poll) = of_session() else { panic!("its backend is full") };
}
