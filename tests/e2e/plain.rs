//! Requests that are no upgrades: the path for load balancers, and what is forwarded.

use std::time::Duration;

use ws_proxy::{Balance, Forwarded, Metrics, MetricsFormat, PlainHttp, WsProxy};

use crate::support::{
    Backend, Peer, Program, Proxy, Site, assert_alive, element, section, table, upgrade,
    upgrade_but, wait_until,
};

/// A request id that is taken as it is.
const ID: &str = "X-Request-ID: 0123456789abcdef\r\n";

/// A proxy that forwards plain HTTP, and is not started yet.
fn forwarding(backends: &[&Backend]) -> WsProxy {
    Proxy::to(backends).plain_http(PlainHttp::Forward).forwarded(Forwarded::Off)
}

/// A request with these lines, each with its CRLF.
fn request(start: &str, lines: &str) -> String {
    format!("{start} HTTP/1.1\r\nHost: a\r\n{ID}{lines}\r\n")
}

/// The head that a backend gets of such a request.
fn at_backend(start: &str, backend: &Backend, lines: &str, framing: &str) -> String {
    format!(
        "{start} HTTP/1.1\r\nHost: {}\r\n{lines}Via: 1.1 ws-proxy\r\n{ID}{framing}\
         Connection: close\r\n\r\n",
        backend.address
    )
}

/// An answer with this body.
fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Answers the next connection of a backend; gives the head that came.
fn answer_next(backend: &Backend, answer: &str) -> String {
    let mut server = backend.accept();
    let head = server.read_head();
    server.send(answer);
    // The proxy closes first or last; either way it has all.
    server.end_sending();
    server.expect_end();
    head
}

/// Sends bytes and gives all that comes up to the end.
fn answer(proxy: &Proxy, request: &str) -> String {
    Peer::sending(proxy.address, request).read_text_to_end()
}

/// Status and body of a whole answer.
fn parts(answer: &str) -> (u16, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body)
}

#[test]
fn the_health_path_is_answered_without_a_backend() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).health_path("/healthz"));
    let rows = table([
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", (200, "ok\n")),
        ("GET /healthz?from=lb HTTP/1.1\r\nHost: a\r\n\r\n", (200, "ok\n")),
        // As HAProxy asks by default.
        ("GET /healthz HTTP/1.0\r\n\r\n", (200, "ok\n")),
        ("HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n", (200, "")),
    ]);
    for (request, expected) in rows {
        assert_eq!(parts(&answer(&proxy, request)), expected, "{request}");
    }
    for start in table(["GET /healthz/", "GET /", "POST /healthz"]) {
        let request = format!("{start} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(parts(&answer(&proxy, &request)).0, 400, "{start}");
    }
    assert!(!backend.has_waiting());
    // Upgrades go on as before.
    Peer::tunnel_with(proxy.address, &backend, upgrade(""));
}

#[test]
fn there_is_no_health_path_by_default() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let request = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(parts(&answer(&proxy, request)).0, 400);
}

#[test]
fn the_health_path_tells_why_clients_should_go_elsewhere() {
    const REQUEST: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let refusing = Backend::refusing();
    let proxy = Proxy::start(Proxy::to(&[&refusing]).health_path("/healthz"));
    assert_eq!(parts(&answer(&proxy, REQUEST)).0, 200, "nothing is known of the backend yet");
    let (status, _) = Peer::sending(proxy.address, upgrade("")).read_refusal();
    assert_eq!(status, 502);
    let text = answer(&proxy, REQUEST);
    let (status, line) = parts(&text);
    assert!(status == 503 && line.contains("no backend is in use"), "{text}");

    let backend = Backend::start();
    let mut program = Program::with_config(&format!(
        "[drain]\ndelay_ms = 7000\n{}health_path = \"/healthz\"\n",
        section(backend.address)
    ));
    let address = program.address();
    program.signal(rustix::process::Signal::TERM);
    program.wait_for("event=lame_duck");
    wait_until("the path tells of the drain", || {
        parts(&Peer::sending(address, REQUEST).read_text_to_end()) == (503, "draining\n")
    });
}

#[test]
fn requests_on_one_connection_have_a_connection_each_to_a_backend() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let mut client = Peer::connect(proxy.address);
    for count in 0..3 {
        let start = format!("GET /{count}?a=b");
        client.send(request(&start, "Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nX-Two: 2\r\n"));
        let answer = "HTTP/1.1 203 Fine\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\
                      Keep-Alive: 5\r\nX-Two: 2\r\nContent-Length: 2\r\n\r\nhi";
        let head = answer_next(&backend, answer);
        assert_eq!(head, at_backend(&start, &backend, "X-Two: 2\r\n", ""));
        client.expect("HTTP/1.1 203 Fine\r\nX-Two: 2\r\nContent-Length: 2\r\n\r\nhi");
    }
    // And an upgrade at last.
    let (mut client, mut server) = client.into_tunnel(&backend);
    assert_alive(&mut client, &mut server);
}

