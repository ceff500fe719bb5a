//! One direction of a tunnel.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use async_net::TcpStream;
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

use crate::net;

/// Bytes that a direction holds at most, while its sink takes none.
const BUFFER: usize = 16 * 1024;

/// From where to where, and a count of what the sink took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Half<'a> {
    pub(super) source: &'a TcpStream,
    pub(super) sink: &'a TcpStream,
    pub(super) carried: &'a AtomicU64,
}

/// Which of its two connections broke under a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Source,
    Sink,
}

impl Half<'_> {
    /// Writes `first`, and then everything that the source sends, until it ends; then ends the sink's write half.
    pub(super) async fn copy(self, first: Vec<u8>) -> Result<(), Broken> {
        self.write(&first).await?;
        drop(first);
        let mut source = self.source.clone();
        let mut buffer = vec![0; BUFFER];
        loop {
            match source.read(&mut buffer).await {
                Ok(0) => return net::shutdown_write(self.sink).map_err(|_| Broken::Sink),
                Ok(count) => self.write(&buffer[..count]).await?,
                Err(_) => return Err(Broken::Source),
            }
        }
    }

    /// Writes all of `bytes`. A sink that takes none for a while is waited for, but not if the source breaks, which
    /// is not being read meanwhile.
    async fn write(&self, bytes: &[u8]) -> Result<(), Broken> {
        let write_all = async { self.write_all(bytes).await.map_err(|_| Broken::Sink) };
        let watch = async {
            net::broken(self.source).await;
            Err(Broken::Source)
        };
        future::or(write_all, watch).await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut sink = self.sink.clone();
        while !bytes.is_empty() {
            let count = sink.write(bytes).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.carried.fetch_add(count as u64, Ordering::Relaxed);
            bytes = &bytes[count..];
        }
        Ok(())
    }
}
