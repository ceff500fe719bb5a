//! Whose turn it is.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Round-robin without a lock.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    next: AtomicUsize,
}

impl Rotation {
    /// The order in which `count` backends are tried for one handshake: each once, beginning one further than for
    /// the handshake before.
    pub(crate) fn turn(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        // Relaxed is enough: nothing else is read or written in dependence of the number.
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count.max(1);
        (0..count).map(move |step| (first + step) % count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_is_first_in_turn_and_tried_once() {
        let rotation = Rotation::default();
        let turns: Vec<Vec<usize>> = (0..4).map(|_| rotation.turn(3).collect()).collect();
        assert_eq!(turns, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
        assert_eq!(rotation.turn(0).count(), 0);
    }
}
