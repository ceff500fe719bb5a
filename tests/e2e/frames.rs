//! Frames: limits judged at the header, strictness, opaque directions, and counters.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::libraries::{assert_unharmed, block_on, soketto_pair};
use crate::support::{
    ACCEPT, Backend, CLOSE, Frame, From, PING, PONG, Peer, Proxy, ProxyProgram, TEXT, noise, table,
    upgrade,
};

use From::{Backend as B, Client as C};

const GRACE: &str = "close_grace_ms = 300";

/// Sends what passes and then a header that does not, and nothing of its payload: the sender gets a
/// Close with this code, the other side all that passes and a Close with 1001.
fn assert_refused(
    proxy: &mut ProxyProgram,
    from: From,
    passing: &[u8],
    refused: &[u8],
    code: u16,
    reason: &str,
) {
    println!("{from:?} {refused:?}");
    let (mut sender, mut other) = proxy.tunnel_from(from);
    sender.send([passing, refused].concat());
    other.expect(passing);
    other.expect_proxy_close(from.other(), 1001);
    sender.expect_proxy_close(from, code);
    sender.send(from.close(code));
    other.send(from.other().close(1001));
    // Nothing more comes, neither the refused frame nor a second Close.
    other.expect_eof();
    sender.expect_eof();
    proxy.assert_end(&[("reason", reason), ("ended_by", "proxy")]);
}

/// Sends bytes that pass as they are, and shows that the tunnel lives on.
fn assert_passes(proxy: &ProxyProgram, from: From, bytes: &[u8]) {
    let (mut sender, mut other) = proxy.tunnel_from(from);
    sender.send(bytes);
    other.expect(bytes);
    other.send(from.other().text("back"));
    sender.expect(from.other().text("back"));
}

mod limits {
    use super::*;

    #[test]
    fn a_frame_over_the_limit_is_refused_from_its_header() {
        let rows =
            table([(100, 101), (100, 1 << 40), (125, 126), (65_535, 65_536), (70_000, 70_001)]);
        let refuse = |(limit, over)| {
            let mut proxy = ProxyProgram::start(&format!("max_frame_bytes = {limit}"), GRACE);
            for from in [C, B] {
                let refused = from.header(0x82, over);
                assert_refused(&mut proxy, from, &[], &refused, 1009, "message_too_big");
                let passing = [from.text("before"), from.frame(PING, "x")].concat();
                assert_refused(&mut proxy, from, &passing, &refused, 1009, "message_too_big");
            }
        };
        std::thread::scope(|scope| {
            for row in rows {
                scope.spawn(move || refuse(row));
            }
        });
    }

