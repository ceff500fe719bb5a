//! Any bytes as a client's head: what passes is forwarded as a head that passes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::internals;

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = internals::scan(bytes) else { return };
    if let Some(forwarded) = internals::forward(&bytes[..end]) {
        assert_eq!(internals::scan(&forwarded), Some(forwarded.len()));
        assert_eq!(internals::judge(&forwarded), 101);
    }
});
