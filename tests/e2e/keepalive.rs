//! Keep-alive: Pings for silent sides, dead sides, idle tunnels and lifetimes.

use std::time::{Duration, Instant};

use crate::support::{
    Backend, From, PING, PONG, Peer, Program, ProxyProgram, TEXT, noise, section, table, value,
};

use From::{Backend as B, Client as C};

/// Pings soon, and waits for the Pongs longer than any test does.
const PATIENT: &str = "ping_interval_ms = 250\npong_timeout_ms = 60000";
/// Pings soon, and finds dead sides soon, but leaves living ones time to answer.
const STRICT: &str = "ping_interval_ms = 300\npong_timeout_ms = 1000";
const GRACE: &str = "close_grace_ms = 300";
/// Pause between two exchanges that keep a tunnel busy.
const PAUSE: Duration = Duration::from_millis(50);

#[test]
fn a_silent_client_gets_an_unmasked_ping_and_a_silent_backend_a_masked_one() {
    let proxy = ProxyProgram::start(PATIENT, GRACE);
    let (mut client, mut server) = proxy.tunnel();
    let to_client = client.read_frame();
    assert_eq!((to_client.first, to_client.mask, to_client.payload.len()), (PING, None, 8));
    let to_backend = server.read_frame();
    assert_eq!((to_backend.first, to_backend.payload.len()), (PING, 8));
    assert!(to_backend.mask.is_some());
    assert_ne!(to_client.payload, to_backend.payload);

    // The next one has another key.
    server.send(B.frame(PONG, &to_backend.payload));
    let next = server.read_frame();
    assert!(
        next.is_proxy_ping() && next.mask.is_some() && next.mask != to_backend.mask,
        "{next:?}"
    );
}

#[test]
fn a_side_that_talks_gets_no_ping() {
    let proxy = ProxyProgram::start("ping_interval_ms = 1000\npong_timeout_ms = 60000", GRACE);
    let (time, gap) = (Duration::from_millis(2_500), Duration::from_millis(1_000));
    proxy.keep_busy(time, gap, |client, server| {
        client.send(C.text("up"));
        server.send(B.text("down"));
        server.receives(C.text("up"))
            && client.receives(B.text("down"))
            && client.stays_silent(PAUSE)
            && server.is_silent()
    });
}

#[test]
fn nobody_is_pinged_unless_it_is_asked_for() {
    let proxy = ProxyProgram::start("", GRACE);
    let (mut client, mut server) = proxy.tunnel();
    client.expect_silence(Duration::from_millis(600));
    server.expect_silence(Duration::from_millis(50));
}

#[test]
fn the_answer_to_our_ping_is_never_seen_by_the_other_side() {
    let proxy = ProxyProgram::start(PATIENT, GRACE);
    for from in [C, B] {
        let (mut pinged, mut other) = proxy.tunnel_from(from);
        let pong = from.frame(PONG, pinged.read_proxy_ping());
        pinged.send(&pong);
        pinged.send(from.text("after a whole one"));
        other.expect_text("after a whole one");

        // Byte by byte.
        let pong = from.frame(PONG, pinged.read_proxy_ping());
        pinged.send_in_pieces(pong.chunks(1));
        pinged.send(from.text("after single bytes"));
        other.expect_text("after single bytes");

        // Glued to others on both sides.
        let pong = from.frame(PONG, pinged.read_proxy_ping());
        pinged.send([from.text("before"), pong, from.text("after")].concat());
        other.expect_text("before");
        other.expect_text("after");

        // Between the fragments of a message.
        let pong = from.frame(PONG, pinged.read_proxy_ping());
        pinged.send([from.frame(0x01, "first, "), pong, from.frame(0x80, "last")].concat());
        let fragments = [other.read_relayed_frame(), other.read_relayed_frame()];
        assert_eq!(fragments.map(|frame| frame.first), [0x01, 0x80]);
    }
}

#[test]
fn every_split_of_the_answer_is_recognised() {
    let proxy = ProxyProgram::start(PATIENT, GRACE);
    let mut tunnels: Vec<_> = (1..14).map(|cut| (cut, proxy.tunnel())).collect();
    for (cut, (client, server)) in &mut tunnels {
        let pong = C.frame(PONG, client.read_proxy_ping());
        let (head, tail) = pong.split_at(*cut);
        client.send_in_pieces([head, tail].into_iter());
        client.send(C.text("next"));
        server.expect_text("next");
    }
}

