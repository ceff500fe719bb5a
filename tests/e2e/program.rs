//! The program's command line and configuration.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};

use rustix::process::Signal;
use tungstenite::Message;

use crate::support::{Backend, Directory, Peer, Program, section, table, taken_port, value};

/// A client's message reaches this backend through the proxy.
fn assert_leads_to(address: SocketAddr, backend: &Backend) {
    let (mut client, mut server) = Peer::tunnel(address, backend);
    client.send("hello");
    server.expect("hello");
}

#[test]
fn each_section_has_its_own_port_and_backends() {
    let (one, two, three) = (Backend::start(), Backend::start(), Backend::start());
    let mut program = Program::with_config(&format!(
        "{}name = \"one\"\n[[ws_proxy]]\nname = \"two\"\nbind = \"127.0.0.1:0\"\n\
         backends = [\"{}\", \"ws://{}\"]\n",
        section(one.address),
        two.address,
        three.address,
    ));
    let mut address = || {
        let line = program.wait_for("event=listening");
        (value(&line, "section").to_owned(), value(&line, "address").parse().unwrap())
    };
    let mut addresses = [address(), address()];
    addresses.sort();
    let [(_, address_one), (_, address_two)] = addresses;
    assert_ne!(address_one, address_two);
    // The rotation of one section is not that of the other.
    assert_leads_to(address_two, &two);
    assert_leads_to(address_one, &one);
    assert_leads_to(address_two, &three);
    assert_leads_to(address_one, &one);
    assert_leads_to(address_two, &two);
}

#[test]
fn port_zero_is_chosen_and_logged() {
    let backend = Backend::start();
    let mut program = Program::with_config(&section(backend.address));
    let address = program.address();
    assert_ne!(address.port(), 0);
    assert_leads_to(address, &backend);
}

#[test]
fn flags_work_without_a_file() {
    let (one, two) = (Backend::start(), Backend::start());
    let (first, second) = (one.address.to_string(), format!("ws://{}", two.address));
    let arguments = [
        "--bind",
        "127.0.0.1:0",
        "--backend",
        &first,
        "--backend",
        &second,
        "--connect-timeout-ms",
        "3000",
        "--read-timeout-ms",
        "200",
    ];
    let mut program = Program::start(&arguments, None);
    let address = program.address();
    assert_leads_to(address, &one);
    assert_leads_to(address, &two);
    let stalled = Peer::sending(address, "GET /").read_text_to_end();
    assert!(stalled.starts_with("HTTP/1.1 408 "), "{stalled}");
}

#[test]
fn an_ipv6_address_is_listened_on() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("this machine has no IPv6");
        return;
    }
    let backend = Backend::start();
    let mut program =
        Program::start(&["--bind", "[::1]:0", "--backend", &backend.address.to_string()], None);
    let address = program.address();
    assert!(address.is_ipv6(), "{address}");
    assert_leads_to(address, &backend);
}

#[test]
fn a_file_in_the_working_directory_is_used_and_the_log_says_so() {
    let backend = Backend::start();
    for name in table(["ws-proxy.toml", "rws.config.toml"]) {
        let directory = Directory::new();
        directory.write(name, &section(backend.address));
        let mut program = Program::start(&[], Some(directory.path()));
        let line = program.wait_for("event=config ");
        assert!(line.contains(name), "{line}");
        assert_leads_to(program.address(), &backend);
    }
}

#[test]
fn of_both_files_the_own_one_is_used() {
    let backend = Backend::start();
    let directory = Directory::new();
    directory.write("ws-proxy.toml", &section(backend.address));
    directory.write("rws.config.toml", "this is not even TOML");
    let mut program = Program::start(&[], Some(directory.path()));
    assert_leads_to(program.address(), &backend);
}

#[test]
fn a_named_file_wins_over_the_working_directory() {
    let backend = Backend::start();
    let directory = Directory::new();
    directory.write("ws-proxy.toml", "this is not even TOML");
    directory.write("other.toml", &section(backend.address));
    let mut program = Program::start(&["--config", "other.toml"], Some(directory.path()));
    assert_leads_to(program.address(), &backend);
}

