//! `ws-proxy demo`: the main job, with nothing but this program.

use std::error::Error;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use futures_lite::future;
use smol::channel::bounded;
use tungstenite::Message;
use ws_proxy::{AdminConfig, Config, SectionConfig, WsProxy};

use crate::cli::Demo;
use crate::probe::reachable;
use crate::{Failure, echo, process};

/// Message that is sent through.
const GREETING: &str = "hello through ws-proxy";

/// Starts an echo backend and a proxy in front of it, sends one message through, and goes on
/// serving until Ctrl-C.
pub(crate) fn run(demo: &Demo) -> Result<(), Failure> {
    let signals = process::watch_signals()?;
    let backend = echo::start("127.0.0.1:0")
        .map_err(|error| Failure::Runtime(format!("cannot start the echo backend: {error}")))?;
    let usual = AdminConfig::new("127.0.0.1:9600");
    let (admin, admin_config) = match process::bind_admin(&usual) {
        Ok(admin) => (admin, usual),
        // Another program has the port, such as another demo.
        Err(_) => {
            let any = usual.bind("127.0.0.1:0");
            (process::bind_admin(&any)?, any)
        }
    };
    let proxy = WsProxy::new([backend.to_string()]).name("demo");
    let mut config = Config::new(vec![SectionConfig::new(&demo.bind, proxy.clone())]);
    config.admin = Some(admin_config);
    let proxy = proxy.metrics(admin.metrics()).listen(&demo.bind).map_err(failed_to_listen)?;
    admin.set_config(config.to_toml().map_err(failed_to_listen)?);
    let address = reachable(proxy.local_addr());
    let admin_address = admin.local_addr();

    // The client runs beside the proxy, which takes this thread.
    let (failed, failure) = bounded(1);
    thread::spawn(move || {
        let told = send_one(address)
            .map_err(|error| {
                Failure::Runtime(format!("the demo's message did not come back: {error}"))
            })
            .and_then(|answer| crate::print(&story((backend, address, admin_address), &answer)));
        if let Err(failure) = told {
            // After a signal nobody receives it any more.
            let _ = failed.try_send(failure);
        }
    });
    let failing = async {
        match failure.recv().await {
            Ok(failure) => Err(failure),
            // The client has succeeded.
            Err(_) => future::pending().await,
        }
    };
    let serving = async { process::run(vec![proxy], Some(admin), signals, None).await };
    smol::block_on(future::or(failing, serving))
}

fn failed_to_listen(error: ws_proxy::Error) -> Failure {
    match error {
        ws_proxy::Error::Setting { problem, .. } => Failure::Usage(format!("--bind: {problem}")),
        other => Failure::Runtime(format!("{other}; choose another one with --bind")),
    }
}

/// Returns the report of the message, and ways to try the proxy.
fn story((backend, proxy, admin): (SocketAddr, SocketAddr, SocketAddr), answer: &str) -> String {
    format!(
        "ws-proxy listens on {proxy}, in front of an echo backend on {backend}.
  sent:     {GREETING}
  received: {answer}

Try it:
  websocat ws://{proxy}/
or in a browser's console:
  ws = new WebSocket(\"ws://{proxy}/\"); ws.onmessage = (e) => console.log(e.data); \
         ws.onopen = () => ws.send(\"hi\")
Watch and steer it, in a browser or by commands:
  http://{admin}/
  curl http://{admin}/readyz
  curl http://{admin}/metrics
  curl -X POST http://{admin}/drain

Ctrl-C ends it."
    )
}

/// Opens a WebSocket through the proxy, sends the greeting, and returns the answer.
fn send_one(proxy: SocketAddr) -> Result<String, Box<dyn Error + Send + Sync>> {
    let (mut socket, _) =
        tungstenite::client(format!("ws://{proxy}/"), TcpStream::connect(proxy)?)?;
    socket.send(Message::text(GREETING))?;
    let answer = socket.read()?.into_text()?.to_string();
    socket.close(None)?;
    // The backend's own Close ends it.
    while socket.read().is_ok() {}
    Ok(answer)
}
