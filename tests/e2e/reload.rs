//! Replacing the configuration while tunnels live.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;

use crate::support::{
    Backend, Directory, From, Peer, Program, ask, expect_refused, section, table, taken_port,
    upgrade, value, wait_until,
};

/// A program with a configuration file that can be changed.
pub(crate) struct Reloadable {
    pub(crate) program: Program,
    admin: SocketAddr,
    file: PathBuf,
    /// Where the file is, until the test is over.
    _directory: Directory,
}

impl Reloadable {
    /// Starts it with this configuration, and an admin listener on any port.
    pub(crate) fn start(text: &str) -> Self {
        let directory = Directory::new();
        let file = directory.write("ws-proxy.toml", &with_admin(text));
        Self::start_at(directory, file)
    }

    fn start_at(directory: Directory, file: PathBuf) -> Self {
        let mut program = Program::start(&["--config", file.to_str().unwrap()], None);
        let line = program.wait_for("event=admin_listening");
        let admin = value(&line, "address").parse().unwrap();
        Self { program, admin, file, _directory: directory }
    }

    /// Replaces the file.
    pub(crate) fn write(&self, text: &str) {
        fs::write(&self.file, with_admin(text)).unwrap();
    }

    /// Sends a request to the admin listener; returns status and body of its answer.
    pub(crate) fn ask(&self, start: &str) -> (u16, String) {
        ask(self.admin, start)
    }

    /// Reloads; returns the lines after the first one.
    pub(crate) fn reload(&self) -> String {
        let (status, body) = self.ask("POST /reload");
        assert_eq!(status, 200, "{body}");
        body.strip_prefix("reloaded\n").unwrap().to_owned()
    }

