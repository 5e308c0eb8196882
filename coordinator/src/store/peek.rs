//! At which revision the file of a store is, found out without altering a byte of it.
//!
//! A database that was not closed is repaired when it is opened, and a file of no bytes is made one. Here both
//! happen in memory, over the file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Mutex;

use mesh_proto::base::id::Revision;
use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

use super::StoreError;
use super::embedded::{Embedded, open_error};
use crate::base::sync::lock;

/// The pieces in which what is written is kept, in bytes.
const PIECE: u64 = 4096;

/// What lies where a store should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFile {
    /// No file.
    Missing,
    /// A file without a byte.
    Empty,
    /// A store at this revision; 0 if nothing was ever committed.
    At(Revision),
}

/// Looks at the file of an embedded store, and leaves it as it is.
///
/// # Errors
/// If the file is damaged, locked by another process, or cannot be read.
pub fn peek(path: &Path) -> Result<StoreFile, StoreError> {
    let failed =
        |source: io::Error| StoreError::Io { doing: "open", path: path.display().to_string(), source: source.into() };
    // For reading alone it could not be locked.
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(StoreFile::Missing),
        file => file.map_err(failed)?,
    };
    let length = file.metadata().map_err(failed)?.len();
    if length == 0 {
        return Ok(StoreFile::Empty);
    }
    let overlay = Overlay::new(file, length).map_err(|error| open_error(path, error))?;
    Ok(StoreFile::At(Embedded::over(overlay, path)?.revision()?))
}

/// A file whose alterations stay in memory: at most as much as opening writes, which is less than the file.
#[derive(Debug)]
struct Overlay {
    file: FileBackend,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    /// How much of the file still shows, in bytes.
    shown: u64,
    length: u64,
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    fn new(file: File, length: u64) -> Result<Self, DatabaseError> {
        let written = Written { shown: length, length, pieces: BTreeMap::new() };
        Ok(Self { file: FileBackend::new(file)?, written: Mutex::new(written) })
    }

    /// Returns a piece as it is now.
    fn piece(&self, written: &Written, number: u64) -> io::Result<Vec<u8>> {
        if let Some(piece) = written.pieces.get(&number) {
            return Ok(piece.clone());
        }
        let mut piece = vec![0; usize::try_from(PIECE).map_err(io::Error::other)?];
        let start = number * PIECE;
        let there = usize::try_from(written.shown.saturating_sub(start).min(PIECE)).map_err(io::Error::other)?;
        let (shown, _) = piece.split_at_mut(there);
        if !shown.is_empty() {
            self.file.read(start, shown)?;
        }
        Ok(piece)
    }
}

/// Calls for each piece of a range with its number, where in it the range begins, and the part of the range.
fn in_pieces(
    offset: u64,
    length: usize,
    mut f: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let at = offset + done as u64;
        let within = usize::try_from(at % PIECE).map_err(io::Error::other)?;
        let part = (length - done).min(usize::try_from(PIECE).map_err(io::Error::other)? - within);
        f(at / PIECE, within, done..done + part)?;
        done += part;
    }
    Ok(())
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.written).length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = lock(&self.written);
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        in_pieces(offset, out.len(), |number, within, part| {
            let piece = self.piece(&written, number)?;
            let length = part.len();
            let from = piece.get(within..within + length).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.get_mut(part).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(from);
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut written = lock(&self.written);
        if length < written.length {
            // What is cut off reads as zeros if the length grows again.
            let last = self.piece(&written, length / PIECE)?;
            let keep = usize::try_from(length % PIECE).map_err(io::Error::other)?;
            let cut = last.iter().enumerate().map(|(i, byte)| if i < keep { *byte } else { 0 }).collect();
            written.pieces.retain(|number, _| *number < length / PIECE);
            written.pieces.insert(length / PIECE, cut);
            written.shown = written.shown.min(length);
        }
        written.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = lock(&self.written);
        in_pieces(offset, data.len(), |number, within, part| {
            let mut piece = self.piece(&written, number)?;
            let from = data.get(part).ok_or(io::ErrorKind::UnexpectedEof)?;
            let to = piece.get_mut(within..within + from.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            to.copy_from_slice(from);
            written.pieces.insert(number, piece);
            Ok(())
        })?;
        written.length = written.length.max(offset + data.len() as u64);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
