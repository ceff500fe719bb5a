//! Tunnels that are meant: conditions on what a tunnel is for.

use std::net::IpAddr;
use std::sync::Arc;

use super::group::Group;

/// Tunnels that are meant: those for which every condition holds that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TunnelFilter {
    pub(crate) group: Option<Group>,
    /// Number of a backend.
    pub(crate) backend_id: Option<usize>,
    pub(crate) id: Option<u64>,
    /// Numbers of tunnels, ascending.
    pub(crate) ids: Option<Arc<[u64]>>,
    /// Name of a section.
    pub(crate) section: Option<String>,
    /// Name of a backend.
    pub(crate) backend: Option<String>,
    /// Address of a client, without its port.
    pub(crate) client: Option<IpAddr>,
}

/// What a tunnel is known by to those who choose among many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    /// Number, which grows with the time of the accept.
    pub(crate) id: u64,
    pub(crate) section: &'a str,
    pub(crate) backend_id: usize,
    pub(crate) backend: &'a str,
    pub(crate) client: Option<IpAddr>,
}

impl TunnelFilter {
    /// Means the tunnels to the backend with this number.
    pub(crate) fn to_backend(id: usize) -> Self {
        Self { backend_id: Some(id), ..Self::default() }
    }

    /// Means the tunnels with these numbers.
    pub(crate) fn with_ids(mut ids: Vec<u64>) -> Self {
        ids.sort_unstable();
        Self { ids: Some(ids.into()), ..Self::default() }
    }

    /// Returns whether it has no condition, so that all tunnels are meant.
    #[cfg(any(test, feature = "admin"))]
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether tunnels of this group can be meant. It costs the least, so it is asked
    /// first: every tunnel of a worker is looked at.
    pub(super) fn admits_group(&self, group: &Group) -> bool {
        self.group.as_ref().is_none_or(|wanted| wanted.is(group))
    }

    /// Returns whether a tunnel that is known by this is meant, if its group can be.
    pub(super) fn admits(&self, it: &Identity<'_>) -> bool {
        self.backend_id.is_none_or(|wanted| wanted == it.backend_id)
            && self.id.is_none_or(|wanted| wanted == it.id)
            && self.ids.as_ref().is_none_or(|wanted| wanted.binary_search(&it.id).is_ok())
            && self.section.as_deref().is_none_or(|wanted| wanted == it.section)
            && self.backend.as_deref().is_none_or(|wanted| wanted == it.backend)
            && self.client.is_none_or(|wanted| Some(wanted) == it.client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_meant_if_every_condition_holds() {
        type Change = fn(&mut TunnelFilter);
        let client = Some(IpAddr::from([192, 0, 2, 1]));
        let it = Identity { id: 7, section: "chat", backend_id: 3, backend: "a:1", client };
        let filter = |change: Change| {
            let mut filter = TunnelFilter::default();
            change(&mut filter);
            filter
        };
        assert!(filter(|_| {}).is_empty() && filter(|_| {}).admits(&it));
        let rows: [(Change, bool); 14] = [
            (|it| it.id = Some(7), true),
            (|it| it.id = Some(8), false),
            (|it| it.section = Some("chat".to_owned()), true),
            (|it| it.section = Some("Chat".to_owned()), false),
            (|it| it.backend = Some("a:1".to_owned()), true),
            (|it| it.client = Some(IpAddr::from([192, 0, 2, 1])), true),
            (|it| (it.id, it.backend) = (Some(7), Some("b:1".to_owned())), false),
            (|it| *it = TunnelFilter::to_backend(3), true),
            (|it| *it = TunnelFilter::to_backend(7), false),
            (|it| *it = TunnelFilter::with_ids(vec![9, 7, 8]), true),
            (|it| *it = TunnelFilter::with_ids(vec![9, 6, 8]), false),
            (|it| *it = TunnelFilter::with_ids(Vec::new()), false),
            (|it| (it.ids, it.backend_id) = (Some([7].into()), Some(3)), true),
            (|it| (it.ids, it.backend_id) = (Some([7].into()), Some(4)), false),
        ];
        for (change, expected) in rows {
            let filter = filter(change);
            assert!(!filter.is_empty());
            assert_eq!(filter.admits(&it), expected, "{filter:?}");
        }
    }

    #[test]
    fn a_group_is_meant_itself_and_no_other_one() {
        let group = Group::default();
        let filter = TunnelFilter { group: Some(group.clone()), ..TunnelFilter::default() };
        assert!(!filter.is_empty() && filter.admits_group(&group));
        assert!(!filter.admits_group(&Group::default()));
        assert!(TunnelFilter::default().admits_group(&group));
    }
}
