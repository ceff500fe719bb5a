//! A request to the admin listener, as a value.

use data_encoding::HEXLOWER_PERMISSIVE;

use super::reply::Reply;
use crate::digits;
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::fields::Fields;
use crate::handshake::http::{RequestHead, Version};
use crate::handshake::target::{Target, is_authority};

/// Most bytes of a body.
pub(super) const BODY_MAX: usize = 16 * 1024;

/// Method of a request (RFC 9110, 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Delete,
    /// Any other, which no route has.
    Other,
}

/// A whole request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Path as sent, without the query.
    pub(super) path: String,
    /// Segments of the path, decoded. `/` has a single, empty one.
    pub(super) segments: Vec<String>,
    /// Pairs of the query in their order, decoded.
    pub(super) query: Vec<(String, String)>,
    /// Host that it is meant for, with a port if it names one; `None` in HTTP/1.0 without one.
    pub(super) host: Option<String>,
    /// Fields with their values; the names are in lower case.
    pub(super) fields: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    /// Whether the connection may go on after it.
    pub(super) keeps_alive: bool,
}

/// A parsed head, and the number of bytes of the body that follows it.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) request: Request,
    pub(super) body: usize,
    /// Whether the client waits for a 100 before it sends the body (RFC 9110, 10.1.1).
    pub(super) awaits_continue: bool,
}

impl Announced {
    /// Parses a complete head.
    ///
    /// # Errors
    ///
    /// The answer to a head that is no request of HTTP/1, or one whose body cannot be taken. Where
    /// the next request begins is unknown then, so that the connection has to end.
    pub(super) fn parse(head: &[u8]) -> Result<Self, Reply> {
        let head = RequestHead::parse(head).map_err(|error| {
            let response = ErrorResponse::from(error);
            Reply::error(response.status, response.detail)
        })?;
        let body = body_length(&head.fields)?;
        let target = Target::parse(head.target, true).map_err(|what| Reply::error(400, what))?;
        let (path, query) = target.path.split_once('?').unwrap_or((&target.path, ""));
        let decoded = |text| decode(text).ok_or_else(bad_encoding);
        let segments = path.strip_prefix('/').unwrap_or(path).split('/').map(decoded);
        let host = match target.authority {
            // It overrides the field (RFC 9112, 3.2.2), which has to be there all the same.
            Some(authority) => host(&head)?.map(|_| authority.to_owned()),
            None => host(&head)?,
        };
        let awaits_continue =
            head.version == Version::Http11 && head.fields.lists("Expect", "100-continue");
        let keeps_alive =
            head.version == Version::Http11 && !head.fields.lists("Connection", "close");
        let field = |field: &crate::handshake::fields::Field<'_>| {
            (field.name.to_ascii_lowercase(), field.value.to_owned())
        };
        let request = Request {
            method: Method::of(head.method),
            path: path.to_owned(),
            segments: segments.collect::<Result<_, _>>()?,
            query: pairs(query)?,
            host,
            fields: head.fields.iter().map(field).collect(),
            body: Vec::new(),
            keeps_alive,
        };
        Ok(Self { request, body, awaits_continue: awaits_continue && body > 0 })
    }
}

impl Method {
    fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "DELETE" => Self::Delete,
            _ => Self::Other,
        }
    }

    /// Returns whether it may change something.
    pub(super) fn is_changing(self) -> bool {
        matches!(self, Self::Post | Self::Delete)
    }
}

impl Request {
    /// Returns the value of a field that stands in the request once. `name` is in lower case.
    ///
    /// # Errors
    ///
    /// The number of such fields if it is not 1.
    pub(super) fn field(&self, name: &str) -> Result<&[u8], usize> {
        let mut values = self.fields.iter().filter(|(other, _)| other == name);
        match (values.next(), values.count()) {
            (Some((_, value)), 0) => Ok(value),
            (first, more) => Err(usize::from(first.is_some()) + more),
        }
    }

    /// Refuses a query with a key that is not one of these, or one that it has twice: a filter that
    /// is misspelt, or only half of one, must not close what it was to spare.
    ///
    /// # Errors
    ///
    /// The answer that names the key.
    pub(super) fn check_keys(&self, keys: &[&[&str]]) -> Result<(), Reply> {
        let keys = keys.concat();
        for (at, (key, _)) in self.query.iter().enumerate() {
            let problem = if !keys.contains(&key.as_str()) {
                if keys.is_empty() {
                    format!("{key:?} means nothing here: leave it out")
                } else {
                    format!("{key:?} means nothing here: write {}", keys.join(", "))
                }
            } else if self.query[..at].iter().any(|(before, _)| before == key) {
                format!("{key:?} stands in the query twice: give one, and ask again for the other")
            } else {
                continue;
            };
            return Err(Reply::error(400, problem));
        }
        Ok(())
    }

    /// Returns the first value of a key of the query.
    pub(super) fn query(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }
}

