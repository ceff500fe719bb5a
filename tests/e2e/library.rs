//! The library for embedders: builder, errors, futures, shutdown.

use std::error::Error as _;
use std::fmt::Display;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_lite::future;
use log::kv::{Key, Value, VisitSource};
use smol::LocalExecutor;
use smol::channel::{Receiver, Sender, bounded};
use ws_proxy::{BoundProxy, Error, Forwarded, HostHeader, Shutdown, WsProxy};

use crate::support::{
    Backend, PATIENCE, Peer, Proxy, assert_alive, expect_refused, table, taken_port, upgrade,
    value, wait_until,
};

/// A proxy before this backend, that has its port and does not serve yet. Its address is one whose
/// ports no other test takes as soon as they are free.
fn listen(backend: &Backend) -> BoundProxy {
    Proxy::to(&[backend]).drain_timeout_ms(60_000).listen("127.0.0.2:0").unwrap()
}

mod errors {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_with_the_systems_reason() {
        let (_listener, taken) = taken_port();
        let address = taken.to_string();
        for result in
            [WsProxy::new(["a:1"]).bind(&address), WsProxy::new(["a:1"]).listen(&address).map(drop)]
        {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::Bind { address: named, .. } if *named == address),
                "{error:?}"
            );
            assert!(error.to_string().contains(&address), "{error}");
            let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
            assert_eq!(source.unwrap().kind(), std::io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn a_socket_that_does_not_listen_on_tcp_is_an_error_that_names_the_mend() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

        let socket = |family, kind| socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        let only_bound = socket(AddressFamily::INET, SocketType::STREAM);
        bind(&only_bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let udp = socket(AddressFamily::INET, SocketType::DGRAM);
        for socket in table([only_bound, udp]) {
            let error = WsProxy::new(["a:1"]).from_listener(socket.into()).unwrap_err();
            assert!(matches!(error, Error::Bind { .. }), "{error:?}");
            assert!(error.to_string().contains("listen(2)"), "{error}");
        }
        // One that has no IP address at all.
        let unix = socket(AddressFamily::UNIX, SocketType::STREAM);
        let error = WsProxy::new(["a:1"]).from_listener(unix.into()).unwrap_err();
        assert!(matches!(error, Error::Bind { .. }), "{error:?}");
        let (listener, _) = taken_port();
        let error = WsProxy::new(["a:b"]).from_listener(listener).unwrap_err();
        assert!(matches!(error, Error::Setting { key: "backends", .. }), "{error:?}");
    }

    #[test]
    fn a_backend_that_is_no_address_is_an_error_that_names_it() {
        for backends in table([vec!["a:b"], vec!["good:1", "a:b"]]) {
            let error = WsProxy::new(backends).bind("127.0.0.1:0").unwrap_err();
            assert!(matches!(error, Error::Setting { key: "backends", .. }), "{error:?}");
            assert!(error.to_string().contains("a:b"), "{error}");
            assert!(error.source().is_none());
        }
    }

    #[test]
    fn an_error_can_be_passed_on_by_any_caller() {
        fn caller() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            WsProxy::new(["a:1"]).bind("nonsense")?;
            Ok(())
        }
        assert!(caller().unwrap_err().to_string().contains("nonsense"));
    }

    #[test]
    fn each_builder_method_has_its_error() {
        let good = || WsProxy::new(["a:1"]);
        let cases = table([
            (WsProxy::new(Vec::<String>::new()), "backends"),
            (WsProxy::new(["a:99999"]), "backends"),
            (good().connect_timeout_ms(0), "connect_timeout_ms"),
            (good().read_timeout_ms(0), "read_timeout_ms"),
            (good().response_timeout_ms(0), "response_timeout_ms"),
            (good().drain_timeout_ms(0), "drain_timeout_ms"),
            (good().origins(["example.com"]), "origins"),
            (good().origins([""; 0]), "origins"),
        ]);
        for (proxy, expected) in cases {
            let checked = proxy.check("127.0.0.1:0").unwrap_err();
            let listened = proxy.listen("127.0.0.1:0").unwrap_err();
            for error in [checked, listened] {
                assert!(
                    matches!(&error, Error::Setting { key, .. } if *key == expected),
                    "{error:?}"
                );
                assert!(error.to_string().starts_with(&format!("{expected}: ")), "{error}");
            }
        }
        assert!(matches!(good().listen("127.0.0.1"), Err(Error::Setting { key: "bind", .. })));
        assert!(good().check("127.0.0.1:0").is_ok());
    }
}

