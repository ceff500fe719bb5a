//! Timers of a thread's event loop.

use std::future::{self, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::reactor::Reactor;

/// Completes when its time has come. It can be waited for several times.
#[derive(Debug)]
pub(crate) struct Timer {
    reactor: Rc<Reactor>,
    /// `None`: beyond all times.
    deadline: Option<Instant>,
    /// The number of the timer that is set.
    set: Option<u64>,
}

impl Timer {
    /// A timer for so long from now on.
    pub(crate) fn after(reactor: &Rc<Reactor>, time: Duration) -> Self {
        Self { reactor: Rc::clone(reactor), deadline: reactor.now().checked_add(time), set: None }
    }

    fn cancel(&mut self) {
        if let (Some(deadline), Some(number)) = (self.deadline, self.set.take()) {
            self.reactor.cancel(deadline, number);
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        // The waker may be another one than at the last poll.
        self.cancel();
        if self.reactor.now() >= deadline {
            return Poll::Ready(());
        }
        self.set = Some(self.reactor.at(deadline, context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The future's output, or `None` if it takes longer than `time`.
///
/// The timer is set only if the work does not complete at once.
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