    /// Returns the value of a sample of the metrics.
    pub(crate) fn sample(&self, name: &str) -> f64 {
        let (_, text) = self.ask("GET /metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

fn with_admin(text: &str) -> String {
    // Keys of the top level come before the tables.
    format!("{text}\n[admin]\nbind = \"127.0.0.1:0\"\n")
}

/// Carries a message each way.
pub(crate) fn talk(client: &mut Peer, server: &mut Peer) {
    let (question, answer) = (From::Client.text("are you there?"), From::Backend.text("yes"));
    client.send(&question);
    server.expect(&question);
    server.send(&answer);
    client.expect(&answer);
}

/// Tunnels whose peers exchange messages until they are stopped.
struct Traffic {
    stop: &'static AtomicBool,
    rounds: &'static [AtomicUsize],
    threads: Vec<thread::JoinHandle<()>>,
}

impl Traffic {
    /// Opens this many tunnels through the proxy.
    fn start(proxy: SocketAddr, backend: &Backend, tunnels: usize) -> Self {
        let stop: &AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let rounds: &[AtomicUsize] = Vec::leak((0..8).map(|_| AtomicUsize::new(0)).collect());
        let mut shares: Vec<Vec<_>> = rounds.iter().map(|_| Vec::new()).collect();
        for number in 0..tunnels {
            shares[number % rounds.len()].push(Peer::tunnel(proxy, backend));
        }
        let exchange = |(mut share, round): (Vec<(Peer, Peer)>, &'static AtomicUsize)| {
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    share.iter_mut().for_each(|(client, server)| talk(client, server));
                    round.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = shares.into_iter().zip(rounds).map(exchange).collect();
        Self { stop, rounds, threads }
    }

    /// Waits until every tunnel has carried a message that was sent after this call.
    fn goes_on(&self) {
        let now: Vec<_> = self.rounds.iter().map(|round| round.load(Ordering::Relaxed)).collect();
        wait_until("all tunnels carry messages", || {
            self.threads.iter().for_each(|thread| assert!(!thread.is_finished()));
            let mut rounds = self.rounds.iter().zip(&now);
            rounds.all(|(round, before)| round.load(Ordering::Relaxed) >= before + 2)
        });
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn reloads_by_signal_by_post_and_by_a_swapped_link_lose_nothing() {
    let backends = [Backend::start(), Backend::start(), Backend::start(), Backend::start()];
    let text = |index: usize| {
        format!("watch_config_ms = 20\n{}", with_admin(&section(backends[index].address)))
    };
    // As Kubernetes mounts a ConfigMap: the file is a link through a link to a folder.
    let directory = Directory::new();
    let path = |name: &str| directory.path().join(name);
    for (index, folder) in ["first", "second"].iter().enumerate() {
        fs::create_dir(path(folder)).unwrap();
        fs::write(path(folder).join("ws-proxy.toml"), text(index)).unwrap();
    }
    let swap = |folder: &str| {
        symlink(folder, path("..new")).unwrap();
        fs::rename(path("..new"), path("..data")).unwrap();
    };
    swap("first");
    symlink("..data/ws-proxy.toml", path("ws-proxy.toml")).unwrap();
    let (file, second) = (path("ws-proxy.toml"), path("second"));
    let folder: PathBuf = directory.path().to_owned();
    let mut proxy = Reloadable::start_at(directory, file);
    let address = proxy.program.address();
    let traffic = Traffic::start(address, &backends[0], 200);
    let descriptors = proxy.program.descriptors();

    symlink("second", folder.join("..new")).unwrap();
    fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
    proxy.program.wait_for("event=config_reloaded by=watch sections=1");
    let (mut client, mut server) = Peer::tunnel(address, &backends[1]);
    talk(&mut client, &mut server);

    // The file itself changes, and both a signal and the watch see it; either may be first.
    fs::write(second.join("ws-proxy.toml"), text(2).replace("= 20", "= 0")).unwrap();
    proxy.program.wait_for("event=config_reloaded");
    proxy.program.signal(Signal::HUP);
    proxy.program.wait_for("event=config_reloaded by=signal");
    let (mut third, mut its_server) = Peer::tunnel(address, &backends[2]);
    talk(&mut third, &mut its_server);

    fs::write(second.join("ws-proxy.toml"), text(3).replace("= 20", "= 0")).unwrap();
    // A client that waits to be accepted loses nothing by it either.
    let early: Vec<_> = (0..50).map(|_| Peer::connect(address)).collect();
    assert_eq!(proxy.reload(), "");
    for mut client in early {
        client.send(upgrade(""));
        // They were accepted before or after it.
        let either = [&backends[2], &backends[3]];
        let (mut server, _) = either[Backend::wait_for_any(&either)].accept_tunnel();
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        talk(&mut client, &mut server);
    }
    traffic.goes_on();
    assert_eq!(proxy.sample("ws_proxy_config_reloads_total{result=\"failure\"}"), 0.0);
    traffic.stop();
    drop((client, server, third, its_server));
    proxy.program.wait_for_descriptors(descriptors - 400);
}

#[test]
fn a_pipe_in_place_of_the_file_holds_up_no_signal() {
    let mut proxy = Reloadable::start(&section("127.0.0.1:1"));
    fs::remove_file(&proxy.file).unwrap();
    // Whoever opens it waits for a writer.
    assert!(Command::new("mkfifo").arg(&proxy.file).status().unwrap().success());
    proxy.program.signal(Signal::HUP);
    let line = proxy.program.wait_for("event=config_reload_failed by=signal");
    assert!(line.contains("not a regular file"), "{line}");
    proxy.program.signal(Signal::TERM);
    assert!(proxy.program.wait().success());
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_everywhere() {
    let (backend, other) = (Backend::start(), Backend::start());
    let mut proxy = Reloadable::start(&section(backend.address));
    let address = proxy.program.address();
    let (mut client, mut server) = Peer::tunnel(address, &backend);
    let loaded = proxy.sample("ws_proxy_config_last_reload_success_timestamp_seconds");
    assert!(loaded > 1.6e9, "{loaded}");
    let (_taken, taken) = taken_port();
    let good = section(other.address);
    let in_use = format!("{}bind = \"{taken}\"\n", good.replace("bind = \"127.0.0.1:0\"\n", ""));
    let cases = table([
        ("[[ws_proxy]\n".to_owned(), ":1: "),
        (good.replace("backends", "backend"), "did you mean backends?"),
        (format!("{good}on_removed_ = 1\n"), "unknown key"),
        (format!("on_removed = \"drop\"\n{good}"), "on_removed: unknown value"),
        (format!("watch_config_ms = -1\n{good}"), "watch_config_ms: -1 is out of range"),
        // The section before it would be new as well.
        (format!("{}{in_use}", good.replace("127.0.0.1:0", "127.0.0.2:0")), "in use"),
        (format!("{good}[drain]\ndelay_ms = 60000\n"), "delay_ms"),
    ]);
    let count = cases.len();
    for (number, (text, part)) in cases.into_iter().enumerate() {
        proxy.write(&text);
        let (status, error) = proxy.ask("POST /reload");
        assert!(status == 422 && error.contains(part), "{text}: {status} {error}");
        assert_eq!(error.matches('\n').count(), 1, "{error}");
        let line = proxy.program.wait_for("event=config_reload_failed by=admin");
        assert!(line.contains("level=error") && line.contains(part), "{line}");
        // It is ready as ever, and says what is wrong.
        let (status, body) = proxy.ask("GET /readyz");
        assert_eq!((status, body), (200, format!("ok\nthe last reload failed: {error}")));
        let told: serde_json::Value = serde_json::from_str(&proxy.ask("GET /status").1).unwrap();
        assert_eq!(told["reload_error"], error.trim_end());
        let failures = proxy.sample("ws_proxy_config_reloads_total{result=\"failure\"}");
        assert_eq!(failures, (number + 1) as f64);
    }
    fs::remove_file(&proxy.file).unwrap();
    proxy.program.signal(Signal::HUP);
    let line = proxy.program.wait_for("event=config_reload_failed by=signal");
    assert!(line.contains("cannot read the configuration"), "{line}");
    assert_eq!(
        proxy.sample("ws_proxy_config_reloads_total{result=\"failure\"}"),
        (count + 1) as f64
    );
    let success = "ws_proxy_config_reloads_total{result=\"success\"}";
    assert_eq!(proxy.sample(success), 0.0);
    let time = "ws_proxy_config_last_reload_success_timestamp_seconds";
    assert_eq!(proxy.sample(time), loaded);

    talk(&mut client, &mut server);
    let (mut client, mut server) = Peer::tunnel(address, &backend);
    talk(&mut client, &mut server);
    proxy.write(&good);
    assert_eq!(proxy.reload(), "");
    assert_eq!(proxy.ask("GET /readyz"), (200, "ok\n".to_owned()));
    assert!(proxy.sample(success) == 1.0 && proxy.sample(time) > loaded);
    Peer::tunnel(address, &other);
}

#[test]
fn sections_come_and_go_while_others_stay() {
    let backends = [Backend::start(), Backend::start(), Backend::start()];
    let named = |name: &str, host: &str, backend: &Backend| {
        format!(
            "[[ws_proxy]]\nname = \"{name}\"\nbind = \"{host}:0\"\nbackends = [\"{}\"]\n",
            backend.address
        )
    };
    let chat = named("chat", "127.0.0.1", &backends[0]);
    let feed = named("feed", "127.0.0.2", &backends[1]);
    let game = named("game", "127.0.0.3", &backends[2]);
    for (on_removed, ends) in table([("", false), ("on_removed = \"drain\"\n", true)]) {
        let drain = "[drain]\nspread_ms = 0\ntimeout_ms = 60000\ndelay_ms = 50000\n";
        let text = |sections: &[&str]| format!("{on_removed}{}{drain}", sections.concat());
        let mut proxy = Reloadable::start(&text(&[&chat, &feed]));
        let (chat_at, feed_at) = (proxy.program.address(), proxy.program.address());
        let (mut chatting, mut chat_server) = Peer::tunnel(chat_at, &backends[0]);
        let (mut feeding, mut feed_server) = Peer::tunnel(feed_at, &backends[1]);

        proxy.write(&text(&[&chat, &game]));
        assert_eq!(proxy.reload(), "");
        let game_at = proxy.program.address();
        let line = proxy.program.wait_for("event=retired section=feed");
        assert_eq!(value(&line, "tunnels"), "1");
        // It leaves at once, without the delay that is for load balancers.
        expect_refused(feed_at);
        assert_eq!(proxy.ask("GET /readyz"), (200, "ok\n".to_owned()));
        assert!(proxy.ask("GET /sections").1.contains("\"section\":\"game\""));
        talk(&mut chatting, &mut chat_server);
        let (mut gaming, mut game_server) = Peer::tunnel(game_at, &backends[2]);
        talk(&mut gaming, &mut game_server);
        if ends {
            feeding.expect_proxy_close(From::Client, 1001);
            feed_server.expect_proxy_close(From::Backend, 1001);
            drop((feeding, feed_server));
        } else {
            talk(&mut feeding, &mut feed_server);
            let (_, sections) = proxy.ask("GET /sections");
            assert!(sections.contains("\"state\":\"removed\""), "{sections}");
            let tunnels = "ws_proxy_tunnels{section=\"feed\",backend=";
            let tunnels = format!("{tunnels}\"{}\"}}", backends[1].address);
            assert_eq!(proxy.sample(&tunnels), 1.0);
            drop((feeding, feed_server));
        }
        proxy.program.wait_for("event=stopped section=feed all_ended=true");
        wait_until("it is forgotten", || !proxy.ask("GET /sections").1.contains("feed"));
        assert!(!proxy.ask("GET /metrics").1.contains("feed"));
        // Back again, it is a new one.
        proxy.write(&text(&[&feed, &chat]));
        proxy.reload();
        let feed_at = proxy.program.address();
        let (mut feeding, mut feed_server) = Peer::tunnel(feed_at, &backends[1]);
        talk(&mut feeding, &mut feed_server);
        expect_refused(game_at);
        talk(&mut chatting, &mut chat_server);
    }
}

#[test]
fn kept_tunnels_of_a_removed_section_end_with_the_program() {
    let (gone, stays) = (Backend::start(), Backend::start());
    let drain = "[drain]\nspread_ms = 0\ntimeout_ms = 60000\n";
    let first = format!("{}{}", section(gone.address), section(stays.address));
    let mut proxy = Reloadable::start(&format!("{first}{drain}"));
    let address = proxy.program.address();
    let (mut client, mut server) = Peer::tunnel(address, &gone);
    proxy
        .write(&format!("{}{drain}", section(stays.address).replace("127.0.0.1:0", "127.0.0.2:0")));
    proxy.reload();
    proxy.program.wait_for("event=retired");
    talk(&mut client, &mut server);
    proxy.program.signal(Signal::TERM);
    client.expect_proxy_close(From::Client, 1001);
    drop((client, server));
    assert!(proxy.program.wait().success());
}

#[test]
fn tunnels_keep_their_settings_and_new_ones_get_the_new() {
    let backend = Backend::start();
    let with = |lines: &str, drain: &str| {
        format!(
            "{}{lines}\n[drain]\nspread_ms = 0\ntimeout_ms = 60000\n{drain}",
            section(backend.address)
        )
    };
    let mut proxy = Reloadable::start(&with("max_connections = 2", ""));
    let address = proxy.program.address();
    let (mut before, mut its_server) = Peer::tunnel(address, &backend);
    proxy.write(&with(
        "max_message_bytes = 100\nmax_connections = 3\nname = \"new\"",
        "close_code = 1012",
    ));
    assert_eq!(proxy.reload(), "");
    let (mut after, mut server) = Peer::tunnel(address, &backend);
    let long = From::Client.frame(0x82, [0; 200]);
    before.send(&long);
    its_server.expect(&long);
    after.send(&long);
    after.expect_proxy_close(From::Client, 1009);
    server.expect_proxy_close(From::Backend, 1001);
    drop((after, server));
    let line = proxy.program.wait_for("event=tunnel_end");
    assert!(line.contains("section=new"), "{line}");
    // The limit counts those that were there before.
    wait_until("the place is free", || proxy.ask("GET /sections").1.contains("\"connections\":1"));
    let (_one, _two) = (Peer::tunnel(address, &backend), Peer::tunnel(address, &backend));
    assert_eq!(Peer::sending(address, upgrade("")).read_refusal().0, 503);
    // A lower limit than there are connections cuts none.
    proxy.write(&with("max_connections = 1", "close_code = 1012"));
    proxy.reload();
    assert_eq!(Peer::sending(address, upgrade("")).read_refusal().0, 503);
    talk(&mut before, &mut its_server);
    // It was opened with this code.
    proxy.program.signal(Signal::TERM);
    before.expect_proxy_close(From::Client, 1001);
}

#[test]
fn what_needs_a_restart_is_said() {
    let text = section("127.0.0.1:1");
    let mut proxy = Reloadable::start(&format!("workers = 2\n{text}"));
    proxy.write(&format!("workers = 1\n{text}"));
    assert_eq!(proxy.reload(), "workers: takes effect after a restart\n");
    proxy.program.wait_for("level=warn event=restart_needed key=workers");
    // What is in force is told, and the file's wish again.
    assert!(proxy.ask("GET /config").1.contains("workers = 2\n"));
    assert_eq!(proxy.reload(), "workers: takes effect after a restart\n");
    fs::write(
        &proxy.file,
        format!("{text}[admin]\nbind = \"127.0.0.2:0\"\nhosts = [\"a.test\"]\n"),
    )
    .unwrap();
    let expected = "workers: takes effect after a restart\n[admin] bind: takes effect after a \
                    restart\n";
    assert_eq!(proxy.reload(), expected);
    // The names take effect at once.
    let ask = || {
        let request = "GET /livez HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        Peer::sending(proxy.admin, request).read_text_to_end()[9..12].to_owned()
    };
    assert_eq!(ask(), "200");
    fs::write(&proxy.file, &text).unwrap();
    assert_eq!(proxy.reload(), expected);
    assert_eq!(proxy.ask("GET /livez").0, 200);
}

#[test]
fn the_token_is_read_anew() {
    let directory = Directory::new();
    let token = directory.write("token", "the-first-token-of-all\n");
    let config = format!(
        "{}[admin]\nbind = \"127.0.0.1:0\"\ntoken_file = \"{}\"\n",
        section("127.0.0.1:1"),
        token.display()
    );
    let file = directory.write("ws-proxy.toml", &config);
    let proxy = Reloadable::start_at(directory, file);
    let reload = |shown: &str| {
        let request = format!(
            "POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {shown}\r\n\r\n"
        );
        Peer::sending(proxy.admin, request).read_text_to_end()[9..12].to_owned()
    };
    assert_eq!(reload("the-second-token-of-it"), "401");
    fs::write(&token, "the-second-token-of-it").unwrap();
    assert_eq!(reload("the-first-token-of-all"), "200");
    assert_eq!(reload("the-first-token-of-all"), "401");
    assert_eq!(reload("the-second-token-of-it"), "200");
    // One that cannot be used leaves the last one in force.
    fs::write(&token, "short").unwrap();
    assert_eq!(reload("the-second-token-of-it"), "422");
    assert_eq!(reload("the-second-token-of-it"), "422");
}

#[test]
fn the_log_changes_its_level_and_its_format() {
    let backend = Backend::start();
    let text = |log: &str| format!("{}[log]\n{log}\n", section(backend.address));
    let mut proxy = Reloadable::start(&text(""));
    let address = proxy.program.address();
    proxy.write(&text("level = \"debug\"\nformat = \"json\""));
    proxy.reload();
    drop(Peer::tunnel(address, &backend));
    let line = proxy.program.wait_for("tunnel_frames");
    assert!(line.starts_with('{') && line.contains("\"event\":\"tunnel_frames\""), "{line}");
    proxy.write(&text("level = \"info\""));
    proxy.reload();
    drop(Peer::tunnel(address, &backend));
    proxy.program.wait_for(" event=tunnel_end ");
    proxy.program.signal(Signal::TERM);
    proxy.program.wait();
    let rest = proxy.program.rest_of_log();
    assert!(!rest.iter().any(|line| line.contains(" event=tunnel_frames ")), "{rest:#?}");
}

#[test]
fn a_thousand_reloads_leak_nothing_and_turns_and_counts_go_on() {
    let backends = [Backend::start(), Backend::start(), Backend::start()];
    let section = |backends: &[&Backend], bind: &str| {
        let backends: Vec<_> = backends.iter().map(|one| format!("\"{}\"", one.address)).collect();
        let backends = backends.join(",");
        format!("[[ws_proxy]]\nname = \"{bind}\"\nbind = \"{bind}:0\"\nbackends = [{backends}]\n")
    };
    let [one, two, three] = [&backends[0], &backends[1], &backends[2]];
    let even = section(&[one, two], "127.0.0.1");
    let odd = [section(&[two, one, three], "127.0.0.1"), section(&[one], "127.0.0.2")].concat();
    let mut proxy = Reloadable::start(&even);
    let address = proxy.program.address();
    let (mut client, mut server) = Peer::tunnel(address, one);
    let reload = |number: usize| {
        proxy.write(if number.is_multiple_of(2) { &even } else { &odd });
        proxy.reload();
    };
    (1..=200).for_each(reload);
    wait_until("sections end", || !proxy.ask("GET /sections").1.contains("127.0.0.2"));
    let before = (proxy.program.descriptors(), proxy.program.threads(), proxy.program.memory());
    (201..=1_200).for_each(reload);
    wait_until("sections end", || !proxy.ask("GET /sections").1.contains("127.0.0.2"));
    // One more may be a request of the admin listener that is about to end.
    proxy.program.wait_for_descriptors(before.0);
    assert_eq!(proxy.program.threads(), before.1);
    let memory = proxy.program.memory();
    // A kilobyte each would be a megabyte.
    assert!(memory < before.2 + 512 * 1024, "{} and then {memory}", before.2);
    talk(&mut client, &mut server);
    // The first handshake went to the first backend, and the next one goes to the next one.
    Peer::tunnel(address, two);
    assert_eq!(proxy.sample("ws_proxy_accepted_total{section=\"127.0.0.1\"}"), 2.0);
    let name = format!("ws_proxy_tunnels{{section=\"127.0.0.1\",backend=\"{}\"}}", one.address);
    assert_eq!(proxy.sample(&name), 1.0);
    assert_eq!(proxy.sample("ws_proxy_config_reloads_total{result=\"success\"}"), 1_200.0);
}

#[test]
fn tunnels_to_a_removed_backend_are_still_told() {
    let (old, new) = (Backend::start(), Backend::start());
    let mut proxy = Reloadable::start(&section(old.address));
    let address = proxy.program.address();
    let (mut client, mut server) = Peer::tunnel(address, &old);
    proxy.write(&section(new.address));
    proxy.reload();
    talk(&mut client, &mut server);
    let (_, backends) = proxy.ask("GET /backends");
    assert!(backends.contains(&format!("\"backend\":\"{}\"", old.address)), "{backends}");
    assert!(backends.contains("\"state\":\"removed\",\"tunnels\":1"), "{backends}");
    assert!(proxy.ask("GET /sections").1.contains("\"tunnels\":1"));
    let name = backends.split("\"section\":\"").nth(1).unwrap().split('"').next().unwrap();
    let sample = |backend: &Backend| {
        let labels = format!("section=\"{name}\",backend=\"{}\"", backend.address);
        proxy.sample(&format!("ws_proxy_tunnels{{{labels}}}"))
    };
    assert_eq!((sample(&old), sample(&new)), (1.0, 0.0));
    let (status, _) = proxy.ask(&format!("DELETE /tunnels?backend={}&code=1008", old.address));
    assert_eq!(status, 200);
    client.expect_proxy_close(From::Client, 1008);
    drop((client, server));
    let is_told = || proxy.ask("GET /backends").1.contains(&old.address.to_string());
    wait_until("it is forgotten", || !is_told());
}

#[test]
fn a_drain_cannot_be_reloaded() {
    let backend = Backend::start();
    let text =
        format!("{}[drain]\nspread_ms = 60000\ntimeout_ms = 90000\n", section(backend.address));
    let mut proxy = Reloadable::start(&text);
    let address = proxy.program.address();
    let (mut client, mut server) = Peer::tunnel(address, &backend);
    assert_eq!(proxy.ask("POST /drain").0, 200);
    proxy.program.wait_for("event=draining");
    let (status, error) = proxy.ask("POST /reload");
    assert_eq!((status, &*error), (422, "this proxy is draining\n"));
    talk(&mut client, &mut server);
    let (status, reasons) = proxy.ask("GET /readyz");
    assert_eq!(
        (status, &*reasons),
        (503, "draining\nthe last reload failed: this proxy is draining\n")
    );
}

#[test]
fn settings_of_the_command_line_cannot_be_reloaded() {
    let mut program = Program::start(&["--bind", "127.0.0.1:0", "--backend", "127.0.0.1:1"], None);
    program.address();
    program.signal(Signal::HUP);
    let line = program.wait_for("event=config_reload_failed by=signal");
    assert!(line.contains("the settings are from the command line"), "{line}");
    program.signal(Signal::TERM);
    assert!(program.wait().success());
}

#[test]
fn the_command_prints_what_comes_of_it() {
    let (backend, other) = (Backend::start(), Backend::start());
    let mut proxy = Reloadable::start(&section(backend.address));
    let address = proxy.program.address();
    let admin = proxy.admin.to_string();
    let file = proxy.file.to_str().unwrap().to_owned();
    proxy.write(&section(other.address));
    let run = |arguments: &[&str]| Program::output(&[&["reload"], arguments].concat(), None);
    assert_eq!(run(&["--admin", &admin]), (0, "reloaded\n".to_owned(), String::new()));
    Peer::tunnel(address, &other);
    proxy.write("[[ws_proxy]]\n");
    let (code, _, error) = run(&["--admin", &admin]);
    assert!(
        code == 1 && error.contains("answers 422") && error.contains("bind: is missing"),
        "{error}"
    );
    let (code, _, error) = run(&["--config", &file]);
    assert!(code == 2 && error.contains("bind: is missing"), "{error}");
    // Without a port of its own to ask at, by a signal.
    proxy.write(&section(backend.address));
    let pid = proxy.program.pid().as_raw_nonzero().to_string();
    assert_eq!(run(&["--pid", &pid]).0, 0);
    proxy.program.wait_for("event=config_reloaded by=signal");
    Peer::tunnel(address, &backend);
    let (code, _, error) = run(&["--pid", &pid, "--admin", &admin]);
    assert!(code == 2 && error.contains("exclude each other"), "{error}");
}

#[test]
fn the_configuration_in_force_is_told_and_can_be_loaded_again() {
    let directory = Directory::new();
    let secret = "a-token-that-nobody-may-see";
    let token = directory.write("token", secret);
    let config = format!(
        "{}name = \"chat \\\"1\\\"\"\norigins = [\"https://a.test\"]\n[drain]\nspread_ms = 1234\n\
         [admin]\nbind = \"127.0.0.1:0\"\ntoken_file = \"{}\"\n[other]\nkey = 1\n",
        section("127.0.0.1:1"),
        token.display()
    );
    let file = directory.write("ws-proxy.toml", &config);
    let check = |file: &Path| {
        let arguments = ["check", "--print", "--config", file.to_str().unwrap()];
        let (code, text, error) = Program::output(&arguments, None);
        assert_eq!((code, &*error), (0, ""));
        text
    };
    let printed = check(&file);
    for line in [
        "workers = 0",
        "watch_config_ms = 0",
        "on_removed = \"keep\"",
        "spread_ms = 1234",
        "timeout_ms = 8000",
        "format = \"text\"",
        "level = \"info\"",
        "hosts = []",
        "connect_timeout_ms = 5000",
        "forwarded = \"append\"",
        "origins = [\"https://a.test\"]",
        "max_head_bytes = 8192",
        "lifetime_close_code = 1001",
    ] {
        assert!(printed.lines().any(|one| one == line), "{line} in {printed}");
    }
    assert!(!printed.contains(secret) && !printed.contains("other"), "{printed}");
    let again = directory.write("again.toml", &printed);
    assert_eq!(check(&again), printed);
    // The running program tells the same.
    let proxy = Reloadable::start_at(directory, file);
    let request = format!(
        "GET /config HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Authorization: Bearer {secret}\r\n\r\n"
    );
    let text = Peer::sending(proxy.admin, request).read_text_to_end();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nContent-Type: application/toml\r\n"), "{head}");
    assert_eq!(format!("{body}\n"), printed);
}

#[test]
fn the_configuration_told_is_that_of_the_last_reload() {
    let proxy = Reloadable::start(&section("127.0.0.1:1"));
    let has = |part: &str| proxy.ask("GET /config").1.contains(part);
    assert!(has("\"127.0.0.1:1\"") && has("on_removed = \"keep\""));
    proxy.write(&format!("on_removed = \"drain\"\n{}", section("127.0.0.1:2")));
    proxy.reload();
    assert!(has("\"127.0.0.1:2\"") && has("on_removed = \"drain\""));
    proxy.write("");
    assert_eq!(proxy.ask("POST /reload").0, 422);
    assert!(has("\"127.0.0.1:2\""));
}
