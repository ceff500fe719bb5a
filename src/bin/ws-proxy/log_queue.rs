//! Queue of log lines, and the thread that writes them to stderr.
//!
//! A log that is a pipe can stall: nobody reads it, or not as fast as it is written. Event loops
//! and signals must not wait for that, so a line goes into a bounded queue, and only the writer
//! thread waits. Lines that do not fit are dropped and counted, and the count is logged when there
//! is room.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Most bytes that wait to be written, besides those that are being written.
const ROOM: usize = 1 << 20;

/// The queue. Clones are the same queue.
#[derive(Clone, Default)]
pub(crate) struct LogQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when lines have come, and when all have been written.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whole lines, in their order.
    lines: Vec<u8>,
    /// Lines that found no room since the last report.
    dropped: u64,
    /// The writer is writing lines that it has taken.
    is_writing: bool,
}

impl LogQueue {
    /// Starts the thread that writes to `output`. `report` logs the number of dropped lines.
    ///
    /// # Errors
    ///
    /// Those of starting a thread.
    pub(crate) fn start(output: impl Write + Send + 'static, report: fn(u64)) -> io::Result<Self> {
        let queue = Self::default();
        let writer = queue.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.write_to(output, report))?;
        Ok(queue)
    }

    /// Waits until everything has been written, for this long at most.
    pub(crate) fn flush(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = self.lock();
        while state.is_writing || !state.lines.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Puts a line into the queue, or counts it as dropped.
    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.lines.len() + line.len() <= ROOM {
            state.lines.extend_from_slice(line);
            self.0.changed.notify_all();
        } else {
            state.dropped += 1;
        }
    }

    /// Writes lines for as long as the process lives.
    fn write_to(self, mut output: impl Write, report: fn(u64)) {
        let mut lines = Vec::new();
        loop {
            let dropped = self.take(&mut lines);
            // A reader that is gone is no reason to stop: others may not notice.
            let _ = output.write_all(&lines).and_then(|()| output.flush());
            lines.clear();
            self.lock().is_writing = false;
            self.0.changed.notify_all();
            // There is room now, and the report takes the place of the lines.
            if dropped > 0 {
                report(dropped);
            }
        }
    }

    /// Waits for lines and takes them all; returns the number of those that were dropped meanwhile.
    fn take(&self, lines: &mut Vec<u8>) -> u64 {
        let mut state = self.lock();
        while state.lines.is_empty() {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut state.lines, lines);
        state.is_writing = true;
        mem::take(&mut state.dropped)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes one whole line a call, as `env_logger` writes them.
impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static REPORTED: AtomicU64 = AtomicU64::new(0);

    fn report(dropped: u64) {
        REPORTED.fetch_add(dropped, Ordering::SeqCst);
    }

    #[test]
    fn a_reader_that_stalls_holds_up_nobody_and_loses_only_what_does_not_fit() {
        const LINES: u64 = 40_000;
        let (reader, output) = io::pipe().unwrap();
        let mut queue = LogQueue::start(output, report).unwrap();
        // Nobody reads: without a bound this would need 4 MB, with a wait it would never end.
        for number in 0..LINES {
            queue.write_all(format!("{number:099}\n").as_bytes()).unwrap();
        }
        queue.flush(Duration::from_millis(20));
        assert!(queue.lock().lines.len() <= ROOM);
        let dropped = queue.lock().dropped;
        assert!(dropped > LINES / 2, "only {dropped} dropped");

        // The reader comes back: what was kept arrives in order, and the rest is told.
        let read = thread::spawn(move || {
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            let kept: Vec<u64> =
                lines.take((LINES - dropped) as usize).map(|line| line.parse().unwrap()).collect();
            assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(kept[0], 0);
        });
        read.join().unwrap();
        queue.write_all(b"one more\n").unwrap();
        while REPORTED.load(Ordering::SeqCst) < dropped {
            thread::yield_now();
        }
        assert_eq!(REPORTED.load(Ordering::SeqCst), dropped);
    }

    #[test]
    fn a_flush_waits_for_what_is_written_and_not_for_ever() {
        let (mut reader, output) = io::pipe().unwrap();
        let mut queue = LogQueue::start(output, |_| {}).unwrap();
        queue.write_all(b"a line\n").unwrap();
        queue.flush(Duration::from_secs(20));
        let mut line = [0; 7];
        reader.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"a line\n");
        // More than the pipe takes, and nobody reads.
        queue.write_all(&[b'x'; ROOM]).unwrap();
        let start = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn a_reader_that_is_gone_is_no_end() {
        let (reader, output) = io::pipe().unwrap();
        drop(reader);
        let mut queue = LogQueue::start(output, |_| {}).unwrap();
        for _ in 0..3 {
            queue.write_all(b"a line\n").unwrap();
            queue.flush(Duration::from_secs(20));
            assert!(queue.lock().lines.is_empty());
        }
    }
}