#[test]
fn a_backend_ends_its_connection_first() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let mut client = Peer::connect(proxy.address);
    let mut answer = || {
        client.send(request("GET /", ""));
        let mut server = backend.accept();
        server.read_head();
        server.send(ok("a"));
        client.expect(ok("a"));
        server
    };
    // The next request does not wait for it.
    let (mut first, mut second) = (answer(), answer());
    first.expect_silence(Duration::from_millis(100));
    first.end_sending();
    first.expect_eof();
    // One that does not is left.
    second.expect_eof();
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let post = request("POST /b", "Content-Length: 5\r\n") + "hello";
    let all = request("GET /a", "") + &post + &request("HEAD /c", "") + &upgrade("");
    let mut client = Peer::sending(proxy.address, all);
    assert_eq!(answer_next(&backend, &ok("first")), at_backend("GET /a", &backend, "", ""));
    client.expect(ok("first"));

    let mut server = backend.accept();
    server.expect(at_backend("POST /b", &backend, "", "Content-Length: 5\r\n") + "hello");
    server.send(ok("second"));
    client.expect(ok("second"));
    let to_head = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n";
    answer_next(&backend, to_head);
    client.expect(to_head);
    let (mut server, _) = backend.accept_tunnel();
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    assert_alive(&mut client, &mut server);
}

#[test]
fn an_empty_line_after_a_request_begins_no_other_one() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    // Some old clients end a body so; it comes with the body, or later.
    let asked = request("POST /", "Content-Length: 2\r\n");
    let mut client = Peer::sending(proxy.address, format!("{asked}hi\r\n"));
    answer_next(&backend, &ok("first"));
    client.expect(ok("first"));
    client.send(&asked);
    client.send("hi");
    answer_next(&backend, &ok("second"));
    client.expect(ok("second"));
    client.send("\r\n");
    client.wait_until_read();
    client.end_sending();
    client.expect_eof();
}

#[test]
fn the_chunks_of_a_request_are_written_anew_with_their_trailers() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let mut client = Peer::connect(proxy.address);
    let head = request("POST /", "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n");
    client.send(head);
    let mut server = backend.accept();
    let lines = "Trailer: X-Sum\r\n";
    server.expect(at_backend("POST /", &backend, lines, "Transfer-Encoding: chunked\r\n"));
    client.send("005\r\nhel");
    server.expect("3\r\nhel\r\n");
    client.send("lo\r\n");
    server.expect("2\r\nlo\r\n");
    client.send("0\r\nX-Sum: 1\r\nHost: evil\r\nContent-Length: 3\r\n\r\n");
    server.expect("0\r\nX-Sum: 1\r\n\r\n");
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n");
    client.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
    server.send("0\r\nX-Sum: 2\r\nSet-Cookie: a=b\r\n\r\n");
    client.expect("0\r\nX-Sum: 2\r\n\r\n");
    client.send(request("GET /next", ""));
    answer_next(&backend, &ok("next"));
    client.expect(ok("next"));
}

