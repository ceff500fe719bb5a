//! Ends of tunnels: the drain, Close frames of the proxy, the grace time, and lost sides.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tungstenite::{Message, WebSocket};

use crate::support::{
    From, Peer, ProxyProgram, noise, raise_descriptor_limit, switching, table, upgrade, wait_until,
};

use From::{Backend as B, Client as C};

/// A drain without a spread, whose times are longer than [`PATIENCE`](crate::support::PATIENCE): a
/// tunnel that ends has not ended by them.
const AT_ONCE: &str = "spread_ms = 0\ntimeout_ms = 120000\nclose_grace_ms = 60000";
/// The same with a short grace time for closing handshakes.
const SHORT_GRACE: &str = "spread_ms = 0\ntimeout_ms = 120000\nclose_grace_ms = 500";
/// Grace time of `SHORT_GRACE`.
const GRACE: Duration = Duration::from_millis(500);
/// A drain whose timeout comes before the end of the grace time.
const SHORT_TIMEOUT: &str = "spread_ms = 0\ntimeout_ms = 700\nclose_grace_ms = 60000";

impl ProxyProgram {
    /// Has the program begin its drain.
    fn drain(&mut self) {
        self.program.signal(Signal::TERM);
        self.program.wait_for("event=draining");
    }

    fn expect_exit(&mut self) {
        assert_eq!(self.program.wait().code(), Some(0));
    }
}

/// Reads the next message of a library's end, a Close with a reason, and gives its code.
fn read_close<S: Read + Write>(end: &mut WebSocket<S>) -> u16 {
    let Message::Close(Some(frame)) = end.read().unwrap() else { panic!("no Close") };
    assert!(!frame.reason.is_empty());
    frame.code.into()
}

/// A proxy with such a drain, and a tunnel whose client is paused by its rate.
fn over_its_rate(drain: &str) -> (ProxyProgram, Peer, Peer) {
    let proxy = ProxyProgram::start("max_messages_per_second = 1", drain);
    let (mut client, mut server) = proxy.tunnel();
    // One message passes; the other waits.
    client.send(C.text("x").repeat(2));
    server.expect(C.text("x"));
    (proxy, client, server)
}

mod drain {
    use super::*;

    #[test]
    fn a_client_gets_a_close_and_its_answer_reaches_the_backend() {
        for (keys, code) in table([("", 1001), ("\nclose_code = 1012", 1012)]) {
            let mut proxy = ProxyProgram::start("", &format!("{AT_ONCE}{keys}"));
            let (mut client, mut server) = proxy.tunnel();
            server.send(B.text("before"));
            client.expect_text("before");
            proxy.drain();
            client.expect_proxy_close(C, code);
            // Nothing of the backend follows it, while the client's bytes go on.
            server.send(B.text("too late"));
            client.send(C.text("still heard"));
            server.expect(C.text("still heard"));
            client.send(C.close(code));
            server.expect(C.close(code));
            server.send(B.close(code));
            client.expect_eof();
            server.expect_eof();
            let code = code.to_string();
            proxy.assert_end(&[
                ("reason", "drain"),
                ("ended_by", "proxy"),
                ("client_close", &code),
            ]);
            proxy.expect_exit();
        }
    }

    #[test]
    fn an_answer_that_comes_in_pieces_reaches_the_backend_whole() {
        let close = C.close(1001);
        for cut in 1..close.len() {
            let mut proxy = ProxyProgram::start("", AT_ONCE);
            let (mut client, mut server) = proxy.tunnel();
            proxy.drain();
            client.expect_proxy_close(C, 1001);
            client.send(&close[..cut]);
            server.expect(&close[..cut]);
            client.send(&close[cut..]);
            server.expect(&close[cut..]);
            client.expect_eof();
            server.expect_eof();
            proxy.expect_exit();
        }
    }

