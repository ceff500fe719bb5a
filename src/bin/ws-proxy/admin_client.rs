//! Requests to the admin listener of a running proxy, for the commands.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Failure;
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
        let config = source.and_then(|source| source.admin.as_ref());
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
    let body = String::from_utf8_lossy(&bytes[end..]).into_owned();
    Ok(Response { status: head.code.unwrap_or_default(), body })
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
