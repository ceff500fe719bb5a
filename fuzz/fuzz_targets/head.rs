//! Any bytes as a client's head: what passes is forwarded as a head that passes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::internals;

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = internals::scan(bytes) else { return };
    // What passes where handshakes are strict passes where they are not.
    let lenient = internals::judge(&bytes[..end], false);
    assert!(internals::judge(&bytes[..end], true) != 101 || lenient == 101);
    if let Some(forwarded) = internals::forward(&bytes[..end]) {
        assert_eq!(internals::scan(&forwarded), Some(forwarded.len()));
        // A request that has come through here often enough is a loop the next time.
        assert!(matches!(internals::judge(&forwarded, false), 101 | 508));
    }
});
