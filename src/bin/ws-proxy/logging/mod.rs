//! The log on stderr: one line an event, as [`text`] or as [`json`].
//!
//! Records of this package have the event's name for a message, and key-values; only this folder
//! knows how they are written. The thread that emits a record formats it, and never waits for
//! stderr: a [`LineQueue`] takes the line there.

mod json;
mod text;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env;
use std::io;
use std::panic;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use env_logger::Target;
use log::kv::Value;
use log::{Level, LevelFilter, Record};
use ws_proxy::LogFormat;

use crate::Failure;
use crate::line_queue::LineQueue;

/// Longest wait for stderr at the end of the process. Long enough for a container whose share of
/// the CPU is used up for the moment.
const FLUSH_TIME: Duration = Duration::from_millis(500);

/// Writes a part of these bytes.
type Write = fn(&[u8]) -> io::Result<usize>;

/// The lines on their way to stderr.
static LINES: LineQueue<Write> = LineQueue::new(write, dropped_line);

/// Whether the lines are JSON, of which a reload may decide.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Whether the configuration tells the level, which it does unless a flag or `RUST_LOG` does.
static IS_CONFIGURED: AtomicBool = AtomicBool::new(false);

/// Settings of the log, which `[log]` of the configuration has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSettings {
    pub(crate) format: LogFormat,
    /// Level where nothing else tells one.
    pub(crate) level: LevelFilter,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: LevelFilter::Info }
    }
}

/// Returns the level that `--log-level` names.
pub(crate) fn read_level(flag: &str) -> Result<LevelFilter, Failure> {
    LevelFilter::from_str(flag).map_err(|_| {
        Failure::Usage(format!(
            "--log-level: {flag:?} is none of off, error, warn, info, debug, trace"
        ))
    })
}

/// Has a panic of any thread told without a wait for stderr.
pub(crate) fn watch_panics() {
    panic::set_hook(Box::new(tell_panic));
}

/// Starts logging: at the level of the flag, else as `RUST_LOG` says, else as `settings` do.
pub(crate) fn start(flag: Option<LevelFilter>, settings: LogSettings) {
    let mut logger = env_logger::Builder::new();
    let is_configured = flag.is_none() && env::var_os(env_logger::DEFAULT_FILTER_ENV).is_none();
    // The logger's own level cannot be changed any more; that of the configuration comes before it.
    let level = if is_configured { LevelFilter::Trace } else { settings.level };
    logger.filter_level(flag.unwrap_or(level));
    if flag.is_none() {
        logger.parse_default_env();
    }
    logger.format(|output, record| write_line(output, format(), record));
    logger.target(Target::Pipe(Box::new(Lines)));
    logger.init();
    IS_CONFIGURED.store(is_configured, Ordering::Relaxed);
    change(settings);
}

/// Changes the format from the next line on, and the level unless a flag or `RUST_LOG` tells it.
pub(crate) fn change(settings: LogSettings) {
    IS_JSON.store(settings.format == LogFormat::Json, Ordering::Relaxed);
    if IS_CONFIGURED.load(Ordering::Relaxed) {
        log::set_max_level(settings.level);
    }
}

/// Writes what is left of the log, and then the failure that the program ends with, if it does.
/// Waits for a moment at most where stderr has stalled.
pub(crate) fn finish(failure: Option<&Failure>) {
    if let Some(failure) = failure {
        LINES.push_last(&failure_line(format(), &failure.to_string()));
    }
    LINES.flush(FLUSH_TIME);
}

/// Returns the number of lines that did not reach stderr, since the start.
pub(crate) fn dropped_lines() -> u64 {
    LINES.missing()
}

/// Tells of a panic in the words of the standard library, whose own hook waits for stderr. A
/// program that has panicked must end, so that it is restarted.
fn tell_panic(info: &panic::PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    let is_captured = backtrace.status() == BacktraceStatus::Captured;
    let backtrace = is_captured.then(|| backtrace.to_string());
    LINES.push(&panic_line(format(), name, &info.to_string(), backtrace.as_deref()));
    LINES.flush(FLUSH_TIME);
}

/// Writes to stderr without the lock of the standard library, which a stalled write would hold.
fn write(bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(io::stderr(), bytes)?)
}

/// Returns the line about this many dropped ones.
fn dropped_line(lines: u64) -> Vec<u8> {
    event_line(format(), Level::Warn, "log_lines_dropped", &[("lines", lines.into())])
}