    #[test]
    fn a_close_in_the_middle_of_a_large_message_arrives_after_it() {
        let mut proxy = ProxyProgram::start("", AT_ONCE);
        let (mut client, mut server) = proxy.tunnel();
        let payload = noise(1, 10_000_000);
        let message = [
            B.header(0x02, 6_000_000),
            payload[..6_000_000].to_vec(),
            B.frame(0x80, &payload[6_000_000..]),
        ]
        .concat();
        let mut sending = server.clone_handle();
        let expected = message.clone();
        let writer = std::thread::spawn(move || {
            // The proxy discards the rest after the Close.
            sending.send(message);
        });
        // A slow reader: it has read the beginning only when the drain begins.
        let mut got = client.read_exactly(1_000);
        proxy.drain();
        got.extend(client.read_exactly(6_000_010 - 1_000));
        assert!(got == expected[..6_000_010], "the fragment is damaged");
        // Between two fragments is a boundary, too.
        let frame = client.read_frame();
        if frame.first == 0x80 {
            assert!(frame.payload == payload[6_000_000..], "the fragment is damaged");
            client.expect_proxy_close(C, 1001);
        } else {
            assert_eq!(frame.close_code(), Some(1001));
        }
        client.send(C.close(1001));
        server.expect(C.close(1001));
        client.expect_eof();
        server.expect_eof();
        writer.join().unwrap();
        proxy.expect_exit();
    }

    #[test]
    fn a_message_of_one_frame_arrives_whole_before_the_close() {
        let mut proxy = ProxyProgram::start("", AT_ONCE);
        let (mut client, server) = proxy.tunnel();
        let message = B.frame(0x82, noise(1, 10_000_000));
        let mut sending = server.clone_handle();
        let bytes = message.clone();
        let writer = std::thread::spawn(move || sending.send(bytes));
        let mut got = client.read_exactly(1_000);
        proxy.drain();
        while got.len() < message.len() {
            let count = (message.len() - got.len()).min(300_000);
            got.extend(client.read_exactly(count));
        }
        assert!(got == message, "the message is damaged");
        client.expect_proxy_close(C, 1001);
        client.send(C.close(1001));
        client.expect_eof();
        writer.join().unwrap();
        proxy.expect_exit();
    }

    #[test]
    fn a_client_that_never_answers_gets_a_fin_after_the_grace_time() {
        let mut proxy = ProxyProgram::start("", SHORT_GRACE);
        let (mut client, mut server) = proxy.tunnel();
        let start = Instant::now();
        proxy.drain();
        client.expect_proxy_close(C, 1001);
        client.expect_eof();
        // The client owed it a Close.
        server.expect_proxy_close(B, 1001);
        server.expect_eof();
        assert!(start.elapsed() >= GRACE, "{:?} is too early", start.elapsed());
        // The account has what was written last: header, mask, code and text.
        let bytes = |mask: usize| (2 + mask + 2 + "shutting down".len()).to_string();
        proxy.assert_end(&[
            ("reason", "drain"),
            ("bytes_to_client", &bytes(0)),
            ("bytes_to_backend", &bytes(4)),
        ]);
        proxy.expect_exit();
    }

    #[test]
    fn a_message_that_never_ends_gets_a_fin_after_the_grace_time() {
        let mut proxy = ProxyProgram::start("", SHORT_GRACE);
        let (mut client, mut server) = proxy.tunnel();
        let frame = B.text("a message that never ends");
        server.send(&frame[..10]);
        client.expect(&frame[..10]);
        proxy.drain();
        client.expect_eof();
        server.expect_proxy_close(B, 1001);
        server.expect_eof();
        proxy.expect_exit();
    }

    #[test]
    fn a_side_that_has_sent_a_close_and_a_fin_is_not_waited_for() {
        for from in [C, B] {
            let mut proxy = ProxyProgram::start("", SHORT_GRACE);
            let (mut closing, mut other) = proxy.tunnel_from(from);
            closing.send(from.close(1000));
            closing.end_sending();
            other.expect(from.close(1000));
            // The other side neither answers nor ends.
            other.expect_eof();
            closing.expect_eof();
            let reason = if from == C { "client_close" } else { "backend_close" };
            proxy.assert_end(&[("reason", reason)]);
        }
    }

    #[test]
    fn a_second_signal_writes_the_closes_that_need_no_waiting() {
        let mut proxy = ProxyProgram::start("", "spread_ms = 60000\ntimeout_ms = 120000");
        let (mut client, mut server) = proxy.tunnel();
        proxy.drain();
        proxy.program.signal(Signal::TERM);
        client.expect_proxy_close(C, 1001);
        client.expect_end();
        server.expect_proxy_close(B, 1001);
        server.expect_end();
    }

