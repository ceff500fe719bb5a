//! The client's opening handshake, judged (RFC 6455, 4.2.1).

use std::borrow::Cow;

use super::asked::Asked;
use super::error_response::ErrorResponse;
use super::fields::Fields;
use super::http::{RequestHead, Version};
use super::target::{Target, is_authority, is_loose_ipv6};
use super::via;

/// Most times that a request may have come through ws-proxy already.
pub(super) const MAX_HOPS: usize = 5;

/// Rules of a section for both heads of a handshake.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HandshakeRules {
    /// Nothing is passed that RFC 6455 and RFC 9112 forbid, though programs in use depend on it.
    pub(crate) is_strict: bool,
    /// The client's Host goes on, so that it has to be well formed.
    pub(crate) preserves_host: bool,
}

/// A request that is a WebSocket upgrade, and has no body.
#[derive(Clone, Debug)]
pub(crate) struct UpgradeRequest<'a> {
    /// Path and query.
    pub(crate) target: Cow<'a, str>,
    /// Host and port that the client addresses: those of an absolute-form target, else of `Host`
    /// (RFC 9112, 3.3).
    pub(crate) authority: &'a str,
    /// Value of `Sec-WebSocket-Key`.
    pub(crate) key: &'a str,
    /// Fields as sent.
    pub(crate) fields: &'a Fields<'a>,
}

impl<'a> UpgradeRequest<'a> {
    /// Judges a parsed head. The checks run from HTTP to the handshake, and the first that fails
    /// names the answer.
    ///
    /// # Errors
    ///
    /// The response for the client. No backend is to hear of the request then.
    pub(crate) fn judge(
        head: &'a RequestHead<'a>,
        rules: HandshakeRules,
    ) -> Result<Self, ErrorResponse> {
        if head.version != Version::Http11 {
            return Err(ErrorResponse::old_version());
        }
        let target =
            Target::parse(head.target, rules.is_strict).map_err(ErrorResponse::malformed)?;
        let fields = &head.fields;
        let host = single_text(fields, "Host", ErrorResponse::malformed)?;
        let is_replaced = !rules.is_strict && !rules.preserves_host;
        let is_good = is_authority(host) || is_replaced && is_loose_ipv6(host);
        if !is_good {
            return Err(ErrorResponse::malformed("the Host field is not a host and port"));
        }
        check_no_body(fields)?;

        if !fields.lists("Connection", "upgrade") {
            return Err(ErrorResponse::no_upgrade("Connection does not list upgrade"));
        }
        if !fields.lists("Upgrade", "websocket") {
            return Err(ErrorResponse::no_upgrade("Upgrade does not list websocket"));
        }
        if head.method != "GET" {
            return Err(ErrorResponse::method());
        }
        // The version comes before the key, since another version may define another key.
        let version = single_text(fields, "Sec-WebSocket-Version", ErrorResponse::not_websocket)?;
        if version != "13" {
            return Err(ErrorResponse::version());
        }
        let key = single_text(fields, "Sec-WebSocket-Key", ErrorResponse::not_websocket)?;
        if rules.is_strict && !is_key(key) {
            return Err(ErrorResponse::not_websocket(
                "Sec-WebSocket-Key is not 16 bytes in base64",
            ));
        }
        if !is_token(key) {
            return Err(ErrorResponse::not_websocket("Sec-WebSocket-Key is not one token"));
        }
        if via::hops(fields) >= MAX_HOPS {
            return Err(ErrorResponse::looped(MAX_HOPS));
        }
        let authority = target.authority.unwrap_or(host);
        Ok(Self { target: target.path, authority, key, fields })
    }

    /// Returns what it asks for.
    pub(crate) fn asked(&self) -> Asked<'_> {
        let Self { target, authority, fields, .. } = self;
        Asked { method: "GET", target, authority: Some(authority), fields }
    }

    /// Returns the value of `Origin`, or `None` if there is none, as from most clients that are no
    /// browsers.
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

