//! A log that nobody reads: it holds up no tunnel, no handshake and no signal.

use std::io::{self, BufRead, BufReader, PipeReader};
use std::net::SocketAddr;
use std::process::Child;
use std::sync::mpsc::channel;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::support::{
    Backend, Directory, PATIENCE, Peer, Program, assert_alive, expect_refused, section, value,
};

/// Refused connections of [`Stalled::flood`]. With [`NAME`] in each line, they are more than the
/// pipe and the program have room for together.
const REFUSALS: usize = 400;
/// Length of the section's name.
const NAME: usize = 4_000;

/// A program whose log is read up to the line that it listens, and then no more.
struct Stalled {
    child: Child,
    log: BufReader<PipeReader>,
    address: SocketAddr,
    backend: Backend,
}

impl Stalled {
    fn start() -> Self {
        let backend = Backend::start();
        let directory = Directory::new();
        let (section, name) = (section(backend.address), "x".repeat(NAME));
        let text = format!("[drain]\ntimeout_ms = 60000\n{section}name = \"{name}\"\n");
        let file = directory.write("ws-proxy.toml", &text);
        let (reader, writer) = io::pipe().unwrap();
        let mut command = Program::command(&["--config", file.to_str().unwrap()], None);
        let child = command.stderr(writer).spawn().unwrap();
        // With the command goes this process's own end of the pipe.
        drop(command);
        let mut log = BufReader::new(reader);
        let mut line = String::new();
        while !line.contains("event=listening ") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the program has ended");
        }
        let address = value(&line, "address").parse().unwrap();
        Self { child, log, address, backend }
    }

    /// Makes more lines than there is room for.
    fn flood(&self) {
        for _ in 0..REFUSALS {
            let mut client = Peer::sending(self.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.read_refusal().0, 400);
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the program's end, and returns its exit code.
    fn wait(&mut self) -> Option<i32> {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        let ended = poll(&mut fds, Some(&PATIENCE.try_into().unwrap())).unwrap();
        assert!(ended > 0, "the program does not end");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn tunnels_and_handshakes_go_on_and_a_signal_drains() {
    let mut program = Stalled::start();
    let mut before = Peer::tunnel(program.address, &program.backend);
    program.flood();
    assert_alive(&mut before.0, &mut before.1);
    let mut after = Peer::tunnel(program.address, &program.backend);
    assert_alive(&mut after.0, &mut after.1);

    program.signal(Signal::TERM);
    expect_refused(program.address);
    assert_alive(&mut before.0, &mut before.1);
    drop((before, after));
    assert_eq!(program.wait(), Some(0));
}

#[test]
fn a_second_signal_ends_it_now() {
    let mut program = Stalled::start();
    let mut tunnel = Peer::tunnel(program.address, &program.backend);
    program.flood();
    program.signal(Signal::TERM);
    expect_refused(program.address);
    assert_alive(&mut tunnel.0, &mut tunnel.1);
    program.signal(Signal::TERM);
    assert_eq!(program.wait(), Some(0));
    tunnel.0.expect_end();
    tunnel.1.expect_end();
}

#[test]
fn lines_that_had_no_room_are_counted_when_there_is_room() {
    let mut program = Stalled::start();
    program.flood();

    let (sender, lines) = channel();
    let empty = BufReader::new(io::pipe().unwrap().0);
    let log = std::mem::replace(&mut program.log, empty);
    std::thread::spawn(move || {
        // It ends with the program's end of the pipe.
        for line in log.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let (mut refused, mut dropped) = (0, 0);
    let mut count = |line: &str| {
        refused += usize::from(line.contains(" event=refused "));
        if line.contains(" level=warn event=log_lines_dropped ") {
            dropped += value(line, "lines").parse::<usize>().unwrap();
        }
        dropped > 0
    };
    while !count(&lines.recv_timeout(PATIENCE).expect("a line that counts the dropped ones")) {}
    program.signal(Signal::TERM);
    assert_eq!(program.wait(), Some(0));
    let rest: Vec<String> = lines.iter().collect();
    for line in &rest {
        count(line);
    }
    assert_eq!(refused + dropped, REFUSALS);
    // What is logged from then on is there, up to the last line.
    let last = rest.last().expect("a last line");
    assert!(last.contains(" event=stopped "), "{last}");
}
