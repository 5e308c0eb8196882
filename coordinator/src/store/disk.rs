//! The file under the embedded store: it grows only by space that it has, and remembers how it failed.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// What went wrong.
#[derive(Debug, Default)]
pub(super) struct DiskHealth {
    is_full: AtomicBool,
    has_lost: AtomicBool,
}

impl DiskHealth {
    /// Says whether the disk had no room, and lost nothing.
    pub(super) fn is_just_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed) && !self.has_lost.load(Ordering::Relaxed)
    }

    /// Notes the outcome of a write or of growing.
    pub(super) fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            if is_full(error) {
                self.is_full.store(true, Ordering::Relaxed);
            } else {
                self.has_lost.store(true, Ordering::Relaxed);
            }
        })
    }

    /// Notes the outcome of a sync: what could not be synced is lost, even for want of room.
    pub(super) fn note_sync(&self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|_| self.has_lost.store(true, Ordering::Relaxed))
    }
}

/// Says whether an error is for want of room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A file that notes how it fails.
#[derive(Debug)]
pub(super) struct Disk {
    inner: FileBackend,
    file: File,
    health: Arc<DiskHealth>,
}

impl Disk {
    /// Takes a file.
    pub(super) fn new(file: File, health: Arc<DiskHealth>) -> Result<Self, DatabaseError> {
        let own = file.try_clone().map_err(redb::StorageError::from)?;
        Ok(Self { inner: FileBackend::new(file)?, file: own, health })
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    /// Space is taken when the file grows, so that no write within it runs out of room.
    fn set_len(&self, length: u64) -> io::Result<()> {
        if length <= self.inner.len()? {
            return self.health.note(self.inner.set_len(length));
        }
        let grown = match fallocate(&self.file, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.inner.set_len(length),
            Err(error) => Err(error.into()),
        };
        self.health.note(grown)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.health.note_sync(self.inner.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.health.note(self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
