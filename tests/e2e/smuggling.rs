//! Request and response smuggling: no message passes that two parsers could read differently.

use ws_proxy::{Forwarded, HostHeader};

use rustix::process::Signal;

use crate::support::{
    ACCEPT, Backend, Peer, Program, Proxy, assert_alive, section, switching, table, upgrade,
    upgrade_but,
};

/// Bytes that an attacker would like the backend to take for a request of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: example.com\r\n\r\n";

// Requests that two parsers could read differently.

#[test]
fn a_head_that_two_parsers_could_read_differently_gets_400() {
    const HOST: &str = "Host: example.com\r\n";
    let rows = table([
        ("bare LF after the request line", "HTTP/1.1\r\n", "HTTP/1.1\n"),
        ("bare LF after a field", HOST, "Host: example.com\n"),
        ("bare LF in a value", HOST, "Host: example.com\r\nX-A: 1\nX-B: 2\r\n"),
        ("bare LF before the head", "GET", "\nGET"),
        ("bare LF as blank line", "13\r\n\r\n", "13\r\n\n"),
        ("only bare LFs at the end", "13\r\n\r\n", "13\n\n"),
        ("bare CR in a value", HOST, "Host: example.com\r\nX-A: 1\rX-B: 2\r\n"),
        ("bare CR after a field", HOST, "Host: example.com\r"),
        ("bare CR in the request line", "/chat", "/chat\r"),
        ("two CRs", HOST, "Host: example.com\r\r\n"),
        ("obs-fold with a blank", HOST, "Host: example.com\r\nX-A: 1\r\n 2\r\n"),
        ("obs-fold with a tab", HOST, "Host: example.com\r\nX-A: 1\r\n\t2\r\n"),
        ("obs-fold after the request line", HOST, " Host: example.com\r\n"),
        ("obs-fold before the end", "13\r\n\r\n", "13\r\n \r\n\r\n"),
        ("NUL in a value", HOST, "Host: example.com\r\nX-A: 1\x002\r\n"),
        ("NUL in a name", HOST, "Host: example.com\r\nX\0A: 1\r\n"),
        ("NUL in the target", "/chat", "/ch\0at"),
        ("VT in a value", HOST, "Host: example.com\r\nX-A: 1\x0b2\r\n"),
        ("FF as white space", HOST, "Host: example.com\r\nX-A:\x0c1\r\n"),
        ("DEL in a value", HOST, "Host: example.com\r\nX-A: 1\x7f\r\n"),
        ("blank before the colon", HOST, "Host : example.com\r\n"),
        ("tab before the colon", HOST, "Host\t: example.com\r\n"),
        ("blank before the colon of another field", HOST, "Host: example.com\r\nX-A : 1\r\n"),
        ("two Hosts", HOST, "Host: example.com\r\nHost: other.example\r\n"),
        ("two equal Hosts", HOST, "Host: example.com\r\nhOST: example.com\r\n"),
        ("two Hosts in one", HOST, "Host: example.com, other.example\r\n"),
        ("Content-Length", HOST, "Host: example.com\r\nContent-Length: 49\r\n"),
        ("Content-Length with a sign", HOST, "Host: example.com\r\nContent-Length: +0\r\n"),
        ("Content-Length as a list", HOST, "Host: example.com\r\nContent-Length: 0, 49\r\n"),
        ("two lengths", HOST, "Host: example.com\r\nContent-Length: 0\r\ncontent-length: 49\r\n"),
        ("Transfer-Encoding: chunked", HOST, "Host: example.com\r\nTransfer-Encoding: chunked\r\n"),
        (
            "Transfer-Encoding: identity",
            HOST,
            "Host: example.com\r\ntransfer-encoding: identity\r\n",
        ),
        ("an empty Transfer-Encoding", HOST, "Host: example.com\r\nTransfer-Encoding:\r\n"),
        ("both", HOST, "Host: example.com\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
        ("a second request line", HOST, "GET /other HTTP/1.1\r\nHost: example.com\r\n"),
    ]);
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for (what, part, by) in rows {
        println!("{what}");
        let handshake = upgrade_but(part, by) + SMUGGLED;
        let (status, answer) = Peer::sending(proxy.address, handshake).read_refusal();
        assert_eq!(status, 400, "{what}: {answer}");
        assert!(!backend.has_waiting(), "a backend heard of {what}");
    }
}

#[test]
fn one_faulty_request_gets_one_answer_however_many_follow() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let requests = upgrade_but("GET", "POST") + &upgrade("") + SMUGGLED;
    let (status, answer) = Peer::sending(proxy.address, requests).read_refusal();
    assert_eq!((status, answer.matches("HTTP/1.1 ").count()), (405, 1), "{answer}");
    assert!(!backend.has_waiting());
}