#[test]
fn other_pongs_pass_unchanged() {
    let proxy = ProxyProgram::start(PATIENT, GRACE);
    for from in [C, B] {
        let (mut pinged, mut other) = proxy.tunnel_from(from);
        let mut unchanged = |pinged: &mut crate::support::Peer, payload: &[u8]| {
            pinged.send(from.frame(PONG, payload));
            let frame = other.read_relayed_frame();
            assert_eq!((frame.first, &*frame.payload), (PONG, payload));
        };
        // One that nobody asked for, before there is a Ping.
        unchanged(&mut pinged, b"12345678");
        let payload = pinged.read_proxy_ping();
        let mut almost = payload.clone();
        almost[7] ^= 1;
        let longer = [&payload[..], b"x"].concat();
        for other_payload in
            table([&almost[..], b"", &payload[..7], &longer, b"heartbeat", &[0; 125]])
        {
            unchanged(&mut pinged, other_payload);
        }
        // Ours is still known.
        pinged.send([from.frame(PONG, &payload), from.text("next")].concat());
        other.expect_text("next");
    }
}

#[test]
fn a_late_answer_to_an_earlier_ping_of_ours_is_taken_out_too() {
    let proxy = ProxyProgram::start(PATIENT, GRACE);
    let (mut client, mut server) = proxy.tunnel();
    let first = client.read_proxy_ping();
    client.send(C.text("a sign of life"));
    server.expect_text("a sign of life");
    let second = client.read_proxy_ping();
    client.send([C.frame(PONG, first), C.frame(PONG, second), C.text("next")].concat());
    server.expect_text("next");
}

#[test]
fn pings_of_an_endpoint_pass_and_are_not_answered_by_the_proxy() {
    let proxy = ProxyProgram::start(PATIENT, GRACE);
    for from in [C, B] {
        let (mut pinging, mut other) = proxy.tunnel_from(from);
        pinging.send(from.frame(PING, "are you there?"));
        let frame = other.read_relayed_frame();
        assert_eq!((frame.first, &*frame.payload), (PING, &b"are you there?"[..]));
        // The next frame is a Ping to this side, and no Pong.
        pinging.read_proxy_ping();
        other.send(from.other().frame(PONG, "are you there?"));
        let frame = pinging.read_relayed_frame();
        assert_eq!((frame.first, &*frame.payload), (PONG, &b"are you there?"[..]));
    }
}

#[test]
fn a_frozen_client_is_found_dead() {
    let mut proxy = ProxyProgram::start(STRICT, GRACE);
    let (client, mut server) = proxy.tunnel();
    let start = Instant::now();
    let close = server.answer_pings(B);
    assert_eq!(close.close_code(), Some(1001), "{close:?}");
    assert!(close.mask.is_some());
    assert!(start.elapsed() >= Duration::from_millis(1_000), "{:?}", start.elapsed());
    server.send(B.close(1001));
    server.expect_eof();
    proxy.assert_end(&[("reason", "pong_timeout"), ("ended_by", "proxy")]);
    drop(client);
}

#[test]
fn a_dead_backend_is_told_to_the_client_as_1014() {
    let mut proxy = ProxyProgram::start(STRICT, GRACE);
    let (mut client, server) = proxy.tunnel();
    let close = client.answer_pings(C);
    assert_eq!((close.close_code(), close.mask), (Some(1014), None), "{close:?}");
    client.send(C.close(1014));
    client.expect_eof();
    proxy.assert_end(&[("reason", "pong_timeout"), ("client_close", "1014")]);
    drop(server);
}

#[test]
fn a_tunnel_does_not_wait_for_its_dead_side() {
    // Longer than any test waits.
    let mut proxy = ProxyProgram::start(STRICT, "close_grace_ms = 60000");
    for (from, code) in table([(B, 1001), (C, 1014)]) {
        let (mut other, mut dead) = proxy.tunnel_from(from);
        assert_eq!(other.answer_pings(from).close_code(), Some(code));
        // More than all buffers take on the way to the dead side, and after it the answer.
        let rest = [from.header(0x82, 24 << 20), vec![0; 24 << 20], from.close(code)];
        other.send(rest.concat());
        other.expect_eof();
        dead.read_proxy_ping();
        dead.expect_eof();
        proxy.assert_end(&[("reason", "pong_timeout")]);
    }
}

