//! The request target, brought to origin-form (RFC 9112, 3.2).

use std::borrow::Cow;
use std::net::Ipv6Addr;

use crate::digits;

/// Schemes of absolute targets that stand for this port (RFC 6455, 3; RFC 9110, 4.2).
const SCHEMES: [&str; 4] = ["ws", "http", "wss", "https"];

/// A request target for an origin server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// Path and query, beginning with `/`.
    pub(crate) path: Cow<'a, str>,
    /// Authority of an absolute-form target, which overrides `Host` (RFC 9112, 3.2.2).
    pub(crate) authority: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Parses a target in origin-form or absolute-form (RFC 9112, 3.2.1 and 3.2.2).
    ///
    /// Accepts more characters than RFC 3986, since browsers send some of them unencoded, and
    /// characters beyond ASCII unless `is_strict`. Refuses those that move the end of the target:
    /// white space, a fragment, control bytes.
    ///
    /// # Errors
    ///
    /// The reason, in words for the client.
    pub(crate) fn parse(target: &'a str, is_strict: bool) -> Result<Self, &'static str> {
        let passes = |letter: char| {
            letter.is_ascii_graphic() || !is_strict && !letter.is_ascii() && !letter.is_control()
        };
        if !target.chars().all(passes) {
            return Err("the request target has a byte that must be percent-encoded");
        }
        if target.contains('#') {
            return Err("the request target has a fragment");
        }
        if target.starts_with('/') {
            return Ok(Self { path: Cow::Borrowed(target), authority: None });
        }
        let absolute = target
            .split_once("://")
            .filter(|(scheme, _)| SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)));
        let Some((_, rest)) = absolute else {
            return Err("the request target is neither a path nor an absolute URI");
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !is_authority(authority) {
            return Err("the request target's authority is not a host and port");
        }
        // An empty path is sent as "/" (RFC 9112, 3.2.1).
        let path = if path.starts_with('/') {
            Cow::Borrowed(path)
        } else {
            Cow::Owned(format!("/{path}"))
        };
        Ok(Self { path, authority: Some(authority) })
    }
}

/// Returns whether `text` is `uri-host [ ":" port ]` with a host that is not empty
/// (RFC 9110, 7.2; RFC 3986, 3.2.2 and 3.2.3).
pub(crate) fn is_authority(text: &str) -> bool {
    let (is_host, port) = match text.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
            None => return false,
        },
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (!host.is_empty() && host.bytes().all(is_host_byte), port)
        }
    };
    is_host && is_port_suffix(port)
}

/// Returns whether `text` is an IPv6 address that is no authority, since its brackets are missing
/// or it has a zone (RFC 6874), with or without a port.
pub(crate) fn is_loose_ipv6(text: &str) -> bool {
    let (address, port) = match text.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some(parts) => parts,
            None => return false,
        },
        None => (text, ""),
    };
    let (address, zone) = match address.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (address, None),
    };
    let zone_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
    let zone_is_good = zone.is_none_or(|zone| !zone.is_empty() && zone.bytes().all(zone_byte));
    address.parse::<Ipv6Addr>().is_ok() && zone_is_good && is_port_suffix(port)
}

/// Returns whether a registered name may have this byte (RFC 3986, 3.2.2). The digits after a
/// percent sign are left to the backend.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte)
}

/// Returns whether `text` is empty or a colon and a port, which may be empty (RFC 3986, 3.2.3).
fn is_port_suffix(text: &str) -> bool {
    match text.strip_prefix(':') {
        Some("") => true,
        Some(port) => digits::number::<u16>(port).is_some(),
        None => text.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::samples::table;

    #[test]
    fn targets_become_a_path_and_an_authority() {
        let rows = table([
            ("/", "/", None),
            ("/a?b", "/a?b", None),
            ("//a", "//a", None),
            ("/chat?token={a|b}&c=%zz", "/chat?token={a|b}&c=%zz", None),
            ("ws://o:81/a?b", "/a?b", Some("o:81")),
            ("wss://o/a", "/a", Some("o")),
            ("https://o", "/", Some("o")),
            ("HTTP://o?b", "/?b", Some("o")),
            ("http://[::1]:8", "/", Some("[::1]:8")),
        ]);
        for (target, path, authority) in rows {
            let parsed = Target::parse(target, true).unwrap();
            assert_eq!((&*parsed.path, parsed.authority), (path, authority), "{target}");
        }
    }

    #[test]
    fn other_targets_are_errors() {
        let rows = table([
            ("", "neither"),
            ("chat", "neither"),
            ("*", "neither"),
            ("example.com:80", "neither"),
            ("ftp://example.com/", "neither"),
            ("http:/example.com/", "neither"),
            ("/chat#x", "fragment"),
            ("/\x7f", "percent-encoded"),
            ("/a\u{85}b", "percent-encoded"),
            ("/a b", "percent-encoded"),
            ("http:///", "authority"),
            ("http://user@example.com/", "authority"),
            ("http://example.com\\@evil.example/", "authority"),
        ]);
        for (target, word) in rows {
            for is_strict in [true, false] {
                let error = Target::parse(target, is_strict).unwrap_err();
                assert!(error.contains(word), "{target:?}: {error}");
            }
        }
    }

    #[test]
    fn characters_beyond_ascii_pass_unless_strict() {
        for target in table(["/gr\u{fc}n", "/?q=\u{65e5}\u{672c}", "http://o/\u{e9}"]) {
            assert!(Target::parse(target, false).is_ok(), "{target}");
            let error = Target::parse(target, true).unwrap_err();
            assert!(error.contains("percent-encoded"), "{target:?}: {error}");
        }
        // A name is none of them.
        assert!(Target::parse("http://gr\u{fc}n.example/", false).is_err());
    }

    #[test]
    fn loose_ipv6_addresses_are_known_by_their_bytes() {
        let loose = table([
            "::1",
            "fe80::1",
            "2001:db8::1:8080",
            "[fe80::1%eth0]",
            "[fe80::1%25eth0]:80",
            "fe80::1%25en0",
        ]);
        for text in loose {
            assert!(is_loose_ipv6(text) && !is_authority(text), "{text}");
        }
        for text in table(["", "[::1", "a:b", "fe80::1%", "fe80::1%a/b", "[::1]x", "::1\r", "g::1"])
        {
            assert!(!is_loose_ipv6(text), "{text}");
        }
    }

    #[test]
    fn authorities_have_a_host_and_may_have_a_port() {
        let valid = table([
            "example.com",
            "under_score.example:",
            "a:0",
            "a:65535",
            "192.0.2.1:80",
            "[::1]",
            "[::1]:8080",
        ]);
        for text in valid {
            assert!(is_authority(text), "{text}");
        }
        let invalid = table([
            "",
            ":80",
            "a b",
            "a/b",
            "user@a",
            "a:x",
            "a:+1",
            "a:65536",
            "a:1:2",
            "[::1",
            "[]",
            "[::1]8",
            "[a]",
            "::1",
            "gr\u{fc}n.example",
        ]);
        for text in invalid {
            assert!(!is_authority(text), "{text}");
        }
    }
}
