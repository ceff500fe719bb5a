//! The event loop of one thread: sockets and timers that wake what waits for them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::time::Timespec;
use slab::Slab;

use super::readiness::Readiness;

/// Events that one wait takes at most.
const EVENTS: usize = 512;
/// What is to be told of a socket: all that can change what may be done with it, each change once.
const INTEREST: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::PRI)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);
/// What the bell's events are known by.
const BELL: u64 = u64::MAX;

/// The sockets and timers of one thread.
///
/// Each socket is registered once, for reading and writing, edge-triggered: waiting costs no system call but the one
/// wait of the whole loop.
#[derive(Debug)]
pub(crate) struct Reactor {
    epoll: OwnedFd,
    sources: RefCell<Slab<Source>>,
    /// Who is to be woken at which time; the number keeps equal times apart.
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_timer: Cell<u64>,
    /// The time as read since the last wait.
    now: Cell<Option<Instant>>,
}

/// Whose socket it is.
#[derive(Debug)]
enum Source {
    /// That of a task, which is woken.
    Task(Rc<Registration>),
    /// That of somebody who gets the event itself, under this label.
    Labelled(u64),
}

/// A registered socket of a task: what is known of it, and who waits for more.
pub(crate) struct Registration {
    pub(crate) readiness: Cell<Readiness>,
    pub(crate) reader: Cell<Option<Waker>>,
    pub(crate) writer: Cell<Option<Waker>>,
    /// Waits for the connection to break.
    pub(crate) watcher: Cell<Option<Waker>>,
}

/// The number of a registered socket. It is valid until [`Reactor::forget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

impl Reactor {
    /// An event loop that also wakes up when `bell` becomes readable.
    ///
    /// # Errors
    ///
    /// Those of the system, as when there are no descriptors left.
    pub(crate) fn new(bell: impl AsFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, bell, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            epoll,
            sources: RefCell::default(),
            timers: RefCell::default(),
            next_timer: Cell::default(),
            now: Cell::default(),
        })
    }

    /// Registers a task's socket. It must be closed or forgotten with the key.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn register(
        &self,
        socket: impl AsFd,
        readiness: Readiness,
    ) -> io::Result<(Key, Rc<Registration>)> {
        let registration = Rc::new(Registration {
            readiness: Cell::new(readiness),
            reader: Cell::default(),
            writer: Cell::default(),
            watcher: Cell::default(),
        });
        let mut sources = self.sources.borrow_mut();
        let entry = sources.vacant_entry();
        // There are fewer sockets than descriptors, whose numbers are of 31 bits.
        let key = Key(entry.key() as u32);
        epoll::add(&self.epoll, socket, EventData::new_u64(key.0.into()), INTEREST)?;
        entry.insert(Source::Task(Rc::clone(&registration)));
        Ok((key, registration))
    }

    /// Registers what stays as long as this event loop, and whose events come back under this label.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn register_labelled(&self, source: impl AsFd, label: u64) -> io::Result<()> {
        let mut sources = self.sources.borrow_mut();
        let entry = sources.vacant_entry();
        let data = EventData::new_u64(entry.key() as u64);
        epoll::add(&self.epoll, source, data, EventFlags::IN | EventFlags::ET)?;
        entry.insert(Source::Labelled(label));
        Ok(())
    }

    /// From now on, [`wait`](Reactor::wait) gives the socket's events back under this label.
    pub(crate) fn label(&self, key: Key, label: u64) {
        if let Some(source) = self.sources.borrow_mut().get_mut(key.0 as usize) {
            *source = Source::Labelled(label);
        }
    }

    /// Forgets a socket that is closed before the next wait. Closing it takes it out of epoll.
    pub(crate) fn forget(&self, key: Key) {
        self.sources.borrow_mut().try_remove(key.0 as usize);
    }

    /// The time, read at most once between two waits: it can be a real system call.
    pub(crate) fn now(&self) -> Instant {
        let now = self.now.get().unwrap_or_else(Instant::now);
        self.now.set(Some(now));
        now
    }

    /// Waits for events, for a timer, or for the bell; not at all if `busy`. What has come is for
    /// [`dispatch`](Reactor::dispatch).
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn wait(&self, busy: bool, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = if busy { Some(Duration::ZERO) } else { self.until_next_timer() };
        let timeout = timeout.map(to_timespec);
        events.clear();
        events.reserve(EVENTS);
        let result =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref());
        self.now.set(None);
        match result {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes the tasks that waited for these events, gives those of labelled sockets to `labelled`, and fires the
    /// timers that are due. Whether the bell has rung.
    ///
    /// All of it happens before the first task runs: no key can be forgotten and given out again in between.
    pub(crate) fn dispatch(
        &self,
        events: &[Event],
        mut labelled: impl FnMut(u64, EventFlags),
    ) -> bool {
        let mut bell = false;
        let sources = self.sources.borrow();
        for event in events {
            match event.data.u64() {
                BELL => bell = true,
                // It was made of a usize.
                key => match sources.get(key as usize) {
                    Some(Source::Labelled(label)) => labelled(*label, event.flags),
                    Some(Source::Task(registration)) => registration.note(event.flags),
                    None => {}
                },
            }
        }
        drop(sources);
        self.fire_timers();
        bell
    }

    /// Sets a timer: wakes `waker` at `deadline`. The number is for [`cancel`](Reactor::cancel).
    pub(crate) fn at(&self, deadline: Instant, waker: Waker) -> u64 {
        let number = self.next_timer.get();
        self.next_timer.set(number + 1);
        self.timers.borrow_mut().insert((deadline, number), waker);
        number
    }

    /// Takes a timer back.
    pub(crate) fn cancel(&self, deadline: Instant, number: u64) {
        self.timers.borrow_mut().remove(&(deadline, number));
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

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("readiness", &self.readiness.get())
            .finish_non_exhaustive()
    }
}

impl Registration {
    /// Takes an event into account, and wakes who waited for it.
    fn note(&self, flags: EventFlags) {
        let mut readiness = self.readiness.get();
        readiness.note(flags);
        self.readiness.set(readiness);
        for (is_due, waiting) in [
            (readiness.readable, &self.reader),
            (readiness.writable, &self.writer),
            (readiness.failed, &self.watcher),
        ] {
            if is_due && let Some(waker) = waiting.take() {
                waker.wake();
            }
        }
    }
}

/// In whole milliseconds, rounded up: a wait that ends before its timer would only have to begin again.
fn to_timespec(time: Duration) -> Timespec {
    let ms = time.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i64;
    Timespec { tv_sec: ms / 1_000, tv_nsec: ms % 1_000 * 1_000_000 }
}
