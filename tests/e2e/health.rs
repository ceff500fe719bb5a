//! Backends that fail, are taken out, are checked, and come back.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tungstenite::handshake::derive_accept_key;

use crate::support::{
    ACCEPT, Backend, Change, Frame, From, HeldPort, Peer, Site, assert_alive, element,
    raise_descriptor_limit, switching, table, upgrade, wait_until,
};

/// A time that no ejection here is over within.
const FOR_LONG: &str = "eject_ms = 600000";
/// Answer of a backend with an error that is none of its health.
const ERROR: &str = "HTTP/1.1 500 Error\r\nContent-Length: 0\r\n\r\n";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

fn plain(address: SocketAddr) -> String {
    element(address, "")
}

fn backup(address: SocketAddr) -> String {
    element(address, "backup = true")
}

fn change(from: &str, to: &str, reason: &str) -> Change {
    (from.to_owned(), to.to_owned(), reason.to_owned())
}

/// Sends a handshake; returns the client and the index of the backend to which it comes.
fn ask(site: &Site, backends: &[&Backend]) -> (Peer, usize) {
    let client = Peer::sending(site.proxy, upgrade(""));
    let index = Backend::wait_for_any(backends);
    (client, index)
}

/// Has a backend answer a handshake; returns the status that the client gets.
fn answered(site: &Site, backend: &Backend, answer: &str) -> String {
    let (mut client, mut server) = Peer::handshake(site.proxy, backend, upgrade(""));
    server.send(answer);
    client.read_head()[9..12].to_owned()
}

/// A site with a backend that its handshakes come to, and one that is for others.
fn pair(main: SocketAddr, other: &Backend, more: &str) -> Site {
    Site::start(&[plain(main), backup(other.address)], more)
}

/// Waits until a trial of the backend at this port may begin, after failures of it.
fn ejected(more: &str) -> (Site, HeldPort, Backend) {
    let (held, other) = (HeldPort::new(), Backend::start());
    let mut site = pair(held.address, &other, more);
    for _ in 0..3 {
        Peer::tunnel(site.proxy, &other);
    }
    site.wait_for_health(held.address, "ejected");
    (site, held, other)
}

mod ejection {
    use super::*;

    #[test]
    fn of_three_backends_one_refuses_one_hangs_and_one_answers_500() {
        for (percent, refusing_is) in table([(50, "unhealthy"), (100, "ejected")]) {
            let (refusing, full) = (Backend::refusing(), Backend::full());
            let good = Backend::start();
            let (refusing, full) = (&refusing.address, &full.address);
            let list = [*refusing, *full, good.address].map(plain);
            let percent = format!("max_ejected_percent = {percent}");
            let site =
                Site::start(&list, &format!("connect_timeout_ms = 150\n{FOR_LONG}\n{percent}"));
            // Each client is answered, whomever its turn is.
            for number in 0..12 {
                let (answer, status) =
                    if number % 2 == 0 { (ERROR, "500") } else { (&*switching(""), "101") };
                assert_eq!(answered(&site, &good, answer), status);
            }

            let states = [*refusing, *full, good.address].map(|address| site.state(address));
            assert_eq!(states, [refusing_is, "ejected", "healthy"], "{percent}");
            let failures = |address, kind| site.backend(address)["connect_failures"][kind].as_u64();
            assert_eq!(failures(*full, "timeout"), Some(3));
            let is_ejected = refusing_is == "ejected";
            let refused = failures(*refusing, "refused");
            assert!(if is_ejected { refused == Some(3) } else { refused > Some(3) }, "{refused:?}");
            let sample = |name, address| site.backend_sample(name, address);
            let all = [*refusing, *full, good.address];
            let ejections = all.map(|one| sample("ws_proxy_backend_ejections_total", one));
            assert_eq!(ejections, [f64::from(is_ejected), 1.0, 0.0], "{percent}");
            assert_eq!(all.map(|one| sample("ws_proxy_backend_up", one)), [0.0, 0.0, 1.0]);

            let log = site.into_log();
            let changes = |address| log.changes(address);
            let reason = "3 connect timeouts in a row";
            assert_eq!(changes(*full), [change("unknown", "ejected", reason)]);
            let reason = "3 connect failures in a row";
            assert_eq!(changes(*refusing), [change("unknown", refusing_is, reason)]);
            assert_eq!(
                changes(good.address),
                [change("unknown", "healthy", "handshake succeeded")]
            );
        }
    }

