//! Worker threads, each with an event loop of its own, on which handshakes are tasks and tunnels get turns.
//!
//! A connection lives on one worker from its first byte to its last: its sockets are registered once, and no message
//! of its tunnel meets a lock, a task switch or another thread.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::future::{self, Future};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use smol::LocalExecutor;

use crate::net::reactor::Reactor;
use crate::tunnel::Tunnel;
use crate::tunnel::carrier::{Carrier, OnEnd};

/// A number of worker threads, which several proxies can share.
///
/// All clones are the same threads. They end when the last clone is dropped, and every proxy that uses them holds one.
#[derive(Clone)]
pub struct Workers(Arc<Pool>);

/// The threads and the way to talk to them.
struct Pool {
    ring: Arc<Ring>,
    threads: Vec<JoinHandle<()>>,
}

/// The workers' mailboxes. Tasks hold this and not the pool: a thread must not be what keeps itself alive.
struct Ring {
    mailboxes: Vec<Arc<Mailbox>>,
    /// Whose turn it is.
    next: AtomicUsize,
}

/// How other threads talk to a worker.
struct Mailbox {
    /// `None` when the worker has ended: nobody would read them.
    letters: Mutex<Option<Vec<Letter>>>,
    /// There may be letters.
    has_letters: AtomicBool,
    /// The worker waits, or is about to, and must be woken by the bell.
    asleep: AtomicBool,
    bell: OwnedFd,
}

enum Letter {
    /// Run what this makes, as a task of this group.
    Start(u64, Start),
    /// Close all tunnels of this group, spread over this time.
    Drain(u64, Duration),
    /// End all tasks and tunnels of this group at once.
    Cut(u64),
    /// End everything.
    Stop,
}

type Start = Box<dyn FnOnce(Handle) -> Task + Send>;
type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What the tasks of a worker know of it.
#[derive(Clone)]
pub(crate) struct Handle {
    local: Rc<Local>,
    /// The group of the task that has this handle, and of what it starts.
    group: u64,
}

struct Local {
    reactor: Rc<Reactor>,
    ring: Arc<Ring>,
    /// This worker's place in the ring.
    place: usize,
    /// What tasks have started and the loop has not taken yet.
    tasks: RefCell<Vec<(u64, Task)>>,
    tunnels: RefCell<Vec<(u64, Tunnel, OnEnd)>>,
}

