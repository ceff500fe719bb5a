//! Heads and trailers of requests that are no upgrades, and of their answers.

use std::borrow::Cow;

use super::{
    ConnectionOptions, ForwardPolicy, Forwarded, HOP_BY_HOP, head_of, is_replaced, push_line,
    response_head,
};
use crate::handshake::body::Framing;
use crate::handshake::fields::{Field, Fields};
use crate::handshake::http::{ResponseHead, Version};
use crate::handshake::plain::{PlainRequest, Sent};

/// Fields that are for no trailer, besides the hop-by-hop ones and those of proxies: they frame,
/// route or admit a message, and were judged before (RFC 9110, 6.5.1).
const NO_TRAILER: [&str; 14] = [
    "Content-Length",
    "Content-Encoding",
    "Content-Type",
    "Content-Range",
    "Host",
    "Authorization",
    "Cookie",
    "Set-Cookie",
    "Expect",
    "Range",
    "Cache-Control",
    "Max-Forwards",
    "Origin",
    "Via",
];

/// Returns the head for the backend of a request that is no upgrade, likewise. The connection to
/// the backend ends with its answer.
pub(crate) fn plain_request_head(
    request: &PlainRequest<'_>,
    policy: &ForwardPolicy<'_>,
) -> Vec<u8> {
    let own = match request.framing {
        None => Cow::from("Connection: close\r\n"),
        Some(Framing::Length(length)) => {
            format!("Content-Length: {length}\r\nConnection: close\r\n").into()
        }
        Some(_) => Cow::from("Transfer-Encoding: chunked\r\nConnection: close\r\n"),
    };
    let is_chunked = request.framing == Some(Framing::Chunked);
    head_of(request.asked(), &own, policy, |field, forwards| {
        if field.is("Trailer") {
            // It tells of trailers, which chunks alone can have.
            return is_chunked;
        }
        // Of HTTP/1.0 it has no meaning (RFC 9110, 10.1.1).
        forwards && (request.version == Version::Http11 || !field.is("Expect"))
    })
}

/// Returns the head of an answer to a request that is no upgrade. `connection` is a line of this
/// connection's own, or empty.
pub(crate) fn plain_answer_head(
    response: &ResponseHead<'_>,
    sent: Sent,
    connection: &str,
) -> Vec<u8> {
    let options = ConnectionOptions::by(&response.fields);
    let framing = match sent {
        Sent::Nothing(None) | Sent::Body(Framing::UntilClose) => Cow::from(""),
        Sent::Nothing(Some(length)) | Sent::Body(Framing::Length(length)) => {
            format!("Content-Length: {length}\r\n").into()
        }
        Sent::Body(Framing::Chunked) => Cow::from("Transfer-Encoding: chunked\r\n"),
    };
    let tells_upgrade =
        response.status == 426 && response.fields.values("Upgrade").next().is_some();
    let upgrade = if tells_upgrade { "Connection: Upgrade\r\n" } else { "" };
    let own = [&framing, connection, upgrade].concat();
    let is_chunked = sent == Sent::Body(Framing::Chunked);
    response_head(response, &own, |field| {
        tells_upgrade && field.is("Upgrade")
            || is_chunked && field.is("Trailer")
            || options.forwards(field)
    })
}

/// Appends the trailers of a body that may go on, each with its CRLF. `trailers` ends with a blank
/// line, or is empty. `None` if they are no fields.
pub(crate) fn push_trailers(out: &mut Vec<u8>, trailers: &[u8]) -> Option<()> {
    if trailers.is_empty() {
        return Some(());
    }
    let head = [b"trailers\r\n", trailers].concat();
    let lines = trailers.iter().filter(|&&byte| byte == b'\n').count();
    let mut slots = vec![httparse::EMPTY_HEADER; lines];
    let parsed = httparse::parse_headers(&head[b"trailers\r\n".len()..], &mut slots);
    let Ok(httparse::Status::Complete((end, parsed))) = parsed else { return None };
    let fields = Fields::new(&head, parsed).filter(|_| end == trailers.len())?;
    let is_kept = |field: &&Field<'_>| {
        let is = |name: &&str| field.is_same_variable(name);
        !HOP_BY_HOP.iter().any(is)
            && !NO_TRAILER.iter().any(is)
            && !is_replaced(field, Forwarded::Replace)
    };
    fields.iter().filter(is_kept).for_each(|field| push_line(out, field));
    Some(())
}
