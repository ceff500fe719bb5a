//! The command line.

use std::path::PathBuf;

use argh::FromArgs;

use crate::Failure;

/// A small WebSocket reverse proxy: it takes WebSocket upgrades on a port, brings each to one of the backends,
/// and carries the bytes both ways.
///
/// Without --config and --bind, ws-proxy.toml or rws.config.toml of the working directory is used.
#[derive(Debug, FromArgs)]
#[argh(
    example = "ws-proxy --bind 0.0.0.0:8080 --backend chat-1:9000 --backend chat-2:9000",
    note = "Times are in milliseconds. SIGTERM, SIGINT or SIGUSR1: it closes all tunnels, and leaves with the last. A second SIGTERM or SIGINT: it leaves at once.",
    error_code(1, "the machine does not permit it, as when a port is taken"),
    error_code(2, "the command line or the configuration is at fault")
)]
pub(crate) struct Arguments {
    /// configuration file (TOML, with one or more [[ws_proxy]] sections)
    #[argh(option, arg_name = "file")]
    pub(crate) config: Option<PathBuf>,
    /// listen on this host:port, instead of a configuration file
    #[argh(option, arg_name = "host:port")]
    pub(crate) bind: Option<String>,
    /// a backend, as host:port or ws://host:port; may be given several times
    #[argh(option, arg_name = "host:port")]
    pub(crate) backend: Vec<String>,
    /// how long an attempt to connect to a backend may take (5000)
    #[argh(option, arg_name = "ms")]
    pub(crate) connect_timeout_ms: Option<u64>,
    /// how long a client may take to send its upgrade request (30000)
    #[argh(option, arg_name = "ms")]
    pub(crate) read_timeout_ms: Option<u64>,
    /// off, error, warn, info, debug or trace (default: RUST_LOG, else info)
    #[argh(option, arg_name = "level")]
    pub(crate) log_level: Option<String>,
    /// print the version
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Debug, FromArgs)]
#[argh(subcommand)]
pub(crate) enum Command {
    Check(Check),
    Demo(Demo),
    Drain(Drain),
    Echo(Echo),
    Probe(Probe),
}

/// Say whether the configuration is good, or what is wrong and where. Nothing is opened.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "check")]
pub(crate) struct Check {
    /// configuration file
    #[argh(option, arg_name = "file")]
    pub(crate) config: Option<PathBuf>,
}

/// Start an echo backend and a proxy in front of it, send one message through, and go on serving.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "demo")]
pub(crate) struct Demo {
    /// listen on this host:port (127.0.0.1:8080)
    #[argh(option, arg_name = "host:port", default = "String::from(\"127.0.0.1:8080\")")]
    pub(crate) bind: String,
}

/// Ask a running ws-proxy to drain and leave, by SIGUSR1, and return at once: for preStop hooks.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "drain")]
pub(crate) struct Drain {
    /// its process (1, which it is in a container of its own)
    #[argh(option, arg_name = "number", default = "1")]
    pub(crate) pid: i32,
}

/// Serve as a WebSocket backend that sends every message back, to try things with.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "echo")]
pub(crate) struct Echo {
    /// listen on this host:port (127.0.0.1:9000)
    #[argh(option, arg_name = "host:port", default = "String::from(\"127.0.0.1:9000\")")]
    pub(crate) bind: String,
}

/// Say by the exit code whether the ws-proxy behind an address answers, without using a backend: for health checks.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "probe",
    error_code(1, "it does not answer"),
    error_code(2, "the command line is at fault")
)]
pub(crate) struct Probe {
    /// where it listens, as in 127.0.0.1:8080
    #[argh(positional, arg_name = "host:port")]
    pub(crate) address: String,
    /// how long it may take to answer (2000)
    #[argh(option, arg_name = "ms", default = "2_000")]
    pub(crate) timeout_ms: u64,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Read {
    Run(Arguments),
    /// Only to print this.
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
