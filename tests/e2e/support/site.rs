//! The program with an admin listener and one section, whose backends can be changed.

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::Value;

use super::{Directory, Program, ask, value, wait_until};

/// A running program with the section `s`.
pub struct Site {
    pub program: Program,
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
    directory: Directory,
}

/// A backend in the list of a section, with further settings of its own.
pub fn element(address: SocketAddr, settings: &str) -> String {
    let comma = if settings.is_empty() { "" } else { ", " };
    format!("{{ address = \"{address}\"{comma}{settings} }}")
}

fn config(backends: &[String], more: &str) -> String {
    let backends = backends.join(", ");
    format!(
        "workers = 2\n[admin]\nbind = \"127.0.0.1:0\"\n[[ws_proxy]]\nname = \"s\"\n\
         bind = \"127.0.0.1:0\"\nbackends = [{backends}]\n{more}\n"
    )
}

impl Site {
    /// Starts it with these backends, each an element of the list, and further lines of the
    /// section, which tables may follow.
    pub fn start(backends: &[String], more: &str) -> Self {
        let directory = Directory::new();
        let file = directory.write("ws-proxy.toml", &config(backends, more));
        let mut program = Program::start(&["--config", file.to_str().unwrap()], None);
        let line = program.wait_for("event=admin_listening");
        let admin = value(&line, "address").parse().unwrap();
        let proxy = program.address();
        Self { program, proxy, admin, directory }
    }

    /// Replaces the configuration, but for the section's name and port.
    pub fn reload(&self, backends: &[String], more: &str) {
        self.directory.write("ws-proxy.toml", &config(backends, more));
        let (status, body) = ask(self.admin, "POST /reload");
        assert_eq!(status, 200, "{body}");
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = ask(self.admin, &format!("GET {path}"));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Returns the section's object.
    pub fn section(&self) -> Value {
        self.json("/sections")[0].clone()
    }

    /// Returns a backend's object.
    pub fn backend(&self, address: SocketAddr) -> Value {
        let all = self.json("/backends");
        let named = |one: &&Value| one["backend"] == *address.to_string();
        let found = all.as_array().unwrap().iter().find(named);
        found.unwrap_or_else(|| panic!("no {address} in {all}")).clone()
    }

    /// Returns a backend's state.
    pub fn state(&self, address: SocketAddr) -> String {
        self.backend(address)["state"].as_str().unwrap().to_owned()
    }

    /// Waits until handshakes may come to a backend, or a trial may.
    pub fn wait_until_usable(&self, address: SocketAddr) {
        wait_until("the backend may be used", || self.backend(address)["share"] != 0.0);
    }

    /// Returns the value of a sample of the metrics; `labels` are those after the section's.
    pub fn sample(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (_, text) = ask(self.admin, "GET /metrics");
        let labels = labels.iter().map(|(key, value)| format!(",{key}=\"{value}\""));
        let sample = format!("{name}{{section=\"s\"{}}} ", labels.collect::<String>());
        let value = text.lines().find_map(|line| line.strip_prefix(&sample));
        value.unwrap_or_else(|| panic!("no {sample} in {text}")).parse().unwrap()
    }

    /// Returns the value of a sample of a backend.
    pub fn backend_sample(&self, name: &str, address: SocketAddr) -> f64 {
        self.sample(name, &[("backend", &address.to_string())])
    }

    /// Returns the first line with this in it, be it one that has come already.
    pub fn logged(&mut self, part: &str) -> String {
        match self.program.seen.iter().find(|line| line.contains(part)) {
            Some(line) => line.clone(),
            None => self.program.wait_for(part),
        }
    }

    /// Waits for the next line on a backend's health.
    pub fn wait_for_change(&mut self, address: SocketAddr) -> Change {
        change_of(&self.program.wait_for(&health_of(address)))
    }

    /// Waits for the next line of a backend that comes to this state; returns the state before,
    /// and the reason.
    pub fn wait_for_health(&mut self, address: SocketAddr, state: &str) -> (String, String) {
        loop {
            let (from, to, reason) = self.wait_for_change(address);
            if to == state {
                return (from, reason);
            }
        }
    }

    /// Ends the program; returns its log.
    pub fn into_log(mut self) -> Log {
        self.program.signal(Signal::TERM);
        self.program.wait();
        Log(self.program.rest_of_log())
    }
}

/// A change of a backend's health: the states before and after, and the reason.
pub type Change = (String, String, String);

/// A whole log.
pub struct Log(Vec<String>);

impl Log {
    /// Returns the changes of a backend's health.
    pub fn changes(&self, address: SocketAddr) -> Vec<Change> {
        let lines = self.0.iter().filter(|line| line.contains(&health_of(address)));
        lines.map(|line| change_of(line)).collect()
    }
}

/// The start of a line on a backend's health.
fn health_of(address: SocketAddr) -> String {
    format!("event=backend_health section=s backend={address} ")
}

fn change_of(line: &str) -> Change {
    let (_, reason) = line.split_once(" reason=\"").unwrap_or_else(|| panic!("no reason: {line}"));
    let reason = reason.split('"').next().unwrap().to_owned();
    (value(line, "from").to_owned(), value(line, "to").to_owned(), reason)
}
