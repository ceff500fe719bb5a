//! Any bytes as frames: they are the same frames however they are read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::internals;

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(internals::frames(bytes, 1), internals::frames(bytes, usize::MAX));
    let counts = |piece| {
        let mut direction = internals::Following::default();
        bytes.chunks(piece).for_each(|piece| direction.follow(piece));
        direction.counts()
    };
    assert_eq!(counts(1), counts(usize::MAX));
});
