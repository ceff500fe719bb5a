//! The backend's answer, judged (RFC 6455, 4.1).

use data_encoding::BASE64;

use super::body::Framing;
use super::forward::{declined_head, switching_head};
use super::http::{ResponseHead, Version};
use super::upgrade::{HandshakeRules, UpgradeRequest};
use crate::digits;

/// GUID that the accept value is computed with (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The backend's final answer, as it goes on to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A verified 101: all bytes after it are WebSocket frames.
    Switched {
        /// The 101 for the client.
        head: Vec<u8>,
        /// Whether the backend chose an extension.
        is_extended: bool,
        /// What the backend may not choose, in words for the log, if it is passed on nevertheless.
        deviation: Option<&'static str>,
    },
    /// Any other final status.
    Declined {
        status: u16,
        /// The head for the client.
        head: Vec<u8>,
        /// The end of the body, which goes on unchanged.
        framing: Framing,
    },
}

impl Answer {
    /// Judges a parsed head as an answer to `request`. Returns `None` for an interim response,
    /// which another head follows (RFC 9110, 15.2).
    ///
    /// # Errors
    ///
    /// The reason, in words for the client: a 101 that does not belong to `request`, a body
    /// without a clear end, or a status that HTTP does not define.
    pub(crate) fn judge(
        response: &ResponseHead<'_>,
        request: &UpgradeRequest<'_>,
        rules: HandshakeRules,
    ) -> Result<Option<Self>, &'static str> {
        match response.status {
            101 => {
                verify_switch(response, request.key)?;
                let deviation = deviation(response, request);
                if let Some(deviation) = deviation.filter(|_| rules.is_strict) {
                    return Err(deviation);
                }
                let mut extensions = response.fields.list("Sec-WebSocket-Extensions");
                let is_extended = extensions.next().is_some();
                let head = switching_head(response);
                Ok(Some(Self::Switched { head, is_extended, deviation }))
            }
            100..=199 => Ok(None),
            status @ 200..=599 => {
                let framing = framing(response)?;
                Ok(Some(Self::Declined { status, head: declined_head(response), framing }))
            }
            _ => Err("the backend's answer has no status that HTTP knows"),
        }
    }
}

/// Verifies that a 101 belongs to the handshake with this key; no byte may pass unseen before (RFC
/// 6455, 4.1, items 2 to 4 of the checks of the server's response).
///
/// # Errors
///
/// The reason, in words for the client.
pub(crate) fn verify_switch(response: &ResponseHead<'_>, key: &str) -> Result<(), &'static str> {
    // An HTTP/1.0 message must not carry Upgrade (RFC 9110, 7.8).
    if response.version != Version::Http11 {
        return Err("the backend switches protocols in HTTP/1.0");
    }
    let fields = &response.fields;
    if !fields.lists("Upgrade", "websocket") {
        return Err("the backend's 101 does not switch to websocket");
    }
    if !fields.lists("Connection", "upgrade") {
        return Err("the backend's 101 has no Connection: Upgrade");
    }
    if fields.single("Sec-WebSocket-Accept") != Ok(accept_value(key).as_bytes()) {
        return Err("the backend's Sec-WebSocket-Accept does not belong to the client's key");
    }
    Ok(())
}

/// Returns what the backend may not choose in a verified 101, if it does (RFC 6455, 4.1, items 5
/// and 6). The client has to judge the choice as well, and some rely on one that they did not
/// offer.
fn deviation(response: &ResponseHead<'_>, request: &UpgradeRequest<'_>) -> Option<&'static str> {
    let chosen = response.fields.single("Sec-WebSocket-Protocol");
    let mut offered = request.fields.list("Sec-WebSocket-Protocol");
    match chosen {
        Err(0) => {}
        Err(_) => return Some("the backend chose a subprotocol on more than one line"),
        Ok(b"") => return Some("the backend chose a subprotocol without a name"),
        // A subprotocol is a token, without parameters (RFC 6455, 11.3.4).
        Ok(chosen) if offered.any(|offered| offered == chosen) => {}
        Ok(_) => return Some("the backend chose a subprotocol that the client did not offer"),
    }
    // Each name is looked up, so that neither list can be made costly by the other.
    let mut offered: Vec<_> = request.fields.list("Sec-WebSocket-Extensions").map(name).collect();
    offered.sort_unstable();
    let mut chosen = response.fields.list("Sec-WebSocket-Extensions").map(name);
    let is_offered = chosen.all(|chosen| offered.binary_search(&chosen).is_ok());
    (!is_offered).then_some("the backend chose an extension that the client did not offer")
}

