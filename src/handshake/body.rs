//! End of the body of a backend's response (RFC 9112, 6.3 and 7.1).

/// Framing of a body: the rule by which it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// This many bytes.
    Length(u64),
    /// Chunks, up to the last one and its trailers (RFC 9112, 7.1).
    Chunked,
    /// Everything until the backend ends the connection.
    UntilClose,
}

/// Most bytes of chunk extensions in one line, its CR included (RFC 9112, 7.1.1).
const MAX_LINE: usize = 4_096;
/// Most bytes of one trailer, its CRLF not included (RFC 9112, 7.1.2).
const MAX_TRAILER: usize = 2_048;

/// Follows a body through its framing, without changing or keeping a byte of it.
#[derive(Clone, Debug)]
pub(crate) struct Body(BodyState);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyState {
    /// This many bytes are still to come, then the end.
    Length(u64),
    UntilClose,
    /// Within the line that begins a chunk: its size so far, and the digits of it.
    Size {
        size: u64,
        digits: u8,
    },
    /// After the size, before the LF of its line.
    Extension {
        size: u64,
        line: usize,
    },
    /// This many bytes of the chunk, its CRLF included, are still to come.
    Data(u64),
    /// Within the trailers. In `line` a byte of the current line counts two, a CR one.
    Trailer {
        line: usize,
    },
    Done,
}

/// Meaning of the next bytes for a [`Body`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyProgress {
    /// All bytes belong to the body, and more are to come.
    More,
    /// The body ends before this offset.
    End(usize),
    /// The framing is broken: nothing can be said of the bytes from this offset on.
    Fault(usize),
}

impl Body {
    /// Creates a body that has not begun.
    pub(crate) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => BodyState::Done,
            Framing::Length(length) => BodyState::Length(length),
            Framing::Chunked => BodyState::Size { size: 0, digits: 0 },
            Framing::UntilClose => BodyState::UntilClose,
        })
    }

    /// Returns whether nothing more belongs to the body.
    pub(crate) fn is_done(&self) -> bool {
        self.0 == BodyState::Done
    }

    /// Returns whether the end of the connection is a valid end of the body.
    pub(crate) fn may_end_here(&self) -> bool {
        matches!(self.0, BodyState::UntilClose | BodyState::Done)
    }

    /// Consumes the next bytes of the connection.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> BodyProgress {
        let mut at = 0;
        loop {
            if self.is_done() {
                return BodyProgress::End(at);
            }
            let rest = &bytes[at..];
            let Some(&byte) = rest.first() else {
                return BodyProgress::More;
            };
            // Stretches of payload are stepped over as a whole, framing is read byte by byte.
            let (taken, next) = match self.0 {
                BodyState::Done => return BodyProgress::End(at),
                BodyState::UntilClose => (rest.len(), Some(BodyState::UntilClose)),
                BodyState::Length(left) => {
                    let taken = step(left, rest.len());
                    let left = left - taken as u64;
                    (taken, Some(if left == 0 { BodyState::Done } else { BodyState::Length(left) }))
                }
                BodyState::Data(left) => {
                    let taken = step(left, rest.len());
                    let left = left - taken as u64;
                    (
                        taken,
                        Some(if left == 0 {
                            BodyState::Size { size: 0, digits: 0 }
                        } else {
                            BodyState::Data(left)
                        }),
                    )
                }
                BodyState::Size { size, digits } => (1, after_size_byte(size, digits, byte)),
                BodyState::Extension { size, line } => (1, after_extension_byte(size, line, byte)),
                BodyState::Trailer { line } => (1, after_trailer_byte(line, byte)),
            };
            match next {
                Some(state) => self.0 = state,
                None => return BodyProgress::Fault(at),
            }
            at += taken;
        }
    }
}

/// Returns how many of `left` bytes are among the `here` that have come.
fn step(left: u64, here: usize) -> usize {
    usize::try_from(left).map_or(here, |left| left.min(here))
}

fn after_size_byte(size: u64, digits: u8, byte: u8) -> Option<BodyState> {
    if let Some(digit) = char::from(byte).to_digit(16) {
        // Fifteen digits leave room for the CRLF that is counted with the data.
        return (digits < 15)
            .then_some(BodyState::Size { size: size * 16 + u64::from(digit), digits: digits + 1 });
    }
    let line_goes_on = digits > 0 && matches!(byte, b';' | b' ' | b'\t' | b'\r');
    line_goes_on.then_some(BodyState::Extension { size, line: 0 })
}

