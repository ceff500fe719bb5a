//! A body on its way from one framing to another (RFC 9112, 6 and 7).
//!
//! Chunks are never forwarded as they came: what goes on is written anew, so that nothing in their
//! framing can be read in two ways.

use super::body::{Body, BodyPart, Framing};
use super::forward::push_trailers;
use super::learn_from::Seeker;

/// Most bytes of all trailers of a body.
const MAX_TRAILERS: usize = 8_192;

/// Follows a body in one framing, and writes it in another.
#[derive(Clone, Debug)]
pub(crate) struct Reframer {
    body: Body,
    /// It is written in chunks; else as it is, and its length or the connection's end delimits it.
    writes_chunks: bool,
    /// Payload bytes that may still come.
    left: Option<u64>,
    trailers: Vec<u8>,
    /// Looks at the beginning of the payload.
    seeker: Option<Box<Seeker>>,
}

/// State of a body after some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reframed {
    /// All bytes belong to the body, and more are to come.
    More,
    /// The body ends before this offset, and all of it is written.
    End(usize),
}

/// Reason for which a body cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFault {
    /// Its framing or its trailers are broken.
    Broken,
    /// It has more bytes than it may have.
    TooLarge,
}

impl Reframer {
    /// Creates one for a body that has not begun, and that is written in chunks or as it is.
    pub(crate) fn new(body: Body, writes_chunks: bool, max: Option<u64>) -> Self {
        Self { body, writes_chunks, left: max, trailers: Vec::new(), seeker: None }
    }

    /// Creates one for the body of a request that no two parsers may read differently; `None` is no
    /// body.
    pub(crate) fn of_request(framing: Option<Framing>, max: Option<u64>) -> Self {
        let framing = framing.unwrap_or(Framing::Length(0));
        Self::new(Body::strict(framing), framing == Framing::Chunked, max)
    }

    /// Has the payload looked through for a value.
    pub(crate) fn seeking(self, seeker: Option<Box<Seeker>>) -> Self {
        Self { seeker, ..self }
    }

    /// Takes the value that is sought, once it has come.
    pub(crate) fn take_found(&mut self) -> Option<Vec<u8>> {
        self.seeker.as_mut()?.take_found()
    }

