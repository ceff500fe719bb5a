//! The settings of the admin listener.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Invalid;
use crate::handshake::target::is_authority;
use crate::net::address::Address;

/// Fewest bytes of a token.
const TOKEN_MIN: usize = 16;
/// Most bytes of a token's file: a request's head has to hold it.
const TOKEN_MAX: usize = 4_096;

raw_table! {
    /// The table `[admin]` as given; nothing is checked yet.
    RawAdmin {
        bind: String,
        token_file: PathBuf,
        hosts: Vec<String>,
    }
}

/// Settings of the admin listener, for [`Admin::bind`](crate::Admin::bind).
///
/// ```no_run
/// use ws_proxy::{Admin, AdminConfig};
///
/// let config = AdminConfig::new("127.0.0.1:9600").token_file("/run/secrets/admin-token");
/// let admin = Admin::bind(&config)?;
/// # Ok::<(), ws_proxy::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdminConfig {
    raw: RawAdmin,
}

/// Checked settings of the admin listener.
#[derive(Clone, Debug)]
pub(crate) struct AdminSettings {
    /// Address to listen on.
    pub(crate) bind: Address,
    /// Hosts in lower case that requests may name, besides the listener's own.
    pub(crate) hosts: Vec<String>,
    /// Secret that requests must show; `None` where only loopback peers may change anything.
    pub(crate) token: Option<Token>,
}

/// Secret of the admin listener. It shows in no log.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(Vec<u8>);

impl AdminConfig {
    /// Creates the settings of a listener on `host:port`, which takes changes from loopback peers
    /// only. Port 0 takes any that is free.
    #[must_use]
    pub fn new(bind: impl Into<String>) -> Self {
        Self { raw: RawAdmin { bind: Some(bind.into()), ..RawAdmin::default() } }
    }

    /// Sets another address to listen on.
    #[must_use]
    pub fn bind(mut self, bind: impl Into<String>) -> Self {
        self.raw.bind = Some(bind.into());
        self
    }

    /// Demands the content of this file, without the white space around it, as
    /// `Authorization: Bearer` in every request but those for `/livez` and `/readyz`. Changes are
    /// then taken from every address. By default no token is asked for.
    ///
    /// The file is read by [`Admin::bind`](crate::Admin::bind) and must hold 16 to 4096 bytes of
    /// printable ASCII without spaces.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.raw.token_file = Some(path.into());
        self
    }

    /// Sets further names, without ports, that a request's `Host` may have. Others get 421, so that
    /// no web page reaches the listener by a name of its own (DNS rebinding). By default none.
    #[must_use]
    pub fn hosts(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.raw.hosts = Some(hosts.into_iter().map(Into::into).collect());
        self
    }

    /// Returns the address to listen on, as given.
    #[must_use]
    pub fn bind_address(&self) -> &str {
        self.raw.bind.as_deref().unwrap_or_default()
    }

    /// Returns the path of the token's file, if one is set.
    #[must_use]
    pub fn token_path(&self) -> Option<&Path> {
        self.raw.token_file.as_deref()
    }

    /// Checks everything, and reads the token.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub(crate) fn check(&self) -> Result<AdminSettings, Invalid> {
        self.raw.check()
    }

    /// Returns the table with every default; the token's file has none.
    #[cfg(feature = "config")]
    pub(crate) fn effective(&self) -> RawAdmin {
        let hosts = self.raw.hosts.clone().unwrap_or_default();
        // What no TOML can name was given by a program.
        let token_file = self.raw.token_file.as_deref();
        let token_file = token_file.map(|path| path.to_string_lossy().into_owned().into());
        RawAdmin { bind: self.raw.bind.clone(), token_file, hosts: Some(hosts) }
    }
}

#[cfg(feature = "config")]
impl From<RawAdmin> for AdminConfig {
    fn from(raw: RawAdmin) -> Self {
        Self { raw }
    }
}

impl RawAdmin {
    /// Checks everything, and reads the token.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub(crate) fn check(&self) -> Result<AdminSettings, Invalid> {
        let bind = self.bind.as_deref().ok_or_else(|| {
            Invalid::new("bind", "is missing: say where to listen, as in \"127.0.0.1:9600\"")
        })?;
        let bind = Address::tcp(bind).map_err(|problem| Invalid::new("bind", problem))?;
        let mut hosts = Vec::new();
        for (index, host) in self.hosts.iter().flatten().enumerate() {
            if !is_authority(host) || port_of(host).is_some() {
                let problem = format!(
                    "{host:?} is not a host: write a name without a port, as in \
                     \"ws-proxy.example.com\"; any port passes"
                );
                return Err(Invalid::element("hosts", index, problem));
            }
            hosts.push(host.to_ascii_lowercase());
        }
        let token = self.token_file.as_deref().map(Token::read).transpose()?;
        Ok(AdminSettings { bind, hosts, token })
    }
}

/// Returns the port of an authority, if it has one.
fn port_of(authority: &str) -> Option<&str> {
    let after_brackets = authority.rsplit(']').next().unwrap_or_default();
    after_brackets.split_once(':').map(|(_, port)| port)
}

impl Token {
    /// Reads a token's file.
    fn read(path: &Path) -> Result<Self, Invalid> {
        let fault =
            |problem: String| Invalid::new("token_file", format!("{}: {problem}", path.display()));
        let bytes =
            read_file(path).map_err(|error| fault(format!("cannot read the token: {error}")))?;
        let token = bytes.trim_ascii();
        if bytes.len() > TOKEN_MAX || token.len() < TOKEN_MIN {
            return Err(fault(format!(
                "the token is {} bytes long, and must have {TOKEN_MIN} to {TOKEN_MAX}: put random \
                 ones there, as of openssl rand -hex 32",
                token.len()
            )));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            let problem = "the token has other bytes than printable ASCII, which no Authorization \
                           field can hold: put random ones there, as of openssl rand -hex 32";
            return Err(fault(problem.to_owned()));
        }
        Ok(Self(token.to_owned()))
    }

    /// Returns the secret itself, to be compared in constant time.
    pub(crate) fn secret(&self) -> &[u8] {
        &self.0
    }
}

/// Reads a regular file, and no more than tells that it is too long.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(TOKEN_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
impl Token {
    /// Returns a token for tests.
    pub(crate) fn of(secret: &str) -> Self {
        Self(secret.as_bytes().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_without_ports() {
        let check = |host: &str| AdminConfig::new("127.0.0.1:0").hosts([host]).check();
        for host in ["proxy", "Proxy.Example.COM", "192.0.2.1", "[2001:db8::1]"] {
            assert_eq!(check(host).unwrap().hosts, [host.to_ascii_lowercase()]);
        }
        for host in ["", "a b", "proxy:9600", "[::1]:80", "http://proxy", "a/b", "::1"] {
            let invalid = check(host).unwrap_err();
            assert_eq!((invalid.key, invalid.index), ("hosts", Some(0)), "{host}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let settings = AdminSettings {
            bind: Address::tcp("127.0.0.1:0").unwrap(),
            hosts: Vec::new(),
            token: Some(Token::of("0123456789abcdef")),
        };
        assert!(!format!("{settings:?}").contains("0123456789abcdef"));
    }
}
