//! Real WebSocket libraries on both ends: tungstenite, which blocks, and soketto, which compresses.

#![expect(
    clippy::result_large_err,
    reason = "tungstenite's servers answer a handshake with such results"
)]

use std::future::Future;
use std::io::Write;
use std::net::TcpStream;
use std::thread;

use futures_lite::future;
use smol::{Async, Timer};
use soketto::base::Header;
use soketto::connection::CloseReason;
use soketto::extension::deflate::Deflate;
use soketto::extension::{Extension, Param};
use soketto::handshake::ServerResponse;
use soketto::handshake::server::Response as SokettoResponse;
use soketto::{BoxedError, Incoming, Mode, Storage};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::{Request, Response};
use tungstenite::handshake::{derive_accept_key, server};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use crate::support::{Backend, PATIENCE, Peer, Proxy, noise, table, upgrade};

pub(crate) type Socket = WebSocket<TcpStream>;

/// A tungstenite server's response to a handshake.
type Answer = Result<server::Response, server::ErrorResponse>;

/// A tungstenite client's handshake for this proxy.
fn request(proxy: &Proxy) -> Request {
    format!("ws://{}/chat?room=1", proxy.address).into_client_request().unwrap()
}

/// A tungstenite client and a tungstenite server, connected through the proxy.
pub(crate) fn connect(proxy: &Proxy, backend: &Backend) -> (Socket, Socket) {
    let (client, server, _) = connect_with(proxy, backend, request(proxy), |_, answer| Ok(answer));
    (client, server)
}

/// The same, with a request of the test's and a server that may change its answer; also what the
/// client was answered.
fn connect_with(
    proxy: &Proxy,
    backend: &Backend,
    request: Request,
    answer: impl FnOnce(&Request, server::Response) -> Answer + Send,
) -> (Socket, Socket, Response) {
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            tungstenite::accept_hdr(
                backend.accept().stream,
                |request: &Request, plain: server::Response| answer(request, plain),
            )
            .expect("the server switches")
        });
        let stream = Peer::connect(proxy.address).stream;
        let (client, response) =
            tungstenite::client(request, stream).expect("the client gets its 101");
        (client, server.join().unwrap(), response)
    })
}

/// Sends a message and asserts that it arrives as it was.
pub(crate) fn assert_carried(from: &mut Socket, to: &mut Socket, message: &Message) {
    thread::scope(|scope| {
        scope.spawn(|| from.send(message.clone()).unwrap());
        let got = to.read().unwrap();
        assert!(
            got == *message,
            "a message of {} bytes is not the one that was sent",
            message.len()
        );
    });
}

#[test]
fn messages_of_every_length_coding_pass_both_ways() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = connect(&proxy, &backend);
    // The frame's length has another form above 125 and above 65,535 (RFC 6455, 5.2).
    for len in table([0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20]) {
        let messages =
            [Message::text("ü".repeat(len / 2)), Message::binary(noise(len as u64, len))];
        for message in messages {
            assert_carried(&mut client, &mut server, &message);
            assert_carried(&mut server, &mut client, &message);
        }
    }
}

#[test]
fn pings_are_answered_by_the_peer_itself() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = connect(&proxy, &backend);
    let ping = Message::Ping("are you there?".into());
    let pong = Message::Pong("are you there?".into());

    assert_carried(&mut client, &mut server, &ping);
    server.flush().unwrap();
    assert_eq!(client.read().unwrap(), pong);

    assert_carried(&mut server, &mut client, &ping);
    client.flush().unwrap();
    assert_eq!(server.read().unwrap(), pong);
}

#[test]
fn a_pong_that_nobody_asked_for_passes() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = connect(&proxy, &backend);
    let pong = Message::Pong("heartbeat".into());
    assert_carried(&mut client, &mut server, &pong);
    assert_carried(&mut server, &mut client, &pong);
}

#[test]
fn the_subprotocol_that_the_server_chose_arrives_at_the_client() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut request = request(&proxy);
    request.headers_mut().insert("Sec-WebSocket-Protocol", "chat.v1, chat.v2".parse().unwrap());
    let (mut client, mut server, response) =
        connect_with(&proxy, &backend, request, |request, mut response| {
            assert_eq!(request.headers()["Sec-WebSocket-Protocol"], "chat.v1, chat.v2");
            response.headers_mut().insert("Sec-WebSocket-Protocol", "chat.v2".parse().unwrap());
            Ok(response)
        });
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "chat.v2");
    assert_carried(&mut client, &mut server, &Message::text("in chat.v2"));
}

#[test]
fn the_path_and_the_cookies_reach_the_server_and_its_own_come_back() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut request = request(&proxy);
    request.headers_mut().insert("Cookie", "session=1".parse().unwrap());
    let (_, _, response) = connect_with(&proxy, &backend, request, |request, mut response| {
        assert_eq!(request.uri().to_string(), "/chat?room=1");
        assert_eq!(request.headers()["Cookie"], "session=1");
        for cookie in ["a=1; Path=/", "b=2"] {
            response.headers_mut().append("Set-Cookie", cookie.parse().unwrap());
        }
        Ok(response)
    });
    let cookies: Vec<_> = response.headers().get_all("Set-Cookie").iter().collect();
    assert_eq!(cookies, ["a=1; Path=/", "b=2"]);
}

