//! Lists of a health check that TOML has in several forms: header fields, and statuses.

use std::fmt;

use super::Invalid;
use crate::backend::health::checks::ExpectedStatus;

/// Fields that a check writes itself, or by which its request would be another one.
const OWN_FIELDS: [&str; 6] = [
    "Connection",
    "Upgrade",
    "Content-Length",
    "Transfer-Encoding",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
];
/// Parts of the names of fields whose values may be secrets.
#[cfg(feature = "config")]
const SECRETS: [&str; 7] = ["auth", "cookie", "key", "token", "secret", "pass", "session"];

/// Names and values of header fields. The values show in no log.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct HeaderList(pub(super) Vec<(String, String)>);

/// Statuses and ranges of them, as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StatusList(pub(super) Vec<String>);

impl HeaderList {
    /// Returns the fields, the values without the white space around them.
    pub(super) fn check(&self) -> Result<Vec<(String, String)>, Invalid> {
        let fields = self.0.iter().enumerate();
        fields.map(|(index, (name, value))| header(index, name, value.trim())).collect()
    }

    /// Returns checked fields as they may be shown: without the values that are secrets.
    #[cfg(feature = "config")]
    pub(super) fn shown(fields: &[(String, String)]) -> Self {
        let shown = fields.iter().map(|(name, value)| {
            let value = if is_secret(name) { "***" } else { value };
            (name.clone(), value.to_owned())
        });
        Self(shown.collect())
    }
}

impl StatusList {
    /// Returns the statuses as one set.
    pub(super) fn check(&self) -> Result<ExpectedStatus, Invalid> {
        const KEY: &str = "expect_status";
        for (index, item) in self.0.iter().enumerate() {
            ExpectedStatus::parse(item).map_err(|fault| Invalid::element(KEY, index, fault))?;
        }
        ExpectedStatus::of_items(self.0.iter().map(String::as_str))
            .map_err(|problem| Invalid::new(KEY, problem))
    }
}

