//! Requests to the admin listener of a running proxy, for the commands.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::cli::Arguments;
use crate::probe::{reachable, refuse_itself, unanswered};
use crate::source::Source;

/// Most bytes of a response.
const RESPONSE_MAX: u64 = 16 * 1024 * 1024;

/// An admin listener that can be asked.
pub(crate) struct AdminClient {
    /// Address as it was given.
    address: String,
    /// Secret to show, if the configuration names one.
    token: Option<String>,
}

/// A response, without its fields.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl AdminClient {
    /// Finds the listener: the one of the command line, or else that of the configuration; `None`
    /// without either. The token is the configuration's.
    pub(crate) fn find(
        address: Option<&str>,
        source: Option<&Source>,
    ) -> Result<Option<Self>, Failure> {
        let config = source.and_then(|source| source.config.admin.as_ref());
        let address = match (address, config) {
            (Some(address), _) => address.to_owned(),
            (None, Some(config)) => config.bind_address().to_owned(),
            (None, None) => return Ok(None),
        };
        if address.ends_with(":0") {
            let problem = "the admin listener has any port that is free: name the one of the log \
                           (admin_listening) with --admin HOST:PORT";
            return Err(Failure::Usage(problem.to_owned()));
        }
        let token = config.and_then(|config| config.token_path()).map(read_token).transpose()?;
        Ok(Some(Self { address, token }))
    }

    /// Finds the listener for a command that can send a signal instead: the configuration's only if
    /// it has a port of its own, as one with any free port cannot be found.
    pub(crate) fn find_fixed(
        address: Option<&str>,
        source: Option<&Source>,
    ) -> Result<Option<Self>, Failure> {
        let config = source.and_then(|source| source.config.admin.as_ref());
        let has_port = config.is_some_and(|config| !config.bind_address().ends_with(":0"));
        if address.is_some() || has_port { Self::find(address, source) } else { Ok(None) }
    }

    /// Finds the listener for a command that needs one; `config` is a file that was named after
    /// the command.
    pub(crate) fn require(
        address: Option<&str>,
        config: Option<&Path>,
        arguments: &Arguments,
    ) -> Result<Self, Failure> {
        let source = match Source::find_any(arguments, config) {
            // A named listener needs no file, so that one found by chance must not fail it.
            Err(_) if address.is_some() && !arguments.name_file(config) => None,
            found => found?,
        };
        Self::find(address, source.as_ref())?.ok_or_else(|| {
            let problem = "there is no admin listener to ask: add [admin] to the configuration of \
                           the proxy, or name a listener with --admin HOST:PORT";
            Failure::Usage(problem.to_owned())
        })
    }

    /// Returns the address as it was given.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Sends a request without a body, and returns the response; `None` waits for ever.
    pub(crate) fn ask(
        &self,
        method: &str,
        target: &str,
        timeout: Option<Duration>,
    ) -> Result<Response, Failure> {
        let address = &self.address;
        let found = address.to_socket_addrs().map_err(|error| {
            Failure::Usage(format!("--admin: {address}: {error}; write host:port"))
        })?;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut result = Err(io::Error::new(ErrorKind::NotFound, "no address has this name"));
        for found in found {
            result = self.exchange(reachable(found), (method, target), deadline);
            if result.is_ok() {
                break;
            }
        }
        result.map_err(|error| unanswered(address, &error, timeout))
    }

    fn exchange(
        &self,
        address: SocketAddr,
        (method, target): (&str, &str),
        deadline: Option<Instant>,
    ) -> io::Result<Response> {
        let left = || match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => Err(io::Error::from(ErrorKind::TimedOut)),
            left => Ok(left),
        };
        let mut connection = match left()? {
            Some(left) => TcpStream::connect_timeout(&address, left)?,
            None => TcpStream::connect(address)?,
        };
        refuse_itself(&connection)?;
        let token = self.token.as_ref();
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        // The address and not a name, which the listener would have to know.
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\
             {authorization}Connection: close\r\n\r\n"
        );
        connection.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        let mut part = [0; 4_096];
        while (bytes.len() as u64) < RESPONSE_MAX {
            connection.set_read_timeout(left()?)?;
            match connection.read(&mut part)? {
                0 => break,
                count => bytes.extend_from_slice(&part[..count]),
            }
        }
        parse(&bytes)
    }
}