// Fields of a good request that are not forwarded.

/// The head that a backend gets of this handshake.
fn forwarded(handshake: impl AsRef<[u8]>) -> String {
    let backend = Backend::start();
    let proxy =
        Proxy::start(Proxy::to(&[&backend]).host(HostHeader::Preserve).forwarded(Forwarded::Off));
    Peer::tunnel_with(proxy.address, &backend, handshake).2
}

/// Number of lines of a head that begin with this name, in any letter case.
fn count(head: &str, name: &str) -> usize {
    let name = format!("{}:", name.to_ascii_lowercase());
    head.lines().filter(|line| line.to_ascii_lowercase().starts_with(&name)).count()
}

#[test]
fn fields_that_connection_names_are_not_forwarded() {
    let lines = "Connection: x-secret ,COOKIE,,\r\nX-Secret: 1\r\nx-SECRET: 2\r\n\
                 Cookie: a=b\r\nX-Secrets: 3\r\n";
    let head = forwarded(upgrade(lines));
    assert_eq!(
        (count(&head, "X-Secret"), count(&head, "Cookie"), count(&head, "X-Secrets")),
        (0, 0, 1),
        "{head}"
    );
    assert!(
        head.contains("\r\nConnection: Upgrade\r\n") && count(&head, "Connection") == 1,
        "{head}"
    );
}

#[test]
fn connection_cannot_strip_what_the_handshake_consists_of() {
    let named = "Connection: Host, Upgrade, Connection, Sec-WebSocket-Key, sec-websocket-version, \
                 Sec-WebSocket-Protocol, SEC-WEBSOCKET-EXTENSIONS\r\n";
    let own = "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
    let head = forwarded(upgrade_but("Connection: Upgrade\r\n", &format!("{named}{own}")));
    for name in table([
        "Host",
        "Connection",
        "Upgrade",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Extensions",
    ]) {
        assert_eq!(count(&head, name), 1, "{name} in {head}");
    }
}

#[test]
fn connection_cannot_strip_what_the_proxy_says_of_the_client() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let lines = "Connection: X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto\r\n\
                 X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: forged.example\r\n\
                 X-Forwarded-Proto: https\r\n";
    let (_, _, head) = Peer::tunnel_with(proxy.address, &backend, upgrade(lines));
    let own = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: example.com\r\n\
               X-Forwarded-Proto: http\r\n\r\n";
    assert!(head.ends_with(own) && head.matches("X-Forwarded-").count() == 3, "{head}");
}

#[test]
fn hop_by_hop_fields_are_not_forwarded() {
    let names = table([
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Content-Length",
    ]);
    for name in names {
        let head = forwarded(upgrade(&format!("{name}: 0\r\nX-Mine: 1\r\n")));
        assert_eq!((count(&head, name), count(&head, "X-Mine")), (0, 1), "{head}");
    }
}

#[test]
fn an_upgrade_to_h2c_is_not_passed_on() {
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, websocket\r\n\
               HTTP2-Settings: AAMAAABk\r\n";
    let head = forwarded(upgrade_but("Connection: Upgrade\r\nUpgrade: websocket\r\n", h2c));
    assert!(head.contains("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"), "{head}");
    assert_eq!((count(&head, "Upgrade"), count(&head, "HTTP2-Settings")), (1, 0), "{head}");
    assert!(!head.contains("h2c"), "{head}");
}

