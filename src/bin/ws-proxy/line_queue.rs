//! The way of log lines from the threads that emit them to an output that may stall.
//!
//! Lines wait in a bounded queue, and a thread of its own writes them. Nobody else ever waits for
//! the output: a line that does not fit is dropped and counted.

use std::io;
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Most bytes of lines that wait. As many may be in the hands of the writing thread.
const MAX: usize = 512 * 1024;
/// Stack of the writing thread, in bytes.
const STACK: usize = 64 * 1024;

/// Bounded queue of lines, with the thread that writes them.
///
/// `W` writes a part of the given bytes, as [`io::Write::write`] does, and may block.
pub(crate) struct LineQueue<W> {
    state: Mutex<State>,
    /// Notified when lines wait for an idle thread.
    queued: Condvar,
    /// Notified when all lines have been written.
    written: Condvar,
    write: W,
    /// Returns the line, with its end, that tells of this many missing ones.
    tell_missing: fn(u64) -> Vec<u8>,
}

/// State that the threads share.
struct State {
    /// Lines that wait, each with its end.
    text: Vec<u8>,
    /// Number of lines dropped after those that wait. While there are any no line is taken, so that
    /// their count stands where the lines would.
    dropped: u64,
    /// Number of lines that never reached the output, since the start.
    missing: u64,
    thread: Thread,
}

/// State of the writing thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    NotStarted,
    /// Waits to be notified.
    Idle,
    Writing,
}

/// The writing thread's view of its output.
struct Output<'q, W> {
    queue: &'q LineQueue<W>,
    /// Number of missing lines that the output has not been told of.
    untold: u64,
    /// An error cut the last line short.
    is_mid_line: bool,
}

impl<W: Fn(&[u8]) -> io::Result<usize> + Sync> LineQueue<W> {
    /// Creates an empty queue. Its thread starts with the first line.
    pub(crate) const fn new(write: W, tell_missing: fn(u64) -> Vec<u8>) -> Self {
        let thread = Thread::NotStarted;
        Self {
            state: Mutex::new(State { text: Vec::new(), dropped: 0, missing: 0, thread }),
            queued: Condvar::new(),
            written: Condvar::new(),
            write,
            tell_missing,
        }
    }

    /// Queues a line, which has its end, or counts it as dropped. Never waits for the output.
    pub(crate) fn push(&'static self, line: &[u8]) {
        let mut state = self.state();
        if state.dropped > 0 || state.text.len() + line.len() > MAX {
            state.dropped += 1;
            state.missing += 1;
        } else {
            state.text.extend_from_slice(line);
        }
        match state.thread {
            Thread::Writing => {}
            Thread::Idle => {
                // Only the first of many lines costs a wake-up.
                state.thread = Thread::Writing;
                drop(state);
                self.queued.notify_one();
            }
            Thread::NotStarted => {
                let thread = thread::Builder::new().name("log".to_owned()).stack_size(STACK);
                // On an error the lines wait for the next attempt, or for the end.
                if thread.spawn(|| self.write_for_ever()).is_ok() {
                    state.thread = Thread::Writing;
                }
            }
        }
    }

    /// Waits until all lines have been written, `limit` at most.
    ///
    /// Without a writing thread, as in a process that has logged nothing, the caller writes the
    /// lines itself.
    pub(crate) fn flush(&self, limit: Duration) {
        let mut state = self.state();
        if state.thread == Thread::NotStarted {
            let text = mem::take(&mut state.text);
            drop(state);
            Output { queue: self, untold: 0, is_mid_line: false }.write(&text);
            return;
        }
        let is_writing = |state: &mut State| state.thread == Thread::Writing;
        drop(self.written.wait_timeout_while(state, limit, is_writing));
    }

    /// Queues a line without starting a thread for it, as the last one before a
    /// [`flush`](Self::flush).
    pub(crate) fn push_last(&'static self, line: &[u8]) {
        let mut state = self.state();
        if state.thread == Thread::NotStarted {
            state.text.extend_from_slice(line);
        } else {
            drop(state);
            self.push(line);
        }
    }

    /// Returns the number of lines that never reached the output, since the start.
    pub(crate) fn missing(&self) -> u64 {
        self.state().missing
    }

    fn write_for_ever(&self) {
        let mut output = Output { queue: self, untold: 0, is_mid_line: false };
        loop {
            let (text, dropped) = self.take();
            output.tell();
            let unwritten = output.write(&text);
            self.state().missing += unwritten;
            output.untold += unwritten + dropped;
            // After an error, such as a full disk, the next lines are the next attempt. A reader
            // that has gone fails each of them, and ends nothing.
            if unwritten == 0 {
                output.tell();
            }
        }
    }

