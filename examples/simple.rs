//! A proxy in three lines. It blocks, and serves for ever.
//!
//! ```sh
//! cargo run --example simple -- 127.0.0.1:8080 127.0.0.1:9000 127.0.0.1:9001
//! ```

use std::env;
use std::process::ExitCode;

use ws_proxy::WsProxy;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let bind = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());

    // Handshakes go to the backends in turn. Without one this is an error, as is a port that is
    // taken.
    match WsProxy::new(arguments).connect_timeout_ms(3_000).bind(&bind) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}\nUsage: simple BIND BACKEND...");
            ExitCode::FAILURE
        }
    }
}
