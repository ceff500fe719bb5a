//! Unix sockets, to backends and to listen on.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::support::{
    Backend, Directory, From, PATIENCE, Peer, Program, ask, assert_alive, noise, switching, table,
    upgrade, value, wait_until,
};

/// A connection's end with the methods of all others.
fn peer(stream: UnixStream) -> Peer {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // Its system calls are those of any socket.
    Peer { stream: TcpStream::from(OwnedFd::from(stream)) }
}

/// A path that is short enough for a socket, and gone with the test.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("ws-proxy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn section(bind: &str, backend: &str, more: &str) -> String {
    format!("[[ws_proxy]]\nbind = \"{bind}\"\nbackends = [\"{backend}\"]\n{more}\n")
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// Accepts a handshake, switches, and returns the connection and the head.
fn accept(backend: &UnixListener) -> (Peer, String) {
    let mut peer = peer(backend.accept().unwrap().0);
    let head = peer.read_head();
    peer.send(switching(""));
    (peer, head)
}

/// Opens a tunnel to a backend at a Unix socket.
fn tunnel(proxy: std::net::SocketAddr, backend: &UnixListener) -> (Peer, Peer) {
    let mut client = Peer::sending(proxy, upgrade(""));
    let (server, _) = accept(backend);
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    (client, server)
}

#[test]
fn a_backend_at_a_path_gets_what_any_gets() {
    let place = Place::new();
    let path = place.path("app.sock");
    let backend = UnixListener::bind(&path).unwrap();
    let mut program = Program::with_config(&section("127.0.0.1:0", &unix(&path), ""));
    let line = program.wait_for("event=listening");
    assert_eq!(value(&line, "backends"), unix(&path));
    let address = value(&line, "address").parse().unwrap();
    let mut client = Peer::sending(address, upgrade(""));
    let (mut server, head) = accept(&backend);
    assert!(head.contains("\r\nHost: localhost\r\n"), "{head}");
    assert!(head.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"), "{head}");
    client.read_head();
    assert_alive(&mut client, &mut server);

    // Bulk both ways, more than any buffer holds.
    let bytes = noise(7, 8 * 1024 * 1024);
    for from_client in [true, false] {
        let (from, to) =
            if from_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
        std::thread::scope(|scope| {
            scope.spawn(|| from.send(&bytes));
            assert!(to.read_exactly(bytes.len()) == bytes);
        });
    }
    // Each side ends its sending by itself.
    client.end_sending();
    server.expect_eof();
    server.send("last words");
    drop(server);
    client.expect("last words");
    client.expect_eof();
    let line = program.wait_for("event=tunnel_end");
    assert_eq!(value(&line, "backend"), unix(&path));
    assert_eq!(value(&line, "bytes_to_backend"), (bytes.len() + 14).to_string());
}

#[test]
fn a_backend_that_is_replaced_by_rename_gets_the_next_tunnels() {
    let place = Place::new();
    let (path, new) = (place.path("app.sock"), place.path("new.sock"));
    let first = UnixListener::bind(&path).unwrap();
    let mut program = Program::with_config(&section("127.0.0.1:0", &unix(&path), ""));
    let address = program.address();
    let (mut client, mut server) = tunnel(address, &first);
    let second = UnixListener::bind(&new).unwrap();
    fs::rename(&new, &path).unwrap();
    let (mut other, mut other_server) = tunnel(address, &second);
    assert_alive(&mut client, &mut server);
    assert_alive(&mut other, &mut other_server);
    drop(first);
    assert_alive(&mut client, &mut server);
}

#[test]
fn a_backend_that_is_not_there_is_502_until_it_is() {
    let place = Place::new();
    let path = place.path("app.sock");
    let file = place.path("file");
    fs::write(&file, "").unwrap();
    for (path, error) in table([(&path, "No such file"), (&file, "Connection refused")]) {
        let mut program = Program::with_config(&section("127.0.0.1:0", &unix(path), ""));
        let address = program.address();
        assert_eq!(Peer::sending(address, upgrade("")).read_refusal().0, 502);
        let line = program.wait_for("event=backend_unreachable");
        assert!(line.contains(error) && value(&line, "backend") == unix(path), "{line}");
        let _ = fs::remove_file(path);
        let backend = UnixListener::bind(path).unwrap();
        tunnel(address, &backend);
    }
}

#[test]
fn a_backend_whose_backlog_is_full_is_waited_for() {
    let place = Place::new();
    let path = place.path("app.sock");
    let backend = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&backend, 0).unwrap();
    let waiting = UnixStream::connect(&path).unwrap();
    let timeout = "connect_timeout_ms = 300";
    let mut program = Program::with_config(&section("127.0.0.1:0", &unix(&path), timeout));
    let address = program.address();
    assert_eq!(Peer::sending(address, upgrade("")).read_refusal().0, 504);
    program.wait_for("event=backend_unreachable");
    // Room is found before the time is over.
    let timeout = "connect_timeout_ms = 60000";
    let mut program = Program::with_config(&section("127.0.0.1:0", &unix(&path), timeout));
    let mut client = Peer::sending(program.address(), upgrade(""));
    drop(backend.accept().unwrap());
    let (mut server, _) = accept(&backend);
    client.read_head();
    assert_alive(&mut client, &mut server);
    drop(waiting);
}

