//! The settings of the tunnels of a section.

use super::values::{close_code, count, limit, lost_code, time};
use super::{Drain, Invalid, RawSection};
use crate::tunnel::policy::{Policy, RateAction};

impl RawSection {
    pub(super) fn policy(&self, drain: &Drain) -> Result<Policy, Invalid> {
        let ping_interval = time("ping_interval_ms", self.ping_interval_ms, "no Pings")?;
        let pong_timeout = time("pong_timeout_ms", self.pong_timeout_ms, "ping_interval_ms")?;
        if pong_timeout.is_some() && ping_interval.is_none() {
            let mend = "has no effect without ping_interval_ms: set that as well, or leave it out";
            return Err(Invalid::new("pong_timeout_ms", mend));
        }
        Ok(Policy {
            ping_interval,
            pong_timeout: pong_timeout.or(ping_interval).unwrap_or_default(),
            idle_timeout: time("idle_timeout_ms", self.idle_timeout_ms, "no limit")?,
            blocked_timeout: time("blocked_timeout_ms", self.blocked_timeout_ms, "no limit")?,
            max_lifetime: time("max_lifetime_ms", self.max_lifetime_ms, "no limit")?,
            lifetime_close_code: close_code("lifetime_close_code", self.lifetime_close_code)?,
            max_message: limit("max_message_bytes", self.max_message_bytes)?,
            max_frame: limit("max_frame_bytes", self.max_frame_bytes)?,
            max_messages_per_second: self.max_messages_per_second()?,
            max_frames_per_second: self.max_frames_per_second()?,
            rate_action: self.rate_action()?,
            strict_frames: self.strict_frames.unwrap_or_default(),
            backend_lost_code: lost_code("backend_lost_code", self.backend_lost_code)?,
            client_lost_code: lost_code("client_lost_code", self.client_lost_code)?,
            close_grace: drain.close_grace,
            drain_close_code: drain.close_code,
        })
    }

    fn rate_action(&self) -> Result<RateAction, Invalid> {
        let action = self.rate_action.unwrap_or_default();
        let has_rate = self.max_messages_per_second()?.or(self.max_frames_per_second()?).is_some();
        if action != RateAction::default() && !has_rate {
            let mend = "has no effect without a rate: set max_messages_per_second or \
                        max_frames_per_second as well, or leave it out";
            return Err(Invalid::new("rate_action", mend));
        }
        Ok(action)
    }

    fn max_messages_per_second(&self) -> Result<Option<u32>, Invalid> {
        count("max_messages_per_second", self.max_messages_per_second, "no limit")
    }

    /// Returns the rate of frames: where it is not given, ten times that of messages.
    fn max_frames_per_second(&self) -> Result<Option<u32>, Invalid> {
        let zero = "ten times max_messages_per_second";
        let frames = count("max_frames_per_second", self.max_frames_per_second, zero)?;
        let messages = self.max_messages_per_second()?;
        Ok(frames.or_else(|| messages.map(|messages| messages.saturating_mul(10))))
    }
}
