//! `ws-proxy reload`: has a running proxy read its configuration again.

use std::time::Duration;

use rustix::process::Signal;

use crate::Failure;
use crate::admin_client::AdminClient;
use crate::cli::{Arguments, Reload, name_one_proxy};
use crate::peer_process::Peer;
use crate::source::Source;

/// Time for the admin listener to answer: it checks and opens everything before.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Asks the admin listener for a reload, and prints what comes of it or, where none is configured
/// or a process is named, sends SIGHUP, of which only the log tells more.
pub(crate) fn run(reload: &Reload, arguments: &Arguments) -> Result<(), Failure> {
    name_one_proxy(reload.pid, reload.admin.as_deref())?;
    let config = reload.config.as_deref();
    // A named listener needs no file but one that is named as well, which has its token.
    let needs_file = reload.admin.is_none() || arguments.name_file(config);
    let source = match reload.pid {
        None if needs_file => Source::find_any(arguments, config)?,
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