    #[test]
    fn answers_that_tell_of_a_backend_that_cannot_serve_are_failures_and_others_are_not() {
        let status =
            |status: u16| format!("HTTP/1.1 {status} Some Words\r\nContent-Length: 0\r\n\r\n");
        let bad_101 = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_owned();
        for (answer, seen, reason) in table([
            (status(502), "502", Some("3 responses with status 502 in a row")),
            (status(503), "503", Some("3 responses with status 503 in a row")),
            (status(504), "504", Some("3 responses with status 504 in a row")),
            (bad_101, "502", Some("3 invalid responses in a row")),
            ("SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned(), "502", Some("3 invalid responses in a row")),
            (status(500), "500", None),
            (status(501), "501", None),
            (status(404), "404", None),
            (status(429), "429", None),
            (switching(""), "101", None),
        ]) {
            let (main, other) = (Backend::start(), Backend::start());
            let mut site = pair(main.address, &other, FOR_LONG);
            // A success in between ends the row.
            for answer in [&answer, &answer, &switching(""), &answer, &answer] {
                answered(&site, &main, answer);
            }
            assert_eq!(site.state(main.address), "healthy", "{answer}");
            assert_eq!(answered(&site, &main, &answer), seen);
            let (_client, index) = ask(&site, &[&main, &other]);
            assert_eq!(index, usize::from(reason.is_some()), "{answer}");
            if let Some(reason) = reason {
                let change = site.wait_for_health(main.address, "ejected");
                assert_eq!(change, ("healthy".to_owned(), reason.to_owned()));
            }
        }
    }

    #[test]
    fn failures_of_all_kinds_are_one_row() {
        let (main, other) = (Backend::start(), Backend::start());
        let mut site =
            pair(main.address, &other, &format!("response_timeout_ms = 150\n{FOR_LONG}"));
        // A time-out, an end without a byte, after which the other one is asked, and a status.
        let (mut client, _silent) = Peer::handshake(site.proxy, &main, upgrade(""));
        assert_eq!(client.read_refusal().0, 504);
        let (mut client, server) = Peer::handshake(site.proxy, &main, upgrade(""));
        drop(server);
        other.accept_tunnel();
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        assert_eq!(answered(&site, &main, UNAVAILABLE), "503");
        let (_, reason) = site.wait_for_health(main.address, "ejected");
        assert_eq!(reason, "3 failures in a row, the last: status 503");
    }

    #[test]
    fn a_backend_that_is_late_or_hangs_up_three_times_is_ejected() {
        let (late, hangs_up) = (false, true);
        for (how, reason) in table([
            (late, "3 response timeouts in a row"),
            (hangs_up, "3 connections closed without an answer in a row"),
        ]) {
            let (main, other) = (Backend::start(), Backend::start());
            let more = format!("response_timeout_ms = 100\n{FOR_LONG}");
            let mut site = pair(main.address, &other, &more);
            for _ in 0..3 {
                let (mut client, server) = Peer::handshake(site.proxy, &main, upgrade(""));
                if how == late {
                    assert_eq!(client.read_refusal().0, 504);
                } else {
                    drop(server);
                    other.accept_tunnel();
                    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
                }
            }
            assert_eq!(site.wait_for_health(main.address, "ejected").1, reason);
            Peer::tunnel(site.proxy, &other);
        }
    }

    #[test]
    fn with_zero_failures_or_percent_none_is_ejected() {
        for more in table(["max_failures = 0", "max_ejected_percent = 0"]) {
            let (refusing, other) = (Backend::refusing(), Backend::start());
            let site = pair(refusing.address, &other, more);
            for _ in 0..5 {
                Peer::tunnel(site.proxy, &other);
            }
            let backend = site.backend(refusing.address);
            assert_eq!(backend["connect_failures"]["refused"], 5, "{more}");
            assert_eq!(backend["ejections"], 0, "{more}");
        }
    }

    #[test]
    fn the_last_backend_is_never_ejected() {
        for count in table([1, 3]) {
            let ports: Vec<_> = (0..count).map(|_| HeldPort::new()).collect();
            let list: Vec<_> = ports.iter().map(|port| plain(port.address)).collect();
            let mut site = Site::start(&list, &format!("max_ejected_percent = 100\n{FOR_LONG}"));
            // Each tries all that there are, also those that are out.
            for _ in 0..5 {
                assert_eq!(Peer::sending(site.proxy, upgrade("")).read_refusal().0, 502);
            }
            let states: Vec<_> = ports.iter().map(|port| site.state(port.address)).collect();
            let of = |state: &str| states.iter().filter(|one| *one == state).count();
            assert_eq!((of("ejected"), of("unhealthy")), (count - 1, 1), "{states:?}");
            let last = ports.iter().find(|port| site.state(port.address) == "unhealthy").unwrap();
            assert_eq!(site.backend_sample("ws_proxy_backend_ejections_total", last.address), 0.0);
            assert_eq!(site.backend_sample("ws_proxy_backend_up", last.address), 0.0);
            assert_eq!(site.backend(last.address)["connect_failures"]["refused"], 5);

            // It is used as before, and well again with its first success.
            let backend = last.listen();
            Peer::tunnel(site.proxy, &backend);
            let change = site.wait_for_health(last.address, "healthy");
            assert_eq!(change, ("unhealthy".to_owned(), "handshake succeeded".to_owned()));
            assert_eq!(site.backend_sample("ws_proxy_backend_up", last.address), 1.0);
            let changes = site.into_log().changes(last.address);
            let to: Vec<_> = changes.iter().map(|(_, to, _)| &**to).collect();
            assert_eq!(to, ["unhealthy", "healthy"]);
        }
    }

    #[test]
    fn while_all_are_out_or_refuse_each_is_tried() {
        let ports = [HeldPort::new(), HeldPort::new()];
        let list = ports.each_ref().map(|port| plain(port.address));
        let site = Site::start(&list, FOR_LONG);
        for _ in 0..4 {
            Peer::sending(site.proxy, upgrade("")).read_refusal();
        }
        // The one that is ejected is up again before its time, while the other one still refuses.
        let up = ports.iter().find(|port| site.state(port.address) == "ejected").unwrap();
        let backend = up.listen();
        for _ in 0..4 {
            Peer::tunnel(site.proxy, &backend);
        }
        assert_eq!(site.state(up.address), "ejected");
    }
}

mod trial {
    use super::*;

