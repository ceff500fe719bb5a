//! Either end of a connection, speaking literal bytes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::sockets::wait_until_read;
use super::{PATIENCE, switching, upgrade};

/// A backend that does what the test says.
pub struct Backend {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl Backend {
    pub fn start() -> Self {
        Self::at("127.0.0.1:0")
    }

    /// A backend at this address.
    pub fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// A backend that refuses every connection. Its port is held, so that nobody else gets it
    /// meanwhile.
    pub fn refusing() -> Self {
        let ip = AddressFamily::INET;
        // Programs that other tests start at this moment must not get a copy.
        let socket =
            rustix::net::socket_with(ip, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// A backend to which connecting takes for ever: its queue is full, and nobody accepts.
    pub fn full() -> Self {
        let full = Self::refusing();
        rustix::net::listen(&full.listener, 0).unwrap();
        // The kernel decides how many fit.
        while TcpStream::connect_timeout(&full.address, Duration::from_millis(100)).is_ok() {}
        full
    }

    /// A backend whose connections have small buffers at both ends, so that all goes in parts and
    /// soon no further.
    pub fn tight() -> Self {
        let backend = Self::refusing();
        tighten(&backend.listener);
        rustix::net::listen(&backend.listener, 128).unwrap();
        backend
    }

    /// Sets the number of connections that may wait to be accepted.
    pub fn set_backlog(&self, count: i32) {
        rustix::net::listen(&self.listener, count).unwrap();
    }

    /// The next connection of the proxy.
    pub fn accept(&self) -> Peer {
        self.try_accept(PATIENCE).expect("the proxy connects to the backend")
    }

    /// The next connection, if one comes in time.
    pub fn try_accept(&self, time: Duration) -> Option<Peer> {
        let end = Instant::now() + time;
        let mut fds = [rustix::event::PollFd::new(&self.listener, rustix::event::PollFlags::IN)];
        let left = rustix::time::Timespec::try_from(end.saturating_duration_since(Instant::now()))
            .unwrap();
        (rustix::event::poll(&mut fds, Some(&left)).unwrap() > 0)
            .then(|| Peer::new(self.listener.accept().unwrap().0))
    }

    /// Returns whether a connection waits to be accepted.
    pub fn has_waiting(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.listener, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))
            .unwrap()
            > 0
    }

    /// Waits until one of these has a connection waiting, and says which.
    pub fn wait_for_any(backends: &[&Self]) -> usize {
        let mut fds: Vec<PollFd> =
            backends.iter().map(|one| PollFd::new(&one.listener, PollFlags::IN)).collect();
        rustix::event::poll(&mut fds, Some(&PATIENCE.try_into().unwrap())).unwrap();
        fds.iter().position(|fd| !fd.revents().is_empty()).expect("the proxy connects to a backend")
    }