mod running {
    use super::*;

    /// A shutdown as an embedder makes it: the sender that begins it, and the future.
    fn shutdown() -> (Sender<()>, impl Future<Output = ()> + Send + 'static) {
        let (stop, stopped) = bounded(1);
        (stop, until(stopped))
    }

    /// Runs a proxy in this manner: it serves until it is told to stop, and then until its last
    /// tunnel has ended.
    fn assert_runs(run: impl FnOnce(BoundProxy, Receiver<()>) + Send) {
        let backend = Backend::start();
        let bound = listen(&backend);
        let address = bound.local_addr();
        let (stop, stopped) = bounded(1);
        thread::scope(|scope| {
            let running = scope.spawn(move || run(bound, stopped));
            let (mut client, mut server) = Peer::tunnel(address, &backend);
            assert_alive(&mut client, &mut server);
            drop(stop);
            expect_refused(address);
            assert_alive(&mut client, &mut server);
            assert!(!running.is_finished());
            drop((client, server));
            running.join().unwrap();
        });
    }

    async fn until(stopped: Receiver<()>) {
        let _ = stopped.recv().await;
    }

    #[test]
    fn a_listener_that_was_passed_serves_those_who_have_connected_before() {
        let backend = Backend::start();
        // Blocking, as an inherited socket is.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let early = Peer::connect(address);
        let bound = Proxy::to(&[&backend]).from_listener(listener).unwrap();
        assert_eq!(bound.local_addr(), address);
        let shutdown = Shutdown::new();
        thread::scope(|scope| {
            let stop = shutdown.clone();
            scope.spawn(move || smol::block_on(bound.run(async move { stop.begun().await })));
            for client in [early, Peer::connect(address)] {
                let (mut client, mut server) = client.into_tunnel(&backend);
                assert_alive(&mut client, &mut server);
            }
            shutdown.begin();
        });
    }

    #[test]
    fn it_runs_on_smols_block_on() {
        assert_runs(|bound, stopped| smol::block_on(bound.run(until(stopped))));
    }

    #[test]
    fn it_runs_on_a_block_on_without_a_reactor() {
        assert_runs(|bound, stopped| future::block_on(bound.run(until(stopped))));
    }

    #[test]
    fn it_runs_on_an_executor_of_one_thread_beside_other_work() {
        assert_runs(|bound, stopped| {
            let executor = LocalExecutor::new();
            let (counted, counts) = bounded(1);
            let other_work = executor.spawn(async move {
                for count in 0..100 {
                    counted.send(count).await.unwrap();
                    future::yield_now().await;
                }
            });
            let proxy = executor.spawn(bound.run(until(stopped)));
            future::block_on(executor.run(async {
                for count in 0..100 {
                    assert_eq!(counts.recv().await, Ok(count));
                }
                other_work.await;
                proxy.await;
            }));
        });
    }

    #[test]
    fn it_runs_on_an_executor_made_by_hand() {
        assert_runs(|bound, stopped| block_on_by_hand(bound.run(until(stopped))));
    }

    #[test]
    fn it_can_move_between_threads() {
        assert_runs(|bound, stopped| {
            // Two threads take turns at polling.
            let executor = smol::Executor::new();
            let proxy = executor.spawn(bound.run(until(stopped)));
            thread::scope(|scope| {
                let (done, ended) = bounded::<()>(1);
                let executor = &executor;
                scope.spawn(move || future::block_on(executor.run(until(ended))));
                future::block_on(executor.run(proxy));
                drop(done);
            });
        });
    }

    /// The smallest executor there is.
    fn block_on_by_hand<T>(future: impl Future<Output = T>) -> T {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    }

