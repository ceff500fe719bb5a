//! Any bytes as a request that is no upgrade: what passes is one request at the backend, which
//! passes again, and is the same in whatever pieces it came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::internals;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = internals::plain(bytes, bytes.len());
    let Some((out, end)) = whole else {
        assert_eq!(internals::plain(bytes, piece.into()), None);
        return;
    };
    assert!(end <= bytes.len());
    let in_pieces = internals::plain(bytes, piece.into()).map(|(_, end)| end);
    assert_eq!(in_pieces, Some(end));
    // Nothing of it is left to be read as a second request.
    if let Some((again, all)) = internals::plain(&out, out.len()) {
        assert_eq!(all, out.len());
        assert_eq!(internals::plain(&again, again.len()).map(|(_, end)| end), Some(again.len()));
    }
});
