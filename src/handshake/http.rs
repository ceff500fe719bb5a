//! HTTP/1.x heads as values, parsed from their bytes (RFC 9112, 2 to 5).
//!
//! The one parser of the library. It accepts any request or response head of HTTP/1.0 and 1.1;
//! the policy of its user decides which of them may pass.

use super::fields::Fields;

/// Most fields that are parsed in one head. A request head of 8,192 bytes cannot hold more; a
/// longer one with more, or a response head of 64 KiB, is an error.
pub(super) const MAX_FIELDS: usize = 2_048;

/// Minor version of HTTP/1 that a start line names (RFC 9112, 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http10,
    Http11,
}

/// Head of a request (RFC 9112, 3).
#[derive(Clone, Debug)]
pub(crate) struct RequestHead<'a> {
    /// Method as sent; its letter case matters (RFC 9110, 9.1).
    pub(crate) method: &'a str,
    /// Request target as sent, in any of the four forms (RFC 9112, 3.2).
    pub(crate) target: &'a str,
    pub(crate) version: Version,
    /// Fields as sent.
    pub(crate) fields: Fields<'a>,
}

/// Head of a response (RFC 9112, 4).
#[derive(Clone, Debug)]
pub(crate) struct ResponseHead<'a> {
    pub(crate) version: Version,
    /// Three digits, of which HTTP defines 100 to 599 (RFC 9110, 15).
    pub(crate) status: u16,
    /// Reason phrase, empty if it has bytes beyond ASCII.
    pub(crate) reason: &'a str,
    /// Fields as sent.
    pub(crate) fields: Fields<'a>,
}

/// First error in bytes that are no head of HTTP/1.x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParseError {
    /// The start line is malformed before its version.
    StartLine,
    /// The start line names no version of HTTP/1.
    Version,
    /// A field name is empty, has a byte that is no token character, or is not followed by a colon.
    FieldName,
    /// A field value has a control byte.
    FieldValue,
    /// A line does not end in CRLF.
    LineEnd,
    /// The head has more fields than are parsed.
    TooManyFields,
    /// The blank line is missing, or bytes follow it.
    Length,
    /// The parsed fields do not stand one to a line.
    Lines,
}

impl<'a> RequestHead<'a> {
    /// Parses a complete head, its blank line included, that a
    /// [`HeadScan`](super::scan::HeadScan) has passed.
    ///
    /// # Errors
    ///
    /// The first error in it.
    pub(crate) fn parse(head: &'a [u8]) -> Result<Self, ParseError> {
        let mut slots = field_slots(head);
        let mut request = httparse::Request::new(&mut slots);
        check_length(head, request.parse(head)?)?;
        Ok(Self {
            method: request.method.ok_or(ParseError::StartLine)?,
            target: request.path.ok_or(ParseError::StartLine)?,
            version: version(request.version)?,
            fields: Fields::new(head, request.headers).ok_or(ParseError::Lines)?,
        })
    }
}

impl<'a> ResponseHead<'a> {
    /// Parses a complete head, its blank line included, that a
    /// [`HeadScan`](super::scan::HeadScan) has passed.
    ///
    /// # Errors
    ///
    /// The first error in it.
    pub(crate) fn parse(head: &'a [u8]) -> Result<Self, ParseError> {
        let mut slots = field_slots(head);
        let mut response = httparse::Response::new(&mut slots);
        check_length(head, response.parse(head)?)?;
        Ok(Self {
            version: version(response.version)?,
            status: response.code.ok_or(ParseError::StartLine)?,
            reason: response.reason.ok_or(ParseError::StartLine)?,
            fields: Fields::new(head, response.headers).ok_or(ParseError::Lines)?,
        })
    }
}

impl From<httparse::Error> for ParseError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::Token | httparse::Error::Status => Self::StartLine,
            httparse::Error::Version => Self::Version,
            httparse::Error::HeaderName => Self::FieldName,
            httparse::Error::HeaderValue => Self::FieldValue,
            httparse::Error::NewLine => Self::LineEnd,
            httparse::Error::TooManyHeaders => Self::TooManyFields,
        }
    }
}

/// Returns room for the fields of `head`: one for each of its lines, [`MAX_FIELDS`] at most.
fn field_slots(head: &[u8]) -> Vec<httparse::Header<'_>> {
    let lines = head.iter().filter(|&&byte| byte == b'\n').count();
    vec![httparse::EMPTY_HEADER; lines.min(MAX_FIELDS)]
}

/// Checks that the parser took all of `head` for the head.
fn check_length(head: &[u8], status: httparse::Status<usize>) -> Result<(), ParseError> {
    match status {
        httparse::Status::Complete(end) if end == head.len() => Ok(()),
        _ => Err(ParseError::Length),
    }
}

