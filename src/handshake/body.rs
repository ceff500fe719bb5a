//! The end of a body (RFC 9112, 6.3 and 7.1).

/// Framing of a body: the rule by which it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// This many bytes.
    Length(u64),
    /// Chunks, up to the last one and its trailers (RFC 9112, 7.1).
    Chunked,
    /// Everything until the sender ends the connection.
    UntilClose,
}

/// Most bytes of chunk extensions in one line, its CR included (RFC 9112, 7.1.1).
const MAX_LINE: usize = 4_096;
/// Most bytes of one trailer, its CRLF not included (RFC 9112, 7.1.2).
const MAX_TRAILER: usize = 2_048;

/// Follows a body through its framing, without changing or keeping a byte of it.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    state: BodyState,
    /// No chunk may have an extension, or white space after its size.
    is_strict: bool,
}

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
    /// After the size, before the CR of its line.
    Extension {
        size: u64,
        line: usize,
    },
    /// Before the LF of that line.
    SizeEnd {
        size: u64,
    },
    /// This many bytes of the chunk are still to come.
    Data(u64),
    /// Before the CR, and the LF, after the bytes of a chunk.
    DataCr,
    DataLf,
    /// Within the trailers, after `line` bytes of the current line and perhaps its CR.
    Trailer {
        line: usize,
        after_cr: bool,
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

/// Part of a body that some bytes of it are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyPart {
    Payload,
    /// Size, extension and end of a chunk.
    Framing,
    /// The trailers and the blank line after them.
    Trailer,
}

impl Body {
    /// Creates a body that has not begun.
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => BodyState::Done,
            Framing::Length(length) => BodyState::Length(length),
            Framing::Chunked => BodyState::Size { size: 0, digits: 0 },
            Framing::UntilClose => BodyState::UntilClose,
        };
        Self { state, is_strict: false }
    }

    /// Creates a body in which no chunk may have an extension: two parsers have read them
    /// differently, and nobody sends any.
    pub(crate) fn strict(framing: Framing) -> Self {
        Self { is_strict: true, ..Self::new(framing) }
    }

    /// Returns whether nothing more belongs to the body.
    pub(crate) fn is_done(&self) -> bool {
        self.state == BodyState::Done
    }

    /// Returns whether the end of the connection is a valid end of the body.
    pub(crate) fn may_end_here(&self) -> bool {
        matches!(self.state, BodyState::UntilClose | BodyState::Done)
    }

    /// Consumes the next bytes of the connection.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> BodyProgress {
        let mut at = 0;
        loop {
            if self.is_done() {
                return BodyProgress::End(at);
            }
            let rest = &bytes[at..];
            if rest.is_empty() {
                return BodyProgress::More;
            }
            match self.step(rest) {
                Some((taken, _)) => at += taken,
                None => return BodyProgress::Fault(at),
            }
        }
    }

    /// Consumes some of the next bytes of the connection, all of one kind; returns their number,
    /// which is 0 only after the end or for no bytes, and their part. `None` is a fault in the
    /// first of them.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Option<(usize, BodyPart)> {
        let Some(&byte) = bytes.first() else { return Some((0, BodyPart::Payload)) };
        // Stretches of payload are stepped over as a whole, framing is read byte by byte.
        let (taken, part, next) = match self.state {
            BodyState::Done => (0, BodyPart::Payload, BodyState::Done),
            BodyState::UntilClose => (bytes.len(), BodyPart::Payload, BodyState::UntilClose),
            BodyState::Length(left) => {
                let taken = step(left, bytes.len());
                let left = left - taken as u64;
                let next = if left == 0 { BodyState::Done } else { BodyState::Length(left) };
                (taken, BodyPart::Payload, next)
            }
            BodyState::Data(left) => {
                let taken = step(left, bytes.len());
                let left = left - taken as u64;
                let next = if left == 0 { BodyState::DataCr } else { BodyState::Data(left) };
                (taken, BodyPart::Payload, next)
            }
            BodyState::Size { size, digits } => {
                (1, BodyPart::Framing, after_size_byte(size, digits, byte, self.is_strict)?)
            }
            BodyState::Extension { size, line } => {
                (1, BodyPart::Framing, after_extension_byte(size, line, byte)?)
            }
            BodyState::SizeEnd { size } => {
                let next = match size {
                    0 => BodyState::Trailer { line: 0, after_cr: false },
                    size => BodyState::Data(size),
                };
                (1, BodyPart::Framing, (byte == b'\n').then_some(next)?)
            }
            BodyState::DataCr => {
                (1, BodyPart::Framing, (byte == b'\r').then_some(BodyState::DataLf)?)
            }
            BodyState::DataLf => {
                let next = BodyState::Size { size: 0, digits: 0 };
                (1, BodyPart::Framing, (byte == b'\n').then_some(next)?)
            }
            BodyState::Trailer { line, after_cr } => {
                (1, BodyPart::Trailer, after_trailer_byte(line, after_cr, byte)?)
            }
        };
        self.state = next;
        Some((taken, part))
    }
}