    #[test]
    fn the_local_address_is_known_before_it_serves() {
        let backend = Backend::start();
        let bound = listen(&backend);
        let address = bound.local_addr();
        assert_ne!(address.port(), 0);
        // A client may come already; it is served when the proxy runs.
        let mut client = Peer::sending(address, upgrade(""));
        let (stop, stopped) = shutdown();
        thread::scope(|scope| {
            scope.spawn(|| smol::block_on(bound.run(stopped)));
            let (mut server, _) = backend.accept_tunnel();
            client.read_head();
            assert_alive(&mut client, &mut server);
            drop((client, server, stop));
        });
    }

    #[test]
    fn a_bound_proxy_that_never_runs_gives_its_port_back() {
        let address = listen(&Backend::start()).local_addr();
        assert!(TcpListener::bind(address).is_ok());
    }

    #[test]
    fn a_shutdown_that_has_come_already_ends_it_at_once() {
        smol::block_on(listen(&Backend::start()).run(future::ready(())));
    }

    #[test]
    fn tunnels_that_go_on_are_cut_at_the_drain_timeout() {
        let backend = Backend::start();
        let bound = Proxy::to(&[&backend]).drain_timeout_ms(1_000).listen("127.0.0.1:0").unwrap();
        let address = bound.local_addr();
        let (stop, stopped) = shutdown();
        let running = thread::spawn(|| smol::block_on(bound.run(stopped)));
        let (mut client, mut server) = Peer::tunnel(address, &backend);
        let start = Instant::now();
        drop(stop);
        assert_alive(&mut client, &mut server);
        running.join().unwrap();
        assert!(
            start.elapsed() >= Duration::from_millis(1_000),
            "{:?} is too early",
            start.elapsed()
        );
        client.expect_end();
        server.expect_end();
    }

    #[test]
    fn dropping_the_future_cuts_the_tunnels() {
        let backend = Backend::start();
        let bound = listen(&backend);
        let address = bound.local_addr();
        let (stop, stopped) = shutdown();
        let running = thread::spawn(|| {
            smol::block_on(future::or(bound.run(future::pending()), stopped));
        });
        let (mut client, mut server) = Peer::tunnel(address, &backend);
        assert_alive(&mut client, &mut server);
        drop(stop);
        running.join().unwrap();
        client.expect_end();
        server.expect_end();
        assert!(TcpListener::bind(address).is_ok(), "the port is not free again");
    }

    #[test]
    fn dropping_the_future_tells_those_who_wait_for_an_answer() {
        let backend = Backend::start();
        let bound = listen(&backend);
        let address = bound.local_addr();
        let (stop, stopped) = shutdown();
        let running = thread::spawn(|| {
            smol::block_on(future::or(bound.run(future::pending()), stopped));
        });
        let mut stalled = Peer::sending(address, "GET / HT");
        stalled.wait_until_read();
        let (mut waiting, mut server) = Peer::handshake(address, &backend, upgrade(""));
        drop(stop);
        running.join().unwrap();
        for client in [&mut waiting, &mut stalled] {
            assert_eq!(client.read_refusal().0, 503);
        }
        server.expect_eof();
    }

    #[test]
    fn two_proxies_share_an_executor_and_end_apart() {
        let (one, two) = (Backend::start(), Backend::start());
        let (bound_one, bound_two) = (listen(&one), listen(&two));
        let (address_one, address_two) = (bound_one.local_addr(), bound_two.local_addr());
        let ((stop_one, stopped_one), (stop_two, stopped_two)) = (shutdown(), shutdown());
        let running = thread::spawn(|| {
            smol::block_on(future::zip(bound_one.run(stopped_one), bound_two.run(stopped_two)));
        });
        let (mut client, mut server) = Peer::tunnel(address_two, &two);
        drop(Peer::tunnel(address_one, &one));
        drop(stop_one);
        expect_refused(address_one);
        assert_alive(&mut client, &mut server);
        drop((client, server, stop_two));
        running.join().unwrap();
    }

    #[test]
    fn bind_blocks_and_serves() {
        let backend = Backend::start();
        let log = Log::start();
        let name = format!("blocking-{}", backend.address);
        let proxy = Proxy::to(&[&backend]).name(&name);
        // It never comes back, and ends with the test process.
        thread::spawn(move || proxy.bind("127.0.0.1:0"));
        let line = log.wait_for(&format!("event=listening section={name} "));
        let address = value(&line, "address").parse().unwrap();
        let (mut client, mut server) = Peer::tunnel(address, &backend);
        assert_alive(&mut client, &mut server);
    }
}

