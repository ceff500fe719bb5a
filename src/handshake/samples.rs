//! Heads that the tests of this folder share.

/// `Sec-WebSocket-Key` and [`ACCEPT`] are the pair of RFC 6455, 1.3.
pub(super) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(super) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Returns the rows of a table test, which does not compile without any.
pub(crate) fn table<T, const N: usize>(rows: [T; N]) -> [T; N] {
    const { assert!(N > 0) };
    rows
}

/// Returns a valid upgrade whose header lines are followed by `lines`, each with its CRLF.
pub(super) fn upgrade(lines: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n"
    )
}

/// Returns a valid upgrade with `part`, which it has once, replaced.
pub(super) fn upgrade_but(part: &str, replacement: &str) -> String {
    replace(&upgrade(""), part, replacement)
}

/// Returns a valid 101 for [`upgrade`], its header lines followed by `lines`.
pub(super) fn switching(lines: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n{lines}\r\n"
    )
}

/// Returns a valid 101 with `part`, which it has once, replaced.
pub(super) fn switching_but(part: &str, replacement: &str) -> String {
    replace(&switching(""), part, replacement)
}

fn replace(head: &str, part: &str, replacement: &str) -> String {
    assert_eq!(head.matches(part).count(), 1, "{part:?}");
    head.replace(part, replacement)
}
