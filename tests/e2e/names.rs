//! Backends that come and go while tunnels live: the addresses of names that are watched, and those
//! that a reload adds and removes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::balance::open;
use crate::reload::{Reloadable, talk};
use crate::support::{
    Backend, From, NameServer, Peer, Reply, is_in_own_network, section, switching, table, upgrade,
    value, wait_until,
};

/// A section whose only backend is a name that is watched, and further lines.
fn watching(more: &str) -> String {
    format!(
        "{}name = \"s\"\nhost = \"backend\"\nresolve = \"watch\"\nresolve_interval_ms = 10\n{more}\n",
        section("app.test:9000")
    )
}

/// The backends that three tunnels come to, and these tunnels.
fn open_three(proxy: SocketAddr, backends: &[Backend]) -> (BTreeSet<usize>, Vec<(Peer, Peer)>) {
    let opened: Vec<_> = (0..3).map(|_| open(proxy, backends, &upgrade(""))).collect();
    let indices = opened.iter().map(|(index, ..)| *index).collect();
    (indices, opened.into_iter().map(|(_, client, server)| (client, server)).collect())
}

/// Waits for the lines of these backends, in this order.
fn expect_events(proxy: &mut Reloadable, event: &str, backends: &[&str]) {
    for backend in backends {
        let line = proxy.program.wait_for(&format!("event={event} "));
        assert_eq!((value(&line, "section"), value(&line, "backend")), ("s", *backend), "{line}");
        assert_eq!(value(&line, "name"), "app.test:9000", "{line}");
    }
}

#[test]
fn each_address_of_a_watched_name_is_a_backend() {
    if !is_in_own_network("names::each_address_of_a_watched_name_is_a_backend") {
        return;
    }
    let backends = ["127.0.0.2:9000", "127.0.0.3:9000", "[::1]:9000"].map(Backend::at);
    let server = NameServer::start(Reply::Addresses(Vec::new()));
    let text = watching("connect_timeout_ms = 400");
    let mut proxy = Reloadable::start(&text);
    let address = proxy.program.address();
    let up = |proxy: &Reloadable, backend: &str| {
        let name = format!("ws_proxy_backend_up{{section=\"s\",backend=\"{backend}\"}}");
        let (_, text) = proxy.ask("GET /metrics");
        text.lines().find_map(|line| line.strip_prefix(&name)).map(str::trim).map(str::to_owned)
    };
    let line = proxy.program.wait_for("event=look_up_failed");
    assert!(line.contains("level=warn") && value(&line, "name") == "app.test:9000", "{line}");
    assert_eq!(up(&proxy, "app.test:9000").as_deref(), Some("1"));

    server.set_addresses(&["127.0.0.3", "127.0.0.2"]);
    proxy.program.wait_for("event=look_up_recovered");
    expect_events(&mut proxy, "backend_added", &["127.0.0.2:9000", "127.0.0.3:9000"]);
    let (chosen, mut tunnels) = open_three(address, &backends);
    assert_eq!(chosen, BTreeSet::from([0, 1]));
    assert_eq!(up(&proxy, "127.0.0.2:9000").as_deref(), Some("1"));
    assert_eq!(up(&proxy, "app.test:9000"), None);

    server.set_addresses(&["127.0.0.2", "::1", "127.0.0.3"]);
    expect_events(&mut proxy, "backend_added", &["[::1]:9000"]);
    let (chosen, more) = open_three(address, &backends);
    assert_eq!(chosen, BTreeSet::from([0, 1, 2]));
    tunnels.extend(more);
    // The name is what it is asked for, wherever it is.
    let mut client = Peer::sending(address, upgrade(""));
    let index = Backend::wait_for_any(&backends.each_ref());
    let (_, head) = backends[index].accept_tunnel();
    assert!(head.contains("\r\nHost: app.test:9000\r\n"), "{head}");
    client.read_head();
    let told: serde_json::Value = serde_json::from_str(&proxy.ask("GET /backends").1).unwrap();
    let told = told.as_array().unwrap();
    assert!(told.len() == 3 && told.iter().all(|one| one["name"] == "app.test:9000"), "{told:?}");

    // Whatever the name server tells, or does not, these are known.
    server.set(Reply::Silence);
    let line = proxy.program.wait_for("event=look_up_failed");
    assert!(line.contains("timed out"), "{line}");
    assert_eq!(open_three(address, &backends).0, BTreeSet::from([0, 1, 2]));
    // musl takes a failure for no answer, and waits on.
    let failure = cfg!(not(target_env = "musl")).then_some(Reply::Failure);
    for reply in failure.into_iter().chain([Reply::Addresses(Vec::new())]) {
        server.set(reply);
        server.wait_until_taken();
        assert_eq!(open_three(address, &backends).0, BTreeSet::from([0, 1, 2]));
    }
    // A reload in the meantime is no answer either.
    assert_eq!(proxy.reload(), "");
    assert_eq!(open_three(address, &backends).0, BTreeSet::from([0, 1, 2]));

    server.set_addresses(&["127.0.0.3"]);
    expect_events(&mut proxy, "backend_removed", &["127.0.0.2:9000", "[::1]:9000"]);
    assert_eq!(open_three(address, &backends).0, BTreeSet::from([1]));
    assert_eq!(up(&proxy, "[::1]:9000"), None);
    for (client, server) in &mut tunnels {
        talk(client, server);
    }
    let log = &proxy.program.seen;
    let count = |part: &str| log.iter().filter(|line| line.contains(part)).count();
    // Once for the empty answer at the start, and once for all that came later.
    assert_eq!(
        (count("event=look_up_failed"), count("event=look_up_recovered")),
        (2, 2),
        "{log:#?}"
    );
    assert_eq!((count("event=backend_added"), count("event=backend_removed")), (3, 2), "{log:#?}");
}

