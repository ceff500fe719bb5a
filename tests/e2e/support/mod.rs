//! Support for the tests: peers that speak literal bytes, proxies, and the kernel's view.

mod names;
mod peer;
mod program;
mod proxy;
mod site;
mod sockets;
mod wire;

pub use self::names::{NameServer, Reply, is_in_own_network, is_own_network_allowed};
pub use self::peer::{Backend, HeldPort, Peer};
pub use self::program::{Directory, Program, value};
pub use self::proxy::Proxy;
pub use self::site::{Change, Site, element};
pub use self::sockets::{
    expect_refused, has_been_acknowledged, has_been_read, in_kernel, is_dialled, quiet_port,
    socket_of_peer, taken_port, wait_until,
};
pub use self::wire::{CLOSE, Frame, From, PING, PONG, ProxyProgram, TEXT};

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Time that anything may take before the test has failed. Long, for slow machines: passing tests
/// never wait for it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The key of RFC 6455, 1.3, and what belongs to it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The rows of a table-driven test, which does not compile without any.
pub fn table<T, const N: usize>(rows: [T; N]) -> [T; N] {
    const { assert!(N > 0) };
    rows
}

/// A valid handshake of a client. `more` is further header lines, each with its CRLF.
pub fn upgrade(more: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

/// A valid handshake with one part of it replaced.
pub fn upgrade_but(part: &str, by: &str) -> String {
    let good = upgrade("");
    assert_eq!(good.matches(part).count(), 1, "{part:?}");
    good.replace(part, by)
}

/// The 101 that a backend answers to it. `more` is further header lines.
pub fn switching(more: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n{more}\r\n"
    )
}

/// The configuration of a section that listens on any port and leads to this backend. Lines that
/// are appended belong to it.
pub fn section(backend: impl Display) -> String {
    format!("[[ws_proxy]]\nbind = \"127.0.0.1:0\"\nbackends = [\"{backend}\"]\n")
}

/// Sends a request to an admin listener; returns status and body of its answer.
pub fn ask(admin: SocketAddr, start: &str) -> (u16, String) {
    let request = format!("{start} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    let text = Peer::sending(admin, request).read_text_to_end();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

/// Asserts that a message passes through a tunnel, and its answer back.
pub fn assert_alive(one: &mut Peer, other: &mut Peer) {
    one.send("are you there?");
    other.expect("are you there?");
    other.send("yes");
    one.expect("yes");
}

/// Lets this process, and the programs that it starts, have as many descriptors as it may.
pub fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Bytes that look like nothing else, and are the same for the same seed.
///
/// At the start of a stream they are the header of a frame that never ends, and its payload:
/// a WebSocket's frames are followed, and mere noise would have a Close in it sooner or later.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    let endless = [0x82, 127, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff];
    if let Some(start) = bytes.first_chunk_mut() {
        *start = endless;
    }
    bytes
}