#[test]
fn a_client_that_waits_for_100_gets_it_from_the_backend() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let lines = "Expect: 100-continue\r\nContent-Length: 3\r\n";
    let mut client = Peer::sending(proxy.address, request("PUT /", lines));
    let mut server = backend.accept();
    let expect = "Expect: 100-continue\r\n";
    server.expect(at_backend("PUT /", &backend, expect, "Content-Length: 3\r\n"));
    server.send("HTTP/1.1 100 Continue\r\n\r\n");
    client.expect("HTTP/1.1 100 Continue\r\n\r\n");
    client.send("abc");
    server.expect("abc");
    server.send(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{}", ok("done")));
    client.expect(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{}", ok("done")));

    // One whose backend refuses at once need not send it.
    let mut client = Peer::sending(proxy.address, request("PUT /", lines));
    let mut server = backend.accept();
    server.read_head();
    server.send("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n");
    let answer = client.read_text_to_end();
    assert_eq!(answer, "HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

#[test]
fn an_answer_may_come_while_the_request_goes_on() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let mut client =
        Peer::sending(proxy.address, request("POST /", "Transfer-Encoding: chunked\r\n"));
    let mut server = backend.accept();
    server.read_head();
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
    for _ in 0..3 {
        client.send("4\r\nping\r\n");
        server.expect("4\r\nping\r\n");
        server.send("4\r\npong\r\n");
        client.expect("4\r\npong\r\n");
    }
    server.send("0\r\n\r\n");
    client.expect("0\r\n\r\n");
    client.expect_eof();
}

#[test]
fn answers_have_the_end_that_their_client_understands() {
    const OLD: &str = "GET / HTTP/1.0\r\n\r\n";
    const KEPT: &str = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let new = request("GET /", "");
    let head = request("HEAD /", "");
    let close = "Connection: close\r\n";
    let rows = table([
        // The backend's end is one of chunks for HTTP/1.1, and the connection's own for 1.0.
        (
            &*new,
            "\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned(),
            true,
        ),
        (OLD, "\r\nabc", format!("{close}\r\nabc"), false),
        (
            OLD,
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n",
            format!("{close}\r\nabc"),
            false,
        ),
        (OLD, "Content-Length: 1\r\n\r\na", format!("Content-Length: 1\r\n{close}\r\na"), false),
        (
            KEPT,
            "Content-Length: 1\r\n\r\na",
            "Content-Length: 1\r\nConnection: keep-alive\r\n\r\na".to_owned(),
            true,
        ),
        (&*head, "Content-Length: 9\r\n\r\n", "Content-Length: 9\r\n\r\n".to_owned(), true),
        (&*head, "\r\n", "\r\n".to_owned(), true),
    ]);
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    for (request, answer, expected, is_kept) in rows {
        let mut client = Peer::sending(proxy.address, request);
        answer_next(&backend, &format!("HTTP/1.1 200 OK\r\n{answer}"));
        client.expect(format!("HTTP/1.1 200 OK\r\n{expected}"));
        if is_kept {
            client.send(KEPT);
            answer_next(&backend, &ok("kept"));
            assert!(client.read_head().starts_with("HTTP/1.1 200 OK\r\n"));
            client.expect("kept");
        } else {
            client.expect_eof();
        }
    }
    for status in table([204, 304]) {
        let mut client = Peer::sending(proxy.address, request("GET /", "") + &request("GET /", ""));
        answer_next(&backend, &format!("HTTP/1.1 {status} No\r\nETag: x\r\n\r\n"));
        client.expect(format!("HTTP/1.1 {status} No\r\nETag: x\r\n\r\n"));
        answer_next(&backend, &ok("next"));
        client.expect(ok("next"));
    }
}

#[test]
fn an_answer_that_is_cut_does_not_look_whole() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let mut client = Peer::sending(proxy.address, request("GET /", ""));
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    answer_next(&backend, chunks);
    assert_eq!(client.read_text_to_end(), chunks);
    // Only a reset says so to HTTP/1.0.
    let mut client = Peer::sending(proxy.address, "GET / HTTP/1.0\r\n\r\n");
    answer_next(&backend, chunks);
    client.expect("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc");
    let mut rest = Vec::new();
    let error = std::io::Read::read_to_end(&mut client.stream, &mut rest).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn what_comes_before_broken_chunks_goes_on() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = "3\r\nabc\r\n";
    // All in one read: a client that got no byte would ask again on another connection.
    for (broken, before) in table([
        ("x", ""),
        ("3\r\nabc\r\nx", chunk),
        ("3\r\nabc\r\n4\r\nabcde\r\n", "3\r\nabc\r\n4\r\nabcd\r\n"),
        // Not the last chunk without its trailers.
        ("3\r\nabc\r\n0\r\nno colon\r\n\r\n", chunk),
    ]) {
        let mut client = Peer::sending(proxy.address, request("GET /", ""));
        answer_next(&backend, &format!("{start}{broken}"));
        assert_eq!(client.read_text_to_end(), format!("{start}{before}"), "{broken:?}");
    }
}

#[test]
fn an_answer_whose_framing_has_no_value_is_none() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]).max_failures(0));
    for lines in table([
        "Content-Length:\r\n",
        "Content-Length: ,\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding:\r\nContent-Length: 2\r\n",
    ]) {
        for asked in table([request("GET /", ""), upgrade("")]) {
            let mut client = Peer::sending(proxy.address, &asked);
            answer_next(&backend, &format!("HTTP/1.1 404 x\r\n{lines}\r\nab"));
            assert_eq!(client.read_refusal().0, 502, "{lines:?} for {asked:?}");
        }
    }
}