#[test]
fn http2_settings_are_not_forwarded_even_if_connection_does_not_name_them() {
    let head = forwarded(upgrade("HTTP2-Settings: AAMAAABk\r\n"));
    assert_eq!(count(&head, "HTTP2-Settings"), 0, "{head}");
}

// Absolute targets.

#[test]
fn an_absolute_target_becomes_a_path_and_its_authority_wins_over_host() {
    let rows = table([
        ("http://other.example:81/a?b=c", "/a?b=c", "other.example:81"),
        ("ws://other.example/a", "/a", "other.example"),
        ("HTTPS://other.example", "/", "other.example"),
        ("wss://other.example?b", "/?b", "other.example"),
        ("http://[::1]:81/", "/", "[::1]:81"),
    ]);
    for (target, path, host) in rows {
        let head = forwarded(upgrade_but("/chat", target));
        assert!(
            head.starts_with(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n")),
            "{target}: {head}"
        );
        assert_eq!(count(&head, "Host"), 1, "{head}");
    }
}

#[test]
fn the_authority_of_an_absolute_target_is_the_forwarded_host() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let handshake = upgrade_but("/chat", "http://other.example/chat");
    let (_, _, head) = Peer::tunnel_with(proxy.address, &backend, handshake);
    assert!(
        head.starts_with(&format!("GET /chat HTTP/1.1\r\nHost: {}\r\n", backend.address)),
        "{head}"
    );
    assert!(head.contains("\r\nX-Forwarded-Host: other.example\r\n"), "{head}");
}

#[test]
fn an_absolute_target_with_a_doubtful_authority_gets_400() {
    let targets = table([
        "http:///chat",
        "http://user@other.example/chat",
        "http://other.example:x/chat",
        "http://other.example\\@evil.example/chat",
        "http://[::1/chat",
        "ftp://other.example/chat",
        "http:/other.example/chat",
    ]);
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for target in targets {
        let (status, _) = Peer::sending(proxy.address, upgrade_but("/chat", target)).read_refusal();
        assert_eq!(status, 400, "{target}");
    }
    assert!(!backend.has_waiting());
}

// No tunnel without a verified 101.

/// The 101 with one part of it replaced.
fn switching_but(part: &str, by: &str) -> String {
    let good = switching("");
    assert_eq!(good.matches(part).count(), 1, "{part:?}");
    good.replace(part, by)
}

/// Everything that the client gets of such a response, and that the backend gets after the head,
/// for a client that sends a second request right after its head.
fn answered(answer: &str) -> (String, Vec<u8>) {
    answered_by(false, answer)
}

/// The same, where handshakes are strict or not.
fn answered_by(is_strict: bool, answer: &str) -> (String, Vec<u8>) {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).strict_handshake(is_strict));
    let offer =
        "Sec-WebSocket-Protocol: chat, v2\r\nSec-WebSocket-Extensions: permessage-deflate; x=1\r\n";
    let (mut client, mut server) =
        Peer::handshake(proxy.address, &backend, upgrade(offer) + SMUGGLED);
    server.send(answer);
    let answer = client.read_text_to_end();
    drop(client);
    (answer, server.read_to_end())
}

