//! Addresses: `host:port` and `unix:/path`, as people write them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::digits;

/// Scheme of the path of a Unix socket.
const UNIX: &str = "unix:";
/// Most bytes of such a path (unix(7), `sun_path`, with its NUL).
const UNIX_PATH_MAX: usize = 107;

/// What can be connected to, or listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) place: Endpoint,
    /// The text without `ws://`, as the log and a Host field have it.
    pub(crate) authority: String,
}

/// Place of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A host and a port. The host is a name or an IP address, without brackets.
    Tcp(String, u16),
    /// The absolute path of a Unix socket.
    Unix(PathBuf),
}

/// Host of an address, in its one normal spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    /// Every address, of this family if it is one: true for IPv4.
    Any(Option<bool>),
    Localhost,
    Name(String),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        // Without a zone, which no name server tells.
        let address = SocketAddr::new(address.ip(), address.port());
        let place = Endpoint::Tcp(address.ip().to_string(), address.port());
        Self { place, authority: address.to_string() }
    }
}

impl Address {
    /// Reads a backend: `host`, `host:port`, `ws://host:port`, `unix:/path`; a missing port is 80
    /// (RFC 6455, 3).
    ///
    /// # Errors
    ///
    /// The fault in the text, and the text to write instead.
    pub(crate) fn backend(text: &str) -> Result<Self, String> {
        if let Some(address) = Self::unix(text) {
            return address;
        }
        let rest = match text.split_once("://") {
            None => text,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ws") => {
                rest.strip_suffix('/').unwrap_or(rest)
            }
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("wss") => {
                return Err(format!(
                    "{text:?}: TLS to a backend is not supported, write ws://host:port"
                ));
            }
            Some(_) => return Err(format!("{text:?}: write host:port or ws://host:port")),
        };
        if rest.contains('/') {
            return Err(format!(
                "{text:?}: a backend has no path, the client's is passed on; write host:port"
            ));
        }
        if rest.is_empty() || rest.starts_with(':') {
            return Err(format!("{text:?}: the host is missing, as in chat-backend:9000"));
        }
        let address = Self::parse(rest, Some(80)).map_err(|what| format!("{text:?}: {what}"))?;
        if matches!(address.place, Endpoint::Tcp(_, 0)) {
            return Err(format!("{text:?}: no backend listens on port 0"));
        }
        Ok(address)
    }

    /// Reads an address to listen on: `host:port`, with a port of 0 for any that is free, or
    /// `unix:/path`.
    ///
    /// # Errors
    ///
    /// The fault in the text, and the text to write instead.
    pub(crate) fn bind(text: &str) -> Result<Self, String> {
        Self::unix(text).unwrap_or_else(|| Self::tcp(text))
    }

    /// Reads an address to listen on, without Unix sockets.
    ///
    /// # Errors
    ///
    /// As [`bind`](Address::bind).
    pub(crate) fn tcp(text: &str) -> Result<Self, String> {
        Self::parse(text, None).map_err(|what| format!("{text:?}: {what}"))
    }

    /// Reads the path of a Unix socket; `None` for any other address.
    fn unix(text: &str) -> Option<Result<Self, String>> {
        let rest = text.get(..UNIX.len()).filter(|scheme| scheme.eq_ignore_ascii_case(UNIX));
        let path = text.strip_prefix(rest?)?;
        let fault = |what: &str| Some(Err(format!("{text:?}: {what}")));
        // As a URI with an empty authority.
        let path = if path.starts_with("///") { &path[2..] } else { path };
        if !path.starts_with('/') || path.starts_with("//") {
            return fault("the path of a Unix socket is absolute, as in unix:/run/app/app.sock");
        }
        if path.len() > UNIX_PATH_MAX {
            return fault("the path of a Unix socket has at most 107 bytes");
        }
        if path.ends_with('/') || path.contains('\0') {
            return fault("the path names no file");
        }
        let place = Endpoint::Unix(path.into());
        Some(Ok(Self { place, authority: format!("{UNIX}{path}") }))
    }

    /// Returns whether it is a host's name, which is looked up.
    pub(crate) fn is_name(&self) -> bool {
        self.host().is_some() && self.ip().is_none()
    }

    /// Returns the host as an IP address, if it is one.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.host()?.parse().ok()
    }

    /// Returns the host, if it has one.
    pub(crate) fn host(&self) -> Option<&str> {
        match &self.place {
            Endpoint::Tcp(host, _) => Some(host),
            Endpoint::Unix(_) => None,
        }
    }

    /// Returns the port, if it has one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self.place {
            Endpoint::Tcp(_, port) => Some(port),
            Endpoint::Unix(_) => None,
        }
    }

    /// Returns the path, if it is that of a Unix socket.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.place {
            Endpoint::Tcp(..) => None,
            Endpoint::Unix(path) => Some(path),
        }
    }

    /// Returns whether both have the same port, which is not one of any that are free.
    fn is_at_port_of(&self, other: &Self) -> bool {
        self.port() == other.port() && self.port().is_some_and(|port| port != 0)
    }

    /// Returns whether listening on both cannot work, as far as the texts tell.
    #[cfg(any(feature = "config", test))]
    pub(crate) fn collides_with(&self, other: &Self) -> bool {
        if let (Some(one), Some(two)) = (self.path(), other.path()) {
            return one == two;
        }
        let is_any = |address: &Self| address.ip().is_some_and(|ip| ip.is_unspecified());
        let is_same = match (self.ip(), other.ip()) {
            (Some(one), Some(two)) => one == two,
            _ => self.lower_host() == other.lower_host(),
        };
        self.is_at_port_of(other) && (is_same || is_any(self) || is_any(other))
    }

    #[cfg(any(feature = "config", test))]
    fn lower_host(&self) -> Option<String> {
        self.host().map(str::to_ascii_lowercase)
    }

    /// Returns whether dialling `other` leads to a listener on this address, as far as the texts
    /// tell.
    pub(crate) fn is_reached_by(&self, other: &Self) -> bool {
        let (listened, dialled) = match (&self.place, &other.place) {
            (Endpoint::Tcp(listened, _), Endpoint::Tcp(dialled, _)) => (listened, dialled),
            (one, two) => return one == two,
        };
        let is_same = match [Host::listened(listened), Host::dialled(dialled)] {
            [Host::Any(of), Host::Ip(ip)] => {
                ip.is_loopback() && of.is_none_or(|of| of == ip.is_ipv4())
            }
            // The name has an address of either kind.
            [Host::Any(_), Host::Localhost] => true,
            [Host::Ip(ip), Host::Localhost] | [Host::Localhost, Host::Ip(ip)] => ip.is_loopback(),
            [listened, dialled] => listened == dialled,
        };
        self.is_at_port_of(other) && is_same
    }

    fn parse(text: &str, default_port: Option<u16>) -> Result<Self, String> {
        let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
            let (host, rest) = bracketed.split_once(']').ok_or("the bracket is not closed")?;
            host.parse::<Ipv6Addr>().map_err(|_| "there is no IPv6 address in the brackets")?;
            let port = match rest.strip_prefix(':') {
                Some(port) => Some(port),
                None if rest.is_empty() => None,
                None => return Err("only a port may follow the bracket".to_owned()),
            };
            (host, port)
        } else {
            match text.split_once(':') {
                Some((_, rest)) if rest.contains(':') => {
                    return Err("an IPv6 address goes in brackets, as in [::1]:8080".to_owned());
                }
                Some((host, port)) => (check_host(host)?, Some(port)),
                None => (check_host(text)?, None),
            }
        };
        let port = match (port, default_port) {
            (Some(port), _) => {
                digits::number(port).ok_or("the port is not a number from 0 to 65535")?
            }
            (None, Some(port)) => port,
            (None, None) => return Err("the port is missing, as in 0.0.0.0:8080".to_owned()),
        };
        Ok(Self { place: Endpoint::Tcp(host.to_owned(), port), authority: text.to_owned() })
    }
}

