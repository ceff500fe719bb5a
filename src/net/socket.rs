//! Sockets of a thread's event loop: tasks await them, tunnels take turns with them.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketAddrUnix, acceptfrom_with, sockopt};
use rustix::pipe::{SpliceFlags, splice};

use super::connect::{not_available, refuse_itself, set_reset_on_close};
use super::listen::{BoundListener, FLAGS, SocketFile, limit_buffers, open, open_unix};
use super::name::Peer;
use super::reactor::{Key, Reactor, Waiters};
use super::readiness::{Readiness, Tail, retry};
use super::timer::Timer;

/// Has the kernel move pages rather than copy them, and never wait.
const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
/// Pause before a Unix socket whose backlog is full is tried again: no event tells of room in it.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// A connection: a non-blocking socket, registered once for its whole life.
///
/// Tasks use it through [`AsyncRead`] and [`AsyncWrite`] on `&Socket`, one task for each at a time.
/// A tunnel calls the `try_` methods in its turns, after [`set_token`](Socket::set_token). Either
/// way, no call is made that is known to find nothing.
#[derive(Debug)]
pub(crate) struct Socket {
    registered: Registered,
    fd: OwnedFd,
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    registered: Registered,
    fd: OwnedFd,
    /// Dropped after the socket is closed.
    _file: Option<SocketFile>,
}

/// A place in an event loop, given up on drop.
#[derive(Debug)]
struct Registered {
    reactor: Rc<Reactor>,
    key: Key,
}

