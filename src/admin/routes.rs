//! The routes of the admin listener: a table of methods and paths, each with its handler.
//!
//! Another one is a row of [`ROUTES`] and an async function.

use std::pin::Pin;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::access::Access;
use super::call::Call;
use super::page;
use super::reload;
use super::reply::Reply;
use super::request::{Method, Request};
use super::sections;
use super::server::Service;
use super::site::Site;
use super::status;
use super::tunnels;
use crate::lock::lock;
use crate::metrics::MetricsFormat;
use crate::net::name::Peer;
use crate::section::Permits;

/// All routes. Those of one path stand together.
const ROUTES: &[Route] = &[
    Route::new(Method::Get, "/", |call| Box::pin(page::page(call))),
    Route::new(Method::Get, "/status", |call| Box::pin(status::status(call))),
    Route::new(Method::Get, "/livez", |call| Box::pin(livez(call))),
    Route::new(Method::Get, "/readyz", |call| Box::pin(readyz(call))),
    Route::new(Method::Get, "/metrics", |call| Box::pin(metrics(call))),
    Route::new(Method::Get, "/sections", |call| Box::pin(sections::sections(call))),
    Route::new(Method::Get, "/backends", |call| Box::pin(sections::backends(call))),
    Route::new(Method::Get, "/tunnels", |call| Box::pin(tunnels::list(call))),
    Route::new(Method::Delete, "/tunnels", |call| Box::pin(tunnels::close_all(call))),
    Route::new(Method::Get, "/tunnels/{id}", |call| Box::pin(tunnels::show(call))),
    Route::new(Method::Delete, "/tunnels/{id}", |call| Box::pin(tunnels::close_one(call))),
    Route::new(Method::Get, "/config", |call| Box::pin(reload::config(call))),
    Route::new(Method::Post, "/reload", |call| Box::pin(reload::reload(call))),
    Route::new(Method::Post, "/drain", |call| Box::pin(drain(call))),
];

/// A row of the table.
struct Route {
    /// Method that it answers; GET stands for HEAD as well.
    method: Method,
    /// Path, in which a segment in braces stands for any that is not empty.
    path: &'static str,
    handler: Handler,
}

/// Answers a request that may pass. It runs on the admin listener's thread, and holds up nothing
/// but other admin requests.
type Handler = for<'a> fn(Call<'a>) -> Pin<Box<dyn Future<Output = Reply> + 'a>>;

/// Brings each request that may pass to its handler.
pub(super) struct Router {
    pub(super) access: Mutex<Access>,
    pub(super) site: Site,
    /// Long lists of tunnels that are being made or sent.
    pub(super) long_lists: Permits,
}

impl Router {
    /// Returns the rules in force; no code that waits runs under the lock.
    pub(super) fn access(&self) -> MutexGuard<'_, Access> {
        lock(&self.access)
    }
}

impl Service for Router {
    async fn answer(&self, request: Request, peer: Peer) -> Reply {
        let judged = self.access().judge(&request, peer);
        if let Err(refusal) = judged {
            return refusal;
        }
        match find(&request) {
            Ok(handler) => {
                let (site, long_lists) = (&self.site, &self.long_lists);
                handler(Call { site, long_lists, request: &request, peer }).await
            }
            Err(refusal) => refusal,
        }
    }
}

impl Route {
    const fn new(method: Method, path: &'static str, handler: Handler) -> Self {
        Self { method, path, handler }
    }

    /// Returns whether a path, in decoded segments, is that of the route.
    fn leads_to(&self, segments: &[String]) -> bool {
        let own = self.path.strip_prefix('/').unwrap_or(self.path);
        own.split('/').count() == segments.len()
            && own.split('/').zip(segments).all(|(own, segment)| {
                if own.starts_with('{') { !segment.is_empty() } else { own == segment }
            })
    }
}

/// Returns the handler of a request.
///
/// # Errors
///
/// The answer where there is none.
fn find(request: &Request) -> Result<Handler, Reply> {
    let method = match request.method {
        Method::Head => Method::Get,
        other => other,
    };
    let of_path: Vec<_> = ROUTES.iter().filter(|one| one.leads_to(&request.segments)).collect();
    if let Some(route) = of_path.iter().find(|route| route.method == method) {
        return Ok(route.handler);
    }
    let allowed = match (of_path.is_empty(), method) {
        (true, Method::Other) => "GET, HEAD, POST, DELETE".to_owned(),
        (true, _) => {
            let mut paths: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
            paths.dedup();
            let problem = format!("there is no such page: ask for one of {}", paths.join(", "));
            return Err(Reply::error(404, problem));
        }
        (false, _) => {
            let names = of_path.iter().map(|route| match route.method {
                Method::Post => "POST",
                Method::Delete => "DELETE",
                _ => "GET, HEAD",
            });
            names.collect::<Vec<_>>().join(", ")
        }
    };
    let problem = format!("this method is not served here: use one of {allowed}");
    Err(Reply::error(405, problem).with("Allow", allowed))
}

