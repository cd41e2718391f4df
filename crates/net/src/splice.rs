//! Bytes that the kernel moves from one socket to another by way of a pipe (splice(2)): the pipe holds references to the pages in
//! which they arrived, so they are never copied into this process and out again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, read};

use crate::error::Named;
use crate::{Error, Result};

/// A pipe with both of its ends, and the number of bytes in it. Dropped, it closes, and what it held is gone.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    room: usize,
    held: usize,
}

impl Pipe {
    /// An empty pipe for up to `room` bytes, a power of two of at least a page.
    ///
    /// # Errors
    ///
    /// No descriptor is left, or the pipes of this user are too large together (`fs.pipe-user-pages-soft`; a process with
    /// `CAP_SYS_RESOURCE` is spared that).
    pub fn new(room: usize) -> Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).named("pipe2")?;
        let asked = i32::try_from(room).map_err(|_| Error::System {
            call: "fcntl F_SETPIPE_SZ",
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        fcntl(&write, FcntlArg::F_SETPIPE_SZ(asked)).named("fcntl F_SETPIPE_SZ")?;
        Ok(Self::of_ends(read, write, room))
    }

    /// A pipe of these ends, which hold nothing. For tests: of ends that are no pipe's, nothing can be spliced.
    #[must_use]
    pub fn of_ends(read: OwnedFd, write: OwnedFd, room: usize) -> Self {
        Self {
            read,
            write,
            room,
            held: 0,
        }
    }

    /// Bytes in the pipe.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes what a socket has received, as much as the pipe has room for, and says how much. Zero is the end that the peer set to
    /// its sending. Less than the room does not mean that the socket is empty: a pipe has places for pieces, however small.
    ///
    /// # Errors
    ///
    /// Those of `recv`; `WouldBlock` is the socket's, since the pipe is empty. See also [`refused`].
    pub fn fill(&mut self, from: &impl AsFd) -> io::Result<usize> {
        if self.held > 0 {
            // To a full pipe the kernel says "would block" too.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.held = splice(from, None, &self.write, None, self.room, flags())?;
        Ok(self.held)
    }

    /// Sends from the pipe, which holds something, what the socket takes, and says how much.
    ///
    /// A process that has not set `SIGPIPE` to be ignored is killed by a socket whose sending is over; Rust's start-up sets it.
    ///
    /// # Errors
    ///
    /// Those of `send`; `WouldBlock` is the socket's, since the pipe is not empty. See also [`refused`].
    ///
    /// The kernel may send in several steps. An error in a later one is taken from the socket and not told: what is told is that a
    /// part was sent. The next call then fails as it does after any error that was told: with `EPIPE`.
    pub fn drain(&mut self, to: &impl AsFd) -> io::Result<usize> {
        if self.held == 0 {
            return Ok(0);
        }
        let sent = splice(&self.read, None, to, None, self.held, flags())?;
        self.held = self.held.saturating_sub(sent);
        Ok(sent)
    }

    /// Copies everything out of the pipe, for a socket that does not take it.
    ///
    /// # Errors
    ///
    /// The pipe holds less than it took, which does not happen.
    pub fn take(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match read(&self.read, rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => filled += length,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.held = 0;
        Ok(bytes)
    }
}

/// Whether an error of [`Pipe::fill`] or [`Pipe::drain`] says that splicing is not possible here, and nothing about the connection:
/// the kind of socket, a filter of system calls, no memory. No byte was moved.
#[must_use]
pub fn refused(error: &io::Error) -> bool {
    let refusals = [
        Errno::EINVAL,
        Errno::ENOSYS,
        Errno::EPERM,
        Errno::ENOMEM,
        Errno::EBADF,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| refusals.contains(&Errno::from_raw(code)))
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::{Pipe, refused};

    const ROOM: usize = 64 * 1024;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// Waits until something can be read.
    fn readable(stream: &TcpStream) {
        stream.set_nonblocking(false).unwrap();
        stream.peek(&mut [0]).unwrap();
        stream.set_nonblocking(true).unwrap();
    }

    #[test]
    fn bytes_go_from_socket_to_socket_and_the_end_is_told() {
        let ((mut client, accepted), (dialled, mut server)) = (pair(), pair());
        let mut pipe = Pipe::new(ROOM).unwrap();
        accepted.set_nonblocking(true).unwrap();
        assert_eq!(
            pipe.fill(&accepted).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        client.write_all(b"eleven byte").unwrap();
        readable(&accepted);
        assert_eq!(pipe.fill(&accepted).unwrap(), 11);
        assert_eq!(pipe.held(), 11);
        assert_eq!(
            pipe.fill(&accepted).unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "only an empty pipe is filled"
        );
        assert_eq!(pipe.drain(&dialled).unwrap(), 11);
        assert_eq!(pipe.held(), 0);
        let mut seen = [0; 11];
        server.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"eleven byte");
        client.shutdown(std::net::Shutdown::Write).unwrap();
        readable(&accepted);
        assert_eq!(pipe.fill(&accepted).unwrap(), 0);
    }

    #[test]
    fn what_was_taken_can_be_copied_out_again() {
        let (mut client, accepted) = pair();
        let mut pipe = Pipe::new(ROOM).unwrap();
        client.write_all(b"never sent on").unwrap();
        readable(&accepted);
        pipe.fill(&accepted).unwrap();
        assert_eq!(pipe.take().unwrap(), b"never sent on");
        assert_eq!(pipe.held(), 0);
        assert_eq!(pipe.take().unwrap(), b"");
    }

    #[test]
    fn tells_a_refusal_from_a_broken_connection() {
        let (mut client, accepted) = pair();
        client.write_all(b"x").unwrap();
        readable(&accepted);
        let (one, two) = UnixStream::pair().unwrap();
        let mut none = Pipe::of_ends(one.into(), two.into(), ROOM);
        assert!(refused(&none.fill(&accepted).unwrap_err()));
        let mut pipe = Pipe::new(ROOM).unwrap();
        pipe.fill(&accepted).unwrap();
        let (dialled, server) = pair();
        crate::options::reset_on_close(&server).unwrap();
        drop(server);
        dialled.peek(&mut [0]).unwrap_err();
        let broken = pipe.drain(&dialled).unwrap_err();
        assert!(!refused(&broken), "{broken}");
        assert_eq!(pipe.held(), 1);
    }
}