/// Returns `base64(SHA-1(key + GUID))` (RFC 6455, 4.2.2, item 5.4).
fn accept_value(key: &str) -> String {
    let mut sha1 = sha1_smol::Sha1::from(key);
    sha1.update(GUID);
    BASE64.encode(&sha1.digest().bytes())
}

/// Returns the name of an extension without its parameters, which are left to the two peers
/// (RFC 6455, 9.1).
fn name(element: &[u8]) -> &[u8] {
    element.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Returns how the body of an answer to a GET ends (RFC 9112, 6.3).
pub(super) fn framing(response: &ResponseHead<'_>) -> Result<Framing, &'static str> {
    // These have no body, whatever their fields say (RFC 9112, 6.3, item 1).
    if matches!(response.status, 204 | 304) {
        return Ok(Framing::Length(0));
    }
    match response.fields.list("Transfer-Encoding").last() {
        Some(outermost) if outermost.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        // An outermost coding other than chunked ends with the connection (RFC 9112, 6.3, item 4).
        Some(_) => Ok(Framing::UntilClose),
        // A line without an element is one that each reader takes for something else.
        None if response.fields.values("Transfer-Encoding").next().is_some() => {
            Err("the backend's answer has an empty Transfer-Encoding")
        }
        None => Ok(content_length(response)?.map_or(Framing::UntilClose, Framing::Length)),
    }
}

/// Returns the length that an answer tells, or `None` if it tells none.
pub(super) fn content_length(response: &ResponseHead<'_>) -> Result<Option<u64>, &'static str> {
    const NAME: &str = "Content-Length";
    if response.fields.values(NAME).next().is_none() {
        return Ok(None);
    }
    // Repeated lengths are valid as long as they are equal (RFC 9110, 8.6).
    let mut lengths = response.fields.list(NAME);
    let length = lengths.next().unwrap_or_default();
    if lengths.any(|other| other != length) {
        return Err("the backend's answer has several lengths");
    }
    let length = std::str::from_utf8(length).ok().and_then(digits::number);
    length.map(Some).ok_or("the backend's answer has a bad Content-Length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::http::RequestHead;
    use crate::handshake::samples::{ACCEPT, KEY, switching, switching_but, table, upgrade};

    /// Judges a head as the answer to an upgrade that offers subprotocols and extensions.
    fn judge(head: &str) -> Result<Option<Answer>, &'static str> {
        judge_by(head, HandshakeRules { is_strict: true, ..HandshakeRules::default() })
    }

    fn judge_by(head: &str, rules: HandshakeRules) -> Result<Option<Answer>, &'static str> {
        let request = upgrade(
            "Sec-WebSocket-Protocol: chat, superchat\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-other\r\n",
        );
        let request = RequestHead::parse(request.as_bytes()).unwrap();
        let request = UpgradeRequest::judge(&request, rules).unwrap();
        Answer::judge(&ResponseHead::parse(head.as_bytes()).unwrap(), &request, rules)
    }

    #[test]
    fn the_accept_value_of_the_rfc() {
        assert_eq!(accept_value(KEY), ACCEPT);
    }

    const EXTENSIONS: &str = "Sec-WebSocket-Extensions:";

    #[test]
    fn a_101_that_belongs_to_the_request_switches() {
        let rows = table([
            (switching(""), false),
            (switching_but(" Switching Protocols", ""), false),
            (switching_but("Upgrade: websocket", "upgrade: WebSocket"), false),
            (switching_but("Connection: Upgrade", "connection: keep-alive, upgrade"), false),
            (switching("Sec-WebSocket-Protocol: superchat\r\n"), false),
            (switching("Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n"), false),
            (switching(&format!("{EXTENSIONS}\r\n")), false),
            (switching(&format!("{EXTENSIONS} permessage-deflate; server_no_context\r\n")), true),
            (switching(&format!("{EXTENSIONS} x-other, permessage-deflate\r\n")), true),
        ]);
        for (head, expected) in rows {
            let Ok(Some(Answer::Switched { is_extended, deviation, .. })) = judge(&head) else {
                panic!("{head:?} is {:?}", judge(&head));
            };
            assert_eq!((is_extended, deviation), (expected, None), "{head:?}");
        }
    }

    #[test]
    fn any_other_101_is_an_error() {
        let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
        let rows = table([
            ("HTTP/1.0", switching_but("HTTP/1.1", "HTTP/1.0")),
            ("switch to websocket", switching_but("Upgrade: websocket\r\n", "")),
            ("switch to websocket", switching_but("Upgrade: websocket", "Upgrade: h2c")),
            ("no Connection", switching_but("Connection: Upgrade\r\n", "")),
            ("no Connection", switching_but("Connection: Upgrade", "Connection: close")),
            ("Accept", switching_but(&accept, "")),
            ("Accept", switching_but(ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOO=")),
            ("Accept", switching(&accept)),
            ("a subprotocol", switching("Sec-WebSocket-Protocol: other\r\n")),
            ("a subprotocol", switching("Sec-WebSocket-Protocol: Chat\r\n")),
            ("a subprotocol", switching("Sec-WebSocket-Protocol:\r\n")),
            ("a subprotocol", switching("Sec-WebSocket-Protocol: chat, superchat\r\n")),
            ("a subprotocol", switching("Sec-WebSocket-Protocol: chat;x\r\n")),
            ("a subprotocol", switching("Sec-WebSocket-Protocol: chat; x=1\r\n")),
            (
                "a subprotocol",
                switching("Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: chat\r\n"),
            ),
            ("an extension", switching(&format!("{EXTENSIONS} x-unknown\r\n"))),
            ("an extension", switching(&format!("{EXTENSIONS} x-other, x-unknown\r\n"))),
        ]);
        for (words, head) in rows {
            let error = judge(&head).unwrap_err();
            assert!(error.contains(words), "{head:?}: {error}");
            // A choice is the client's to judge; anything else never passes.
            let is_choice = words.starts_with("a subprotocol") || words.starts_with("an extension");
            match judge_by(&head, HandshakeRules::default()) {
                Ok(Some(Answer::Switched { deviation, .. })) if is_choice => {
                    assert_eq!(deviation, Some(error), "{head:?}");
                }
                other => assert_eq!(other, Err(error), "{head:?}"),
            }
        }
    }

    #[test]
    fn interim_responses_are_no_final_answer() {
        for status in table([100, 102, 103, 199]) {
            assert_eq!(judge(&format!("HTTP/1.1 {status} x\r\nLink: x\r\n\r\n")), Ok(None));
        }
    }

    #[test]
    fn a_declining_answer_has_a_framing() {
        let rows = table([
            (200, "", Framing::UntilClose),
            (403, "Content-Length: 5\r\n", Framing::Length(5)),
            (403, "Content-Length: 5\r\nContent-Length: 5\r\n", Framing::Length(5)),
            (403, "Content-Length: 5, 5\r\n", Framing::Length(5)),
            (599, "Content-Length: 18446744073709551615\r\n", Framing::Length(u64::MAX)),
            (200, "Transfer-Encoding: chunked\r\n", Framing::Chunked),
            (200, "Transfer-Encoding: gzip, CHUNKED\r\nContent-Length: 5\r\n", Framing::Chunked),
            (200, "Transfer-Encoding: chunked, gzip\r\n", Framing::UntilClose),
            (204, "Transfer-Encoding: chunked\r\n", Framing::Length(0)),
            (304, "Content-Length: 5\r\n", Framing::Length(0)),
        ]);
        for (expected, lines, expected_framing) in rows {
            for version in ["1.0", "1.1"] {
                let head = format!("HTTP/{version} {expected} x\r\n{lines}\r\n");
                let Ok(Some(Answer::Declined { status, framing, .. })) = judge(&head) else {
                    panic!("{head:?} is {:?}", judge(&head));
                };
                assert_eq!((status, framing), (expected, expected_framing), "{head:?}");
            }
        }
    }

    #[test]
    fn other_statuses_and_lengths_are_errors() {
        let rows = table([
            ("no status", "HTTP/1.1 000 x\r\n\r\n"),
            ("no status", "HTTP/1.1 099 x\r\n\r\n"),
            ("no status", "HTTP/1.1 600 x\r\n\r\n"),
            ("several", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"),
            ("several", "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n"),
            ("bad", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n"),
            ("bad", "HTTP/1.1 200 OK\r\nContent-Length: ,\r\n\r\n"),
            ("empty", "HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\nContent-Length: 5\r\n\r\n"),
            ("bad", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"),
            ("bad", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n"),
            ("bad", "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n"),
            ("bad", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n"),
        ]);
        for (word, head) in rows {
            let error = judge(head).unwrap_err();
            assert!(error.contains(word), "{head:?}: {error}");
        }
    }
}
