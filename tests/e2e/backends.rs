//! Backends: round robin, the forwarded head, the 101, other responses, and faults.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use ws_proxy::{Forwarded, HostHeader, WsProxy};

use crate::support::{
    ACCEPT, Backend, KEY, Peer, Program, Proxy, assert_alive, noise, section, switching, table,
    upgrade, upgrade_but, value,
};

/// Longest head of a response, in bytes.
const MOST: usize = 64 * 1024;
/// More bytes than all buffers on the way hold.
const LARGE: usize = 5_000_000;

// Round robin.

/// Opens a tunnel and gives the index of the backend that has it.
fn turn(proxy: &Proxy, backends: &[Backend]) -> usize {
    let mut client = Peer::sending(proxy.address, upgrade(""));
    let hit = Backend::wait_for_any(&backends.iter().collect::<Vec<_>>());
    let _server = backends[hit].accept_tunnel();
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    hit
}

#[test]
fn backends_take_turns() {
    let backends = [Backend::start(), Backend::start(), Backend::start()];
    let all: Vec<&Backend> = backends.iter().collect();
    let proxy = Proxy::start(Proxy::to(&all));
    let turns: Vec<usize> = (0..6).map(|_| turn(&proxy, &backends)).collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn only_good_handshakes_take_a_turn() {
    let backends = [Backend::start(), Backend::start()];
    let proxy = Proxy::to(&[&backends[0], &backends[1]]).origins(["none"]);
    let proxy = Proxy::start(proxy);
    assert_eq!(turn(&proxy, &backends), 0);
    for bad in table([
        "\n".to_owned(),
        upgrade_but("GET", "POST"),
        upgrade("Origin: https://a.example\r\n"),
    ]) {
        Peer::sending(proxy.address, bad).read_refusal();
        assert!(!backends.iter().any(Backend::has_waiting));
    }
    assert_eq!(turn(&proxy, &backends), 1);
    Peer::sending(proxy.address, upgrade_but("HTTP/1.1", "HTTP/1.0")).read_refusal();
    assert_eq!(turn(&proxy, &backends), 0);
}

#[test]
fn each_section_has_its_own_turns() {
    let backends = [Backend::start(), Backend::start()];
    let all = [&backends[0], &backends[1]];
    let (one, other) = (Proxy::start(Proxy::to(&all)), Proxy::start(Proxy::to(&all)));
    let turns = [&one, &other, &one, &other].map(|proxy| turn(proxy, &backends));
    assert_eq!(turns, [0, 0, 1, 1]);
}

// Reaching a backend.

#[test]
fn a_name_is_resolved_and_the_backend_hears_it_in_host() {
    let backend = Backend::start();
    let name = format!("localhost:{}", backend.address.port());
    let proxy = Proxy::start(WsProxy::new([&name]));
    let (_, _, head) = Peer::tunnel_with(proxy.address, &backend, upgrade(""));
    assert!(head.contains(&format!("\r\nHost: {name}\r\n")), "{head}");
}

#[test]
fn a_backend_that_refuses_is_passed_over() {
    let (refusing, backend) = (Backend::refusing(), Backend::start());
    let proxy = Proxy::start(Proxy::to(&[&refusing, &backend]));
    for _ in 0..3 {
        Peer::tunnel(proxy.address, &backend);
    }
}

#[test]
fn a_backend_that_does_not_accept_in_time_is_passed_over() {
    let (full, backend) = (Backend::full(), Backend::start());
    let proxy = Proxy::start(Proxy::to(&[&full, &backend]).connect_timeout_ms(300));
    Peer::tunnel(proxy.address, &backend);
}

#[test]
fn a_backend_that_fails_three_times_in_a_row_costs_no_more_time() {
    let (full, backend) = (Backend::full(), Backend::start());
    let [dead, good] = [&full, &backend].map(|backend| backend.address.to_string());
    let arguments = ["--bind", "127.0.0.1:0", "--backend", &dead, "--backend", &good];
    let mut program =
        Program::start(&[&arguments[..], &["--connect-timeout-ms", "300"]].concat(), None);
    let address = program.address();
    // It had the first turn of every two.
    for _ in 0..10 {
        drop(Peer::tunnel(address, &backend));
        program.wait_for("event=tunnel_end");
    }
    let tried = { &program.seen }.iter().filter(|line| line.contains("event=backend_unreachable "));
    assert_eq!(tried.count(), 3, "{:#?}", program.seen);
}

#[test]
fn a_backend_that_hangs_up_without_a_byte_is_passed_over() {
    let (absent, backend) = (Backend::start(), Backend::start());
    for order in table([[&absent, &backend], [&backend, &absent]]) {
        let proxy = Proxy::start(Proxy::to(&order));
        for is_reset in [false, true] {
            // One of two in a row begins with the backend that is not there.
            for _ in 0..2 {
                let mut client = Peer::sending(proxy.address, upgrade(""));
                if Backend::wait_for_any(&[&absent, &backend]) == 0 {
                    hang_up(&absent, is_reset);
                }
                let (mut server, _) = backend.accept_tunnel();
                assert!(client.read_head().starts_with("HTTP/1.1 101 "));
                assert_alive(&mut client, &mut server);
            }
        }
    }
}

#[test]
fn if_all_backends_hang_up_the_client_gets_502_and_each_was_tried_once() {
    let backends = [Backend::start(), Backend::start()];
    let proxy = Proxy::start(Proxy::to(&[&backends[0], &backends[1]]));
    for is_reset in [false, true] {
        let mut client = Peer::sending(proxy.address, upgrade(""));
        let first = Backend::wait_for_any(&[&backends[0], &backends[1]]);
        hang_up(&backends[first], is_reset);
        hang_up(&backends[1 - first], is_reset);
        assert_eq!(client.read_refusal().0, 502);
        assert!(!backends.iter().any(Backend::has_waiting));
    }
}

#[test]
fn a_backend_that_has_begun_to_answer_is_not_passed_over() {
    let rows = table(["H", "HTTP/1.1 101 Switch", "HTTP/1.1 103 Early Hints\r\n\r\n"]);
    for (begin, is_reset) in rows.into_iter().flat_map(|row| [(row, false), (row, true)]) {
        let (one, other) = (Backend::start(), Backend::start());
        let proxy = Proxy::start(Proxy::to(&[&one, &other]));
        let (mut client, mut server) = Peer::handshake(proxy.address, &one, upgrade(""));
        server.send(begin);
        server.wait_until_read();
        if is_reset {
            server.reset()
        } else {
            drop(server)
        }
        assert_eq!(client.read_refusal().0, 502, "{begin:?}");
        assert!(!other.has_waiting());
    }
}

/// Accepts a handshake and ends its connection without a byte.
fn hang_up(backend: &Backend, is_reset: bool) {
    let mut server = backend.accept();
    server.read_head();
    if is_reset { server.reset() } else { drop(server) }
}

#[test]
fn if_no_backend_can_be_reached_the_client_gets_502() {
    // They hold their ports until the end.
    let (one, other) = (Backend::refusing(), Backend::refusing());
    let proxy = Proxy::start(Proxy::to(&[&one, &other]));
    assert_eq!(Peer::sending(proxy.address, upgrade("")).read_refusal().0, 502);
}

#[test]
fn if_all_that_failed_was_time_the_client_gets_504() {
    let (one, other) = (Backend::full(), Backend::full());
    let proxy = Proxy::start(Proxy::to(&[&one, &other]).connect_timeout_ms(150));
    let begin = Instant::now();
    assert_eq!(Peer::sending(proxy.address, upgrade("")).read_refusal().0, 504);
    // Each attempt has the whole time.
    assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());
}

