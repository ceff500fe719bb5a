//! Commands beside a running proxy: `health` of an address, `drain` and `echo`.

use rustix::process::Signal;
use tungstenite::Message;

use crate::support::{
    Backend, Directory, Peer, Program, ProxyProgram, table, taken_port, wait_until,
};

/// Runs a command of the program that succeeds, and has nothing to say.
fn succeed(arguments: &[&str]) {
    assert_eq!(
        Program::output(arguments, None),
        (0, String::new(), String::new()),
        "{arguments:?}"
    );
}

/// Standard error of a command that fails because of the machine.
fn failure(arguments: &[&str]) -> String {
    Program::failure(arguments, &Directory::new(), 1)
}

/// A wrong command line is named.
fn assert_usage(arguments: &[&str], part: &str) {
    let message = Program::failure(arguments, &Directory::new(), 2);
    assert!(message.contains(part), "no {part} in {message}");
}

mod health {
    use super::*;

    /// The command, and the one that it has replaced.
    const COMMANDS: [&str; 2] = ["health", "probe"];

    #[test]
    fn a_proxy_answers_and_neither_its_backend_nor_its_log_hears_of_it() {
        let backend = Backend::start();
        let mut program = Program::start(
            &[
                "--bind",
                "127.0.0.1:0",
                "--backend",
                &backend.address.to_string(),
                "--log-level",
                "debug",
            ],
            None,
        );
        let address = program.address().to_string();
        for command in table(COMMANDS) {
            for arguments in
                [&[command, &address][..], &[command, "--timeout-ms", "20000", &address]]
            {
                succeed(arguments);
                program.wait_for("level=debug event=silent");
            }
        }
        assert!(!backend.has_waiting());
        program.signal(Signal::TERM);
        assert_eq!(program.wait().code(), Some(0));
        let told_of_client =
            |line: &String| line.contains("client=") && !line.contains("level=debug");
        assert_eq!(program.rest_of_log().into_iter().find(told_of_client), None);
    }

    #[test]
    fn a_proxy_that_is_full_is_alive() {
        let proxy = ProxyProgram::start("max_connections = 1", "");
        let _tunnel = proxy.tunnel();
        for command in table(COMMANDS) {
            succeed(&[command, &proxy.address.to_string()]);
        }
    }

    #[test]
    fn where_nobody_listens_it_fails() {
        let (listener, free) = taken_port();
        drop(listener);
        let free = free.to_string();
        for command in table(COMMANDS) {
            let message = failure(&[command, &free]);
            assert!(message.contains(&free) && message.contains("refused"), "{message}");
        }
    }

    #[test]
    fn what_is_taken_by_the_kernel_alone_is_no_answer() {
        let (_listener, hung) = taken_port();
        for command in table(COMMANDS) {
            let message = failure(&[command, "--timeout-ms", "100", &hung.to_string()]);
            assert!(message.contains("no answer within 100 ms"), "{message}");
        }
    }

