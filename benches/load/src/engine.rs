//! The sockets of both sides, clients and backend, on one epoll.
//!
//! The epoll is level-triggered and each event leads to one read or one write, so that no tunnel
//! keeps the others waiting. All errors are final: a proxy that loses, adds or changes a byte, or
//! ends a tunnel of its own accord, has no figure.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use crate::system::Poll;
use crate::wire::{ACCEPT, ANSWER, Frames, request};
use crate::{Failure, while_doing};

/// Handshakes at once while tunnels are opened: fewer than the shortest accept queue here (128).
pub const OPENING: usize = 32;

/// The token of the listener; sockets have their place in the list.
const LISTENER: u64 = u64::MAX;
/// A head that is longer than this is no answer to what was sent.
const LONGEST_HEAD: usize = 16 * 1024;
/// For a connect to the proxy, whose listener is on this machine, and for the end of all tunnels.
const PATIENCE: Duration = Duration::from_secs(5);

/// The end of a tunnel that a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In front of the proxy.
    Client,
    /// Behind it.
    Backend,
}

/// Place at which the backend listens.
#[derive(Clone, Debug)]
pub enum Place {
    /// An address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| "write ip:port or unix:/path".into()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Rules for a tunnel that stands and for a message that has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// A backend answers each message with one of its own.
    pub echo: bool,
    /// A client that got an answer sends its next message.
    pub again: bool,
    /// A client that got its 101 closes.
    pub hang_up: bool,
}

/// Counts since [`Engine::restart_counts`].
#[derive(Debug, Default)]
pub struct Counts {
    /// Clients that got a proper 101.
    pub established: usize,
    /// Messages that came out of the proxy, on either side.
    pub messages: u64,
    /// Bytes of frames that came out of the proxy, on either side.
    pub bytes: u64,
    /// Nanoseconds from each client's message to its answer.
    pub round_trips: Vec<u64>,
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    role: Role,
    /// The part of the other side's head that has come; `None` once it was complete.
    head: Option<Vec<u8>>,
    /// Messages still to send, the current one included.
    to_send: u64,
    /// Bytes of the current one that are sent.
    sent: usize,
    /// Bytes of the other side's current message that have come.
    got: usize,
    /// True while epoll tells when it can be written to.
    wants_write: bool,
    /// Time of sending the last message.
    asked: Instant,
}

/// All sockets, and what they do.
pub struct Engine {
    poll: Poll,
    /// Of either kind: accept(2) is the same for both.
    listener: OwnedFd,
    proxy: SocketAddr,
    request: Vec<u8>,
    frames: Frames,
    /// Reads of all sockets go through here.
    scratch: Vec<u8>,
    sockets: Vec<Option<Socket>>,
    /// Free places in `sockets`.
    free: Vec<usize>,
    /// Places that were freed in this turn, for which an event may still be in the list.
    freed: Vec<usize>,
    clients: usize,
    backends: usize,
    /// Round trips that have begun and not ended.
    on_the_way: usize,
    /// The end of a tunnel is no error any more.
    closing: bool,
    /// Deadline for everything.
    deadline: Instant,
    /// Rules of this run.
    pub rules: Rules,
    /// Counts of this run.
    pub counts: Counts,
}

