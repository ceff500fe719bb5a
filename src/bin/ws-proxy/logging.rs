//! The log on stderr: one line an event, `key=value`.

use std::io::{self, Write};
use std::str::FromStr;
use std::time::SystemTime;

use log::LevelFilter;
use log::kv::{Error, Key, Value, VisitSource};

use crate::Failure;

/// Starts logging at `level`, or as `RUST_LOG` says, or at `info`.
pub(crate) fn start(level: Option<&str>) -> Result<(), Failure> {
    let mut logger = env_logger::Builder::new();
    logger.filter_level(LevelFilter::Info);
    match level {
        Some(level) => {
            let level = LevelFilter::from_str(level).map_err(|_| {
                Failure::Usage(format!(
                    "--log-level: {level:?} is none of off, error, warn, info, debug, trace"
                ))
            })?;
            logger.filter_level(level);
        }
        None => {
            logger.parse_default_env();
        }
    }
    logger.format(|line, record| {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        let level = record.level().as_str().to_ascii_lowercase();
        write!(line, "time={time} level={level} ")?;
        // Records with fields have the event's name as their message.
        if record.key_values().count() > 0 {
            write!(line, "event=")?;
        }
        write!(line, "{}", record.args())?;
        record.key_values().visit(&mut Fields(line)).map_err(io::Error::other)?;
        writeln!(line)
    });
    logger.init();
    Ok(())
}

/// Writes fields as `key=value`, with quotes around text that needs them.
struct Fields<'a>(&'a mut dyn Write);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = value.to_string();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/,+@%*[]".contains(&byte);
        if !value.is_empty() && value.bytes().all(is_plain) {
            write!(self.0, " {key}={value}")?;
        } else {
            write!(self.0, " {key}={value:?}")?;
        }
        Ok(())
    }
}
