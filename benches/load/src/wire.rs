//! The heads and frames that are sent.

/// The answer of the backend: the accept value of [`request`]'s key (RFC 6455, section 1.3).
pub const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\
    Upgrade: websocket\r\n\
    Connection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The accept value alone, which must also reach the client.
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The upgrade request of every client, with the key of RFC 6455, section 1.3.
#[must_use]
pub fn request(host: std::net::SocketAddr) -> Vec<u8> {
    format!(
        "GET /chat HTTP/1.1\r\n\
         Host: {host}\r\n\
         Upgrade: websocket\r\n\
         Connection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// The one binary message of a run, as each side sends it.
#[derive(Debug)]
pub struct Frames {
    /// Masked, as RFC 6455 section 5.3 wants it of clients.
    pub from_client: Vec<u8>,
    /// Not masked.
    pub from_backend: Vec<u8>,
}

impl Frames {
    /// A message of `size` bytes.
    ///
    /// The mask is the same for every frame: no proxy here looks into frames, and making the bytes
    /// anew would only cost the load generator time.
    #[must_use]
    pub fn new(size: usize) -> Self {
        const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
        // Every byte tells a little of where it belongs, so that a lost or doubled one shows.
        let payload = (0..size)
            .map(|at| at.to_le_bytes().iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));

        let mut from_backend = header(size, false);
        from_backend.extend(payload.clone());
        let mut from_client = header(size, true);
        from_client.extend(MASK);
        from_client.extend(payload.zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        Self { from_client, from_backend }
    }
}

/// FIN, binary, and the length in the shortest of its three forms (RFC 6455, section 5.2).
fn header(size: usize, masked: bool) -> Vec<u8> {
    let mask_bit = if masked { 0x80 } else { 0 };
    let mut header = vec![0x82];
    match size {
        0..=125 => header.push(mask_bit | size as u8),
        126..=0xffff => {
            header.push(mask_bit | 126);
            header.extend((size as u16).to_be_bytes());
        }
        _ => {
            header.push(mask_bit | 127);
            header.extend((size as u64).to_be_bytes());
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_takes_its_shortest_form() {
        let cases: [(usize, &[u8]); 5] = [
            (0, &[0x82, 0]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65535, &[0x82, 126, 0xff, 0xff]),
            (65536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ];
        for (size, expected) in cases {
            let frames = Frames::new(size);
            assert_eq!(&frames.from_backend[..expected.len()], expected, "{size}");
            assert_eq!(frames.from_backend.len(), expected.len() + size);
            assert_eq!(frames.from_client.len(), expected.len() + 4 + size);
            assert_eq!(frames.from_client[1], expected[1] | 0x80);
        }
    }

    #[test]
    fn unmasking_gives_the_payload() {
        let frames = Frames::new(300);
        let mask = &frames.from_client[4..8];
        let unmasked =
            frames.from_client[8..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        assert!(unmasked.eq(frames.from_backend[4..].iter().copied()));
    }
}
