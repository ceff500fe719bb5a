//! Metrics of the whole process, by the names that Prometheus' libraries give them (proc(5)).

use std::fmt;
use std::fs;

use prometheus_client::metrics::MetricType;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::writer::Writer;

/// State of the process; what cannot be read is left out.
#[derive(Debug, Default)]
pub(super) struct Process {
    cpu_seconds: Option<f64>,
    open_descriptors: Option<f64>,
    max_descriptors: Option<f64>,
    virtual_bytes: Option<f64>,
    resident_bytes: Option<f64>,
    started: Option<f64>,
    threads: Option<f64>,
}

impl Process {
    /// Reads the state of this process.
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let descriptors = fs::read_dir("/proc/self/fd").ok();
        Self {
            // The descriptor that the listing itself takes does not count.
            open_descriptors: descriptors.map(|entries| entries.count().saturating_sub(1) as f64),
            max_descriptors: getrlimit(Resource::Nofile).current.map(|limit| limit as f64),
            ..Self::parse(&stat, boot, clock_ticks_per_second() as f64, page_size() as f64)
        }
    }

    /// Reads a line of `/proc/PID/stat`; `boot` is the time at which the machine started.
    fn parse(stat: &str, boot: Option<f64>, ticks: f64, page: f64) -> Self {
        // The name, in parentheses, may hold anything.
        let fields: Vec<f64> = stat.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| {
            rest.split_whitespace().map(|field| field.parse().unwrap_or(f64::NAN)).collect()
        });
        // Numbered as in proc(5), where the state after the name is field 3.
        let field = |number: usize| fields.get(number - 3).copied().filter(|it| !it.is_nan());
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| (user + system) / ticks),
            threads: field(20),
            started: boot.zip(field(22)).map(|(boot, start)| boot + start / ticks),
            virtual_bytes: field(23),
            resident_bytes: field(24).map(|pages| pages * page),
            ..Self::default()
        }
    }

    /// Writes the metrics.
    pub(super) fn encode(&self, out: &mut Writer<'_, '_>) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let rows = [
            ("process_cpu_seconds", "CPU time, user and system", Counter, self.cpu_seconds),
            ("process_open_fds", "Open file descriptors", Gauge, self.open_descriptors),
            ("process_max_fds", "Limit of open file descriptors", Gauge, self.max_descriptors),
            ("process_virtual_memory_bytes", "Virtual memory", Gauge, self.virtual_bytes),
            ("process_resident_memory_bytes", "Resident memory", Gauge, self.resident_bytes),
            ("process_start_time_seconds", "Start, since the epoch", Gauge, self.started),
            ("process_threads", "Threads", Gauge, self.threads),
        ];
        rows.into_iter().try_for_each(|(name, help, kind, value)| {
            value.map_or(Ok(()), |value| out.value(name, help, kind, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_behind_whatever_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 7 0 1000 4096 3 99";
        let process = Process::parse(stat, Some(1_000.0), 100.0, 4_096.0);
        assert_eq!(process.cpu_seconds, Some(4.0));
        assert_eq!(process.threads, Some(7.0));
        assert_eq!(process.started, Some(1_010.0));
        assert_eq!(
            (process.virtual_bytes, process.resident_bytes),
            (Some(4_096.0), Some(12_288.0))
        );
        assert_eq!(Process::parse("", None, 100.0, 4_096.0).cpu_seconds, None);
    }

    #[test]
    fn this_process_has_all_of_it() {
        let process = Process::read();
        for value in [process.cpu_seconds, process.open_descriptors, process.started] {
            assert!(value.is_some_and(|value| value >= 0.0), "{process:?}");
        }
        assert!(process.resident_bytes > Some(0.0) && process.threads >= Some(1.0));
    }
}