#[test]
fn nothing_at_all_gives_a_short_usage() {
    let usage = Program::failure(&[], &Directory::new(), 2);
    for part in ["--config", "--bind", "check", "demo", "--help"] {
        assert!(usage.contains(part), "no {part} in {usage}");
    }
    assert!(usage.lines().count() <= 15, "{usage}");
}

#[test]
fn version_and_help_are_printed() {
    let (code, stdout, _) = Program::output(&["--version"], None);
    assert_eq!((code, stdout.trim()), (0, concat!("ws-proxy ", env!("CARGO_PKG_VERSION"))));
    let commands =
        ["check", "close", "demo", "drain", "echo", "health", "probe", "reload", "tunnels"];
    for command in commands.into_iter().map(Some).chain([None]) {
        let arguments: Vec<_> = command.into_iter().chain(["--help"]).collect();
        let (code, stdout, stderr) = Program::output(&arguments, None);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(stdout.contains("Usage: ws-proxy"), "{stdout}");
    }
    let (_, help, _) = Program::output(&["--help"], None);
    let flags = [
        "--config",
        "--bind",
        "--backend",
        "--connect-timeout-ms",
        "--read-timeout-ms",
        "--log-level",
    ];
    for part in flags.into_iter().chain(commands) {
        assert!(help.contains(part), "no {part} in {help}");
    }
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let directory = Directory::new();
    directory.write("ws-proxy.toml", &section("127.0.0.1:1"));
    for (arguments, code) in
        table([(&["--help"][..], 0), (&["--version"], 0), (&["check"], 0), (&["serve"], 2)])
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Program::command(arguments, Some(directory.path()));
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        assert_eq!(command.status().unwrap().code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn a_wrong_command_line_is_named() {
    let cases = table::<(&[&str], &str), 12>([
        (&["--colour"], "--colour"),
        (&["serve"], "serve"),
        (&["--bind", "127.0.0.1:0"], "--backend"),
        (&["--backend", "a:1"], "--bind"),
        (&["--bind", "127.0.0.1:0", "--backend", "a:b"], "--backend"),
        (&["--bind", "127.0.0.1", "--backend", "a:1"], "--bind"),
        (
            &["--bind", "127.0.0.1:0", "--backend", "a:1", "--read-timeout-ms", "0"],
            "--read-timeout-ms",
        ),
        (
            &["--bind", "127.0.0.1:0", "--backend", "a:1", "--connect-timeout-ms", "0"],
            "--connect-timeout-ms",
        ),
        (&["--bind", "127.0.0.1:0", "--backend", "a:1", "--connect-timeout-ms", "-5"], "-5"),
        (&["--log-level", "loud", "check"], "--log-level"),
        (&["check", "--config"], "--config"),
        (&["demo", "--bind", "nowhere"], "--bind"),
    ]);
    let directory = Directory::new();
    for (arguments, part) in cases {
        let message = Program::failure(arguments, &directory, 2);
        assert!(message.contains(part), "no {part} in {message}");
    }
}

#[test]
fn each_fault_of_a_configuration_is_named_with_file_line_and_key() {
    let good = section("a:1");
    let with = |line: &str| format!("{good}{line}\n");
    // The text, the line and the key that the message must have, and a part of what it must say.
    let cases = table([
        (with("bind = = 1"), ":4:", "", ""),
        (with("[[ws_proxy"), ":4:", "", ""),
        (with("read_timeout_ms = \"5\""), ":4:", "read_timeout_ms", "string"),
        (with("read_timeout_ms = 1.5"), ":4:", "read_timeout_ms", "1.5"),
        (with("origins = \"https://a.example\""), ":4:", "origins", "string"),
        (with("max_connections = true"), ":4:", "max_connections", "boolean"),
        (with("host = \"client\""), ":4:", "host", "preserve"),
        (with("forwarded = \"maybe\""), ":4:", "forwarded", "append"),
        (with("connect_timeout_ms = 0"), ":4:", "connect_timeout_ms", "0"),
        (with("read_timeout_ms = 0"), ":4:", "read_timeout_ms", "0"),
        (with("response_timeout_ms = -1"), ":4:", "response_timeout_ms", "-1"),
        (with("max_connections = -1"), ":4:", "max_connections", "-1"),
        (with("origins = [\"example.com\"]"), ":4:", "origins", "example.com"),
        (with("conect_timeout_ms = 5"), ":4:", "conect_timeout_ms", "connect_timeout_ms"),
        (with("backend = [\"a:1\"]"), ":4:", "backend", "backends"),
        (with("colour = 5"), ":4:", "colour", ""),
        (format!("[drain]\ntimeout_ms = 0\n{good}"), ":2:", "timeout_ms", "0"),
        (format!("[drain]\ndelay_ms = 10000\n{good}"), ":2:", "delay_ms", "timeout_ms (8000)"),
        (format!("workers = -1\n{good}"), ":1:", "workers", "-1"),
        (format!("workers = \"many\"\n{good}"), ":1:", "workers", "string"),
        (good.replace("127.0.0.1:0", "127.0.0.1"), ":2:", "bind", "port"),
        (good.replace("127.0.0.1:0", "127.0.0.1:99999"), ":2:", "bind", "99999"),
        (good.replace("127.0.0.1:0", "a b:80"), ":2:", "bind", "a b:80"),
        (good.replace("bind", "# bind"), ":1:", "bind", "missing"),
        (good.replace("[\"a:1\"]", "[]"), ":3:", "backends", ""),
        (good.replace("backends", "# backends"), ":1:", "backends", ""),
        (good.replace("\"a:1\"", "\"a:1\",\n\"a:b\""), ":4:", "backends", "a:b"),
        (good.replace("a:1", "wss://a:1"), ":3:", "backends", "wss"),
        (good.replace("a:1", "http://a:1"), ":3:", "backends", "http://a:1"),
        (
            with(&good.replace("0.1:0", "0.1:1")).replace("0.1:0", "0.1:1"),
            ":5:",
            "bind",
            "127.0.0.1:1",
        ),
        ("[ws_proxy]\nbind = \"127.0.0.1:0\"\n".to_owned(), ":1:", "ws_proxy", "[[ws_proxy]]"),
    ]);
    let directory = Directory::new();
    for (text, line, key, part) in cases {
        directory.write("proxy.toml", &text);
        for arguments in
            table([&["--config", "proxy.toml"][..], &["check", "--config", "proxy.toml"]])
        {
            let message = Program::failure(arguments, &directory, 2);
            assert_eq!(message.lines().count(), 1, "{message}");
            let place = if key.is_empty() { line.to_owned() } else { format!("{line} {key}: ") };
            assert!(
                message.contains(&format!("proxy.toml{place}")),
                "no {place:?} in {message}{text}"
            );
            assert!(message.contains(part), "no {part:?} in {message}{text}");
        }
    }
}

#[test]
fn faults_without_a_line_name_the_file() {
    let directory = Directory::new();
    directory.write("empty.toml", "");
    directory.write("foreign.toml", "ip = \"127.0.0.1\"\n[cors]\nallow_all = true\n");
    for (file, part) in table([
        ("missing.toml", ""),
        ("empty.toml", "[[ws_proxy]]"),
        ("foreign.toml", "[[ws_proxy]]"),
    ]) {
        for arguments in table([&["--config", file][..], &["check", "--config", file]]) {
            let message = Program::failure(arguments, &directory, 2);
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(message.contains(file) && message.contains(part), "{message}");
        }
    }
}

#[test]
fn check_says_that_a_configuration_is_good_and_opens_nothing() {
    let (_listener, taken) = taken_port();
    let directory = Directory::new();
    directory.write(
        "ws-proxy.toml",
        &section("nowhere.invalid:1").replace("127.0.0.1:0", &taken.to_string()),
    );
    for arguments in table([
        &["check"][..],
        &["check", "--config", "ws-proxy.toml"],
        &["--config", "ws-proxy.toml", "check"],
    ]) {
        let (code, stdout, stderr) = Program::output(arguments, Some(directory.path()));
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(stdout.contains("ws-proxy.toml") && stdout.contains("good"), "{stdout}");
    }
}

#[test]
fn a_taken_port_ends_it_with_a_message() {
    let (_listener, taken) = taken_port();
    let message = Program::failure(
        &["--bind", &taken.to_string(), "--backend", "127.0.0.1:1"],
        &Directory::new(),
        1,
    );
    assert!(message.contains(&taken.to_string()), "{message}");
}

#[test]
fn a_second_section_whose_port_is_taken_leaves_nothing_running() {
    let (_listener, taken) = taken_port();
    let directory = Directory::new();
    let second = section("127.0.0.1:1").replace("127.0.0.1:0", &taken.to_string());
    directory.write("proxy.toml", &(section("127.0.0.1:1") + &second));
    // The program has ended when this returns, so nothing of the first section can be left.
    let message = Program::failure(&["--config", "proxy.toml"], &directory, 1);
    assert!(message.contains(&taken.to_string()), "{message}");
    assert!(!message.contains("event=listening"), "the first section was served: {message}");
}

#[test]
fn a_rws_config_with_sections_added_works_unchanged() {
    let backend = Backend::start();
    let directory = Directory::new();
    directory.write(
        "rws.config.toml",
        &format!(
            r#"
            # rust-web-server
            ip = "127.0.0.1"
            port = 7888
            thread_count = 200
            request_allocation_size_in_bytes = 10000

            [cors]
            allow_all = false
            allow_origins = ["https://foo.example", "https://bar.example"]
            allow_credentials = true
            max_age = "86400"

            [[virtual_host]]
            domain = "example.com"
            root = "/var/www/example"

            [[virtual_host]]
            domain = "example.org"
            root = "/var/www/example.org"

            [[ws_proxy]]
            bind = "127.0.0.1:0"
            backends = ["ws://{}"]
            connect_timeout_ms = 5000
            read_timeout_ms = 30000
            "#,
            backend.address
        ),
    );
    let mut program = Program::start(&[], Some(directory.path()));
    let line = program.wait_for("event=config_ignored");
    for key in ["ip", "port", "thread_count", "cors", "virtual_host"] {
        assert!(line.contains(key), "no {key} in {line}");
    }
    assert!(!line.contains("ws_proxy"), "{line}");
    assert_leads_to(program.address(), &backend);

    let (code, report, _) = Program::output(&["check"], Some(directory.path()));
    assert_eq!(code, 0);
    assert!(report.contains("ignored") && report.contains("cors"), "{report}");
}

#[test]
fn the_demo_shows_itself_and_goes_on_until_interrupted() {
    let mut program = Program::start(&["demo", "--bind", "127.0.0.1:0"], None);
    let address = program.address();
    let mut said = String::new();
    let mut stdout = BufReader::new(program.stdout());
    while !said.contains("Ctrl-C") {
        assert_ne!(stdout.read_line(&mut said).unwrap(), 0, "it ends after {said}");
    }
    for part in
        ["sent:", "received:", "websocat", "new WebSocket(", "/readyz", &format!("ws://{address}/")]
    {
        assert!(said.contains(part), "no {part} in {said}");
    }
    let message = |label: &str| said.split_once(label).unwrap().1.lines().next().unwrap().trim();
    assert_eq!(message("sent:"), message("received:"));

    let (mut client, _) =
        tungstenite::client(format!("ws://{address}/"), Peer::connect(address).stream).unwrap();
    for message in [Message::text("hi"), Message::binary(vec![0; 70_000])] {
        client.send(message.clone()).unwrap();
        assert!(client.read().unwrap() == message);
    }
    client.close(None).unwrap();
    while client.read().is_ok() {}
    drop(client);

    program.signal(Signal::INT);
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn a_demo_whose_port_is_taken_says_so() {
    let (_listener, taken) = taken_port();
    let message = Program::failure(&["demo", "--bind", &taken.to_string()], &Directory::new(), 1);
    assert!(message.contains(&taken.to_string()) && message.contains("--bind"), "{message}");
}
