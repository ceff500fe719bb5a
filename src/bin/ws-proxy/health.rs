//! `ws-proxy health`: asks a running proxy how it is, for images that hold nothing else to run.

use crate::Failure;
use crate::admin_client::AdminClient;
use crate::cli::{Arguments, Health};
use crate::probe::{probe_address, timeout};
use crate::source::Source;

/// Succeeds if the proxy is ready for clients, or alive. Without an admin listener every section
/// has to answer a probe.
pub(crate) fn run(health: &Health, arguments: &Arguments) -> Result<(), Failure> {
    let timeout = timeout(health.timeout_ms)?;
    let source = match &health.admin {
        // A probe shows no token, so that no file is needed.
        Some(_) => None,
        None => Source::find_any(arguments, health.config.as_deref())?,
    };
    if let Some(admin) = AdminClient::find(health.admin.as_deref(), source.as_ref())? {
        let target = if health.live { "/livez" } else { "/readyz" };
        let response = admin.ask("GET", target, Some(timeout))?;
        return response.expect_ok(admin.address()).map(drop);
    }
    let Some(source) = source else {
        let problem = "there is no ws-proxy.toml or rws.config.toml here: name the proxy with \
                       --admin HOST:PORT or --config FILE";
        return Err(Failure::Usage(problem.to_owned()));
    };
    for section in &source.config.sections {
        if section.bind.ends_with(":0") {
            let problem = format!(
                "{}: the section has any port that is free: name it to ws-proxy probe",
                section.bind
            );
            return Err(Failure::Usage(problem));
        }
        probe_address(&section.bind, timeout)?;
    }
    Ok(())
}
