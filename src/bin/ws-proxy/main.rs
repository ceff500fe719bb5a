//! The program: `ws-proxy --help` says how it is used.

#![forbid(unsafe_code)]

mod cli;
mod demo;
mod drain;
mod echo;
mod logging;
mod probe;
mod process;
mod source;

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use self::cli::Command;
use self::source::Source;

/// Why the program ends without having done what it was asked for.
#[derive(Debug)]
enum Failure {
    /// The command line or the configuration is at fault: exit code 2.
    Usage(String),
    /// The machine is, as when a port is taken: exit code 1.
    Machine(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(message) | Self::Machine(message)) = self;
        f.write_str(message)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // The exit code says it too, if nobody reads this.
            let _ = writeln!(io::stderr(), "ws-proxy: {failure}");
            ExitCode::from(match failure {
                Failure::Usage(_) => 2,
                Failure::Machine(_) => 1,
            })
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments = match cli::read()? {
        cli::Read::Run(arguments) => arguments,
        cli::Read::Print(text) => {
            return print(text.trim_end());
        }
    };
    logging::start(arguments.log_level.as_deref())?;
    match &arguments.command {
        Some(Command::Check(check)) => {
            let source = Source::find(&arguments, check.config.as_deref())?;
            print(&source.report())
        }
        Some(Command::Demo(demo)) => demo::run(demo),
        Some(Command::Drain(drain)) => drain::run(drain),
        Some(Command::Echo(echo)) => echo::run(echo),
        Some(Command::Probe(probe)) => probe::run(probe),
        None => {
            let source = Source::find(&arguments, None)?;
            source.log();
            process::serve(source.sections, source.workers)
        }
    }
}

/// Says something on standard output. Nobody has to read all of it, as in `ws-proxy --help | head -1`.
fn print(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Machine(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
