//! The backend's answer, judged (RFC 6455, 4.1, items 1 to 6 of the client's duties).

use data_encoding::BASE64;

use super::body::Framing;
use super::fields::Fields;
use super::http::{ResponseHead, Version};
use super::upgrade::UpgradeRequest;

/// What the backend answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer<'a> {
    /// A 1xx that is not the final answer (RFC 9110, 15.2): another head follows.
    Interim,
    /// The 101 that belongs to the request: from here on the bytes are a WebSocket's.
    Switching(ResponseHead<'a>),
    /// Any other final answer, and how its body ends.
    Refusal(ResponseHead<'a>, Framing),
}

impl<'a> Answer<'a> {
    /// Judges a parsed head.
    ///
    /// # Errors
    ///
    /// The reason, for a 101 that does not belong to `request` and for a body without a clear end.
    pub(crate) fn judge(
        response: ResponseHead<'a>,
        request: &UpgradeRequest<'_>,
    ) -> Result<Self, &'static str> {
        match response.status {
            101 if response.version != Version::Http11 => {
                Err("the backend switches protocols in HTTP/1.0")
            }
            101 => {
                verify_switch(&response.fields, request)?;
                Ok(Self::Switching(response))
            }
            100..=199 => Ok(Self::Interim),
            200..=599 => {
                let framing = framing(&response)?;
                Ok(Self::Refusal(response, framing))
            }
            _ => Err("the backend's answer has no status that HTTP knows"),
        }
    }
}

/// `base64(SHA-1(key + GUID))` (RFC 6455, 4.2.2, item 5.4).
pub(crate) fn accept_value(key: &str) -> String {
    let mut sha1 = sha1_smol::Sha1::from(key);
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64.encode(&sha1.digest().bytes())
}

/// Whether a 101 is the answer to this very handshake: only then may bytes flow unseen (RFC 6455, 4.1).
fn verify_switch(fields: &Fields<'_>, request: &UpgradeRequest<'_>) -> Result<(), &'static str> {
    if !fields.lists("Upgrade", "websocket") {
        return Err("the backend's 101 does not switch to websocket");
    }
    if !fields.lists("Connection", "upgrade") {
        return Err("the backend's 101 has no Connection: Upgrade");
    }
    if fields.single("Sec-WebSocket-Accept") != Ok(accept_value(request.key).as_bytes()) {
        return Err("the backend's Sec-WebSocket-Accept does not belong to the client's key");
    }
    let offered = |name: &'static str| {
        move |chosen: &[u8]| request.fields.list(name).any(|one| token_of(one) == token_of(chosen))
    };
    match fields.single("Sec-WebSocket-Protocol") {
        Err(0) => {}
        Ok(chosen) if offered("Sec-WebSocket-Protocol")(chosen) => {}
        _ => return Err("the backend chose a subprotocol that the client did not offer"),
    }
    if !fields.list("Sec-WebSocket-Extensions").all(offered("Sec-WebSocket-Extensions")) {
        return Err("the backend chose an extension that the client did not offer");
    }
    Ok(())
}

/// The token of an element of a list, without its parameters.
fn token_of(element: &[u8]) -> &[u8] {
    element.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii()
}

