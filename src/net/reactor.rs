//! The event loop of one thread: sockets and timers that wake what waits for them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::task::Waker;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::readiness::Readiness;

/// Events taken in one wait.
const EVENTS: usize = 512;
/// Token of the waker, whose events only end a wait.
const WAKE: Token = Token(usize::MAX);
/// Every change of a socket's state, reported once: mio registers edge-triggered.
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

/// The sockets and timers of one thread.
///
/// Each socket is registered once, for reading and writing, so waiting costs no system call but the
/// one wait of the whole loop.
#[derive(Debug)]
pub(crate) struct Reactor {
    poll: RefCell<Poll>,
    events: RefCell<Events>,
    sources: RefCell<Slab<Source>>,
    /// Wakers by the time at which they are woken; the number keeps equal times apart.
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_timer: Cell<u64>,
    /// Time as read since the last wait.
    now: Cell<Option<Instant>>,
}

/// A registered file descriptor. Every idle tunnel has two: 16 bytes each.
#[derive(Debug)]
struct Source {
    /// Tasks that its events wake; `None` if they are reported under the token. On the heap, since
    /// an idle tunnel has none.
    tasks: Option<Box<Waiters>>,
    /// Token for [`Reactor::dispatch`].
    token: u32,
    readiness: Readiness,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Option<Source>>() == 16);

/// Tasks that wait for a source, at most one for each kind of event.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    pub(super) readable: Option<Waker>,
    pub(super) writable: Option<Waker>,
    pub(super) ended: Option<Waker>,
    pub(super) failed: Option<Waker>,
}

/// Number of a registered source, valid until [`Reactor::deregister`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u32);

/// Wakes a reactor's thread from other threads.
#[derive(Debug)]
pub(crate) struct ReactorWaker(mio::Waker);

impl ReactorWaker {
    /// Ends the wait under way, or the next one at once.
    ///
    /// # Errors
    ///
    /// Those of write(2) on an eventfd.
    pub(crate) fn wake(&self) -> io::Result<()> {
        self.0.wake()
    }
}

impl Reactor {
    /// Creates an event loop and its waker.
    ///
    /// # Errors
    ///
    /// Those of the system, such as no descriptors left.
    pub(crate) fn new() -> io::Result<(Self, ReactorWaker)> {
        let poll = Poll::new()?;
        let waker = ReactorWaker(mio::Waker::new(poll.registry(), WAKE)?);
        let reactor = Self {
            poll: RefCell::new(poll),
            events: RefCell::new(Events::with_capacity(EVENTS)),
            sources: RefCell::default(),
            timers: RefCell::default(),
            next_timer: Cell::default(),
            now: Cell::default(),
        };
        Ok((reactor, waker))
    }

    /// Registers a task's socket. It must be closed right after its key is deregistered.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(super) fn register(&self, socket: impl AsFd, readiness: Readiness) -> io::Result<Key> {
        let tasks = Some(Box::default());
        self.insert(socket, INTEREST, Source { tasks, token: 0, readiness })
    }

    /// Registers a descriptor that lives as long as this event loop; `token` reports that it is
    /// readable.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn register_readable(&self, source: impl AsFd, token: u32) -> io::Result<()> {
        let readiness = Readiness::NONE;
        self.insert(source, Interest::READABLE, Source { tasks: None, token, readiness })?;
        Ok(())
    }

    fn insert(&self, fd: impl AsFd, interest: Interest, source: Source) -> io::Result<Key> {
        let mut sources = self.sources.borrow_mut();
        let entry = sources.vacant_entry();
        let key = entry.key();
        let fd = fd.as_fd().as_raw_fd();
        self.poll.borrow().registry().register(&mut SourceFd(&fd), Token(key), interest)?;
        entry.insert(source);
        // There are fewer sources than descriptors, whose numbers have 31 bits.
        Ok(Key(key as u32))
    }

    /// Has the socket's events reported under this token from now on, and forgets the tasks that
    /// waited.
    pub(super) fn set_token(&self, key: Key, token: u32) {
        if let Some(source) = self.sources.borrow_mut().get_mut(key.0 as usize) {
            (source.tasks, source.token) = (None, token);
        }
    }

    /// Forgets a socket. Closing it, which must follow before the next wait, takes it out of epoll.
    pub(super) fn deregister(&self, key: Key) {
        self.sources.borrow_mut().try_remove(key.0 as usize);
    }

    /// Gives access to the readiness of a socket.
    pub(super) fn with_readiness<T>(&self, key: Key, f: impl FnOnce(&mut Readiness) -> T) -> T {
        f(&mut self.sources.borrow_mut()[key.0 as usize].readiness)
    }

    /// Has a task wait for a socket. A socket with a token has no tasks.
    pub(super) fn wait_for(&self, key: Key, set: impl FnOnce(&mut Waiters)) {
        if let Some(waiters) = &mut self.sources.borrow_mut()[key.0 as usize].tasks {
            set(waiters);
        }
    }

    /// Returns the time, read at most once between two waits: it can be a real system call.
    pub(crate) fn now(&self) -> Instant {
        let now = self.now.get().unwrap_or_else(Instant::now);
        self.now.set(Some(now));
        now
    }

    /// Waits for events, a timer or the waker; returns at once if `busy`.
    /// [`dispatch`](Reactor::dispatch) takes what has come.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn wait(&self, busy: bool) -> io::Result<()> {
        let timeout = if busy { Some(Duration::ZERO) } else { self.until_next_timer() };
        let result = self.poll.borrow_mut().poll(&mut self.events.borrow_mut(), timeout);
        self.now.set(None);
        match result {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Records the events of the last wait, wakes tasks, reports tokens to `on_token`, and fires
    /// the timers that are due.
    ///
    /// All events are recorded before the first task runs or tunnel moves: no key can be given out
    /// anew in between. Returns whether the wait was full, so that further events may be waiting.
    pub(crate) fn dispatch(&self, mut on_token: impl FnMut(u32)) -> bool {
        let mut count = 0;
        let mut sources = self.sources.borrow_mut();
        for event in &*self.events.borrow() {
            count += 1;
            // The waker has no source.
            let Some(source) = sources.get_mut(event.token().0) else { continue };
            source.readiness.record(event);
            match &mut source.tasks {
                Some(waiters) => waiters.wake(source.readiness),
                None => on_token(source.token),
            }
        }
        drop(sources);
        self.fire_timers();
        count == EVENTS
    }

    /// Sets a timer that wakes `waker` at `deadline`. The number is for
    /// [`clear_timer`](Reactor::clear_timer).
    pub(super) fn set_timer(&self, deadline: Instant, waker: Waker) -> u64 {
        let number = self.next_timer.get();
        self.next_timer.set(number + 1);
        self.timers.borrow_mut().insert((deadline, number), waker);
        number
    }

    /// Clears a timer. One that has fired already is no error.
    pub(super) fn clear_timer(&self, deadline: Instant, number: u64) {
        self.timers.borrow_mut().remove(&(deadline, number));
    }

    /// Returns the number of timers that are set.
    #[cfg(test)]
    pub(super) fn timers(&self) -> usize {
        self.timers.borrow().len()
    }

    fn until_next_timer(&self) -> Option<Duration> {
        let deadline = self.timers.borrow().keys().next()?.0;
        Some(deadline.saturating_duration_since(self.now()))
    }

    fn fire_timers(&self) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let now = self.now();
        while let Some(entry) = self.timers.borrow_mut().first_entry() {
            if entry.key().0 > now {
                return;
            }
            entry.remove().wake();
        }
    }
}