#[test]
fn what_two_parsers_could_read_in_two_ways_reaches_no_backend() {
    const SMUGGLED: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let long = format!("{}5", "0".repeat(16));
    let rows = table([
        ("CL.TE", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"),
        ("TE.TE", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n"),
        ("TE.TE in one", "Transfer-Encoding: chunked, identity\r\n\r\n"),
        ("TE twice", "Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"),
        ("TE of another name", "Transfer_Encoding: chunked\r\n\r\n"),
        ("TE with a vertical tab", "Transfer-Encoding: \x0bchunked\r\n\r\n"),
        ("TE with a blank before the colon", "Transfer-Encoding : chunked\r\n\r\n"),
        ("TE folded", "Transfer-Encoding:\r\n chunked\r\n\r\n"),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 0\r\n\r\n"),
        ("two equal lengths", "Content-Length: 5\r\nContent-Length: 5\r\n\r\n"),
        ("a list of lengths", "Content-Length: 5, 5\r\n\r\n"),
        ("a plus", "Content-Length: +5\r\n\r\n"),
        ("a minus", "Content-Length: -5\r\n\r\n"),
        ("a blank within", "Content-Length: 5 0\r\n\r\n"),
        ("hexadecimal", "Content-Length: 0x5\r\n\r\n"),
        ("a length folded", "Content-Length: 5\r\n 0\r\n\r\n"),
        ("an empty length", "Content-Length:\r\n\r\n"),
        ("a length of another name", "Content_Length: 5\r\n\r\n"),
        ("bare LF", "X-A: 1\nContent-Length: 5\r\n\r\n"),
        ("bare CR", "X-A: 1\rContent-Length: 5\r\n\r\n"),
        ("bare LF at the end", "Content-Length: 5\n\n"),
        ("NUL", "X-A: 1\x00\r\nContent-Length: 5\r\n\r\n"),
        ("two Hosts", "Host: b\r\n\r\n"),
        ("chunk size with a sign", "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n"),
        ("chunk size with 0x", "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n"),
        ("chunk size after a blank", "Transfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n"),
        ("chunk size before a blank", "Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n"),
        ("no chunk size", "Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n"),
        ("chunk size before LF", "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n"),
        ("a chunk extension", "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n"),
        ("an extension with LF", "Transfer-Encoding: chunked\r\n\r\n5;\nhello\r\n"),
        ("a chunk that is too long", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n"),
        ("a chunk before LF", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n"),
        ("a trailer without colon", "Transfer-Encoding: chunked\r\n\r\n0\r\nhello\r\n\r\n"),
        ("a trailer with LF", "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\n\r\n"),
    ]);
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let endless = format!("Transfer-Encoding: chunked\r\n\r\n{long}\r\nhello\r\n");
    for (what, lines) in rows.into_iter().chain([("a long chunk size", &*endless)]) {
        println!("{what}");
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}{SMUGGLED}");
        let (status, answer) = Peer::sending(proxy.address, bytes).read_refusal();
        assert_eq!(status, 400, "{what}: {answer}");
        // A backend may have been connected to before the body was looked at.
        if backend.has_waiting() {
            let mut server = backend.accept();
            server.expect_eof();
        }
    }
    for start in table(["GET http://b/ HTTP/1.1", "GET http://a:81/ HTTP/1.1", "GET a HTTP/1.1"]) {
        let bytes = format!("{start}\r\nHost: a\r\n\r\n");
        assert_eq!(Peer::sending(proxy.address, bytes).read_refusal().0, 400, "{start}");
    }
    let (status, _) = Peer::sending(proxy.address, request("CONNECT a:1", "")).read_refusal();
    assert_eq!(status, 405);
    assert!(!backend.has_waiting());
}

#[test]
fn a_body_that_breaks_later_ends_the_request_at_the_backend_too() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let head = request("POST /", "Transfer-Encoding: chunked\r\n");
    let mut client = Peer::sending(proxy.address, head + "3\r\nabc\r\n");
    let mut server = backend.accept();
    server.read_head();
    server.expect("3\r\nabc\r\n");
    client.send("0;smuggle\r\n\r\nGET / HTTP/1.1\r\n");
    assert_eq!(client.read_refusal().0, 400);
    server.expect_eof();
}

#[test]
fn what_is_no_upgrade_is_still_refused_by_default() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (status, answer) = Peer::sending(proxy.address, request("GET /", "")).read_refusal();
    assert!(status == 400 && answer.contains("takes WebSocket upgrades only"), "{answer}");
    assert!(!backend.has_waiting());
}

#[test]
fn a_backend_that_gives_no_answer_is_passed_over_where_that_is_safe() {
    let (dead, backend) = (Backend::refusing(), Backend::start());
    let proxy = Proxy::start(forwarding(&[&dead, &backend]).max_failures(0));
    for start in table(["GET /", "POST /", "PATCH /", "BREW /"]) {
        let mut client = Peer::sending(proxy.address, request(start, ""));
        answer_next(&backend, &ok("connected"));
        client.expect(ok("connected"));
    }
    let (first, second) = (Backend::start(), Backend::start());
    let proxy = Proxy::start(forwarding(&[&first, &second]).max_failures(0));
    let rows = table([
        ("GET /", "", true),
        ("PUT /", "Content-Length: 0\r\n", true),
        ("DELETE /", "", true),
        ("PUT /", "Content-Length: 1\r\n\r\nx", false),
        ("POST /", "", false),
    ]);
    for (start, lines, is_repeated) in rows {
        let bytes = request(start, lines);
        let bytes = bytes.strip_suffix("x\r\n").map_or(bytes.clone(), |start| format!("{start}x"));
        let mut client = Peer::sending(proxy.address, bytes);
        let backends = [&first, &second];
        let index = Backend::wait_for_any(&backends);
        let mut server = backends[index].accept();
        server.read_head();
        drop(server);
        if is_repeated {
            answer_next(backends[1 - index], &ok("second"));
            client.expect(ok("second"));
        } else {
            assert_eq!(client.read_refusal().0, 502, "{start}");
            assert!(!backends[1 - index].has_waiting());
        }
    }
}

#[test]
fn a_body_has_its_limit() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]).max_body_bytes(5));
    let (status, _) =
        Peer::sending(proxy.address, request("POST /", "Content-Length: 6\r\n")).read_refusal();
    assert!(status == 413 && !backend.has_waiting());
    let chunked = request("POST /", "Transfer-Encoding: chunked\r\n");
    let mut client = Peer::sending(proxy.address, chunked + "5\r\nhello\r\n");
    let mut server = backend.accept();
    server.read_head();
    server.expect("5\r\nhello\r\n");
    client.send("1\r\n!\r\n");
    assert_eq!(client.read_refusal().0, 413);
    server.expect_eof();
    let mut client =
        Peer::sending(proxy.address, request("POST /", "Content-Length: 5\r\n") + "hello");
    answer_next(&backend, &ok(""));
    client.expect(ok(""));
}

#[test]
fn times_are_bounded() {
    let backend = Backend::start();
    let short = || forwarding(&[&backend]).keep_alive_timeout_ms(60).body_timeout_ms(60);
    let proxy = Proxy::start(short().response_timeout_ms(10_000));
    // Between two requests.
    let mut client = Peer::sending(proxy.address, request("GET /", ""));
    answer_next(&backend, &ok(""));
    client.expect(ok(""));
    client.expect_eof();
    // Within a request's body.
    let mut client = Peer::sending(proxy.address, request("POST /", "Content-Length: 6\r\n"));
    let mut server = backend.accept();
    assert_eq!(client.read_refusal().0, 408);
    server.read_head();
    server.expect_eof();
    // Within an answer's body.
    let mut client = Peer::sending(proxy.address, request("GET /", ""));
    let mut server = backend.accept();
    server.read_head();
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc");
    assert!(client.read_text_to_end().ends_with("\r\n\r\nabc"));
    server.expect_end();

    // Before an answer; its time begins when the request has ended.
    let proxy = Proxy::start(forwarding(&[&backend]).response_timeout_ms(60));
    let mut client = Peer::sending(proxy.address, request("POST /", "Content-Length: 1\r\n"));
    let mut server = backend.accept();
    server.read_head();
    client.expect_silence(Duration::from_millis(120));
    client.send("x");
    assert_eq!(client.read_refusal().0, 504);
}