    #[test]
    fn a_closing_handshake_under_way_is_left_alone() {
        for from in [C, B] {
            let mut proxy = ProxyProgram::start("", AT_ONCE);
            let (mut closing, mut other) = proxy.tunnel_from(from);
            closing.send(from.close(1000));
            other.expect(from.close(1000));
            proxy.drain();
            other.expect_silence(Duration::from_millis(600));
            closing.expect_silence(Duration::from_millis(50));
            other.send(from.other().close(1000));
            closing.expect(from.other().close(1000));
            closing.end_sending();
            other.expect_eof();
            other.end_sending();
            closing.expect_eof();
            let reason = if from == C { "client_close" } else { "backend_close" };
            proxy.assert_end(&[("reason", reason)]);
            proxy.expect_exit();
        }
    }

    #[test]
    fn a_close_that_nobody_answers_does_not_hold_up_the_drain() {
        let mut proxy = ProxyProgram::start("", SHORT_GRACE);
        let (mut client, mut server) = proxy.tunnel();
        client.send(C.close(1000));
        server.expect(C.close(1000));
        proxy.drain();
        server.expect_eof();
        client.expect_eof();
        proxy.expect_exit();
    }

    #[test]
    fn a_close_of_the_backend_whose_first_byte_has_passed_is_not_followed_by_another() {
        let mut proxy = ProxyProgram::start("", AT_ONCE);
        let (mut client, mut server) = proxy.tunnel();
        let close = B.close(4000);
        server.send(&close[..1]);
        client.expect(&close[..1]);
        proxy.drain();
        client.expect_silence(Duration::from_millis(400));
        server.send(&close[1..]);
        client.expect(&close[1..]);
        client.send(C.close(4000));
        server.expect(C.close(4000));
        server.end_sending();
        client.expect_eof();
        client.end_sending();
        server.expect_eof();
        proxy.expect_exit();
    }

    #[test]
    fn a_client_that_is_paused_by_its_rate_is_read_again_for_its_answer() {
        let (mut proxy, mut client, mut server) = over_its_rate(AT_ONCE);
        client.send(C.text("held back").repeat(100));
        proxy.drain();
        client.expect_proxy_close(C, 1001);
        // For what has come already there is no event.
        server.expect([C.text("x"), C.text("held back").repeat(100)].concat());
        client.send(C.close(1001));
        server.expect(C.close(1001));
        client.expect_eof();
        server.expect_eof();
        proxy.expect_exit();
    }

