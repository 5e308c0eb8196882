//! Base systems of Debian: made once by debootstrap, and kept in the user's cache, where all checkouts find them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

use crate::daemon::tail;

/// Grows with every change of what a base system holds, so that one is made anew.
const EDITION: u32 = 1;
/// What they hold beside Debian's essential packages.
const PACKAGES: &str = "systemd,systemd-sysv,systemd-resolved,dbus,iproute2,nftables,python3-minimal,procps";
/// What begins with the machine.
const UNITS: &str = "systemd-networkd systemd-resolved";
/// Makes one in memory, of the mirror that `MESH_DEBIAN_MIRROR` names if it does, where the archive's tools need not wait for a disk, and keeps it as a whole.
const MAKE: &str = r#"
mkdir "$3"
mount -t tmpfs -o mode=755 base "$3"
timeout 900 debootstrap --variant=minbase --include="$1" "$0" "$3" $4
chroot "$3" systemctl enable $2
cp -a "$3" "$3.disk"
"#;

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebianSuite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl DebianSuite {
    /// All that machines are made of.
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// Its name in the archive.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// Makes all base systems that are not there yet, side by side: minutes, and then never again.
///
/// # Errors
/// If debootstrap fails, with the end of its log.
pub fn make_all() -> io::Result<()> {
    std::thread::scope(|scope| {
        let makers = DebianSuite::ALL.map(|suite| scope.spawn(move || made(suite)));
        makers.into_iter().try_for_each(|maker| match maker.join() {
            Ok(made) => made.map(drop),
            Err(_) => Err(io::Error::other("a base system is not made: its thread panicked")),
        })
    })
}

/// Returns the folder of a base system, and makes it if it is not there; who comes second waits for the first.
///
/// # Errors
/// If debootstrap fails, with the end of its log.
pub(crate) fn made(suite: DebianSuite) -> io::Result<PathBuf> {
    let cache = cache()?;
    fs::create_dir_all(&cache)?;
    let named = |what: &str| cache.join(format!("{}-{EDITION}{what}", suite.name()));
    let (base, part, log) = (named(""), named(".part"), named(".log"));
    let lock = File::create(named(".lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
    if base.is_dir() {
        return Ok(base);
    }
    // What one that was killed left.
    let whole = named(".part.disk");
    for left in [&part, &whole].into_iter().filter(|left| left.exists()) {
        fs::remove_dir_all(left)?;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", MAKE, suite.name(), PACKAGES, UNITS]).arg(&part);
    command.args(std::env::var_os("MESH_DEBIAN_MIRROR"));
    logged(command, &log)?;
    fs::remove_dir(&part)?;
    fs::rename(&whole, &base)?;
    Ok(base)
}

/// Where they are kept: of the user whose home this is.
fn cache() -> io::Result<PathBuf> {
    let set = |variable: &str| std::env::var_os(variable).filter(|word| !word.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = cache.ok_or_else(|| io::Error::other("no place for base systems: set HOME or XDG_CACHE_HOME"))?;
    Ok(cache.join("meshd-tests"))
}

fn logged(mut command: Command, log: &Path) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(log)?;
    let status = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).status()?;
    if status.success() {
        return Ok(());
    }
    let program = command.get_program().to_string_lossy().into_owned();
    Err(io::Error::other(format!("{program} failed with {status}; {} ends with: {}", log.display(), tail(log, 8))))
}
