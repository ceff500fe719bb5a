//! Tunnels that are listed and closed through the admin listener.

use serde_json::Value;

use super::{Admin, body};
use crate::support::{Backend, From, PING, Peer, section, table, value};

use From::{Backend as B, Client as C};

impl Admin {
    /// Opens a tunnel.
    fn tunnel(&self) -> (Peer, Peer) {
        Peer::tunnel(self.proxy, &self.backend)
    }

    /// Returns the object or array that a request is answered with.
    pub(super) fn json(&self, start: &str) -> Value {
        let (status, text) = self.ask(start, "");
        assert_eq!(status, 200, "{text}");
        assert!(text.contains("\r\nContent-Type: application/json\r\n"), "{text}");
        serde_json::from_str(body(&text)).unwrap()
    }

    /// Returns the numbers of the tunnels that a request lists.
    fn ids(&self, start: &str) -> Vec<u64> {
        let listed = self.json(start);
        listed.as_array().unwrap().iter().map(|tunnel| tunnel["id"].as_u64().unwrap()).collect()
    }

    /// Waits until a tunnel's object has this.
    fn wait_for_value(&self, id: u64, key: &str, expected: &Value) {
        while self.json(&format!("GET /tunnels/{id}"))[key] != *expected {
            std::thread::yield_now();
        }
    }
}

/// A handshake with a query, by a client behind another proxy.
const FORWARDED: &str = "GET /chat/room?token=secret HTTP/1.1\r\nHost: chat.example\r\n\
    Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Forwarded-For: 203.0.113.7\r\n\
    X-Request-ID: 0123456789abcdef\r\n\r\n";

#[test]
fn a_tunnel_is_shown_with_what_it_is_for_and_what_it_has_relayed() {
    let admin = Admin::start("", "");
    assert_eq!(admin.json("GET /tunnels"), Value::Array(Vec::new()));
    let (mut client, mut server, _) = Peer::tunnel_with(admin.proxy, &admin.backend, FORWARDED);
    for message in [C.text("hello"), C.frame(PING, "x")] {
        client.send(&message);
        server.expect(&message);
    }
    for _ in 0..3 {
        server.send(B.text("ab"));
    }
    client.expect(B.text("ab").repeat(3));
    let id = admin.ids("GET /tunnels")[0];
    admin.wait_for_value(id, "backend_messages", &3.into());
    let shown = admin.json(&format!("GET /tunnels/{id}"));
    let text = |key: &str| shown[key].as_str().unwrap();
    assert_eq!(text("section"), admin.proxy.to_string());
    assert_eq!(text("backend"), admin.backend.address.to_string());
    assert_eq!(text("client"), client.stream.local_addr().unwrap().to_string());
    assert_eq!(text("path"), "/chat/room");
    assert_eq!(text("host"), "chat.example");
    assert_eq!(text("forwarded_for"), "203.0.113.7");
    assert_eq!(text("request_id"), "0123456789abcdef");
    assert_eq!(text("state"), "open");
    assert!(!shown.to_string().contains("secret"), "{shown}");
    for (key, expected) in table([
        ("client_messages", 1),
        ("backend_messages", 3),
        ("bytes_to_backend", C.text("hello").len() + C.frame(PING, "x").len()),
        ("bytes_to_client", 3 * B.text("ab").len()),
    ]) {
        assert_eq!(shown[key], expected, "{key} in {shown}");
    }
    assert!(shown["age_s"].is_f64() && shown["idle_s"].is_f64(), "{shown}");
    assert!(shown["client_close"].is_null() && shown["backend_close"].is_null(), "{shown}");

    // One side has closed, and waits for the other.
    client.send(C.close(4_001));
    server.expect(C.close(4_001));
    admin.wait_for_value(id, "client_close", &4_001.into());
    admin.wait_for_value(id, "state", &"closing".into());
}

