//! A proxy inside the test, through the library.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use smol::channel::{Sender, bounded};
use ws_proxy::WsProxy;

use super::Backend;

/// A running proxy; it is stopped and waited for when it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub fn start(proxy: WsProxy) -> Self {
        // A test that fails does not wait long for its tunnels.
        let bound = proxy.drain_timeout_ms(100).listen("127.0.0.1:0").unwrap();
        let address = bound.local_addr();
        let (stop, stopped) = bounded::<()>(1);
        let thread = std::thread::spawn(move || {
            smol::block_on(bound.run(async move {
                let _ = stopped.recv().await;
            }));
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// A proxy with all defaults in front of one backend.
    pub fn before(backend: &Backend) -> Self {
        Self::start(Self::to(&[backend]))
    }

    /// A proxy that is not started yet, for changing its settings.
    pub fn to(backends: &[&Backend]) -> WsProxy {
        WsProxy::new(backends.iter().map(|backend| backend.address.to_string()))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.expect("the proxy does not panic");
            }
        }
    }
}
