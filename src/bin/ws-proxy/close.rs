//! `ws-proxy close`: closes tunnels of a running proxy.

use serde_json::Value;

use crate::admin_client::AdminClient;
use crate::cli::{Arguments, Close};
use crate::query::target;
use crate::tunnels::ANSWER_TIME;
use crate::{Failure, print};

/// Has the admin listener close tunnels, and prints their number.
pub(crate) fn run(close: &Close, arguments: &Arguments) -> Result<(), Failure> {
    let target = target_of(close)?;
    let admin = AdminClient::require(close.admin.as_deref(), close.config.as_deref(), arguments)?;
    let address = admin.address();
    let response = admin.ask("DELETE", &target, Some(ANSWER_TIME))?.expect_ok(address)?;
    let answer: Option<Value> = serde_json::from_str(&response.body).ok();
    let count = answer.as_ref().and_then(|answer| answer["closing"].as_u64());
    match count {
        Some(1) => print("closing 1 tunnel"),
        Some(count) => print(&format!("closing {count} tunnels")),
        None => {
            let problem = format!("{address} answers without a number of tunnels: no ws-proxy?");
            Err(Failure::Runtime(problem))
        }
    }
}

fn target_of(close: &Close) -> Result<String, Failure> {
    let filters = [
        ("section", close.section.clone()),
        ("backend", close.backend.clone()),
        ("client", close.client.map(|client| client.to_string())),
    ];
    let has_filter = filters.iter().any(|(_, value)| value.is_some());
    let path = match close.id {
        Some(_) if has_filter => {
            let problem = "an ID excludes --backend, --section and --client: leave out the one or \
                           the others";
            return Err(Failure::Usage(problem.to_owned()));
        }
        None if !has_filter => {
            let problem = "which tunnels? give the ID of one, or --backend, --section or --client";
            return Err(Failure::Usage(problem.to_owned()));
        }
        Some(id) => format!("/tunnels/{id}"),
        None => "/tunnels".to_owned(),
    };
    let [section, backend, client] = filters;
    let code = ("code", close.code.map(|code| code.to_string()));
    let reason = ("reason", close.reason.clone());
    let spread = ("spread_ms", close.spread_ms.map(|spread| spread.to_string()));
    Ok(target(&path, &[section, backend, client, code, reason, spread]))
}