#[test]
fn tunnels_to_an_address_that_is_gone_are_drained_if_asked_for() {
    if !is_in_own_network("names::tunnels_to_an_address_that_is_gone_are_drained_if_asked_for") {
        return;
    }
    let backends = ["127.0.0.2:9000", "127.0.0.3:9000"].map(Backend::at);
    let server = NameServer::start(Reply::Silence);
    let drain = "[drain]\nclose_code = 1012\nspread_ms = 0\n";
    let mut proxy = Reloadable::start(&watching(&format!("on_removed = \"drain\"\n{drain}")));
    let address = proxy.program.address();
    // Until the name is known, its first client waits, and is no client of a removed backend then.
    let mut early = Peer::sending(address, upgrade(""));
    wait_until("it waits", || proxy.ask("GET /status").1.contains("\"connections\":1"));
    server.set_addresses(&["127.0.0.2", "127.0.0.3"]);
    let (mut early_server, _) =
        backends[Backend::wait_for_any(&backends.each_ref())].accept_tunnel();
    early.read_head();
    expect_events(&mut proxy, "backend_added", &["127.0.0.2:9000", "127.0.0.3:9000"]);

    let mut both = [(); 2].map(|()| open(address, &backends, &upgrade("")));
    both.sort_unstable_by_key(|(index, ..)| *index);
    let [(_, gone, gone_server), (_, mut left, mut left_server)] = both;
    server.set_addresses(&["127.0.0.3"]);
    expect_events(&mut proxy, "backend_removed", &["127.0.0.2:9000"]);
    expect_drained(gone, gone_server);
    let line = proxy.program.wait_for("event=tunnel_end");
    assert_eq!(value(&line, "reason"), "backend_removed", "{line}");
    assert_eq!(value(&line, "backend"), "127.0.0.2:9000", "{line}");
    talk(&mut left, &mut left_server);
    talk(&mut early, &mut early_server);
}

/// A section with these backends, and further lines.
fn list(backends: &[&Backend], more: &str) -> String {
    let list: Vec<_> = backends.iter().map(|one| one.address.to_string()).collect();
    format!("{}{more}\n", section(list.join("\", \"")))
}

const KEEP: &str = "[drain]\nclose_code = 1012\nspread_ms = 0\n";
const DRAIN: &str = "on_removed = \"drain\"\n[drain]\nclose_code = 1012\nspread_ms = 0\n";

/// Answers both Closes of a drain, and ends both sides.
fn expect_drained(mut client: Peer, mut server: Peer) {
    client.expect_proxy_close(From::Client, 1012);
    server.expect_proxy_close(From::Backend, 1001);
    client.send(From::Client.close(1012));
    server.send(From::Backend.close(1001));
    drop(server);
    client.expect_eof();
}

#[test]
fn a_reload_keeps_the_tunnels_of_a_backend_that_it_removes_or_drains_them() {
    for (more, is_drained) in table([(KEEP, false), (DRAIN, true)]) {
        let [gone, left] = [(); 2].map(|()| Backend::start());
        let mut proxy = Reloadable::start(&list(&[&gone, &left], more));
        let address = proxy.program.address();
        let (mut client, mut server) = Peer::tunnel(address, &gone);
        let (mut other, mut other_server) = Peer::tunnel(address, &left);
        let (mut late, mut late_server) = Peer::handshake(address, &gone, upgrade(""));

        proxy.write(&list(&[&left], more));
        assert_eq!(proxy.reload(), "");
        late_server.send(switching(""));
        assert!(late.read_head().starts_with("HTTP/1.1 101 "));
        if is_drained {
            expect_drained(client, server);
            let line = proxy.program.wait_for("event=tunnel_end");
            assert_eq!(value(&line, "reason"), "backend_removed", "{line}");
            assert_eq!(value(&line, "backend"), gone.address.to_string(), "{line}");
            // Its handshake was under way.
            expect_drained(late, late_server);
        } else {
            // Longer than a tick, at which it would be closed.
            client.expect_silence(Duration::from_millis(600));
            talk(&mut client, &mut server);
            talk(&mut late, &mut late_server);
        }
        talk(&mut other, &mut other_server);
    }
}

#[test]
fn a_client_that_connected_before_its_backend_was_removed_is_drained_as_well() {
    let [gone, left] = [(); 2].map(|()| Backend::start());
    let mut proxy = Reloadable::start(&list(&[&gone], DRAIN));
    let address = proxy.program.address();
    let mut client = Peer::connect(address);
    wait_until("it is accepted", || proxy.ask("GET /sections").1.contains("\"connections\":1"));
    proxy.write(&list(&[&left], DRAIN));
    assert_eq!(proxy.reload(), "");
    client.send(upgrade(""));
    let (server, _) = gone.accept_tunnel();
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    expect_drained(client, server);
}

#[test]
fn a_backend_that_comes_back_is_drained_no_further() {
    let [back, gone, left] = [(); 3].map(|()| Backend::start());
    let mut proxy = Reloadable::start(&list(&[&back, &gone, &left], DRAIN));
    let address = proxy.program.address();
    let mut handshakes = [&back, &gone].map(|one| Peer::handshake(address, one, upgrade("")));
    for backends in table([&[&left][..], &[&left, &back]]) {
        proxy.write(&list(backends, DRAIN));
        assert_eq!(proxy.reload(), "");
    }
    for (client, server) in &mut handshakes {
        server.send(switching(""));
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    }
    let [(mut client, mut server), (other, other_server)] = handshakes;
    // Both would be found at the same time.
    expect_drained(other, other_server);
    talk(&mut client, &mut server);
}
