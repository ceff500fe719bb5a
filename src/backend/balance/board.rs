//! The state of a pool's backends that choosing reads, in contiguous memory.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::Tried;
use super::counts::{CHUNK, Chunk, SharedCount};
use crate::lock::lock;

/// Effective weight of a backend with the weight 1 and no slow start: a fixed point of 8 bits.
pub(crate) const WEIGHT_ONE: u32 = 256;

/// Greatest effective weight, 65,536 in full; greater ones are taken as this.
pub(crate) const WEIGHT_MAX: u32 = WEIGHT_ONE << 16;

/// The cap of a backend without one.
pub(crate) const NO_CAP: u32 = u32::MAX;

/// The backends of one pool, as choosing sees them. Backends are named by their index.
///
/// Each field has its own array: a scan reads full cache lines of just those it needs.
#[derive(Debug)]
pub(crate) struct Board {
    /// Effective weights, 0 for a backend that is passed over.
    weights: Box<[AtomicU32]>,
    /// Positions of the counts in `chunks`: chunk times [`CHUNK`] plus the slot in it.
    slots: Box<[u32]>,
    chunks: Vec<Arc<Chunk>>,
    caps: Box<[u32]>,
    ids: Box<[u64]>,
    /// Keep the slots of the counts.
    counts: Box<[SharedCount]>,
    /// Number of backends before the first backup.
    primaries: usize,
    has_caps: bool,
    /// Whether the weights above 0 are equal, per tier.
    uniform: [AtomicBool; 2],
    /// Number of this state of the weights, unique in the process.
    version: AtomicUsize,
    /// Held while weights change, so that `uniform` and `version` follow the latest change.
    changing: Mutex<()>,
}

/// A backend to put on a [`Board`].
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The hash of its name by [`key_of`](super::key_of).
    pub(crate) id: u64,
    /// In units of 1 / [`WEIGHT_ONE`]; 0 passes it over.
    pub(crate) weight: u32,
    /// Most tunnels at one time; [`NO_CAP`] for no limit.
    pub(crate) cap: u32,
    /// Chosen only while no primary is eligible.
    pub(crate) is_backup: bool,
    pub(crate) count: SharedCount,
}

/// Backends that are chosen from together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tier {
    Primary,
    Backup,
}

/// A backend as a scan sees it.
#[derive(Clone, Copy)]
struct Row {
    index: usize,
    /// Effective weight; 0 for a backend that is not eligible.
    weight: u32,
    count: u32,
}

impl Board {
    /// Creates a board of these backends. Backups come last: what follows the first backup is one.
    pub(crate) fn new(candidates: impl IntoIterator<Item = Candidate>) -> Self {
        let candidates: Vec<_> = candidates.into_iter().collect();
        let is_backup = |candidate: &Candidate| candidate.is_backup;
        let primaries = candidates.iter().position(is_backup).unwrap_or(candidates.len());
        debug_assert!(candidates[primaries..].iter().all(is_backup), "a primary after a backup");
        let mut chunks: Vec<Arc<Chunk>> = Vec::new();
        let slots = candidates.iter().map(|candidate| {
            let (chunk, position) = candidate.count.slot();
            // Backwards: the chunk is mostly that of the candidate before.
            let known = chunks.iter().rposition(|known| Arc::ptr_eq(known, chunk));
            let chunk = known.unwrap_or_else(|| {
                chunks.push(Arc::clone(chunk));
                chunks.len() - 1
            });
            (chunk * CHUNK + position) as u32
        });
        let board = Self {
            slots: slots.collect(),
            weights: candidates.iter().map(|one| one.weight.min(WEIGHT_MAX).into()).collect(),
            chunks,
            caps: candidates.iter().map(|one| one.cap).collect(),
            ids: candidates.iter().map(|one| one.id).collect(),
            primaries,
            has_caps: candidates.iter().any(|one| one.cap != NO_CAP),
            uniform: [AtomicBool::new(false), AtomicBool::new(false)],
            version: AtomicUsize::new(0),
            changing: Mutex::new(()),
            counts: candidates.into_iter().map(|one| one.count).collect(),
        };
        board.summarize();
        board
    }

