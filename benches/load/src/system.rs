//! Limits and epoll, shared by both programs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::time::Timespec;

use crate::Failure;

/// Connections that may wait to be accepted, as far as the kernel allows it.
pub const BACKLOG: i32 = 65535;

/// Events taken from the kernel at once. With more tunnels ready than this, it takes another wait.
const EVENTS: usize = 1024;

/// Allows this process as many open files as it may have.
///
/// # Errors
///
/// If that is fewer than `needed`.
pub fn raise_open_files(needed: u64) -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Some(most) = limit.maximum.filter(|most| *most < needed) {
        return Err(format!(
            "{needed} open files are needed and {most} allowed: raise `ulimit -Hn`"
        )
        .into());
    }
    setrlimit(Resource::Nofile, limit)
        .map_err(|error| format!("raising the limit of open files: {error}").into())
}

/// An epoll instance and the events of its last wait.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    /// # Errors
    ///
    /// If the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, events: Vec::with_capacity(EVENTS) })
    }

    /// Watches a socket; closing the socket ends that.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, as for want of memory.
    pub fn add(&self, socket: impl AsFd, token: u64, interest: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), interest)?)
    }

    /// Watches a socket for something else.
    ///
    /// # Errors
    ///
    /// If the socket is not watched.
    pub fn modify(&self, socket: impl AsFd, token: u64, interest: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(token), interest)?)
    }

    /// Waits for events, for ever or at most for some time; a signal may cut it short.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait`, but for a signal.
    pub fn wait(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        let at_most =
            at_most.map(|time| Timespec::try_from(time).map_err(io::Error::other)).transpose()?;
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), at_most.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Token and flags of an event of the last wait, by its place; `None` after the last one.
    ///
    /// By place and not as an iterator, so that its owner can be changed in between.
    #[must_use]
    pub fn event(&self, place: usize) -> Option<(u64, EventFlags)> {
        self.events.get(place).map(|event| (event.data.u64(), event.flags))
    }
}
