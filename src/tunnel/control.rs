//! Control frames of the proxy's own (RFC 6455, 5.5).

/// Close codes that the proxy sends by itself (RFC 6455, 7.4.1, and IANA's registry).
pub(crate) mod code {
    /// The connection has served its purpose.
    pub(crate) const NORMAL: u16 = 1000;
    /// An endpoint, or the proxy, goes away.
    pub(crate) const GOING_AWAY: u16 = 1001;
    /// Frames violate RFC 6455.
    pub(crate) const PROTOCOL_ERROR: u16 = 1002;
    /// More messages than allowed.
    pub(crate) const POLICY_VIOLATION: u16 = 1008;
    /// A message larger than allowed.
    pub(crate) const MESSAGE_TOO_BIG: u16 = 1009;
    /// The backend is lost.
    pub(crate) const BAD_GATEWAY: u16 = 1014;
}

/// Payload of the proxy's Pings. The filter knows a Pong to them by length and content.
pub(crate) type PingPayload = [u8; 8];

const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
/// Most payload bytes of a control frame (RFC 6455, 5.5).
pub(super) const MAX_PAYLOAD: usize = 125;

/// Builds a Close frame. A frame to a backend has a masking key, one to a client has none (RFC
/// 6455, 5.3).
pub(crate) fn close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    // A reason that is too long ends between two characters: it is UTF-8 (RFC 6455, 5.5.1).
    let room = MAX_PAYLOAD - payload.len();
    let end = reason
        .char_indices()
        .map(|(at, letter)| at + letter.len_utf8())
        .take_while(|&end| end <= room)
        .last();
    payload.extend_from_slice(&reason.as_bytes()[..end.unwrap_or(0)]);
    frame(CLOSE, &payload, mask)
}

/// Builds a Ping frame, masked as a Close is.
pub(crate) fn ping(payload: PingPayload, mask: Option<[u8; 4]>) -> Vec<u8> {
    frame(PING, &payload, mask)
}

/// Returns a new masking key. RFC 6455, 10.3 wants keys that a script in a browser cannot predict;
/// these mask only the proxy's own content, so a fast generator is enough.
pub(crate) fn fresh_mask() -> [u8; 4] {
    fastrand::u32(..).to_ne_bytes()
}

/// Applies a masking key to payload that begins at offset `at` of its frame; twice restores it (RFC
/// 6455, 5.3).
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4], at: usize) {
    for (index, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[(at + index) % 4];
    }
}

fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    // At most 125.
    let length = payload.len() as u8;
    let mut bytes = vec![first, length | if mask.is_some() { 0x80 } else { 0 }];
    let start = bytes.len();
    match mask {
        Some(mask) => {
            bytes.extend_from_slice(&mask);
            bytes.extend_from_slice(payload);
            unmask(&mut bytes[start + 4..], mask, 0);
        }
        None => bytes.extend_from_slice(payload),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_the_rfc_has_them() {
        assert_eq!(close(1001, "bye", None), b"\x88\x05\x03\xe9bye");
        assert_eq!(ping(*b"12345678", None), b"\x89\x0812345678");
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let masked = close(1001, "bye", Some(mask));
        assert_eq!(masked[..6], [0x88, 0x85, 0x37, 0xfa, 0x21, 0x3d]);
        let mut payload = masked[6..].to_vec();
        unmask(&mut payload, mask, 0);
        assert_eq!(payload, b"\x03\xe9bye");
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let long = "\u{e9}".repeat(100);
        let bytes = close(1001, &long, None);
        assert_eq!(usize::from(bytes[1]), bytes.len() - 2);
        assert!(bytes.len() <= 127);
        assert!(std::str::from_utf8(&bytes[4..]).is_ok());
    }
}
