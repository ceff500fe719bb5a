//! Heads as they are forwarded: the client's to the backend, the backend's to the client. [`plain`]
//! has those of requests that are no upgrades.

mod plain;

use std::borrow::Cow;
use std::net::IpAddr;

pub(crate) use self::plain::{plain_answer_head, plain_request_head, push_trailers};
use super::asked::Asked;
use super::fields::{Field, Fields, is_same_variable};
use super::http::ResponseHead;
use super::trace::{self, REQUEST_ID};
use super::upgrade::UpgradeRequest;
use super::via;

/// Value of the `Host` field in the forwarded handshake; the key `host` of a section.
///
/// Applications that compare `Origin` with `Host` (Rails, Jupyter, Phoenix, Tornado, Gorilla)
/// refuse browsers behind a rewritten Host: they need [`HostHeader::Preserve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum HostHeader {
    /// The backend's `host:port` as configured. The default.
    #[default]
    Backend,
    /// The client's own; of an absolute-form target its authority (RFC 9112, 3.2.2).
    Preserve,
}

/// Treatment of `X-Forwarded-For`, `X-Forwarded-Host` and `X-Forwarded-Proto`; the key `forwarded`
/// of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum Forwarded {
    /// Appends the client's address to the chain received, and keeps a host and a protocol received
    /// (else sets the client's `Host` and `http`). For a proxy that sits after a trusted one, which
    /// sets all three. The default.
    #[default]
    Append,
    /// Drops the fields received, and sets what this hop knows. For a proxy that faces the open
    /// network. All `X-Forwarded` fields are dropped, `Forwarded` (RFC 7239) and the names by which
    /// other proxies tell the client's address, such as `X-Real-IP`, in every spelling that CGI
    /// takes for theirs.
    Replace,
    /// Forwards the fields received, and adds none.
    Off,
}

/// Hop-by-hop fields, which are never forwarded (RFC 9110, 7.6.1, and others in use).
const HOP_BY_HOP: [&str; 10] = [
    "Connection",
    "Upgrade",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "HTTP2-Settings",
];

/// Upgrade fields of both forwarded heads, written anew (RFC 9110, 7.8).
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

/// Fields by which proxies tell a client's address, besides those that begin like one of
/// [`FORWARDED`].
const CLIENT_ADDRESS: [&str; 12] = [
    "Forwarded",
    "X-Real-IP",
    "True-Client-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "CF-Connecting-IP",
    "CF-Connecting-IPv6",
    "Fastly-Client-IP",
    "Client-IP",
    "X-Remote-IP",
    "X-Remote-Addr",
    "X-Envoy-External-Address",
];
/// Beginnings of such fields.
const FORWARDED: [&str; 2] = ["X-Forwarded-", "X-Original-Forwarded-"];

/// Prefix of the handshake's own fields (RFC 6455, 11.3).
const SEC_WEBSOCKET: &str = "Sec-WebSocket-";

/// Changes that a section and a connection make to the client's head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForwardPolicy<'a> {
    /// Address of the client's connection; `None` where a Unix socket tells none.
    pub(crate) client: Option<IpAddr>,
    /// Host and port of the backend, as configured.
    pub(crate) backend: &'a str,
    /// Value of the Host field.
    pub(crate) host: HostHeader,
    /// Treatment of the X-Forwarded fields.
    pub(crate) forwarded: Forwarded,
    /// Id of the request, in place of what the client has sent for one.
    pub(crate) request_id: &'a str,
}

/// Returns the head for the backend: the client's own lines with their bytes and in their order,
/// without the hop-by-hop ones, with Host in its old place, and the fields of this hop at the end.
pub(crate) fn request_head(request: &UpgradeRequest<'_>, policy: &ForwardPolicy<'_>) -> Vec<u8> {
    head_of(request.asked(), UPGRADE, policy, |_, forwards| forwards)
}

