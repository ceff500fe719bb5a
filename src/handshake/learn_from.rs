//! The value that a client's next requests will have, as a backend's answer gives it.
//!
//! Backends choose the names of sessions by themselves: Engine.IO has `{"sid":"…"` in its first
//! answer, SignalR `"connectionToken":"…"`, others set a cookie. No hash of such a value leads to
//! the backend that has chosen it.

use super::hash_on::{HashOn, value_of};
use super::http::ResponseHead;

/// Returns a value as `encodeURIComponent` writes it for a query, if that is another text. A value
/// in a query is compared as it stands there.
pub(crate) fn percent_encoded(value: &[u8]) -> Option<Vec<u8>> {
    let stays = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&byte);
    if value.iter().all(|&byte| stays(byte)) {
        return None;
    }
    let encode = |&byte: &u8| match stays(byte) {
        true => vec![byte],
        false => format!("%{byte:02X}").into_bytes(),
    };
    Some(value.iter().flat_map(encode).collect())
}

/// Part of an answer; the key `learn_from` of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LearnFrom {
    /// Value of a cookie that it sets (RFC 6265, 4.1).
    Cookie(String),
    /// Text that a member of this name has in JSON near the beginning of the body.
    Json(String),
}

/// Bytes of a body that are looked through.
const SOUGHT_MAX: usize = 1_024;

impl LearnFrom {
    /// Reads `cookie:NAME`, `json:NAME`, or `none`, which is `None`.
    ///
    /// # Errors
    ///
    /// The fault in the text, and the text to write instead.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        if text == "none" {
            return Ok(None);
        }
        match (HashOn::parse(text), text.split_once(':')) {
            (Ok(HashOn::Cookie(name)), _) => Ok(Some(Self::Cookie(name))),
            (_, Some(("json", name)))
                if !name.is_empty()
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte)) =>
            {
                Ok(Some(Self::Json(name.to_owned())))
            }
            _ => Err(format!(
                "{text:?} is no part of an answer: write cookie:NAME, json:NAME or none"
            )),
        }
    }

    /// Returns the part of an answer that most often has what this part of a request will have.
    pub(crate) fn for_requests_with(part: &HashOn) -> Option<Self> {
        match part {
            HashOn::Cookie(name) => Some(Self::Cookie(name.clone())),
            HashOn::Query(name) => Some(Self::Json(name.clone())),
            HashOn::ClientIp | HashOn::Path | HashOn::Header(_) => None,
        }
    }

    /// Returns the value in the head of an answer, if it is not empty.
    pub(crate) fn in_head<'r>(&self, response: &ResponseHead<'r>) -> Option<&'r [u8]> {
        let Self::Cookie(name) = self else { return None };
        // A later line is what a client keeps.
        let pairs = response.fields.values("Set-Cookie").filter_map(|line| {
            line.split(|&byte| byte == b';')
                .next()
                .and_then(|pair| value_of(pair.trim_ascii(), name))
        });
        pairs.last().filter(|value| !value.is_empty())
    }

    /// Returns what looks for the value in a body, if that is where it is.
    pub(crate) fn seeker(&self) -> Option<Box<Seeker>> {
        let Self::Json(name) = self else { return None };
        let (start, found, is_over) = Default::default();
        let member = format!("\"{name}\"").into_bytes();
        Some(Box::new(Seeker { member, start, found, is_over }))
    }
}

/// Looks for the text of a member in the beginning of a body.
#[derive(Clone, Debug)]
pub(crate) struct Seeker {
    /// The member's name as it is written.
    member: Vec<u8>,
    start: Vec<u8>,
    found: Option<Vec<u8>>,
    /// It has been found, or will not be.
    is_over: bool,
}

impl Seeker {
    /// Takes the next bytes of a body.
    pub(crate) fn advance(&mut self, payload: &[u8]) {
        if self.is_over {
            return;
        }
        let room = SOUGHT_MAX - self.start.len();
        self.start.extend_from_slice(&payload[..payload.len().min(room)]);
        self.found = text_of(&self.start, &self.member).map(<[u8]>::to_vec);
        self.is_over = self.found.is_some() || self.start.len() == SOUGHT_MAX;
    }

    /// Takes the value, once it has come.
    pub(crate) fn take_found(&mut self) -> Option<Vec<u8>> {
        self.found.take()
    }
}

