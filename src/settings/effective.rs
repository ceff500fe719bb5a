//! Checked settings as tables again, with every default.

use std::time::Duration;

use super::lists::{HeaderList, StatusList};
use super::{
    BackendConfig, CheckKind, Drain, HealthCheckSettings, RawDrain, RawHealthCheck, RawSection,
    Settings, rebalance,
};
use crate::backend::health::states::CheckRules;

impl Settings {
    /// Returns the table that these settings come from, `given`, with the default of every key that
    /// is not in it. `name`, `hash_on`, `learn_from`, `origins`, `socket_mode`, `health_path` and
    /// `health_check` have none.
    pub(crate) fn to_raw(&self, given: &RawSection) -> RawSection {
        let policy = &self.policy;
        let checks = self.health_check.as_deref().zip(self.health.checks);
        RawSection {
            name: given.name.clone(),
            bind: given.bind.clone(),
            backends: Some(self.backends.iter().map(BackendConfig::of).collect()),
            balance: Some(self.balance),
            hash_on: given.hash_on.clone(),
            learn_from: given.learn_from.clone(),
            connect_timeout_ms: ms(self.connect_timeout),
            resolve: Some(self.resolve),
            resolve_interval_ms: ms(self.resolve_interval),
            on_removed: Some(self.on_removed),
            queue_timeout_ms: ms(self.queue_timeout),
            queue_size: number(Some(self.queue_size)),
            max_failures: number(Some(self.health.max_failures)),
            eject_ms: ms(self.health.eject),
            max_ejected_percent: number(Some(self.max_ejected_percent)),
            early_reset_ms: ms_or_zero(self.early_reset),
            slow_start_ms: ms(self.health.slow_start),
            rebalance: Some(self.rebalance.is_some()),
            // Not of the settings, which have none while it is off.
            rebalance_code: given.rebalance_code.or(Some(rebalance::CODE)),
            rebalance_per_second: given.rebalance_per_second.or(Some(rebalance::PER_SECOND.into())),
            read_timeout_ms: ms(self.read_timeout),
            response_timeout_ms: ms(self.response_timeout),
            host: Some(self.host),
            forwarded: Some(self.forwarded),
            origins: given.origins.clone(),
            strict_handshake: Some(self.strict_handshake),
            retry_on: Some(given.retry_on.clone().unwrap_or_default()),
            max_head_bytes: number(Some(self.max_head)),
            max_connections: number(self.max_connections),
            socket_buffer_bytes: number(self.socket_buffer),
            socket_mode: given.socket_mode.clone(),
            ping_interval_ms: ms_or_zero(policy.ping_interval),
            pong_timeout_ms: ms(policy.pong_timeout),
            idle_timeout_ms: ms_or_zero(policy.idle_timeout),
            blocked_timeout_ms: ms_or_zero(policy.blocked_timeout),
            max_lifetime_ms: ms_or_zero(policy.max_lifetime),
            lifetime_close_code: number(Some(policy.lifetime_close_code)),
            max_message_bytes: number(policy.max_message),
            max_frame_bytes: number(policy.max_frame),
            max_messages_per_second: number(policy.max_messages_per_second),
            max_frames_per_second: number(policy.max_frames_per_second),
            rate_action: Some(policy.rate_action),
            strict_frames: Some(policy.strict_frames),
            backend_lost_code: number(policy.backend_lost_code),
            client_lost_code: number(policy.client_lost_code),
            tunnel_start: Some(self.tunnel_start),
            health_path: self.plain.health_path.clone(),
            plain_http: Some(self.plain.treatment),
            max_body_bytes: number(self.plain.max_body),
            keep_alive_timeout_ms: ms(self.plain.keep_alive_timeout),
            body_timeout_ms: ms_or_zero(self.plain.body_timeout),
            health_check: checks.map(|(settings, rules)| settings.to_raw(rules)),
        }
    }
}

impl HealthCheckSettings {
    /// Returns the table with these settings, without the keys that its kind does not take. `host`
    /// has no default, and the values of headers are left out where they may be secrets.
    fn to_raw(&self, rules: CheckRules) -> RawHealthCheck {
        let (is_tcp, is_http) = (self.kind == CheckKind::Tcp, self.kind == CheckKind::Http);
        RawHealthCheck {
            kind: Some(self.kind),
            path: (!is_tcp).then(|| self.path.clone()),
            host: self.host.clone(),
            headers: (!is_tcp).then(|| HeaderList::shown(&self.headers)),
            expect_status: is_http.then(|| StatusList(vec![self.expected.to_string()])),
            interval_ms: ms(self.interval),
            timeout_ms: ms(self.timeout),
            healthy_threshold: number(Some(rules.healthy_threshold)),
            unhealthy_threshold: number(Some(rules.unhealthy_threshold)),
            on_unhealthy: Some(self.on_unhealthy),
        }
    }
}

impl Drain {
    /// Returns the table with these settings.
    pub(crate) fn to_raw(self) -> RawDrain {
        RawDrain {
            delay_ms: ms(self.delay),
            spread_ms: ms(self.spread),
            timeout_ms: ms(self.timeout),
            close_code: number(Some(self.close_code)),
            close_grace_ms: ms(self.close_grace),
        }
    }
}

/// Returns a time in milliseconds, as a table has it.
fn ms(time: Duration) -> Option<i64> {
    number(Some(time.as_millis()))
}

fn ms_or_zero(time: Option<Duration>) -> Option<i64> {
    ms(time.unwrap_or_default())
}

/// Returns a number as a table has it: 0 for none.
fn number<N: TryInto<i64>>(given: Option<N>) -> Option<i64> {
    // A larger one was none of a table.
    Some(given.map_or(0, |number| number.try_into().unwrap_or(i64::MAX)))
}
