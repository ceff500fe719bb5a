//! Doors into the pure parts, for the micro-benchmarks and the fuzz targets of this repository.
//!
//! There is no promise about any of it: it comes with the feature `internals` only, and is not
//! documented.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::balance::{Balance, key_of};
use crate::backend::pool::{BackendSettings, Pool, PoolRules};
use crate::handshake::body::{Body, BodyProgress, Framing};
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::{
    ForwardPolicy, Forwarded, HostHeader, plain_request_head, request_head,
};
use crate::handshake::http::{RequestHead, ResponseHead};
use crate::handshake::plain::{PlainRequest, is_upgrade};
use crate::handshake::reframe::{Reframed, Reframer};
use crate::handshake::response::Answer;
use crate::handshake::scan::{HeadScan, Scan, with_crlf};
use crate::handshake::upgrade::{HandshakeRules, UpgradeRequest};
use crate::net::address::Address;
use crate::tunnel::filter::FrameFilter;
use crate::tunnel::frames::{FrameEvent, Frames};
use crate::tunnel::model::{Happening, Model};
use crate::tunnel::policy::Policy;
use crate::tunnel::{Side, control};

/// A pool of backends to choose from.
pub struct Choosing(Arc<Pool>);

impl Choosing {
    /// Creates a pool of so many backends, with equal weights or with those from 1 to 5 in turn.
    pub fn new(backends: u32, balance: Balance, is_weighted: bool) -> Self {
        let backends = (0..backends).map(|number| BackendSettings {
            address: Address::backend(&format!("127.0.0.1:{}", number + 1)).unwrap(),
            watched: None,
            weight: if is_weighted { 1 + number % 5 } else { 1 },
            max_tunnels: None,
            is_backup: false,
        });
        Self(Pool::new(backends, PoolRules { balance, ..PoolRules::default() }))
    }

    /// Chooses a backend for a request with this part, and gives it back.
    pub fn choose(&self, now: Instant, part: &[u8]) -> bool {
        self.0.pick(now, Some(key_of(part))).next().is_some()
    }
}

/// A direction of which nothing is asked: its frames are followed and counted.
#[derive(Default)]
pub struct Following {
    filter: FrameFilter,
    policy: Policy,
    out: Vec<u8>,
}

impl Following {
    /// Follows a chunk.
    pub fn follow(&mut self, chunk: &[u8]) {
        self.filter.filter(chunk, &self.policy, &mut self.out);
    }

    /// Returns the number of frames that have come, of messages that have begun, and the payload
    /// bytes of them all.
    pub fn counts(&self) -> (u32, u32, u64) {
        let counters = self.filter.counters();
        (counters.frames, counters.messages(), counters.payload)
    }
}

/// Returns the offset of the head's end, if it has one.
pub fn scan(bytes: &[u8]) -> Option<usize> {
    match HeadScan::default().advance(bytes) {
        Scan::End(end) => Some(end),
        Scan::More | Scan::Fault(_) => None,
    }
}

/// Returns the head that these bytes begin with, if they do and its lines end in LF or CRLF, with
/// every line ended in CRLF.
pub fn scan_lf(bytes: &[u8]) -> Option<Vec<u8>> {
    match HeadScan::allowing_lf().advance(bytes) {
        Scan::End(end) => Some(with_crlf(&bytes[..end])),
        Scan::More | Scan::Fault(_) => None,
    }
}

/// Returns the status that a complete head gets from the proxy, 101 for none.
pub fn judge(head: &[u8], is_strict: bool) -> u16 {
    let rules = HandshakeRules { is_strict, ..HandshakeRules::default() };
    let judged = RequestHead::parse(head)
        .map_err(ErrorResponse::from)
        .and_then(|head| UpgradeRequest::judge(&head, rules).map(|_| 101));
    judged.unwrap_or_else(|error| error.status)
}

/// Returns a valid head as it is forwarded.
pub fn forward(head: &[u8]) -> Option<Vec<u8>> {
    let head = RequestHead::parse(head).ok()?;
    let request = UpgradeRequest::judge(&head, HandshakeRules::default()).ok()?;
    let client = Some(std::net::Ipv4Addr::LOCALHOST.into());
    let policy = ForwardPolicy {
        client,
        backend: "chat-backend:9000",
        host: HostHeader::Backend,
        forwarded: Forwarded::Append,
        request_id: "0123456789abcdef0123456789abcdef",
    };
    Some(request_head(&request, &policy))
}

/// Returns the 101 that the client gets for the backend's answer to a valid head, if it is one.
pub fn answer(head: &[u8], answer: &[u8], is_strict: bool) -> Option<Vec<u8>> {
    let rules = HandshakeRules { is_strict, ..HandshakeRules::default() };
    let head = RequestHead::parse(head).ok()?;
    let request = UpgradeRequest::judge(&head, rules).ok()?;
    match Answer::judge(&ResponseHead::parse(answer).ok()?, &request, rules).ok()?? {
        Answer::Switched { head, .. } => Some(head),
        Answer::Declined { .. } => None,
    }
}

