//! Tunnels that move to backends that were added.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::reload::Reloadable;
use crate::support::{
    Backend, From, Peer, raise_descriptor_limit, switching, table, upgrade, value, wait_until,
};

/// Number of clients in these tests.
const CLIENTS: usize = 300;

/// Backends that answer handshakes, checks and Closes.
struct Servers {
    addresses: Vec<SocketAddr>,
    state: Arc<ServersState>,
    thread: Option<thread::JoinHandle<()>>,
}

struct ServersState {
    stop: AtomicBool,
    /// Servers that fail checks have theirs set.
    is_ill: Vec<AtomicBool>,
    /// Connections that have ended without a Close.
    cut: AtomicUsize,
}

/// Clients that connect again when they are told to.
struct Clients {
    state: Arc<ClientsState>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct ClientsState {
    stop: AtomicBool,
    /// Codes of the Closes that each client has got, by its number.
    closes: Mutex<HashMap<usize, Vec<u16>>>,
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Handshake,
    Open,
    Closing,
}

/// Waits until one of these can be read, but not long; returns which can.
fn readable<'a>(peers: impl Iterator<Item = &'a Peer>) -> Vec<bool> {
    let mut fds: Vec<_> = peers.map(|one| PollFd::new(&one.stream, PollFlags::IN)).collect();
    let moment = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    poll(&mut fds, Some(&moment)).unwrap();
    fds.iter().map(|fd| !fd.revents().is_empty()).collect()
}

