//! The floor of the comparison: a relay that looks at nothing.
//!
//! For each client a connection to the backend is made, and from the first byte on everything is
//! passed on, both ways. All of it is one thread with one edge-triggered epoll, where each socket
//! is registered once, and with one buffer for all tunnels. A tunnel owns memory only while one of
//! its ends does not take what the other has sent. It has no limits, no deadlines and no fairness:
//! it is here to be measured against, not to be used.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use ws_proxy_load::Failure;
use ws_proxy_load::system::{BACKLOG, Poll, raise_open_files};

/// Token of the listener. A client's is twice its tunnel's place, a backend's that plus one.
const LISTENER: u64 = u64::MAX;
/// The scratch buffer.
const BUFFER: usize = 64 * 1024;
/// What a pipe is asked to hold; it stays as it is where that is more than allowed.
const PIPE: usize = 1024 * 1024;

/// Relays bytes between each client and a connection of its own to the backend.
#[derive(Debug, FromArgs)]
struct Arguments {
    /// where to listen
    #[argh(option, arg_name = "ip:port")]
    listen: SocketAddr,
    /// where to connect; several take turns
    #[argh(option, arg_name = "ip:port")]
    backend: Vec<SocketAddr>,
    /// pass bytes on through a pipe within the kernel
    #[argh(switch)]
    splice: bool,
}

/// The read end and the write end.
type Pipe = (OwnedFd, OwnedFd);

/// What was read and does not fit into the other socket yet.
#[derive(Debug)]
enum Rest {
    Nothing,
    Bytes(Box<[u8]>, usize),
    Piped(Box<Pipe>, usize),
}

/// One socket, and the way of what is read from it.
#[derive(Debug)]
struct Side {
    stream: TcpStream,
    /// There may be something to read.
    readable: bool,
    /// There may be room to write.
    writable: bool,
    /// It has sent everything that it will ever send, though that may not be read yet.
    hung_up: bool,
    /// Its end was read and passed on.
    ended: bool,
    /// Read from it, not yet written to the other.
    rest: Rest,
}

struct Relay {
    poll: Poll,
    listener: TcpListener,
    backends: Vec<SocketAddr>,
    /// Connections so far, which choose their backend by it.
    connects: usize,
    tunnels: Vec<Option<Box<[Side; 2]>>>,
    free: Vec<usize>,
    freed: Vec<usize>,
    scratch: Vec<u8>,
    /// Empty pipes, with `--splice`.
    pipes: Vec<Pipe>,
    splice: bool,
}

