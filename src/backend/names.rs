//! The addresses of names that are watched. Pure: knows no clock and no resolver.

use std::net::SocketAddr;
use std::sync::Arc;

use super::pool::BackendSettings;
use crate::net::address::Address;

/// The names among the backends of a section, with their addresses.
#[derive(Debug, Default)]
pub(crate) struct WatchedNames(Vec<(Arc<str>, AddressSet)>);

/// Addresses of a name, each a backend of its own.
#[derive(Debug, Default)]
pub(crate) struct AddressSet {
    /// Each once; in the order in which they came, those that came together sorted.
    addresses: Vec<SocketAddr>,
}

/// Addresses that an answer has added and removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressChanges {
    /// Sorted.
    pub(crate) added: Vec<SocketAddr>,
    /// In the order of the set.
    pub(crate) removed: Vec<SocketAddr>,
}

impl WatchedNames {
    /// Returns the names among these backends, each once, and forgets all others.
    pub(crate) fn watch(&mut self, backends: &[BackendSettings]) {
        let names = backends.iter().map(|one| &one.address).filter(|address| address.is_name());
        let names: Vec<_> = names.map(|address| &*address.authority).collect();
        self.0.retain(|(name, _)| names.contains(&&**name));
        for name in names {
            if self.position(name).is_none() {
                self.0.push((name.into(), AddressSet::default()));
            }
        }
    }

    /// Forgets all names.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes the answer to a look-up of a name over; see [`AddressSet::update`].
    pub(crate) fn update<E>(
        &mut self,
        name: &str,
        answer: Result<Vec<SocketAddr>, E>,
    ) -> AddressChanges {
        let index = self.position(name);
        index.map(|index| self.0[index].1.update(answer)).unwrap_or_default()
    }

    /// Returns these backends with each name that has been answered for replaced by its addresses,
    /// all of them with the settings of the name.
    pub(crate) fn expand(&self, backends: &[BackendSettings]) -> Vec<BackendSettings> {
        let mut expanded = Vec::new();
        for backend in backends {
            match self.position(&backend.address.authority).map(|index| &self.0[index]) {
                Some((name, set)) if !set.addresses().is_empty() => {
                    expanded.extend(set.addresses().iter().map(|address| BackendSettings {
                        address: Address::from(*address),
                        watched: Some(Arc::clone(name)),
                        ..backend.clone()
                    }));
                }
                _ => expanded.push(backend.clone()),
            }
        }
        expanded
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|(known, _)| **known == *name)
    }
}

impl AddressSet {
    /// Takes the answer to a look-up over. A failure and an answer without an address change
    /// nothing: the last good answer stays.
    pub(crate) fn update<E>(&mut self, answer: Result<Vec<SocketAddr>, E>) -> AddressChanges {
        let mut answer = answer.unwrap_or_default();
        if answer.is_empty() {
            return AddressChanges::default();
        }
        // Name servers shuffle; the order of the backends is not to depend on it.
        answer.sort_unstable();
        answer.dedup();
        let is_in_answer = |address: &SocketAddr| answer.binary_search(address).is_ok();
        let (kept, removed): (Vec<_>, Vec<_>) =
            self.addresses.iter().partition(|a| is_in_answer(a));
        let mut known = std::mem::replace(&mut self.addresses, kept);
        known.sort_unstable();
        answer.retain(|address| known.binary_search(address).is_err());
        self.addresses.extend(&answer);
        AddressChanges { added: answer, removed }
    }

    /// Returns the addresses of the last good answer. Those that stay from one answer to the next
    /// keep their order, and new ones come after them. Empty only before the first good answer.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl AddressChanges {
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    type Answer = Result<Vec<SocketAddr>, ()>;

    fn addresses(numbers: &[u8]) -> Vec<SocketAddr> {
        numbers.iter().map(|number| SocketAddr::from(([192, 0, 2, *number], 80))).collect()
    }

    fn settings(addresses: &[&str]) -> Vec<BackendSettings> {
        let settings = addresses.iter().enumerate().map(|(index, address)| BackendSettings {
            address: Address::backend(address).unwrap(),
            watched: None,
            weight: 1 + index as u32,
            max_tunnels: None,
            is_backup: index > 1,
        });
        settings.collect()
    }

