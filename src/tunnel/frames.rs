//! Frame boundaries and headers of one direction (RFC 6455, 5.2).

/// Longest payload: the top bit of a 64-bit length must be 0 (RFC 6455, 5.2).
const MAX_LENGTH: u64 = i64::MAX as u64;

/// Longest header: two bytes, a 64-bit length, and a masking key.
const MAX_HEADER: usize = 14;

/// Parser of one direction's frames: 16 bytes of state, whatever passes.
///
/// It reads headers only, steps over payload, and never fails: a header that it cannot follow makes
/// it opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frames(Position);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Before a header, or within it: its bytes, and the number of those that have come.
    Header([u8; MAX_HEADER], u8),
    /// After a header, up to the end of its frame. An unmasked frame has a key of zero.
    Payload {
        first: u8,
        mask: [u8; 4],
        left: u64,
    },
    Opaque,
}

/// Event in the stream of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameEvent {
    /// The last byte of a header.
    Header(Header),
    /// The last byte of a frame.
    End,
    /// A header that cannot be followed. No further event comes.
    Opaque,
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// FIN, the reserved bits, and the opcode.
    first: u8,
    /// Masking key of a masked frame.
    pub(crate) mask: Option<[u8; 4]>,
    /// Length of the payload in bytes.
    pub(crate) length: u64,
}

/// Frames that are there as a whole, one after another, of the same kind and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Header of the first. The others have masking keys of their own.
    pub(crate) header: Header,
    /// Number of frames.
    pub(crate) count: u32,
    /// Bytes of them all.
    pub(crate) size: usize,
}

/// Kind of a frame (RFC 6455, 5.2 and 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
    /// A reserved opcode.
    Other,
}

impl Header {
    /// Reads the header that these bytes begin with, if all of it is there; returns its length,
    /// too.
    fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let (&[first, second], rest) = bytes.split_first_chunk()?;
        let (length, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u16::from_be_bytes(*length).into(), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            short => (short.into(), rest),
        };
        let (mask, rest) = if second & 0x80 == 0 {
            (None, rest)
        } else {
            let (mask, rest) = rest.split_first_chunk()?;
            (Some(*mask), rest)
        };
        Some((Self { first, mask, length }, bytes.len() - rest.len()))
    }

    /// Returns whether this is the last frame of its message.
    pub(crate) fn is_final(&self) -> bool {
        self.first & 0x80 != 0
    }

    /// Returns whether this is a control frame, reserved ones included: it may stand between the
    /// fragments of a message (RFC 6455, 5.4).
    pub(crate) fn is_control(&self) -> bool {
        self.first & 0x08 != 0
    }

    /// Returns whether one of the three bits is set that only an extension gives a meaning.
    pub(crate) fn has_reserved_bits(&self) -> bool {
        self.first & 0x70 != 0
    }

    /// Returns the kind of the frame.
    pub(crate) fn opcode(&self) -> Opcode {
        match self.first & 0x0f {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => Opcode::Other,
        }
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self(Position::Header([0; MAX_HEADER], 0))
    }
}