impl Host {
    fn listened(host: &str) -> Self {
        match Self::of(host) {
            // A socket of IPv6 takes clients of IPv4 too.
            Self::Ip(ip) if ip.is_unspecified() => Self::Any(ip.is_ipv4().then_some(true)),
            host => host,
        }
    }

    fn dialled(host: &str) -> Self {
        match Self::of(host) {
            // To dial an unspecified address is to dial the loopback one.
            Self::Ip(IpAddr::V4(ip)) if ip.is_unspecified() => Self::Ip(Ipv4Addr::LOCALHOST.into()),
            Self::Ip(IpAddr::V6(ip)) if ip.is_unspecified() => Self::Ip(Ipv6Addr::LOCALHOST.into()),
            host => host,
        }
    }

    fn of(host: &str) -> Self {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Self::Ip(ip.to_canonical());
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if name == "localhost" { Self::Localhost } else { Self::Name(name) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
    }
}

/// Checks that a host is a name that a resolver can be asked for, or an IPv4 address.
fn check_host(host: &str) -> Result<&str, &'static str> {
    if host.is_empty() {
        return Err("the host is missing; to listen on all addresses write 0.0.0.0");
    }
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A dot at the end keeps a resolver from trying its search list.
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(label_is_good) {
        return Err("the host is neither a name nor an IP address");
    }
    // No top-level domain is a number: this is an address with a typing error.
    let looks_like_ip =
        name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if looks_like_ip && name.parse::<Ipv4Addr>().is_err() {
        return Err("the host is not a valid IPv4 address");
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn backends_are_read() {
        let read = |text| {
            let address = Address::backend(text).unwrap();
            (address.host().unwrap().to_owned(), address.port().unwrap(), address.authority)
        };
        let expect =
            |host: &str, port, authority: &str| (host.to_owned(), port, authority.to_owned());
        assert_eq!(read("chat:9000"), expect("chat", 9000, "chat:9000"));
        assert_eq!(read("ws://chat:9000"), expect("chat", 9000, "chat:9000"));
        assert_eq!(
            read("WS://chat_1.svc.local./"),
            expect("chat_1.svc.local.", 80, "chat_1.svc.local.")
        );
        assert_eq!(read("10.0.0.1"), expect("10.0.0.1", 80, "10.0.0.1"));
        assert_eq!(read("[::1]:9000"), expect("::1", 9000, "[::1]:9000"));
        assert_eq!(read("ws://[::1]"), expect("::1", 80, "[::1]"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            ":80",
            "a b:80",
            "a:b",
            "a:",
            "a:99999",
            "a:+80",
            "a:0",
            "::1:80",
            "[::1",
            "[::1]80",
            "[a]:80",
            "256.1.1.1:80",
            "1.2.3:80",
            "http://a:80",
            "wss://a:80",
            "ws://a:80/path",
            "ws://u@a:80",
            "a..b:80",
            "ws://",
            "a#b:1",
        ] {
            assert!(Address::backend(text).is_err(), "{text:?}");
        }
        for text in ["", ":9000", "ws://", "ws://:9000"] {
            // Nothing that is for listeners only.
            let error = format!("{text:?}: the host is missing, as in chat-backend:9000");
            assert_eq!(Address::backend(text), Err(error));
        }
        assert!(Address::bind("127.0.0.1").is_err());
        assert!(Address::bind(":8080").unwrap_err().contains("0.0.0.0"));
        assert_eq!(Address::bind("127.0.0.1:0").unwrap().port(), Some(0));
    }

    #[test]
    fn paths_of_unix_sockets_are_read() {
        for text in ["unix:/run/app.sock", "UNIX:/run/app.sock", "unix:///run/app.sock"] {
            let address = Address::backend(text).unwrap();
            assert_eq!(Ok(&address), Address::bind(text).as_ref());
            assert_eq!(address.path(), Some(Path::new("/run/app.sock")), "{text}");
            assert_eq!(
                (address.to_string(), address.ip()),
                ("unix:/run/app.sock".to_owned(), None)
            );
        }
        let longest = format!("unix:/{}", "x".repeat(106));
        assert!(Address::bind(&longest).is_ok());
        let too_long = format!("{longest}x");
        for text in ["unix:", "unix:app.sock", "unix://run/app", "unix:/", "unix:/a/", &too_long] {
            assert!(Address::backend(text).is_err() && Address::bind(text).is_err(), "{text}");
        }
        assert!(Address::tcp("unix:/run/app.sock").is_err());
        let [one, two] = ["unix:/a", "unix:/b"].map(|text| Address::bind(text).unwrap());
        assert!(one.collides_with(&one) && !one.collides_with(&two));
        assert!(one.is_reached_by(&one) && !one.is_reached_by(&two));
        let tcp = Address::bind("0.0.0.0:80").unwrap();
        assert!(!tcp.collides_with(&one) && !one.is_reached_by(&tcp) && !tcp.is_reached_by(&one));
    }

    #[test]
    fn collisions_are_seen() {
        let collide = |one: &str, two: &str| {
            let (one, two) = (Address::bind(one).unwrap(), Address::bind(two).unwrap());
            assert_eq!(one.collides_with(&two), two.collides_with(&one));
            one.collides_with(&two)
        };
        assert!(collide("127.0.0.1:80", "127.0.0.1:80"));
        assert!(collide("0.0.0.0:80", "127.0.0.1:80"));
        assert!(collide("[::]:80", "0.0.0.0:80"));
        assert!(collide("[::1]:80", "[0:0::1]:80"));
        assert!(collide("localhost:80", "LOCALHOST:80"));
        assert!(!collide("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!collide("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!collide("127.0.0.1:80", "[::1]:80"));
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in ".{0,40}") {
            let _ = Address::backend(&text);
            let _ = Address::bind(&text);
        }
    }

    #[test]
    fn a_listener_is_reached_by_its_own_address() {
        let reaches = |bind: &str, backend: &str| {
            Address::bind(bind).unwrap().is_reached_by(&Address::backend(backend).unwrap())
        };
        let itself = [
            ("127.0.0.1:80", "127.0.0.1"),
            ("0.0.0.0:9000", "127.0.0.1:9000"),
            ("0.0.0.0:9000", "127.0.0.2:9000"),
            ("0.0.0.0:9000", "LocalHost:9000"),
            ("[::]:9000", "[::1]:9000"),
            ("[::]:9000", "127.0.0.1:9000"),
            ("[::]:9000", "ws://localhost:9000"),
            ("0.0.0.0:9000", "localhost.:9000"),
            ("0.0.0.0:9000", "[::ffff:127.0.0.1]:9000"),
            ("127.0.0.1:9000", "[::ffff:127.0.0.1]:9000"),
            ("127.0.0.1:9000", "localhost:9000"),
            ("localhost:9000", "127.0.0.1:9000"),
            ("[::1]:9000", "localhost:9000"),
            ("[::1]:9000", "[::]:9000"),
            ("chat.:9000", "chat:9000"),
            ("127.0.0.1:9000", "0.0.0.0:9000"),
            ("0.0.0.0:9000", "0.0.0.0:9000"),
            ("Chat:9000", "chat:9000"),
        ];
        for (bind, backend) in itself {
            assert!(reaches(bind, backend), "{bind} by {backend}");
        }
        let others = [
            ("127.0.0.1:9000", "127.0.0.1:9001"),
            ("127.0.0.2:9000", "127.0.0.1:9000"),
            ("0.0.0.0:9000", "192.0.2.1:9000"),
            ("0.0.0.0:9000", "chat:9000"),
            ("0.0.0.0:9000", "[::1]:9000"),
            ("0.0.0.0:9000", "[::]:9000"),
            ("192.0.2.1:9000", "localhost:9000"),
            ("192.0.2.1:9000", "0.0.0.0:9000"),
        ];
        for (bind, backend) in others {
            assert!(!reaches(bind, backend), "{bind} by {backend}");
        }
    }
}
