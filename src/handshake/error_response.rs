//! The proxy's own answer to a client that gets no tunnel, and the word for the log.

use super::http::{MAX_FIELDS, ParseError};

/// Error response of the proxy itself, in place of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorResponse {
    /// HTTP status code.
    pub(crate) status: u16,
    /// Reason for the log, one word of a closed set.
    pub(crate) reason: &'static str,
    /// Explanation for the client: the single line of the body, without its LF.
    pub(crate) detail: String,
    /// Header lines that only this status has, each with its CRLF.
    extra_lines: &'static str,
    /// The request was a HEAD, whose answer has no body (RFC 9110, 9.3.2).
    is_to_head: bool,
}

impl ErrorResponse {
    fn new(status: u16, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into(), extra_lines: "", is_to_head: false }
    }

    /// 400: the bytes are no HTTP/1.1 request head, or none that can be forwarded safely
    /// (RFC 9110, 15.5.1).
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(400, "malformed", detail)
    }

    /// 400: a valid request that is no WebSocket upgrade, or lacks a part of one
    /// (RFC 6455, 4.2.1).
    pub(crate) fn not_websocket(detail: impl Into<String>) -> Self {
        Self::new(400, "not_websocket", detail)
    }

    /// 400: a request without a part of the upgrade, as a proxy forwards it that is not told of
    /// WebSockets (RFC 9110, 7.8).
    pub(crate) fn no_upgrade(what: &str) -> Self {
        Self::not_websocket(format!(
            "{what}: this port takes WebSocket upgrades only; a proxy before it must pass them on, \
             nginx with proxy_set_header Upgrade $http_upgrade and proxy_set_header Connection \
             upgrade"
        ))
    }

    /// 400: an older version of HTTP, which has no upgrades (RFC 9110, 7.8).
    pub(crate) fn old_version() -> Self {
        Self::malformed(
            "a WebSocket needs HTTP/1.1, and this is HTTP/1.0: a proxy before this port must use \
             it, nginx with proxy_http_version 1.1 and proxy_set_header for Upgrade and Connection",
        )
    }

    /// 405: an upgrade with another method than GET (RFC 6455, 4.1; RFC 9110, 15.5.6).
    pub(crate) fn method() -> Self {
        Self {
            extra_lines: "Allow: GET\r\n",
            ..Self::new(405, "method", "a WebSocket is opened with GET")
        }
    }

    /// 426: another version of the WebSocket protocol than 13 (RFC 6455, 4.4; RFC 9110, 15.5.22).
    pub(crate) fn version() -> Self {
        Self {
            extra_lines: "Connection: Upgrade\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Version: 13\r\n",
            ..Self::new(426, "version", "Sec-WebSocket-Version must be 13")
        }
    }

    /// 403: an origin that the section does not list (RFC 6455, 4.2.2, item 4, and 10.2).
    pub(crate) fn origin(detail: impl Into<String>) -> Self {
        Self::new(403, "origin", detail)
    }

    /// 408: the request head was not complete at its deadline (RFC 9110, 15.5.9).
    pub(crate) fn timeout() -> Self {
        Self::new(408, "head_timeout", "the request head did not arrive in time")
    }

    /// 414: the request line alone exceeds `max`, the limit for a whole head, in bytes
    /// (RFC 9112, 3).
    pub(crate) fn line_too_long(max: usize) -> Self {
        Self::too_large(414, format!("the request line is longer than {max} bytes"))
    }

    /// 431: the request head exceeds `max` bytes (RFC 6585, 5).
    pub(crate) fn head_too_long(max: usize) -> Self {
        Self::too_large(431, format!("the request head is longer than {max} bytes"))
    }

    /// 413: the body has more than `max` bytes (RFC 9110, 15.5.14).
    pub(crate) fn body_too_large(max: u64) -> Self {
        let problem = format!(
            "the request's body is longer than {max} bytes: raise max_body_bytes in this section"
        );
        Self::new(413, "too_large", problem)
    }

    /// 408: the client has sent nothing of the request's body for too long (RFC 9110, 15.5.9).
    pub(crate) fn body_timeout() -> Self {
        Self::new(408, "body_timeout", "the request's body did not arrive in time")
    }

    /// 405: a CONNECT, which asks for a proxy of another kind (RFC 9110, 9.3.6).
    pub(crate) fn connect_method() -> Self {
        Self {
            extra_lines: "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n",
            ..Self::new(405, "method", "this is no proxy for CONNECT")
        }
    }

    fn too_large(status: u16, found: String) -> Self {
        let mend = "send fewer or smaller cookies, or raise max_head_bytes in this section";
        Self::new(status, "too_large", format!("{found}: {mend}"))
    }

    /// 508: the request has come through this program `hops` times (RFC 5842, 7.2).
    pub(crate) fn looped(hops: usize) -> Self {
        let found = format!("this request has come through ws-proxy {hops} times");
        let mend =
            "one of the backends leads back to a listener, so check backends in each section";
        Self::new(508, "loop", format!("{found}: {mend}"))
    }

    /// 502: every backend refused the connection or is unknown (RFC 9110, 15.6.3).
    pub(crate) fn unreachable() -> Self {
        Self::new(502, "unreachable", "no backend can be reached")
    }

    /// 502: the backend's answer is not HTTP, or a 101 that does not belong to this handshake
    /// (RFC 9110, 15.6.3).
    pub(crate) fn bad_answer(detail: impl Into<String>) -> Self {
        Self::new(502, "bad_answer", detail)
    }

    /// 503: a limit on connections is reached (RFC 9110, 15.6.4).
    pub(crate) fn full(detail: impl Into<String>) -> Self {
        Self::retry("full", detail)
    }

    /// 503: every backend has as many tunnels as it may (RFC 9110, 15.6.4).
    pub(crate) fn backends_full() -> Self {
        Self::retry("backends_full", "all backends are full, come again later")
    }

    /// 503: this proxy shuts down, and the handshake did not come to its end in time
    /// (RFC 9110, 15.6.4).
    pub(crate) fn draining() -> Self {
        Self::retry("draining", "this proxy is shutting down, connect again")
    }

    /// 503: the process or the system has no descriptor left for a connection to a backend
    /// (RFC 9110, 15.6.4).
    pub(crate) fn out_of_descriptors() -> Self {
        Self::retry("out_of_descriptors", "this proxy is out of file descriptors")
    }

    /// 503: the system has no memory left for a connection to a backend (RFC 9110, 15.6.4).
    pub(crate) fn out_of_memory() -> Self {
        Self::retry("out_of_memory", "this proxy is out of memory for connections")
    }

    /// 503: the system has no local port left for a connection to a backend (RFC 9110, 15.6.4).
    pub(crate) fn out_of_ports() -> Self {
        Self::retry("out_of_ports", "this proxy is out of local ports")
    }

    /// A 503 that passes by itself (RFC 9110, 10.2.3).
    fn retry(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { extra_lines: "Retry-After: 1\r\n", ..Self::new(503, reason, detail) }
    }

    /// 504: no backend accepted the connection in time (RFC 9110, 15.6.5).
    pub(crate) fn connect_timeout() -> Self {
        Self::new(504, "connect_timeout", "no backend accepted the connection in time")
    }

    /// 504: a backend was connected and did not answer in time (RFC 9110, 15.6.5).
    pub(crate) fn response_timeout() -> Self {
        Self::new(504, "response_timeout", "the backend did not answer in time")
    }

    /// Makes this the response to a request that begins with `request`, as far as it has come.
    #[must_use]
    pub(crate) fn to(self, request: &[u8]) -> Self {
        Self { is_to_head: request.trim_ascii_start().starts_with(b"HEAD "), ..self }
    }

    /// Returns the whole response, the last one on its connection.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n{}\r\n",
            self.status,
            reason_phrase(self.status),
            self.detail.len() + 1,
            self.extra_lines,
        );
        if !self.is_to_head {
            bytes += &self.detail;
            bytes.push('\n');
        }
        bytes.into_bytes()
    }
}