/// Returns the value of Host, which HTTP/1.1 must have (RFC 9112, 3.2).
fn host(head: &RequestHead<'_>) -> Result<Option<String>, Reply> {
    let value = match head.fields.single("Host") {
        Ok(value) => value,
        Err(0) if head.version == Version::Http10 => return Ok(None),
        Err(0) => return Err(Reply::error(400, "there is no Host: name this listener in it")),
        Err(_) => return Err(Reply::error(400, "there is more than one Host: send one")),
    };
    let host = std::str::from_utf8(value).ok().filter(|host| is_authority(host));
    let host = host.ok_or_else(|| {
        Reply::error(400, "Host is not a host and port: write it as in 127.0.0.1:9600")
    })?;
    Ok(Some(host.to_owned()))
}

/// Returns the length of the body (RFC 9112, 6).
fn body_length(fields: &Fields<'_>) -> Result<usize, Reply> {
    if fields.values("Transfer-Encoding").next().is_some() {
        let problem = "Transfer-Encoding is not supported here: send the body with Content-Length";
        return Err(Reply::error(501, problem));
    }
    let value = match fields.single("Content-Length") {
        Ok(value) => value,
        Err(0) => return Ok(0),
        Err(_) => return Err(Reply::error(400, "there is more than one Content-Length: send one")),
    };
    let digits = std::str::from_utf8(value).ok().filter(|text| !text.is_empty());
    let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let digits = digits.ok_or_else(|| {
        Reply::error(400, "Content-Length is not a number of bytes: write digits only")
    })?;
    match digits::number::<usize>(digits) {
        Some(length) if length <= BODY_MAX => Ok(length),
        _ => {
            let problem = format!("a body of {digits} bytes is too long: send {BODY_MAX} at most");
            Err(Reply::error(413, problem))
        }
    }
}

/// Returns the pairs of a query, in which `+` is a space, as HTML forms write it.
fn pairs(query: &str) -> Result<Vec<(String, String)>, Reply> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let decoded = |text: &str| decode(&text.replace('+', " ")).ok_or_else(bad_encoding);
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decoded(key)?, decoded(value)?))
        })
        .collect()
}

fn bad_encoding() -> Reply {
    Reply::error(400, "the request target has a broken percent-encoding: write % as %25")
}

/// Returns a text without its percent-encoding (RFC 3986, 2.1), if that is whole and stands for
/// UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_owned();
    for part in parts {
        let (digits, rest) = part.as_bytes().split_at_checked(2)?;
        bytes.extend(HEXLOWER_PERMISSIVE.decode(digits).ok()?);
        bytes.extend(rest);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handshake::samples::table;

    fn parse(text: &str) -> Result<Announced, u16> {
        Announced::parse(text.as_bytes()).map_err(|reply| reply.status)
    }

    #[test]
    fn a_request_has_its_parts_decoded() {
        let head = "DELETE /tunnels/a%2Fb%20c?code=1008&reason=so+long%21&x HTTP/1.1\r\n\
                    Host: a:1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
        let Announced { request, body, awaits_continue } = parse(head).unwrap();
        assert_eq!((request.method, body, awaits_continue), (Method::Delete, 3, true));
        assert_eq!(request.path, "/tunnels/a%2Fb%20c");
        assert_eq!(request.segments, ["tunnels", "a/b c"]);
        assert_eq!(request.query("code"), Some("1008"));
        assert_eq!(request.query("reason"), Some("so long!"));
        assert_eq!((request.query("x"), request.query("y")), (Some(""), None));
        assert_eq!(request.host.as_deref(), Some("a:1"));
        assert_eq!(request.field("content-length"), Ok(&b"3"[..]));
        assert!(request.keeps_alive);
        let root = parse("GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n").unwrap().request;
        assert_eq!((&root.segments[..], root.keeps_alive), (&[String::new()][..], false));
        let old = parse("GET http://b/x HTTP/1.0\r\n\r\n").unwrap().request;
        assert_eq!((old.host, old.keeps_alive), (None, false));
        let absolute = parse("GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().request;
        assert_eq!(absolute.host.as_deref(), Some("b"));
    }

    #[test]
    fn a_request_that_cannot_be_taken_has_its_status() {
        let with = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let rows: [(String, u16); 18] = table([
            (with("Transfer-Encoding: chunked\r\n"), 501),
            (with("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"), 501),
            (with("Content-Length: 16385\r\n"), 413),
            (with("Content-Length: 99999999999999999999999\r\n"), 413),
            (with("Content-Length: +1\r\n"), 400),
            (with("Content-Length: \r\n"), 400),
            (with("Content-Length: 1\r\nContent-Length: 1\r\n"), 400),
            (with("Host: b\r\n"), 400),
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\r\nHost: \r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), 400),
            ("GET http://b/ HTTP/1.1\r\n\r\n".to_owned(), 400),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET /% HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET /%f HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET /%ff HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET /?a=%xx HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(), 400),
        ]);
        for (head, status) in rows {
            assert_eq!(parse(&head).unwrap_err(), status, "{head:?}");
        }
        assert_eq!(parse(&with("Content-Length: 16384\r\n")).unwrap().body, BODY_MAX);
    }

    proptest! {
        #[test]
        fn random_targets_never_panic(target in "[/a-f0-9%?&=+é]{0,40}") {
            let head = format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n");
            let _ = Announced::parse(head.as_bytes());
        }
    }
}