fn version(minor: Option<u8>) -> Result<Version, ParseError> {
    match minor {
        Some(0) => Ok(Version::Http10),
        Some(1) => Ok(Version::Http11),
        _ => Err(ParseError::Version),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handshake::samples::table;

    #[test]
    fn any_request_of_http_1_is_parsed() {
        let rows = table([
            ("GET / HTTP/1.1\r\n\r\n", ("GET", "/", Version::Http11), 0),
            ("\r\nGET /metrics HTTP/1.0\r\n\r\n", ("GET", "/metrics", Version::Http10), 0),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", ("OPTIONS", "*", Version::Http11), 1),
            ("CONNECT a:80 HTTP/1.1\r\n\r\n", ("CONNECT", "a:80", Version::Http11), 0),
            ("get http://a/#b HTTP/1.1\r\n\r\n", ("get", "http://a/#b", Version::Http11), 0),
            (
                "POST / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
                ("POST", "/", Version::Http11),
                2,
            ),
        ]);
        for (bytes, (method, target, version), fields) in rows {
            let head = RequestHead::parse(bytes.as_bytes()).unwrap();
            assert_eq!((head.method, head.target, head.version), (method, target, version));
            assert_eq!(head.fields.iter().count(), fields, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_named() {
        let rows = table([
            ("", ParseError::Length),
            ("GET / HTTP/1.1\r\n", ParseError::Length),
            ("GET / HTTP/1.1\r\n\r\nx", ParseError::Length),
            (" / HTTP/1.1\r\n\r\n", ParseError::StartLine),
            ("G(T / HTTP/1.1\r\n\r\n", ParseError::StartLine),
            ("GET  / HTTP/1.1\r\n\r\n", ParseError::StartLine),
            ("GET /\r\n\r\n", ParseError::StartLine),
            ("GET / HTTP/0.9\r\n\r\n", ParseError::Version),
            ("GET / HTTP/1.2\r\n\r\n", ParseError::Version),
            ("GET / HTTP/2.0\r\n\r\n", ParseError::Version),
            ("GET / http/1.1\r\n\r\n", ParseError::Version),
            ("GET / HTTP/1.1 \r\n\r\n", ParseError::LineEnd),
            ("GET / HTTP/1.10\r\n\r\n", ParseError::LineEnd),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", ParseError::FieldName),
            ("GET / HTTP/1.1\r\nA : 1\r\n\r\n", ParseError::FieldName),
            ("GET / HTTP/1.1\r\n: 1\r\n\r\n", ParseError::FieldName),
            ("GET / HTTP/1.1\r\nA: \x01\r\n\r\n", ParseError::FieldValue),
            // Nothing but what a scan has passed gets here; lines are compared all the same.
            ("GET / HTTP/1.1\r\nA: 1\n\r\n", ParseError::Lines),
        ]);
        for (bytes, error) in rows {
            assert_eq!(RequestHead::parse(bytes.as_bytes()).unwrap_err(), error, "{bytes:?}");
        }
    }

    #[test]
    fn fields_are_parsed_up_to_their_limit() {
        let with = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "a:\r\n".repeat(count));
        let head = with(MAX_FIELDS);
        assert_eq!(RequestHead::parse(head.as_bytes()).unwrap().fields.iter().count(), MAX_FIELDS);
        let head = with(MAX_FIELDS + 1);
        assert_eq!(RequestHead::parse(head.as_bytes()).unwrap_err(), ParseError::TooManyFields);
    }

    #[test]
    fn any_response_of_http_1_is_parsed() {
        let rows = table([
            ("HTTP/1.1 200 OK\r\n\r\n", (Version::Http11, 200, "OK")),
            ("HTTP/1.0 404 Not Found\r\nA: b\r\n\r\n", (Version::Http10, 404, "Not Found")),
            ("HTTP/1.1 101\r\n\r\n", (Version::Http11, 101, "")),
            ("HTTP/1.1 101 \r\n\r\n", (Version::Http11, 101, "")),
            ("HTTP/1.1 403 gr\u{fc}n\r\n\r\n", (Version::Http11, 403, "")),
            ("HTTP/1.1 999 x\r\n\r\n", (Version::Http11, 999, "x")),
        ]);
        for (bytes, expected) in rows {
            let head = ResponseHead::parse(bytes.as_bytes()).unwrap();
            assert_eq!((head.version, head.status, head.reason), expected, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_response_is_named() {
        let rows = table([
            ("HTTP/1.1 200 OK\r\n", ParseError::Length),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", ParseError::Version),
            ("HTTP/2 200\r\n\r\n", ParseError::Version),
            ("HTTP/1.1 99 x\r\n\r\n", ParseError::StartLine),
            ("HTTP/1.1 1000 x\r\n\r\n", ParseError::StartLine),
            ("HTTP/1.1 200 OK\r\nX-Space : x\r\n\r\n", ParseError::FieldName),
        ]);
        for (bytes, error) in rows {
            assert_eq!(ResponseHead::parse(bytes.as_bytes()).unwrap_err(), error, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = RequestHead::parse(&bytes);
            let _ = ResponseHead::parse(&bytes);
            let _ = ResponseHead::parse(&[b"HTTP/1.1 101 x\r\n", &bytes[..]].concat());
        }
    }
}