#[test]
fn a_close_of_the_proxy_that_the_backends_own_has_replaced_is_not_told() {
    let mut admin = Admin::start("", "");
    let (mut client, mut server) = Peer::tunnel(admin.proxy, &admin.backend);
    let id = admin.ids("GET /tunnels")[0];
    let close = B.close(4_000);
    server.send(&close[..1]);
    client.expect(&close[..1]);
    admin.json(&format!("DELETE /tunnels/{id}?code=1008"));
    admin.wait_for_value(id, "state", &"closing".into());
    server.send(&close[1..]);
    client.expect(&close[1..]);
    client.send(C.close(4_000));
    server.expect(C.close(4_000));
    drop((client, server));
    admin.program.wait_for("event=tunnel_end");
    let ending = &admin.json("GET /status")["endings"][0];
    assert_eq!((&ending["reason"], &ending["backend_close"]), (&"admin".into(), &4_000.into()));
    assert_eq!(ending["proxy_close"], Value::Null);
}

#[test]
fn the_newest_come_first_and_a_query_chooses() {
    let mut admin = Admin::start("", "");
    let tunnels: Vec<_> = (0..3).map(|_| admin.tunnel()).collect();
    let ids = admin.ids("GET /tunnels");
    assert!(ids.len() == 3 && ids.is_sorted_by(|newer, older| newer > older), "{ids:?}");
    let (section, backend) = (admin.proxy, admin.backend.address);
    for (query, count) in table([
        (&*format!("section={section}"), 3),
        (&format!("backend={backend}"), 3),
        ("client=127.0.0.1", 3),
        ("client=::ffff:127.0.0.1", 3),
        ("client=127.0.0.2", 0),
        ("section=other", 0),
        (&format!("section={section}&backend=other"), 0),
        ("limit=2", 2),
        ("limit=0", 0),
    ]) {
        assert_eq!(admin.ids(&format!("GET /tunnels?{query}")), ids[..count], "{query}");
    }
    for (start, status, part) in table([
        ("GET /tunnels?limit=10001", 400, "from 0 to 10000"),
        ("GET /tunnels?limit=-1", 400, "from 0 to 10000"),
        ("GET /tunnels?client=localhost", 400, "an IP address"),
        ("GET /tunnels?bakend=a", 400, "\"bakend\""),
        ("GET /tunnels/0", 404, "no such tunnel"),
        ("GET /tunnels/x", 404, "a number"),
        ("GET /tunnels/1?section=a", 400, "\"section\""),
        ("POST /tunnels", 405, "Allow: GET, HEAD, DELETE"),
    ]) {
        let (got, text) = admin.ask(start, "");
        assert!(got == status && text.contains(part), "{start}: {text}");
    }
    drop(tunnels);
    for _ in ids {
        admin.program.wait_for("event=tunnel_end");
    }
    assert_eq!(admin.json("GET /tunnels"), Value::Array(Vec::new()));
}

#[test]
fn a_tunnel_is_closed_by_an_order_with_its_code_and_reason() {
    let mut admin = Admin::start("", "");
    let ((mut client, mut server), (mut other, mut others)) = (admin.tunnel(), admin.tunnel());
    let id = *admin.ids("GET /tunnels").last().unwrap();
    let closing = admin.json(&format!("DELETE /tunnels/{id}?code=4008&reason=go%20away"));
    assert_eq!(closing["closing"], 1);
    client.expect(B.frame(0x88, b"\x0f\xa8go away"));
    client.send(C.close(4_008));
    server.expect(C.close(4_008));
    server.send(B.close(4_008));
    drop((client, server));
    let line = admin.program.wait_for("event=tunnel_end");
    assert_eq!(value(&line, "reason"), "admin");
    assert_eq!(value(&line, "ended_by"), "proxy");
    assert_eq!(admin.ask(&format!("DELETE /tunnels/{id}"), "").0, 404);
    crate::support::assert_alive(&mut other, &mut others);
}

#[test]
fn an_order_ends_a_tunnel_whose_endpoints_do_not_answer() {
    let admin = Admin::start("", "close_grace_ms = 1");
    let (mut client, mut server) = admin.tunnel();
    let id = admin.ids("GET /tunnels")[0];
    admin.json(&format!("DELETE /tunnels/{id}?code=4008&reason=go%20away"));
    assert_eq!(client.read_frame().payload, b"\x0f\xa8go away");
    // The backend gets the reason as well.
    assert_eq!(server.read_frame().payload, b"\x03\xe9go away");
    client.expect_end();
    server.expect_end();

    // The endpoints have begun, and get no second Close.
    let (mut client, mut server) = admin.tunnel();
    let id = admin.ids("GET /tunnels")[0];
    client.send(C.close(4_001));
    server.expect(C.close(4_001));
    admin.wait_for_value(id, "state", &"closing".into());
    admin.json(&format!("DELETE /tunnels/{id}"));
    client.expect_eof();
    server.expect_eof();
}

