//! A request that is no upgrade, and the backend's answers to it, judged (RFC 9112, 3 and 6).
//!
//! What two parsers could read in two ways is refused: the rules that make a handshake lenient have
//! no say here, but for characters beyond ASCII in the target.

use std::borrow::Cow;

use super::asked::Asked;
use super::body::Framing;
use super::error_response::ErrorResponse;
use super::fields::Fields;
use super::forward::plain_answer_head;
use super::http::{RequestHead, ResponseHead, Version};
use super::reframe::framing_to;
use super::response::{content_length, framing};
use super::target::{Target, is_authority};
use super::upgrade::{HandshakeRules, MAX_HOPS, single_text};
use super::via;
use crate::digits;

/// A request that is no upgrade.
#[derive(Clone, Debug)]
pub(crate) struct PlainRequest<'a> {
    /// Method as sent.
    pub(crate) method: &'a str,
    /// Path and query, or `*`.
    pub(crate) target: Cow<'a, str>,
    /// Host and port that the client addresses; `None` where HTTP/1.0 tells none.
    pub(crate) authority: Option<&'a str>,
    /// Fields as sent.
    pub(crate) fields: &'a Fields<'a>,
    pub(crate) version: Version,
    /// The end of its body, by a length or by chunks; `None` where it tells of no body.
    pub(crate) framing: Option<Framing>,
    /// The client wants to send further requests on its connection (RFC 9112, 9.3).
    pub(crate) keeps_alive: bool,
}

/// A backend's answer, ready for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlainAnswer {
    /// An interim one, which another follows (RFC 9110, 15.2).
    Interim {
        head: Vec<u8>,
    },
    Final(FinalAnswer),
}

/// The answer that ends an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FinalAnswer {
    pub(crate) status: u16,
    pub(crate) head: Vec<u8>,
    /// The end of the body as the backend sends it; `None` for no body.
    pub(crate) framing: Option<Framing>,
    /// The end of the body as the client gets it.
    pub(crate) sent: Sent,
    /// No further request comes on the client's connection.
    pub(crate) closes: bool,
}

/// What follows the head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// No body, though the head may tell the length of the one that a GET would get.
    Nothing(Option<u64>),
    Body(Framing),
}

/// Returns whether a head asks for a WebSocket, well formed or not.
pub(crate) fn is_upgrade(head: &RequestHead<'_>) -> bool {
    head.version == Version::Http11
        && head.fields.lists("Connection", "upgrade")
        && head.fields.lists("Upgrade", "websocket")
}

impl<'a> PlainRequest<'a> {
    /// Judges a parsed head that is no upgrade. `max_body` limits the length of its body.
    ///
    /// # Errors
    ///
    /// The response for the client, whose connection ends with it. No backend is to hear of the
    /// request then.
    pub(crate) fn judge(
        head: &'a RequestHead<'a>,
        rules: HandshakeRules,
        max_body: Option<u64>,
    ) -> Result<Self, ErrorResponse> {
        let fields = &head.fields;
        if head.method.eq_ignore_ascii_case("CONNECT") {
            return Err(ErrorResponse::connect_method());
        }
        let (target, authority) = target_of(head, rules)?;
        let framing = framing_of(head)?;
        if via::hops(fields) >= MAX_HOPS {
            return Err(ErrorResponse::looped(MAX_HOPS));
        }
        if let (Some(Framing::Length(length)), Some(max)) = (framing, max_body)
            && length > max
        {
            return Err(ErrorResponse::body_too_large(max));
        }
        let keeps_alive = !fields.lists("Connection", "close")
            && (head.version == Version::Http11 || fields.lists("Connection", "keep-alive"));
        Ok(Self {
            method: head.method,
            target,
            authority,
            fields,
            version: head.version,
            framing,
            keeps_alive,
        })
    }

