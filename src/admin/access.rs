//! Access to the admin listener: decides who may do what.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use data_encoding::BASE64;
use subtle::ConstantTimeEq;

use super::reply::Reply;
use super::request::Request;
use crate::net::name::Peer;
use crate::settings::Token;

/// Paths that need no token: the probes of a kubelet cannot read a secret, and they tell nothing
/// but whether this proxy is well.
const OPEN_PATHS: [&str; 2] = ["/livez", "/readyz"];

/// The rules of one listener.
#[derive(Debug)]
pub(super) struct Access {
    local: IpAddr,
    /// Further hosts, in lower case.
    hosts: Vec<String>,
    token: Option<Token>,
}

impl Access {
    /// Creates the rules of a listener on `local`.
    pub(super) fn new(local: SocketAddr, hosts: Vec<String>, token: Option<Token>) -> Self {
        Self { local: local.ip().to_canonical(), hosts, token }
    }

    /// Judges a request from `peer`, the address of a client.
    ///
    /// # Errors
    ///
    /// The answer to a request that may not pass.
    pub(super) fn judge(&self, request: &Request, peer: Peer) -> Result<(), Reply> {
        if !request.host.as_deref().is_none_or(|host| self.is_own(host)) {
            let problem = "this listener is not the Host that the request names: name its address, \
                           or add the name to hosts in [admin]";
            return Err(Reply::error(421, problem));
        }
        match &self.token {
            Some(_) if OPEN_PATHS.contains(&request.path.as_str()) => {}
            Some(token) => check_token(request, token)?,
            None if request.method.is_changing()
                && !peer.ip().is_none_or(|ip| ip.is_loopback()) =>
            {
                let problem = "changes are taken from this machine only: ask from a loopback \
                               address, or set token_file in [admin]";
                return Err(Reply::error(403, problem));
            }
            None => {}
        }
        if request.method.is_changing() {
            refuse_other_sites(request)?;
        }
        Ok(())
    }