#[test]
fn a_servers_refusal_arrives_at_the_client() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let refuse = |_: &Request, _: server::Response| {
                let mut response = server::ErrorResponse::new(Some("not today".to_owned()));
                *response.status_mut() = 418.try_into().unwrap();
                response.headers_mut().insert("Content-Length", "9".parse().unwrap());
                Err(response)
            };
            tungstenite::accept_hdr(backend.accept().stream, refuse).unwrap_err();
        });
        tungstenite::client(request(&proxy), Peer::connect(proxy.address).stream).unwrap_err()
    });
    let tungstenite::HandshakeError::Failure(Error::Http(response)) = error else {
        panic!("{error}")
    };
    assert_eq!(response.status(), 418);
}

/// Closes from one side, and asserts that code and reason come through and back.
fn assert_closes(
    mut closing: Socket,
    mut other: Socket,
    is_server_closing: bool,
    frame: &Option<CloseFrame>,
) {
    closing.close(frame.clone()).unwrap();
    assert_eq!(other.read().unwrap(), Message::Close(frame.clone()));
    // The answer to a Close carries the same code (RFC 6455, 5.5.1).
    match other.flush() {
        Ok(()) | Err(Error::ConnectionClosed) => {}
        Err(error) => panic!("{error}"),
    }
    match closing.read().unwrap() {
        Message::Close(answer) => {
            assert_eq!(answer.map(|frame| frame.code), frame.as_ref().map(|frame| frame.code));
        }
        message => panic!("{message:?} is no answer to a Close"),
    }
    // The server ends the connection first (RFC 6455, 7.1.1), and its client sees it.
    let (mut server, mut client) =
        if is_server_closing { (closing, other) } else { (other, closing) };
    assert!(matches!(server.read(), Err(Error::ConnectionClosed | Error::AlreadyClosed)));
    drop(server);
    assert!(matches!(client.read(), Err(Error::ConnectionClosed)));
}

#[test]
fn close_codes_and_reasons_pass_both_ways() {
    let frame = |code, reason: &'static str| Some(CloseFrame { code, reason: reason.into() });
    let frames = table([
        None,
        frame(CloseCode::Normal, ""),
        frame(CloseCode::Away, "the tab was closed"),
        frame(4_000.into(), "kicked: spam"),
        frame(4_999.into(), "x".repeat(123).leak()),
    ]);
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for frame in &frames {
        let (client, server) = connect(&proxy, &backend);
        assert_closes(client, server, false, frame);
        let (client, server) = connect(&proxy, &backend);
        assert_closes(server, client, true, frame);
    }
}

#[test]
fn a_client_that_vanishes_is_noticed_by_the_server() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (client, mut server) = connect(&proxy, &backend);
    drop(client);
    assert!(matches!(server.read(), Err(Error::Protocol(_) | Error::Io(_))));
}

#[test]
fn a_message_glued_to_the_101_reaches_the_client() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    thread::scope(|scope| {
        let engine_io = scope.spawn(|| {
            let mut server = backend.accept();
            let head = server.read_head();
            let key =
                head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
            let accept = derive_accept_key(key.as_bytes());
            // In one write, as Engine.IO does: the 101 and a text frame.
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            server.send([answer.as_bytes(), b"\x81\x0b0{\"sid\":42}"].concat());
            server
        });
        let stream = Peer::connect(proxy.address).stream;
        let (mut client, _) = tungstenite::client(request(&proxy), stream).unwrap();
        assert_eq!(client.read().unwrap(), Message::text("0{\"sid\":42}"));
        drop(engine_io.join().unwrap());
    });
}

#[test]
fn a_message_glued_to_the_request_reaches_a_strict_server() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut client = Peer::connect(proxy.address);
    // A text frame, masked with zeroes. Tungstenite refuses requests with bytes after them.
    client.stream.write_all(&[upgrade("").as_bytes(), b"\x81\x85\0\0\0\0early"].concat()).unwrap();
    let mut server = tungstenite::accept(backend.accept().stream).unwrap();
    assert_eq!(server.read().unwrap(), Message::text("early"));
}

/// Runs it, but not for ever.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    smol::block_on(future::or(work, async {
        Timer::after(PATIENCE).await;
        panic!("this takes too long");
    }))
}

fn to_async(peer: Peer) -> async_net::TcpStream {
    Async::new(peer.stream).unwrap().into()
}

/// soketto's permessage-deflate, with a mended end.
///
/// It gives the decompressor a message without a last block, and flate2 1.1.10 began to refuse that
/// (<https://github.com/rust-lang/flate2-rs/pull/556>).
#[derive(Debug)]
struct Compression(Deflate);

impl Extension for Compression {
    fn decode(&mut self, header: &mut Header, data: &mut Vec<u8>) -> Result<(), BoxedError> {
        if header.is_rsv1() && !data.is_empty() {
            // The tail that the sender left out (RFC 7692, 7.2.1), and the first byte of an empty
            // last block; soketto adds the other four, which are the same again.
            data.extend_from_slice(b"\x00\x00\xff\xff\x01");
        }
        self.0.decode(header, data)
    }