#[test]
fn a_client_that_leaves_ends_its_exchange() {
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    // Before the answer, within it, and within the request.
    let client = Peer::sending(proxy.address, request("GET /", ""));
    let mut server = backend.accept();
    server.read_head();
    drop(client);
    server.expect_end();

    let mut client = Peer::sending(proxy.address, request("GET /events", ""));
    let mut server = backend.accept();
    server.read_head();
    server.send("HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n");
    client.read_head();
    client.expect("9\r\ndata: 1\n\n\r\n");
    drop(client);
    server.expect_end();

    let client = Peer::sending(proxy.address, request("POST /", "Content-Length: 5\r\n") + "abc");
    let mut server = backend.accept();
    server.read_head();
    server.expect("abc");
    drop(client);
    server.expect_end();
}

#[test]
fn a_client_that_resets_is_noticed_though_its_backend_reads_nothing() {
    let backend = Backend::tight();
    let mut program = Program::with_config(&format!(
        "[log]\nlevel = \"debug\"\n{}{FORWARD}body_timeout_ms = 0\n",
        section(backend.address)
    ));
    let mut client = Peer::connect_tight(program.address());
    client.send(request("POST /", "Content-Length: 1000000000000\r\n"));
    let _server = backend.accept();
    client.flood();
    client.reset();
    let line = program.wait_for("event=request");
    assert!(line.contains("reason=client_gone"), "{line}");
}

#[test]
fn neither_direction_holds_much() {
    let backend = Backend::start();
    let mut program =
        Program::with_config(&format!("{}plain_http = \"forward\"\n", section(backend.address)));
    let address = program.address();
    let before = program.memory();
    let mut held = Vec::new();
    let mut taken = 0;
    for _ in 0..2 {
        // An answer that the client does not read.
        let client = Peer::sending(address, request("GET /", ""));
        let mut server = backend.accept();
        server.read_head();
        server.send("HTTP/1.1 200 OK\r\n\r\n");
        taken += server.flood();
        held.push((client, server));
        // A request that the backend does not read.
        let mut client =
            Peer::sending(address, request("POST /", "Content-Length: 1000000000\r\n"));
        let mut server = backend.accept();
        server.read_head();
        taken += client.flood();
        held.push((client, server));
    }
    // The kernel holds it, and nobody else.
    let more = program.memory().saturating_sub(before);
    assert!(taken > 4 << 20 && more < 1 << 20, "{more} of {taken} bytes");
}

#[test]
fn a_large_body_passes_both_ways_at_once() {
    const SIZE: usize = 3 << 20;
    let backend = Backend::start();
    let proxy = Proxy::start(forwarding(&[&backend]));
    let lines = format!("Content-Length: {SIZE}\r\n");
    let mut client = Peer::sending(proxy.address, request("POST /", &lines));
    let mut server = backend.accept();
    server.read_head();
    server.send(format!("HTTP/1.1 200 OK\r\n{lines}\r\n"));
    client.read_head();
    let bytes = crate::support::noise(7, SIZE);
    let echo = std::thread::spawn(move || {
        let mut got = 0;
        while got < SIZE {
            let part = server.read_exactly((SIZE - got).min(10_000));
            got += part.len();
            server.send(part);
        }
    });
    let (mut sender, sent) = (client.clone_handle(), bytes.clone());
    let sending = std::thread::spawn(move || sender.send(sent));
    assert!(client.read_exactly(SIZE) == bytes);
    sending.join().unwrap();
    echo.join().unwrap();
}

#[test]
fn a_drain_closes_idle_connections_and_lets_exchanges_end() {
    let backend = Backend::start();
    let mut program = Program::with_config(&format!(
        "{}plain_http = \"forward\"\nforwarded = \"off\"\n",
        section(backend.address)
    ));
    let address = program.address();
    let mut idle = Peer::sending(address, request("GET /", ""));
    answer_next(&backend, &ok(""));
    idle.expect(ok(""));
    let mut busy = Peer::sending(address, request("GET /", ""));
    let mut server = backend.accept();
    server.read_head();
    program.signal(rustix::process::Signal::TERM);
    idle.expect_eof();
    server.send(ok("late"));
    let answer = busy.read_text_to_end();
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlate");
    assert!(program.wait().success());
}

#[test]
fn a_key_brings_requests_and_upgrades_to_one_backend() {
    let backends = [Backend::start(), Backend::start()];
    let backends = [&backends[0], &backends[1]];
    let proxy = Proxy::start(forwarding(&backends).balance(Balance::Hash).hash_on("query:key"));
    let mut met = [0, 0];
    for key in 0..8 {
        let start = format!("GET /chat?key={key}");
        let mut client = Peer::sending(proxy.address, request(&start, ""));
        let index = Backend::wait_for_any(&backends);
        met[index] += 1;
        answer_next(backends[index], &ok("poll"));
        client.expect(ok("poll"));
        client.send(upgrade_but("GET /chat", &start));
        let (_server, _) = backends[index].accept_tunnel();
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    }
    assert!(met[0] > 0 && met[1] > 0, "{met:?}");
}

