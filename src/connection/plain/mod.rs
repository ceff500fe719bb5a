//! The requests of a client that are no upgrades, one after the other.
//!
//! Each has a connection of its own to a backend, on which its body and the answer are relayed at
//! once, with one buffer for each direction. [`serve`] tells the story, [`exchange`] that of one
//! request; [`relay`] moves a body, [`told`] tells of the end.

mod exchange;
mod relay;
mod told;

use futures_lite::{AsyncReadExt, future};

use self::exchange::{Exchange, Unserved, Whole};
use self::told::Told;
use super::response::send;
use super::unanswered::Unanswered;
use crate::events;
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::http::RequestHead;
use crate::handshake::plain::{PlainRequest, is_upgrade};
use crate::handshake::probe::is_probe;
use crate::handshake::summary::Summary;
use crate::handshake::trace::request_id;
use crate::head::{Head, HeadError};
use crate::net::close::linger;
use crate::net::socket::Socket;
use crate::net::timer::Timer;
use crate::section::{Client, Section};
use crate::settings::PlainHttp;
use crate::shutdown::{Guard, WeakGuard};
use crate::worker::Handle;

/// Bytes that are read of the next request while a connection waits for it.
const FIRST_STEP: usize = 1_024;

/// A client whose next request is for the handshake: an upgrade, or what has no answer but the
/// proxy's own.
pub(super) struct Handshake {
    pub(super) socket: Socket,
    pub(super) client: Client,
    /// The head, or why there is none.
    pub(super) head: Result<Head, HeadError>,
    /// Bytes that have come where there is no head.
    pub(super) bytes: Vec<u8>,
    pub(super) alive: Guard,
}

/// What becomes of a connection after a request.
enum After {
    /// The request is none of these.
    Handshake,
    /// The next one follows, and begins with these bytes.
    Next(Vec<u8>),
    /// The answer was the last one.
    Last,
    /// The connection is of no use any more.
    Broken,
}

/// Answers a client's requests, up to one that is for the handshake; `None` where the connection
/// ends before.
pub(super) async fn serve(
    handle: &Handle,
    socket: Socket,
    mut client: Client,
    waiting: &WeakGuard,
) -> Option<Handshake> {
    let mut bytes = Vec::new();
    loop {
        let unanswered = Unanswered::new(&socket, &client);
        unanswered.note(&bytes);
        let head = super::read_head(&unanswered, handle, &client.section, &mut bytes).await;
        let alive = waiting.upgrade()?;
        let after = match &head {
            // Boxed: a connection that waits for its next request needs no room for it.
            Ok(head) => Box::pin(answer(handle, &unanswered, head)).await,
            Err(_) => After::Handshake,
        };
        unanswered.begin_answer();
        drop(unanswered);
        match after {
            After::Handshake => return Some(Handshake { socket, client, head, bytes, alive }),
            After::Next(rest) => bytes = rest,
            After::Last => {
                linger(socket).await;
                return None;
            }
            After::Broken => return None,
        }
        // A client that has not begun its next request does not keep the proxy from stopping.
        drop((head, alive));
        if !has_next(&socket, &client.section, &mut bytes).await {
            return None;
        }
        client.begin_anew(handle.reactor().now());
    }
}

/// Waits for the first bytes of the next request; returns false where none come in time, or the
/// connection is to end before.
async fn has_next(socket: &Socket, section: &Section, bytes: &mut Vec<u8>) -> bool {
    let read = async {
        let mut source = socket;
        // An empty line begins no request (RFC 9112, 2.2): some clients end a body with one.
        while bytes.is_empty() || bytes == b"\r\n" {
            // A connection that waits holds little.
            *bytes = vec![0; FIRST_STEP];
            let count = source.read(bytes).await.unwrap_or(0);
            bytes.truncate(count);
            if count == 0 {
                return false;
            }
        }
        true
    };
    let late = async {
        Timer::after(socket.reactor(), section.settings.plain.keep_alive_timeout).await;
        false
    };
    let leaving = async {
        section.life.closing.begun().await;
        false
    };
    future::or(read, future::or(late, leaving)).await
}

/// Answers one request, by way of a backend if it may pass.
async fn answer(handle: &Handle, unanswered: &Unanswered<'_>, head: &Head) -> After {
    let client = unanswered.client;
    let settings = &client.section.settings;
    // The handshake has an answer for whatever cannot be parsed.
    let Ok(parsed) = RequestHead::parse(head.bytes()) else { return After::Handshake };
    let asks_for_health =
        settings.plain.health_path.as_ref().is_some_and(|path| is_probe(&parsed, path));
    // A reload may have turned plain HTTP off since the connection began.
    if asks_for_health || is_upgrade(&parsed) || settings.plain.treatment == PlainHttp::Reject {
        return After::Handshake;
    }
    let request_id = &*request_id(&parsed.fields, fastrand::u128(..));
    if events::tells_of_tunnels() {
        unanswered.set_summary(Summary::of(&parsed, settings.forwarded, request_id));
    }
    let told = Told::new(unanswered, parsed.method);
    let (rules, max_body) = (settings.handshake_rules(), settings.plain.max_body);
    let request = match PlainRequest::judge(&parsed, rules, max_body) {
        Ok(request) => request,
        Err(response) => return refuse(unanswered, &told, response.to(head.bytes())).await,
    };
    let exchange = Exchange::new(handle, unanswered, &request, request_id, &told);
    match exchange.run(head.rest()).await {
        Ok(Whole { closes: false }) => {
            // Where the request has not ended, the answer has closed the connection.
            exchange.rest.take().map_or(After::Last, After::Next)
        }
        Ok(Whole { closes: true }) => After::Last,
        Err(Unserved::Refused(response)) => {
            refuse(unanswered, &told, response.to(head.bytes())).await
        }
        Err(Unserved::Gone) => {
            // A stream of events ends so, after its status.
            told.end(told.status.get(), "client_gone", None);
            After::Broken
        }
        Err(Unserved::Cut(fault)) => {
            told.end(told.status.get(), "cut", Some(fault.to_string()));
            After::Broken
        }
    }
}

/// Sends a client a response of the proxy, the last one.
async fn refuse(unanswered: &Unanswered<'_>, told: &Told<'_>, response: ErrorResponse) -> After {
    unanswered.begin_answer();
    told.refused(&response);
    if send(unanswered.socket, &response.to_bytes()).await { After::Last } else { After::Broken }
}