#[test]
fn clients_come_by_a_path_as_by_a_port() {
    let place = Place::new();
    let (path, backend) = (place.path("front.sock"), Backend::start());
    let text = section(&unix(&path), &backend.address.to_string(), "socket_mode = \"0620\"");
    let drain = "[drain]\nspread_ms = 0\n[admin]\nbind = \"127.0.0.1:0\"\n";
    let mut program = Program::with_config(&format!("{text}{drain}"));
    let line = program.wait_for("event=admin_listening");
    let admin = value(&line, "address").parse().unwrap();
    let line = program.wait_for("event=listening");
    assert_eq!(value(&line, "address"), unix(&path));
    assert_eq!(value(&line, "section"), unix(&path));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);

    for (fields, expected) in table([
        ("", None),
        ("X-Forwarded-For: 192.0.2.1\r\n", Some("X-Forwarded-For: 192.0.2.1\r\n")),
    ]) {
        let mut client = peer(UnixStream::connect(&path).unwrap());
        client.send(upgrade(fields));
        let (mut server, head) = backend.accept_tunnel();
        match expected {
            Some(line) => assert!(head.contains(line), "{head}"),
            None => assert!(!head.contains("X-Forwarded-For"), "{head}"),
        }
        assert!(head.contains("X-Forwarded-Proto: http\r\n"), "{head}");
        client.read_head();
        assert_alive(&mut client, &mut server);
        let (_, text) = ask(admin, "GET /tunnels");
        assert!(text.contains("\"client\":\"unix\""), "{text}");
        client.end_sending();
        server.expect_eof();
        drop(server);
        client.expect_eof();
        let line = program.wait_for("event=tunnel_end");
        assert_eq!(value(&line, "client"), "unix");
    }
    let health = |address: &str| Program::output(&["health", address], None);
    assert_eq!(health(&unix(&path)), (0, String::new(), String::new()));
    let (code, _, error) = health(&unix(&place.path("nothing")));
    assert!(code == 1 && error.contains("No such file"), "{error}");
    let mut refused = peer(UnixStream::connect(&path).unwrap());
    refused.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(refused.read_refusal().0, 400);

    let mut client = peer(UnixStream::connect(&path).unwrap());
    client.send(upgrade(""));
    let (mut server, _) = backend.accept_tunnel();
    client.read_head();
    program.signal(Signal::TERM);
    client.expect_proxy_close(From::Client, 1001);
    // The port is closed by now, and its file is gone.
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
    client.send(From::Client.close(1001));
    server.read_frame();
    drop((client, server));
    assert!(program.wait().success());
}