    /// Returns the number of backends.
    pub(crate) fn len(&self) -> usize {
        self.weights.len()
    }

    /// Returns the effective weight of a backend.
    pub(crate) fn weight(&self, index: usize) -> u32 {
        self.weights[index].load(Ordering::Relaxed)
    }

    /// Sets the effective weights of all backends, in their order; 0 passes one over.
    pub(crate) fn set_weights(&self, weights: impl IntoIterator<Item = u32>) {
        let _changing = lock(&self.changing);
        let mut has_changed = false;
        for (place, weight) in self.weights.iter().zip(weights) {
            let weight = weight.min(WEIGHT_MAX);
            if place.load(Ordering::Relaxed) != weight {
                place.store(weight, Ordering::Relaxed);
                has_changed = true;
            }
        }
        if has_changed {
            self.summarize();
        }
    }

    /// Sets the effective weight of one backend.
    #[cfg(test)]
    pub(super) fn set_weight(&self, index: usize, weight: u32) {
        // The others are read while no other thread changes them.
        let of = |other| if other == index { weight } else { self.weight(other) };
        self.set_weights((0..self.len()).map(of));
    }

    /// Returns the number of tunnels of a backend, those opened through other boards included.
    #[cfg(test)]
    pub(crate) fn count(&self, index: usize) -> u32 {
        self.counts[index].get()
    }

    /// Returns whether a backend may be chosen now: it is not passed over, and below its cap.
    #[cfg(test)]
    pub(crate) fn is_eligible(&self, index: usize) -> bool {
        self.weight(index) > 0 && !self.is_full(index)
    }

    /// Returns whether a backend is chosen only while no primary is eligible.
    pub(crate) fn is_backup(&self, index: usize) -> bool {
        index >= self.primaries
    }

    /// Returns whether a backend has reached its cap.
    #[inline]
    pub(crate) fn is_full(&self, index: usize) -> bool {
        self.has_caps && count_at(&self.chunks, self.slots[index]) >= self.caps[index]
    }

    /// Counts a lease on a backend, or returns `false` if it has reached its cap. The weight is not
    /// looked at: a backend that is passed over may still be tried when no other is left.
    pub(crate) fn try_increment(&self, index: usize) -> bool {
        self.counts[index].try_increment(self.caps[index])
    }

    #[cfg(test)]
    pub(super) fn shared_count(&self, index: usize) -> SharedCount {
        self.counts[index].clone()
    }

    /// Returns the hashes of the names of all backends.
    pub(in crate::backend) fn ids(&self) -> &[u64] {
        &self.ids
    }

