//! `GET /tunnels`, `GET /tunnels/{id}`, and `DELETE` of both: open tunnels are listed and closed.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::call::Call;
use super::reply::Reply;
use super::request::Request;
use crate::digits;
use crate::settings::{SENDABLE, is_sendable};
use crate::tunnel::{CloseOrder, OrderCause, PerSide, TunnelFilter, TunnelView};

/// Tunnels that are listed where no limit is given.
const LIMIT: u64 = 100;
/// Most tunnels that are listed.
const LIMIT_MAX: u64 = 10_000;
/// Most lists of more than [`LIMIT`] tunnels at a time: each takes up to 10 MB until its client has
/// taken it.
pub(super) const LONG_LISTS: usize = 2;
/// Code of the Close where none is given: going away (RFC 6455, 7.4.1).
const CODE: u16 = 1_001;
/// Most bytes of the reason in a Close, besides its code (RFC 6455, 5.5).
const REASON_MAX: usize = 123;
/// Longest time over which tunnels are closed: a day.
const SPREAD_MAX: u64 = 24 * 60 * 60 * 1_000;

/// Keys of a query that tell which tunnels are meant.
const FILTERS: [&str; 3] = ["section", "backend", "client"];
/// Keys of a query that tell how tunnels are closed.
const ORDERS: [&str; 3] = ["code", "reason", "spread_ms"];

/// `GET /tunnels`: the newest of those that the query means.
pub(super) async fn list(call: Call<'_>) -> Reply {
    let limit = || number(call.request, "limit", LIMIT, LIMIT_MAX);
    let keys = call.request.check_keys(&[&FILTERS, &["limit"]]);
    let asked = keys.and_then(|()| Ok((filter(call.request)?, limit()?)));
    let (filter, limit) = match asked {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    let held = if limit > LIMIT { call.long_lists.take() } else { None };
    if limit > LIMIT && held.is_none() {
        let problem = format!(
            "{LONG_LISTS} lists of more than {LIMIT} tunnels are being sent: come again, or ask \
             for fewer with limit="
        );
        return Reply::error(503, problem).with("Retry-After", "1");
    }
    match call.site.tunnels(&filter, usize::try_from(limit).unwrap_or(usize::MAX)).await {
        Some(views) => {
            // Written one by one: as values, all of them would take several times the text.
            let mut text = String::from("[");
            for (index, view) in views.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                text += &view_of(&view).to_string();
            }
            text.push_str("]\n");
            Reply { held, ..Reply::ok("application/json", text) }
        }
        None => busy(),
    }
}

/// `GET /tunnels/{id}`.
pub(super) async fn show(call: Call<'_>) -> Reply {
    let filter = match call.request.check_keys(&[]).and_then(|()| of_id(call.request)) {
        Ok(filter) => filter,
        Err(refusal) => return refusal,
    };
    match call.site.tunnels(&filter, 1).await.as_deref() {
        Some([view, ..]) => Reply::json(&view_of(view)),
        Some([]) => no_such_tunnel(),
        None => busy(),
    }
}

/// `DELETE /tunnels`: closes those that the query means, of which it has to mean some.
pub(super) async fn close_all(call: Call<'_>) -> Reply {
    match call.request.check_keys(&[&FILTERS, &ORDERS]).and_then(|()| filter(call.request)) {
        Ok(filter) if filter.is_empty() => {
            Reply::error(400, "which tunnels? give section=, backend= or client= in the query")
        }
        Ok(filter) => close(call, &filter).await,
        Err(refusal) => refusal,
    }
}

/// `DELETE /tunnels/{id}`.
pub(super) async fn close_one(call: Call<'_>) -> Reply {
    match call.request.check_keys(&[&ORDERS]).and_then(|()| of_id(call.request)) {
        Ok(filter) => close(call, &filter).await,
        Err(refusal) => refusal,
    }
}

async fn close(call: Call<'_>, filter: &TunnelFilter) -> Reply {
    let order = match order(call.request) {
        Ok(order) => order,
        Err(refusal) => return refusal,
    };
    let code = order.code;
    match call.site.close(filter, order).await {
        Some(0) if filter.id.is_some() => no_such_tunnel(),
        Some(count) => {
            log::info!(client:% = call.peer, tunnels = count, code; "admin_close");
            Reply::json(&json!({ "closing": count }))
        }
        None => busy(),
    }
}

