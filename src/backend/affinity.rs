//! The backends of sessions, by keys that the backends have chosen themselves.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lock::lock;

/// Sessions of a generation, which take 2.2 MiB.
const GENERATION_MAX: usize = 65_536;

/// Remembers the backend of each key, by the hash of its address: at least of the
/// [`GENERATION_MAX`] that were used last. Two generations take the place of times: when the young
/// one is full, the old one is forgotten.
#[derive(Debug, Default)]
struct Affinity {
    young: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
}

impl Affinity {
    /// Remembers the backend of a key, in the place of an earlier one.
    fn insert(&mut self, key: u64, backend: u64) {
        if self.young.len() == GENERATION_MAX && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, backend);
    }

    /// Returns the backend of a key.
    fn get(&mut self, key: u64) -> Option<u64> {
        if let Some(&backend) = self.young.get(&key) {
            return Some(backend);
        }
        let backend = *self.old.get(&key)?;
        self.insert(key, backend);
        Some(backend)
    }
}

/// An [`Affinity`] for all workers. While it is empty, a look at it is one load.
#[derive(Debug, Default)]
pub(super) struct SharedAffinity {
    has_any: AtomicBool,
    affinity: Mutex<Affinity>,
}

impl SharedAffinity {
    /// Remembers the hash of the backend that a key belongs to.
    pub(super) fn insert(&self, key: u64, backend: u64) {
        lock(&self.affinity).insert(key, backend);
        self.has_any.store(true, Ordering::Release);
    }

    /// Returns the hash of the backend that a key belongs to, if that is known.
    pub(super) fn get(&self, key: u64) -> Option<u64> {
        if !self.has_any.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.affinity).get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_from_the_first_one_on() {
        let affinity = SharedAffinity::default();
        assert_eq!(affinity.get(7), None);
        affinity.insert(7, 1);
        assert_eq!((affinity.get(7), affinity.get(8)), (Some(1), None));
        affinity.insert(7, 2);
        assert_eq!(affinity.get(7), Some(2));
    }

    #[test]
    fn those_that_were_not_used_for_long_are_forgotten() {
        let mut affinity = Affinity::default();
        let last = 3 * GENERATION_MAX as u64;
        for key in 0..last {
            affinity.insert(key, key);
            // In use.
            assert_eq!(affinity.get(0), Some(0), "{key}");
        }
        assert_eq!(affinity.get(1), None);
        let kept = last - GENERATION_MAX as u64 + 1;
        assert!((kept..last).all(|key| affinity.get(key) == Some(key)));
        assert!(affinity.young.len() <= GENERATION_MAX && affinity.old.len() <= GENERATION_MAX);
    }

    #[test]
    fn a_key_that_is_known_takes_no_place_of_another() {
        let mut affinity = Affinity::default();
        (0..GENERATION_MAX as u64).for_each(|key| affinity.insert(key, 0));
        affinity.insert(0, 1);
        assert_eq!((affinity.get(0), affinity.old.len()), (Some(1), 0));
    }
}