/// Returns whether the connection is over.
fn is_over(peer: &Peer) -> bool {
    match peer.stream.peek(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

impl Servers {
    fn start(count: usize) -> Self {
        let backends: Vec<_> = (0..count).map(|_| Backend::start()).collect();
        let addresses = backends.iter().map(|one| one.address).collect();
        let is_ill = backends.iter().map(|_| AtomicBool::new(false)).collect();
        let (stop, cut) = (AtomicBool::new(false), AtomicUsize::new(0));
        let state = Arc::new(ServersState { stop, is_ill, cut });
        let its_state = Arc::clone(&state);
        let thread = thread::spawn(move || serve(&backends, &its_state));
        Self { addresses, state, thread: Some(thread) }
    }
}

fn serve(backends: &[Backend], state: &ServersState) {
    let mut peers: Vec<(Peer, Phase, &AtomicBool)> = Vec::new();
    while !state.stop.load(Ordering::Relaxed) {
        for (backend, is_ill) in backends.iter().zip(&state.is_ill) {
            while backend.has_waiting() {
                peers.push((backend.accept(), Phase::Handshake, is_ill));
            }
        }
        let mut is_readable = readable(peers.iter().map(|(peer, ..)| peer)).into_iter();
        peers.retain_mut(|(peer, phase, is_ill)| {
            if !is_readable.next().unwrap() {
                return true;
            }
            if is_over(peer) {
                let is_cut = *phase == Phase::Open && !state.stop.load(Ordering::Relaxed);
                state.cut.fetch_add(usize::from(is_cut), Ordering::Relaxed);
                return false;
            }
            match phase {
                Phase::Handshake => {
                    let is_check = peer.read_head().starts_with("GET /health ");
                    let status = if is_ill.load(Ordering::Relaxed) { 503 } else { 200 };
                    peer.send(match is_check {
                        true => format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"),
                        false => switching(""),
                    });
                    *phase = if is_check { Phase::Closing } else { Phase::Open };
                }
                Phase::Open | Phase::Closing => {
                    let code = peer.read_frame().close_code().expect("a Close");
                    peer.send(From::Backend.close(code));
                    *phase = Phase::Closing;
                }
            }
            true
        });
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        join(self.thread.take());
    }
}

impl Clients {
    /// Connects them one after the other, so that the first ones have the oldest tunnels.
    fn start(proxy: SocketAddr) -> Self {
        let connect = || {
            let mut client = Peer::sending(proxy, upgrade(""));
            assert!(client.read_head().starts_with("HTTP/1.1 101 "));
            (client, Phase::Open)
        };
        let peers: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();
        let state = Arc::new(ClientsState::default());
        let its_state = Arc::clone(&state);
        let thread = thread::spawn(move || live(proxy, peers, &its_state));
        Self { state, thread: Some(thread) }
    }

    /// Returns the numbers of those that were told to connect again, and asserts that nobody was
    /// told so twice, nor anything else.
    fn moved(&self, code: u16) -> Vec<usize> {
        let closes = self.state.closes.lock().unwrap();
        assert!(closes.values().all(|codes| *codes == [code]), "{closes:?}");
        let mut moved: Vec<_> = closes.keys().copied().collect();
        moved.sort_unstable();
        moved
    }
}

/// Answers Closes and connects again, as browsers do, until told to stop.
fn live(proxy: SocketAddr, mut peers: Vec<(Peer, Phase)>, state: &ClientsState) {
    while !state.stop.load(Ordering::Relaxed) {
        let is_readable = readable(peers.iter().map(|(peer, _)| peer));
        let with_news = peers.iter_mut().enumerate().zip(is_readable).filter(|(_, news)| *news);
        for ((number, (peer, phase)), _) in with_news {
            match phase {
                Phase::Handshake => {
                    let head = peer.read_head();
                    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
                    *phase = Phase::Open;
                }
                Phase::Open => {
                    // Fails at the end of one that was cut.
                    let frame = peer.read_frame();
                    let code = frame.close_code().unwrap_or_else(|| panic!("{frame:?}"));
                    state.closes.lock().unwrap().entry(number).or_default().push(code);
                    peer.send(From::Client.close(code));
                    *phase = Phase::Closing;
                }
                Phase::Closing => {
                    peer.expect_eof();
                    (*peer, *phase) = (Peer::sending(proxy, upgrade("")), Phase::Handshake);
                }
            }
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        join(self.thread.take());
    }
}

fn join(thread: Option<thread::JoinHandle<()>>) {
    let result = thread.map_or(Ok(()), thread::JoinHandle::join);
    if !thread::panicking() {
        result.expect("peers do not panic");
    }
}

/// Clients at a program, with these backends to come.
struct Bench {
    // Dropped first: what ends with the program is of no interest.
    clients: Clients,
    servers: Servers,
    proxy: Reloadable,
    more: &'static str,
}

impl Bench {
    /// Has all clients at the first two of these servers. `more` is further lines of the section.
    fn start(servers: usize, more: &'static str) -> Self {
        raise_descriptor_limit();
        let servers = Servers::start(servers);
        let mut proxy = Reloadable::start(&text(&plain(&servers.addresses[..2]), more));
        let clients = Clients::start(proxy.program.address());
        let bench = Self { clients, servers, proxy, more };
        assert_eq!(bench.tunnels(), [CLIENTS / 2; 2]);
        bench
    }

    /// Reloads with these backends.
    fn reload(&self, backends: &[String]) {
        self.proxy.write(&text(backends, self.more));
        assert_eq!(self.proxy.reload(), "");
    }

    /// Reloads with this number of servers.
    fn reload_with(&self, servers: usize) {
        self.reload(&plain(&self.servers.addresses[..servers]));
    }

    /// Waits for the begin and the end of a rebalancing that closes this many tunnels.
    fn expect_rebalancing(&mut self, tunnels: usize) {
        for event in ["rebalancing", "rebalanced"] {
            let line = self.proxy.program.wait_for(&format!("event={event} "));
            assert_eq!(value(&line, "tunnels"), tunnels.to_string(), "{line}");
        }
    }

    /// Waits for the next change of health of this backend.
    fn expect_health(&mut self, backend: SocketAddr, state: &str) {
        let event = format!("event=backend_health section=s backend={backend} ");
        let line = self.proxy.program.wait_for(&event);
        assert_eq!(value(&line, "to"), state, "{line}");
    }

    fn backends(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.proxy.ask("GET /backends").1).unwrap()
    }

    /// Returns the number of tunnels to each backend.
    fn tunnels(&self) -> Vec<usize> {
        self.backends().iter().map(|one| one["tunnels"].as_u64().unwrap() as usize).collect()
    }

    /// Returns the number of checks that this backend has passed.
    fn passed_checks(&self, backend: SocketAddr) -> u64 {
        let backends = self.backends();
        let one = backends.iter().find(|one| one["backend"] == *backend.to_string());
        one.unwrap()["health_checks"]["success"].as_u64().unwrap()
    }

    /// Asserts that the shares are these, in percent of each with 5 % of tolerance, and that all
    /// clients are there, none of which has been cut.
    fn assert_shares(&self, shares: &[usize]) {
        let tunnels = self.tunnels();
        let all: usize = shares.iter().sum();
        let range = |share: &usize| -> RangeInclusive<usize> {
            let even = CLIENTS * share;
            (even * 95).div_ceil(100 * all)..=even * 105 / (100 * all)
        };
        let are_even =
            tunnels.iter().zip(shares).all(|(count, share)| range(share).contains(count));
        assert!(are_even && tunnels.len() == shares.len(), "{tunnels:?}");
        assert_eq!(tunnels.iter().sum::<usize>(), CLIENTS);
        assert_eq!(self.servers.state.cut.load(Ordering::Relaxed), 0);
    }
}

/// The configuration with these backends, each an element of the list.
fn text(backends: &[String], more: &str) -> String {
    let backends = backends.join(", ");
    format!("[[ws_proxy]]\nname = \"s\"\nbind = \"127.0.0.1:0\"\nbackends = [{backends}]\n{more}\n")
}

fn plain(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(|one| format!("\"{one}\"")).collect()
}

fn weighted(addresses: &[SocketAddr], weights: &[u32]) -> Vec<String> {
    let with = |(address, weight)| format!("{{ address = \"{address}\", weight = {weight} }}");
    addresses.iter().zip(weights).map(with).collect()
}

#[test]
fn a_third_backend_gets_its_share_from_the_oldest_tunnels_of_the_others() {
    for more in table([
        "rebalance = true\nrebalance_per_second = 200",
        "rebalance = true\nrebalance_per_second = 200\nbalance = \"least_tunnels\"",
    ]) {
        let mut bench = Bench::start(3, more);
        bench.reload_with(3);
        bench.expect_rebalancing(100);
        bench.assert_shares(&[1, 1, 1]);
        assert_eq!(bench.clients.moved(1012), Vec::from_iter(0..100), "{more}");
    }
}

#[test]
fn shares_follow_the_weights_and_little_above_is_near_enough() {
    let mut bench = Bench::start(4, "rebalance = true\nrebalance_per_second = 1000");
    let addresses = bench.servers.addresses.clone();
    // 150 are 5 % more than the share of 10/21.
    bench.reload(&weighted(&addresses[..3], &[10, 10, 1]));
    bench.reload(&weighted(&addresses, &[10, 10, 1, 19]));
    // 75 of each remain.
    bench.expect_rebalancing(150);
    assert_eq!(bench.clients.moved(1012).len(), 150);
    let tunnels = bench.tunnels();
    assert!(tunnels[..2].iter().all(|count| (75..=78).contains(count)), "{tunnels:?}");
    assert_eq!(bench.servers.state.cut.load(Ordering::Relaxed), 0);
}

#[test]
fn without_rebalance_tunnels_stay_where_they_are() {
    let mut bench = Bench::start(4, "");
    bench.reload_with(3);
    bench.more = "rebalance = true\nrebalance_per_second = 1000\nrebalance_code = 4000";
    // Nothing is added with it, and nothing to be made up for.
    bench.reload_with(3);
    assert_eq!(bench.tunnels(), [150, 150, 0]);
    bench.reload_with(4);
    bench.expect_rebalancing(150);
    bench.assert_shares(&[1, 1, 1, 1]);
    assert_eq!(bench.clients.moved(4000), Vec::from_iter(0..150));
}

#[test]
fn a_backend_gets_its_share_after_its_slow_start() {
    let more = "rebalance = true\nrebalance_per_second = 1000\nslow_start_ms = 600";
    let mut bench = Bench::start(3, more);
    let begin = Instant::now();
    bench.reload_with(3);
    bench.proxy.program.wait_for("event=rebalancing ");
    assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
    bench.proxy.program.wait_for("event=rebalanced ");
    bench.assert_shares(&[1, 1, 1]);
    assert_eq!(bench.clients.moved(1012).len(), 100);
}

/// Rebalancing, with checks that each judge a backend.
const CHECKED: &str = "rebalance = true\nrebalance_per_second = 1000\n[ws_proxy.health_check]\n\
                       kind = \"http\"\npath = \"/health\"\ninterval_ms = 50\n\
                       healthy_threshold = 1\nunhealthy_threshold = 1\n";

#[test]
fn a_backend_gets_its_share_once_it_is_healthy() {
    let mut bench = Bench::start(3, CHECKED);
    bench.servers.state.is_ill[2].store(true, Ordering::Relaxed);
    bench.reload_with(3);
    let third = bench.servers.addresses[2];
    bench.expect_health(third, "unhealthy");
    assert!(bench.clients.moved(1012).is_empty());
    bench.servers.state.is_ill[2].store(false, Ordering::Relaxed);
    bench.expect_health(third, "healthy");
    assert!(!bench.proxy.program.seen.iter().any(|line| line.contains("event=rebalancing")));
    bench.expect_rebalancing(100);
    bench.assert_shares(&[1, 1, 1]);
    assert_eq!(bench.clients.moved(1012), Vec::from_iter(0..100));
}

#[test]
fn a_backend_that_is_not_healthy_yet_is_waited_for_when_another_one_is_added() {
    let mut bench = Bench::start(4, CHECKED);
    let (third, fourth) = (bench.servers.addresses[2], bench.servers.addresses[3]);
    bench.servers.state.is_ill[2].store(true, Ordering::Relaxed);
    bench.reload_with(3);
    bench.expect_health(third, "unhealthy");
    bench.reload_with(4);
    bench.expect_health(fourth, "healthy");
    // Time in which a rebalancing for the fourth alone would begin.
    wait_until("ten checks have passed", || bench.passed_checks(fourth) >= 10);
    bench.servers.state.is_ill[2].store(false, Ordering::Relaxed);
    bench.expect_health(third, "healthy");
    bench.expect_rebalancing(150);
    bench.assert_shares(&[1, 1, 1, 1]);
}

#[test]
fn a_backend_that_is_removed_again_is_not_waited_for() {
    let mut bench = Bench::start(4, CHECKED);
    let fourth = bench.servers.addresses[3];
    bench.servers.state.is_ill[3].store(true, Ordering::Relaxed);
    bench.reload_with(4);
    bench.expect_health(fourth, "unhealthy");
    bench.reload_with(3);
    bench.expect_rebalancing(100);
    bench.assert_shares(&[1, 1, 1]);
}

#[test]
fn another_backend_may_be_added_meanwhile() {
    let mut bench = Bench::start(4, "rebalance = true\nrebalance_per_second = 100");
    bench.reload_with(3);
    let line = bench.proxy.program.wait_for("event=rebalancing ");
    assert_eq!(value(&line, "tunnels"), "100", "{line}");
    wait_until("some are closed", || bench.clients.moved(1012).len() >= 20);
    bench.reload_with(4);
    bench.proxy.program.wait_for("event=rebalancing ");
    bench.proxy.program.wait_for("event=rebalanced ");
    bench.assert_shares(&[1, 1, 1, 1]);
    // One for each tunnel that the two have now, and some for clients that were on their way.
    let count = bench.clients.moved(1012).len();
    assert!((145..=175).contains(&count), "{count}");
}

#[test]
fn a_backend_that_refuses_all_loses_no_client() {
    let mut bench = Bench::start(2, "rebalance = true\nrebalance_per_second = 50");
    let refusing = Backend::refusing();
    let all = [&bench.servers.addresses[..], &[refusing.address]].concat();
    bench.reload(&plain(&all));
    bench.expect_health(refusing.address, "ejected");
    bench.proxy.program.wait_for("event=rebalanced ");
    // No more are closed for one that is out of use.
    let count = bench.clients.moved(1012).len();
    assert!((3..100).contains(&count), "{count}");
    bench.assert_shares(&[1, 1, 0]);
}
