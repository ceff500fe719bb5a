//! Tunnels as the admin listener sees them: what each is for, what it has relayed, which are meant.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::side::PerSide;
use super::totals::SideTotals;
use crate::net::name::Peer;

/// Tunnels that are meant: those for which every condition holds that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TunnelFilter {
    pub(crate) id: Option<u64>,
    /// Name of a section.
    pub(crate) section: Option<String>,
    /// Name of a backend.
    pub(crate) backend: Option<String>,
    /// Address of a client, without its port.
    pub(crate) client: Option<IpAddr>,
}

/// What a tunnel is for.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) id: u64,
    pub(crate) section: String,
    pub(crate) client: Peer,
    pub(crate) backend: String,
    pub(crate) accepted: Instant,
    /// Path without query, host, forwarded client, request id and trace, as far as they are known.
    pub(crate) request: [Option<String>; 5],
}

/// A tunnel at one moment.
#[derive(Clone, Debug)]
pub(crate) struct TunnelView {
    pub(crate) description: Description,
    /// Time without a byte of either side, in steps of 250 ms; `None` where nothing is counted.
    pub(crate) idle: Option<Duration>,
    /// What each side has sent.
    pub(crate) sent_by: PerSide<SideTotals>,
    pub(crate) state: TunnelState,
}

/// State of a tunnel, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunnelState {
    Open,
    /// The client has to wait, since it is above its rate.
    Paused,
    /// A side takes no bytes.
    Blocked,
    /// Its end has begun.
    Closing,
}

impl TunnelFilter {
    /// Returns whether it has no condition, so that all tunnels are meant.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether a tunnel with these values is meant.
    pub(crate) fn admits(
        &self,
        id: u64,
        section: &str,
        backend: &str,
        client: Option<IpAddr>,
    ) -> bool {
        self.id.is_none_or(|wanted| wanted == id)
            && self.section.as_deref().is_none_or(|wanted| wanted == section)
            && self.backend.as_deref().is_none_or(|wanted| wanted == backend)
            && self.client.is_none_or(|wanted| Some(wanted) == client)
    }
}

impl TunnelState {
    /// Returns the state's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Blocked => "blocked",
            Self::Closing => "closing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_meant_if_every_condition_holds() {
        type Change = fn(&mut TunnelFilter);
        let client = IpAddr::from([192, 0, 2, 1]);
        let filter = |change: Change| {
            let mut filter = TunnelFilter::default();
            change(&mut filter);
            filter
        };
        let admits = |filter: &TunnelFilter| filter.admits(7, "chat", "a:1", Some(client));
        assert!(filter(|_| {}).is_empty() && admits(&filter(|_| {})));
        let rows: [(Change, bool); 7] = [
            (|it| it.id = Some(7), true),
            (|it| it.id = Some(8), false),
            (|it| it.section = Some("chat".to_owned()), true),
            (|it| it.section = Some("Chat".to_owned()), false),
            (|it| it.backend = Some("a:1".to_owned()), true),
            (|it| it.client = Some(IpAddr::from([192, 0, 2, 1])), true),
            (|it| (it.id, it.backend) = (Some(7), Some("b:1".to_owned())), false),
        ];
        for (change, expected) in rows {
            let filter = filter(change);
            assert!(!filter.is_empty());
            assert_eq!(admits(&filter), expected, "{filter:?}");
        }
    }
}
