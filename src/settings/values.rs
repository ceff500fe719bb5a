//! Values of settings, each checked against its range.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Invalid;
use crate::backend::pool::BackendSettings;
use crate::net::address::Address;
use crate::tunnel::control::code;

/// Refuses a backend that leads back to its own listener: each handshake would open another one.
pub(super) fn refuse_itself(bind: &Address, backends: &[BackendSettings]) -> Result<(), Invalid> {
    match backends.iter().position(|backend| bind.is_reached_by(&backend.address)) {
        None => Ok(()),
        Some(index) => {
            let problem = format!(
                "{} is this section's own listener (bind {bind}): name the address of the app",
                backends[index].address
            );
            Err(Invalid::element("backends", index, problem))
        }
    }
}

/// Returns a time that must be above zero, or its default, both in milliseconds.
pub(super) fn timeout(
    key: &'static str,
    given: Option<i64>,
    default: i64,
) -> Result<Duration, Invalid> {
    let given = given.unwrap_or(default);
    match u64::try_from(given) {
        Ok(ms @ 1..) => Ok(Duration::from_millis(ms)),
        _ => Err(Invalid::new(key, format!("must be at least 1 (milliseconds), got {given}"))),
    }
}

/// Returns a time given in milliseconds, `None` for 0; `zero` is what an error says of the 0.
pub(super) fn time(
    key: &'static str,
    given: Option<i64>,
    zero: &str,
) -> Result<Option<Duration>, Invalid> {
    let ms = number(key, given, &format!("0 for {zero}, or a positive number of milliseconds"))?;
    Ok(ms.map(Duration::from_millis))
}

/// Returns a time given in milliseconds that may be zero, or its default.
pub(super) fn time_or(
    key: &'static str,
    given: Option<i64>,
    default: Duration,
    zero: &str,
) -> Result<Duration, Invalid> {
    match given {
        None => Ok(default),
        given => Ok(time(key, given, zero)?.unwrap_or_default()),
    }
}

/// Returns a number of 32 bits, `None` for 0; `zero` is what an error says of the 0.
pub(super) fn count(
    key: &'static str,
    given: Option<i64>,
    zero: &str,
) -> Result<Option<u32>, Invalid> {
    let given = given.unwrap_or(0);
    let number = u32::try_from(given).map_err(|_| {
        Invalid::out_of_range(key, given, &format!("0 for {zero}, or 1 to {}", u32::MAX))
    })?;
    Ok((number > 0).then_some(number))
}

/// Returns a number from 1 to `most`, or its default.
pub(super) fn positive(
    key: &'static str,
    given: Option<i64>,
    default: u32,
    most: u32,
) -> Result<NonZeroU32, Invalid> {
    let given = given.unwrap_or(default.into());
    let number = u32::try_from(given).ok().filter(|&number| number <= most);
    number
        .and_then(NonZeroU32::new)
        .ok_or_else(|| Invalid::out_of_range(key, given, &format!("1 to {most}")))
}

/// Returns a number above zero, `None` for 0: no limit.
pub(super) fn limit(key: &'static str, given: Option<i64>) -> Result<Option<u64>, Invalid> {
    number(key, given, "0 for no limit, or a positive number")
}

pub(super) fn number(
    key: &'static str,
    given: Option<i64>,
    allowed: &str,
) -> Result<Option<u64>, Invalid> {
    let given = given.unwrap_or(0);
    match u64::try_from(given) {
        Ok(0) => Ok(None),
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(Invalid::out_of_range(key, given, allowed)),
    }
}

/// Returns a code that an endpoint may put into a Close, by default 1001.
pub(super) fn close_code(key: &'static str, given: Option<i64>) -> Result<u16, Invalid> {
    sendable(key, given.unwrap_or(code::GOING_AWAY.into()), "")
}

/// Returns a code that an endpoint may put into a Close, by default and for 0 none.
pub(super) fn lost_code(key: &'static str, given: Option<i64>) -> Result<Option<u16>, Invalid> {
    match given.unwrap_or(0) {
        0 => Ok(None),
        given => sendable(key, given, ", or 0 for none").map(Some),
    }
}

/// Checks a close code (RFC 6455, section 7.4.2, and IANA's registry).
pub(super) fn sendable(key: &'static str, given: i64, or_else: &str) -> Result<u16, Invalid> {
    match u16::try_from(given) {
        Ok(code) if is_sendable(code) => Ok(code),
        _ => {
            let allowed = format!("{SENDABLE}{or_else}");
            Err(Invalid::new(key, format!("{given} is not a sendable close code ({allowed})")))
        }
    }
}

/// The codes that are [sendable](is_sendable).
pub(crate) const SENDABLE: &str = "1000-1003, 1007-1014, 3000-4999";

/// Returns whether an endpoint may put this code into a Close (RFC 6455, section 7.4.2, and IANA's
/// registry).
pub(crate) fn is_sendable(code: u16) -> bool {
    matches!(code, 1_000..=1_003 | 1_007..=1_014 | 3_000..=4_999)
}
