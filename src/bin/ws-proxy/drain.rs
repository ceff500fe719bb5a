//! `ws-proxy drain`: begins a drain, for hooks in images that hold nothing else to run.

use std::time::Duration;

use rustix::process::Signal;

use crate::Failure;
use crate::admin_client::AdminClient;
use crate::cli::{Arguments, Drain, name_one_proxy};
use crate::peer_process::Peer;
use crate::source::Source;

/// Time for the admin listener to take the request.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Asks the admin listener for a drain or, where none is configured or answers, or a process is
/// named, sends SIGUSR1. A SIGTERM that follows is the first one.
///
/// It returns at once unless it is to wait: it would not outlive a process 1 that it waits for.
pub(crate) fn run(drain: &Drain, arguments: &Arguments) -> Result<(), Failure> {
    name_one_proxy(drain.pid, drain.admin.as_deref())?;
    let config = drain.config.as_deref();
    let source = match drain.pid {
        Some(_) => None,
        None => match Source::find_any(arguments, config) {
            // A file that was broken after the start must not keep a hook from draining.
            Err(_) if !arguments.name_file(config) => None,
            found => found?,
        },
    };
    match AdminClient::find_fixed(drain.admin.as_deref(), source.as_ref())? {
        Some(admin) => {
            let target = if drain.wait { "/drain?wait=1" } else { "/drain" };
            let timeout = (!drain.wait).then_some(ANSWER_TIME);
            match admin.ask("POST", target, timeout) {
                // The file need not be the one that the process was started with: a mounted one
                // changes, and the image has one also where the command line tells the settings.
                // A hook must drain all the same.
                Err(Failure::Runtime(problem)) if drain.admin.is_none() => {
                    signal(1, drain.wait).map_err(|_| Failure::Runtime(problem))
                }
                response => response?.expect_ok(admin.address()).map(drop),
            }
        }
        None => signal(drain.pid.unwrap_or(1), drain.wait),
    }
}

/// Sends a proxy the signal that begins a drain.
fn signal(pid: i32, wait: bool) -> Result<(), Failure> {
    let peer = Peer::find(pid, "drain")?;
    if wait { peer.signal_and_wait(Signal::USR1) } else { peer.signal(Signal::USR1) }
}
