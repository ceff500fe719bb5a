//! The log's formats, and what is in them: request ids, traces, and no secrets.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Backend, Directory, From, Peer, Program, Proxy, section, table, upgrade, value,
};

/// Request id that a client may choose.
const ID: &str = "0123456789.AB_z-";

/// A program with a table `[log]` of these lines, in front of one backend.
fn start(log: &str, more: &str) -> (Program, Backend) {
    let backend = Backend::start();
    let config = format!("[log]\n{log}\n{}{more}\n", section(backend.address));
    let directory = Directory::new();
    let file = directory.write("ws-proxy.toml", &config);
    let mut program = Program::start(&["--config", file.to_str().unwrap()], None);
    // It has read the file by then, and the folder may go.
    program.wait_for("listening");
    (program, backend)
}

/// The address in a line that tells of a listener.
fn address(program: &Program) -> std::net::SocketAddr {
    let line = program.seen.last().unwrap();
    let text = match serde_json::from_str::<Value>(line) {
        Ok(record) => record["address"].as_str().unwrap().to_owned(),
        Err(_) => value(line, "address").to_owned(),
    };
    text.parse().unwrap()
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn every_line_of_json_is_an_object_with_its_types() {
    let (mut program, backend) = start("format = \"json\"\nlevel = \"debug\"", "");
    let address = address(&program);
    let path = "/'\"x\\";
    let handshake = upgrade(&format!("X-Request-ID: {ID}\r\n")).replace("/chat", path);
    let (mut client, mut server, _) = Peer::tunnel_with(address, &backend, handshake);
    client.send(From::Client.close(1000));
    server.read_frame();
    drop((client, server));
    let end = parse(&program.wait_for("tunnel_end"));
    program.wait_for("tunnel_frames");
    program.signal(Signal::TERM);
    assert!(program.wait().success());

    let keys: Vec<&str> = end.as_object().unwrap().keys().map(String::as_str).collect();
    assert!(keys.contains(&"section") && keys.contains(&"bytes_to_backend"), "{keys:?}");
    assert_eq!(end["event"], "tunnel_end");
    assert_eq!(
        (&end["level"], &end["id"], &end["status"]),
        (&"info".into(), &1.into(), &101.into())
    );
    assert!(end["handshake_ms"].is_f64() && end["lifetime_ms"].is_u64(), "{end}");
    assert_eq!((&end["client_close"], &end["backend_close"]), (&1000.into(), &Value::Null));
    assert_eq!((&end["path"], &end["request_id"]), (&path.into(), &ID.into()));
    assert_eq!((&end["forwarded_for"], &end["traceparent"]), (&Value::Null, &Value::Null));

    for line in program.rest_of_log() {
        let record = parse(&line);
        assert!(line.starts_with("{\"time\":\"20") && record["level"].is_string(), "{line}");
        assert!(record["event"].is_string(), "{line}");
        if record["event"] == "stopped" {
            assert_eq!(record["all_ended"], true);
        }
    }
}

#[test]
fn the_failure_that_ends_the_program_is_an_object_too() {
    let directory = Directory::new();
    let text =
        "[log]\nformat = \"json\"\n[[ws_proxy]]\nbind = \"192.0.2.1:1\"\nbackends = [\"a\"]\n";
    directory.write("ws-proxy.toml", text);
    let log = Program::failure(&[], &directory, 1);
    let failed = parse(log.lines().last().unwrap());
    assert_eq!((&failed["level"], &failed["event"]), (&"error".into(), &"failed".into()));
    assert!(failed["error"].as_str().unwrap().starts_with("cannot listen on 192.0.2.1:1"), "{log}");
    // Nothing has read a format before the configuration is read.
    directory.write("ws-proxy.toml", &format!("{text}x = 1\n"));
    let log = Program::failure(&[], &directory, 2);
    assert_eq!(
        log,
        "ws-proxy: ws-proxy.toml:6: x: unknown key; the keys of [[ws_proxy]] are \
        name, bind, backends"
            .to_owned()
            + log.split_once("backends").unwrap().1
    );
}

#[test]
fn the_flag_comes_before_the_environment_and_that_before_the_file() {
    let directory = Directory::new();
    let rest = "x = 1\n[[ws_proxy]]\nbind = \"192.0.2.1:1\"\nbackends = [\"a\"]\n[log]\n";
    let rows = table([
        ("", None, None, true),
        ("level = \"warn\"", None, None, false),
        ("level = \"warn\"", Some("info"), None, true),
        ("level = \"info\"", Some("warn"), None, false),
        // What no filter names has the level of the file.
        ("level = \"warn\"", Some("mio=trace"), None, false),
        ("level = \"warn\"", Some("warn"), Some("info"), true),
        ("level = \"info\"", Some("info"), Some("warn"), false),
    ]);
    for (level, environment, flag, has_info) in rows {
        directory.write("ws-proxy.toml", &format!("{rest}{level}\n"));
        let arguments: Vec<&str> = flag.iter().flat_map(|flag| ["--log-level", *flag]).collect();
        let mut command = Program::command(&arguments, Some(directory.path()));
        command.envs(environment.map(|level| ("RUST_LOG", level)));
        let log = String::from_utf8(command.output().unwrap().stderr).unwrap();
        let row = (level, environment, flag);
        assert_eq!(log.contains("event=config "), has_info, "{row:?}: {log}");
        assert!(log.contains("event=config_ignored "), "{row:?}: {log}");
    }
}

/// The id that a forwarded head has, once.
fn forwarded_id(head: &str) -> &str {
    let name_of = |line: &&str| {
        let name = line.split(':').next().unwrap().to_ascii_lowercase().replace('_', "-");
        name == "x-request-id"
    };
    let lines: Vec<&str> = head.split("\r\n").filter(name_of).collect();
    assert_eq!(lines.len(), 1, "{head}");
    lines[0].strip_prefix("X-Request-ID: ").unwrap()
}

#[test]
fn each_request_has_one_id_for_the_backend_and_for_the_log() {
    const OTHER: &str = "fedcba9876543210";
    let (mut program, backend) = start("", "tunnel_start = true\nforwarded = \"off\"");
    let address = address(&program);
    let rows = table([
        (format!("X-Request-ID: {ID}\r\n"), Some(ID)),
        (format!("x_request_id: {OTHER}\r\nx-request-id: {ID}\r\n"), Some(ID)),
        (String::new(), None),
        (format!("X_Request_ID: {ID}\r\n"), None),
        (format!("X-Request-ID: {ID}\r\nX-Request-ID: {OTHER}\r\n"), None),
        ("X-Request-ID: short\r\n".to_owned(), None),
    ]);
    let mut ours = Vec::new();
    for (lines, expected) in rows {
        let (client, server, head) = Peer::tunnel_with(address, &backend, upgrade(&lines));
        let id = forwarded_id(&head);
        match expected {
            Some(expected) => assert_eq!(id, expected),
            None => {
                let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                assert!(id.len() == 32 && id.bytes().all(is_digit), "{id}");
                ours.push(id.to_owned());
            }
        }
        assert_eq!(value(&program.wait_for("event=tunnel_start"), "request_id"), id);
        drop((client, server));
        assert_eq!(value(&program.wait_for("event=tunnel_end"), "request_id"), id);

        // A backend's refusal, and a client that does not wait for an answer.
        for answer in [Some("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"), None] {
            let mut client = Peer::sending(address, upgrade(&lines));
            let mut server = backend.accept();
            let head = server.read_head();
            let event = match answer {
                Some(answer) => {
                    server.send(answer);
                    client.read_head();
                    "event=refused"
                }
                None => {
                    client.end_sending();
                    "event=client_gone"
                }
            };
            drop((client, server));
            assert_eq!(value(&program.wait_for(event), "request_id"), forwarded_id(&head));
        }
    }
    ours.sort();
    ours.dedup();
    assert_eq!(ours.len(), 4);
}

#[test]
fn a_client_that_resets_within_a_refusal_is_gone_and_its_backend_not_at_fault() {
    let (mut program, backend) = start("", "");
    let address = address(&program);
    // With a length, and up to the connection's end.
    for framing in table(["Content-Length: 1000000000\r\n", ""]) {
        let mut client = Peer::connect_tight(address);
        client.send(upgrade(""));
        let mut server = backend.accept();
        server.read_head();
        server.send(format!("HTTP/1.1 403 No\r\n{framing}\r\n"));
        client.read_head();
        // The proxy waits for room at the client.
        server.flood();
        client.reset();
        let line = program.wait_for("event=client_gone");
        assert_eq!(value(&line, "stage"), "refusal");
        assert!(!program.has_logged("event=refused"));
    }
}

#[test]
fn every_backend_that_is_asked_gets_the_same_id_though_nothing_is_logged() {
    let backends = [&Backend::start(), &Backend::start()];
    // A library whose program has no logger.
    let proxy = Proxy::start(Proxy::to(&backends));
    let mut client = Peer::sending(proxy.address, upgrade(""));
    let asked = Backend::wait_for_any(&backends);
    let mut server = backends[asked].accept();
    let id = forwarded_id(&server.read_head()).to_owned();
    // It hangs up, and the next one is asked.
    drop(server);
    let (_server, head) = backends[1 - asked].accept_tunnel();
    assert_eq!((forwarded_id(&head), id.len()), (&*id, 32));
    client.read_head();
}

#[test]
fn a_valid_trace_is_logged_and_every_one_goes_on() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (mut program, backend) = start("", "tunnel_start = true");
    let address = address(&program);
    for (trace, expected) in table([(TRACE, TRACE), ("00-secret-x-01", "-")]) {
        let handshake = upgrade(&format!("TraceParent: {trace}\r\n"));
        let (client, server, head) = Peer::tunnel_with(address, &backend, handshake);
        assert!(head.contains(&format!("\r\nTraceParent: {trace}\r\n")), "{head}");
        drop((client, server));
        for event in ["event=tunnel_start", "event=tunnel_end"] {
            let line = program.wait_for(event);
            assert!(line.ends_with(&format!(" traceparent={expected}")), "{line}");
        }
    }
}