/// Returns the Close that a request orders.
fn order(request: &Request) -> Result<CloseOrder, Reply> {
    let code = number(request, "code", CODE.into(), u16::MAX.into())?;
    let code = u16::try_from(code).ok().filter(|&code| is_sendable(code)).ok_or_else(|| {
        Reply::error(400, format!("code={code} is not a sendable close code ({SENDABLE})"))
    })?;
    let reason = request.query("reason").unwrap_or(OrderCause::Operator.text());
    if reason.len() > REASON_MAX {
        let problem = format!("the reason is longer than {REASON_MAX} bytes");
        return Err(Reply::error(400, problem));
    }
    let spread = Duration::from_millis(number(request, "spread_ms", 0, SPREAD_MAX)?);
    Ok(CloseOrder { cause: OrderCause::Operator, code, reason: reason.to_owned(), spread })
}

/// Returns the tunnels that the query means.
fn filter(request: &Request) -> Result<TunnelFilter, Reply> {
    let text = |key| request.query(key).map(str::to_owned);
    let client = match request.query("client") {
        None => None,
        Some(client) => {
            let ip = client.parse::<IpAddr>().map_err(|_| {
                Reply::error(400, format!("client={client:?}: write an IP address without a port"))
            })?;
            // As the addresses of clients are kept.
            Some(ip.to_canonical())
        }
    };
    let (section, backend) = (text("section"), text("backend"));
    Ok(TunnelFilter { section, backend, client, ..TunnelFilter::default() })
}

fn of_id(request: &Request) -> Result<TunnelFilter, Reply> {
    let id = request.segments.last().and_then(|segment| digits::number(segment));
    let id = id.ok_or_else(|| Reply::error(404, "the id of a tunnel is a number"))?;
    Ok(TunnelFilter { id: Some(id), ..TunnelFilter::default() })
}

/// Returns a number of the query, or its default.
fn number(request: &Request, key: &str, default: u64, most: u64) -> Result<u64, Reply> {
    let Some(text) = request.query(key) else { return Ok(default) };
    digits::number(text).filter(|&number| number <= most).ok_or_else(|| {
        Reply::error(400, format!("{key}={text:?}: write a number from 0 to {most}"))
    })
}

fn no_such_tunnel() -> Reply {
    Reply::error(404, "there is no such tunnel: it may have ended")
}

fn busy() -> Reply {
    Reply::error(503, "a worker has not answered within a second: GET /livez names it")
}

/// Returns the tunnel's object, with the names that `tunnel_end` has in the log.
fn view_of(view: &TunnelView) -> Value {
    let it = &view.description;
    let [path, host, forwarded_for, request_id, _] = &it.request;
    let PerSide { client, backend } = &view.sent_by;
    json!({
        "id": it.id,
        "section": it.section,
        "client": it.client.to_string(),
        "forwarded_for": forwarded_for,
        "backend": it.backend,
        "path": path,
        "host": host,
        "request_id": request_id,
        "age_s": seconds(it.accepted.elapsed()),
        "idle_s": view.idle.map(seconds),
        "client_messages": client.counters.messages(),
        "backend_messages": backend.counters.messages(),
        "bytes_to_backend": client.relayed,
        "bytes_to_client": backend.relayed,
        "client_close": client.counters.close_code(),
        "backend_close": backend.counters.close_code(),
        "state": view.state.name(),
    })
}

/// Returns a time in seconds, with one decimal.
pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use futures_lite::future;

    use super::*;
    use crate::admin::request::Announced;
    use crate::admin::site::Site;
    use crate::builder::WsProxy;
    use crate::metrics::Metrics;
    use crate::net::name::Peer;
    use crate::section::Permits;
    use crate::shutdown::Shutdown;

    #[test]
    fn long_lists_are_few_until_they_are_sent() {
        let proxy = WsProxy::new(["127.0.0.1:1"]).listen("127.0.0.1:0").unwrap();
        let told = (Default::default(), Metrics::new());
        let site = Site::new([&proxy], told, Shutdown::new(), Shutdown::new());
        let long_lists = Permits::new(Some(1));
        let list = |limit: u64| {
            let head = format!("GET /tunnels?limit={limit} HTTP/1.1\r\nHost: a\r\n\r\n");
            let request = Announced::parse(head.as_bytes()).unwrap().request;
            let peer = Peer::Ip([127, 0, 0, 1].into(), 1);
            let call = Call { site: &site, long_lists: &long_lists, request: &request, peer };
            future::block_on(super::list(call))
        };
        let first = list(LIMIT + 1);
        assert_eq!(first.status, 200);
        assert_eq!((list(LIMIT + 1).status, list(LIMIT).status), (503, 200));
        let sent = first.into_bytes(false);
        assert_eq!(list(LIMIT_MAX).status, 503);
        drop(sent);
        assert_eq!(list(LIMIT_MAX).status, 200);
    }
}
