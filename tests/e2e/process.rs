//! The program as a process: signals, limits, load, leaks, and its log.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::support::{
    Backend, Directory, PATIENCE, Peer, Program, assert_alive, expect_refused, is_dialled,
    is_own_network_allowed, raise_descriptor_limit, section, switching, table, upgrade, value,
    wait_until,
};

/// A program in front of one backend, and its address.
fn start(backend: &Backend) -> (Program, SocketAddr) {
    let mut program = Program::start(&flags(&backend.address.to_string()), None);
    let address = program.address();
    (program, address)
}

fn flags(backend: &str) -> [&str; 4] {
    ["--bind", "127.0.0.1:0", "--backend", backend]
}

/// The same, with such a time for draining.
fn start_with_drain_timeout(backend: &Backend, ms: u64) -> (Program, SocketAddr) {
    let section = section(backend.address);
    let mut program = Program::with_config(&format!("[drain]\ntimeout_ms = {ms}\n{section}"));
    let address = program.address();
    (program, address)
}

/// Asserts that a new client gets its tunnel.
fn assert_serves(address: SocketAddr, backend: &Backend) {
    let (mut client, mut server) = Peer::tunnel(address, backend);
    assert_alive(&mut client, &mut server);
}

/// Numbers of connections and threads of a program that has served and is idle again.
fn at_rest(program: &mut Program, address: SocketAddr, backend: &Backend) -> (usize, usize) {
    assert_serves(address, backend);
    program.wait_for("event=tunnel_end");
    (program.connections(), program.threads())
}

/// Asserts that the program comes to rest: that it takes no more CPU time from some moment on.
fn assert_costs_no_cpu(program: &Program) {
    let end = Instant::now() + PATIENCE;
    loop {
        let before = program.cpu_ticks();
        // A second of idleness is the subject.
        std::thread::sleep(Duration::from_secs(1));
        let ticks = program.cpu_ticks() - before;
        if ticks <= 2 {
            return;
        }
        assert!(Instant::now() < end, "{ticks} hundredths of a second went into idling");
    }
}

mod signals {
    use super::*;

    #[test]
    fn term_and_int_stop_accepting_and_wait_for_the_last_tunnel() {
        for signal in [Signal::TERM, Signal::INT] {
            let backend = Backend::start();
            // Longer than the test's patience: it is the last tunnel that ends it.
            let (mut program, address) = start_with_drain_timeout(&backend, 60_000);
            let mut first = Peer::tunnel(address, &backend);
            let mut last = Peer::tunnel(address, &backend);
            program.signal(signal);
            program.wait_for("event=draining");
            expect_refused(address);

            assert_alive(&mut first.0, &mut first.1);
            drop(first);
            program.wait_for("event=tunnel_end");
            assert_alive(&mut last.0, &mut last.1);
            last.0.end_sending();
            last.1.expect_eof();
            last.1.send("the other half goes on too");
            last.1.end_sending();
            assert_eq!(last.0.read_text_to_end(), "the other half goes on too");
            assert_eq!(program.wait().code(), Some(0));
        }
    }

    #[test]
    fn clients_that_have_not_asked_for_anything_do_not_hold_it_up() {
        let backend = Backend::start();
        let (mut program, address) = start_with_drain_timeout(&backend, 60_000);
        let (silent, stalled) =
            (Peer::connect(address), Peer::sending(address, "GET / HTTP/1.1\r\n"));
        assert_serves(address, &backend);
        program.signal(Signal::TERM);
        assert!(program.wait().success());
        drop((silent, stalled));
    }

    #[test]
    fn a_program_without_tunnels_leaves_at_once() {
        for signal in [Signal::TERM, Signal::INT] {
            let backend = Backend::start();
            let (mut program, _) = start_with_drain_timeout(&backend, 60_000);
            program.signal(signal);
            assert_eq!(program.wait().code(), Some(0));
        }
    }

    #[test]
    fn a_handshake_that_is_under_way_is_finished_before_the_end() {
        let backend = Backend::start();
        let (mut program, address) = start_with_drain_timeout(&backend, 60_000);
        let (mut client, mut server) = Peer::handshake(address, &backend, upgrade(""));
        program.signal(Signal::TERM);
        program.wait_for("event=draining");
        server.send(switching(""));
        client.read_head();
        assert_alive(&mut client, &mut server);
        drop((client, server));
        assert_eq!(program.wait().code(), Some(0));
    }

    #[test]
    fn a_tunnel_that_goes_on_is_cut_at_the_drain_timeout() {
        let backend = Backend::start();
        let (mut program, address) = start_with_drain_timeout(&backend, 1_000);
        let (mut client, mut server) = Peer::tunnel(address, &backend);
        let start = Instant::now();
        program.signal(Signal::TERM);
        program.wait_for("event=draining");
        assert_alive(&mut client, &mut server);
        assert_eq!(program.wait().code(), Some(0));
        assert!(
            start.elapsed() >= Duration::from_millis(1_000),
            "{:?} is too early",
            start.elapsed()
        );
        client.expect_end();
        server.expect_end();
    }

