//! Requests by which a load balancer asks whether to send clients here, and their answers.

use super::http::RequestHead;
use super::target::Target;

/// Answer to such a request, the last one on its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeAnswer {
    pub(crate) status: u16,
    pub(crate) bytes: Vec<u8>,
}

/// Returns whether a request asks for this path, with or without a query, by GET or HEAD. `Host` is
/// not asked for: some load balancers send none.
pub(crate) fn is_probe(head: &RequestHead<'_>, path: &str) -> bool {
    matches!(head.method, "GET" | "HEAD")
        && Target::parse(head.target, true)
            .is_ok_and(|target| target.path.split('?').next() == Some(path))
}

impl ProbeAnswer {
    /// Creates the answer to `head`: 200, or 503 with the reason for which new clients should go
    /// elsewhere.
    pub(crate) fn new(head: &RequestHead<'_>, unready: Option<&str>) -> Self {
        let (status, phrase, line) = match unready {
            None => (200, "OK", "ok"),
            Some(reason) => (503, "Service Unavailable", reason),
        };
        let mut text = format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
            line.len() + 1,
        );
        // RFC 9110, 9.3.2: the answer to a HEAD has no body.
        if head.method != "HEAD" {
            text += line;
            text.push('\n');
        }
        Self { status, bytes: text.into_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::samples::table;

    #[test]
    fn a_probe_is_a_get_or_head_of_exactly_the_path() {
        let rows = table([
            ("GET /healthz HTTP/1.1", true),
            ("HEAD /healthz HTTP/1.0", true),
            ("GET /healthz?deep=1 HTTP/1.1", true),
            ("GET http://a/healthz HTTP/1.1", true),
            ("POST /healthz HTTP/1.1", false),
            ("get /healthz HTTP/1.1", false),
            ("GET /healthz/ HTTP/1.1", false),
            ("GET /Healthz HTTP/1.1", false),
            ("GET /%68ealthz HTTP/1.1", false),
            ("GET /x/../healthz HTTP/1.1", false),
            ("GET / HTTP/1.1", false),
            ("GET * HTTP/1.1", false),
            ("GET /healthz#a HTTP/1.1", false),
        ]);
        for (start, expected) in rows {
            let bytes = format!("{start}\r\n\r\n");
            let head = RequestHead::parse(bytes.as_bytes()).unwrap();
            assert_eq!(is_probe(&head, "/healthz"), expected, "{start}");
        }
    }

    #[test]
    fn the_answer_is_ok_or_the_reason() {
        let get = RequestHead::parse(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let head = RequestHead::parse(b"HEAD / HTTP/1.1\r\n\r\n").unwrap();
        for (unready, start, body) in table([
            (None, "HTTP/1.1 200 OK\r\n", "ok\n"),
            (Some("draining"), "HTTP/1.1 503 Service Unavailable\r\n", "draining\n"),
        ]) {
            let text = String::from_utf8(ProbeAnswer::new(&get, unready).bytes).unwrap();
            let (fields, rest) = text.split_once("\r\n\r\n").unwrap();
            assert!(fields.starts_with(start) && rest == body, "{text}");
            assert!(fields.contains(&format!("\r\nContent-Length: {}", body.len())), "{text}");
            let to_head = ProbeAnswer::new(&head, unready).bytes;
            assert_eq!(to_head, format!("{fields}\r\n\r\n").as_bytes());
        }
    }
}
