//! Pipes, through which the kernel moves bytes from socket to socket without copying them
//! (splice(2)).

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Most bytes that a pipe is filled with.
pub(super) const PIPE_BYTES: usize = 256 * 1024;
/// Pipes that one worker may have, each of two descriptors. A direction that finds none copies.
const MAX_PIPES: usize = 64;
/// Empty pipes that are kept for the next borrower.
const MAX_SPARE: usize = 8;

/// Both ends of a pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) write_end: OwnedFd,
    pub(super) read_end: OwnedFd,
}

/// The pipes of one worker, each lent only while bytes are in it.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    spare: Vec<Pipe>,
    lent: usize,
}

impl Pipes {
    /// Pipes of which all are lent: everything is copied.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { spare: Vec::new(), lent: MAX_PIPES }
    }

    /// Lends an empty pipe; `None` if all are lent, or no descriptors are left.
    pub(super) fn borrow(&mut self) -> Option<Pipe> {
        if self.lent == MAX_PIPES {
            return None;
        }
        let pipe = match self.spare.pop() {
            Some(pipe) => pipe,
            None => match open() {
                Ok(pipe) => pipe,
                Err(error) => {
                    log::debug!(error:% = error; "no_pipe");
                    return None;
                }
            },
        };
        self.lent += 1;
        Some(pipe)
    }

    /// Takes back a pipe, which is empty.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        self.lent -= 1;
        if self.spare.len() < MAX_SPARE {
            self.spare.push(pipe);
        }
    }

    /// Closes a lent pipe, with the bytes in it.
    pub(super) fn discard(&mut self, pipe: Pipe) {
        self.lent -= 1;
        drop(pipe);
    }

    /// Returns the number of pipes that are lent.
    #[cfg(test)]
    pub(super) fn lent(&self) -> usize {
        self.lent
    }
}

fn open() -> io::Result<Pipe> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Without the privilege for more, the pipe keeps its size and is filled less at once.
    if let Err(error) = fcntl_setpipe_size(&write_end, PIPE_BYTES) {
        log::debug!(error:% = io::Error::from(error); "small_pipe");
    }
    Ok(Pipe { write_end, read_end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_pipes_are_lent_than_there_may_be() {
        let mut pipes = Pipes::default();
        let mut lent: Vec<Pipe> = (0..MAX_PIPES).map(|_| pipes.borrow().unwrap()).collect();
        assert!(pipes.borrow().is_none());
        // One that is discarded, and one that is given back, each make room for another.
        pipes.discard(lent.pop().unwrap());
        lent.push(pipes.borrow().unwrap());
        assert!(pipes.borrow().is_none());
        pipes.give_back(lent.pop().unwrap());
        lent.push(pipes.borrow().unwrap());
        assert!(pipes.borrow().is_none());
        for pipe in lent {
            pipes.give_back(pipe);
        }
        assert_eq!((pipes.lent(), pipes.spare.len()), (0, MAX_SPARE));
    }
}
