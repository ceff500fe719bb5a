//! What the kernel knows of the sockets of others: what the other side has not read yet, or is
//! still dialling, shows nowhere else.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::PATIENCE;

/// Waits until all that `from` has sent to `to`, its end included, has been read there.
///
/// Bytes that loopback has on its way do not count; mostly there are none.
pub fn wait_until_read(from: SocketAddr, to: SocketAddr) {
    wait_until("the other side reads what was sent", || has_been_read(from, to));
}

/// Returns whether all that `from` has sent to `to` has been read there.
pub fn has_been_read(from: SocketAddr, to: SocketAddr) -> bool {
    ask(Question::Exactly(to, from)).is_some_and(|queues| queues.unread == 0)
}

/// Returns whether all that `from` has sent to `to` has been acknowledged.
pub fn has_been_acknowledged(from: SocketAddr, to: SocketAddr) -> bool {
    ask(Question::Exactly(from, to)).is_some_and(|queues| queues.unacknowledged == 0)
}

/// Number of bytes that the kernel holds of a connection between these two: sent by either, and not
/// read by the other.
///
/// Exact while nothing moves.
pub fn in_kernel(one: SocketAddr, other: SocketAddr) -> usize {
    let both = [Question::Exactly(one, other), Question::Exactly(other, one)];
    let queues = both.map(|question| ask(question).expect("the connection is there"));
    queues.iter().map(|queues| (queues.unread + queues.unacknowledged) as usize).sum()
}

/// Returns whether anybody is connecting to this address and has no answer yet.
pub fn is_dialled(address: SocketAddr) -> bool {
    ask(Question::ConnectingTo(address)).is_some()
}

/// Somebody else's port.
pub fn taken_port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A free port that the system gives nobody who dials, as the tests beside this one do: it is below
/// those of `ip_local_port_range`.
pub fn quiet_port() -> u16 {
    let from = 10_000 + std::process::id() % 10_000;
    let ports = (from..32_000).filter_map(|port| u16::try_from(port).ok());
    let is_free = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_ok();
    ports.into_iter().find(is_free).expect("there is a free port")
}

/// A copy of the socket at the other end of this connection, which is in this process too.
pub fn socket_of_peer(stream: &TcpStream) -> OwnedFd {
    let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let inode = ask(Question::Exactly(remote, local)).expect("the connection is there").inode;
    let target = format!("socket:[{inode}]");
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    // One that has been closed meanwhile has no target any more.
    let path = { descriptors }
        .find(|path| fs::read_link(path).is_ok_and(|link| link == Path::new(&target)))
        .expect("the socket is in this process");
    let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(this, number, PidfdGetfdFlags::empty()).unwrap()
}

/// Waits until nobody listens on this address.
pub fn expect_refused(address: SocketAddr) {
    let is_refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    wait_until("new clients are refused", || TcpStream::connect(address).is_err_and(is_refused));
}

/// Waits for what there is no event for.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "in vain waited until {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The TCP socket of IPv4 that the kernel is asked for.
enum Question {
    /// The one with this local and this remote address.
    Exactly(SocketAddr, SocketAddr),
    /// Any that is connecting to this address.
    ConnectingTo(SocketAddr),
}

/// State of a socket: its queues in bytes, and its number.
struct State {
    unread: u32,
    unacknowledged: u32,
    inode: u32,
}

/// Returns the state of the socket; `None` if there is no such socket.
///
/// This is sock_diag(7). `/proc/net/tcp` says the same, but has to be written anew as a whole for
/// each question.
fn ask(question: Question) -> Option<State> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST: u16 = 1;
    const DUMP: u16 = 0x300;
    const SYN_SENT: u32 = 2;
    const LISTEN: u8 = 10;
    const LENGTH: u32 = 72;

    let anywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let (flags, states, local, remote) = match question {
        Question::Exactly(local, remote) => (REQUEST, u32::MAX, local, remote),
        Question::ConnectingTo(remote) => (REQUEST | DUMP, 1 << SYN_SENT, anywhere, remote),
    };
    let ip = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => [&v4.ip().octets()[..], &[0; 12]].concat(),
        SocketAddr::V6(_) => panic!("{address} is not IPv4"),
    };
    let message = [
        // struct nlmsghdr
        &LENGTH.to_ne_bytes()[..],
        &SOCK_DIAG_BY_FAMILY.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &[0; 8],
        // struct inet_diag_req_v2: AF_INET, IPPROTO_TCP, and a struct inet_diag_sockid without a
        // cookie
        &[2, 6, 0, 0],
        &states.to_ne_bytes(),
        &local.port().to_be_bytes(),
        &remote.port().to_be_bytes(),
        &ip(local),
        &ip(remote),
        &[0; 4],
        &[0xff; 8],
    ]
    .concat();
    let (kind, protocol) = (SocketType::DGRAM, Some(netlink::SOCK_DIAG));
    let kernel = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, protocol).unwrap();
    send(&kernel, &message, SendFlags::empty()).unwrap();
    let mut answer = [0; 8_192];
    let (len, _) = recv(&kernel, &mut answer, RecvFlags::empty()).unwrap();

    // The first message tells all: another struct nlmsghdr, and a struct inet_diag_msg or an error
    // or an end. Instead of a socket that is no more it may be the listening one.
    let is_socket = answer[4..6] == SOCK_DIAG_BY_FAMILY.to_ne_bytes() && answer[17] != LISTEN;
    let state = answer[..len].get(72..88).filter(|_| is_socket)?;
    let number = |at: usize| u32::from_ne_bytes(state[at..at + 4].try_into().unwrap());
    Some(State { unread: number(0), unacknowledged: number(4), inode: number(12) })
}