    #[test]
    fn five_hundred_clients_see_a_clean_close() {
        raise_descriptor_limit();
        let mut proxy =
            ProxyProgram::start("", "spread_ms = 500\ntimeout_ms = 120000\nclose_code = 1012");
        let url = format!("ws://{}/", proxy.address);
        let tunnels: Vec<_> = (0..500)
            .map(|_| {
                std::thread::scope(|scope| {
                    let server =
                        scope.spawn(|| tungstenite::accept(proxy.backend.accept().stream).unwrap());
                    let stream = Peer::connect(proxy.address).stream;
                    let (client, _) = tungstenite::client(&*url, stream).unwrap();
                    (client, server.join().unwrap())
                })
            })
            .collect();
        proxy.drain();
        for (mut client, mut server) in tunnels {
            assert_eq!(read_close(&mut client), 1012);
            // The client's answer goes out, and then it sees the end.
            assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)));
            assert_eq!(read_close(&mut server), 1012);
        }
        proxy.expect_exit();
        let log = proxy.program.rest_of_log();
        assert_eq!(log.iter().filter(|line| line.contains(" reason=drain ")).count(), 500);
    }

    #[test]
    fn closes_are_spread_over_the_time_for_them() {
        // Of a hundred clients about one each 0.6 s gets its Close.
        let mut proxy = ProxyProgram::start("", "spread_ms = 60000\ntimeout_ms = 120000");
        let tunnels: Vec<_> = (0..100).map(|_| proxy.tunnel()).collect();
        proxy.drain();
        wait_until("the first client gets its Close", || {
            tunnels.iter().any(|(client, _)| !client.is_silent())
        });
        // About a second later most have none yet.
        let silent = |(client, _): &&(Peer, Peer)| client.stays_silent(Duration::from_millis(10));
        let silent = tunnels.iter().filter(silent).count();
        assert!(silent >= 50, "only {silent} of 100 clients have no Close yet");
    }

    #[test]
    fn it_still_accepts_during_the_delay_and_drains_what_came_then() {
        let mut proxy = ProxyProgram::start("", &format!("delay_ms = 3000\n{AT_ONCE}"));
        let (mut old, _old_server) = proxy.tunnel();
        proxy.program.signal(Signal::TERM);
        proxy.program.wait_for("event=lame_duck");
        let start = Instant::now();
        let (mut new, mut new_server) = proxy.tunnel();
        new.send(C.text("new"));
        new_server.expect(C.text("new"));
        for client in [&mut old, &mut new] {
            client.expect_proxy_close(C, 1001);
            client.send(C.close(1001));
            client.expect_eof();
        }
        assert!(start.elapsed() >= Duration::from_millis(2_500), "{:?}", start.elapsed());
        proxy.expect_exit();
    }

    #[test]
    fn tunnels_that_are_left_at_the_timeout_are_cut() {
        let mut proxy = ProxyProgram::start("", SHORT_TIMEOUT);
        let (mut client, mut server) = proxy.tunnel();
        let start = Instant::now();
        proxy.drain();
        client.expect_proxy_close(C, 1001);
        client.expect_end();
        server.expect_end();
        proxy.assert_end(&[("reason", "drain")]);
        assert!(start.elapsed() >= Duration::from_millis(650), "{:?}", start.elapsed());
        proxy.expect_exit();
    }

    #[test]
    fn a_closing_handshake_of_the_proxy_that_is_cut_at_the_timeout_keeps_its_reason() {
        let mut proxy = ProxyProgram::start("idle_timeout_ms = 250", SHORT_TIMEOUT);
        let (mut client, mut server) = proxy.tunnel();
        client.expect_proxy_close(C, 1001);
        server.expect_proxy_close(B, 1001);
        proxy.drain();
        client.expect_eof();
        server.expect_eof();
        proxy.assert_end(&[("reason", "idle")]);
        proxy.expect_exit();
    }

    #[test]
    fn a_closing_handshake_that_is_cut_at_the_timeout_keeps_its_reason() {
        for (from, reason) in table([(C, "client_close"), (B, "backend_close")]) {
            let mut proxy = ProxyProgram::start("", SHORT_TIMEOUT);
            let (mut closing, mut other) = proxy.tunnel_from(from);
            closing.send(from.close(1000));
            other.expect(from.close(1000));
            proxy.drain();
            other.expect_eof();
            proxy.assert_end(&[("reason", reason)]);
            proxy.expect_exit();
        }
    }

    #[test]
    fn a_tunnel_that_is_cut_before_its_close_ends_by_the_drain_all_the_same() {
        let mut proxy = ProxyProgram::start("", "timeout_ms = 1");
        let (_client, _server) = proxy.tunnel();
        proxy.drain();
        proxy.assert_end(&[("reason", "drain")]);
        proxy.expect_exit();
    }

    #[test]
    fn a_handshake_that_is_under_way_becomes_a_tunnel_that_is_closed_in_order() {
        let mut proxy = ProxyProgram::start("", AT_ONCE);
        let (mut client, mut server) = Peer::handshake(proxy.address, &proxy.backend, upgrade(""));
        proxy.drain();
        server.send([switching("").into_bytes(), B.text("hello")].concat());
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        client.expect_text("hello");
        client.expect_proxy_close(C, 1001);
        client.send(C.close(1001));
        server.expect(C.close(1001));
        server.expect_eof();
        client.expect_eof();
        proxy.expect_exit();
    }
}

mod grace {
    use super::*;

    #[test]
    fn two_close_frames_and_no_end_get_fins_after_the_grace_time() {
        let mut proxy = ProxyProgram::start("", SHORT_GRACE);
        for (from, reason) in table([(C, "client_close"), (B, "backend_close")]) {
            let (mut closing, mut other) = proxy.tunnel_from(from);
            closing.send(from.close(1000));
            other.expect(from.close(1000));
            let start = Instant::now();
            other.send(from.other().close(1000));
            closing.expect(from.other().close(1000));
            closing.expect_eof();
            other.expect_eof();
            assert!(start.elapsed() >= GRACE, "{:?} is too early", start.elapsed());
            proxy.assert_end(&[("reason", reason)]);
        }
    }

    #[test]
    fn a_close_of_the_backend_ends_the_pause_of_a_client_over_its_rate() {
        let (mut proxy, mut client, mut server) = over_its_rate(SHORT_GRACE);
        // Both close at the same time.
        client.send([C.text("y").repeat(100), C.close(1000)].concat());
        server.send(B.close(1000));
        client.expect(B.close(1000));
        server.expect([C.text("x"), C.text("y").repeat(100), C.close(1000)].concat());
        server.expect_eof();
        client.expect_eof();
        proxy.assert_end(&[("reason", "backend_close")]);
    }