/// Returns a head with these lines of the connection to the backend. `passes` has the last word on
/// whether a field goes on; it is told the word of the hop-by-hop rules.
fn head_of(
    asked: Asked<'_>,
    own: &str,
    policy: &ForwardPolicy<'_>,
    passes: impl Fn(&Field<'_>, bool) -> bool,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(1_024);
    push(&mut head, &[asked.method, " ", asked.target, " HTTP/1.1\r\n"]);
    let options = ConnectionOptions::by(asked.fields);
    let host = match (policy.host, asked.authority) {
        (HostHeader::Preserve, Some(authority)) => authority,
        _ => policy.backend,
    };
    let mut has_host = false;
    for field in asked.fields.iter() {
        if field.is("Host") {
            has_host = true;
            push(&mut head, &[field.name, ": ", host, "\r\n"]);
        } else if passes(field, options.forwards(field)) && !is_replaced(field, policy.forwarded) {
            push_line(&mut head, field);
        }
    }
    if !has_host {
        push(&mut head, &["Host: ", host, "\r\n"]);
    }
    push(&mut head, &["Via: 1.1 ", via::NAME, "\r\n"]);
    push(&mut head, &[REQUEST_ID, ": ", policy.request_id, "\r\n", own]);
    forwarded_fields(&mut head, asked, policy, &options);
    head.extend_from_slice(b"\r\n");
    head
}

/// Returns the head of a verified 101 for the client: the backend's own, with the hop-by-hop fields
/// of this connection.
pub(crate) fn switching_head(response: &ResponseHead<'_>) -> Vec<u8> {
    let options = ConnectionOptions::by(&response.fields);
    response_head(response, UPGRADE, |field| options.forwards(field))
}

/// Returns the head of any other answer for the client, whose connection ends with it. The fields
/// that frame the body stay, since the body is forwarded unchanged.
pub(crate) fn declined_head(response: &ResponseHead<'_>) -> Vec<u8> {
    let options = ConnectionOptions::by(&response.fields);
    let is_chunked = response.fields.values("Transfer-Encoding").next().is_some();
    // What to upgrade to is for the client, and has to be nominated (RFC 9110, 7.8 and 15.5.22).
    let tells_upgrade =
        response.status == 426 && response.fields.values("Upgrade").next().is_some();
    let own = if tells_upgrade {
        "Connection: close\r\nConnection: Upgrade\r\n"
    } else {
        "Connection: close\r\n"
    };
    response_head(response, own, |field| {
        if tells_upgrade && field.is("Upgrade") {
            return true;
        }
        if field.is("Content-Length") {
            // RFC 9112, 6.3: Transfer-Encoding overrides a length, which must not go on then.
            return !is_chunked;
        }
        field.is("Transfer-Encoding") || field.is("Trailer") || options.forwards(field)
    })
}

fn response_head(
    response: &ResponseHead<'_>,
    own: &str,
    passes: impl Fn(&Field<'_>) -> bool,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    push(&mut head, &["HTTP/1.1 ", &response.status.to_string(), " ", response.reason, "\r\n"]);
    for field in response.fields.iter().filter(|field| passes(field)) {
        push_line(&mut head, field);
    }
    push(&mut head, &[own, "\r\n"]);
    head
}

/// Field names that a head's `Connection` lists: they are for this hop only (RFC 9110, 7.6.1). In
/// lower case and sorted, since a head may have as many of them as fields that they are looked up
/// for.
struct ConnectionOptions<'a>(Vec<Cow<'a, [u8]>>);

impl<'a> ConnectionOptions<'a> {
    fn by(fields: &Fields<'a>) -> Self {
        let mut names: Vec<_> = fields.list("Connection").map(lower_case).collect();
        names.sort_unstable();
        Self(names)
    }

    /// Returns whether a field is forwarded. Listing a field of the handshake itself has no effect:
    /// a client could otherwise take it out.
    fn forwards(&self, field: &Field<'_>) -> bool {
        if HOP_BY_HOP.iter().any(|name| field.is(name)) || field.is("Content-Length") {
            return false;
        }
        let start = field.name.get(..SEC_WEBSOCKET.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(SEC_WEBSOCKET))
            || self.0.binary_search(&lower_case(field.name.as_bytes())).is_err()
    }
}

fn lower_case(name: &[u8]) -> Cow<'_, [u8]> {
    if name.iter().any(u8::is_ascii_uppercase) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}

