//! `ws-proxy drain`: begins a drain, for hooks in images that hold nothing else to run.

use std::time::Duration;
use std::{fs, io};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use smol::Async;

use crate::Failure;
use crate::admin_client::AdminClient;
use crate::cli::{Arguments, Drain};
use crate::source::Source;

/// Time for the admin listener to take the request.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Asks the admin listener for a drain or, where none is configured or a process is named, sends
/// SIGUSR1. A SIGTERM that follows is the first one.
///
/// It returns at once unless it is to wait: it would not outlive a process 1 that it waits for.
pub(crate) fn run(drain: &Drain, arguments: &Arguments) -> Result<(), Failure> {
    if drain.pid.is_some() && drain.admin.is_some() {
        let problem = "--pid and --admin exclude each other: name one proxy".to_owned();
        return Err(Failure::Usage(problem));
    }
    let is_named = drain.config.is_some() || arguments.config.is_some();
    let source = match drain.pid {
        Some(_) => None,
        None => match Source::find_any(arguments, drain.config.as_deref()) {
            // A file that was broken after the start must not keep a hook from draining.
            Err(_) if !is_named => None,
            found => found?,
        },
    };
    // A listener with any free port cannot be found, but the signal is as good.
    let has_port = |one: &ws_proxy::AdminConfig| !one.bind_address().ends_with(":0");
    let is_findable = drain.admin.is_some()
        || source.as_ref().and_then(|one| one.admin.as_ref()).is_some_and(has_port);
    let admin = if is_findable {
        AdminClient::find(drain.admin.as_deref(), source.as_ref())?
    } else {
        None
    };
    match admin {
        Some(admin) => {
            let target = if drain.wait { "/drain?wait=1" } else { "/drain" };
            let timeout = (!drain.wait).then_some(ANSWER_TIME);
            admin.ask("POST", target, timeout)?.expect_ok(admin.address()).map(drop)
        }
        None => send_signal(drain.pid.unwrap_or(1), drain.wait),
    }
}

/// Sends SIGUSR1 to the proxy with this process id.
fn send_signal(number: i32, waits: bool) -> Result<(), Failure> {
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
    if !waits {
        return kill_process(pid, Signal::USR1).map_err(|error| failed(error.into()));
    }
    // Opened first: afterwards the number may be another process's.
    let process = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
    kill_process(pid, Signal::USR1).map_err(|error| failed(error.into()))?;
    // It is readable once the process has ended (pidfd_open(2)).
    smol::block_on(async { Async::new_nonblocking(process)?.readable().await })
        .map_err(|error| Failure::Runtime(format!("cannot wait for process {number}: {error}")))
}

/// Returns the name of a process, cut to 15 bytes (proc(5), `/proc/pid/comm`).
fn name_of(process: &str) -> io::Result<String> {
    Ok(fs::read_to_string(format!("/proc/{process}/comm"))?.trim_end().to_owned())
}
