//! Any bytes as a backend's answer: what the client gets of it is one head.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::internals;

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fuzz_target!(|bytes: &[u8]| {
    let Some(answer) = internals::scan_lf(bytes) else { return };
    assert_eq!(internals::scan(&answer), Some(answer.len()));
    for is_strict in [true, false] {
        if let Some(head) = internals::answer(REQUEST, &answer, is_strict) {
            assert_eq!(internals::scan(&head), Some(head.len()));
        }
    }
});
