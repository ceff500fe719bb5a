//! One active check of a backend.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use data_encoding::BASE64;
use futures_lite::{AsyncReadExt, AsyncWriteExt};

use crate::answer::{AnswerError, converse};
use crate::backend::Backend;
use crate::backend::dial::{DialSettings, dial_out_of_turn, is_shortage};
use crate::backend::health::reasons::CheckError;
use crate::handshake::http::ResponseHead;
use crate::handshake::response::verify_switch;
use crate::handshake::scan::HeadScan;
use crate::net::close::{linger, linger_now};
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::{io_within, within};
use crate::settings::{CheckKind, HealthCheckSettings};
use crate::tunnel::control::{self, code};
use crate::tunnel::frames::{FrameEvent, Frames, Opcode};

/// Time for a backend that has been checked to end its side of the connection.
const PARTING_TIME: Duration = Duration::from_millis(500);
/// Bytes of frames that may come before a backend's Close.
const PARTING_BYTES: usize = 64 * 1024;

/// User-Agent of the checks.
const USER_AGENT: &str = "ws-proxy-health-check";

/// Checks a backend once, within the time of the settings. Returns the result, or `None` if this
/// host lacked what it takes (descriptors, memory, ports), which tells nothing of the backend.
///
/// Ends the connection in order before it returns, within what is left of that time and 500 ms at
/// most; the result does not depend on that.
pub(crate) async fn check(
    reactor: &Rc<Reactor>,
    backend: &Backend,
    settings: &HealthCheckSettings,
    dial: DialSettings,
) -> Option<Result<(), CheckError>> {
    let start = reactor.now();
    let left = || settings.timeout.saturating_sub(reactor.now().saturating_duration_since(start));

    let dial = DialSettings { timeout: dial.timeout.min(settings.timeout), ..dial };
    // A name may have several addresses, each with a timeout of its own.
    let dialled = io_within(reactor, left(), dial_out_of_turn(reactor, backend, dial)).await;
    let socket = match dialled {
        Ok(socket) => socket,
        Err(error) => return failure_of_dial(&error).map(Err),
    };
    let key = match settings.kind {
        CheckKind::Tcp => {
            linger_now(&socket, &mut [0; 1_024]);
            return Some(Ok(()));
        }
        CheckKind::Http => None,
        CheckKind::Websocket => Some(BASE64.encode(&fastrand::u128(..).to_ne_bytes())),
    };

    let head = request(backend, settings, key.as_deref());
    let asked = within(reactor, left(), ask(&socket, &head, settings, key.as_deref())).await;
    let result = asked.unwrap_or(Err(CheckError::Timeout));
    let parting = async {
        match &result {
            Ok(early) if key.is_some() => close(&socket, early).await,
            // With a body left unread, the close would reset the connection.
            _ => linger(socket).await,
        }
    };
    within(reactor, left().min(PARTING_TIME), parting).await;
    Some(result.map(drop))
}

/// Returns the failure that an error of dialling is; `None` for a shortage of this host.
fn failure_of_dial(error: &io::Error) -> Option<CheckError> {
    match error.kind() {
        _ if is_shortage(error) => None,
        io::ErrorKind::TimedOut => Some(CheckError::Timeout),
        _ => Some(CheckError::Connect),
    }
}

/// Returns the head of the check's request; `key` makes it an opening handshake (RFC 6455, 4.1).
/// Fields of the settings replace those of the same name.
fn request(backend: &Backend, settings: &HealthCheckSettings, key: Option<&str>) -> String {
    let host = settings.host.as_deref().unwrap_or(backend.host());
    let mut own = vec![("Host", host), ("User-Agent", USER_AGENT)];
    match key {
        Some(key) => own.extend([
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", key),
        ]),
        None => own.extend([("Accept", "*/*"), ("Connection", "close")]),
    }
    let given = settings.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    own.retain(|(name, _)| !given.clone().any(|(other, _)| other.eq_ignore_ascii_case(name)));
    let fields = own.into_iter().chain(given).map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("GET {} HTTP/1.1\r\n{}\r\n", settings.path, fields.collect::<String>())
}

