//! The tunnel: two halves, one for each direction, and the rule for the end.

mod half;

use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU64;

use async_net::TcpStream;
use futures_lite::future;

use self::half::{Broken, Half};
use crate::net;

/// Two connections between which all bytes flow.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) client: TcpStream,
    pub(crate) backend: TcpStream,
    /// What the backend gets first: the client's bytes that have been read already.
    pub(crate) for_backend: Vec<u8>,
    /// What the client gets first: the 101, and the backend's bytes that have been read already.
    pub(crate) for_client: Vec<u8>,
}

/// One of the two ends of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Backend,
}

/// How a tunnel came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Both sides ended their sending; this one was first.
    Eof(Side),
    /// The connection to this side broke.
    Reset(Side),
}

/// What is known of a tunnel when it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunnelEnd {
    /// Bytes that were written to the backend.
    pub(crate) to_backend: u64,
    /// Bytes that were written to the client.
    pub(crate) to_client: u64,
    pub(crate) cause: Cause,
}

impl Tunnel {
    /// Carries bytes both ways until both sides have ended their sending, or one connection breaks; then both are
    /// closed, after a break the one that is left in stages, so that what it was sent last still reaches it.
    pub(crate) async fn run(self) -> TunnelEnd {
        let Self { client, backend, for_backend, for_client } = self;
        let to_backend = AtomicU64::new(0);
        let to_client = AtomicU64::new(0);
        let up = Half { source: &client, sink: &backend, carried: &to_backend };
        let down = Half { source: &backend, sink: &client, carried: &to_client };
        let cause =
            until_over(pin!(up.copy(for_backend)), pin!(down.copy(for_client)), &client, &backend).await;

        let left = match cause {
            Cause::Eof(_) => None,
            Cause::Reset(Side::Client) => Some(backend),
            Cause::Reset(Side::Backend) => Some(client),
        };
        if let Some(left) = left {
            net::close_in_stages(left).await;
        }
        TunnelEnd { to_backend: to_backend.into_inner(), to_client: to_client.into_inner(), cause }
    }
}

/// Runs both directions. The end of one does not end the other; a break of either connection ends both, even of
/// one that has ended its sending already, so that nobody reads it any more.
async fn until_over(
    mut up: Pin<&mut impl Future<Output = Result<(), Broken>>>,
    mut down: Pin<&mut impl Future<Output = Result<(), Broken>>>,
    client: &TcpStream,
    backend: &TcpStream,
) -> Cause {
    let first = future::or(async { (Side::Client, up.as_mut().await) }, async {
        (Side::Backend, down.as_mut().await)
    });
    let (ended, result) = first.await;
    if let Err(broken) = result {
        return Cause::Reset(broken.side(ended));
    }
    match ended {
        Side::Client => last(Side::Backend, down, client).await,
        Side::Backend => last(Side::Client, up, backend).await,
    }
}

/// Runs the direction that is left, which comes from `side`; the other side has ended its sending on `ended`.
async fn last(
    side: Side,
    half: Pin<&mut impl Future<Output = Result<(), Broken>>>,
    ended: &TcpStream,
) -> Cause {
    let watch = async {
        net::broken(ended).await;
        Err(Broken::Sink)
    };
    match future::or(half, watch).await {
        Ok(()) => Cause::Eof(side.other()),
        Err(broken) => Cause::Reset(broken.side(side)),
    }
}

impl Side {
    /// The word for the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

impl Broken {
    /// Which side broke, for a direction that comes from `source`.
    fn side(self, source: Side) -> Side {
        match self {
            Self::Source => source,
            Self::Sink => source.other(),
        }
    }
}