#[test]
fn if_not_only_time_failed_the_client_gets_502() {
    let (full, refusing) = (Backend::full(), Backend::refusing());
    let rows = table([[&full, &refusing], [&refusing, &full]]);
    for order in rows {
        let proxy = Proxy::start(Proxy::to(&order).connect_timeout_ms(100));
        assert_eq!(Peer::sending(proxy.address, upgrade("")).read_refusal().0, 502);
    }
}

#[test]
fn each_backend_is_tried_at_most_once() {
    let backends = [Backend::refusing(), Backend::refusing(), Backend::refusing()];
    let names = backends.each_ref().map(|backend| backend.address.to_string());
    let mut arguments = vec!["--bind", "127.0.0.1:0"];
    arguments.extend(names.iter().flat_map(|name| ["--backend", name]));
    let mut program = Program::start(&arguments, None);
    let address = program.address();
    assert_eq!(Peer::sending(address, upgrade("")).read_refusal().0, 502);
    program.wait_for("event=refused");
    for name in names {
        let tried = format!("event=backend_unreachable backend={name} ");
        assert_eq!(
            program.seen.iter().filter(|line| line.contains(&tried)).count(),
            1,
            "{:#?}",
            program.seen
        );
    }
}

// The forwarded head.

/// A handshake with everything in an unusual place and spelling, and bytes that are no UTF-8.
const UNUSUAL: &[u8] = b"GET /a%20b/?c={d}&e HTTP/1.1\r\n\
    X-First:no blank\r\n\
    sec-websocket-KEY:\t dGhlIHNhbXBsZSBub25jZQ==\r\n\
    uPGRADE: WebSocket\r\n\
    hOsT: example.com:81\r\n\
    X-Forwarded-For: 192.0.2.1\r\n\
    Cookie: a=b; c=\"d\"\r\n\
    cOOkie:  e=f  \r\n\
    X-Forwarded-Proto: https\r\n\
    connection: keep-alive,Upgrade\r\n\
    Keep-Alive: timeout=5\r\n\
    X-Latin: gr\xfc\xdfe\r\n\
    x-forwarded-for: 192.0.2.2, 192.0.2.3\r\n\
    X-Forwarded-Host: forged.example\r\n\
    X-Empty:\r\n\
    x-request-ID:  0123456789abcdef \r\n\
    Content-Length: 0\r\n\
    Forwarded: for=192.0.2.1\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

