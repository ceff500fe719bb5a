//! What a request is known by across programs: its request id, and its trace.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use super::fields::{Field, Fields};

/// Name of the field with the request id.
pub(crate) const REQUEST_ID: &str = "X-Request-ID";
/// Name of the field with the trace (W3C Trace Context, 3.2).
const TRACEPARENT: &str = "traceparent";
/// Lengths of a client's request id that is taken, in bytes.
const ID_LENGTHS: RangeInclusive<usize> = 16..=64;
/// Length of a `traceparent` of version 00, in bytes. Later versions may append to it (3.3.1).
const TRACE_LENGTH: usize = 55;

/// Returns the client's own request id, if it has sent one that is sane, and once; else `fresh` as
/// 32 hexadecimal digits.
pub(crate) fn request_id<'a>(fields: &Fields<'a>, fresh: u128) -> Cow<'a, str> {
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let sane = fields
        .single_text(REQUEST_ID)
        .filter(|id| ID_LENGTHS.contains(&id.len()) && id.bytes().all(is_id_byte));
    sane.map_or_else(|| format!("{fresh:032x}").into(), Cow::from)
}

/// Returns whether a field has the name of the request id, or one that CGI takes for it.
pub(super) fn is_request_id(field: &Field<'_>) -> bool {
    field.is_same_variable(REQUEST_ID)
}

/// Returns the `traceparent` of a request, if it is valid, without what a version after 00 has
/// appended.
pub(super) fn traceparent<'a>(fields: &Fields<'a>) -> Option<&'a str> {
    let value = fields.single_text(TRACEPARENT)?;
    let (known, rest) = value.split_at_checked(TRACE_LENGTH)?;
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |part: &str| is_hex(part) && part.bytes().any(|byte| byte != b'0');
    let mut parts = known.split('-');
    let [version, trace, parent, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let is_valid = [version, trace, parent, flags].map(str::len) == [2, 32, 16, 2]
        && is_hex(version)
        && version != "ff"
        && is_id(trace)
        && is_id(parent)
        && is_hex(flags)
        && (rest.is_empty() || (version != "00" && rest.starts_with('-')));
    is_valid.then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::http::RequestHead;
    use crate::handshake::samples::{table, upgrade};

    const FRESH: &str = "0000000000000000000000000000beef";

    fn id(lines: &str) -> String {
        let head = upgrade(lines);
        let head = RequestHead::parse(head.as_bytes()).unwrap();
        request_id(&head.fields, 0xbeef).into_owned()
    }

    #[test]
    fn a_request_id_is_16_to_64_harmless_characters_or_ours() {
        let at = |length: usize| "Az09._-x".repeat(9)[..length].to_owned();
        let rows = table([
            (at(15), false),
            (at(16), true),
            (at(64), true),
            (at(65), false),
            (String::new(), false),
            (format!("{} {}", at(10), at(10)), false),
            (format!("{}\"", at(20)), false),
            (format!("{}é", at(20)), false),
            (format!("{}, {}", at(20), at(20)), false),
            (format!("{}\r\nx-request-id: {}", at(20), at(20)), false),
        ]);
        for (value, is_id) in rows {
            let expected = if is_id { &value } else { FRESH };
            assert_eq!(id(&format!("X-Request-ID: {value}\r\n")), expected, "{value}");
        }
        assert_eq!(id(""), FRESH);
        assert_eq!(id(&format!("X_Request_ID: {}\r\n", at(20))), FRESH);
    }

    #[test]
    fn a_traceparent_is_logged_only_if_it_is_valid() {
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        const PARENT: &str = "00f067aa0ba902b7";
        let good = |version: &str| format!("{version}-{TRACE}-{PARENT}-01");
        let later = good("cc");
        let rows = table([
            (good("00"), Some(good("00"))),
            (later.clone(), Some(later.clone())),
            (format!("{later}-what-comes"), Some(later.clone())),
            (format!("{later}x"), None),
            (format!("{}-what-comes", good("00")), None),
            (good("ff"), None),
            (good("0g"), None),
            (good("00").to_uppercase(), None),
            (good("00").replace(TRACE, &"0".repeat(32)), None),
            (good("00").replace(PARENT, &"0".repeat(16)), None),
            (good("00").replace("-01", "-0x"), None),
            (good("00").replace(TRACE, &TRACE.replace('4', "-")), None),
            (good("00").replace(TRACE, &TRACE.replace("4b", "é")), None),
            (good("00")[..54].to_owned(), None),
            (format!("{}\r\nTraceparent: {}", good("00"), good("00")), None),
            (String::new(), None),
        ]);
        for (value, expected) in rows {
            let head = upgrade(&format!("Traceparent: {value}\r\n"));
            let head = RequestHead::parse(head.as_bytes()).unwrap();
            assert_eq!(traceparent(&head.fields), expected.as_deref(), "{value}");
        }
    }
}