/// Checks a field. Its value shows in no error, since it may be a secret.
fn header(index: usize, name: &str, value: &str) -> Result<(String, String), Invalid> {
    let fault = |problem| Err(Invalid::element("headers", index, problem));
    if !is_field_name(name) {
        return fault(format!("{name:?} is not the name of a header field (RFC 9110, 5.6.2)"));
    }
    if name.eq_ignore_ascii_case("Host") {
        return fault(format!("{name} has a key of its own: set host"));
    }
    if OWN_FIELDS.iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return fault(format!("{name} is not for a check to change: leave it out"));
    }
    if value.chars().any(char::is_control) {
        return fault(format!("the value of {name} has a control character: leave it out"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Returns whether `text` is a token (RFC 9110, 5.6.2).
fn is_field_name(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// Returns whether the value of this field may be a secret.
#[cfg(feature = "config")]
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRETS.iter().any(|part| name.contains(part))
}

impl fmt::Debug for HeaderList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(feature = "config")]
mod text {
    //! The forms in TOML. Headers are a table, or an array of `Name: value`; statuses a number, a
    //! text, or an array of both.

    use std::fmt;

    use serde::de::{Error, MapAccess, SeqAccess, Unexpected, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{HeaderList, StatusList};

    struct Headers;
    struct Line(String, String);
    struct LineText;
    struct Statuses;
    struct StatusItem(String);
    struct StatusText;

    impl<'de> Visitor<'de> for Headers {
        type Value = HeaderList;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table of texts, or an array of \"Name: value\"")
        }

        fn visit_str<E: Error>(self, _: &str) -> Result<HeaderList, E> {
            // The text shows in no error, since it may be a secret.
            Err(E::invalid_type(Unexpected::Other("a text"), &self))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderList, A::Error> {
            let mut fields = Vec::new();
            while let Some(field) = map.next_entry()? {
                fields.push(field);
            }
            Ok(HeaderList(fields))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<HeaderList, A::Error> {
            let mut fields = Vec::new();
            while let Some(Line(name, value)) = list.next_element()? {
                fields.push((name, value));
            }
            Ok(HeaderList(fields))
        }
    }

    impl Visitor<'_> for LineText {
        type Value = Line;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"Name: value\"")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Line, E> {
            // As above.
            let line = text.split_once(':').map(|(name, value)| Line(name.into(), value.into()));
            line.ok_or_else(|| E::invalid_value(Unexpected::Other("a text without a colon"), &self))
        }
    }

    impl<'de> Visitor<'de> for Statuses {
        type Value = StatusList;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a status, a text such as \"200-299\", or an array of them")
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<StatusList, E> {
            Ok(StatusList(vec![number.to_string()]))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<StatusList, E> {
            Ok(StatusList(vec![text.to_owned()]))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<StatusList, A::Error> {
            let mut items = Vec::new();
            while let Some(StatusItem(item)) = list.next_element()? {
                items.push(item);
            }
            Ok(StatusList(items))
        }
    }

    impl Visitor<'_> for StatusText {
        type Value = StatusItem;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a status, or a text such as \"200-299\"")
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<StatusItem, E> {
            Ok(StatusItem(number.to_string()))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<StatusItem, E> {
            Ok(StatusItem(text.to_owned()))
        }
    }

    macro_rules! deserialize_by {
        ($($value:ty: $visitor:expr,)*) => {
            $(impl<'de> Deserialize<'de> for $value {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    deserializer.deserialize_any($visitor)
                }
            })*
        };
    }

    deserialize_by! {
        HeaderList: Headers,
        Line: LineText,
        StatusList: Statuses,
        StatusItem: StatusText,
    }

    impl Serialize for HeaderList {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            // A table has no room for two fields of one name.
            serializer.collect_seq(self.0.iter().map(|(name, value)| format!("{name}: {value}")))
        }
    }

    impl Serialize for StatusList {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(&self.0.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str) -> Result<Vec<(String, String)>, Invalid> {
        HeaderList(vec![("A".into(), "1".into()), (name.into(), value.into())]).check()
    }

    #[test]
    fn fields_are_names_and_values() {
        for (name, value, expected) in [
            ("X-Probe", "1", "1"),
            ("x_probe!#$%&'*+-.^`|~09", " a \t", "a"),
            ("Sec-WebSocket-Protocol", "chat, v2", "chat, v2"),
            ("Empty", "", ""),
            ("Name", "gr\u{fc}n", "gr\u{fc}n"),
        ] {
            let fields = check(name, value).unwrap();
            assert_eq!(fields[1], (name.to_owned(), expected.to_owned()));
        }
    }

    #[test]
    fn fields_that_would_spoil_the_request_are_refused() {
        for (name, value, problem) in [
            ("", "1", "\"\" is not the name of a header field"),
            ("a b", "1", "\"a b\" is not the name of a header field"),
            ("a:", "1", "\"a:\" is not the name of a header field"),
            ("gr\u{fc}n", "1", "\"gr\u{fc}n\" is not the name of a header field"),
            ("a\r\nb", "1", "\"a\\r\\nb\" is not the name of a header field"),
            ("host", "a", "host has a key of its own: set host"),
            ("CONNECTION", "close", "CONNECTION is not for a check to change"),
            ("Upgrade", "h2c", "Upgrade is not for a check to change"),
            ("content-length", "1", "content-length is not for a check to change"),
            ("Transfer-Encoding", "chunked", "Transfer-Encoding is not for a check to change"),
            ("Sec-WebSocket-Key", "a", "Sec-WebSocket-Key is not for a check to change"),
            ("Sec-Websocket-Version", "8", "Sec-Websocket-Version is not for a check to change"),
            ("Authorization", "s3cret\r\nX: y", "the value of Authorization has a control "),
            ("X", "a\0b", "the value of X has a control character"),
            ("X", "a\u{85}b", "the value of X has a control character"),
        ] {
            let invalid = check(name, value).unwrap_err();
            assert_eq!((invalid.key, invalid.index), ("headers", Some(1)), "{invalid:?}");
            assert!(invalid.problem.starts_with(problem), "{invalid:?}");
            assert!(!invalid.problem.contains("s3cret"), "{invalid:?}");
        }
    }

    #[test]
    fn values_show_in_no_log() {
        let list = HeaderList(vec![("X-Probe".into(), "s3cret".into())]);
        assert_eq!(format!("{list:?}"), "[\"X-Probe\"]");
    }

    #[test]
    #[cfg(feature = "config")]
    fn values_that_may_be_secrets_are_not_shown() {
        for (name, is_hidden) in [
            ("Authorization", true),
            ("proxy-authorization", true),
            ("Cookie", true),
            ("X-API-Key", true),
            ("X-Auth-Token", true),
            ("X-Probe", false),
            ("User-Agent", false),
            ("Origin", false),
            ("Sec-WebSocket-Protocol", false),
        ] {
            let shown = HeaderList::shown(&check(name, "1").unwrap());
            let expected = if is_hidden { "***" } else { "1" };
            assert_eq!(shown.0[1], (name.to_owned(), expected.to_owned()));
            assert!(shown.check().is_ok());
        }
    }

    #[test]
    fn statuses_are_one_set() {
        let list = |items: &[&str]| StatusList(items.iter().map(ToString::to_string).collect());
        let statuses = list(&["404", "200-299,301"]).check().unwrap();
        assert_eq!(statuses.to_string(), "200-299,301,404");
        let invalid = list(&["200", "2xx"]).check().unwrap_err();
        assert_eq!((invalid.key, invalid.index), ("expect_status", Some(1)));
        let invalid = list(&[]).check().unwrap_err();
        assert_eq!((invalid.key, invalid.index), ("expect_status", None));
    }
}
