//! The admin listener, in literal bytes.

mod page;
mod sections;
mod tunnel_commands;
mod tunnels;

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{
    Backend, Directory, Peer, Program, expect_refused, quiet_port, section, table, taken_port,
    value,
};

/// A program with an admin listener, and its backend.
struct Admin {
    program: Program,
    backend: Backend,
    proxy: SocketAddr,
    address: SocketAddr,
}

impl Admin {
    /// Starts it with these lines in `[admin]` and in `[drain]`.
    fn start(admin: &str, drain: &str) -> Self {
        let backend = Backend::start();
        let section = section(backend.address);
        Self::start_with(
            backend,
            &format!("[admin]\nbind = \"127.0.0.1:0\"\n{admin}\n[drain]\n{drain}\n{section}"),
        )
    }

    fn start_with(backend: Backend, text: &str) -> Self {
        let mut program = Program::with_config(text);
        let line = program.wait_for("event=admin_listening");
        let address = value(&line, "address").parse().unwrap();
        let proxy = program.address();
        let admin = Self { program, backend, proxy, address };
        // Its accept loops run.
        admin.wait_for("GET /readyz", 200);
        admin
    }

    /// Sends a request whose connection closes; returns status and text of the response.
    fn ask(&self, start: &str, fields: &str) -> (u16, String) {
        let head = format!("{start} HTTP/1.1\r\nHost: {}\r\n{fields}", self.address);
        self.exchange(format!("{head}Connection: close\r\n\r\n"))
    }

    /// Sends these bytes; returns status and text of what comes up to the end.
    fn exchange(&self, bytes: impl AsRef<[u8]>) -> (u16, String) {
        let text = Peer::sending(self.address, bytes).read_text_to_end();
        (text[9..12].parse().unwrap(), text)
    }

    /// Waits until the response to a request has this status.
    fn wait_for(&self, start: &str, status: u16) -> String {
        loop {
            let (got, text) = self.ask(start, "");
            if got == status {
                return text;
            }
            std::thread::yield_now();
        }
    }
}

fn body(text: &str) -> &str {
    text.split_once("\r\n\r\n").unwrap().1
}

