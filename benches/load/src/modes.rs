//! Modes of the load. Each warms up, passes `begin`, does what is measured, and passes `end`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::engine::{Engine, OPENING, Place, Role, Rules};
use crate::gate::pass;
use crate::{Failure, system};

/// What all modes have in common.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where the clients connect.
    pub proxy: SocketAddr,
    /// Where the backend listens.
    pub backend: Place,
    /// Whether to wait at `begin` and `end`.
    pub gate: bool,
    /// How long all of it may take.
    pub limit: Duration,
}

impl Setting {
    fn engine(&self, tunnels: usize, size: usize, rules: Rules) -> Result<Engine, Failure> {
        // Two ends for each tunnel; the rest is the standard streams, the listener and epoll.
        system::raise_open_files(2 * tunnels as u64 + 16)?;
        Engine::new(self.proxy, &self.backend, size, Instant::now() + self.limit, rules)
    }
}

/// Closed-loop echo: each tunnel has one message on its way, there or back.
///
/// # Errors
///
/// If a tunnel breaks.
pub fn busy(setting: &Setting, tunnels: usize, size: usize, time: Duration) -> Result<(), Failure> {
    let mut engine = setting.engine(tunnels, size, Rules { echo: true, ..Rules::default() })?;
    engine.open(tunnels, OPENING)?;
    let mut stretch = |time| {
        engine.restart_counts();
        let start = Instant::now();
        engine.rules.again = true;
        engine.send(Role::Client, 1)?;
        engine.run_for(time)?;
        engine.rules.again = false;
        engine.settle()?;
        Ok::<_, Failure>((engine.restart_counts(), start.elapsed()))
    };

    stretch(time / 10)?;
    pass("begin", "", setting.gate)?;
    let (mut counts, took) = stretch(time)?;

    counts.round_trips.sort_unstable();
    let quantile = |percent: usize| {
        let last = counts.round_trips.len().saturating_sub(1);
        counts
            .round_trips
            .get(last * percent / 100)
            .map_or(0.0, |nanoseconds| *nanoseconds as f64 / 1e3)
    };
    let report = format!(
        "\"seconds\":{:.6},\"messages\":{},\"round_trips\":{},\"p50_us\":{:.1},\"p99_us\":{:.1}",
        took.as_secs_f64(),
        counts.messages,
        counts.round_trips.len(),
        quantile(50),
        quantile(99),
    );
    pass("end", &report, setting.gate)?;
    engine.close()
}

/// One message there and back on each tunnel, then silence. `begin` is where the silence begins.
///
/// # Errors
///
/// If a tunnel breaks, in the silence too.
pub fn idle(setting: &Setting, tunnels: usize, size: usize, time: Duration) -> Result<(), Failure> {
    let mut engine = setting.engine(tunnels, size, Rules { echo: true, ..Rules::default() })?;
    engine.open(tunnels, OPENING)?;
    engine.greet()?;
    pass("begin", &format!("\"tunnels\":{tunnels}"), setting.gate)?;
    engine.run_for(time)?;
    pass("end", &format!("\"tunnels\":{tunnels}"), setting.gate)?;
    engine.close()
}

/// One direction, as fast as it goes, `megabytes` (10^6) of frames in all.
///
/// # Errors
///
/// If a tunnel breaks.
pub fn bulk(
    setting: &Setting,
    tunnels: usize,
    size: usize,
    sender: Role,
    megabytes: u64,
) -> Result<(), Failure> {
    let mut engine = setting.engine(tunnels, size, Rules::default())?;
    engine.open(tunnels, OPENING)?;
    let frame = engine.frame_length(sender) as u64;
    let mut stretch = |bytes: u64| {
        engine.restart_counts();
        let messages = bytes.div_ceil(frame * tunnels as u64);
        let start = Instant::now();
        engine.send(sender, messages)?;
        engine.run_until_bytes(messages * frame * tunnels as u64)?;
        Ok::<_, Failure>((engine.restart_counts(), start.elapsed()))
    };

    stretch(megabytes * 1_000_000 / 10)?;
    pass("begin", "", setting.gate)?;
    let (counts, took) = stretch(megabytes * 1_000_000)?;
    let report = format!(
        "\"seconds\":{:.6},\"messages\":{},\"bytes\":{}",
        took.as_secs_f64(),
        counts.messages,
        counts.bytes
    );
    pass("end", &report, setting.gate)?;
    engine.close()
}

/// Connect, switch, close; `parallel` at a time.
///
/// The client closes first and in order, as browsers do, so that its port stays taken for a minute:
/// more than about 25,000 in that time is more than there are ports.
///
/// # Errors
///
/// If a handshake fails, or the proxy keeps a backend's connection open.
pub fn handshakes(setting: &Setting, parallel: usize, count: usize) -> Result<(), Failure> {
    // A connection can still be closing behind the proxy when the next has begun.
    let mut engine =
        setting.engine(2 * parallel, 0, Rules { hang_up: true, ..Rules::default() })?;
    let mut stretch = |count| {
        let start = Instant::now();
        engine.open(count, parallel)?;
        let took = start.elapsed();
        // What the proxy does to end the last ones is part of their cost.
        engine.close()?;
        Ok::<_, Failure>(took)
    };

    stretch(count / 10)?;
    pass("begin", "", setting.gate)?;
    let took = stretch(count)?;
    pass(
        "end",
        &format!("\"seconds\":{:.6},\"handshakes\":{count}", took.as_secs_f64()),
        setting.gate,
    )
}
