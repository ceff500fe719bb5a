//! Any events as the life of a tunnel: no side gets two Closes or anything after one, and an end
//! that has begun comes within the grace time. The model itself asserts it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::internals;

fuzz_target!(|input: (bool, &[u8])| {
    let (codes, bytes) = input;
    internals::ending(codes, bytes);
});