#[test]
fn a_tunnel_that_does_not_move_tells_why() {
    let backend = Backend::start();
    let lines = "[admin]\nbind = \"127.0.0.1:0\"\n";
    let text = format!("{lines}{}max_messages_per_second = 1\n", section(backend.address));
    let admin = Admin::start_with(backend, &text);
    let (mut client, _server) = admin.tunnel();
    client.send(C.text("x").repeat(1_000));
    admin.wait_for_value(admin.ids("GET /tunnels")[0], "state", &"paused".into());
    let peer = Peer::connect_tight(admin.proxy);
    let (_client, mut server) = peer.into_tunnel(&admin.backend);
    server.send(B.header(0x82, 1 << 29));
    server.flood();
    admin.wait_for_value(admin.ids("GET /tunnels")[0], "state", &"blocked".into());
}

#[test]
fn tunnels_are_closed_by_a_filter_and_never_without_one() {
    let admin = Admin::start("", "");
    let mut tunnels: Vec<_> = (0..20).map(|_| admin.tunnel()).collect();
    for (start, status, part) in table([
        ("DELETE /tunnels", 400, "which tunnels"),
        ("DELETE /tunnels?code=1001", 400, "which tunnels"),
        ("DELETE /tunnels?client=127.0.0.1&limit=1", 400, "\"limit\""),
        ("DELETE /tunnels?client=127.0.0.1&client=127.0.0.2", 400, "twice"),
        ("DELETE /tunnels?client=127.0.0.1&code=1005", 400, "sendable"),
        ("DELETE /tunnels?client=127.0.0.1&code=70000", 400, "from 0 to 65535"),
        ("DELETE /tunnels?client=127.0.0.1&spread_ms=x", 400, "spread_ms"),
        (&*format!("DELETE /tunnels?client=127.0.0.1&reason={}", "x".repeat(124)), 400, "123"),
        // Bytes, of which each of these characters has two.
        (&*format!("DELETE /tunnels/1?reason={}", "%C3%A9".repeat(62)), 400, "123"),
        ("DELETE /tunnels/1?section=a", 400, "\"section\""),
    ]) {
        let (got, text) = admin.ask(start, "");
        assert!(got == status && text.contains(part), "{start}: {text}");
    }
    let (status, _) =
        admin.ask("DELETE /tunnels?client=127.0.0.1", "Origin: http://evil.example\r\n");
    assert_eq!(status, 403);
    for (client, server) in &mut tunnels {
        client.send(C.text("still here"));
        server.expect(C.text("still here"));
    }

    // Over an hour, hardly all of them are closed at once.
    let order = format!("DELETE /tunnels?backend={}", admin.backend.address);
    assert_eq!(admin.json(&format!("{order}&spread_ms=3600000"))["closing"], 20);
    let is_open = |tunnel: &Value| tunnel["state"] == "open";
    assert!(admin.json("GET /tunnels").as_array().unwrap().iter().any(is_open));
    assert_eq!(admin.json(&order)["closing"], 20);
    for (client, server) in &mut tunnels {
        assert_eq!(client.read_frame().close_code(), Some(1_001));
        client.send(C.close(1_001));
        server.expect(C.close(1_001));
        server.send(B.close(1_001));
    }
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let admin = Admin::start("", "");
    let (mut client, mut server) = admin.tunnel();
    client.send(C.text("hello"));
    server.expect(C.text("hello"));
    let section = admin.proxy;
    let sample = format!(
        "\nws_proxy_messages_total{{section=\"{section}\",from=\"client\",kind=\"text\"}} 1\n"
    );
    let text = loop {
        let (status, text) = admin.ask("GET /metrics", "");
        assert_eq!(status, 200);
        if text.contains(&sample) {
            break text;
        }
        assert!(text.contains("ws_proxy_messages_total{"), "{text}");
        std::thread::yield_now();
    };
    assert!(text.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let (_, text) = admin.ask("GET /metrics", accept);
    let open = "\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(text.contains(open) && text.ends_with("# EOF\n"), "{text}");
}
