//! A response of the admin listener, as a value.

use std::borrow::Cow;

use crate::section::Permit;

/// A response, without the fields that all have.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    /// Further fields. Their values are ours: no line break is in them.
    pub(super) fields: Vec<(&'static str, Cow<'static, str>)>,
    pub(super) body: Vec<u8>,
    /// Held until the response is sent.
    pub(super) held: Option<Permit>,
}

impl Reply {
    /// Creates a 200 with a body of this type.
    pub(super) fn ok(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, content_type, fields: Vec::new(), body: body.into(), held: None }
    }

    /// Creates a response with lines of text, each of which gets its line break.
    pub(super) fn text(status: u16, lines: &[impl AsRef<str>]) -> Self {
        let body: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
        Self { status, ..Self::ok("text/plain; charset=utf-8", body) }
    }

    /// Creates a 200 with a JSON text and a line break.
    pub(super) fn json(value: &serde_json::Value) -> Self {
        Self::ok("application/json", format!("{value}\n"))
    }

    /// Creates an error: one line that names the fault and the mend.
    pub(super) fn error(status: u16, problem: impl Into<String>) -> Self {
        Self::text(status, &[problem.into()])
    }

    /// Adds a line to a body of text.
    pub(super) fn and_line(mut self, line: &str) -> Self {
        self.body.extend_from_slice(line.as_bytes());
        self.body.push(b'\n');
        self
    }

    /// Adds a field.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Returns the bytes of the response, and what is held until they are sent. After one that
    /// `closes`, the connection takes no further request.
    pub(super) fn into_bytes(self, closes: bool) -> (Vec<u8>, Option<Permit>) {
        ([&self.head(closes), &*self.body].concat(), self.held)
    }

    /// Returns the response without its body, as HEAD gets it.
    pub(super) fn without_body(self, closes: bool) -> (Vec<u8>, Option<Permit>) {
        (self.head(closes), self.held)
    }

    fn head(&self, closes: bool) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n",
            self.status,
            reason_phrase(self.status),
            self.content_type,
            self.body.len(),
        );
        if closes {
            head += "Connection: close\r\n";
        }
        for (name, value) in &self.fields {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        head.into_bytes()
    }
}

/// Returns the reason phrase (RFC 9110, 15), which may be empty (RFC 9112, 4).
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_has_the_fields_of_all_and_its_own() {
        let reply = Reply::text(405, &["one", "two"]).with("Allow", "GET, HEAD");
        let head = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\n\
                    Content-Length: 8\r\nCache-Control: no-store\r\n\
                    X-Content-Type-Options: nosniff\r\nConnection: close\r\n\
                    Allow: GET, HEAD\r\n\r\n";
        assert_eq!(reply.head(true), head.as_bytes());
        assert_eq!(reply.head(false), head.replace("Connection: close\r\n", "").as_bytes());
        assert_eq!(reply.into_bytes(true).0, format!("{head}one\ntwo\n").as_bytes());
    }
}