#[test]
fn a_path_is_taken_from_the_dead_and_from_nobody_else() {
    let place = Place::new();
    let path = place.path("front.sock");
    let directory = Directory::new();
    let file = directory.write("ws-proxy.toml", &section(&unix(&path), "127.0.0.1:1", ""));
    let arguments = ["--config", file.to_str().unwrap()];
    // Left by a process that was killed.
    drop(UnixListener::bind(&path).unwrap());
    let mut program = Program::start(&arguments, None);
    program.wait_for("event=listening");
    // Of one that lives.
    let error = Program::failure(&arguments, &directory, 1);
    assert!(error.contains(&unix(&path)) && error.contains("in use"), "{error}");
    let mut client = peer(UnixStream::connect(&path).unwrap());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_refusal().0, 400);
    // One that another process has put in its place is left alone.
    let new = place.path("new.sock");
    let other = UnixListener::bind(&new).unwrap();
    fs::rename(&new, &path).unwrap();
    program.signal(Signal::TERM);
    assert!(program.wait().success());
    UnixStream::connect(&path).unwrap();
    drop(other);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let error = Program::failure(&arguments, &directory, 1);
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_reload_keeps_a_path_and_changes_its_mode() {
    let (place, directory) = (Place::new(), Directory::new());
    let (path, app) = (place.path("front.sock"), place.path("app.sock"));
    let backends =
        [UnixListener::bind(&app).unwrap(), UnixListener::bind(place.path("b")).unwrap()];
    let text = |app: &Path, mode: &str| {
        section(&unix(&path), &unix(app), &format!("socket_mode = \"{mode}\""))
    };
    let file = directory.write("ws-proxy.toml", &text(&app, "0600"));
    let mut program = Program::start(&["--config", file.to_str().unwrap()], None);
    program.wait_for("event=listening");
    let open = |backend: &UnixListener| {
        let mut client = peer(UnixStream::connect(&path).unwrap());
        client.send(upgrade(""));
        let (server, _) = accept(backend);
        client.read_head();
        (client, server)
    };
    let (mut client, mut server) = open(&backends[0]);
    directory.write("ws-proxy.toml", &text(&place.path("b"), "0660"));
    program.signal(Signal::HUP);
    program.wait_for("event=config_reloaded");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let (mut other, mut other_server) = open(&backends[1]);
    assert_alive(&mut client, &mut server);
    assert_alive(&mut other, &mut other_server);
    // Removed, it leaves no file.
    let tcp = section("127.0.0.1:0", &unix(&app), "");
    directory.write("ws-proxy.toml", &tcp);
    program.signal(Signal::HUP);
    program.wait_for("event=retired");
    assert!(!path.exists());
    assert_alive(&mut client, &mut server);
}

#[test]
fn what_is_wrong_with_a_path_is_told() {
    let directory = Directory::new();
    for (text, part) in table([
        (section("unix:front.sock", "a:1", ""), "2: bind: "),
        (section("127.0.0.1:0", "unix:", ""), "3: backends: "),
        (section("127.0.0.1:0", "a:1", "socket_mode = \"0660\""), "has no effect on a port"),
        (section("unix:/a", "a:1", "socket_mode = \"0888\""), "octal digits"),
        (section("unix:/a", "a:1", "socket_mode = \"4755\""), "octal digits"),
        (section("unix:/a", "a:1", "socket_mode = 432"), "expected a string"),
        (section("unix:/a", "unix:/a", ""), "own listener"),
        (section("unix:/a", "a:1", "").repeat(2), "is taken by the section"),
        (format!("{}[admin]\nbind = \"unix:/a\"", section("unix:/b", "a:1", "")), "bind: "),
    ]) {
        let file = directory.write("ws-proxy.toml", &text);
        let error = Program::failure(&["check", "--config", file.to_str().unwrap()], &directory, 2);
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn nothing_is_left_of_many_tunnels() {
    let place = Place::new();
    let path = place.path("app.sock");
    let backend = UnixListener::bind(&path).unwrap();
    let mut program = Program::with_config(&section("127.0.0.1:0", &unix(&path), ""));
    let address = program.address();
    drop(tunnel(address, &backend));
    wait_until("it is closed", || program.has_logged("event=tunnel_end"));
    let before = program.descriptors();
    for _ in 0..100 {
        let (mut client, server) = tunnel(address, &backend);
        // An end with bytes unread is a reset.
        client.send("x");
        drop(server);
        client.expect_end();
    }
    program.wait_for_descriptors(before);
}