/// Answers the next connection of any backend; gives the backend's index.
fn answer_any(backends: &[&Backend], answer: &str) -> usize {
    let index = Backend::wait_for_any(backends);
    answer_next(backends[index], answer);
    index
}

/// Begins a session without a value, then goes on with polls and an upgrade that have one; gives
/// the indexes of the backends that they have come to.
fn session(
    proxy: &Proxy,
    backends: &[&Backend],
    begin: &str,
    first: &str,
    later: &str,
) -> [usize; 4] {
    let (start, lines) = later.split_once('\n').unwrap_or((later, ""));
    let mut client = Peer::sending(proxy.address, request(begin, ""));
    let begun = answer_any(backends, first);
    client.expect(first);
    client.send(request(&format!("GET {start}"), lines));
    let polled = answer_any(backends, &ok("2"));
    client.expect(ok("2"));
    let post = request(&format!("POST {start}"), &format!("{lines}Content-Length: 1\r\n"));
    client.send(post + "2");
    let posted = answer_any(backends, &ok("ok"));
    client.expect(ok("ok"));
    // As any client does, on a connection of its own.
    let mut client = Peer::sending(
        proxy.address,
        upgrade(lines).replacen("GET /chat", &format!("GET {start}"), 1),
    );
    let upgraded = Backend::wait_for_any(backends);
    let (_server, _) = backends[upgraded].accept_tunnel();
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    [begun, polled, posted, upgraded]
}

#[test]
fn a_session_stays_where_it_has_begun() {
    let backends = [Backend::start(), Backend::start(), Backend::start()];
    let backends = [&backends[0], &backends[1], &backends[2]];
    let proxy = |hash_on: &str, learn_from: Option<&str>| {
        let proxy = forwarding(&backends).balance(Balance::Hash).hash_on(hash_on);
        Proxy::start(match learn_from {
            Some(part) => proxy.learn_from(part),
            None => proxy,
        })
    };
    let chunked = |first: &str, second: &str| {
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let chunks = [first, second].map(chunk).concat();
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
    };
    // Socket.IO as it comes, its cookie, and SignalR.
    let (by_sid, by_cookie) = (proxy("query:sid", None), proxy("cookie:io", None));
    let by_token = proxy("query:id", Some("json:connectionToken"));
    let mut met = [0; 3];
    for number in 0..9 {
        let begin = "GET /io/?EIO=4&transport=polling";
        let later = format!("/io/?EIO=4&sid=S-{number}&transport=polling");
        let body = format!("0{{\"sid\":\"S-{number}\",\"upgrades\":[\"websocket\"]}}");
        let first = if number % 2 == 0 { ok(&body) } else { chunked(&body[..11], &body[11..]) };
        let came = session(&by_sid, &backends, begin, &first, &later);
        assert!(came.iter().all(|&index| index == came[0]), "{came:?}");
        met[came[0]] += 1;

        let first = format!(
            "HTTP/1.1 200 OK\r\nSet-Cookie: io=c{number}; Path=/\r\nContent-Length: 0\r\n\r\n"
        );
        let later = format!("/io/?EIO=4\nCookie: a=b; io=c{number}\r\n");
        let came = session(&by_cookie, &backends, begin, &first, &later);
        assert!(came.iter().all(|&index| index == came[0]), "{came:?}");

        let begin = "POST /hub/negotiate?negotiateVersion=1";
        let body = format!("{{\"connectionId\":\"x\",\"connectionToken\":\"t_{number}\"}}");
        let came = session(&by_token, &backends, begin, &ok(&body), &format!("/hub?id=t_{number}"));
        assert!(came.iter().all(|&index| index == came[0]), "{came:?}");
    }
    // What has no value goes round.
    assert_eq!(met, [3; 3]);
}

#[test]
fn a_session_is_known_by_its_percent_encoded_value_as_well() {
    let backends = [Backend::start(), Backend::start(), Backend::start()];
    let backends = [&backends[0], &backends[1], &backends[2]];
    let proxy = forwarding(&backends).balance(Balance::Hash).hash_on("query:id");
    let proxy = Proxy::start(proxy.learn_from("json:connectionToken"));
    for number in 0..9 {
        // Base64, as the tokens of older SignalR; a query has it with or without.
        let first = ok(&format!("{{\"connectionToken\":\"{number}+/a==\"}}"));
        for id in table(["%2B%2Fa%3D%3D", "+/a=="]) {
            let later = format!("/hub?id={number}{id}");
            let came = session(&proxy, &backends, "POST /negotiate", &first, &later);
            assert!(came.iter().all(|&index| index == came[0]), "{id}: {came:?}");
        }
    }
}

#[test]
fn a_new_cookie_takes_the_place_of_an_old_one() {
    let backends = [Backend::start(), Backend::start()];
    let backends = [&backends[0], &backends[1]];
    let proxy = Proxy::start(forwarding(&backends).balance(Balance::Hash).hash_on("cookie:io"));
    for number in 0..8 {
        let mut client = Peer::sending(proxy.address, request("GET /", "Cookie: io=old\r\n"));
        let answer =
            format!("HTTP/1.1 403 x\r\nSet-Cookie: io=new{number}\r\nContent-Length: 0\r\n\r\n");
        let begun = answer_any(&backends, &answer);
        client.expect(answer);
        client.send(request("GET /", &format!("Cookie: io=new{number}\r\n")));
        assert_eq!(answer_any(&backends, &ok("")), begun, "{number}");
        client.expect(ok(""));
    }
}

