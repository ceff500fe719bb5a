//! What is done for a section while it serves, beside its clients: its backends' [`names`] are
//! watched, their health is [checked](checks), and tunnels are [moved](rebalance) or closed.

mod check;
mod checks;
mod leave;
mod names;
mod rebalance;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use smol::{LocalExecutor, Task};

use self::checks::Checked;
use self::names::WatchedName;
use crate::backend::Backend;
use crate::backend::resolve::Resolver;
use crate::live::{LiveSection, News};
use crate::section::Section;
use crate::settings::Resolve;
use crate::worker::Handle;

/// Access of a task to the section that it works for.
struct SectionAccess {
    handle: Handle,
    /// Asked for the addresses of names.
    resolver: Arc<Resolver>,
    /// Not to keep it from ending.
    live: Weak<LiveSection>,
}

/// The tasks of a section. One that is dropped ends.
#[derive(Default)]
struct Tasks {
    names: HashMap<WatchedName, Task<()>>,
    /// By the number of the backend.
    checks: HashMap<usize, (Checked, Task<()>)>,
    /// Those that close the tunnels of backends that were removed.
    leaving: Vec<Task<()>>,
    /// With the backends that it is for.
    rebalance: Option<(Vec<Arc<Backend>>, Task<()>)>,
}

/// Does what the settings in force ask for, until it is dropped.
pub(crate) async fn run(handle: Handle, live: Weak<LiveSection>, resolver: Arc<Resolver>) {
    let access = SectionAccess { handle, resolver, live };
    let executor = LocalExecutor::new();
    let mut tasks = Tasks::default();
    while let Some(live) = access.live.upgrade() {
        let (section, news) = live.take_news();
        drop(live);
        tasks.follow(&access, &executor, &section, news);
        executor.run(section.superseded.begun()).await;
    }
}

impl SectionAccess {
    /// Returns the section of the moment.
    fn section(&self) -> Option<Arc<Section>> {
        self.live.upgrade().map(|live| live.current())
    }
}

impl Tasks {
    /// Starts what a section needs, and ends what it needs no more.
    fn follow<'a>(
        &mut self,
        access: &'a SectionAccess,
        executor: &LocalExecutor<'a>,
        section: &Section,
        News { added, drained }: News,
    ) {
        let names = match section.settings.resolve {
            Resolve::Watch => names::watched(&section.settings),
            Resolve::Connect => Vec::new(),
        };
        self.names.retain(|name, _| names.contains(name));
        for name in names {
            let start = || executor.spawn(names::watch(access, name.clone()));
            self.names.entry(name.clone()).or_insert_with(start);
        }

        let by = Checked::of(section);
        self.checks.retain(|number, (known, _)| {
            Some(&*known) == by.as_ref() && section.pool.backends().any(|one| one.id() == *number)
        });
        if let Some(by) = by {
            for backend in section.pool.members() {
                self.checks.entry(backend.id()).or_insert_with(|| {
                    let check = checks::keep_checking(access, Arc::clone(backend), by.clone());
                    (by.clone(), executor.spawn(check))
                });
            }
        }

        self.leaving.retain(|task| !task.is_finished());
        let leave = |backend| executor.spawn(leave::drain_removed(access, backend));
        self.leaving.extend(drained.into_iter().map(leave));
        self.rebalance(access, executor, section, added);
    }

    /// Moves tunnels to backends that were added, if the section has it so.
    fn rebalance<'a>(
        &mut self,
        access: &'a SectionAccess,
        executor: &LocalExecutor<'a>,
        section: &Section,
        mut added: Vec<Arc<Backend>>,
    ) {
        match section.settings.rebalance {
            Some(by) if !added.is_empty() => {
                // The one before ends first: at its end, handshakes go round again. What it was
                // for has perhaps not got its share.
                let before = self.rebalance.take().filter(|(_, task)| !task.is_finished());
                let before = before.into_iter().flat_map(|(added, _)| added);
                added.extend(before.filter(|one| section.pool.has(one)));
                added.sort_unstable_by_key(|one| one.id());
                added.dedup_by_key(|one| one.id());
                let task = executor.spawn(rebalance::rebalance(access, added.clone(), by));
                self.rebalance = Some((added, task));
            }
            Some(_) => {}
            None => self.rebalance = None,
        }
    }
}