    #[test]
    fn one_handshake_tries_an_ejected_backend_and_the_others_go_elsewhere() {
        let (held, other) = (HeldPort::new(), Backend::start());
        let mut site = Site::start(&[held.address, other.address].map(plain), "eject_ms = 300");
        for _ in 0..6 {
            Peer::tunnel(site.proxy, &other);
        }
        let change = site.wait_for_health(held.address, "ejected");
        assert_eq!(change, ("unknown".to_owned(), "3 connect failures in a row".to_owned()));
        let backend = held.listen();
        site.wait_until_usable(held.address);
        assert_eq!(site.state(held.address), "ejected");
        let mut clients: Vec<_> = (0..6).map(|_| Peer::sending(site.proxy, upgrade(""))).collect();
        for _ in 0..5 {
            other.accept_tunnel();
        }
        let mut trial = backend.accept();
        trial.read_head();
        assert!(!backend.has_waiting() && !other.has_waiting());
        assert_eq!(site.state(held.address), "on_trial");
        assert_eq!(site.backend_sample("ws_proxy_backend_up", held.address), 0.0);
        trial.send(switching(""));
        clients.iter_mut().for_each(|client| {
            client.read_head();
        });
        let change = site.wait_for_health(held.address, "healthy");
        assert_eq!(change, ("on_trial".to_owned(), "trial succeeded".to_owned()));
        // It has its share again.
        let both = [&backend, &other];
        let turns: Vec<_> = (0..4).map(|_| Peer::tunnel_to_any(site.proxy, &both).0).collect();
        assert_eq!(turns.iter().filter(|turn| **turn == 0).count(), 2, "{turns:?}");
    }

    #[test]
    fn a_backend_that_fails_its_trial_is_out_for_longer() {
        let (mut site, held, other) = ejected("eject_ms = 250");
        let backend = held.listen();
        site.wait_until_usable(held.address);
        let start = Instant::now();
        assert_eq!(answered(&site, &backend, UNAVAILABLE), "503");
        let change = site.wait_for_health(held.address, "ejected");
        assert_eq!(change.0, "on_trial");
        assert_eq!(change.1, "trial failed: status 503");
        // Once is enough.
        Peer::tunnel(site.proxy, &other);
        site.wait_until_usable(held.address);
        // Twice the time, less its jitter, and more than the first time with its jitter.
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
        assert_eq!(site.backend_sample("ws_proxy_backend_ejections_total", held.address), 2.0);
    }

    #[test]
    fn a_client_that_leaves_during_its_trial_leaves_it_to_the_next() {
        let (mut site, held, other) = ejected("eject_ms = 100");
        let backend = held.listen();
        site.wait_until_usable(held.address);
        let (client, mut server) = Peer::handshake(site.proxy, &backend, upgrade(""));
        assert_eq!(site.state(held.address), "on_trial");
        Peer::tunnel(site.proxy, &other);
        drop(client);
        server.expect_end();
        site.program.wait_for("event=client_gone");
        site.wait_until_usable(held.address);
        assert_eq!(site.state(held.address), "ejected");
        Peer::tunnel(site.proxy, &backend);
        let (from, _) = site.wait_for_health(held.address, "healthy");
        assert_eq!(from, "on_trial");
        assert_eq!(site.backend_sample("ws_proxy_backend_ejections_total", held.address), 1.0);
    }