    /// Returns whether a Host is one of the listener's own. Its port tells nothing: a page that has
    /// its own name lead here (DNS rebinding) names the right one, and a port that is forwarded the
    /// wrong one.
    fn is_own(&self, host: &str) -> bool {
        let host = without_port(host);
        if let Some(ip) = ip_of(host) {
            // No name leads here under an IP address.
            let is_local = self.local.is_unspecified() || ip == self.local || ip.is_loopback();
            // It can be written in several ways.
            return is_local || self.hosts.iter().any(|own| ip_of(own) == Some(ip));
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        let is = |own: &str| host.eq_ignore_ascii_case(own.strip_suffix('.').unwrap_or(own));
        is("localhost") || self.hosts.iter().any(|own| is(own))
    }
}

/// Returns the address that a host is, without its brackets.
fn ip_of(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Returns the host of an authority.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

/// Checks that a request shows the token.
fn check_token(request: &Request, token: &Token) -> Result<(), Reply> {
    let shown = request.field("authorization").ok().and_then(shown_token);
    // The time tells the length at most.
    if shown.is_some_and(|shown| shown.ct_eq(token.secret()).into()) {
        return Ok(());
    }
    let problem = "the token is missing or wrong: send Authorization: Bearer with the content of \
                   the token_file of [admin], or type it as the password in a browser";
    let refusal = Reply::error(401, problem).with("WWW-Authenticate", "Bearer");
    // A browser asks its user at the page, and at nothing that the page fetches afterwards.
    if request.path == "/" {
        return Err(refusal.with("WWW-Authenticate", "Basic realm=\"ws-proxy\""));
    }
    Err(refusal)
}

/// Returns the token in the value of Authorization: that of Bearer (RFC 6750, 2.1), or the password
/// of Basic (RFC 7617, 2), the only one of the two that a browser can be made to send.
fn shown_token(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let space = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, credentials) = (&value[..space], value[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"Bearer") {
        Some(credentials.into())
    } else if scheme.eq_ignore_ascii_case(b"Basic") {
        let pair = BASE64.decode(credentials).ok()?;
        let colon = pair.iter().position(|&byte| byte == b':')?;
        Some(pair[colon + 1..].to_vec().into())
    } else {
        None
    }
}

/// Refuses a change that a page of another site asks for, by the fields that browsers send and
/// pages cannot forge.
fn refuse_other_sites(request: &Request) -> Result<(), Reply> {
    // Behind a TLS terminator, the page of this very host has the other scheme.
    let is_own = |origin: &[u8]| {
        request.host.as_ref().is_some_and(|host| {
            ["http", "https"]
                .iter()
                .any(|scheme| origin.eq_ignore_ascii_case(format!("{scheme}://{host}").as_bytes()))
        })
    };
    let origin_is_own = match request.field("origin") {
        Ok(origin) => is_own(origin),
        Err(count) => count == 0,
    };
    let site_is_own = match request.field("sec-fetch-site") {
        Ok(site) => [&b"same-origin"[..], b"none"].contains(&site),
        Err(count) => count == 0,
    };
    if origin_is_own && site_is_own {
        return Ok(());
    }
    let problem = "a page of another site may not change anything here: use this listener's own \
                   page, or a program that sends no Origin";
    Err(Reply::error(403, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::request::Announced;
    use crate::handshake::samples::table;

    /// The status of a request, 200 if it may pass.
    fn status(access: &Access, peer: &str, head: &str) -> u16 {
        let request = Announced::parse(head.as_bytes()).unwrap().request;
        let peer = Peer::Ip(peer.parse().unwrap(), 1);
        access.judge(&request, peer).map_or_else(|reply| reply.status, |()| 200)
    }

    fn access(local: &str, token: Option<&str>) -> Access {
        let local = SocketAddr::new(local.parse().unwrap(), 9600);
        let hosts = ["proxy.example", "198.51.100.1", "[2001:db8::a]"].map(str::to_owned);
        Access::new(local, hosts.to_vec(), token.map(Token::of))
    }

    #[test]
    fn only_own_hosts_pass() {
        let own = "localhost localhost:1 LocalHost. 127.0.0.1 127.0.0.1:9600 [::1] [::1]:9600 \
                   proxy.example Proxy.Example.:80 192.0.2.1 192.0.2.1:9600 [::ffff:127.0.0.1] \
                   198.51.100.1 [2001:db8::a] [2001:DB8:0::A]:9600";
        let foreign = "evil.example localhost.evil.example 192.0.2.2 192.0.2.2:9600 [2001:db8::1] \
                       127.0.0.1.evil.example sub.proxy.example";
        let get = |host| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let access_to_one = access("192.0.2.1", None);
        for (hosts, expected) in table([(own, 200), (foreign, 421)]) {
            for host in hosts.split_whitespace() {
                assert_eq!(status(&access_to_one, "127.0.0.1", &get(host)), expected, "{host}");
            }
        }
        // On all addresses any address is its own, and no name.
        for local in table(["0.0.0.0", "::"]) {
            let all = access(local, None);
            for host in ["192.0.2.2:9600", "[2001:db8::1]", "10.1.2.3"] {
                assert_eq!(status(&all, "192.0.2.9", &get(host)), 200, "{host}");
            }
            assert_eq!(status(&all, "192.0.2.9", &get("evil.example")), 421);
        }
        assert_eq!(status(&access_to_one, "127.0.0.1", "GET / HTTP/1.0\r\n\r\n"), 200);
    }

    #[test]
    fn without_a_token_only_this_machine_changes_anything() {
        let access = access("0.0.0.0", None);
        let asks = |method| format!("{method} /x HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n");
        for (method, peer, expected) in table([
            ("GET", "192.0.2.9", 200),
            ("HEAD", "192.0.2.9", 200),
            ("POST", "192.0.2.9", 403),
            ("DELETE", "2001:db8::1", 403),
            ("POST", "127.0.0.1", 200),
            ("DELETE", "127.9.9.9", 200),
            ("DELETE", "::1", 200),
        ]) {
            assert_eq!(status(&access, peer, &asks(method)), expected, "{method} {peer}");
        }
    }

    #[test]
    fn a_token_is_needed_everywhere_but_for_probes() {
        let access = access("0.0.0.0", Some("0123456789abcdef"));
        let ask = |start: &str, field: &str| {
            let head = format!("{start} HTTP/1.1\r\nHost: 192.0.2.1\r\n{field}\r\n");
            status(&access, "192.0.2.9", &head)
        };
        let good = "Authorization: Bearer 0123456789abcdef\r\n";
        for start in table(["GET /", "HEAD /metrics", "POST /drain", "DELETE /tunnels/1"]) {
            assert_eq!(ask(start, good), 200, "{start}");
            for bad in [
                "",
                "Authorization: 0123456789abcdef\r\n",
                "Authorization: Basic 0123456789abcdef\r\n",
                "Authorization: Bearer 0123456789abcdeF\r\n",
                "Authorization: Bearer 0123456789abcde\r\n",
                "Authorization: Bearer \r\n",
                "Authorization: Bearer 0123456789abcdef0\r\n",
                &good.repeat(2),
            ] {
                assert_eq!(ask(start, bad), 401, "{start} {bad:?}");
            }
        }
        assert_eq!(ask("GET /", &good.replace("Bearer", "bearer")), 200);
        for start in table(["GET /livez", "HEAD /readyz", "GET /readyz?x"]) {
            assert_eq!(ask(start, ""), 200, "{start}");
        }
    }

    /// The field with Basic credentials.
    fn basic(pair: &str) -> String {
        format!("Authorization: Basic {}\r\n", BASE64.encode(pair.as_bytes()))
    }

    #[test]
    fn the_password_of_basic_credentials_is_a_token_too() {
        let access = access("0.0.0.0", Some("0123456789abcdef"));
        for (field, expected) in table([
            (basic(":0123456789abcdef"), 200),
            (basic("anybody:0123456789abcdef"), 200),
            (basic("anybody:0123456789abcdef").replace("Basic", "bAsIc"), 200),
            (basic("anybody:0123456789abcdeF"), 401),
            (basic("anybody:0123456789abcdef "), 401),
            (basic("anybody:x:0123456789abcdef"), 401),
            (basic("0123456789abcdef:anybody"), 401),
            (basic("0123456789abcdef"), 401),
            (basic("anybody:"), 401),
            (basic(""), 401),
            (basic("me:0123456789abcdef").replace("==\r", "\r"), 401),
            ("Authorization: Basic anybody:0123456789abcdef\r\n".to_owned(), 401),
            ("Authorization: Basic\r\n".to_owned(), 401),
            (basic("anybody:0123456789abcdef").repeat(2), 401),
            // Everything else is judged as ever.
            (basic(":0123456789abcdef") + "Origin: http://evil.example\r\n", 403),
            (basic(":0123456789abcdef") + "Origin: null\r\n", 403),
            (basic(":0123456789abcdef") + "Sec-Fetch-Site: cross-site\r\n", 403),
        ]) {
            for start in ["POST /drain", "DELETE /tunnels/1"] {
                let head = format!("{start} HTTP/1.1\r\nHost: 192.0.2.1\r\n{field}\r\n");
                assert_eq!(status(&access, "192.0.2.9", &head), expected, "{start} {field:?}");
            }
        }
        let foreign = format!("GET / HTTP/1.1\r\nHost: evil.example\r\n{}\r\n", basic(":x"));
        assert_eq!(status(&access, "192.0.2.9", &foreign), 421);
    }

    #[test]
    fn a_browser_is_asked_for_the_token_at_the_page_alone() {
        let access = access("127.0.0.1", Some("0123456789abcdef"));
        let peer = Peer::Ip([127, 0, 0, 1].into(), 1);
        for (start, expected) in table([
            ("GET /", &["Bearer", "Basic realm=\"ws-proxy\""][..]),
            ("HEAD /?x", &["Bearer", "Basic realm=\"ws-proxy\""]),
            ("GET /status", &["Bearer"]),
            ("DELETE /tunnels/1", &["Bearer"]),
        ]) {
            let head = format!("{start} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let request = Announced::parse(head.as_bytes()).unwrap().request;
            let refusal = access.judge(&request, peer).unwrap_err();
            let challenges: Vec<_> = refusal.fields.iter().map(|(_, value)| &**value).collect();
            assert_eq!(challenges, expected, "{start}");
        }
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let access = access("127.0.0.1", None);
        for (fields, expected) in table([
            ("", 200),
            ("Origin: http://127.0.0.1:9600\r\n", 200),
            ("Origin: http://127.0.0.1:9600\r\nSec-Fetch-Site: same-origin\r\n", 200),
            ("Sec-Fetch-Site: none\r\n", 200),
            ("Origin: http://evil.example\r\n", 403),
            ("Origin: https://127.0.0.1:9600\r\n", 200),
            ("Origin: ftp://127.0.0.1:9600\r\n", 403),
            ("Origin: http://127.0.0.1:9601\r\n", 403),
            ("Origin: http://127.0.0.1\r\n", 403),
            ("Origin: null\r\n", 403),
            ("Origin: http://127.0.0.1:9600\r\nOrigin: http://127.0.0.1:9600\r\n", 403),
            ("Sec-Fetch-Site: cross-site\r\n", 403),
            ("Sec-Fetch-Site: same-site\r\n", 403),
            ("Origin: http://127.0.0.1:9600\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ]) {
            let head = |method| {
                format!("{method} /drain HTTP/1.1\r\nHost: 127.0.0.1:9600\r\n{fields}\r\n")
            };
            assert_eq!(status(&access, "127.0.0.1", &head("POST")), expected, "{fields:?}");
            assert_eq!(status(&access, "127.0.0.1", &head("DELETE")), expected, "{fields:?}");
            assert_eq!(status(&access, "127.0.0.1", &head("GET")), 200, "{fields:?}");
        }
    }
}