#[cfg(test)]
impl ErrorResponse {
    /// Returns one of every kind.
    pub(crate) fn all_for_tests() -> Vec<Self> {
        vec![
            Self::malformed("x"),
            Self::not_websocket("x"),
            Self::method(),
            Self::version(),
            Self::origin("x"),
            Self::timeout(),
            Self::line_too_long(8_192),
            Self::head_too_long(8_192),
            ParseError::TooManyFields.into(),
            Self::body_too_large(1),
            Self::connect_method(),
            Self::no_upgrade("x"),
            Self::old_version(),
            Self::looped(5),
            Self::unreachable(),
            Self::bad_answer("x"),
            Self::full("x"),
            Self::draining(),
            Self::out_of_descriptors(),
            Self::out_of_memory(),
            Self::out_of_ports(),
            Self::connect_timeout(),
            Self::response_timeout(),
        ]
    }
}

impl From<ParseError> for ErrorResponse {
    fn from(error: ParseError) -> Self {
        Self::malformed(match error {
            ParseError::TooManyFields => {
                let found = format!("the request head has more than {MAX_FIELDS} fields");
                return Self::new(431, "too_large", found);
            }
            ParseError::StartLine => "the request line is malformed",
            ParseError::Version => "the request line does not end in HTTP/1.1",
            ParseError::FieldName => "a header line has a bad name",
            ParseError::FieldValue => "a header line has a bad value",
            ParseError::LineEnd => "a line does not end in CRLF",
            ParseError::Length => "the request head does not end where it should",
            ParseError::Lines => "the header lines cannot be told apart",
        })
    }
}