    #[test]
    fn a_frame_of_exactly_the_limit_passes() {
        for limit in table([1, 125, 126, 65_535, 65_536, 300_000]) {
            let proxy = ProxyProgram::start(&format!("max_frame_bytes = {limit}"), GRACE);
            for from in [C, B] {
                let (mut sender, mut other) = proxy.tunnel_from(from);
                let bytes = [from.frame(0x82, noise(1, limit)), from.text("x")].concat();
                sender.send(&bytes);
                other.expect(&bytes);
            }
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_at_the_fragment_that_is_too_much() {
        let mut proxy = ProxyProgram::start("max_message_bytes = 100", GRACE);
        for from in [C, B] {
            let start = [from.frame(0x01, [b'a'; 60]), from.frame(PING, [b'p'; 90])].concat();
            assert_refused(
                &mut proxy,
                from,
                &start,
                &from.header(0x80, 41),
                1009,
                "message_too_big",
            );
            assert_refused(
                &mut proxy,
                from,
                &start,
                &from.header(0x00, 41),
                1009,
                "message_too_big",
            );
            assert_refused(&mut proxy, from, &[], &from.header(TEXT, 101), 1009, "message_too_big");
        }
    }

    #[test]
    fn messages_of_exactly_the_limit_pass_and_control_frames_do_not_count() {
        let proxy = ProxyProgram::start("max_message_bytes = 100", GRACE);
        for from in [C, B] {
            let message = [
                from.frame(0x01, [b'a'; 60]),
                from.frame(PING, [b'p'; 125]),
                from.frame(0x00, [b'b'; 30]),
                from.frame(PONG, [b'q'; 125]),
                from.frame(0x80, [b'c'; 10]),
                from.frame(0x82, [b'd'; 100]),
            ];
            assert_passes(&proxy, from, &message.concat().repeat(3));
        }
    }

    #[test]
    fn fragments_without_end_are_refused_by_the_message_limit_and_not_by_that_of_frames() {
        let mut proxy = ProxyProgram::start("max_message_bytes = 100\nmax_frame_bytes = 60", GRACE);
        let start = [C.frame(0x02, [0; 50]), C.frame(0x00, [0; 50])].concat();
        assert_refused(&mut proxy, C, &start, &C.header(0x00, 1), 1009, "message_too_big");
    }

    #[test]
    fn with_its_header_half_passed_the_other_side_gets_the_bare_end() {
        let mut proxy = ProxyProgram::start("max_frame_bytes = 100", GRACE);
        for from in [C, B] {
            let header = from.header(0x82, 1_000);
            let mut tunnels = Vec::new();
            for cut in 1..header.len() {
                let (mut sender, mut other) = proxy.tunnel_from(from);
                sender.send(&header[..cut]);
                other.expect(&header[..cut]);
                sender.send(&header[cut..]);
                sender.expect_proxy_close(from, 1009);
                sender.send(from.close(1009));
                tunnels.push((sender, other));
            }
            for (mut sender, mut other) in tunnels {
                other.expect_eof();
                drop(other);
                sender.expect_eof();
                proxy.assert_end(&[("reason", "message_too_big")]);
            }
        }
    }

    #[test]
    fn nothing_that_follows_a_refused_frame_passes() {
        let proxy = ProxyProgram::start("max_frame_bytes = 10", "close_grace_ms = 1000");
        let (mut client, mut server) = proxy.tunnel();
        client.send([C.text("good"), C.text("this one is too long"), C.text("good")].concat());
        client.send(C.text("late"));
        server.expect(C.text("good"));
        server.expect_proxy_close(B, 1001);
        server.expect_eof();
        client.expect_proxy_close(C, 1009);
    }

    #[test]
    fn too_many_messages_wait_for_their_second() {
        let proxy = ProxyProgram::start("max_messages_per_second = 5", GRACE);
        let (mut client, mut server) = proxy.tunnel();
        // Of one blast one second's worth passes at once.
        let message = |number: u32| C.text(&format!("{number:02}"));
        let start = Instant::now();
        client.send((0..20).flat_map(message).collect::<Vec<u8>>());
        for number in 0..20 {
            server.expect(message(number));
            // Ticks are coarse, and the first one may come at once.
            let earliest = Duration::from_millis((u64::from(number).saturating_sub(5)) * 200);
            let at = start.elapsed() + Duration::from_millis(250);
            assert!(at >= earliest, "message {number} after {at:?}");
        }
        // The other direction was never limited.
        for _ in 0..50 {
            server.send(B.text("free"));
            client.expect(B.text("free"));
        }
    }

    #[test]
    fn control_frames_and_fragments_do_not_count_against_the_rate() {
        let rate = "max_messages_per_second = 100\nrate_action = \"close\"";
        let proxy = ProxyProgram::start(rate, GRACE);
        let (mut client, mut server) = proxy.tunnel();
        for _ in 0..90 {
            client.send(
                [C.frame(0x01, "a"), C.frame(PING, ""), C.frame(0, ""), C.frame(0x80, "")].concat(),
            );
            let frames: [Frame; 4] = std::array::from_fn(|_| server.read_frame());
            assert_eq!(frames.map(|frame| frame.first), [0x01, PING, 0, 0x80]);
        }
    }

    #[test]
    fn too_many_messages_end_the_tunnel_where_that_is_asked_for() {
        let rates = table([
            ("max_messages_per_second = 3", C.text("x"), 3, "3"),
            ("max_messages_per_second = 3", C.frame(PING, "x"), 30, "0"),
            ("max_frames_per_second = 4", C.frame(PONG, ""), 4, "0"),
            ("max_messages_per_second = 9\nmax_frames_per_second = 4", C.text("x"), 4, "4"),
        ]);
        for (rate, frame, passing, messages) in rates {
            let mut proxy = ProxyProgram::start(&format!("{rate}\nrate_action = \"close\""), GRACE);
            let (mut client, mut server) = proxy.tunnel();
            // In one write, of which the rest is dropped.
            client.send(frame.repeat(2_000));
            client.expect_proxy_close(C, 1008);
            server.expect(frame.repeat(passing));
            server.expect_proxy_close(B, 1001);
            client.send(C.close(1008));
            server.send(B.close(1001));
            client.expect_eof();
            server.expect_eof();
            proxy.assert_end(&[("reason", "rate"), ("client_messages", messages)]);
        }
    }
}

mod strict {
    use super::*;

    /// A frame that is masked where it must not be, or the other way round.
    fn wrongly_masked(from: From, payload: &str) -> Vec<u8> {
        from.other().text(payload)
    }

    /// Violations of RFC 6455: frames that may come before, and the first header that may not pass.
    fn violations(from: From) -> Vec<(Vec<u8>, Vec<u8>)> {
        let alone = |bytes: Vec<u8>| (Vec::new(), bytes);
        let mut all = vec![
            alone(wrongly_masked(from, "x")),
            alone(from.frame(0x80, "a continuation of nothing")),
            alone(from.frame(0x00, "")),
            (from.frame(0x01, "open"), from.frame(TEXT, "a second one")),
            (from.frame(0x01, "open"), from.frame(0x02, "a second one")),
            (from.text("closed"), from.frame(0x80, "nothing is open")),
            alone(from.frame(0x09, "a fragmented ping")),
            alone(from.frame(0x08, "")),
            alone(from.frame(0x88, "x")),
            alone(from.frame(PING, [b'x'; 126])),
            alone(from.frame(PONG, noise(1, 66_000))),
        ];
        all.extend(
            [0x3, 0x4, 0x5, 0x6, 0x7, 0xb, 0xc, 0xd, 0xe, 0xf]
                .map(|op| alone(from.frame(0x80 | op, "x"))),
        );
        all.extend([0x40, 0x20, 0x10, 0x70].map(|bits| alone(from.frame(TEXT | bits, "x"))));
        all.extend([0x40, 0x20, 0x10].map(|bits| alone(from.frame(PING | bits, "x"))));
        all
    }

    #[test]
    fn violations_end_the_tunnel_where_frames_are_strict() {
        let mut proxy = ProxyProgram::start("strict_frames = true", GRACE);
        for from in [C, B] {
            for (before, wrong) in violations(from) {
                assert_refused(&mut proxy, from, &before, &wrong, 1002, "protocol");
            }
        }
    }

    #[test]
    fn violations_pass_unchanged_where_they_are_not() {
        let proxies = [
            ProxyProgram::start("", GRACE),
            ProxyProgram::start("max_frame_bytes = 100000", GRACE),
        ];
        for proxy in &proxies {
            for from in [C, B] {
                for (before, wrong) in violations(from) {
                    // A Close, also a wrong one, is the last frame of its direction.
                    assert_passes(proxy, from, &[before, wrong].concat());
                }
            }
        }
    }

    #[test]
    fn what_is_lawful_passes_where_frames_are_strict() {
        let proxy = ProxyProgram::start("strict_frames = true", GRACE);
        for from in [C, B] {
            let frames = [
                from.frame(0x01, ""),
                from.frame(PING, [b'p'; 125]),
                from.frame(0x00, noise(1, 70_000)),
                from.frame(PONG, ""),
                from.frame(0x80, "the end"),
                from.text("x"),
                from.frame(0x82, noise(1, 126)),
                from.close(1000),
            ];
            let (mut sender, mut other) = proxy.tunnel_from(from);
            sender.send(frames.concat());
            other.expect(frames.concat());
        }
    }

    #[test]
    fn reserved_bits_are_lawful_with_an_extension() {
        let proxy = ProxyProgram::start("strict_frames = true", GRACE);
        let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        let (mut client, mut server) =
            Peer::handshake(proxy.address, &proxy.backend, upgrade(extension));
        server.send(crate::support::switching(extension));
        assert!(client.read_head().contains(ACCEPT));
        client.send(C.frame(0xc1, "compressed"));
        server.expect(C.frame(0xc1, "compressed"));
        server.send(B.frame(0xc1, "compressed"));
        client.expect(B.frame(0xc1, "compressed"));
        // Other violations are still some.
        client.send(C.frame(0x83, ""));
        client.expect_proxy_close(C, 1002);
    }
}

mod opaque {
    use super::*;

    #[test]
    fn where_anything_is_limited_a_stream_that_cannot_be_followed_is_refused() {
        let rows = table([
            ("max_frame_bytes = 1000", 1009, "message_too_big"),
            ("max_message_bytes = 1000", 1009, "message_too_big"),
            ("strict_frames = true", 1002, "protocol"),
            ("max_messages_per_second = 1000", 1002, "protocol"),
            ("max_frames_per_second = 1000\nmax_frame_bytes = 1000", 1002, "protocol"),
        ]);
        for (limit, code, reason) in rows {
            let mut proxy = ProxyProgram::start(limit, GRACE);
            for from in [C, B] {
                let mut header = from.header(0x82, 1 << 40);
                header[2] = 0x80;
                assert_refused(&mut proxy, from, &from.text("before"), &header, code, reason);
            }
        }
    }

    /// A header whose length is invalid (RFC 6455, 5.2), and bytes after it.
    fn beyond(from: From) -> Vec<u8> {
        let bit = if from == C { 0x80 } else { 0 };
        [
            &[0x82, 127 | bit, 0x80, 0, 0, 0, 0, 0, 0, 0][..],
            b"anything at all \x88\x00 \x8a\x08".as_slice(),
            &noise(1, 300_000),
        ]
        .concat()
    }

    #[test]
    fn bytes_flow_on_where_frames_cannot_be_followed() {
        let mut proxy = ProxyProgram::start("ping_interval_ms = 250", GRACE);
        for (from, idle) in [(C, B), (B, C)] {
            let (mut sender, mut other) = proxy.tunnel_from(from);
            let mut sending = sender.clone_handle();
            let writer = std::thread::spawn(move || {
                sending.send([from.text("seen"), beyond(from)].concat())
            });
            let expected = [from.text("seen"), beyond(from)].concat();
            other.expect(&expected);
            writer.join().unwrap();
            other.send(idle.text("back"));
            sender.end_sending();
            other.expect_eof();
            other.end_sending();
            sender.expect_end();
            proxy.assert_end(&[("opaque", "1")]);
        }
    }

    #[test]
    fn nothing_is_injected_into_an_opaque_direction() {
        let proxy = ProxyProgram::start("ping_interval_ms = 250\npong_timeout_ms = 60000", GRACE);
        let (mut client, mut server) = proxy.tunnel();
        server.send(beyond(B));
        client.expect(beyond(B));
        client.expect_silence(Duration::from_millis(900));
    }

    #[test]
    fn an_opaque_side_is_not_pinged_since_its_pong_could_not_be_taken_out() {
        let proxy = ProxyProgram::start("ping_interval_ms = 250\npong_timeout_ms = 60000", GRACE);
        let (mut client, mut server) = proxy.tunnel();
        client.send(beyond(C));
        server.expect(beyond(C));
        client.expect_silence(Duration::from_millis(900));
    }

    #[test]
    fn bytes_of_an_opaque_tunnel_keep_it_from_being_idle() {
        let proxy = ProxyProgram::start("idle_timeout_ms = 750", GRACE);
        let (time, gap) = (Duration::from_millis(2_000), Duration::from_millis(750));
        // The first one makes the direction opaque, and nothing can end that.
        let part = &beyond(C)[..32];
        proxy.keep_busy(time, gap, |client, server| {
            client.send(part);
            server.receives(part) && client.stays_silent(Duration::from_millis(50))
        });
    }

    #[test]
    fn a_drain_just_ends_an_opaque_tunnel() {
        let mut proxy =
            ProxyProgram::start("", "spread_ms = 0\ntimeout_ms = 15000\nclose_grace_ms = 300");
        let (mut client, mut server) = proxy.tunnel();
        client.send(beyond(C));
        server.expect(beyond(C));
        server.send(beyond(B));
        client.expect(beyond(B));
        proxy.program.signal(Signal::TERM);
        client.expect_eof();
        server.expect_eof();
        proxy.assert_end(&[("opaque", "2"), ("reason", "drain")]);
        assert_eq!(proxy.program.wait().code(), Some(0));
    }
}

mod counters {
    use super::*;

    #[test]
    fn messages_and_close_codes_are_counted_by_direction() {
        for section in table([
            "",
            "ping_interval_ms = 250\npong_timeout_ms = 60000\nmax_message_bytes = 1000000\n\
             strict_frames = true",
        ]) {
            let mut proxy = ProxyProgram::start(section, GRACE);
            let (mut client, mut server) = proxy.tunnel();
            let up = [
                C.text("one"),
                C.frame(0x02, "two, "),
                C.frame(PING, "not me"),
                C.frame(0x00, "in "),
                C.frame(0x80, "parts"),
                C.frame(PONG, "nor me"),
                C.text(""),
            ];
            client.send(up.concat());
            for frame in &up {
                let got = server.read_relayed_frame();
                assert_eq!(got.first, frame[0]);
            }
            server.send(B.frame(0x82, noise(1, 300_000)));
            assert_eq!(client.read_relayed_frame().payload.len(), 300_000);
            // Split within the code.
            let close = C.close(4321);
            client.send_in_pieces([&close[..7], &close[7..]].into_iter());
            assert_eq!(server.read_relayed_frame().close_code(), Some(4321));
            server.send(B.close(4322));
            assert_eq!(client.read_relayed_frame().close_code(), Some(4322));
            client.expect_eof();
            server.expect_eof();
            proxy.assert_end(&[
                ("client_messages", "3"),
                ("backend_messages", "1"),
                ("client_close", "4321"),
                ("backend_close", "4322"),
                ("opaque", "0"),
                ("reason", "client_close"),
                ("ended_by", "client"),
            ]);
        }
    }

    #[test]
    fn a_message_that_is_refused_is_not_counted() {
        for (section, first, payload, code) in table([
            ("max_frame_bytes = 10", TEXT, "one too many", 1009),
            ("max_message_bytes = 10", 0x82, "one too many", 1009),
            ("strict_frames = true", TEXT | 0x40, "", 1002),
        ]) {
            let mut proxy = ProxyProgram::start(section, GRACE);
            for (from, counts) in [(C, ["2", "0"]), (B, ["0", "2"])] {
                let (mut sender, mut other) = proxy.tunnel_from(from);
                let passing = [from.text("one"), from.frame(0x82, "two")].concat();
                sender.send([&passing[..], &from.frame(first, payload)].concat());
                other.expect(passing);
                sender.expect_proxy_close(from, code);
                other.expect_proxy_close(from.other(), 1001);
                sender.send(from.close(code));
                other.send(from.other().close(1001));
                sender.expect_eof();
                other.expect_eof();
                let [client, backend] = counts;
                proxy.assert_end(&[("client_messages", client), ("backend_messages", backend)]);
            }
        }
    }

    #[test]
    fn a_close_without_a_code_has_none_in_the_log() {
        let mut proxy = ProxyProgram::start("", GRACE);
        let (mut client, mut server) = proxy.tunnel();
        server.send(B.frame(CLOSE, ""));
        client.expect(B.frame(CLOSE, ""));
        client.send(C.frame(CLOSE, ""));
        server.expect(C.frame(CLOSE, ""));
        server.end_sending();
        client.expect_eof();
        client.end_sending();
        server.expect_eof();
        proxy.assert_end(&[
            ("reason", "backend_close"),
            ("ended_by", "backend"),
            ("client_close", "-"),
            ("backend_close", "-"),
        ]);
    }

    #[test]
    fn ends_without_a_close_are_named_by_side_and_manner() {
        let mut proxy = ProxyProgram::start("", GRACE);
        for (from, eof, reset) in
            table([(C, "client_eof", "client_reset"), (B, "backend_eof", "backend_reset")])
        {
            let (mut ending, mut other) = proxy.tunnel_from(from);
            ending.end_sending();
            other.expect_eof();
            other.end_sending();
            ending.expect_eof();
            proxy.assert_end(&[("reason", eof)]);
            let (ending, mut other) = proxy.tunnel_from(from);
            ending.reset();
            other.expect_end();
            proxy.assert_end(&[("reason", reset)]);
        }
    }
}

#[test]
fn compressed_messages_pass_unharmed_while_frames_are_known() {
    let backend = Backend::start();
    let proxy = Proxy::start(
        Proxy::to(&[&backend])
            .ping_interval_ms(250)
            .pong_timeout_ms(60_000)
            .idle_timeout_ms(60_000)
            .max_message_bytes(2 << 20)
            .max_frame_bytes(2 << 20)
            .strict_frames(true)
            .backend_lost_code(1014)
            .client_lost_code(1001),
    );
    block_on(async {
        let (mut client, mut server) = soketto_pair(&proxy, &backend).await;
        let compressible = b"all work and no play ".repeat(50_000);
        let messages =
            [b"short".to_vec(), compressible, noise(1, 1 << 20), vec![0; 65_536], noise(2, 126)];
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1_500) {
            for bytes in &messages {
                assert_unharmed(&mut client, &mut server, bytes).await;
                assert_unharmed(&mut server, &mut client, bytes).await;
            }
            // A silence in which Pings come is the subject.
            smol::Timer::after(Duration::from_millis(600)).await;
        }
    });
}

mod any_frames {
    use super::*;

