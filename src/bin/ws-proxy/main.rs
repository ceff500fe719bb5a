//! The program; `ws-proxy --help` tells its use.

#![forbid(unsafe_code)]

mod admin_client;
mod cli;
mod close;
mod demo;
mod drain;
mod echo;
mod health;
mod line_queue;
mod logging;
mod peer_process;
mod probe;
mod process;
mod query;
mod reload;
mod reloader;
mod source;
mod systemd;
mod tunnels;

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use self::cli::Command;
use self::logging::LogSettings;
use self::source::Source;

/// Failure of the program, and its exit code.
#[derive(Debug)]
enum Failure {
    /// Fault of the command line or the configuration: exit code 2.
    Usage(String),
    /// Runtime failure, such as a port in use: exit code 1.
    Runtime(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(message) | Self::Runtime(message)) = self;
        f.write_str(message)
    }
}

fn main() -> ExitCode {
    let result = run();
    // If nobody reads this, the exit code still tells.
    logging::finish(result.as_ref().err());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(_)) => ExitCode::from(2),
        Err(Failure::Runtime(_)) => ExitCode::from(1),
    }
}

fn run() -> Result<(), Failure> {
    logging::watch_panics();
    let arguments = match cli::read()? {
        cli::Read::Run(arguments) => arguments,
        cli::Read::Print(text) => {
            return print(text.trim_end());
        }
    };
    let level = arguments.log_level.as_deref().map(logging::read_level).transpose()?;
    let Some(command) = &arguments.command else {
        let source = Source::find(&arguments, None)?;
        // The configuration tells the log's format, so that nothing is logged before it is read.
        logging::start(level, source.log());
        source.tell();
        return process::serve(source);
    };
    logging::start(level, LogSettings::default());
    match command {
        Command::Check(check) => {
            let source = Source::find(&arguments, check.config.as_deref())?;
            print(&if check.print { source.text() } else { source.report() })
        }
        Command::Close(close) => close::run(close, &arguments),
        Command::Demo(demo) => demo::run(demo),
        Command::Drain(drain) => drain::run(drain, &arguments),
        Command::Echo(echo) => echo::run(echo),
        Command::Health(health) => health::run(health, &arguments),
        Command::Probe(probe) => probe::run(probe),
        Command::Reload(reload) => reload::run(reload, &arguments),
        Command::Tunnels(tunnels) => tunnels::run(tunnels, &arguments),
    }
}

/// Prints to standard output. A reader that closes early, as in `ws-proxy --help | head -1`, is no
/// failure.
fn print(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Runtime(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
