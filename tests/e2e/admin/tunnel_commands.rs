//! The commands `tunnels` and `close`.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::Value;

use super::{Admin, body};
use crate::support::{Backend, Directory, From, Peer, Program, section, table, upgrade_but};

use From::{Backend as B, Client as C};

impl Admin {
    /// Runs a command that asks this listener; returns its exit code, stdout and stderr.
    fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        let (directory, address) = (Directory::new(), self.address.to_string());
        let arguments = [arguments, &["--admin", &address]].concat();
        Program::output(&arguments, Some(directory.path()))
    }

    /// Returns what a successful command prints.
    fn printed(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.command(arguments);
        assert_eq!((code, &*stderr), (0, ""), "{arguments:?}");
        stdout
    }

    /// Returns the ids that the command lists in JSON.
    fn listed(&self, arguments: &[&str]) -> Vec<u64> {
        let printed = self.printed(&[&["tunnels", "--json"], arguments].concat());
        let listed: Vec<Value> = serde_json::from_str(&printed).unwrap();
        listed.iter().map(|tunnel| tunnel["id"].as_u64().unwrap()).collect()
    }
}

/// Ends a tunnel whose client has got a Close with this code.
fn finish_close(client: &mut Peer, server: &mut Peer, code: u16) {
    client.send(C.close(code));
    server.expect(C.close(code));
    server.send(B.close(code));
}

#[test]
fn tunnels_are_listed_for_people() {
    let admin = Admin::start("", "");
    let header =
        ["ID", "SECTION", "CLIENT", "BACKEND", "PATH", "AGE", "IDLE", "MESSAGES(client/backend)"];
    let header = [&header[..], &["STATE"]].concat();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let printed = admin.printed(&["tunnels"]);
    assert_eq!(printed.lines().map(words).collect::<Vec<_>>(), [&header[..]]);

    let handshake = upgrade_but("/chat", "/room\u{202e}?token=secret");
    let (mut client, mut server, _) = Peer::tunnel_with(admin.proxy, &admin.backend, handshake);
    client.send(C.text("hello"));
    server.expect(C.text("hello"));
    let printed = loop {
        let printed = admin.printed(&["tunnels"]);
        if printed.contains(" 1/0 ") {
            break printed;
        }
        assert!(printed.contains(" 0/0 "), "{printed}");
    };
    let lines: Vec<_> = printed.lines().collect();
    let [head, line] = lines[..] else { panic!("{printed}") };
    assert_eq!(head.find("STATE"), line.find("open"), "{printed}");
    assert_eq!(head.find("CLIENT"), line.find(&client.stream.local_addr().unwrap().to_string()));
    let line = words(line);
    assert_eq!(line[0], admin.listed(&[])[0].to_string());
    assert_eq!(line[1], admin.proxy.to_string());
    assert_eq!(line[3], admin.backend.address.to_string());
    assert_eq!(line[4], r"/room\u{202e}");
    assert!(line[5].ends_with('s') && line[6].ends_with('s'), "{line:?}");
    assert_eq!(line[7..], ["1/0", "open"]);
}

#[test]
fn json_is_printed_as_it_came_and_filters_pass_through() {
    let admin = Admin::start("", "");
    assert_eq!(admin.printed(&["tunnels", "--json"]), "[]\n");
    let _tunnels: Vec<_> = (0..3).map(|_| Peer::tunnel(admin.proxy, &admin.backend)).collect();
    let ids = admin.listed(&[]);
    assert_eq!(ids.len(), 3);
    let (section, backend) = (admin.proxy.to_string(), admin.backend.address.to_string());
    for (arguments, count) in table([
        (&["--section", &section][..], 3),
        (&["--section", &section, "--backend", "other"], 0),
        (&["--section", "a&limit=3"], 0),
        (&["--backend", &backend], 3),
        (&["--client", "127.0.0.1"], 3),
        (&["--client", "::1"], 0),
        (&["--limit", "2"], 2),
        (&["--backend", &backend, "--limit", "1"], 1),
    ]) {
        assert_eq!(admin.listed(arguments), ids[..count], "{arguments:?}");
    }
    // Times differ from one request to the next, unless none are listed.
    let (_, text) = admin.ask("GET /tunnels?limit=0", "");
    assert_eq!(admin.printed(&["tunnels", "--json", "--limit", "0"]), body(&text));
}

#[test]
fn one_tunnel_is_closed_by_its_id() {
    let admin = Admin::start("", "");
    let (mut client, mut server) = Peer::tunnel(admin.proxy, &admin.backend);
    let id = admin.listed(&[])[0].to_string();
    let (mut other, mut others) = Peer::tunnel(admin.proxy, &admin.backend);
    let arguments = ["close", &id, "--code", "4008", "--reason", "go & stay+away"];
    assert_eq!(admin.printed(&arguments), "closing 1 tunnel\n");
    client.expect(B.frame(0x88, b"\x0f\xa8go & stay+away"));
    finish_close(&mut client, &mut server, 4_008);
    other.send(C.text("still here"));
    others.expect(C.text("still here"));
}