    #[test]
    fn whoever_is_cut_before_an_answer_gets_503_and_each_has_a_line() {
        // The end of the drain, and a second signal.
        for is_told_to_leave in [false, true] {
            let backend = Backend::start();
            let directory = Directory::new();
            let timeout = if is_told_to_leave { 60_000 } else { 1_000 };
            let file = directory.write(
                "ws-proxy.toml",
                &format!(
                    "workers = 1\n[drain]\ntimeout_ms = {timeout}\n{}",
                    section(backend.address)
                ),
            );
            let flags = ["--log-level", "debug", "--config", file.to_str().unwrap()];
            let mut program = Program::start(&flags, None);
            let address = program.address();
            let mut silent = Peer::connect(address);
            let mut stalled = Peer::sending(address, "GET / HTTP/1.1\r\n");
            stalled.wait_until_read();
            let mut bodiless = Peer::sending(address, "HEAD /chat HTTP/1.1\r\nHost: a\r\n");
            bodiless.wait_until_read();
            let (mut declined, mut declining) = Peer::handshake(address, &backend, upgrade(""));
            declining.send("HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\npart");
            declined.read_head();
            declined.expect("part");
            let early = upgrade("") + &"early".repeat(10_000);
            let (mut waiting, mut thinking) = Peer::handshake(address, &backend, early);

            program.signal(Signal::TERM);
            program.wait_for("event=draining");
            if is_told_to_leave {
                program.signal(Signal::TERM);
            }
            for client in [&mut waiting, &mut stalled] {
                let (status, answer) = client.read_refusal();
                assert_eq!(status, 503, "{answer}");
                assert!(answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
                assert!(answer.contains("shutting down"), "{answer}");
            }
            let answer = bodiless.read_text_to_end();
            assert!(
                answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\n"),
                "{answer}"
            );
            // Nobody gets a second head, and nobody one that has not asked.
            declined.expect_eof();
            silent.expect_eof();
            thinking.expect_eof();
            assert_eq!(program.wait().code(), Some(0));
            let log = program.rest_of_log();
            for (times, part) in table([
                (4, "event=refused"),
                (3, "status=503 reason=draining detail=\"this proxy is shutting down"),
                (1, "status=403 reason=backend_status fault=\"this proxy is shutting down\""),
                (1, "event=silent"),
                (1, "ended_by=proxy"),
            ]) {
                let lines = log.iter().filter(|line| line.contains(part)).count();
                assert_eq!(lines, times, "{part} in {log:#?}");
            }
        }
    }

    #[test]
    fn a_second_signal_ends_it_now() {
        for (first, second) in table([
            (Signal::TERM, Signal::TERM),
            (Signal::TERM, Signal::INT),
            (Signal::INT, Signal::TERM),
        ]) {
            let backend = Backend::start();
            let (mut program, address) = start_with_drain_timeout(&backend, 60_000);
            let (mut client, mut server) = Peer::tunnel(address, &backend);
            program.signal(first);
            program.wait_for("event=draining");
            assert_alive(&mut client, &mut server);
            program.signal(second);
            program.wait();
            client.expect_end();
            server.expect_end();
        }
    }

    #[test]
    fn hangups_and_broken_pipes_do_not_end_it() {
        let backend = Backend::start();
        let (program, address) = start(&backend);
        let (mut client, mut server) = Peer::tunnel(address, &backend);
        for signal in [Signal::HUP, Signal::PIPE, Signal::HUP] {
            program.signal(signal);
            assert_alive(&mut client, &mut server);
        }
        assert_serves(address, &backend);
    }

    #[test]
    fn every_section_drains() {
        let (one, two) = (Backend::start(), Backend::start());
        let named = |backend: &Backend| {
            format!("{}name = \"to-{}\"\n", section(backend.address), backend.address)
        };
        let config = format!("[drain]\ntimeout_ms = 60000\n{}{}", named(&one), named(&two));
        let mut program = Program::with_config(&config);
        let mut addresses = listening(&mut program, 2);
        let mut address =
            |backend: &Backend| addresses.remove(&format!("to-{}", backend.address)).unwrap();
        let (address_one, address_two) = (address(&one), address(&two));
        let tunnel_one = Peer::tunnel(address_one, &one);
        let mut tunnel_two = Peer::tunnel(address_two, &two);
        program.signal(Signal::TERM);
        expect_refused(address_one);
        expect_refused(address_two);
        drop(tunnel_one);
        program.wait_for("event=tunnel_end");
        assert_alive(&mut tunnel_two.0, &mut tunnel_two.1);
        drop(tunnel_two);
        assert_eq!(program.wait().code(), Some(0));
    }
}

/// Waits for this many sections to listen; gives their addresses by name.
fn listening(program: &mut Program, count: usize) -> HashMap<String, SocketAddr> {
    let mut addresses = HashMap::new();
    while addresses.len() < count {
        let line = program.wait_for("event=listening");
        addresses
            .insert(value(&line, "section").to_owned(), value(&line, "address").parse().unwrap());
    }
    addresses
}

mod limits {
    use super::*;

