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

/// A Close with code 1000 of a client, masked with zeros.
pub const CLOSE_OF_CLIENT: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

/// A Close with code 1000 of a backend.
pub const CLOSE_OF_BACKEND: &[u8] = &[0x88, 0x02, 0x03, 0xe8];

/// The binary messages of a run, as each side sends them.
#[derive(Debug)]
pub struct Frames {
    /// Masked, as RFC 6455 section 5.3 wants it of clients.
    pub from_client: Batch,
    /// Not masked.
    pub from_backend: Batch,
}

/// Frames back to back, made once and sent again and again.
///
/// That costs the load generator as little for tiny frames as for large ones.
#[derive(Debug)]
pub struct Batch {
    /// All of them.
    pub bytes: Vec<u8>,
    /// Number of frames.
    pub frames: u64,
}

impl Frames {
    /// Messages of `size` bytes, a frame each: as many as fit into `batch` bytes, one at least.
    #[must_use]
    pub fn new(size: usize, batch: usize) -> Self {
        Self {
            from_client: Batch::new(size, batch, true),
            from_backend: Batch::new(size, batch, false),
        }
    }
}

impl Batch {
    fn new(size: usize, batch: usize, masked: bool) -> Self {
        const MASK: u32 = 0x3d21_fa37;
        let header = header(size, masked);
        let mask_length = if masked { 4 } else { 0 };
        let frames = (batch / (header.len() + mask_length + size)).max(1);
        let mut bytes = Vec::new();
        for frame in 0..frames {
            // Every byte tells a little of where it belongs, so that a lost or doubled one shows.
            let payload = (frame * size..(frame + 1) * size)
                .map(|at| at.to_le_bytes().iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
            bytes.extend(&header);
            if masked {
                // Another mask for each frame.
                let mask = (MASK ^ (frame as u32).wrapping_mul(0x9e37_79b1)).to_le_bytes();
                bytes.extend(mask);
                bytes.extend(payload.zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
            } else {
                bytes.extend(payload);
            }
        }
        Self { bytes, frames: frames as u64 }
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
            let frames = Frames::new(size, 0);
            let (client, backend) = (&frames.from_client.bytes, &frames.from_backend.bytes);
            assert_eq!(&backend[..expected.len()], expected, "{size}");
            assert_eq!(backend.len(), expected.len() + size);
            assert_eq!(client.len(), expected.len() + 4 + size);
            assert_eq!(client[1], expected[1] | 0x80);
        }
    }

    #[test]
    fn unmasking_gives_the_payload_of_each_frame() {
        let frames = Frames::new(300, 1000);
        assert_eq!((frames.from_client.frames, frames.from_backend.frames), (3, 3));
        let masked = frames.from_client.bytes.chunks_exact(308);
        let plain = frames.from_backend.bytes.chunks_exact(304);
        assert_eq!((masked.len(), masked.remainder().len()), (3, 0));
        for (masked, plain) in masked.zip(plain) {
            let mask = &masked[4..8];
            let unmasked =
                masked[8..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
            assert!(unmasked.eq(plain[4..].iter().copied()));
        }
    }

    #[test]
    fn a_batch_holds_what_fits_and_one_at_least() {
        let frames = Frames::new(0, 600);
        assert_eq!((frames.from_client.frames, frames.from_client.bytes.len()), (100, 600));
        assert_eq!((frames.from_backend.frames, frames.from_backend.bytes.len()), (300, 600));
        let frames = Frames::new(700, 600);
        assert_eq!((frames.from_client.frames, frames.from_backend.frames), (1, 1));
    }
}
