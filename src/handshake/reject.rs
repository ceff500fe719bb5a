//! A handshake that ends here: what the client is told, and the word for the log.

/// Why a client gets an answer of ours instead of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reject {
    /// Status of the answer.
    pub(crate) status: u16,
    /// One word of a closed set, for the log.
    pub(crate) reason: &'static str,
    /// The one line that the answer's body consists of.
    pub(crate) detail: String,
    /// Header lines that this answer has beside the usual ones, each with its CRLF.
    extra: &'static str,
}

impl Reject {
    fn new(status: u16, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into(), extra: "" }
    }

    /// 400: the bytes are no HTTP/1.1 request head.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(400, "malformed", detail)
    }

    /// 400: a good request that does not ask for a WebSocket, or not in the way of RFC 6455, 4.1.
    pub(crate) fn not_websocket(detail: impl Into<String>) -> Self {
        Self::new(400, "not_websocket", detail)
    }

    /// 405: a WebSocket is opened with GET only (RFC 6455, 4.1).
    pub(crate) fn method() -> Self {
        Self {
            extra: "Allow: GET\r\n",
            ..Self::new(405, "method", "a WebSocket is opened with GET")
        }
    }

    /// 426: another version of the protocol than 13 (RFC 6455, 4.4).
    pub(crate) fn version() -> Self {
        Self {
            extra: "Sec-WebSocket-Version: 13\r\n",
            ..Self::new(426, "version", "Sec-WebSocket-Version must be 13")
        }
    }

    /// 403: the origin is not one of those that may open a WebSocket here (RFC 6455, 10.2).
    pub(crate) fn origin(detail: impl Into<String>) -> Self {
        Self::new(403, "origin", detail)
    }

    /// 408: the head was not complete in time.
    pub(crate) fn timeout() -> Self {
        Self::new(408, "head_timeout", "the request head did not come in time")
    }

    /// 414: the request line alone is longer than a whole head may be.
    pub(crate) fn line_too_long(max: usize) -> Self {
        Self::new(414, "too_large", format!("the request line is longer than {max} bytes"))
    }

    /// 431: the head is too long (RFC 6585, 5).
    pub(crate) fn head_too_long(max: usize) -> Self {
        Self::new(431, "too_large", format!("the request head is longer than {max} bytes"))
    }

    /// 502: no backend could be connected to.
    pub(crate) fn unreachable() -> Self {
        Self::new(502, "unreachable", "no backend can be reached")
    }

    /// 502: what the backend answered is no answer to this handshake.
    pub(crate) fn bad_answer(detail: impl Into<String>) -> Self {
        Self::new(502, "bad_answer", detail)
    }

    /// 503: this section has as many connections as it may have, or the process as many descriptors.
    pub(crate) fn full(detail: impl Into<String>) -> Self {
        Self { extra: "Retry-After: 1\r\n", ..Self::new(503, "full", detail) }
    }

    /// 504: no backend accepted the connection in time.
    pub(crate) fn connect_timeout() -> Self {
        Self::new(504, "connect_timeout", "no backend accepted the connection in time")
    }

    /// 504: the backend was connected to and did not answer in time.
    pub(crate) fn response_timeout() -> Self {
        Self::new(504, "response_timeout", "the backend did not answer in time")
    }

    /// The whole answer: complete, with a length, and the last one on its connection.
    pub(crate) fn response(&self) -> Vec<u8> {
        format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{}Connection: close\r\n\r\n{}\n",
            self.status,
            phrase(self.status),
            self.detail.len() + 1,
            self.extra,
            self.detail,
        )
        .into_bytes()
    }
}

/// Reason phrases of the statuses above (RFC 9110, 15; RFC 6585, 5).
fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_complete() {
        let all = [
            Reject::malformed("x"),
            Reject::not_websocket("x"),
            Reject::method(),
            Reject::version(),
            Reject::origin("x"),
            Reject::timeout(),
            Reject::line_too_long(8_192),
            Reject::head_too_long(8_192),
            Reject::unreachable(),
            Reject::bad_answer("x"),
            Reject::full("x"),
            Reject::connect_timeout(),
            Reject::response_timeout(),
        ];
        for reject in all {
            let response = reject.response();
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut parsed = httparse::Response::new(&mut headers);
            let end = parsed.parse(&response).unwrap().unwrap();
            assert_eq!(parsed.code, Some(reject.status));
            assert!(!phrase(reject.status).is_empty(), "{} has no phrase", reject.status);
            let value = |name: &str| {
                let header = parsed.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
                header.map(|h| std::str::from_utf8(h.value).unwrap())
            };
            assert_eq!(value("connection"), Some("close"));
            assert_eq!(value("content-length"), Some(&*(response.len() - end).to_string()));
            assert_eq!(&response[end..], format!("{}\n", reject.detail).as_bytes());
        }
    }
}
