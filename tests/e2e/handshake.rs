//! The handshake of a client: spellings that pass, faults that are refused, refusals that arrive.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use tungstenite::handshake::derive_accept_key;
use ws_proxy::HostHeader;

use crate::support::{
    ACCEPT, Backend, KEY, Peer, Program, Proxy, has_been_read, is_dialled, noise, section,
    switching, table, upgrade, upgrade_but, wait_until,
};

/// Most bytes of a head, its blank line included.
const MOST: usize = 8_192;
/// Time for which nothing must come where nothing may come.
const SILENCE: Duration = Duration::from_millis(50);
/// More than the buffers of the kernel and the proxy hold together.
const PLENTY: usize = 16 * 1024 * 1024;

#[test]
fn an_upgrade_passes_and_the_backends_own_101_comes_back() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);

    let mut client = Peer::sending(proxy.address, upgrade("X-Mine: 1\r\n"));
    let mut server = backend.accept();
    let head = server.read_head();
    assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nHost: {}\r\n", backend.address)), "{head}");
    assert!(head.contains("\r\nX-Mine: 1\r\n"), "{head}");

    server.send(switching("Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n"));
    let answer = client.read_head();
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.contains("\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n"), "{answer}");

    client.send("from the client");
    server.expect("from the client");
    server.send("from the backend");
    client.expect("from the backend");
}

// The deadline for the head.

#[test]
fn a_head_that_does_not_come_in_time_gets_408_however_it_trickles() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).read_timeout_ms(300));
    let mut client = Peer::sending(proxy.address, "GET / HT");
    let mut trickling = client.clone_handle();
    let trickle = thread::spawn(move || {
        // Each byte comes well within the time; the whole head does not.
        while trickling.stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let answer = client.read_head();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    client.stream.shutdown(Shutdown::Both).unwrap();
    trickle.join().unwrap();
}

#[test]
fn the_408_is_complete_and_comes_after_one_byte_too() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).read_timeout_ms(100));
    let (status, _) = Peer::sending(proxy.address, "G").read_refusal();
    assert_eq!(status, 408);
    assert!(!backend.has_waiting());
}

#[test]
fn a_client_that_sends_nothing_is_just_closed_at_the_deadline() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).read_timeout_ms(150));
    let begin = Instant::now();
    let mut client = Peer::connect(proxy.address);
    client.expect_eof();
    assert!(begin.elapsed() >= Duration::from_millis(150), "{:?}", begin.elapsed());
}

// The bounds of the head, and its pieces.

/// A good handshake of this length.
fn upgrade_of(len: usize) -> String {
    let without = upgrade("X-Pad: \r\n").len();
    upgrade(&format!("X-Pad: {}\r\n", "x".repeat(len - without)))
}

#[test]
fn a_head_of_8192_bytes_passes() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let handshake = upgrade_of(MOST);
    assert_eq!(handshake.len(), MOST);
    Peer::tunnel_with(proxy.address, &backend, handshake);
}

#[test]
fn a_head_of_8193_bytes_gets_431() {
    let handshake = upgrade_of(MOST + 1);
    assert_eq!(handshake.len(), MOST + 1);
    assert_eq!(refusal(handshake).0, 431);
}

#[test]
fn a_head_without_an_end_gets_431_without_waiting_for_more() {
    assert_eq!(refusal(&upgrade_of(MOST + 2)[..MOST]).0, 431);
}

#[test]
fn a_request_line_that_is_too_long_alone_gets_414() {
    let target = "a".repeat(MOST);
    assert_eq!(refusal(upgrade_but("/chat", &format!("/{target}"))).0, 414);
    // It is not even waited for the end of the line.
    assert_eq!(refusal(&format!("GET /{target}")[..MOST]).0, 414);
}

#[test]
fn the_longest_request_line_passes() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let target = format!("/{}", "a".repeat(MOST + 4 - upgrade("").len()));
    let handshake = upgrade_but("/chat", &target);
    assert_eq!(handshake.len(), MOST);
    let (_, _, head) = Peer::tunnel_with(proxy.address, &backend, handshake);
    assert!(head.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{head}");
}