#[test]
fn nothing_is_learned_from_what_begins_no_session() {
    let backends = [Backend::start(), Backend::start()];
    let backends = [&backends[0], &backends[1]];
    let body = |number: i32| format!("{{\"sid\":\"n{number}\"}}");
    let hashed = forwarding(&backends).balance(Balance::Hash).hash_on("query:sid");
    // Where each value belongs by its hash alone.
    let proxy = Proxy::start(hashed.clone().learn_from("none"));
    let by_hash = |number: i32| {
        let mut client = Peer::sending(proxy.address, request(&format!("GET /?sid=n{number}"), ""));
        let index = answer_any(&backends, &ok(&body(number)));
        client.expect(ok(&body(number)));
        index
    };
    let expected: Vec<_> = (0..12).map(by_hash).collect();
    assert!(expected.contains(&0) && expected.contains(&1));
    let learning = Proxy::start(hashed);
    for (proxy, begin, answer) in table([
        // Turned off.
        (&proxy, "GET /", &ok as &dyn Fn(&str) -> String),
        // A request of a session.
        (&learning, "GET /?sid=old", &ok),
        // An error page.
        (&learning, "GET /", &|body: &str| ok(body).replacen("200 OK", "500 Oh", 1)),
    ]) {
        for number in 0..12 {
            let mut client = Peer::sending(proxy.address, request(begin, ""));
            let first = answer(&body(number));
            answer_any(&backends, &first);
            client.expect(first);
            client.send(request(&format!("GET /?sid=n{number}"), ""));
            let came = answer_any(&backends, &ok(""));
            assert_eq!(came, expected[number as usize], "{begin} {number}");
            client.expect(ok(""));
        }
    }
}