impl Socket {
    /// Registers a connected, non-blocking socket.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn new(reactor: &Rc<Reactor>, socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let fd = socket.into();
        Ok(Self { registered: Registered::new(reactor, &fd, Readiness::UNKNOWN)?, fd })
    }

    /// Connects to an address. `buffer` is for [`limit_buffers`].
    ///
    /// # Errors
    ///
    /// Those of connect(2): refused, unreachable, no descriptors left, [no ports
    /// left](super::out_of_ports). `ConnectionRefused` also for a connection to itself.
    pub(crate) async fn connect(
        reactor: &Rc<Reactor>,
        address: SocketAddr,
        buffer: Option<usize>,
    ) -> io::Result<Self> {
        let socket = open(address)?;
        limit_buffers(&socket, buffer)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(Errno::ADDRNOTAVAIL) => return Err(not_available(address)),
            Err(error) => return Err(error.into()),
        }
        let registered = Registered::new(reactor, &socket, Readiness::NONE)?;
        // It becomes writable when it is connected, or when that has failed (connect(2)).
        poll_fn(|context| {
            let connected = |_: &mut Readiness| Ok(Some(()));
            registered.poll(context, |known| known.writable, |tasks| &mut tasks.writable, connected)
        })
        .await?;
        if registered.with(|known| known.failed) {
            sockopt::socket_error(&socket)??;
        }
        refuse_itself(&socket, address.port())?;
        Ok(Self { registered, fd: socket })
    }

    /// Connects to a Unix socket, and waits while its backlog is full. `buffer` is for
    /// [`limit_buffers`].
    ///
    /// # Errors
    ///
    /// Those of connect(2): nobody listens, no such file, not permitted, no descriptors left.
    pub(crate) async fn connect_unix(
        reactor: &Rc<Reactor>,
        path: &Path,
        buffer: Option<usize>,
    ) -> io::Result<Self> {
        let socket = open_unix()?;
        limit_buffers(&socket, buffer)?;
        let address = SocketAddrUnix::new(path)?;
        loop {
            match rustix::net::connect(&socket, &address) {
                // It is connected at once, or not at all.
                Ok(()) => return Self::new(reactor, socket),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => Timer::after(reactor, BACKLOG_PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns the event loop that the socket is registered with.
    pub(crate) fn reactor(&self) -> &Rc<Reactor> {
        &self.registered.reactor
    }

    /// Has the socket's events reported under `token` by [`Reactor::dispatch`], instead of waking
    /// tasks.
    pub(crate) fn set_token(&self, token: u32) {
        self.registered.reactor.set_token(self.registered.key, token);
    }

    /// Returns whether there may be something to read.
    pub(crate) fn is_readable(&self) -> bool {
        self.registered.with(|known| known.readable)
    }

    /// Has the next write be tried, whatever is known of the room for it.
    ///
    /// epoll reports room only when a third of the send buffer is free (`sk_stream_is_writeable`),
    /// which a slow reader may take many seconds for. A write succeeds as soon as there is any.
    pub(crate) fn assume_writable(&self) {
        self.registered.with(|known| known.writable = true);
    }

    /// Returns whether there may be room to write.
    pub(crate) fn is_writable(&self) -> bool {
        self.registered.with(|known| known.writable)
    }

    /// Reads what is there: 0 is the end, `None` is nothing for now.
    ///
    /// # Errors
    ///
    /// Those of recv(2): the connection is broken.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.registered.with(|known| read(known, &self.fd, buffer))
    }

    /// Writes as much as there is room for; `None` is no room for now.
    ///
    /// # Errors
    ///
    /// Those of send(2): the connection is broken.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        self.registered.with(|known| write(known, &self.fd, bytes))
    }

    /// Moves at most `max` bytes into an empty pipe: 0 is the end, `None` is nothing for now.
    ///
    /// # Errors
    ///
    /// Those of splice(2).
    pub(crate) fn try_splice_into(&self, pipe: impl AsFd, max: usize) -> io::Result<Option<usize>> {
        self.registered.with(|known| {
            let moved = retry(|| Ok(splice(&self.fd, None, &pipe, None, max, SPLICE)?))?;
            // At urgent data it stops short and finds nothing, though more has come: a read tells.
            known.readable = moved.is_some() || known.tail != Tail::None;
            Ok(moved)
        })
    }

    /// Writes as much of a pipe that holds `held` bytes as there is room for; `None` is no room for
    /// now.
    ///
    /// # Errors
    ///
    /// Those of splice(2).
    pub(crate) fn try_splice_from(
        &self,
        pipe: impl AsFd,
        held: usize,
    ) -> io::Result<Option<usize>> {
        self.registered.with(|known| {
            let moved = retry(|| Ok(splice(&pipe, None, &self.fd, None, held, SPLICE)?))?;
            // A short count can also mean that it stopped between two pages: only the next call
            // tells.
            known.writable = moved.is_some();
            Ok(moved)
        })
    }

    /// Ends this side's sending. A peer that has ended or reset the connection at the same moment
    /// is no error.
    ///
    /// # Errors
    ///
    /// Those of shutdown(2) otherwise.
    pub(crate) fn end_sending(&self) -> io::Result<()> {
        match rustix::net::shutdown(&self.fd, Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Has the close of the socket reset the connection, or not.
    pub(crate) fn reset_on_close(&self, resets: bool) {
        if let Err(error) = set_reset_on_close(&self.fd, resets) {
            log::debug!(error:% = error; "linger_failed");
        }
    }

    /// Returns whether the connection is broken. Asks the system only after an event gave reason
    /// to.
    pub(crate) fn is_broken(&self) -> bool {
        self.registered.with(|known| {
            known.failed = known.failed && !matches!(sockopt::socket_error(&self.fd), Ok(Ok(())));
            known.failed
        })
    }

    /// Returns whether the peer is known to have ended its sending, or the connection to be over.
    /// What it sent before may still wait.
    pub(crate) fn has_ended(&self) -> bool {
        self.registered.with(|known| known.has_ended())
    }

    /// Waits until the peer has ended its sending, or the connection is broken.
    ///
    /// Nothing is read: what the peer sent before may still wait. An end that came before the
    /// socket was registered is reported by the next wait of the event loop.
    pub(crate) async fn ended(&self) {
        let ended = poll_fn(|context| {
            let known = |_: &mut Readiness| Ok(Some(()));
            self.registered.poll(context, Readiness::has_ended, |tasks| &mut tasks.ended, known)
        });
        // The call above has no error.
        let _ = ended.await;
    }

    /// Waits until the connection is broken: reset by its peer, or given up by TCP.
    ///
    /// The end of the peer's sending is not a break. Nothing is read, so this also serves where
    /// nothing may be read, or nothing is left to.
    pub(crate) async fn broken(&self) -> io::Error {
        let error = poll_fn(|context| {
            let failure = |known: &mut Readiness| match sockopt::socket_error(&self.fd) {
                Ok(Ok(())) => {
                    known.failed = false;
                    Ok(None)
                }
                Ok(Err(error)) | Err(error) => Ok(Some(io::Error::from(error))),
            };
            self.registered.poll(context, |known| known.failed, |tasks| &mut tasks.failed, failure)
        })
        .await;
        error.unwrap_or_else(|error| error)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsyncRead for &Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let call = |known: &mut Readiness| read(known, &self.fd, buffer);
        self.registered.poll(context, |known| known.readable, |tasks| &mut tasks.readable, call)
    }
}

impl AsyncWrite for &Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let call = |known: &mut Readiness| write(known, &self.fd, bytes);
        self.registered.poll(context, |known| known.writable, |tasks| &mut tasks.writable, call)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end_sending())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener {
    /// Registers a listening, non-blocking socket.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn new(reactor: &Rc<Reactor>, bound: BoundListener) -> io::Result<Self> {
        let BoundListener { fd, file, .. } = bound;
        Ok(Self { registered: Registered::new(reactor, &fd, Readiness::UNKNOWN)?, fd, _file: file })
    }

    /// Returns the next client, as a non-blocking socket that is registered nowhere.
    ///
    /// # Errors
    ///
    /// Those of accept(2). They concern one client, or a shortage; the listener goes on.
    pub(crate) async fn accept(&self) -> io::Result<(OwnedFd, Peer)> {
        let (socket, peer) = poll_fn(|context| {
            let accept = |known: &mut Readiness| {
                let accepted = retry(|| Ok(acceptfrom_with(&self.fd, FLAGS)?))?;
                known.readable = accepted.is_some();
                Ok(accepted)
            };
            let is_ready = |known: &Readiness| known.readable;
            self.registered.poll(context, is_ready, |tasks| &mut tasks.readable, accept)
        })
        .await?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        Ok((socket, peer.map_or(Peer::Unix, Peer::from)))
    }
}

impl Registered {
    fn new(reactor: &Rc<Reactor>, socket: impl AsFd, readiness: Readiness) -> io::Result<Self> {
        Ok(Self { key: reactor.register(socket, readiness)?, reactor: Rc::clone(reactor) })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Readiness) -> T) -> T {
        self.reactor.with_readiness(self.key, f)
    }

    /// Makes `call` as soon and as often as it may succeed: while `is_ready` holds, which the call
    /// itself updates. Until then the task waits in `place`.
    fn poll<T>(
        &self,
        context: &Context<'_>,
        is_ready: fn(&Readiness) -> bool,
        place: fn(&mut Waiters) -> &mut Option<Waker>,
        mut call: impl FnMut(&mut Readiness) -> io::Result<Option<T>>,
    ) -> Poll<io::Result<T>> {
        let result = self.with(|known| {
            while is_ready(known) {
                if let Some(done) = call(known).transpose() {
                    return Poll::Ready(done);
                }
            }
            Poll::Pending
        });
        if result.is_pending() {
            let waker = context.waker().clone();
            self.reactor.wait_for(self.key, |waiters| *place(waiters) = Some(waker));
        }
        result
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.reactor.deregister(self.key);
    }
}