#[test]
fn refusals_reach_a_client_that_goes_on_sending() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let rows = table([
        ("431", upgrade_of(MOST + 1)),
        ("414", format!("GET /{}", "a".repeat(MOST))),
        ("400", "GET / HTTP/1.1\n".to_owned()),
        ("400", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 150000\r\n\r\n".to_owned()),
        ("405", upgrade_but("GET", "POST")),
    ]);
    for (status, head) in rows {
        let mut client = Peer::sending(proxy.address, &head);
        client.send(vec![b'x'; 75_000]);
        let answer = client.read_head();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        client.send(vec![b'x'; 75_000]);
        // An orderly end: a reset could have overtaken the answer.
        let body = client.read_text_to_end();
        assert!(
            answer.contains(&format!("\r\nContent-Length: {}\r\n", body.len())),
            "{answer}{body}"
        );
    }
}

#[test]
fn a_refused_client_that_never_stops_sending_is_cut_off() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut client = Peer::sending(proxy.address, "GET / HTTP/1.0\r\n\r\n");
    let chunk = [b'x'; 16 * 1024];
    let error = loop {
        if let Err(error) = client.stream.write_all(&chunk) {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

#[test]
fn four_hundred_tiny_fields_pass() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let tiny = "a: b\r\n".repeat(400);
    let (_, _, head) = Peer::tunnel_with(proxy.address, &backend, upgrade(&tiny));
    assert!(head.contains(&tiny), "{head}");
}

#[test]
fn a_head_may_come_in_two_pieces_split_anywhere() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let handshake = upgrade("X-Mine: 1\r\nX-Request-ID: 0123456789abcdef\r\n");
    let (_, _, whole) = Peer::tunnel_with(proxy.address, &backend, &handshake);
    for at in 1..handshake.len() {
        let (first, second) = handshake.as_bytes().split_at(at);
        let mut client = Peer::sending(proxy.address, first);
        client.wait_until_read();
        assert!(!backend.has_waiting(), "a backend heard of {at} bytes");
        client.send(second);
        let (_server, head) = backend.accept_tunnel();
        assert_eq!(head, whole, "split at {at}");
        let answer = client.read_head();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    }
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut client = Peer::connect(proxy.address);
    client.send_in_pieces(upgrade("").as_bytes().chunks(1));
    backend.accept_tunnel();
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
}

#[test]
fn a_large_head_may_come_in_large_pieces() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for size in table([1_000, 1_024, 3_000, 4_096, MOST - 1]) {
        let mut client = Peer::connect(proxy.address);
        client.send_in_pieces(upgrade_of(MOST).as_bytes().chunks(size));
        backend.accept_tunnel();
        assert!(client.read_head().starts_with("HTTP/1.1 101 "), "pieces of {size}");
    }
}

#[test]
fn an_empty_line_before_the_head_is_ignored() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (_, _, head) = Peer::tunnel_with(proxy.address, &backend, format!("\r\n{}", upgrade("")));
    assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
}

/// Lines of [`upgrade`].
const CONNECTION: &str = "Connection: Upgrade\r\n";
const UPGRADE: &str = "Upgrade: websocket\r\n";

// Accepted handshakes.

#[test]
fn every_spelling_of_an_upgrade_is_accepted() {
    const HOST: &str = "Host: example.com";
    let rows = table([
        (CONNECTION, "Connection: keep-alive, Upgrade\r\n"),
        (CONNECTION, "connection:UPGRADE\r\n"),
        (CONNECTION, "CONNECTION: \t upGrade \t \r\n"),
        (CONNECTION, "Connection: ,, ,upgrade,,\r\n"),
        (CONNECTION, "Connection: keep-alive\r\nX-Between: 1\r\nConnection: upgrade\r\n"),
        (CONNECTION, "Connection:\r\nConnection: a,b ,\tupgrade\r\n"),
        (UPGRADE, "UPGRADE: WebSocket\r\n"),
        (UPGRADE, "Upgrade: h2c, WEBSOCKET\r\n"),
        (UPGRADE, "Upgrade: h2c\r\nUpgrade: , websocket ,\r\n"),
        ("Sec-WebSocket-Key: ", "sec-websocket-KEY:"),
        ("Sec-WebSocket-Version: 13", "SEC-WEBSOCKET-VERSION:13\t"),
        (HOST, "host:\texample.com:81 "),
        (HOST, "Host: [::1]:8080"),
        (HOST, "Host: example.com\r\nContent-Length: 0"),
        (HOST, "Host: example.com\r\nX-Empty:"),
        ("/chat", "/"),
        ("/chat", "/chat?token=a%20b&c=d/e?f"),
    ]);
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for (part, by) in rows {
        println!("{by:?}");
        Peer::tunnel_with(proxy.address, &backend, upgrade_but(part, by));
    }
}

