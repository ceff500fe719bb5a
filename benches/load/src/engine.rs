//! The sockets of both sides, clients and backend, on one epoll.
//!
//! The epoll is level-triggered and each event leads to one read or one write, so that no tunnel
//! keeps the others waiting. All errors are final: a proxy that loses, adds or changes a byte, or
//! ends a tunnel of its own accord, has no figure.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::system::{BACKLOG, Poll};
use crate::wire::{ACCEPT, ANSWER, Batch, CLOSE_OF_BACKEND, CLOSE_OF_CLIENT, Frames, request};
use crate::{Failure, while_doing};

/// Handshakes at once while tunnels are opened: fewer than the shortest accept queue here (128).
pub const OPENING: usize = 32;

/// The token of the first listener; sockets have their place in the list.
pub(crate) const LISTENER: u64 = u64::MAX / 2;
/// Connects of a storm between two looks at what has happened: its backend is in this thread too.
const STORM_AT_ONCE: usize = 64;
/// A head that is longer than this is no answer to what was sent.
pub(crate) const LONGEST_HEAD: usize = 16 * 1024;
/// For a connect to the proxy, whose listener is on this machine, and for the end of all tunnels.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

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
    /// The next message is sent on another tunnel, chosen at random.
    pub wander: bool,
    /// A client that got its 101 closes.
    pub hang_up: bool,
    /// The proxy may close: a Close is answered, and the end of a connection is no error.
    pub drain: bool,
}

/// Counts since [`Engine::restart_counts`].
#[derive(Debug, Default)]
pub struct Counts {
    /// Clients that got a proper 101.
    pub established: usize,
    /// Messages that came out of the proxy, on either side.
    pub messages: u64,
    /// Bytes of frames that came out of the proxy, headers included, on either side.
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
    /// True until a connect that does not wait has completed.
    connecting: bool,
    /// Batches still to send, the current one included.
    to_send: u64,
    /// Bytes of the current one that are sent.
    sent: usize,
    /// Bytes of the other side's current batch that have come.
    got: usize,
    /// True while epoll tells when it can be written to.
    wants_write: bool,
    /// True from a client's message to its answer.
    waits: bool,
    /// Time of sending the last message.
    asked: Instant,
}

