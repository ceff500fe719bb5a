//! The log on stderr: one line an event, `key=value`.

use std::io::Write;
use std::str::FromStr;
use std::time::SystemTime;

use log::LevelFilter;

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
        writeln!(
            line,
            "time={time} level={} {}",
            record.level().as_str().to_ascii_lowercase(),
            record.args()
        )
    });
    logger.init();
    Ok(())
}