    /// Waits for lines. Returns them, and the number of those dropped after them.
    fn take(&self) -> (Vec<u8>, u64) {
        let mut state = self.state();
        if state.text.is_empty() && state.dropped == 0 {
            state.thread = Thread::Idle;
            self.written.notify_all();
            let is_idle = |state: &mut State| state.thread == Thread::Idle;
            let notified = self.queued.wait_while(state, is_idle);
            state = notified.unwrap_or_else(PoisonError::into_inner);
        }
        (mem::take(&mut state.text), mem::take(&mut state.dropped))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Fn(&[u8]) -> io::Result<usize> + Sync> Output<'_, W> {
    /// Tells of the missing lines, if there are any.
    fn tell(&mut self) {
        if self.untold > 0 && self.write(&(self.queue.tell_missing)(self.untold)) == 0 {
            self.untold = 0;
        }
    }

    /// Writes whole lines. Returns the number of those that an error kept back.
    fn write(&mut self, lines: &[u8]) -> u64 {
        let mut left = lines;
        while !left.is_empty() {
            // The start of a line that was cut short must not become that of another one.
            let next = if self.is_mid_line { &b"\n"[..] } else { left };
            match (self.queue.write)(next) {
                Ok(count) if count > 0 && self.is_mid_line => self.is_mid_line = false,
                Ok(count) if count > 0 => left = &left[count.min(left.len())..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    let written = &lines[..lines.len() - left.len()];
                    self.is_mid_line |= written.last().is_some_and(|&byte| byte != b'\n');
                    let unwritten = left.iter().filter(|&&byte| byte == b'\n').count();
                    return u64::try_from(unwritten).unwrap_or(u64::MAX);
                }
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Time that anything may take before the test has failed.
    const PATIENCE: Duration = Duration::from_secs(20);

    type Answer = io::Result<usize>;
    type Write = Box<dyn Fn(&[u8]) -> Answer + Send + Sync>;
    type Queue = &'static LineQueue<Write>;

    /// Returns a queue, the bytes of each write, and the sender of its answers.
    fn queue() -> (Queue, mpsc::Receiver<String>, mpsc::Sender<Answer>) {
        let (tried, writes) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let (tried, answers) = (Mutex::new(tried), Mutex::new(answers));
        let write: Write = Box::new(move |bytes| {
            // Nobody waits for either of them at the end of a test.
            let _ = tried.lock().unwrap().send(String::from_utf8(bytes.to_owned()).unwrap());
            let answer = answers.lock().unwrap().recv().unwrap_or(Ok(usize::MAX));
            answer.map(|count: usize| count.min(bytes.len()))
        });
        let tell = |missing| format!("missing {missing}\n").into_bytes();
        (Box::leak(Box::new(LineQueue::new(write, tell))), writes, answer)
    }

    fn next(writes: &mpsc::Receiver<String>) -> String {
        writes.recv_timeout(PATIENCE).expect("another write")
    }

    const ALL: usize = usize::MAX;

    #[test]
    fn lines_wait_in_their_order_while_one_is_written() {
        let (queue, writes, answer) = queue();
        queue.push(b"one\n");
        assert_eq!(next(&writes), "one\n");
        queue.push(b"two\n");
        queue.push(b"three\n");
        answer.send(Ok(ALL)).unwrap();
        assert_eq!(next(&writes), "two\nthree\n");
        answer.send(Ok(5)).unwrap();
        assert_eq!(next(&writes), "hree\n");
        answer.send(Err(io::ErrorKind::Interrupted.into())).unwrap();
        assert_eq!(next(&writes), "hree\n");
        answer.send(Ok(ALL)).unwrap();
        queue.flush(PATIENCE);
        queue.push(b"four\n");
        assert_eq!(next(&writes), "four\n");
        assert_eq!(queue.missing(), 0);
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_where_they_would_stand() {
        let (queue, writes, answer) = queue();
        queue.push(b"one\n");
        assert_eq!(next(&writes), "one\n");
        let long = format!("{}\n", "x".repeat(MAX - 10));
        for line in [&*long, "short\n", "too long\n", "no\n"] {
            queue.push(line.as_bytes());
        }
        assert_eq!(queue.missing(), 2);
        answer.send(Ok(ALL)).unwrap();
        assert_eq!(next(&writes), format!("{long}short\n"));
        queue.push(b"after\n");
        answer.send(Ok(ALL)).unwrap();
        assert_eq!(next(&writes), "missing 2\n");
        answer.send(Ok(ALL)).unwrap();
        assert_eq!(next(&writes), "after\n");
        assert_eq!(queue.missing(), 2);
    }

    #[test]
    fn lines_that_an_error_kept_back_are_counted_before_the_next_one() {
        let (queue, writes, answer) = queue();
        let full = || Err(io::ErrorKind::StorageFull.into());
        queue.push(b"one\ntwo\n");
        assert_eq!(next(&writes), "one\ntwo\n");
        answer.send(Ok(5)).unwrap();
        assert_eq!(next(&writes), "wo\n");
        answer.send(full()).unwrap();
        queue.push(b"three\n");
        // The cut line is ended first; that fails, and so does the line.
        assert_eq!(next(&writes), "\n");
        answer.send(full()).unwrap();
        assert_eq!(next(&writes), "\n");
        answer.send(full()).unwrap();
        queue.push(b"four\n");
        for (write, is_last) in [("\n", false), ("missing 2\n", false), ("four\n", true)] {
            assert_eq!(next(&writes), write);
            if !is_last {
                answer.send(Ok(ALL)).unwrap();
            }
        }
        assert_eq!(queue.missing(), 2);
    }

    #[test]
    fn a_flush_waits_no_longer_than_its_limit() {
        let (queue, writes, _answer) = queue();
        queue.push(b"one\n");
        assert_eq!(next(&writes), "one\n");
        // Returns although the write never does.
        queue.flush(Duration::from_millis(1));
        assert!(writes.try_recv().is_err());
    }

    #[test]
    fn without_a_thread_the_caller_writes() {
        let (queue, writes, answer) = queue();
        answer.send(Ok(ALL)).unwrap();
        queue.push_last(b"failed\n");
        queue.flush(Duration::ZERO);
        assert_eq!(writes.try_recv().unwrap(), "failed\n");
    }
}
