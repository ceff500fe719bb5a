//! One direction of a tunnel.

use super::pipes::{PIPE_BYTES, Pipe, Pipes};
use super::socket::Socket;

/// Bytes that one read takes at most.
const SCRATCH: usize = 64 * 1024;
/// Reads of the scratch buffer, or fillings of a pipe, that a direction may do in a row before others get a turn.
const TURN: usize = 8;
/// A pipe is worth its system calls while it comes back at least this full.
const WORTH_A_PIPE: usize = 32 * 1024;

/// Copies from a source to a sink, and ends the sink's write half when the source has ended.
///
/// It owns bytes only while the sink refuses them, and reads no more until they are gone.
#[derive(Debug)]
pub(super) struct Half {
    held: Held,
    state: State,
    /// The source sends in bulk: its bytes go through a pipe rather than through memory.
    bulk: bool,
    /// Bytes that the sink has taken.
    carried: u64,
}

/// Bytes that the sink has not taken yet.
#[derive(Debug)]
enum Held {
    Nothing,
    /// Those from this offset on.
    Bytes(Box<[u8]>, usize),
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
    pub(super) pipes: Pipes,
}

impl Default for Tools {
    fn default() -> Self {
        Self { scratch: vec![0; SCRATCH].into_boxed_slice(), pipes: Pipes::default() }
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

/// Which of its two connections broke under a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Source,
    Sink,
}

impl Half {
    /// A direction whose sink gets `first` before anything else.
    pub(super) fn new(first: Vec<u8>) -> Self {
        let held = if first.is_empty() { Held::Nothing } else { Held::Bytes(first.into_boxed_slice(), 0) };
        Self { held, state: State::Open, bulk: false, carried: 0 }
    }

    /// Bytes that the sink has taken.
    pub(super) fn carried(&self) -> u64 {
        self.carried
    }

    /// Whether everything has been carried, the end included.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the source is read as soon as it has something. If not, a break of its connection shows nowhere.
    pub(super) fn is_reading(&self) -> bool {
        self.state == State::Open && matches!(self.held, Held::Nothing)
    }

    /// Carries what can be carried now. As the `last` direction of its tunnel, it leaves the end of the sink's write
    /// half to the closing of both connections.
    ///
    /// # Errors
    ///
    /// Which connection broke; the tunnel is over then.
    pub(super) fn advance(
        &mut self,
        source: &mut Socket,
        sink: &mut Socket,
        last: bool,
        tools: &mut Tools,
    ) -> Result<Turn, Broken> {
        for _ in 0..TURN {
            // What is held goes first.
            if !self.flush(sink, tools).map_err(|_| Broken::Sink)? {
                return Ok(Turn::Waiting);
            }
            // With nothing left behind the source's end, the sink gets to know of it.
            if self.state == State::Ended {
                if !last {
                    sink.end_sending().map_err(|_| Broken::Sink)?;
                }
                self.state = State::Done;
            }
            if self.state == State::Done || !source.is_readable() {
                return Ok(Turn::Waiting);
            }
            let pipe = if self.bulk { tools.pipes.borrow() } else { None };
            match pipe {
                Some(pipe) => self.fill(pipe, source, tools)?,
                None => self.copy(source, sink, &mut tools.scratch)?,
            }
        }
        Ok(Turn::More)
    }

    /// Gives back what was borrowed.
    pub(super) fn release(self, pipes: &mut Pipes) {
        if let Held::Piped(..) = self.held {
            pipes.lost();
        }
    }

    /// Reads once, and writes what came.
    fn copy(&mut self, source: &mut Socket, sink: &mut Socket, scratch: &mut [u8]) -> Result<(), Broken> {
        match source.read(scratch).map_err(|_| Broken::Source)? {
            None => {}
            Some(0) => self.state = State::Ended,
            Some(count) => {
                self.bulk = count == scratch.len();
                let written = sink.write(&scratch[..count]).map_err(|_| Broken::Sink)?.unwrap_or(0);
                self.carried += written as u64;
                if written < count {
                    self.held = Held::Bytes(scratch[written..count].into(), 0);
                }
            }
        }
        Ok(())
    }

    /// Fills a pipe from the source.
    fn fill(&mut self, pipe: Pipe, source: &mut Socket, tools: &mut Tools) -> Result<(), Broken> {
        match source.splice_into(&pipe, PIPE_BYTES) {
            Ok(Some(count @ 1..)) => {
                self.bulk = count >= WORTH_A_PIPE;
                self.held = Held::Piped(pipe, count);
                return Ok(());
            }
            Ok(None) => self.bulk = false,
            Ok(Some(_)) => self.state = State::Ended,
            Err(_) => {
                tools.pipes.lost();
                return Err(Broken::Source);
            }
        }
        tools.pipes.give_back(pipe);
        Ok(())
    }

    /// Writes what is held; whether nothing is left.
    fn flush(&mut self, sink: &mut Socket, tools: &mut Tools) -> std::io::Result<bool> {
        loop {
            if matches!(self.held, Held::Nothing) {
                return Ok(true);
            }
            if !sink.is_writable() {
                return Ok(false);
            }
            let written = match &self.held {
                Held::Nothing => Some(0),
                Held::Bytes(bytes, at) => sink.write(&bytes[*at..])?,
                Held::Piped(pipe, count) => sink.splice_from(pipe, *count)?,
            };
            let written = written.unwrap_or(0);
            self.carried += written as u64;
            self.held = match std::mem::replace(&mut self.held, Held::Nothing) {
                Held::Bytes(bytes, at) if at + written < bytes.len() => Held::Bytes(bytes, at + written),
                Held::Piped(pipe, count) if written < count => Held::Piped(pipe, count - written),
                Held::Piped(pipe, _) => {
                    tools.pipes.give_back(pipe);
                    Held::Nothing
                }
                _ => Held::Nothing,
            };
        }
    }
}