    /// Returns what it asks for.
    pub(crate) fn asked(&self) -> Asked<'_> {
        let Self { method, target, authority, fields, .. } = self;
        Asked { method, target, authority: *authority, fields }
    }

    /// Returns whether another backend may get it after one that gave no answer: it is idempotent
    /// (RFC 9110, 9.2.2), and no body is used up.
    pub(crate) fn is_repeatable(&self) -> bool {
        let is_idempotent = matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE");
        is_idempotent && matches!(self.framing, None | Some(Framing::Length(0)))
    }
}

/// Returns target and authority of a request.
fn target_of<'a>(
    head: &'a RequestHead<'a>,
    rules: HandshakeRules,
) -> Result<(Cow<'a, str>, Option<&'a str>), ErrorResponse> {
    let malformed = |problem: &str| ErrorResponse::malformed(problem);
    let host = match head.fields.values("Host").next() {
        None if head.version == Version::Http10 => None,
        _ => Some(single_text(&head.fields, "Host", ErrorResponse::malformed)?),
    };
    if host.is_some_and(|host| !is_authority(host)) {
        return Err(malformed("the Host field is not a host and port"));
    }
    if head.method == "OPTIONS" && head.target == "*" {
        return Ok((head.target.into(), host));
    }
    let target = Target::parse(head.target, rules.is_strict).map_err(malformed)?;
    // RFC 9112, 3.2.2 has the target win; whoever reads Host would see another one.
    if let (Some(authority), Some(host)) = (target.authority, host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(malformed("the request target names another host than the Host field"));
    }
    // Without path and query, the server as a whole is meant (RFC 9112, 3.2.4).
    let uri = head.target.split_once("://");
    let is_of_server =
        head.method == "OPTIONS" && uri.is_some_and(|(_, rest)| Some(rest) == target.authority);
    let path = if is_of_server { "*".into() } else { target.path };
    Ok((path, target.authority.or(host)))
}

/// Returns the framing of a request's body (RFC 9112, 6.1 to 6.3).
fn framing_of(head: &RequestHead<'_>) -> Result<Option<Framing>, ErrorResponse> {
    const NAMES: [&str; 2] = ["Content-Length", "Transfer-Encoding"];
    let fault = |what: &str| Err(ErrorResponse::malformed(what));
    let fields = &head.fields;
    let is_other_spelling =
        |name: &str| fields.iter().any(|field| field.is_same_variable(name) && !field.is(name));
    if NAMES.into_iter().any(is_other_spelling) {
        return fault("a field that frames the body is spelled with _ for -");
    }
    match (fields.single("Transfer-Encoding"), fields.single("Content-Length")) {
        (Err(0), Err(0)) => Ok(None),
        (Err(0), Ok(length)) => {
            let length = std::str::from_utf8(length).ok().and_then(digits::number);
            match length {
                Some(length) => Ok(Some(Framing::Length(length))),
                None => fault("Content-Length is not a number"),
            }
        }
        (Err(0), Err(_)) => fault("more than one Content-Length field"),
        (Ok(_), Err(0)) if head.version == Version::Http10 => {
            fault("HTTP/1.0 has no Transfer-Encoding")
        }
        (Ok(coding), Err(0)) if coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(Some(Framing::Chunked))
        }
        (Ok(_), Err(0)) => fault("Transfer-Encoding is not chunked"),
        (Ok(_), _) => fault("both Transfer-Encoding and Content-Length"),
        (Err(_), _) => fault("more than one Transfer-Encoding field"),
    }
}

impl FinalAnswer {
    /// Returns whether the end of the connection is what ends the body for the client.
    pub(crate) fn is_delimited_by_end(&self) -> bool {
        self.sent == Sent::Body(Framing::UntilClose)
    }
}