    #[test]
    fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
        let mut program = Program::after("ulimit -Sn 100; ulimit -Hn 333", &flags("127.0.0.1:1"));
        program.address();
        let limits = program.limits();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["333", "333"]);
    }

    #[test]
    fn names_are_looked_up_on_one_thread_for_all_who_ask_at_once() {
        let backend = Backend::start();
        let name = format!("localhost:{}", backend.address.port());
        let mut program = Program::start(&flags(&name), None);
        let address = program.address();
        let before = program.threads();
        let clients: Vec<Peer> = (0..50).map(|_| Peer::sending(address, upgrade(""))).collect();
        let tunnels: Vec<_> = clients.iter().map(|_| backend.accept_tunnel()).collect();
        let threads = program.threads();
        assert!(threads <= before + 1, "{threads} threads, {before} before");
        drop((clients, tunnels));
    }

    #[test]
    fn without_descriptors_it_backs_off_and_recovers() {
        let backend = Backend::start();
        let mut program = Program::after("ulimit -n 40", &flags(&backend.address.to_string()));
        let address = program.address();
        let mut tunnels = [Peer::tunnel(address, &backend), Peer::tunnel(address, &backend)];
        let idle: Vec<Peer> = (0..60).map(|_| Peer::connect(address)).collect();
        let first = time(&program.wait_for("event=accept_failed"));

        // It keeps serving, and neither spins nor floods its log.
        let ticks = program.cpu_ticks();
        for (client, server) in &mut tunnels {
            assert_alive(client, server);
        }
        let second = time(&program.wait_for("event=accept_failed"));
        let between = second.duration_since(first).unwrap();
        assert!(between >= Duration::from_millis(999), "two lines within {between:?}");
        let ticks = program.cpu_ticks() - ticks;
        // A loop without a pause would take all of a second or more.
        assert!(ticks <= 20, "{ticks} hundredths of a second went into failing");
        // The end of a direction needs no descriptor that is not there.
        let [(client, server), _] = &mut tunnels;
        client.end_sending();
        server.expect_eof();
        server.send("still");
        client.expect("still");

        drop(idle);
        assert_recovers(address, &backend);
        for (client, server) in &mut tunnels[1..] {
            assert_alive(client, server);
        }
    }

    #[test]
    fn descriptors_that_run_out_while_dialling_end_no_tunnel() {
        let backend = Backend::start();
        let mut program = Program::after("ulimit -n 40", &flags(&backend.address.to_string()));
        let address = program.address();
        let mut tunnels = [Peer::tunnel(address, &backend)];
        // Clients that say nothing take all descriptors that are left, until one is not even
        // accepted.
        let mut idle = Vec::new();
        let mut client = loop {
            let before = program.descriptors();
            let next = Peer::connect(address);
            wait_until("it accepts, or fails to", || {
                program.descriptors() > before || program.has_logged("event=accept_failed")
            });
            if program.descriptors() == before {
                break next;
            }
            idle.push(next);
        };
        client.send(upgrade(""));
        // With the one that becomes free it is, and there is none for the backend.
        idle.pop();
        let refusal = client.read_text_to_end();
        assert!(refusal.starts_with("HTTP/1.1 503 "), "{refusal}");
        assert!(refusal.contains("\r\nRetry-After: 1\r\n"), "{refusal}");
        let line = program.wait_for("event=refused");
        assert_eq!(value(&line, "reason"), "out_of_descriptors", "{line}");
        for (client, server) in &mut tunnels {
            assert_alive(client, server);
        }
        drop(idle);
        assert_recovers(address, &backend);
    }

    /// Takes the only two local ports for the backend, then asks the program for a tunnel. `$0` is
    /// the program. Runs in a network of its own.
    const WITHOUT_PORTS: &str = r#"
        ip link set lo up
        echo 40000 40001 > /proc/sys/net/ipv4/ip_local_port_range
        "$0" echo --bind 127.0.0.1:9000 2> /dev/null &
        "$0" --bind 127.0.0.1:8080 --backend 127.0.0.1:9000 &
        until (: <> /dev/tcp/127.0.0.1/8080) 2> /dev/null; do :; done
        until exec 3<> /dev/tcp/127.0.0.1/9000; do :; done 2> /dev/null
        exec 4<> /dev/tcp/127.0.0.1/9000
        exec 5<> /dev/tcp/127.0.0.1/8080
        printf "$1" >&5
        cat <&5
        kill %1 %2
        wait
    "#;

    #[test]
    fn without_local_ports_the_client_gets_503() {
        let in_own_network = |arguments: &[&str]| {
            let mut unshare = Command::new("unshare");
            unshare.args(["--map-root-user", "--net"]).args(arguments);
            unshare.env_remove("RUST_LOG").output()
        };
        // There is no other way to run out of them without taking those of everybody.
        let test = "process::limits::without_local_ports_the_client_gets_503";
        if !is_own_network_allowed(test, in_own_network(&["ip", "link"])) {
            return;
        }
        let handshake = upgrade("").replace("\r\n", "\\r\\n");
        let program = env!("CARGO_BIN_EXE_ws-proxy");
        let output = in_own_network(&["bash", "-c", WITHOUT_PORTS, program, &handshake]).unwrap();
        let [refusal, log] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(refusal.starts_with("HTTP/1.1 503 "), "{refusal:?} {log}");
        assert!(refusal.contains("\r\nRetry-After: 1\r\n"), "{refusal:?} {log}");
        assert!(log.contains(" reason=out_of_ports "), "{log}");
    }

    /// A new client is served again, though perhaps not with its first try: descriptors become free
    /// bit by bit.
    fn assert_recovers(address: SocketAddr, backend: &Backend) {
        wait_until("a new client is served", || {
            let mut client = Peer::sending(address, upgrade(""));
            wait_until("it is answered", || backend.has_waiting() || !client.is_silent());
            let is_served = backend.has_waiting();
            if is_served {
                let (mut server, _) = backend.accept_tunnel();
                client.read_head();
                assert_alive(&mut client, &mut server);
            }
            is_served
        });
    }

    /// Time of a line of the log.
    fn time(line: &str) -> SystemTime {
        let time = line.strip_prefix("time=").and_then(|rest| rest.split(' ').next()).unwrap();
        humantime::parse_rfc3339(time).unwrap()
    }

    #[test]
    fn a_thousand_connections_wait_for_their_accept() {
        raise_descriptor_limit();
        let backend = Backend::start();
        let (program, address) = start(&backend);
        program.signal(Signal::STOP);
        waitpid(Some(program.pid()), WaitOptions::UNTRACED).unwrap();
        // With a full queue a connect gets no answer.
        let connect = || TcpStream::connect_timeout(&address, PATIENCE);
        let mut waiting: Vec<Peer> = (0..1_024).map(|_| Peer::new(connect().unwrap())).collect();
        program.signal(Signal::CONT);
        let mut last = waiting.pop().unwrap();
        last.send(upgrade(""));
        let (mut server, _) = backend.accept_tunnel();
        last.read_head();
        assert_alive(&mut last, &mut server);
    }
}

