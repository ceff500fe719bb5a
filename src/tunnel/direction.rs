//! One direction of a tunnel: from the source's socket, through the frame filter, to the sink's.

use super::buffers::{Buffers, READ};
use super::filter::FrameFilter;
use super::filtered::{Filtered, Stop};
use super::flow::Flow;
use super::limits::Violation;
use super::pending::Pending;
use super::policy::Policy;
use super::progress::{Progress, RelayError};
use super::splice::{PIPE_BYTES, Pipe, Pipes};
use crate::net::socket::Socket;

/// Reads, or fillings of a pipe, that a direction may do in a row before others get a turn.
const TURN: usize = 8;
/// Bytes that it may relay in such a row: as many as the reads can take. Eight pipes, or reads of a
/// flood, would hold up the others four times as long.
const TURN_BYTES: u64 = (TURN * READ) as u64;
/// Room for the end of a payload and the header after it.
const HEADER: usize = 16;
/// Bytes for which a pipe is worth its system calls.
const WORTH_A_PIPE: usize = 32 * 1024;

/// Relays from a source to a sink, and ends the sink's write half after the source's end.
///
/// It owns bytes only while the sink refuses them, and reads no more until they are gone.
#[derive(Debug)]
pub(super) struct Direction {
    /// Bytes that the sink has not taken yet. Few tunnels hold any: the others have only room for a
    /// pointer.
    pending: Option<Box<Pending>>,
    phase: Phase,
    flow: Flow,
    /// The source has sent something since [`take_fresh`](Direction::take_fresh).
    is_fresh: bool,
    /// The filter holds bytes, and nothing is read before they have passed.
    is_paused: bool,
    /// What is pending is to be dropped, and nothing more passes.
    is_given_up: bool,
    /// Length of the head, which comes before what is relayed: at most 64 KiB, in 24 bits that find
    /// room beside the flags.
    head: [u8; 3],
    /// Bytes that the sink has taken.
    written: u64,
    filter: FrameFilter,
    /// Bytes that have been copied from the source.
    #[cfg(test)]
    copied: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The source has not ended.
    Open,
    /// The source has ended; what is pending is still to be written.
    Ended,
    /// Everything has been written, and the sink's write half is ended.
    Done,
}

impl Direction {
    /// Creates a direction whose sink gets `head` as it is, before anything else, and then what
    /// passes of `early`, which the source has sent already. A violation in it is returned.
    pub(super) fn new(
        head: Vec<u8>,
        early: &[u8],
        filter: FrameFilter,
        policy: &Policy,
    ) -> (Self, Option<Violation>) {
        let [h0, h1, h2, _] = u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut direction = Self {
            head: [h0, h1, h2],
            pending: (!head.is_empty()).then(|| Box::new(Pending::Bytes(head, 0))),
            phase: Phase::Open,
            flow: Flow::Trickle,
            is_fresh: false,
            is_paused: false,
            is_given_up: false,
            written: 0,
            filter,
            #[cfg(test)]
            copied: 0,
        };
        let mut filtered = Vec::new();
        let Filtered { bytes, stop } = direction.filter.filter(early, policy, &mut filtered);
        let bytes = bytes.to_vec();
        direction.append(bytes);
        direction.is_paused = stop == Some(Stop::Held);
        match stop {
            Some(Stop::Violation(violation)) => (direction, Some(violation)),
            Some(Stop::Held) | None => (direction, None),
        }
    }

    /// Returns the bytes that the sink has taken, the head included.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Returns the bytes that the sink has taken, without the head.
    pub(super) fn relayed(&self) -> u64 {
        let [h0, h1, h2] = self.head;
        self.written.saturating_sub(u32::from_le_bytes([h0, h1, h2, 0]).into())
    }

    pub(super) fn filter(&self) -> &FrameFilter {
        &self.filter
    }

    pub(super) fn filter_mut(&mut self) -> &mut FrameFilter {
        &mut self.filter
    }