/// Returns what a backend gets of the request that is no upgrade with which these bytes begin, and
/// the offset of its end; `None` if it may not pass, or is not whole.
pub fn plain(bytes: &[u8], piece: usize) -> Option<(Vec<u8>, usize)> {
    let end = scan(bytes)?;
    let head = RequestHead::parse(&bytes[..end]).ok()?;
    if is_upgrade(&head) {
        return None;
    }
    let request = PlainRequest::judge(&head, HandshakeRules::default(), None).ok()?;
    let policy = ForwardPolicy {
        client: None,
        backend: "chat-backend:9000",
        host: HostHeader::Preserve,
        forwarded: Forwarded::Replace,
        request_id: "0123456789abcdef0123456789abcdef",
    };
    let mut out = plain_request_head(&request, &policy);
    let mut body = Reframer::of_request(request.framing, None);
    let mut at = end;
    loop {
        let piece = &bytes[at..(at + piece.max(1)).min(bytes.len())];
        match body.advance(piece, &mut out).ok()? {
            Reframed::End(end) => return Some((out, at + end)),
            Reframed::More if piece.is_empty() => return None,
            Reframed::More => at += piece.len(),
        }
    }
}

/// Returns the offset of a chunked body's end, read in pieces of this size.
pub fn chunked(bytes: &[u8], piece: usize) -> Option<usize> {
    let mut body = Body::new(Framing::Chunked);
    let mut before = 0;
    for piece in bytes.chunks(piece.max(1)) {
        match body.advance(piece) {
            BodyProgress::More => before += piece.len(),
            BodyProgress::End(end) => return Some(before + end),
            BodyProgress::Fault(_) => return None,
        }
    }
    None
}

/// Returns the payload lengths of the frames in these bytes, read in pieces of this size, and
/// whether they end with a frame.
pub fn frames(bytes: &[u8], piece: usize) -> (Vec<u64>, bool) {
    let mut frames = Frames::default();
    let mut lengths = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        let mut rest = piece;
        loop {
            let (taken, event) = frames.next(rest);
            rest = &rest[taken..];
            match event {
                Some(FrameEvent::Header(header)) => lengths.push(header.length),
                Some(FrameEvent::End | FrameEvent::Opaque) => {}
                None => break,
            }
        }
    }
    (lengths, frames.is_at_boundary())
}

/// Lets what these bytes stand for happen to a tunnel, two for each event.
///
/// # Panics
///
/// If a rule of closing is broken.
pub fn ending(codes: bool, bytes: &[u8]) {
    let mut model = Model::new(codes);
    for &[kind, time] in bytes.as_chunks().0 {
        let side = if kind & 0x80 == 0 { Side::Client } else { Side::Backend };
        let flag = kind & 0x40 == 0;
        model.happen(match kind & 0x0f {
            0 => Happening::Close(side),
            1 => Happening::Eof(side),
            2 => Happening::Reset(side),
            3 => Happening::Violation(side),
            4 => Happening::Blocked(side, flag),
            5 => Happening::Drain(time),
            6 => Happening::Abort,
            7..=10 => Happening::Data(side, flag),
            _ => Happening::Ticks(time),
        });
    }
    model.finish();
}

/// Returns what passes of a client's frames, read in pieces of this size, with a Ping inserted
/// between them and its Pong awaited. With a limit, no message may be larger, and no more of them
/// pass at once.
pub fn filter(bytes: &[u8], piece: usize, limit: Option<u32>) -> Vec<u8> {
    let policy = Policy {
        max_message: limit.map(u64::from),
        max_messages_per_second: limit,
        ..Policy::default()
    };
    let mut filter = FrameFilter::new(&policy, true, false);
    let mut passed = Vec::new();
    let mut filtered = Vec::new();
    for (index, piece) in bytes.chunks(piece.max(1)).enumerate() {
        if index == 1 {
            filter.await_pong(*b"internal");
            let ping = control::ping(*b"internal", None);
            passed.extend(filter.insert(ping, false).unwrap_or_default());
        }
        // What is held comes before what is new.
        let mut chunk = filter.take_held();
        chunk.extend_from_slice(piece);
        passed.extend_from_slice(filter.filter(&chunk, &policy, &mut filtered).bytes);
    }
    filter.lift_rate();
    let held = filter.take_held();
    passed.extend_from_slice(filter.filter(&held, &policy, &mut filtered).bytes);
    passed.extend(filter.finish().unwrap_or_default());
    passed
}