    #[test]
    fn one_close_frame_alone_is_waited_on() {
        let proxy = ProxyProgram::start("", SHORT_GRACE);
        let (mut client, mut server) = proxy.tunnel();
        client.send(C.close(1000));
        server.expect(C.close(1000));
        server.expect_silence(Duration::from_millis(1_500));
        // The backend may say what it still has to say.
        server.send([B.text("the last word"), B.close(1000)].concat());
        client.expect([B.text("the last word"), B.close(1000)].concat());
    }
}

mod loss {
    use super::*;

    const ANNOUNCED: &str = "backend_lost_code = 1014\nclient_lost_code = 1001";

    /// Ends the connection by a FIN or a reset.
    fn disconnect(peer: Peer, is_reset: bool) {
        if is_reset { peer.reset() } else { drop(peer) }
    }

    #[test]
    fn a_lost_side_is_announced_to_the_other() {
        for (from, code, words) in table([
            (B, 1014, ["backend_eof", "backend_reset"]),
            (C, 1001, ["client_eof", "client_reset"]),
        ]) {
            for is_reset in [false, true] {
                let mut proxy = ProxyProgram::start(ANNOUNCED, SHORT_GRACE);
                let (mut lost, mut other) = proxy.tunnel_from(from);
                lost.send(from.text("the last"));
                other.expect(from.text("the last"));
                disconnect(lost, is_reset);
                other.expect_proxy_close(from.other(), code);
                other.expect_eof();
                proxy.assert_end(&[("reason", words[usize::from(is_reset)])]);
            }
        }
    }

    #[test]
    fn within_a_frame_it_is_the_bare_end() {
        for from in [C, B] {
            for is_reset in [false, true] {
                let proxy = ProxyProgram::start(ANNOUNCED, SHORT_GRACE);
                let (mut lost, mut other) = proxy.tunnel_from(from);
                let frame = from.text("half of it");
                lost.send(&frame[..frame.len() - 1]);
                other.expect(&frame[..frame.len() - 1]);
                disconnect(lost, is_reset);
                other.expect_eof();
            }
        }
    }

    #[test]
    fn a_side_that_has_sent_a_close_is_not_lost() {
        for from in [C, B] {
            let proxy = ProxyProgram::start(ANNOUNCED, SHORT_GRACE);
            let (mut closing, mut other) = proxy.tunnel_from(from);
            closing.send(from.close(4000));
            other.expect(from.close(4000));
            closing.end_sending();
            other.expect_eof();
        }
    }

    #[test]
    fn a_side_that_is_lost_instead_of_answering_a_close_is_announced() {
        for (from, code, reason) in table([(C, 1014, "client_close"), (B, 1001, "backend_close")]) {
            for is_reset in [false, true] {
                let mut proxy = ProxyProgram::start(ANNOUNCED, SHORT_GRACE);
                let (mut closing, mut lost) = proxy.tunnel_from(from);
                closing.send(from.close(1000));
                lost.expect(from.close(1000));
                disconnect(lost, is_reset);
                closing.expect_proxy_close(from, code);
                closing.expect_eof();
                // It has got its Close, and is not waited for.
                proxy.assert_end(&[("reason", reason)]);
            }
        }
    }

    #[test]
    fn a_client_that_is_lost_instead_of_answering_the_proxys_close_is_announced() {
        for is_reset in [false, true] {
            let mut proxy = ProxyProgram::start(ANNOUNCED, AT_ONCE);
            let (mut client, mut server) = proxy.tunnel();
            proxy.drain();
            client.expect_proxy_close(C, 1001);
            disconnect(client, is_reset);
            server.expect_proxy_close(B, 1001);
            server.expect_eof();
            proxy.assert_end(&[("reason", "drain")]);
            proxy.expect_exit();
        }
    }

    #[test]
    fn a_side_that_is_lost_after_both_got_a_close_is_not_announced() {
        let proxy = ProxyProgram::start(&format!("{ANNOUNCED}\nidle_timeout_ms = 250"), AT_ONCE);
        for from in [C, B] {
            for is_reset in [false, true] {
                let (mut lost, mut other) = proxy.tunnel_from(from);
                for (peer, side) in [(&mut lost, from), (&mut other, from.other())] {
                    peer.expect_proxy_close(side, 1001);
                }
                disconnect(lost, is_reset);
                // Nothing follows a Close.
                other.expect_eof();
            }
        }
    }

