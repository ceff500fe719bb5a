//! One direction of a tunnel.

use super::Side;
use super::control;
use super::gate::{Gate, Passage, Refusal};
use super::pipes::{PIPE_BYTES, Pipe, Pipes};
use super::rules::Rules;
use super::socket::Socket;

/// Bytes that one read takes at most.
const SCRATCH: usize = 64 * 1024;
/// Reads of the scratch buffer, or fillings of a pipe, that a direction may do in a row before others get a turn.
const TURN: usize = 8;
/// Bytes that it may carry in such a row: what the reads can take. Eight pipes would hold the others up four times as long.
const TURN_BYTES: u64 = (TURN * SCRATCH) as u64;
/// Enough for the end of a payload and the header behind it.
const HEADER: usize = 16;
/// A pipe is worth its system calls while it comes back at least this full.
const WORTH_A_PIPE: usize = 32 * 1024;

/// Copies from a source to a sink, and ends the sink's write half when the source has ended.
///
/// It owns bytes only while the sink refuses them, and reads no more until they are gone.
#[derive(Debug)]
pub(super) struct Half {
    /// What the sink has not taken yet. Tunnels that hold something are few: the others have only room for a pointer.
    held: Option<Box<Held>>,
    state: State,
    /// The source sends in bulk: its bytes go through a pipe rather than through memory.
    bulk: bool,
    /// The source has sent something since this was last asked.
    is_fresh: bool,
    /// The source is not read.
    is_paused: bool,
    /// Bytes that the sink has taken.
    carried: u64,
    gate: Gate,
}

/// Bytes that the sink has not taken yet.
#[derive(Debug)]
enum Held {
    /// Those from this offset on.
    Bytes(Vec<u8>, usize),
    /// So many in a pipe.
    Piped(Pipe, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The source has not ended.
    Open,
    /// The source has ended; what is held is still to be written.
    Ended,
    /// Everything has been written, and the sink's write half is ended.
    Done,
}

/// What all directions of an event loop share, lent to the one whose turn it is.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) scratch: Box<[u8]>,
    /// Where chunks are made anew that do not pass as they are.
    pub(super) spare: Vec<u8>,
    pub(super) pipes: Pipes,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            spare: Vec::new(),
            pipes: Pipes::default(),
        }
    }
}

/// How a direction is to behave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners<'a> {
    pub(super) rules: &'a Rules,
    /// Whose bytes it carries.
    pub(super) from: Side,
}

impl Manners<'_> {
    /// Close frame for the sink of a source that is lost, if the policy has one.
    pub(super) fn loss(&self) -> Option<Vec<u8>> {
        match self.from {
            Side::Backend => {
                let code = self.rules.backend_lost_code?;
                Some(control::close(code, "the backend is lost", None))
            }
            Side::Client => {
                let code = self.rules.client_lost_code?;
                Some(control::close(code, "the client is lost", Some(control::fresh_mask())))
            }
        }
    }
}

/// How a turn has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing can be done before the next event.
    Waiting,
    /// There is more to do, for which there will be no event.
    More,
}

/// Why a direction cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The source's connection broke.
    Source,
    /// The sink's connection broke.
    Sink,
    /// A frame may not pass. What came before it has passed, and the direction is shut.
    Refused(Refusal),
}

impl Half {
    /// A direction whose sink gets `head` as it is, before anything else, and then what passes of `early`, which the
    /// source has sent already. If not all of it does, the refusal is to be acted upon.
    pub(super) fn new(
        head: Vec<u8>,
        early: &[u8],
        gate: Gate,
        rules: &Rules,
    ) -> (Self, Option<Refusal>) {
        let mut half = Self {
            held: (!head.is_empty()).then(|| Box::new(Held::Bytes(head, 0))),
            state: State::Open,
            bulk: false,
            is_fresh: false,
            is_paused: false,
            carried: 0,
            gate,
        };
        let mut spare = Vec::new();
        let Passage { bytes, refusal } = half.gate.pass(early, rules, &mut spare);
        let bytes = bytes.to_vec();
        half.append(bytes);
        (half, refusal)
    }

