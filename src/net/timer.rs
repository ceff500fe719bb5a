//! Timers of a thread's event loop.

use std::future::{self, Future};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::reactor::Reactor;

/// Future that completes when its time has come. It may be awaited several times.
#[derive(Debug)]
pub(crate) struct Timer {
    reactor: Rc<Reactor>,
    /// `None` lies beyond all times.
    deadline: Option<Instant>,
    /// Number of the reactor's timer, while one is set.
    set: Option<u64>,
}

impl Timer {
    /// Creates a timer that completes after `time`.
    pub(crate) fn after(reactor: &Rc<Reactor>, time: Duration) -> Self {
        let deadline = reactor.now().checked_add(time);
        Self { reactor: Rc::clone(reactor), deadline, set: None }
    }

    fn clear(&mut self) {
        if let (Some(deadline), Some(number)) = (self.deadline, self.set.take()) {
            self.reactor.clear_timer(deadline, number);
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        // The waker may differ from that of the last poll.
        self.clear();
        if self.reactor.now() >= deadline {
            return Poll::Ready(());
        }
        self.set = Some(self.reactor.set_timer(deadline, context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Returns the future's output, or `None` if it takes longer than `time`.
///
/// The timer is set only if the future does not complete at its first poll.
pub(crate) async fn within<T>(
    reactor: &Rc<Reactor>,
    time: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut timer = Timer::after(reactor, time);
    let mut work = std::pin::pin!(work);
    future::poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Pin::new(&mut timer).poll(context).map(|()| None),
    })
    .await
}

/// Returns the result of I/O, for which running out of time is one more error.
///
/// # Errors
///
/// Those of the I/O; `TimedOut` if it takes longer than `time`.
pub(crate) async fn io_within<T>(
    reactor: &Rc<Reactor>,
    time: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    within(reactor, time, work).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
pub(crate) mod tests {
    use smol::LocalExecutor;

    use super::*;

    /// Runs a future on a reactor to its end.
    pub(crate) fn run<T: 'static>(
        reactor: &Rc<Reactor>,
        work: impl Future<Output = T> + 'static,
    ) -> T {
        let executor = LocalExecutor::new();
        let task = executor.spawn(work);
        while !task.is_finished() {
            if !executor.try_tick() {
                reactor.wait(false).unwrap();
                let _ = reactor.dispatch(|_| {});
            }
        }
        futures_lite::future::block_on(task)
    }

    fn reactor() -> Rc<Reactor> {
        Rc::new(Reactor::new().unwrap().0)
    }

    #[test]
    fn a_timer_completes_after_its_time_and_stays_complete() {
        let reactor = reactor();
        let start = reactor.now();
        let mut timer = Timer::after(&reactor, Duration::from_millis(5));
        let end = run(&reactor, {
            let reactor = Rc::clone(&reactor);
            async move {
                (&mut timer).await;
                (&mut timer).await;
                reactor.now()
            }
        });
        assert!(end >= start + Duration::from_millis(5));
    }

    #[test]
    fn a_timer_is_set_once_however_often_it_is_polled_and_cleared_with_its_drop() {
        let reactor = reactor();
        let mut timer = Timer::after(&reactor, Duration::from_secs(3_600));
        let mut context = Context::from_waker(std::task::Waker::noop());
        for _ in 0..3 {
            assert!(Pin::new(&mut timer).poll(&mut context).is_pending());
            assert_eq!(reactor.timers(), 1);
        }
        drop(timer);
        assert_eq!(reactor.timers(), 0);
    }

    #[test]
    fn work_that_is_late_is_dropped_and_work_in_time_is_not() {
        let reactor = reactor();
        let time = Duration::from_millis(5);
        let with = Rc::clone(&reactor);
        let late = async move { within(&with, time, future::pending::<()>()).await };
        assert_eq!(run(&reactor, late), None);
        let with = Rc::clone(&reactor);
        let at_once = async move { within(&with, Duration::ZERO, async { 7 }).await };
        assert_eq!(run(&reactor, at_once), Some(7));
    }

    #[test]
    fn a_time_beyond_all_times_is_never() {
        let reactor = reactor();
        let forever = Timer::after(&reactor, Duration::MAX);
        let first = run(&reactor, async move {
            let soon = Timer::after(&forever.reactor, Duration::from_millis(5));
            futures_lite::future::or(
                async {
                    soon.await;
                    "soon"
                },
                async {
                    forever.await;
                    "forever"
                },
            )
            .await
        });
        assert_eq!(first, "soon");
    }
}
