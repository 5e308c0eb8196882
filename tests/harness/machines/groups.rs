//! Groups of processes: each machine's systemd has a tree of its own, or two machines would share the groups of their services.

use std::fs;
use std::path::{Path, PathBuf};

/// Where systemd looks for its own tree, the first that is there; the second is beside the first where both are.
const TREES: [&str; 3] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"];

/// The group that a machine begins in, as a folder.
pub(crate) fn group(name: &str) -> PathBuf {
    let tree = TREES.iter().map(Path::new).find(|tree| tree.join("cgroup.procs").is_file());
    tree.unwrap_or_else(|| Path::new(TREES[2])).join(name)
}

/// Takes a machine's groups away, once nobody is inside.
pub(crate) fn remove(name: &str) {
    for tree in TREES {
        remove_tree(&Path::new(tree).join(name));
    }
}

/// Removes the groups of machines `<word><pid>…` whose process is dead.
pub(crate) fn sweep(word: &str) {
    for entry in TREES.iter().filter_map(|tree| fs::read_dir(tree).ok()).flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(word)) else { continue };
        let owner: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if !owner.is_empty() && !Path::new("/proc").join(owner).exists() {
            remove_tree(&entry.path());
        }
    }
}

/// A group is removed as an empty folder is, though there are files in it.
fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
