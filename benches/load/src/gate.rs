//! Marks for the harness: the measured stretch begins, the measured stretch ends.
//!
//! One JSON object a line on stdout: `begin` and `end`, with the counts of the stretch in the
//! latter. Nothing is on its way at either moment. With `--gate` each waits for a line on stdin, so
//! that what the harness reads in between (the CPU time of the proxy, say) belongs to exactly the
//! messages that are counted.

use std::io::{Write, stdin, stdout};

use crate::{Failure, while_doing};

/// Says that something was reached, and waits for the word to go on if `wait` is set.
///
/// `counts` are the members of the JSON object beside `event`: `"messages":12`.
///
/// # Errors
///
/// If whoever started this is gone: stdout is closed, or stdin ends.
pub fn pass(event: &str, counts: &str, wait: bool) -> Result<(), Failure> {
    let comma = if counts.is_empty() { "" } else { "," };
    let mut out = stdout().lock();
    writeln!(out, "{{\"event\":\"{event}\"{comma}{counts}}}")
        .and_then(|()| out.flush())
        .map_err(while_doing("writing to stdout"))?;
    if wait && stdin().read_line(&mut String::new()).map_err(while_doing("reading stdin"))? == 0 {
        return Err(format!("stdin ended while waiting at {event}").into());
    }
    Ok(())
}
