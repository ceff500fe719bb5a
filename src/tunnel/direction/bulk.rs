//! Tests that what goes through pipes is the same as what is copied.

mod courses;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::net::{SendFlags, send, sockopt};
use rustix::pipe::fcntl_setpipe_size;

use self::courses::{Act, Course, End, SentFrame, courses, to_bytes};
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
        let most = if acted { course.bytes.len() } else { course.act_at };
        let piece = &course.bytes[sent..most.min(sent + writes.next().unwrap())];
        sent += sending.as_mut().map_or(0, |socket| send_piece(socket, piece));
        if sent == course.bytes.len() && acted {
            end(course, sending.take());
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
            acted = act(course, &mut direction, sending.as_ref());
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

/// Sends what there is room for of these bytes; returns their number.
fn send_piece(socket: &mut TcpStream, piece: &[u8]) -> usize {
    socket.write(piece).unwrap_or_else(|error| {
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        0
    })
}

/// Ends a source, unless that was done.
fn end(course: &Course, sending: Option<TcpStream>) {
    if let Some(socket) = sending
        && course.end == End::Reset
        && !course.is_unix
    {
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    }
}

/// Does to a direction what the course has it; returns whether that could be done.
fn act(course: &Course, direction: &mut Direction, sending: Option<&TcpStream>) -> bool {
    match course.act {
        Act::Urgent if course.is_unix => {}
        Act::Urgent => return send(sending.unwrap(), &[URGENT], SendFlags::OOB).is_ok(),
        Act::Nothing => {}
        Act::Ping => direction.insert(control::ping(OURS, None), false),
        Act::Close => direction.insert(close(), true),
        Act::GiveUp => direction.give_up(),
    }
    true
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
fn flood(frames: &[SentFrame]) -> Direction {
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
    let large = |first| SentFrame { first, is_masked: true, payload: 100_000 };
    let direction = flood(&[vec![large(0x82); FLOOD / 120_000], vec![large(0x88)]].concat());
    assert!(direction.copied < FLOOD as u64 / 2);
    assert!(direction.filter().counters().close_code().is_some());
}

#[test]
fn what_goes_through_a_pipe_alone_is_a_sign_of_life() {
    let reactor = Rc::new(Reactor::new().unwrap().0);
    let (source, mut sending) = connection(&reactor, 1 << 20);
    let early = &to_bytes(&[SentFrame { first: 0x82, is_masked: false, payload: 1_000 }])[..10];
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_piped_is_the_same_as_what_is_copied(course in courses()) {
        for pipes in [Pipes::none(), Pipes::default(), narrow()] {
            check(&course, &mut run(&course, pipes));
        }
    }
}
