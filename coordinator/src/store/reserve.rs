//! The reserve: space on the store's disk that is given up when the disk is full, so that rights can still be
//! taken away.
//!
//! ```text
//!   held ── the disk is full ──▶ given up: revocations only ── half as much again is free ──▶ held
//! ```
//! A reserve that was given up is an empty file, so that a restart does not mistake the room for an ordinary one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::Errno;

/// How much is reserved, in bytes; less on a disk that has less from the start.
pub(crate) const RESERVE: u64 = 64 * 1024 * 1024;
/// The least reserve worth having, in bytes.
const LEAST: u64 = 1024 * 1024;
/// How often it is tried to get the reserve back.
const PAUSE: Duration = Duration::from_secs(5);

/// Space that can be given up.
#[derive(Debug)]
pub(super) struct Reserve {
    file: File,
    path: PathBuf,
    bytes: u64,
    is_held: bool,
    tried: Instant,
}

impl Reserve {
    /// Takes up the reserve as it was left; makes it if there is none, as large as the disk allows.
    pub(super) fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let is_new = !path.try_exists()?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let is_held = file.metadata()?.len() > 0;
        let mut reserve = Self { file, path: path.to_owned(), bytes, is_held, tried: Instant::now() };
        while is_new && !reserve.is_held && reserve.bytes >= LEAST {
            reserve.hold()?;
            if !reserve.is_held {
                reserve.bytes /= 2;
            }
        }
        reserve.bytes = reserve.bytes.max(LEAST);
        Ok(reserve)
    }

    /// Says whether the space is there; gets it back if the disk has room again.
    pub(super) fn is_held(&mut self) -> bool {
        if !self.is_held && self.tried.elapsed() >= PAUSE {
            self.tried = Instant::now();
            let free = fstatvfs(&self.file).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
            if free.is_ok_and(|free| free >= self.bytes + self.bytes / 2) {
                let _ = self.hold();
            }
        }
        self.is_held
    }

    /// Gives the space up.
    pub(super) fn release(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.sync_all()?;
        self.is_held = false;
        self.tried = Instant::now();
        Ok(())
    }

    /// Returns where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn hold(&mut self) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => self.is_held = true,
            // What was got of it is given back.
            Err(Errno::NOSPC | Errno::DQUOT) => self.file.set_len(0)?,
            // A file system that promises nothing: a hole is held, and costs nothing.
            Err(Errno::OPNOTSUPP) => {
                self.file.set_len(self.bytes)?;
                self.is_held = true;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
