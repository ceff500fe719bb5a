//! Follows the frames of one direction (RFC 6455, 5.2): where each begins and ends, and what its header says.

/// Lengths above this have their top bit set, which no frame may have.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// The state of one direction: a few bytes, whatever passes.
///
/// It looks at headers only, steps over payload, and never fails: what it cannot follow makes it blind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frames {
    /// Within a header: the extended length so far. Within a payload: how much of it is still to come.
    left: u64,
    /// The masking key, as far as it has come.
    mask: [u8; 4],
    /// The first two bytes of the header.
    start: [u8; 2],
    /// How many bytes of the header have come.
    have: u8,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Header,
    Payload,
    Blind,
}

/// What has been come to in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The last byte of a header.
    Header(Header),
    /// The last byte of a frame.
    End,
    /// A header that cannot be followed: there will be no further event.
    Blind,
}

/// What the header of a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// FIN, the reserved bits, and the opcode.
    first: u8,
    /// The masking key of a masked frame.
    pub(crate) mask: Option<[u8; 4]>,
    /// Length of the payload in bytes.
    pub(crate) length: u64,
}

/// Kinds of frames (RFC 6455, 5.2 and 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
    /// One that is reserved.
    Other,
}

impl Header {
    /// Whether this is the last frame of its message.
    pub(crate) fn is_final(&self) -> bool {
        self.first & 0x80 != 0
    }

    /// Whether this is a control frame, a reserved one included: those may stand between the frames of a message.
    pub(crate) fn is_control(&self) -> bool {
        self.first & 0x08 != 0
    }

    /// Whether one of the three bits is set that have a meaning only by an extension.
    pub(crate) fn has_reserved_bits(&self) -> bool {
        self.first & 0x70 != 0
    }

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
        Self { left: 0, mask: [0; 4], start: [0; 2], have: 0, place: Place::Header }
    }
}

impl Frames {
    /// Takes bytes into account up to the next event: gives how many, and the event. All bytes and no event mean that
    /// more are needed.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> (usize, Option<Event>) {
        match self.place {
            Place::Header => self.next_of_header(bytes),
            Place::Payload => {
                let here =
                    usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.left -= here as u64;
                if self.left > 0 {
                    return (here, None);
                }
                *self = Self::default();
                (here, Some(Event::End))
            }
            Place::Blind => (bytes.len(), None),
        }
    }

    /// How many bytes may pass unseen: they are payload of the current frame, all but its last byte.
    pub(crate) fn unseen(&self) -> u64 {
        match self.place {
            Place::Header => 0,
            Place::Payload => self.left.saturating_sub(1),
            Place::Blind => u64::MAX,
        }
    }

    /// Takes bytes into account that have passed unseen.
    pub(crate) fn skip(&mut self, count: u64) {
        if self.place == Place::Payload {
            self.left = self.left.saturating_sub(count);
        }
    }

    /// Whether a frame may be put in here.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.place == Place::Header && self.have == 0
    }

    /// The masking key of the Close whose payload comes next, all zero if it has none; `None` if anything else comes next.
    pub(crate) fn close_mask(&self) -> Option<[u8; 4]> {
        const CLOSE: u8 = 0x8;
        let is_close = self.place == Place::Payload && self.start[0] & 0x0f == CLOSE;
        // Without a key the place of it has never been written to.
        is_close.then_some(self.mask)
    }

    /// Whether what comes next is payload of a data frame, or may be.
    pub(crate) fn is_in_data(&self) -> bool {
        match self.place {
            Place::Header => false,
            Place::Payload => self.start[0] & 0x08 == 0,
            Place::Blind => true,
        }
    }

    /// Whether it cannot follow any more.
    pub(crate) fn is_blind(&self) -> bool {
        self.place == Place::Blind
    }

    fn next_of_header(&mut self, bytes: &[u8]) -> (usize, Option<Event>) {
        // A header that is there as a whole, as nearly all are, is read as a whole.
        if self.have == 0
            && let Some((start, rest)) = bytes.split_first_chunk::<2>()
        {
            self.start = *start;
            self.have = 2;
            let length = usize::from(self.header_bytes());
            if bytes.len() < length {
                self.have = 0;
            } else {
                let (extended, rest) = rest.split_at(usize::from(self.extended_bytes()));
                self.left = extended.iter().fold(0, |left, &byte| left << 8 | u64::from(byte));
                if let (true, Some(mask)) = (self.is_masked(), rest.first_chunk()) {
                    self.mask = *mask;
                }
                return (length, Some(self.end_header()));
            }
        }
        for (index, &byte) in bytes.iter().enumerate() {
            match self.have {
                0 | 1 => self.start[usize::from(self.have)] = byte,
                have if have < 2 + self.extended_bytes() => {
                    self.left = self.left << 8 | u64::from(byte)
                }
                have => self.mask[usize::from(have - 2 - self.extended_bytes())] = byte,
            }
            self.have += 1;
            if self.have == self.header_bytes() {
                return (index + 1, Some(self.end_header()));
            }
        }
        (bytes.len(), None)
    }

    /// Length of the whole header; right as soon as its second byte is there.
    fn header_bytes(&self) -> u8 {
        if self.have < 2 {
            return 2;
        }
        2 + self.extended_bytes() + if self.is_masked() { 4 } else { 0 }
    }

    fn extended_bytes(&self) -> u8 {
        match self.start[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }

    fn is_masked(&self) -> bool {
        self.start[1] & 0x80 != 0
    }

    fn end_header(&mut self) -> Event {
        if self.extended_bytes() == 0 {
            self.left = u64::from(self.start[1] & 0x7f);
        }
        if self.left > MAX_LENGTH {
            self.place = Place::Blind;
            return Event::Blind;
        }
        self.place = Place::Payload;
        let mask = self.is_masked().then_some(self.mask);
        Event::Header(Header { first: self.start[0], mask, length: self.left })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as bytes.
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

    /// All events in these bytes, each with the offset behind its last byte.
    fn events(frames: &mut Frames, bytes: &[u8]) -> Vec<(usize, Event)> {
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
                let expected = [(head, Event::Header(header)), (bytes.len(), Event::End)];
                assert_eq!(events(&mut frames, &bytes), expected, "{length} {mask:?}");
                assert!(frames.is_at_boundary());
            }
        }
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
                Event::Header(header) => {
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
    fn a_length_with_its_top_bit_set_makes_blind() {
        let mut frames = Frames::default();
        let found = events(&mut frames, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        assert_eq!(found, [(10, Event::Blind)]);
        assert!(frames.is_blind() && !frames.is_at_boundary());
        assert!(events(&mut frames, &[0x81, 1, 1]).is_empty());
        assert_eq!(frames.unseen(), u64::MAX);
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
        assert_eq!(events(&mut frames, &bytes[..1]), [(1, Event::End)]);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            shapes in proptest::collection::vec(
                (any::<u8>(), any::<Option<[u8; 4]>>(), prop_oneof![0usize..130, 65_530usize..65_540]), 0..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes: Vec<u8> = shapes.iter().flat_map(|&(first, mask, length)| frame(first, mask, length)).collect();
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
