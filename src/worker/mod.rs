//! Worker threads, each with an event loop of its own, on which handshakes are tasks and tunnels
//! take turns.
//!
//! A connection lives on one worker from its first byte to its last: its sockets are registered
//! once, and no message of its tunnel meets a lock, a task switch or another thread. [`queue`]
//! carries commands from other threads, [`event_loop`] is the thread.

mod event_loop;
mod queue;
#[cfg(feature = "admin")]
pub(crate) mod watch;

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_lite::StreamExt;
use nix::sys::signal::{SigSet, Signal};
use smol::channel::{self, Sender};

use self::event_loop::EventLoop;
pub(crate) use self::queue::Load;
use self::queue::{Command, Queue, Start, Task};
use crate::net::reactor::Reactor;
use crate::stats::SectionStats;
use crate::tunnel::{Account, CloseOrder, Group, NewTunnel, Ordered, TunnelFilter};

/// A tunnel that a task has opened.
type Opened = (Group, NewTunnel, Box<dyn Account>);

/// Worker threads, which several proxies can share.
///
/// All clones are the same threads. They end when the last clone is dropped; every proxy that uses
/// them holds one.
#[derive(Clone)]
pub struct Workers(Arc<Threads>);

/// The tasks and tunnels of one section on these workers. Dropping it cuts them.
#[derive(Debug)]
pub(crate) struct WorkGroup {
    group: Group,
    workers: Workers,
}

/// The threads and the way to talk to them.
struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// The workers' queues. Tasks hold this and not the threads: a thread must not be what keeps itself
/// alive.
struct Shared {
    queues: Vec<Arc<Queue>>,
    /// Counts the turns of the workers, which those with equal loads take.
    next: AtomicUsize,
}

/// A task's access to its worker.
#[derive(Clone)]
pub(crate) struct Handle {
    local: Rc<Local>,
    /// Group of the task that has this handle, and of what it starts.
    group: Group,
}

/// State that a worker's tasks share with its event loop.
struct Local {
    reactor: Rc<Reactor>,
    shared: Arc<Shared>,
    /// Index of this worker's queue.
    index: usize,
    /// Tasks that tasks have started, for the loop to take over.
    started: RefCell<Vec<(Group, Task)>>,
    /// Tunnels that tasks have opened, for the loop to take over.
    opened: RefCell<Vec<Opened>>,
}

impl Workers {
    /// Starts this many threads; 0 is one per CPU.
    ///
    /// # Errors
    ///
    /// Those of the system, such as no descriptors left.
    pub fn start(count: usize) -> io::Result<Self> {
        Self::start_named(count, "worker")
    }

    /// Starts threads whose names begin with `name`, as [`start`](Workers::start) does.
    pub(crate) fn start_named(count: usize, name: &str) -> io::Result<Self> {
        let count = match count {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let reactors = (0..count).map(|_| Reactor::new()).collect::<io::Result<Vec<_>>>()?;
        let (reactors, wakers): (Vec<_>, Vec<_>) = reactors.into_iter().unzip();
        let queues = wakers.into_iter().map(|waker| Arc::new(Queue::new(waker))).collect();
        let shared = Arc::new(Shared { queues, next: AtomicUsize::new(0) });
        // Dropped on an error, it ends the threads that have been started.
        let mut threads =
            Threads { shared: Arc::clone(&shared), threads: Vec::with_capacity(count) };
        for (index, reactor) in reactors.into_iter().enumerate() {
            let name = format!("{name}-{index}");
            threads.threads.push(start_thread(name, Arc::clone(&shared), index, reactor)?);
        }
        Ok(Self(Arc::new(threads)))
    }

    /// Creates a group without tasks and tunnels on these workers, whose tunnels add to these
    /// counts.
    pub(crate) fn group(&self, stats: Option<Arc<SectionStats>>) -> WorkGroup {
        WorkGroup { group: Group::new(stats), workers: self.clone() }
    }

    /// Returns the number of threads.
    pub(crate) fn count(&self) -> usize {
        self.0.threads.len()
    }
}

/// Starts a worker, and returns when it takes commands.
fn start_thread(
    name: String,
    shared: Arc<Shared>,
    index: usize,
    reactor: Reactor,
) -> io::Result<JoinHandle<()>> {
    let (started, result) = mpsc::sync_channel(1);
    let run = move || {
        let queue = Arc::clone(&shared.queues[index]);
        // Dropped last: nothing is given to a worker that has ended, be it by a panic.
        let _close = CloseOnDrop(Arc::clone(&queue));
        if let Err(error) = block_sigpipe() {
            return drop(started.send(Err(error)));
        }
        let local = Local {
            reactor: Rc::new(reactor),
            shared,
            index,
            started: RefCell::default(),
            opened: RefCell::default(),
        };
        match EventLoop::new(queue, local) {
            Ok(event_loop) => {
                // The other end waits for this.
                let _ = started.send(Ok(()));
                event_loop.run();
            }
            Err(error) => drop(started.send(Err(error))),
        }
    };
    let thread = thread::Builder::new().name(name).spawn(run)?;
    result.recv().unwrap_or_else(|_| Err(io::Error::other("the worker thread has panicked")))?;
    Ok(thread)
}

/// Has a write to a broken connection be an error on this thread, and nothing else.
///
/// The standard library's writes raise no signal, but splice(2) does, for its own thread only
/// (signal(7)). Rust programs ignore SIGPIPE. A program in another language that embeds this one
/// may not, and would be ended by it; blocked here, the signal stays pending for ever, and the
/// program's own handling of it stays as it is.
fn block_sigpipe() -> io::Result<()> {
    Ok(SigSet::from(Signal::SIGPIPE).thread_block()?)
}

impl WorkGroup {
    /// Starts what `start` makes as a task on the worker with the fewest connections. It is not
    /// counted among them.
    pub(crate) fn start_task<F>(&self, start: impl FnOnce(Handle) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let shared = &self.workers.0.shared;
        let command = Command::Start(self.group.clone(), boxed(start));
        shared.queues[shared.next_worker()].send(command);
    }