impl Engine {
    /// Listens as the backend; connects to nothing yet.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub fn new(
        proxy: SocketAddr,
        backend: &Place,
        size: usize,
        deadline: Instant,
        rules: Rules,
    ) -> Result<Self, Failure> {
        let listening = match backend {
            Place::Tcp(address) => TcpListener::bind(address).map(OwnedFd::from),
            Place::Unix(path) => {
                // Left by the run before.
                let _ = std::fs::remove_file(path);
                UnixListener::bind(path).map(OwnedFd::from)
            }
        };
        let listener = listening.map_err(while_doing(&format!("listening on {backend}")))?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER, EventFlags::IN)?;
        Ok(Self {
            poll,
            listener,
            proxy,
            request: request(proxy),
            frames: Frames::new(size),
            scratch: vec![0; 256 * 1024],
            sockets: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            clients: 0,
            backends: 0,
            on_the_way: 0,
            closing: false,
            deadline,
            rules,
            counts: Counts::default(),
        })
    }

    /// Does `count` handshakes, `parallel` at a time.
    ///
    /// # Errors
    ///
    /// If the proxy refuses one, or says something other than the backend's 101.
    pub fn open(&mut self, count: usize, parallel: usize) -> Result<(), Failure> {
        let before = self.counts.established;
        let mut begun = 0;
        while self.counts.established - before < count {
            while begun < count && begun - (self.counts.established - before) < parallel {
                self.connect()?;
                begun += 1;
            }
            self.turn(self.deadline)?;
        }
        Ok(())
    }

    /// Begins to send `count` messages on each socket of `role`.
    ///
    /// # Errors
    ///
    /// If a tunnel breaks.
    pub fn send(&mut self, role: Role, count: u64) -> Result<(), Failure> {
        for place in self.places(role) {
            self.begin_message(place, count)?;
        }
        Ok(())
    }

    /// Sends one message there and back on each tunnel, on a few tunnels at a time: thousands at
    /// once would show what memory the proxy needs for a burst.
    ///
    /// # Errors
    ///
    /// If a tunnel breaks.
    pub fn greet(&mut self) -> Result<(), Failure> {
        for some in self.places(Role::Client).chunks(OPENING) {
            for &place in some {
                self.begin_message(place, 1)?;
            }
            self.settle()?;
        }
        Ok(())
    }

    /// Lets the tunnels run for some time.
    ///
    /// # Errors
    ///
    /// If a tunnel breaks.
    pub fn run_for(&mut self, time: Duration) -> Result<(), Failure> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.turn(until)?;
        }
        Ok(())
    }

    /// Lets the tunnels run until this many bytes of frames have come out of the proxy.
    ///
    /// # Errors
    ///
    /// If a tunnel breaks.
    pub fn run_until_bytes(&mut self, bytes: u64) -> Result<(), Failure> {
        while self.counts.bytes < bytes {
            self.turn(self.deadline)?;
        }
        Ok(())
    }

    /// Waits for the end of every round trip that has begun; no new one begins.
    ///
    /// # Errors
    ///
    /// If a tunnel breaks.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let again = std::mem::replace(&mut self.rules.again, false);
        while self.on_the_way > 0 {
            self.turn(self.deadline)?;
        }
        self.rules.again = again;
        Ok(())
    }

    /// Closes the clients and waits for the proxy to close the other sides.
    ///
    /// # Errors
    ///
    /// If it does not within five seconds.
    pub fn close(&mut self) -> Result<(), Failure> {
        self.closing = true;
        for place in self.places(Role::Client) {
            self.remove(place);
        }
        self.recycle();
        let patience = Instant::now() + PATIENCE;
        while self.backends > 0 {
            if Instant::now() >= patience {
                return Err(
                    format!("the proxy left {} tunnels open behind it", self.backends).into()
                );
            }
            self.turn(patience)?;
        }
        self.closing = false;
        Ok(())
    }

    /// Forgets what was counted, and says what it was.
    pub fn restart_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Length of the frame that sockets of this role send, in bytes.
    #[must_use]
    pub fn frame_length(&self, role: Role) -> usize {
        self.frame(role).len()
    }

    fn frame(&self, role: Role) -> &[u8] {
        match role {
            Role::Client => &self.frames.from_client,
            Role::Backend => &self.frames.from_backend,
        }
    }

    fn places(&self, role: Role) -> Vec<usize> {
        let sockets = self.sockets.iter().enumerate();
        sockets
            .filter(|(_, socket)| socket.as_ref().is_some_and(|s| s.role == role))
            .map(|(at, _)| at)
            .collect()
    }

    /// Waits for events, until `until` at most, and handles them.
    fn turn(&mut self, until: Instant) -> Result<(), Failure> {
        let now = Instant::now();
        if now >= self.deadline {
            let (clients, answers) = (self.clients, self.on_the_way);
            return Err(format!(
                "out of time with {clients} clients and {answers} answers missing"
            )
            .into());
        }
        self.poll.wait(Some(until.min(self.deadline).saturating_duration_since(now)))?;
        let mut next = 0;
        while let Some((token, flags)) = self.poll.event(next) {
            next += 1;
            if token == LISTENER {
                self.accept()?;
                continue;
            }
            let place = token as usize;
            if flags.contains(EventFlags::OUT) {
                self.write(place)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                self.read(place)?;
            }
        }
        self.recycle();
        Ok(())
    }

    /// Gives places free whose events are all handled.
    fn recycle(&mut self) {
        self.free.append(&mut self.freed);
    }

    fn connect(&mut self) -> Result<(), Failure> {
        // The kernel answers for the proxy's listener, so that this connect does not wait.
        let failed = format!("connecting to {}", self.proxy);
        let stream =
            TcpStream::connect_timeout(&self.proxy, PATIENCE).map_err(while_doing(&failed))?;
        let sent =
            (&stream).write(&self.request).map_err(while_doing("sending the upgrade request"))?;
        if sent < self.request.len() {
            return Err("the upgrade request does not fit into an empty socket".into());
        }
        self.insert(stream, Role::Client)
    }

    fn accept(&mut self) -> Result<(), Failure> {
        loop {
            match rustix::net::accept(&self.listener) {
                Ok(stream) => self.insert(stream.into(), Role::Backend)?,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(while_doing("accepting from the proxy")(error)),
            }
        }
    }

    fn insert(&mut self, stream: TcpStream, role: Role) -> Result<(), Failure> {
        stream.set_nonblocking(true)?;
        // A Unix socket has no such delay, and no such option.
        let _ = stream.set_nodelay(true);
        let place = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(None);
            self.sockets.len() - 1
        });
        self.poll.add(&stream, place as u64, EventFlags::IN)?;
        let (head, asked) = (Some(Vec::new()), Instant::now());
        self.sockets[place] = Some(Socket {
            stream,
            role,
            head,
            to_send: 0,
            sent: 0,
            got: 0,
            wants_write: false,
            asked,
        });
        *self.number_of(role) += 1;
        Ok(())
    }

    fn remove(&mut self, place: usize) {
        if let Some(socket) = self.sockets[place].take() {
            *self.number_of(socket.role) -= 1;
            self.freed.push(place);
        }
    }

    fn number_of(&mut self, role: Role) -> &mut usize {
        match role {
            Role::Client => &mut self.clients,
            Role::Backend => &mut self.backends,
        }
    }

    fn read(&mut self, place: usize) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        let mut scratch = std::mem::take(&mut self.scratch);
        let outcome = match socket.stream.read(&mut scratch) {
            Ok(0) => self.ended(place, "closed"),
            Ok(length) if socket.head.is_some() => self.head_bytes(place, &scratch[..length]),
            Ok(length) => self.frame_bytes(place, &scratch[..length]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(())
            }
            Err(error) => self.ended(place, &error.to_string()),
        };
        self.scratch = scratch;
        outcome
    }

    /// The proxy has ended a connection, which is good only if its client has.
    fn ended(&mut self, place: usize, how: &str) -> Result<(), Failure> {
        let Some(socket) = &self.sockets[place] else { return Ok(()) };
        if self.closing || (self.rules.hang_up && socket.role == Role::Backend) {
            self.remove(place);
            return Ok(());
        }
        let got = String::from_utf8_lossy(socket.head.as_deref().unwrap_or_default());
        Err(format!("the proxy ended the connection to the {:?} ({how}) {got}", socket.role).into())
    }

    fn head_bytes(&mut self, place: usize, bytes: &[u8]) -> Result<(), Failure> {
        let Some(Socket { stream, role, head, .. }) = &mut self.sockets[place] else {
            return Ok(());
        };
        let Some(got) = head else { return Ok(()) };
        got.extend(bytes);
        if !got.ends_with(b"\r\n\r\n") {
            // Neither side has sent anything behind its head, so that the head's end is the end.
            if got.len() > LONGEST_HEAD || got.windows(4).any(|four| four == b"\r\n\r\n") {
                return Err(format!("not a head alone: {:?}", String::from_utf8_lossy(got)).into());
            }
            return Ok(());
        }

        let text = String::from_utf8_lossy(got);
        match *role {
            Role::Backend => {
                // The accept value of the answer is right for one key only.
                if !text.starts_with("GET /chat HTTP/1.1\r\n")
                    || !text.contains("dGhlIHNhbXBsZSBub25jZQ==")
                {
                    return Err(
                        format!("the backend was asked for something else: {text:?}").into()
                    );
                }
                if stream.write(ANSWER).map_err(while_doing("sending the 101"))? < ANSWER.len() {
                    return Err("the 101 does not fit into an empty socket".into());
                }
                *head = None;
            }
            Role::Client => {
                if !text.starts_with("HTTP/1.1 101 ") || !text.contains(ACCEPT) {
                    return Err(format!("the proxy did not switch: {text:?}").into());
                }
                *head = None;
                self.counts.established += 1;
                if self.rules.hang_up {
                    self.remove(place);
                }
            }
        }
        Ok(())
    }

    fn frame_bytes(&mut self, place: usize, mut bytes: &[u8]) -> Result<(), Failure> {
        self.counts.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
            let frame = match socket.role {
                Role::Client => &self.frames.from_backend,
                Role::Backend => &self.frames.from_client,
            };
            let rest = &frame[socket.got..];
            let (now, later) = bytes.split_at(rest.len().min(bytes.len()));
            if now != &rest[..now.len()] {
                return Err("the proxy changed, lost or doubled a byte".into());
            }
            socket.got += now.len();
            bytes = later;
            if socket.got == frame.len() {
                socket.got = 0;
                self.message(place)?;
            }
        }
        Ok(())
    }

    /// A message has come.
    fn message(&mut self, place: usize) -> Result<(), Failure> {
        self.counts.messages += 1;
        let Some(socket) = &self.sockets[place] else { return Ok(()) };
        match socket.role {
            Role::Backend if self.rules.echo => self.begin_message(place, 1),
            Role::Client if self.rules.echo => {
                let took = socket.asked.elapsed().as_nanos();
                self.counts.round_trips.push(u64::try_from(took).unwrap_or(u64::MAX));
                self.on_the_way -= 1;
                if self.rules.again { self.begin_message(place, 1) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn begin_message(&mut self, place: usize, count: u64) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        socket.to_send += count;
        if self.rules.echo && socket.role == Role::Client {
            socket.asked = Instant::now();
            self.on_the_way += 1;
        }
        self.write(place)
    }

    /// One write, of what is left of the current message.
    fn write(&mut self, place: usize) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        if socket.to_send > 0 {
            let frame = match socket.role {
                Role::Client => &self.frames.from_client,
                Role::Backend => &self.frames.from_backend,
            };
            socket.sent += match socket.stream.write(&frame[socket.sent..]) {
                Ok(sent) => sent,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    0
                }
                Err(error) => return self.ended(place, &error.to_string()),
            };
            if socket.sent == frame.len() {
                socket.sent = 0;
                socket.to_send -= 1;
            }
        }
        let wants_write = socket.to_send > 0;
        if wants_write != socket.wants_write {
            socket.wants_write = wants_write;
            let out = if wants_write { EventFlags::OUT } else { EventFlags::empty() };
            self.poll.modify(&socket.stream, place as u64, EventFlags::IN | out)?;
        }
        Ok(())
    }
}
