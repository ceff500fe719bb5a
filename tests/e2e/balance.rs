//! The choice of a backend, by weight, by count, by a part of the request, and by its limits.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rustix::process::Signal;

use crate::support::{
    Backend, Directory, From, Peer, Program, Proxy, ask, assert_alive, table, upgrade, upgrade_but,
    value, wait_until,
};
use ws_proxy::{BackendConfig, Balance, WsProxy};

/// A section with these backends, each an element of the list, and further lines.
fn section(backends: &[String], more: &str) -> String {
    let backends = backends.join(", ");
    format!("[[ws_proxy]]\nname = \"s\"\nbind = \"127.0.0.1:0\"\nbackends = [{backends}]\n{more}\n")
}

fn plain(backend: &Backend) -> String {
    format!("\"{}\"", backend.address)
}

fn with(backend: &Backend, settings: &str) -> String {
    format!("{{ address = \"{}\", {settings} }}", backend.address)
}

/// Opens a tunnel with this handshake; returns the index of its backend, and both ends.
pub(crate) fn open(
    proxy: SocketAddr,
    backends: &[Backend],
    handshake: &str,
) -> (usize, Peer, Peer) {
    let mut client = Peer::sending(proxy, handshake);
    let all: Vec<_> = backends.iter().collect();
    let index = Backend::wait_for_any(&all);
    let (server, _) = backends[index].accept_tunnel();
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    (index, client, server)
}

fn backends<const N: usize>() -> [Backend; N] {
    std::array::from_fn(|_| Backend::start())
}

#[test]
fn weights_are_honoured_without_bursts() {
    let backends = backends::<3>();
    let list = [with(&backends[0], "weight = 3"), plain(&backends[1]), plain(&backends[2])];
    let mut program = Program::with_config(&section(&list, ""));
    let address = program.address();
    let order: Vec<_> = (0..20).map(|_| open(address, &backends, &upgrade("")).0).collect();
    let count = |index| order.iter().filter(|&&one| one == index).count();
    assert_eq!([0, 1, 2].map(count), [12, 4, 4], "{order:?}");
    let longest = order.split(|&one| one != 0).map(<[usize]>::len).max();
    assert!(longest <= Some(2), "{order:?}");
}

#[test]
fn the_backend_with_the_fewest_tunnels_for_its_weight_is_chosen() {
    let backends = backends::<3>();
    let list = [plain(&backends[0]), plain(&backends[1]), with(&backends[2], "weight = 2")];
    let mut program = Program::with_config(&section(&list, "balance = \"least_tunnels\""));
    let address = program.address();
    let mut tunnels: BTreeMap<usize, Vec<(Peer, Peer)>> = BTreeMap::new();
    for _ in 0..12 {
        let (index, client, server) = open(address, &backends, &upgrade(""));
        tunnels.entry(index).or_default().push((client, server));
    }
    let counts: Vec<_> = tunnels.values().map(Vec::len).collect();
    assert_eq!(counts, [3, 3, 6]);
    // What one has lost it gets back.
    tunnels.get_mut(&1).unwrap().clear();
    for _ in 0..3 {
        program.wait_for("event=tunnel_end");
    }
    for _ in 0..3 {
        let (index, client, server) = open(address, &backends, &upgrade(""));
        assert_eq!(index, 1);
        tunnels.entry(index).or_default().push((client, server));
    }
}

#[test]
fn one_value_comes_to_one_backend_and_others_elsewhere() {
    let room = |name: &str, number: usize| match name {
        "path" => upgrade_but("/chat", &format!("/room/{number}?x={}", number * 7)),
        "query:room" => upgrade_but("/chat", &format!("/chat?t={}&room={number}", number * 3)),
        "header:X-Room" => upgrade(&format!("X-Room: {number}\r\n")),
        "cookie:room" => upgrade(&format!("Cookie: a=1; room={number}; b=2\r\n")),
        _ => unreachable!(),
    };
    for part in table(["path", "query:room", "header:X-Room", "cookie:room"]) {
        let backends = backends::<3>();
        let list: Vec<_> = backends.iter().map(plain).collect();
        let more = format!("balance = \"hash\"\nhash_on = \"{part}\"");
        let text = section(&list, &more);
        let mut homes = Vec::new();
        // Another process with the backends in another order chooses alike.
        let reversed: Vec<_> = list.iter().rev().cloned().collect();
        for text in [text, section(&reversed, &more)] {
            let mut program = Program::with_config(&text);
            let address = program.address();
            for number in 0..12 {
                let home = open(address, &backends, &room(part, number)).0;
                assert_eq!(open(address, &backends, &room(part, number)).0, home, "{part}");
                homes.push(home);
            }
            // Without the part, it goes round.
            if part != "path" {
                let around: Vec<_> =
                    (0..3).map(|_| open(address, &backends, &upgrade("")).0).collect();
                assert!([0, 1, 2].iter().all(|one| around.contains(one)), "{part}: {around:?}");
            }
        }
        assert_eq!(homes[..12], homes[12..], "{part}");
        assert!(
            [0, 1].iter().any(|one| homes.contains(one))
                && homes.iter().any(|one| *one != homes[0])
        );
    }
}