    fn encode(&mut self, header: &mut Header, data: &mut Storage) -> Result<(), BoxedError> {
        self.0.encode(header, data)?;
        assert!(
            header.is_rsv1() || data.as_ref().is_empty() || header.opcode().is_control(),
            "{header} is not compressed"
        );
        Ok(())
    }

    fn configure(&mut self, params: &[Param<'_>]) -> Result<(), BoxedError> {
        self.0.configure(params)
    }

    fn params(&self) -> &[Param<'_>] {
        self.0.params()
    }

    fn is_enabled(&self) -> bool {
        self.0.is_enabled()
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn reserved_bits(&self) -> (bool, bool, bool) {
        self.0.reserved_bits()
    }
}

pub(crate) type Ends =
    (soketto::Sender<async_net::TcpStream>, soketto::Receiver<async_net::TcpStream>);

/// A soketto client that offers a subprotocol and compression, and gets both.
async fn soketto_client(proxy: &Proxy) -> Ends {
    let host = proxy.address.to_string();
    let mut client =
        soketto::handshake::Client::new(to_async(Peer::connect(proxy.address)), &host, "/");
    client.add_protocol("chat");
    client.add_extension(Box::new(Compression(Deflate::new(Mode::Client))));
    match client.handshake().await.unwrap() {
        ServerResponse::Accepted { protocol } => assert_eq!(protocol.as_deref(), Some("chat")),
        response => panic!("{response:?}"),
    }
    let extensions: Vec<_> = client.drain_extensions().collect();
    for extension in extensions {
        assert!(extension.is_enabled(), "the client was not granted {}", extension.name());
        client.add_extension(extension);
    }
    client.into_builder().finish()
}

/// A soketto server that grants them.
async fn soketto_server(server: Peer) -> Ends {
    let mut server = soketto::handshake::Server::new(to_async(server));
    server.add_protocol("chat");
    server.add_extension(Box::new(Compression(Deflate::new(Mode::Server))));
    let key = {
        let request = server.receive_request().await.unwrap();
        assert_eq!(request.protocols().collect::<Vec<_>>(), ["chat"]);
        request.key()
    };
    server.send_response(&SokettoResponse::Accept { key, protocol: Some("chat") }).await.unwrap();
    let extensions: Vec<_> = server.drain_extensions().collect();
    for extension in extensions {
        assert!(extension.is_enabled(), "the server was not offered {}", extension.name());
        server.add_extension(extension);
    }
    server.into_builder().finish()
}

/// Both, connected through the proxy.
pub(crate) async fn soketto_pair(proxy: &Proxy, backend: &Backend) -> (Ends, Ends) {
    future::zip(soketto_client(proxy), async {
        // This blocks, but not for long: the client has sent its request by now.
        soketto_server(backend.accept()).await
    })
    .await
}

/// Sends a message and asserts that it arrives as it was.
pub(crate) async fn assert_unharmed(from: &mut Ends, to: &mut Ends, bytes: &[u8]) {
    let send = async {
        from.0.send_binary(bytes).await.unwrap();
        from.0.flush().await.unwrap();
    };
    let mut got = Vec::new();
    let (received, ()) =
        future::zip(async { to.1.receive_data(&mut got).await.unwrap() }, send).await;
    assert!(received.is_binary());
    assert!(got == bytes, "a message of {} bytes is damaged", bytes.len());
}

#[test]
fn compressed_messages_pass_unharmed() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    block_on(async {
        let (mut client, mut server) = soketto_pair(&proxy, &backend).await;
        let compressible = b"all work and no play ".repeat(50_000);
        let messages =
            [b"short".to_vec(), compressible, noise(1, 1 << 20), vec![0; 65_536], noise(2, 126)];
        for bytes in &messages {
            assert_unharmed(&mut client, &mut server, bytes).await;
            assert_unharmed(&mut server, &mut client, bytes).await;
        }
    });
}

#[test]
fn a_compressed_tunnel_closes_in_order() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    block_on(async {
        let (mut client, mut server) = soketto_pair(&proxy, &backend).await;
        assert_unharmed(&mut client, &mut server, b"before the end").await;
        server.0.close().await.unwrap();
        let mut nothing = Vec::new();
        match client.1.receive(&mut nothing).await.unwrap() {
            Incoming::Closed(CloseReason { code, .. }) => assert_eq!(code, 1_000),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_client_that_offers_compression_works_with_a_server_that_has_none() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut request = request(&proxy);
    request.headers_mut().insert("Sec-WebSocket-Extensions", "permessage-deflate".parse().unwrap());
    let (mut client, mut server, response) =
        connect_with(&proxy, &backend, request, |request, response| {
            assert_eq!(request.headers()["Sec-WebSocket-Extensions"], "permessage-deflate");
            Ok(response)
        });
    assert!(!response.headers().contains_key("Sec-WebSocket-Extensions"));
    assert_carried(&mut client, &mut server, &Message::text("plain"));
}