#[test]
fn tunnels_are_closed_by_filters() {
    let admin = Admin::start("", "");
    let backend = admin.backend.address.to_string();
    assert_eq!(admin.printed(&["close", "--backend", &backend]), "closing 0 tunnels\n");
    let mut tunnels: Vec<_> = (0..3).map(|_| Peer::tunnel(admin.proxy, &admin.backend)).collect();
    let none = ["close", "--backend", &backend, "--client", "127.0.0.2"];
    assert_eq!(admin.printed(&none), "closing 0 tunnels\n");
    // Hardly all of them are closed at once.
    let slowly = ["close", "--section", &admin.proxy.to_string(), "--spread-ms", "86400000"];
    assert_eq!(admin.printed(&slowly), "closing 3 tunnels\n");
    assert_eq!(admin.printed(&["close", "--backend", &backend]), "closing 3 tunnels\n");
    for (client, server) in &mut tunnels {
        assert_eq!(client.read_frame().close_code(), Some(1_001));
        finish_close(client, server, 1_001);
    }
}

#[test]
fn the_listener_and_its_token_are_found_in_the_configuration() {
    let (directory, backend) = (Directory::new(), Backend::start());
    let token = directory.write("token", "0123456789abcdef");
    let lines = format!("[admin]\nbind = \"127.0.0.1:0\"\ntoken_file = \"{}\"\n", token.display());
    let text = format!("{lines}{}", section(backend.address));
    let admin = Admin::start_with(backend, &text);
    let _tunnel = Peer::tunnel(admin.proxy, &admin.backend);
    let (code, _, message) = admin.command(&["tunnels"]);
    assert!(code == 1 && message.contains("answers 401"), "{message}");
    // A file found by chance may be broken.
    let found = Directory::new();
    found.write("ws-proxy.toml", "broken");
    let address = admin.address.to_string();
    let message = Program::failure(&["tunnels", "--admin", &address], &found, 1);
    assert!(message.contains("answers 401"), "{message}");
    // The one that it runs with has port 0.
    let text = text.replacen("127.0.0.1:0", &address, 1);
    let file = directory.write("named.toml", &text);
    let file = ["--config", file.to_str().unwrap()];
    let run = |arguments: &[&str]| {
        let (code, stdout, stderr) = Program::output(arguments, Some(directory.path()));
        assert_eq!((code, &*stderr), (0, ""), "{arguments:?}");
        stdout
    };
    assert_eq!(run(&["tunnels", file[0], file[1]]).lines().count(), 2);
    // The option may stand before the command as well.
    let close = [file[0], file[1], "close", "--client", "127.0.0.1"];
    assert_eq!(run(&close), "closing 1 tunnel\n");
}

#[test]
fn what_is_wrong_is_told_with_its_exit_code() {
    let admin = Admin::start("", "");
    let long = "x".repeat(124);
    for (arguments, expected, part) in table([
        (&["close"][..], 2, "which tunnels?"),
        (&["close", "--code", "1001"], 2, "which tunnels?"),
        (&["close", "1", "--backend", "a:1"], 2, "excludes"),
        (&["close", "1", "--client", "::1"], 2, "excludes"),
        (&["close", "one"], 2, "one"),
        (&["close", "1", "2"], 2, "2"),
        (&["close", "--client", "localhost"], 2, "localhost"),
        (&["close", "1"], 1, "answers 404:\n  there is no such tunnel"),
        (&["close", "1", "--code", "1005"], 1, "answers 400:\n  code=1005"),
        (&["close", "1", "--reason", &long], 1, "123 bytes"),
        (&["tunnels", "--limit", "10001"], 1, "from 0 to 10000"),
        (&["tunnels", "--limit", "many"], 2, "many"),
        (&["tunnels", "--client", "127.0.0.1:80"], 2, "127.0.0.1:80"),
    ]) {
        let (code, stdout, stderr) = admin.command(arguments);
        assert!(code == expected && stderr.contains(part), "{arguments:?}: {code} {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
    }
    let directory = Directory::new();
    let bare = directory.write("bare.toml", &section("127.0.0.1:1"));
    let bare = bare.to_str().unwrap();
    for arguments in table([
        &["tunnels"][..],
        &["close", "1"],
        &["tunnels", "--config", bare],
        &["close", "1", "--config", bare],
    ]) {
        let message = Program::failure(arguments, &directory, 2);
        assert!(message.contains("[admin]") && message.contains("--admin HOST:PORT"), "{message}");
    }
}

#[test]
fn a_response_that_is_cut_or_no_list_is_not_printed() {
    let directory = Directory::new();
    for (response, part) in table([
        ("Content-Length: 5\r\n\r\n[]", "after 2 of the 5 bytes"),
        ("Content-Length: 2\r\n\r\n{}", "no list of tunnels"),
        (&*format!("Content-Length: 16800000\r\n\r\n{}[]", " ".repeat(16_799_998)), "longer than"),
    ]) {
        let response = response.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                peer.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            // What is too long is not read to its end.
            let _ = write!(peer, "HTTP/1.1 200 OK\r\n{response}");
        });
        let arguments = ["tunnels", "--json", "--admin", &address];
        let message = Program::failure(&arguments, &directory, 1);
        assert!(message.contains(part), "{message}");
        server.join().unwrap();
    }
}
