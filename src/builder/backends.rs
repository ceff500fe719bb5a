//! Settings of the choice among the backends, of their names and of their health.

use super::{WsProxy, number};
use crate::backend::balance::Balance;
use crate::settings::{HealthCheck, OnRemoved, Resolve};

impl WsProxy {
    /// Sets the rule by which a backend is chosen for a handshake. Default:
    /// [`Balance::RoundRobin`].
    pub fn balance(mut self, balance: Balance) -> Self {
        self.raw.balance = Some(balance);
        self
    }

    /// Sets what [`Balance::Hash`] chooses by: `client_ip` (the address of the connection), `path`
    /// (without its query), `header:NAME`, `cookie:NAME` or `query:NAME`. Requests with the same
    /// value come to the same backend while it is usable; one that is added or lost moves only its
    /// own share. A request without the part goes round. Required with it, and an error without.
    pub fn hash_on(mut self, part: impl Into<String>) -> Self {
        self.raw.hash_on = Some(part.into());
        self
    }

    /// Sets the part of an answer that tells the value by which a session's next requests are known
    /// to belong to the same backend, whatever its hash is: `cookie:NAME` (set by the answer),
    /// `json:NAME` (a member in the first KiB of its body, if the request had no value), or `none`.
    /// At least the 65,536 values that were used last are remembered, in this process.
    ///
    /// For [`PlainHttp::Forward`](crate::PlainHttp::Forward). Default: what has the name in
    /// [`hash_on`](Self::hash_on), the cookie for `cookie:NAME` and the member for `query:NAME`, as
    /// for `query:sid` of Socket.IO. SignalR needs `hash_on("query:id")` and
    /// `learn_from("json:connectionToken")`.
    pub fn learn_from(mut self, part: impl Into<String>) -> Self {
        self.raw.learn_from = Some(part.into());
        self
    }

    /// Sets the time that a handshake waits while every backend is at its `max_tunnels`, in
    /// milliseconds; those that wait are served in the order in which they came. At its end the
    /// client gets 503 with `Retry-After`. Default: 0, no waiting.
    pub fn queue_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.queue_timeout_ms = Some(number(ms));
        self
    }

    /// Limits the handshakes that wait at the same time; one too many gets 503 with `Retry-After`.
    /// Default: 1,000. Zero, and more than 1,000,000, is an error: for no waiting set
    /// [`queue_timeout_ms`](WsProxy::queue_timeout_ms) to zero.
    pub fn queue_size(mut self, handshakes: u64) -> Self {
        self.raw.queue_size = Some(number(handshakes));
        self
    }

    /// Asks the next backend, once, after one that answers with one of these: a status from `500`
    /// to `599`, or `bad_answer`, an answer that is invalid. The client then gets what the next one
    /// answers, if there is one. Nobody is asked again after a 101. Default: none, the first answer
    /// counts.
    pub fn retry_on<I>(mut self, answers: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.raw.retry_on = Some(answers.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the way in which names of backends are looked up. Default: [`Resolve::Connect`].
    pub fn resolve(mut self, resolve: Resolve) -> Self {
        self.raw.resolve = Some(resolve);
        self
    }

    /// Sets the time for which the addresses of a backend's name are used before it is looked up
    /// again, in milliseconds. Default: 1,000, and 5,000 with [`Resolve::Watch`]. Zero uses an
    /// answer only for the handshakes that waited for it, and is an error with [`Resolve::Watch`].
    /// While look-ups fail or hang, the last addresses are used for 30 s longer; of a name that is
    /// watched until the next answer.
    pub fn resolve_interval_ms(mut self, ms: u64) -> Self {
        self.raw.resolve_interval_ms = Some(number(ms));
        self
    }

    /// Sets the treatment of the tunnels of backends that a reload or a look-up removes. Default:
    /// [`OnRemoved::Keep`].
    pub fn on_removed(mut self, treatment: OnRemoved) -> Self {
        self.raw.on_removed = Some(treatment);
        self
    }

    /// Sets the number of failures in a row that eject a backend: connect failures, time-outs, and
    /// handshakes that it answers with 502, 503, 504 or a bad 101. Default: 3. Zero ejects none.
    pub fn max_failures(mut self, failures: u32) -> Self {
        self.raw.max_failures = Some(failures.into());
        self
    }

    /// Sets the time of the first ejection, in milliseconds. It doubles with each one that follows,
    /// ten times at most, and is jittered; at its end one connection tries the backend. Default:
    /// 10,000. Zero is an error.
    pub fn eject_ms(mut self, ms: u64) -> Self {
        self.raw.eject_ms = Some(number(ms));
        self
    }

    /// Limits the backends that are ejected at the same time, in percent of all; the last one that
    /// is left is never ejected. Default: 50. Zero ejects none, more than 100 is an error.
    pub fn max_ejected_percent(mut self, percent: u32) -> Self {
        self.raw.max_ejected_percent = Some(percent.into());
        self
    }

    /// Counts a reset by the backend within this time after its 101 as a failure, in milliseconds.
    /// Default: 0, the end of a tunnel is no failure.
    pub fn early_reset_ms(mut self, ms: u64) -> Self {
        self.raw.early_reset_ms = Some(number(ms));
        self
    }

    /// Sets the time in which a backend that was added or came back is brought to its full share,
    /// in milliseconds. Default: 0, at once.
    pub fn slow_start_ms(mut self, ms: u64) -> Self {
        self.raw.slow_start_ms = Some(number(ms));
        self
    }

    /// Checks the backends again and again, whether handshakes come or not. Default: no checks.
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.raw.health_check = Some(check.raw);
        self
    }

    /// Closes tunnels when a backend was added and others hold more than their share by a tenth:
    /// only the surplus, the oldest first, so that their clients come to the new one. Default:
    /// false.
    pub fn rebalance(mut self, rebalances: bool) -> Self {
        self.raw.rebalance = Some(rebalances);
        self
    }

    /// Sets the close code for the clients of tunnels that [`rebalance`](WsProxy::rebalance)
    /// closes. Default: 1012. A code that no endpoint may send is an error.
    pub fn rebalance_code(mut self, code: u16) -> Self {
        self.raw.rebalance_code = Some(code.into());
        self
    }

    /// Limits the tunnels that [`rebalance`](WsProxy::rebalance) closes within a second. Default:
    /// 10. Zero is an error.
    pub fn rebalance_per_second(mut self, tunnels: u32) -> Self {
        self.raw.rebalance_per_second = Some(tunnels.into());
        self
    }
}