    /// Closes all tunnels, each at a random time within `spread`, and those that are still to come
    /// at once.
    pub(crate) fn drain(&self, spread: Duration) {
        self.group.drain();
        self.send_to_all(|| Command::Drain(self.group.clone(), spread));
    }

    fn send_to_all(&self, command: impl Fn() -> Command) {
        for queue in &self.workers.0.shared.queues {
            queue.send(command());
        }
    }
}

impl Drop for WorkGroup {
    /// Ends all tasks and tunnels, without waiting for it.
    fn drop(&mut self) {
        self.group.cut();
        self.send_to_all(|| Command::Cut(self.group.clone()));
    }
}

impl Handle {
    /// Returns the worker's event loop.
    pub(crate) fn reactor(&self) -> &Rc<Reactor> {
        &self.local.reactor
    }

    /// Starts a task of the same group on this worker.
    pub(crate) fn start_task(&self, task: impl Future<Output = ()> + 'static) {
        self.local.started.borrow_mut().push((self.group.clone(), Box::pin(task)));
    }

    /// Starts what `start` makes as a task of the same group, on the worker with the fewest
    /// connections. It gets the [`Load`] that counts it there, to be held to the connection's end.
    pub(crate) fn start_connection<F>(&self, start: impl FnOnce(Self, Load) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let index = self.local.shared.next_worker();
        let queue = &self.local.shared.queues[index];
        // Counted at once: the next one may be accepted before this one's task runs.
        let load = Load::new(queue);
        if index == self.local.index {
            // Within the worker no command is needed.
            self.start_task(start(self.clone(), load));
        } else {
            let start = boxed(move |handle| start(handle, load));
            queue.send(Command::Start(self.group.clone(), start));
        }
    }

    /// Has this worker relay a tunnel, whose sockets are registered here. `account` is told of its
    /// end on its thread.
    pub(crate) fn open_tunnel(&self, tunnel: NewTunnel, account: Box<dyn Account>) {
        self.local.opened.borrow_mut().push((self.group.clone(), tunnel, account));
    }

    /// Closes the tunnels of the group that are meant, on all workers; returns the number of those
    /// whose end begins with that. It waits for every worker that has not ended, and closes also if
    /// it is dropped meanwhile.
    ///
    /// A tunnel that is opened later is not met, as by a handshake that is under way.
    pub(crate) async fn close(&self, filter: TunnelFilter, order: Arc<CloseOrder>) -> usize {
        let Ordered { begun, .. } = self.local.shared.close(&self.own(filter), &order).await;
        begun
    }

    /// Returns the numbers of the oldest tunnels of the group to the backend with this number, at
    /// most `count`, ascending, from all workers. Those whose end has begun, or is ordered, are
    /// left out. It waits likewise.
    pub(crate) async fn oldest(&self, backend: usize, count: usize) -> Vec<u64> {
        let filter = self.own(TunnelFilter::to_backend(backend));
        let oldest = |answer| Command::Oldest(filter.clone(), count, answer);
        let mut ids = self.local.shared.ask_all(oldest).await.concat();
        ids.sort_unstable();
        ids.truncate(count);
        ids
    }