/// Asserts the head that the backend gets of it, byte for byte. `middle` is the part that settings
/// leave of the fields that are about the client, `end` what they add.
fn assert_forwarded(proxy: WsProxy, backend: &Backend, host: &str, middle: [&[u8]; 5], end: &[u8]) {
    let [chain, proto, more, forged, standard] = middle;
    let proxy = Proxy::start(proxy);
    let mut client = Peer::sending(proxy.address, UNUSUAL);
    let mut server = backend.accept();
    server.expect(
        [
            &b"GET /a%20b/?c={d}&e HTTP/1.1\r\nX-First:no blank\r\n"[..],
            b"sec-websocket-KEY:\t dGhlIHNhbXBsZSBub25jZQ==\r\n",
            format!("hOsT: {host}\r\n").as_bytes(),
            chain,
            b"Cookie: a=b; c=\"d\"\r\ncOOkie:  e=f  \r\n",
            proto,
            b"X-Latin: gr\xfc\xdfe\r\n",
            more,
            forged,
            b"X-Empty:\r\n",
            standard,
            b"Sec-WebSocket-Version: 13\r\nVia: 1.1 ws-proxy\r\n",
            b"X-Request-ID: 0123456789abcdef\r\n",
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
            end,
            b"\r\n",
        ]
        .concat(),
    );
    server.send(switching(""));
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    // There was nothing more.
    client.end_sending();
    server.expect_eof();
}

#[test]
fn the_head_goes_on_in_its_bytes_with_this_hop_appended() {
    let backend = Backend::start();
    assert_forwarded(
        Proxy::to(&[&backend]),
        &backend,
        &backend.address.to_string(),
        [b"", b"", b"", b"", b"Forwarded: for=192.0.2.1\r\n"],
        b"X-Forwarded-For: 192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1\r\n\
          X-Forwarded-Host: forged.example\r\nX-Forwarded-Proto: https\r\n",
    );
}

#[test]
fn with_forwarded_replace_only_this_hop_is_told_of() {
    let backend = Backend::start();
    assert_forwarded(
        Proxy::to(&[&backend]).forwarded(Forwarded::Replace),
        &backend,
        &backend.address.to_string(),
        [b""; 5],
        b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: example.com:81\r\n\
          X-Forwarded-Proto: http\r\n",
    );
}