#[test]
fn a_101_that_is_not_the_answer_gets_502_and_no_early_byte_out() {
    let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
    let swapped = ACCEPT.replace('s', "S");
    let rows = table([
        ("no Upgrade", switching_but("Upgrade: websocket\r\n", "")),
        ("another Upgrade", switching_but("Upgrade: websocket\r\n", "Upgrade: h2c\r\n")),
        ("no Connection", switching_but("Connection: Upgrade\r\n", "")),
        (
            "another Connection",
            switching_but("Connection: Upgrade\r\n", "Connection: keep-alive\r\n"),
        ),
        ("no accept", switching_but(&accept, "")),
        ("an empty accept", switching_but(ACCEPT, "")),
        ("the accept of another key", switching_but(ACCEPT, "HSmrc0sMlYUkAGmm5OPpG2HaGWk=")),
        ("an accept in other letters", switching_but(ACCEPT, &swapped)),
        ("two accepts", switching(&accept)),
        ("HTTP/1.0", switching_but("HTTP/1.1", "HTTP/1.0")),
        ("obs-fold", switching("X-A: 1\r\n 2\r\n")),
        ("a blank before the colon", switching("X-A : 1\r\n")),
        ("a NUL", switching("X-A: \0\r\n")),
        (
            "a 100 and then a faulty one",
            format!("HTTP/1.1 100 Continue\r\n\r\n{}", switching_but(ACCEPT, "x")),
        ),
    ]);
    for (what, answer) in rows {
        println!("{what}");
        for is_strict in [false, true] {
            let (to_client, to_backend) = answered_by(is_strict, &answer);
            assert!(to_client.starts_with("HTTP/1.1 502 "), "{what}: {to_client}");
            assert_eq!(to_backend.escape_ascii().to_string(), "", "{what}");
        }
    }
}

#[test]
fn a_101_of_a_backend_in_use_is_a_502_only_where_handshakes_are_strict() {
    let rows = table([
        ("another subprotocol", switching("Sec-WebSocket-Protocol: v3\r\n")),
        ("a subprotocol in other letters", switching("Sec-WebSocket-Protocol: CHAT\r\n")),
        ("two subprotocols", switching("Sec-WebSocket-Protocol: chat, v2\r\n")),
        (
            "two lines of subprotocols",
            switching("Sec-WebSocket-Protocol: chat\r\nsec-websocket-protocol: v2\r\n"),
        ),
        ("an empty subprotocol", switching("Sec-WebSocket-Protocol:\r\n")),
        ("another extension", switching("Sec-WebSocket-Extensions: x-webkit-deflate-frame\r\n")),
        ("one extension more", switching("Sec-WebSocket-Extensions: permessage-deflate, mux\r\n")),
        ("bare LFs", switching("").replace("\r\n", "\n")),
        ("a subprotocol with a parameter", switching("Sec-WebSocket-Protocol: chat;x\r\n")),
    ]);
    let offer =
        "Sec-WebSocket-Protocol: chat, v2\r\nSec-WebSocket-Extensions: permessage-deflate; x=1\r\n";
    for (what, answer) in rows {
        println!("{what}");
        let (to_client, to_backend) = answered_by(true, &answer);
        assert!(to_client.starts_with("HTTP/1.1 502 "), "{what}: {to_client}");
        assert_eq!(to_backend.escape_ascii().to_string(), "", "{what}");

        let backend = Backend::start();
        let mut program = Program::with_config(&section(backend.address));
        let address = program.address();
        for round in 0..2 {
            let (mut client, mut server) = Peer::handshake(address, &backend, upgrade(offer));
            server.send(&answer);
            let head = client.read_head();
            // The client judges the choice, as it came.
            let lines = answer.replace("\r\n", "\n");
            for line in lines.lines().filter(|line| line.starts_with("Sec-WebSocket-")) {
                assert!(head.contains(&format!("\r\n{line}\r\n")), "{what}: {head}");
            }
            assert_alive(&mut client, &mut server);
            // One warning a minute.
            if round == 0 && what != "bare LFs" {
                let warning = program.wait_for("event=handshake_deviation");
                assert!(warning.contains(" level=warn ") && warning.contains(" detail="));
            }
        }
        program.signal(Signal::TERM);
        program.wait();
        let log = program.rest_of_log();
        let warnings = log.iter().filter(|line| line.contains("event=handshake_deviation"));
        assert_eq!(warnings.count(), usize::from(what != "bare LFs"), "{what}");
    }
}