mod settings {
    use super::*;

    /// The head that the backend gets for this request.
    fn forwarded_head(set: impl FnOnce(WsProxy) -> WsProxy) -> (Backend, String) {
        let backend = Backend::start();
        let proxy = Proxy::start(set(Proxy::to(&[&backend])));
        let _client = Peer::sending(proxy.address, upgrade("X-Forwarded-For: 192.0.2.7\r\n"));
        let head = backend.accept().read_head();
        (backend, head)
    }

    /// The status that a proxy answers to these bytes.
    fn status(proxy: &Proxy, bytes: impl AsRef<[u8]>) -> u16 {
        Peer::sending(proxy.address, bytes).read_head()[9..12].parse().unwrap()
    }

    fn assert_field(head: &str, name: &str, value: impl Display) {
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        assert_eq!(found.map(|(_, found)| found), Some(&*value.to_string()), "{name} in {head}");
    }

    #[test]
    fn the_name_is_in_the_log() {
        let backend = Backend::start();
        let log = Log::start();
        let name = format!("named-{}", backend.address);
        let proxy = Proxy::start(Proxy::to(&[&backend]).name(&name));
        drop(Peer::tunnel(proxy.address, &backend));
        log.wait_for(&format!("event=tunnel_end section={name} "));
    }

    #[test]
    fn tunnel_start_is_told_of_if_it_is_asked_for() {
        let log = Log::start();
        let backend = Backend::start();
        let proxy = Proxy::to(&[&backend]).name("starts-told").tunnel_start(true);
        let proxy = Proxy::start(proxy);
        let _tunnel = Peer::tunnel(proxy.address, &backend);
        let line = log.wait_for("event=tunnel_start section=starts-told");
        assert!(line.contains(" path=/chat host=example.com"), "{line}");
    }

    #[test]
    fn each_timeout_has_its_effect() {
        let (backend, stuck) = (Backend::start(), Backend::full());
        let proxy = Proxy::start(Proxy::to(&[&backend]).read_timeout_ms(300));
        assert_eq!(status(&proxy, "GET /"), 408);
        // It is that of the answer too, where nothing else is said.
        assert_eq!(status(&proxy, upgrade("")), 504);
        let proxy = Proxy::start(Proxy::to(&[&backend]).response_timeout_ms(100));
        assert_eq!(status(&proxy, upgrade("")), 504);
        let proxy = Proxy::start(WsProxy::new([stuck.address.to_string()]).connect_timeout_ms(100));
        assert_eq!(status(&proxy, upgrade("")), 504);
    }