impl Frames {
    /// Consumes bytes up to the next event: returns their number and the event. All bytes and no
    /// event mean that more are needed.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> (usize, Option<FrameEvent>) {
        match &mut self.0 {
            Position::Header(begun, have) => {
                // Nearly all headers are there as a whole.
                if *have == 0
                    && let Some((header, taken)) = Header::read(bytes)
                {
                    return (taken, Some(self.end_header(header)));
                }
                let before = usize::from(*have);
                let room = &mut begun[before..];
                let here = room.len().min(bytes.len());
                room[..here].copy_from_slice(&bytes[..here]);
                match Header::read(&begun[..before + here]) {
                    Some((header, length)) => (length - before, Some(self.end_header(header))),
                    None => {
                        *have += here as u8;
                        (here, None)
                    }
                }
            }
            Position::Payload { left, .. } => {
                let here = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= here as u64;
                if *left > 0 {
                    return (here, None);
                }
                *self = Self::default();
                (here, Some(FrameEvent::End))
            }
            Position::Opaque => (bytes.len(), None),
        }
    }

    /// Returns the frames at the front of these bytes that are there as a whole and begin alike;
    /// `None` within a frame, or if there is none. Their bytes are consumed: the next ones are for
    /// either `run` or [`next`](Frames::next), which takes everything.
    ///
    /// A Close is never among them, since its payload has to be seen.
    pub(crate) fn run(&self, bytes: &[u8]) -> Option<Run> {
        if !self.is_at_boundary() {
            return None;
        }
        let (header, header_bytes) = Header::read(bytes)?;
        let payload_bytes = usize::try_from(header.length).ok()?;
        if bytes.len() - header_bytes < payload_bytes || header.opcode() == Opcode::Close {
            return None;
        }
        let size = header_bytes + payload_bytes;
        let mut run = Run { header, count: 1, size };
        // Equal in their first two bytes, they are equally large, unless a longer length follows.
        if bytes[1] & 0x7f < 126 {
            while let Some(next) = bytes[run.size..].get(..size)
                && next[..2] == bytes[..2]
            {
                run.count += 1;
                run.size += size;
            }
        }
        Some(run)
    }

    /// Returns how many of the next bytes may pass unseen: payload of the current frame, all but
    /// its last byte. That of a Close is looked at, however large it is.
    pub(crate) fn unseen(&self) -> u64 {
        match self.0 {
            Position::Header(..) => 0,
            Position::Payload { .. } if self.close_mask().is_some() => 0,
            Position::Payload { left, .. } => left.saturating_sub(1),
            Position::Opaque => u64::MAX,
        }
    }

    /// Consumes bytes that have passed unseen.
    pub(crate) fn skip(&mut self, count: u64) {
        if let Position::Payload { left, .. } = &mut self.0 {
            *left = left.saturating_sub(count);
        }
    }

    /// Returns whether a frame may be inserted here.
    pub(crate) fn is_at_boundary(&self) -> bool {
        matches!(self.0, Position::Header(_, 0))
    }

    /// Returns the masking key of the Close whose payload comes next, zero if it is unmasked;
    /// `None` if anything else comes next.
    pub(crate) fn close_mask(&self) -> Option<[u8; 4]> {
        const CLOSE: u8 = 0x8;
        match self.0 {
            Position::Payload { first, mask, .. } if first & 0x0f == CLOSE => Some(mask),
            _ => None,
        }
    }

    /// Returns whether payload of a data frame comes next, or may come.
    pub(crate) fn is_in_data(&self) -> bool {
        match self.0 {
            Position::Header(..) => false,
            Position::Payload { first, .. } => first & 0x08 == 0,
            Position::Opaque => true,
        }
    }

    /// Returns whether the frames cannot be followed any more.
    pub(crate) fn is_opaque(&self) -> bool {
        self.0 == Position::Opaque
    }

    fn end_header(&mut self, header: Header) -> FrameEvent {
        let Header { first, mask, length } = header;
        if length > MAX_LENGTH {
            self.0 = Position::Opaque;
            return FrameEvent::Opaque;
        }
        self.0 = Position::Payload { first, mask: mask.unwrap_or_default(), left: length };
        FrameEvent::Header(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a frame as bytes.
    fn frame(first: u8, mask: Option<[u8; 4]>, length: usize) -> Vec<u8> {
        let mask_bit = if mask.is_some() { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match length {
            0..=125 => bytes.push(mask_bit | length as u8),
            126..=0xffff => {
                bytes.push(mask_bit | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask_bit | 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask.unwrap_or_default()[..if mask.is_some() { 4 } else { 0 }]);
        bytes.resize(bytes.len() + length, 0xff);
        bytes
    }

    /// Returns all events in these bytes, each with the offset after its last byte.
    fn events(frames: &mut Frames, bytes: &[u8]) -> Vec<(usize, FrameEvent)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let (taken, event) = frames.next(&bytes[at..]);
            assert!(taken <= bytes.len() - at, "it read over the end");
            at += taken;
            match event {
                Some(event) => found.push((at, event)),
                None => {
                    assert_eq!(at, bytes.len(), "bytes are left over");
                    return found;
                }
            }
        }
    }

    #[test]
    fn lengths_at_their_boundaries() {
        for length in [0, 1, 2, 124, 125, 126, 127, 128, 65_534, 65_535, 65_536, 70_000] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let bytes = frame(0x82, mask, length);
                let mut frames = Frames::default();
                let header = Header { first: 0x82, mask, length: length as u64 };
                let head = bytes.len() - length;
                let expected = [(head, FrameEvent::Header(header)), (bytes.len(), FrameEvent::End)];
                assert_eq!(events(&mut frames, &bytes), expected, "{length} {mask:?}");
                assert!(frames.is_at_boundary());
            }
        }
    }

    #[test]
    fn the_state_is_sixteen_bytes() {
        assert_eq!(size_of::<Frames>(), 16);
    }

    #[test]
    fn a_length_need_not_be_in_its_shortest_form() {
        let mut frames = Frames::default();
        let found = events(&mut frames, &[0x81, 127, 0, 0, 0, 0, 0, 0, 0, 1, b'x']);
        assert_eq!(found.len(), 2);
        assert!(frames.is_at_boundary());
    }

    #[test]
    fn control_frames_stand_between_fragments() {
        let bytes = [frame(0x01, None, 3), frame(0x89, None, 2), frame(0x80, None, 4)].concat();
        let headers: Vec<(Opcode, bool, bool)> = events(&mut Frames::default(), &bytes)
            .into_iter()
            .filter_map(|(_, event)| match event {
                FrameEvent::Header(header) => {
                    Some((header.opcode(), header.is_final(), header.is_control()))
                }
                _ => None,
            })
            .collect();
        let expected = [
            (Opcode::Text, false, false),
            (Opcode::Ping, true, true),
            (Opcode::Continuation, true, false),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn a_length_with_its_top_bit_set_makes_opaque() {
        let mut frames = Frames::default();
        let found = events(&mut frames, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        assert_eq!(found, [(10, FrameEvent::Opaque)]);
        assert!(frames.is_opaque() && !frames.is_at_boundary());
        assert!(events(&mut frames, &[0x81, 1, 1]).is_empty());
        assert_eq!(frames.unseen(), u64::MAX);
    }

    #[test]
    fn a_run_is_of_whole_frames_that_begin_alike() {
        let [small, masked] = [frame(0x82, None, 3), frame(0x82, Some([1; 4]), 3)];
        let medium = frame(0x82, None, 200);
        let header = |mask, length| Header { first: 0x82, mask, length };
        let run = |header, count, size| Some(Run { header, count, size });
        let table: [(&[&[u8]], Option<Run>); 11] = [
            (&[], None),
            (&[&small], run(header(None, 3), 1, 5)),
            (&[&small[..4]], None),
            (&[&small, &small, &small, &small[..4]], run(header(None, 3), 3, 15)),
            (&[&small, &small, &masked], run(header(None, 3), 2, 10)),
            (&[&small, &frame(0x81, None, 3)], run(header(None, 3), 1, 5)),
            (&[&masked, &frame(0x82, Some([2; 4]), 3)], run(header(Some([1; 4]), 3), 2, 18)),
            (&[&medium, &frame(0x82, None, 201)], run(header(None, 200), 1, 204)),
            (&[&medium[..203]], None),
            (&[&frame(0x88, None, 2), &small], None),
            (&[&[0x82, 127], &[0x80], &[0; 7]], None),
        ];
        for (pieces, expected) in table {
            let bytes = pieces.concat();
            assert_eq!(Frames::default().run(&bytes), expected, "{}", bytes.escape_ascii());
        }
        // Within a frame, nothing begins.
        let mut frames = Frames::default();
        frames.next(&small[..1]);
        assert_eq!(frames.run(&small), None);
        frames.next(&small[1..2]);
        assert_eq!(frames.run(&small), None);
    }

    #[test]
    fn payload_may_pass_unseen_but_for_its_last_byte() {
        let mut frames = Frames::default();
        let bytes = frame(0x82, None, 100_000);
        assert_eq!(frames.unseen(), 0);
        assert_eq!(events(&mut frames, &bytes[..10]).len(), 1);
        assert_eq!(frames.unseen(), 99_999);
        frames.skip(99_999);
        assert_eq!(frames.unseen(), 0);
        assert_eq!(events(&mut frames, &bytes[..1]), [(1, FrameEvent::End)]);
    }

    /// Lengths around the boundaries of their three forms.
    fn lengths() -> impl Strategy<Value = usize> {
        prop_oneof![0usize..130, 65_530usize..65_540]
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            shapes in proptest::collection::vec(
                (any::<u8>(), any::<Option<[u8; 4]>>(), lengths()), 0..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes: Vec<u8> = shapes
                .iter()
                .flat_map(|&(first, mask, length)| frame(first, mask, length))
                .collect();
            let whole = events(&mut Frames::default(), &bytes);
            prop_assert_eq!(whole.len(), shapes.len() * 2);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut frames = Frames::default();
            let mut pieces = Vec::new();
            for pair in cuts.windows(2) {
                let found = events(&mut frames, &bytes[pair[0]..pair[1]]);
                pieces.extend(found.into_iter().map(|(at, event)| (pair[0] + at, event)));
            }
            prop_assert_eq!(pieces, whole);
            prop_assert!(frames.is_at_boundary());
        }

        #[test]
        fn arbitrary_bytes_are_all_taken(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let found = events(&mut Frames::default(), &bytes);
            prop_assert!(found.len() <= 2 * bytes.len());
        }
    }
}
