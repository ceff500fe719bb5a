//! A name server, and the network of one's own that the system's resolver takes it from.

use std::env;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{Directory, wait_until};

/// Set where a test runs in a network of its own.
const INSIDE: &str = "E2E_IN_OWN_NETWORK";
/// Set where a test may not be left out.
const REQUIRED: &str = "E2E_OWN_NETWORK_REQUIRED";

/// Has the resolver ask the server of the test, and then becomes the test. `$0` is the program of
/// the tests, `$1` the name of the test, `$2` a folder with the files.
const SETUP: &str = r#"
    set -e
    ip link set lo up
    mount --bind "$2/resolv.conf" /etc/resolv.conf
    if [ -e /etc/nsswitch.conf ]; then mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf; fi
    exec "$0" --exact "$1" --nocapture
"#;

/// Returns whether this is a network of its own, in which [`NameServer`]s serve. If not, the test
/// with this name, which is the caller, has run in one: it need only return.
///
/// Without the right to make one, the test is skipped, unless it is required.
pub fn is_in_own_network(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let in_own_network = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--net", "--mount"]).stdin(Stdio::null());
        unshare
    };
    if !is_own_network_allowed(test, in_own_network().args(["ip", "link"]).output()) {
        return false;
    }
    let directory = Directory::new();
    // One try, longer than anybody waits for it here.
    directory.write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:20 attempts:1\n");
    directory.write("nsswitch.conf", "hosts: files dns\n");
    let mut command = in_own_network();
    command.args(["sh", "-c", SETUP]).arg(env::current_exe().unwrap()).arg(test);
    command.arg(directory.path()).env(INSIDE, "1");
    let output = command.output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(String::from_utf8).map(Result::unwrap);
    let has_run = output.status.success() && stdout.contains("test result: ok. 1 passed");
    assert!(has_run, "{stdout}\n{stderr}");
    false
}

/// Returns whether a network of one's own could be made. If not, says that the test is skipped, or
/// fails where it is required.
pub fn is_own_network_allowed(test: &str, probe: io::Result<Output>) -> bool {
    if probe.as_ref().is_ok_and(|output| output.status.success()) {
        return true;
    }
    assert!(env::var_os(REQUIRED).is_none(), "no network of one's own: {probe:?}");
    // Not by a macro, which would keep the line to itself when the test passes.
    let line = format!("{test}: skipped, as it needs root, unshare and ip\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
    false
}

/// Answer of the name server.
#[derive(Clone)]
pub enum Reply {
    /// These addresses; without any, that there are none.
    Addresses(Vec<IpAddr>),
    /// Server failure.
    Failure,
    /// None, before the next reply is set.
    Silence,
}

/// A name server (RFC 1035) that knows the same of all names.
pub struct NameServer {
    socket: Arc<UdpSocket>,
    state: Arc<Mutex<State>>,
}

struct State {
    reply: Reply,
    /// Questions that have no answer yet.
    held: Vec<(Vec<u8>, SocketAddr)>,
    /// Number of questions for IPv4 addresses.
    asked: usize,
}

const A: u16 = 1;
const AAAA: u16 = 28;

impl NameServer {
    /// Starts it for the rest of the process, where the system's resolver looks for it.
    pub fn start(reply: Reply) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:53").unwrap());
        let state = Arc::new(Mutex::new(State { reply, held: Vec::new(), asked: 0 }));
        let server = Self { socket, state };
        let (socket, state) = (Arc::clone(&server.socket), Arc::clone(&server.state));
        thread::spawn(move || {
            let mut bytes = [0; 512];
            loop {
                let (count, from) = socket.recv_from(&mut bytes).unwrap();
                let mut state = state.lock().unwrap();
                state.asked += usize::from(kind(&bytes[..count]) == A);
                state.held.push((bytes[..count].to_vec(), from));
                answer_held(&socket, &mut state);
            }
        });
        server
    }

    /// Replaces the answer, for those who wait for one as well.
    pub fn set(&self, reply: Reply) {
        let mut state = self.state.lock().unwrap();
        state.reply = reply;
        answer_held(&self.socket, &mut state);
    }

    /// The same with these addresses.
    pub fn set_addresses(&self, addresses: &[&str]) {
        self.set(Reply::Addresses(addresses.iter().map(|one| one.parse().unwrap()).collect()));
    }

    /// Waits until the answer of now has been taken over: until it has been given to one who asks
    /// again.
    pub fn wait_until_taken(&self) {
        let asked = || self.state.lock().unwrap().asked;
        // The first one may have got the answer of before, in part.
        let enough = asked() + 3;
        wait_until("the name is looked up again", || asked() >= enough);
    }
}

fn answer_held(socket: &UdpSocket, state: &mut State) {
    if !matches!(state.reply, Reply::Silence) {
        for (question, from) in state.held.drain(..) {
            // Whoever has asked may be gone.
            _ = socket.send_to(&answer(&question, &state.reply), from);
        }
    }
}

/// Returns where the only question of a message ends.
fn end_of_question(message: &[u8]) -> usize {
    // The name ends with the empty label; type and class follow.
    12 + message[12..].iter().position(|&byte| byte == 0).unwrap() + 5
}

/// Returns what is asked for.
fn kind(message: &[u8]) -> u16 {
    let end = end_of_question(message);
    u16::from_be_bytes([message[end - 4], message[end - 3]])
}

fn answer(question: &[u8], reply: &Reply) -> Vec<u8> {
    let addresses: Vec<Vec<u8>> = match reply {
        Reply::Addresses(all) => { all.iter() }
            .filter_map(|address| match (address, kind(question)) {
                (IpAddr::V4(ip), A) => Some(ip.octets().to_vec()),
                (IpAddr::V6(ip), AAAA) => Some(ip.octets().to_vec()),
                _ => None,
            })
            .collect(),
        Reply::Failure | Reply::Silence => Vec::new(),
    };
    let code = if matches!(reply, Reply::Addresses(_)) { 0 } else { 2 };
    let count = addresses.len() as u8;
    let header = [question[0], question[1], 0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0];
    let mut message = [&header[..], &question[12..end_of_question(question)]].concat();
    for address in addresses {
        // The name of the question, its type, the class IN, no time to live.
        message.extend([0xc0, 12]);
        message.extend(kind(question).to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 0, 0, address.len() as u8]);
        message.extend(address);
    }
    message
}
