//! Doors into the pure parts, for the micro-benchmarks and the fuzz targets of this repository.
//!
//! There is no promise about any of it: it comes with the feature `internals` only, and is not documented.

use crate::handshake::body::{Body, Framing, Progress};
use crate::handshake::forward::{Forwarded, Hop, HostHeader, request_head, switching_head};
use crate::handshake::request::UpgradeRequest;
use crate::handshake::response::Answer;
use crate::handshake::scan::{HeadScan, Scan};
use crate::tunnel::control;
use crate::tunnel::frames::{Event, Frames};
use crate::tunnel::gate::Gate;
use crate::tunnel::rules::Rules;

/// Where the head ends, if it does.
pub fn scan(bytes: &[u8]) -> Option<usize> {
    match HeadScan::default().advance(bytes) {
        Scan::End(end) => Some(end),
        Scan::More | Scan::Fault(_) => None,
    }
}

/// The status that a complete head gets from the proxy, 101 for none.
pub fn judge(head: &[u8]) -> u16 {
    UpgradeRequest::parse(head).map_or_else(|reject| reject.status, |_| 101)
}

/// The head that a good head is forwarded as.
pub fn forward(head: &[u8]) -> Option<Vec<u8>> {
    let request = UpgradeRequest::parse(head).ok()?;
    let client = std::net::Ipv4Addr::LOCALHOST.into();
    let hop = Hop {
        client,
        backend: "chat-backend:9000",
        host: HostHeader::Backend,
        forwarded: Forwarded::Append,
    };
    Some(request_head(&request, &hop))
}

/// The 101 that the client gets for the backend's answer to a good head, if that is a good one.
pub fn answer(head: &[u8], answer: &[u8]) -> Option<Vec<u8>> {
    let request = UpgradeRequest::parse(head).ok()?;
    match Answer::parse(answer, &request).ok()? {
        Answer::Switching(response) => Some(switching_head(&response)),
        Answer::Interim | Answer::Refusal(..) => None,
    }
}

/// Where a chunked body ends, read in pieces of this size.
pub fn chunked(bytes: &[u8], piece: usize) -> Option<usize> {
    let mut body = Body::new(Framing::Chunked);
    let mut before = 0;
    for piece in bytes.chunks(piece.max(1)) {
        match body.advance(piece) {
            Progress::More => before += piece.len(),
            Progress::End(end) => return Some(before + end),
            Progress::Fault(_) => return None,
        }
    }
    None
}

/// The payload lengths of the frames in these bytes, read in pieces of this size, and whether they end with a frame.
pub fn frames(bytes: &[u8], piece: usize) -> (Vec<u64>, bool) {
    let mut frames = Frames::default();
    let mut lengths = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        let mut rest = piece;
        loop {
            let (taken, event) = frames.next(rest);
            rest = &rest[taken..];
            match event {
                Some(Event::Header(header)) => lengths.push(header.length),
                Some(Event::End | Event::Blind) => {}
                None => break,
            }
        }
    }
    (lengths, frames.is_at_boundary())
}

/// What passes of a client's frames, read in pieces of this size, with a Ping put in between them and its Pong awaited.
/// With a limit, no message may be larger.
pub fn gate(bytes: &[u8], piece: usize, limit: Option<u64>) -> Vec<u8> {
    let rules = Rules { max_message: limit, ..Rules::default() };
    let mut gate = Gate::new(&rules, true, false);
    let mut passed = Vec::new();
    let mut spare = Vec::new();
    for (index, piece) in bytes.chunks(piece.max(1)).enumerate() {
        if index == 1 {
            gate.await_pong(*b"internal");
            passed
                .extend(gate.insert(control::ping(*b"internal", None), false).unwrap_or_default());
        }
        passed.extend_from_slice(gate.pass(piece, &rules, &mut spare).bytes);
    }
    passed.extend(gate.finish().unwrap_or_default());
    passed
}