    /// Returns the number of tunnels of the group that are meant, be they ending. It waits
    /// likewise.
    pub(crate) async fn count(&self, filter: TunnelFilter) -> usize {
        let filter = self.own(filter);
        let count = |answer| Command::Count(filter.clone(), answer);
        self.local.shared.ask_all(count).await.into_iter().sum()
    }

    /// Returns the filter for the tunnels of the group alone.
    fn own(&self, filter: TunnelFilter) -> TunnelFilter {
        TunnelFilter { group: Some(self.group.clone()), ..filter }
    }
}

impl Shared {
    /// Returns the worker with the fewest connections; of several, the one whose turn it is. One
    /// that has ended is passed over.
    ///
    /// Turns alone would be blind: with one probe between two tunnels, all tunnels of two workers
    /// came to one of them.
    fn next_worker(&self) -> usize {
        let count = self.queues.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let order = (0..count).map(|step| (first + step) % count);
        let load = |&index: &usize| self.queues[index].load();
        let is_open = |&index: &usize| self.queues[index].is_open();
        // The first of the least. Looking at the loads takes no lock, and nearly always the least
        // loaded worker is open.
        let least = order.clone().min_by_key(load).filter(is_open);
        least.or_else(|| order.filter(is_open).min_by_key(load)).unwrap_or(first)
    }

    /// Closes the tunnels that are meant.
    async fn close(&self, filter: &TunnelFilter, order: &Arc<CloseOrder>) -> Ordered {
        let close = |answer| Command::Close(filter.clone(), Arc::clone(order), answer);
        self.ask_all(close).await.into_iter().sum()
    }

    /// Sends each worker a command, and returns their answers. One that has ended drops its command
    /// and the sender in it, so that nobody waits for it.
    async fn ask_all<T>(&self, command: impl Fn(Sender<T>) -> Command) -> Vec<T> {
        let (sender, answers) = channel::unbounded();
        for queue in &self.queues {
            queue.send(command(sender.clone()));
        }
        drop(sender);
        answers.collect().await
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("threads", &self.0.threads.len()).finish_non_exhaustive()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for queue in &self.shared.queues {
            queue.send(Command::Stop);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("worker_panicked");
            }
        }
    }
}