/// Sends the request and judges the answer. Returns the bytes that came after its head.
async fn ask(
    socket: &Socket,
    head: &str,
    settings: &HealthCheckSettings,
    key: Option<&str>,
) -> Result<Vec<u8>, CheckError> {
    let judge = |response: &ResponseHead<'_>, _: bool| {
        let is_expected = match (response.status, key) {
            (100 | 102..=199, _) => return Ok(None),
            (101, Some(key)) => verify_switch(response, key).map(|()| true)?,
            (_, Some(_)) => false,
            (status, None) => settings.expected.contains(status),
        };
        Ok(Some(if is_expected { Ok(()) } else { Err(CheckError::Status(response.status)) }))
    };
    // Lines may end in LF alone, whatever the status: no body is read, so none can be misread.
    let bound = (HeadScan::allowing_lf(), settings.timeout);
    let (verdict, rest) =
        converse(socket, head.as_bytes(), bound, judge).await.map_err(|error| match error {
            AnswerError::HungUp | AnswerError::Cut(_) => CheckError::Closed,
            AnswerError::TimedOut => CheckError::Timeout,
            AnswerError::Invalid(_) => CheckError::InvalidResponse,
        })?;
    verdict.map(|()| rest)
}

/// Closes a WebSocket in order: sends a Close, and drops what comes up to the backend's (RFC 6455,
/// 7.1.2). `early` came with the 101.
async fn close(mut socket: &Socket, early: &[u8]) {
    let mut scratch = vec![0; 1_024];
    let closing = async {
        let frame = control::close(code::NORMAL, "", Some(control::fresh_mask()));
        socket.write_all(&frame).await?;
        let mut frames = Frames::default();
        let mut has_closed = has_close(&mut frames, early);
        let mut left = PARTING_BYTES;
        while !has_closed && left > 0 {
            let count = socket.read(&mut scratch).await?;
            has_closed = count == 0 || has_close(&mut frames, &scratch[..count]);
            left = left.saturating_sub(count);
        }
        io::Result::Ok(())
    };
    if let Err(error) = closing.await {
        // The socket is closed either way.
        log::debug!(error:% = error; "close_failed");
    }
    linger_now(socket, &mut scratch);
}