#[test]
fn with_forwarded_off_and_host_preserve_the_head_goes_on_as_it_came() {
    let backend = Backend::start();
    assert_forwarded(
        Proxy::to(&[&backend]).forwarded(Forwarded::Off).host(HostHeader::Preserve),
        &backend,
        "example.com:81",
        [
            b"X-Forwarded-For: 192.0.2.1\r\n",
            b"X-Forwarded-Proto: https\r\n",
            b"x-forwarded-for: 192.0.2.2, 192.0.2.3\r\n",
            b"X-Forwarded-Host: forged.example\r\n",
            b"Forwarded: for=192.0.2.1\r\n",
        ],
        b"",
    );
}

#[test]
fn a_client_without_a_chain_begins_one() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let handshake = upgrade("x-request-id: 0123456789abcdef\r\n");
    let (_, _, head) = Peer::tunnel_with(proxy.address, &backend, handshake);
    assert_eq!(
        head,
        format!(
            "GET /chat HTTP/1.1\r\nHost: {}\r\nSec-WebSocket-Key: {KEY}\r\n\
             Sec-WebSocket-Version: 13\r\nVia: 1.1 ws-proxy\r\n\
             X-Request-ID: 0123456789abcdef\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Forwarded-For: 127.0.0.1\r\n\
             X-Forwarded-Host: example.com\r\nX-Forwarded-Proto: http\r\n\r\n",
            backend.address
        )
    );
}

// The 101.

/// A client whose handshake awaits its response, and the backend's end.
fn awaiting(proxy: &Proxy, backend: &Backend) -> (Peer, Peer) {
    Peer::handshake(proxy.address, backend, upgrade(""))
}

/// The whole response that the client gets for these bytes of a backend, which then ends its
/// sending.
fn answered(bytes: impl AsRef<[u8]>) -> String {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    server.send(bytes);
    server.end_sending();
    client.read_text_to_end()
}

#[test]
fn the_101_reaches_the_client_as_the_backend_sent_it() {
    let own = format!(
        "Server:x\r\nSet-Cookie: a=b; Path=/\r\nsec-websocket-ACCEPT:\t{ACCEPT}\r\n\
         set-cookie:  c=d \r\n\
         Set-Cookie: a=b; Path=/\r\nX-Empty:\r\n"
    );
    let got = answered(format!(
        "HTTP/1.1 101 Web Socket Here\r\nConnection: keep-alive, upgrade, X-Hop\r\n{own}\
         UPGRADE: WebSocket\r\n\
         Keep-Alive: timeout=5\r\nX-Hop: 1\r\n\r\n"
    ));
    let switch = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(got, format!("HTTP/1.1 101 Web Socket Here\r\n{own}{switch}\r\n"));
}

#[test]
fn frames_glued_to_the_101_come_right_after_it() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    let frames = noise(2, 100_000);
    server.send([switching("").as_bytes(), &frames].concat());
    client.read_head();
    assert!(client.read_exactly(frames.len()) == frames, "the bytes are not the same");
    server.send("more");
    client.expect("more");
}

#[test]
fn a_101_may_come_byte_by_byte() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    server.send_in_pieces(switching("Set-Cookie: a=b\r\n").as_bytes().chunks(1));
    server.send("frame");
    assert!(client.read_head().contains("\r\nSet-Cookie: a=b\r\n"));
    client.expect("frame");
}

#[test]
fn interim_answers_are_skipped() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\n\
                   HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 \r\n\r\n";
    let plain = answered(switching("") + "frame");
    assert!(plain.starts_with("HTTP/1.1 101 ") && plain.ends_with("\r\n\r\nframe"), "{plain}");
    assert_eq!(answered(interim.to_owned() + &switching("") + "frame"), plain);
    let refused = answered(interim.to_owned() + "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(refused, "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

#[test]
fn interim_answers_without_end_get_502() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    // Far from the bound of the head's bytes.
    server.send("HTTP/1.1 100 Continue\r\n\r\n".repeat(200));
    assert_eq!(client.read_refusal().0, 502);
}

// Any other answer.

