//! The part of a request by which a backend is chosen.

use std::net::IpAddr;

use super::asked::Asked;

/// Part of a request; the key `hash_on` of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HashOn {
    /// Address of the client's connection.
    ClientIp,
    /// Path of the target, without its query.
    Path,
    /// First value of a header field.
    Header(String),
    /// Value of a cookie (RFC 6265, 4.2).
    Cookie(String),
    /// Value of a parameter of the query, as it stands there.
    Query(String),
}

impl HashOn {
    /// Reads `client_ip`, `path`, `header:NAME`, `cookie:NAME` or `query:NAME`.
    ///
    /// # Errors
    ///
    /// The fault in the text, and the text to write instead.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fault = || {
            format!(
                "{text:?} is no part of a request: write client_ip, path, header:NAME, \
                 cookie:NAME or query:NAME"
            )
        };
        match text {
            "client_ip" => return Ok(Self::ClientIp),
            "path" => return Ok(Self::Path),
            _ => {}
        }
        let (kind, name) = text.split_once(':').ok_or_else(fault)?;
        // What ends a name in any of the three is in none.
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"=;&,:\"".contains(&byte));
        match (kind, is_name) {
            ("header", true) => Ok(Self::Header(name.to_owned())),
            ("cookie", true) => Ok(Self::Cookie(name.to_owned())),
            ("query", true) => Ok(Self::Query(name.to_owned())),
            _ => Err(fault()),
        }
    }

    /// Returns the value of this part, if the request has it and it is not empty. `client` is the
    /// address of its connection, if it has one.
    pub(crate) fn value<'r>(
        &self,
        request: Asked<'r>,
        client: Option<IpAddr>,
    ) -> Option<Value<'r>> {
        let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
        let bytes = match self {
            Self::ClientIp => return client.map(Value::Ip),
            Self::Path => Some(path.as_bytes()),
            Self::Header(name) => request.fields.values(name).next(),
            Self::Cookie(name) => {
                let cookies = request.fields.values("Cookie");
                let mut pairs = cookies.flat_map(|line| line.split(|&byte| byte == b';'));
                pairs.find_map(|pair| value_of(pair.trim_ascii(), name))
            }
            Self::Query(name) => query.split('&').find_map(|pair| value_of(pair.as_bytes(), name)),
        };
        bytes.filter(|bytes| !bytes.is_empty()).map(Value::Bytes)
    }
}

/// Value of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'r> {
    Ip(IpAddr),
    Bytes(&'r [u8]),
}

/// Returns the value of a pair `name=value` with this name.
pub(super) fn value_of<'p>(pair: &'p [u8], name: &str) -> Option<&'p [u8]> {
    pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::http::RequestHead;
    use crate::handshake::upgrade::{HandshakeRules, UpgradeRequest};

    #[test]
    fn parts_are_read() {
        assert_eq!(HashOn::parse("client_ip"), Ok(HashOn::ClientIp));
        assert_eq!(HashOn::parse("path"), Ok(HashOn::Path));
        assert_eq!(HashOn::parse("header:X-Room"), Ok(HashOn::Header("X-Room".to_owned())));
        assert_eq!(HashOn::parse("cookie:io"), Ok(HashOn::Cookie("io".to_owned())));
        assert_eq!(HashOn::parse("query:sid"), Ok(HashOn::Query("sid".to_owned())));
        for text in ["", "ip", "header", "header:", "cookie:a=b", "query:a b", "Path", "cookie:a;b"]
        {
            let error = HashOn::parse(text).unwrap_err();
            assert!(error.contains("client_ip") && error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn the_value_is_that_of_the_part() {
        let head = b"GET /room/7?a=1&sid=x%20y&sid=z&empty= HTTP/1.1\r\nHost: a\r\n\
                     Connection: Upgrade\r\nUpgrade: websocket\r\nX-Room: blue\r\n\
                     Cookie: ios=no; io=yes\r\nCookie: later=1; void=\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                     Sec-WebSocket-Version: 13\r\n\r\n";
        let head = RequestHead::parse(head).unwrap();
        let request = UpgradeRequest::judge(&head, HandshakeRules::default()).unwrap();
        let client = Some(IpAddr::from([192, 0, 2, 1]));
        for (part, expected) in [
            ("path", Some("/room/7")),
            ("header:x-room", Some("blue")),
            ("header:X-Other", None),
            ("cookie:io", Some("yes")),
            ("cookie:later", Some("1")),
            ("cookie:void", None),
            ("cookie:o", None),
            ("query:sid", Some("x%20y")),
            ("query:empty", None),
            ("query:id", None),
        ] {
            let value = HashOn::parse(part).unwrap().value(request.asked(), client);
            assert_eq!(value, expected.map(|text| Value::Bytes(text.as_bytes())), "{part}");
        }
        assert_eq!(HashOn::ClientIp.value(request.asked(), client), client.map(Value::Ip));
        assert_eq!(HashOn::ClientIp.value(request.asked(), None), None);
    }
}
