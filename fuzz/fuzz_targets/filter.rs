//! Any bytes as a client's frames through a filter: with the Ping that is put in taken out again,
//! what passes is what came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::internals;

fuzz_target!(|input: (u8, &[u8])| {
    const PING: &[u8] = b"\x89\x08internal";
    let (piece, bytes) = input;
    // Nothing is added but the Ping.
    let limited = internals::filter(bytes, piece.into(), Some(64));
    assert!(limited.len() <= bytes.len() + PING.len());
    // Bytes that hold the Ping's own payload could be the Pong that is taken out.
    if bytes.windows(8).any(|window| window == b"internal")
        || bytes.first() == Some(&0x8a)
        || bytes.contains(&0x8a)
    {
        return;
    }
    let mut passed = internals::filter(bytes, piece.into(), None);
    if let Some(at) = passed.windows(PING.len()).position(|window| window == PING) {
        passed.drain(at..at + PING.len());
    }
    assert_eq!(passed, bytes);
});