    #[test]
    fn an_announced_loss_is_the_end_of_the_tunnel_for_the_other_side_too() {
        let mut proxy = ProxyProgram::start(ANNOUNCED, SHORT_GRACE);
        let (mut client, mut server) = proxy.tunnel();
        // The backend ends its sending only, and would go on reading.
        server.end_sending();
        client.expect_proxy_close(C, 1014);
        client.expect_eof();
        server.expect_eof();
        proxy.assert_end(&[("reason", "backend_eof")]);
    }

    #[test]
    fn by_default_an_end_is_relayed_as_it_comes() {
        let proxy = ProxyProgram::start("", SHORT_GRACE);
        for from in [C, B] {
            let (mut ending, mut other) = proxy.tunnel_from(from);
            ending.send(from.text("the last"));
            ending.end_sending();
            other.expect(from.text("the last"));
            other.expect_eof();
            // A half-close stays one, for longer than any grace time.
            other.send(from.other().text("return"));
            ending.expect(from.other().text("return"));
            ending.expect_silence(Duration::from_millis(1_500));
            other.send(from.other().text("again"));
            ending.expect(from.other().text("again"));
            other.end_sending();
            ending.expect_eof();
        }
    }

    #[test]
    fn by_default_nothing_is_added_to_a_reset() {
        let proxy = ProxyProgram::start("", SHORT_GRACE);
        for from in [C, B] {
            let (ending, mut other) = proxy.tunnel_from(from);
            ending.reset();
            other.expect_eof();
        }
    }

    #[test]
    fn a_lost_backend_is_no_clean_end_for_a_library() {
        let proxy = ProxyProgram::start(ANNOUNCED, SHORT_GRACE);
        let backend = &proxy.backend;
        let mut client = std::thread::scope(|scope| {
            let server = scope.spawn(|| tungstenite::accept(backend.accept().stream).unwrap());
            let stream = Peer::connect(proxy.address).stream;
            let (client, _) =
                tungstenite::client(format!("ws://{}/", proxy.address), stream).unwrap();
            drop(server.join().unwrap());
            client
        });
        // Tungstenite does not know 1014, and makes a protocol error of it.
        assert_eq!(read_close(&mut client), 1002);
    }
}

mod stuck {
    use super::*;

    #[test]
    fn the_other_side_s_answer_ends_it_whatever_waits_for_the_stuck_one() {
        for (stuck, code) in table([(B, 1014), (C, 1001)]) {
            let mut proxy =
                ProxyProgram::start("blocked_timeout_ms = 500", "close_grace_ms = 60000");
            let (stuck_peer, mut sender) = proxy.tunnel_from(stuck);
            let from = stuck.other();
            // It goes on for longer than anything holds, and answers at its end.
            let message = [from.header(0x82, 32 << 20), vec![0; 32 << 20], from.close(code)];
            let mut sending = sender.clone_handle();
            let writer = std::thread::spawn(move || sending.send(message.concat()));
            sender.expect_proxy_close(from, code);
            writer.join().expect("what nobody takes is read all the same");
            sender.expect_eof();
            proxy.assert_end(&[("reason", "blocked")]);
            drop(stuck_peer);
        }
    }

    #[test]
    fn a_client_that_has_closed_and_takes_nothing_is_not_waited_for() {
        let mut proxy = ProxyProgram::start("blocked_timeout_ms = 500", SHORT_GRACE);
        let (mut client, mut server) = proxy.tunnel();
        client.send(C.close(1000));
        server.expect(C.close(1000));
        let mut sending = server.clone_handle();
        let writer = std::thread::spawn(move || {
            sending.send(B.header(0x82, 1 << 40));
            sending.flood_until_broken();
        });
        proxy.assert_end(&[("reason", "client_close")]);
        drop((client, server));
        writer.join().unwrap();
    }

    #[test]
    fn a_close_for_the_backend_that_finds_no_boundary_holds_up_no_end() {
        let mut proxy = ProxyProgram::start("max_frame_bytes = 100", "close_grace_ms = 60000");
        let (mut client, mut server) = proxy.tunnel();
        // The client is in the middle of a frame, and stays there.
        let message = C.text("never finished");
        client.send(&message[..9]);
        server.expect(&message[..9]);
        server.send(B.header(0x82, 101));
        client.expect_proxy_close(C, 1001);
        client.end_sending();
        server.expect_eof();
        server.send([vec![0; 101], B.close(1009)].concat());
        client.expect_eof();
        proxy.assert_end(&[("reason", "message_too_big")]);
    }
}