/// Closes a worker's queue with the thread that takes its commands, however that ends.
struct CloseOnDrop(Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn boxed<F>(start: impl FnOnce(Handle) -> F + Send + 'static) -> Start
where
    F: Future<Output = ()> + 'static,
{
    Box::new(|handle| Box::pin(start(handle)))
}

#[cfg(test)]
mod tests {
    use std::future;
    use std::net::TcpStream;

    use smol::channel::Receiver;

    use super::*;
    use crate::tunnel::policy::Policy;
    use crate::tunnel::{Identity, OrderCause, PerSide, TunnelEnd};

    /// Starts a task that sends this number.
    fn send(group: &WorkGroup, number: usize, to: &smol::channel::Sender<usize>) {
        let to = to.clone();
        group.start_task(move |_| async move { to.send(number).await.unwrap() });
    }

    #[test]
    fn a_worker_that_has_panicked_gets_no_more_tasks_and_keeps_nothing() {
        let workers = Workers::start(2).unwrap();
        let group = workers.group(None);
        let (held, released) = smol::channel::bounded::<()>(1);
        let kept = held.clone();
        group.start_task(move |_| {
            let _held = held;
            panic!("the test has one worker end");
            #[expect(unreachable_code)]
            future::ready(())
        });
        while !workers.0.threads[0].is_finished() {
            thread::yield_now();
        }
        // A command that is sent to it all the same is dropped.
        workers.0.shared.queues[0].send(Command::Start(
            group.group.clone(),
            boxed(move |_| {
                drop(kept);
                future::ready(())
            }),
        ));
        assert!(released.recv_blocking().is_err());

        let (done, tasks) = smol::channel::unbounded();
        (0..4).for_each(|number| send(&group, number, &done));
        drop(done);
        let ran: Vec<usize> = std::iter::from_fn(|| tasks.recv_blocking().ok()).collect();
        assert_eq!(ran, [0, 1, 2, 3]);
    }

    /// Starts a connection from a worker's task, as an accept loop does; returns the index of its
    /// worker once it runs there. Until `ends` is dropped, it goes on.
    fn connect(handle: &Handle, ends: Option<Receiver<()>>) -> Receiver<usize> {
        let (runs, index) = smol::channel::bounded(1);
        handle.start_connection(move |handle, load| async move {
            if let Some(ends) = ends {
                runs.send(handle.local.index).await.unwrap();
                let _ended = ends.recv().await;
            }
            drop(load);
            drop(runs);
        });
        index
    }

    #[test]
    fn the_worker_with_the_fewest_connections_gets_the_next_one() {
        const TUNNELS: usize = 40;
        let workers = Workers::start(2).unwrap();
        let group = workers.group(None);
        let (held, ends) = smol::channel::bounded::<()>(1);
        let (done, counts) = smol::channel::bounded(1);
        group.start_task(move |handle| async move {
            let mut counts = [0; 2];
            for _ in 0..TUNNELS {
                // A probe between two tunnels, which has ended when the next tunnel comes.
                let _ended = connect(&handle, None).recv().await;
                counts[connect(&handle, Some(ends.clone())).recv().await.unwrap()] += 1;
            }
            done.send(counts).await.unwrap();
        });
        assert_eq!(counts.recv_blocking(), Ok([TUNNELS / 2; 2]));
        let loads = || workers.0.shared.queues.iter().map(|queue| queue.load()).sum::<usize>();
        assert_eq!(loads(), TUNNELS);
        drop(held);
        while loads() > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn sigpipe_is_blocked_on_workers_and_not_elsewhere() {
        /// Returns whether SIGPIPE is blocked on this thread (proc(5), SigBlk).
        fn is_blocked() -> bool {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
            let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
            mask & 1 << (Signal::SIGPIPE as i32 - 1) != 0
        }
        let workers = Workers::start(2).unwrap();
        let (done, blocked) = smol::channel::unbounded();
        let group = workers.group(None);
        for _ in 0..2 {
            let done = done.clone();
            group.start_task(move |handle| async move {
                done.send((handle.local.index, is_blocked())).await.unwrap();
            });
        }
        let mut seen = [blocked.recv_blocking().unwrap(), blocked.recv_blocking().unwrap()];
        seen.sort_unstable();
        assert_eq!(seen, [(0, true), (1, true)]);
        assert!(!is_blocked());
    }

    #[test]
    fn a_cut_group_ends_its_tasks_and_starts_none_and_leaves_the_others() {
        let workers = Workers::start(1).unwrap();
        let (group, other) = (workers.group(None), workers.group(None));
        let (held, ended) = smol::channel::bounded::<()>(1);
        let (handles, handle) = smol::channel::bounded(1);
        group.start_task(move |handle| async move {
            // A task that starts another one whenever it is told to, until it is cut.
            let next = handle.clone();
            handles.send(()).await.unwrap();
            next.start_connection(move |_, load| async move {
                let _held = (held, load);
                future::pending::<()>().await;
            });
            future::pending::<()>().await;
        });
        handle.recv_blocking().unwrap();
        let counted = group.group.clone();
        drop(group);
        assert!(ended.recv_blocking().is_err());

        let (done, tasks) = smol::channel::unbounded();
        send(&other, 7, &done);
        assert_eq!(tasks.recv_blocking(), Ok(7));
        // Nothing remembers the group that is over: this clone is its only member.
        while counted.members() > 1 {
            thread::yield_now();
        }
    }

    /// Account of a tunnel to the backend 7 or 8, by its number. It sends the number and the reason
    /// for the end.
    struct Noted(u64, smol::channel::Sender<(u64, &'static str)>);

    impl Account for Noted {
        fn identity(&self) -> Identity<'_> {
            let backend_id = 7 + usize::from(self.0 > 100);
            Identity { id: self.0, section: "", backend_id, backend: "", client: None }
        }

        #[cfg(feature = "admin")]
        fn describe(&self) -> crate::tunnel::Description {
            panic!("nobody lists these tunnels");
        }

        fn end(self: Box<Self>, end: TunnelEnd) {
            self.1.try_send((self.0, end.reason.name())).unwrap();
        }
    }

    /// Opens tunnels with these numbers on a worker, and returns their peers when it has them.
    fn open(
        group: &WorkGroup,
        index: usize,
        ids: &'static [u64],
        ended: &smol::channel::Sender<(u64, &'static str)>,
    ) -> Vec<PerSide<TcpStream>> {
        let (sender, opened) = smol::channel::bounded(1);
        let ended = ended.clone();
        let open = move |handle: Handle| async move {
            let peers = ids.iter().map(|&id| {
                let policy = Policy { close_grace: Duration::ZERO, ..Policy::default() };
                let (tunnel, peers) = NewTunnel::with_peers(handle.reactor(), policy);
                handle.open_tunnel(tunnel, Box::new(Noted(id, ended.clone())));
                peers
            });
            sender.send(peers.collect()).await.unwrap();
        };
        let command = Command::Start(group.group.clone(), boxed(open));
        group.workers.0.shared.queues[index].send(command);
        opened.recv_blocking().unwrap()
    }

    /// Runs this as a task of the group on the second worker, and returns what it returns.
    fn ask<F, T>(group: &WorkGroup, ask: impl FnOnce(Handle) -> F + Send + 'static) -> T
    where
        F: Future<Output = T>,
        T: Send + 'static,
    {
        let (sender, answer) = smol::channel::bounded(1);
        let task = boxed(|handle| async move {
            let answer = ask(handle).await;
            assert!(sender.try_send(answer).is_ok());
        });
        group.workers.0.shared.queues[1].send(Command::Start(group.group.clone(), task));
        answer.recv_blocking().unwrap()
    }

    fn oldest(group: &WorkGroup, backend: usize, count: usize) -> Vec<u64> {
        ask(group, move |handle| async move { handle.oldest(backend, count).await })
    }

    fn count(group: &WorkGroup, filter: TunnelFilter) -> usize {
        ask(group, move |handle| async move { handle.count(filter).await })
    }

    fn close(group: &WorkGroup, filter: TunnelFilter, cause: OrderCause) -> usize {
        let (code, reason, spread) = (1_012, String::new(), Duration::ZERO);
        let order = Arc::new(CloseOrder { cause, code, reason, spread });
        ask(group, move |handle| async move { handle.close(filter, order).await })
    }

    #[test]
    fn a_task_finds_and_closes_the_tunnels_of_its_group_on_all_workers() {
        let workers = Workers::start(2).unwrap();
        let (group, other) = (workers.group(None), workers.group(None));
        let (ended, ends) = smol::channel::unbounded();
        let _peers = [
            open(&group, 0, &[1, 4, 101], &ended),
            open(&group, 1, &[6, 3, 2, 102], &ended),
            open(&other, 0, &[5], &ended),
        ];
        let next = |count: usize| {
            let mut next: Vec<_> = (0..count).map(|_| ends.recv_blocking().unwrap()).collect();
            next.sort_unstable();
            next
        };
        assert_eq!(oldest(&group, 7, 3), [1, 2, 3]);
        assert_eq!(oldest(&group, 7, 99), [1, 2, 3, 4, 6]);
        assert_eq!(oldest(&other, 7, 99), [5]);
        assert_eq!(oldest(&group, 9, 99), [0; 0]);

        // By their numbers; that of another group's tunnel and an unknown one mean nothing.
        let some = TunnelFilter::with_ids(vec![5, 2, 9, 1]);
        assert_eq!((count(&group, some.clone()), count(&other, some.clone())), (2, 1));
        assert_eq!(close(&group, some.clone(), OrderCause::Rebalance), 2);
        assert_eq!(next(2), [(1, "rebalance"), (2, "rebalance")]);
        assert_eq!(close(&group, some, OrderCause::Rebalance), 0);

        let all = || TunnelFilter::to_backend(7);
        assert_eq!(close(&group, all(), OrderCause::BackendRemoved), 3);
        assert_eq!(next(3), [3, 4, 6].map(|id| (id, "backend_removed")));
        assert_eq!(oldest(&group, 7, 99), [0; 0]);
        assert_eq!(oldest(&group, 8, 99), [101, 102]);
        assert_eq!(oldest(&other, 7, 99), [5]);
    }

    #[test]
    fn nobody_waits_for_the_answer_of_a_worker_that_has_ended() {
        let workers = Workers::start(2).unwrap();
        let group = workers.group(None);
        let (ended, ends) = smol::channel::unbounded();
        let _peers = open(&group, 1, &[1, 2], &ended);
        workers.0.shared.queues[0].send(Command::Stop);
        assert_eq!(oldest(&group, 7, 99), [1, 2]);
        let all = TunnelFilter::to_backend(7);
        assert_eq!(close(&group, all, OrderCause::BackendUnhealthy), 2);
        for _ in 0..2 {
            assert_eq!(ends.recv_blocking().unwrap().1, "backend_unhealthy");
        }
    }
}
