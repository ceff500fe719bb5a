//! `ws-proxy health`: asks a running proxy how it is, for images that hold nothing else to run.

use std::net::ToSocketAddrs;

use crate::Failure;
use crate::admin_client::AdminClient;
use crate::cli::{Arguments, Health};
use crate::probe::{probe_address, timeout};
use crate::source::Source;

/// Succeeds if the proxy is ready for clients, or alive. Without an admin listener every section
/// has to answer a probe, or else the port that is named.
pub(crate) fn run(health: &Health, arguments: &Arguments) -> Result<(), Failure> {
    let timeout = timeout(health.timeout_ms)?;
    if let Some(address) = &health.address {
        let excluded = [
            (health.live, "--live"),
            (health.admin.is_some(), "--admin"),
            (health.config.is_some() || arguments.config.is_some(), "--config"),
        ];
        return match excluded.into_iter().find(|(is_given, _)| *is_given) {
            Some((_, flag)) => Err(Failure::Usage(format!(
                "{address} and {flag} exclude each other: a port for WebSockets tells only that \
                 it answers"
            ))),
            None => probe_address(address, timeout),
        };
    }
    let ask = |admin: &AdminClient| {
        let target = if health.live { "/livez" } else { "/readyz" };
        admin.ask("GET", target, Some(timeout))
    };
    let source = match &health.admin {
        // A probe shows no token, so that no file is needed.
        Some(_) => None,
        None => match Source::find_any(arguments, health.config.as_deref()) {
            Ok(source) => source,
            // A bad change of the file must not have a supervisor end a proxy that refused it.
            Err(problem) => {
                let bind = Source::admin_bind(arguments, health.config.as_deref());
                let running = bind.filter(|bind| bind.to_socket_addrs().is_ok());
                let Some(admin) = AdminClient::find(running.as_deref(), None)? else {
                    return Err(problem);
                };
                let response = ask(&admin).map_err(|_| problem)?;
                return response.expect_ok(admin.address()).map(drop);
            }
        },
    };
    if let Some(admin) = AdminClient::find(health.admin.as_deref(), source.as_ref())? {
        return ask(&admin)?.expect_ok(admin.address()).map(drop);
    }
    let Some(source) = source else {
        let problem = "there is no ws-proxy.toml or rws.config.toml here: name the proxy with \
                       --admin HOST:PORT or --config FILE";
        return Err(Failure::Usage(problem.to_owned()));
    };
    for section in &source.config.sections {
        if section.bind.ends_with(":0") {
            let problem = format!(
                "{}: the section has any port that is free: name it with ws-proxy health HOST:PORT",
                section.bind
            );
            return Err(Failure::Usage(problem));
        }
        probe_address(&section.bind, timeout)?;
    }
    Ok(())
}