#[test]
fn a_body_with_a_length_is_passed_on_whole_and_nothing_after_it() {
    let got = answered(
        "HTTP/1.1 403 Not You\r\nServer: x\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\
         set-cookie: c=d\r\n\
         Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n",
    );
    assert_eq!(
        got,
        "HTTP/1.1 403 Not You\r\nServer: x\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\
         set-cookie: c=d\r\n\
         Connection: close\r\n\r\nhello"
    );
}

#[test]
fn a_chunked_body_is_passed_on_whole_with_its_trailers() {
    let chunks =
        "5;name=\"v\"\r\nhello\r\n00c\r\n, \r\nthere!\r\n\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n";
    let head = "HTTP/1.1 500 Broken\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n";
    let got = answered(format!("{head}\r\n{chunks}HTTP/1.1 200 OK\r\n\r\n"));
    assert_eq!(got, format!("{head}Connection: close\r\n\r\n{chunks}"));
}

#[test]
fn a_body_until_close_is_passed_on_whole() {
    let got = answered("HTTP/1.0 404 Not Here\r\nServer: x\r\n\r\nhello\r\n\r\n0\r\n\r\nthere");
    let head = "HTTP/1.1 404 Not Here\r\nServer: x\r\nConnection: close\r\n\r\n";
    assert_eq!(got, format!("{head}hello\r\n\r\n0\r\n\r\nthere"));
}

#[test]
fn an_answer_without_a_body_ends_with_its_head() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for status in table([204, 304]) {
        let (mut client, mut server) = awaiting(&proxy, &backend);
        // The connection stays open: only the status says that there is no body.
        server.send(format!("HTTP/1.1 {status} None\r\nETag: x\r\n\r\n"));
        let expected = format!("HTTP/1.1 {status} None\r\nETag: x\r\nConnection: close\r\n\r\n");
        assert_eq!(client.read_text_to_end(), expected);
        server.expect_eof();
    }
}

#[test]
fn an_answer_may_come_byte_by_byte() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    let head = "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n";
    let body = "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    server.send_in_pieces(format!("{head}\r\n{body}").as_bytes().chunks(1));
    assert_eq!(client.read_text_to_end(), format!("{head}Connection: close\r\n\r\n{body}"));
    server.expect_eof();
}

#[test]
fn a_body_larger_than_all_buffers_is_passed_on_whole() {
    let body = noise(3, LARGE);
    let mut chunks = Vec::new();
    for chunk in body.chunks(77_777) {
        chunks.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
        chunks.extend_from_slice(chunk);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    let rows = table([
        (format!("Content-Length: {LARGE}\r\n"), body.clone()),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunks),
        (String::new(), body),
    ]);
    for (framing, body) in rows {
        let backend = Backend::start();
        let proxy = Proxy::before(&backend);
        let (mut client, mut server) = awaiting(&proxy, &backend);
        let head = format!("HTTP/1.1 500 Large\r\n{framing}\r\n");
        let answer = [head.as_bytes(), &body].concat();
        let sending = thread::spawn(move || {
            server.send(answer);
            server.end_sending();
            server
        });
        let head = client.read_head();
        assert!(head.contains("\r\nConnection: close\r\n") && head.contains(&framing), "{head}");
        assert!(client.read_to_end() == body, "the body is not the same: {framing}");
        sending.join().unwrap().expect_eof();
    }
}

#[test]
fn a_body_that_is_cut_short_reaches_the_client_as_far_as_it_came() {
    for (framing, body) in
        table([("Content-Length: 9", "hello"), ("Transfer-Encoding: chunked", "9\r\nhello")])
    {
        let head = format!("HTTP/1.1 500 Broken\r\n{framing}\r\n");
        let got = answered(format!("{head}\r\n{body}"));
        assert_eq!(got, format!("{head}Connection: close\r\n\r\n{body}"));
    }
}

