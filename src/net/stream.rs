//! Sockets of a thread's event loop, for tasks to wait on.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_lite::{AsyncRead, AsyncWrite};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, acceptfrom_with, sockopt};

use super::limit_buffers;
use super::reactor::{Key, Reactor, Registration};
use super::readiness::{Readiness, retry};

/// A connection. Reading and writing take a shared reference: one task may wait for each at a time.
#[derive(Debug)]
pub(crate) struct Stream {
    registered: Registered,
    socket: TcpStream,
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    registered: Registered,
    socket: TcpListener,
}

/// A place in an event loop, given up when it is dropped.
#[derive(Debug)]
struct Registered {
    reactor: Rc<Reactor>,
    /// `None` when somebody else has it.
    key: Option<Key>,
    registration: Rc<Registration>,
}

/// A connection that has left its tasks and kept its registration.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) socket: TcpStream,
    pub(crate) readiness: Readiness,
    /// To be [labelled](Reactor::label), and [forgotten](Reactor::forget) when the socket is closed.
    pub(crate) key: Option<Key>,
}

impl Registered {
    fn new(reactor: &Rc<Reactor>, socket: impl AsFd, readiness: Readiness) -> io::Result<Self> {
        let (key, registration) = reactor.register(socket, readiness)?;
        Ok(Self { reactor: Rc::clone(reactor), key: Some(key), registration })
    }

    /// Makes a call as soon and as often as it may succeed. `is_ready` is what must hold for it, `waiting` the place
    /// of who waits for that; the call itself notes when it does not hold.
    fn poll<T>(
        &self,
        context: &Context<'_>,
        is_ready: fn(&Readiness) -> bool,
        waiting: fn(&Registration) -> &std::cell::Cell<Option<Waker>>,
        mut call: impl FnMut(&mut Readiness) -> io::Result<Option<T>>,
    ) -> Poll<io::Result<T>> {
        let mut readiness = self.registration.readiness.get();
        while is_ready(&readiness) {
            let result = call(&mut readiness);
            self.registration.readiness.set(readiness);
            if let Some(done) = result.transpose() {
                return Poll::Ready(done);
            }
        }
        waiting(&self.registration).set(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.reactor.forget(key);
        }
    }
}

impl Stream {
    /// A connected, non-blocking socket.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn new(reactor: &Rc<Reactor>, socket: TcpStream) -> io::Result<Self> {
        Ok(Self { registered: Registered::new(reactor, &socket, Readiness::UNKNOWN)?, socket })
    }

    /// Connects to an address, with [limited](limit_buffers) buffers if they are to be.
    ///
    /// # Errors
    ///
    /// Those of connecting: refused, unreachable, no descriptors left.
    pub(crate) async fn connect(
        reactor: &Rc<Reactor>,
        address: SocketAddr,
        buffer: Option<usize>,
    ) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        limit_buffers(&socket, buffer)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let socket = TcpStream::from(socket);
        let stream =
            Self { registered: Registered::new(reactor, &socket, Readiness::NONE)?, socket };
        // It becomes writable when it is connected, or when that has failed.
        poll_fn(|context| {
            let connected = |_: &mut Readiness| Ok(Some(()));
            stream.registered.poll(context, |known| known.writable, |all| &all.writer, connected)
        })
        .await?;
        sockopt::socket_error(&stream.socket)??;
        Ok(stream)
    }

    /// The event loop that it belongs to.
    pub(crate) fn reactor(&self) -> &Rc<Reactor> {
        &self.registered.reactor
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Waits until the connection is broken: reset by its peer, or given up by TCP. The end of the peer's sending side
    /// is not a break. Nothing is read, so that this also serves where nothing may be read, or nothing is left to.
    pub(crate) async fn broken(&self) -> io::Error {
        let error = poll_fn(|context| {
            let has_failed = |known: &mut Readiness| match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => {
                    known.failed = false;
                    Ok(None)
                }
                Ok(Err(error)) | Err(error) => Ok(Some(io::Error::from(error))),
            };
            self.registered.poll(context, |known| known.failed, |all| &all.watcher, has_failed)
        })
        .await;
        error.unwrap_or_else(|error| error)
    }

    /// Takes the socket out of the tasks' hands, registered as it is.
    pub(crate) fn detach(self) -> Detached {
        let Self { mut registered, socket } = self;
        Detached {
            socket,
            readiness: registered.registration.readiness.get(),
            key: registered.key.take(),
        }
    }
}

impl Listener {
    /// A listening, non-blocking socket.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn new(reactor: &Rc<Reactor>, socket: TcpListener) -> io::Result<Self> {
        Ok(Self { registered: Registered::new(reactor, &socket, Readiness::UNKNOWN)?, socket })
    }

    /// The next client, as a non-blocking socket that is registered nowhere.
    ///
    /// # Errors
    ///
    /// Those of accept(2). They concern one client, or a shortage; the listener goes on.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, peer) = poll_fn(|context| {
            let accept = |known: &mut Readiness| {
                let accepted = retry(|| Ok(acceptfrom_with(&self.socket, flags)?))?;
                known.readable = accepted.is_some();
                Ok(accepted)
            };
            self.registered.poll(context, |known| known.readable, |all| &all.reader, accept)
        })
        .await?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        let peer = peer.ok_or_else(|| io::Error::other("a client without an address"))?;
        Ok((TcpStream::from(socket), peer))
    }
}

impl AsyncRead for &Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = |known: &mut Readiness| known.read(&self.socket, buffer);
        self.registered.poll(context, |known| known.readable, |all| &all.reader, read)
    }
}

impl AsyncWrite for &Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = |known: &mut Readiness| known.write(&self.socket, bytes);
        self.registered.poll(context, |known| known.writable, |all| &all.writer, write)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(super::end_sending(&self.socket))
    }
}
