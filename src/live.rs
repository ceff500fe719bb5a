//! A section that serves: its settings of the moment, and what is asked of its listener.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::backend::Backend;
use crate::backend::names::WatchedNames;
use crate::backend::pool::Succession;
use crate::events::BackendEvent;
use crate::lock::lock;
use crate::net::name::BoundAddress;
use crate::section::{Life, Section};
use crate::settings::{Drain, OnRemoved, Resolve, Settings};
use crate::shutdown::Shutdown;

/// A section from the opening of its port to the end of its last connection.
#[derive(Debug)]
pub(crate) struct LiveSection {
    /// Address to listen on as it was given, with which new settings are checked.
    pub(crate) bind: String,
    current: Mutex<Current>,
    /// Number of sections that have followed each other: only after one the accept loop takes the
    /// lock.
    reloads: AtomicUsize,
    /// Begins when its accept loop has begun, or has failed to.
    pub(crate) start: Shutdown,
    /// What its connections are told of it.
    pub(crate) life: Arc<Life>,
    /// Begins when its port is to be closed, while its tunnels stay.
    pub(crate) retirement: Shutdown,
    /// Begins when it is to drain, be it alone.
    pub(crate) shutdown: Shutdown,
}

/// The section of the moment.
#[derive(Debug)]
struct Current {
    /// Section of the settings in force, for connections that are still to come.
    section: Arc<Section>,
    /// Names among its backends, where they are watched.
    names: WatchedNames,
    news: News,
}

/// What has happened to the backends of a section since somebody asked for it.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Those that were added, and are to get their share of the tunnels.
    pub(crate) added: Vec<Arc<Backend>>,
    /// Those that were removed, and whose tunnels are to be closed.
    pub(crate) drained: Vec<Arc<Backend>>,
}

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
            life: Arc::clone(&section.life),
            current: Mutex::new(Current::new(section)),
            reloads: AtomicUsize::new(0),
            start: Shutdown::new(),
            retirement: Shutdown::new(),
            shutdown: Shutdown::new(),
        }
    }

    /// Returns the section with the settings in force.
    pub(crate) fn current(&self) -> Arc<Section> {
        Arc::clone(&self.lock().section)
    }

    /// Returns the address that it listens on.
    pub(crate) fn local(&self) -> BoundAddress {
        self.lock().section.local.clone()
    }

    /// Replaces the settings for the connections that are accepted from now on, and for the drain.
    pub(crate) fn reload(&self, settings: (Settings, Drain)) {
        let mut current = self.lock();
        current.watch(&settings.0);
        self.follow(current, settings);
    }

    /// Takes the answer to a look-up of a backend's name over: each address is a backend for the
    /// connections that are accepted from now on.
    pub(crate) fn answer(&self, name: &str, answer: io::Result<Vec<SocketAddr>>) {
        let mut current = self.lock();
        if current.names.update(name, answer).is_empty() {
            return;
        }
        let settings = (current.section.settings.clone(), current.section.drain);
        let (section, Succession { added, resolved, removed, .. }) = self.follow(current, settings);
        for backend in resolved.iter().chain(&added) {
            BackendEvent::Added(backend).emit(&section);
        }
        for backend in &removed {
            BackendEvent::Removed(backend).emit(&section);
        }
    }

    /// Returns the section with the settings in force, and takes what has happened to its backends
    /// since the last call.
    pub(crate) fn take_news(&self) -> (Arc<Section>, News) {
        let mut current = self.lock();
        (Arc::clone(&current.section), std::mem::take(&mut current.news))
    }

    /// Has a section with these settings follow the current one.
    fn follow(
        &self,
        mut current: MutexGuard<'_, Current>,
        settings: (Settings, Drain),
    ) -> (Arc<Section>, Succession) {
        let backends = current.names.expand(&settings.0.backends);
        let (section, succession) = current.section.successor(settings, backends, Instant::now());
        let section = Arc::new(section);
        self.life.follow(&section);
        let before = std::mem::replace(&mut current.section, Arc::clone(&section));
        if section.settings.rebalance.is_some() {
            current.news.added.extend(succession.added.iter().cloned());
        }
        if section.settings.on_removed == OnRemoved::Drain {
            current.news.drained.extend(succession.removed.iter().cloned());
        }
        self.reloads.fetch_add(1, Ordering::Release);
        drop(current);
        before.superseded.begin();
        for (backend, change) in &succession.changes {
            BackendEvent::Health { backend, change }.emit(&section);
        }
        (section, succession)
    }

    /// Locks; no code that can panic runs under the lock, and none that waits.
    fn lock(&self) -> MutexGuard<'_, Current> {
        lock(&self.current)
    }
}

impl Current {
    fn new(section: Section) -> Self {
        let (names, news) = (WatchedNames::default(), News::default());
        let mut current = Self { section: Arc::new(section), names, news };
        let section = Arc::clone(&current.section);
        section.life.follow(&section);
        current.watch(&section.settings);
        current
    }

    /// Watches the names of these settings, and no others.
    fn watch(&mut self, settings: &Settings) {
        match settings.resolve {
            Resolve::Watch => self.names.watch(&settings.backends),
            Resolve::Connect => self.names.clear(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{RawDrain, RawSection};

    fn backends(live: &LiveSection) -> Vec<String> {
        live.current().pool.backends().map(|one| one.name().to_owned()).collect()
    }

    #[test]
    fn the_addresses_of_a_watched_name_are_backends_across_reloads() {
        let raw = || RawSection {
            resolve: Some(Resolve::Watch),
            on_removed: Some(OnRemoved::Drain),
            rebalance: Some(true),
            ..RawSection::default()
        };
        let local = BoundAddress::Ip("127.0.0.1:8080".parse().unwrap());
        let section = Section::new(settings(raw()), local, None);
        let live = LiveSection::new("127.0.0.1:0".to_owned(), section);
        let answer = |last: &[u8]| {
            let address = |last: &u8| SocketAddr::from(([192, 0, 2, *last], 1));
            live.answer("a:1", Ok(last.iter().map(address).collect()));
        };
        assert_eq!(backends(&live), ["a:1"]);
        let first = live.current();
        answer(&[1, 2]);
        assert_eq!(backends(&live), ["192.0.2.1:1", "192.0.2.2:1"]);
        assert!(first.superseded.has_begun() && !live.current().superseded.has_begun());
        // What the name has come to is neither new nor gone.
        let (_, News { added, drained }) = live.take_news();
        assert_eq!((added.len(), drained.len()), (0, 0));

        let second = live.current();
        live.answer("a:1", Err(io::ErrorKind::NotFound.into()));
        answer(&[2, 1]);
        assert!(Arc::ptr_eq(&second, &live.current()));
        live.reload(settings(raw()));
        assert_eq!(backends(&live), ["192.0.2.1:1", "192.0.2.2:1"]);
        answer(&[2, 3]);
        assert_eq!(backends(&live), ["192.0.2.2:1", "192.0.2.3:1"]);
        let (_, News { added, drained }) = live.take_news();
        let names = |of: &[Arc<Backend>]| -> Vec<_> {
            of.iter().map(|one| one.name().to_owned()).collect()
        };
        assert_eq!(
            (names(&added), names(&drained)),
            (vec!["192.0.2.3:1".to_owned()], vec!["192.0.2.1:1".to_owned()],)
        );
        live.reload(settings(RawSection::default()));
        assert_eq!(backends(&live), ["a:1"]);
    }

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
