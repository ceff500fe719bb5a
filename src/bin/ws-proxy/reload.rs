//! `ws-proxy reload`: has a running proxy read its configuration again.

use std::time::Duration;

use rustix::process::Signal;

use crate::Failure;
use crate::admin_client::AdminClient;
use crate::cli::{Arguments, Reload};
use crate::peer_process::Peer;
use crate::source::Source;

/// Time for the admin listener to answer: it checks and opens everything before.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Asks the admin listener for a reload, and prints what comes of it or, where none is configured
/// or a process is named, sends SIGHUP, of which only the log tells more.
pub(crate) fn run(reload: &Reload, arguments: &Arguments) -> Result<(), Failure> {
    if reload.pid.is_some() && reload.admin.is_some() {
        let problem = "--pid and --admin exclude each other: name one proxy".to_owned();
        return Err(Failure::Usage(problem));
    }
    let source = match (reload.pid, &reload.admin) {
        (None, None) => Source::find_any(arguments, reload.config.as_deref())?,
        // The file has the token too, where one is named.
        (None, Some(_)) if reload.config.is_some() || arguments.config.is_some() => {
            Source::find_any(arguments, reload.config.as_deref())?
        }
        _ => None,
    };
    match AdminClient::find_fixed(reload.admin.as_deref(), source.as_ref())? {
        Some(admin) => {
            let response = admin.ask("POST", "/reload", Some(ANSWER_TIME))?;
            crate::print(response.expect_ok(admin.address())?.body.trim_end())
        }
        None => Peer::find(reload.pid.unwrap_or(1), "reload")?.signal(Signal::HUP),
    }
}