// Refused handshakes.

/// The status and the whole of the answer to these bytes, which no backend must hear of.
fn refusal(bytes: impl AsRef<[u8]>) -> (u16, String) {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut client = Peer::sending(proxy.address, bytes);
    let refusal = client.read_refusal();
    assert!(!backend.has_waiting(), "a backend heard of it");
    refusal
}

#[test]
fn plain_requests_are_refused_with_a_reason() {
    let (status, answer) = refusal("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(status, 400);
    assert!(answer.contains("WebSocket"), "{answer}");
}

#[test]
fn everything_else_is_refused_before_a_backend_hears_of_it() {
    const KEY_NAME: &str = "Sec-WebSocket-Key: ";
    let rows = table([
        // Not an upgrade.
        (400, CONNECTION, ""),
        (400, CONNECTION, "Connection: keep-alive\r\n"),
        (400, CONNECTION, "Connection: not-upgrade, upgraded\r\n"),
        (400, CONNECTION, "Connection: \"upgrade\"\r\n"),
        (400, UPGRADE, ""),
        (400, UPGRADE, "Upgrade: h2c\r\n"),
        (400, UPGRADE, "Upgrade: websockets, web socket\r\n"),
        // The key.
        (400, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
        (400, KEY, ""),
        (400, KEY, "two tokens"),
        (400, KEY, "two,tokens"),
        (400, KEY, "gr\u{fc}n"),
        (400, KEY_NAME, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-key: "),
        // The version.
        (400, "Sec-WebSocket-Version: 13\r\n", ""),
        (426, "Version: 13", "Version: 12"),
        (426, "Version: 13", "Version: 130"),
        (426, "Version: 13", "Version: 013"),
        (400, "Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13"),
        // The method.
        (405, "GET", "POST"),
        (405, "GET", "get"),
        (400, "GET", "G(T"),
        (400, "GET ", ""),
        // The version of HTTP.
        (400, "HTTP/1.1", "HTTP/1.0"),
        (400, "HTTP/1.1", "HTTP/2.0"),
        (400, "HTTP/1.1", "HTTP/1.10"),
        (400, "HTTP/1.1", "http/1.1"),
        (400, " HTTP/1.1", ""),
        (400, "/chat HTTP/1.1", "/chat  HTTP/1.1"),
        (400, "/chat HTTP/1.1", "/chat\tHTTP/1.1"),
        (400, "GET /chat", "GET  /chat"),
        (400, "HTTP/1.1", "HTTP/1.1 "),
        // The target.
        (400, "/chat", "chat"),
        (400, "/chat", "*"),
        (400, "/chat", "/chat#part"),
        (400, "/chat", "/ch at"),
        (400, "/chat", "/gr\u{fc} n"),
        (400, "/chat", "example.com:80"),
        (400, "/chat", "file:///chat"),
        (400, "/chat", "http:///chat"),
        // The Host.
        (400, "Host: example.com\r\n", ""),
        (400, "example.com", ""),
        (400, "example.com", "a b"),
        (400, "example.com", "a/b"),
        (400, "example.com", "user@a"),
        (400, "example.com", "a:b"),
        (400, "example.com", "a:65536"),
        (400, "example.com", "[::1"),
        (400, "example.com", "gr\u{fc}n.example"),
        // The names of fields.
        (400, CONNECTION, "Connection: Upgrade\r\n: no name\r\n"),
        (400, CONNECTION, "Connection: Upgrade\r\nno colon\r\n"),
        (400, CONNECTION, "Connection: Upgrade\r\nX[bad]: 1\r\n"),
        (400, CONNECTION, "Connection: Upgrade\r\nX-Gr\u{fc}n: 1\r\n"),
    ]);
    for (expected, part, by) in rows {
        println!("{by:?} for {part:?}");
        let (status, answer) = refusal(upgrade_but(part, by));
        assert_eq!(status, expected, "{answer}");
    }
}

#[test]
fn what_programs_in_use_send_is_refused_only_where_handshakes_are_strict() {
    let backend = Backend::start();
    let lenient = Proxy::before(&backend);
    let strict = Proxy::start(Proxy::to(&[&backend]).strict_handshake(true));
    let preserving = Proxy::start(Proxy::to(&[&backend]).host(HostHeader::Preserve));
    let rows = table([
        (KEY, "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="),
        (KEY, "MTIzNDU2Nzg5MDEyMzQ1"),
        (KEY, "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0"),
        (KEY, "dGhlIHNhbXBsZSBub25j*Q=="),
        ("example.com", "::1"),
        ("example.com", "[fe80::1%25eth0]:80"),
        ("/chat", "/gr\u{fc}n?\u{65e5}"),
    ]);
    for (part, by) in rows {
        println!("{by:?} for {part:?}");
        let head = upgrade_but(part, by);
        let (status, answer) = Peer::sending(strict.address, &head).read_refusal();
        assert_eq!(status, 400, "{answer}");
        // The bytes go on as they came; the accept belongs to whatever key it is.
        let (mut client, mut server) = (Peer::sending(lenient.address, &head), backend.accept());
        let got = server.read_head();
        let is_host = part == "example.com";
        let expected = if is_host { format!("X-Forwarded-Host: {by}\r\n") } else { by.to_owned() };
        assert!(got.contains(&expected), "{got}");
        let key = if part == KEY { by } else { KEY };
        server.send(switching("").replace(ACCEPT, &derive_accept_key(key.as_bytes())));
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        if is_host {
            let (status, answer) = Peer::sending(preserving.address, &head).read_refusal();
            assert_eq!(status, 400, "{answer}");
        }
    }
    // Whatever the key, the accept has to belong to it.
    let head = upgrade_but(KEY, "MTIzNDU2Nzg5MDEyMzQ1");
    let (mut client, mut server) = Peer::handshake(lenient.address, &backend, &head);
    server.send(switching(""));
    assert_eq!(client.read_refusal().0, 502);
}

#[test]
fn the_answer_to_a_head_has_no_body() {
    let longest = format!("HEAD /{} HTTP/1.1\r\n", "a".repeat(9_000));
    let rows = table([
        ("405", upgrade_but("GET", "HEAD")),
        ("400", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("400", "HEAD / HTTP/1.0\r\n\r\n".to_owned()),
        ("400", "HEAD / HTTP/1.1\r\nno colon\r\n\r\n".to_owned()),
        ("400", "HEAD / HTTP/1.1\n".to_owned()),
        ("414", longest),
    ]);
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for (status, request) in rows {
        let answer = Peer::sending(proxy.address, &request).read_text_to_end();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{request:?}: {answer}");
        assert_eq!(answer.matches("\r\n\r\n").count(), 1, "{answer}");
        assert!(answer.contains("\r\nContent-Length: "), "{answer}");
    }
}

#[test]
fn a_head_may_be_as_long_as_the_section_allows() {
    let backend = Backend::start();
    for max in table([256, 65_536, 1_048_576]) {
        let proxy = Proxy::start(Proxy::to(&[&backend]).max_head_bytes(max as u64));
        let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade_of(max));
        server.send(switching(""));
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        let (status, answer) = Peer::sending(proxy.address, upgrade_of(max + 1)).read_refusal();
        assert_eq!(status, 431);
        assert!(answer.contains(&format!("{max} bytes")), "{answer}");
        assert!(answer.contains("max_head_bytes"), "{answer}");
    }
    let fields: String = (0..3_000).map(|number| format!("X-{number}: y\r\n")).collect();
    let proxy = Proxy::start(Proxy::to(&[&backend]).max_head_bytes(1 << 20));
    let (status, answer) = Peer::sending(proxy.address, upgrade(&fields)).read_refusal();
    assert_eq!(status, 431);
    assert!(answer.contains("2048 fields"), "{answer}");
}

#[test]
fn listeners_that_lead_to_each_other_answer_508_and_keep_their_descriptors() {
    // Of two processes neither configuration shows the circle.
    let (one, other) = (free_address(), free_address());
    let config =
        |bind, backend| format!("[[ws_proxy]]\nbind = \"{bind}\"\nbackends = [\"{backend}\"]\n");
    let mut programs =
        [Program::with_config(&config(one, other)), { Program::with_config(&config(other, one)) }];
    let addresses = [programs[0].address(), programs[1].address()];
    let idle = [programs[0].connections(), programs[1].connections()];
    let (status, answer) = Peer::sending(addresses[0], upgrade("")).read_refusal();
    assert_eq!(status, 508);
    assert!(answer.contains("backends"), "{answer}");
    // Five times through either, and the sixth is the first one again.
    let line = programs[1].wait_for(" reason=loop ");
    assert!(line.contains(" status=508 "), "{line}");
    for (program, idle) in programs.iter().zip(idle) {
        program.wait_for_connections(idle);
    }
}

/// An address that nobody listens on at the moment.
fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn refusals_tell_what_to_change() {
    let rows = table([
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", "proxy_http_version 1.1"),
        ("GET / HTTP/1.1\nHost: a\n\n", "CRLF"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "proxy_set_header Upgrade"),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", "proxy_set_header"),
    ]);
    let backend = Backend::start();
    let mut program = Program::with_config(&section(backend.address));
    let address = program.address();
    for (request, mend) in rows {
        let (status, answer) = Peer::sending(address, request).read_refusal();
        assert_eq!(status, 400);
        assert!(answer.contains(mend), "{answer}");
        let line = program.wait_for("event=refused");
        assert!(line.contains(mend), "{line}");
    }
}

#[test]
fn what_is_not_even_http_is_refused() {
    let rows: [&[u8]; 4] = table([
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n",
        b"\0",
        b"SSH-2.0-x\r\n\r\n",
    ]);
    for bytes in rows {
        assert_eq!(refusal(bytes).0, 400, "{}", bytes.escape_ascii());
    }
}

#[test]
fn half_a_head_and_then_the_clients_end_gets_400() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut client = Peer::sending(proxy.address, &upgrade("")[..40]);
    client.end_sending();
    assert_eq!(client.read_refusal().0, 400);
    assert!(!backend.has_waiting());
}

#[test]
fn the_426_names_version_13_and_what_to_upgrade_to() {
    let (status, answer) = refusal(upgrade_but("Version: 13", "Version: 8"));
    assert_eq!(status, 426);
    for line in ["Sec-WebSocket-Version: 13", "Upgrade: websocket", "Connection: Upgrade"] {
        assert!(answer.contains(&format!("\r\n{line}\r\n")), "{answer}");
    }
}

#[test]
fn the_405_names_get() {
    let (status, answer) = refusal(upgrade_but("GET", "POST"));
    assert_eq!(status, 405);
    assert!(answer.contains("\r\nAllow: GET\r\n"), "{answer}");
}

// Origins.

/// Header lines for this origin, or for none.
fn origin(origin: &str) -> String {
    if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") }
}

/// Asserts what a section with this list does with these origins; "" is for no origin.
fn assert_origins(listed: &[&str], passing: &[&str], refused: &[&str]) {
    assert!(!passing.is_empty() && !refused.is_empty());
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).origins(listed.iter().copied()));
    for one in passing {
        println!("{one:?} passes {listed:?}");
        let (_, _, head) = Peer::tunnel_with(proxy.address, &backend, upgrade(&origin(one)));
        assert!(head.contains(&origin(one)), "{head}");
    }
    for one in refused {
        let (status, answer) = Peer::sending(proxy.address, upgrade(&origin(one))).read_refusal();
        assert_eq!(status, 403, "{one:?} with {listed:?}: {answer}");
        assert!(!backend.has_waiting(), "a backend heard of {one:?}");
    }
}

