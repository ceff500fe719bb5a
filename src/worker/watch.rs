//! Asks workers whether their event loops still turn, and for their tunnels.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::queue::Command;
use super::{Shared, Workers};
use crate::lock::lock;
use crate::shutdown::{AllDropped, guard};
use crate::tunnel::{CloseOrder, Ordered, TunnelFilter, TunnelView};

/// The workers of a set, each with at most one question that it has not answered yet.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    asked: Vec<Mutex<Option<Arc<Question>>>>,
}

/// A question to one worker, which its loop answers by dropping the command.
pub(crate) struct Question {
    /// Time at which it was asked.
    pub(crate) asked: Instant,
    answered: AllDropped,
}

impl Watch {
    /// Watches these workers. It keeps their queues, but not their threads.
    pub(crate) fn new(workers: &Workers) -> Self {
        let shared = Arc::clone(&workers.0.shared);
        let asked = shared.queues.iter().map(|_| Mutex::default()).collect();
        Self { shared, asked }
    }

    /// Returns whether these workers are the same threads.
    pub(crate) fn is_of(&self, workers: &Workers) -> bool {
        Arc::ptr_eq(&self.shared, &workers.0.shared)
    }

    /// Returns the number of workers.
    pub(crate) fn count(&self) -> usize {
        self.asked.len()
    }

    /// Asks the worker with this index, unless a question waits for its answer already: that one is
    /// returned then, so that any number of askers costs the worker one command.
    pub(crate) fn ask(&self, index: usize, now: Instant) -> Arc<Question> {
        let mut asked = lock(&self.asked[index]);
        if let Some(waiting) = asked.as_ref().filter(|question| !question.answered.is_over()) {
            return Arc::clone(waiting);
        }
        let (guard, answered) = guard();
        let question = Arc::new(Question { asked: now, answered });
        *asked = Some(Arc::clone(&question));
        self.shared.queues[index].send(Command::Answer(guard));
        question
    }

    /// Waits for the answer to a question of this worker; returns false if it comes from a worker
    /// that has ended, whose queue drops what it gets.
    pub(crate) async fn answer(&self, index: usize, question: &Question) -> bool {
        question.answered.wait().await;
        self.shared.queues[index].is_open()
    }

    /// Returns the newest tunnels of those that are meant, at most so many, the newest first. It
    /// waits for every worker that has not ended.
    pub(crate) async fn list(&self, filter: &TunnelFilter, limit: usize) -> Vec<TunnelView> {
        let list = |answer| Command::List(filter.clone(), limit, answer);
        let mut views: Vec<_> = self.shared.ask_all(list).await.into_iter().flatten().collect();
        views.sort_unstable_by_key(|view| Reverse(view.description.id));
        views.truncate(limit);
        views
    }

    /// Closes the tunnels that are meant; returns their number, with those that were ending anyway.
    /// It waits likewise.
    pub(crate) async fn close(&self, filter: &TunnelFilter, order: &Arc<CloseOrder>) -> usize {
        let Ordered { meant, .. } = self.shared.close(filter, order).await;
        meant
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_lite::future;

    use super::*;

    #[test]
    fn a_worker_that_is_stalled_is_asked_once_and_answers_when_it_goes_on() {
        let workers = Workers::start(1).unwrap();
        let watch = Watch::new(&workers);
        let ask = || watch.ask(0, Instant::now());
        assert!(future::block_on(async { watch.answer(0, &ask()).await }));

        let (stalled, is_stalled) = mpsc::channel();
        let (go_on, told) = mpsc::channel::<()>();
        let group = workers.group(None);
        group.start_task(move |_| async move {
            stalled.send(()).unwrap();
            told.recv().unwrap_err();
        });
        is_stalled.recv().unwrap();
        let first = ask();
        for _ in 0..100 {
            assert!(Arc::ptr_eq(&first, &ask()));
        }
        let answer = future::block_on(future::poll_once(watch.answer(0, &first)));
        assert_eq!(answer, None);
        drop(go_on);
        assert!(future::block_on(watch.answer(0, &first)));
        assert!(!Arc::ptr_eq(&first, &ask()));
    }

    #[test]
    fn a_worker_that_has_ended_does_not_answer() {
        let workers = Workers::start(1).unwrap();
        let watch = Watch::new(&workers);
        drop(workers);
        let question = watch.ask(0, Instant::now());
        assert!(!future::block_on(watch.answer(0, &question)));
    }
}
