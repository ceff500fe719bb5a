//! The program: `ws-proxy --help` says how it is used.

mod cli;
mod demo;
mod drain;
mod echo;
mod logging;
mod probe;
mod process;
mod source;

use std::fmt;
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
            eprintln!("ws-proxy: {failure}");
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
            println!("{}", text.trim_end());
            return Ok(());
        }
    };
    logging::start(arguments.log_level.as_deref())?;
    match &arguments.command {
        Some(Command::Check(check)) => {
            let source = Source::find(&arguments, check.config.as_deref())?;
            println!("{}", source.report());
            Ok(())
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