    #[test]
    fn a_response_timeout_of_its_own_wins_over_the_read_timeout() {
        let backend = Backend::start();
        let proxy = Proxy::to(&[&backend]).read_timeout_ms(300).response_timeout_ms(60_000);
        let proxy = Proxy::start(proxy);
        let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(""));
        // It must not be the read timeout that ends this.
        client.expect_silence(Duration::from_millis(500));
        server.send(crate::support::switching(""));
        client.read_head();
        assert_alive(&mut client, &mut server);
    }

    #[test]
    fn host_says_whose_name_the_backend_gets() {
        let (backend, head) = forwarded_head(|proxy| proxy);
        assert_field(&head, "Host", backend.address);
        let (backend, head) = forwarded_head(|proxy| proxy.host(HostHeader::Backend));
        assert_field(&head, "Host", backend.address);
        let (_, head) = forwarded_head(|proxy| proxy.host(HostHeader::Preserve));
        assert_field(&head, "Host", "example.com");
    }

    #[test]
    fn forwarded_says_what_becomes_of_the_chain() {
        let (_, head) = forwarded_head(|proxy| proxy);
        assert_field(&head, "X-Forwarded-For", "192.0.2.7, 127.0.0.1");
        assert_field(&head, "X-Forwarded-Host", "example.com");
        assert_field(&head, "X-Forwarded-Proto", "http");
        let (_, head) = forwarded_head(|proxy| proxy.forwarded(Forwarded::Append));
        assert_field(&head, "X-Forwarded-For", "192.0.2.7, 127.0.0.1");
        let (_, head) = forwarded_head(|proxy| proxy.forwarded(Forwarded::Replace));
        assert_field(&head, "X-Forwarded-For", "127.0.0.1");
        let (_, head) = forwarded_head(|proxy| proxy.forwarded(Forwarded::Off));
        assert_field(&head, "X-Forwarded-For", "192.0.2.7");
        assert!(
            !head.contains("X-Forwarded-Host") && !head.contains("X-Forwarded-Proto"),
            "{head}"
        );
    }

    #[test]
    fn origins_says_who_may_come() {
        let backend = Backend::start();
        let proxy = Proxy::start(Proxy::to(&[&backend]).origins(["https://a.example"]));
        assert_eq!(status(&proxy, upgrade("")), 403);
        assert_eq!(status(&proxy, upgrade("Origin: https://b.example\r\n")), 403);
        let _client = Peer::sending(proxy.address, upgrade("Origin: https://a.example\r\n"));
        backend.accept().read_head();
    }

    #[test]
    fn socket_buffer_bytes_bounds_what_is_held_of_a_tunnel_that_is_stuck() {
        let held = |bytes| {
            let backend = Backend::tight();
            let proxy = Proxy::start(Proxy::to(&[&backend]).socket_buffer_bytes(bytes));
            let (mut client, _server) = Peer::connect_tight(proxy.address).into_tunnel(&backend);
            client.flood()
        };
        let (limited, unlimited) = (held(16 * 1024), held(0));
        assert!(limited * 3 < unlimited * 2, "{limited} of {unlimited} bytes");
    }

    #[test]
    fn a_reload_bounds_what_is_held_of_tunnels_that_come_after_it() {
        let held = |bytes: Option<u64>| {
            let backend = Backend::tight();
            let bound = listen(&backend);
            let (address, handle) = (bound.local_addr(), bound.handle());
            let shutdown = Shutdown::new();
            let stop = shutdown.clone();
            let serving =
                thread::spawn(move || smol::block_on(bound.run(async move { stop.begun().await })));
            // Its socket has the buffers of before.
            drop(Peer::tunnel(address, &backend));
            if let Some(bytes) = bytes {
                handle
                    .reload(Proxy::to(&[&backend]).drain_timeout_ms(100).socket_buffer_bytes(bytes))
                    .unwrap();
            }
            let mut held = Vec::new();
            for _ in 0..2 {
                let (mut client, _server) = Peer::connect_tight(address).into_tunnel(&backend);
                held.push(client.flood());
            }
            shutdown.begin();
            drop(serving);
            held
        };
        let (limited, unlimited) = (held(Some(16 * 1024)), held(None));
        for (limited, unlimited) in limited.iter().zip(&unlimited) {
            assert!(limited * 4 < *unlimited, "{limited} of {unlimited} bytes");
        }
    }

    #[test]
    fn max_connections_says_how_many_may_come() {
        let backend = Backend::start();
        let proxy = Proxy::start(Proxy::to(&[&backend]).max_connections(1));
        let _first = Peer::tunnel(proxy.address, &backend);
        assert_eq!(status(&proxy, upgrade("")), 503);
    }
}

/// A record's name and fields, as an embedder finds them.
struct Line(String);

impl<'kvs> VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        self.0 += &format!(" {key}={value}");
        Ok(())
    }
}

/// The log of all proxies in this process.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    written: Condvar,
}

impl Log {
    /// Keeps every line from now on.
    fn start() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        let log = LOG.get_or_init(Self::default);
        // Another test may have been first.
        if log::set_logger(log).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
        }
        log
    }

    /// Waits for a line that has this in it.
    fn wait_for(&self, part: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(part)) {
                return line.clone();
            }
            assert!(Instant::now() < end, "no line with {part:?}");
            lines = self.written.wait_timeout(lines, end - Instant::now()).unwrap().0;
        }
    }
}

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut line = Line(format!("event={}", record.args()));
        record.key_values().visit(&mut line).unwrap();
        self.lines.lock().unwrap().push(line.0);
        self.written.notify_all();
    }

    fn flush(&self) {}
}

