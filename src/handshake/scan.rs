//! End of a head, found byte by byte; stops at the first byte that no head can hold.

/// State of a [`HeadScan`] after the bytes that it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The blank line has not come yet; everything so far may be part of a head.
    More,
    /// The head ends before this offset, its blank line included.
    End(usize),
    /// No further byte can make this a head; the text names the fault.
    Fault(&'static str),
}

/// Incremental search for the blank line that ends a head.
///
/// It is stricter than RFC 9112 asks for: a bare LF is no line end (2.2 only permits it), because
/// two parsers in a row that see different lines in the same bytes are how requests get smuggled.
/// Told at once, such a sender gets its 400 instead of waiting for a deadline.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadScan {
    /// Offset of the first byte not looked at yet.
    at: usize,
    /// Offset at which the current line begins.
    line_start: usize,
    /// Complete lines seen, leading empty ones not counted.
    lines: usize,
    /// The last byte was a CR, so that only LF may follow.
    after_cr: bool,
    /// A line may end in LF alone.
    allows_lf: bool,
    /// One has.
    has_bare_lf: bool,
}

impl HeadScan {
    /// Creates a scan for which a line may end in LF alone, as the answers of some backends have
    /// it. Never for requests.
    pub(crate) fn allowing_lf() -> Self {
        Self { allows_lf: true, ..Self::default() }
    }

    /// Returns whether a line of the head ended in LF alone.
    pub(crate) fn has_bare_lf(&self) -> bool {
        self.has_bare_lf
    }

    /// Scans the bytes of `buffer` that are new since the last call; `buffer` must hold the same
    /// bytes as before, and may have more after them.
    pub(crate) fn advance(&mut self, buffer: &[u8]) -> Scan {
        while let Some(&byte) = buffer.get(self.at) {
            self.at += 1;
            if self.after_cr && byte != b'\n' {
                return Scan::Fault("a CR that is not followed by LF");
            }
            match byte {
                b'\r' => self.after_cr = true,
                b'\n' if self.after_cr || self.allows_lf => {
                    self.has_bare_lf |= !self.after_cr;
                    let ending = if std::mem::take(&mut self.after_cr) { 2 } else { 1 };
                    let is_empty = self.at - self.line_start == ending;
                    self.line_start = self.at;
                    match (is_empty, self.lines) {
                        // One empty line before the start line is to be ignored (RFC 9112, 2.2).
                        (true, 0) if self.at == 2 => {}
                        (true, 0) => return Scan::Fault("empty lines instead of a start line"),
                        (true, _) => return Scan::End(self.at),
                        (false, _) => self.lines += 1,
                    }
                }
                b'\n' => {
                    return Scan::Fault("a line that ends in LF without CR: end each in CRLF");
                }
                // RFC 9112, 5.2: a folded line is to be refused or replaced.
                b' ' | b'\t' if self.at - 1 == self.line_start && self.lines > 0 => {
                    return Scan::Fault("a folded header line (obs-fold)");
                }
                b'\t' => {}
                0..0x20 | 0x7f => return Scan::Fault("a control byte"),
                _ => {}
            }
        }
        Scan::More
    }

    /// Returns whether the start line has ended.
    pub(crate) fn has_start_line(&self) -> bool {
        self.lines > 0
    }
}

/// Ends every line of a head in CRLF. The head has passed a scan that [allows LF
/// alone](HeadScan::allowing_lf).
pub(crate) fn with_crlf(head: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + 64);
    for line in head.split_inclusive(|&byte| byte == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        out.extend_from_slice(text.strip_suffix(b"\r").unwrap_or(text));
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handshake::samples::table;

    fn scan(bytes: &[u8]) -> Scan {
        HeadScan::default().advance(bytes)
    }

    #[test]
    fn ends_after_the_blank_line() {
        assert_eq!(scan(b"GET / HTTP/1.1\r\na: b\r\n\r\nrest"), Scan::End(24));
        assert_eq!(scan(b"GET / HTTP/1.1\r\n\r\n"), Scan::End(18));
        assert_eq!(scan(b"\r\nGET / HTTP/1.1\r\n\r\n"), Scan::End(20));
        // Tabs within a line, and bytes beyond ASCII, are left to the parser.
        assert_eq!(scan(b"GET / HTTP/1.1\r\na:\t\x80\xff\r\n\r\n"), Scan::End(25));
        assert_eq!(scan(b"GET / HTTP/1.1\r\na: b\r\n\r"), Scan::More);
        assert_eq!(scan(b""), Scan::More);
    }

    #[test]
    fn stops_at_what_no_head_can_hold() {
        let rows: [&[u8]; 12] = table([
            b"\n",
            b"\r\n\r\n",
            b"\r\n\r\nGET",
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\na: b\n",
            b"GET / HTTP/1.1\r\na: b\rc",
            b"GET / HTTP/1.1\r\n folded",
            b"GET / HTTP/1.1\r\na: b\r\n\tfolded",
            b"GET / HTTP/1.1\r\na: \0",
            b"GET / HTTP/1.1\r\na: \x1f",
            b"GET / HTTP/1.1\r\na: \x7f",
            b"\x16\x03\x01\x02\x00",
        ]);
        for bytes in rows {
            assert!(matches!(scan(bytes), Scan::Fault(_)), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn lines_may_end_in_lf_alone_where_that_is_asked_for() {
        let scan = |bytes: &[u8]| {
            let mut scan = HeadScan::allowing_lf();
            (scan.advance(bytes), scan.has_bare_lf())
        };
        assert_eq!(scan(b"HTTP/1.1 101 x\na: b\n\nrest"), (Scan::End(21), true));
        assert_eq!(scan(b"HTTP/1.1 101 x\r\na: b\n\r\nrest"), (Scan::End(23), true));
        assert_eq!(scan(b"HTTP/1.1 101 x\r\na: b\r\n\r\nrest"), (Scan::End(24), false));
        let faults: [&[u8]; 6] = table([
            b"\nHTTP/1.1",
            b"\n\nHTTP/1.1",
            b"HTTP/1.1 101 x\na: b\rc",
            b"HTTP/1.1 101 x\n folded",
            b"HTTP/1.1 101 x\na\n\tfolded",
            b"HTTP/1.1 101 x\na: \0",
        ]);
        for bytes in faults {
            assert!(matches!(scan(bytes).0, Scan::Fault(_)), "{}", bytes.escape_ascii());
        }
        let mended = with_crlf(b"HTTP/1.1 101 x\na: b\r\nc: d\n\n");
        assert_eq!(mended.escape_ascii().to_string(), r"HTTP/1.1 101 x\r\na: b\r\nc: d\r\n\r\n");
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_answer(
            bytes in proptest::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'a'), Just(b' '), any::<u8>()], 0..64),
            cuts in proptest::collection::vec(0usize..64, 0..6),
        ) {
            let whole = scan(&bytes);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut pieces = HeadScan::default();
            let mut last = Scan::More;
            for cut in cuts {
                last = pieces.advance(&bytes[..cut]);
                if last != Scan::More {
                    break;
                }
            }
            prop_assert_eq!(last, whole);
        }
    }
}