/// Returns whether a field of this hop takes the place of the client's, or none may, in every
/// spelling that CGI takes for it.
fn is_replaced(field: &Field<'_>, forwarded: Forwarded) -> bool {
    if trace::is_request_id(field) {
        return true;
    }
    let is = |name: &str| field.is_same_variable(name);
    match forwarded {
        Forwarded::Append => {
            ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"].iter().any(|name| is(name))
        }
        // The standard's own field (RFC 7239) tells the same, and is trusted as little.
        Forwarded::Replace => {
            let begins_with = |prefix: &&str| {
                let start = field.name.get(..prefix.len());
                start.is_some_and(|start| is_same_variable(start, prefix))
            };
            FORWARDED.iter().any(begins_with) || CLIENT_ADDRESS.iter().any(|name| is(name))
        }
        Forwarded::Off => false,
    }
}

fn forwarded_fields(
    head: &mut Vec<u8>,
    asked: Asked<'_>,
    policy: &ForwardPolicy<'_>,
    options: &ConnectionOptions<'_>,
) {
    if policy.forwarded == Forwarded::Off {
        return;
    }
    let kept = |name: &'static str| {
        let passes = policy.forwarded == Forwarded::Append;
        asked.fields.iter().filter(move |field| passes && field.is(name) && options.forwards(field))
    };
    let mut chain: Vec<&[u8]> = kept("X-Forwarded-For").map(|field| field.value).collect();
    chain.retain(|value| !value.is_empty());
    let client = policy.client.map(|client| client.to_canonical().to_string());
    chain.extend(client.as_ref().map(String::as_bytes));
    if !chain.is_empty() {
        push(head, &["X-Forwarded-For: "]);
        head.extend_from_slice(&chain.join(&b", "[..]));
        push(head, &["\r\n"]);
    }
    let own = [("X-Forwarded-Host", asked.authority), ("X-Forwarded-Proto", Some("http"))];
    for (name, own) in own {
        match (kept(name).find(|field| !field.value.is_empty()), own) {
            (Some(field), _) => push_line(head, field),
            (None, Some(own)) => push(head, &[name, ": ", own, "\r\n"]),
            (None, None) => {}
        }
    }
}

fn push(head: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        head.extend_from_slice(part.as_bytes());
    }
}