    #[test]
    fn a_backend_that_comes_and_goes_costs_no_client_its_tunnel() {
        let (held, other) = (HeldPort::new(), Backend::start());
        let site = Site::start(&[held.address, other.address].map(plain), "eject_ms = 30");
        for _ in 0..4 {
            while site.state(held.address) != "ejected" {
                Peer::tunnel(site.proxy, &other);
            }
            let backend = held.listen();
            site.wait_until_usable(held.address);
            while site.state(held.address) != "healthy" {
                Peer::tunnel_to_any(site.proxy, &[&backend, &other]);
            }
        }
    }
}

mod early_resets {
    use super::*;

    /// Opens a tunnel that this backend resets.
    fn reset(site: &mut Site, backend: &Backend) {
        let (mut client, server) = Peer::tunnel(site.proxy, backend);
        server.reset();
        client.expect_end();
        drop(client);
        let line = site.program.wait_for("event=tunnel_end");
        assert!(line.contains(" reason=backend_reset "), "{line}");
    }

    #[test]
    fn a_backend_that_resets_its_tunnels_at_once_is_ejected() {
        let (main, other) = (Backend::start(), Backend::start());
        let mut site = pair(main.address, &other, &format!("early_reset_ms = 600000\n{FOR_LONG}"));
        reset(&mut site, &main);
        reset(&mut site, &main);
        // Tunnels that end in another way are no failures, and end the row.
        let (mut client, mut server) = Peer::tunnel(site.proxy, &main);
        server.send(From::Backend.close(1011));
        client.expect(From::Backend.close(1011));
        drop((client, server));
        site.program.wait_for("event=tunnel_end");
        for _ in 0..2 {
            reset(&mut site, &main);
        }
        let (client, mut server) = Peer::tunnel(site.proxy, &main);
        client.reset();
        server.expect_end();
        drop(server);
        site.program.wait_for("event=tunnel_end");
        assert_eq!(site.state(main.address), "healthy");
        for _ in 0..3 {
            reset(&mut site, &main);
        }
        let change = site.wait_for_health(main.address, "ejected");
        assert_eq!(change, ("healthy".to_owned(), "3 early resets in a row".to_owned()));
        Peer::tunnel(site.proxy, &other);
    }

    #[test]
    fn a_reset_is_no_failure_by_default_or_after_that_time() {
        for more in table(["", "early_reset_ms = 1"]) {
            let (main, other) = (Backend::start(), Backend::start());
            let mut site = pair(main.address, &other, more);
            for _ in 0..4 {
                let (mut client, server) = Peer::tunnel(site.proxy, &main);
                client.expect_silence(Duration::from_millis(20));
                server.reset();
                client.expect_end();
                drop(client);
                site.program.wait_for("event=tunnel_end");
            }
            Peer::tunnel(site.proxy, &main);
            let backend = site.backend(main.address);
            assert_eq!((&backend["state"], &backend["ejections"]), (&"healthy".into(), &0.into()));
        }
    }
}

/// A backend with a thread of its own, which tells checks what it is told to, and answers all
/// handshakes with a 101.
struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// Handshakes of clients get a 503.
    declines: AtomicBool,
    answer: Mutex<CheckAnswer>,
    /// Heads of the checks so far.
    checks: Mutex<Vec<String>>,
    /// Frames that checks have sent, as they are without their masks.
    frames: Mutex<Vec<Frame>>,
    /// Handshakes of clients so far.
    handshakes: AtomicUsize,
    /// Servers' ends of tunnels, and of checks that are not answered.
    open: Mutex<Vec<Peer>>,
}

/// What becomes of a check.
#[derive(Clone, Copy, Default)]
enum CheckAnswer {
    #[default]
    Switch,
    Text(&'static str),
    Silence,
}

const OK: CheckAnswer = CheckAnswer::Text("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
const BAD: CheckAnswer = CheckAnswer::Text(UNAVAILABLE);

impl Server {
    fn start(answer: CheckAnswer) -> Self {
        Self::at(Backend::start(), answer)
    }

    fn at(backend: Backend, answer: CheckAnswer) -> Self {
        let (address, shared) = (backend.address, Arc::<Shared>::default());
        *shared.answer.lock().unwrap() = answer;
        let thread = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while !shared.is_over.load(Ordering::Relaxed) {
                    if let Some(peer) = backend.try_accept(Duration::from_millis(20)) {
                        shared.serve(peer);
                    }
                }
            })
        };
        Self { address, shared, thread: Some(thread) }
    }

    fn set(&self, answer: CheckAnswer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    fn handshakes(&self) -> usize {
        self.shared.handshakes.load(Ordering::Relaxed)
    }

    /// Number of checks that have sent a head.
    fn checks(&self) -> usize {
        self.shared.checks.lock().unwrap().len()
    }
}