mod load {
    use super::*;

    #[test]
    fn probes_between_tunnels_leave_each_worker_its_share() {
        const TUNNELS: usize = 40;
        let backend = Backend::start();
        let mut program =
            Program::with_config(&format!("workers = 2\n{}", section(backend.address)));
        let address = program.address();
        let tunnels: Vec<_> = (0..TUNNELS)
            .map(|_| {
                let mut probe = Peer::connect(address);
                probe.end_sending();
                probe.expect_eof();
                Peer::tunnel(address, &backend)
            })
            .collect();
        // One tunnel more or less, since a probe may count for a moment after its end, and the
        // listener.
        let epolls = program.epolls();
        let difference = epolls[0] - epolls[1];
        assert!(epolls[1] >= TUNNELS - 4 && difference <= 5, "{epolls:?}");
        drop(tunnels);
    }

    #[test]
    fn connections_opened_and_dropped_at_once_do_no_harm() {
        raise_descriptor_limit();
        let backend = Backend::start();
        let (mut program, address) = start(&backend);
        let (connections, threads) = at_rest(&mut program, address, &backend);
        let mut tunnel = Peer::tunnel(address, &backend);
        let storm: Vec<Peer> = (0..1_500).map(|_| Peer::connect(address)).collect();
        for (index, peer) in storm.into_iter().enumerate() {
            if index % 2 == 0 { drop(peer) } else { peer.reset() }
        }
        assert_serves(address, &backend);
        assert_alive(&mut tunnel.0, &mut tunnel.1);
        drop(tunnel);
        program.wait_for_connections(connections);
        program.wait_for_threads(threads);
    }

    #[test]
    fn idle_tunnels_and_stalled_heads_do_no_harm_and_cost_no_cpu() {
        raise_descriptor_limit();
        let backend = Backend::start();
        let (mut program, address) = start(&backend);
        let (connections, threads) = at_rest(&mut program, address, &backend);
        let mut tunnels: Vec<_> = (0..1_000).map(|_| Peer::tunnel(address, &backend)).collect();
        let stalled: Vec<_> =
            (0..300).map(|index| Peer::sending(address, &upgrade("")[..index % 100])).collect();
        assert_serves(address, &backend);
        assert_costs_no_cpu(&program);
        for (client, server) in &mut tunnels {
            assert_alive(client, server);
        }
        drop((tunnels, stalled));
        program.wait_for_connections(connections);
        program.wait_for_threads(threads);
    }

    #[test]
    fn tunnels_with_one_half_finished_or_blocked_cost_no_cpu() {
        let backend = Backend::start();
        let (program, address) = start(&backend);
        let tunnel = || Peer::tunnel(address, &backend);
        let mut tunnels = [tunnel(), tunnel(), tunnel(), tunnel()];
        tunnels[0].0.end_sending();
        tunnels[0].1.expect_eof();
        tunnels[1].1.end_sending();
        tunnels[1].0.expect_eof();
        tunnels[2].0.flood();
        // An end after bytes that cannot be written.
        tunnels[3].1.flood();
        tunnels[3].1.end_sending();
        assert_costs_no_cpu(&program);
    }

    #[test]
    fn tunnels_that_nobody_reads_cost_little_memory_and_leave_no_pipes() {
        let backend = Backend::start();
        // With one worker, so that what it keeps for later is not multiplied.
        let mut program =
            Program::with_config(&format!("workers = 1\n{}", section(backend.address)));
        let address = program.address();
        let (connections, _) = at_rest(&mut program, address, &backend);
        let (descriptors, memory) = (program.descriptors(), program.memory());
        let mut tunnels: Vec<_> = (0..20).map(|_| Peer::tunnel(address, &backend)).collect();
        std::thread::scope(|scope| {
            for (client, _) in &mut tunnels {
                scope.spawn(|| client.offer(&[7; 8 << 20]));
            }
        });
        let grown = program.memory().saturating_sub(memory);
        assert!(grown < 20 * 256 * 1024, "twenty blocked tunnels cost {grown} bytes");
        for (index, (client, server)) in tunnels.into_iter().enumerate() {
            if index % 2 == 0 { client.reset() } else { server.reset() }
        }
        program.wait_for_connections(connections);
        let left = program.descriptors().saturating_sub(descriptors);
        assert!(left < 20, "{left} descriptors are left of twenty tunnels");
    }

    #[test]
    fn early_bytes_that_wait_for_the_101_cost_no_cpu() {
        let backend = Backend::start();
        let (program, address) = start(&backend);
        let (mut client, mut server) = Peer::handshake(address, &backend, upgrade("") + "early");
        client.send(" and late");
        assert_costs_no_cpu(&program);
        server.send(switching(""));
        server.expect("early and late");
        client.read_head();
    }
}

