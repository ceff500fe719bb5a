//! Tests that what goes through pipes is the same as what is copied.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::net::{SendFlags, send, sockopt};
use rustix::pipe::fcntl_setpipe_size;

use super::*;
use crate::net::reactor::Reactor;
use crate::tunnel::buffers::SCRATCH;
use crate::tunnel::control;
use crate::tunnel::frames::{FrameEvent, Frames};
use crate::tunnel::policy::RateAction;

/// Time after which a direction that does not come to its end hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const OURS: control::PingPayload = *b"our ping";
const KEY: [u8; 4] = [1, 2, 3, 4];
/// Bytes of a flood.
const FLOOD: usize = 8 << 20;
/// A byte that nothing else begins with.
const URGENT: u8 = 0xee;

/// Frame of a source.
#[derive(Clone, Debug)]
struct Sent {
    first: u8,
    is_masked: bool,
    payload: usize,
}

/// What is done to a direction after a part of its source's bytes has been sent.
#[derive(Clone, Debug)]
enum Act {
    Nothing,
    Ping,
    Close,
    GiveUp,
    /// The source sends a byte of urgent data.
    Urgent,
}

/// How a source ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// Course of a direction.
#[derive(Clone, Debug)]
struct Course {
    bytes: Vec<u8>,
    policy: Policy,
    /// Pongs that are awaited.
    pongs: usize,
    /// Bytes that are sent at a time, over and over.
    writes: Vec<usize>,
    /// Bytes that the sink's peer reads at a time, over and over.
    reads: Vec<usize>,
    act: Act,
    /// Bytes of the source after which that is done.
    act_at: usize,
    end: End,
    /// The source is reached through a Unix socket.
    is_unix: bool,
}

/// What has become of it.
#[derive(Debug)]
struct Result {
    got: Vec<u8>,
    direction: Direction,
    violation: Option<Violation>,
}

/// One end of a connection as a tunnel has it, and the other one, with buffers of this size.
fn connection(reactor: &Rc<Reactor>, buffer: usize) -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    for socket in [&ours, &theirs] {
        socket.set_nonblocking(true).unwrap();
        sockopt::set_socket_send_buffer_size(socket, buffer).unwrap();
        sockopt::set_socket_recv_buffer_size(socket, buffer).unwrap();
    }
    (Socket::new(reactor, ours).unwrap(), theirs)
}