    /// Returns whether the source has sent something since the last call.
    pub(super) fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.is_fresh)
    }

    /// Returns whether the source has to wait, since it is above its rate.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Returns whether the source has ended, and everything has been relayed, the end included.
    pub(super) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Returns whether the source has sent no Close, and its end has not been relayed.
    pub(super) fn is_going_on(&self) -> bool {
        !self.is_done() && !self.filter.counters().has_close()
    }

    /// Returns whether the sink has taken everything that is for it.
    pub(super) fn is_flushed(&self) -> bool {
        self.pending.is_none()
    }

    /// Returns whether the source is read as soon as it sends something. If not, a break of its
    /// connection shows nowhere.
    pub(super) fn is_reading(&self) -> bool {
        self.phase == Phase::Open && self.is_flushed() && !self.is_paused
    }

    /// Inserts a control frame, now or at the next boundary; `is_last` closes the direction after
    /// it.
    pub(super) fn insert(&mut self, frame: Vec<u8>, is_last: bool) {
        if self.phase != Phase::Done
            && let Some(frame) = self.filter.insert(frame, is_last)
        {
            self.append(frame);
        }
    }

    /// Relays what can be relayed now.
    ///
    /// The order within a round decides what a peer sees: pending bytes go first, so that nothing
    /// overtakes them; then the end of a source whose bytes are all out; only then is the source
    /// read, at most until it would block, since an edge-triggered event comes once. A direction
    /// that has had its turn is put back in the run queue (`More`) rather than going on, so that a
    /// flood does not starve the other tunnels.
    ///
    /// `leave_open` leaves the end of the sink's write half to the closing of both connections,
    /// which saves the last direction of a tunnel a system call. After [`Progress::SourceEnded`],
    /// the caller may insert a Close and must call again.
    ///
    /// # Errors
    ///
    /// See [`RelayError`].
    pub(super) fn advance(
        &mut self,
        [source, sink]: [&Socket; 2],
        leave_open: bool,
        policy: &Policy,
        buffers: &mut Buffers,
    ) -> Result<Progress, RelayError> {
        let enough = self.written + TURN_BYTES;
        for _ in 0..TURN {
            // What is pending goes first. While the sink takes no more, nothing is read: this is
            // the back-pressure, and the next writable event brings the next turn.
            if self.pending.is_some() {
                if self.is_given_up {
                    self.abandon(&mut buffers.pipes);
                } else if !self.flush(sink, &mut buffers.pipes).map_err(|_| RelayError::Sink)? {
                    return Ok(Progress::Waiting);
                }
            }
            // Every byte is out, so the end may follow: a FIN never overtakes data.
            if self.phase == Phase::Ended {
                if !leave_open {
                    sink.end_sending().map_err(|_| RelayError::Sink)?;
                }
                self.phase = Phase::Done;
            }
            // No read is made that is known to find nothing: the event that ends this wait will
            // come.
            if self.phase == Phase::Done || !self.is_paused && !source.is_readable() {
                return Ok(Progress::Waiting);
            }
            // Pipes move more in a round than reads do, so the turn is bounded in bytes as well.
            if self.written >= enough {
                break;
            }
            // What is held came before what is still to be read. A refill lets some of it pass.
            if self.is_paused {
                self.relay_held(sink, policy, &mut buffers.filtered)?;
                if self.is_paused {
                    return Ok(Progress::Waiting);
                }
                continue;
            }
            match self.borrow_pipe(&mut buffers.pipes) {
                Some(pipe) => self.fill(pipe, source, &mut buffers.pipes)?,
                None => self.copy(source, sink, policy, buffers)?,
            }
            // The end was read just now. Before it is relayed, the tunnel decides whether the sink
            // is told by a Close: afterwards its reading is over.
            if self.phase == Phase::Ended {
                return Ok(Progress::SourceEnded);
            }
        }
        // The source may hold more, for which an edge-triggered epoll reports nothing: queue again.
        Ok(Progress::More)
    }

    /// Writes what is pending as far as there is room for it, before the sink is closed.
    pub(super) fn flush_last(&mut self, sink: &Socket, pipes: &mut Pipes) {
        // An error changes nothing: the sink is closed next.
        let _ = self.flush(sink, pipes);
    }

    /// Relays nothing more, and has the next turn drop what is pending: the sink takes nothing.
    pub(super) fn give_up(&mut self) {
        self.filter.close();
        self.is_given_up = true;
    }

    /// Relays nothing more, and drops what is pending, as where the sink's connection is broken.
    /// The source is still read to its end.
    pub(super) fn abandon(&mut self, pipes: &mut Pipes) {
        self.filter.close();
        if let Some(Pending::Piped(pipe, _)) = self.pending.take().map(|pending| *pending) {
            pipes.discard(pipe);
        }
    }

    /// Has bytes go out after those that are pending.
    fn append(&mut self, bytes: Vec<u8>) {
        match self.pending.as_deref_mut() {
            None if bytes.is_empty() => {}
            None => self.pending = Some(Box::new(Pending::Bytes(bytes, 0))),
            Some(pending) => pending.append(&bytes),
        }
    }

    /// Borrows a pipe, if the source sends in bulk and what comes next may pass unseen.
    fn borrow_pipe(&self, pipes: &mut Pipes) -> Option<Pipe> {
        let is_bulk = self.flow == Flow::Bulk && self.is_worth_a_pipe();
        if is_bulk { pipes.borrow() } else { None }
    }

    fn is_worth_a_pipe(&self) -> bool {
        self.filter.unseen() >= WORTH_A_PIPE as u64
    }

    /// Reads once, and writes what passes of it.
    fn copy(
        &mut self,
        source: &Socket,
        sink: &Socket,
        policy: &Policy,
        buffers: &mut Buffers,
    ) -> Result<(), RelayError> {
        let Buffers { scratch, filtered, .. } = buffers;
        // Between two large payloads only the header is read, so that all the rest can go through a
        // pipe. A payload for which there is no pipe is read in pieces as large as they come.
        let is_between = self.flow == Flow::Bulk && !self.is_worth_a_pipe();
        let room = if is_between { HEADER } else { self.flow.room() };
        match source.try_read(&mut scratch[..room]) {
            Ok(None) => Ok(()),
            Ok(Some(0)) => {
                self.end();
                Ok(())
            }
            Err(_) => {
                self.end();
                Err(RelayError::Source)
            }
            Ok(Some(count)) => {
                self.is_fresh = true;
                #[cfg(test)]
                {
                    self.copied += count as u64;
                }
                self.relay(&scratch[..count], sink, policy, filtered)?;
                // What may be held back or dropped stays little.
                let may_flood = self.is_flushed() && !is_between && self.filter.passes_all();
                let is_full = count >= room.min(READ);
                self.flow = Flow::after(is_full, self.is_worth_a_pipe(), may_flood);
                Ok(())
            }
        }
    }

    /// Writes what now passes of the bytes that are held.
    fn relay_held(
        &mut self,
        sink: &Socket,
        policy: &Policy,
        filtered: &mut Vec<u8>,
    ) -> Result<(), RelayError> {
        self.is_paused = false;
        let held = self.filter.take_held();
        self.relay(&held, sink, policy, filtered)
    }

    /// Writes what passes of a chunk.
    fn relay(
        &mut self,
        chunk: &[u8],
        sink: &Socket,
        policy: &Policy,
        filtered: &mut Vec<u8>,
    ) -> Result<(), RelayError> {
        let Filtered { bytes, stop } = self.filter.filter(chunk, policy, filtered);
        // Behind pending bytes nothing is tried: the order is the stream's.
        let goes_now = self.pending.is_none() && !bytes.is_empty() && sink.is_writable();
        let written = if goes_now {
            sink.try_write(bytes).map_err(|_| RelayError::Sink)?.unwrap_or(0)
        } else {
            0
        };
        self.written += written as u64;
        if written < bytes.len() {
            let rest = bytes[written..].to_vec();
            self.append(rest);
        }
        match stop {
            None => Ok(()),
            Some(Stop::Held) => {
                self.is_paused = true;
                Ok(())
            }
            Some(Stop::Violation(violation)) => Err(RelayError::Violation(violation)),
        }
    }

    /// Fills a pipe from the source.
    fn fill(&mut self, pipe: Pipe, source: &Socket, pipes: &mut Pipes) -> Result<(), RelayError> {
        let unseen = self.filter.unseen();
        let max = usize::try_from(unseen).map_or(PIPE_BYTES, |unseen| unseen.min(PIPE_BYTES));
        match source.try_splice_into(&pipe.write_end, max) {
            Ok(Some(count @ 1..)) => {
                self.is_fresh = true;
                self.filter.skip(count as u64);
                // The end of a payload is no reason to stop.
                let goes_on = count >= WORTH_A_PIPE || count == max;
                self.flow = if goes_on { Flow::Bulk } else { Flow::Trickle };
                self.pending = Some(Box::new(Pending::Piped(pipe, count)));
                return Ok(());
            }
            // Nothing, or nothing that can be moved this way: a read tells whether that is the end.
            Ok(_) => self.flow = Flow::Trickle,
            Err(_) => {
                pipes.discard(pipe);
                self.end();
                return Err(RelayError::Source);
            }
        }
        pipes.give_back(pipe);
        Ok(())
    }

    /// Records that the source has ended.
    fn end(&mut self) {
        self.phase = Phase::Ended;
        if let Some(withheld) = self.filter.finish() {
            self.append(withheld);
        }
    }

    /// Writes what is pending; returns whether nothing is left.
    fn flush(&mut self, sink: &Socket, pipes: &mut Pipes) -> std::io::Result<bool> {
        while let Some(pending) = self.pending.as_deref_mut() {
            if !sink.is_writable() {
                return Ok(false);
            }
            let (written, is_empty) = pending.write(sink)?;
            self.written += written as u64;
            if is_empty
                && let Some(pending) = self.pending.take()
                && let Pending::Piped(pipe, _) = *pending
            {
                pipes.give_back(pipe);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod bulk;

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::rc::Rc;
    use std::thread;

    use rustix::net::sockopt;

    use super::*;
    use crate::net::reactor::Reactor;

    /// Returns one end of a connection as a tunnel has it, and the other one.
    fn connection(reactor: &Rc<Reactor>) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Socket::new(reactor, ours).unwrap(), theirs)
    }

    fn reactor() -> Rc<Reactor> {
        Rc::new(Reactor::new().unwrap().0)
    }

    /// Waits for events of the sockets.
    fn wait(reactor: &Reactor) {
        reactor.wait(false).unwrap();
        let _ = reactor.dispatch(|_| {});
    }

    fn direction() -> Direction {
        Direction::new(Vec::new(), &[], FrameFilter::default(), &Policy::default()).0
    }

    /// Returns the start of a frame with so much payload, and all of the payload.
    fn large_frame(payload: usize) -> Vec<u8> {
        [&[0x82, 127][..], &(payload as u64).to_be_bytes(), &vec![7; payload]].concat()
    }

    /// Returns the most bytes of a flood of frames that one turn takes, be it to relay them or to
    /// drop them.
    fn most_in_a_turn(payload: usize, is_closed: bool) -> u64 {
        const FLOOD: usize = 32 << 20;
        let reactor = reactor();
        let (source, mut sending) = connection(&reactor);
        let (sink, mut receiving) = connection(&reactor);
        let flood = large_frame(payload).repeat(FLOOD / payload);
        let writer = thread::spawn(move || sending.write_all(&flood).unwrap());
        let reader = thread::spawn(move || io::copy(&mut receiving, &mut io::sink()).unwrap());

        let (policy, mut buffers) = (Policy::default(), Buffers::default());
        let mut direction = direction();
        if is_closed {
            direction.filter_mut().close();
        }
        let (mut taken, mut most) = (0, 0);
        while !direction.is_done() {
            let progress = direction.advance([&source, &sink], false, &policy, &mut buffers);
            let now = match is_closed {
                true => direction.copied,
                false => direction.written(),
            };
            most = most.max(now - taken);
            taken = now;
            if progress.unwrap() == Progress::Waiting && !direction.is_done() {
                wait(&reactor);
            }
        }
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), direction.written());
        assert!(taken >= FLOOD as u64, "only {taken} bytes");
        assert_eq!(buffers.pipes.lent(), 0);
        most
    }

    #[test]
    fn a_flood_lets_others_have_their_turns() {
        // In bulk, in small frames, and in those of which none passes.
        for (payload, is_closed) in [(32 << 20, false), (1 << 10, false), (1 << 10, true)] {
            let most = most_in_a_turn(payload, is_closed);
            assert!(
                most <= TURN_BYTES + PIPE_BYTES as u64,
                "{most} bytes of {payload} in one turn"
            );
        }
    }

    /// A direction whose pipe is full, since its sink takes nothing more, and its peers.
    fn with_a_full_pipe(
        reactor: &Rc<Reactor>,
        buffers: &mut Buffers,
    ) -> (Direction, [Socket; 2], [TcpStream; 2]) {
        let (source, mut sending) = connection(reactor);
        let (sink, receiving) = connection(reactor);
        sockopt::set_socket_send_buffer_size(&sink, 4_096).unwrap();
        sockopt::set_socket_recv_buffer_size(&receiving, 4_096).unwrap();
        sending.set_nonblocking(true).unwrap();
        let frame = large_frame(64 << 20);
        let mut sent = 0;
        let mut direction = direction();
        while !matches!(direction.pending.as_deref(), Some(Pending::Piped(..))) {
            sent += sending.write(&frame[sent..]).unwrap_or(0);
            let policy = Policy::default();
            direction.advance([&source, &sink], false, &policy, buffers).unwrap();
            reactor.wait(true).unwrap();
            let _ = reactor.dispatch(|_| {});
        }
        assert_eq!(buffers.pipes.lent(), 1);
        (direction, [source, sink], [sending, receiving])
    }

    #[test]
    fn a_full_pipe_is_given_up_with_its_direction() {
        let (reactor, mut buffers) = (reactor(), Buffers::default());
        let (mut direction, _sockets, _peers) = with_a_full_pipe(&reactor, &mut buffers);
        direction.abandon(&mut buffers.pipes);
        assert_eq!(buffers.pipes.lent(), 0);
    }

    #[test]
    fn a_full_pipe_whose_sink_breaks_is_given_up_with_its_direction() {
        let (reactor, mut buffers) = (reactor(), Buffers::default());
        let (mut direction, [source, sink], [_sending, receiving]) =
            with_a_full_pipe(&reactor, &mut buffers);
        sockopt::set_socket_linger(&receiving, Some(std::time::Duration::ZERO)).unwrap();
        drop(receiving);
        let policy = Policy::default();
        while direction.advance([&source, &sink], false, &policy, &mut buffers).is_ok() {
            wait(&reactor);
        }
        direction.abandon(&mut buffers.pipes);
        assert_eq!(buffers.pipes.lent(), 0);
    }

    #[test]
    fn a_pipe_that_cannot_be_filled_is_given_up_at_once() {
        let (reactor, mut buffers) = (reactor(), Buffers::default());
        let (source, sending) = connection(&reactor);
        sockopt::set_socket_linger(&sending, Some(std::time::Duration::ZERO)).unwrap();
        drop(sending);
        let pipe = buffers.pipes.borrow().unwrap();
        let (filter, policy) = (FrameFilter::default(), Policy::default());
        let (mut direction, _) =
            Direction::new(Vec::new(), &large_frame(64)[..10], filter, &policy);
        let failed = direction.fill(pipe, &source, &mut buffers.pipes);
        assert_eq!(failed, Err(RelayError::Source));
        assert_eq!(buffers.pipes.lent(), 0);
    }

    #[test]
    fn an_end_is_relayed_after_what_was_inserted_at_it() {
        let reactor = reactor();
        let (source, mut sending) = connection(&reactor);
        let (sink, mut receiving) = connection(&reactor);
        sending.write_all(b"\x81\x02hi").unwrap();
        drop(sending);
        let (policy, mut buffers) = (Policy::default(), Buffers::default());
        let mut direction = direction();
        loop {
            match direction.advance([&source, &sink], false, &policy, &mut buffers).unwrap() {
                Progress::SourceEnded => break,
                _ => wait(&reactor),
            }
        }
        assert!(!direction.is_done());
        direction.insert(b"last".to_vec(), true);
        direction.advance([&source, &sink], false, &policy, &mut buffers).unwrap();
        assert!(direction.is_done());
        let mut got = Vec::new();
        receiving.read_to_end(&mut got).unwrap();
        assert_eq!(got.escape_ascii().to_string(), "\\x81\\x02hilast");
    }
}
