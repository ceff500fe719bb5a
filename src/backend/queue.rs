//! The handshakes that wait while all backends are full, in the order in which they came.
//!
//! The queue knows no backend. A **place** is a value that the pool takes for somebody, such as a
//! lease, and whose drop gives it back; whoever waits is handed one that has been taken for them,
//! so that nobody else can have it meanwhile. A closure of the caller takes places:
//!
//! - [`HandshakeQueue::enter`] takes one, if nobody waits, or else joins the queue.
//! - [`HandshakeQueue::serve`], called after places have become free, takes them for those who
//!   wait.
//!
//! No place is lost. Whoever joins serves the queue *after* it shows them, and whoever frees a
//! place serves it *after* the place is free; with a fence in between on either side (SeqCst) one
//! of the two sees the other. To serve means to take places and to hand them over, under the lock,
//! until either nobody waits or nothing is free. A place in the hands of a [`Ticket`] that is
//! dropped is dropped as well, and thereby free for the next one.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::lock::lock;

/// A queue for places of the type `P`, shared by all workers.
///
/// Places are taken under the queue's lock: the closures that take them must neither enter the
/// queue, nor serve it, nor drop a place. A closure may take a place for anybody who waits.
pub(crate) struct HandshakeQueue<P> {
    /// Number of those who wait, as of the last change. Written under the lock.
    waiting: AtomicUsize,
    state: Mutex<QueueState<P>>,
}

/// Way into the queue, or past it.
#[derive(Debug)]
pub(crate) enum Entered<P> {
    /// There was a place, and nobody waited.
    Place(P),
    /// A place will be handed over when it is its turn.
    Waits(Ticket<P>),
    /// As many wait as may.
    Full,
}

/// A place in the queue. Resolves to the place that was waited for; its drop leaves the queue.
pub(crate) struct Ticket<P> {
    queue: Arc<HandshakeQueue<P>>,
    number: u64,
}

struct QueueState<P> {
    /// Number of the next ticket.
    next: u64,
    /// Those who wait, the oldest first, with their wakers once they have been polled.
    waiting: BTreeMap<u64, Option<Waker>>,
    /// Places that were handed over, until their tickets are polled or dropped.
    served: HashMap<u64, P>,
}

