//! `ws-proxy echo`: a WebSocket backend for trials.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::cli::Echo;
use crate::{Failure, process};

/// Echoes until SIGTERM or SIGINT, then ends without a Close, as many apps do.
pub(crate) fn run(echo: &Echo) -> Result<(), Failure> {
    let mut signals = process::watch_signals()?;
    let address = start(&echo.bind).map_err(|error| {
        let message =
            format!("cannot listen on {}: {error}; choose another one with --bind", echo.bind);
        match error.kind() {
            io::ErrorKind::InvalidInput => Failure::Usage(message),
            _ => Failure::Runtime(message),
        }
    })?;
    log::info!(address:%, action = "echo"; "listening");
    smol::block_on(process::end_signal(&mut signals));
    Ok(())
}

/// Starts a backend that sends every message back, with a thread for each client. Returns its
/// address.
pub(crate) fn start(bind: &str) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(bind)?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming() {
            match client.and_then(|client| thread::Builder::new().spawn(|| serve(client))) {
                Ok(_) => {}
                Err(error) => log::warn!(error:%; "echo_failed"),
            }
        }
    });
    Ok(address)
}

fn serve(client: TcpStream) {
    let Ok(mut socket) = tungstenite::accept(client) else {
        return;
    };
    // Any error is the end of the client.
    while let Ok(message) = socket.read() {
        if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
            return;
        }
    }
}
