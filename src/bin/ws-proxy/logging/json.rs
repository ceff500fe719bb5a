//! The format `json`: one object a line.

use std::io::{self, Write};
use std::time::SystemTime;

use log::Record;
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use serde::Serializer as _;
use serde::ser::SerializeMap;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::is_event;

/// Writes one record as an object, without the end of the line.
///
/// # Errors
///
/// Those of `output`.
pub(super) fn write(
    output: &mut impl Write,
    time: SystemTime,
    record: &Record<'_>,
) -> io::Result<()> {
    let mut serializer = Serializer::with_formatter(output, OneLine);
    let mut object = serializer.serialize_map(None)?;
    let time = humantime::format_rfc3339_millis(time);
    object.serialize_entry("time", &format_args!("{time}"))?;
    object.serialize_entry("level", &record.level().as_str().to_ascii_lowercase())?;
    if is_event(record) {
        object.serialize_entry("event", record.args())?;
        record.key_values().visit(&mut Fields(&mut object)).map_err(io::Error::other)?;
    } else {
        // Other packages write sentences, and choose their key-values freely.
        object.serialize_entry("event", "log")?;
        object.serialize_entry("target", record.target())?;
        object.serialize_entry("message", record.args())?;
    }
    Ok(SerializeMap::end(object)?)
}

/// Writes key-values as members of the object.
struct Fields<'o, O>(&'o mut O);

impl<'kvs, O: SerializeMap> VisitSource<'kvs> for Fields<'_, O> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(&mut Member(self.0, key.as_str()))
    }
}

/// Writes a value as the member of this name, in JSON's own type where it has one.
struct Member<'o, O>(&'o mut O, &'o str);

impl<O: SerializeMap> Member<'_, O> {
    fn put(&mut self, value: &impl serde::Serialize) -> Result<(), kv::Error> {
        let Self(object, name) = self;
        object.serialize_entry(*name, value).map_err(|_| kv::Error::msg("cannot be written"))
    }
}

impl<'v, O: SerializeMap> VisitValue<'v> for Member<'_, O> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.put(&format_args!("{value}"))
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.put(&())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.put(&value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.put(&value)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // As in text. JSON has no other number than a finite one, and null stands for those.
        self.put(&((value * 10.0).round() / 10.0))
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.put(&value)
    }
}

/// Writes JSON on one line, without what terminals and readers of lines act on.
///
/// JSON itself asks for escapes of quotes, backslashes and what is below U+0020 (RFC 8259, 7). Here
/// everything has one that Rust's own strings escape, as in text: U+0085 and U+2028 end a line for
/// some readers, U+009B begins a terminal's command.
struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        output: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let is_shown =
            |character: char| matches!(character, ' '..='~') || character.escape_debug().len() == 1;
        let mut rest = fragment;
        while let Some((at, hidden)) = rest.char_indices().find(|&(_, it)| !is_shown(it)) {
            output.write_all(&rest.as_bytes()[..at])?;
            for unit in hidden.encode_utf16(&mut [0; 2]) {
                write!(output, "\\u{unit:04x}")?;
            }
            rest = &rest[at + hidden.len_utf8()..];
        }
        output.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use log::Level;
    use proptest::prelude::*;

    use super::*;

    fn line(target: &str, message: &str, fields: &[(&str, Value<'_>)]) -> String {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1);
        let mut line = Vec::new();
        write(
            &mut line,
            time,
            &Record::builder()
                .level(Level::Warn)
                .target(target)
                .args(format_args!("{message}"))
                .key_values(&fields)
                .build(),
        )
        .unwrap();
        String::from_utf8(line).unwrap()
    }

    /// One value as it is written.
    fn member<'v>(value: impl Into<Value<'v>>) -> String {
        let line = line("ws_proxy", "x", &[("v", value.into())]);
        let start = r#"{"time":"1970-01-01T00:00:00.001Z","level":"warn","event":"x","v":"#;
        line.strip_prefix(start).and_then(|rest| rest.strip_suffix('}')).unwrap().to_owned()
    }

    #[test]
    fn a_record_is_one_object_with_its_fields_in_their_order() {
        let fields = [("b", Value::from("two")), ("a", 1.into()), ("c", Value::null())];
        let expected = r#"{"time":"1970-01-01T00:00:00.001Z","level":"warn","event":"listening","#
            .to_owned()
            + r#""b":"two","a":1,"c":null}"#;
        for target in ["ws_proxy", "ws_proxy::net"] {
            assert_eq!(line(target, "listening", &fields), expected);
        }
    }

    #[test]
    fn numbers_are_numbers_and_everything_without_a_type_is_a_string() {
        let address: std::net::SocketAddr = "[::1]:80".parse().unwrap();
        let rows = [
            (member(0_u64), "0"),
            (member(u64::MAX), "18446744073709551615"),
            (member(-5_i64), "-5"),
            (member(101_u16), "101"),
            (member(3.0), "3.0"),
            (member(1.26), "1.3"),
            (member(f64::NAN), "null"),
            (member(true), "true"),
            (member(Value::null()), "null"),
            (member("17"), r#""17""#),
            (member("-"), r#""-""#),
            (member(Value::from_display(&address)), r#""[::1]:80""#),
            (member(Value::from_debug(&Some(1))), r#""Some(1)""#),
        ];
        for (written, expected) in rows {
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn what_could_end_a_line_or_drive_a_terminal_is_escaped() {
        let rows = [
            ("a\"b\\c/'d'", r#""a\"b\\c/'d'""#),
            ("a\nb\r\tc\0", r#""a\nb\r\tc\u0000""#),
            ("\u{1b}[31m\u{7f}", r#""\u001b[31m\u007f""#),
            ("\u{85}\u{9b}2J", r#""\u0085\u009b2J""#),
            ("\u{2028}\u{2029}\u{202e}", r#""\u2028\u2029\u202e""#),
            ("é漢\u{1f600}", "\"é漢\u{1f600}\""),
            ("\u{e0001}", r#""\udb40\udc01""#),
        ];
        for (value, expected) in rows {
            assert_eq!(member(value), expected);
            assert_eq!(serde_json::from_str::<String>(expected).unwrap(), value);
        }
    }

    #[test]
    fn other_packages_say_who_they_are() {
        let other = line("ws_proxyish::a b", "went\nwrong", &[("event", "stopped".into())]);
        let expected = r#""event":"log","target":"ws_proxyish::a b","message":"went\nwrong"}"#;
        assert!(other.ends_with(expected), "{other}");
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_one_line(name: String, value: String, message: String) {
            let written = line("ws_proxy", &message, &[(&name, Value::from(&*value))]);
            prop_assert!(!written.chars().any(char::is_control), "{:?}", written);
            let read: serde_json::Value = serde_json::from_str(&written).unwrap();
            if !["time", "level", "event"].contains(&&*name) {
                prop_assert_eq!(read[&name].as_str(), Some(&*value));
                prop_assert_eq!(read["event"].as_str(), Some(&*message));
            }
        }
    }
}
