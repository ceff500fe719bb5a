//! The client's opening handshake, judged (RFC 6455, 4.2.1).

use std::borrow::Cow;

use super::error_response::ErrorResponse;
use super::fields::{Fields, room_for};

/// A request that is a WebSocket upgrade and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct UpgradeRequest<'a> {
    /// What is asked for, in origin-form.
    pub(crate) target: Cow<'a, str>,
    /// Whom the client believes to talk to: the authority of an absolute-form target, else its Host.
    pub(crate) authority: &'a str,
    /// The value of `Sec-WebSocket-Key`.
    pub(crate) key: &'a str,
    /// Every field as sent.
    pub(crate) fields: Fields<'a>,
}

impl<'a> UpgradeRequest<'a> {
    /// Judges a complete head, its blank line included, that a [`HeadScan`](super::scan::HeadScan) has passed.
    ///
    /// # Errors
    ///
    /// The answer that the client gets instead. No backend has heard of the request then.
    pub(crate) fn parse(head: &'a [u8]) -> Result<Self, ErrorResponse> {
        let mut headers = room_for(head);
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(head) {
            Ok(httparse::Status::Complete(end)) if end == head.len() => {}
            Ok(_) => {
                return Err(ErrorResponse::malformed(
                    "the request head does not end where it should",
                ));
            }
            Err(error) => return Err(ErrorResponse::malformed(what_is_wrong(error))),
        }
        let (Some(method), Some(raw_target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(ErrorResponse::malformed("the request line is not complete"));
        };
        let fields = Fields::new(head, request.headers)
            .ok_or_else(|| ErrorResponse::malformed("the header lines cannot be told apart"))?;

        if version != 1 {
            return Err(ErrorResponse::malformed("a WebSocket needs HTTP/1.1"));
        }
        let (target, target_authority) = split_target(raw_target)?;
        let host = single_text(&fields, "Host", ErrorResponse::malformed)?;
        if !is_authority(host) {
            return Err(ErrorResponse::malformed("the Host field is not a host and port"));
        }
        refuse_body(&fields)?;

        if !fields.lists("Connection", "upgrade") {
            return Err(ErrorResponse::not_websocket(
                "this port takes WebSocket upgrades only: Connection does not list upgrade",
            ));
        }
        if !fields.lists("Upgrade", "websocket") {
            return Err(ErrorResponse::not_websocket(
                "this port takes WebSocket upgrades only: Upgrade does not list websocket",
            ));
        }
        if method != "GET" {
            return Err(ErrorResponse::method());
        }
        // The version comes before the key: another version may have another kind of key.
        let protocol_version =
            single_text(&fields, "Sec-WebSocket-Version", ErrorResponse::not_websocket)?;
        if protocol_version != "13" {
            return Err(ErrorResponse::version());
        }
        let key = single_text(&fields, "Sec-WebSocket-Key", ErrorResponse::not_websocket)?;
        if !is_key(key) {
            return Err(ErrorResponse::not_websocket(
                "Sec-WebSocket-Key is not 16 bytes in base64",
            ));
        }

        Ok(Self { target, authority: target_authority.unwrap_or(host), key, fields })
    }

    /// The value of `Origin`, if the client is a browser.
    ///
    /// # Errors
    ///
    /// 400 if there are several (RFC 6454, 7.3).
    pub(crate) fn origin(&self) -> Result<Option<&'a [u8]>, ErrorResponse> {
        match self.fields.single("Origin") {
            Ok(origin) => Ok(Some(origin)),
            Err(0) => Ok(None),
            Err(_) => Err(ErrorResponse::malformed("more than one Origin field")),
        }
    }
}

/// The parser's errors in the client's words.
fn what_is_wrong(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a header line has a bad name",
        httparse::Error::HeaderValue => "a header line has a bad value",
        httparse::Error::NewLine => "a line does not end in CRLF",
        httparse::Error::Token => "the request line is malformed",
        httparse::Error::TooManyHeaders => "too many header fields",
        httparse::Error::Version => "the request line does not end in HTTP/1.1",
        _ => "the request head is malformed",
    }
}

/// The only value of a field that must be there once, as text.
fn single_text<'a>(
    fields: &Fields<'a>,
    name: &str,
    reject: fn(String) -> ErrorResponse,
) -> Result<&'a str, ErrorResponse> {
    let value = fields.single(name).map_err(|number| match number {
        0 => reject(format!("the {name} field is missing")),
        _ => reject(format!("more than one {name} field")),
    })?;
    std::str::from_utf8(value).map_err(|_| reject(format!("the {name} field is not ASCII")))
}