/// A program with a section for each way in which a connection can end.
struct Sections {
    program: Program,
    backend: Backend,
    addresses: HashMap<String, SocketAddr>,
    stuck: Backend,
    _dead: Backend,
}

impl Sections {
    fn start() -> Self {
        let (backend, stuck, dead) = (Backend::start(), Backend::full(), Backend::refusing());
        let sections = [
            ("plain", backend.address, ""),
            ("hasty", backend.address, "read_timeout_ms = 250"),
            ("full", backend.address, "max_connections = 1"),
            ("origins", backend.address, "origins = [\"https://example.com\"]"),
            ("stuck", stuck.address, "connect_timeout_ms = 100"),
            ("dialling", stuck.address, ""),
            ("dead", dead.address, ""),
        ];
        let config: Vec<String> = sections
            .iter()
            .map(|(name, backend, more)| format!("{}name = \"{name}\"\n{more}\n", section(backend)))
            .collect();
        let mut program =
            Program::with_config(&format!("[drain]\ntimeout_ms = 60000\n{}", config.concat()));
        let addresses = listening(&mut program, sections.len());
        Self { program, backend, addresses, stuck, _dead: dead }
    }

    /// A client that has connected to this section and sent this.
    fn sending(&self, section: &str, bytes: impl AsRef<[u8]>) -> Peer {
        Peer::sending(self.addresses[section], bytes)
    }

    fn tunnel(&self) -> (Peer, Peer) {
        Peer::tunnel(self.addresses["plain"], &self.backend)
    }

    /// A client whose handshake awaits its response, and the backend's end.
    fn awaiting(&self, section: &str) -> (Peer, Peer) {
        Peer::handshake(self.addresses[section], &self.backend, upgrade(""))
    }

    /// The whole response to a client that sends this.
    fn answer(&self, section: &str, bytes: impl AsRef<[u8]>) -> String {
        self.sending(section, bytes).read_text_to_end()
    }
}

/// Brings a connection to its end.
type Way = fn(&Sections);
/// Brings the two sides of a tunnel into a state, with many bytes to send.
type State = fn(&mut Peer, &mut Peer, &[u8]);

/// Connections for each way that waits for no timeout, and for each that does.
const QUICK: usize = 15;
const SLOW: usize = 3;