#[test]
fn lf_alone_ends_lines_in_a_101_and_nowhere_else() {
    let lf = |head: &str| head.replace("\r\n", "\n");
    let rows = table([
        ("another status", lf("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")),
        ("an interim answer", lf("HTTP/1.1 100 Continue\r\n\r\n") + &switching("")),
        ("a bare CR", switching("").replace("\r\nUpgrade", "\rUpgrade")),
        ("a folded line", lf(&switching("X-A: 1\r\n 2\r\n"))),
        ("an empty line first", lf(&format!("\r\n{}", switching("")))),
    ]);
    for (what, answer) in rows {
        let (to_client, to_backend) = answered(&answer);
        assert!(to_client.starts_with("HTTP/1.1 502 "), "{what}: {to_client}");
        assert_eq!(to_backend.escape_ascii().to_string(), "", "{what}");
    }
    // The client's lines are as they should be, and what follows the blank line is a frame.
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(""));
    server
        .send(lf(&switching("X-Mixed: 1\r\n")).replace("X-Mixed: 1\n", "X-Mixed: 1\r\n") + "frame");
    let head = client.read_head();
    assert_eq!(head.matches('\n').count(), head.matches("\r\n").count());
    assert!(head.contains("\r\nX-Mixed: 1\r\n"), "{head}");
    client.expect("frame");
}

#[test]
fn an_offered_subprotocol_and_extension_may_be_chosen() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let offer = "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: v2\r\n\
                 Sec-WebSocket-Extensions: mux, permessage-deflate; client_max_window_bits\r\n";
    let (mut client, mut server) = Peer::handshake(proxy.address, &backend, upgrade(offer));
    let chosen = "Sec-WebSocket-Protocol: v2\r\n\
                  Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n";
    server.send(switching(chosen));
    let answer = client.read_head();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains(chosen), "{answer}");
}

#[test]
fn another_status_is_no_tunnel_whatever_its_fields_say() {
    let fields = switching("Content-Length: 2\r\n");
    let fields = fields.split_once("\r\n").unwrap().1;
    let rows = table([200, 204, 301, 304, 401, 403, 404, 426, 500, 503]);
    for status in rows {
        // The rest is the body, or comes too late.
        let (to_client, to_backend) =
            answered(&format!("HTTP/1.1 {status} Some\r\n{fields}ok and more"));
        assert!(to_client.starts_with(&format!("HTTP/1.1 {status} Some\r\n")), "{to_client}");
        assert!(to_client.contains("\r\nConnection: close\r\n"), "{to_client}");
        // Only a 426 tells what to upgrade to.
        let tells = usize::from(status == 426);
        assert_eq!(count(&to_client, "Connection"), 1 + tells, "{to_client}");
        assert_eq!(count(&to_client, "Upgrade"), tells, "{to_client}");
        assert!(!to_client.contains("and more"), "{to_client}");
        assert_eq!(to_backend.escape_ascii().to_string(), "", "{status}");
    }
}

#[test]
fn interim_answers_release_no_early_bytes() {
    for status in table([100, 102, 103, 199]) {
        let interim =
            format!("HTTP/1.1 {status} Some\r\n{}", switching("").split_once("\r\n").unwrap().1);
        let (to_client, to_backend) =
            answered(&format!("{interim}HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"));
        assert!(to_client.starts_with("HTTP/1.1 403 No\r\n"), "{to_client}");
        assert_eq!(to_backend.escape_ascii().to_string(), "", "{status}");
    }
}

#[test]
fn a_refusal_framed_in_two_ways_goes_on_with_one() {
    let both = "HTTP/1.1 403 No\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
                2\r\nno\r\n0\r\n\r\n";
    let (to_client, _) = answered(both);
    assert_eq!(
        (count(&to_client, "Content-Length"), count(&to_client, "Transfer-Encoding")),
        (0, 1),
        "{to_client}"
    );
    assert!(to_client.ends_with("\r\n\r\n2\r\nno\r\n0\r\n\r\n"), "{to_client}");
}

#[test]
fn a_refusal_with_contradicting_lengths_gets_502() {
    let rows = table([
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2, 3\r\n",
        "Content-Length: -2\r\n",
    ]);
    for lengths in rows {
        let (to_client, _) = answered(&format!("HTTP/1.1 403 No\r\n{lengths}\r\n"));
        assert!(to_client.starts_with("HTTP/1.1 502 "), "{lengths:?}: {to_client}");
    }
}