impl Workers {
    /// Starts so many threads; 0 is one per CPU.
    ///
    /// # Errors
    ///
    /// Those of the system, as when there are no descriptors left.
    pub fn start(count: usize) -> io::Result<Self> {
        let count = match count {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let mailboxes =
            (0..count).map(|_| Mailbox::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        let ring = Arc::new(Ring { mailboxes, next: AtomicUsize::new(0) });
        // Dropped by an error, it ends the threads that have been started.
        let mut pool = Pool { ring: Arc::clone(&ring), threads: Vec::with_capacity(count) };
        for (place, mailbox) in ring.mailboxes.iter().enumerate() {
            // The thread's event loop cannot leave it, but must be there before the thread is relied on.
            let (started, start) = std::sync::mpsc::sync_channel(1);
            let (ring, mailbox) = (Arc::clone(&ring), Arc::clone(mailbox));
            let run = move || {
                // Dropped last: nobody is given to a worker that has ended, be it by a panic.
                let _reader = Reader(Arc::clone(&mailbox));
                match Worker::new(ring, place, mailbox) {
                    Ok(worker) => {
                        // The other end waits for this.
                        let _ = started.send(Ok(()));
                        worker.run();
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            };
            pool.threads.push(thread::Builder::new().name(format!("worker-{place}")).spawn(run)?);
            start
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("the worker thread has panicked")))?;
        }
        Ok(Self(Arc::new(pool)))
    }

    /// Starts what `start` makes as a task on the worker whose turn it is.
    pub(crate) fn start_task<F>(&self, group: u64, start: impl FnOnce(Handle) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let ring = &self.0.ring;
        ring.mailboxes[ring.turn()].send(Letter::Start(group, boxed(start)));
    }

    /// Has all tunnels of a group closed, each at a time of its own within `spread`, and those that are still to come at
    /// once.
    pub(crate) fn drain(&self, group: u64, spread: Duration) {
        for mailbox in &self.0.ring.mailboxes {
            mailbox.send(Letter::Drain(group, spread));
        }
    }

    /// Ends all tasks and tunnels of a group, without waiting for it.
    pub(crate) fn cut(&self, group: u64) {
        for mailbox in &self.0.ring.mailboxes {
            mailbox.send(Letter::Cut(group));
        }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("threads", &self.0.threads.len()).finish_non_exhaustive()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for mailbox in &self.ring.mailboxes {
            mailbox.send(Letter::Stop);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("event=worker_panicked");
            }
        }
    }
}

impl Ring {
    /// The worker whose turn it is. One that has ended is passed over.
    fn turn(&self) -> usize {
        let count = self.mailboxes.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let mut order = (0..count).map(|step| (first + step) % count);
        order.find(|&place| self.mailboxes[place].is_open()).unwrap_or(first)
    }
}

/// Closes a mailbox with the thread that reads it, however that ends.
struct Reader(Arc<Mailbox>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Handle {
    /// The worker's event loop.
    pub(crate) fn reactor(&self) -> &Rc<Reactor> {
        &self.local.reactor
    }

    /// Starts what `start` makes as a task of the same group, on the worker whose turn it is.
    pub(crate) fn start_next<F>(&self, start: impl FnOnce(Self) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let turn = self.local.ring.turn();
        if turn == self.local.place {
            // At home there is no need for a letter.
            let task = Box::pin(start(self.clone()));
            self.local.tasks.borrow_mut().push((self.group, task));
        } else {
            self.local.ring.mailboxes[turn].send(Letter::Start(self.group, boxed(start)));
        }
    }

    /// Has this worker carry a tunnel, whose sockets are registered here. `on_end` is called on its thread.
    pub(crate) fn carry(&self, tunnel: Tunnel, on_end: OnEnd) {
        self.local.tunnels.borrow_mut().push((self.group, tunnel, on_end));
    }
}

fn boxed<F>(start: impl FnOnce(Handle) -> F + Send + 'static) -> Start
where
    F: Future<Output = ()> + 'static,
{
    Box::new(|handle| Box::pin(start(handle)))
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            letters: Mutex::new(Some(Vec::new())),
            has_letters: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Gives the worker a letter. One that has ended gets none: what the letter holds is dropped, and so closed.
    fn send(&self, letter: Letter) {
        match self.lock().as_mut() {
            Some(letters) => letters.push(letter),
            None => return,
        }
        self.has_letters.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn take(&self) -> Vec<Letter> {
        if !self.has_letters.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    fn close(&self) {
        // What letters hold may send others when it is dropped: not under the lock.
        let letters = self.lock().take();
        drop(letters);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Letter>>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the worker, if it sleeps. Whoever calls this has noted before what it is to find.
    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Err(error) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes())
        {
            log::error!("event=bell_failed error={:?}", io::Error::from(error).to_string());
        }
    }

    /// Makes the bell ready to be rung again.
    fn silence(&self) {
        // It has nothing to say but that it rang.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }
}

/// One thread's event loop.
struct Worker {
    mailbox: Arc<Mailbox>,
    local: Rc<Local>,
    groups: Vec<Group>,
    /// Groups that are over: a task that another worker still sends for one is not started.
    cut: HashSet<u64>,
    carrier: Carrier,
}

/// The tasks of one group. Dropping it drops them.
struct Group {
    id: u64,
    /// Runs the executor's tasks for as long as it is polled.
    runner: Task,
    executor: Rc<LocalExecutor<'static>>,
    bell: Arc<GroupBell>,
    waker: Waker,
}

/// Notes that a task of a group can go on.
struct GroupBell {
    has_rung: AtomicBool,
    mailbox: Arc<Mailbox>,
}

impl Wake for GroupBell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::SeqCst);
        self.mailbox.wake();
    }
}

impl Group {
    fn new(id: u64, mailbox: &Arc<Mailbox>) -> Self {
        let executor = Rc::new(LocalExecutor::new());
        let running = Rc::clone(&executor);
        let runner = Box::pin(async move { running.run(future::pending()).await });
        let bell =
            Arc::new(GroupBell { has_rung: AtomicBool::new(true), mailbox: Arc::clone(mailbox) });
        let waker = Waker::from(Arc::clone(&bell));
        Self { id, runner, executor, bell, waker }
    }

    /// Runs the tasks that can go on.
    fn run(&mut self) {
        if self.bell.has_rung.swap(false, Ordering::SeqCst) {
            // It never completes.
            let _ = self.runner.as_mut().poll(&mut Context::from_waker(&self.waker));
        }
    }
}

impl Worker {
    fn new(ring: Arc<Ring>, place: usize, mailbox: Arc<Mailbox>) -> io::Result<Self> {
        let reactor = Rc::new(Reactor::new(&mailbox.bell)?);
        let local =
            Local { reactor, ring, place, tasks: RefCell::default(), tunnels: RefCell::default() };
        Ok(Self {
            carrier: Carrier::new(&local.reactor)?,
            mailbox,
            local: Rc::new(local),
            groups: Vec::new(),
            cut: HashSet::new(),
        })
    }

    /// Runs tasks and carries tunnels until it is told to stop.
    fn run(mut self) {
        if let Err(error) = self.serve() {
            log::error!("event=worker_failed error={:?}", error.to_string());
        }
        while let Some(group) = self.groups.last() {
            self.cut(group.id);
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let reactor = Rc::clone(&self.local.reactor);
        let mut events = Vec::new();
        loop {
            reactor.wait(self.is_busy(), &mut events)?;
            self.mailbox.asleep.store(false, Ordering::SeqCst);

            // All events are noted before the first tunnel moves, so that each gets one turn for all of its own.
            if reactor.dispatch(&events, |label, flags| self.carrier.note(label, flags)) {
                self.mailbox.silence();
            }
            for group in &mut self.groups {
                group.run();
            }
            self.take_over();
            self.carrier.advance(&reactor);

            for letter in self.mailbox.take() {
                match letter {
                    Letter::Start(group, start) => {
                        let handle = Handle { local: Rc::clone(&self.local), group };
                        let task = start(handle);
                        self.spawn(group, task);
                    }
                    Letter::Drain(group, spread) => self.carrier.drain(group, spread),
                    Letter::Cut(group) => self.cut(group),
                    Letter::Stop => return Ok(()),
                }
            }
        }
    }

    /// Whether there is something to do before the next event. If not, others must ring the bell from now on.
    fn is_busy(&self) -> bool {
        if self.carrier.is_busy() {
            return true;
        }
        self.mailbox.asleep.store(true, Ordering::SeqCst);
        // Whoever notes something looks afterwards whether we sleep: either they see that, or we see this.
        self.mailbox.has_letters.load(Ordering::SeqCst)
            || self.groups.iter().any(|group| group.bell.has_rung.load(Ordering::SeqCst))
    }

    /// Takes over what tasks have started.
    fn take_over(&mut self) {
        for (group, task) in self.local.tasks.take() {
            self.spawn(group, task);
        }
        for (group, tunnel, on_end) in self.local.tunnels.take() {
            self.carrier.carry(&self.local.reactor, tunnel, group, on_end);
        }
    }

    fn spawn(&mut self, id: u64, task: Task) {
        if self.cut.contains(&id) {
            return;
        }
        let group = match self.groups.iter().position(|group| group.id == id) {
            Some(at) => &self.groups[at],
            None => {
                self.groups.push(Group::new(id, &self.mailbox));
                &self.groups[self.groups.len() - 1]
            }
        };
        group.executor.spawn(task).detach();
    }

    /// Ends a group's tasks, and then its tunnels, those too that the tasks have left behind.
    fn cut(&mut self, id: u64) {
        self.cut.insert(id);
        self.groups.retain(|group| group.id != id);
        self.take_over();
        self.carrier.cut(&self.local.reactor, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_has_panicked_gets_no_more_tasks_and_keeps_nothing() {
        let workers = Workers::start(2).unwrap();
        let (held, released) = smol::channel::bounded::<()>(1);
        let kept = held.clone();
        workers.start_task(1, move |_| {
            let _held = held;
            panic!("the test has one worker end");
            #[expect(unreachable_code)]
            future::ready(())
        });
        while !workers.0.threads[0].is_finished() {
            thread::yield_now();
        }
        // What is sent to its mailbox all the same is dropped.
        workers.0.ring.mailboxes[0].send(Letter::Start(
            1,
            boxed(move |_| {
                drop(kept);
                future::ready(())
            }),
        ));
        assert!(released.recv_blocking().is_err());

        let (done, tasks) = smol::channel::unbounded();
        for number in 0..4 {
            let done = done.clone();
            workers.start_task(1, move |_| async move { done.send(number).await.unwrap() });
        }
        drop(done);
        let mut ran = Vec::new();
        while let Ok(number) = tasks.recv_blocking() {
            ran.push(number);
        }
        assert_eq!(ran, [0, 1, 2, 3]);
    }
}