#[test]
fn a_client_comes_to_one_backend_by_its_address() {
    let backends = backends::<2>();
    let list: Vec<_> = backends.iter().map(plain).collect();
    let more = "balance = \"hash\"\nhash_on = \"client_ip\"";
    let mut program = Program::with_config(&section(&list, more));
    let address = program.address();
    let home = open(address, &backends, &upgrade("")).0;
    for _ in 0..6 {
        assert_eq!(open(address, &backends, &upgrade("")).0, home);
    }
}

#[test]
fn a_lost_backend_moves_only_its_own_share() {
    let (refusing, live) = (Backend::refusing(), backends::<2>());
    let list = [plain(&refusing), plain(&live[0]), plain(&live[1])];
    let more = "balance = \"hash\"\nhash_on = \"header:X-Room\"";
    let room = |number: usize| upgrade(&format!("X-Room: {number}\r\n"));
    let homes = |list: &[String]| -> Vec<usize> {
        let mut program = Program::with_config(&section(list, more));
        let address = program.address();
        (0..30).map(|number| open(address, &live, &room(number)).0).collect()
    };
    // Those of the lost one are spread over the others, which keep their own.
    assert_eq!(homes(&list), homes(&list[1..]));
}

#[test]
fn at_its_limit_a_backend_is_passed_over_and_where_all_are_full_the_client_may_come_again() {
    let backends = backends::<2>();
    let list = [with(&backends[0], "max_tunnels = 1"), with(&backends[1], "max_tunnels = 2")];
    let directory = Directory::new();
    let admin = "[admin]\nbind = \"127.0.0.1:0\"\n";
    let file = directory.write("ws-proxy.toml", &format!("{}{admin}", section(&list, "")));
    let mut program = Program::start(&["--config", file.to_str().unwrap()], None);
    let admin_address: SocketAddr =
        value(&program.wait_for("event=admin_listening"), "address").parse().unwrap();
    let address = program.address();
    let mut tunnels: Vec<_> = (0..3).map(|_| open(address, &backends, &upgrade(""))).collect();
    let mut indices: Vec<_> = tunnels.iter().map(|(index, ..)| *index).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 1]);
    let (status, answer) = Peer::sending(address, upgrade("")).read_refusal();
    assert!(status == 503 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    let line = program.wait_for("event=refused");
    assert_eq!(value(&line, "reason"), "backends_full");
    let (_, metrics) = ask(admin_address, "GET /metrics");
    let sample = "ws_proxy_handshakes_total{section=\"s\",outcome=\"backends_full\"} 1\n";
    assert!(metrics.contains(sample), "{metrics}");
    for (_, client, server) in &mut tunnels {
        assert_alive(client, server);
    }
    // A place that is freed is taken again, at the backend that has it.
    let at = tunnels.iter().position(|(index, ..)| *index == 0).unwrap();
    drop(tunnels.remove(at));
    program.wait_for("event=tunnel_end");
    let again = open(address, &backends, &upgrade(""));
    assert_eq!(again.0, 0);
    assert_eq!(Peer::sending(address, upgrade("")).read_refusal().0, 503);
    // A reload that raises a limit counts the tunnels that there are.
    let list = [with(&backends[0], "max_tunnels = 2"), with(&backends[1], "max_tunnels = 1")];
    directory.write("ws-proxy.toml", &format!("{}{admin}", section(&list, "")));
    program.signal(Signal::HUP);
    program.wait_for("event=config_reloaded");
    let more = open(address, &backends, &upgrade(""));
    assert_eq!(more.0, 0);
    assert_eq!(Peer::sending(address, upgrade("")).read_refusal().0, 503);
}

#[test]
fn backups_serve_where_no_other_can() {
    let [main, backup] = backends();
    let list = [with(&backup, "backup = true"), with(&main, "max_tunnels = 1")];
    let mut program = Program::with_config(&section(&list, ""));
    let address = program.address();
    let both = [main, backup];
    let first = open(address, &both, &upgrade(""));
    let second = open(address, &both, &upgrade(""));
    assert_eq!((first.0, second.0), (0, 1));
    drop(first);
    program.wait_for("event=tunnel_end");
    assert_eq!(open(address, &both, &upgrade("")).0, 0);

    // One whose dial fails is as good as full, for this client too.
    let refusing = Backend::refusing();
    let list = [plain(&refusing), with(&both[1], "backup = true")];
    let mut program = Program::with_config(&section(&list, ""));
    let address = program.address();
    for _ in 0..3 {
        let (server, mut client, mut peer) = open(address, &both, &upgrade(""));
        assert_eq!(server, 1);
        assert_alive(&mut client, &mut peer);
    }
}

#[test]
fn the_library_takes_backends_with_settings() {
    let both = backends::<2>();
    let [one, other] = &both;
    let backends = [
        BackendConfig::new(one.address.to_string()).weight(2).max_tunnels(3),
        BackendConfig::from(other.address.to_string()),
    ];
    let proxy = Proxy::start(WsProxy::new(backends).balance(Balance::LeastTunnels));
    let mut held: Vec<_> = (0..6).map(|_| open(proxy.address, &both, &upgrade(""))).collect();
    assert_eq!(held.iter().filter(|(index, ..)| *index == 0).count(), 3);
    let (_, client, server) = &mut held[0];
    let text = From::Client.text("hi");
    client.send(&text);
    server.expect(&text);
    drop(held);
    wait_until("places are free", || {
        Peer::sending(proxy.address, upgrade("")).stream.peer_addr().is_ok()
    });
}