    #[test]
    fn a_name_is_a_backend_until_it_is_answered_for_and_then_each_of_its_addresses_is() {
        let all = settings(&["app:80", "192.0.2.9:80", "other", "unix:/run/app.sock", "[::1]:9"]);
        let mut names = WatchedNames::default();
        names.watch(&all);
        assert_eq!(names.expand(&all), all);
        assert!(names.update("none:80", Answer::Ok(addresses(&[1]))).is_empty());
        assert!(names.update("other", Answer::Err(())).is_empty());
        assert!(!names.update("app:80", Answer::Ok(addresses(&[2, 1]))).is_empty());
        let expanded = names.expand(&all);
        let shown: Vec<_> = { expanded.iter() }
            .map(|it| (it.address.to_string(), it.watched.as_deref(), it.weight, it.is_backup))
            .collect();
        let expected = [
            ("192.0.2.1:80".to_owned(), Some("app:80"), 1, false),
            ("192.0.2.2:80".to_owned(), Some("app:80"), 1, false),
            ("192.0.2.9:80".to_owned(), None, 2, false),
            ("other".to_owned(), None, 3, true),
            ("unix:/run/app.sock".to_owned(), None, 4, true),
            ("[::1]:9".to_owned(), None, 5, true),
        ];
        assert_eq!(shown, expected);
        // A reload that keeps the name keeps its addresses.
        names.watch(&settings(&["more", "app:80"]));
        assert_eq!(names.expand(&settings(&["app:80"])).len(), 2);
        names.watch(&settings(&["more"]));
        assert_eq!(names.expand(&settings(&["app:80"])), settings(&["app:80"]));
    }

    #[test]
    fn addresses_come_and_go_with_the_answers() {
        // Answer, added, removed, then.
        let rows: [[&[u8]; 4]; 7] = [
            [&[3, 1, 3], &[1, 3], &[], &[1, 3]],
            [&[3, 1], &[], &[], &[1, 3]],
            [&[2, 3, 1], &[2], &[], &[1, 3, 2]],
            [&[2, 4, 3], &[4], &[1], &[3, 2, 4]],
            [&[1, 2, 3, 4], &[1], &[], &[3, 2, 4, 1]],
            [&[4], &[], &[3, 2, 1], &[4]],
            [&[9, 8], &[8, 9], &[4], &[8, 9]],
        ];
        let mut set = AddressSet::default();
        assert!(set.addresses().is_empty());
        for [answer, added, removed, then] in rows {
            let changes = set.update(Answer::Ok(addresses(answer)));
            assert_eq!((changes.added, changes.removed), (addresses(added), addresses(removed)));
            assert_eq!(set.addresses(), addresses(then));
        }
    }

    #[test]
    fn without_an_address_the_last_good_answer_stays() {
        for answer in [Answer::Err(()), Answer::Ok(vec![])] {
            let mut set = AddressSet::default();
            assert!(set.update(answer.clone()).is_empty());
            assert!(set.addresses().is_empty());
            _ = set.update(Answer::Ok(addresses(&[1, 2])));
            assert!(set.update(answer).is_empty());
            assert_eq!(set.addresses(), addresses(&[1, 2]));
            assert!(set.update(Answer::Ok(addresses(&[2, 1]))).is_empty());
        }
    }

    #[test]
    fn addresses_differ_by_port_and_family() {
        let all: Vec<SocketAddr> = ["192.0.2.1:80", "192.0.2.1:81", "[::1]:80", "[fe80::1%1]:80"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let mut set = AddressSet::default();
        assert_eq!(set.update(Answer::Ok(all.clone())).added.len(), all.len());
    }

    proptest! {
        #[test]
        fn the_changes_lead_from_one_answer_to_the_next(
            answers in prop::collection::vec(
                prop::option::of(prop::collection::vec(0_u8..12, 0..10)),
                0..12,
            ),
        ) {
            let mut set = AddressSet::default();
            let mut good = BTreeSet::new();
            for answer in answers {
                let answer = answer.map(|numbers| addresses(&numbers)).ok_or(());
                let before = set.addresses().to_vec();
                let changes = set.update(answer.clone());
                let latest: BTreeSet<_> = answer.into_iter().flatten().collect();
                if !latest.is_empty() {
                    good = latest;
                }
                // The set is the last good answer, each address once.
                let after = set.addresses();
                prop_assert_eq!(after.len(), good.len());
                prop_assert_eq!(after.iter().copied().collect::<BTreeSet<_>>(), good.clone());
                // The old ones that are left, in their order, then the new ones.
                let mut led = before.clone();
                led.retain(|one| !changes.removed.contains(one));
                prop_assert_eq!(led.len() + changes.removed.len(), before.len());
                led.extend(&changes.added);
                prop_assert_eq!(led, after);
                prop_assert!(changes.added.iter().all(|one| !before.contains(one)));
            }
        }

        #[test]
        fn the_order_within_an_answer_does_not_matter(
            answers in prop::collection::vec(prop::collection::vec(0_u8..12, 1..10), 1..8),
        ) {
            let (mut one, mut other) = (AddressSet::default(), AddressSet::default());
            for answer in answers {
                let reversed: Vec<u8> = answer.iter().rev().copied().collect();
                let changes = one.update(Answer::Ok(addresses(&answer)));
                prop_assert_eq!(changes, other.update(Answer::Ok(addresses(&reversed))));
                prop_assert_eq!(one.addresses(), other.addresses());
            }
        }
    }
}