/// Returns the whole text of the first such member, if it has one that needs no escapes.
fn text_of<'b>(body: &'b [u8], member: &[u8]) -> Option<&'b [u8]> {
    // Within a text, the quotation mark at its end would have a backslash before it.
    let at = body.windows(member.len()).position(|window| window == member)?;
    let value = body[at + member.len()..].trim_ascii_start().strip_prefix(b":")?;
    let text = value.trim_ascii_start().strip_prefix(b"\"")?;
    let end = text.iter().position(|byte| !byte.is_ascii_graphic() || b"\"\\".contains(byte))?;
    (text[end] == b'"' && end > 0).then_some(&text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read() {
        let json = |name: &str| Some(LearnFrom::Json(name.to_owned()));
        let cookie = |name: &str| Some(LearnFrom::Cookie(name.to_owned()));
        assert_eq!(LearnFrom::parse("none"), Ok(None));
        assert_eq!(LearnFrom::parse("cookie:io"), Ok(cookie("io")));
        assert_eq!(LearnFrom::parse("json:a:b"), Ok(json("a:b")));
        for text in ["", "json", "json:", "json:a b", "json:a\"", "cookie:", "cookie:a=b", "path"] {
            let error = LearnFrom::parse(text).unwrap_err();
            assert!(error.contains("json:NAME") && error.contains(&format!("{text:?}")), "{error}");
        }
        for (part, expected) in [
            ("cookie:io", cookie("io")),
            ("query:sid", json("sid")),
            ("header:X-Room", None),
            ("path", None),
            ("client_ip", None),
        ] {
            assert_eq!(LearnFrom::for_requests_with(&HashOn::parse(part).unwrap()), expected);
        }
    }

    #[test]
    fn the_last_cookie_of_the_name_counts() {
        for (lines, expected) in [
            ("Set-Cookie: io=abc; Path=/; HttpOnly\r\n", Some("abc")),
            ("Set-Cookie: ios=1\r\nset-cookie:  io=a=b\r\n", Some("a=b")),
            ("Set-Cookie: io=a\r\nSet-Cookie: io=b\r\n", Some("b")),
            ("Set-Cookie: x=1; io=2\r\n", None),
            ("Set-Cookie: io=; Max-Age=0\r\n", None),
            ("Cookie: io=1\r\n", None),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
            let head = ResponseHead::parse(head.as_bytes()).unwrap();
            let value = LearnFrom::Cookie("io".to_owned()).in_head(&head);
            assert_eq!(value, expected.map(str::as_bytes), "{lines:?}");
            assert_eq!(LearnFrom::Json("io".to_owned()).in_head(&head), None);
        }
    }

    #[test]
    fn values_are_encoded_where_a_query_needs_it() {
        for (value, expected) in [
            ("lv_VI97-A", None),
            ("(~.*'!)", None),
            ("a+/b==", Some("a%2B%2Fb%3D%3D")),
            ("%&", Some("%25%26")),
        ] {
            let encoded = percent_encoded(value.as_bytes());
            assert_eq!(encoded.as_deref(), expected.map(str::as_bytes), "{value}");
        }
    }

    fn sought<'p>(payloads: impl IntoIterator<Item = &'p [u8]>) -> Option<String> {
        let mut seeker = LearnFrom::Json("sid".to_owned()).seeker()?;
        payloads.into_iter().for_each(|payload| seeker.advance(payload));
        let found = seeker.take_found().map(|text| String::from_utf8(text).unwrap());
        assert_eq!(seeker.take_found(), None);
        seeker.advance(br#""sid":"again""#);
        assert!(found.is_none() || seeker.take_found().is_none());
        found
    }

    #[test]
    fn the_text_of_the_member_is_found() {
        for (body, expected) in [
            (r#"0{"sid":"lv_VI97-A","upgrades":["websocket"]}"#, Some("lv_VI97-A")),
            (r#"96:0{"sid":"a"}2:40"#, Some("a")),
            ("{ \"x\": \"y\",\r\n  \"sid\" :\t\"a\" }", Some("a")),
            (r#"{"sid":"a","sid":"b"}"#, Some("a")),
            (r#"{"sid":""}"#, None),
            (r#"{"sid":7}"#, None),
            (r#"{"sid":"a\"b"}"#, None),
            (r#"{"sid":"a b"}"#, None),
            (r#"{"sid":"cut"#, None),
            (r#"{"sid"#, None),
            (r#"{"x":"\"sid\":\"a\""}"#, None),
            (r#"{"asid":"a"}"#, None),
            (r#"["sid"]"#, None),
            ("", None),
        ] {
            let body = body.as_bytes();
            let expected = expected.map(str::to_owned);
            for cut in 0..=body.len() {
                let (first, second) = body.split_at(cut);
                assert_eq!(sought([first, second]), expected, "{body:?} {cut}");
            }
            assert_eq!(sought(body.chunks(1)), expected);
        }
    }

    #[test]
    fn only_the_beginning_of_a_body_is_looked_through() {
        let value = br#""sid":"a""#;
        let blank = [b' '; SOUGHT_MAX];
        assert_eq!(sought([&blank[value.len()..], value]), Some("a".to_owned()));
        assert_eq!(sought([&blank[value.len() - 1..], value]), None);
    }
}
