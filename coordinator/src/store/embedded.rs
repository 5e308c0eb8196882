//! The embedded store: one redb file, two-phase commit, every commit on the disk before it is acknowledged.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_proto::base::id::Revision;
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition, TableError,
};

use super::disk::{Disk, DiskHealth};
use super::{Records, Store, StoreError, StoreTable, Write};

/// The table that holds the revision, apart from the records.
const REVISION: TableDefinition<'_, &str, u64> = TableDefinition::new("revision");
const REVISION_KEY: &str = "revision";
/// Pages kept in memory, in bytes: the whole of a usual store.
const CACHE: usize = 4 * 1024 * 1024;

/// A store in one file, locked while it is open.
#[derive(Debug)]
pub struct Embedded {
    /// None if the file could not be opened again after the disk was full.
    database: Option<Database>,
    path: PathBuf,
    health: Arc<DiskHealth>,
}

impl Embedded {
    /// Opens the file and checks all of it; makes it with mode 0600 if it does not exist.
    ///
    /// # Errors
    /// If the file is damaged, locked by another process, or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::io("open", path, source);
        if !path.try_exists().map_err(failed)? {
            create(path).map_err(failed)?;
        }
        Self::open_present(path)
    }

    /// Opens the file, which has to be there.
    fn open_present(path: &Path) -> Result<Self, StoreError> {
        let failed = |source: io::Error| StoreError::Io {
            doing: "open",
            path: path.display().to_string(),
            source: source.into(),
        };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        let health = Arc::default();
        let disk = Disk::new(file, Arc::clone(&health)).map_err(|error| open_error(path, error))?;
        Ok(Self { health, ..Self::over(disk, path)? })
    }

    /// Opens what lies in a backend, and checks all of it. The path is for messages.
    pub(super) fn over(backend: impl StorageBackend, path: &Path) -> Result<Self, StoreError> {
        let mut builder = Database::builder();
        let builder = builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
        let opened = builder.create_with_backend(backend);
        let database = opened.map_err(|error| open_error(path, error))?;
        Ok(Self { database: Some(database), path: path.to_owned(), health: Arc::default() })
    }

    fn failed(&self, doing: &'static str, error: redb::Error) -> StoreError {
        storage_error(&self.path, doing, error)
    }

    fn database(&self) -> Result<&Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::PreviousIo)
    }

    /// Opens the file anew: a database that ran out of room does not go on. If it is gone, another one is not it.
    fn reopen(&mut self) -> Result<(), StoreError> {
        self.database = None;
        *self = Self::open_present(&self.path)?;
        Ok(())
    }

    /// Returns the revision of the last commit; 0 in a new store.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged.
    pub(super) fn revision(&self) -> Result<Revision, StoreError> {
        let read = || Ok(read_revision(&self.database()?.begin_read()?)?.unwrap_or_default());
        read().map_err(|error| self.failed("read", error))
    }

    fn read(&self) -> Result<Records, redb::Error> {
        let transaction = self.database()?.begin_read()?;
        let mut records = Records::default();
        match read_revision(&transaction)? {
            Some(revision) => records.revision = revision,
            None => return Ok(records),
        }
        for table in StoreTable::ALL {
            let opened = match transaction.open_table(definition(table)) {
                Ok(opened) => opened,
                Err(TableError::TableDoesNotExist(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            for entry in opened.iter()? {
                let (key, value) = entry?;
                let place = (table, key.value().to_owned());
                records.records.insert(place, value.value().to_vec());
            }
        }
        Ok(records)
    }

    fn read_page(&self, table: StoreTable, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
        let transaction = self.database()?.begin_read()?;
        let opened = match transaction.open_table(definition(table)) {
            Ok(opened) => opened,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut page = Vec::new();
        for entry in opened.range(from..)?.take(limit) {
            let (key, value) = entry?;
            page.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(page)
    }

    /// Returns the revision found instead of the expected one, if the commit was refused.
    fn write(&self, expected: Revision, next: Revision, writes: &[Write]) -> Result<Option<Revision>, redb::Error> {
        let mut transaction = self.database()?.begin_write()?;
        transaction.set_two_phase_commit(true);
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(REVISION)?;
            let found = Revision(table.get(REVISION_KEY)?.map_or(0, |value| value.value()));
            if found != expected {
                return Ok(Some(found));
            }
            table.insert(REVISION_KEY, next.0)?;
        }
        for write in writes {
            let mut table = transaction.open_table(definition(write.table))?;
            match &write.value {
                Some(value) => drop(table.insert(write.key.as_str(), value.as_slice())?),
                None => drop(table.remove(write.key.as_str())?),
            }
        }
        transaction.commit()?;
        Ok(None)
    }
}

impl Store for Embedded {
    fn load(&self) -> Result<Records, StoreError> {
        self.read().map_err(|error| self.failed("read", error))
    }

    fn scan(&self, table: StoreTable, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.read_page(table, from, limit).map_err(|error| self.failed("read", error))
    }

    fn commit(&mut self, expected: Revision, next: Revision, writes: &[Write]) -> Result<(), StoreError> {
        match self.write(expected, next, writes) {
            Ok(None) => Ok(()),
            Ok(Some(found)) => Err(StoreError::Conflict { expected, found }),
            Err(_) if self.health.is_just_full() => {
                self.reopen()?;
                Err(StoreError::Full { path: self.path.display().to_string() })
            }
            Err(error) => Err(self.failed("write", error)),
        }
    }
}

/// Reads the revision; none if nothing was ever committed.
fn read_revision(transaction: &ReadTransaction) -> Result<Option<Revision>, redb::Error> {
    match transaction.open_table(REVISION) {
        Ok(table) => Ok(Some(Revision(table.get(REVISION_KEY)?.map_or(0, |value| value.value())))),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn definition(table: StoreTable) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(table.name())
}

pub(super) fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
        return StoreError::Locked { path: path.display().to_string() };
    }
    storage_error(path, "open", error.into())
}

/// Tells what the disk did from what the file contains: only the latter calls for a backup.
fn storage_error(path: &Path, doing: &'static str, error: redb::Error) -> StoreError {
    let path = path.display().to_string();
    let torn = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
    let is_io = matches!(&error, redb::Error::Io(source) if !torn.contains(&source.kind()));
    let is_disk = is_io || matches!(error, redb::Error::PreviousIo);
    match is_disk {
        true => StoreError::Io { doing, path, source: error.into() },
        false => StoreError::Damaged { path, detail: error.to_string() },
    }
}

/// Makes an empty store under another name first: a power cut while it is written would leave a file that is
/// no database.
fn create(path: &Path) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&draft)?;
    let handle = file.try_clone()?;
    let made = FileBackend::new(file).and_then(|backend| Database::builder().create_with_backend(backend));
    drop(made.map_err(io::Error::other)?);
    handle.sync_all()?;
    fs::rename(&draft, path)?;
    sync_parent(path)
}

/// Makes the new file's name as durable as its content.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Writes what a store holds at a revision into a new file, which a coordinator can open in place of the store.
///
/// # Errors
/// If the file exists or cannot be written; then no file is left behind.
pub fn copy(path: &Path, revision: Revision, writes: &[Write]) -> Result<(), StoreError> {
    if path.symlink_metadata().is_ok() {
        return Err(StoreError::Exists { path: path.display().to_string() });
    }
    let copied = open_embedded(path).and_then(|mut copy| copy.commit(Revision(0), revision, writes));
    if copied.is_err() {
        let _ = fs::remove_file(path);
    }
    copied
}

/// Opens the embedded store in a file, which is made with mode 0600 if it does not exist.
///
/// # Errors
/// If the file is damaged, locked by another process, or cannot be opened.
pub fn open_embedded(path: &Path) -> Result<Box<dyn Store>, StoreError> {
    Ok(Box::new(Embedded::open(path)?))
}
