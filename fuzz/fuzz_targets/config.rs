//! Any text as a configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_proxy::Config;

fuzz_target!(|text: &str| {
    let _ = Config::parse(text);
});
