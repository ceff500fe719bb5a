//! Commands from other threads to a worker.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use smol::channel::Sender;

use super::Handle;
use crate::lock::lock;
use crate::net::reactor::ReactorWaker;
#[cfg(feature = "admin")]
use crate::tunnel::TunnelView;
use crate::tunnel::{CloseOrder, Group, Ordered, TunnelFilter};

/// A command for one worker.
pub(super) enum Command {
    /// Run what this makes, as a task of this group.
    Start(Group, Start),
    /// Close all tunnels of this group, spread over this time.
    Drain(Group, Duration),
    /// End all tasks and tunnels of this group at once.
    Cut(Group),
    /// Drop this, which tells that the loop turns.
    #[cfg(feature = "admin")]
    Answer(crate::shutdown::Guard),
    /// Return the newest tunnels of those that are meant, at most so many.
    #[cfg(feature = "admin")]
    List(TunnelFilter, usize, Sender<Vec<TunnelView>>),
    /// Return the numbers of the oldest tunnels of those that are meant, at most so many.
    Oldest(TunnelFilter, usize, Sender<Vec<u64>>),
    /// Return the number of those that are meant.
    Count(TunnelFilter, Sender<usize>),
    /// Close those that are meant, and return their numbers.
    Close(TunnelFilter, Arc<CloseOrder>, Sender<Ordered>),
    /// End everything.
    Stop,
}

/// Makes a task on the worker's own thread, which it never leaves.
pub(super) type Start = Box<dyn FnOnce(Handle) -> Task + Send>;

/// A task of a worker.
pub(super) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Queue of one worker.
///
/// # Wake-up protocol
///
/// A worker that waits in epoll does not see the queue, so a sender has to wake it; one that runs
/// looks at the queue anyway, and a wake-up would be a wasted system call. Two flags tell the cases
/// apart, `has_commands` and `is_asleep`:
///
/// - A sender stores the command, then `has_commands`, then looks at `is_asleep`: if it is set, it
///   clears it and wakes.
/// - The worker sets `is_asleep`, then looks at `has_commands`, and waits only if that is clear.
///   After the wait it clears `is_asleep`.
///
/// Both sides store, then load, all sequentially consistent. So at least one of them sees the
/// other's store: a command cannot slip in between the worker's check and its wait without the wait
/// being ended. Wakers of tasks follow the same protocol with a flag of their own in the place of
/// `has_commands`.
pub(super) struct Queue {
    /// `None` after the worker has ended: nobody would take them.
    commands: Mutex<Option<Vec<Command>>>,
    has_commands: AtomicBool,
    /// The worker waits, or is about to.
    is_asleep: AtomicBool,
    waker: ReactorWaker,
    /// Number of [`Load`]s.
    load: AtomicUsize,
}

/// One connection of a worker, counted until it is dropped.
pub(crate) struct Load(Arc<Queue>);

impl Load {
    /// Counts a connection for the worker of this queue.
    pub(super) fn new(queue: &Arc<Queue>) -> Self {
        queue.load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(queue))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers a question, unless nobody waits for the answer any more: after a stall, a worker has
/// other things to do than those that were given up.
pub(super) fn tell<T>(asker: &Sender<T>, answer: impl FnOnce() -> T) {
    if !asker.is_closed() {
        // It may be closed by now.
        let _ = asker.try_send(answer());
    }
}

impl Queue {
    /// Creates the open queue of a worker whose reactor this wakes.
    pub(super) fn new(waker: ReactorWaker) -> Self {
        Self {
            commands: Mutex::new(Some(Vec::new())),
            has_commands: AtomicBool::new(false),
            is_asleep: AtomicBool::new(false),
            waker,
            load: AtomicUsize::new(0),
        }
    }

    /// Sends a command. After the worker's end it is dropped, and what it holds is closed.
    pub(super) fn send(&self, command: Command) {
        match self.lock().as_mut() {
            Some(commands) => commands.push(command),
            None => return,
        }
        self.has_commands.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Takes all commands, without a lock where there are none.
    pub(super) fn take(&self) -> Vec<Command> {
        if !self.has_commands.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Returns the number of the worker's connections.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Returns whether the worker still takes commands.
    pub(super) fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Closes the queue, and drops what is in it.
    pub(super) fn close(&self) {
        // Dropping a command may send another: not under the lock.
        let commands = self.lock().take();
        drop(commands);
    }

    /// Wakes the worker if it sleeps. The caller has stored before what the worker is to find.
    pub(super) fn wake(&self) {
        if self.is_asleep.swap(false, Ordering::SeqCst)
            && let Err(error) = self.waker.wake()
        {
            log::error!(error:%; "wake_failed");
        }
    }

    /// Announces that the worker is about to wait; returns whether commands have come before, so
    /// that it must not.
    pub(super) fn fall_asleep(&self) -> bool {
        self.is_asleep.store(true, Ordering::SeqCst);
        self.has_commands.load(Ordering::SeqCst)
    }

    /// Announces that the worker runs, and looks at the queue before it waits again.
    pub(super) fn awake(&self) {
        self.is_asleep.store(false, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Command>>> {
        lock(&self.commands)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::net::reactor::Reactor;

    #[test]
    fn no_command_is_lost_between_the_check_and_the_wait() {
        const COMMANDS: usize = 20_000;
        let (reactor, waker) = Reactor::new().unwrap();
        let queue = Arc::new(Queue::new(waker));
        let sender = thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                for _ in 0..COMMANDS {
                    queue.send(Command::Cut(Group::default()));
                }
                queue.send(Command::Stop);
            }
        });
        // A lost wake-up leaves this waiting for ever.
        let mut taken = 0;
        loop {
            let is_busy = queue.fall_asleep();
            reactor.wait(is_busy).unwrap();
            queue.awake();
            let commands = queue.take();
            taken += commands.len();
            if commands.iter().any(|command| matches!(command, Command::Stop)) {
                break;
            }
        }
        sender.join().unwrap();
        assert_eq!(taken, COMMANDS + 1);
    }

    #[test]
    fn nothing_is_made_for_those_that_have_given_up() {
        let (asker, answers) = smol::channel::unbounded();
        tell(&asker, || 7);
        assert_eq!(answers.try_recv(), Ok(7));
        drop(answers);
        tell(&asker, || panic!("nobody waits for this"));
    }

    #[test]
    fn a_closed_queue_drops_what_it_holds_and_gets() {
        let (_reactor, waker) = Reactor::new().unwrap();
        let queue = Queue::new(waker);
        let group = Group::default();
        queue.send(Command::Cut(group.clone()));
        assert_eq!(group.members(), 2);
        queue.close();
        queue.send(Command::Cut(group.clone()));
        assert_eq!(group.members(), 1);
        assert!(!queue.is_open() && queue.take().is_empty());
    }
}
