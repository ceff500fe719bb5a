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

/// Longest line of chunk framing that is followed: a size with its extensions, or a trailer.
const MAX_LINE: usize = 4_096;

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
    /// Within the trailers, after `line` bytes of the current line.
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
        // A first byte that is no CR counts double, so that a line of one letter is not taken for
        // blank.
        (b'\r', _) => Some(BodyState::Trailer { line: line + 1 }),
        _ => (line < MAX_LINE).then_some(BodyState::Trailer { line: line + 2 }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn after(framing: Framing, bytes: &[u8]) -> BodyProgress {
        Body::new(framing).advance(bytes)
    }

    #[test]
    fn a_length_is_counted() {
        assert_eq!(after(Framing::Length(0), b"x"), BodyProgress::End(0));
        assert_eq!(after(Framing::Length(3), b"ab"), BodyProgress::More);
        assert_eq!(after(Framing::Length(3), b"abcd"), BodyProgress::End(3));
        assert_eq!(after(Framing::UntilClose, b"abcd"), BodyProgress::More);
    }

    #[test]
    fn chunks_are_followed_to_the_last_one() {
        let chunked = |bytes: &[u8]| after(Framing::Chunked, bytes);
        assert_eq!(chunked(b"3\r\nabc\r\n0\r\n\r\nx"), BodyProgress::End(13));
        assert_eq!(chunked(b"A;name=\"v\"\r\n0123456789\r\n0\r\n\r\n"), BodyProgress::End(29));
        assert_eq!(chunked(b"0\r\nX-Sum: 1\r\na\r\n\r\nmore"), BodyProgress::End(18));
        assert_eq!(chunked(b"3\r\nabc\r\n0\r\n"), BodyProgress::More);
        for broken in [&b"x"[..], b"\r\n", b";a\r\n", b"-1\r\n"] {
            assert_eq!(chunked(broken), BodyProgress::Fault(0), "{}", broken.escape_ascii());
        }
        assert_eq!(chunked(b"fffffffffffffffff\r\n"), BodyProgress::Fault(15));
        assert_eq!(chunked(b"1\r\na\r\nx"), BodyProgress::Fault(6));
        let endless = |start: &[u8]| chunked(&[start, &[b'x'; 9_000]].concat());
        assert!(matches!(endless(b"1;"), BodyProgress::Fault(_)));
        assert!(matches!(endless(b"0\r\n"), BodyProgress::Fault(_)));
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
            bytes.extend_from_slice(b"behind");
            let cut = cut % end;
            let mut body = Body::new(Framing::Chunked);
            prop_assert_eq!(body.advance(&bytes[..cut]), BodyProgress::More);
            prop_assert_eq!(body.advance(&bytes[cut..]), BodyProgress::End(end - cut));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = after(Framing::Chunked, &bytes);
        }
    }
}
