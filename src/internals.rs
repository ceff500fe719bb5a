//! Doors into the pure parts, for the micro-benchmarks and the fuzz targets of this repository.
//!
//! There is no promise about any of it: it comes with the feature `internals` only, and is not
//! documented.

use crate::handshake::body::{Body, BodyProgress, Framing};
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::{ForwardPolicy, Forwarded, HostHeader, request_head};
use crate::handshake::http::{RequestHead, ResponseHead};
use crate::handshake::response::Answer;
use crate::handshake::scan::{HeadScan, Scan};
use crate::handshake::upgrade::UpgradeRequest;
use crate::tunnel::control;
use crate::tunnel::filter::FrameFilter;
use crate::tunnel::frames::{FrameEvent, Frames};
use crate::tunnel::policy::Policy;

/// Returns the offset of the head's end, if it has one.
pub fn scan(bytes: &[u8]) -> Option<usize> {
    match HeadScan::default().advance(bytes) {
        Scan::End(end) => Some(end),
        Scan::More | Scan::Fault(_) => None,
    }
}

/// Returns the status that a complete head gets from the proxy, 101 for none.
pub fn judge(head: &[u8]) -> u16 {
    let judged = RequestHead::parse(head)
        .map_err(ErrorResponse::from)
        .and_then(|head| UpgradeRequest::judge(&head).map(|_| 101));
    judged.unwrap_or_else(|error| error.status)
}

/// Returns a valid head as it is forwarded.
pub fn forward(head: &[u8]) -> Option<Vec<u8>> {
    let head = RequestHead::parse(head).ok()?;
    let request = UpgradeRequest::judge(&head).ok()?;
    let client = std::net::Ipv4Addr::LOCALHOST.into();
    let policy = ForwardPolicy {
        client,
        backend: "chat-backend:9000",
        host: HostHeader::Backend,
        forwarded: Forwarded::Append,
    };
    Some(request_head(&request, &policy))
}

/// Returns the 101 that the client gets for the backend's answer to a valid head, if it is one.
pub fn answer(head: &[u8], answer: &[u8]) -> Option<Vec<u8>> {
    let head = RequestHead::parse(head).ok()?;
    let request = UpgradeRequest::judge(&head).ok()?;
    match Answer::judge(&ResponseHead::parse(answer).ok()?, &request).ok()?? {
        Answer::Switched { head, .. } => Some(head),
        Answer::Declined { .. } => None,
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

/// Returns what passes of a client's frames, read in pieces of this size, with a Ping inserted
/// between them and its Pong awaited. With a limit, no message may be larger.
pub fn filter(bytes: &[u8], piece: usize, limit: Option<u64>) -> Vec<u8> {
    let policy = Policy { max_message: limit, ..Policy::default() };
    let mut filter = FrameFilter::new(&policy, true, false);
    let mut passed = Vec::new();
    let mut filtered = Vec::new();
    for (index, piece) in bytes.chunks(piece.max(1)).enumerate() {
        if index == 1 {
            filter.await_pong(*b"internal");
            let ping = control::ping(*b"internal", None);
            passed.extend(filter.insert(ping, false).unwrap_or_default());
        }
        passed.extend_from_slice(filter.filter(piece, &policy, &mut filtered).bytes);
    }
    passed.extend(filter.finish().unwrap_or_default());
    passed
}
