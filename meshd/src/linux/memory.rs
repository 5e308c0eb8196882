//! How much memory there is: the machine's, or what the control groups leave of it.

use std::fs::read_to_string;
use std::path::Path;

/// Returns how much memory this process may use, in bytes; 0 if nobody says.
pub fn limit() -> u64 {
    limit_in(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

fn limit_in(proc: &Path, cgroups: &Path) -> u64 {
    let machine = read_to_string(proc.join("meminfo")).ok().and_then(|text| total(&text));
    let groups = read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    // Of version 2 there is one group; each above it limits it, too.
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let limits = Path::new(own).ancestors().filter_map(|group| {
        let text = read_to_string(cgroups.join(group).join("memory.max")).ok()?;
        text.trim().parse().ok()
    });
    limits.chain(machine).min().unwrap_or(0)
}

/// Reads the total of /proc/meminfo, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_least_of_the_machine_and_of_all_groups_above_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let seen = || limit_in(&dir.path().join("proc"), &dir.path().join("groups"));
        assert_eq!(seen(), 0);
        write("proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 1 kB\n");
        assert_eq!(seen(), 8_192_000_000);
        write("proc/self/cgroup", "1:name=x:/other\n0::/pods/meshd\n");
        write("groups/pods/meshd/memory.max", "max\n");
        assert_eq!(seen(), 8_192_000_000);
        write("groups/pods/memory.max", "268435456\n");
        assert_eq!(seen(), 256 << 20);
        write("groups/pods/meshd/memory.max", "134217728\n");
        assert_eq!(seen(), 128 << 20);
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(limit() > 64 << 20);
    }
}
