//! Memory that all tunnels of an event loop share.

use super::splice::Pipes;

/// Bytes that one read takes at most.
pub(super) const READ: usize = 64 * 1024;
/// Bytes that one read of a flood takes at most: fewer and larger reads and writes cost a quarter
/// less. What the sink does not take of it the tunnel has to own.
pub(super) const SCRATCH: usize = 256 * 1024;

/// Buffers lent to the direction whose turn it is. A tunnel owns memory only while it holds bytes.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Where reads go.
    pub(super) scratch: Box<[u8]>,
    /// Where the filter puts a chunk that does not pass as it is.
    pub(super) filtered: Vec<u8>,
    pub(super) pipes: Pipes,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            filtered: Vec::new(),
            pipes: Pipes::default(),
        }
    }
}
