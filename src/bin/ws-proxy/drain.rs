//! `ws-proxy drain`: begins a drain, for hooks in images that hold nothing else to run.

use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};

use crate::Failure;
use crate::cli::Drain;

/// Sends SIGUSR1 to the proxy with this process id, and returns at once: it would not outlive a
/// process 1 that it waits for. A SIGTERM that follows is the first one.
pub(crate) fn run(drain: &Drain) -> Result<(), Failure> {
    let number = drain.pid;
    let pid = (number > 0).then(|| Pid::from_raw(number)).flatten();
    let pid = pid.ok_or_else(|| {
        Failure::Usage(format!("--pid: {number} is not a process id (1 or greater)"))
    })?;
    let failed = |error: io::Error| {
        Failure::Runtime(format!("cannot ask process {number} to drain: {error}"))
    };
    // Outside a container, process 1 is the system's own, which must not get the signal.
    let (its_name, name) =
        (name_of(&number.to_string()).map_err(failed)?, name_of("self").map_err(failed)?);
    if its_name != name {
        return Err(Failure::Runtime(format!(
            "process {number} is {its_name:?}, not a {name}: name one with --pid"
        )));
    }
    kill_process(pid, Signal::USR1).map_err(|error| failed(error.into()))
}

/// Returns the name of a process, cut to 15 bytes (proc(5), `/proc/pid/comm`).
fn name_of(process: &str) -> io::Result<String> {
    Ok(fs::read_to_string(format!("/proc/{process}/comm"))?.trim_end().to_owned())
}
