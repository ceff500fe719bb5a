//! Notices for a service manager (sd_notify(3)): only where it asks for them by `NOTIFY_SOCKET`.

use std::env;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use futures_lite::{StreamExt, future};
use sd_notify::NotifyState;
use smol::{Async, Timer};

/// Time for the manager to take a notice. Its socket holds few that it has not read.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells that every listener is up.
pub(crate) async fn ready() {
    notify(&[NotifyState::Ready]).await;
}

/// Tells that a reload has begun, which [`ready`] ends.
pub(crate) async fn reloading() {
    // The manager tells by the time that it is its own signal that is answered.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]).await,
        Err(error) => log::warn!(error:%; "notify_failed"),
    }
}

/// Tells that the drain has begun.
pub(crate) async fn stopping() {
    notify(&[NotifyState::Stopping]).await;
}

/// Feeds the watchdog at half its interval, if there is one, for as long as the caller's executor
/// polls this. Never completes.
pub(crate) async fn feed_watchdog() -> ! {
    if env::var_os("NOTIFY_SOCKET").is_some()
        && let Some(interval) = sd_notify::watchdog_enabled().filter(|time| !time.is_zero())
    {
        let mut times = Timer::interval(interval / 2);
        while times.next().await.is_some() {
            notify(&[NotifyState::Watchdog]).await;
        }
    }
    future::pending().await
}

async fn notify(states: &[NotifyState<'_>]) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let late = async {
        Timer::after(PATIENCE).await;
        Err(io::Error::new(ErrorKind::TimedOut, "the service manager does not read its notices"))
    };
    if let Err(error) = future::or(send(&path, states), late).await {
        log::warn!(error:%; "notify_failed");
    }
}

/// Sends a notice. `sd_notify::notify` blocks its thread while the manager does not read, and this
/// one acts on signals.
async fn send(path: &OsStr, states: &[NotifyState<'_>]) -> io::Result<()> {
    let lines: String = states.iter().map(|state| format!("{state}\n")).collect();
    let socket = Async::new(UnixDatagram::unbound()?)?;
    socket.get_ref().connect(path)?;
    // A datagram goes whole or not at all.
    socket.send(lines.as_bytes()).await.map(drop)
}