impl Shared {
    fn serve(&self, mut peer: Peer) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match peer.stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                // A check that only connects, or a client that has left.
                _ => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        if !head.contains("\r\nUser-Agent: ws-proxy-health-check\r\n") {
            self.handshakes.fetch_add(1, Ordering::Relaxed);
            if self.declines.load(Ordering::Relaxed) {
                return peer.send(UNAVAILABLE);
            }
            peer.send(switching(""));
            return self.open.lock().unwrap().push(peer);
        }
        // Held to the end of the check: whoever sets another answer waits for that.
        let answer = self.answer.lock().unwrap();
        match *answer {
            CheckAnswer::Text(text) => peer.send(text),
            CheckAnswer::Silence => self.open.lock().unwrap().push(peer),
            CheckAnswer::Switch => {
                let key = head.split("Sec-WebSocket-Key: ").nth(1).unwrap().lines().next().unwrap();
                let accept = derive_accept_key(key.as_bytes());
                peer.send(switching("").replace(ACCEPT, &accept));
                self.frames.lock().unwrap().push(peer.read_frame());
                peer.send(From::Backend.close(1000));
                peer.expect_eof();
            }
        }
        self.checks.lock().unwrap().push(head);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !thread::panicking() {
                result.expect("the backend does not panic");
            }
        }
    }
}

