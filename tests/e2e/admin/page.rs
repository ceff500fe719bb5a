//! The page, what feeds it, and how a browser shows the token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Admin, body};
use crate::support::{Backend, Directory, From, PING, Peer, section, table, upgrade};

use From::{Backend as B, Client as C};

#[test]
fn the_page_comes_with_a_strict_policy() {
    let admin = Admin::start("", "");
    let (status, text) = admin.ask("GET /", "");
    assert_eq!(status, 200);
    let (head, page) = text.split_once("\r\n\r\n").unwrap();
    let (start, policy) = head.split_once("\r\nContent-Security-Policy: ").unwrap();
    let (policy, rest) = policy.split_once("\r\n").unwrap();
    let expected = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close",
        page.len()
    );
    assert_eq!((start, rest), (&*expected, "Referrer-Policy: no-referrer"));
    let directives: Vec<_> = policy.split("; ").collect();
    let [default, script, style, rest @ ..] = &directives[..] else { panic!("{policy}") };
    assert_eq!(*default, "default-src 'none'");
    for (directive, name) in [(script, "script-src 'sha256-"), (style, "style-src 'sha256-")] {
        let hash = directive.strip_prefix(name).unwrap().strip_suffix('\'').unwrap();
        assert_eq!(hash.len(), 44, "one hash and nothing else: {directive}");
    }
    let closed = [
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ];
    assert_eq!(rest, closed);
    // No part of it is elsewhere.
    let own = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!own.contains("//") && !own.contains(" src=") && !own.contains("@import"));
    assert!(page.starts_with("<!doctype html>\n") && page.ends_with("</html>\n"));
    let (_, text) = admin.ask("HEAD /", "");
    assert_eq!(text, format!("{head}\r\n\r\n"));
    assert_eq!(admin.ask("POST /", "").0, 405);
}