/// `GET /livez`: whether the process is worth keeping.
async fn livez(call: Call<'_>) -> Reply {
    verdict(&call.site.stalled_workers().await)
}

/// `GET /readyz`: whether new clients should come.
async fn readyz(call: Call<'_>) -> Reply {
    let reply = verdict(&call.site.unready_reasons(Instant::now()));
    match call.site.metrics.reload_error() {
        // It serves as before, and its configuration is not what the file says.
        Some(error) => reply.and_line(&format!("the last reload failed: {error}")),
        None => reply,
    }
}

/// Returns 200 where there is no reason against it.
fn verdict(reasons: &[String]) -> Reply {
    if reasons.is_empty() { Reply::text(200, &["ok"]) } else { Reply::text(503, reasons) }
}

/// `GET /metrics`: the counts of all sections, in the format that the client asks for.
async fn metrics(call: Call<'_>) -> Reply {
    let accept = call.request.field("accept").unwrap_or_default();
    let format = MetricsFormat::accepted(&String::from_utf8_lossy(accept));
    Reply::ok(format.content_type(), call.site.metrics.render(format)).with("Vary", "Accept")
}

/// `POST /drain`: begins the drain, as SIGUSR1 does. `?wait=1` answers when all sections have
/// stopped.
async fn drain(call: Call<'_>) -> Reply {
    if let Err(refusal) = call.request.check_keys(&[&["wait"]]) {
        return refusal;
    }
    let waits = match call.request.query("wait") {
        None | Some("0") => false,
        Some("1") => true,
        Some(_) => {
            let problem = "wait is 0, to be answered at once, or 1, when the last tunnel has ended";
            return Reply::error(400, problem);
        }
    };
    let begins = !call.site.shutdown.has_begun();
    call.site.shutdown.begin();
    let action = if begins { "drain" } else { "none" };
    log::info!(client:% = call.peer, action; "admin_drain");
    if waits {
        call.site.stopped.begun().await;
    }
    Reply::text(200, &[if waits { "drained" } else { "draining" }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::request::Announced;
    use crate::handshake::samples::table;

    #[test]
    fn requests_without_a_route_are_told_what_there_is() {
        let find = |start: &str| {
            let head = format!("{start} HTTP/1.1\r\nHost: a\r\n\r\n");
            find(&Announced::parse(head.as_bytes()).unwrap().request).map(|_| ())
        };
        for start in table([
            "GET /livez",
            "HEAD /livez",
            "GET /readyz?verbose",
            "GET /%6civez",
            "POST /drain?wait=1",
        ]) {
            assert!(find(start).is_ok(), "{start}");
        }
        for (start, status, allow) in table([
            ("GET /nothing", 404, None),
            ("POST /livez/", 404, None),
            ("GET //livez", 404, None),
            ("GET /livez/x", 404, None),
            ("GET /Livez", 404, None),
            ("POST /livez", 405, Some("GET, HEAD")),
            ("DELETE /metrics", 405, Some("GET, HEAD")),
            ("PUT /readyz", 405, Some("GET, HEAD")),
            ("GET /drain", 405, Some("POST")),
            ("HEAD /drain", 405, Some("POST")),
            ("BREW /nothing", 405, Some("GET, HEAD, POST, DELETE")),
        ]) {
            let reply = find(start).unwrap_err();
            let allowed = reply.fields.iter().find(|(name, _)| *name == "Allow");
            let allowed = allowed.map(|(_, value)| value.as_ref());
            assert_eq!((reply.status, allowed), (status, allow), "{start}");
            assert_eq!(reply.body.iter().filter(|&&byte| byte == b'\n').count(), 1);
        }
    }

    #[test]
    fn a_segment_in_braces_is_any_but_an_empty_one() {
        let route = Route::new(Method::Get, "/tunnels/{id}", |call| Box::pin(livez(call)));
        let leads = |segments: &[&str]| {
            route.leads_to(&segments.iter().map(|&one| one.to_owned()).collect::<Vec<_>>())
        };
        assert!(leads(&["tunnels", "7"]) && leads(&["tunnels", "a/b"]));
        assert!(!leads(&["tunnels", ""]) && !leads(&["tunnels"]) && !leads(&["x", "7"]));
    }
}