#[test]
fn a_body_until_close_that_is_not_whole_ends_in_a_reset() {
    let rows = table::<(&str, fn(Peer) -> Option<Peer>), 2>([
        ("the backend resets", |server| {
            server.reset();
            None
        }),
        ("the backend falls silent", Some),
    ]);
    for (framing, body, error) in table([
        ("", "hello", Some(ErrorKind::ConnectionReset)),
        ("Content-Length: 9\r\n", "hello", None),
        ("Transfer-Encoding: chunked\r\n", "9\r\nhello", None),
    ]) {
        for (what, fail) in rows {
            println!("{what} after {framing:?}");
            let backend = Backend::start();
            let proxy = Proxy::start(Proxy::to(&[&backend]).response_timeout_ms(300));
            let (mut client, mut server) = awaiting(&proxy, &backend);
            server.send(format!("HTTP/1.1 403 No\r\n{framing}\r\n{body}"));
            let head = client.read_head();
            assert!(head.starts_with("HTTP/1.1 403 No\r\n"), "{head}");
            client.expect(body);
            let _server = fail(server);
            let mut rest = Vec::new();
            let end = client.stream.read_to_end(&mut rest).map_err(|error| error.kind());
            assert_eq!((end.err(), &*rest), (error, &b""[..]));
        }
    }
}

#[test]
fn a_body_until_close_that_the_drain_cuts_ends_in_a_reset() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    server.send("HTTP/1.1 403 No\r\n\r\nhello");
    client.read_head();
    client.expect("hello");
    drop(proxy);
    let end = client.stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_backend_that_refuses_and_goes_on_writing_is_not_reset() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    server.send("HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\nhello");
    assert!(client.read_text_to_end().ends_with("\r\n\r\nhello"));
    // The proxy has its answer, and is at its end.
    server.send(vec![b'x'; 100_000]);
    server.expect_eof();
    server.send(vec![b'x'; 50_000]);
    server.wait_until_read();
    server.end_sending();
}

#[test]
fn a_backend_with_a_wrong_101_that_goes_on_writing_is_not_reset() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    let wrong = switching("").replace("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x");
    server.send(wrong + &"frames".repeat(1_000));
    assert_eq!(client.read_refusal().0, 502);
    server.expect_eof();
    server.end_sending();
}

#[test]
fn a_backend_that_refuses_gets_an_orderly_end_with_early_bytes_too() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) =
        Peer::handshake(proxy.address, &backend, upgrade("") + &"early".repeat(10_000));
    server.send("HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\nhello");
    assert!(client.read_text_to_end().ends_with("\r\n\r\nhello"));
    server.expect_eof();
}

#[test]
fn a_backend_is_not_reset_if_the_client_goes_away_within_its_refusal() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = awaiting(&proxy, &backend);
    server.send("HTTP/1.1 403 No\r\nContent-Length: 100000\r\n\r\nhello");
    client.read_head();
    client.reset();
    server.expect_eof();
    server.send(vec![b'x'; 100_000]);
    server.wait_until_read();
    server.end_sending();
}

#[test]
fn a_backends_connection_is_never_used_twice() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut first) = awaiting(&proxy, &backend);
    first.send("HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n");
    client.read_text_to_end();
    let (_client, _second) = awaiting(&proxy, &backend);
    first.expect_eof();
}

// Faults.

#[test]
fn a_silent_backend_gets_the_client_504() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).response_timeout_ms(150));
    let (mut client, mut server) = awaiting(&proxy, &backend);
    assert_eq!(client.read_refusal().0, 504);
    server.expect_eof();
}

#[test]
fn the_answer_has_read_timeout_ms_if_nothing_else_is_said() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).read_timeout_ms(300));
    let (mut client, _server) = awaiting(&proxy, &backend);
    assert_eq!(client.read_refusal().0, 504);
}

#[test]
fn the_answer_has_one_deadline_however_it_trickles() {
    for piece in table(["x", "HTTP/1.1 102 Processing\r\n\r\n"]) {
        let backend = Backend::start();
        let proxy = Proxy::start(Proxy::to(&[&backend]).response_timeout_ms(300));
        let (mut client, mut server) = awaiting(&proxy, &backend);
        let trickle = thread::spawn(move || {
            let first = if piece == "x" { "HTTP/1.1 101 " } else { piece };
            server.send(first);
            // Each piece comes well within the time; the final head does not.
            while server.stream.write_all(piece.as_bytes()).is_ok() {
                thread::sleep(Duration::from_millis(50));
            }
        });
        assert_eq!(client.read_refusal().0, 504, "{piece:?}");
        trickle.join().unwrap();
    }
}