#[test]
fn the_status_counts_what_was_sent() {
    let admin = Admin::start("", "");
    let before = unix_ms();
    let idle = admin.json("GET /status");
    assert_eq!(idle["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&idle["ready"], &idle["draining"]), (&true.into(), &false.into()));
    assert_eq!((&idle["reasons"], &idle["endings"]), (&json!([]), &json!([])));
    let (since, time) = (idle["since"].as_u64().unwrap(), idle["time"].as_u64().unwrap());
    assert!(since <= time && (before..=unix_ms()).contains(&time), "{idle}");
    let section = &idle["sections"][0];
    assert_eq!((&section["handshakes"], &section["ended"]), (&json!({}), &json!({})));
    assert_eq!(idle["backends"], admin.json("GET /backends"));

    let (mut client, mut server) = Peer::tunnel(admin.proxy, &admin.backend);
    for message in [C.text("one"), C.text("two"), C.frame(PING, "")] {
        client.send(&message);
        server.expect(&message);
    }
    server.send(B.text("three"));
    client.expect(B.text("three"));
    Peer::sending(admin.proxy, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_to_end();
    let sent = 2 * C.text("one").len() + C.frame(PING, "").len();
    let expected = json!({
        "state": "accepting",
        "tunnels": 1,
        "accepted": 2,
        "handshakes": { "switched": 1, "not_websocket": 1 },
        "ended": {},
        "client_messages": 2,
        "backend_messages": 1,
        "bytes_to_backend": sent,
        "bytes_to_client": B.text("three").len(),
        "blocked": 0,
    });
    loop {
        let section = admin.json("GET /status")["sections"][0].clone();
        let is_told = |(key, value): (&String, &Value)| section[key] == *value;
        if expected.as_object().unwrap().iter().all(is_told) {
            break;
        }
        // Counted at the next tick.
        std::thread::yield_now();
    }
}

#[test]
fn endings_are_told_the_newest_first() {
    let mut admin = Admin::start("", "");
    let get = upgrade("").replace("/chat", "/chat?token=secret");
    let (mut client, mut server, _) = Peer::tunnel_with(admin.proxy, &admin.backend, &get);
    client.send(C.close(4_001));
    server.expect(C.close(4_001));
    server.send(B.close(4_002));
    client.expect(B.close(4_002));
    drop((client, server));
    admin.program.wait_for("event=tunnel_end");

    let (mut client, mut server) = Peer::tunnel(admin.proxy, &admin.backend);
    let address = client.stream.local_addr().unwrap();
    let id = admin.json("GET /tunnels")[0]["id"].clone();
    admin.json(&format!("DELETE /tunnels/{id}?code=1008"));
    assert_eq!(client.read_frame().close_code(), Some(1_008));
    client.send(C.close(1_008));
    server.expect(C.close(1_008));
    server.send(B.close(1_000));
    drop((client, server));
    admin.program.wait_for("event=tunnel_end");

    let status = admin.json("GET /status");
    assert!(!status.to_string().contains("secret"), "{status}");
    let [newest, oldest] = &status["endings"].as_array().unwrap()[..] else { panic!("{status}") };
    let close_codes = |ending: &Value| {
        ["client_close", "backend_close", "proxy_close"].map(|key| ending[key].as_u64())
    };
    assert_eq!(close_codes(oldest), [Some(4_001), Some(4_002), None]);
    assert_eq!(close_codes(newest)[2], Some(1_008));
    for (key, expected) in table([
        ("id", id),
        ("section", admin.proxy.to_string().into()),
        ("client", address.to_string().into()),
        ("backend", admin.backend.address.to_string().into()),
        ("path", "/chat".into()),
        ("reason", "admin".into()),
        ("ended_by", "proxy".into()),
    ]) {
        assert_eq!(newest[key], expected, "{key}");
    }
    assert_eq!((&oldest["path"], &oldest["reason"]), (&"/chat".into(), &"client_close".into()));
    assert!(newest["time"].as_u64() >= oldest["time"].as_u64() && newest["lifetime_s"].is_f64());
    assert_eq!(status["sections"][0]["ended"], json!({ "client_close": 1, "admin": 1 }));
}

#[test]
fn a_hundred_endings_are_kept() {
    let mut admin = Admin::start("", "");
    for _ in 0..120 {
        let (client, server) = Peer::tunnel(admin.proxy, &admin.backend);
        drop((client, server));
        admin.program.wait_for("event=tunnel_end");
    }
    for _ in 0..2 {
        let endings = admin.json("GET /status")["endings"].clone();
        let ids: Vec<_> = { endings.as_array().unwrap().iter() }
            .map(|ending| ending["id"].as_u64().unwrap())
            .collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.is_sorted_by(|newer, older| newer > older), "{ids:?}");
        assert!(ids[0] - ids[99] < 120, "{ids:?}");
    }
}

#[test]
fn the_status_tells_of_a_drain_and_of_what_is_wrong() {
    let backend = Backend::refusing();
    let text = format!(
        "[admin]\nbind = \"127.0.0.1:0\"\n[drain]\ndelay_ms = 60000\ntimeout_ms = 90000\n{}",
        section(backend.address)
    );
    let admin = Admin::start_with(backend, &text);
    for _ in 0..3 {
        Peer::sending(admin.proxy, upgrade("")).read_refusal();
    }
    admin.wait_for("GET /readyz", 503);
    let status = admin.json("GET /status");
    assert_eq!((&status["ready"], &status["draining"]), (&false.into(), &false.into()));
    assert!(status["reasons"][0].as_str().unwrap().contains("no backend"), "{status}");
    assert_eq!(status["backends"][0]["state"], "unhealthy");
    assert_eq!(admin.ask("POST /drain", "").0, 200);
    let status = admin.json("GET /status");
    assert_eq!((&status["ready"], &status["draining"]), (&false.into(), &true.into()));
}

#[test]
fn a_browser_shows_the_token_as_a_password() {
    let directory = Directory::new();
    let file = directory.write("token", "0123456789abcdef");
    let line = format!("token_file = \"{}\"", file.display());
    let admin = Admin::start(&line, "delay_ms = 60000\ntimeout_ms = 90000");
    let (status, text) = admin.ask("GET /", "");
    assert_eq!(status, 401);
    let challenges =
        "\r\nWWW-Authenticate: Bearer\r\nWWW-Authenticate: Basic realm=\"ws-proxy\"\r\n\r\n";
    assert!(text.contains(challenges), "{text}");
    let (_, text) = admin.ask("GET /status", "");
    assert!(!text.contains("Basic"), "no prompt in the middle of the page: {text}");

    // me:0123456789abcdef, me:0123456789abcdeg
    let good = "Authorization: Basic bWU6MDEyMzQ1Njc4OWFiY2RlZg==\r\n";
    let bad = "Authorization: Basic bWU6MDEyMzQ1Njc4OWFiY2RlZw==\r\n";
    for start in table(["GET /", "GET /status", "GET /tunnels", "HEAD /metrics"]) {
        assert_eq!(admin.ask(start, good).0, 200, "{start}");
        assert_eq!(admin.ask(start, bad).0, 401, "{start}");
    }
    // A browser sends them for pages of other sites as well.
    for fields in table([
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ]) {
        let fields = format!("{good}{fields}");
        assert_eq!(admin.ask("POST /drain", &fields).0, 403, "{fields}");
        assert_eq!(admin.ask("DELETE /tunnels/1", &fields).0, 403, "{fields}");
    }
    assert_eq!(admin.json_with("GET /status", good)["draining"], false);
    let own = format!("{good}Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", admin.address);
    assert_eq!(admin.ask("POST /drain", &own).0, 200);
    assert_eq!(admin.json_with("GET /status", good)["draining"], true);
}

impl Admin {
    /// Returns the object that a request with these fields is answered with.
    fn json_with(&self, start: &str, fields: &str) -> Value {
        serde_json::from_str(body(&self.ask(start, fields).1)).unwrap()
    }
}

fn unix_ms() -> u64 {
    let since: Duration = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis().try_into().unwrap()
}
