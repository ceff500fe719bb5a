//! Frames as bytes (RFC 6455, 5.2), and a program that is asked to know them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Backend, PATIENCE, Peer, Program, value};

pub const TEXT: u8 = 0x81;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// The key of all frames that a client sends here.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// An end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Client,
    Backend,
}

/// A frame that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub first: u8,
    pub mask: Option<[u8; 4]>,
    /// Without its mask.
    pub payload: Vec<u8>,
}

impl From {
    /// The header of a frame with `len` bytes of payload, in its shortest form.
    pub fn header(self, first: u8, len: usize) -> Vec<u8> {
        let (bit, mask) = match self {
            Self::Client => (0x80, &MASK[..]),
            Self::Backend => (0, &[][..]),
        };
        let length = match len {
            0..=125 => vec![len as u8 | bit],
            126..=0xffff => [&[126 | bit], &(len as u16).to_be_bytes()[..]].concat(),
            _ => [&[127 | bit], &(len as u64).to_be_bytes()[..]].concat(),
        };
        [&[first], &length[..], mask].concat()
    }

    /// A whole frame, masked if it is a client's.
    pub fn frame(self, first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let payload = payload.as_ref();
        let mut bytes = self.header(first, payload.len());
        let key = if self == Self::Client { MASK } else { [0; 4] };
        bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
        bytes
    }

    pub fn text(self, text: &str) -> Vec<u8> {
        self.frame(TEXT, text)
    }

    pub fn close(self, code: u16) -> Vec<u8> {
        self.frame(CLOSE, code.to_be_bytes())
    }

    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

impl Frame {
    /// Returns whether the proxy has made this Ping: those of the tests have other lengths.
    pub fn is_proxy_ping(&self) -> bool {
        self.first == PING && self.payload.len() == 8
    }

    pub fn close_code(&self) -> Option<u16> {
        let code = self.payload.first_chunk::<2>().filter(|_| self.first == CLOSE)?;
        Some(u16::from_be_bytes(*code))
    }
}

impl Peer {
    /// The next frame, whatever it is.
    pub fn read_frame(&mut self) -> Frame {
        let start = self.read_exactly(2);
        let len = match start[1] & 0x7f {
            126 => u16::from_be_bytes(self.read_exactly(2).try_into().unwrap()).into(),
            127 => u64::from_be_bytes(self.read_exactly(8).try_into().unwrap()),
            len => len.into(),
        };
        let mask: Option<[u8; 4]> =
            (start[1] & 0x80 != 0).then(|| self.read_exactly(4).try_into().unwrap());
        let mut payload = self.read_exactly(len as usize);
        let key = mask.unwrap_or_default();
        payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= key[at % 4]);
        Frame { first: start[0], mask, payload }
    }

    /// The next frame that is no Ping of the proxy's.
    pub fn read_relayed_frame(&mut self) -> Frame {
        loop {
            let frame = self.read_frame();
            if !frame.is_proxy_ping() {
                return frame;
            }
        }
    }

    /// The next frame, a Ping of the proxy's: its payload.
    pub fn read_proxy_ping(&mut self) -> Vec<u8> {
        let frame = self.read_frame();
        assert!(frame.is_proxy_ping(), "{frame:?} is no Ping of the proxy");
        frame.payload
    }

    /// The next frame, a Close of the proxy's with this code, masked for a backend only.
    pub fn expect_proxy_close(&mut self, to: From, code: u16) {
        let frame = self.read_relayed_frame();
        assert_eq!(frame.close_code(), Some(code), "{frame:?}");
        assert_eq!(frame.mask.is_some(), to == From::Backend, "{frame:?}");
        assert!(
            std::str::from_utf8(&frame.payload[2..]).is_ok_and(|reason| !reason.is_empty()),
            "{frame:?}"
        );
    }

    /// The next frame, but for Pings, is this text.
    pub fn expect_text(&mut self, text: &str) {
        let frame = self.read_relayed_frame();
        assert_eq!(
            (frame.first, &*frame.payload.escape_ascii().to_string()),
            (TEXT, text),
            "{frame:?}"
        );
    }

    /// Answers the proxy's Pings until something else comes.
    pub fn answer_pings(&mut self, as_one: From) -> Frame {
        let end = Instant::now() + PATIENCE;
        loop {
            let frame = self.read_frame();
            if !frame.is_proxy_ping() {
                return frame;
            }
            assert!(Instant::now() < end, "nothing comes but Pings");
            self.send(as_one.frame(PONG, &frame.payload));
        }
    }
}

/// The program as a process of its own, with one section, and that section's only backend.
pub struct ProxyProgram {
    pub program: Program,
    pub address: SocketAddr,
    pub backend: Backend,
}

impl ProxyProgram {
    /// Starts it with more lines for its section, and lines for `[drain]`.
    pub fn start(section: &str, drain: &str) -> Self {
        let backend = Backend::start();
        let mut program = Program::with_config(&format!(
            "[drain]\n{drain}\n{}{section}\n",
            super::section(backend.address)
        ));
        let address = program.address();
        Self { program, address, backend }
    }

    /// The two ends of a new tunnel: the client and the backend's server.
    pub fn tunnel(&self) -> (Peer, Peer) {
        Peer::tunnel(self.address, &self.backend)
    }

    /// The same, with the sender first.
    pub fn tunnel_from(&self, from: From) -> (Peer, Peer) {
        let (client, server) = self.tunnel();
        if from == From::Client { (client, server) } else { (server, client) }
    }

    /// Keeps a new tunnel busy for `time`: calls `exchange` again and again, less than `gap` apart.
    /// It returns whether what it expects has come, and nothing else.
    ///
    /// A machine that pauses the test for longer than `gap` lets the proxy act, and rightly so:
    /// then it begins anew with another tunnel.
    pub fn keep_busy(
        &self,
        time: Duration,
        gap: Duration,
        mut exchange: impl FnMut(&mut Peer, &mut Peer) -> bool,
    ) {
        let patience = Instant::now() + PATIENCE;
        'anew: loop {
            assert!(Instant::now() < patience, "this machine is never fast enough");
            let (mut client, mut server) = self.tunnel();
            let start = Instant::now();
            // Begin of the last exchange that was as expected: no pause of the proxy's is longer.
            let mut last = start;
            while start.elapsed() < time {
                let now = Instant::now();
                if !exchange(&mut client, &mut server) {
                    let pause = last.elapsed();
                    assert!(pause >= gap, "something else comes after {pause:?}");
                    continue 'anew;
                }
                last = now;
            }
            return;
        }
    }

    /// Waits for the line of the next tunnel that ends, and asserts values of its keys.
    pub fn assert_end(&mut self, expected: &[(&str, &str)]) {
        let line = self.program.wait_for("event=tunnel_end");
        for &(key, text) in expected {
            assert_eq!(value(&line, key), text, "{key} in {line}");
        }
    }
}
