//! Origins that may open a WebSocket (RFC 6455, 10.2; RFC 6454).

use crate::digits;

/// Origins that a section lists.
#[derive(Clone, Debug, Default)]
pub(crate) struct OriginList {
    rules: Vec<Rule>,
    /// A handshake without an origin passes: clients that are no browsers send none.
    missing_passes: bool,
}

/// Entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// This origin.
    Exact(Origin),
    /// Any host below this domain, at any depth, but not the domain itself.
    Below(Origin),
    /// Any host of this scheme, whose origins are not of the web.
    Scheme(String),
    /// The origin `null` of sandboxed frames and files.
    Null,
}

/// Scheme, host and port in their one normal spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl OriginList {
    /// Reads the entries: `scheme://host[:port]`, `scheme://*.domain[:port]`, `scheme://*` for any
    /// scheme but those of the web, `file://`, `null`, and `none` for a handshake that has no
    /// origin.
    ///
    /// # Errors
    ///
    /// The index of the first entry that is none of these, and the values to write instead.
    pub(crate) fn parse<T: AsRef<str>>(entries: &[T]) -> Result<Self, (usize, String)> {
        let mut list = Self::default();
        for (index, entry) in entries.iter().map(AsRef::as_ref).enumerate() {
            match entry {
                "none" => list.missing_passes = true,
                "null" => list.rules.push(Rule::Null),
                _ => list.rules.push(Rule::parse(entry).map_err(|problem| (index, problem))?),
            }
        }
        Ok(list)
    }

    /// Returns whether a handshake with this value of `Origin`, or without one, may pass.
    pub(crate) fn allows(&self, origin: Option<&[u8]>) -> bool {
        let Some(origin) = origin else {
            return self.missing_passes;
        };
        if origin == b"null" {
            return self.rules.contains(&Rule::Null);
        }
        let parsed = std::str::from_utf8(origin).ok().and_then(Origin::parse);
        parsed.is_some_and(|origin| self.rules.iter().any(|rule| rule.matches(&origin)))
    }
}

impl Rule {
    fn parse(entry: &str) -> Result<Self, String> {
        let rule = match entry.split_once("://*") {
            Some((scheme, "")) if is_scheme(scheme) => {
                let scheme = scheme.to_ascii_lowercase();
                if default_port(&scheme).is_some() {
                    return Err(format!(
                        "{entry:?} would admit every site: name a domain, as in \
                         \"https://*.example.com\", or leave the key out to allow every client"
                    ));
                }
                Some(Self::Scheme(scheme))
            }
            Some((scheme, domain)) => domain
                .strip_prefix('.')
                .and_then(|domain| Origin::parse(&format!("{scheme}://{domain}")))
                .map(Self::Below),
            None => Origin::parse(entry).map(Self::Exact),
        };
        rule.ok_or_else(|| {
            format!(
                "{entry:?} is no origin: write \"https://app.example.com\", \
                 \"https://*.example.com\", \"moz-extension://*\", \"file://\", \"null\" or \
                 \"none\""
            )
        })
    }

    fn matches(&self, origin: &Origin) -> bool {
        match self {
            Self::Exact(listed) => listed == origin,
            Self::Below(listed) => {
                listed.scheme == origin.scheme
                    && listed.port == origin.port
                    && origin
                        .host
                        .strip_suffix(&listed.host)
                        .and_then(|front| front.strip_suffix('.'))
                        .is_some_and(|label| !label.is_empty())
            }
            Self::Scheme(scheme) => *scheme == origin.scheme,
            Self::Null => false,
        }
    }
}

impl Origin {
    /// Parses a serialized origin (RFC 6454, 6.2), which has no path, not even `/`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme_is_good = is_scheme(scheme);
        let scheme = scheme.to_ascii_lowercase();
        // The colon of a port follows the brackets of an IPv6 address.
        let port_at = authority.rfind(']').unwrap_or(0);
        let (host, port) = match authority[port_at..].find(':') {
            Some(colon) => {
                let (host, port) = authority.split_at(port_at + colon);
                (host, Some(digits::number(&port[1..])?))
            }
            None => (authority, None),
        };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
        // Files have no host: Electron and Cordova send `file://`.
        let is_named = !host.is_empty() || scheme == "file" && port.is_none();
        let host_is_good = is_named && host.bytes().all(good);
        let default = default_port(&scheme);
        (scheme_is_good && host_is_good).then(|| Self {
            scheme,
            host: host.to_ascii_lowercase(),
            port: port.or(default),
        })
    }
}

/// Returns whether `text` is a scheme (RFC 3986, 3.1).
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Returns the default port of a scheme of the web, in lower case; `None` for any other scheme.
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::samples::table;

    #[test]
    fn lists_decide() {
        let list = [
            "https://app.example.com",
            "https://*.example.org",
            "http://[::1]:3000",
            "capacitor://localhost",
        ];
        let list = OriginList::parse(&list).unwrap();
        let passes = |origin: &str| list.allows(Some(origin.as_bytes()));
        let allowed = table([
            "https://app.example.com",
            "https://app.example.com:443",
            "HTTPS://App.Example.Com",
            "https://a.example.org",
            "https://a.b.example.org",
            "http://[::1]:3000",
            "capacitor://localhost",
        ]);
        for origin in allowed {
            assert!(passes(origin), "{origin}");
        }
        let refused = table([
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com:+443",
            "https://app.example.com.evil.net",
            "https://app.example.com/",
            "https://example.org",
            "https://.example.org",
            "https://evilexample.org",
            "https://a.example.org:8443",
            "http://[::1]",
            "null",
            "",
            "*",
        ]);
        for origin in refused {
            assert!(!passes(origin), "{origin}");
        }
        assert!(!list.allows(None));
    }

    #[test]
    fn none_and_null_are_asked_for_by_name() {
        let list = OriginList::parse(&["none", "null"]).unwrap();
        assert!(list.allows(None));
        assert!(list.allows(Some(b"null")));
        assert!(!list.allows(Some(b"none")));
    }

    #[test]
    fn origins_that_are_no_sites_are_listed_by_their_scheme() {
        let list = ["file://", "moz-extension://*", "App+1://*"];
        let list = OriginList::parse(&list).unwrap();
        let passes = |origin: &str| list.allows(Some(origin.as_bytes()));
        for origin in table([
            "file://",
            "FILE://",
            "moz-extension://9b1b9a7c-2f07-4a8c-9d2e-0d7a5f0e1c11",
            "Moz-Extension://x",
            "app+1://a:5",
        ]) {
            assert!(passes(origin), "{origin}");
        }
        for origin in table([
            "file:///",
            "file://a",
            "file://:80",
            "moz-extension://",
            "moz-extension://x/y",
            "chrome-extension://x",
            "https://moz-extension",
            "null",
        ]) {
            assert!(!passes(origin), "{origin}");
        }
        for entry in table(["http://*", "https://*", "ws://*", "WSS://*"]) {
            let (_, message) = OriginList::parse(&[entry]).unwrap_err();
            assert!(message.contains("every site"), "{message}");
        }
    }

    #[test]
    fn entries_that_are_no_origins_are_named() {
        let entries = table([
            "*",
            "example.com",
            "https://",
            "https://a/",
            "https://a b",
            "https://a.*.com",
            "https://x:y",
            "https://x:65536",
            "https://*.",
            "https://*x",
            "://*",
            "moz-extension://*:80",
        ]);
        for entry in entries {
            let (index, message) = OriginList::parse(&["none", entry]).unwrap_err();
            assert_eq!(index, 1, "{entry}");
            assert!(message.contains(entry), "{message}");
        }
    }
}