/// All sockets, and what they do.
pub struct Engine {
    poll: Poll,
    /// Of either kind: accept(2) is the same for both.
    listeners: Vec<OwnedFd>,
    proxy: SocketAddr,
    /// Addresses that clients connect from, in turn; empty for any.
    sources: Vec<IpAddr>,
    /// Clients so far, which choose their source by it.
    connects: usize,
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
    /// Clients in a random order, for [`Engine::wander`], and the next place in it.
    order: Vec<usize>,
    cursor: usize,
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
    /// Listens as the backends; connects to nothing yet.
    ///
    /// # Errors
    ///
    /// If a port is taken.
    pub fn new(
        proxy: SocketAddr,
        sources: &[IpAddr],
        backends: &[Place],
        frames: Frames,
        deadline: Instant,
        rules: Rules,
    ) -> Result<Self, Failure> {
        let poll = Poll::new()?;
        let listeners = listen_on_all(&poll, backends)?;
        Ok(Self {
            poll,
            listeners,
            proxy,
            sources: sources.to_vec(),
            connects: 0,
            request: request(proxy),
            frames,
            scratch: vec![0; 256 * 1024],
            sockets: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            clients: 0,
            backends: 0,
            order: Vec::new(),
            cursor: 0,
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

    /// Begins `count` handshakes as fast as it can and waits for the last 101.
    ///
    /// # Errors
    ///
    /// As for [`Engine::open`].
    pub fn storm(&mut self, count: usize) -> Result<(), Failure> {
        let before = self.counts.established;
        for begun in 1..=count {
            self.connect_at_once()?;
            if begun % STORM_AT_ONCE == 0 {
                self.turn(Instant::now())?;
            }
        }
        while self.counts.established - before < count {
            self.turn(self.deadline)?;
        }
        Ok(())
    }

    /// Begins to send `count` batches on each socket of `role`.
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

    /// Keeps `active` messages on their way for some time, each on a tunnel chosen at random.
    ///
    /// # Errors
    ///
    /// If a tunnel breaks.
    pub fn wander(&mut self, active: usize, time: Duration) -> Result<(), Failure> {
        self.order = self.places(Role::Client);
        // Fisher and Yates, with the generator of Knuth's MMIX: the same order for each proxy.
        let mut state = 1_u64;
        for last in (1..self.order.len()).rev() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            self.order.swap(last, (state >> 33) as usize % (last + 1));
        }
        (self.cursor, self.rules.again, self.rules.wander) = (0, true, true);
        for _ in 0..active {
            self.ask_elsewhere()?;
        }
        self.run_for(time)?;
        (self.rules.again, self.rules.wander) = (false, false);
        self.settle()
    }

    /// Sends a message on the next tunnel that has none on its way.
    fn ask_elsewhere(&mut self) -> Result<(), Failure> {
        for _ in 0..self.order.len() {
            let place = self.order[self.cursor];
            self.cursor = (self.cursor + 1) % self.order.len();
            if self.sockets[place].as_ref().is_some_and(|socket| !socket.waits) {
                return self.begin_message(place, 1);
            }
        }
        Ok(())
    }

    /// Lets the proxy end all tunnels.
    ///
    /// # Errors
    ///
    /// If it leaves one open.
    pub fn drain(&mut self) -> Result<(), Failure> {
        self.rules.drain = true;
        while self.clients + self.backends > 0 {
            self.turn(self.deadline)?;
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

    /// Length of the batch that sockets of this role send, in bytes.
    #[must_use]
    pub fn batch_length(&self, role: Role) -> usize {
        self.frames.from(role).bytes.len()
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
            if token >= LISTENER {
                self.accept((token - LISTENER) as usize)?;
                continue;
            }
            let place = token as usize;
            if self.sockets[place].as_ref().is_some_and(|socket| socket.connecting) {
                self.connected(place)?;
                continue;
            }
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
        self.ask_upgrade(&stream)?;
        self.insert(stream, Role::Client)?;
        Ok(())
    }

    /// Begins a connect and does not wait for it, even if the proxy's backlog is full.
    fn connect_at_once(&mut self) -> Result<(), Failure> {
        let failed = format!("connecting to {}", self.proxy);
        let family = if self.proxy.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        if !self.sources.is_empty() {
            let source = self.sources[self.connects % self.sources.len()];
            rustix::net::bind(&socket, &SocketAddr::new(source, 0))
                .map_err(while_doing(&format!("connecting from {source}")))?;
        }
        self.connects += 1;
        let is_connected = match rustix::net::connect(&socket, &self.proxy) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(error) => return Err(while_doing(&failed)(error)),
        };
        let stream = TcpStream::from(socket);
        if is_connected {
            self.ask_upgrade(&stream)?;
            self.insert(stream, Role::Client)?;
            return Ok(());
        }
        let place = self.insert(stream, Role::Client)?;
        if let Some(socket) = &mut self.sockets[place] {
            socket.connecting = true;
            self.poll.modify(&socket.stream, place as u64, EventFlags::OUT)?;
        }
        Ok(())
    }

    /// A connect that did not wait has completed, or failed.
    fn connected(&mut self, place: usize) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        socket.connecting = false;
        rustix::net::sockopt::socket_error(&socket.stream)?
            .map_err(while_doing(&format!("connecting to {}", self.proxy)))?;
        self.poll.modify(&socket.stream, place as u64, EventFlags::IN)?;
        let Some(socket) = &self.sockets[place] else { return Ok(()) };
        self.ask_upgrade(&socket.stream)
    }

    fn ask_upgrade(&self, mut stream: &TcpStream) -> Result<(), Failure> {
        let sent =
            stream.write(&self.request).map_err(while_doing("sending the upgrade request"))?;
        if sent < self.request.len() {
            return Err("the upgrade request does not fit into an empty socket".into());
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> Result<(), Failure> {
        while let Some(stream) = accept(&self.listeners[listener])? {
            self.insert(stream, Role::Backend)?;
        }
        Ok(())
    }

    /// Watches a socket and gives it a place.
    fn insert(&mut self, stream: TcpStream, role: Role) -> Result<usize, Failure> {
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
            connecting: false,
            to_send: 0,
            sent: 0,
            got: 0,
            wants_write: false,
            waits: false,
            asked,
        });
        *self.number_of(role) += 1;
        Ok(place)
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
        let hang_up = self.rules.hang_up && socket.role == Role::Backend;
        if self.closing || self.rules.drain || hang_up {
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
        if self.rules.drain {
            return self.answer_close(place, bytes);
        }
        self.counts.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
            let batch = self.frames.to(socket.role);
            let rest = &batch.bytes[socket.got..];
            let (now, later) = bytes.split_at(rest.len().min(bytes.len()));
            if now != &rest[..now.len()] {
                return Err("the proxy changed, lost or doubled a byte".into());
            }
            socket.got += now.len();
            bytes = later;
            if socket.got == batch.bytes.len() {
                socket.got = 0;
                self.counts.messages += batch.frames;
                self.batch(place)?;
            }
        }
        Ok(())
    }

    /// Answers the proxy's Close.
    fn answer_close(&mut self, place: usize, bytes: &[u8]) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        if bytes.first() != Some(&0x88) {
            return Err(format!("the proxy sent something else than a Close: {bytes:?}").into());
        }
        let answer = match socket.role {
            Role::Client => CLOSE_OF_CLIENT,
            Role::Backend => CLOSE_OF_BACKEND,
        };
        match socket.stream.write(answer) {
            Ok(sent) if sent == answer.len() => Ok(()),
            Ok(_) => Err("a Close does not fit into an empty socket".into()),
            Err(error) => self.ended(place, &error.to_string()),
        }
    }

    /// A batch has come.
    fn batch(&mut self, place: usize) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        match socket.role {
            Role::Backend if self.rules.echo => self.begin_message(place, 1),
            Role::Client if self.rules.echo => {
                let took = socket.asked.elapsed().as_nanos();
                self.counts.round_trips.push(u64::try_from(took).unwrap_or(u64::MAX));
                socket.waits = false;
                self.on_the_way -= 1;
                match self.rules {
                    Rules { again: false, .. } => Ok(()),
                    Rules { wander: true, .. } => self.ask_elsewhere(),
                    _ => self.begin_message(place, 1),
                }
            }
            _ => Ok(()),
        }
    }