#[test]
fn no_secret_is_in_a_log() {
    const SECRETS: &str = "Cookie: secret\r\nAuthorization: Bearer secret\r\n\
        Sec-WebSocket-Protocol: secret\r\nX-Api-Key: secret\r\nX-Request-ID: secret\r\n\
        traceparent: secret\r\nProxy-Authorization: Basic secret\r\nX-Auth-Token: secret\r\n";
    for format in table(["text", "json"]) {
        let log = format!("format = \"{format}\"\nlevel = \"trace\"");
        let limits =
            "tunnel_start = true\nmax_message_bytes = 8\norigins = [\"https://a\", \"none\"]";
        let (mut program, backend) = start(&log, limits);
        let address = address(&program);
        let asking =
            |more: &str| upgrade(&format!("{SECRETS}{more}")).replace("/chat", "/c?secret");

        // Tunnels that end by themselves and by a violation, both with payload and a Close's reason.
        for payload in ["secret", "secret too long"] {
            let (mut client, mut server, head) = Peer::tunnel_with(address, &backend, asking(""));
            assert!(head.matches("secret").count() >= 6, "{head}");
            client.send(From::Client.text(payload));
            server.send(From::Backend.frame(0x88, b"\x03\xe8secret"));
            drop((client, server));
            program.wait_for("tunnel_frames");
        }
        // Refusals: by the proxy, in each of its ways, and by the backend.
        for request in [
            asking("Origin: https://secret\r\n"),
            asking("").replace("Version: 13", "Version: secret"),
            asking("").replace("Upgrade: websocket", "Upgrade: secret"),
            asking("X: secret\n"),
            asking("secret secret: x\r\n"),
            format!("GET /{}?secret HTTP/1.1\r\n\r\n", "x".repeat(9_000)),
            "secret\r\n\r\n".to_owned(),
        ] {
            Peer::sending(address, request).read_refusal();
            program.wait_for("refused");
        }
        for answer in [
            "HTTP/1.1 401 secret\r\nSet-Cookie: secret\r\nContent-Length: 6\r\n\r\nsecret",
            "HTTP/1.1 101 secret\r\nSet-Cookie: secret\r\n\r\n",
            "secret\r\n\r\n",
        ] {
            let (mut client, mut server) = Peer::handshake(address, &backend, asking(""));
            server.send(answer);
            client.read_head();
            drop((client, server));
            program.wait_for("refused");
        }
        program.signal(Signal::TERM);
        assert!(program.wait().success());
        let log = program.rest_of_log();
        assert!(log.len() > 12, "{log:#?}");
        assert!(log.iter().all(|line| !line.contains("secret")), "{log:#?}");
    }
}
