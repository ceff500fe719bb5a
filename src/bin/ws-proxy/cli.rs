//! The command line.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

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
    note = "A second SIGTERM or SIGINT exits at once. SIGHUP reloads the configuration.",
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

impl Arguments {
    /// Returns whether a configuration file was named, before the command or, as `config`, after
    /// it. Otherwise one that is used was found by chance.
    pub(crate) fn name_file(&self, config: Option<&Path>) -> bool {
        config.or(self.config.as_deref()).is_some()
    }
}

/// Refuses two ways of naming the proxy that a command is for.
pub(crate) fn name_one_proxy(pid: Option<i32>, admin: Option<&str>) -> Result<(), Failure> {
    if pid.is_some() && admin.is_some() {
        let problem = "--pid and --admin exclude each other: name one proxy".to_owned();
        return Err(Failure::Usage(problem));
    }
    Ok(())
}

/// Command, in place of serving.
#[derive(Debug, FromArgs)]
#[argh(subcommand)]
pub(crate) enum Command {
    Check(Check),
    Close(Close),
    Demo(Demo),
    Drain(Drain),
    Echo(Echo),
    Health(Health),
    Probe(Probe),
    Reload(Reload),
    Tunnels(Tunnels),
}

/// Check the configuration, and report the first fault with its line. Opens nothing.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "check")]
pub(crate) struct Check {
    /// print the configuration in force, with every default, as TOML
    #[argh(switch)]
    pub(crate) print: bool,
    /// configuration file
    #[argh(option, arg_name = "file")]
    pub(crate) config: Option<PathBuf>,
}

/// Close tunnels of a running ws-proxy through its admin listener: one by its id, or all that match
/// every filter given.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "close",
    error_code(1, "no such tunnel, refused, or no answer"),
    error_code(2, "invalid command line or configuration")
)]
pub(crate) struct Close {
    /// id of the tunnel, as tunnels lists it
    #[argh(positional, arg_name = "id")]
    pub(crate) id: Option<u64>,
    /// tunnels to this backend
    #[argh(option, arg_name = "host:port")]
    pub(crate) backend: Option<String>,
    /// tunnels of this section
    #[argh(option, arg_name = "name")]
    pub(crate) section: Option<String>,
    /// tunnels of this client
    #[argh(option, arg_name = "ip")]
    pub(crate) client: Option<IpAddr>,
    /// close code (1001)
    #[argh(option, arg_name = "code")]
    pub(crate) code: Option<u16>,
    /// reason in the Close, at most 123 bytes (closed by the operator)
    #[argh(option, arg_name = "text")]
    pub(crate) reason: Option<String>,
    /// time over which the tunnels are closed (0: at once)
    #[argh(option, arg_name = "ms")]
    pub(crate) spread_ms: Option<u64>,
    /// its admin listener
    #[argh(option, arg_name = "host:port")]
    pub(crate) admin: Option<String>,
    /// configuration file that it was started with
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
/// it is not: ask its admin listener, which the configuration names, or without one connect to each
/// section's port.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "health",
    example = "ws-proxy health
ws-proxy health 127.0.0.1:8080",
    error_code(1, "not ready, or no answer"),
    error_code(2, "invalid command line or configuration")
)]
pub(crate) struct Health {
    /// port for WebSockets of a ws-proxy, or of its echo, to connect to in place of all that, such
    /// as 127.0.0.1:8080
    #[argh(positional, arg_name = "host:port")]
    pub(crate) address: Option<String>,
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

/// Deprecated: the same as health HOST:PORT.
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

/// Have a running ws-proxy read its configuration again, without a cut tunnel: through its admin
/// listener, which the configuration names, and print what comes of it; or else by SIGHUP.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "reload",
    error_code(1, "refused, with the error, or no answer"),
    error_code(2, "invalid command line or configuration")
)]
pub(crate) struct Reload {
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

/// List the open tunnels of a running ws-proxy, the newest first, through its admin listener.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "tunnels",
    error_code(1, "refused, or no answer"),
    error_code(2, "invalid command line or configuration")
)]
pub(crate) struct Tunnels {
    /// tunnels of this section
    #[argh(option, arg_name = "name")]
    pub(crate) section: Option<String>,
    /// tunnels to this backend
    #[argh(option, arg_name = "host:port")]
    pub(crate) backend: Option<String>,
    /// tunnels of this client
    #[argh(option, arg_name = "ip")]
    pub(crate) client: Option<IpAddr>,
    /// most tunnels to list, up to 10000 (100)
    #[argh(option, arg_name = "number")]
    pub(crate) limit: Option<u64>,
    /// print the JSON array of the admin listener
    #[argh(switch)]
    pub(crate) json: bool,
    /// its admin listener
    #[argh(option, arg_name = "host:port")]
    pub(crate) admin: Option<String>,
    /// configuration file that it was started with
    #[argh(option, arg_name = "file")]
    pub(crate) config: Option<PathBuf>,
}

/// Request of the command line.
#[derive(Debug)]
pub(crate) enum Read {
    Run(Box<Arguments>),
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
        Ok(arguments) => Ok(Read::Run(Box::new(arguments))),
        Err(exit) if exit.status.is_ok() => Ok(Read::Print(exit.output)),
        Err(exit) => Err(Failure::Usage(exit.output.trim_end().to_owned())),
    }
}
