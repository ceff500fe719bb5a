//! The format `text`: logfmt, which is `key=value` with the values quoted where they need it.

use std::fmt;
use std::time::SystemTime;

use log::Record;
use log::kv::{self, Key, Value, VisitSource, VisitValue};

use super::is_event;

/// Keys whose values are texts for people. They are always quoted, so that no line changes its
/// shape with the words in it.
const TEXTS: [&str; 9] =
    ["error", "detail", "hint", "file", "keys", "fault", "path", "host", "forwarded_for"];

/// One record as text, without the end of the line.
pub(super) struct Line<'a>(pub(super) SystemTime, pub(super) &'a Record<'a>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(time, record) = self;
        let time = humantime::format_rfc3339_millis(*time);
        write!(f, "time={time} level={}", record.level().as_str().to_ascii_lowercase())?;
        let message = record.args().to_string();
        let target = record.target();
        if is_event(record) {
            write_field(f, "event", &message)?;
            record.key_values().visit(&mut Fields(f)).map_err(|_| fmt::Error)
        } else {
            // Other packages write sentences, and choose their key-values freely.
            write_field(f, "target", target)?;
            write!(f, " message={message:?}")
        }
    }
}

/// Writes key-values as fields.
struct Fields<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl<'kvs> VisitSource<'kvs> for Fields<'_, '_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let mut text = Text(None);
        value.visit(&mut text)?;
        match text.0 {
            Some(text) => write_field(self.0, key.as_str(), &text)?,
            // Bare under any key: no text is.
            None => write!(self.0, " {key}=-")?,
        }
        Ok(())
    }
}

/// Collects a value as text; `None` is null.
struct Text(Option<String>);

impl<'v> VisitValue<'v> for Text {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0 = Some(value.to_string());
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0 = None;
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.0 = Some(format!("{value:.1}"));
        Ok(())
    }
}

/// Writes ` key=value`. A value is quoted and escaped, as a string of Rust, unless it is made of
/// characters that can end neither the value nor the line.
fn write_field(f: &mut fmt::Formatter<'_>, key: &str, value: &str) -> fmt::Result {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/,+@%*[]".contains(&byte);
    if value.is_empty() || TEXTS.contains(&key) || !value.bytes().all(is_safe) {
        write!(f, " {key}={value:?}")
    } else {
        write!(f, " {key}={value}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use log::Level;

    use super::*;

    fn line(target: &str, message: &str, fields: &[(&str, Value<'_>)]) -> String {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1);
        let (level, fields) = (Level::Warn, &fields);
        Line(
            time,
            &Record::builder()
                .level(level)
                .target(target)
                .args(format_args!("{message}"))
                .key_values(fields)
                .build(),
        )
        .to_string()
    }

    /// The text of one value under this key.
    fn field<'v>(key: &'v str, value: impl Into<Value<'v>>) -> String {
        let line = line("ws_proxy", "x", &[(key, value.into())]);
        let fields = line.strip_prefix("time=1970-01-01T00:00:00.001Z level=warn event=x ");
        fields.unwrap_or(&line).to_owned()
    }

    #[test]
    fn a_record_is_one_line_of_fields_in_their_order() {
        let fields = [("b", Value::from("two")), ("a", 1.into()), ("c", Value::null())];
        let expected = "time=1970-01-01T00:00:00.001Z level=warn event=listening b=two a=1 c=-";
        for target in ["ws_proxy", "ws_proxy::net"] {
            assert_eq!(line(target, "listening", &fields), expected);
        }
    }

    #[test]
    fn values_are_quoted_unless_they_are_safe() {
        let cases = [
            ("chat-1_a.b:80/c,d+e@f%g*h[i]", "v=chat-1_a.b:80/c,d+e@f%g*h[i]"),
            ("", r#"v="""#),
            ("a b", r#"v="a b""#),
            ("a=b", r#"v="a=b""#),
            ("a\"b", r#"v="a\"b""#),
            ("a\\b", r#"v="a\\b""#),
            ("a\nb\r\tc\0", r#"v="a\nb\r\tc\0""#),
            ("a\u{1b}[31m", r#"v="a\u{1b}[31m""#),
            ("a\u{2028}b", r#"v="a\u{2028}b""#),
            ("é", r#"v="é""#),
        ];
        for (value, expected) in cases {
            assert_eq!(field("v", value), expected);
        }
        assert_eq!(field("v", 1.25), "v=1.2");
        assert_eq!(field("v", 3.0), "v=3.0");
        assert_eq!(field("v", true), "v=true");
    }

    #[test]
    fn texts_are_always_quoted() {
        for key in TEXTS {
            assert_eq!(field(key, "word"), format!("{key}=\"word\""));
            // Nobody's text looks like a value that does not exist.
            assert_eq!(field(key, "-"), format!("{key}=\"-\""));
            assert_eq!(field(key, Value::null()), format!("{key}=-"));
        }
    }

    #[test]
    fn nothing_forges_a_field_or_a_line() {
        let forged = "x\" reason=drain\ntime=1 level=error event=stopped";
        let whole = line("ws_proxy", forged, &[("section", forged.into())]);
        assert_eq!(whole.lines().count(), 1);
        let quoted = r#""x\" reason=drain\ntime=1 level=error event=stopped""#;
        assert!(whole.ends_with(&format!(" event={quoted} section={quoted}")), "{whole}");
    }

    #[test]
    fn other_packages_say_who_they_are_in_one_line() {
        let other = line("ws_proxyish::a b", "went\nwrong", &[("event", "stopped".into())]);
        let expected = r#"level=warn target="ws_proxyish::a b" message="went\nwrong""#;
        assert!(other.ends_with(expected), "{other}");
    }
}
