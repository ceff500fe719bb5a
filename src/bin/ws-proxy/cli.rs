//! The command line.

use std::path::PathBuf;

use argh::FromArgs;

use crate::Failure;

/// A small WebSocket reverse proxy: accepts WebSocket upgrades on a port, connects each to one of
/// the backends, and relays the bytes both ways.
///
/// Without --config and --bind it reads ws-proxy.toml or rws.config.toml in the working directory.
#[derive(Debug, FromArgs)]
#[argh(
    example = "ws-proxy --bind 0.0.0.0:8080 --backend chat-1:9000 --backend chat-2:9000",
    note = "Times are in milliseconds.",
    note = "SIGTERM, SIGINT and SIGUSR1 close all tunnels; the program exits after the last one.",
    note = "A second SIGTERM or SIGINT exits at once.",
    error_code(1, "runtime failure, such as a port in use"),
    error_code(2, "invalid command line or configuration")
)]
pub(crate) struct Arguments {
    /// configuration file (TOML, with one or more [[ws_proxy]] sections)
    #[argh(option, arg_name = "file")]
    pub(crate) config: Option<PathBuf>,
    /// address to listen on, in place of a configuration file
    #[argh(option, arg_name = "host:port")]
    pub(crate) bind: Option<String>,
    /// backend, as host:port or ws://host:port; may be repeated
    #[argh(option, arg_name = "host:port")]
    pub(crate) backend: Vec<String>,
    /// time for an attempt to connect to a backend (5000)
    #[argh(option, arg_name = "ms")]
    pub(crate) connect_timeout_ms: Option<u64>,
    /// time for a client to send its upgrade request (30000)
    #[argh(option, arg_name = "ms")]
    pub(crate) read_timeout_ms: Option<u64>,
    /// off, error, warn, info, debug or trace (RUST_LOG, or [log] level, or info)
    #[argh(option, arg_name = "level")]
    pub(crate) log_level: Option<String>,
    /// print the version
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Command, in place of serving.
#[derive(Debug, FromArgs)]
#[argh(subcommand)]
pub(crate) enum Command {
    Check(Check),
    Demo(Demo),
    Drain(Drain),
    Echo(Echo),
    Health(Health),
    Probe(Probe),
}

/// Check the configuration, and report the first fault with its line. Opens nothing.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "check")]
pub(crate) struct Check {
    /// configuration file
    #[argh(option, arg_name = "file")]
    pub(crate) config: Option<PathBuf>,
}

/// Start an echo backend and a proxy in front of it, send a message through, and keep serving.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "demo")]
pub(crate) struct Demo {
    /// address to listen on (127.0.0.1:8080)
    #[argh(option, arg_name = "host:port", default = "String::from(\"127.0.0.1:8080\")")]
    pub(crate) bind: String,
}

/// Tell a running ws-proxy to drain and exit: through its admin listener, which the configuration
/// names, or else by SIGUSR1. For preStop hooks.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "drain")]
pub(crate) struct Drain {
    /// wait until the last tunnel has ended
    #[argh(switch)]
    pub(crate) wait: bool,
    /// its admin listener
    #[argh(option, arg_name = "host:port")]
    pub(crate) admin: Option<String>,
    /// configuration file that it was started with
    #[argh(option, arg_name = "file")]
    pub(crate) config: Option<PathBuf>,
    /// its process id, for a signal (1, as in a container of its own)
    #[argh(option, arg_name = "pid")]
    pub(crate) pid: Option<i32>,
}

/// Serve as a WebSocket backend that sends every message back, for trials.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "echo")]
pub(crate) struct Echo {
    /// address to listen on (127.0.0.1:9000)
    #[argh(option, arg_name = "host:port", default = "String::from(\"127.0.0.1:9000\")")]
    pub(crate) bind: String,
}

/// Tell by the exit code whether a running ws-proxy is ready for clients, and print the reasons if
/// it is not. Without an admin listener, ask each section's port as probe does.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "health",
    error_code(1, "not ready, or no answer"),
    error_code(2, "invalid command line or configuration")
)]
pub(crate) struct Health {
    /// ask whether it is alive, and not whether it is ready
    #[argh(switch)]
    pub(crate) live: bool,
    /// its admin listener
    #[argh(option, arg_name = "host:port")]
    pub(crate) admin: Option<String>,
    /// configuration file that it was started with
    #[argh(option, arg_name = "file")]
    pub(crate) config: Option<PathBuf>,
    /// time for it to answer (2000)
    #[argh(option, arg_name = "ms", default = "2_000")]
    pub(crate) timeout_ms: u64,
}

/// Check by the exit code whether the ws-proxy at an address answers, without using a backend: for
/// health checks where no admin listener is configured.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "probe",
    error_code(1, "no answer"),
    error_code(2, "invalid command line")
)]
pub(crate) struct Probe {
    /// its address, such as 127.0.0.1:8080
    #[argh(positional, arg_name = "host:port")]
    pub(crate) address: String,
    /// time for it to answer (2000)
    #[argh(option, arg_name = "ms", default = "2_000")]
    pub(crate) timeout_ms: u64,
}

/// Request of the command line.
#[derive(Debug)]
pub(crate) enum Read {
    Run(Arguments),
    /// Only print this.
    Print(String),
}

/// Reads the command line of this process.
pub(crate) fn read() -> Result<Read, Failure> {
    let mut words = Vec::new();
    for word in std::env::args_os().skip(1) {
        match word.into_string() {
            Ok(word) => words.push(word),
            Err(word) => return Err(Failure::Usage(format!("the argument {word:?} is not UTF-8"))),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match Arguments::from_args(&["ws-proxy"], &words) {
        Ok(arguments) if arguments.version => {
            Ok(Read::Print(concat!("ws-proxy ", env!("CARGO_PKG_VERSION")).to_owned()))
        }
        Ok(arguments) => Ok(Read::Run(arguments)),
        Err(exit) if exit.status.is_ok() => Ok(Read::Print(exit.output)),
        Err(exit) => Err(Failure::Usage(exit.output.trim_end().to_owned())),
    }
}
