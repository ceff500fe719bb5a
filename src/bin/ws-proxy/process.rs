//! The serving process: limits, signals, and the sections that it runs.

use std::io;

use async_signal::{Signal, Signals};
use futures_lite::{StreamExt, future};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use smol::Executor;
use smol::channel::{Sender, bounded};
use ws_proxy::{Admin, AdminConfig, BoundProxy, Shutdown, Workers};

use crate::reloader::{Reloader, Served, bind_section};
use crate::source::Source;
use crate::{Failure, logging, systemd};

/// Listens for every section and for the admin, and serves them all until a signal. If one cannot
/// listen, none is served.
pub(crate) fn serve(source: Source) -> Result<(), Failure> {
    let signals = watch_signals()?;
    raise_descriptor_limit();
    let config = &source.config;
    let workers = Workers::start(config.workers)
        .map_err(|error| Failure::Runtime(format!("cannot start the worker threads: {error}")))?;
    let admin = config.admin.as_ref().map(bind_admin).transpose()?;
    let metrics = admin.as_ref().map(Admin::metrics);
    let listen = |section| bind_section(section, &workers, metrics);
    let bounds = config
        .sections
        .iter()
        .map(listen)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::Runtime(error.to_string()))?;
    smol::block_on(run(bounds, admin, signals, Some((source, workers))))
}

/// Listens for the admin, whose metrics tell of the log as well.
pub(crate) fn bind_admin(config: &AdminConfig) -> Result<Admin, Failure> {
    let admin =
        Admin::bind(config).map_err(|error| Failure::Runtime(format!("[admin]: {error}")))?;
    admin.metrics().set_dropped_lines(logging::dropped_lines);
    Ok(admin)
}

/// Watches the signals that the program acts on, from now on.
pub(crate) fn watch_signals() -> Result<Signals, Failure> {
    // A hang-up that nobody watches would end the process. Rust programs ignore SIGPIPE already.
    Signals::new([Signal::Term, Signal::Int, Signal::Usr1, Signal::Hup])
        .map_err(|error| Failure::Runtime(format!("cannot watch for signals: {error}")))
}

/// Serves until the first SIGTERM, SIGINT or SIGUSR1, then until every section has drained, or a
/// second SIGTERM or SIGINT, which cuts what is left. The admin listener ends last. With a source,
/// whose sections run on these workers, it can be reloaded.
pub(crate) async fn run(
    bounds: Vec<BoundProxy>,
    mut admin: Option<Admin>,
    signals: Signals,
    source: Option<(Source, Workers)>,
) -> Result<(), Failure> {
    let shutdown = Shutdown::new();
    // One that waits stands for all signals up to its turn.
    let (hang_up, hang_ups) = bounded(1);
    let reloader =
        source.map(|(source, workers)| Reloader::new(source, workers, &bounds, hang_ups));
    if let (Some(admin), Some(reloader)) = (&mut admin, &reloader) {
        reloader.tell(admin);
    }
    let admin = admin.map(|admin| admin.start(&bounds, &shutdown)).transpose();
    let admin = admin.map_err(|error| Failure::Runtime(format!("[admin]: {error}")))?;
    let executor = Executor::new();
    // A signal may begin the drain, and the admin listener too.
    let begun = shutdown.begun();
    let tell_manager = executor.spawn(async {
        systemd::ready().await;
        begun.await;
        systemd::stopping().await;
    });
    tell_manager.detach();
    let (served, all_ended) = Served::start(&executor, &shutdown, bounds);
    let all_drained = async {
        // Nothing is ever sent: it ends with the last section.
        let _closed = all_ended.recv().await;
        None
    };
    let can_reload = reloader.is_some();
    let reloaded = async {
        match reloader {
            Some(reloader) => reloader.run(&served, admin.as_ref()).await,
            None => future::pending().await,
        }
    };
    let reload = can_reload.then_some(&hang_up);
    let told_to_leave = async { Some(obey(signals, &shutdown, reload).await) };
    // On this thread, so that the watchdog starves where nobody would act on a signal any more.
    let watched = async { systemd::feed_watchdog().await };
    let ended = future::or(all_drained, future::or(told_to_leave, future::or(reloaded, watched)));
    let signal = executor.run(ended).await;
    drop(executor);
    match (signal, admin) {
        (Some(signal), _) => log::warn!(signal:?, action = "leave"; "signal"),
        (None, Some(admin)) => admin.finish().await,
        (None, None) => {}
    }
    Ok(())
}

/// Begins the shutdown at the first signal to drain, and returns the one that tells to leave. A
/// SIGHUP asks for a reload, where there can be one. A signal is acted on before it is logged.
///
/// SIGUSR1 begins a drain and does not count as a first signal, so that a hook that has sent it
/// does not turn the SIGTERM that follows into the second one.
async fn obey(mut signals: Signals, shutdown: &Shutdown, reload: Option<&Sender<()>>) -> Signal {
    let mut is_told_to_end = false;
    loop {
        let signal = next_of(&mut signals).await;
        let is_end = matches!(signal, Signal::Term | Signal::Int);
        if is_end && is_told_to_end {
            return signal;
        }
        is_told_to_end |= is_end;
        let begins = (is_end || signal == Signal::Usr1) && !shutdown.has_begun();
        if begins {
            shutdown.begin();
        }
        let reload = reload.filter(|_| signal == Signal::Hup);
        let action = match reload {
            Some(reload) => {
                // One that waits already is for this signal as well.
                let _ = reload.try_send(());
                "reload"
            }
            None if begins => "drain",
            None => "none",
        };
        log::info!(signal:?, action; "signal");
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn end_signal(signals: &mut Signals) {
    while !matches!(next_of(signals).await, Signal::Term | Signal::Int) {}
}

async fn next_of(signals: &mut Signals) -> Signal {
    loop {
        match signals.next().await {
            Some(Ok(signal)) => return signal,
            Some(Err(error)) => log::error!(error:%; "signals_failed"),
            None => future::pending().await,
        }
    }
}

/// Raises the soft limit of open files to the hard one: every tunnel takes two descriptors.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => log::debug!(from = current, to = maximum; "descriptor_limit"),
        Err(error) => {
            let error = io::Error::from(error);
            log::warn!(limit = current, error:%; "descriptor_limit_unchanged");
        }
    }
}
