//! What a side sent before its connection broke: it arrives, at the other side's pace.

use std::io::Read;
use std::time::{Duration, Instant};

use From::{Backend as B, Client as C};

use crate::support::{
    Backend, From, Peer, Program, ProxyProgram, TEXT, has_been_acknowledged, has_been_read,
    in_kernel, noise, section, table, value, wait_until,
};

const STEP: usize = 32 * 1024;
/// Time after which a connection that takes no byte is blocked. There is no event for it.
const QUIET: Duration = Duration::from_millis(250);

/// Sends until the proxy takes no more, while all that was sent is acknowledged; gives how much
/// that is, and what the other side had to read of it meanwhile.
fn fill(source: &mut Peer, sink: &mut Peer, bytes: &[u8]) -> (usize, Vec<u8>) {
    let (from, to) = (source.stream.local_addr().unwrap(), source.stream.peer_addr().unwrap());
    let (mut sent, mut got) = (0, Vec::new());
    loop {
        if !within(QUIET, || has_been_acknowledged(from, to)) {
            got.extend(sink.read_exactly(STEP));
        } else if within(QUIET, || has_been_read(from, to)) {
            source.send(&bytes[sent..sent + STEP]);
            sent += STEP;
        } else {
            return (sent, got);
        }
    }
}