/// Every way in which a connection can end.
fn ways() -> [(&'static str, usize, Way); 23] {
    table::<(&str, usize, Way), 23>([
        ("the client closes the tunnel", QUICK, |it| {
            let (client, mut server) = it.tunnel();
            drop(client);
            server.expect_eof();
        }),
        ("the backend closes the tunnel", QUICK, |it| {
            let (mut client, server) = it.tunnel();
            drop(server);
            client.expect_eof();
        }),
        ("both close the tunnel", QUICK, |it| drop(it.tunnel())),
        ("the halves end one after the other", QUICK, |it| {
            let (mut client, mut server) = it.tunnel();
            client.end_sending();
            server.expect_eof();
            server.end_sending();
            client.expect_eof();
        }),
        ("the client resets the tunnel", QUICK, |it| {
            let (client, mut server) = it.tunnel();
            client.reset();
            server.expect_end();
        }),
        ("the backend resets the tunnel", QUICK, |it| {
            let (mut client, server) = it.tunnel();
            server.reset();
            client.expect_end();
        }),
        ("both reset the tunnel", QUICK, |it| {
            let (client, server) = it.tunnel();
            client.reset();
            server.reset();
        }),
        ("the client resets after the backend has ended", QUICK, |it| {
            let (mut client, mut server) = it.tunnel();
            server.end_sending();
            client.expect_eof();
            client.reset();
            server.expect_end();
        }),
        ("the client resets after it has ended", QUICK, |it| {
            let (mut client, mut server) = it.tunnel();
            client.end_sending();
            server.expect_eof();
            client.reset();
            server.write_until_broken();
        }),
        ("the client says nothing and closes", QUICK, |it| {
            drop(Peer::connect(it.addresses["plain"]))
        }),
        ("the client resets within its head", QUICK, |it| it.sending("plain", "GET / HT").reset()),
        ("the client closes within its head", QUICK, |it| {
            let mut client = it.sending("plain", "GET / HT");
            client.end_sending();
            client.expect_end();
        }),
        ("the client says nothing until the timeout", SLOW, |it| {
            assert_eq!(it.answer("hasty", ""), "")
        }),
        ("the client stalls until the timeout", SLOW, |it| {
            assert!(it.answer("hasty", "GET / HT").starts_with("HTTP/1.1 408 "));
        }),
        ("the request is refused", QUICK, |it| {
            assert!(
                it.answer("plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    .starts_with("HTTP/1.1 400 ")
            );
        }),
        ("the backend cannot be dialled", QUICK, |it| {
            assert!(it.answer("dead", upgrade("")).starts_with("HTTP/1.1 502 "));
        }),
        ("the backend does not accept in time", SLOW, |it| {
            assert!(it.answer("stuck", upgrade("")).starts_with("HTTP/1.1 504 "));
        }),
        ("the client resets while the backend is dialled", QUICK, |it| {
            let client = it.sending("dialling", upgrade(""));
            wait_until("the backend is dialled", || is_dialled(it.stuck.address));
            client.reset();
            wait_until("it is dialled no more", || !is_dialled(it.stuck.address));
        }),
        ("the client resets while the backend thinks", QUICK, |it| {
            let (client, mut server) = it.awaiting("plain");
            client.reset();
            server.expect_end();
        }),
        ("the client closes while the backend thinks", QUICK, |it| {
            let (client, mut server) = it.awaiting("plain");
            drop(client);
            server.expect_eof();
        }),
        ("the backend resets instead of answering", QUICK, |it| {
            let (mut client, server) = it.awaiting("plain");
            server.reset();
            assert!(client.read_head().starts_with("HTTP/1.1 502 "));
        }),
        ("the backend does not answer in time", SLOW, |it| {
            let (mut client, _server) = it.awaiting("hasty");
            assert!(client.read_head().starts_with("HTTP/1.1 504 "));
        }),
        ("the client resets while a refusal is passed on", QUICK, |it| {
            let (mut client, mut server) = it.awaiting("plain");
            server.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf");
            client.read_head();
            client.reset();
            server.expect_end();
        }),
    ])
}

#[test]
fn hundreds_of_connections_of_all_kinds_leave_no_descriptor_and_no_thread() {
    let ways = ways();
    assert!(ways.iter().map(|(_, times, _)| times).sum::<usize>() > 250);
    let mut it = Sections::start();
    let (_, threads) = at_rest(&mut it.program, it.addresses["plain"], &it.backend);
    let descriptors = it.program.descriptors();
    for (name, times, end) in ways {
        println!("{name}");
        for _ in 0..times {
            end(&it);
        }
        // Small messages borrow no pipe, of which some may be kept.
        it.program.wait_for_descriptors(descriptors);
        it.program.wait_for_threads(threads);
    }
    // A task that was left would hold up the drain.
    it.program.signal(Signal::TERM);
    assert_eq!(it.program.wait().code(), Some(0));
    for line in it.program.rest_of_log() {
        assert!(
            line.starts_with("time=") && !value(&line, "event").is_empty(),
            "{line:?} is no line of a log"
        );
        assert_ne!(value(&line, "level"), "error", "{line}");
    }
}

#[test]
fn a_reset_frees_both_connections_whatever_the_other_side_does() {
    let mut it = Sections::start();
    let (connections, _) = at_rest(&mut it.program, it.addresses["plain"], &it.backend);
    // More than is taken without being read.
    let much = vec![7; 64 << 20];
    let states = table::<(&str, State), 7>([
        ("idle", |_, _, _| {}),
        ("not read", |one, _, much| assert!(one.offer(much) < much.len())),
        ("not reading", |_, other, much| assert!(other.offer(much) < much.len())),
        ("blocked both ways", |one, other, much| {
            assert!(one.offer(much) < much.len() && other.offer(much) < much.len());
        }),
        ("finished", |one, other, _| {
            one.end_sending();
            other.expect_eof();
        }),
        ("finished after bytes that are not read", |one, _, much| {
            assert!(one.offer(much) < much.len());
            one.end_sending();
        }),
        ("the other half finished", |one, other, _| {
            other.end_sending();
            one.expect_eof();
        }),
    ]);
    let mut held = Vec::new();
    for is_client_first in [true, false] {
        let mut tunnels = states.map(|_| {
            let (client, server) = it.tunnel();
            if is_client_first { (client, server) } else { (server, client) }
        });
        std::thread::scope(|scope| {
            for ((state, prepare), (one, other)) in states.iter().zip(&mut tunnels) {
                let prepare = || prepare(one, other, &much);
                std::thread::Builder::new()
                    .name((*state).to_owned())
                    .spawn_scoped(scope, prepare)
                    .unwrap();
            }
        });
        for (one, other) in tunnels {
            one.reset();
            held.push(other);
        }
    }
    // The sides that are left neither read nor close.
    it.program.wait_for_connections(connections);
    drop(held);
}

mod log {
    use super::*;

    #[test]
    fn listening_is_a_line() {
        let backend = Backend::start();
        let mut program = Program::start(&flags(&backend.address.to_string()), None);
        let line = program.wait_for("event=listening");
        assert_eq!(value(&line, "level"), "info");
        let address: SocketAddr = value(&line, "address").parse().unwrap();
        assert_ne!(address.port(), 0);
        assert_eq!(value(&line, "section"), address.to_string());
        assert_eq!(value(&line, "backends"), backend.address.to_string());
    }

    #[test]
    fn a_name_forges_neither_a_line_nor_a_field() {
        let mut program = Program::with_config(
            r#"
            [[ws_proxy]]
            name = "one\ntime=now level=error event=forged \" status=101"
            bind = "127.0.0.1:0"
            backends = ["127.0.0.1:1"]
            "#,
        );
        let line = program.wait_for("event=listening");
        let quoted = r#""one\ntime=now level=error event=forged \" status=101""#;
        assert!(line.contains(&format!(" section={quoted} address=127.0.0.1:")), "{line}");
    }

    /// Ends a tunnel.
    type End = fn(Peer, Peer);

    #[test]
    fn each_tunnels_end_is_a_line() {
        let ends = table::<(&str, &str, End), 4>([
            ("client", "client_eof", |mut client, mut server| {
                client.end_sending();
                server.expect_eof();
            }),
            ("backend", "backend_eof", |mut client, mut server| {
                server.end_sending();
                client.expect_eof();
            }),
            ("client", "client_reset", |client, mut server| {
                client.reset();
                server.expect_end();
            }),
            ("backend", "backend_reset", |mut client, server| {
                server.reset();
                client.expect_end();
            }),
        ]);
        let mut it = Sections::start();
        let mut ids = Vec::new();
        for (by, reason, end) in ends {
            // Some bytes come together with the heads.
            let mut client = it.sending("plain", upgrade("") + "12345");
            let mut server = it.backend.accept();
            server.read_head();
            server.send(switching("") + "123");
            server.expect("12345");
            client.read_head();
            client.expect("123");
            server.send("4567");
            client.expect("4567");
            let address = client.stream.local_addr().unwrap();
            end(client, server);

            let line = it.program.wait_for("event=tunnel_end");
            assert_eq!(value(&line, "section"), "plain");
            assert_eq!(value(&line, "client"), address.to_string());
            assert_eq!(value(&line, "backend"), it.backend.address.to_string());
            assert_eq!(value(&line, "status"), "101");
            assert_eq!(
                (value(&line, "bytes_to_backend"), value(&line, "bytes_to_client")),
                ("5", "7")
            );
            assert_eq!((value(&line, "ended_by"), value(&line, "reason")), (by, reason), "{line}");
            let number = |key| value(&line, key).parse::<f64>().unwrap();
            assert!(number("handshake_ms") <= number("lifetime_ms") + 1.0, "{line}");
            assert!(number("lifetime_ms") < PATIENCE.as_millis() as f64, "{line}");
            ids.push(value(&line, "id").parse::<u64>().unwrap());
        }
        ids.dedup();
        assert_eq!(ids.len(), 4, "{ids:?} are not different");
    }

    /// A handshake with all that the log tells of one.
    fn upgrade_with_all() -> String {
        let fields = "X-Forwarded-For: 192.0.2.7, 192.0.2.8\r\nX-Request-ID: 0123456789abcdef\r\n";
        upgrade(fields).replace("/chat", "/chat/1?token=secret")
    }

    #[test]
    fn a_tunnels_lines_tell_what_was_asked_for_and_no_query() {
        const ALL: &str = "path=\"/chat/1\" host=\"example.com\" \
                           forwarded_for=\"192.0.2.7, 192.0.2.8\" request_id=0123456789abcdef \
                           traceparent=-";
        const LESS: &str = "path=\"/chat/1\" host=\"example.com\" forwarded_for=- \
                            request_id=0123456789abcdef traceparent=-";
        for (key, expected) in table([("", ALL), ("forwarded = \"replace\"", LESS)]) {
            let backend = Backend::start();
            let mut program = Program::with_config(&format!(
                "{}tunnel_start = true\n{key}\n",
                section(backend.address)
            ));
            let address = program.address();
            let tunnel = Peer::tunnel_with(address, &backend, upgrade_with_all());
            let line = program.wait_for("event=tunnel_start");
            assert!(line.ends_with(&format!(" {expected}")), "{line}");
            assert_eq!(value(&line, "level"), "info");
            assert_eq!(value(&line, "id"), "1");
            assert_eq!(value(&line, "backend"), backend.address.to_string());
            assert!(value(&line, "handshake_ms").parse::<f64>().is_ok(), "{line}");
            drop(tunnel);
            let line = program.wait_for("event=tunnel_end");
            assert!(line.ends_with(&format!(" {expected}")), "{line}");
            assert!(program.seen.iter().all(|line| !line.contains("secret")), "{:?}", program.seen);
        }
    }

    #[test]
    fn nothing_that_a_client_sends_forges_a_field_of_its_tunnels_line() {
        let backend = Backend::start();
        let (mut program, address) = super::start(&backend);
        let forged = "-\" reason=drain";
        let handshake = upgrade(&format!("X-Forwarded-For: {forged}\r\nX-Request-ID: a b\r\n"))
            .replace("example.com", "-")
            .replace("/chat", "/\"path=x");
        drop(Peer::tunnel_with(address, &backend, handshake));
        let line = program.wait_for("event=tunnel_end");
        let expected = r#" path="/\"path=x" host="-" forwarded_for="-\" reason=drain" request_id="#;
        let (_, rest) = line.split_once(expected).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(rest.len(), "0123456789abcdef0123456789abcdef traceparent=-".len(), "{line}");
        assert!(!program.has_logged("event=tunnel_start"));
    }

    #[test]
    fn a_refused_request_tells_its_path_and_no_query() {
        let backend = Backend::start();
        let (mut program, address) = super::start(&backend);
        for (request, path, id_length) in table([
            (upgrade_with_all().replace("Version: 13", "Version: 8"), "\"/chat/1\"", 16),
            (
                "GET /favicon.ico?secret HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                "\"/favicon.ico\"",
                32,
            ),
            ("GET secret HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "-", 32),
            ("secret\r\n\r\n".to_owned(), "-", 1),
        ]) {
            Peer::sending(address, request).read_refusal();
            let line = program.wait_for("event=refused");
            assert!(line.contains(&format!(" path={path} request_id=")), "{line}");
            assert_eq!(value(&line, "request_id").len(), id_length, "{line}");
            assert!(!line.contains("secret"), "{line}");
        }
    }

    #[test]
    fn the_times_of_a_tunnel_are_those_that_it_took() {
        let mut it = Sections::start();
        let (mut client, mut server) = it.awaiting("plain");
        // The times are the subject.
        std::thread::sleep(Duration::from_millis(100));
        server.send(switching(""));
        client.read_head();
        std::thread::sleep(Duration::from_millis(100));
        drop((client, server));
        let line = it.program.wait_for("event=tunnel_end");
        let number = |key| value(&line, key).parse::<f64>().unwrap();
        assert!(number("handshake_ms") >= 99.0, "{line}");
        assert!(number("lifetime_ms") >= number("handshake_ms") + 99.0, "{line}");
    }

    #[test]
    fn each_refusal_is_a_line_with_its_reason() {
        let with = |from: &str, to: &str| upgrade("").replace(from, to);
        let long_field = format!("X: {}\r\n", "x".repeat(9_000));
        let refusals = table([
            ("plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("plain", "NONSENSE\r\n\r\n".to_owned(), 400),
            ("plain", with("Host: example.com", "Host : example.com"), 400),
            ("plain", with("Version: 13", "Version: 8"), 426),
            ("plain", with("GET /", &format!("GET /{}", "x".repeat(9_000))), 414),
            ("plain", upgrade(&long_field), 431),
            ("origins", upgrade("Origin: https://evil.example\r\n"), 403),
            ("origins", upgrade(""), 403),
            ("hasty", "GET / HT".to_owned(), 408),
            ("dead", upgrade(""), 502),
            ("stuck", upgrade(""), 504),
        ]);
        let mut it = Sections::start();
        for (section, bytes, status) in refusals {
            let mut client = it.sending(section, &bytes);
            let head = client.read_head();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert_refusal_line(&mut it.program, &client, section, status);
        }
    }

    #[test]
    fn a_refusal_of_one_client_too_many_is_a_line() {
        let mut it = Sections::start();
        let _first = it.awaiting("full");
        let mut second = it.sending("full", upgrade(""));
        assert!(second.read_head().starts_with("HTTP/1.1 503 "));
        assert_refusal_line(&mut it.program, &second, "full", 503);
    }

    #[test]
    fn a_refusal_by_the_backend_is_a_line() {
        let mut it = Sections::start();
        let (mut client, mut server) = it.awaiting("plain");
        server.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
        assert!(client.read_head().starts_with("HTTP/1.1 401 "));
        drop(server);
        let line = assert_refusal_line(&mut it.program, &client, "plain", 401);
        assert_eq!(value(&line, "backend"), it.backend.address.to_string());
    }

    fn assert_refusal_line(
        program: &mut Program,
        client: &Peer,
        section: &str,
        status: u16,
    ) -> String {
        // The line is written when the connection has ended.
        client.clone_handle().end_sending();
        let line = program.wait_for("event=refused");
        assert_eq!(value(&line, "section"), section);
        assert_eq!(value(&line, "client"), client.stream.local_addr().unwrap().to_string());
        assert_eq!(value(&line, "status"), status.to_string());
        assert!(!value(&line, "reason").is_empty());
        value(&line, "id").parse::<u64>().unwrap();
        line
    }

    #[test]
    fn the_level_is_chosen_by_flag_and_by_environment() {
        let directory = crate::support::Directory::new();
        // Says what it found and what it ignores, and ends with an error, as this cannot be bound.
        let config = "x = 1\n[[ws_proxy]]\nbind = \"192.0.2.1:1\"\nbackends = [\"a\"]\n";
        directory.write("ws-proxy.toml", config);
        let flag = |level| Program::output(&["--log-level", level], Some(directory.path())).2;
        let environment = |level| {
            let output =
                Program::command(&[], Some(directory.path())).env("RUST_LOG", level).output();
            String::from_utf8(output.unwrap().stderr).unwrap()
        };
        let logs = table([
            (Program::output(&[], Some(directory.path())).2, true, true),
            (flag("info"), true, true),
            (flag("warn"), false, true),
            (flag("off"), false, false),
            (environment("info"), true, true),
            (environment("warn"), false, true),
            (environment("error"), false, false),
        ]);
        for (log, has_info, has_warn) in logs {
            assert_eq!(log.contains("level=info event=config "), has_info, "{log}");
            assert_eq!(log.contains("level=warn event=config_ignored "), has_warn, "{log}");
            assert!(log.contains("cannot listen on 192.0.2.1:1"), "{log}");
        }
    }

    #[test]
    fn buffers_that_the_system_does_not_permit_are_a_line() {
        let section = section("127.0.0.1:1");
        let mut program =
            Program::with_config(&format!("{section}socket_buffer_bytes = 1073741824"));
        let line = program.wait_for("event=socket_buffer_capped");
        assert_eq!(value(&line, "wanted"), "1073741824");
        assert!(value(&line, "bytes").parse::<usize>().unwrap() > 0, "{line}");
        program.address();
    }

    #[test]
    fn debug_tells_of_clients_that_said_nothing() {
        let mut arguments = vec!["--log-level", "debug"];
        arguments.extend(flags("127.0.0.1:1"));
        let mut program = Program::start(&arguments, None);
        let address = program.address();
        // Some probes, HAProxy's among them, end with a reset.
        for end in table::<fn(Peer), 2>([drop, Peer::reset]) {
            end(Peer::connect(address));
            program.wait_for("level=debug event=silent");
        }
    }

    #[test]
    fn a_log_that_nobody_reads_any_more_ends_nothing() {
        let backend = Backend::start();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Program::command(&flags(&backend.address.to_string()), None);
        let mut program = command.stderr(writer).spawn().unwrap();
        drop(command);
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).unwrap();
        let address = value(&line, "address").parse().unwrap();
        // The reader is gone; each of these would be a line.
        for _ in 0..2 {
            let (mut client, mut server) = Peer::tunnel(address, &backend);
            assert_alive(&mut client, &mut server);
        }
        kill_process(Pid::from_child(&program), Signal::TERM).unwrap();
        assert_eq!(program.wait().unwrap().code(), Some(0));
    }
}
