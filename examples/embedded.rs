//! A proxy inside a program that has an executor, other work, and an end of its own.
//!
//! It listens on any free port, and drains when standard input ends:
//!
//! ```sh
//! cargo run --example embedded -- 127.0.0.1:9000
//! ```

use std::error::Error;
use std::io;
use std::thread;
use std::time::Duration;

use futures_lite::future;
use smol::channel::bounded;
use smol::{LocalExecutor, Timer};
use ws_proxy::WsProxy;

fn main() -> Result<(), Box<dyn Error>> {
    // Nothing is served yet, but the port is open: its number can be told to others before the
    // first client comes.
    let bound =
        WsProxy::new(std::env::args().skip(1)).drain_timeout_ms(2_000).listen("127.0.0.1:0")?;
    println!("listening on {}", bound.local_addr());

    // Any future is a shutdown. This one completes when the thread that reads standard input drops
    // its sender.
    let (stop, stopped) = bounded::<()>(1);
    thread::spawn(move || {
        let _stop = stop;
        io::copy(&mut io::stdin(), &mut io::sink())
    });
    let shutdown = async move {
        let _ = stopped.recv().await;
    };

    // The executor is this program's: here one that lives on the main thread alone.
    let executor = LocalExecutor::new();
    let proxy = executor.spawn(bound.run(shutdown));
    let _other_work = executor.spawn(async {
        loop {
            Timer::after(Duration::from_secs(10)).await;
            println!("still here");
        }
    });

    // The proxy's future completes when the last tunnel has ended, or two seconds after the
    // shutdown.
    future::block_on(executor.run(proxy));
    println!("all tunnels have ended");
    Ok(())
}
