//! Metrics: what is counted equals what was sent, while tunnels live.

use std::time::Instant;

use From::{Backend as B, Client as C};
use prometheus_parse::{Scrape, Value};
use ws_proxy::{Metrics, MetricsFormat};

use crate::support::{
    Backend, From, PATIENCE, PING, PONG, Peer, Proxy, table, upgrade, upgrade_but, wait_until,
};

/// Returns the value of a sample, whose labels these are; panics if there is none or several.
fn value(metrics: &Metrics, name: &str, labels: &[(&str, &str)]) -> f64 {
    let text = metrics.render(MetricsFormat::Prometheus);
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    let matching: Vec<_> = scrape
        .samples
        .iter()
        .filter(|sample| sample.metric == name)
        .filter(|sample| labels.iter().all(|(key, value)| sample.labels.get(key) == Some(value)))
        .collect();
    assert_eq!(matching.len(), 1, "{name} {labels:?} in {text}");
    match &matching[0].value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => *value,
        Value::Histogram(buckets) => buckets.last().unwrap().count,
        Value::Summary(_) => panic!("a summary"),
    }
}

fn expect(metrics: &Metrics, name: &str, labels: &[(&str, &str)], expected: f64) {
    let end = Instant::now() + PATIENCE;
    while value(metrics, name, labels) != expected {
        let got = value(metrics, name, labels);
        assert!(Instant::now() < end, "{name} {labels:?}: {got} instead of {expected}");
        std::thread::yield_now();
    }
}

fn counted(backend: &Backend, name: &str) -> (Metrics, Proxy) {
    let metrics = Metrics::new();
    let proxy = Proxy::to(&[backend]).name(name).metrics(&metrics);
    (metrics, Proxy::start(proxy))
}

#[test]
fn messages_and_bytes_are_counted_while_tunnels_live() {
    let backend = Backend::start();
    let (metrics, proxy) = counted(&backend, "chat");
    let mut tunnels: Vec<_> = (0..3).map(|_| Peer::tunnel(proxy.address, &backend)).collect();
    let from_client = [C.text("hello"), C.frame(0x82, "12"), C.frame(PING, "abc")].concat();
    let from_backend = [B.text("a"), B.text("b"), B.frame(PONG, "abc")].concat();
    for (client, server) in &mut tunnels {
        client.send(&from_client);
        server.expect(&from_client);
        server.send(&from_backend);
        client.expect(&from_backend);
    }
    let rows = table([
        ("client", "text", 3.0),
        ("client", "binary", 3.0),
        ("client", "ping", 3.0),
        ("client", "pong", 0.0),
        ("backend", "text", 6.0),
        ("backend", "pong", 3.0),
    ]);
    for (from, kind, count) in rows {
        let labels = [("section", "chat"), ("from", from), ("kind", kind)];
        expect(&metrics, "ws_proxy_messages_total", &labels, count);
    }
    let bytes = |from, bytes: &[u8]| ([("from", from)], 3.0 * bytes.len() as f64);
    for (labels, count) in [bytes("client", &from_client), bytes("backend", &from_backend)] {
        expect(&metrics, "ws_proxy_bytes_total", &labels, count);
    }
    expect(&metrics, "ws_proxy_payload_bytes_total", &[("from", "client")], 30.0);
    expect(&metrics, "ws_proxy_payload_bytes_total", &[("from", "backend")], 15.0);
    let backend_name = backend.address.to_string();
    expect(&metrics, "ws_proxy_tunnels", &[("backend", &backend_name)], 3.0);
    expect(&metrics, "ws_proxy_handshakes_total", &[("outcome", "switched")], 3.0);
    expect(&metrics, "ws_proxy_handshake_duration_seconds", &[("section", "chat")], 3.0);
    expect(&metrics, "ws_proxy_accepted_total", &[("section", "chat")], 3.0);
    expect(&metrics, "ws_proxy_tunnels_ended_total", &[("reason", "client_close")], 0.0);

    // What comes after it has been counted once.
    let (client, server) = &mut tunnels[0];
    client.send(C.text("more"));
    server.expect(C.text("more"));
    let labels = [("from", "client"), ("kind", "text")];
    expect(&metrics, "ws_proxy_messages_total", &labels, 4.0);

    // One ends by Closes with codes, one by a Close without, one by its client's end.
    let (mut client, mut server) = tunnels.pop().unwrap();
    client.send(C.close(4_123));
    server.expect(C.close(4_123));
    server.send(B.close(1_000));
    client.expect(B.close(1_000));
    drop((client, server));
    let (mut client, mut server) = tunnels.pop().unwrap();
    client.send(C.frame(0x88, ""));
    server.expect(C.frame(0x88, ""));
    drop((client, server));
    drop(tunnels);
    expect(&metrics, "ws_proxy_tunnels_ended_total", &[("reason", "client_close")], 2.0);
    expect(&metrics, "ws_proxy_tunnels_ended_total", &[("reason", "client_eof")], 1.0);
    expect(&metrics, "ws_proxy_tunnels", &[("backend", &backend_name)], 0.0);
    for (from, code, count) in
        [("client", "4xxx", 1.0), ("client", "1005", 1.0), ("backend", "1000", 1.0)]
    {
        expect(&metrics, "ws_proxy_close_codes_total", &[("from", from), ("code", code)], count);
    }
    expect(&metrics, "ws_proxy_tunnel_duration_seconds", &[("section", "chat")], 3.0);
}

