//! Places of the admin listener's connections, of which there are few.
//!
//! One that waits for its client has lent its place: where all are taken, a new connection gets
//! that of the one that has waited longest. So neither connections that are kept open nor slow ones
//! keep a probe out, whose failure would have the whole process restarted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_lite::future;

use crate::lock::lock;
use crate::section::{Permit, Permits};
use crate::shutdown::Shutdown;

/// All places.
pub(super) struct Places {
    permits: Permits,
    lent: Arc<Lent>,
}

/// The place of one connection, given back on drop.
pub(super) struct Place {
    /// `None` while it is lent, and after it was lost.
    permit: Option<Permit>,
    /// Number of the last wait.
    wait: u64,
    lent: Arc<Lent>,
}

/// Places whose connections wait for their clients.
#[derive(Default)]
struct Lent(Mutex<Waits>);

#[derive(Default)]
struct Waits {
    /// Number of the next wait.
    next: u64,
    /// By the number of the wait, so that the longest one is first: the place, and what ends the
    /// wait.
    places: BTreeMap<u64, (Permit, Shutdown)>,
}

impl Places {
    /// Creates this many places.
    pub(super) fn new(count: usize) -> Self {
        Self { permits: Permits::new(Some(count)), lent: Arc::default() }
    }

    /// Takes a place: a free one, or that of the connection that has waited longest for its client,
    /// whose wait ends. Returns `None` if all others are being answered.
    pub(super) fn take(&self) -> Option<Place> {
        let permit = self.permits.take().or_else(|| {
            let (_, (permit, needed)) = self.lent.lock().places.pop_first()?;
            needed.begin();
            Some(permit)
        })?;
        Some(Place { permit: Some(permit), wait: 0, lent: Arc::clone(&self.lent) })
    }
}

impl Place {
    /// Awaits what depends on the client; returns `None` if the place was needed for another
    /// meanwhile.
    pub(super) async fn lend<T>(&mut self, waiting: impl Future<Output = T>) -> Option<T> {
        let needed = Shutdown::new();
        {
            let mut waits = self.lent.lock();
            self.wait = waits.next;
            waits.next += 1;
            waits.places.insert(self.wait, (self.permit.take()?, needed.clone()));
        }
        let lost = async {
            needed.begun().await;
            None
        };
        let result = future::or(lost, async { Some(waiting.await) }).await;
        self.permit = self.lent.lock().places.remove(&self.wait).map(|(permit, _)| permit);
        self.permit.as_ref().and(result)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A wait may be cut.
        self.lent.lock().places.remove(&self.wait);
    }
}

impl Lent {
    fn lock(&self) -> MutexGuard<'_, Waits> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
        future::block_on(future::poll_once(future))
    }

    #[test]
    fn the_one_that_has_waited_longest_gives_way() {
        let places = Places::new(2);
        let (mut first, mut second) = (places.take().unwrap(), places.take().unwrap());
        assert!(places.take().is_none(), "nobody waits");
        let mut one = pin!(first.lend(future::pending::<()>()));
        let mut other = pin!(second.lend(future::pending::<()>()));
        assert_eq!((poll(&mut one), poll(&mut other)), (None, None));
        let third = places.take().unwrap();
        assert_eq!((poll(&mut one), poll(&mut other)), (Some(None), None));
        let fourth = places.take().unwrap();
        assert_eq!(poll(&mut other), Some(None));
        assert!(places.take().is_none());
        drop(third);
        assert!(places.take().is_some());
        drop(fourth);
    }

    #[test]
    fn a_place_comes_back_with_the_end_of_the_wait() {
        let places = Places::new(1);
        let mut place = places.take().unwrap();
        for _ in 0..3 {
            assert_eq!(poll(place.lend(future::ready(7))), Some(Some(7)));
            assert!(places.take().is_none());
        }
        // A wait that is cut, with its connection.
        assert_eq!(poll(place.lend(future::pending::<()>())), None);
        drop(place);
        assert!(places.permits.take().is_some());
        assert!(places.lent.lock().places.is_empty());
    }
}