/// How the body of an answer to a GET ends (RFC 9112, 6.3).
fn framing(response: &ResponseHead<'_>) -> Result<Framing, &'static str> {
    if matches!(response.status, 204 | 304) {
        return Ok(Framing::Length(0));
    }
    let codings = response.fields.list("Transfer-Encoding");
    if let Some(last) = codings.last() {
        // A coding on the outside that is not chunked goes on until the end of the connection.
        let chunked = last.eq_ignore_ascii_case(b"chunked");
        return Ok(if chunked { Framing::Chunked } else { Framing::UntilClose });
    }
    // Several lengths are good if they all say the same.
    let mut lengths = response.fields.list("Content-Length");
    let Some(first) = lengths.next() else {
        return Ok(Framing::UntilClose);
    };
    if lengths.any(|length| length != first) {
        return Err("the backend's answer has several lengths");
    }
    let digits =
        first.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(first).ok()).flatten();
    let length = digits.and_then(|digits| digits.parse().ok());
    length.map(Framing::Length).ok_or("the backend's answer has a bad Content-Length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::http::RequestHead;

    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: chat, superchat\r\n\
        Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-other\r\n\r\n";

    fn judge(head: &str) -> Result<String, &'static str> {
        let request = RequestHead::parse(REQUEST.as_bytes()).unwrap();
        let request = UpgradeRequest::judge(&request).unwrap();
        let head = ResponseHead::parse(head.as_bytes()).map_err(|_| "not HTTP")?;
        Answer::judge(head, &request).map(|answer| match answer {
            Answer::Interim => "interim".to_owned(),
            Answer::Switching(_) => "switching".to_owned(),
            Answer::Refusal(response, framing) => format!("{} {framing:?}", response.status),
        })
    }

    fn switching(lines: &[&str]) -> Result<String, &'static str> {
        judge(&format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n\r\n", lines.join("\r\n")))
    }

    const UPGRADE: &str = "Upgrade: websocket";
    const CONNECTION: &str = "Connection: Upgrade";
    const ACCEPT: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    #[test]
    fn the_accept_value_of_the_rfc() {
        assert_eq!(accept_value("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_good_101_switches() {
        let good: [&[&str]; 7] = [
            &[UPGRADE, CONNECTION, ACCEPT],
            &["upgrade: WebSocket", "connection: keep-alive, upgrade", ACCEPT],
            &[UPGRADE, CONNECTION, ACCEPT, "Sec-WebSocket-Protocol: superchat"],
            &[
                UPGRADE,
                CONNECTION,
                ACCEPT,
                "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover",
            ],
            &[UPGRADE, CONNECTION, ACCEPT, "Sec-WebSocket-Extensions: x-other, permessage-deflate"],
            &[UPGRADE, CONNECTION, ACCEPT, "Sec-WebSocket-Extensions:"],
            &[UPGRADE, CONNECTION, ACCEPT, "Set-Cookie: a=b", "Set-Cookie: c=d"],
        ];
        for lines in good {
            assert_eq!(switching(lines), Ok("switching".to_owned()), "{lines:?}");
        }
        assert!(
            judge(&format!("HTTP/1.1 101\r\n{UPGRADE}\r\n{CONNECTION}\r\n{ACCEPT}\r\n\r\n"))
                .is_ok()
        );
    }

    #[test]
    fn a_faulty_101_does_not() {
        let faulty: [&[&str]; 11] = [
            &[CONNECTION, ACCEPT],
            &[UPGRADE, ACCEPT],
            &[UPGRADE, CONNECTION],
            &["Upgrade: h2c", CONNECTION, ACCEPT],
            &[UPGRADE, "Connection: close", ACCEPT],
            &[UPGRADE, CONNECTION, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOO="],
            &[UPGRADE, CONNECTION, ACCEPT, ACCEPT],
            &[UPGRADE, CONNECTION, ACCEPT, "Sec-WebSocket-Protocol: other"],
            &[UPGRADE, CONNECTION, ACCEPT, "Sec-WebSocket-Protocol: chat, superchat"],
            &[
                UPGRADE,
                CONNECTION,
                ACCEPT,
                "Sec-WebSocket-Protocol: chat",
                "Sec-WebSocket-Protocol: chat",
            ],
            &[UPGRADE, CONNECTION, ACCEPT, "Sec-WebSocket-Extensions: x-unknown"],
        ];
        for lines in faulty {
            assert!(switching(lines).is_err(), "{lines:?}");
        }
        assert!(
            judge(&format!("HTTP/1.0 101 S\r\n{UPGRADE}\r\n{CONNECTION}\r\n{ACCEPT}\r\n\r\n"))
                .is_err()
        );
    }

    #[test]
    fn other_answers_are_told_apart() {
        let answers = [
            ("HTTP/1.1 100 Continue\r\n\r\n", "interim"),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "interim"),
            ("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\n", "403 Length(5)"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "200 Length(5)"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 5\r\n\r\n",
                "200 Chunked",
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "200 UntilClose"),
            ("HTTP/1.0 404 Not Found\r\n\r\n", "404 UntilClose"),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "304 Length(0)"),
        ];
        for (head, expected) in answers {
            assert_eq!(judge(head), Ok(expected.to_owned()), "{head:?}");
        }
        let faulty = [
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 99 x\r\n\r\n",
            "HTTP/1.1 700 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX-Space : x\r\n\r\n",
        ];
        for head in faulty {
            assert!(judge(head).is_err(), "{head:?}");
        }
    }
}