#[test]
fn a_client_in_the_middle_of_a_message_from_the_backend_is_found_dead() {
    let message = [B.header(0x82, 64 << 20), vec![7; 64 << 20]].concat();
    let mut proxy = ProxyProgram::start(STRICT, GRACE);
    let (client, mut server) = proxy.tunnel();
    let mut sending = server.clone_handle();
    // More than all buffers take, so that the Ping never gets its boundary.
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = std::io::Write::write_all(&mut sending.stream, &message);
        });
        let close = server.answer_pings(B);
        assert_eq!(close.close_code(), Some(1001), "{close:?}");
        drop(client);
        proxy.assert_end(&[("reason", "pong_timeout")]);
        drop(proxy);
    });
}

#[test]
fn both_sides_that_answer_live_on() {
    let proxy = ProxyProgram::start(STRICT, GRACE);
    let (mut client, mut server) = proxy.tunnel();
    let answering = std::thread::spawn(move || {
        let last = server.answer_pings(B);
        (server, last)
    });
    // For longer than a side that does not answer is given.
    for _ in 0..6 {
        let payload = client.read_proxy_ping();
        client.send(C.frame(PONG, payload));
    }
    client.send(C.text("still here"));
    let (_server, frame) = answering.join().unwrap();
    assert_eq!((frame.first, &*frame.payload), (TEXT, &b"still here"[..]));
}

#[test]
fn any_byte_is_a_sign_of_life() {
    let proxy = ProxyProgram::start(STRICT, GRACE);
    let (mut client, mut server) = proxy.tunnel();
    let answering = std::thread::spawn(move || {
        assert_eq!(server.answer_pings(B).payload, b"12");
        server
    });
    // Never a Pong, but a byte of a message.
    for byte in C.text("12").chunks(1) {
        client.read_proxy_ping();
        client.send(byte);
    }
    drop(answering.join().unwrap());
}

#[test]
fn a_ping_waits_for_the_end_of_a_frame_that_is_under_way() {
    let proxy = ProxyProgram::start(PATIENT, GRACE);
    for from in [C, B] {
        let (mut sending, mut other) = proxy.tunnel_from(from);
        let frame = from.text("a message in two parts");
        let (head, tail) = frame.split_at(9);
        sending.send(head);
        other.expect(head);
        other.expect_silence(Duration::from_millis(900));
        sending.send(tail);
        other.expect(tail);
        other.read_proxy_ping();
    }
}

#[test]
fn a_ping_that_had_to_wait_gives_its_side_the_whole_timeout() {
    let proxy = ProxyProgram::start("ping_interval_ms = 250\npong_timeout_ms = 2000", GRACE);
    let (mut client, mut server) = proxy.tunnel();
    let frame = B.text("a message in two parts");
    let (head, tail) = frame.split_at(9);
    server.send(head);
    client.expect(head);
    // The Ping is asked for after 250 to 500 ms, and would be overdue after 2,250 to 2,750.
    client.expect_silence(Duration::from_millis(1_600));
    server.send(tail);
    client.expect(tail);
    let payload = client.read_proxy_ping();
    client.expect_silence(Duration::from_millis(1_400));
    client.send([C.frame(PONG, payload), C.text("alive")].concat());
    server.expect_text("alive");
}

#[test]
fn a_client_that_is_not_read_is_not_dead() {
    // Made before there is a tunnel that could fall silent meanwhile.
    let large = C.frame(0x82, noise(1, 24 << 20));
    let bytes = [&large[..], &C.text("the end")].concat();
    let proxy = ProxyProgram::start(STRICT, GRACE);
    let (mut client, mut server) = proxy.tunnel();
    let mut writing = client.clone_handle();
    let writer = std::thread::spawn(move || writing.send(bytes));
    // The backend lives, but reads nothing for longer than a dead client would be given.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3_000) {
        server.send(B.text("busy"));
        client.expect_text("busy");
        client.stays_silent(PAUSE);
    }
    // A Ping may stand between the two.
    assert!(server.read_exactly(large.len()) == large, "the message is damaged");
    server.expect_text("the end");
    writer.join().unwrap();
}

#[test]
fn a_client_that_is_paused_by_its_rate_is_not_dead() {
    let proxy = ProxyProgram::start(&format!("{STRICT}\nmax_messages_per_second = 2"), GRACE);
    let (mut client, mut server) = proxy.tunnel();
    client.send(C.text("x").repeat(9));
    let start = Instant::now();
    let mut reading = client.clone_handle();
    let answering = std::thread::spawn(move || reading.answer_pings(C));
    // It is not read for more than three seconds; the backend keeps answering.
    for _ in 0..9 {
        assert_eq!(server.answer_pings(B).payload, b"x");
    }
    assert!(start.elapsed() > Duration::from_secs(3), "it was not paused");
    server.send(B.text("bye"));
    assert_eq!(answering.join().unwrap().payload, b"bye");
}