    fn begin_message(&mut self, place: usize, count: u64) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        socket.to_send += count;
        if self.rules.echo && socket.role == Role::Client {
            socket.asked = Instant::now();
            socket.waits = true;
            self.on_the_way += 1;
        }
        self.write(place)
    }

    /// One write, of what is left of the current batch.
    fn write(&mut self, place: usize) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        if socket.to_send > 0 {
            let batch = &self.frames.from(socket.role).bytes;
            socket.sent += match socket.stream.write(&batch[socket.sent..]) {
                Ok(sent) => sent,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    0
                }
                Err(error) => return self.ended(place, &error.to_string()),
            };
            if socket.sent == batch.len() {
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

impl Frames {
    /// The batch that sockets of this role send.
    fn from(&self, role: Role) -> &Batch {
        match role {
            Role::Client => &self.from_client,
            Role::Backend => &self.from_backend,
        }
    }

    /// The batch that comes to sockets of this role.
    fn to(&self, role: Role) -> &Batch {
        match role {
            Role::Client => &self.from_backend,
            Role::Backend => &self.from_client,
        }
    }
}

/// Listens at all these places; the poll tells of each by its token.
pub(crate) fn listen_on_all(poll: &Poll, places: &[Place]) -> Result<Vec<OwnedFd>, Failure> {
    let listen_on = |(place, token): (&Place, u64)| {
        let listener = listen(place).map_err(while_doing(&format!("listening on {place}")))?;
        poll.add(&listener, token, EventFlags::IN)?;
        Ok(listener)
    };
    places.iter().zip(LISTENER..).map(listen_on).collect()
}

/// Returns the next connection of the proxy, if one waits.
pub(crate) fn accept(listener: &OwnedFd) -> Result<Option<TcpStream>, Failure> {
    match rustix::net::accept(listener) {
        Ok(stream) => Ok(Some(stream.into())),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(while_doing("accepting from the proxy")(error)),
    }
}

/// Listens without blocking.
fn listen(place: &Place) -> std::io::Result<OwnedFd> {
    let listener = match place {
        Place::Tcp(address) => OwnedFd::from(TcpListener::bind(address)?),
        Place::Unix(path) => {
            // Left by the run before.
            let _ = std::fs::remove_file(path);
            OwnedFd::from(UnixListener::bind(path)?)
        }
    };
    // Again, for the backlog.
    rustix::net::listen(&listener, BACKLOG)?;
    rustix::io::ioctl_fionbio(&listener, true)?;
    Ok(listener)
}
