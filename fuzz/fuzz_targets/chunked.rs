//! Any bytes as a chunked body: it ends at the same byte however it is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::internals;

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(internals::chunked(bytes, 1), internals::chunked(bytes, usize::MAX));
});