#[test]
fn only_listed_origins_pass() {
    assert_origins(
        &["https://app.example.com"],
        &["https://app.example.com", "https://app.example.com:443", "HTTPS://APP.example.com"],
        &[
            "",
            "null",
            "http://app.example.com",
            "https://app.example.com:444",
            "https://app.example.com.evil.net",
            "https://evil.net/https://app.example.com",
            "https://x.app.example.com",
            "app.example.com",
        ],
    );
}

#[test]
fn a_wildcard_is_for_all_hosts_below_a_domain() {
    assert_origins(
        &["https://*.example.com"],
        &["https://a.example.com", "https://a.b.example.com"],
        &[
            "",
            "https://example.com",
            "https://evilexample.com",
            "http://a.example.com",
            "https://.example.com",
        ],
    );
}

#[test]
fn a_missing_origin_passes_if_none_is_listed() {
    assert_origins(
        &["https://app.example.com", "none"],
        &["", "https://app.example.com"],
        &["none", "null"],
    );
}

#[test]
fn without_a_list_every_origin_passes() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    Peer::tunnel_with(proxy.address, &backend, upgrade("Origin: https://anyone.example\r\n"));
}

#[test]
fn two_origins_are_malformed() {
    let two = upgrade("Origin: https://a.example\r\nOrigin: https://a.example\r\n");
    assert_eq!(refusal(two).0, 400);
}