fn read(known: &mut Readiness, socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let count = retry(|| Ok(rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())?.0))?;
    known.after_read(count, buffer.len());
    Ok(count)
}

fn write(known: &mut Readiness, socket: &OwnedFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    let count = retry(|| Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?))?;
    known.after_write(count, bytes.len());
    Ok(count)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType};
    use smol::LocalExecutor;

    use std::io::ErrorKind;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    /// Dials an address until the outcome is another than a plain refusal.
    fn dial_until_met(reactor: &Rc<Reactor>, address: SocketAddr) -> Option<io::Error> {
        // Linux tries one port after the other for each dial, and there are no more than these.
        (0..=u16::MAX).find_map(|_| {
            let executor = LocalExecutor::new();
            let with = Rc::clone(reactor);
            let task = executor.spawn(async move { Socket::connect(&with, address, None).await });
            while !task.is_finished() {
                if !executor.try_tick() {
                    reactor.wait(false).unwrap();
                    reactor.dispatch(|_| {});
                }
            }
            let error = futures_lite::future::block_on(task).expect_err("nobody listens");
            (Errno::from_io_error(&error) != Some(Errno::CONNREFUSED)).then_some(error)
        })
    }

    #[test]
    fn a_dial_that_meets_itself_is_refused_and_leaves_its_port_free() {
        let reactor = Rc::new(Reactor::new().unwrap().0);
        // Linux dials from ports of one parity first, and binds to those of the other.
        let addresses = (0..1_000).filter_map(|_| {
            let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
            let address = SocketAddr::new(any.ip(), any.port() ^ 1);
            // One that clients have dialled from lately cannot be bound to, whoever dials it now.
            TcpListener::bind(address).is_ok().then_some(address)
        });
        // Another test may take the port in between, but hardly each time.
        let is_free = addresses.take(20).any(|address| {
            let error = dial_until_met(&reactor, address).expect("a dial meets itself");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            TcpListener::bind(address).is_ok()
        });
        assert!(is_free, "the backend can never start");
    }

    #[test]
    fn only_a_dial_to_its_own_address_is_one_to_itself() {
        for (dialled, is_same_port) in
            [("127.0.0.1", true), ("0.0.0.0", true), ("127.0.0.2", false)]
        {
            let socket =
                rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
            let stream = TcpStream::from(socket);
            let port = stream.local_addr().unwrap().port();
            let address = SocketAddr::new(dialled.parse().unwrap(), port);
            let _listener = (!is_same_port).then(|| TcpListener::bind(address).unwrap());
            rustix::net::connect(&stream, &address).unwrap();
            let refused = refuse_itself(&stream, port).map_err(|error| error.kind());
            let expected = if is_same_port { Err(ErrorKind::ConnectionRefused) } else { Ok(()) };
            assert_eq!(refused, expected, "{dialled}");
        }
    }
}