#[test]
fn pings_closes_of_the_proxy_and_blocked_tunnels_are_counted() {
    let backend = Backend::start();
    let metrics = Metrics::new();
    let proxy =
        Proxy::to(&[&backend]).metrics(&metrics).ping_interval_ms(250).pong_timeout_ms(60_000);
    let proxy = Proxy::start(proxy.max_message_bytes(1 << 30));
    let (mut client, mut server) = Peer::connect_tight(proxy.address).into_tunnel(&backend);
    client.read_proxy_ping();
    server.read_proxy_ping();
    expect(&metrics, "ws_proxy_pings_sent_total", &[("to", "client")], 1.0);
    expect(&metrics, "ws_proxy_pings_sent_total", &[("to", "backend")], 1.0);
    expect(&metrics, "ws_proxy_blocked_tunnels", &[], 0.0);
    server.send(B.header(0x82, 1 << 29));
    server.flood();
    expect(&metrics, "ws_proxy_blocked_tunnels", &[], 1.0);
    drop(server);
    drop(client);
    expect(&metrics, "ws_proxy_blocked_tunnels", &[], 0.0);

    let (mut client, _server) = Peer::tunnel(proxy.address, &backend);
    client.send(C.header(0x82, 1 << 31));
    wait_until("the client gets its Close", || client.read_frame().close_code() == Some(1_009));
    drop(client);
    expect(&metrics, "ws_proxy_close_codes_total", &[("from", "proxy"), ("code", "1009")], 1.0);
    expect(&metrics, "ws_proxy_close_codes_total", &[("from", "proxy"), ("code", "1001")], 1.0);
    expect(&metrics, "ws_proxy_tunnels_ended_total", &[("reason", "message_too_big")], 1.0);
}

#[test]
fn each_handshake_has_one_outcome() {
    let backend = Backend::start();
    let (metrics, proxy) = counted(&backend, "x\"y\\z");
    Peer::sending(proxy.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_refusal();
    Peer::sending(proxy.address, upgrade_but("GET", "POST")).read_refusal();
    let (client, server) = Peer::handshake(proxy.address, &backend, upgrade(""));
    drop(client);
    let (mut other, mut declines) = Peer::handshake(proxy.address, &backend, upgrade(""));
    declines.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    other.read_head();
    drop(server);
    let (mut leaves, mut declines) = Peer::handshake(proxy.address, &backend, upgrade(""));
    declines.send("HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n");
    leaves.read_head();
    leaves.reset();
    for (outcome, count) in [
        ("not_websocket", 1.0),
        ("method", 1.0),
        ("client_gone", 1.0),
        ("backend_status", 2.0),
        ("switched", 0.0),
    ] {
        expect(&metrics, "ws_proxy_handshakes_total", &[("outcome", outcome)], count);
    }
    let refusing = Backend::refusing();
    let refusing_name = refusing.address.to_string();
    let unreachable = Metrics::new();
    let other = Proxy::start(Proxy::to(&[&refusing]).metrics(&unreachable));
    Peer::sending(other.address, upgrade("")).read_refusal();
    let labels = [("backend", &*refusing_name), ("kind", "refused")];
    expect(&unreachable, "ws_proxy_connect_failures_total", &labels, 1.0);
    expect(&unreachable, "ws_proxy_handshakes_total", &[("outcome", "unreachable")], 1.0);
}

#[test]
fn both_formats_have_their_form() {
    let backend = Backend::start();
    let (metrics, _proxy) = counted(&backend, "chat");
    let classic = metrics.render(MetricsFormat::Prometheus);
    assert!(classic.contains("# TYPE ws_proxy_accepted_total counter\n"), "{classic}");
    assert!(classic.contains("ws_proxy_accepted_total{section=\"chat\"} 0\n"), "{classic}");
    assert!(!classic.contains("# EOF"));
    let version = format!("ws_proxy_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
    assert!(classic.contains(&version), "{classic}");
    assert!(classic.contains("\nprocess_cpu_seconds_total "), "{classic}");
    assert!(classic.contains("\nprocess_resident_memory_bytes "), "{classic}");
    assert!(classic.contains("\nws_proxy_draining{section=\"chat\"} 0\n"), "{classic}");
    let open = metrics.render(MetricsFormat::OpenMetrics);
    assert!(open.contains("# TYPE ws_proxy_accepted counter\n"), "{open}");
    assert!(open.ends_with("# EOF\n"));
    for text in [&classic, &open] {
        let buckets = "ws_proxy_handshake_duration_seconds_bucket{";
        let bounds: Vec<_> = { text.lines().filter(|line| line.starts_with(buckets)) }
            .map(|line| line.split_once("le=\"").unwrap().1.split('"').next().unwrap())
            .collect();
        let (last, before) = bounds.split_last().unwrap();
        let before: Vec<f64> = before.iter().map(|bound| bound.parse().unwrap()).collect();
        assert_eq!((before[0], before.last(), *last), (0.0005, Some(&30.0), "+Inf"));
    }
    // A proxy that nobody asked to count has no samples.
    let plain = Proxy::before(&backend);
    Peer::tunnel(plain.address, &backend);
    assert_eq!(value(&metrics, "ws_proxy_accepted_total", &[]), 0.0);
}

#[test]
fn what_has_the_same_labels_is_one_sample() {
    let backend = Backend::start();
    let metrics = Metrics::new();
    let proxies = [(); 2]
        .map(|()| Proxy::start(Proxy::to(&[&backend, &backend]).name("chat").metrics(&metrics)));
    let _tunnels: Vec<_> = { proxies.iter().cycle().take(4) }
        .map(|proxy| Peer::tunnel(proxy.address, &backend))
        .collect();
    let name = backend.address.to_string();
    expect(&metrics, "ws_proxy_tunnels", &[("section", "chat"), ("backend", &name)], 4.0);
    expect(&metrics, "ws_proxy_accepted_total", &[("section", "chat")], 4.0);
    expect(&metrics, "ws_proxy_handshake_duration_seconds", &[("section", "chat")], 4.0);
}
