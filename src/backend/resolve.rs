//! Look-ups of backends' names, on a few threads of their own.
//!
//! getaddrinfo(3) blocks, for many seconds if the name server is silent, so it runs on no event
//! loop. Each name has at most one look-up in flight, which all who need it share, and thereby at
//! most one thread. Names wait for a thread in the order in which they were asked for. Four threads
//! are enough while the resolver answers. A name that has waited for 250 ms gets a thread all the
//! same, up to 16 in all: so names that hang hold up others only when there are 16 of them. Threads
//! end when they have had nothing to do for 10 s, those above four at once.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use smol::channel::{Receiver, Sender, bounded};

use super::answers::{Addresses, Advice, Answers, patience};
use crate::lock::lock;
use crate::net::reactor::Reactor;
use crate::net::timer::within;

/// Threads while look-ups end in time.
const THREADS: usize = 4;
/// Threads at most, of which all but [`THREADS`] are started for names that have waited.
const THREADS_MAX: usize = 16;
/// Time for which a name waits for one of the [`THREADS`].
const HURRY: Duration = Duration::from_millis(250);
/// Time after which an idle thread ends.
const IDLE: Duration = Duration::from_secs(10);

/// Blocking look-up of a host's addresses, with any port.
type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The look-ups of a process.
pub(crate) struct Resolver {
    look_up: Box<LookUp>,
    /// Time after which an idle thread ends.
    idle: Duration,
    /// Names in use, by their spelling in lower case.
    names: Mutex<HashMap<String, Weak<Name>>>,
    work: Mutex<Work>,
    /// Told of each name that is queued.
    queued: Condvar,
}

/// Names that wait for a thread, and the threads.
#[derive(Debug, Default)]
struct Work {
    /// Each name at most once.
    queue: VecDeque<Arc<Name>>,
    threads: usize,
    /// Threads without a name, those that are starting included.
    idle: usize,
}

/// A host's name, shared by all backends that have it, whatever their port or section.
pub(crate) struct Name {
    resolver: Arc<Resolver>,
    host: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    answers: Answers,
    /// Ends of a channel that is closed at the end of the look-up under way, which wakes all who
    /// wait for it.
    done: Option<(Sender<Infallible>, Receiver<Infallible>)>,
}

impl Resolver {
    /// Returns the one of this process, which asks the system.
    pub(crate) fn of_process() -> &'static Arc<Self> {
        static RESOLVER: LazyLock<Arc<Resolver>> =
            LazyLock::new(|| Resolver::new(|host| Ok((host, 0).to_socket_addrs()?.collect())));
        &RESOLVER
    }

    pub(crate) fn new(
        look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            look_up: Box::new(look_up),
            idle: IDLE,
            names: Mutex::default(),
            work: Mutex::default(),
            queued: Condvar::new(),
        })
    }

    /// Returns the name of this host, with the answers that are known of it.
    pub(crate) fn name(self: &Arc<Self>, host: &str) -> Arc<Name> {
        let host = host.to_ascii_lowercase();
        let mut names = lock(&self.names);
        if let Some(name) = names.get(&host).and_then(Weak::upgrade) {
            return name;
        }
        names.retain(|_, name| name.strong_count() > 0);
        let resolver = Arc::clone(self);
        let name = Arc::new(Name { resolver, host: host.clone(), state: Mutex::default() });
        names.insert(host, Arc::downgrade(&name));
        name
    }

    /// Queues a name, which is in no queue and on no thread.
    fn queue(self: &Arc<Self>, name: Arc<Name>) {
        let mut work = lock(&self.work);
        work.queue.push_back(name);
        self.staff(work, THREADS);
    }

    /// Gives a name that still waits for a thread a new one, if there may be one more.
    fn hurry(self: &Arc<Self>, name: &Arc<Name>) {
        let work = lock(&self.work);
        if work.queue.iter().any(|queued| Arc::ptr_eq(queued, name)) {
            self.staff(work, THREADS_MAX);
        }
    }

    /// Wakes a thread for the queue, or starts one if all have a name and there are fewer than
    /// `max`.
    fn staff(self: &Arc<Self>, mut work: MutexGuard<'_, Work>, max: usize) {
        if work.queue.len() <= work.idle || work.threads >= max {
            self.queued.notify_one();
            return;
        }
        let resolver = Arc::clone(self);
        let thread = thread::Builder::new().name("resolver".to_owned());
        let error = match thread.spawn(move || resolver.serve()) {
            Ok(_) => {
                work.threads += 1;
                work.idle += 1;
                return;
            }
            Err(error) => error,
        };
        // Other threads come to the queue in the end. Without any, nobody may wait for it.
        if work.threads == 0 {
            let code = error.raw_os_error().unwrap_or_default();
            let stranded = std::mem::take(&mut work.queue);
            drop(work);
            for name in stranded {
                name.record(Err(io::Error::from_raw_os_error(code)));
            }
        }
    }

    /// Looks up one name after the other: the life of a thread.
    fn serve(&self) {
        let mut work = lock(&self.work);
        loop {
            if let Some(name) = work.queue.pop_front() {
                work.idle -= 1;
                drop(work);
                name.record((self.look_up)(&name.host));
                // A name that nobody uses any more goes before the lock is held again.
                drop(name);
                work = lock(&self.work);
                work.idle += 1;
                continue;
            }
            let is_extra = work.threads > THREADS;
            let wait = if is_extra { Duration::ZERO } else { self.idle };
            let (after, waited) =
                self.queued.wait_timeout(work, wait).unwrap_or_else(PoisonError::into_inner);
            work = after;
            if waited.timed_out() && work.queue.is_empty() {
                work.threads -= 1;
                work.idle -= 1;
                return;
            }
        }
    }
}