/// Returns whether the header of a Close ends within the next bytes of a backend's frames.
fn has_close(frames: &mut Frames, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let (count, event) = frames.next(bytes);
        if matches!(event, Some(FrameEvent::Header(header)) if header.opcode() == Opcode::Close) {
            return true;
        }
        bytes = &bytes[count..];
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use rustix::io::Errno;
    use tungstenite::handshake::derive_accept_key;

    use super::*;
    use crate::backend::dial::tests::silent;
    use crate::backend::health::checks::ExpectedStatus;
    use crate::handshake::samples::table;
    use crate::net::timer::tests::run;
    use crate::settings::OnUnhealthy;

    /// Time within which a silent backend is waited for.
    const BRIEF: Duration = Duration::from_millis(50);
    /// A timeout that no test waits for.
    const NEVER: Duration = Duration::MAX;

    type CheckResult = Option<Result<(), CheckError>>;

    fn settings(kind: CheckKind) -> HealthCheckSettings {
        HealthCheckSettings {
            kind,
            path: "/up?x".to_owned(),
            host: None,
            headers: Vec::new(),
            expected: ExpectedStatus::default(),
            interval: NEVER,
            timeout: NEVER,
            on_unhealthy: OnUnhealthy::Keep,
        }
    }

    fn check_at(address: &str, settings: HealthCheckSettings) -> CheckResult {
        let reactor = Rc::new(Reactor::new().unwrap().0);
        let (with, backend) = (Rc::clone(&reactor), Backend::at(address));
        let dial = DialSettings { timeout: NEVER, resolve_interval: NEVER, buffer: None };
        run(&reactor, async move { check(&with, &backend, &settings, dial).await })
    }

    /// Checks a backend that serves its one connection by `serve`. Returns the result, the
    /// backend's address, and what `serve` returned.
    fn check_served<T: Send + 'static>(
        settings: HealthCheckSettings,
        serve: impl FnOnce(TcpStream) -> T + Send + 'static,
    ) -> (CheckResult, String, T) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || serve(listener.accept().unwrap().0));
        let result = check_at(&address, settings);
        (result, address, server.join().unwrap())
    }

    fn read_head(mut stream: impl Read) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// Returns what comes up to the end of the connection, which is no reset.
    fn read_end(mut stream: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Returns the valid 101 for a request.
    fn switching(request: &str) -> String {
        let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().lines().next().unwrap();
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        )
    }

    /// Checks that bytes are a masked Close 1000 and nothing else.
    fn assert_close(bytes: &[u8]) {
        assert_eq!((bytes.len(), &bytes[..2]), (8, &b"\x88\x82"[..]), "{bytes:?}");
        assert_eq!([bytes[6] ^ bytes[2], bytes[7] ^ bytes[3]], 1000_u16.to_be_bytes());
    }

    #[test]
    fn a_tcp_check_connects_and_says_nothing() {
        let (result, _, got) = check_served(settings(CheckKind::Tcp), read_end);
        assert_eq!((result, got), (Some(Ok(())), Vec::new()));
    }

    #[test]
    fn a_backend_that_refuses_or_does_not_accept_fails_every_check() {
        let refusing = {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let (_listener, silent) = silent();
        for kind in [CheckKind::Tcp, CheckKind::Http, CheckKind::Websocket] {
            let settings = HealthCheckSettings { timeout: BRIEF, ..settings(kind) };
            for (address, error) in [
                (refusing.clone(), CheckError::Connect),
                ("unix:/nonexistent/app.sock".to_owned(), CheckError::Connect),
                (silent.to_string(), CheckError::Timeout),
            ] {
                let result = check_at(&address, settings.clone());
                assert_eq!(result, Some(Err(error)), "{kind:?} {address}");
            }
        }
    }

    #[test]
    fn a_shortage_of_this_host_is_no_result() {
        for (error, expected) in table([
            (Errno::MFILE, None),
            (Errno::NOMEM, None),
            (Errno::ADDRNOTAVAIL, None),
            (Errno::CONNREFUSED, Some(CheckError::Connect)),
            (Errno::HOSTUNREACH, Some(CheckError::Connect)),
            (Errno::TIMEDOUT, Some(CheckError::Timeout)),
        ]) {
            assert_eq!(failure_of_dial(&error.into()), expected, "{error:?}");
        }
    }

    #[test]
    fn a_backend_that_accepts_and_does_not_answer_in_time_fails() {
        for kind in [CheckKind::Http, CheckKind::Websocket] {
            for begun in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n"] {
                let settings = HealthCheckSettings { timeout: BRIEF, ..settings(kind) };
                let (result, ..) = check_served(settings, move |mut stream| {
                    read_head(&stream);
                    stream.write_all(begun.as_bytes()).unwrap();
                    // Open until the check is over.
                    stream
                });
                assert_eq!(result, Some(Err(CheckError::Timeout)), "{kind:?} {begun:?}");
            }
        }
    }

    #[test]
    fn an_http_check_asks_with_the_fields_of_its_settings() {
        let answer = |mut stream: TcpStream| {
            let head = read_head(&stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            head
        };
        let (result, address, head) = check_served(settings(CheckKind::Http), answer);
        assert_eq!(result, Some(Ok(())));
        let expected = format!(
            "GET /up?x HTTP/1.1\r\nHost: {address}\r\nUser-Agent: ws-proxy-health-check\r\n\
             Accept: */*\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(head, expected);

        let headers = [("user-agent", "probe"), ("X-Token", "a b")];
        let settings = HealthCheckSettings {
            host: Some("app.example".to_owned()),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            ..settings(CheckKind::Http)
        };
        let (result, _, head) = check_served(settings, answer);
        assert_eq!(result, Some(Ok(())));
        let expected = "GET /up?x HTTP/1.1\r\nHost: app.example\r\nAccept: */*\r\n\
            Connection: close\r\nuser-agent: probe\r\nX-Token: a b\r\n\r\n";
        assert_eq!(head, expected);
    }

    #[test]
    fn an_http_check_passes_by_the_final_status() {
        let continued = "HTTP/1.1 100 Continue\r\n\r\n";
        let rows = table([
            ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), Ok(())),
            ("HTTP/1.0 302 Found\r\nContent-Length: 3\r\n\r\nabc".to_owned(), Ok(())),
            ("HTTP/1.1 200 OK\nServer: x\n\n".to_owned(), Ok(())),
            (format!("{continued}HTTP/1.1 204 No Content\r\n\r\n"), Ok(())),
            (format!("{}HTTP/1.1 200 OK\r\n\r\n", continued.repeat(16)), Ok(())),
            (continued.repeat(17), Err(CheckError::InvalidResponse)),
            ("HTTP/1.1 500 Oops\r\n\r\n".to_owned(), Err(CheckError::Status(500))),
            ("HTTP/1.1 404 No\r\n\r\n".to_owned(), Err(CheckError::Status(404))),
            ("HTTP/1.1 101 x\r\n\r\n".to_owned(), Err(CheckError::Status(101))),
            (String::new(), Err(CheckError::Closed)),
            ("HTTP/1.1 200 OK\r\n".to_owned(), Err(CheckError::Closed)),
            (continued.to_owned(), Err(CheckError::Closed)),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), Err(CheckError::InvalidResponse)),
            ("\x15\x03\x01\0\x02\x02\x46".to_owned(), Err(CheckError::InvalidResponse)),
            (format!("HTTP/1.1 200 {}", "x".repeat(70_000)), Err(CheckError::InvalidResponse)),
        ]);
        for (answer, expected) in rows {
            let begin = answer.chars().take(60).collect::<String>();
            let (result, ..) = check_served(settings(CheckKind::Http), move |mut stream| {
                read_head(&stream);
                stream.write_all(answer.as_bytes()).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                read_end(stream)
            });
            assert_eq!(result, Some(expected), "{begin:?}");
        }
    }

    #[test]
    fn an_http_check_resets_no_backend_that_sends_its_body() {
        let (result, ..) = check_served(settings(CheckKind::Http), |mut stream| {
            read_head(&stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            for _ in 0..20 {
                stream.write_all(&[b'x'; 10_000]).unwrap();
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            read_end(stream)
        });
        assert_eq!(result, Some(Ok(())));
    }

    #[test]
    fn a_websocket_check_shakes_hands_and_ends_with_a_close_1000() {
        // An app that speaks first, and one that does not.
        for welcome in [&b""[..], b"\x81\x05hello", b"\x81\x04\x88\x02\x03\xe8\x89\0"] {
            let (result, address, head) =
                check_served(settings(CheckKind::Websocket), move |mut stream| {
                    let head = read_head(&stream);
                    stream.write_all(&[switching(&head).as_bytes(), welcome].concat()).unwrap();
                    let mut close = [0; 8];
                    stream.read_exact(&mut close).unwrap();
                    assert_close(&close);
                    stream.write_all(b"\x82\x01x\x88\x02\x03\xe8").unwrap();
                    // The check ends the connection, and not the backend.
                    assert_eq!(read_end(stream), b"");
                    head
                });
            assert_eq!(result, Some(Ok(())));
            let (start, key) = head.split_once("Sec-WebSocket-Key: ").unwrap();
            let expected = format!(
                "GET /up?x HTTP/1.1\r\nHost: {address}\r\nUser-Agent: ws-proxy-health-check\r\n\
                 Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            );
            assert_eq!(start, expected);
            let key = key.strip_suffix("\r\n\r\n").unwrap();
            assert_eq!(BASE64.decode(key.as_bytes()).unwrap().len(), 16, "{key}");
        }
    }

    #[test]
    fn a_websocket_check_passes_whether_or_not_its_close_is_answered() {
        for ends in [true, false] {
            // Of the silent one, 500 ms are waited for the Close, of all that time.
            let (result, _, got) =
                check_served(settings(CheckKind::Websocket), move |mut stream| {
                    let head = read_head(&stream);
                    stream.write_all(switching(&head).as_bytes()).unwrap();
                    if ends {
                        stream.shutdown(std::net::Shutdown::Write).unwrap();
                    }
                    read_end(stream)
                });
            assert_eq!(result, Some(Ok(())), "{ends}");
            assert_close(&got);
        }
    }

    #[test]
    fn a_websocket_check_fails_without_a_valid_101() {
        type Answer = fn(&str) -> String;
        let rows: [(&str, Answer, Result<(), CheckError>); 9] = table([
            ("valid", |head| switching(head), Ok(())),
            ("LF", |head| switching(head).replace("\r\n", "\n"), Ok(())),
            (
                "interim",
                |head| format!("HTTP/1.1 103 x\r\nLink: x\r\n\r\n{}", switching(head)),
                Ok(()),
            ),
            (
                "another key",
                |_| switching("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
                Err(CheckError::InvalidResponse),
            ),
            (
                "no Upgrade",
                |head| switching(head).replace("Upgrade: websocket\r\n", ""),
                Err(CheckError::InvalidResponse),
            ),
            ("no HTTP", |_| "\x16\x03\r\n\r\n".to_owned(), Err(CheckError::InvalidResponse)),
            ("200", |_| "HTTP/1.1 200 OK\r\n\r\n".to_owned(), Err(CheckError::Status(200))),
            ("503", |_| "HTTP/1.1 503 No\r\n\r\nx".to_owned(), Err(CheckError::Status(503))),
            ("nothing", |_| String::new(), Err(CheckError::Closed)),
        ]);
        for (name, answer, expected) in rows {
            let (result, _, got) =
                check_served(settings(CheckKind::Websocket), move |mut stream| {
                    let head = read_head(&stream);
                    stream.write_all(answer(&head).as_bytes()).unwrap();
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    read_end(stream)
                });
            assert_eq!(result, Some(expected), "{name}");
            // Frames come after a valid 101 only.
            assert_eq!(got.is_empty(), expected.is_err(), "{name}");
        }
    }

    #[test]
    fn the_header_of_a_close_is_found_wherever_it_is_split() {
        let bytes = b"\x81\x7e\x00\x80".iter().copied();
        let bytes: Vec<u8> = bytes.chain([0x88; 128]).chain(*b"\x8a\0\x88\x02\x03\xe8").collect();
        let end = bytes.len() - 2;
        for split in 0..=end {
            let mut frames = Frames::default();
            assert_eq!(has_close(&mut frames, &bytes[..split]), split == end, "{split}");
            assert!(split == end || has_close(&mut frames, &bytes[split..]), "{split}");
        }
    }

    #[test]
    fn a_backend_at_a_path_is_checked_as_localhost() {
        let name = format!("ws-proxy-check-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let head = read_head(&stream);
            stream.write_all(b"HTTP/1.1 503 Busy\r\n\r\n").unwrap();
            head
        });
        let result = check_at(&format!("unix:{}", path.display()), settings(CheckKind::Http));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(result, Some(Err(CheckError::Status(503))));
        assert!(server.join().unwrap().contains("\r\nHost: localhost\r\n"));
    }
}