/// Returns the line of the failure that the program ends with; as text, that of a command.
fn failure_line(format: LogFormat, failure: &str) -> Vec<u8> {
    match format {
        LogFormat::Json => event_line(format, Level::Error, "failed", &[("error", failure.into())]),
        _ => format!("ws-proxy: {failure}\n").into(),
    }
}

/// Returns what tells of a panic; as text, in several lines.
fn panic_line(format: LogFormat, thread: &str, message: &str, backtrace: Option<&str>) -> Vec<u8> {
    match format {
        LogFormat::Json => {
            let backtrace = backtrace.map_or(Value::null(), Value::from);
            let fields =
                [("thread", thread.into()), ("message", message.into()), ("backtrace", backtrace)];
            event_line(format, Level::Error, "panic", &fields)
        }
        _ => {
            let backtrace = backtrace.map(|text| format!("{text}\n")).unwrap_or_default();
            format!("thread '{thread}' {message}\n{backtrace}").into()
        }
    }
}

/// Returns the line of an event that does not pass the logger.
fn event_line(
    format: LogFormat,
    level: Level,
    event: &str,
    fields: &[(&str, Value<'_>)],
) -> Vec<u8> {
    let mut line = Vec::new();
    // No write into memory fails.
    let _ = write_line(
        &mut line,
        format,
        &Record::builder()
            .level(level)
            .target("ws_proxy")
            .args(format_args!("{event}"))
            .key_values(&fields)
            .build(),
    );
    line
}

/// Returns the format of the lines; that of text before logging has started.
fn format() -> LogFormat {
    if IS_JSON.load(Ordering::Relaxed) { LogFormat::Json } else { LogFormat::Text }
}

/// Writes a record as a line, with its end.
fn write_line(
    output: &mut impl io::Write,
    format: LogFormat,
    record: &Record<'_>,
) -> io::Result<()> {
    let now = SystemTime::now();
    match format {
        LogFormat::Json => {
            json::write(output, now, record)?;
            output.write_all(b"\n")
        }
        _ => writeln!(output, "{}", text::Line(now, record)),
    }
}

/// Returns whether a record is an event of this package: its message is a name then, and its
/// key-values are ours.
fn is_event(record: &Record<'_>) -> bool {
    let target = record.target();
    target == "ws_proxy" || target.starts_with("ws_proxy::")
}

/// Takes each line from env_logger, which writes it at once.
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LINES.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: Vec<u8>) -> String {
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn what_does_not_pass_the_logger_has_the_format_of_the_log() {
        let format = LogFormat::Json;
        let dropped = event_line(format, Level::Warn, "dropped", &[("lines", 3_u64.into())]);
        let rows = [
            (dropped, r#","level":"warn","event":"dropped","lines":3}"#),
            (failure_line(format, "no\nport"), r#""event":"failed","error":"no\nport"}"#),
            (
                panic_line(format, "worker-0", "panicked at a.rs:1:2:\nwhy", None),
                concat!(
                    r#","level":"error","event":"panic","thread":"worker-0","#,
                    r#""message":"panicked at a.rs:1:2:\nwhy","backtrace":null}"#
                ),
            ),
            (
                panic_line(format, "log", "x", Some("0: one\n1: two")),
                r#""backtrace":"0: one\n1: two"}"#,
            ),
        ];
        for (line, end) in rows {
            let line = text(line);
            let object = line.strip_suffix('\n').unwrap();
            assert!(object.starts_with("{\"time\":\"") && object.ends_with(end), "{line}");
            assert!(serde_json::from_str::<serde_json::Value>(object).is_ok(), "{line}");
        }
    }

    #[test]
    fn as_text_a_failure_and_a_panic_are_told_as_by_any_program() {
        let format = LogFormat::Text;
        assert_eq!(text(failure_line(format, "no port")), "ws-proxy: no port\n");
        let told = text(panic_line(format, "log", "panicked at a.rs:1:2:\nwhy", Some("0: one")));
        assert_eq!(told, "thread 'log' panicked at a.rs:1:2:\nwhy\n0: one\n");
        let dropped = text(event_line(format, Level::Warn, "dropped", &[("lines", 3.into())]));
        assert!(dropped.ends_with(" level=warn event=dropped lines=3\n"), "{dropped}");
    }
}
