//! Summary of a request for the log.

use super::fields::Fields;
use super::forward::Forwarded;
use super::http::RequestHead;
use super::target::Target;
use super::trace::traceparent;

/// Most bytes that are kept of a value.
const VALUE_MAX: usize = 256;
/// Separator of the values. No field and no target that a scan has passed contains it.
const SEPARATOR: &str = "\n";

/// Values of a request that the log tells of: five short texts in one allocation, since each tunnel
/// holds them to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary(Box<str>);

impl Summary {
    /// Takes the values from a head that has this request id. Each is cut after 256 bytes.
    pub(crate) fn of(head: &RequestHead<'_>, forwarded: Forwarded, request_id: &str) -> Self {
        let target = Target::parse(head.target, false).ok();
        // The query may be a secret: browsers cannot set fields, so that tokens come in it.
        let path = target.as_ref().and_then(|target| target.path.split('?').next());
        let authority = target.as_ref().and_then(|target| target.authority);
        let host = authority.or_else(|| head.fields.single_text("Host"));
        let chain = forwarded_for(&head.fields, forwarded);
        let values = [path, host, Some(&*chain), Some(request_id), traceparent(&head.fields)];
        let values = values.map(|value| cut(value.unwrap_or_default()));
        // Values that are absent at the end take no room.
        let count = values.iter().rposition(|value| !value.is_empty()).map_or(0, |last| last + 1);
        Self(values[..count].join(SEPARATOR).into())
    }

    /// Returns the path of the target, without its query.
    pub(crate) fn path(&self) -> Option<&str> {
        self.values()[0]
    }

    /// Returns the id of the request.
    pub(crate) fn request_id(&self) -> Option<&str> {
        self.values()[3]
    }

    /// Returns path, host, forwarded client, request id and trace; `None` is a value that the
    /// request does not have.
    pub(crate) fn values(&self) -> [Option<&str>; 5] {
        let mut values = self.0.split(SEPARATOR);
        [(); 5].map(|()| values.next().filter(|value| !value.is_empty()))
    }
}

/// Returns the `X-Forwarded-For` received, its lines joined; empty without one, and where what is
/// received is not trusted.
fn forwarded_for(fields: &Fields<'_>, forwarded: Forwarded) -> String {
    if forwarded == Forwarded::Replace {
        return String::new();
    }
    let mut joined = String::new();
    for value in fields.values("X-Forwarded-For") {
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(&String::from_utf8_lossy(value));
    }
    joined
}

/// Returns the start of a value, cut between two characters.
fn cut(value: &str) -> &str {
    let ends = (0..=VALUE_MAX.min(value.len())).rev();
    let end = { ends }.find(|&end| value.is_char_boundary(end)).unwrap_or(0);
    &value[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::samples::{table, upgrade, upgrade_but};

    const ID: &str = "0123456789abcdef";

    fn values(head: impl AsRef<[u8]>, forwarded: Forwarded) -> [Option<String>; 5] {
        let head = RequestHead::parse(head.as_ref()).unwrap();
        Summary::of(&head, forwarded, ID).values().map(|value| value.map(str::to_owned))
    }

    #[test]
    fn the_path_has_no_query_and_the_host_is_the_one_asked_for() {
        let rows = table([
            ("/chat", Some("/chat"), Some("example.com")),
            ("/a/b?token=secret?more", Some("/a/b"), Some("example.com")),
            ("/?token=secret", Some("/"), Some("example.com")),
            ("ws://o:81/a?token=secret", Some("/a"), Some("o:81")),
            ("ws://o?token=secret", Some("/"), Some("o")),
            // Nothing is known of what is no target, and a query may be anywhere in it.
            ("*", None, Some("example.com")),
            ("/a#b", None, Some("example.com")),
        ]);
        for (target, path, host) in rows {
            let head = upgrade_but("/chat", target);
            let [got_path, got_host, chain, id, trace] = values(&head, Forwarded::Append);
            assert_eq!((got_path.as_deref(), got_host.as_deref()), (path, host), "{target}");
            assert_eq!((chain, id.as_deref(), trace), (None, Some(ID), None));
        }
        let two = upgrade_but("Host: example.com", "Host: a\r\nHost: b");
        assert_eq!(values(two, Forwarded::Append)[1], None);
    }

    #[test]
    fn the_forwarded_client_is_the_chain_received_where_it_is_trusted() {
        let rows = table([
            ("", None),
            ("X-Forwarded-For:\r\n", None),
            ("X-Forwarded-For: 192.0.2.1\r\n", Some("192.0.2.1")),
            ("x-forwarded-for: a, b\r\nX-Forwarded-For: c\r\n", Some("a, b, c")),
            ("X-Forwarded-For: a\" reason=b\r\n", Some("a\" reason=b")),
        ]);
        for (lines, expected) in rows {
            for forwarded in [Forwarded::Append, Forwarded::Off] {
                let [.., chain, _, _] = values(upgrade(lines), forwarded);
                assert_eq!(chain.as_deref(), expected, "{lines:?}");
            }
            assert_eq!(values(upgrade(lines), Forwarded::Replace)[2], None, "{lines:?}");
        }
        let bytes = upgrade("X-Forwarded-For: @\r\n").replace('@', "\u{fc}");
        let latin: Vec<u8> = bytes.bytes().filter(|&byte| byte != 0xc3).collect();
        assert_eq!(values(latin, Forwarded::Append)[2].as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn a_trace_follows_the_request_id() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let head = upgrade(&format!("traceparent: {trace}\r\n"));
        let [.., id, got_trace] = values(head, Forwarded::Append);
        assert_eq!((id.as_deref(), got_trace.as_deref()), (Some(ID), Some(trace)));
    }

    #[test]
    fn each_value_is_cut_between_two_characters() {
        let path = format!("/{}", "a".repeat(VALUE_MAX));
        let chain = format!("a{}", "\u{fc}".repeat(VALUE_MAX));
        let head = upgrade_but("/chat", &path)
            .replace("\r\n\r\n", &format!("\r\nX-Forwarded-For: {chain}\r\n\r\n"));
        let [got_path, _, got_chain, ..] = values(head, Forwarded::Append);
        assert_eq!(got_path.as_deref(), Some(&path[..VALUE_MAX]));
        assert_eq!(got_chain.as_deref(), Some(&chain[..VALUE_MAX - 1]));
    }
}