#[test]
fn an_answer_that_is_none_gets_the_client_502() {
    let rows = table([
        ("nothing", ""),
        ("half a head", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso"),
        ("half a status line", "HTT"),
        ("a head without its blank line", "HTTP/1.1 403 No\r\nContent-Length: 0\r\n"),
        ("an interim answer and no other", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("an SSH server", "SSH-2.0-OpenSSH_9.9\r\n"),
        ("an SSH server with an empty line", "SSH-2.0-OpenSSH_9.9\r\n\r\n"),
        ("a mail server", "220 mail.example ESMTP\r\n\r\n"),
        ("a TLS alert", "\x15\x03\x03\x00\x02\x02\x28"),
        ("HTTP/2", "\0\0\x12\x04\0\0\0\0\0"),
        ("HTTP/0.9", "<html>\r\n\r\n"),
        ("a status of two digits", "HTTP/1.1 10 x\r\n\r\n"),
        ("a status that HTTP does not know", "HTTP/1.1 999 x\r\n\r\n"),
    ]);
    for (what, answer) in rows {
        let backend = Backend::start();
        let proxy = Proxy::before(&backend);
        let (mut client, mut server) = awaiting(&proxy, &backend);
        server.send(answer);
        server.end_sending();
        assert_eq!(client.read_refusal().0, 502, "{what}");
    }
}

#[test]
fn a_backend_that_resets_gets_the_client_502() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for sent_before in table(["", "HTTP/1.1 101 Switch"]) {
        let (mut client, mut server) = awaiting(&proxy, &backend);
        server.send(sent_before);
        server.reset();
        assert_eq!(client.read_refusal().0, 502, "after {sent_before:?}");
    }
}

#[test]
fn a_head_of_64_kib_passes() {
    let without = switching("X-Pad: \r\n").len();
    let head = switching(&format!("X-Pad: {}\r\n", "x".repeat(MOST - without)));
    assert_eq!(head.len(), MOST);
    assert!(answered(head).starts_with("HTTP/1.1 101 "));
}

#[test]
fn an_endless_head_gets_the_client_502() {
    let many = "X-Pad: x\r\n".repeat(2 * MOST / 10);
    let rows = table([
        format!("HTTP/1.1 101 {}", "x".repeat(2 * MOST)),
        format!("HTTP/1.1 101 Switching Protocols\r\n{many}"),
        format!("HTTP/1.1 403 {}", "x".repeat(2 * MOST)),
        // Each is short enough, but they are one answer.
        format!("HTTP/1.1 103 Early Hints\r\nX-Pad: {}\r\n\r\n", "x".repeat(MOST / 2)).repeat(3),
    ]);
    for endless in rows {
        let backend = Backend::start();
        let proxy = Proxy::before(&backend);
        let (mut client, mut server) = awaiting(&proxy, &backend);
        // The proxy need not read all of it.
        let _ = server.stream.write_all(endless.as_bytes());
        assert_eq!(client.read_refusal().0, 502, "{}", &endless[..40]);
    }
}

// The hint.

#[test]
fn a_refused_origin_brings_the_hint_to_preserve_host_once_per_section() {
    let backend = Backend::start();
    let named = |name: &str| format!("{}name = \"{name}\"\n", section(backend.address));
    let config = named("one") + &named("two") + &named("three") + "host = \"preserve\"\n";
    let mut program = Program::with_config(&config);
    let mut address_of = |name: &str| {
        let listening = format!("event=listening section={name} ");
        let line = match program.seen.iter().find(|line| line.contains(&listening)) {
            Some(line) => line.clone(),
            None => program.wait_for(&listening),
        };
        value(&line, "address").parse().unwrap()
    };
    let addresses: [SocketAddr; 3] = ["one", "two", "three"].map(&mut address_of);

    let origin = "Origin: https://app.example.com\r\n";
    let mut refuse = |address, fields: &str, status: u16| {
        let (mut client, mut server) = Peer::handshake(address, &backend, upgrade(fields));
        server.send(format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n"));
        client.read_text_to_end();
        drop((client, server));
        program.wait_for("event=refused");
        program.seen.iter().filter(|line| line.contains("event=hint")).count()
    };
    // Neither without an Origin, nor with another status, nor where the Host is preserved already.
    assert_eq!(refuse(addresses[0], "", 403), 0);
    assert_eq!(refuse(addresses[0], origin, 401), 0);
    assert_eq!(refuse(addresses[2], origin, 403), 0);
    // And once in each section where it is not.
    assert_eq!(refuse(addresses[0], origin, 403), 1);
    assert_eq!(refuse(addresses[0], origin, 404), 1);
    assert_eq!(refuse(addresses[1], origin, 404), 2);
    assert_eq!(refuse(addresses[1], origin, 403), 2);

    program.signal(Signal::TERM);
    program.wait();
    let hints: Vec<String> =
        program.rest_of_log().into_iter().filter(|line| line.contains("event=hint")).collect();
    assert_eq!(hints.len(), 2, "{hints:#?}");
    for (hint, section) in hints.iter().zip(["one", "two"]) {
        assert_eq!(value(hint, "section"), section);
        assert!(hint.contains("host = \\\"preserve\\\""), "{hint}");
    }
}

mod retries {
    use super::*;

    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

    fn proxy(backends: &[&Backend], retry_on: &[&str]) -> Proxy {
        Proxy::start(Proxy::to(backends).retry_on(retry_on.iter().copied()))
    }

    #[test]
    fn after_such_an_answer_the_next_backend_is_asked_once() {
        for (answer, retry_on) in table([
            (BUSY, "503"),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "bad_answer"),
            ("no HTTP\r\n\r\n", "bad_answer"),
        ]) {
            let backends = [Backend::start(), Backend::start(), Backend::start()];
            let all = [&backends[0], &backends[1], &backends[2]];
            let proxy = proxy(&all, &["500", retry_on]);
            let mut client = Peer::sending(proxy.address, upgrade(""));
            let mut first = backends[0].accept();
            let head = first.read_head();
            first.send(answer);
            // It gets the same head, and the first one an orderly end.
            let mut second = backends[1].accept();
            assert_eq!(
                second.read_head().replace(&backends[1].address.to_string(), ""),
                head.replace(&backends[0].address.to_string(), "")
            );
            second.send(switching(""));
            assert!(client.read_head().starts_with("HTTP/1.1 101 "));
            first.expect_eof();
            assert_alive(&mut client, &mut second);
            // A second such answer counts. Further tries go to all others in turn.
            let mut client = Peer::sending(proxy.address, upgrade(""));
            for backend in [&backends[1], &backends[0]] {
                let mut peer = backend.accept();
                peer.read_head();
                peer.send(answer);
                peer.end_sending();
            }
            let expected = if retry_on == "503" { 503 } else { 502 };
            assert_eq!(read_answer(&mut client).0, expected);
            assert!(!backends[2].has_waiting());
        }
    }

    #[test]
    fn without_another_backend_the_first_answer_counts() {
        for others in table([0, 1]) {
            let (backend, refusing) = (Backend::start(), Backend::refusing());
            let all = [&backend, &refusing];
            let proxy = proxy(&all[..=others], &["503"]);
            let mut client = Peer::sending(proxy.address, upgrade(""));
            let mut peer = backend.accept();
            peer.read_head();
            peer.send(BUSY);
            let (status, body) = read_answer(&mut client);
            assert_eq!((status, &*body), (503, "busy"));
        }
    }

    #[test]
    fn other_answers_are_final() {
        let backends = [Backend::start(), Backend::start()];
        let proxy = proxy(&[&backends[0], &backends[1]], &["502"]);
        let mut client = Peer::sending(proxy.address, upgrade(""));
        let mut peer = backends[0].accept();
        peer.read_head();
        peer.send(BUSY);
        assert_eq!(read_answer(&mut client).0, 503);
        assert!(!backends[1].has_waiting());
    }

    /// Reads an answer of a backend up to the end; returns its status and its body.
    fn read_answer(client: &mut Peer) -> (u16, String) {
        let text = client.read_text_to_end();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }
}
