//! The clients and the backend of a measurement, in one thread of one process.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use ws_proxy_load::engine::{Place, Role};
use ws_proxy_load::modes::{Setting, bulk, busy, handshakes, idle, many, plain};
use ws_proxy_load::{Failure, engine};

/// Drives WebSocket tunnels through a proxy, as its clients and as its backend, and prints what was
/// done as JSON.
#[derive(Debug, FromArgs)]
struct Arguments {
    /// where the proxy listens
    #[argh(option, arg_name = "ip:port")]
    proxy: SocketAddr,
    /// where the proxy finds its backend: this program; may be given several times
    #[argh(option, arg_name = "ip:port|unix:/path")]
    backend_listen: Vec<Place>,
    /// address that clients of `many` connect from; several take turns (any)
    #[argh(option, arg_name = "ip")]
    from: Vec<IpAddr>,
    /// wait for a line on stdin at "begin" and at "end"
    #[argh(switch)]
    gate: bool,
    /// give up when all of it takes longer than this (120)
    #[argh(option, arg_name = "seconds", default = "120.0")]
    limit: f64,
    #[argh(subcommand)]
    mode: Mode,
}

#[derive(Debug, FromArgs)]
#[argh(subcommand)]
enum Mode {
    Busy(Busy),
    Idle(Idle),
    Bulk(Bulk),
    Handshakes(Handshakes),
    Many(Many),
    Plain(Plain),
}

/// Each tunnel has one message on its way, there or back.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "busy")]
struct Busy {
    /// number of tunnels (64)
    #[argh(option, default = "64")]
    tunnels: usize,
    /// payload of each message (64)
    #[argh(option, arg_name = "bytes", default = "64")]
    size: usize,
    /// measured time, after a tenth of it for warming up (2)
    #[argh(option, default = "2.0")]
    seconds: f64,
}

/// One message there and back on each tunnel, then silence.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "idle")]
struct Idle {
    /// number of tunnels (4000)
    #[argh(option, default = "4000")]
    tunnels: usize,
    /// payload of each message (64)
    #[argh(option, arg_name = "bytes", default = "64")]
    size: usize,
    /// length of the silence (5)
    #[argh(option, default = "5.0")]
    seconds: f64,
}

/// One direction as fast as it goes.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "bulk")]
struct Bulk {
    /// number of tunnels (4)
    #[argh(option, default = "4")]
    tunnels: usize,
    /// payload of each frame; they are written 256 KiB at a time, as the socket takes it (262144)
    #[argh(option, arg_name = "bytes", default = "262144")]
    size: usize,
    /// up (from the clients to the backend) or down
    #[argh(option, from_str_fn(sender))]
    direction: Role,
    /// how much in all, headers included, in 10^6 bytes, after a tenth of it for warming up (2000)
    #[argh(option, default = "2000")]
    megabytes: u64,
}

/// Connect, switch, close.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "handshakes")]
struct Handshakes {
    /// how many at a time (32)
    #[argh(option, default = "engine::OPENING")]
    parallel: usize,
    /// how many in all, after a tenth of it for warming up (5000)
    #[argh(option, default = "5000")]
    count: usize,
}

/// All tunnels at once, silence, messages, and the end of the proxy.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "many")]
struct Many {
    /// number of tunnels (10000)
    #[argh(option, default = "10000")]
    tunnels: usize,
    /// payload of each message (64)
    #[argh(option, arg_name = "bytes", default = "64")]
    size: usize,
    /// messages on their way at a time, before all tunnels have one (64)
    #[argh(option, default = "64")]
    active: usize,
    /// measured time of either kind of load (2)
    #[argh(option, default = "2.0")]
    seconds: f64,
}

/// Plain HTTP/1.1 on kept connections, to a backend that ends each with its answer.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "plain")]
struct Plain {
    /// number of clients, each with one exchange at a time (64)
    #[argh(option, default = "64")]
    clients: usize,
    /// body of each request: a POST; a GET without (0)
    #[argh(option, arg_name = "bytes", default = "0")]
    body: usize,
    /// how many exchanges in all, after a tenth of it for warming up (10000)
    #[argh(option, default = "10000")]
    count: usize,
}

fn sender(direction: &str) -> Result<Role, String> {
    match direction {
        "up" => Ok(Role::Client),
        "down" => Ok(Role::Backend),
        _ => Err("the direction is up or down".to_owned()),
    }
}

fn main() -> ExitCode {
    match run(&argh::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("load: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let seconds = |given: f64| {
        Duration::try_from_secs_f64(given).map_err(|error| format!("{given} seconds: {error}"))
    };
    let setting = Setting {
        proxy: arguments.proxy,
        sources: arguments.from.clone(),
        backends: arguments.backend_listen.clone(),
        gate: arguments.gate,
        limit: seconds(arguments.limit)?,
    };
    let at_least_one = |given: usize, name: &str| match given {
        0 => Err(format!("--{name} is at least 1")),
        given => Ok(given),
    };
    at_least_one(setting.backends.len(), "backend-listen")?;
    match &arguments.mode {
        Mode::Busy(mode) => busy(
            &setting,
            at_least_one(mode.tunnels, "tunnels")?,
            mode.size,
            seconds(mode.seconds)?,
        ),
        Mode::Idle(mode) => idle(
            &setting,
            at_least_one(mode.tunnels, "tunnels")?,
            mode.size,
            seconds(mode.seconds)?,
        ),
        Mode::Bulk(mode) => bulk(
            &setting,
            at_least_one(mode.tunnels, "tunnels")?,
            mode.size,
            mode.direction,
            mode.megabytes,
        ),
        Mode::Handshakes(mode) => {
            handshakes(&setting, at_least_one(mode.parallel, "parallel")?, mode.count)
        }
        Mode::Many(mode) => many(
            &setting,
            at_least_one(mode.tunnels, "tunnels")?,
            mode.size,
            at_least_one(mode.active, "active")?,
            seconds(mode.seconds)?,
        ),
        Mode::Plain(mode) => {
            plain(&setting, at_least_one(mode.clients, "clients")?, mode.body, mode.count)
        }
    }
}