impl<P> HandshakeQueue<P> {
    /// Returns the number of those who wait.
    pub(crate) fn len(&self) -> usize {
        // Relaxed: it guards no other memory.
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns whether somebody waits, for whoever has freed a place.
    pub(crate) fn has_waiting(&self) -> bool {
        // After it the queue is seen as it is, or else whoever is about to join sees the place.
        fence(Ordering::SeqCst);
        self.len() > 0
    }

    /// Takes a place with `take`, if nobody waits and there is one; or else joins the queue, unless
    /// `max_waiting` do so already. With zero nobody waits.
    pub(crate) fn enter(
        self: &Arc<Self>,
        max_waiting: usize,
        mut take: impl FnMut() -> Option<P>,
    ) -> Entered<P> {
        if self.len() == 0
            && let Some(place) = take()
        {
            return Entered::Place(place);
        }
        let Some(mut ticket) = self.join(max_waiting) else { return Entered::Full };
        self.serve(take);
        match ticket.take() {
            Some(place) => Entered::Place(place),
            None => Entered::Waits(ticket),
        }
    }

    /// Joins the queue, unless `max_waiting` have done so already.
    fn join(self: &Arc<Self>, max_waiting: usize) -> Option<Ticket<P>> {
        let mut state = lock(&self.state);
        if state.waiting.len() >= max_waiting {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, None);
        self.publish(&state);
        Some(Ticket { queue: Arc::clone(self), number })
    }

    /// Hands places over to those who wait, the oldest first, for as long as `take` finds any. To
    /// be called after a place has become free in any way: a tunnel's end, a backend that came
    /// back, a higher limit. While nobody waits it costs a fence and a load.
    pub(crate) fn serve(&self, mut take: impl FnMut() -> Option<P>) {
        if !self.has_waiting() {
            return;
        }
        let mut wakers = Vec::new();
        let mut state = lock(&self.state);
        while let Some((&number, _)) = state.waiting.first_key_value()
            && let Some(place) = take()
        {
            wakers.extend(state.waiting.remove(&number).flatten());
            state.served.insert(number, place);
        }
        self.publish(&state);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn publish(&self, state: &QueueState<P>) {
        // Relaxed: the fences order it where order matters.
        self.waiting.store(state.waiting.len(), Ordering::Relaxed);
    }
}

impl<P> Ticket<P> {
    /// Takes the place that was handed over, if one was: a last look when time is up.
    pub(crate) fn take(&mut self) -> Option<P> {
        lock(&self.queue.state).served.remove(&self.number)
    }
}

impl<P> Future for Ticket<P> {
    type Output = P;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<P> {
        let mut state = lock(&self.queue.state);
        if let Some(place) = state.served.remove(&self.number) {
            return Poll::Ready(place);
        }
        let waker = state.waiting.get_mut(&self.number);
        let old = waker.and_then(|waker| waker.replace(context.waker().clone()));
        // The drop of a waker is somebody else's code.
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl<P> Drop for Ticket<P> {
    fn drop(&mut self) {
        let mut state = lock(&self.queue.state);
        let waker = state.waiting.remove(&self.number);
        self.queue.publish(&state);
        let place = state.served.remove(&self.number);
        // The drop of a place serves the queue, which takes the lock.
        drop(state);
        drop((waker, place));
    }
}

impl<P> Default for HandshakeQueue<P> {
    fn default() -> Self {
        let state = QueueState { next: 0, waiting: BTreeMap::new(), served: HashMap::new() };
        Self { waiting: AtomicUsize::new(0), state: Mutex::new(state) }
    }
}

impl<P> fmt::Debug for HandshakeQueue<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeQueue").field("waiting", &self.len()).finish_non_exhaustive()
    }
}

impl<P> fmt::Debug for Ticket<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Wake;
    use std::thread;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    /// A counter of free places with a queue, as a pool is.
    #[derive(Debug, Default)]
    struct Pool {
        free: AtomicUsize,
        queue: Arc<HandshakeQueue<Held>>,
    }

    /// A place, free again when it is dropped.
    #[derive(Debug)]
    struct Held(Arc<Pool>);

    impl Pool {
        fn new(free: usize) -> Arc<Self> {
            Arc::new(Self { free: AtomicUsize::new(free), ..Self::default() })
        }

        fn take(self: &Arc<Self>) -> Option<Held> {
            let less = |free: usize| free.checked_sub(1);
            let taken = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            taken.is_ok().then(|| Held(Arc::clone(self)))
        }

        fn enter(self: &Arc<Self>, max_waiting: usize) -> Entered<Held> {
            self.queue.enter(max_waiting, || self.take())
        }

        fn free(self: &Arc<Self>) {
            self.free.fetch_add(1, Ordering::Relaxed);
            self.queue.serve(|| self.take());
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.free();
        }
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wakes its thread.
    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn waits(pool: &Arc<Pool>) -> Ticket<Held> {
        match pool.enter(usize::MAX) {
            Entered::Waits(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn place(pool: &Arc<Pool>) -> Held {
        match pool.enter(0) {
            Entered::Place(place) => place,
            other => panic!("{other:?}"),
        }
    }

    fn poll(ticket: &mut Ticket<Held>, waker: &Waker) -> Poll<Held> {
        Pin::new(ticket).poll(&mut Context::from_waker(waker))
    }

    fn is_ready(ticket: &mut Ticket<Held>) -> bool {
        poll(ticket, Waker::noop()).is_ready()
    }

    #[test]
    fn while_nobody_waits_the_lock_is_not_taken() {
        let pool = Pool::new(1);
        let _held = lock(&pool.queue.state);
        // With the lock taken it would wait for ever.
        drop(place(&pool));
        assert_eq!(pool.free.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn places_are_handed_over_in_the_order_of_coming() {
        let pool = Pool::new(2);
        let (first, second) = (place(&pool), place(&pool));
        let mut tickets = [(); 3].map(|()| waits(&pool));
        assert_eq!(tickets.each_mut().map(is_ready), [false; 3]);
        drop(first);
        // It is not free: a newcomer does not get it, though nobody has fetched it yet.
        assert_eq!(pool.queue.len(), 2);
        let last = waits(&pool);
        drop(second);
        let served = tickets.each_mut().map(|ticket| ticket.take());
        assert_eq!(served.each_ref().map(Option::is_some), [true, true, false]);
        drop(served);
        assert!(is_ready(&mut tickets[2]));
        drop((tickets, last));
        assert_eq!((pool.queue.len(), pool.free.load(Ordering::Relaxed)), (0, 2));
    }

    #[test]
    fn a_newcomer_does_not_overtake_one_who_was_served() {
        let pool = Pool::new(1);
        let held = place(&pool);
        let mut ticket = waits(&pool);
        drop(held);
        assert_eq!(pool.queue.len(), 0);
        assert!(matches!(pool.enter(0), Entered::Full));
        assert!(is_ready(&mut ticket));
    }

    #[test]
    fn a_newcomer_serves_those_before_it_first() {
        let pool = Pool::new(0);
        let mut ticket = waits(&pool);
        // Free, but the thread that freed it has not come to serve the queue.
        pool.free.fetch_add(1, Ordering::Relaxed);
        let _newcomer = waits(&pool);
        assert!(ticket.take().is_some());
    }

    #[test]
    fn as_many_wait_as_may() {
        let pool = Pool::new(0);
        assert!(matches!(pool.enter(0), Entered::Full));
        let (first, second) = (pool.enter(2), pool.enter(2));
        assert!(matches!((&first, &second), (Entered::Waits(_), Entered::Waits(_))));
        assert!(matches!(pool.enter(2), Entered::Full));
        drop(first);
        assert!(matches!(pool.enter(2), Entered::Waits(_)), "whoever leaves makes place");
        assert_eq!(pool.queue.len(), 1);
    }

    #[test]
    fn a_ticket_that_is_dropped_passes_its_place_on() {
        let pool = Pool::new(0);
        let [first, second, third] = [(); 3].map(|()| waits(&pool));
        let mut third = third;
        drop(second);
        pool.free();
        assert!(!is_ready(&mut third));
        drop(first);
        assert!(is_ready(&mut third));
        assert_eq!(pool.free.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_latest_waker_is_woken_once() {
        let pool = Pool::new(0);
        let mut ticket = waits(&pool);
        let counts = [(); 2].map(|()| Arc::new(Count::default()));
        for count in &counts {
            assert!(poll(&mut ticket, &Arc::clone(count).into()).is_pending());
        }
        pool.free();
        pool.free();
        assert_eq!(counts.each_ref().map(|count| count.0.load(Ordering::Relaxed)), [0, 1]);
        assert_eq!(counts.each_ref().map(Arc::strong_count), [1, 1], "no waker is kept");
    }

    #[test]
    fn a_place_that_becomes_free_between_look_and_wait_is_found() {
        let pool = Pool::new(0);
        let mut looks = 0;
        let entered = pool.queue.enter(1, || {
            looks += 1;
            if looks > 1 {
                return pool.take();
            }
            // As another worker does it in this very moment, which sees nobody wait.
            pool.free();
            None
        });
        assert!(matches!(entered, Entered::Place(_)));
        assert_eq!(pool.queue.len(), 0);
    }

    #[test]
    fn several_places_serve_several() {
        let pool = Pool::new(0);
        let mut tickets = [(); 4].map(|()| waits(&pool));
        pool.free.fetch_add(3, Ordering::Relaxed);
        pool.queue.serve(|| pool.take());
        let served = tickets.each_mut().map(|ticket| ticket.take());
        assert_eq!(served.each_ref().map(Option::is_some), [true, true, true, false]);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Enter(usize),
        Poll(usize),
        Leave(usize),
        Free(usize),
        Add,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0_usize..6).prop_map(Step::Enter),
            3 => any::<usize>().prop_map(Step::Poll),
            2 => any::<usize>().prop_map(Step::Leave),
            4 => any::<usize>().prop_map(Step::Free),
            1 => Just(Step::Add),
        ]
    }

    proptest! {
        #[test]
        fn no_order_loses_a_place_or_somebody_who_waits(
            mut total in 0_usize..4,
            steps in prop::collection::vec(step(), 0..120),
        ) {
            let pool = Pool::new(total);
            let mut held: Vec<Held> = Vec::new();
            // The queue as it has to be: tickets that wait, in order, and those that were served.
            let (mut waiting, mut served) = (VecDeque::new(), Vec::new());
            let mut tickets: Vec<(usize, Ticket<Held>)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Enter(max) => match pool.enter(max) {
                        Entered::Place(place) => {
                            prop_assert!(waiting.is_empty());
                            held.push(place);
                        }
                        Entered::Waits(ticket) => {
                            prop_assert!(waiting.len() < max);
                            waiting.push_back(number);
                            tickets.push((number, ticket));
                        }
                        Entered::Full => prop_assert!(waiting.len() >= max),
                    },
                    Step::Poll(index) if !tickets.is_empty() => {
                        let index = index % tickets.len();
                        let (number, ticket) = &mut tickets[index];
                        let is_served = served.contains(number);
                        match poll(ticket, Waker::noop()) {
                            Poll::Ready(place) => {
                                prop_assert!(is_served);
                                held.push(place);
                                served.retain(|one| one != number);
                                tickets.remove(index);
                            }
                            Poll::Pending => prop_assert!(!is_served),
                        }
                    }
                    Step::Leave(index) if !tickets.is_empty() => {
                        let (number, ticket) = tickets.remove(index % tickets.len());
                        drop(ticket);
                        waiting.retain(|one| *one != number);
                        if served.contains(&number) {
                            served.retain(|one| *one != number);
                            served.extend(waiting.pop_front());
                        }
                    }
                    Step::Free(index) if !held.is_empty() => {
                        drop(held.swap_remove(index % held.len()));
                        served.extend(waiting.pop_front());
                    }
                    Step::Add => {
                        total += 1;
                        pool.free();
                        served.extend(waiting.pop_front());
                    }
                    _ => {}
                }
                let free = pool.free.load(Ordering::Relaxed);
                prop_assert_eq!(free + held.len() + served.len(), total, "no place is lost");
                prop_assert_eq!(pool.queue.len(), waiting.len());
                prop_assert!(waiting.is_empty() || free == 0, "nobody waits for a free place");
            }
            drop((tickets, held));
            prop_assert_eq!(pool.free.load(Ordering::Relaxed), total);
            let state = lock(&pool.queue.state);
            prop_assert!(state.waiting.is_empty() && state.served.is_empty());
        }
    }

    /// Waits until the place is there; panics where it never comes.
    fn block_on(mut ticket: Ticket<Held>) -> Held {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            match poll(&mut ticket, &waker) {
                Poll::Ready(place) => return place,
                Poll::Pending => thread::park_timeout(Duration::from_secs(10)),
            }
            assert!(Instant::now() < end, "somebody waits in vain");
        }
    }

    #[test]
    fn threads_lose_neither_places_nor_each_other() {
        const PLACES: usize = 3;
        const MAX_WAITING: usize = 5;
        let pool = Pool::new(PLACES);
        let in_use = AtomicUsize::new(0);
        let outcomes = [(); 4].map(|()| AtomicUsize::new(0));
        thread::scope(|scope| {
            for seed in 1..=10_u64 {
                let (pool, in_use, outcomes) = (&pool, &in_use, &outcomes);
                scope.spawn(move || {
                    let mut random = seed;
                    // Until each of the ways was gone as well.
                    let is_new = |count: &AtomicUsize| count.load(Ordering::Relaxed) == 0;
                    let mut turns = 0;
                    while turns < 3_000 || outcomes.iter().any(is_new) {
                        turns += 1;
                        // xorshift64
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let (outcome, place) = match pool.enter(MAX_WAITING) {
                            Entered::Place(place) => (0, Some(place)),
                            Entered::Full => (1, None),
                            Entered::Waits(mut ticket) => match random % 3 {
                                0 => (2, None),
                                1 => (2, ticket.take()),
                                _ => (3, Some(block_on(ticket))),
                            },
                        };
                        outcomes[outcome].fetch_add(1, Ordering::Relaxed);
                        if place.is_some() {
                            assert!(in_use.fetch_add(1, Ordering::SeqCst) < PLACES);
                            if random & 8 != 0 {
                                thread::yield_now();
                            }
                            in_use.fetch_sub(1, Ordering::SeqCst);
                        }
                        assert!(pool.queue.len() <= MAX_WAITING);
                    }
                });
            }
        });
        assert_eq!((pool.free.load(Ordering::Relaxed), pool.queue.len()), (PLACES, 0));
        let state = lock(&pool.queue.state);
        assert!(state.waiting.is_empty() && state.served.is_empty());
    }
}