    /// Takes the next bytes of the connection, and appends to `out` what is to be sent for them.
    ///
    /// # Errors
    ///
    /// The fault; `out` has what came before it, and no end.
    pub(crate) fn advance(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Reframed, BodyFault> {
        let mut at = 0;
        while !self.body.is_done() {
            if at == bytes.len() {
                return Ok(Reframed::More);
            }
            let (taken, part) = self.body.step(&bytes[at..]).ok_or(BodyFault::Broken)?;
            let taken_bytes = &bytes[at..at + taken];
            at += taken;
            match part {
                BodyPart::Payload => self.write(taken_bytes, out)?,
                BodyPart::Framing => {}
                BodyPart::Trailer => {
                    self.trailers.extend_from_slice(taken_bytes);
                    if self.trailers.len() > MAX_TRAILERS {
                        return Err(BodyFault::Broken);
                    }
                }
            }
        }
        self.finish(out)?;
        Ok(Reframed::End(at))
    }

    /// Ends the body with the connection. Returns whether it may end so; then its end is appended
    /// to `out`.
    pub(crate) fn end_by_close(&mut self, out: &mut Vec<u8>) -> bool {
        self.body.may_end_here() && self.finish(out).is_ok()
    }

    fn write(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), BodyFault> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(payload.len() as u64).ok_or(BodyFault::TooLarge)?;
        }
        if let Some(seeker) = &mut self.seeker {
            seeker.advance(payload);
        }
        if !self.writes_chunks {
            out.extend_from_slice(payload);
            return Ok(());
        }
        out.extend_from_slice(format!("{:x}\r\n", payload.len()).as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), BodyFault> {
        if self.writes_chunks {
            let start = out.len();
            out.extend_from_slice(b"0\r\n");
            if push_trailers(out, &self.trailers).is_none() {
                out.truncate(start);
                return Err(BodyFault::Broken);
            }
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }
}

/// Returns a framing for a body that has come in `framing`, to a peer that knows chunks or not.
pub(crate) fn framing_to(framing: Framing, knows_chunks: bool) -> Framing {
    match framing {
        Framing::Length(length) => Framing::Length(length),
        Framing::Chunked | Framing::UntilClose if knows_chunks => Framing::Chunked,
        Framing::Chunked | Framing::UntilClose => Framing::UntilClose,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::handshake::samples::table;

    fn chunked(max: Option<u64>) -> Reframer {
        Reframer::new(Body::strict(Framing::Chunked), true, max)
    }

    fn advance(mut reframer: Reframer, bytes: &str) -> (Result<Reframed, BodyFault>, String) {
        let mut out = Vec::new();
        let reframed = reframer.advance(bytes.as_bytes(), &mut out);
        (reframed, String::from_utf8(out).unwrap())
    }

    #[test]
    fn chunks_are_written_anew() {
        let rows = table([
            ("3\r\nabc\r\n0\r\n\r\nGET", "3\r\nabc\r\n0\r\n\r\n", Reframed::End(13)),
            ("003\r\nabc\r\n000\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", Reframed::End(17)),
            ("A\r\n0123456789\r\n", "a\r\n0123456789\r\n", Reframed::More),
            ("a\r\n01234", "5\r\n01234\r\n", Reframed::More),
            ("0\r\nX-Sum: 1\r\n\r\n", "0\r\nX-Sum: 1\r\n\r\n", Reframed::End(15)),
            (
                "0\r\nContent-Length: 5\r\nX-Sum:1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "0\r\nX-Sum:1\r\n\r\n",
                Reframed::End(61),
            ),
        ]);
        for (bytes, out, reframed) in rows {
            assert_eq!(advance(chunked(None), bytes), (Ok(reframed), out.to_owned()), "{bytes:?}");
        }
    }

    #[test]
    fn the_framing_follows_the_receiver() {
        let plain = Reframer::new(Body::new(Framing::Chunked), false, None);
        let chunks = "3;x\r\nabc\r\n1\r\nd\r\n0\r\nX: 1\r\n\r\n";
        assert_eq!(advance(plain, chunks).1, "abcd");
        let mut to_chunks = Reframer::new(Body::new(Framing::UntilClose), true, None);
        let mut out = Vec::new();
        assert_eq!(to_chunks.advance(b"abc", &mut out), Ok(Reframed::More));
        assert!(to_chunks.end_by_close(&mut out));
        assert_eq!(out, b"3\r\nabc\r\n0\r\n\r\n");
        let mut cut = Reframer::new(Body::new(Framing::Length(4)), false, None);
        assert_eq!(cut.advance(b"abc", &mut Vec::new()), Ok(Reframed::More));
        assert!(!cut.end_by_close(&mut Vec::new()));
    }

    #[test]
    fn what_cannot_go_on_is_a_fault() {
        let rows = table([
            ("3;a\r\nabc\r\n", BodyFault::Broken),
            ("3\nabc\r\n", BodyFault::Broken),
            ("0x3\r\nabc\r\n", BodyFault::Broken),
            ("+3\r\nabc\r\n", BodyFault::Broken),
            ("-0\r\n\r\n", BodyFault::Broken),
            (" 3\r\nabc\r\n", BodyFault::Broken),
            ("3 \r\nabc\r\n", BodyFault::Broken),
            ("fffffffffffffffff\r\n", BodyFault::Broken),
            ("3\r\nabcd\r\n", BodyFault::Broken),
            ("0\r\nno colon\r\n\r\n", BodyFault::Broken),
            ("0\r\nX : 1\r\n\r\n", BodyFault::Broken),
            ("4\r\nabcd\r\n4\r\nabcd\r\n", BodyFault::TooLarge),
        ]);
        for (bytes, fault) in rows {
            assert_eq!(advance(chunked(Some(7)), bytes).0, Err(fault), "{bytes:?}");
        }
        let many = format!("0\r\n{}\r\n", "X: 1234567890\r\n".repeat(600));
        assert_eq!(advance(chunked(None), &many).0, Err(BodyFault::Broken));
    }

    proptest! {
        #[test]
        fn the_payload_is_the_same_however_it_comes(
            chunks in vec(vec(any::<u8>(), 1..40), 0..5),
            cuts in vec(1usize..30, 0..40),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            let (mut once, mut out) = (chunked(None), Vec::new());
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                if later.is_empty() {
                    break;
                }
                prop_assert_eq!(once.advance(piece, &mut out), Ok(Reframed::More));
                rest = later;
            }
            prop_assert_eq!(once.advance(rest, &mut out), Ok(Reframed::End(rest.len())));
            // Written in chunks, and read again.
            let (mut again, mut payload) =
                (Reframer::new(Body::strict(Framing::Chunked), false, None), Vec::new());
            prop_assert_eq!(again.advance(&out, &mut payload), Ok(Reframed::End(out.len())));
            prop_assert_eq!(payload, chunks.concat());
        }

        #[test]
        fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = chunked(Some(50)).advance(&bytes, &mut Vec::new());
        }
    }
}
