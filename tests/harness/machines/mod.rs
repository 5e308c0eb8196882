//! Booted Debian machines on one bridge: real systemd, journald, networkd and resolved, and nothing of ours until it is put there.
//!
//! ```text
//!  namespace NAME-lan: bridge `lan` 10.60.0.1/24, a DNS server ── veth ── host0 10.60.0.N of machine N
//!    mounts: overlay(base system of the user's cache, a file system in memory) per machine
//!  unshare --pid --kill-child ── systemd-nspawn ── systemd of the machine
//! ```
//! Whatever ends the first of these processes ends the machine, and with the namespace its mounts go: a killed test leaves
//! nothing that runs. Empty groups of processes, and names of namespaces, are swept by the next one.

pub mod base;
pub mod booted;
mod groups;
pub mod lan;
mod name_server;

use crate::skip::in_path;

/// What machines need of this one: a program, and the package of Debian that has it.
const TOOLS: [(&str, &str); 5] = [
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("timeout", "coreutils"),
];
/// Returns how to get the tools that are missing here.
pub fn lacking() -> Option<String> {
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| in_path(program).is_none()).map(|tool| tool.1).collect();
    (!missing.is_empty()).then(|| format!("apt-get install {}", missing.join(" ")))
}