/// Reads a token, whose file the configuration has been checked with.
fn read_token(path: &Path) -> Result<String, Failure> {
    let token = fs::read_to_string(path).map_err(|error| {
        Failure::Usage(format!("token_file: {}: cannot read the token: {error}", path.display()))
    })?;
    Ok(token.trim().to_owned())
}

/// Parses a response that ends with its connection.
fn parse(bytes: &[u8]) -> io::Result<Response> {
    let fault = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let status = head.parse(bytes).map_err(|_| fault("it does not speak HTTP/1.1"))?;
    let httparse::Status::Complete(end) = status else {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed without an answer"));
    };
    let length = content_length(head.headers)
        .map_err(|()| fault("its Content-Length is not a number of bytes"))?;
    let body = &bytes[end..];
    let body = match length {
        Some(length) => body.get(..length).ok_or_else(|| cut(length, body.len()))?,
        // The end of the connection is not seen past the maximum.
        None if bytes.len() as u64 >= RESPONSE_MAX => return Err(cut(usize::MAX, body.len())),
        None => body,
    };
    let body = String::from_utf8_lossy(body).into_owned();
    Ok(Response { status: head.code.unwrap_or_default(), body })
}

/// Returns the length of the body, if the response tells it.
fn content_length(fields: &[httparse::Header<'_>]) -> Result<Option<usize>, ()> {
    let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case("Content-Length"));
    let Some(field) = field else { return Ok(None) };
    let digits = std::str::from_utf8(field.value).map_err(drop)?;
    digits.trim().parse().map(Some).map_err(drop)
}

/// Returns the error for a body of which only the beginning has come.
fn cut(length: usize, got: usize) -> io::Error {
    if length as u64 >= RESPONSE_MAX {
        let problem = format!("its response is longer than {RESPONSE_MAX} bytes: ask for less");
        return io::Error::new(ErrorKind::InvalidData, problem);
    }
    let problem = format!("it closed after {got} of the {length} bytes of its response");
    io::Error::new(ErrorKind::UnexpectedEof, problem)
}

impl Response {
    /// Returns an error for any status but 200, with the lines of the body.
    pub(crate) fn expect_ok(self, address: &str) -> Result<Self, Failure> {
        if self.status == 200 {
            return Ok(self);
        }
        let lines: String = self.body.lines().map(|line| format!("\n  {line}")).collect();
        Err(Failure::Runtime(format!("{address} answers {}:{lines}", self.status)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_or_an_error() {
        let parsed = |text: &str| parse(text.as_bytes()).map(|response| response.body);
        let error = |text: &str| parsed(text).unwrap_err().to_string();
        let with = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}");
        assert_eq!(parsed(&with("content-length: 3\r\n", "[1]")).unwrap(), "[1]");
        assert_eq!(parsed(&with("Content-Length: 3\r\n", "[1]more")).unwrap(), "[1]");
        assert_eq!(parsed(&with("", "to the end")).unwrap(), "to the end");
        let short = error(&with("Content-Length: 4\r\n", "[1]"));
        assert!(short.contains("after 3 of the 4 bytes"), "{short}");
        let odd = error(&with("Content-Length: four\r\n", "[1]"));
        assert!(odd.contains("Content-Length"), "{odd}");
        for fields in ["", "Content-Length: 99999999\r\n"] {
            let long = error(&with(fields, &"x".repeat(RESPONSE_MAX as usize)));
            assert!(long.contains("longer than 16777216"), "{long}");
        }
        assert!(error("HTTP/1.1 200 OK\r\n").contains("without an answer"));
        assert!(error("SSH-2.0\r\n").contains("HTTP/1.1"));
    }
}