// Early bytes.

#[test]
fn bytes_sent_with_the_head_wait_for_the_101() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade("") + "early");
    server.expect_silence(SILENCE);
    server.send(switching(""));
    server.expect("early");
    client.send(" late");
    server.expect(" late");
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    client.end_sending();
    server.expect_eof();
}

#[test]
fn bytes_sent_after_the_head_wait_for_the_101() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade("") + "one");
    client.send(" two");
    client.send(" three");
    server.expect_silence(SILENCE);
    server.send("HTTP/1.1 100 Continue\r\n\r\n");
    server.wait_until_read();
    server.expect_silence(SILENCE);
    server.send(switching(""));
    server.expect("one two three");
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    client.end_sending();
    server.expect_eof();
}

#[test]
fn bytes_split_anywhere_between_the_head_and_after_keep_their_order() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    // Around the steps in which a head is read, where a read that fills its room leaves more.
    let request = [upgrade("").as_bytes(), &noise(1, 3_000)].concat();
    let (head, _) = request.split_at(upgrade("").len());
    for at in (head.len()..request.len()).step_by(97).chain([1_023, 1_024, 1_025, 2_048]) {
        let (mut client, mut server) = Peer::handshake(proxy.address, &backend, &request[..at]);
        client.send(&request[at..]);
        server.send(switching(""));
        assert!(server.receives(&request[head.len()..]), "split at {at}");
    }
}