/// Returns whether something comes to hold within this time.
fn within(time: Duration, holds: impl Fn() -> bool) -> bool {
    let end = Instant::now() + time;
    while !holds() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn all_that_was_acknowledged_arrives_at_a_slow_reader() {
    let large = noise(1, 64 << 20);
    let rows = table([(B, true, true), (B, false, false), (C, true, false), (C, false, true)]);
    for (from, is_bulk, is_blocked_both_ways) in rows {
        let backend = if from == C { Backend::tight() } else { Backend::start() };
        let mut program = Program::with_config(&section(backend.address));
        let address = program.address();
        let (client, server) = match from {
            C => Peer::tunnel(address, &backend),
            B => Peer::connect_tight(address).into_tunnel(&backend),
        };
        let (mut source, mut sink) = if from == C { (client, server) } else { (server, client) };
        let small;
        let bytes = if is_bulk {
            &large
        } else {
            small = from.text("a final result").repeat(1 << 20);
            &small
        };
        if is_blocked_both_ways {
            sink.flood();
        }
        let (sent, mut got) = fill(&mut source, &mut sink, bytes);
        source.reset();
        if is_blocked_both_ways {
            // Before it reads anything: what nobody is there for is dropped.
            sink.send(vec![7; 1 << 20]);
        }
        got.extend(sink.read_to_end());
        assert!(got == bytes[..sent], "{} of {sent} bytes, bulk: {is_bulk}", got.len());
        let name = if from == C { "client_reset" } else { "backend_reset" };
        assert_eq!(value(&program.wait_for("event=tunnel_end"), "reason"), name);
    }
}

#[test]
fn a_process_that_ends_with_unread_input_has_its_last_words_heard() {
    let proxy = ProxyProgram::start("backend_lost_code = 1011\nclient_lost_code = 1001", "");
    for (from, code) in table([(C, 1001), (B, 1011)]) {
        let (mut ending, mut other) = proxy.tunnel_from(from);
        let words = from.text("the last words").repeat(2_000);
        other.send(from.other().text("never read"));
        other.wait_until_read();
        let (one, two) = (ending.stream.local_addr().unwrap(), ending.stream.peer_addr().unwrap());
        // Its kernel has the bytes that it is never going to read.
        wait_until("the input has come", || in_kernel(one, two) > 0);
        ending.send(&words);
        drop(ending);
        other.expect(&words);
        other.expect_proxy_close(from.other(), code);
        other.expect_eof();
    }
}

#[test]
fn a_close_among_the_last_words_names_the_end() {
    let mut proxy = ProxyProgram::start("backend_lost_code = 1011\nclient_lost_code = 1001", "");
    for (from, reason) in table([(C, "client_close"), (B, "backend_close")]) {
        let (mut ending, mut other) = proxy.tunnel_from(from);
        let words = [from.text("the last words"), from.close(4000)].concat();
        ending.send(&words);
        ending.wait_until_read();
        ending.reset();
        other.expect(&words);
        other.expect_eof();
        let code = if from == C { "client_close" } else { "backend_close" };
        proxy.assert_end(&[("reason", reason), (code, "4000")]);
    }
}

#[test]
fn a_reader_that_takes_nothing_is_waited_for_no_longer_than_the_grace_time() {
    let backend = Backend::start();
    let drain = "[drain]\nclose_grace_ms = 500\n";
    let mut program = Program::with_config(&format!("{drain}{}", section(backend.address)));
    let (mut client, mut server) = Peer::connect_tight(program.address()).into_tunnel(&backend);
    let (sent, got) = fill(&mut server, &mut client, &noise(1, 64 << 20));
    let start = Instant::now();
    server.reset();
    program.wait_for("event=tunnel_end");
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    // What the kernel had for it is still there.
    let rest = client.read_to_end();
    assert!(got.len() + rest.len() < sent, "it was not blocked");
}

#[test]
fn a_client_above_its_rate_that_is_gone_is_not_waited_for() {
    let mut proxy = ProxyProgram::start("max_messages_per_second = 5", "close_grace_ms = 60000");
    let message = C.text("x");
    // One second's worth more passes at once, and nothing beyond it.
    let rows = table([
        (6, 6, true, "client_reset"),
        (10, 10, true, "client_reset"),
        (5_000, 15, true, "client_reset"),
        (10, 10, false, "client_eof"),
        (5_000, 15, false, "rate"),
    ]);
    for (sent, most, is_reset, reason) in rows {
        let (mut client, mut server) = proxy.tunnel();
        let start = Instant::now();
        client.send(message.repeat(sent));
        client.wait_until_read();
        if is_reset {
            client.reset();
        } else {
            drop(client);
        }
        let mut got = 0;
        while server.stream.peek(&mut [0]).unwrap() > 0 && server.read_frame().first == TEXT {
            got += 1;
        }
        assert!((sent.min(10)..=most).contains(&got), "{got} of {sent}");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        drop(server);
        let got = got.to_string();
        proxy.assert_end(&[("reason", reason), ("client_messages", &got)]);
    }
}

/// Reads a little, again and again, until the connection ends or `is_enough`.
fn read_slowly(peer: &mut Peer, mut is_enough: impl FnMut(usize) -> bool) -> Vec<u8> {
    let (mut got, mut piece) = (Vec::new(), [0; 16 * 1024]);
    loop {
        match peer.stream.read(&mut piece).expect("the connection does not break") {
            0 => return got,
            count => got.extend_from_slice(&piece[..count]),
        }
        if is_enough(got.len()) {
            return got;
        }
        // The pace of the reader: far less within the time than a third of the kernel's buffer,
        // from which on epoll tells of room in it.
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_reader_that_is_slow_and_steady_gets_all_of_it() {
    let backend = Backend::start();
    let config = format!("[drain]\nclose_grace_ms = 500\n{}", section(backend.address));
    let mut program = Program::with_config(&config);
    let (mut client, mut server) = Peer::tunnel(program.address(), &backend);
    let bytes = noise(1, 64 << 20);
    let (sent, mut got) = fill(&mut server, &mut client, &bytes);
    server.reset();
    got.extend(read_slowly(&mut client, |_| false));
    assert!(got == bytes[..sent], "{} of {sent} bytes", got.len());
}

#[test]
fn a_reader_that_is_slow_and_steady_is_not_stuck() {
    let mut proxy = ProxyProgram::start("blocked_timeout_ms = 750", "");
    let (mut client, mut server) = proxy.tunnel();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let mut sending = server.clone_handle();
        let writer = scope.spawn(move || {
            sending.send(B.header(0x82, 1 << 40));
            sending.flood_until_broken();
        });
        read_slowly(&mut client, |_| start.elapsed() > Duration::from_secs(4));
        assert!(!proxy.program.has_logged("event=tunnel_end"), "it was taken for stuck");
        client.reset();
        server.expect_end();
        writer.join().unwrap();
    });
}
