//! Handshakes that wait for a place while all backends are full.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{
    Backend, From, HeldPort, Peer, Site, assert_alive, element, switching, table, upgrade,
    upgrade_but, value, wait_until,
};

/// A time for which nobody waits in vain here.
const LONG: &str = "queue_timeout_ms = 600000";

/// A site whose only backend takes one tunnel, and that tunnel.
fn full(more: &str) -> (Site, Backend, Peer, Peer) {
    let backend = Backend::start();
    let site = Site::start(&[element(backend.address, "max_tunnels = 1")], more);
    let (client, server) = Peer::tunnel(site.proxy, &backend);
    (site, backend, client, server)
}

/// A client whose handshake waits; its target tells which one it is. `waiting` is the number of all
/// who wait then.
fn waiting(site: &Site, target: &str, waiting: u64) -> Peer {
    let client = Peer::sending(site.proxy, upgrade_but("/chat", target));
    wait_for_queue(site, waiting);
    client
}

fn wait_for_queue(site: &Site, waiting: u64) {
    wait_until("as many handshakes wait", || site.section()["queue"] == waiting);
    assert_eq!(site.sample("ws_proxy_queue", &[]), waiting as f64);
}

/// Accepts the next handshake and answers it; returns its target, and the connection.
fn accept(backend: &Backend) -> (String, Peer) {
    let (server, head) = backend.accept_tunnel();
    (head.split(' ').nth(1).unwrap().to_owned(), server)
}

