//! `cargo lab shell NODE`: a shell inside a namespace of a running lab, with its network and its resolv.conf.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mesh_tests::netns::bound;
use nix::sched::{CloneFlags, setns};

/// Replaces this process by a shell; returns only if that fails.
pub(crate) fn enter(node: &str) -> io::Error {
    let path = match find(node) {
        Ok(path) => path,
        Err(e) => return e,
    };
    let entered = enter_thread(&path).or_else(|_| {
        let file = File::open(&path)?;
        Ok::<_, io::Error>(setns(file, CloneFlags::CLONE_NEWNET)?)
    });
    if let Err(e) = entered {
        return e;
    }
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    Command::new(shell).env("PS1", format!("{node}# ")).exec()
}

fn find(node: &str) -> io::Result<PathBuf> {
    let all = bound(crate::lab::WORD);
    let name_of = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        name.split_once('-').map(|(_, name)| name.to_owned())
    };
    let found = all.iter().find(|p| name_of(p).as_deref() == Some(node));
    found.cloned().ok_or_else(|| {
        let mut names: Vec<String> = all.iter().filter_map(name_of).collect();
        names.sort_unstable();
        io::Error::other(if names.is_empty() {
            "no lab is running; start one with `cargo lab --forever`".to_owned()
        } else {
            format!("no namespace `{node}`; there are {}", names.join(", "))
        })
    })
}

/// Enters the network and the mounts of the lab's thread that lives in a namespace.
fn enter_thread(path: &Path) -> io::Result<()> {
    let inode = std::fs::metadata(path)?.ino();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let digits = name.trim_start_matches(crate::lab::WORD);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
    let tasks = format!("/proc/{}/task", &digits[..end]);
    for task in std::fs::read_dir(tasks)?.flatten() {
        let namespaces = task.path().join("ns");
        let lives_there = std::fs::metadata(namespaces.join("net")).is_ok_and(|m| m.ino() == inode);
        if lives_there {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            setns(File::open(namespaces.join("mnt"))?, CloneFlags::CLONE_NEWNS)?;
            return Ok(());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