#[test]
fn an_idle_tunnel_is_closed_both_ways() {
    let mut proxy = ProxyProgram::start("idle_timeout_ms = 500", GRACE);
    let (mut client, mut server) = proxy.tunnel();
    client.expect_proxy_close(C, 1001);
    server.expect_proxy_close(B, 1001);
    client.send(C.close(1001));
    server.send(B.close(1001));
    client.expect_eof();
    server.expect_eof();
    proxy.assert_end(&[("reason", "idle"), ("ended_by", "proxy")]);
}

#[test]
fn a_tunnel_is_not_closed_as_idle_before_its_time() {
    let proxy = ProxyProgram::start("idle_timeout_ms = 500", "close_grace_ms = 60000");
    for _ in 0..4 {
        let start = Instant::now();
        let (mut client, _server) = proxy.tunnel();
        client.expect_proxy_close(C, 1001);
        assert!(
            start.elapsed() >= Duration::from_millis(500),
            "closed after {:?}",
            start.elapsed()
        );
        // So that the next one begins at another point of a tick.
        client.expect_silence(Duration::from_millis(67));
    }
}

#[test]
fn pings_and_pongs_do_not_keep_a_tunnel_from_being_idle() {
    let mut proxy = ProxyProgram::start("idle_timeout_ms = 1000\nping_interval_ms = 250", GRACE);
    let (mut client, mut server) = proxy.tunnel();
    let answering = std::thread::spawn(move || {
        let frame = server.answer_pings(B);
        (server, frame)
    });
    let mut pings = 0;
    let close = loop {
        let frame = client.read_frame();
        if !frame.is_proxy_ping() {
            break frame;
        }
        pings += 1;
        assert!(pings < 40, "it is never idle");
        client.send([C.frame(PONG, &frame.payload), C.frame(PONG, "my own")].concat());
    };
    assert_eq!(close.close_code(), Some(1001));
    drop(answering.join().unwrap());
    proxy.assert_end(&[("reason", "idle")]);
}

#[test]
fn data_in_either_direction_keeps_a_tunnel_from_being_idle() {
    let (time, gap) = (Duration::from_millis(2_500), Duration::from_millis(1_000));
    std::thread::scope(|scope| {
        for from in [C, B] {
            scope.spawn(move || {
                let proxy = ProxyProgram::start("idle_timeout_ms = 1000", GRACE);
                proxy.keep_busy(time, gap, |client, server| {
                    let (sending, other) =
                        if from == C { (client, server) } else { (server, client) };
                    sending.send(from.text("data"));
                    other.receives(from.text("data")) && sending.stays_silent(PAUSE)
                });
            });
        }
    });
}

#[test]
fn one_long_message_that_flows_is_not_idle() {
    let proxy = ProxyProgram::start("idle_timeout_ms = 750", GRACE);
    let (time, gap) = (Duration::from_millis(2_000), Duration::from_millis(750));
    // The first is the header of a frame that outlasts the test; the others are its payload.
    let part = noise(1, 40);
    proxy.keep_busy(time, gap, |client, server| {
        client.send(&part);
        server.receives(&part) && server.stays_silent(PAUSE)
    });
}

#[test]
fn an_unanswered_close_does_not_keep_a_tunnel_from_being_idle() {
    let mut proxy = ProxyProgram::start("idle_timeout_ms = 500", GRACE);
    let (mut client, mut server) = proxy.tunnel();
    client.send(C.close(1000));
    server.expect(C.close(1000));
    // Nothing is added, and there is an end.
    server.expect_eof();
    client.expect_eof();
    proxy.assert_end(&[("reason", "client_close"), ("client_close", "1000")]);
}

#[test]
fn a_tunnel_whose_time_is_up_gets_its_close_code() {
    let mut proxy =
        ProxyProgram::start("max_lifetime_ms = 1000\nlifetime_close_code = 4001", GRACE);
    let start = Instant::now();
    let (mut client, mut server) = proxy.tunnel();
    client.send(C.text("busy"));
    server.expect(C.text("busy"));
    client.expect_proxy_close(C, 4001);
    // A tenth less at least.
    assert!(start.elapsed() >= Duration::from_millis(900), "after {:?}", start.elapsed());
    client.send(C.close(4001));
    server.expect(C.close(4001));
    server.expect_eof();
    client.expect_eof();
    proxy.assert_end(&[("reason", "lifetime"), ("client_close", "4001")]);
}