mod handle {
    use super::*;

    #[test]
    fn it_reloads_retires_drains_and_tells_the_state() {
        let (first, second) = (Backend::start(), Backend::start());
        let bound = listen(&first);
        let (address, handle) = (bound.local_addr(), bound.handle());
        let stats = handle.stats();
        assert!(!stats.is_accepting && !stats.is_draining && stats.backends.len() == 1);
        assert!(future::block_on(future::poll_once(handle.started())).is_none());
        let serving = thread::spawn(|| smol::block_on(bound.run(future::pending())));
        future::block_on(handle.started());
        assert!(handle.stats().is_accepting);
        let (mut client, mut server) = Peer::tunnel(address, &first);

        let error = handle.reload(WsProxy::new(["a:b"])).unwrap_err();
        assert!(matches!(error, Error::Setting { key: "backends", .. }), "{error:?}");
        // Its own address is known to it.
        let error = handle.reload(WsProxy::new(["127.0.0.2:0"])).unwrap_err();
        assert!(error.to_string().contains("port 0"), "{error}");
        handle.reload(Proxy::to(&[&second]).drain_timeout_ms(60_000)).unwrap();
        let (mut other, mut other_server) = Peer::tunnel(address, &second);
        assert_alive(&mut client, &mut server);
        assert_alive(&mut other, &mut other_server);
        let stats = handle.stats();
        assert!(stats.is_accepting && !stats.is_draining, "{stats:?}");
        assert_eq!((stats.connections, stats.tunnels), (2, 2));
        let [backend] = &*stats.backends else { panic!("{stats:?}") };
        assert_eq!((&backend.address, backend.tunnels), (&second.address.to_string(), 1));

        handle.retire();
        expect_refused(address);
        assert_alive(&mut client, &mut server);
        drop((other, other_server));
        wait_until("its tunnel has ended", || handle.stats().tunnels == 1);
        assert!(!handle.has_stopped() && !serving.is_finished());
        handle.clone().drain();
        wait_until("it drains", || handle.stats().is_draining);
        drop((client, server));
        serving.join().unwrap();
        assert!(handle.has_stopped());
        assert_eq!(handle.stats(), Default::default());
        let error = handle.reload(WsProxy::new(["a:1"])).unwrap_err();
        assert!(matches!(error, Error::Stopped), "{error:?}");
        // Nothing is of effect then.
        future::block_on(handle.started());
        handle.retire();
        handle.drain();
    }

    #[test]
    fn a_proxy_that_never_runs_keeps_nobody_waiting() {
        let bound = WsProxy::new(["a:1"]).listen("127.0.0.1:0").unwrap();
        let handle = bound.handle();
        let waiting = thread::spawn(move || future::block_on(handle.started()));
        drop(bound);
        waiting.join().unwrap();
    }

    #[test]
    fn a_proxy_that_retires_ends_with_its_last_tunnel() {
        let backend = Backend::start();
        let bound = listen(&backend);
        let (address, handle) = (bound.local_addr(), bound.handle());
        // It may be told before it runs, and none of its clones keeps it running.
        let serving = thread::spawn(|| smol::block_on(bound.run(future::pending())));
        let (client, server) = Peer::tunnel(address, &backend);
        handle.retire();
        expect_refused(address);
        drop((client, server));
        serving.join().unwrap();
    }

    #[test]
    fn a_listener_that_was_passed_is_reloaded_like_any() {
        let (first, second) = (Backend::start(), Backend::start());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = Proxy::to(&[&first]).drain_timeout_ms(100).from_listener(listener).unwrap();
        let (address, handle) = (bound.local_addr(), bound.handle());
        // A backend that is itself would be a loop.
        let error = handle.reload(WsProxy::new([address.to_string()])).unwrap_err();
        assert!(error.to_string().contains("own listener"), "{error}");
        handle.reload(Proxy::to(&[&second]).socket_buffer_bytes(8_192)).unwrap();
        let serving = thread::spawn(|| smol::block_on(bound.run(future::pending())));
        let (mut client, mut server) = Peer::tunnel(address, &second);
        assert_alive(&mut client, &mut server);
        handle.drain();
        serving.join().unwrap();
    }
}