#[test]
fn early_bytes_are_bounded_and_none_is_lost() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let bytes = noise(1, PLENTY);
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(""));
    let taken = client.offer(&bytes);
    assert!((64 * 1024..PLENTY).contains(&taken), "{taken} bytes were taken");
    server.expect_silence(SILENCE);

    server.send(switching(""));
    let rest = bytes[taken..].to_vec();
    let sending = thread::spawn(move || {
        client.read_head();
        client.send(rest);
        client.end_sending();
        client
    });
    assert!(server.read_to_end() == bytes, "the bytes are not the same");
    sending.join().unwrap();
}

#[test]
fn the_proxy_reads_nothing_of_a_client_while_the_backend_thinks() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(""));
    client.send("early");
    server.expect_silence(SILENCE);
    let (from, to) = (client.stream.local_addr().unwrap(), client.stream.peer_addr().unwrap());
    assert!(!has_been_read(from, to), "early bytes were read");
}

// A client that goes away.

/// A way in which a client goes away, and what is left of the client then.
type Leave = fn(Peer) -> Option<Peer>;

/// Ways in which a client goes away, whatever it has sent before.
fn ways_to_leave() -> [(&'static str, Leave); 3] {
    table::<(&str, Leave), 3>([
        ("it resets", |client| {
            client.reset();
            None
        }),
        ("it closes", |client| {
            drop(client);
            None
        }),
        ("it ends its sending", |mut client| {
            client.end_sending();
            Some(client)
        }),
    ])
}

#[test]
fn a_client_that_leaves_while_the_backend_thinks_ends_the_attempt() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    // More than one read of the proxy's takes, and less than the kernel does.
    for early in table([0, 1, 70_000]) {
        for (way, leave) in ways_to_leave() {
            println!("{way} after {early} early bytes");
            let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(""));
            client.send(vec![0; early]);
            server.expect_silence(Duration::from_millis(5));
            let client = leave(client);
            server.expect_eof();
            // Nobody is told what it does not wait for.
            if let Some(mut client) = client {
                client.expect_end();
            }
        }
    }
}

