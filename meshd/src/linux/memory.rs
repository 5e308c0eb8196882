//! How much memory there is: the machine's, or what the control groups leave of it; and in which pages it comes.
#![expect(unsafe_code, reason = "which pages the kernel takes is said by madvise(2)")]

use std::fs::read_to_string;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

/// The largest page that any of our machines has, in bytes: `madvise` takes whole pages.
const PAGE: usize = 1 << 16;

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

/// Asks for large pages where these words lie, but for the ends: a table that is used at random would take 512 times as
/// many faults, and miss the TLB as often. Where the kernel has none, or they are switched off, nothing changes.
///
/// # Errors
/// As the kernel says; then the pages are small.
pub fn in_large_pages(words: &[AtomicU64]) -> Result<(), Errno> {
    let range = words.as_ptr_range();
    let first = (range.start as usize).next_multiple_of(PAGE);
    let length = (range.end as usize).saturating_sub(first) / PAGE * PAGE;
    if length == 0 {
        return Ok(());
    }
    let skipped = first - range.start as usize;
    // SAFETY: the range lies within `words`, which are borrowed meanwhile, and the advice alters no byte of them.
    unsafe { madvise(range.start.cast_mut().byte_add(skipped).cast(), length, Advice::LinuxHugepage) }
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
    fn words_are_asked_for_in_large_pages_and_stay_what_they_are() {
        let words: Vec<AtomicU64> = (0..1 << 20).map(AtomicU64::new).collect();
        in_large_pages(&words[..100]).unwrap();
        in_large_pages(&[]).unwrap();
        match in_large_pages(&words) {
            // A kernel without them.
            Err(Errno::INVAL) => return,
            done => done.unwrap(),
        }
        let middle = words[1 << 19..].as_ptr() as usize;
        let maps = read_to_string("/proc/self/smaps").unwrap();
        let is_there = |line: &str| {
            let ends = line.split(' ').next().and_then(|range| range.split_once('-'));
            ends.map(|(from, to)| [from, to].map(|end| usize::from_str_radix(end, 16)))
                .is_some_and(|ends| matches!(ends, [Ok(from), Ok(to)] if (from..to).contains(&middle)))
        };
        let flags = maps.lines().skip_while(|line| !is_there(line)).find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split_whitespace().any(|flag| flag == "hg"), "{flags}");
        assert!(words.iter().zip(0..).all(|(word, n)| word.load(std::sync::atomic::Ordering::Relaxed) == n));
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(limit() > 64 << 20);
    }
}
