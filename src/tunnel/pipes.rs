//! Pipes, through which the kernel moves bytes from socket to socket without copying them.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Most bytes that a pipe is filled with.
pub(super) const PIPE_BYTES: usize = 256 * 1024;
/// Pipes that one worker may have. A direction that finds none copies instead: each costs two descriptors.
const PIPES: usize = 64;
/// Empty pipes that are kept for the next borrower.
const SPARE: usize = 8;

/// Both ends of a pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) entry: OwnedFd,
    pub(super) exit: OwnedFd,
}

/// The pipes of one worker, each lent only while bytes are in it.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    spare: Vec<Pipe>,
    lent: usize,
}

impl Pipes {
    /// An empty pipe, if there is one to be had.
    pub(super) fn borrow(&mut self) -> Option<Pipe> {
        if self.lent == PIPES {
            return None;
        }
        let pipe = match self.spare.pop() {
            Some(pipe) => pipe,
            None => match open() {
                Ok(pipe) => pipe,
                Err(error) => {
                    log::debug!("event=no_pipe error={:?}", error.to_string());
                    return None;
                }
            },
        };
        self.lent += 1;
        Some(pipe)
    }

    /// Takes a pipe back that is empty.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        self.lent -= 1;
        if self.spare.len() < SPARE {
            self.spare.push(pipe);
        }
    }

    /// Notes that a borrowed pipe is gone, with the bytes in it.
    pub(super) fn lost(&mut self) {
        self.lent -= 1;
    }
}

fn open() -> io::Result<Pipe> {
    let (exit, entry) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Without the privilege for more the pipe stays as it is, and is filled less at once.
    if let Err(error) = fcntl_setpipe_size(&entry, PIPE_BYTES) {
        log::debug!("event=small_pipe error={:?}", io::Error::from(error).to_string());
    }
    Ok(Pipe { entry, exit })
}
