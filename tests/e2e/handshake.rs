//! What passes, what is refused, and that refusals arrive.

use std::time::Duration;

use crate::support::{Backend, Peer, Proxy, switching, upgrade};

#[test]
fn an_upgrade_passes_and_the_backends_own_101_comes_back() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);

    let mut client = Peer::sending(proxy.address, upgrade("X-Mine: 1\r\n"));
    let mut behind = backend.accept();
    let head = behind.read_head();
    assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nHost: {}\r\n", backend.address)), "{head}");
    assert!(head.contains("\r\nX-Mine: 1\r\n"), "{head}");

    behind.send(switching("Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n"));
    let answer = client.read_head();
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.contains("\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n"), "{answer}");

    client.send("from the client");
    behind.expect("from the client");
    behind.send("from the backend");
    client.expect("from the backend");
}

/// The status of the answer to these bytes, which no backend must hear of.
fn refusal(bytes: impl AsRef<[u8]>) -> (u16, String) {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).read_timeout_ms(5_000));
    let mut client = Peer::sending(proxy.address, bytes);
    let answer = client.read_text_to_end();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a complete head");
    assert!(head.contains("\r\nConnection: close"), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
    assert_eq!(body.lines().count(), 1, "{body:?}");
    assert!(!backend.has_waiting(), "a backend heard of it");
    (head[9..12].parse().unwrap(), answer)
}

#[test]
fn plain_requests_are_refused_with_a_reason() {
    let (status, answer) = refusal("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(status, 400);
    assert!(answer.contains("WebSocket"), "{answer}");
}

#[test]
fn a_head_that_does_not_come_in_time_gets_408_however_it_trickles() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).read_timeout_ms(300));
    let mut client = Peer::sending(proxy.address, "GET / HT");
    let mut trickling = client.again();
    let trickle = std::thread::spawn(move || {
        use std::io::Write;
        // Each byte comes well within the time; the whole head does not.
        while trickling.stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let answer = client.read_head();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    drop(client);
    trickle.join().unwrap();
}
