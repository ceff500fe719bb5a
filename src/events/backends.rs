//! Events of a section's backends, beside its clients.

use std::io;

use log::Level;
use log::kv::{self, Value, VisitSource};

use super::Event;
use super::fields::{put, text};
use crate::backend::Backend;
use crate::backend::health::HealthChange;
use crate::section::Section;

/// What has become of the backends of a section.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BackendEvent<'a> {
    /// A look-up has added one.
    Added(&'a Backend),
    /// A look-up has removed one.
    Removed(&'a Backend),
    /// The health of one has changed.
    Health { backend: &'a Backend, change: &'a HealthChange },
    /// A name that is watched could not be looked up, which is told once until it can be again.
    LookUpFailed { name: &'a str, error: &'a io::Error },
    /// A name that is watched can be looked up again.
    LookUpRecovered { name: &'a str },
    /// So many tunnels are to be moved to those that were added.
    Rebalancing { tunnels: usize },
    /// So many tunnels were closed for it, and no more are to be.
    Rebalanced { tunnels: usize },
}

impl<'a> BackendEvent<'a> {
    /// Emits the event as one of this section.
    pub(crate) fn emit(self, section: &'a Section) {
        Event::Backends { section, event: self }.emit();
    }

    /// Returns the message of the log record.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Added(_) => "backend_added",
            Self::Removed(_) => "backend_removed",
            Self::Health { .. } => "backend_health",
            Self::LookUpFailed { .. } => "look_up_failed",
            Self::LookUpRecovered { .. } => "look_up_recovered",
            Self::Rebalancing { .. } => "rebalancing",
            Self::Rebalanced { .. } => "rebalanced",
        }
    }

    pub(super) fn level(&self) -> Level {
        match self {
            Self::Health { change, .. } if change.to.is_bad() => Level::Warn,
            Self::LookUpFailed { .. } => Level::Warn,
            _ => Level::Info,
        }
    }

    /// Visits the fields after the section.
    pub(super) fn visit<'kvs>(
        &'kvs self,
        visitor: &mut dyn VisitSource<'kvs>,
    ) -> Result<(), kv::Error> {
        match self {
            Self::Added(backend) | Self::Removed(backend) => {
                put(visitor, [("backend", backend.name().into()), ("name", backend.host().into())])
            }
            Self::Health { backend, change: HealthChange { from, to, reason } } => {
                let backend = ("backend", Value::from(backend.name()));
                let (from, to) = (Value::from_display(from), Value::from_display(to));
                let reason = ("reason", Value::from_display(reason));
                put(visitor, [backend, ("from", from), ("to", to), reason])
            }
            Self::LookUpFailed { name, error } => {
                put(visitor, [("name", Value::from(*name)), ("error", text(error))])
            }
            Self::LookUpRecovered { name } => put(visitor, [("name", Value::from(*name))]),
            Self::Rebalancing { tunnels } | Self::Rebalanced { tunnels } => {
                put(visitor, [("tunnels", (*tunnels).into())])
            }
        }
    }
}