#[test]
fn lifetimes_differ() {
    const TUNNELS: usize = 24;
    // Equal lifetimes would end in the order of the tunnels' beginnings, on one worker.
    let backend = Backend::start();
    let section = section(backend.address);
    let config = format!("workers = 1\n[drain]\n{GRACE}\n{section}max_lifetime_ms = 3000");
    let mut program = Program::with_config(&config);
    let address = program.address();
    let _tunnels: Vec<_> = (0..TUNNELS).map(|_| Peer::tunnel(address, &backend)).collect();
    let ends: Vec<u64> = (0..TUNNELS)
        .map(|_| value(&program.wait_for("event=tunnel_end"), "id").parse().unwrap())
        .collect();
    assert!(!ends.is_sorted(), "{ends:?}");
}

mod stalls {
    use rustix::process::Signal;

    use super::*;

    /// Stops the proxy for longer than any time in its section, and has it go on.
    fn stall(proxy: &ProxyProgram) {
        // The pause is the subject of the test.
        std::thread::sleep(Duration::from_millis(2_500));
        proxy.program.signal(Signal::CONT);
    }

    #[test]
    fn a_side_whose_pong_waits_in_the_socket_is_alive() {
        let proxy = ProxyProgram::start("ping_interval_ms = 250\npong_timeout_ms = 1500", GRACE);
        for from in [C, B] {
            let (mut side, mut other) = proxy.tunnel_from(from);
            let ping = side.read_proxy_ping();
            proxy.program.signal(Signal::STOP);
            side.send([from.frame(PONG, &ping), from.text("still here")].concat());
            stall(&proxy);
            other.expect_text("still here");
            other.send(from.other().text("so am I"));
            side.expect_text("so am I");
        }
    }

    #[test]
    fn a_tunnel_whose_messages_wait_in_the_socket_is_not_idle() {
        let proxy = ProxyProgram::start("idle_timeout_ms = 1500", GRACE);
        let (mut client, mut server) = proxy.tunnel();
        proxy.program.signal(Signal::STOP);
        client.send(C.text("still here"));
        stall(&proxy);
        server.expect_text("still here");
        server.send(B.text("so am I"));
        client.expect_text("so am I");
    }

    #[test]
    fn silence_during_a_stall_is_nobodys() {
        let proxy = ProxyProgram::start("ping_interval_ms = 250\npong_timeout_ms = 1500", GRACE);
        let (mut client, mut server) = proxy.tunnel();
        let ping = client.read_proxy_ping();
        proxy.program.signal(Signal::STOP);
        stall(&proxy);
        // Only now does the client answer, as one that was stopped with the proxy does.
        client.send([C.frame(PONG, &ping), C.text("back")].concat());
        server.expect_text("back");
    }
}

mod blocked {
    use super::*;

    #[test]
    fn a_side_that_takes_no_bytes_ends_the_tunnel() {
        let mut proxy = ProxyProgram::start("blocked_timeout_ms = 500", GRACE);
        for (from, code) in [(B, 1014), (C, 1001)] {
            let stuck = from;
            let (mut stuck_peer, mut sender) = proxy.tunnel_from(stuck);
            stuck_peer.shrink_buffers();
            let side = stuck.other();
            // One frame that never ends, of which the other side takes nothing.
            sender.send(side.header(0x82, 1 << 30));
            sender.flood();
            sender.expect_proxy_close(side, code);
            proxy.assert_end(&[("reason", "blocked"), ("ended_by", "proxy")]);
        }
    }

    #[test]
    fn a_side_that_takes_bytes_slowly_does_not() {
        let proxy = ProxyProgram::start("blocked_timeout_ms = 1000", GRACE);
        let (mut client, server) = proxy.tunnel();
        let message = noise(3, 4 << 20);
        let sent = message.clone();
        let mut sending = server.clone_handle();
        let writer = std::thread::spawn(move || sending.send(&sent));
        let start = Instant::now();
        for piece in message.chunks(message.len() / 8 + 1) {
            client.expect(piece);
            // The pace is the subject: longer than the timeout in all, but never at once.
            std::thread::sleep(Duration::from_millis(250));
        }
        assert!(start.elapsed() >= Duration::from_millis(1_900));
        writer.join().unwrap();
        drop(server);
        client.expect_eof();
    }
}