/// Returns how many of `left` bytes are among the `here` that have come.
fn step(left: u64, here: usize) -> usize {
    usize::try_from(left).map_or(here, |left| left.min(here))
}

fn after_size_byte(size: u64, digits: u8, byte: u8, is_strict: bool) -> Option<BodyState> {
    if let Some(digit) = char::from(byte).to_digit(16) {
        // Far below what 64 bits hold.
        return (digits < 15)
            .then_some(BodyState::Size { size: size * 16 + u64::from(digit), digits: digits + 1 });
    }
    match byte {
        _ if digits == 0 => None,
        b'\r' => Some(BodyState::SizeEnd { size }),
        b';' | b' ' | b'\t' if !is_strict => Some(BodyState::Extension { size, line: 1 }),
        _ => None,
    }
}

fn after_extension_byte(size: u64, line: usize, byte: u8) -> Option<BodyState> {
    match byte {
        b'\r' => Some(BodyState::SizeEnd { size }),
        b'\n' | 0 => None,
        _ => (line < MAX_LINE).then_some(BodyState::Extension { size, line: line + 1 }),
    }
}

fn after_trailer_byte(line: usize, after_cr: bool, byte: u8) -> Option<BodyState> {
    match (byte, line) {
        (b'\n', 0) if after_cr => Some(BodyState::Done),
        (b'\n', _) if after_cr => Some(BodyState::Trailer { line: 0, after_cr: false }),
        _ if after_cr => None,
        (b'\r', line) => Some(BodyState::Trailer { line, after_cr: true }),
        // A folded line, as in a head.
        (b' ' | b'\t', 0) => None,
        (0..0x20 | 0x7f, _) if byte != b'\t' => None,
        _ => (line < MAX_TRAILER).then_some(BodyState::Trailer { line: line + 1, after_cr }),
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
            ("1\rx", 2),
            ("1\r\nab", 4),
            ("1\r\na\n", 4),
            ("1\r\na\rx", 5),
            ("1;a\n", 3),
            ("1;a\0", 3),
            ("0\r\na\n", 4),
            ("0\r\na\rb", 5),
            ("0\r\n a", 3),
            ("0\r\na\x01", 4),
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
    fn a_strict_body_has_no_extensions() {
        let rows = table([("3;a=b\r\n", 1), ("3 \r\n", 1), ("3\t\r\n", 1), ("0;\r\n", 1)]);
        for (bytes, at) in rows {
            let mut body = Body::strict(Framing::Chunked);
            assert_eq!(body.advance(bytes.as_bytes()), BodyProgress::Fault(at), "{bytes:?}");
            assert_eq!(after(Framing::Chunked, bytes.as_bytes()), BodyProgress::More, "{bytes:?}");
        }
        let mut body = Body::strict(Framing::Chunked);
        assert_eq!(body.advance(b"03\r\nabc\r\n0\r\n\r\n"), BodyProgress::End(14));
    }

    #[test]
    fn lines_of_the_framing_are_bounded() {
        // The mark of an extension counts.
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
