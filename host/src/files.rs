//! Files that are whole or not there, whenever the machine is cut off.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// The largest text of an operator that is read, in bytes.
const MAX_TEXT: u64 = 4 * 1024 * 1024;
/// Most files of one name that are kept aside; the oldest go.
const MAX_ASIDE: usize = 8;

/// Reads a text of at most 4 MiB that an operator wrote, such as services.toml.
///
/// # Errors
/// If it cannot be read, is larger, or is no UTF-8; then the error says in which line and column.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let length = File::open(path)?.take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
    if length as u64 > MAX_TEXT {
        let message = format!("the file is larger than {} MiB", MAX_TEXT >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    decoded(bytes).map_err(|(line, column)| {
        let message = format!("line {line}, column {column} is not UTF-8");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

/// Reads bytes as UTF-8.
///
/// # Errors
/// The line and the character of it where they are something else, each from 1.
pub fn decoded(bytes: Vec<u8>) -> Result<String, (usize, usize)> {
    String::from_utf8(bytes).map_err(|error| {
        let end = error.utf8_error().valid_up_to();
        let good = String::from_utf8_lossy(&error.as_bytes()[..end]);
        let line = good.matches('\n').count() + 1;
        (line, good.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
    })
}

/// Writes a file that does not exist yet, and waits for the disk.
///
/// # Errors
/// If it exists, or cannot be written.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    written(path, bytes, mode)?.sync_all()
}

fn written(path: &Path, bytes: &[u8], mode: u32) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Writes a file that only its owner reads beside the one whose place it is to take, and returns its path.
///
/// # Errors
/// If it cannot be written.
pub fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let beside = vacant(path);
    or_gone(&beside, write_new(&beside, bytes, 0o600))?;
    Ok(beside)
}

/// Removes what is only half there: on a full disk it would take the room of whatever is written next.
fn or_gone<T>(path: &Path, written: io::Result<T>) -> io::Result<T> {
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// Replaces a file by one that only its owner reads.
///
/// # Errors
/// If it cannot be written; the file is then as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::rename(write_beside(path, bytes)?, path)?;
    sync(path.parent().unwrap_or_else(|| Path::new("/")))
}

/// Replaces a file of an operator by one of the same owner and the same mode; a symbolic link goes on leading to it. One
/// that does not exist is made, for all to read.
///
/// # Errors
/// If it cannot be written, or not be given to its owner; the file is then as it was.
pub fn replace_alike(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (path, before) = match fs::canonicalize(path) {
        Ok(path) => (path.clone(), Some(fs::metadata(&path)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(error),
    };
    // Of two who replace it at once each has a draft of his own.
    let beside = path.with_extension(format!("draft-{}", std::process::id()));
    let alike = |file: &File| {
        let Some(before) = &before else { return file.set_permissions(fs::Permissions::from_mode(0o644)) };
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (before.uid(), before.gid()) {
            fchown(file, Some(before.uid()), Some(before.gid()))?;
        }
        // Last, because another owner takes bits away.
        file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))
    };
    let made = written(&beside, bytes, 0o600).and_then(|file| alike(&file).and_then(|()| file.sync_all()));
    or_gone(&beside, made)?;
    or_gone(&beside, fs::rename(&beside, &path))?;
    sync(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")))
}

/// Replaces a file that has to outlive the process, not the machine, by one that only its owner reads: the disk is not
/// waited for.
///
/// # Errors
/// If it cannot be written; the file is then as it was.
pub fn replace_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = vacant(path);
    drop(or_gone(&beside, written(&beside, bytes, 0o600))?);
    fs::rename(beside, path)
}

/// Returns the path beside another, where nothing lies any more that an end half-way left.
fn vacant(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let _ = fs::remove_file(&name);
    name.into()
}

/// Writes a file unless it exists, and says whether it did. It is whole from its first moment, and of two that race only
/// one wins.
///
/// # Errors
/// If it cannot be written.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<bool> {
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let linked = write_new(&draft, bytes, mode).and_then(|()| fs::hard_link(&draft, path));
    let _ = fs::remove_file(&draft);
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        linked => linked.map(|()| true),
    }
}

/// Gives a file that cannot be used, but may be the only one of its kind, another name beside its own, `NAME.aside-7`,
/// and returns that. Of one name the newest eight are kept.
///
/// # Errors
/// If it cannot be renamed; it is then where it was.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy().into_owned();
    let aside = |number: u64| dir.join(format!("{name}.aside-{number}"));
    let mut numbers: Vec<u64> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?.file_name();
        let number =
            entry.to_str().and_then(|entry| entry.strip_prefix(&name)?.strip_prefix(".aside-")?.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    let kept = aside(numbers.last().map_or(1, |last| last.saturating_add(1)));
    fs::rename(path, &kept)?;
    for old in numbers.into_iter().rev().skip(MAX_ASIDE - 1) {
        let _ = fs::remove_file(aside(old));
    }
    sync(dir)?;
    Ok(kept)
}

/// Makes sure that what was made, renamed or removed in a directory stays so.
///
/// # Errors
/// If the disk refuses.
pub fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_file_is_made_once_and_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");

        assert!(create(&path, b"1", 0o600).unwrap());
        assert!(!create(&path, b"2", 0o600).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"1");
        replace(&path, b"3").unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().mode() & 0o777), (b"3".to_vec(), 0o600));
        replace_unsynced(&path, b"4").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        assert_eq!(read_text(&path).unwrap(), "4");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, vec![b' '; 4 * 1024 * 1024 + 1]).unwrap();
        assert_eq!(read_text(&path).unwrap_err().to_string(), "the file is larger than 4 MiB");
        fs::write(&path, b"version = 1\n# \xc3\xa4\xff\n").unwrap();
        assert_eq!(read_text(&path).unwrap_err().to_string(), "line 2, column 4 is not UTF-8");
    }

    #[test]
    fn a_file_of_an_operator_keeps_its_owner_its_mode_and_the_links_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("real.toml"), dir.path().join("services.toml"));
        fs::write(&path, "1").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let is_root = fs::metadata(&path).unwrap().uid() == 0;
        if is_root {
            std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
        }
        std::os::unix::fs::symlink("real.toml", &link).unwrap();

        replace_alike(&link, b"2").unwrap();

        let found = fs::metadata(&path).unwrap();
        assert_eq!((fs::read(&path).unwrap(), found.mode() & 0o777), (b"2".to_vec(), 0o640));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(!is_root || (found.uid(), found.gid()) == (1234, 4321));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);

        replace_alike(&dir.path().join("new.toml"), b"3").unwrap();
        assert_eq!(fs::metadata(dir.path().join("new.toml")).unwrap().mode() & 0o777, 0o644);
        assert_eq!(replace_alike(&dir.path().join("none/x"), b"4").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_set_aside_is_kept_and_the_oldest_of_many_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        for number in 1..=10_u8 {
            fs::write(&path, [number]).unwrap();
            let kept = set_aside(&path).unwrap();
            assert_eq!(kept, dir.path().join(format!("a.log.aside-{number}")));
            assert_eq!(fs::read(kept).unwrap(), [number]);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 8);
        assert!(!dir.path().join("a.log.aside-2").exists() && dir.path().join("a.log.aside-3").exists());
        assert_eq!(set_aside(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
