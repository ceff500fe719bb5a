//! The program itself, as a process of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::{PATIENCE, wait_until};

/// A running `ws-proxy`, killed when it is dropped.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    /// Every line of the log so far that has been waited over.
    pub seen: Vec<String>,
}

impl Program {
    /// Starts the program with these arguments, in an empty working directory unless one is named.
    pub fn start(arguments: &[&str], directory: Option<&Path>) -> Self {
        Self::spawn(&mut Self::command(arguments, directory))
    }

    /// Starts it with `--config` and this text.
    pub fn with_config(text: &str) -> Self {
        let directory = Directory::new();
        let file = directory.write("ws-proxy.toml", text);
        let mut program = Self::start(&["--config", file.to_str().unwrap()], None);
        // It has read the file by the time that it says so, and the folder may go.
        program.wait_for("event=config ");
        program
    }

    /// Runs it to its end: exit code, standard output, standard error.
    pub fn output(arguments: &[&str], directory: Option<&Path>) -> (i32, String, String) {
        let output = Self::command(arguments, directory).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().expect("it exits by itself"),
            text(output.stdout),
            text(output.stderr),
        )
    }

    /// Standard error of an unsuccessful run, which prints nothing to standard output.
    pub fn failure(arguments: &[&str], directory: &Directory, expected_code: i32) -> String {
        let (code, stdout, stderr) = Self::output(arguments, Some(directory.path()));
        assert_eq!(code, expected_code, "{arguments:?}: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
        stderr
    }

    pub fn command(arguments: &[&str], directory: Option<&Path>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ws-proxy"));
        command.args(arguments).stdin(Stdio::null());
        // What this run was started with is nothing to the program.
        for name in ["RUST_LOG", "NOTIFY_SOCKET", "WATCHDOG_USEC"] {
            command.env_remove(name);
        }
        command.current_dir(directory.unwrap_or(Path::new(env!("CARGO_TARGET_TMPDIR"))));
        command
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// The next line of the log that has this in it.
    pub fn wait_for(&mut self, part: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line =
                line.unwrap_or_else(|_| panic!("no line with {part:?} after {:#?}", self.seen));
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Waits until it says that it listens, and gives the address.
    pub fn address(&mut self) -> SocketAddr {
        let line = self.wait_for("event=listening");
        value(&line, "address").parse().unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let process = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        let ended = poll(&mut fds, Some(&PATIENCE.try_into().unwrap())).unwrap();
        assert!(ended > 0, "the program does not end");
        self.child.wait().unwrap()
    }

    pub fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// All lines of the log that are left, once it has ended.
    pub fn rest_of_log(&mut self) -> Vec<String> {
        self.seen.extend(self.lines.iter());
        self.seen.clone()
    }

    /// Number of its open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Number of its threads.
    pub fn threads(&self) -> usize {
        fs::read_dir(self.proc("task")).unwrap().count()
    }

    /// The processor time that it has used, in ticks of the clock (100 a second).
    pub fn cpu_ticks(&self) -> u64 {
        let mut stat = String::new();
        fs::File::open(self.proc("stat")).unwrap().read_to_string(&mut stat).unwrap();
        // proc(5): after the name, which may contain blanks, utime and stime are the 12th and 13th.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Number of its open descriptors but for pipes, of which it may keep a few for
    /// later.
    pub fn connections(&self) -> usize {
        let descriptors = fs::read_dir(self.proc("fd")).unwrap();
        // One that has been closed meanwhile has no target any more.
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        targets.filter(|target| !target.to_string_lossy().starts_with("pipe:")).count()
    }

    /// Number of the descriptors in each of its epolls, the largest first (proc(5), fdinfo).
    pub fn epolls(&self) -> Vec<usize> {
        let is_epoll = |number: &PathBuf| {
            fs::read_link(self.proc("fd").join(number))
                .is_ok_and(|target| target == Path::new("anon_inode:[eventpoll]"))
        };
        let entries = fs::read_dir(self.proc("fd")).unwrap();
        let numbers = entries.map(|entry| PathBuf::from(entry.unwrap().file_name()));
        let info = |number| fs::read_to_string(self.proc("fdinfo").join(number)).unwrap();
        let count = |info: String| info.lines().filter(|line| line.starts_with("tfd:")).count();
        let mut counts: Vec<usize> = numbers.filter(is_epoll).map(info).map(count).collect();
        counts.sort_unstable_by_key(|&count| std::cmp::Reverse(count));
        counts
    }

    /// Waits until this many are open, or fewer.
    pub fn wait_for_connections(&self, most: usize) {
        wait_until("its connections are closed", || self.connections() <= most);
    }

    /// Waits until there are this many threads, or fewer.
    pub fn wait_for_threads(&self, most: usize) {
        wait_until("its threads have ended", || self.threads() <= most);
    }

    /// Returns whether the log has a line by now that contains this.
    pub fn has_logged(&mut self, part: &str) -> bool {
        self.seen.extend(self.lines.try_iter());
        self.seen.iter().any(|line| line.contains(part))
    }

    /// Its memory in use (RSS), in bytes, without that of the kernel for it.
    pub fn memory(&self) -> usize {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Starts it from a shell that has run `setup` before, such as `ulimit -n 40`.
    pub fn after(setup: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &format!("{setup}; exec \"$0\" \"$@\""),
            env!("CARGO_BIN_EXE_ws-proxy"),
        ]);
        command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
        Self::spawn(&mut command)
    }

    /// Its limits, in the words of proc(5).
    pub fn limits(&self) -> String {
        fs::read_to_string(self.proc("limits")).unwrap()
    }

    /// Waits until this many descriptors are open, or fewer.
    pub fn wait_for_descriptors(&self, most: usize) {
        wait_until("descriptors are closed", || self.descriptors() <= most);
    }

    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a key in a line of the log.
pub fn value<'a>(line: &'a str, key: &str) -> &'a str {
    let start = line.find(&format!(" {key}=")).unwrap_or_else(|| panic!("no {key} in {line}"))
        + key.len()
        + 2;
    line[start..].split(' ').next().unwrap()
}

/// A folder that is gone with the test.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, text).unwrap();
        file
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