impl Waiters {
    fn wake(&mut self, readiness: Readiness) {
        for (is_ready, waiting) in [
            (readiness.readable, &mut self.readable),
            (readiness.writable, &mut self.writable),
            (readiness.has_ended(), &mut self.ended),
            (readiness.failed, &mut self.failed),
        ] {
            if is_ready && let Some(waker) = waiting.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn waker() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), count.into())
    }

    fn turn(reactor: &Reactor, busy: bool) -> Vec<u32> {
        let mut tokens = Vec::new();
        reactor.wait(busy).unwrap();
        reactor.dispatch(|token| tokens.push(token));
        tokens
    }

    #[test]
    fn timers_fire_in_the_order_of_their_times_and_not_before() {
        let (reactor, _waker) = Reactor::new().unwrap();
        let now = reactor.now();
        let (late, late_waker) = waker();
        let (early, early_waker) = waker();
        let (cleared, cleared_waker) = waker();
        reactor.set_timer(now + Duration::from_secs(3_600), late_waker);
        reactor.set_timer(now + Duration::from_millis(2), early_waker);
        let number = reactor.set_timer(now + Duration::from_millis(1), cleared_waker);
        reactor.clear_timer(now + Duration::from_millis(1), number);
        turn(&reactor, true);
        // The wait ends by the earliest timer that is left.
        while early.get() == 0 {
            turn(&reactor, false);
        }
        assert!(reactor.now() >= now + Duration::from_millis(2));
        assert_eq!((early.get(), late.get(), cleared.get()), (1, 0, 0));
    }

    #[test]
    fn the_waker_ends_a_wait_and_reports_no_token() {
        let (reactor, waker) = Reactor::new().unwrap();
        for _ in 0..2 {
            waker.wake().unwrap();
            assert!(turn(&reactor, false).is_empty());
        }
    }

    #[test]
    fn a_token_takes_the_place_of_the_tasks() {
        let (reactor, _waker) = Reactor::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let key = reactor.register(&socket, Readiness::NONE).unwrap();
        let (count, waker) = waker();
        reactor.wait_for(key, |waiters| waiters.readable = Some(waker));

        peer.write_all(b"x").unwrap();
        while count.get() == 0 {
            assert!(turn(&reactor, false).is_empty());
        }
        assert!(reactor.with_readiness(key, |readiness| readiness.readable));

        reactor.set_token(key, 7);
        peer.write_all(b"y").unwrap();
        assert_eq!(turn(&reactor, false), [7]);
        assert_eq!(count.get(), 1);

        // Events of a descriptor that is still open find nobody after it was deregistered.
        reactor.deregister(key);
        peer.write_all(b"z").unwrap();
        assert!(turn(&reactor, false).is_empty());
    }
}