    #[test]
    fn the_echo_server_answers_and_the_files_here_are_not_read() {
        let mut echo = Program::start(&["echo", "--bind", "127.0.0.1:0"], None);
        let (directory, address) = (Directory::new(), echo.address().to_string());
        directory.write("ws-proxy.toml", "[admin]\nbind = \"127.0.0.1:1\"\n");
        let (code, ..) = Program::output(&["health"], Some(directory.path()));
        assert_eq!(code, 2, "the file is faulty");
        for command in table(COMMANDS) {
            let output = Program::output(&[command, &address], Some(directory.path()));
            assert_eq!(output, (0, String::new(), String::new()), "{command}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_named() {
        for (arguments, part) in table([
            (&["probe"][..], "host:port"),
            (&["health", "127.0.0.1:1", "127.0.0.1:2"], "127.0.0.1:2"),
            (&["health", "127.0.0.1:1", "--live"], "--live"),
            (&["health", "127.0.0.1:1", "--admin", "127.0.0.1:2"], "--admin"),
            (&["health", "--config", "a.toml", "127.0.0.1:1"], "--config"),
            (&["--config", "a.toml", "health", "127.0.0.1:1"], "--config"),
        ]) {
            assert_usage(arguments, part);
        }
        for command in table(COMMANDS) {
            for (arguments, part) in table([
                (&["127.0.0.1"][..], "host:port"),
                (&["127.0.0.1:1", "--timeout-ms", "0"], "--timeout-ms"),
                (&["127.0.0.1:1", "--timeout-ms", "soon"], "--timeout-ms"),
            ]) {
                assert_usage(&[&[command], arguments].concat(), part);
            }
        }
    }
}

mod drain {
    use super::*;

    #[test]
    fn it_drains_and_the_sigterm_after_it_is_still_the_first() {
        let mut proxy = ProxyProgram::start("", "delay_ms = 60000\ntimeout_ms = 120000");
        let (mut client, mut server) = proxy.tunnel();
        let program = &mut proxy.program;
        let pid = program.pid().as_raw_nonzero().to_string();
        // A hook may run twice, when the kubelet has been restarted.
        for action in table(["drain", "none"]) {
            succeed(&["drain", "--pid", &pid]);
            program.wait_for(&format!("event=signal signal=Usr1 action={action}"));
        }
        program.signal(Signal::TERM);
        program.wait_for("event=signal signal=Term action=none");
        client.send("up");
        server.expect("up");
        program.signal(Signal::TERM);
        program.wait_for("event=signal signal=Term action=leave");
        client.expect_end();
        assert_eq!(program.wait().code(), Some(0));
    }

    #[test]
    fn what_it_begins_ends_by_itself() {
        let mut program =
            Program::start(&["--bind", "127.0.0.1:0", "--backend", "127.0.0.1:1"], None);
        program.address();
        let pid = program.pid().as_raw_nonzero().to_string();
        succeed(&["drain", "--pid", &pid]);
        assert_eq!(program.wait().code(), Some(0));
    }

    #[test]
    fn nobody_else_is_sent_a_signal() {
        // This test would not survive it.
        let message = failure(&["drain", "--pid", &std::process::id().to_string()]);
        assert!(message.contains("not a ws-proxy") && message.contains("--pid"), "{message}");
    }

    #[test]
    fn an_admin_listener_that_is_not_there_is_named_where_process_1_is_no_proxy() {
        let (listener, free) = taken_port();
        drop(listener);
        let directory = Directory::new();
        let text = format!(
            "[admin]\nbind = \"{free}\"\n[[ws_proxy]]\nbind = \"127.0.0.1:0\"\n\
             backends = [\"127.0.0.1:1\"]\n"
        );
        directory.write("ws-proxy.toml", &text);
        for arguments in table([&["drain"][..], &["drain", "--wait"]]) {
            let message = Program::failure(arguments, &directory, 1);
            assert!(message.contains(&free.to_string()), "{message}");
            assert!(message.contains("refused"), "{message}");
        }
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        // More than the kernel's highest number of a process, 2^22 (proc(5), pid_max).
        let message = failure(&["drain", "--pid", "2000000000"]);
        assert!(message.contains("2000000000"), "{message}");
        for number in table(["0", "-1", "one"]) {
            assert_usage(&["drain", "--pid", number], "--pid");
        }
    }
}

mod echo {
    use super::*;

    #[test]
    fn every_message_comes_back_until_it_is_told_to_end() {
        let mut program = Program::start(&["echo", "--bind", "127.0.0.1:0"], None);
        let address = program.address();
        let connect = || {
            tungstenite::client(format!("ws://{address}/"), Peer::connect(address).stream)
                .unwrap()
                .0
        };
        let (mut one, mut two) = (connect(), connect());
        for message in [Message::text("hi"), Message::binary(vec![0; 70_000])] {
            for client in [&mut one, &mut two] {
                client.send(message.clone()).unwrap();
                assert!(client.read().unwrap() == message);
            }
        }
        program.signal(Signal::TERM);
        assert_eq!(program.wait().code(), Some(0));
        wait_until("its clients are let go", || one.read().is_err());
    }

    #[test]
    fn a_port_that_cannot_be_had_is_named() {
        let (_listener, taken) = taken_port();
        let taken = taken.to_string();
        let message = failure(&["echo", "--bind", &taken]);
        assert!(message.contains(&taken) && message.contains("--bind"), "{message}");
        assert_usage(&["echo", "--bind", "nowhere"], "--bind");
    }
}
