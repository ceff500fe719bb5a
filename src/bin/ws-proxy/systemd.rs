//! Notices for a service manager (sd_notify(3)): only where it asks for them by `NOTIFY_SOCKET`.

use std::env;

use futures_lite::{StreamExt, future};
use sd_notify::NotifyState;
use smol::Timer;

/// Tells that every listener is up.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Tells that a reload has begun, which [`ready`] ends.
pub(crate) fn reloading() {
    // The manager tells by the time that it is its own signal that is answered.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!(error:%; "notify_failed"),
    }
}

/// Tells that the drain has begun.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds the watchdog at half its interval, if there is one, for as long as the caller's executor
/// polls this. Never completes.
pub(crate) async fn feed_watchdog() -> ! {
    if env::var_os("NOTIFY_SOCKET").is_some()
        && let Some(interval) = sd_notify::watchdog_enabled().filter(|time| !time.is_zero())
    {
        let mut times = Timer::interval(interval / 2);
        while times.next().await.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
    }
    future::pending().await
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!(error:%; "notify_failed");
    }
}