#[test]
fn exchanges_are_counted_and_told() {
    let backend = Backend::start();
    let metrics = Metrics::new();
    let proxy = Proxy::start(forwarding(&[&backend]).metrics(&metrics).name("plain"));
    for status in table([200, 204, 302, 404, 500]) {
        let mut client = Peer::sending(proxy.address, request("GET /", ""));
        answer_next(&backend, &format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n"));
        client.read_head();
    }
    let has = |line: &str| metrics.render(MetricsFormat::Prometheus).lines().any(|one| one == line);
    for (class, count) in table([("2xx", 2), ("3xx", 1), ("4xx", 1), ("5xx", 1), ("none", 0)]) {
        let labels = format!("section=\"plain\",status_class=\"{class}\"");
        let line = format!("ws_proxy_requests_total{{{labels}}} {count}");
        wait_until(&line, || has(&line));
    }
    wait_until("times are counted", || {
        has("ws_proxy_request_duration_seconds_count{section=\"plain\"} 5")
    });

    let dead = Backend::refusing();
    let mut program = Program::with_config(&format!(
        "[log]\nlevel = \"debug\"\n{}plain_http = \"forward\"\n\n{}plain_http = \"forward\"\n",
        section(backend.address),
        section(dead.address)
    ));
    let (good, bad) = (program.address(), program.address());
    let mut client = Peer::sending(good, request("GET /a?secret", ""));
    answer_next(&backend, &ok(""));
    client.expect(ok(""));
    let line = program.wait_for("event=request");
    for part in [
        "level=debug",
        "method=GET",
        "status=200",
        "reason=whole",
        "path=\"/a\"",
        "request_id=0123456789abcdef",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let mut client = Peer::sending(good, request("GET /hung-up", ""));
    backend.accept().read_head();
    assert_eq!(client.read_refusal().0, 502);
    let line = program.wait_for("event=request");
    assert!(line.contains(&format!("backend={} ", backend.address)), "{line}");
    assert_eq!(Peer::sending(bad, request("GET /b", "")).read_refusal().0, 502);
    let line = program.wait_for("event=request");
    for part in ["level=info", "status=502", "reason=unreachable"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn a_client_that_leaves_is_told_with_the_status_that_it_got() {
    let backend = Backend::start();
    let metrics = Metrics::new();
    let proxy = Proxy::start(forwarding(&[&backend]).metrics(&metrics).name("plain"));
    let leave = |answer: &str| {
        let mut client = Peer::sending(proxy.address, request("GET /", ""));
        let mut server = backend.accept();
        server.read_head();
        if !answer.is_empty() {
            server.send(answer);
            assert!(client.read_head().starts_with("HTTP/1.1 200 "));
        }
        drop(client);
        server.expect_end();
    };
    leave("HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n");
    leave("");
    for class in table(["2xx", "none"]) {
        let labels = format!("section=\"plain\",status_class=\"{class}\"");
        let line = format!("ws_proxy_requests_total{{{labels}}} 1");
        wait_until(&line, || {
            metrics.render(MetricsFormat::Prometheus).lines().any(|one| one == line)
        });
    }
}

/// Lines of a section that forwards plain HTTP.
const FORWARD: &str = "plain_http = \"forward\"\nforwarded = \"off\"\n";

#[test]
fn the_next_request_on_a_connection_has_the_settings_of_a_reload() {
    let (first, second) = (Backend::start(), Backend::start());
    let element = |backend: &Backend| [element(backend.address, "")];
    let site = Site::start(&element(&first), FORWARD);
    let mut client = Peer::sending(site.proxy, request("GET /", ""));
    answer_next(&first, &ok("first"));
    client.expect(ok("first"));
    site.reload(&element(&second), FORWARD);
    client.send(request("GET /", ""));
    answer_next(&second, &ok("second"));
    client.expect(ok("second"));
    site.reload(&element(&second), "");
    client.send(request("GET /", ""));
    assert_eq!(client.read_refusal().0, 400);
}

#[test]
fn a_request_waits_for_a_place_as_a_handshake_does() {
    let backend = Backend::start();
    let more = format!("{FORWARD}queue_timeout_ms = 600000");
    let site = Site::start(&[element(backend.address, "max_tunnels = 1")], &more);
    let tunnel = Peer::tunnel(site.proxy, &backend);
    let mut client = Peer::sending(site.proxy, request("GET /", ""));
    wait_until("the request waits", || site.section()["queue"] == 1);
    assert!(!backend.has_waiting());
    drop(tunnel);
    answer_next(&backend, &ok("now"));
    client.expect(ok("now"));
    // An idle connection has no place.
    let _tunnel = Peer::tunnel(site.proxy, &backend);
}

#[test]
fn a_backend_that_hung_up_has_its_place_back() {
    let backends = [Backend::start(), Backend::start()];
    let elements: Vec<_> =
        backends.iter().map(|one| element(one.address, "max_tunnels = 1")).collect();
    let more = format!("{FORWARD}queue_timeout_ms = 600000\nmax_failures = 0");
    let site = Site::start(&elements, &more);
    let (busy, _client, _server) = Peer::tunnel_to_any(site.proxy, &[&backends[0], &backends[1]]);
    let free = &backends[1 - busy];
    let mut client = Peer::sending(site.proxy, request("GET /", ""));
    free.accept().read_head();
    // Where the other one has none, as for a handshake.
    answer_next(free, &ok("again"));
    client.expect(ok("again"));
}

#[test]
fn answers_tell_of_the_health_of_a_backend() {
    let backends = [Backend::start(), Backend::start()];
    let elements: Vec<_> = backends.iter().map(|one| element(one.address, "")).collect();
    let site = Site::start(&elements, &format!("{FORWARD}max_failures = 1"));
    let backends = [&backends[0], &backends[1]];
    for status in table([404, 500, 503]) {
        let mut client = Peer::sending(site.proxy, request("GET /", ""));
        let index = Backend::wait_for_any(&backends);
        let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
        answer_next(backends[index], &answer);
        client.expect(answer);
        let state = if status == 503 { "ejected" } else { "healthy" };
        assert_eq!(site.state(backends[index].address), state, "{status}");
    }
}

#[test]
fn answers_end_their_connection_from_the_beginning_of_a_drain() {
    let backend = Backend::start();
    let mut program = Program::with_config(&format!(
        "[drain]\ndelay_ms = 7000\n{}{FORWARD}",
        section(backend.address)
    ));
    let mut client = Peer::sending(program.address(), request("GET /", ""));
    answer_next(&backend, &ok(""));
    client.expect(ok(""));
    program.signal(rustix::process::Signal::TERM);
    program.wait_for("event=lame_duck");
    client.send(request("GET /", ""));
    answer_next(&backend, &ok(""));
    assert!(client.read_text_to_end().contains("\r\nConnection: close\r\n"));
}

#[test]
fn the_end_of_a_drain_cuts_what_is_left() {
    let backend = Backend::start();
    let mut program = Program::with_config(&format!(
        "[drain]\ntimeout_ms = 300\n[log]\nlevel = \"debug\"\n{}{FORWARD}",
        section(backend.address)
    ));
    let address = program.address();
    let mut unanswered = Peer::sending(address, request("GET /", ""));
    let mut silent = backend.accept();
    silent.read_head();
    let mut answered = Peer::sending(address, request("GET /", ""));
    let mut server = backend.accept();
    server.read_head();
    server.send("HTTP/1.1 200 OK\r\n\r\nabc");
    let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    answered.expect(start);
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(unanswered.read_refusal().0, 503);
    answered.expect_end();
    let lines = [program.wait_for("event=request"), program.wait_for("event=request")];
    for part in table(["status=200 reason=cut", "status=503 reason=draining"]) {
        assert!(lines.iter().any(|line| line.contains(part)), "{part} in {lines:?}");
    }
    program.wait();
}

#[test]
fn an_idle_connection_counts_and_an_upgrade_on_it_is_judged() {
    let backend = Backend::start();
    let proxy = forwarding(&[&backend]).max_connections(1).origins(["https://app.example"]);
    let proxy = Proxy::start(proxy);
    // The backend judges what others than upgrades may do.
    let mut client = Peer::sending(proxy.address, request("GET /", "Origin: https://evil\r\n"));
    answer_next(&backend, &ok(""));
    client.expect(ok(""));
    assert_eq!(Peer::connect(proxy.address).read_refusal().0, 503);
    client.send(upgrade("Origin: https://evil\r\n"));
    assert_eq!(client.read_refusal().0, 403);
    assert!(!backend.has_waiting());
}