    /// Bytes that the sink has taken, the head included.
    pub(super) fn carried(&self) -> u64 {
        self.carried
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(super) fn gate_mut(&mut self) -> &mut Gate {
        &mut self.gate
    }

    /// Whether the source has sent something since this was last asked.
    pub(super) fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.is_fresh)
    }

    /// Has the source read, or not.
    pub(super) fn pause(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether the source has ended, and everything has been carried, the end included.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the sink has taken everything that is for it.
    pub(super) fn is_flushed(&self) -> bool {
        self.held.is_none()
    }

    /// Whether the source is read as soon as it has something. If not, a break of its connection shows nowhere.
    pub(super) fn is_reading(&self) -> bool {
        self.state == State::Open && self.is_flushed() && !self.is_paused
    }

    /// Puts a control frame in, now or at the next boundary; with `shut`, as the last thing that passes.
    pub(super) fn insert(&mut self, frame: Vec<u8>, shut: bool) {
        if self.state != State::Done
            && let Some(frame) = self.gate.insert(frame, shut)
        {
            self.append(frame);
        }
    }

    /// Carries what can be carried now. As the `last` direction of its tunnel, it leaves the end of the sink's write
    /// half to the closing of both connections.
    ///
    /// # Errors
    ///
    /// See [`Stop`].
    pub(super) fn advance(
        &mut self,
        source: &mut Socket,
        sink: &mut Socket,
        last: bool,
        manners: Manners<'_>,
        tools: &mut Tools,
    ) -> Result<Turn, Stop> {
        let enough = self.carried + TURN_BYTES;
        for _ in 0..TURN {
            // What is held goes first.
            if self.held.is_some() && !self.flush(sink, tools).map_err(|_| Stop::Sink)? {
                return Ok(Turn::Waiting);
            }
            // With nothing left behind the source's end, the sink gets to know of it.
            if self.state == State::Ended {
                if !last {
                    sink.end_sending().map_err(|_| Stop::Sink)?;
                }
                self.state = State::Done;
            }
            if self.state == State::Done || self.is_paused || !source.is_readable() {
                return Ok(Turn::Waiting);
            }
            if self.carried >= enough {
                break;
            }
            match self.borrow_pipe(tools) {
                Some(pipe) => self.fill(pipe, source, tools)?,
                None => self.copy(source, sink, manners, tools)?,
            }
        }
        Ok(Turn::More)
    }

    /// Gives back what was borrowed.
    pub(super) fn release(self, pipes: &mut Pipes) {
        if let Some(Held::Piped(..)) = self.held.as_deref() {
            pipes.lost();
        }
    }

    /// Has bytes go out behind those that are held.
    fn append(&mut self, bytes: Vec<u8>) {
        match self.held.as_deref_mut() {
            None if bytes.is_empty() => {}
            None => self.held = Some(Box::new(Held::Bytes(bytes, 0))),
            Some(Held::Bytes(held, at)) => {
                held.drain(..std::mem::take(at));
                held.extend_from_slice(&bytes);
            }
            // A pipe never ends at a boundary, so that nothing is put in behind one.
            Some(Held::Piped(..)) => {}
        }
    }

    /// A pipe, if the source sends in bulk, and what comes next may pass unseen.
    fn borrow_pipe(&self, tools: &mut Tools) -> Option<Pipe> {
        if self.bulk && self.is_worth_a_pipe() { tools.pipes.borrow() } else { None }
    }

    fn is_worth_a_pipe(&self) -> bool {
        self.gate.unseen() >= WORTH_A_PIPE as u64
    }

    /// Reads once, and writes what passes of it.
    fn copy(
        &mut self,
        source: &mut Socket,
        sink: &mut Socket,
        manners: Manners<'_>,
        tools: &mut Tools,
    ) -> Result<(), Stop> {
        let Tools { scratch, spare, .. } = tools;
        // Between two large payloads only the header is read, so that all the rest can go through a pipe. A payload for
        // which there is no pipe is read in pieces as large as they come.
        let is_between = self.bulk && !self.is_worth_a_pipe();
        let room = if is_between { HEADER } else { scratch.len() };
        match source.read(&mut scratch[..room]).map_err(|_| Stop::Source)? {
            None => Ok(()),
            Some(0) => {
                self.end(manners);
                Ok(())
            }
            Some(count) => {
                self.take_in(&scratch[..count], sink, manners.rules, spare)?;
                self.bulk = count == room && self.is_worth_a_pipe();
                Ok(())
            }
        }
    }

    /// Writes what passes of a chunk.
    fn take_in(
        &mut self,
        chunk: &[u8],
        sink: &mut Socket,
        rules: &Rules,
        spare: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        self.is_fresh = true;
        let Passage { bytes, refusal } = self.gate.pass(chunk, rules, spare);
        let goes_now = self.held.is_none() && !bytes.is_empty() && sink.is_writable();
        let written =
            if goes_now { sink.write(bytes).map_err(|_| Stop::Sink)?.unwrap_or(0) } else { 0 };
        self.carried += written as u64;
        if written < bytes.len() {
            let rest = bytes[written..].to_vec();
            self.append(rest);
        }
        refusal.map_or(Ok(()), |refusal| Err(Stop::Refused(refusal)))
    }

    /// Fills a pipe from the source.
    fn fill(&mut self, pipe: Pipe, source: &mut Socket, tools: &mut Tools) -> Result<(), Stop> {
        let most =
            usize::try_from(self.gate.unseen()).map_or(PIPE_BYTES, |unseen| unseen.min(PIPE_BYTES));
        match source.splice_into(&pipe, most) {
            Ok(Some(count @ 1..)) => {
                self.is_fresh = true;
                self.gate.skip(count as u64);
                // The end of a payload is no reason to stop.
                self.bulk = count >= WORTH_A_PIPE || count == most;
                self.held = Some(Box::new(Held::Piped(pipe, count)));
                return Ok(());
            }
            // Nothing, or nothing that can be moved this way: a read tells whether that is the end.
            Ok(_) => self.bulk = false,
            Err(_) => {
                tools.pipes.lost();
                return Err(Stop::Source);
            }
        }
        tools.pipes.give_back(pipe);
        Ok(())
    }

    /// Notes that the source has ended. Without a Close it is lost, and the sink is told so if it is to be.
    fn end(&mut self, manners: Manners<'_>) {
        self.state = State::Ended;
        if let Some(kept) = self.gate.finish() {
            self.append(kept);
        }
        if !self.gate.is_shut()
            && let Some(loss) = manners.loss()
            && let Some(frame) = self.gate.insert(loss, true)
        {
            self.append(frame);
        }
    }

    /// Writes what is held as far as there is room for it, before the sink is closed.
    pub(super) fn flush_last(&mut self, sink: &mut Socket, tools: &mut Tools) {
        // An error changes nothing any more.
        let _ = self.flush(sink, tools);
    }

    /// Writes what is held; whether nothing is left.
    fn flush(&mut self, sink: &mut Socket, tools: &mut Tools) -> std::io::Result<bool> {
        while let Some(held) = self.held.as_deref_mut() {
            if !sink.is_writable() {
                return Ok(false);
            }
            let (written, is_empty) = match held {
                Held::Bytes(bytes, at) => {
                    let written = sink.write(&bytes[*at..])?.unwrap_or(0);
                    *at += written;
                    (written, *at == bytes.len())
                }
                Held::Piped(pipe, count) => {
                    let written = sink.splice_from(pipe, *count)?.unwrap_or(0);
                    *count -= written;
                    (written, *count == 0)
                }
            };
            self.carried += written as u64;
            if is_empty
                && let Some(held) = self.held.take()
                && let Held::Piped(pipe, _) = *held
            {
                tools.pipes.give_back(pipe);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use rustix::event::epoll::EventFlags;

    use super::*;
    use crate::net::reactor::Reactor;
    use crate::net::readiness::Readiness;
    use crate::net::stream::Detached;

    /// One end of a connection as a tunnel has it, and the other one.
    fn connection() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = Detached { socket: ours, readiness: Readiness::UNKNOWN, key: None };
        (Socket::new(ours, &Reactor::new(&listener).unwrap(), 0), theirs)
    }

    /// The most bytes of a flood of frames that one turn takes, be it to pass them or to drop them.
    fn most_in_a_turn(payload: usize, is_shut: bool) -> u64 {
        const FLOOD: usize = 32 << 20;
        let ((mut source, mut sending), (mut sink, mut receiving)) = (connection(), connection());
        let frame = [&[0x82, 127][..], &(payload as u64).to_be_bytes(), &vec![0; payload]].concat();
        let flood = frame.repeat(FLOOD / payload);
        let writer = thread::spawn(move || sending.write_all(&flood).unwrap());
        let reader = thread::spawn(move || io::copy(&mut receiving, &mut io::sink()).unwrap());

        let (rules, mut tools) = (Rules::default(), Tools::default());
        let manners = Manners { rules: &rules, from: Side::Client };
        let (mut half, _) = Half::new(Vec::new(), &[], Gate::default(), &rules);
        if is_shut {
            half.gate_mut().shut();
        }
        let (mut taken, mut most) = (0, 0);
        while !half.is_done() {
            // There is no epoll here that would tell.
            source.note(EventFlags::IN);
            sink.note(EventFlags::OUT);
            half.advance(&mut source, &mut sink, false, manners, &mut tools).unwrap();
            let now = if is_shut { half.gate().tally().payload } else { half.carried() };
            most = most.max(now - taken);
            taken = now;
        }
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), half.carried());
        assert!(taken >= FLOOD as u64, "only {taken} bytes");
        most
    }

    #[test]
    fn a_flood_lets_others_have_their_turns() {
        // In bulk, and in small frames of which none passes.
        for (payload, is_shut) in [(32 << 20, false), (1 << 10, true)] {
            let most = most_in_a_turn(payload, is_shut);
            assert!(most < TURN_BYTES + PIPE_BYTES as u64, "{most} bytes of {payload} in one turn");
        }
    }
}
