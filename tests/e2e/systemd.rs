//! What the service manager hears (sd_notify(3)).

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use rustix::process::Signal;

use crate::support::{
    Backend, Directory, PATIENCE, Peer, Program, assert_alive, expect_refused, section, table,
};

/// A service manager's socket, and the folder that it is in.
fn manager() -> (UnixDatagram, Directory) {
    let directory = Directory::new();
    let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    (socket, directory)
}

/// The program with this configuration, as the manager starts it.
fn service(directory: &Directory, config: &str) -> Command {
    directory.write("ws-proxy.toml", config);
    let mut command = Program::command(&[], Some(directory.path()));
    command.env("NOTIFY_SOCKET", directory.path().join("notify"));
    command
}

fn next(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 64];
    let count = socket.recv(&mut bytes).expect("a notice");
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

#[test]
fn the_manager_hears_of_the_start_of_life_and_of_the_drain() {
    let backend = Backend::start();
    let (socket, directory) = manager();
    let drain = "[drain]\ntimeout_ms = 60000\nspread_ms = 60000\n";
    let config = format!("{drain}{0}{0}", section(backend.address));
    let mut command = service(&directory, &config);
    let mut program = Program::spawn(command.env("WATCHDOG_USEC", "20000"));
    assert_eq!(next(&socket), "READY=1\n");
    let address = program.address();
    let (mut client, mut server) = Peer::tunnel(address, &backend);
    for _ in 0..2 {
        assert_eq!(next(&socket), "WATCHDOG=1\n");
    }

    program.signal(Signal::USR1);
    while next(&socket) != "STOPPING=1\n" {}
    expect_refused(address);
    assert_alive(&mut client, &mut server);
    // A drain is life, and begins once.
    program.signal(Signal::TERM);
    for _ in 0..2 {
        assert_eq!(next(&socket), "WATCHDOG=1\n");
    }
    drop((client, server));
    assert!(program.wait().success());
}

#[test]
fn the_manager_hears_of_each_reload_and_of_its_end() {
    let backend = Backend::start();
    let (socket, directory) = manager();
    let mut program = Program::spawn(&mut service(&directory, &section(backend.address)));
    assert_eq!(next(&socket), "READY=1\n");
    let address = program.address();
    // One that fails ends as well.
    for text in [section(backend.address), String::new()] {
        directory.write("ws-proxy.toml", &text);
        program.signal(Signal::HUP);
        let notice = next(&socket);
        let time = notice.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        assert!(time.parse::<u64>().unwrap() > 0);
        assert_eq!(next(&socket), "READY=1\n");
    }
    Peer::tunnel(address, &backend);
}

#[test]
fn the_watchdog_of_another_process_and_none_is_not_fed() {
    for environment in table([
        &[][..],
        &[("WATCHDOG_USEC", "0")],
        &[("WATCHDOG_USEC", "soon")],
        &[("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")],
    ]) {
        let (socket, directory) = manager();
        let mut command = service(&directory, &section("127.0.0.1:1"));
        let mut program = Program::spawn(command.envs(environment.iter().copied()));
        program.address();
        program.signal(Signal::TERM);
        assert!(program.wait().success());
        assert_eq!([next(&socket), next(&socket)], ["READY=1\n", "STOPPING=1\n"]);
    }
}

#[test]
fn a_program_that_cannot_listen_is_not_ready() {
    let (socket, directory) = manager();
    let config = section("127.0.0.1:1");
    let taken = config.replace("127.0.0.1:0", "192.0.2.1:1");
    let output = service(&directory, &format!("{config}{taken}")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err());
}

#[test]
fn a_manager_that_has_gone_is_a_line_and_no_end() {
    let (socket, directory) = manager();
    drop(socket);
    let mut program = Program::spawn(&mut service(&directory, &section("127.0.0.1:1")));
    program.wait_for("level=warn event=notify_failed ");
    program.address();
    program.signal(Signal::TERM);
    assert!(program.wait().success());
}

/// Sends to the manager until its socket holds no more.
fn fill(directory: &Directory) {
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(directory.path().join("notify")).unwrap();
    sender.set_nonblocking(true).unwrap();
    let error = loop {
        if let Err(error) = sender.send(b"FILLED=1\n") {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
}

#[test]
fn a_manager_that_does_not_read_holds_up_nothing() {
    let backend = Backend::start();
    let (socket, directory) = manager();
    fill(&directory);
    let mut command = service(&directory, &section(backend.address));
    let mut program = Program::spawn(command.env("WATCHDOG_USEC", "20000"));
    Peer::tunnel(program.address(), &backend);
    // It is told as soon as it reads.
    while next(&socket) != "READY=1\n" {}
    fill(&directory);
    program.signal(Signal::TERM);
    assert!(program.wait().success());
}
