//! What a process prints: whole or with the reason, and never by a panic.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Says that standard output did not take what a command has to show.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}; only the printing failed: make room, or send the output elsewhere")]
pub struct OutputError(io::Error);

/// Prints a text to standard output as it is. A reader that went away (`| head`) is no error.
///
/// # Errors
/// As write(2); a part may have been printed.
pub fn print(text: &str) -> Result<(), OutputError> {
    printed(write_all(io::stdout(), &mut text.as_bytes()).map_err(Into::into))
}

/// Judges what came of printing to standard output: a reader that went away is no error.
///
/// # Errors
/// Any other error.
pub fn printed(written: io::Result<()>) -> Result<(), OutputError> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(OutputError(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes all bytes, and takes off what was written; waits where the descriptor does not.
///
/// No lock of the standard library is held meanwhile: who waits for it would wait for the reader, too.
pub(crate) fn write_all(to: impl AsFd, bytes: &mut &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => *bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&to, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::File;

    use super::*;

    #[test]
    fn only_a_closed_pipe_is_quiet() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let gone = write_all(&writer, &mut &b"text"[..]).unwrap_err();
        printed(Err(gone.into())).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let refused = write_all(&full, &mut &b"text"[..]).unwrap_err();
        let sentence = printed(Err(refused.into())).unwrap_err().to_string();
        assert!(sentence.contains("No space left on device"), "{sentence}");
    }

    #[test]
    fn a_descriptor_that_does_not_wait_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let text = vec![b'x'; 1 << 20];
        std::thread::scope(|scope| {
            let read = scope.spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
            write_all(&writer, &mut &text[..]).unwrap();
            drop(writer);
            assert_eq!(read.join().unwrap(), 1 << 20);
        });
    }
}