/// Runs a course to its end.
fn run(course: &Course, pipes: Pipes) -> Result {
    let reactor = Rc::new(Reactor::new().unwrap().0);
    let (source, sending) = if course.is_unix {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (Socket::new(&reactor, ours).unwrap(), TcpStream::from(OwnedFd::from(theirs)))
    } else {
        connection(&reactor, 1 << 20)
    };
    let (sink, mut receiving) = connection(&reactor, 64 << 10);
    let mut buffers = Buffers { pipes, ..Buffers::default() };
    let lent = buffers.pipes.lent();
    let mut filter = filter(&course.policy, course.pongs);
    filter.refill_rate(0);
    let (mut direction, _) = Direction::new(Vec::new(), &[], filter, &course.policy);
    let mut sending = Some(sending);
    let (mut got, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    let (mut sent, mut acted, mut violation) = (0, false, None);
    let (mut writes, mut reads) = (course.writes.iter().cycle(), course.reads.iter().cycle());
    let begin = Instant::now();
    for tick in 1.. {
        assert!(begin.elapsed() < PATIENCE, "it hangs after {} bytes", got.len());
        if let Some(socket) = &mut sending {
            let most = if acted { course.bytes.len() } else { course.act_at };
            let piece = &course.bytes[sent..most.min(sent + writes.next().unwrap())];
            match socket.write(piece) {
                Ok(count) => sent += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if sent == course.bytes.len() && acted {
                if course.end == End::Reset && !course.is_unix {
                    sockopt::set_socket_linger(&*socket, Some(Duration::ZERO)).unwrap();
                }
                sending = None;
            }
        }
        reactor.wait(true).unwrap();
        let _ = reactor.dispatch(|_| {});
        direction.filter_mut().refill_rate(tick);
        match direction.advance([&source, &sink], false, &course.policy, &mut buffers) {
            Ok(_) => {}
            Err(RelayError::Violation(found)) => violation = Some(found),
            Err(RelayError::Source) => {
                assert!(course.end == End::Reset, "the source is whole");
            }
            Err(RelayError::Sink) => panic!("the sink is whole"),
        }
        let held = match direction.pending.as_deref() {
            Some(Pending::Piped(_, held)) => *held,
            _ => 0,
        };
        assert!(held <= PIPE_BYTES, "{held} bytes in a pipe");
        if sent == course.act_at && !acted {
            acted = true;
            match course.act {
                Act::Urgent if course.is_unix => {}
                Act::Urgent => {
                    let socket = sending.as_ref().unwrap();
                    acted = send(socket, &[URGENT], SendFlags::OOB).is_ok();
                }
                Act::Nothing => {}
                Act::Ping => direction.insert(control::ping(OURS, None), false),
                Act::Close => direction.insert(close(), true),
                Act::GiveUp => direction.give_up(),
            }
        }
        match receiving.read(&mut buffer[..*reads.next().unwrap()]) {
            Ok(0) => break,
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(direction.is_done());
    assert_eq!(buffers.pipes.lent(), lent, "a pipe is missing");
    assert_eq!(direction.written(), got.len() as u64);
    Result { got, direction, violation }
}

/// Pipes of which the first is soon full, with whatever is next in the socket.
fn narrow() -> Pipes {
    let mut pipes = Pipes::default();
    let pipe = pipes.borrow().unwrap();
    fcntl_setpipe_size(&pipe.write_end, 1).unwrap();
    pipes.give_back(pipe);
    pipes
}

/// Runs a flood of these frames, whose sink takes all.
fn flood(frames: &[Sent]) -> Direction {
    let bytes = to_bytes(frames);
    let course = Course {
        bytes: bytes.repeat(FLOOD / bytes.len()),
        policy: Policy::default(),
        pongs: 0,
        writes: vec![FLOOD],
        reads: vec![1 << 20],
        act: Act::Nothing,
        act_at: 0,
        end: End::Fin,
        is_unix: false,
    };
    let mut result = run(&course, Pipes::default());
    check(&course, &mut result);
    result.direction
}

#[test]
fn the_code_of_a_close_is_seen_however_large_it_is() {
    let large = |first| Sent { first, is_masked: true, payload: 100_000 };
    let direction = flood(&[vec![large(0x82); FLOOD / 120_000], vec![large(0x88)]].concat());
    assert!(direction.copied < FLOOD as u64 / 2);
    assert!(direction.filter().counters().close_code().is_some());
}

#[test]
fn what_goes_through_a_pipe_alone_is_a_sign_of_life() {
    let reactor = Rc::new(Reactor::new().unwrap().0);
    let (source, mut sending) = connection(&reactor, 1 << 20);
    let early = &to_bytes(&[Sent { first: 0x82, is_masked: false, payload: 1_000 }])[..10];
    let (policy, mut buffers) = (Policy::default(), Buffers::default());
    let (mut direction, _) = Direction::new(Vec::new(), early, FrameFilter::default(), &policy);
    direction.filter_mut().take_fresh_data();
    sending.write_all(b"payload").unwrap();
    let pipe = buffers.pipes.borrow().unwrap();
    direction.fill(pipe, &source, &mut buffers.pipes).unwrap();
    assert!(direction.take_fresh() && direction.filter_mut().take_fresh_data());
}

fn close() -> Vec<u8> {
    control::close(1001, "the end", None)
}

fn filter(policy: &Policy, pongs: usize) -> FrameFilter {
    let mut filter = FrameFilter::new(policy, true, false);
    (0..pongs).for_each(|_| filter.await_pong(OURS));
    filter
}

/// Checks what became of a course against a filter that gets all bytes at once.
fn check(course: &Course, result: &mut Result) {
    let Result { got, direction, violation } = result;
    // The urgent byte itself may come or not.
    let mut bytes = course.bytes.clone();
    if matches!(course.act, Act::Urgent) && got.get(course.act_at) == Some(&URGENT) {
        bytes.insert(course.act_at, URGENT);
    }
    let bytes = &bytes[..];
    // What has not been read then is missing.
    let is_cut = matches!(course.act, Act::GiveUp) || course.end == End::Reset;
    // A rate delays only.
    let policy = &Policy { max_frames_per_second: None, ..course.policy.clone() };
    let mut pure = filter(policy, course.pongs);
    let mut out = Vec::new();
    // The place where the insertion has landed is the direction's choice, but not any.
    let frame = match course.act {
        Act::Nothing | Act::GiveUp | Act::Urgent => Vec::new(),
        Act::Ping => control::ping(OURS, None),
        Act::Close => close(),
    };
    let place = (!frame.is_empty())
        .then(|| got.windows(frame.len()).position(|window| window == frame))
        .flatten();
    if let Some(place) = place {
        let before = source_bytes(course, policy, place);
        out.extend_from_slice(pure.filter(&bytes[..before], policy, &mut Vec::new()).bytes);
        let inserted = pure.insert(frame, matches!(course.act, Act::Close));
        out.extend(inserted.expect("it has landed between two frames"));
        out.extend_from_slice(pure.filter(&bytes[before..], policy, &mut Vec::new()).bytes);
    } else {
        let mut filtered = Vec::new();
        let Filtered { bytes: passed, stop } = pure.filter(bytes, policy, &mut filtered);
        out.extend_from_slice(passed);
        assert!(is_cut || stop.is_some() == violation.is_some(), "{violation:?}, not {stop:?}");
    }
    out.extend(pure.finish().unwrap_or_default());
    // Of a header that is refused, a part may have passed in an earlier chunk.
    let most = if violation.is_some() { out.len() + HEADER } else { out.len() };
    let same = got.len().min(out.len());
    assert!(got[..same] == out[..same] && got.len() <= most, "{} of {}", got.len(), out.len());
    if is_cut {
        return;
    }
    assert!(got.len() >= out.len(), "only {} of {}", got.len(), out.len());
    assert_eq!(direction.filter().counters(), pure.counters());
    assert_eq!(direction.take_fresh(), !bytes.is_empty());
    assert_eq!(direction.filter_mut().take_fresh_data(), pure.take_fresh_data());
    let is_at_boundary = pure.is_at_boundary() && got.len() == out.len();
    assert_eq!(direction.filter().is_at_boundary(), is_at_boundary);
}

/// Returns how many bytes of the source come before the boundary after which the sink has got so
/// many bytes.
fn source_bytes(course: &Course, policy: &Policy, place: usize) -> usize {
    let (mut frames, mut at) = (Frames::default(), 0);
    loop {
        let mut pure = filter(policy, course.pongs);
        if frames.is_at_boundary()
            && pure.filter(&course.bytes[..at], policy, &mut Vec::new()).bytes.len() == place
        {
            return at;
        }
        let (taken, event) = frames.next(&course.bytes[at..]);
        at += taken;
        assert!(event.is_some_and(|event| event != FrameEvent::Opaque), "not at a boundary");
    }
}

fn to_bytes(frames: &[Sent]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, Sent { first, is_masked, payload }) in frames.iter().enumerate() {
        let mask_bit = if *is_masked { 0x80 } else { 0 };
        bytes.push(*first);
        match payload {
            0..126 => bytes.push(mask_bit | *payload as u8),
            126..0x1_0000 => {
                bytes.push(mask_bit | 126);
                bytes.extend_from_slice(&(*payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask_bit | 127);
                bytes.extend_from_slice(&(*payload as u64).to_be_bytes());
            }
        }
        if *is_masked {
            bytes.extend_from_slice(&KEY);
        }
        if *first == 0x8a && *payload == OURS.len() {
            let ours = OURS.iter().zip(KEY.iter().cycle());
            bytes.extend(ours.map(|(byte, key)| byte ^ if *is_masked { *key } else { 0 }));
        } else {
            // A byte that no header of ours begins with, and that tells frames from each other.
            bytes.extend((0..*payload).map(|at| ((at / 7 + number) % 100) as u8));
        }
    }
    bytes
}

/// Lengths at which something changes.
fn lengths() -> impl Strategy<Value = usize> {
    let worth = WORTH_A_PIPE;
    prop_oneof![
        4 => 0_usize..20,
        2 => 100_usize..200,
        1 => 900_usize..1_100,
        4 => worth - 20..worth + 20,
        4 => Just(16 << 10),
        2 => READ - 20..READ + 20,
        1 => SCRATCH - 20..SCRATCH + 20,
        1 => PIPE_BYTES - 20..PIPE_BYTES + 20,
        1 => Just(700_000),
    ]
}

fn frames() -> impl Strategy<Value = Vec<Sent>> {
    let first = prop_oneof![
        6 => Just(0x82_u8),
        1 => Just(0x01),
        1 => Just(0x80),
        1 => Just(0x89),
        1 => Just(0x8a),
    ];
    let one = (first, any::<bool>(), lengths());
    // Runs of frames of one kind, since bulk is nothing else.
    let run = (one, prop_oneof![Just(1_usize), 2_usize..6, 20_usize..40]);
    // A Close that is far too large.
    let close = (Just(0x88), any::<bool>(), prop_oneof![Just(2), Just(100_000)]);
    (prop::collection::vec(run, 1..12), proptest::option::weighted(0.2, close)).prop_map(
        |(runs, close)| {
            const MOST: usize = 3 << 20;
            let runs = runs.into_iter().flat_map(|(one, count)| vec![one; count]);
            let mut total = 0;
            runs.take_while(|(_, _, payload)| {
                total += payload;
                total < MOST
            })
            .chain(close)
            .map(|(first, is_masked, payload)| Sent { first, is_masked, payload })
            .collect()
        },
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![
        4 => Just(Policy::default()),
        1 => Just(Policy { max_frame: Some(1 << 20), ..Policy::default() }),
        1 => Just(Policy { max_frame: Some(PIPE_BYTES as u64 - 1), ..Policy::default() }),
        1 => Just(Policy {
            max_frames_per_second: Some(16),
            rate_action: RateAction::Pause,
            ..Policy::default()
        }),
    ]
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![
        1 => 1_usize..20,
        1 => 1_000_usize..20_000,
        2 => 60_000_usize..300_000,
        2 => Just(1 << 20),
    ];
    // With one that comes to an end.
    prop::collection::vec(size, 0..6).prop_map(|sizes| [&sizes[..], &[200_000]].concat())
}

fn courses() -> impl Strategy<Value = Course> {
    let act = prop_oneof![
        3 => Just(Act::Nothing),
        3 => Just(Act::Ping),
        3 => Just(Act::Close),
        1 => Just(Act::GiveUp),
        1 => Just(Act::Urgent),
    ];
    let end = prop_oneof![5 => Just(End::Fin), 1 => Just(End::Reset)];
    let cut = prop_oneof![Just(None), any::<prop::sample::Index>().prop_map(Some)];
    let places = (any::<prop::sample::Index>(), cut, any::<bool>());
    (frames(), policies(), 0_usize..3, sizes(), sizes(), (act, end), places).prop_map(
        |(frames, policy, pongs, writes, reads, (act, end), (act_at, cut, is_unix))| {
            let mut bytes = to_bytes(&frames);
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            let act_at = act_at.index(bytes.len() + 1);
            Course { bytes, policy, pongs, writes, reads, act, act_at, end, is_unix }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_piped_is_the_same_as_what_is_copied(course in courses()) {
        for pipes in [Pipes::none(), Pipes::default(), narrow()] {
            check(&course, &mut run(&course, pipes));
        }
    }
}