fn after_extension_byte(size: u64, line: usize, byte: u8) -> Option<BodyState> {
    match (byte, size) {
        (b'\n', 0) => Some(BodyState::Trailer { line: 0 }),
        (b'\n', _) => Some(BodyState::Data(size + 2)),
        _ => (line < MAX_LINE).then_some(BodyState::Extension { size, line: line + 1 }),
    }
}

fn after_trailer_byte(line: usize, byte: u8) -> Option<BodyState> {
    match (byte, line) {
        // The blank line: nothing but a CR came before its LF.
        (b'\n', 0 | 1) => Some(BodyState::Done),
        (b'\n', _) => Some(BodyState::Trailer { line: 0 }),
        // Bytes other than CR count double, so that a line of one letter is not taken for blank.
        (b'\r', _) => Some(BodyState::Trailer { line: line + 1 }),
        _ => (line < 2 * MAX_TRAILER).then_some(BodyState::Trailer { line: line + 2 }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::handshake::samples::table;

    fn after(framing: Framing, bytes: &[u8]) -> BodyProgress {
        Body::new(framing).advance(bytes)
    }

    #[test]
    fn a_body_ends_by_its_framing() {
        let rows = table([
            (Framing::Length(0), "x", BodyProgress::End(0)),
            (Framing::Length(3), "ab", BodyProgress::More),
            (Framing::Length(3), "abc", BodyProgress::End(3)),
            (Framing::Length(3), "abcd", BodyProgress::End(3)),
            (Framing::UntilClose, "abcd", BodyProgress::More),
            (Framing::Chunked, "3\r\nabc\r\n0\r\n", BodyProgress::More),
            (Framing::Chunked, "3\r\nabc\r\n0\r\n\r\nx", BodyProgress::End(13)),
            (Framing::Chunked, "00A;n=\"v\"\r\n0123456789\r\n0\r\n\r\n", BodyProgress::End(28)),
            // Trailers, one of them a single letter.
            (Framing::Chunked, "0\r\nX-Sum: 1\r\na\r\n\r\nmore", BodyProgress::End(18)),
        ]);
        for (framing, bytes, expected) in rows {
            assert_eq!(after(framing, bytes.as_bytes()), expected, "{framing:?} {bytes:?}");
        }
    }

    #[test]
    fn broken_chunks_are_a_fault_at_their_first_byte() {
        let rows = table([
            ("x", 0),
            ("\r\n", 0),
            (";a\r\n", 0),
            ("-1\r\n", 0),
            ("1\n", 1),
            ("1\r\na\r\nx", 6),
            // Room for the size of 15 digits and its CRLF, in 64 bits.
            ("fffffffffffffff0\r\n", 15),
        ]);
        for (bytes, at) in rows {
            let progress = after(Framing::Chunked, bytes.as_bytes());
            assert_eq!(progress, BodyProgress::Fault(at), "{bytes:?}");
        }
        assert_eq!(after(Framing::Chunked, b"fffffffffffffff\r\n"), BodyProgress::More);
    }

    #[test]
    fn lines_of_the_framing_are_bounded() {
        // The CR of a chunk's line counts, the one of a trailer does not.
        let rows = table([("0;", MAX_LINE - 1, "\r\n\r\n"), ("0\r\n", MAX_TRAILER, "\r\n\r\n")]);
        for (start, longest, end) in rows {
            let with = |count| format!("{start}{}{end}", "x".repeat(count));
            let (fits, exceeds) = (with(longest), with(longest + 1));
            let progress = after(Framing::Chunked, fits.as_bytes());
            assert_eq!(progress, BodyProgress::End(fits.len()), "{start:?}");
            let progress = after(Framing::Chunked, exceeds.as_bytes());
            assert!(matches!(progress, BodyProgress::Fault(_)), "{start:?}: {progress:?}");
        }
    }

    proptest! {
        #[test]
        fn any_split_ends_at_the_same_byte(
            chunks in vec(vec(any::<u8>(), 1..40), 0..5),
            cut in 0usize..300,
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            let end = bytes.len();
            bytes.extend_from_slice(b"more");
            let cut = cut % end;
            let mut body = Body::new(Framing::Chunked);
            prop_assert_eq!(body.advance(&bytes[..cut]), BodyProgress::More);
            prop_assert_eq!(body.advance(&bytes[cut..]), BodyProgress::End(end - cut));
        }

        #[test]
        fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = after(Framing::Chunked, &bytes);
        }
    }
}