    /// A random, valid sequence of frames.
    fn sequence(from: From, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..random.usize(5..60) {
            let fragments = random.usize(1..4);
            for index in 0..fragments {
                if random.u8(..) < 80 {
                    let control = if random.bool() { PING } else { PONG };
                    // Never as long as the proxy's own.
                    let len = [0, 3, 7, 9, 60, 125][random.usize(..6)];
                    bytes.extend(from.frame(control, noise(random.u64(..), len)));
                }
                let opcode = if index == 0 { random.u8(1..=2) } else { 0 };
                let last = if index + 1 == fragments { 0x80 } else { 0 };
                let len = [0, 1, 8, 125, 126, 4_000, 65_535, 65_536, 200_000][random.usize(..9)];
                bytes.extend(from.frame(opcode | last, noise(random.u64(..), len)));
            }
        }
        bytes
    }

    /// Sends it in random pieces, with pauses now and then in which the proxy may ping.
    fn send(
        peer: &mut Peer,
        bytes: &[u8],
        answers: &std::sync::mpsc::Receiver<Vec<u8>>,
        from: From,
        seed: u64,
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        // Pongs can be put in between two frames.
        let mut boundaries = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            boundaries.push(at);
            let second = bytes[at + 1] & 0x7f;
            let (len, extended) = match second {
                126 => (usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]])), 2),
                127 => (u64::from_be_bytes(bytes[at + 2..at + 10].try_into().unwrap()) as usize, 8),
                len => (usize::from(len), 0),
            };
            at += 2 + extended + if from == C { 4 } else { 0 } + len;
        }
        boundaries.push(bytes.len());
        let mut pauses = 5;
        for pair in boundaries.windows(2) {
            for payload in answers.try_iter() {
                peer.send(from.frame(PONG, payload));
            }
            let mut frame = &bytes[pair[0]..pair[1]];
            while !frame.is_empty() {
                let most = if random.bool() { 16 } else { 100_000 };
                let (piece, rest) = frame.split_at(random.usize(1..=frame.len().min(most)));
                peer.send(piece);
                frame = rest;
                if pauses > 0 && random.u8(..) < 10 {
                    pauses -= 1;
                    // A silence in which a Ping comes is the subject.
                    std::thread::sleep(Duration::from_millis(random.u64(200..700)));
                }
            }
        }
        // So that the other side sees an end.
        for payload in answers.try_iter() {
            peer.send(from.frame(PONG, payload));
        }
        peer.send(from.close(1000));
    }

    /// Reads up to the Close, takes the proxy's Pings out, and has them answered.
    fn receive(
        peer: &mut Peer,
        from: From,
        answers: &std::sync::mpsc::Sender<Vec<u8>>,
    ) -> (Vec<u8>, usize) {
        let mut bytes = Vec::new();
        let mut pings = 0;
        loop {
            let frame = peer.read_frame();
            match frame.first {
                PING if frame.payload.len() == 8 => {
                    pings += 1;
                    let _ = answers.send(frame.payload);
                }
                CLOSE => return (bytes, pings),
                first => bytes.extend(from.frame(first, &frame.payload)),
            }
        }
    }

    #[test]
    fn what_each_side_gets_is_what_the_other_sent() {
        let proxy = ProxyProgram::start(
            "ping_interval_ms = 250\npong_timeout_ms = 60000\nmax_message_bytes = 100000000\n\
             strict_frames = true",
            GRACE,
        );
        let runs: Vec<_> = (0..12)
            .map(|_| {
                let seed = fastrand::u64(..);
                let (client, server) = proxy.tunnel();
                (seed, client, server)
            })
            .collect();
        let pings: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = runs
                .into_iter()
                .map(|(seed, client, server)| {
                    scope.spawn(move || {
                        println!("seed {seed}");
                        let mut random = fastrand::Rng::with_seed(seed);
                        let (up, down) = (sequence(C, &mut random), sequence(B, &mut random));
                        let ((to_c, of_c), (to_b, of_b)) =
                            (std::sync::mpsc::channel(), std::sync::mpsc::channel());
                        let (mut client_in, mut client_out) = (client.clone_handle(), client);
                        let (mut server_in, mut server_out) = (server.clone_handle(), server);
                        std::thread::scope(|scope| {
                            let (up_bytes, down_bytes) = (&up, &down);
                            scope.spawn(move || send(&mut client_out, up_bytes, &of_c, C, seed));
                            scope.spawn(move || {
                                send(&mut server_out, down_bytes, &of_b, B, seed.wrapping_add(1))
                            });
                            let at_client = scope.spawn(move || receive(&mut client_in, B, &to_c));
                            let (got_up, pings_up) = receive(&mut server_in, C, &to_b);
                            let (got_down, pings_down) = at_client.join().unwrap();
                            assert!(got_up == up, "seed {seed}: the backend got something else");
                            assert!(got_down == down, "seed {seed}: the client got something else");
                            pings_up + pings_down
                        })
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(pings > 0, "there was never a Ping, so that this shows nothing");
    }
}