/// Returns the reason phrase of a status above (RFC 9110, 15; RFC 6585, 5; RFC 5842, 7.2).
fn reason_phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        508 => "Loop Detected",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::samples::table;

    #[test]
    fn every_answer_is_complete() {
        let all = ErrorResponse::all_for_tests();
        assert!(all.len() > 10);
        for error in all {
            let response = error.to_bytes();
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut parsed = httparse::Response::new(&mut headers);
            let end = parsed.parse(&response).unwrap().unwrap();
            assert_eq!(parsed.code, Some(error.status));
            assert!(!reason_phrase(error.status).is_empty(), "{} has no phrase", error.status);
            let value = |name: &str| {
                let header = parsed.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
                header.map(|h| std::str::from_utf8(h.value).unwrap())
            };
            assert_eq!(value("connection"), Some("close"));
            assert_eq!(value("retry-after"), (error.status == 503).then_some("1"));
            assert_eq!(value("content-length"), Some(&*(response.len() - end).to_string()));
            assert_eq!(&response[end..], format!("{}\n", error.detail).as_bytes());
            assert!(!error.detail.contains(['\r', '\n', '"']), "{}", error.detail);
            // The answer to a HEAD is the same without its body.
            for request in ["HEAD / HTTP/1.0\r\n", "\r\nHEAD /"] {
                assert_eq!(error.clone().to(request.as_bytes()).to_bytes(), response[..end]);
            }
            for request in ["GET / HTTP/1.1\r\n", "HEADER / HTTP/1.1\r\n", "HEA", ""] {
                assert_eq!(error.clone().to(request.as_bytes()).to_bytes(), response);
            }
        }
    }

    #[test]
    fn another_version_is_told_what_to_upgrade_to() {
        let response = String::from_utf8(ErrorResponse::version().to_bytes()).unwrap();
        for line in ["Upgrade: websocket", "Connection: Upgrade", "Connection: close"] {
            assert_eq!(response.matches(&format!("\r\n{line}\r\n")).count(), 1, "{response}");
        }
    }

    #[test]
    fn a_response_tells_what_to_change() {
        let rows = table([
            (ErrorResponse::old_version(), "proxy_http_version 1.1"),
            (ErrorResponse::no_upgrade("x"), "proxy_set_header Upgrade"),
            (ErrorResponse::head_too_long(8_192), "max_head_bytes"),
            (ErrorResponse::line_too_long(8_192), "max_head_bytes"),
            (ErrorResponse::looped(5), "backends"),
        ]);
        for (response, mend) in rows {
            assert!(response.detail.contains(mend), "{}", response.detail);
        }
    }
}