fn main() -> ExitCode {
    match run(&argh::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bare: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    raise_open_files(0)?;
    if arguments.backend.is_empty() {
        return Err("--backend is missing".into());
    }
    let listener = TcpListener::bind(arguments.listen)
        .map_err(|error| format!("listening on {}: {error}", arguments.listen))?;
    // Again, for the backlog.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    let poll = Poll::new()?;
    poll.add(&listener, LISTENER, EventFlags::IN)?;
    let mut relay = Relay {
        poll,
        listener,
        backends: arguments.backend.clone(),
        connects: 0,
        tunnels: Vec::new(),
        free: Vec::new(),
        freed: Vec::new(),
        scratch: vec![0; BUFFER],
        pipes: Vec::new(),
        splice: arguments.splice,
    };
    loop {
        relay.turn()?;
    }
}

impl Relay {
    /// Waits for events and handles them. Only what concerns all tunnels is an error.
    fn turn(&mut self) -> Result<(), Failure> {
        self.poll.wait(None)?;
        let mut next = 0;
        while let Some((token, flags)) = self.poll.event(next) {
            next += 1;
            if token == LISTENER {
                self.accept()?;
                continue;
            }
            let (place, side) = (token as usize / 2, token as usize % 2);
            let Some(tunnel) = &mut self.tunnels[place] else { continue };
            // An error shows at the next read or write.
            let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            tunnel[side].readable |= failed || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
            tunnel[side].writable |= failed || flags.contains(EventFlags::OUT);
            tunnel[side].hung_up |= failed || flags.contains(EventFlags::RDHUP);

            // Data that came in on a side goes on to the other; its new room is for the reverse.
            let over = self.pump(place, side).is_err() || self.pump(place, 1 - side).is_err();
            if over
                || self.tunnels[place]
                    .as_ref()
                    .is_none_or(|sides| sides.iter().all(|side| side.ended))
            {
                self.tunnels[place] = None;
                self.freed.push(place);
            }
        }
        // Only now can no event of this turn be taken for one of a new tunnel.
        self.free.append(&mut self.freed);
        Ok(())
    }

    fn accept(&mut self) -> Result<(), Failure> {
        loop {
            let client = match self.listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("accepting: {error}").into()),
            };
            // The backend is on this machine, where the kernel answers for it without a wait.
            let backend = self.backends[self.connects % self.backends.len()];
            self.connects += 1;
            match TcpStream::connect_timeout(&backend, Duration::from_secs(5)) {
                Ok(backend) => self.insert([client, backend])?,
                Err(error) => eprintln!("bare: connecting to {backend}: {error}"),
            }
        }
    }

    fn insert(&mut self, streams: [TcpStream; 2]) -> Result<(), Failure> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.tunnels.push(None);
            self.tunnels.len() - 1
        });
        for (stream, side) in streams.iter().zip(0..) {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            self.poll.add(stream, 2 * place as u64 + side, interest)?;
        }
        self.tunnels[place] = Some(Box::new(streams.map(|stream| Side {
            stream,
            readable: false,
            writable: true,
            hung_up: false,
            ended: false,
            rest: Rest::Nothing,
        })));
        Ok(())
    }

    /// Passes on what comes from one side, until that side has no more or the other has no room.
    ///
    /// An error is one of these sockets, and the end of the tunnel.
    fn pump(&mut self, place: usize, side: usize) -> Result<(), Errno> {
        let Some(tunnel) = &mut self.tunnels[place] else { return Ok(()) };
        let [client, backend] = &mut **tunnel;
        let (from, to) = if side == 0 { (client, backend) } else { (backend, client) };
        loop {
            if !to.writable {
                return Ok(());
            }
            match std::mem::replace(&mut from.rest, Rest::Nothing) {
                Rest::Nothing if from.readable && !from.ended => {}
                Rest::Nothing => return Ok(()),
                Rest::Bytes(bytes, sent) => {
                    let sent = sent + to.write(&bytes[sent..])?;
                    if sent < bytes.len() {
                        from.rest = Rest::Bytes(bytes, sent);
                    }
                    continue;
                }
                Rest::Piped(pipe, left) => {
                    let left = left - to.drain(&pipe, left)?;
                    if left > 0 {
                        from.rest = Rest::Piped(pipe, left);
                    } else {
                        self.pipes.push(*pipe);
                    }
                    continue;
                }
            }

            let read = if self.splice {
                let pipe = match self.pipes.pop() {
                    Some(pipe) => pipe,
                    None => new_pipe()?,
                };
                let read = from.fill(&pipe)?;
                match read {
                    Some(length @ 1..) => from.rest = Rest::Piped(Box::new(pipe), length),
                    _ => self.pipes.push(pipe),
                }
                read
            } else {
                let read = from.read(&mut self.scratch)?;
                if let Some(length @ 1..) = read {
                    // What comes is written at once; only what does not fit gets memory of its own.
                    let sent = to.write(&self.scratch[..length])?;
                    if sent < length {
                        from.rest = Rest::Bytes(self.scratch[sent..length].into(), 0);
                    }
                }
                read
            };
            if read == Some(0) {
                from.ended = true;
                // That the other side has gone in the meantime is no fault.
                let _ = to.stream.shutdown(Shutdown::Write);
            }
        }
    }
}

impl Side {
    /// One read: its length, zero at the end, or `None` if there is nothing.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        match self.stream.read(buffer) {
            Ok(length) => {
                // Less than asked for was everything, and what comes now is a new event; but the
                // event of the end may have been that of these bytes.
                if length < buffer.len() && !self.hung_up {
                    self.readable = false;
                }
                Ok(Some(length))
            }
            Err(error) => {
                self.readable = false;
                not_now(&error).map(|()| None)
            }
        }
    }

    /// One write; how much was written.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let sent = match self.stream.write(bytes) {
            Ok(sent) => sent,
            Err(error) => not_now(&error).map(|()| 0)?,
        };
        if sent < bytes.len() {
            self.writable = false;
        }
        Ok(sent)
    }

    /// As [`Side::read`], into a pipe. Less than asked for tells nothing here.
    fn fill(&mut self, pipe: &Pipe) -> Result<Option<usize>, Errno> {
        match splice(
            &self.stream,
            None,
            &pipe.1,
            None,
            PIPE,
            SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
        ) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::AGAIN | Errno::INTR) => {
                self.readable = false;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Side::write`], out of a pipe.
    fn drain(&mut self, pipe: &Pipe, length: usize) -> Result<usize, Errno> {
        match splice(
            &pipe.0,
            None,
            &self.stream,
            None,
            length,
            SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
        ) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR) => {
                self.writable = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

/// A new pipe, as large as it may be.
fn new_pipe() -> Result<Pipe, Errno> {
    let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A smaller pipe is as good, only slower.
    let _ = fcntl_setpipe_size(&pipe.1, PIPE);
    Ok(pipe)
}

/// Passes on every error but the one that says to come back later.
fn not_now(error: &std::io::Error) -> Result<(), Errno> {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => Ok(()),
        other => Err(other.unwrap_or(Errno::IO)),
    }
}
