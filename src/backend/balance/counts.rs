//! Numbers of tunnels: one per backend, shared by its boards and claims, and closely packed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// Counts per chunk: 1 KiB, 16 cache lines.
pub(super) const CHUNK: usize = 256;

/// A block of counts that never moves, so that handles can point into it.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Chunk([AtomicU32; CHUNK]);

/// The counts of many backends. Clones share them.
///
/// Memory is that of the most counts held at one time: chunks are reused, not freed.
#[derive(Clone, Debug, Default)]
pub(crate) struct CountSlab(Arc<Mutex<Slots>>);

#[derive(Debug, Default)]
struct Slots {
    chunks: Vec<Arc<Chunk>>,
    /// Slots without a holder, the lowest first: counts taken together lie together.
    free: BinaryHeap<Reverse<usize>>,
}

/// A count in a [`CountSlab`]. Clones share it; the last one dropped returns its slot.
#[derive(Clone)]
pub(crate) struct SharedCount(Arc<Slot>);

struct Slot {
    slab: CountSlab,
    chunk: Arc<Chunk>,
    /// Number of the slot in the slab; its low bits are the position in the chunk.
    number: usize,
}

impl CountSlab {
    /// Returns a count of 0 that nobody else holds.
    pub(crate) fn take(&self) -> SharedCount {
        let mut slots = lock(&self.0);
        if slots.free.is_empty() {
            let first = slots.chunks.len() * CHUNK;
            slots.chunks.push(Arc::new(Chunk([const { AtomicU32::new(0) }; CHUNK])));
            slots.free.extend((first..first + CHUNK).map(Reverse));
        }
        // Filled above, so the default is never taken.
        let number = slots.free.pop().map_or(0, |Reverse(number)| number);
        let chunk = Arc::clone(&slots.chunks[number / CHUNK]);
        chunk.at(number).store(0, Ordering::Relaxed);
        SharedCount(Arc::new(Slot { slab: self.clone(), chunk, number }))
    }
}

impl SharedCount {
    /// Returns the number of leases that are held, in all boards.
    pub(crate) fn get(&self) -> u32 {
        // Relaxed, as everywhere here: a count guards no other memory.
        self.cell().load(Ordering::Relaxed)
    }

    /// Adds 1, or returns `false` if the count has reached `cap`. No reader ever sees more than
    /// the cap: an increment that is given back would make others fail for nothing.
    pub(super) fn try_increment(&self, cap: u32) -> bool {
        self.cell()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < cap).then(|| count + 1)
            })
            .is_ok()
    }

    /// Takes back one successful [`try_increment`](Self::try_increment).
    pub(crate) fn decrement(&self) {
        let before = self.cell().fetch_sub(1, Ordering::Relaxed);
        debug_assert_ne!(before, 0, "a count fell below 0");
    }

    /// Returns the chunk of the count, and its position there.
    pub(super) fn slot(&self) -> (&Arc<Chunk>, usize) {
        (&self.0.chunk, self.0.number % CHUNK)
    }

    fn cell(&self) -> &AtomicU32 {
        self.0.chunk.at(self.0.number)
    }
}

impl Chunk {
    /// Returns the count at a position, which is taken modulo the size of the chunk.
    #[inline]
    pub(super) fn at(&self, position: usize) -> &AtomicU32 {
        &self.0[position % CHUNK]
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slab.0).free.push(Reverse(self.number));
    }
}

impl fmt::Debug for SharedCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedCount").field(&self.get()).finish()
    }
}