    /// Accepts, reads the handshake and switches: gives the connection and the head that came.
    pub fn accept_tunnel(&self) -> (Peer, String) {
        let mut peer = self.accept();
        let head = peer.read_head();
        peer.send(switching(""));
        (peer, head)
    }
}

/// A port at which a backend comes and goes. Nobody else gets it meanwhile.
pub struct HeldPort {
    pub address: SocketAddr,
    /// Bound, but not listening.
    _holder: OwnedFd,
}

impl HeldPort {
    pub fn new() -> Self {
        let (ip, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
        let socket = socket_with(ip, SocketType::STREAM, flags, None).unwrap();
        // A listener that has it as well may have the same port.
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
        Self { address, _holder: socket }
    }

    /// A backend that listens at the port until it is dropped; then connections are refused.
    pub fn listen(&self) -> Backend {
        let listener = TcpListener::bind(self.address).unwrap();
        Backend { listener, address: self.address }
    }
}

/// One end of a connection. Every wait ends after [`PATIENCE`].
pub struct Peer {
    pub stream: TcpStream,
}

impl Peer {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    pub fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).expect("the proxy accepts"))
    }

    /// A client whose connection has small buffers at both ends.
    pub fn connect_tight(address: SocketAddr) -> Self {
        let (ip, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
        let socket = socket_with(ip, SocketType::STREAM, flags, None).unwrap();
        tighten(&socket);
        rustix::net::connect(&socket, &address).expect("the proxy accepts");
        Self::new(TcpStream::from(socket))
    }

    /// A client that has sent `bytes`.
    pub fn sending(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut peer = Self::connect(address);
        peer.send(bytes);
        peer
    }

    /// A client whose handshake has been read by the backend, and that backend's end.
    pub fn handshake(
        proxy: SocketAddr,
        backend: &Backend,
        bytes: impl AsRef<[u8]>,
    ) -> (Self, Self) {
        let client = Self::sending(proxy, bytes);
        let mut server = backend.accept();
        server.read_head();
        (client, server)
    }

    /// The two ends of a new tunnel: the client and the backend's server.
    pub fn tunnel(proxy: SocketAddr, backend: &Backend) -> (Self, Self) {
        Self::connect(proxy).into_tunnel(backend)
    }

    /// The same for a client that has connected already.
    pub fn into_tunnel(mut self, backend: &Backend) -> (Self, Self) {
        self.send(upgrade(""));
        let (client, server, _) = self.switch(backend);
        (client, server)
    }

    /// A tunnel that this handshake opens, and the head that the backend got.
    pub fn tunnel_with(
        proxy: SocketAddr,
        backend: &Backend,
        handshake: impl AsRef<[u8]>,
    ) -> (Self, Self, String) {
        Self::sending(proxy, handshake).switch(backend)
    }

    /// A new tunnel to one of these backends: its index, the client and the backend's server.
    pub fn tunnel_to_any(proxy: SocketAddr, backends: &[&Backend]) -> (usize, Self, Self) {
        let client = Self::sending(proxy, upgrade(""));
        let index = Backend::wait_for_any(backends);
        let (client, server, _) = client.switch(backends[index]);
        (index, client, server)
    }

    /// Has the backend answer this client's handshake with a 101.
    fn switch(mut self, backend: &Backend) -> (Self, Self, String) {
        let (server, head) = backend.accept_tunnel();
        let response = self.read_head();
        assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
        (self, server, head)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the other side takes the bytes");
    }

    /// Reads up to a blank line, and nothing after it.
    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&head)),
            }
        }
        String::from_utf8(head).unwrap()
    }

    pub fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("the bytes come");
        bytes
    }

    /// Reads exactly what is expected.
    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let got = self.read_exactly(bytes.as_ref().len());
        assert_eq!(got.escape_ascii().to_string(), bytes.as_ref().escape_ascii().to_string());
    }

    /// Everything up to the other side's orderly end.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).expect("the connection ends in order");
        bytes
    }

    /// Everything up to the other side's end, as text.
    pub fn read_text_to_end(&mut self) -> String {
        String::from_utf8(self.read_to_end()).unwrap()
    }

    /// An answer of the proxy's own, up to its orderly end: its status, and all of it.
    pub fn read_refusal(&mut self) -> (u16, String) {
        let answer = self.read_text_to_end();
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no complete head in {answer:?}"));
        assert!(head.starts_with("HTTP/1.1 "), "{head}");
        let has = |line: &str| head.split("\r\n").filter(|&one| one == line).count() == 1;
        assert!(has("Connection: close"), "{head}");
        assert!(has(&format!("Content-Length: {}", body.len())), "{head}");
        assert!(head.contains("\r\nContent-Type: text/plain"), "{head}");
        assert!(body.len() > 1 && body.find('\n') == Some(body.len() - 1), "{body:?}");
        (head[9..12].parse().unwrap(), answer)
    }

    /// Waits for the other side's orderly end, with nothing before it.
    pub fn expect_eof(&mut self) {
        assert_eq!(self.read_to_end().escape_ascii().to_string(), "");
    }

    /// Waits until the connection is over, in whatever manner, and drops what comes before.
    pub fn expect_end(&mut self) {
        let mut scratch = [0; 4_096];
        loop {
            match self.stream.read(&mut scratch) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if is_timeout(&error) => panic!("the connection does not end"),
                Err(_) => return,
            }
        }
    }

    /// Asserts that nothing comes for a while. Only for what must never come; keep the time short.
    pub fn expect_silence(&mut self, time: Duration) {
        assert!(self.stays_silent(time), "something comes instead of silence");
    }

    /// Waits this long, or until a byte or an end comes, which is left to be read; returns true for
    /// silence.
    pub fn stays_silent(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&time.try_into().unwrap())).unwrap() == 0
    }

    /// Reads as many bytes as these; returns whether they are these, and not others or an end.
    pub fn receives(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let mut got = vec![0; bytes.as_ref().len()];
        match self.stream.read_exact(&mut got) {
            Ok(()) => got == bytes.as_ref(),
            Err(error) if is_timeout(&error) => panic!("neither bytes nor an end come"),
            Err(_) => false,
        }
    }

    /// Waits until the other side has read all that was sent.
    pub fn wait_until_read(&self) {
        wait_until_read(self.stream.local_addr().unwrap(), self.stream.peer_addr().unwrap());
    }

    /// Sends in these pieces, each when the one before has been read.
    pub fn send_in_pieces<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) {
        for piece in pieces {
            self.send(piece);
            self.wait_until_read();
        }
    }

    /// Ends this side's sending.
    pub fn end_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the connection.
    pub fn reset(self) {
        sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
    }

    /// Writes until the connection breaks.
    pub fn flood_until_broken(&mut self) {
        let chunk = [7; 16 * 1024];
        while self.stream.write_all(&chunk).is_ok() {}
    }

    /// Writes until the other side takes no more for a moment; gives how much it took.
    pub fn flood(&mut self) -> usize {
        let chunk = [7; 16 * 1024];
        let mut taken = 0;
        self.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        loop {
            match self.stream.write(&chunk) {
                Ok(count) => {
                    taken += count;
                    assert!(taken < 256 << 20, "there is no end to what is taken");
                    // The time ran out within this write.
                    if count < chunk.len() {
                        break;
                    }
                }
                Err(error) if is_timeout(&error) => break,
                Err(error) => panic!("{error} after {taken} bytes"),
            }
        }
        self.stream.set_write_timeout(Some(PATIENCE)).unwrap();
        taken
    }

    /// Returns whether there is neither a byte nor an end to read now.
    pub fn is_silent(&self) -> bool {
        self.stays_silent(Duration::ZERO)
    }

    /// Writes as much of `bytes` as the other side takes, until it takes no more for a moment;
    /// gives how much.
    pub fn offer(&mut self, bytes: &[u8]) -> usize {
        self.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut taken = 0;
        while taken < bytes.len() {
            match self.stream.write(&bytes[taken..]) {
                Ok(count) => taken += count,
                Err(error) if is_timeout(&error) => break,
                Err(error) => panic!("{error} after {taken} bytes"),
            }
        }
        self.stream.set_write_timeout(Some(PATIENCE)).unwrap();
        taken
    }

    /// Writes until that fails, because the connection is over. The only way to see it for a side
    /// that has read the other side's end already.
    pub fn write_until_broken(&mut self) {
        let chunk = [7; 16 * 1024];
        loop {
            match self.stream.write(&chunk) {
                Ok(_) => {}
                Err(error) if is_timeout(&error) => panic!("the connection does not break"),
                Err(_) => return,
            }
        }
    }

    /// Makes the kernel's buffers small, so that reads and writes come in parts.
    pub fn shrink_buffers(&mut self) {
        sockopt::set_socket_recv_buffer_size(&self.stream, 4_096).unwrap();
        sockopt::set_socket_send_buffer_size(&self.stream, 4_096).unwrap();
    }

    /// A second handle of the same connection, for another thread.
    pub fn clone_handle(&self) -> Self {
        Self { stream: self.stream.try_clone().unwrap() }
    }
}

/// Makes a connection hold little, at the other end too: the kernel measures a socket's send buffer
/// by the longest segment that its peer takes, and that of loopback gives it megabytes. To be
/// called before connecting.
fn tighten(socket: impl AsFd) {
    socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 4_096).unwrap();
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