impl State {
    /// Returns what is closed at the end of the look-up under way.
    fn end_of_look_up(&mut self) -> Receiver<Infallible> {
        let (_, done) = self.done.get_or_insert_with(|| bounded(1));
        done.clone()
    }
}

impl Name {
    /// Returns the addresses of the host, at least one, without blocking the calling thread: those
    /// that were found less than `interval` ago, else those of a look-up, which `timeout` bounds.
    /// Where that fails or does not end, the last ones serve for another 30 s.
    ///
    /// # Errors
    ///
    /// Those of the resolver; `NotFound` for a name without addresses; `TimedOut`.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        reactor: &Rc<Reactor>,
        timeout: Duration,
        interval: Duration,
    ) -> io::Result<Addresses> {
        let done = match self.ask(reactor.now(), interval) {
            Ok(addresses) => return Ok(addresses),
            Err(done) => done,
        };
        let mut left = timeout;
        for pause in [HURRY, patience(interval).saturating_sub(HURRY), Duration::MAX] {
            let pause = pause.min(left);
            left -= pause;
            // The channel carries nothing: it is closed when the look-up has ended.
            if within(reactor, pause, done.recv()).await.is_some() {
                return self.lock().answers.outcome(reactor.now(), interval);
            }
            self.resolver.hurry(self);
            if let Some(addresses) = self.lock().answers.overdue(reactor.now(), interval) {
                return Ok(addresses);
            }
        }
        let usable = self.lock().answers.usable(reactor.now(), interval);
        usable.ok_or_else(|| io::ErrorKind::TimedOut.into())
    }

    /// Looks the host up, or joins the look-up under way; returns its answer, at least one address.
    ///
    /// # Errors
    ///
    /// Those of the resolver; `NotFound` for a name without addresses; `TimedOut` after `timeout`.
    pub(crate) async fn look_up(
        self: &Arc<Self>,
        reactor: &Rc<Reactor>,
        timeout: Duration,
    ) -> io::Result<Addresses> {
        let (begins, done) = self.begin(reactor.now());
        if begins {
            self.resolver.queue(Arc::clone(self));
        }
        if within(reactor, HURRY.min(timeout), done.recv()).await.is_none() {
            self.resolver.hurry(self);
            let left = timeout.saturating_sub(HURRY);
            if within(reactor, left, done.recv()).await.is_none() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        self.lock().answers.latest()
    }

    /// Returns whether a look-up begins with this, and the end of the one under way.
    fn begin(&self, now: Instant) -> (bool, Receiver<Infallible>) {
        let mut state = self.lock();
        (state.answers.begin(now), state.end_of_look_up())
    }

    /// Returns the addresses, or else the end of the look-up to wait for.
    fn ask(
        self: &Arc<Self>,
        now: Instant,
        interval: Duration,
    ) -> Result<Addresses, Receiver<Infallible>> {
        let mut state = self.lock();
        let (addresses, begins) = match state.answers.ask(now, interval) {
            Advice::Use(addresses) => return Ok(addresses),
            Advice::Refresh(addresses) => (Some(addresses), true),
            Advice::LookUp => (None, true),
            Advice::Wait => (None, false),
        };
        let done = state.end_of_look_up();
        drop(state);
        if begins {
            self.resolver.queue(Arc::clone(self));
        }
        addresses.ok_or(done)
    }

    /// Records the end of a look-up, and wakes all who wait for it.
    fn record(&self, result: io::Result<Vec<SocketAddr>>) {
        let mut state = self.lock();
        state.answers.record(result, Instant::now());
        // After the record: whoever wakes finds it.
        if let Some((done, _)) = state.done.take() {
            done.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Name").field("host", &self.host).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use smol::LocalExecutor;

    use super::*;
    use crate::net::timer::tests::run;

    /// More than any test takes.
    const LONG: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3_600);

    /// A resolver with one address for every host, and the end of its hanging: hosts that begin
    /// with `hang` fail when the sender is dropped, and not before.
    fn resolver() -> (Arc<Resolver>, Sender<()>, Arc<AtomicUsize>) {
        let (hanging, released) = bounded::<()>(1);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let resolver = Resolver::new(move |host| {
            counted.fetch_add(1, Ordering::Relaxed);
            if host.starts_with("hang") {
                let _ = released.recv_blocking();
                return Err(io::Error::other("released"));
            }
            Ok(vec![address()])
        });
        (resolver, hanging, count)
    }

    fn address() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 0))
    }

    /// Runs a look-up for each of these names side by side, to the end of all, after `begun`.
    fn resolve_all(
        names: &[Arc<Name>],
        (timeout, interval): (Duration, Duration),
        begun: impl FnOnce(),
    ) -> Vec<io::Result<Addresses>> {
        let reactor = Rc::new(Reactor::new().unwrap().0);
        let executor = LocalExecutor::new();
        let start = |name: &Arc<Name>| {
            let (reactor, name) = (Rc::clone(&reactor), Arc::clone(name));
            executor.spawn(async move { name.resolve(&reactor, timeout, interval).await })
        };
        let tasks: Vec<_> = names.iter().map(start).collect();
        while executor.try_tick() {}
        begun();
        while !tasks.iter().all(|task| task.is_finished()) {
            if !executor.try_tick() {
                // Another thread's answer does not end this reactor's wait.
                reactor.wait(true).unwrap();
                reactor.dispatch(|_| {});
                thread::yield_now();
            }
        }
        tasks.into_iter().map(futures_lite::future::block_on).collect()
    }

    fn resolve(name: &Arc<Name>, times: (Duration, Duration)) -> io::Result<Addresses> {
        resolve_all(&[Arc::clone(name)], times, || {}).pop().unwrap()
    }

    fn names(resolver: &Arc<Resolver>, prefix: &str, count: usize) -> Vec<Arc<Name>> {
        (0..count).map(|number| resolver.name(&format!("{prefix}{number}"))).collect()
    }

    fn threads(resolver: &Resolver) -> usize {
        lock(&resolver.work).threads
    }

    #[test]
    fn all_who_wait_for_a_name_share_one_look_up() {
        let (resolver, hanging, count) = resolver();
        let hosts = ["hang", "HANG"].into_iter().cycle().take(800);
        let waiting: Vec<_> = hosts.map(|host| resolver.name(host)).collect();
        let results = resolve_all(&waiting, (LONG, Duration::ZERO), || drop(hanging));
        assert_eq!(results.len(), 800);
        assert!(
            results.iter().all(|result| {
                result.as_ref().is_err_and(|error| error.to_string() == "released")
            })
        );
        assert_eq!((count.load(Ordering::Relaxed), threads(&resolver)), (1, 1));
    }

    #[test]
    fn an_answer_is_used_for_its_interval() {
        let (resolver, _hanging, count) = resolver();
        let name = resolver.name("well");
        for (interval, looked_up) in [(HOUR, 1), (HOUR, 1), (Duration::ZERO, 2), (HOUR, 2)] {
            assert_eq!(*resolve(&name, (LONG, interval)).unwrap(), [address()]);
            assert_eq!(count.load(Ordering::Relaxed), looked_up);
        }
        // Another section's backend of that name profits as well; nobody remembers it for ever.
        assert!(Arc::ptr_eq(&name, &resolver.name("Well")));
        drop(name);
        resolver.name("other");
        assert_eq!(lock(&resolver.names).len(), 1);
    }

    #[test]
    fn a_look_up_that_is_asked_for_is_made_and_tells_its_own_outcome() {
        let answers = Mutex::new(vec![Ok(vec![address()]), Ok(vec![]), Err("down")]);
        let resolver =
            Resolver::new(move |_| lock(&answers).pop().unwrap().map_err(io::Error::other));
        let name = resolver.name("name");
        let outcomes = [(); 3].map(|()| {
            let (reactor, name) = (Rc::new(Reactor::new().unwrap().0), Arc::clone(&name));
            let asking = Rc::clone(&reactor);
            let outcome = run(&reactor, async move { name.look_up(&asking, LONG).await });
            outcome.map(|found| found.len()).map_err(|error| error.to_string())
        });
        let expected = [Err("down".to_owned()), Err("the name has no addresses".to_owned()), Ok(1)];
        assert_eq!(outcomes, expected);
    }

    #[test]
    fn a_name_with_an_answer_takes_few_threads_however_many_ask() {
        let (resolver, _hanging, _) = resolver();
        let all = names(&resolver, "well", 100);
        let results = resolve_all(&all, (LONG, HOUR), || {});
        assert!(results.iter().all(Result::is_ok));
        assert!(threads(&resolver) <= THREADS, "{}", threads(&resolver));
    }

    #[test]
    fn names_that_hang_hold_up_no_other() {
        let (resolver, hanging, _) = resolver();
        let stuck = names(&resolver, "hang", THREADS_MAX - 1);
        let short = Duration::from_millis(600);
        let results = resolve_all(&stuck, (short, HOUR), || {});
        assert!(results.iter().all(|result| {
            result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
        }));
        assert_eq!(threads(&resolver), THREADS_MAX - 1);
        // A name that hangs already takes no second thread.
        assert!(resolve(&stuck[0], (HURRY, HOUR)).is_err());
        assert!(resolve(&resolver.name("well"), (LONG, HOUR)).is_ok());
        let more = names(&resolver, "hanging", 3);
        resolve_all(&more, (short, HOUR), || {});
        assert_eq!(threads(&resolver), THREADS_MAX);
        drop(hanging);
        assert!(resolve(&resolver.name("other"), (LONG, HOUR)).is_ok());
        // Those that were more than enough end with their name.
        while threads(&resolver) > THREADS {
            thread::yield_now();
        }
    }

    #[test]
    fn while_the_name_server_is_silent_the_known_addresses_serve() {
        let (resolver, hanging, count) = resolver();
        let name = resolver.name("hang");
        name.record(Ok(vec![address()]));
        let short = Duration::from_millis(20);
        assert_eq!(*resolve(&name, (LONG, Duration::ZERO)).unwrap(), [address()]);
        // A short timeout ends the wait as well.
        assert_eq!(*resolve(&name, (short, Duration::ZERO)).unwrap(), [address()]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // So they do when it fails.
        let results = resolve_all(&[name], (LONG, Duration::ZERO), || drop(hanging));
        assert_eq!(**results[0].as_ref().unwrap(), [address()]);
    }

    #[test]
    fn idle_threads_end() {
        let resolver = Arc::new(Resolver {
            look_up: Box::new(|_| Ok(vec![address()])),
            idle: Duration::from_millis(1),
            names: Mutex::default(),
            work: Mutex::default(),
            queued: Condvar::new(),
        });
        for _ in 0..3 {
            let results = resolve_all(&names(&resolver, "well", 9), (LONG, HOUR), || {});
            assert!(results.iter().all(Result::is_ok));
            while threads(&resolver) > 0 {
                thread::yield_now();
            }
        }
        assert_eq!(lock(&resolver.work).idle, 0);
    }
}
