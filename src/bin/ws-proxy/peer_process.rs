//! Another process of this program, which a command sends a signal.

use std::{fs, io};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use smol::Async;

use crate::Failure;

/// A running proxy.
pub(crate) struct Peer {
    pid: Pid,
    /// What it is to do, for errors.
    task: &'static str,
}

impl Peer {
    /// Finds the proxy with this process id.
    pub(crate) fn find(number: i32, task: &'static str) -> Result<Self, Failure> {
        let pid = (number > 0).then(|| Pid::from_raw(number)).flatten();
        let pid = pid.ok_or_else(|| {
            Failure::Usage(format!("--pid: {number} is not a process id (1 or greater)"))
        })?;
        let peer = Self { pid, task };
        // Outside a container, process 1 is the system's own, which must not get the signal.
        let its_name = name_of(&number.to_string()).map_err(|error| peer.failed(error))?;
        let name = name_of("self").map_err(|error| peer.failed(error))?;
        if its_name != name {
            return Err(Failure::Runtime(format!(
                "process {number} is {its_name:?}, not a {name}: name one with --pid"
            )));
        }
        Ok(peer)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        kill_process(self.pid, signal).map_err(|error| self.failed(error.into()))
    }

    /// Sends a signal, and waits for the end of the process.
    pub(crate) fn signal_and_wait(&self, signal: Signal) -> Result<(), Failure> {
        // Opened first: afterwards the number may be another process's.
        let process = pidfd_open(self.pid, PidfdFlags::NONBLOCK)
            .map_err(|error| self.failed(error.into()))?;
        self.signal(signal)?;
        // It is readable once the process has ended (pidfd_open(2)).
        smol::block_on(async { Async::new_nonblocking(process)?.readable().await }).map_err(
            |error| {
                let number = self.pid.as_raw_nonzero();
                Failure::Runtime(format!("cannot wait for process {number}: {error}"))
            },
        )
    }

    fn failed(&self, error: io::Error) -> Failure {
        let (number, task) = (self.pid.as_raw_nonzero(), self.task);
        Failure::Runtime(format!("cannot ask process {number} to {task}: {error}"))
    }
}

/// Returns the name of a process, cut to 15 bytes (proc(5), `/proc/pid/comm`).
fn name_of(process: &str) -> io::Result<String> {
    Ok(fs::read_to_string(format!("/proc/{process}/comm"))?.trim_end().to_owned())
}