impl PlainAnswer {
    /// Judges a parsed head as an answer to `request`. `closes` has the connection of the client
    /// end with it.
    ///
    /// # Errors
    ///
    /// The reason, in words for the client: a body without a clear end, or a status that nobody
    /// asked for or that HTTP does not define.
    pub(crate) fn judge(
        response: &ResponseHead<'_>,
        request: &PlainRequest<'_>,
        closes: bool,
    ) -> Result<Self, &'static str> {
        match response.status {
            101 => Err("the backend switches protocols without being asked to"),
            100..=199 => {
                let head = plain_answer_head(response, Sent::Nothing(None), "");
                Ok(Self::Interim { head })
            }
            200..=599 => Self::judge_final(response, request, closes),
            _ => Err("the backend's answer has no status that HTTP knows"),
        }
    }

    fn judge_final(
        response: &ResponseHead<'_>,
        request: &PlainRequest<'_>,
        closes: bool,
    ) -> Result<Self, &'static str> {
        let status = response.status;
        let mut codings = response.fields.list("Transfer-Encoding");
        let coding = codings.next();
        let is_chunked = coding.is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        // The client gets what is in the chunks, and would not know of another coding.
        if coding.is_some() && (!is_chunked || codings.next().is_some()) {
            return Err("the backend's answer has a coding that nobody asked for");
        }
        if coding.is_some() && response.version == Version::Http10 {
            return Err("the backend's answer is chunked in HTTP/1.0");
        }
        let (framing, sent) = match (request.method, status) {
            (_, 204) => (None, Sent::Nothing(None)),
            ("HEAD", _) | (_, 304) => {
                let length = if is_chunked { None } else { content_length(response)? };
                (None, Sent::Nothing(length))
            }
            _ => {
                let framing = framing(response)?;
                let knows_chunks = request.version == Version::Http11;
                (Some(framing), Sent::Body(framing_to(framing, knows_chunks)))
            }
        };
        let closes = closes || !request.keeps_alive || sent == Sent::Body(Framing::UntilClose);
        let connection = match (closes, request.version) {
            (true, _) => "Connection: close\r\n",
            (false, Version::Http10) => "Connection: keep-alive\r\n",
            (false, Version::Http11) => "",
        };
        let head = plain_answer_head(response, sent, connection);
        Ok(Self::Final(FinalAnswer { status, head, framing, sent, closes }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::handshake::forward::{ForwardPolicy, Forwarded, HostHeader, plain_request_head};
    use crate::handshake::reframe::{Reframed, Reframer};
    use crate::handshake::samples::table;
    use crate::handshake::scan::{HeadScan, Scan};

    const RULES: HandshakeRules = HandshakeRules { is_strict: false, preserves_host: false };

    fn judge<T>(head: &str, then: impl Fn(&PlainRequest<'_>) -> T) -> Result<T, (u16, String)> {
        let parsed = RequestHead::parse(head.as_bytes()).unwrap();
        let judged = PlainRequest::judge(&parsed, RULES, Some(1_000));
        judged.map(|request| then(&request)).map_err(|error| (error.status, error.detail))
    }

    fn status(head: &str) -> u16 {
        judge(head, |_| ()).map_or_else(|(status, _)| status, |()| 200)
    }

    #[test]
    fn a_body_ends_by_a_length_or_by_chunks() {
        let rows = table([
            ("", None),
            ("Content-Length: 0\r\n", Some(Framing::Length(0))),
            ("content-length: 0010\r\n", Some(Framing::Length(10))),
            ("Transfer-Encoding: chunked\r\n", Some(Framing::Chunked)),
            ("TRANSFER-ENCODING:\tChunked \r\n", Some(Framing::Chunked)),
        ]);
        for (lines, framing) in rows {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
            assert_eq!(judge(&head, |request| request.framing), Ok(framing), "{lines:?}");
        }
    }

    #[test]
    fn what_two_parsers_could_read_in_two_ways_is_refused() {
        let rows = table([
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding: chunked;q=1\r\n",
            "Transfer-Encoding:\r\n",
            "Transfer_Encoding: chunked\r\n",
            "Content_Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\ncontent-length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: 5;\r\n",
            "Content-Length:\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Host: a\r\n",
        ]);
        for lines in rows {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
            assert_eq!(status(&head), 400, "{lines:?}");
        }
        let chunked = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(status(chunked), 400);
    }

    #[test]
    fn a_request_has_a_target_and_a_host() {
        let rows = table([
            (200, "GET / HTTP/1.1", "Host: a"),
            (200, "BREW /pot?x HTTP/1.1", "Host: a:80"),
            (200, "OPTIONS * HTTP/1.1", "Host: a"),
            (200, "GET http://A/ HTTP/1.1", "Host: a"),
            (200, "GET / HTTP/1.0", "X: y"),
            (400, "GET http://b/ HTTP/1.1", "Host: a"),
            (400, "GET http://a:81/ HTTP/1.1", "Host: a"),
            (400, "GET ftp://a/ HTTP/1.1", "Host: a"),
            (400, "GET * HTTP/1.1", "Host: a"),
            (400, "GET / HTTP/1.1", "X: y"),
            (400, "GET / HTTP/1.1", "Host: a, b"),
            (400, "GET / HTTP/1.1", "Host: ::1"),
            (400, "GET / HTTP/1.1", "Host:"),
            (400, "GET /#a HTTP/1.1", "Host: a"),
            (405, "CONNECT a:80 HTTP/1.1", "Host: a"),
            (413, "POST / HTTP/1.1", "Host: a\r\nContent-Length: 1001"),
            (200, "POST / HTTP/1.1", "Host: a\r\nContent-Length: 1000"),
            (
                508,
                "GET / HTTP/1.1",
                "Host: a\r\nVia: 1.1 ws-proxy, 1.1 ws-proxy, 1.1 ws-proxy, \
              1.1 ws-proxy, 1.1 ws-proxy",
            ),
        ]);
        for (expected, start, line) in rows {
            assert_eq!(status(&format!("{start}\r\n{line}\r\n\r\n")), expected, "{start} {line}");
        }
    }

    #[test]
    fn only_options_is_for_a_server_as_a_whole() {
        let rows = table([
            ("OPTIONS *", "*"),
            ("OPTIONS http://a", "*"),
            ("OPTIONS http://a/", "/"),
            ("OPTIONS http://a?x", "/?x"),
            ("OPTIONS http://a/a", "/a"),
            ("OPTIONS /://a", "/://a"),
            ("GET http://a", "/"),
        ]);
        for (start, expected) in rows {
            let head = format!("{start} HTTP/1.1\r\nHost: a\r\n\r\n");
            let target = judge(&head, |request| request.target.clone().into_owned());
            assert_eq!(target.as_deref(), Ok(expected), "{start}");
        }
    }

    #[test]
    fn connections_are_kept_by_version_and_wish() {
        let rows = table([
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, CLOSE\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ]);
        for (version, line, expected) in rows {
            let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{line}\r\n");
            assert_eq!(judge(&head, |request| request.keeps_alive), Ok(expected), "{head:?}");
        }
    }

    #[test]
    fn the_head_for_the_backend_has_a_framing_of_its_own() {
        let policy = ForwardPolicy {
            client: None,
            backend: "b:1",
            host: HostHeader::Backend,
            forwarded: Forwarded::Append,
            request_id: "0123456789abcdef",
        };
        const OWN: &str = "Via: 1.1 ws-proxy\r\nX-Request-ID: 0123456789abcdef\r\n";
        const LAST: &str =
            "Connection: close\r\nX-Forwarded-Host: a\r\nX-Forwarded-Proto: http\r\n";
        let rows = table([
            (
                "POST /x?y HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine, Content-Length\
                 \r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\n\
                 Content-Length: 0\r\nExpect: 100-continue\r\nA:  b \r\n\r\n",
                format!(
                    "POST /x?y HTTP/1.1\r\nHost: b:1\r\nExpect: 100-continue\r\nA:  b \r\n{OWN}\
                     Content-Length: 0\r\n{LAST}\r\n"
                ),
            ),
            (
                "POST http://a HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\n\
                 Transfer-Encoding: CHUNKED\r\n\r\n",
                format!(
                    "POST / HTTP/1.1\r\nHost: b:1\r\nTrailer: X-Sum\r\n{OWN}\
                     Transfer-Encoding: chunked\r\n{LAST}\r\n"
                ),
            ),
            (
                "GET / HTTP/1.0\r\nExpect: 100-continue\r\nTrailer: a\r\n\r\n",
                format!(
                    "GET / HTTP/1.1\r\nHost: b:1\r\n{OWN}Connection: close\r\n\
                     X-Forwarded-Proto: http\r\n\r\n"
                ),
            ),
        ]);
        for (head, expected) in rows {
            let out = judge(head, |request| plain_request_head(request, &policy)).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    fn answer(request: &str, response: &str) -> Result<PlainAnswer, &'static str> {
        let head = format!("{request}\r\nHost: a\r\n\r\n");
        judge(&head, |request| {
            let response = ResponseHead::parse(response.as_bytes()).unwrap();
            PlainAnswer::judge(&response, request, false)
        })
        .unwrap()
    }

    #[test]
    fn an_answer_is_framed_for_the_client() {
        const NEW: &str = "GET / HTTP/1.1";
        const OLD: &str = "GET / HTTP/1.0";
        let rows = table([
            (NEW, "Content-Length: 5\r\n", "Content-Length: 5\r\n", false),
            (NEW, "Content-Length: 5, 5\r\n", "Content-Length: 5\r\n", false),
            (NEW, "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\n", false),
            (NEW, "", "Transfer-Encoding: chunked\r\n", false),
            (
                NEW,
                "Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nContent-Length: 5\r\n",
                "Content-Length: 5\r\n",
                false,
            ),
            (
                NEW,
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                "Transfer-Encoding: chunked\r\n",
                false,
            ),
            (OLD, "Content-Length: 5\r\n", "Content-Length: 5\r\nConnection: close\r\n", true),
            (OLD, "Transfer-Encoding: chunked\r\n", "Connection: close\r\n", true),
            ("HEAD / HTTP/1.1", "Content-Length: 5\r\n", "Content-Length: 5\r\n", false),
            ("HEAD / HTTP/1.1", "Transfer-Encoding: chunked\r\n", "", false),
        ]);
        for (request, lines, expected, expected_closes) in rows {
            let response = format!("HTTP/1.1 200 OK\r\n{lines}A: b\r\n\r\n");
            match answer(request, &response) {
                Ok(PlainAnswer::Final(FinalAnswer { head, closes, .. })) => {
                    let head = String::from_utf8(head).unwrap();
                    let expected = format!("HTTP/1.1 200 OK\r\nA: b\r\n{expected}\r\n");
                    assert_eq!((head, closes), (expected, expected_closes), "{request} {lines:?}");
                }
                other => panic!("{request} {lines:?}: {other:?}"),
            }
        }
        for status in table([204, 304]) {
            let response = format!("HTTP/1.1 {status} x\r\nTransfer-Encoding: chunked\r\n\r\n");
            let Ok(PlainAnswer::Final(FinalAnswer { framing, sent, .. })) = answer(NEW, &response)
            else {
                panic!("{status}");
            };
            assert_eq!((framing, sent), (None, Sent::Nothing(None)));
        }
        let interim = answer(NEW, "HTTP/1.1 103 Early Hints\r\nLink: x\r\nConnection: x\r\n\r\n");
        let head = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".to_vec();
        assert_eq!(interim, Ok(PlainAnswer::Interim { head }));
    }

    #[test]
    fn an_answer_without_a_clear_end_is_none() {
        let rows = table([
            "HTTP/1.1 101 x\r\nUpgrade: h2c\r\n\r\n",
            "HTTP/1.1 600 x\r\n\r\n",
            "HTTP/1.1 200 x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 x\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 x\r\nTransfer-Encoding: identity\r\n\r\n",
            "HTTP/1.0 200 x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 304 x\r\nContent-Length: x\r\n\r\n",
        ]);
        for response in rows {
            assert!(answer("GET / HTTP/1.1", response).is_err(), "{response:?}");
        }
    }

    /// A second reader of requests, which knows nothing but `split`: start line, body, and the
    /// bytes after it.
    fn read_naively(bytes: &[u8]) -> Option<(String, Vec<u8>, usize)> {
        let head_end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
        let start = String::from_utf8_lossy(&bytes[..bytes.iter().position(|&b| b == b'\r')?]);
        let values = |name: &str| -> Vec<String> {
            let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
            let same = fields.filter(|(field, _)| field.trim().replace('_', "-") == name);
            same.map(|(_, value)| value.trim().to_owned()).collect()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "{head}");
        if let Some(length) = lengths.first() {
            let end = head_end + length.parse::<usize>().ok()?;
            return Some((start.into(), bytes.get(head_end..end)?.to_vec(), end));
        }
        let (mut body, mut at) = (Vec::new(), head_end);
        while !codings.is_empty() {
            let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
            let size = std::str::from_utf8(&bytes[at..at + line]).ok()?;
            let size = usize::from_str_radix(size, 16).ok()?;
            at += line + 2;
            if size == 0 {
                let end = bytes[at - 2..].windows(4).position(|four| four == b"\r\n\r\n")?;
                at += end + 2;
                break;
            }
            body.extend_from_slice(bytes.get(at..at + size)?);
            at += size + 2;
        }
        Some((start.into(), body, at))
    }

    /// What a backend gets of the request that these bytes begin with, and its end.
    fn forward(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
        let Scan::End(end) = HeadScan::default().advance(bytes) else { return None };
        let head = RequestHead::parse(&bytes[..end]).ok()?;
        let request = PlainRequest::judge(&head, RULES, None).ok()?;
        let policy = ForwardPolicy {
            client: None,
            backend: "b",
            host: HostHeader::Backend,
            forwarded: Forwarded::Append,
            request_id: "0123456789abcdef",
        };
        let mut out = plain_request_head(&request, &policy);
        let mut body = Reframer::of_request(request.framing, None);
        match body.advance(&bytes[end..], &mut out).ok()? {
            Reframed::End(after) => Some((out, end + after)),
            Reframed::More => None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        #[test]
        fn two_readers_see_the_same_request(
            lines in vec(select(&[
                "Content-Length: 3", "content-length:3", "Content-Length: 13", "Content-Length: 0",
                "Content-Length: +3", "Content_Length: 3", "Transfer-Encoding: chunked",
                "transfer-encoding:CHUNKED", "Transfer-Encoding: identity", "Transfer_Encoding: x",
                "Transfer-Encoding : chunked", "X: y", "Connection: close, X, Content-Length",
                "Connection: transfer-encoding", "Trailer: Z", "X: Content-Length: 3",
                "Expect: 100-continue",
            ][..]), 0..4),
            body in vec(select(&[
                "3\r\nabc\r\n", "03\r\nabc\r\n", "3;a\r\nabc\r\n", "3\nabc\r\n",
                "A\r\n0123456789\r\n",
                "0\r\n\r\n", "0\r\nZ: 1\r\n\r\n", "0\r\nContent-Length: 1\r\n\r\n", "abc", "\r\n",
                "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
            ][..]), 0..5),
        ) {
            let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let bytes = format!("POST /x HTTP/1.1\r\nHost: a\r\n{lines}\r\n{}", body.concat());
            let Some((out, end)) = forward(bytes.as_bytes()) else { return Ok(()) };
            let came = read_naively(bytes.as_bytes());
            let went = read_naively(&out);
            let Some((start, body, went_end)) = went else { panic!("{out:?} is no request") };
            // All that the backend gets is this one request.
            prop_assert_eq!(went_end, out.len());
            prop_assert_eq!(came, Some((start, body, end)));
        }
    }
}