/// An upgrade has no body: its bytes would be the first of the tunnel (RFC 9110, 7.8; RFC 9112, 6.3).
fn refuse_body(fields: &Fields<'_>) -> Result<(), ErrorResponse> {
    if fields.values("Transfer-Encoding").next().is_some() {
        return Err(ErrorResponse::malformed(
            "a WebSocket upgrade has no body: Transfer-Encoding is refused",
        ));
    }
    if fields.values("Content-Length").any(|length| length != b"0") {
        return Err(ErrorResponse::malformed(
            "a WebSocket upgrade has no body: Content-Length must be 0",
        ));
    }
    Ok(())
}

/// Brings a target to origin-form, and gives the authority that an absolute-form one names
/// (RFC 9112, 3.2.1 and 3.2.2).
///
/// More characters pass than RFC 3986 allows, since browsers send some of them bare; what would change
/// where the target ends (white space, a fragment, control bytes) or how it reads (bytes beyond ASCII) does not.
fn split_target(target: &str) -> Result<(Cow<'_, str>, Option<&str>), ErrorResponse> {
    if target.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(ErrorResponse::malformed(
            "the request target has a byte that must be percent-encoded",
        ));
    }
    if target.contains('#') {
        return Err(ErrorResponse::malformed("the request target has a fragment"));
    }
    if target.starts_with('/') {
        return Ok((Cow::Borrowed(target), None));
    }
    let absolute = target.split_once("://").filter(|(scheme, _)| {
        ["ws", "http", "wss", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
    });
    let Some((_, rest)) = absolute else {
        return Err(ErrorResponse::malformed(
            "the request target is neither a path nor an absolute URI",
        ));
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !is_authority(authority) {
        return Err(ErrorResponse::malformed(
            "the request target's authority is not a host and port",
        ));
    }
    let path = match path.as_bytes().first() {
        Some(b'/') => Cow::Borrowed(path),
        _ => Cow::Owned(format!("/{path}")),
    };
    Ok((path, Some(authority)))
}

/// Whether this is `uri-host [ ":" port ]` with a host that is not empty (RFC 9110, 7.2; RFC 3986, 3.2.2).
fn is_authority(text: &str) -> bool {
    let (host_is_good, rest) = if let Some(bracketed) = text.strip_prefix('[') {
        match bracketed.split_once(']') {
            Some((address, rest)) => (address.parse::<std::net::Ipv6Addr>().is_ok(), rest),
            None => return false,
        }
    } else {
        let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
        (!host.is_empty() && host.bytes().all(good), rest)
    };
    let port_is_good = match rest.strip_prefix(':') {
        Some(port) => {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && (port.is_empty() || port.parse::<u16>().is_ok())
        }
        None => rest.is_empty(),
    };
    host_is_good && port_is_good
}

/// Whether this is 16 bytes in base64 (RFC 6455, 4.2.1, item 5). The four bits that the last character has too
/// many may be anything: RFC 4648, 3.5 leaves that to the decoder, and the accept value is made of the text.
fn is_key(key: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    key.len() == 24 && key.strip_suffix("==").is_some_and(|digits| digits.bytes().all(good))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: [&str; 6] = [
        "GET /chat HTTP/1.1",
        "Host: example.com",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ];

    /// A head of the good lines, with `changes` in place of those that begin alike, and added where none does.
    fn head(changes: &[&str]) -> String {
        let mut lines: Vec<String> = GOOD.iter().map(ToString::to_string).collect();
        for change in changes {
            let name = |line: &str| line.split([':', ' ']).next().unwrap_or_default().to_owned();
            match lines.iter_mut().find(|line| name(line) == name(change)) {
                Some(line) => *line = (*change).to_owned(),
                None => lines.push((*change).to_owned()),
            }
        }
        lines.join("\r\n") + "\r\n\r\n"
    }

    fn status(head: &str) -> u16 {
        UpgradeRequest::parse(head.as_bytes()).map_or_else(|reject| reject.status, |_| 101)
    }

    #[test]
    fn the_upgrades_of_the_field_pass() {
        let passing: [&[&str]; 12] = [
            &[],
            &["Connection: keep-alive, Upgrade"],
            &["Connection: keep-alive", "connection: ,UPGRADE,"],
            &["Upgrade: h2c, WebSocket"],
            &["Host: [::1]:8080"],
            &["Host: under_score.example:"],
            &["Content-Length: 0"],
            &["GET http://other.example:81/chat?x HTTP/1.1"],
            &["GET /chat?token={a|b}&c=%zz HTTP/1.1"],
            &["GET / HTTP/1.1"],
            &["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAB=="],
            &["X-Utf8: gr\u{fc}n"],
        ];
        for changes in passing {
            assert_eq!(status(&head(changes)), 101, "{changes:?}");
        }
        assert_eq!(status(&format!("\r\n{}", head(&[]))), 101);
    }

    #[test]
    fn everything_else_is_refused_with_its_status() {
        let refused: [(u16, &str); 38] = [
            (400, "GET /chat HTTP/1.0"),
            (400, "GET /chat HTTP/2.0"),
            (400, "GET  /chat HTTP/1.1"),
            (400, "GET /chat  HTTP/1.1"),
            (400, "GET /chat HTTP/1.1 "),
            (400, "GET /chat http/1.1"),
            (400, "GET /chat"),
            (400, "GET chat HTTP/1.1"),
            (400, "GET * HTTP/1.1"),
            (400, "GET example.com:80 HTTP/1.1"),
            (400, "GET /chat#x HTTP/1.1"),
            (400, "GET /gr\u{fc}n HTTP/1.1"),
            (400, "GET ftp://example.com/ HTTP/1.1"),
            (400, "GET http:/// HTTP/1.1"),
            (400, "GET http://user@example.com/ HTTP/1.1"),
            (400, "Host:"),
            (400, "Host: a b"),
            (400, "Host: user@example.com"),
            (400, "Host: example.com:99999"),
            (400, "Host: example.com:x"),
            (400, "Host: [::1"),
            (400, "Host: ex/ample"),
            (400, "host: second.example"),
            (400, "X-Space : before the colon"),
            (400, ": no name"),
            (400, "no colon"),
            (400, "X(bad)name: x"),
            (400, "Content-Length: 1"),
            (400, "Content-Length: +0"),
            (400, "Transfer-Encoding: chunked"),
            (400, "Connection: close"),
            (400, "Connection: not-upgrade"),
            (400, "Upgrade: h2c"),
            (426, "Sec-WebSocket-Version: 8"),
            (426, "Sec-WebSocket-Version: 13, 8"),
            (400, "sec-websocket-version: 13"),
            (400, "Sec-WebSocket-Key: dG9vIHNob3J0"),
            (400, "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (expected, change) in refused {
            assert_eq!(status(&head(&[change])), expected, "{change:?}");
        }
        for line in &GOOD[1..] {
            let without = head(&[]).replace(&format!("{line}\r\n"), "");
            assert_eq!(status(&without), 400, "without {line}");
        }
        assert_eq!(status(&head(&[]).replace("GET", "POST")), 405);
        assert_eq!(status(&head(&["Upgrade: x"]).replace("GET", "POST")), 400);
    }

    #[test]
    fn an_absolute_target_names_the_authority() {
        let parsed = |line: &str| {
            let head = head(&[line]);
            let request = UpgradeRequest::parse(head.as_bytes()).unwrap();
            (request.target.into_owned(), request.authority.to_owned())
        };
        let expect = |target: &str, authority: &str| (target.to_owned(), authority.to_owned());
        assert_eq!(parsed("GET /a?b HTTP/1.1"), expect("/a?b", "example.com"));
        assert_eq!(parsed("GET ws://o:81/a?b HTTP/1.1"), expect("/a?b", "o:81"));
        assert_eq!(parsed("GET HTTP://o?b HTTP/1.1"), expect("/?b", "o"));
        assert_eq!(parsed("GET http://[::1]:8 HTTP/1.1"), expect("/", "[::1]:8"));
    }

    proptest! {
        #[test]
        fn random_heads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = UpgradeRequest::parse(&bytes);
        }

        #[test]
        fn damaged_heads_never_panic(at in 0usize..160, byte: u8, cut in 0usize..160) {
            let mut bytes = head(&["Origin: https://a.example"]).into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = UpgradeRequest::parse(&bytes);
            bytes.truncate(cut);
            let _ = UpgradeRequest::parse(&bytes);
        }
    }
}
