//! `ws-proxy drain`: asks a running proxy to drain, for hooks in images that hold nothing else to run.

use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};

use crate::Failure;
use crate::cli::Drain;

/// Sends SIGUSR1 to the proxy that is this process, and returns at once: it would not live to see the end of a process 1
/// that it waits for. As it is no SIGTERM, the one that follows is not the second.
pub(crate) fn run(drain: &Drain) -> Result<(), Failure> {
    let number = drain.pid;
    let pid = (number > 0).then(|| Pid::from_raw(number)).flatten();
    let pid =
        pid.ok_or_else(|| Failure::Usage(format!("--pid: {number} is no number of a process")))?;
    let failed = |error: io::Error| {
        Failure::Machine(format!("cannot ask process {number} to drain: {error}"))
    };
    // Outside of a container process 1 is the system's own, which is not to be sent anything.
    let (its_name, name) =
        (name_of(&number.to_string()).map_err(failed)?, name_of("self").map_err(failed)?);
    if its_name != name {
        return Err(Failure::Machine(format!(
            "process {number} is {its_name:?}, not a {name}: name one with --pid"
        )));
    }
    kill_process(pid, Signal::USR1).map_err(|error| failed(error.into()))
}

/// What a process was started as, cut to 15 bytes (proc(5), `/proc/pid/comm`).
fn name_of(process: &str) -> io::Result<String> {
    Ok(fs::read_to_string(format!("/proc/{process}/comm"))?.trim_end().to_owned())
}