/// Reads a response whose length is told; returns its status and its body.
fn read_response(peer: &mut Peer) -> (u16, String) {
    let head = peer.read_head();
    let length = head.split_once("Content-Length: ").unwrap().1.split("\r\n").next().unwrap();
    let body = peer.read_exactly(length.parse().unwrap());
    (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
}

#[test]
fn every_response_has_its_length_and_is_kept_by_nobody() {
    let admin = Admin::start("", "");
    let (status, text) = admin.ask("GET /livez", "");
    assert_eq!(status, 200);
    let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\
                    Content-Length: 3\r\nCache-Control: no-store\r\n\
                    X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\nok\n";
    assert_eq!(text, expected);
    let (_, head) = admin.ask("HEAD /livez", "");
    assert_eq!(head, expected.strip_suffix("ok\n").unwrap());
    for (start, status, part) in table([
        ("GET /nothing", 404, "/livez"),
        ("POST /livez", 405, "\r\nAllow: GET, HEAD\r\n"),
        ("PATCH /drain", 405, "\r\nAllow: POST\r\n"),
        ("DELETE /readyz", 405, "\r\nAllow: GET, HEAD\r\n"),
        ("GET /%", 400, "%25"),
        ("OPTIONS *", 400, "request target"),
        ("POST /drain?wait=yes", 400, "wait is 0"),
        ("POST /drain?wiat=1", 400, "\"wiat\""),
        ("POST /drain?wait=0&wait=1", 400, "\"wait\" stands in the query twice"),
    ]) {
        let (got, text) = admin.ask(start, "");
        assert!(got == status && text.contains(part), "{start}: {text}");
        assert_eq!(body(&text).matches('\n').count(), 1, "{text}");
        assert!(text.contains("\r\nContent-Type: text/plain"), "{text}");
    }
}

#[test]
fn requests_of_one_connection_are_answered_in_their_order() {
    let admin = Admin::start("", "");
    let host = format!("Host: {}\r\n", admin.address);
    let mut peer = Peer::connect(admin.address);
    // A body is passed over; the next request begins after it.
    peer.send(format!(
        "GET /livez HTTP/1.1\r\n{host}\r\nPOST /nothing HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\n\
         GET /HEAD /livez HTTP/1.1\r\n{host}\r\nGET /readyz HTTP/1.1\r\n{host}\r\n"
    ));
    assert_eq!(read_response(&mut peer), (200, "ok\n".to_owned()));
    assert_eq!(read_response(&mut peer).0, 404);
    assert!(peer.read_head().starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(read_response(&mut peer), (200, "ok\n".to_owned()));
    // It goes on, and byte by byte as well; HTTP/1.0 ends it.
    let last = format!("GET /livez HTTP/1.0\r\n{host}\r\n");
    peer.send_in_pieces(last.as_bytes().chunks(1));
    let (status, text) = (200, peer.read_text_to_end());
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")) && text.contains("Connection: close"));
    // A client that waits for it is told to send its body.
    let mut peer = Peer::sending(
        admin.address,
        format!(
            "POST /nothing HTTP/1.1\r\n{host}Content-Length: 1\r\nExpect: 100-continue\r\n\r\n"
        ),
    );
    peer.expect("HTTP/1.1 100 Continue\r\n\r\n");
    peer.send("x");
    assert_eq!(read_response(&mut peer).0, 404);
}

#[test]
fn what_is_too_much_or_no_request_is_refused_and_ends_the_connection() {
    let admin = Admin::start("", "");
    let long = "x".repeat(9_000);
    let body = "x".repeat(16 * 1024);
    for (bytes, status) in table([
        (format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {long}\r\n\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\n"), 431),
        ("GET / HTTP/1.1\nHost: localhost\n\n".to_owned(), 400),
        ("\x16\x03\x01 hello\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            501,
        ),
        (
            format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16385\r\n\r\n{body}x"),
            413,
        ),
        (format!("POST / HTTP/1.0\r\nHost: localhost\r\nContent-Length: 16384\r\n\r\n{body}"), 405),
    ]) {
        let (got, text) = admin.exchange(&bytes);
        assert_eq!(got, status, "{text} for {}", &bytes[..bytes.len().min(80)]);
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
    }
}

#[test]
fn one_connection_too_many_is_told_so() {
    let mut admin = Admin::start("", "delay_ms = 60000\ntimeout_ms = 90000");
    let ask = "POST /drain?wait=1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let held: Vec<_> = (0..64).map(|_| Peer::sending(admin.address, ask)).collect();
    // Each is known to be answered by its line.
    for _ in &held {
        admin.program.wait_for("event=admin_drain");
    }
    let text = Peer::connect(admin.address).read_text_to_end();
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("64 connections"), "{text}");
    // No tunnel notices.
    let (mut client, mut server) = Peer::tunnel(admin.proxy, &admin.backend);
    crate::support::assert_alive(&mut client, &mut server);
    held.into_iter().for_each(Peer::reset);
    admin.wait_for_any();
}

#[test]
fn connections_that_are_kept_keep_no_probe_out() {
    let admin = Admin::start("", "");
    let ask = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // Each begins to wait after the one before.
    let answered = |()| {
        let mut peer = Peer::sending(admin.address, ask);
        assert_eq!(read_response(&mut peer).0, 200);
        peer
    };
    let mut kept: Vec<_> = [(); 64].into_iter().map(answered).collect();
    assert_eq!(admin.ask("GET /livez", "").0, 200);
    kept[0].expect_eof();
    kept[63].send(ask);
    assert_eq!(read_response(&mut kept[63]).0, 200);
}

impl Admin {
    /// Waits until there is room for a connection.
    fn wait_for_any(&self) {
        while !Peer::sending(self.address, "GET /livez HTTP/1.0\r\n\r\n")
            .read_text_to_end()
            .starts_with("HTTP/1.1 200 ")
        {
            std::thread::yield_now();
        }
    }
}

#[test]
fn names_of_others_and_pages_of_others_are_refused() {
    let admin = Admin::start("hosts = [\"proxy.example\"]", "delay_ms = 60000\ntimeout_ms = 90000");
    let port = admin.address.port();
    for (host, status) in table([
        (format!("127.0.0.1:{port}"), 200),
        ("127.0.0.1".to_owned(), 200),
        (format!("[::1]:{port}"), 200),
        ("localhost".to_owned(), 200),
        (format!("proxy.example:{port}"), 200),
        (format!("evil.example:{port}"), 421),
        ("127.0.0.1.evil.example".to_owned(), 421),
        ("192.0.2.1".to_owned(), 421),
    ]) {
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(admin.exchange(request).0, status, "{host}");
    }
    for fields in table([
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ]) {
        assert_eq!(admin.ask("POST /drain", fields).0, 403, "{fields}");
    }
    assert_eq!(admin.ask("GET /readyz", "").0, 200, "nothing has been drained");
    let own = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", admin.address);
    assert_eq!(admin.ask("POST /drain", &own).0, 200);
    assert_eq!(admin.ask("GET /readyz", "").0, 503);
}

#[test]
fn a_token_opens_what_is_not_for_probes() {
    let directory = Directory::new();
    let file = directory.write("token", "  0123456789abcdef\n");
    let line = format!("token_file = \"{}\"", file.display());
    let admin = Admin::start(&line, "delay_ms = 60000\ntimeout_ms = 90000");
    for start in table(["GET /livez", "GET /readyz", "HEAD /readyz"]) {
        assert_eq!(admin.ask(start, "").0, 200, "{start}");
    }
    for start in table(["GET /", "POST /drain", "POST /livez/"]) {
        for fields in ["", "Authorization: Bearer 0123456789abcdeg\r\n"] {
            let (status, text) = admin.ask(start, fields);
            assert_eq!(status, 401, "{start} {fields}");
            assert!(text.contains("\r\nWWW-Authenticate: Bearer\r\n"), "{text}");
            assert!(!text.contains("0123456789"), "{text}");
        }
    }
    let good = "Authorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(admin.ask("GET /nothing", good).0, 404);
    assert_eq!(admin.ask("POST /drain", good).0, 200);
}

#[test]
fn it_is_not_ready_from_the_moment_a_drain_begins() {
    let mut admin = Admin::start("", "delay_ms = 60000\ntimeout_ms = 90000");
    let (mut client, mut server) = Peer::tunnel(admin.proxy, &admin.backend);
    assert_eq!(body(&admin.ask("GET /readyz", "").1), "ok\n");
    assert_eq!(body(&admin.ask("POST /drain", "").1), "draining\n");
    for _ in 0..3 {
        let (status, text) = admin.ask("GET /readyz", "");
        assert_eq!((status, body(&text)), (503, "draining\n"));
    }
    assert_eq!(admin.ask("GET /livez", "").0, 200);
    admin.program.wait_for("event=admin_drain client=127.0.0.1:");
    assert_eq!(admin.ask("POST /drain", "").0, 200);
    admin.program.wait_for("action=none");
    // The first SIGTERM after it is still the first.
    admin.program.signal(Signal::TERM);
    admin.program.wait_for("event=signal signal=Term action=none");
    crate::support::assert_alive(&mut client, &mut server);
    admin.program.signal(Signal::TERM);
    client.expect_end();
    assert_eq!(admin.program.wait().code(), Some(0));
}

#[test]
fn whoever_waits_for_the_end_of_the_drain_is_told_of_it() {
    let mut admin = Admin::start("", "spread_ms = 0\ntimeout_ms = 60000\nclose_grace_ms = 60000");
    let (client, server) = Peer::tunnel(admin.proxy, &admin.backend);
    let mut idle = Peer::connect(admin.address);
    idle.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(read_response(&mut idle).0, 200);
    let ask = "POST /drain?wait=1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut waiting = Peer::sending(admin.address, ask);
    expect_refused(admin.proxy);
    // The tunnel is in its closing handshake, and the listener goes on.
    assert_eq!(admin.ask("GET /readyz", "").0, 503);
    waiting.expect_silence(Duration::from_millis(50));
    drop((client, server));
    assert_eq!(read_response(&mut waiting), (200, "drained\n".to_owned()));
    assert_eq!(admin.program.wait().code(), Some(0));
}

#[test]
fn an_idle_connection_does_not_hold_up_the_exit() {
    let mut admin = Admin::start("", "");
    let mut idle = Peer::connect(admin.address);
    idle.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(read_response(&mut idle).0, 200);
    let start = std::time::Instant::now();
    admin.program.signal(Signal::TERM);
    assert_eq!(admin.program.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    idle.expect_end();
}

#[test]
fn a_section_without_a_usable_backend_is_not_ready() {
    let backend = Backend::refusing();
    let text = format!("[admin]\nbind = \"127.0.0.1:0\"\n{}", section(backend.address));
    let admin = Admin::start_with(backend, &text);
    assert_eq!(admin.ask("GET /readyz", "").0, 200, "a fresh section is usable");
    let (status, _) = Peer::sending(admin.proxy, crate::support::upgrade("")).read_refusal();
    assert_eq!(status, 502);
    let text = admin.wait_for("GET /readyz", 503);
    let reason = body(&text);
    assert!(reason.starts_with("section ") && reason.contains("no backend"), "{reason}");
    assert!(reason.contains(&admin.backend.address.to_string()), "{reason}");
}

#[test]
fn without_a_table_there_is_nothing_of_it() {
    let backend = Backend::start();
    let with = Admin::start("", "");
    let mut without = Program::with_config(&section(backend.address));
    without.address();
    // The listener, and the thread's epoll, waker and timer.
    assert!(with.program.threads() > without.threads());
    assert!(with.program.descriptors() > without.descriptors());
    assert!(!without.has_logged("admin"));
}

#[test]
fn faults_of_its_table_are_named_with_their_line() {
    let directory = Directory::new();
    let short = directory.write("short", "0123456789abcde\n");
    let odd = directory.write("odd", "0123456789 abcdef");
    let short_file = format!("token_file = \"{}\"", short.display());
    let odd_file = format!("token_file = \"{}\"", odd.display());
    for (lines, expected) in table([
        ("", "1: bind: is missing"),
        ("bind = \"127.0.0.1\"", "2: bind: \"127.0.0.1\": the port is missing"),
        ("bind = \"127.0.0.1:0\"\nhost = []", "3: host: unknown key; did you mean hosts?"),
        ("bind = \"127.0.0.1:0\"\nhosts = [\"a\",\n\"b:1\"]", "4: hosts: \"b:1\" is not a host"),
        ("bind = \"127.0.0.1:8080\"", "2: bind: 127.0.0.1:8080 is taken by the section"),
        ("bind = \"0.0.0.0:8080\"", "2: bind: 0.0.0.0:8080 is taken by the section"),
        (&format!("bind = \"127.0.0.1:0\"\n{short_file}"), "3: token_file: "),
        (&format!("bind = \"127.0.0.1:0\"\n{odd_file}"), "3: token_file: "),
        ("bind = \"127.0.0.1:0\"\ntoken_file = \"/nothing/here\"", "3: token_file: /nothing/here"),
        ("bind = \"127.0.0.1:0\"\ntoken_file = \"/\"", "3: token_file: /: cannot read"),
    ]) {
        let section = "[[ws_proxy]]\nbind = \"127.0.0.1:8080\"\nbackends = [\"a:1\"]\n";
        let file = directory.write("proxy.toml", &format!("[admin]\n{lines}\n{section}"));
        let arguments = ["check", "--config", file.to_str().unwrap()];
        let message = Program::failure(&arguments, &directory, 2);
        assert!(message.contains(&format!("proxy.toml:{expected}")), "{message} for {lines}");
    }
    let good = directory.write("good", &"x".repeat(16));
    let text = format!(
        "[admin]\nbind = \"127.0.0.1:9\"\ntoken_file = \"{}\"\n{}",
        good.display(),
        section("a:1")
    );
    let file = directory.write("proxy.toml", &text);
    let arguments = ["check", "--config", file.to_str().unwrap()];
    let (code, report, _) = Program::output(&arguments, Some(directory.path()));
    assert!(code == 0 && report.contains("\n  127.0.0.1:9 (admin)"), "{report}");
}

#[test]
fn a_taken_port_ends_the_program_with_a_message() {
    let (_listener, taken) = taken_port();
    let directory = Directory::new();
    let text = format!("[admin]\nbind = \"{taken}\"\n{}", section("127.0.0.1:1"));
    let file = directory.write("proxy.toml", &text);
    let (code, _, message) =
        Program::output(&["--config", file.to_str().unwrap()], Some(directory.path()));
    assert!(code == 1 && message.contains(&format!("[admin]: cannot listen on {taken}")));
}

mod commands {
    use super::*;

    fn run(arguments: &[&str], directory: &Directory) -> (i32, String) {
        let (code, stdout, stderr) = Program::output(arguments, Some(directory.path()));
        assert_eq!(stdout, "", "{arguments:?}");
        (code, stderr)
    }

    /// A free port, and the configuration of a program that has it for its admin listener.
    fn configuration(directory: &Directory, lines: &str, backend: &Backend) -> SocketAddr {
        let port = quiet_port();
        let text =
            format!("[admin]\nbind = \"0.0.0.0:{port}\"\n{lines}{}", section(backend.address));
        directory.write("ws-proxy.toml", &text);
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn health_and_drain_find_the_listener_and_its_token_in_the_configuration() {
        let (directory, backend) = (Directory::new(), Backend::start());
        let token = directory.write("token", "0123456789abcdef");
        let lines = format!(
            "token_file = \"{}\"\n[drain]\ntimeout_ms = 60000\nclose_grace_ms = 60000\n\
             spread_ms = 0\n",
            token.display()
        );
        configuration(&directory, &lines, &backend);
        let mut program = Program::start(&[], Some(directory.path()));
        let proxy = program.address();
        while run(&["health"], &directory).0 != 0 {}
        assert_eq!(run(&["health", "--live"], &directory), (0, String::new()));

        let (client, server) = Peer::tunnel(proxy, &backend);
        assert_eq!(run(&["drain"], &directory), (0, String::new()));
        let (code, message) = run(&["health"], &directory);
        assert!(code == 1 && message.contains("503:\n  draining\n"), "{message}");
        assert_eq!(run(&["health", "--live"], &directory), (0, String::new()));
        let arguments = ["drain", "--wait"];
        let mut waiting = Program::start(&arguments, Some(directory.path()));
        program.wait_for("action=none");
        drop((client, server));
        assert_eq!(waiting.wait().code(), Some(0));
        assert_eq!(program.wait().code(), Some(0));
        let (code, message) = run(&["health"], &directory);
        assert!(code == 1 && message.contains("refused"), "{message}");
    }

    #[test]
    fn a_file_that_became_invalid_makes_no_running_proxy_ill() {
        let (directory, backend) = (Directory::new(), Backend::start());
        configuration(&directory, "", &backend);
        let path = directory.path().join("ws-proxy.toml");
        let good = std::fs::read_to_string(&path).unwrap();
        let mut program = Program::start(&[], Some(directory.path()));
        program.address();
        while run(&["health"], &directory).0 != 0 {}
        let named = ["health", "--live", "--config", "ws-proxy.toml"];
        for fault in table(["bakends = []\n", "max_failures = -1\n", "[[ws_pr"]) {
            directory.write("ws-proxy.toml", &format!("{good}{fault}"));
            assert_eq!(run(&["check"], &directory).0, 2, "{fault}");
            assert_eq!(run(&["health"], &directory), (0, String::new()), "{fault}");
            assert_eq!(run(&named, &directory), (0, String::new()), "{fault}");
        }
        // What names no listener is told as ever.
        for text in table(["bakends = []\n", "[admin]\nbind = \"nowhere\"\n"]) {
            directory.write("ws-proxy.toml", text);
            let (code, message) = run(&named, &directory);
            assert!(code == 2 && message.contains("ws-proxy.toml"), "{text}: {message}");
        }
        program.signal(Signal::TERM);
        assert_eq!(program.wait().code(), Some(0));
        directory.write("ws-proxy.toml", &format!("{good}bakends = []\n"));
        let (code, message) = run(&named, &directory);
        assert!(code == 2 && message.contains("bakends"), "{message}");
    }

    #[test]
    fn an_address_on_the_command_line_needs_no_configuration() {
        let mut admin = Admin::start("", "");
        let (directory, address) = (Directory::new(), admin.address.to_string());
        assert_eq!(run(&["health", "--admin", &address], &directory), (0, String::new()));
        assert_eq!(run(&["drain", "--admin", &address], &directory), (0, String::new()));
        assert_eq!(admin.program.wait().code(), Some(0));
    }

    #[test]
    fn without_a_listener_health_probes_each_section_and_drain_sends_a_signal() {
        let (directory, backend) = (Directory::new(), Backend::start());
        let (listener, address) = taken_port();
        drop(listener);
        let text = section(backend.address).replace("127.0.0.1:0", &address.to_string());
        let file = directory.write("named.toml", &text);
        let health = ["health", "--config", file.to_str().unwrap()];
        let (code, message) = run(&health, &directory);
        assert!(code == 1 && message.contains("refused"), "{message}");
        let mut program = Program::start(&health[1..], Some(directory.path()));
        program.address();
        assert_eq!(run(&health, &directory), (0, String::new()));
        let pid = program.pid().as_raw_nonzero().to_string();
        let arguments = ["drain", "--wait", "--pid", &pid];
        let mut waiting = Program::start(&arguments, Some(directory.path()));
        assert_eq!(program.wait().code(), Some(0));
        assert_eq!(waiting.wait().code(), Some(0));
    }

    #[test]
    fn a_listener_that_does_not_answer_is_given_up_in_time() {
        let (directory, (_listener, silent)) = (Directory::new(), taken_port());
        let arguments = ["health", "--admin", &silent.to_string(), "--timeout-ms", "50"];
        let (code, message) = run(&arguments, &directory);
        assert!(code == 1 && message.contains("50 ms"), "{message}");
    }

    #[test]
    fn a_wrong_command_line_is_named() {
        let directory = Directory::new();
        for (arguments, part) in table([
            (&["health"][..], "--admin HOST:PORT"),
            (&["health", "--admin", "127.0.0.1"], "--admin"),
            (&["health", "--admin", "127.0.0.1:0"], "--admin"),
            (&["health", "--admin", "127.0.0.1:1", "--timeout-ms", "0"], "--timeout-ms"),
            (&["drain", "--admin", "127.0.0.1:1", "--pid", "7"], "--pid"),
        ]) {
            let message = Program::failure(arguments, &directory, 2);
            assert!(message.contains(part), "no {part} in {message}");
        }
    }
}