fn assert_switched(client: &mut Peer) {
    let head = client.read_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

#[test]
fn a_handshake_waits_and_gets_the_place_of_a_tunnel_that_ends() {
    let (site, backend, first, server) = full(LONG);
    wait_for_queue(&site, 0);
    let mut second = waiting(&site, "/second", 1);
    assert!(!backend.has_waiting() && second.is_silent());
    drop((first, server));
    let (target, mut server) = accept(&backend);
    assert_eq!(target, "/second");
    assert_switched(&mut second);
    assert_alive(&mut second, &mut server);
    wait_for_queue(&site, 0);
    assert_eq!(site.sample("ws_proxy_handshakes_total", &[("outcome", "backends_full")]), 0.0);
}

#[test]
fn those_who_wait_get_their_places_in_the_order_in_which_they_came() {
    let (site, backend, first, server) = full(LONG);
    let mut ends = (first, server);
    let targets = ["/a", "/b", "/c", "/d"];
    let mut clients: Vec<_> =
        (1..).zip(targets).map(|(count, target)| waiting(&site, target, count)).collect();
    for (place, expected) in targets.into_iter().enumerate() {
        // One who comes later does not overtake them.
        let late = (place == 1).then(|| waiting(&site, "/late", 4));
        drop(ends);
        let (target, server) = accept(&backend);
        assert_eq!(target, expected);
        let mut client = clients.remove(0);
        assert_switched(&mut client);
        assert!(!backend.has_waiting());
        clients.extend(late);
        ends = (client, server);
    }
    drop(ends);
    assert_eq!(accept(&backend).0, "/late");
    assert_switched(&mut clients[0]);
}

#[test]
fn a_client_that_leaves_frees_its_place_in_the_queue() {
    for reset in table([false, true]) {
        let (mut site, backend, first, server) = full(&format!("{LONG}\nqueue_size = 2"));
        let leaving = waiting(&site, "/leaving", 1);
        let mut staying = waiting(&site, "/staying", 2);
        if reset {
            leaving.reset();
        } else {
            drop(leaving);
        }
        site.program.wait_for("event=client_gone");
        wait_for_queue(&site, 1);
        let mut last = waiting(&site, "/last", 2);
        drop((first, server));
        let (target, server) = accept(&backend);
        assert_eq!(target, "/staying");
        assert_switched(&mut staying);
        drop((staying, server));
        assert_eq!(accept(&backend).0, "/last");
        assert_switched(&mut last);
    }
}

#[test]
fn where_the_queue_is_full_the_client_may_come_again() {
    let (mut site, backend, first, server) = full(&format!("{LONG}\nqueue_size = 2"));
    let mut waiting = [waiting(&site, "/a", 1), waiting(&site, "/b", 2)];
    let (status, answer) = Peer::sending(site.proxy, upgrade("")).read_refusal();
    assert!(status == 503 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    let line = site.program.wait_for("event=refused");
    assert_eq!(value(&line, "reason"), "backends_full");
    wait_for_queue(&site, 2);
    drop((first, server));
    let (target, _server) = accept(&backend);
    assert_eq!(target, "/a");
    assert_switched(&mut waiting[0]);
    assert!(waiting[1].is_silent());
}

#[test]
fn whoever_has_waited_long_enough_may_come_again() {
    let (mut site, backend, first, server) = full("queue_timeout_ms = 150");
    let start = Instant::now();
    let (status, answer) = Peer::sending(site.proxy, upgrade("")).read_refusal();
    assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
    assert!(status == 503 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    let line = site.program.wait_for("event=refused");
    assert_eq!(value(&line, "reason"), "backends_full");
    wait_for_queue(&site, 0);
    assert!(!backend.has_waiting());
    // It has taken no place with it.
    drop((first, server));
    site.program.wait_for("event=tunnel_end");
    let (mut client, mut server) = Peer::tunnel(site.proxy, &backend);
    assert_alive(&mut client, &mut server);
}

#[test]
fn a_reload_that_makes_room_serves_those_who_wait() {
    let (one, other) = (Backend::start(), Backend::start());
    let list = |cap: usize| vec![element(one.address, &format!("max_tunnels = {cap}"))];
    let mut site = Site::start(&list(1), LONG);
    let (mut first, mut server) = Peer::tunnel(site.proxy, &one);
    let mut clients = [waiting(&site, "/a", 1), waiting(&site, "/b", 2), waiting(&site, "/c", 3)];
    site.reload(&list(2), LONG);
    let (target, _a) = accept(&one);
    assert_eq!(target, "/a");
    assert_switched(&mut clients[0]);
    wait_for_queue(&site, 2);
    assert!(!one.has_waiting());
    // By a backend that is new.
    let more = [list(2), vec![element(other.address, "max_tunnels = 1")]].concat();
    site.reload(&more, LONG);
    let (target, mut b) = accept(&other);
    assert_eq!(target, "/b");
    assert_switched(&mut clients[1]);
    assert_alive(&mut clients[1], &mut b);
    wait_for_queue(&site, 1);
    assert!(!one.has_waiting() && clients[2].is_silent());
    // The place of a tunnel from before all that.
    assert_alive(&mut first, &mut server);
    drop((first, server));
    assert_eq!(accept(&one).0, "/c");
    assert_switched(&mut clients[2]);
    site.program.wait_for("event=tunnel_end");
}

#[test]
fn the_end_of_an_ejection_serves_whoever_waits() {
    let (full, held) = (Backend::start(), HeldPort::new());
    let list = [element(full.address, "max_tunnels = 1"), element(held.address, "")];
    let mut site = Site::start(&list, &format!("{LONG}\nmax_failures = 1\neject_ms = 300"));
    let (_client, _server) = Peer::tunnel(site.proxy, &full);
    assert_eq!(Peer::sending(site.proxy, upgrade("")).read_refusal().0, 502);
    let (_, reason) = site.wait_for_health(held.address, "ejected");
    assert_eq!(reason, "connect failure");
    let backend = held.listen();
    let mut trial = Peer::sending(site.proxy, upgrade_but("/chat", "/trial"));
    // No event tells that the time is over.
    let mut server = backend.accept();
    assert!(server.read_head().starts_with("GET /trial "));
    // While the trial is under way, the others wait for its outcome.
    let mut next = waiting(&site, "/next", 1);
    assert!(!backend.has_waiting());
    server.send(switching(""));
    assert_switched(&mut trial);
    assert_eq!(accept(&backend).0, "/next");
    assert_switched(&mut next);
}

/// A site with two full backends, of which the first one dies while a handshake waits. Returns the
/// other one, its tunnel, and the client that waits.
fn dying(more: &str) -> (Site, HeldPort, Backend, (Peer, Peer), Peer) {
    let (held, other) = (HeldPort::new(), Backend::start());
    let list = [held.address, other.address].map(|address| element(address, "max_tunnels = 1"));
    let site = Site::start(&list, &format!("eject_ms = 600000\n{more}"));
    let dead = held.listen();
    let ends = Peer::tunnel(site.proxy, &dead);
    let tunnel = Peer::tunnel(site.proxy, &other);
    let next = waiting(&site, "/next", 1);
    drop((dead, ends));
    (site, held, other, tunnel, next)
}

#[test]
fn whoever_gets_the_place_at_a_backend_that_has_died_waits_for_another() {
    let (mut site, held, other, tunnel, mut next) = dying(LONG);
    site.wait_for_health(held.address, "ejected");
    // Nor is one refused who comes now.
    let mut last = waiting(&site, "/last", 2);
    drop(tunnel);
    let (target, server) = accept(&other);
    assert_eq!(target, "/next");
    assert_switched(&mut next);
    drop((next, server));
    assert_eq!(accept(&other).0, "/last");
    assert_switched(&mut last);
    assert_eq!(site.backend(held.address)["connect_failures"]["refused"], 3);
}

#[test]
fn whoever_gets_the_place_at_the_last_backend_and_finds_it_dead_is_told_so() {
    let held = HeldPort::new();
    let dead = held.listen();
    let site = Site::start(&[element(held.address, "max_tunnels = 1")], LONG);
    let ends = Peer::tunnel(site.proxy, &dead);
    let mut next = waiting(&site, "/next", 1);
    drop((dead, ends));
    assert_eq!(next.read_refusal().0, 502);
    assert_eq!(site.backend(held.address)["connect_failures"]["refused"], 1);
}

#[test]
fn whoever_waits_again_does_not_do_so_for_ever() {
    // Its place is there again and again, as it is never out.
    let (site, held, _other, _tunnel, mut next) =
        dying(&format!("{LONG}\nmax_ejected_percent = 0"));
    assert_eq!(next.read_refusal().0, 502);
    assert_eq!(site.backend(held.address)["connect_failures"]["refused"], 4);
    let (mut site, held, _other, _tunnel, mut next) = dying("queue_timeout_ms = 1000");
    site.wait_for_health(held.address, "ejected");
    let (status, answer) = next.read_refusal();
    assert!(status == 503 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
}

#[test]
fn whoever_has_no_time_left_to_wait_tries_no_backend_again() {
    let (full, silent) = (Backend::start(), Backend::full());
    let list = [element(full.address, "max_tunnels = 1"), element(silent.address, "")];
    let site = Site::start(&list, "connect_timeout_ms = 300\nqueue_timeout_ms = 100");
    let (_client, _server) = Peer::tunnel(site.proxy, &full);
    let (status, answer) = Peer::sending(site.proxy, upgrade("")).read_refusal();
    assert!(status == 503 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    assert_eq!(site.backend(silent.address)["connect_failures"]["timeout"], 1);
}

#[test]
fn at_the_end_of_a_drain_whoever_waits_may_come_again() {
    let drain = "[drain]\nspread_ms = 0\ntimeout_ms = 500\nclose_grace_ms = 60000";
    let (mut site, _backend, _first, _server) = full(&format!("{LONG}\n{drain}"));
    let mut waiting = waiting(&site, "/waits", 1);
    site.program.signal(Signal::TERM);
    let (status, answer) = waiting.read_refusal();
    assert!(status == 503 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    let line = site.program.wait_for("event=refused");
    assert_eq!(value(&line, "reason"), "draining");
    site.program.wait();
}

#[test]
fn a_place_that_is_freed_by_a_drain_is_given_to_whoever_waits() {
    let drain = "[drain]\nspread_ms = 0\ntimeout_ms = 120000\nclose_grace_ms = 60000";
    let (mut site, backend, mut first, server) = full(&format!("{LONG}\n{drain}"));
    let mut waiting = waiting(&site, "/waits", 1);
    site.program.signal(Signal::TERM);
    first.expect_proxy_close(From::Client, 1001);
    drop((first, server));
    let (target, _server) = accept(&backend);
    assert_eq!(target, "/waits");
    // It is told in order to go elsewhere.
    assert_switched(&mut waiting);
    waiting.expect_proxy_close(From::Client, 1001);
    drop(waiting);
    site.program.wait();
}
