//! Endings: the tunnels that ended last, on their way from the workers to the admin listener.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use concurrent_queue::ConcurrentQueue;

use crate::lock::lock;
use crate::net::name::Peer;

/// Number of endings that are kept.
pub(crate) const KEPT: usize = 100;

/// A tunnel that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) time: SystemTime,
    /// Time from the accept to the end.
    pub(crate) lifetime: Duration,
    pub(crate) section: String,
    pub(crate) id: u64,
    pub(crate) client: Peer,
    pub(crate) backend: String,
    /// Path that the client asked for, without its query.
    pub(crate) path: Option<String>,
    /// Name of the side that ended it.
    pub(crate) ended_by: &'static str,
    /// Name of the reason.
    pub(crate) reason: &'static str,
    /// Codes of the Closes that client, backend and proxy sent.
    pub(crate) closes: [Option<u16>; 3],
}

/// The last [`KEPT`] endings of all sections.
///
/// Workers push into a queue that never makes them wait; where it is full, the oldest ending makes
/// room. The lock is between readers only.
#[derive(Debug)]
pub(crate) struct Endings {
    unread: ConcurrentQueue<Ending>,
    /// What has been taken out of the queue, the oldest first.
    read: Mutex<VecDeque<Ending>>,
    since: SystemTime,
}

impl Endings {
    /// Returns the time since which they are kept.
    pub(crate) fn since(&self) -> SystemTime {
        self.since
    }

    /// Adds an ending.
    pub(crate) fn push(&self, ending: Ending) {
        // It is an error only in a queue that is closed, which this one never is.
        let _ = self.unread.force_push(ending);
    }

    /// Maps the endings, the newest first.
    pub(crate) fn map<T>(&self, of: impl Fn(&Ending) -> T) -> Vec<T> {
        let mut read = lock(&self.read);
        // Bounded, however fast tunnels end meanwhile.
        read.extend(self.unread.try_iter().take(KEPT));
        let surplus = read.len().saturating_sub(KEPT);
        read.drain(..surplus);
        read.iter().rev().map(of).collect()
    }
}

impl Default for Endings {
    fn default() -> Self {
        Self {
            unread: ConcurrentQueue::bounded(KEPT),
            read: Mutex::default(),
            since: SystemTime::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(id: u64) -> Ending {
        Ending {
            time: SystemTime::UNIX_EPOCH,
            lifetime: Duration::ZERO,
            section: "chat".to_owned(),
            id,
            client: Peer::Ip([192, 0, 2, 1].into(), 1),
            backend: "a:1".to_owned(),
            path: None,
            ended_by: "client",
            reason: "client_close",
            closes: [Some(1_000), None, None],
        }
    }

    #[test]
    fn the_last_ones_are_kept_the_newest_first() {
        let endings = Endings::default();
        let ids = || endings.map(|ending| ending.id);
        assert!(ids().is_empty());
        (0..3).for_each(|id| endings.push(ending(id)));
        assert_eq!(ids(), [2, 1, 0]);
        // What has been read stays, until newer ones take its place.
        endings.push(ending(3));
        assert_eq!(ids(), [3, 2, 1, 0]);
        (4..=100).for_each(|id| endings.push(ending(id)));
        assert_eq!(ids(), (1..=100).rev().collect::<Vec<_>>());
        // So it is where nobody reads meanwhile.
        (101..=999).for_each(|id| endings.push(ending(id)));
        assert_eq!(ids(), (900..=999).rev().collect::<Vec<_>>());
        assert_eq!(ids().len(), KEPT);
    }

    #[test]
    fn none_is_lost_between_several_threads() {
        let endings = Endings::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let endings = &endings;
                scope.spawn(move || (0..25).for_each(|at| endings.push(ending(25 * thread + at))));
            }
            // Reading goes on beside them.
            while endings.map(|ending| ending.id).len() < KEPT {}
        });
        let mut ids = endings.map(|ending| ending.id);
        ids.sort_unstable();
        assert_eq!(ids, (0..100).collect::<Vec<_>>());
    }
}
