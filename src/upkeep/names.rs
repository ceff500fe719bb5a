//! Looks the names of backends up again and again, off the way of handshakes.

use std::net::SocketAddr;
use std::time::Duration;

use super::SectionAccess;
use crate::events::BackendEvent;
use crate::net::timer::Timer;
use crate::settings::Settings;

/// A name that is watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WatchedName {
    /// Name and port, as they are configured.
    authority: String,
    host: String,
    port: u16,
    /// Time between two look-ups.
    interval: Duration,
    /// Time for which one is awaited.
    timeout: Duration,
}

/// Returns the names among the backends of these settings.
pub(super) fn watched(settings: &Settings) -> Vec<WatchedName> {
    let names = settings.backends.iter().map(|backend| &backend.address).filter(|it| it.is_name());
    let watched = names.filter_map(|address| {
        Some(WatchedName {
            authority: address.authority.clone(),
            host: address.host()?.to_owned(),
            port: address.port()?,
            interval: settings.resolve_interval,
            timeout: settings.connect_timeout,
        })
    });
    watched.collect()
}

/// Looks a name up at once, and then after each interval.
pub(super) async fn watch(access: &SectionAccess, watched: WatchedName) {
    let WatchedName { authority, host, port, interval, timeout } = watched;
    let reactor = access.handle.reactor();
    let name = access.resolver.name(&host);
    let mut is_failing = false;
    loop {
        let answer = name.look_up(reactor, timeout).await;
        let Some(live) = access.live.upgrade() else { return };
        let section = live.current();
        match &answer {
            Err(error) if !is_failing => {
                BackendEvent::LookUpFailed { name: &authority, error }.emit(&section);
            }
            Ok(_) if is_failing => {
                BackendEvent::LookUpRecovered { name: &authority }.emit(&section);
            }
            _ => {}
        }
        is_failing = answer.is_err();
        let addresses = answer.map(|found| {
            let with_port = |mut address: SocketAddr| {
                address.set_port(port);
                address
            };
            found.iter().copied().map(with_port).collect()
        });
        live.answer(&authority, addresses);
        drop((live, section));
        Timer::after(reactor, interval).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

    use super::*;
    use crate::backend::resolve::Resolver;
    use crate::live::LiveSection;
    use crate::net::name::BoundAddress;
    use crate::section::Section;
    use crate::settings::{Drain, OnRemoved, RawDrain, RawSection, Resolve};
    use crate::upkeep;
    use crate::worker::{WorkGroup, Workers};

    type Answer = io::Result<Vec<SocketAddr>>;

    /// A section that serves nobody, with a resolver that answers as the test says.
    struct Bench {
        live: Arc<LiveSection>,
        asked: Receiver<String>,
        answers: SyncSender<Answer>,
        /// Dropped before the threads that it runs on.
        _group: WorkGroup,
        _workers: Workers,
    }

    impl Bench {
        fn start(raw: RawSection) -> Self {
            let local = BoundAddress::Ip("127.0.0.1:8080".parse().unwrap());
            let section = Section::new(settings(raw), local, None);
            let live = Arc::new(LiveSection::new("127.0.0.1:0".to_owned(), section));
            let (ask, asked) = channel();
            let (answers, given) = sync_channel(0);
            let given = std::sync::Mutex::new(given);
            let resolver = Resolver::new(move |host| {
                // Once the test is over, nobody is there to ask.
                _ = ask.send(host.to_owned());
                let answer = crate::lock::lock(&given).recv();
                answer.unwrap_or_else(|over| Err(io::Error::other(over)))
            });
            let workers = Workers::start(1).unwrap();
            let group = workers.group(None);
            let kept_up = Arc::downgrade(&live);
            group.start_task(move |handle| upkeep::run(handle, kept_up, resolver));
            Self { live, asked, answers, _group: group, _workers: workers }
        }

        /// Waits for a look-up of this name; those before it have been taken over by then.
        fn expect_look_up(&self, host: &str) {
            assert_eq!(self.asked.recv().unwrap(), host);
        }

        /// Answers the look-up under way, and waits for the next one of that name.
        fn answer(&self, host: &str, answer: Answer) {
            self.answers.send(answer).unwrap();
            self.expect_look_up(host);
        }

        fn backends(&self) -> Vec<String> {
            self.live.current().pool.backends().map(|one| one.name().to_owned()).collect()
        }
    }

    fn settings(raw: RawSection) -> (Settings, Drain) {
        let drain = RawDrain::default().check().unwrap();
        (raw.check(&drain).unwrap(), drain)
    }

    fn raw(backends: &[&str]) -> RawSection {
        RawSection {
            bind: Some("127.0.0.1:0".to_owned()),
            backends: Some(backends.iter().map(|one| (*one).into()).collect()),
            resolve: Some(Resolve::Watch),
            resolve_interval_ms: Some(1),
            // No look-up is given up while the test goes on.
            connect_timeout_ms: Some(60_000),
            ..RawSection::default()
        }
    }

    fn found(addresses: &[&str]) -> Answer {
        Ok(addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect())
    }

    #[test]
    fn the_backends_of_a_name_are_the_addresses_of_its_last_good_answer() {
        let bench = Bench::start(raw(&["192.0.2.9:80", "app.test:9000"]));
        bench.expect_look_up("app.test");
        assert_eq!(bench.backends(), ["192.0.2.9:80", "app.test:9000"]);
        let failure = || Err(io::Error::other("no name server answers"));
        let rows: [(Answer, &[&str]); 7] = [
            (failure(), &["app.test:9000"]),
            (found(&[]), &["app.test:9000"]),
            (found(&["192.0.2.2", "192.0.2.1"]), &["192.0.2.1:9000", "192.0.2.2:9000"]),
            (
                found(&["192.0.2.2", "2001:db8::1", "192.0.2.1"]),
                &["192.0.2.1:9000", "192.0.2.2:9000", "[2001:db8::1]:9000"],
            ),
            (failure(), &["192.0.2.1:9000", "192.0.2.2:9000", "[2001:db8::1]:9000"]),
            (found(&[]), &["192.0.2.1:9000", "192.0.2.2:9000", "[2001:db8::1]:9000"]),
            (found(&["192.0.2.2"]), &["192.0.2.2:9000"]),
        ];
        for (answer, expected) in rows {
            bench.answer("app.test", answer);
            assert_eq!(bench.backends(), [&["192.0.2.9:80"], expected].concat());
        }
    }

    #[test]
    fn a_reload_goes_on_with_the_names_that_stay_and_forgets_the_others() {
        let bench = Bench::start(raw(&["app.test:9000"]));
        bench.expect_look_up("app.test");
        bench.answer("app.test", found(&["192.0.2.1", "192.0.2.2"]));
        let first = bench.live.current();
        let before: Vec<_> = first.pool.backends().map(crate::backend::Backend::id).collect();
        // In the middle of a look-up.
        bench.live.reload(settings(RawSection {
            on_removed: Some(OnRemoved::Drain),
            ..raw(&["192.0.2.9:80", "app.test:9000"])
        }));
        assert_eq!(bench.backends(), ["192.0.2.9:80", "192.0.2.1:9000", "192.0.2.2:9000"]);
        let after = bench.live.current();
        let ids: Vec<_> = after.pool.backends().map(crate::backend::Backend::id).collect();
        assert_eq!(ids[1..], before);
        bench.answer("app.test", found(&["192.0.2.2", "192.0.2.3"]));
        assert_eq!(bench.backends(), ["192.0.2.9:80", "192.0.2.2:9000", "192.0.2.3:9000"]);

        // The answer to a look-up of a name that is gone is nobody's.
        bench.live.reload(settings(raw(&["other.test:1"])));
        assert_eq!(bench.backends(), ["other.test:1"]);
        bench.answers.send(found(&["192.0.2.4"])).unwrap();
        bench.expect_look_up("other.test");
        assert_eq!(bench.backends(), ["other.test:1"]);
        bench.answer("other.test", found(&["192.0.2.5"]));
        assert_eq!(bench.backends(), ["192.0.2.5:1"]);

        // Looked up for each handshake again, it is one backend.
        bench.live.reload(settings(RawSection {
            resolve: Some(Resolve::Connect),
            ..raw(&["other.test:1"])
        }));
        assert_eq!(bench.backends(), ["other.test:1"]);
    }
}