#[test]
fn a_client_that_resets_with_its_early_bytes_unread_ends_the_attempt() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(""));
    assert!(client.offer(&vec![0; PLENTY]) < PLENTY);
    server.expect_silence(SILENCE);
    client.reset();
    server.expect_end();
}

#[test]
fn a_client_that_leaves_while_the_backend_is_dialled_ends_the_attempt() {
    let full = Backend::full();
    let proxy = Proxy::start(Proxy::to(&[&full]).connect_timeout_ms(60_000));
    for (way, leave) in ways_to_leave() {
        println!("{way}");
        let client = Peer::sending(proxy.address, upgrade("") + "early");
        wait_until("the backend is dialled", || is_dialled(full.address));
        let _client = leave(client);
        wait_until("the backend is dialled no more", || !is_dialled(full.address));
    }
}

#[test]
fn a_client_that_ends_right_after_its_head_is_gone_before_a_backend_hears_of_it() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for _ in 0..20 {
        // The proxy finds both as one, however fast it is.
        let mut client = Peer::connect(proxy.address);
        let both = upgrade("") + "early";
        send_with_end(&client, both.as_bytes());
        client.expect_end();
    }
    // The dial may have begun; no head was sent.
    while let Some(mut server) = backend.has_waiting().then(|| backend.accept()) {
        server.expect_eof();
    }
}

/// Sends bytes and the end of the sending in one segment.
fn send_with_end(client: &Peer, bytes: &[u8]) {
    // What is held back goes out with the end (tcp(7), TCP_CORK).
    sockopt::set_tcp_cork(&client.stream, true).unwrap();
    (&client.stream).write_all(bytes).unwrap();
    client.stream.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn urgent_data_is_no_end() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(""));
    rustix::net::send(&client.stream, b"!", rustix::net::SendFlags::OOB).unwrap();
    server.expect_silence(SILENCE);
    server.send(switching(""));
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    client.send("after it");
    server.expect("after it");
}

#[test]
fn a_client_that_ends_its_sending_within_a_refusal_gets_all_of_it() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(""));
    server.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\n");
    assert!(client.read_head().starts_with("HTTP/1.1 403 "));
    client.end_sending();
    server.expect_silence(SILENCE);
    server.send("no\n");
    assert_eq!(client.read_text_to_end(), "no\n");
}

// The limit.

#[test]
fn the_connection_too_many_gets_503_with_retry_after() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).max_connections(2));
    let _tunnel = Peer::tunnel(proxy.address, &backend);
    // A handshake counts from its first moment.
    let _silent = Peer::connect(proxy.address);
    let mut third = Peer::sending(proxy.address, upgrade(""));
    let (status, answer) = third.read_refusal();
    assert_eq!(status, 503);
    assert!(answer.contains("\r\nRetry-After: "), "{answer}");
    assert!(!backend.has_waiting(), "a backend heard of it");
}

#[test]
fn a_place_that_becomes_free_is_usable_again() {
    const BAD: &str = "GET / HTTP/1.0\r\n\r\n";
    let occupants = table::<(&str, fn(&Proxy, &Backend)), 4>([
        ("a tunnel", |proxy, backend| drop(Peer::tunnel(proxy.address, backend))),
        ("a silent client", |proxy, _| drop(Peer::connect(proxy.address))),
        ("a refused client", |proxy, _| drop(Peer::sending(proxy.address, BAD).read_refusal())),
        ("a client that resets", |proxy, backend| {
            let client = Peer::sending(proxy.address, upgrade(""));
            backend.accept();
            client.reset();
        }),
    ]);
    for (occupant, come_and_go) in occupants {
        let backend = Backend::start();
        let proxy = Proxy::start(Proxy::to(&[&backend]).max_connections(1));
        come_and_go(&proxy, &backend);
        // A moment after its end; only the response to the next one shows it.
        wait_until(&format!("the place of {occupant} is free"), || {
            Peer::sending(proxy.address, BAD).read_refusal().0 == 400
        });
    }
}
