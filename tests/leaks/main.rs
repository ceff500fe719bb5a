//! Leaks of a process that embeds the library. A binary of its own, with one test: descriptors and
//! threads of other tests would count as well.

#[allow(dead_code, unused_imports, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/support/mod.rs"]
mod support;

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use futures_lite::future;
use ws_proxy::{BoundProxy, Workers, WsProxy};

use self::support::{Backend, Peer, Proxy, switching, upgrade, wait_until};

#[test]
fn proxies_that_have_ended_leave_no_descriptor_and_no_thread() {
    // The first ones open what the process keeps for good, such as the thread of async-io.
    end_proxies();
    let [descriptors, threads] = ["fd", "task"].map(open);
    for _ in 0..5 {
        end_proxies();
    }
    wait_until(&format!("{descriptors} descriptors and {threads} threads are left"), || {
        open("fd") <= descriptors && open("task") <= threads
    });
}

/// Ends proxies on workers of their own and on shared ones, with connections in every state.
fn end_proxies() {
    let backend = Backend::start();
    let to_backend = || Proxy::to(&[&backend]);
    let shared = Workers::start(2).unwrap();
    for proxy in [to_backend(), to_backend().workers(&shared), to_backend().workers(&shared)] {
        let proxy = Proxy::start(proxy);
        let _left = connections(&proxy, &backend);
        drop(proxy);
    }
    // One that never runs, and one whose future is dropped.
    drop(listen(to_backend()));
    let mut running = Box::pin(listen(to_backend()).run(future::pending()));
    assert!(future::block_on(future::poll_once(&mut running)).is_none());
}

/// Brings connections into every state; gives the peers that are left.
fn connections(proxy: &Proxy, backend: &Backend) -> Vec<Peer> {
    let tunnel = || Peer::tunnel(proxy.address, backend);
    let mut left = Vec::new();
    // Both ends close, one resets, and one goes away from a handshake.
    drop(tunnel());
    let (client, server) = tunnel();
    client.reset();
    left.push(server);
    let (client, mut server) = Peer::handshake(proxy.address, backend, upgrade("") + "early");
    client.reset();
    server.send(switching(""));
    left.push(server);
    // One is refused.
    Peer::sending(proxy.address, "GET / HTTP/1.0\r\n\r\n").read_refusal();
    // All others are cut by the end of the proxy: an idle tunnel, one with a finished half, one
    // that is blocked and has borrowed a pipe, a handshake, and a client that says nothing.
    let (mut ending, mut ended) = tunnel();
    ending.end_sending();
    ended.expect_eof();
    let (blocked, blocking) = tunnel();
    fill(&blocked);
    let (idle, awaiting) = (tunnel(), Peer::handshake(proxy.address, backend, upgrade("")));
    for (client, server) in [(ending, ended), (blocked, blocking), idle, awaiting] {
        left.extend([client, server]);
    }
    left.push(Peer::connect(proxy.address));
    left
}

/// Writes until the other side has taken nothing for a moment.
fn fill(peer: &Peer) {
    peer.stream.set_nonblocking(true).unwrap();
    let chunk = vec![7; 1 << 20];
    let mut last = Instant::now();
    wait_until("it is full", || {
        if (&peer.stream).write(&chunk).is_ok() {
            last = Instant::now();
        }
        last.elapsed() > Duration::from_millis(20)
    });
}

fn listen(proxy: WsProxy) -> BoundProxy {
    proxy.listen("127.0.0.1:0").unwrap()
}

/// Number of this process's descriptors ("fd") or threads ("task").
fn open(kind: &str) -> usize {
    fs::read_dir(format!("/proc/self/{kind}")).unwrap().count()
}
