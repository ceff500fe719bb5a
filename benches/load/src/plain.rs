//! Plain HTTP/1.1: clients that keep their connections, and a backend that ends each with its
//! answer.
//!
//! The requests and the answer are those of Socket.IO's polling, as a browser and its server send
//! them. As in [`engine`](crate::engine), all errors are final.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use crate::engine::{LISTENER, LONGEST_HEAD, PATIENCE, Place, Role, accept, listen_on_all};
use crate::system::Poll;
use crate::{Failure, while_doing};

/// Body of each answer: as long as a few small packets.
const ANSWER_BODY: &[u8] = b"42[\"message\",\"What comes with a poll, as long as a line of text\"]";

/// The messages of a run, made once.
#[derive(Debug)]
struct Messages {
    /// Start of the request line, up to the end of its target.
    start: String,
    request: Vec<u8>,
    request_body: Vec<u8>,
    answer: Vec<u8>,
}

impl Messages {
    /// Makes a GET, or a POST with a body of this size.
    fn new(proxy: SocketAddr, body: usize) -> Self {
        let method = if body == 0 { "GET" } else { "POST" };
        let start =
            format!("{method} /socket.io/?EIO=4&transport=polling&t=P5x2yQm&sid=lv_VI97HAXpY6yYW ");
        let request_body: Vec<u8> = (b'a'..=b'z').cycle().take(body).collect();
        let framing = match body {
            0 => String::new(),
            _ => format!("Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {body}\r\n"),
        };
        let head = format!(
            "{start}HTTP/1.1\r\n\
             Host: {proxy}\r\n\
             Connection: keep-alive\r\n\
             {framing}\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
             Accept: */*\r\n\
             Accept-Language: en-US,en;q=0.5\r\n\
             Accept-Encoding: gzip, deflate\r\n\
             Referer: http://{proxy}/\r\n\r\n"
        );
        let request = [head.as_bytes(), &request_body].concat();
        let answer_head = format!(
            "HTTP/1.1 200 OK\r\n\
             Content-Type: text/plain; charset=UTF-8\r\n\
             Content-Length: {}\r\n\
             Cache-Control: no-store\r\n\
             Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
             Connection: close\r\n\r\n",
            ANSWER_BODY.len()
        );
        let answer = [answer_head.as_bytes(), ANSWER_BODY].concat();
        Self { start, request, request_body, answer }
    }

    /// Returns whether a socket of this role has got all of a message, and nothing else.
    fn is_whole(&self, role: Role, got: &[u8]) -> Result<bool, Failure> {
        let wrong =
            || format!("the {role:?} got something else: {:?}", String::from_utf8_lossy(got));
        let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if got.len() > LONGEST_HEAD { Err(wrong().into()) } else { Ok(false) };
        };
        let (head, body) = got.split_at(end + 4);
        let (start, expected) = match role {
            Role::Client => ("HTTP/1.1 200 ", ANSWER_BODY),
            Role::Backend => (&*self.start, &*self.request_body),
        };
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        let length = format!("\r\ncontent-length: {}\r\n", expected.len());
        let is_framed = head.contains(&length) || role == Role::Backend && expected.is_empty();
        // A proxy that ends a client's connection is measured with the connects of the next one.
        let is_kept = role == Role::Backend || !head.contains("\r\nconnection: close\r\n");
        let is_right = head.starts_with(&start.to_ascii_lowercase()) && is_framed && is_kept;
        if !is_right || !expected.starts_with(body) {
            return Err(wrong().into());
        }
        Ok(body.len() == expected.len())
    }
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    role: Role,
    /// Bytes of the current message so far.
    got: Vec<u8>,
}

/// All sockets, and the exchanges on them.
pub(crate) struct Exchanges {
    poll: Poll,
    listeners: Vec<OwnedFd>,
    messages: Messages,
    /// Reads of all sockets go through here.
    scratch: Vec<u8>,
    sockets: Vec<Option<Socket>>,
    /// Free places in `sockets`.
    free: Vec<usize>,
    /// Places that were freed in this turn, for which an event may still be in the list.
    freed: Vec<usize>,
    /// Exchanges that are still to begin, and that have begun and not ended.
    to_begin: usize,
    on_the_way: usize,
    /// Deadline for everything.
    deadline: Instant,
}

impl Exchanges {
    /// Listens as the backends, and connects the clients. `body` is the size of each request's
    /// body: none is a GET.
    ///
    /// # Errors
    ///
    /// If a port is taken, or the proxy does not listen.
    pub(crate) fn new(
        proxy: SocketAddr,
        backends: &[Place],
        (clients, body): (usize, usize),
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let poll = Poll::new()?;
        let listeners = listen_on_all(&poll, backends)?;
        let mut exchanges = Self {
            poll,
            listeners,
            messages: Messages::new(proxy, body),
            scratch: vec![0; 64 * 1024],
            sockets: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            to_begin: 0,
            on_the_way: 0,
            deadline,
        };
        for _ in 0..clients {
            let failed = format!("connecting to {proxy}");
            let stream =
                TcpStream::connect_timeout(&proxy, PATIENCE).map_err(while_doing(&failed))?;
            exchanges.insert(stream, Role::Client)?;
        }
        Ok(exchanges)
    }

    /// Does `count` exchanges, one at a time on each client's connection.
    ///
    /// # Errors
    ///
    /// If the proxy changes anything but fields, or ends a client's connection.
    pub(crate) fn run(&mut self, count: usize) -> Result<(), Failure> {
        self.to_begin = count;
        for place in 0..self.sockets.len() {
            if self.sockets[place].as_ref().is_some_and(|socket| socket.role == Role::Client) {
                self.ask(place)?;
            }
        }
        while self.on_the_way > 0 {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(format!("out of time with {} answers missing", self.on_the_way).into());
        }
        self.poll.wait(Some(self.deadline.saturating_duration_since(now)))?;
        let mut next = 0;
        while let Some((token, _)) = self.poll.event(next) {
            next += 1;
            match token.checked_sub(LISTENER) {
                Some(listener) => self.accept(listener as usize)?,
                None => self.read(token as usize)?,
            }
        }
        // Only now can no event of this turn be taken for one of a new socket.
        self.free.append(&mut self.freed);
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> Result<(), Failure> {
        while let Some(stream) = accept(&self.listeners[listener])? {
            self.insert(stream, Role::Backend)?;
        }
        Ok(())
    }

    /// Watches a socket and gives it a place.
    fn insert(&mut self, stream: TcpStream, role: Role) -> Result<(), Failure> {
        stream.set_nonblocking(true)?;
        // A Unix socket has no such delay, and no such option.
        let _ = stream.set_nodelay(true);
        let place = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(None);
            self.sockets.len() - 1
        });
        self.poll.add(&stream, place as u64, EventFlags::IN)?;
        self.sockets[place] = Some(Socket { stream, role, got: Vec::new() });
        Ok(())
    }

    /// Begins an exchange on a client's connection, if one is left to begin.
    fn ask(&mut self, place: usize) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        if self.to_begin == 0 {
            return Ok(());
        }
        self.to_begin -= 1;
        self.on_the_way += 1;
        write(&mut socket.stream, &self.messages.request)
    }

    fn read(&mut self, place: usize) -> Result<(), Failure> {
        let Some(socket) = &mut self.sockets[place] else { return Ok(()) };
        let role = socket.role;
        match socket.stream.read(&mut self.scratch) {
            Ok(0) => Err(format!("the proxy ended the connection to the {role:?}").into()),
            Ok(length) => {
                socket.got.extend(&self.scratch[..length]);
                if !self.messages.is_whole(role, &socket.got)? {
                    return Ok(());
                }
                socket.got.clear();
                match role {
                    Role::Client => {
                        self.on_the_way -= 1;
                        self.ask(place)
                    }
                    Role::Backend => {
                        write(&mut socket.stream, &self.messages.answer)?;
                        // Closed with the answer, as the request asks for.
                        self.sockets[place] = None;
                        self.freed.push(place);
                        Ok(())
                    }
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(())
            }
            Err(error) => Err(format!("reading as the {role:?}: {error}").into()),
        }
    }
}

fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<(), Failure> {
    let sent = stream.write(bytes).map_err(while_doing("sending to the proxy"))?;
    if sent < bytes.len() {
        return Err("a message does not fit into an empty socket".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_with_its_last_byte_and_no_more() {
        let proxy = SocketAddr::from(([127, 0, 0, 1], 80));
        for body in [0, 100] {
            let messages = Messages::new(proxy, body);
            let answer = String::from_utf8(messages.answer.clone()).unwrap();
            // As a proxy that keeps its client forwards it.
            let answer = answer.replace("Connection: close\r\n", "").into_bytes();
            for (role, bytes) in [(Role::Backend, &messages.request), (Role::Client, &answer)] {
                for cut in 0..bytes.len() {
                    assert!(!messages.is_whole(role, &bytes[..cut]).unwrap(), "{role:?} {cut}");
                }
                assert!(messages.is_whole(role, bytes).unwrap());
                assert!(messages.is_whole(role, &[bytes, &b"x"[..]].concat()).is_err());
            }
            assert!(messages.is_whole(Role::Client, &messages.answer).is_err());
        }
    }
}