/// Opens a tunnel to whichever backend.
fn open(site: &Site) -> Peer {
    let mut client = Peer::sending(site.proxy, upgrade(""));
    let head = client.read_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

mod checks {
    use super::*;

    /// The table of checks that come at once and often; further keys may follow.
    fn table_of(kind: &str) -> String {
        format!("[ws_proxy.health_check]\nkind = \"{kind}\"\ninterval_ms = 25\n")
    }

    fn counts(site: &Site, address: SocketAddr) -> [f64; 2] {
        let address = address.to_string();
        ["success", "failure"].map(|result| {
            let labels = [("backend", &*address), ("result", result)];
            site.sample("ws_proxy_backend_health_checks_total", &labels)
        })
    }

    #[test]
    fn a_port_that_refuses_is_unhealthy_until_it_accepts_again() {
        let (held, other) = (HeldPort::new(), Server::start(OK));
        let list = [plain(held.address), plain(other.address)];
        let mut site = Site::start(&list, &table_of("tcp"));
        site.logged(&format!("backend={} from=unknown to=healthy", other.address));
        site.logged(&format!("backend={} from=unknown to=unhealthy", held.address));
        // No handshake comes to it, which would fail.
        (0..6).for_each(|_| drop(open(&site)));
        assert_eq!(other.handshakes(), 6);
        assert_eq!(site.backend(held.address)["connect_failures"]["refused"], 0);
        assert_eq!(site.backend_sample("ws_proxy_backend_up", held.address), 0.0);
        assert_eq!(counts(&site, held.address)[0], 0.0);

        let server = Server::at(held.listen(), OK);
        let back = change("unhealthy", "healthy", "2 checks passed in a row");
        assert_eq!(site.wait_for_change(held.address), back);
        let [passed, failed] = counts(&site, held.address);
        assert!(passed >= 2.0 && failed >= 1.0, "{passed} {failed}");
        (0..6).for_each(|_| drop(open(&site)));
        assert_eq!((server.handshakes(), other.handshakes()), (3, 9));

        drop(server);
        let out =
            change("healthy", "unhealthy", "3 checks failed in a row, the last: connect failure");
        assert_eq!(site.wait_for_change(held.address), out);
        (0..4).for_each(|_| drop(open(&site)));
        assert_eq!(other.handshakes(), 13);
        other.shared.open.lock().unwrap().clear();
        let log = site.into_log();
        let first = change("unknown", "unhealthy", "check failed: connect failure");
        assert_eq!(log.changes(held.address), [first, back, out]);
        let healthy = change("unknown", "healthy", "check passed");
        assert_eq!(log.changes(other.address), [healthy]);
    }

    #[test]
    fn an_http_check_passes_with_an_expected_status() {
        let (one, other) = (Server::start(OK), Server::start(OK));
        let list = [plain(one.address), plain(other.address)];
        let more = "path = \"/up?now\"\nhost = \"app.example\"\nheaders = { X-Check = \"1\" }\n\
                    healthy_threshold = 3\nunhealthy_threshold = 2\ntimeout_ms = 150";
        let mut site = Site::start(&list, &(table_of("http") + more));
        let well = change("unknown", "healthy", "check passed");
        assert_eq!(site.wait_for_change(one.address), well);
        let head = one.shared.checks.lock().unwrap()[0].clone();
        assert!(head.starts_with("GET /up?now HTTP/1.1\r\n"), "{head}");
        for line in ["Host: app.example", "X-Check: 1"] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
        }
        for (answer, error) in table([
            (BAD, "status 503"),
            (CheckAnswer::Text("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), "status 404"),
            (CheckAnswer::Silence, "timeout"),
            (CheckAnswer::Text("HTTP/1.1 200"), "closed before the end of the answer"),
            (CheckAnswer::Text("SSH-2.0-OpenSSH_9.9\r\n\r\n"), "invalid response"),
        ]) {
            one.set(answer);
            let (from, to, reason) = site.wait_for_change(one.address);
            assert_eq!((&*from, &*to), ("healthy", "unhealthy"));
            assert_eq!(reason, format!("2 checks failed in a row, the last: {error}"));
            let before = (one.handshakes(), other.handshakes());
            (0..4).for_each(|_| drop(open(&site)));
            assert_eq!((one.handshakes(), other.handshakes()), (before.0, before.1 + 4), "{error}");
            one.set(OK);
            let back = change("unhealthy", "healthy", "3 checks passed in a row");
            assert_eq!(site.wait_for_change(one.address), back);
        }
        // Each check is counted.
        let before = counts(&site, one.address);
        let seen = one.checks();
        wait_until("more checks come", || one.checks() >= seen + 3);
        wait_until("they are counted", || counts(&site, one.address)[0] >= before[0] + 3.0);
        let failed = |address| counts(&site, address)[1];
        assert!(failed(one.address) >= 10.0 && failed(other.address) == 0.0);
    }

    #[test]
    fn a_websocket_check_opens_one_and_closes_it_in_order() {
        let (one, other) = (Server::start(CheckAnswer::Switch), Server::start(CheckAnswer::Switch));
        let list = [plain(one.address), plain(other.address)];
        let mut site = Site::start(&list, &(table_of("websocket") + "path = \"/ws\""));
        let well = change("unknown", "healthy", "check passed");
        assert_eq!(site.wait_for_change(one.address), well);
        wait_until("a check is over", || one.checks() > 0);
        let head = one.shared.checks.lock().unwrap()[0].clone();
        assert!(head.starts_with("GET /ws HTTP/1.1\r\n"), "{head}");
        let frame = one.shared.frames.lock().unwrap()[0].clone();
        assert_eq!((frame.close_code(), frame.mask.is_some()), (Some(1000), true), "{frame:?}");

        // A server that answers, but not so.
        one.set(OK);
        let reason = "3 checks failed in a row, the last: status 200";
        assert_eq!(site.wait_for_change(one.address), change("healthy", "unhealthy", reason));
        one.set(CheckAnswer::Switch);
        let back = change("unhealthy", "healthy", "2 checks passed in a row");
        assert_eq!(site.wait_for_change(one.address), back);
        let bad_101 = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
        one.set(CheckAnswer::Text(bad_101));
        let reason = "3 checks failed in a row, the last: invalid response";
        assert_eq!(site.wait_for_change(one.address), change("healthy", "unhealthy", reason));
        // The end of the program would cut a check that is under way.
        other.set(CheckAnswer::Silence);
    }

    #[test]
    fn where_all_are_unhealthy_each_is_tried_in_turn() {
        let servers = [Server::start(BAD), Server::start(BAD), Server::start(BAD)];
        let list = servers.each_ref().map(|server| plain(server.address));
        let mut site = Site::start(&list, &table_of("http"));
        for server in &servers {
            site.logged(&format!("backend={} from=unknown to=unhealthy", server.address));
        }
        (0..6).for_each(|_| drop(open(&site)));
        assert_eq!(servers.each_ref().map(Server::handshakes), [2, 2, 2]);
        // That they serve makes none healthy: only checks do.
        let states = servers.each_ref().map(|server| site.state(server.address));
        assert_eq!(states, ["unhealthy"; 3]);
        servers[1].set(OK);
        site.wait_for_health(servers[1].address, "healthy");
        (0..3).for_each(|_| drop(open(&site)));
        assert_eq!(servers.each_ref().map(Server::handshakes), [2, 5, 2]);
    }

    #[test]
    fn the_tunnels_of_an_unhealthy_backend_are_closed_where_that_is_asked_for() {
        for (key, drains) in table([("", false), ("on_unhealthy = \"drain\"", true)]) {
            let (one, other) = (Server::start(OK), Server::start(OK));
            let list = [plain(one.address), plain(other.address)];
            let drain = "[drain]\nspread_ms = 0\nclose_code = 1012";
            let mut site = Site::start(&list, &format!("{}{key}\n{drain}", table_of("http")));
            let mut clients = [open(&site), open(&site)];
            assert_eq!((one.handshakes(), other.handshakes()), (1, 1));
            one.set(BAD);
            site.wait_for_health(one.address, "unhealthy");
            // The one of the first backend, whose turn came first.
            let [first, second] = &mut clients;
            if drains {
                first.expect_proxy_close(From::Client, 1012);
                first.send(From::Client.close(1012));
                first.expect_eof();
                let line = site.program.wait_for("event=tunnel_end");
                assert!(line.contains(" reason=backend_unhealthy "), "{line}");
                assert!(line.contains(&format!(" backend={} ", one.address)), "{line}");
            } else {
                let mut server = one.shared.open.lock().unwrap().pop().unwrap();
                assert_alive(first, &mut server);
            }
            let mut server = other.shared.open.lock().unwrap().pop().unwrap();
            assert_alive(second, &mut server);
        }
    }

    #[test]
    fn passed_checks_end_an_ejection_if_they_prove_enough() {
        for (kind, ends) in table([("http", true), ("tcp", false)]) {
            // Its checks pass, and its handshakes do not.
            let (main, other) = (Server::start(OK), Backend::start());
            main.shared.declines.store(true, Ordering::Relaxed);
            let mut site = pair(main.address, &other, &format!("{FOR_LONG}\n{}", table_of(kind)));
            site.wait_for_health(main.address, "healthy");
            for _ in 0..3 {
                let mut client = Peer::sending(site.proxy, upgrade(""));
                assert!(client.read_head().starts_with("HTTP/1.1 503 "));
            }
            let (_, reason) = site.wait_for_health(main.address, "ejected");
            assert_eq!(reason, "3 responses with status 503 in a row");
            if ends {
                let (from, reason) = site.wait_for_health(main.address, "healthy");
                assert_eq!((&*from, &*reason), ("ejected", "2 checks passed in a row"));
            } else {
                let before = counts(&site, main.address)[0];
                wait_until("further checks pass", || {
                    counts(&site, main.address)[0] >= before + 3.0
                });
                assert_eq!(site.state(main.address), "ejected");
            }
        }
    }
}

mod slow_start {
    use super::*;

    /// Counts which of these backends have the next 30 tunnels.
    fn thirty<const N: usize>(site: &Site, backends: [&Backend; N]) -> [usize; N] {
        let mut counts = [0; N];
        for _ in 0..30 {
            counts[Peer::tunnel_to_any(site.proxy, &backends).0] += 1;
        }
        counts
    }

    #[test]
    fn a_backend_that_came_or_came_back_begins_with_a_tenth_of_its_share() {
        for balance in table(["round_robin", "hash"]) {
            let hash_on = if balance == "hash" { "hash_on = \"header:X-None\"\n" } else { "" };
            let more = format!(
                "slow_start_ms = 600000\neject_ms = 100\nbalance = \"{balance}\"\n{hash_on}"
            );
            let (held, other, third) = (HeldPort::new(), Backend::start(), Backend::start());
            let list = [held.address, other.address].map(plain);
            let mut site = Site::start(&list, &more);
            let backend = held.listen();
            // Those of the start have their whole shares.
            assert_eq!(thirty(&site, [&backend, &other]), [15, 15]);
            drop(backend);
            while site.state(held.address) != "ejected" {
                Peer::tunnel(site.proxy, &other);
            }
            let backend = held.listen();
            site.wait_until_usable(held.address);
            while site.state(held.address) != "healthy" {
                Peer::tunnel_to_any(site.proxy, &[&backend, &other]);
            }
            assert_eq!(site.backend(held.address)["share"], 0.1);
            let [slow, rest] = thirty(&site, [&backend, &other]);
            assert!((2..=4).contains(&slow) && slow + rest == 30, "{slow} of 30");

            // Each of two has 26 parts of 256 then.
            site.reload(&[list.to_vec(), vec![plain(third.address)]].concat(), &more);
            assert_eq!(site.backend(third.address)["share"], 0.1);
            let [back, _, new] = thirty(&site, [&backend, &other, &third]);
            assert!((1..=4).contains(&back) && (1..=4).contains(&new), "{back} and {new} of 30");
            site.program.wait_for("event=config_reloaded");
        }
    }

    #[test]
    fn the_share_rises_to_the_whole_one() {
        let (one, other) = (Backend::start(), Backend::start());
        let more = "slow_start_ms = 150";
        let site = Site::start(&[plain(one.address)], more);
        site.reload(&[one.address, other.address].map(plain), more);
        wait_until("it is in full use", || site.backend(other.address)["share"] == 1.0);
        assert_eq!(thirty(&site, [&one, &other]), [15, 15]);
    }
}

mod fallback {
    use super::*;

    const CLIENTS: usize = 1_000;

    /// Has this many clients connect at once. Returns them and the servers' ends, by backend, of the
    /// tunnels that all of them get at their first try.
    fn connect(site: &Site, backends: &[&Backend], count: usize) -> (Vec<Peer>, Vec<Vec<Peer>>) {
        let served = &AtomicUsize::new(0);
        let serve = |backend: &Backend| {
            let mut tunnels = Vec::new();
            while served.load(Ordering::Relaxed) < count {
                if let Some(mut peer) = backend.try_accept(Duration::from_millis(10)) {
                    peer.read_head();
                    peer.send(switching(""));
                    tunnels.push(peer);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            }
            tunnels
        };
        thread::scope(|scope| {
            let spawn = |&backend| scope.spawn(move || serve(backend));
            let threads: Vec<_> = backends.iter().map(spawn).collect();
            let mut clients: Vec<_> =
                (0..count).map(|_| Peer::sending(site.proxy, upgrade(""))).collect();
            for client in &mut clients {
                let head = client.read_head();
                assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            }
            (clients, threads.into_iter().map(|thread| thread.join().unwrap()).collect())
        })
    }

    #[test]
    fn the_clients_of_a_backend_that_dies_are_spread_over_the_others_at_once() {
        raise_descriptor_limit();
        for (balance, cap, most_apart) in table([
            // Two workers may choose at the same moment.
            ("least_tunnels", 0, 2),
            // A third of a third may meet the dead backend, and goes on to the one after it.
            ("round_robin", 0, CLIENTS / 9 + 4),
            // Whoever is full is passed over, and there is exactly room for all.
            ("round_robin", CLIENTS / 2, 0),
        ]) {
            let held = HeldPort::new();
            let (dying, others) = (held.listen(), [Backend::start(), Backend::start()]);
            let all = [&dying, &others[0], &others[1]];
            // A SYN that finds no room comes again after a second.
            all.iter().for_each(|backend| backend.set_backlog(1_024));
            let list = [held.address, others[0].address, others[1].address]
                .map(|address| element(address, &format!("max_tunnels = {cap}")));
            let site = Site::start(&list, &format!("balance = \"{balance}\"\n{FOR_LONG}"));
            let (clients, mut servers) = connect(&site, &all, CLIENTS);
            let lost = servers.remove(0);
            let count = lost.len();
            assert!(count.abs_diff(CLIENTS / 3) <= 2, "{count}");

            drop(dying);
            lost.into_iter().for_each(Peer::reset);
            let (back, again) = connect(&site, &[&others[0], &others[1]], count);
            let of = |index: usize| servers[index].len() + again[index].len();
            assert_eq!(of(0) + of(1), CLIENTS);
            assert!(of(0).abs_diff(of(1)) <= most_apart, "{balance}: {} and {}", of(0), of(1));
            assert_eq!(site.state(held.address), "ejected");
            // The others noticed nothing.
            let lives = clients.iter().filter(|client| client.is_silent()).count();
            assert_eq!(lives + back.len(), CLIENTS);
        }
    }

    #[test]
    fn those_for_whom_the_other_backends_have_no_room_wait() {
        raise_descriptor_limit();
        let held = HeldPort::new();
        let (dying, others) = (held.listen(), [Backend::start(), Backend::start()]);
        let all = [&dying, &others[0], &others[1]];
        all.iter().for_each(|backend| backend.set_backlog(1_024));
        let list = all.map(|backend| element(backend.address, "max_tunnels = 100"));
        let site = Site::start(&list, &format!("queue_timeout_ms = 600000\n{FOR_LONG}"));
        let (clients, mut servers) = connect(&site, &all, 300);
        drop(dying);
        servers.remove(0).into_iter().for_each(Peer::reset);
        let mut back: Vec<_> = (0..100).map(|_| Peer::sending(site.proxy, upgrade(""))).collect();
        // Until it is ejected they meet the one that has died, where there are places.
        wait_until("all wait", || site.section()["queue"] == 100);
        let both = [&others[0], &others[1]];
        assert!(!both.iter().any(|backend| backend.has_waiting()));
        drop((clients, servers));
        let accept = |_| both[Backend::wait_for_any(&both)].accept_tunnel();
        let _servers: Vec<_> = (0..100).map(accept).collect();
        for client in &mut back {
            let head = client.read_head();
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        }
    }
}
