//! Shutdown: how it is announced, and how its end is awaited.
//!
//! [`Shutdown`] goes down, from the program to the sections and their accept loops: time to stop.
//! A [`Guard`] comes back up: whoever holds one is still at work, and [`AllDropped`] waits for the
//! last of them. Both are channels that nothing is ever sent on; their news is that they close.

use std::convert::Infallible;
use std::fmt;

use smol::channel::{Receiver, Sender, WeakSender, bounded};

/// Announces a shutdown to everything that serves.
///
/// All clones are one shutdown: it begins once, for all of them, and stays begun. Dropping clones
/// does not begin it. It depends on no executor and can be shared between threads, so that one
/// `Shutdown` can stop several [proxies](crate::BoundProxy::run) together:
///
/// ```
/// use ws_proxy::{Shutdown, WsProxy};
///
/// let bound = WsProxy::new(["127.0.0.1:9000"]).listen("127.0.0.1:0")?;
/// let shutdown = Shutdown::new();
///
/// let stop = shutdown.clone();
/// let serving = std::thread::spawn(|| {
///     smol::block_on(bound.run(async move { stop.begun().await }))
/// });
/// // … and when it is time to go:
/// shutdown.begin();
/// serving.join().unwrap();
/// # Ok::<(), ws_proxy::Error>(())
/// ```
#[derive(Clone)]
pub struct Shutdown {
    /// Closed when it begins. Held here, so that the channel does not close by itself.
    announce: Sender<Infallible>,
    announced: Receiver<Infallible>,
}

impl Shutdown {
    /// Creates a shutdown that has not begun.
    #[must_use]
    pub fn new() -> Self {
        let (announce, announced) = bounded(1);
        Self { announce, announced }
    }

    /// Begins the shutdown, and wakes everyone who awaits it. Later calls have no effect.
    pub fn begin(&self) {
        self.announce.close();
    }

    /// Returns true once the shutdown has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.announce.is_closed()
    }

    /// Completes when the shutdown begins, or at once if it has.
    pub async fn begun(&self) {
        until_closed(&self.announced).await;
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").field("has_begun", &self.has_begun()).finish()
    }
}

/// Keeps [`AllDropped`] waiting while it, or a clone of it, exists.
#[derive(Clone, Debug)]
pub(crate) struct Guard(Sender<Infallible>);

/// A guard that keeps nobody waiting, and can become one that does.
#[derive(Debug)]
pub(crate) struct WeakGuard(WeakSender<Infallible>);

/// Waits for the last clone of a [`Guard`].
#[derive(Debug)]
pub(crate) struct AllDropped(Receiver<Infallible>);

/// Creates a guard, and what waits for it and its clones.
pub(crate) fn guard() -> (Guard, AllDropped) {
    let (guard, dropped) = bounded(1);
    (Guard(guard), AllDropped(dropped))
}

impl Guard {
    pub(crate) fn downgrade(&self) -> WeakGuard {
        WeakGuard(self.0.downgrade())
    }
}

impl WeakGuard {
    /// Returns a guard, or `None` if all guards have been dropped and the wait is over.
    pub(crate) fn upgrade(&self) -> Option<Guard> {
        self.0.upgrade().map(Guard)
    }
}

impl AllDropped {
    /// Completes when no guard is left, or at once if none is. It can be awaited several times.
    pub(crate) async fn wait(&self) {
        until_closed(&self.0).await;
    }

    /// Returns whether no guard is left.
    #[cfg(feature = "admin")]
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_closed()
    }
}

async fn until_closed(channel: &Receiver<Infallible>) {
    // Nothing can be sent, so that an error, the channel's end, is all that this returns.
    let Err(_closed) = channel.recv().await;
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::thread;

    use futures_lite::future;

    use super::*;

    /// Polls a future once.
    fn is_complete(future: impl Future<Output = ()>) -> bool {
        future::block_on(future::poll_once(future)).is_some()
    }

    #[test]
    fn a_shutdown_begins_once_for_all_clones() {
        let shutdown = Shutdown::default();
        drop(shutdown.clone());
        assert!(!shutdown.has_begun() && !is_complete(shutdown.begun()));
        let waiting = {
            let shutdown = shutdown.clone();
            thread::spawn(move || future::block_on(shutdown.begun()))
        };
        let clone = shutdown.clone();
        clone.begin();
        clone.begin();
        waiting.join().unwrap();
        assert!(shutdown.has_begun() && is_complete(shutdown.begun()));
    }

    #[test]
    fn the_last_guard_ends_the_wait() {
        let (guard, all_dropped) = guard();
        let clone = guard.clone();
        drop(guard);
        assert!(!is_complete(all_dropped.wait()));
        drop(clone);
        assert!(is_complete(all_dropped.wait()) && is_complete(all_dropped.wait()));
    }

    #[test]
    fn a_weak_guard_keeps_nobody_waiting_until_it_is_upgraded() {
        let (guard, all_dropped) = guard();
        let weak = guard.downgrade();
        let upgraded = weak.upgrade();
        drop(guard);
        assert!(upgraded.is_some() && !is_complete(all_dropped.wait()));
        drop(upgraded);
        assert!(is_complete(all_dropped.wait()));
        assert!(weak.upgrade().is_none());
    }
}
