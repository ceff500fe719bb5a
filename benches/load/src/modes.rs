//! Modes of the load. Each warms up, passes `begin`, does what is measured, and passes `end`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::engine::{Counts, Engine, OPENING, Place, Role, Rules};
use crate::gate::pass;
use crate::plain::Exchanges;
use crate::wire::Frames;
use crate::{Failure, system};

/// Size of the batches of a bulk run, in bytes, but for larger frames.
const BATCH: usize = 256 * 1024;

/// What all modes have in common.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where the clients connect.
    pub proxy: SocketAddr,
    /// Addresses that the clients of `many` connect from, in turn; empty for any.
    pub sources: Vec<IpAddr>,
    /// Where the backend listens: at one place or more.
    pub backends: Vec<Place>,
    /// Whether to wait at `begin` and `end`.
    pub gate: bool,
    /// How long all of it may take.
    pub limit: Duration,
}

impl Setting {
    fn engine(&self, tunnels: usize, frames: Frames, rules: Rules) -> Result<Engine, Failure> {
        // Two ends for each tunnel; the rest is the standard streams, the listeners and epoll.
        system::raise_open_files(2 * tunnels as u64 + 16)?;
        let deadline = Instant::now() + self.limit;
        Engine::new(self.proxy, &self.sources, &self.backends, frames, deadline, rules)
    }

    /// An engine whose backend answers each message of `size` bytes with one of its own.
    fn echo(&self, tunnels: usize, size: usize) -> Result<Engine, Failure> {
        self.engine(tunnels, Frames::new(size, 0), Rules { echo: true, ..Rules::default() })
    }
}

/// Closed-loop echo: each tunnel has one message on its way, there or back.
///
/// # Errors
///
/// If a tunnel breaks.
pub fn busy(setting: &Setting, tunnels: usize, size: usize, time: Duration) -> Result<(), Failure> {
    let mut engine = setting.echo(tunnels, size)?;
    engine.open(tunnels, OPENING)?;
    let mut stretch = |time| {
        engine.restart_counts();
        let start = Instant::now();
        all_busy(&mut engine, time)?;
        Ok::<_, Failure>((engine.restart_counts(), start.elapsed()))
    };

    stretch(time / 10)?;
    pass("begin", "", setting.gate)?;
    let (counts, took) = stretch(time)?;
    pass("end", &round_trips(counts, took), setting.gate)?;
    engine.close()
}

/// Each tunnel has a message on its way for some time.
fn all_busy(engine: &mut Engine, time: Duration) -> Result<(), Failure> {
    engine.rules.again = true;
    engine.send(Role::Client, 1)?;
    engine.run_for(time)?;
    engine.rules.again = false;
    engine.settle()
}

/// What is told of round trips.
fn round_trips(mut counts: Counts, took: Duration) -> String {
    counts.round_trips.sort_unstable();
    let quantile = |percent: usize| {
        let last = counts.round_trips.len().saturating_sub(1);
        counts
            .round_trips
            .get(last * percent / 100)
            .map_or(0.0, |nanoseconds| *nanoseconds as f64 / 1e3)
    };
    format!(
        "\"seconds\":{:.6},\"messages\":{},\"round_trips\":{},\"p50_us\":{:.1},\"p99_us\":{:.1}",
        took.as_secs_f64(),
        counts.messages,
        counts.round_trips.len(),
        quantile(50),
        quantile(99),
    )
}

/// A storm of connects, silence, messages on some tunnels, messages on all of them, and the end of
/// the proxy. Waits at `begin`, `established`, `silence`, `some`, `ready`, `all` and `drain`.
///
/// # Errors
///
/// If a tunnel breaks.
pub fn many(
    setting: &Setting,
    tunnels: usize,
    size: usize,
    active: usize,
    time: Duration,
) -> Result<(), Failure> {
    let mut engine = setting.echo(tunnels, size)?;
    pass("begin", "", setting.gate)?;
    let start = Instant::now();
    engine.storm(tunnels)?;
    let took = start.elapsed().as_secs_f64();
    pass("established", &format!("\"seconds\":{took:.6},\"tunnels\":{tunnels}"), setting.gate)?;

    engine.greet()?;
    pass("silence", "", setting.gate)?;

    engine.wander(active, time / 10)?;
    engine.restart_counts();
    pass("some", "", setting.gate)?;
    let start = Instant::now();
    engine.wander(active, time)?;
    pass("ready", &round_trips(engine.restart_counts(), start.elapsed()), setting.gate)?;

    let start = Instant::now();
    all_busy(&mut engine, time)?;
    pass("all", &round_trips(engine.restart_counts(), start.elapsed()), setting.gate)?;

    // The proxy may begin as soon as this is read.
    engine.rules.drain = true;
    pass("drain", "", setting.gate)?;
    engine.drain()
}

/// One message there and back on each tunnel, then silence. `begin` is where the silence begins.
///
/// # Errors
///
/// If a tunnel breaks, in the silence too.
pub fn idle(setting: &Setting, tunnels: usize, size: usize, time: Duration) -> Result<(), Failure> {
    let mut engine = setting.echo(tunnels, size)?;
    engine.open(tunnels, OPENING)?;
    engine.greet()?;
    pass("begin", &format!("\"tunnels\":{tunnels}"), setting.gate)?;
    engine.run_for(time)?;
    pass("end", &format!("\"tunnels\":{tunnels}"), setting.gate)?;
    engine.close()
}

/// One direction, as fast as it goes, `megabytes` (10^6) of frames with a payload of `size` in all.
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
    let mut engine = setting.engine(tunnels, Frames::new(size, BATCH), Rules::default())?;
    engine.open(tunnels, OPENING)?;
    let batch = engine.batch_length(sender) as u64;
    let mut stretch = |bytes: u64| {
        engine.restart_counts();
        let batches = bytes.div_ceil(batch * tunnels as u64);
        let start = Instant::now();
        engine.send(sender, batches)?;
        engine.run_until_bytes(batches * batch * tunnels as u64)?;
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
    let rules = Rules { hang_up: true, ..Rules::default() };
    let mut engine = setting.engine(2 * parallel, Frames::new(0, 0), rules)?;
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

/// Plain HTTP on connections that the clients keep, one exchange at a time on each; `body` is the
/// size of each request's body, none a GET.
///
/// The backend closes first, so that no port of the proxy's stays taken.
///
/// # Errors
///
/// If an exchange fails, or the proxy does not keep a client's connection.
pub fn plain(setting: &Setting, clients: usize, body: usize, count: usize) -> Result<(), Failure> {
    // What the proxy has not closed yet is on top of two ends for each exchange.
    system::raise_open_files(4 * clients as u64 + 16)?;
    let deadline = Instant::now() + setting.limit;
    let mut exchanges =
        Exchanges::new(setting.proxy, &setting.backends, (clients, body), deadline)?;
    exchanges.run(count / 10)?;
    pass("begin", "", setting.gate)?;
    let start = Instant::now();
    exchanges.run(count)?;
    let took = start.elapsed().as_secs_f64();
    pass("end", &format!("\"seconds\":{took:.6},\"exchanges\":{count}"), setting.gate)
}
