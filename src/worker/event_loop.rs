//! One worker's event loop: tasks and tunnels take turns between two waits.

use std::future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use smol::LocalExecutor;

use super::queue::{Command, Queue, Task, tell};
use super::{Handle, Local};
use crate::tunnel::{Group, Tunnels};

/// The event loop of one thread.
pub(super) struct EventLoop {
    queue: Arc<Queue>,
    local: Rc<Local>,
    tasks: Vec<GroupTasks>,
    tunnels: Tunnels,
}

/// The tasks of one group. Dropping it drops them.
struct GroupTasks {
    group: Group,
    /// Runs the executor's tasks when it is polled. It never completes.
    runner: Task,
    executor: Rc<LocalExecutor<'static>>,
    signal: Arc<TaskSignal>,
    waker: Waker,
}

/// Notes that a task of a group can go on, and wakes the worker. See [`Queue`] for the protocol.
struct TaskSignal {
    is_set: AtomicBool,
    queue: Arc<Queue>,
}

impl EventLoop {
    /// Creates an event loop without tasks and tunnels.
    ///
    /// # Errors
    ///
    /// Those of the system, such as no descriptors left.
    pub(super) fn new(queue: Arc<Queue>, local: Local) -> io::Result<Self> {
        let tunnels = Tunnels::new(&local.reactor, local.index)?;
        Ok(Self { queue, local: Rc::new(local), tasks: Vec::new(), tunnels })
    }

    /// Runs tasks and tunnels until it is told to stop, then ends those that are left.
    pub(super) fn run(mut self) {
        if let Err(error) = self.serve() {
            log::error!(error:%; "worker_failed");
        }
        while let Some(tasks) = self.tasks.last() {
            let group = tasks.group.clone();
            group.cut();
            self.cut(&group);
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let reactor = Rc::clone(&self.local.reactor);
        loop {
            reactor.wait(self.is_busy())?;
            self.queue.awake();

            // All events are recorded before the first tunnel moves, so each gets one turn for all
            // of its own.
            let has_more = reactor.dispatch(|token| self.tunnels.on_event(token));
            // Tasks before tunnels: a handshake that completes hands its tunnel over in time for
            // its first turn, in which the client gets the 101.
            self.run_tasks();
            if self.take_over() {
                // A new client's head is mostly there: it gets its first turn without another wait.
                self.run_tasks();
                self.take_over();
            }
            self.tunnels.advance(has_more);

            // Commands last: what they start gets its turn in the next round, which does not wait.
            for command in self.queue.take() {
                match command {
                    Command::Start(group, start) => {
                        let handle = Handle { local: Rc::clone(&self.local), group };
                        let group = handle.group.clone();
                        self.spawn(&group, start(handle));
                    }
                    Command::Drain(group, spread) => self.tunnels.drain(&group, spread),
                    Command::Cut(group) => self.cut(&group),
                    #[cfg(feature = "admin")]
                    Command::Answer(guard) => drop(guard),
                    #[cfg(feature = "admin")]
                    Command::List(filter, limit, answer) => {
                        tell(&answer, || self.tunnels.list(&filter, limit));
                    }
                    Command::Oldest(filter, count, answer) => {
                        tell(&answer, || self.tunnels.oldest(&filter, count));
                    }
                    Command::Count(filter, answer) => {
                        tell(&answer, || self.tunnels.count_meant(&filter));
                    }
                    Command::Close(filter, order, answer) => {
                        // Whoever asked may have gone away, and means it all the same.
                        let _ = answer.try_send(self.tunnels.close(&filter, &order));
                    }
                    Command::Stop => return Ok(()),
                }
            }
        }
    }

    /// Returns whether there is something to do before the next event. If not, others wake the
    /// worker from now on.
    fn is_busy(&self) -> bool {
        self.tunnels.is_busy()
            || self.queue.fall_asleep()
            || self.tasks.iter().any(|tasks| tasks.signal.is_set.load(Ordering::SeqCst))
    }

    fn run_tasks(&mut self) {
        for tasks in &mut self.tasks {
            tasks.run();
        }
    }

    /// Takes over the tasks and tunnels that tasks have started; returns whether there were tasks.
    fn take_over(&mut self) -> bool {
        let started = self.local.started.take();
        let have_started = !started.is_empty();
        for (group, task) in started {
            self.spawn(&group, task);
        }
        for (group, tunnel, account) in self.local.opened.take() {
            self.tunnels.insert(tunnel, group, account);
        }
        have_started
    }

    /// Starts a task, unless its group is cut: another worker may still send one.
    fn spawn(&mut self, group: &Group, task: Task) {
        if group.is_cut() {
            return;
        }
        let at = self.tasks.iter().position(|tasks| tasks.group.is(group)).unwrap_or_else(|| {
            self.tasks.push(GroupTasks::new(group.clone(), &self.queue));
            self.tasks.len() - 1
        });
        self.tasks[at].executor.spawn(task).detach();
    }

    /// Ends a group's tasks, then its tunnels, those included that the tasks have left to be taken
    /// over.
    fn cut(&mut self, group: &Group) {
        self.tasks.retain(|tasks| !tasks.group.is(group));
        self.take_over();
        self.tunnels.cut(group);
    }
}

impl GroupTasks {
    fn new(group: Group, queue: &Arc<Queue>) -> Self {
        let executor = Rc::new(LocalExecutor::new());
        let running = Rc::clone(&executor);
        let runner = Box::pin(async move { running.run(future::pending()).await });
        let signal =
            Arc::new(TaskSignal { is_set: AtomicBool::new(true), queue: Arc::clone(queue) });
        let waker = Waker::from(Arc::clone(&signal));
        Self { group, runner, executor, signal, waker }
    }

    /// Runs the tasks that can go on.
    fn run(&mut self) {
        if self.signal.is_set.swap(false, Ordering::SeqCst) {
            let _pending = self.runner.as_mut().poll(&mut Context::from_waker(&self.waker));
        }
    }
}

impl Wake for TaskSignal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_set.store(true, Ordering::SeqCst);
        self.queue.wake();
    }
}