fn push_line(head: &mut Vec<u8>, field: &Field<'_>) {
    head.extend_from_slice(field.line);
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handshake::http::RequestHead;
    use crate::handshake::response::Answer;
    use crate::handshake::scan::{HeadScan, Scan};
    use crate::handshake::upgrade::HandshakeRules;

    const ID: &str = "0123456789abcdef";
    const OWN: &str = "Via: 1.1 ws-proxy\r\nX-Request-ID: 0123456789abcdef\r\n";
    const KEY: &str =
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

    fn forwarded(lines: &str, host: HostHeader, forwarded: Forwarded) -> String {
        let head = format!("GET /chat?a HTTP/1.1\r\n{lines}{KEY}\r\n");
        let request = RequestHead::parse(head.as_bytes()).unwrap();
        let request = UpgradeRequest::judge(&request, HandshakeRules::default()).unwrap();
        let client = Some("::ffff:192.0.2.7".parse().unwrap());
        let backend = "chat-backend:9000";
        let policy = ForwardPolicy { client, backend, host, forwarded, request_id: ID };
        String::from_utf8(request_head(&request, &policy)).unwrap()
    }

    #[test]
    fn order_case_and_bytes_are_kept() {
        let lines = "X-One:1\r\nhOsT: example.com\r\nconnection: keep-alive, Upgrade\r\n\
            UPGRADE: WebSocket\r\nX-two:  2 \r\n";
        assert_eq!(
            forwarded(lines, HostHeader::Backend, Forwarded::Append),
            format!(
                "GET /chat?a HTTP/1.1\r\nX-One:1\r\nhOsT: chat-backend:9000\r\nX-two:  2 \r\n\
                 {KEY}{OWN}{UPGRADE}X-Forwarded-For: 192.0.2.7\r\n\
                 X-Forwarded-Host: example.com\r\n\
                 X-Forwarded-Proto: http\r\n\r\n"
            )
        );
    }

    #[test]
    fn hop_by_hop_fields_stay_behind() {
        let lines = "Host: a\r\n\
            Connection: Upgrade, X-Mine, Host, Sec-WebSocket-Key, sec-websocket-version\r\n\
            Upgrade: websocket\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
            Proxy-Connection: x\r\nContent-Length: 0\r\nX-Else: 2\r\n";
        assert_eq!(
            forwarded(lines, HostHeader::Preserve, Forwarded::Off),
            format!("GET /chat?a HTTP/1.1\r\nHost: a\r\nX-Else: 2\r\n{KEY}{OWN}{UPGRADE}\r\n")
        );
    }

    #[test]
    fn the_chain_is_appended_to_replaced_or_left_alone() {
        let lines = "Host: a\r\nX-Forwarded-For: 10.0.0.1\r\n\
            x-forwarded-for: 10.0.0.2, 10.0.0.3\r\n\
            X-Forwarded-Proto: https\r\nX-Forwarded-Host: forged\r\nForwarded: for=10.0.0.1\r\n";
        let with = |mode| {
            let head = forwarded(&format!("{lines}{UPGRADE}"), HostHeader::Preserve, mode);
            let own = head.split_once(UPGRADE).unwrap().1.to_owned();
            (head.contains("Forwarded: for="), own)
        };
        let (standard, own) = with(Forwarded::Append);
        assert!(standard);
        assert_eq!(
            own,
            "X-Forwarded-For: 10.0.0.1, 10.0.0.2, 10.0.0.3, 192.0.2.7\r\n\
             X-Forwarded-Host: forged\r\n\
             X-Forwarded-Proto: https\r\n\r\n"
        );
        let (standard, own) = with(Forwarded::Replace);
        assert!(!standard);
        assert_eq!(
            own,
            "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Host: a\r\nX-Forwarded-Proto: http\r\n\r\n"
        );
        let head = forwarded(&format!("{lines}{UPGRADE}"), HostHeader::Preserve, Forwarded::Off);
        assert_eq!(head, format!("GET /chat?a HTTP/1.1\r\n{lines}{KEY}{OWN}{UPGRADE}\r\n"));
    }

    #[test]
    fn what_else_tells_a_client_s_address_is_replaced_in_every_spelling() {
        let untrusted = [
            "X-Real-IP",
            "True-Client-IP",
            "X-Client-IP",
            "X-Cluster-Client-IP",
            "CF-Connecting-IP",
            "Fastly-Client-IP",
            "Client-IP",
            "X-Remote-IP",
            "X-Remote-Addr",
            "CF-Connecting-IPv6",
            "X-Envoy-External-Address",
            "X-Original-Forwarded-For",
            "X-Forwarded-Port",
            "X-Forwarded-Ssl",
            "X-Forwarded-Scheme",
            "X-Forwarded-Prefix",
            "X-Forwarded-Server",
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X-Forwarded-Proto",
            "Forwarded",
        ];
        for name in untrusted {
            for name in [name.to_owned(), name.to_lowercase(), name.replace('-', "_")] {
                let lines = format!("Host: a\r\n{UPGRADE}{name}: forged\r\nX-Forward: kept\r\n");
                let head = forwarded(&lines, HostHeader::Backend, Forwarded::Replace);
                assert!(!head.contains("forged"), "{head}");
                assert!(head.contains("X-Forward: kept\r\n"), "{head}");
                let head = forwarded(&lines, HostHeader::Backend, Forwarded::Off);
                assert!(head.contains(&format!("{name}: forged\r\n")), "{head}");
            }
        }
        // Where the chain is trusted, no other spelling stands beside it.
        for name in ["X_Forwarded_For", "x-forwarded_host", "X_FORWARDED-PROTO"] {
            let lines = format!("Host: a\r\n{UPGRADE}{name}: forged\r\nX_Real_IP: kept\r\n");
            let head = forwarded(&lines, HostHeader::Backend, Forwarded::Append);
            assert!(!head.contains("forged") && head.contains("X_Real_IP: kept"), "{head}");
        }
    }

    #[test]
    fn a_host_and_a_protocol_that_came_are_kept_unless_empty() {
        let own = |lines: &str| {
            let lines = format!("Host: a\r\n{UPGRADE}{lines}");
            let head = forwarded(&lines, HostHeader::Backend, Forwarded::Append);
            head.split_once("192.0.2.7\r\n").unwrap().1.to_owned()
        };
        let came = "X-Forwarded-Host: app.example:8443\r\nX-Forwarded-Proto: https\r\n";
        assert_eq!(own(came), format!("{came}\r\n"));
        let none = "X-Forwarded-Host: a\r\nX-Forwarded-Proto: http\r\n\r\n";
        assert_eq!(own(""), none);
        assert_eq!(own("X-Forwarded-Host:\r\nX-Forwarded-Proto: \r\n"), none);
        let nominated = "Connection: x-forwarded-host\r\nX-Forwarded-Host: forged\r\n";
        assert_eq!(own(nominated), none);
    }

    #[test]
    fn the_way_of_a_request_is_kept_and_grows() {
        let via = "Via: 1.0 fred, 1.1 ws-proxy\r\nVIA: 1.1 other (x)\r\n";
        let head =
            forwarded(&format!("Host: a\r\n{via}{UPGRADE}"), HostHeader::Backend, Forwarded::Off);
        assert!(head.contains(via), "{head}");
        let request = RequestHead::parse(head.as_bytes()).unwrap();
        assert_eq!(via::hops(&request.fields), 2);
        let times: Vec<_> = request.fields.list("Via").collect();
        assert_eq!(times.last(), Some(&&b"1.1 ws-proxy"[..]));
    }

    #[test]
    fn one_request_id_takes_the_place_of_all_that_came() {
        for name in ["X-Request-ID", "x-request-id", "X_Request_ID", "X-REQUEST_ID"] {
            let lines = format!("Host: a\r\n{UPGRADE}{name}: came\r\n{name}: again\r\n");
            for mode in [Forwarded::Append, Forwarded::Replace, Forwarded::Off] {
                let head = forwarded(&lines, HostHeader::Backend, mode);
                assert!(!head.contains("came") && !head.contains("again"), "{head}");
                assert_eq!(head.matches(&format!("\r\nX-Request-ID: {ID}\r\n")).count(), 1);
            }
        }
        let lines = format!("Host: a\r\n{UPGRADE}X-Request-Ids: kept\r\ntraceparent: 00-x\r\n");
        let head = forwarded(&lines, HostHeader::Backend, Forwarded::Replace);
        assert!(head.contains("X-Request-Ids: kept\r\ntraceparent: 00-x\r\n"), "{head}");
    }

    #[test]
    fn many_connection_options_are_looked_up_without_comparing_all() {
        let names: String = (0..2_000).map(|number| format!("x{number:04}, ")).collect();
        let fields: String = (1_900..2_100).map(|number| format!("X{number:04}: y\r\n")).collect();
        let lines = format!("Host: a\r\n{UPGRADE}Connection: {names}\r\n{fields}");
        let head = forwarded(&lines, HostHeader::Backend, Forwarded::Off);
        assert_eq!(head.matches(": y\r\n").count(), 100);
        let request = format!("GET / HTTP/1.1\r\n{lines}{KEY}\r\n");
        let request = RequestHead::parse(request.as_bytes()).unwrap();
        assert!(ConnectionOptions::by(&request.fields).0.is_sorted());
    }

    #[test]
    fn a_nominated_chain_is_dropped_before_ours_is_written() {
        let lines = "Host: a\r\nConnection: Upgrade, X-Forwarded-For\r\nUpgrade: websocket\r\n\
            X-Forwarded-For: 10.0.0.1\r\n";
        let head = forwarded(lines, HostHeader::Backend, Forwarded::Append);
        assert_eq!(head.matches("X-Forwarded-For").count(), 1);
        assert!(head.contains("X-Forwarded-For: 192.0.2.7\r\n"));
    }

    fn answered(head: &str) -> String {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{UPGRADE}{KEY}\r\n");
        let request = RequestHead::parse(request.as_bytes()).unwrap();
        let request = UpgradeRequest::judge(&request, HandshakeRules::default()).unwrap();
        let response = ResponseHead::parse(head.as_bytes()).unwrap();
        let answer = Answer::judge(&response, &request, HandshakeRules::default()).unwrap();
        let (Answer::Switched { head, .. } | Answer::Declined { head, .. }) = answer.unwrap();
        String::from_utf8(head).unwrap()
    }

    #[test]
    fn the_backends_101_keeps_all_that_is_its_own() {
        let own = "Server: x\r\nSet-Cookie: a=b\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nset-cookie: c=d\r\n";
        let head = format!(
            "HTTP/1.1 101 Web Socket\r\nconnection: upgrade, x-hop\r\nupgrade: WebSocket\r\n\
             X-Hop: 1\r\nContent-Length: 0\r\n{own}\r\n"
        );
        assert_eq!(answered(&head), format!("HTTP/1.1 101 Web Socket\r\n{own}{UPGRADE}\r\n"));
    }

    #[test]
    fn a_refusal_keeps_its_framing() {
        assert_eq!(
            answered(
                "HTTP/1.0 403 No\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\
                 Keep-Alive: 5\r\n\r\n"
            ),
            "HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            answered("HTTP/1.1 404 No\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_backend_s_426_tells_what_to_upgrade_to() {
        let head = answered(
            "HTTP/1.1 426 No\r\nContent-Length: 0\r\nUpgrade: websocket, x/2\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13, 8\r\n\r\n",
        );
        assert_eq!(
            head,
            "HTTP/1.1 426 No\r\nContent-Length: 0\r\nUpgrade: websocket, x/2\r\n\
             Sec-WebSocket-Version: 13, 8\r\nConnection: close\r\nConnection: Upgrade\r\n\r\n"
        );
        // Where there is nothing to tell, and in another status, it is for the backend's hop.
        for status in [426, 400] {
            let upgrade = if status == 400 { "Upgrade: websocket\r\n" } else { "" };
            let head =
                answered(&format!("HTTP/1.1 {status} No\r\n{upgrade}Content-Length: 0\r\n\r\n"));
            assert!(!head.contains("pgrade"), "{head}");
        }
    }

    proptest! {
        #[test]
        fn forwarded_heads_parse_again(
            names in proptest::collection::vec("[A-Za-z-]{1,20}", 0..12),
            values in proptest::collection::vec("[ -~]{0,20}", 12),
            options in proptest::collection::vec(0usize..12, 0..4),
            preserve: bool,
        ) {
            let mut lines = String::from("Host: a\r\n");
            for (name, value) in names.iter().zip(&values) {
                lines += &format!("{name}: {value}\r\n");
            }
            for name in options.iter().filter_map(|&index| names.get(index)) {
                lines += &format!("Connection: {name}\r\n");
            }
            let head = format!("GET / HTTP/1.1\r\n{lines}{UPGRADE}{KEY}\r\n");
            // Random names may well be ones that a handshake must not have.
            let parsed = RequestHead::parse(head.as_bytes()).unwrap();
            let rules = HandshakeRules::default();
            let Ok(request) = UpgradeRequest::judge(&parsed, rules) else { return Ok(()) };
            let host = if preserve { HostHeader::Preserve } else { HostHeader::Backend };
            let (client, forwarded) = (Some([192, 0, 2, 7].into()), Forwarded::Append);
            let policy =
                ForwardPolicy { client, backend: "b:1", host, forwarded, request_id: ID };
            let out = request_head(&request, &policy);
            prop_assert_eq!(HeadScan::default().advance(&out), Scan::End(out.len()));
            let parsed = RequestHead::parse(&out).unwrap();
            let again = UpgradeRequest::judge(&parsed, rules);
            prop_assert!(again.is_ok(), "{:?} in {}", again, out.escape_ascii());
            let again = again.unwrap();
            prop_assert_eq!(again.key, request.key);
            prop_assert_eq!(again.authority, if preserve { "a" } else { "b:1" });
            prop_assert_eq!(again.fields.values("Content-Length").count(), 0);
        }
    }
}
