//! The two ends of a tunnel.

use std::ops::{Index, IndexMut};

/// One end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// The peer that connected to the proxy.
    Client,
    /// The peer that the proxy connected to.
    Backend,
}

/// A value for each end of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PerSide<T> {
    /// The client's.
    pub(crate) client: T,
    /// The backend's.
    pub(crate) backend: T,
}

impl Side {
    /// Both ends.
    pub(crate) const BOTH: [Self; 2] = [Self::Client, Self::Backend];

    /// Returns the name for logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
        }
    }

    /// Returns the opposite end.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

impl<T> PerSide<T> {
    /// Makes the value of each end.
    pub(crate) fn from_fn(mut make: impl FnMut(Side) -> T) -> Self {
        Self { client: make(Side::Client), backend: make(Side::Backend) }
    }

    /// Makes the values of an end and of its opposite.
    pub(crate) fn with(side: Side, own: T, others: T) -> Self {
        match side {
            Side::Client => Self { client: own, backend: others },
            Side::Backend => Self { client: others, backend: own },
        }
    }

    /// Returns whether a predicate holds for both ends.
    pub(crate) fn all(&self, predicate: impl Fn(&T) -> bool) -> bool {
        predicate(&self.client) && predicate(&self.backend)
    }
}

impl<T> Index<Side> for PerSide<T> {
    type Output = T;

    fn index(&self, side: Side) -> &T {
        match side {
            Side::Client => &self.client,
            Side::Backend => &self.backend,
        }
    }
}

impl<T> IndexMut<Side> for PerSide<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Client => &mut self.client,
            Side::Backend => &mut self.backend,
        }
    }
}
