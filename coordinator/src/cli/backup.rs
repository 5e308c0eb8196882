//! `backup`: writes the copy of the store that the coordinator sends, with the rights of whoever asks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_host::client::AskError;
use mesh_host::files;

use crate::cli::args::Cli;
use crate::cli::outcome::{Outcome, client, printed};
use crate::core::documents::{BACKUP_IDENTITY, BACKUP_REVISION, DoneDocument};

/// How long the coordinator may take to copy the store, and to send some more of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes a backup that only its owner reads; one that exists is replaced only if `force` says so.
///
/// # Errors
/// `AskError` if the coordinator does not send it; what the file system refuses is an outcome.
pub(crate) async fn backup(cli: &Cli, file: &Path, force: bool) -> Result<Outcome, AskError> {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    if !force && file.symlink_metadata().is_ok() {
        return Ok(exists(&file));
    }
    let draft = Draft::of(&file);
    let mut open = match draft.open() {
        Ok(open) => open,
        Err(error) => return Ok(unwritten(&file, &error)),
    };
    let mut written = Ok(());
    let client = client(cli).within(PATIENCE);
    let told = client.pour("/v1/backup", |piece| {
        written = open.write_all(piece);
        written.is_ok()
    });
    let told = told.await?;
    match written.and_then(|()| open.sync_all()).and_then(|()| draft.publish(&file, force)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(exists(&file)),
        Err(error) => return Ok(unwritten(&file, &error)),
    }
    let header = |name: &str| told.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let message = format!(
        "the store at revision {} is in {}, which its owner alone reads. It holds no key and no token's secret: keep {} with it, without which no node trusts what is restored, and the lock's key, if the mesh is locked",
        header(BACKUP_REVISION),
        file.display(),
        header(BACKUP_IDENTITY),
    );
    let table = |done: &DoneDocument| format!("{}\n", done.message);
    Ok(Outcome::ok(printed(cli.output, &DoneDocument::new(message), table)))
}

/// A file that is being written, beside the one that it becomes; it is removed when the value goes.
struct Draft(PathBuf);

impl Draft {
    fn of(file: &Path) -> Self {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        Self(file.with_file_name(name))
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0)
    }

    fn publish(&self, file: &Path, force: bool) -> io::Result<()> {
        let published = match force {
            true => fs::rename(&self.0, file),
            false => match fs::hard_link(&self.0, file) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
                // Not every file system has links.
                Err(_) if file.symlink_metadata().is_err() => fs::rename(&self.0, file),
                linked => linked,
            },
        };
        published.and_then(|()| files::sync(file.parent().unwrap_or(file)))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn exists(file: &Path) -> Outcome {
    if file.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        return Outcome::failed(&format!("{} is no regular file, and stays; name another file", file.display()));
    }
    Outcome::failed(&format!("{} exists and is not overwritten; name another file, or say --force", file.display()))
}

fn unwritten(file: &Path, error: &io::Error) -> Outcome {
    Outcome::failed(&format!(
        "cannot write {}: {error}; name a file where this user may write, on a disk with room for it",
        file.display()
    ))
}
