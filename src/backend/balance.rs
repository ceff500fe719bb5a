//! The order in which backends are tried.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Round-robin without a lock: a counter of handshakes.
#[derive(Debug, Default)]
pub(crate) struct RoundRobin {
    next: AtomicUsize,
}

impl RoundRobin {
    /// Creates one that goes on where this one is.
    pub(crate) fn successor(&self) -> Self {
        Self { next: AtomicUsize::new(self.next.load(Ordering::Relaxed)) }
    }

    /// Returns the order in which one handshake tries `count` backends, as indices: each once,
    /// beginning one after the first of the previous handshake.
    pub(crate) fn order(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        // Relaxed: the counter guards no other memory.
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count.max(1);
        (0..count).map(move |step| (first + step) % count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_is_first_in_turn_and_tried_once() {
        let balance = RoundRobin::default();
        let orders: Vec<Vec<usize>> = (0..4).map(|_| balance.order(3).collect()).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
        assert_eq!(balance.order(0).count(), 0);
    }
}