    pub(super) fn version(&self) -> usize {
        // Acquire: whoever sees a version sees the weights stored before it.
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn has_caps(&self) -> bool {
        self.has_caps
    }

    /// Returns whether the weights of a tier that are above 0 are equal.
    pub(super) fn is_uniform(&self, tier: Tier) -> bool {
        self.uniform[tier as usize].load(Ordering::Relaxed)
    }

    pub(super) fn range(&self, tier: Tier) -> Range<usize> {
        match tier {
            Tier::Primary => 0..self.primaries,
            Tier::Backup => self.primaries..self.len(),
        }
    }

    pub(super) fn tier(&self, index: usize) -> Tier {
        if index < self.primaries { Tier::Primary } else { Tier::Backup }
    }

    /// Returns the first eligible backend that has not been tried, from `start` round the tier.
    pub(super) fn next(&self, tier: Tier, start: usize, tried: &Tried) -> Option<usize> {
        if self.has_caps {
            self.next_of::<true>(tier, start, tried)
        } else {
            self.next_of::<false>(tier, start, tried)
        }
    }

    fn next_of<const CAPS: bool>(&self, tier: Tier, start: usize, tried: &Tried) -> Option<usize> {
        self.round(tier, start).into_iter().find_map(|part| {
            let mut weights = self.open_weights::<CAPS>(part);
            let next = weights.find(|&(index, weight)| weight > 0 && !tried.contains(index));
            next.map(|(index, _)| index)
        })
    }

    /// Returns the eligible backend with the fewest tunnels for its weight; of several, the first
    /// from `start` round the tier.
    pub(super) fn least(&self, tier: Tier, start: usize, tried: &Tried) -> Option<usize> {
        if self.has_caps {
            self.least_of::<true>(tier, start, tried)
        } else {
            self.least_of::<false>(tier, start, tried)
        }
    }

    fn least_of<const CAPS: bool>(&self, tier: Tier, start: usize, tried: &Tried) -> Option<usize> {
        // Worse than all backends that are eligible, not worse than those that are not.
        let mut least = Row { index: usize::MAX, weight: 1, count: u32::MAX };
        for part in self.round(tier, start) {
            for row in self.rows::<CAPS>(part) {
                // count / weight < least count / least weight. Seldom true, so that the branch
                // is foreseen and nothing waits for the previous comparison.
                let is_less = u64::from(row.count) * u64::from(least.weight)
                    < u64::from(least.count) * u64::from(row.weight);
                if is_less && !tried.contains(row.index) {
                    least = row;
                    if row.count == 0 {
                        return Some(row.index);
                    }
                }
            }
        }
        (least.index != usize::MAX).then_some(least.index)
    }

    /// Returns some backends with their weights and counts. `CAPS` is
    /// [`has_caps`](Self::has_caps).
    #[inline]
    fn rows<const CAPS: bool>(&self, part: Range<usize>) -> impl Iterator<Item = Row> {
        let chunks = &*self.chunks;
        let (weights, slots) = (&self.weights[part.clone()], &self.slots[part.clone()]);
        let caps = &self.caps[part.clone()];
        part.zip(weights).zip(slots).zip(caps).map(move |(((index, weight), &slot), &cap)| {
            let weight = weight.load(Ordering::Relaxed);
            let count = count_at(chunks, slot);
            let weight = if CAPS && count >= cap { 0 } else { weight };
            Row { index, weight, count }
        })
    }

    /// Returns some backends with their weights, 0 for one that is not eligible. `CAPS` is
    /// [`has_caps`](Self::has_caps). A count is read only for a cap: the compiler does not drop
    /// atomic loads that are not used.
    #[inline]
    pub(super) fn open_weights<const CAPS: bool>(
        &self,
        part: Range<usize>,
    ) -> impl Iterator<Item = (usize, u32)> {
        let chunks = &*self.chunks;
        let (weights, slots) = (&self.weights[part.clone()], &self.slots[part.clone()]);
        let caps = &self.caps[part.clone()];
        part.zip(weights).zip(slots).zip(caps).map(move |(((index, weight), &slot), &cap)| {
            let weight = weight.load(Ordering::Relaxed);
            (index, if CAPS && count_at(chunks, slot) >= cap { 0 } else { weight })
        })
    }

    /// Returns the indices of a tier from `start` to its end, and then those before.
    fn round(&self, tier: Tier, start: usize) -> [Range<usize>; 2] {
        let range = self.range(tier);
        let start = if range.contains(&start) { start } else { range.start };
        [start..range.end, range.start..start]
    }

    /// Brings `uniform` and `version` up to date.
    fn summarize(&self) {
        for tier in [Tier::Primary, Tier::Backup] {
            let mut weights = self.range(tier).map(|index| self.weight(index)).filter(|&w| w > 0);
            let first = weights.next();
            let is_uniform = weights.all(|weight| Some(weight) == first);
            self.uniform[tier as usize].store(is_uniform, Ordering::Relaxed);
        }
        static VERSIONS: AtomicUsize = AtomicUsize::new(0);
        self.version.store(VERSIONS.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Release);
    }
}

/// Returns the count at a position of [`Board::slots`].
#[inline]
fn count_at(chunks: &[Arc<Chunk>], slot: u32) -> u32 {
    let slot = slot as usize;
    chunks[slot / CHUNK].at(slot).load(Ordering::Relaxed)
}
