//! A section that serves: its settings of the moment, and what is asked of its listener.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::lock::lock;
use crate::net::name::BoundAddress;
use crate::section::Section;
use crate::settings::{Drain, Settings};
use crate::shutdown::Shutdown;

/// A section from the opening of its port to the end of its last connection.
#[derive(Debug)]
pub(crate) struct LiveSection {
    /// Address to listen on as it was given, with which new settings are checked.
    pub(crate) bind: String,
    /// Section of the settings in force, for connections that are still to come.
    current: Mutex<Arc<Section>>,
    /// Number of reloads, so that only after one the accept loop takes the lock.
    reloads: AtomicUsize,
    /// Begins when its accept loop has begun, or has failed to.
    pub(crate) start: Shutdown,
    /// Its accept loop runs.
    pub(crate) is_accepting: Flag,
    /// Its drain has begun.
    pub(crate) is_draining: Flag,
    /// Begins when its port is to be closed, while its tunnels stay.
    pub(crate) retirement: Shutdown,
    /// Begins when it is to drain, be it alone.
    pub(crate) shutdown: Shutdown,
}

/// A truth about a section that its threads tell each other.
#[derive(Debug, Default)]
pub(crate) struct Flag(AtomicBool);

/// The section of a connection that is accepted now, for the accept loop.
pub(crate) struct Latest<'a> {
    live: &'a LiveSection,
    section: Arc<Section>,
    reloads: usize,
}

impl LiveSection {
    /// Creates a section that listens on the address of `bind` and does not accept yet.
    pub(crate) fn new(bind: String, section: Section) -> Self {
        Self {
            bind,
            current: Mutex::new(Arc::new(section)),
            reloads: AtomicUsize::new(0),
            start: Shutdown::new(),
            is_accepting: Flag::default(),
            is_draining: Flag::default(),
            retirement: Shutdown::new(),
            shutdown: Shutdown::new(),
        }
    }

    /// Returns the section with the settings in force.
    pub(crate) fn current(&self) -> Arc<Section> {
        Arc::clone(&self.lock())
    }

    /// Returns the address that it listens on.
    pub(crate) fn local(&self) -> BoundAddress {
        self.lock().local.clone()
    }

    /// Replaces the settings for the connections that are accepted from now on, and for the drain.
    pub(crate) fn reload(&self, settings: (Settings, Drain)) {
        let mut current = self.lock();
        *current = Arc::new(current.successor(settings));
        self.reloads.fetch_add(1, Ordering::Release);
    }

    /// Locks; no code that can panic runs under the lock, and none that waits.
    fn lock(&self) -> MutexGuard<'_, Arc<Section>> {
        lock(&self.current)
    }
}

impl Drop for LiveSection {
    /// Tells those who wait for a start that there will be none.
    fn drop(&mut self) {
        self.start.begin();
    }
}

impl<'a> Latest<'a> {
    pub(crate) fn of(live: &'a LiveSection) -> Self {
        // Counted first: a reload in between is found again, and not missed.
        let reloads = live.reloads.load(Ordering::Acquire);
        Self { live, section: live.current(), reloads }
    }

    /// Returns the section for the next connection.
    pub(crate) fn get(&mut self) -> &Arc<Section> {
        if self.live.reloads.load(Ordering::Acquire) != self.reloads {
            *self = Self::of(self.live);
        }
        &self.section
    }
}

impl Flag {
    pub(crate) fn set(&self, value: bool) {
        self.0.store(value, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{RawDrain, RawSection};

    fn settings(raw: RawSection) -> (Settings, Drain) {
        let drain = RawDrain::default().check().unwrap();
        let raw = RawSection {
            bind: Some("127.0.0.1:0".to_owned()),
            backends: Some(vec!["a:1".into()]),
            ..raw
        };
        (raw.check(&drain).unwrap(), drain)
    }

    #[test]
    fn a_reload_is_for_what_comes_after_it() {
        let local = BoundAddress::Ip("127.0.0.1:8080".parse().unwrap());
        let first = settings(RawSection { max_connections: Some(1), ..RawSection::default() });
        let live =
            LiveSection::new("127.0.0.1:0".to_owned(), Section::new(first, local.clone(), None));
        let mut latest = Latest::of(&live);
        let before = Arc::clone(latest.get());
        let permit = before.connections.take();
        assert!(permit.is_some() && Arc::ptr_eq(&before, latest.get()));

        let name = Some("chat".to_owned());
        let second = RawSection { name, max_connections: Some(2), ..RawSection::default() };
        live.reload(settings(second));
        let after = Arc::clone(latest.get());
        assert_eq!((&*before.name, &*after.name), ("127.0.0.1:8080", "chat"));
        assert_eq!((&after.local, live.local()), (&local, local.clone()));
        // One place was taken before it, under the other limit.
        let another = after.connections.take();
        assert!(another.is_some() && after.connections.take().is_none());
        assert_eq!(before.connections.taken(), 2);
    }
}
