//! Programs whose time of day is shifted, at their start or while they run; their time since boot is the machine's.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::daemon::Binaries;
use crate::skip::in_path;

/// Shifts CLOCK_REALTIME by the seconds in the file that MESH_TEST_CLOCK names.
const SHIFT: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    int rc = syscall(SYS_clock_gettime, id, t), before = errno;
    const char *path = id == CLOCK_REALTIME ? getenv("MESH_TEST_CLOCK") : 0;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        char text[32] = {0};
        if (read(fd, text, 31) > 0) t->tv_sec += atoll(text);
        close(fd);
    }
    errno = before;
    return rc;
}
"#;

/// A library that shifts clocks, and a file with the seconds for each name.
#[derive(Debug)]
pub struct ShiftedClocks {
    folder: TempDir,
    library: PathBuf,
}

/// Says whether the library can be built here.
pub fn are_possible() -> bool {
    in_path("cc").is_some()
}

impl ShiftedClocks {
    /// Builds the library.
    ///
    /// # Errors
    /// If it does not build.
    pub fn new() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-clocks-").tempdir()?;
        let (source, library) = (folder.path().join("shift.c"), folder.path().join("shift.so"));
        fs::write(&source, SHIFT)?;
        let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status()?;
        if !made.success() {
            return Err(io::Error::other("the library that shifts clocks does not build"));
        }
        Ok(Self { folder, library })
    }

    /// Returns the programs, with a clock that goes by this name, and is right at first.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn programs(&self, binaries: &Binaries, name: &str) -> io::Result<Binaries> {
        let home = self.folder.path().join(name);
        fs::create_dir(&home)?;
        self.set(name, 0)?;
        for program in ["meshd", "mesh-coordinator"] {
            let (file, real) = (home.join(program), binaries.path(program));
            let text = format!(
                "#!/bin/sh\nexport LD_PRELOAD={} MESH_TEST_CLOCK={}\nexec {} \"$@\"\n",
                self.library.display(),
                self.clock(name).display(),
                real.display()
            );
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Binaries::of(home))
    }

    /// Shifts the clock of a name by so many seconds from now on.
    ///
    /// # Errors
    /// If its file cannot be written.
    pub fn set(&self, name: &str, seconds: i64) -> io::Result<()> {
        let next = self.folder.path().join("next");
        fs::write(&next, seconds.to_string())?;
        fs::rename(next, self.clock(name))
    }

    fn clock(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.clock"))
    }
}
