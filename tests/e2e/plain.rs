//! Requests that are no upgrades: the path for load balancers.

use crate::support::{Backend, Peer, Program, Proxy, section, table, upgrade, wait_until};

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