/// Returns the value of a field that must be there exactly once, as text. `error` makes the
/// response from the reason.
pub(super) fn single_text<'a>(
    fields: &Fields<'a>,
    name: &str,
    error: fn(String) -> ErrorResponse,
) -> Result<&'a str, ErrorResponse> {
    let value = fields.single(name).map_err(|count| match count {
        0 => error(format!("the {name} field is missing")),
        _ => error(format!("more than one {name} field")),
    })?;
    std::str::from_utf8(value).map_err(|_| error(format!("the {name} field is not ASCII")))
}

/// Checks that no body follows the head, whose bytes would become the first of the tunnel
/// (RFC 9112, 6.3).
fn check_no_body(fields: &Fields<'_>) -> Result<(), ErrorResponse> {
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

/// Returns whether `key` is a token of visible ASCII, one and not a list. Chargers, controllers and
/// some libraries send keys of other lengths and alphabets, and the accept value, which alone has
/// to prove that the backend has read the key, is computed from any text.
fn is_token(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

/// Returns whether `key` is 16 bytes in base64 (RFC 6455, 4.2.1, item 5).
///
/// The last digit has four bits more than the 16 bytes fill. They may be set, since RFC 4648, 3.5
/// leaves that to the decoder and the accept value is computed from the text.
fn is_key(key: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    key.len() == 24 && key.strip_suffix("==").is_some_and(|digits| digits.bytes().all(is_digit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handshake::samples::{KEY, table, upgrade, upgrade_but};

    /// Status and detail of the answer to a head; 101 and the authority for an upgrade.
    fn judge(head: &str) -> (u16, String) {
        judge_by(head, HandshakeRules::default())
    }

    const STRICT: HandshakeRules = HandshakeRules { is_strict: true, preserves_host: false };

    fn judge_by(head: &str, rules: HandshakeRules) -> (u16, String) {
        let judged =
            RequestHead::parse(head.as_bytes()).map_err(ErrorResponse::from).and_then(|head| {
                UpgradeRequest::judge(&head, rules).map(|request| request.authority.to_owned())
            });
        judged.map_or_else(|error| (error.status, error.detail), |authority| (101, authority))
    }

    fn status(head: &str) -> u16 {
        judge(head).0
    }

    const CONNECTION: &str = "Connection: Upgrade\r\n";
    const UPGRADE: &str = "Upgrade: websocket\r\n";

    #[test]
    fn every_spelling_of_an_upgrade_passes() {
        let rows = table([
            ("GET", "GET"),
            ("GET", "\r\nGET"),
            (CONNECTION, "Connection: keep-alive, Upgrade\r\n"),
            (CONNECTION, "Connection: keep-alive\r\nconnection: ,UPGRADE,\r\n"),
            (UPGRADE, "Upgrade: h2c, WebSocket\r\n"),
            ("example.com", "[::1]:8080"),
            ("example.com", "under_score.example:"),
            (UPGRADE, "Upgrade: websocket\r\nContent-Length: 0\r\n"),
            (UPGRADE, "Upgrade: websocket\r\nX-Utf8: gr\u{fc}n\r\n"),
            ("/chat", "/chat?token={a|b}&c=%zz"),
            (KEY, "AAAAAAAAAAAAAAAAAAAAAB=="),
        ]);
        for (part, replacement) in rows {
            let head = upgrade_but(part, replacement);
            assert_eq!(judge_by(&head, STRICT).0, 101, "{head:?}");
            assert_eq!(status(&head), 101, "{head:?}");
        }
    }

    #[test]
    fn an_absolute_target_overrides_host() {
        assert_eq!(judge(&upgrade("")), (101, "example.com".to_owned()));
        let absolute = upgrade_but("/chat", "http://other.example:81/chat?x");
        assert_eq!(judge(&absolute), (101, "other.example:81".to_owned()));
    }

    #[test]
    fn every_other_request_is_answered_with_its_status() {
        const HOST: &str = "Host: example.com\r\n";
        let rows = table([
            // Not HTTP, or not HTTP/1.1.
            (400, "HTTP/1.1", "HTTP/1.0"),
            (400, "HTTP/1.1", "HTTP/2.0"),
            (400, "HTTP/1.1", "HTTP/1.1 "),
            (400, "HTTP/1.1", "http/1.1"),
            (400, " HTTP/1.1", ""),
            (400, "GET ", "GET  "),
            (400, "/chat", "/chat "),
            (400, HOST, "Host: example.com\r\nX-Space : before the colon\r\n"),
            (400, HOST, "Host: example.com\r\n: no name\r\n"),
            (400, HOST, "Host: example.com\r\nno colon\r\n"),
            (400, HOST, "Host: example.com\r\nX(bad)name: x\r\n"),
            // Target, Host and body.
            (400, "/chat", "chat"),
            (400, "/chat", "http://user@example.com/"),
            (400, HOST, ""),
            (400, "example.com", ""),
            (400, "example.com", "example.com:65536"),
            (400, "example.com", "gr\u{fc}n.example"),
            (400, HOST, "Host: example.com\r\nhost: second.example\r\n"),
            (400, HOST, "Host: example.com\r\nContent-Length: 1\r\n"),
            (400, HOST, "Host: example.com\r\nContent-Length: +0\r\n"),
            (400, HOST, "Host: example.com\r\nTransfer-Encoding: chunked\r\n"),
            // The handshake.
            (400, CONNECTION, ""),
            (400, CONNECTION, "Connection: close\r\n"),
            (400, CONNECTION, "Connection: not-upgrade\r\n"),
            (400, UPGRADE, ""),
            (400, UPGRADE, "Upgrade: h2c\r\n"),
            (405, "GET", "POST"),
            (405, "GET", "get"),
            (400, "Sec-WebSocket-Version: 13\r\n", ""),
            (400, "Version: 13", "Version: 13\r\nsec-websocket-version: 13"),
            (426, "Version: 13", "Version: 8"),
            (426, "Version: 13", "Version: 13, 8"),
            (400, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
            (400, "Sec-WebSocket-Key: ", "sec-websocket-key: x\r\nSec-WebSocket-Key: "),
        ]);
        for (expected, part, replacement) in rows {
            let head = upgrade_but(part, replacement);
            assert_eq!(status(&head), expected, "{head:?}");
        }
    }

    #[test]
    fn the_first_check_that_fails_names_the_answer() {
        let old_version = ErrorResponse::old_version().detail;
        let no_connection = ErrorResponse::no_upgrade("Connection does not list upgrade").detail;
        let no_upgrade = ErrorResponse::no_upgrade("Upgrade does not list websocket").detail;
        // Each row mends what the row before it was answered for.
        let rows = table([
            ("", "", 400, "the request line does not end in HTTP/1.1"),
            ("HTTP/2.0", "HTTP/1.0", 400, "a header line has a bad name"),
            ("no colon\r\n", "", 400, &old_version),
            ("HTTP/1.0", "HTTP/1.1", 400, "the request target has a fragment"),
            ("/#", "/", 400, "the Host field is missing"),
            ("Hos:", "Host:", 400, "the Host field is not a host and port"),
            ("a/b", "a", 400, "a WebSocket upgrade has no body: Transfer-Encoding is refused"),
            (
                "Transfer-Encoding: chunked\r\n",
                "",
                400,
                "a WebSocket upgrade has no body: Content-Length must be 0",
            ),
            ("Length: 1", "Length: 0", 400, &no_connection),
            ("close", "upgrade", 400, &no_upgrade),
            ("h2c", "websocket", 405, "a WebSocket is opened with GET"),
            ("POST", "GET", 400, "the Sec-WebSocket-Version field is missing"),
            ("Versio:", "Version:", 426, "Sec-WebSocket-Version must be 13"),
            ("8", "13", 400, "the Sec-WebSocket-Key field is missing"),
            ("Ke:", "Key:", 400, "Sec-WebSocket-Key is not 16 bytes in base64"),
            ("short", KEY, 101, "a"),
        ]);
        let mut head = "POST /# HTTP/2.0\r\nHos: a/b\r\nTransfer-Encoding: chunked\r\n\
            Content-Length: 1\r\nConnection: close\r\nUpgrade: h2c\r\nno colon\r\n\
            Sec-WebSocket-Versio: 8\r\nSec-WebSocket-Ke: short\r\n\r\n"
            .to_owned();
        for (fault, mend, status, detail) in rows {
            head = if fault.is_empty() { head } else { head.replacen(fault, mend, 1) };
            assert_eq!(judge_by(&head, STRICT), (status, detail.to_owned()), "{head:?}");
        }
    }

    #[test]
    fn keys_are_16_bytes_in_base64() {
        for key in table([KEY, "AAAAAAAAAAAAAAAAAAAAAB==", "++++++++++//////////09=="]) {
            assert!(is_key(key), "{key}");
        }
        let invalid = table([
            "",
            "dG9vIHNob3J0",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZSE=",
            "dGhlIHNhbXBsZSBub25jZSEh",
            "dGhlIHNhbXBsZSBub25j*Q==",
            "dGhlIHNhbXBsZSBub25jZQ= =",
            "dGhlIHNhbXBsZSBub25j-_==",
        ]);
        for key in invalid {
            assert!(!is_key(key), "{key}");
        }
    }

    #[test]
    fn what_programs_in_use_send_passes_unless_strict() {
        let rows = table([
            // Chargers, controllers and libraries with keys of other lengths.
            (KEY, "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="),
            (KEY, "MTIzNDU2Nzg5MDEyMzQ1"),
            (KEY, "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0"),
            (KEY, "MTIzNDU2Nzg="),
            (KEY, "x"),
            (KEY, "not-base64-at-all!"),
            ("example.com", "::1"),
            ("example.com", "[fe80::1%25eth0]:80"),
            ("/chat", "/gr\u{fc}n"),
        ]);
        for (part, replacement) in rows {
            let head = upgrade_but(part, replacement);
            assert_eq!(status(&head), 101, "{head:?}");
            assert_eq!(judge_by(&head, STRICT).0, 400, "{head:?}");
        }
        // The client's Host goes on as it is, so it must be well formed.
        let preserve = HandshakeRules { preserves_host: true, ..HandshakeRules::default() };
        assert_eq!(judge_by(&upgrade_but("example.com", "::1"), preserve).0, 400);
        let never = table([
            (KEY, ""),
            (KEY, "a b"),
            (KEY, "a,b"),
            (KEY, "gr\u{fc}n"),
            ("example.com", "::1, ::2"),
            ("/chat", "/gr\u{fc}n x"),
        ]);
        for (part, replacement) in never {
            let head = upgrade_but(part, replacement);
            assert_eq!(status(&head), 400, "{head:?}");
        }
    }

    #[test]
    fn a_request_that_has_come_through_here_too_often_is_a_loop() {
        let via = |count| "Via: 1.0 fred, 1.1 ws-proxy\r\nvia: 1.1 WS-Proxy (x)\r\n".repeat(count);
        assert_eq!(status(&upgrade(&via(2))), 101);
        let (status, detail) = judge(&upgrade(&via(3)));
        assert_eq!(status, 508);
        assert!(detail.contains("backends"), "{detail}");
        let joined = format!("Via: 1.1 a (\"), {}1.1 b (\")\r\n", "1.1 ws-proxy, ".repeat(5));
        assert_eq!(judge(&upgrade(&joined)).0, 508, "a quote hides nothing");
        assert_eq!(judge(&upgrade(&"Via: 1.1 ws-proxy2, 1.1 other\r\n".repeat(20))).0, 101);
    }

    #[test]
    fn an_origin_stands_there_once_or_not_at_all() {
        let rows = table([
            ("", Ok(None)),
            ("Origin: https://a.example\r\n", Ok(Some(&b"https://a.example"[..]))),
            ("Origin:\r\n", Ok(Some(b""))),
            ("Origin: null\r\norigin: null\r\n", Err(400)),
        ]);
        for (lines, expected) in rows {
            let head = upgrade(lines);
            let head = RequestHead::parse(head.as_bytes()).unwrap();
            let origin = UpgradeRequest::judge(&head, STRICT).unwrap().origin();
            assert_eq!(origin.map_err(|error| error.status), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn damaged_heads_never_panic(at in 0usize..160, byte: u8, cut in 0usize..160) {
            let mut bytes = upgrade("Origin: https://a.example\r\n").into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            for bytes in [&bytes, &bytes[..cut]] {
                if let Ok(head) = RequestHead::parse(bytes) {
                    let _ = UpgradeRequest::judge(&head, HandshakeRules::default());
                }
            }
        }
    }
}
