//! What our nftables tables tell of themselves: whose mesh they belong to.
//!
//! It is written as nft writes a table's user data, fields of one byte of kind, one of length, and the value, so that
//! `nft list ruleset` prints the comment. Others skip the rest of the fields, and so do we those of later versions.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::linux::shape::{Home, Shape};

/// Most bytes that the kernel keeps (NFT_USERDATA_MAXLEN).
const MOST: usize = 256;
/// nft's own kind of field: a text with its final zero byte.
const COMMENT: u8 = 0;
const INTERFACE: u8 = 0x6d;
const PROCESS: u8 = 0x6e;
const STATE_DIR: u8 = 0x6f;
const SOCKET: u8 = 0x70;
const RUNTIME_DIR: u8 = 0x71;

/// Whose a mesh on this host is. What did not fit, or was not written down, is not known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    /// The name of its interface.
    pub interface: Option<String>,
    /// The state directory of its meshd.
    pub state_dir: Option<PathBuf>,
    /// The runtime directory of its meshd.
    pub runtime_dir: Option<PathBuf>,
    /// The control socket of its meshd.
    pub socket: Option<PathBuf>,
    /// The process that holds it, as that process knows itself.
    pub process: Option<u32>,
}

impl Owner {
    /// Says whose a mesh is that a configuration describes, and which process carries it, if it is told.
    pub(super) fn of(shape: &Shape, process: Option<u32>) -> Self {
        let Home { state_dir, runtime_dir, socket } = shape.home.clone();
        Self {
            interface: Some(shape.interface.clone()),
            state_dir: Some(state_dir),
            runtime_dir: Some(runtime_dir),
            socket: Some(socket),
            process,
        }
    }

    /// Fills what is not known from what another place tells of the same mesh.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            interface: self.interface.or(other.interface),
            state_dir: self.state_dir.or(other.state_dir),
            runtime_dir: self.runtime_dir.or(other.runtime_dir),
            socket: self.socket.or(other.socket),
            process: self.process.or(other.process),
        }
    }

    /// Writes it down in at most 256 bytes; a path that would not fit is left out.
    pub(super) fn mark(&self) -> Vec<u8> {
        let mut mark = Vec::new();
        let mut field = |kind: u8, value: &[u8]| {
            let Ok(length) = u8::try_from(value.len()) else { return };
            if mark.len() + 2 + value.len() <= MOST {
                mark.extend([kind, length]);
                mark.extend(value);
            }
        };
        field(COMMENT, self.comment().as_bytes());
        if let Some(interface) = &self.interface {
            field(INTERFACE, interface.as_bytes());
        }
        if let Some(process) = self.process {
            field(PROCESS, &process.to_be_bytes());
        }
        let paths = [(STATE_DIR, &self.state_dir), (SOCKET, &self.socket), (RUNTIME_DIR, &self.runtime_dir)];
        for (kind, path) in paths {
            if let Some(path) = path {
                field(kind, path.as_os_str().as_bytes());
            }
        }
        mark
    }

    /// Reads what [`Owner::mark`] wrote; of anything else what can be read.
    pub(super) fn read(mut mark: &[u8]) -> Self {
        let mut owner = Self::default();
        while let [kind, length, rest @ ..] = mark {
            let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
            mark = rest;
            let path = || Some(PathBuf::from(OsStr::from_bytes(value)));
            match *kind {
                INTERFACE => owner.interface = String::from_utf8(value.to_vec()).ok(),
                PROCESS => owner.process = value.try_into().ok().map(u32::from_be_bytes),
                STATE_DIR => owner.state_dir = path(),
                SOCKET => owner.socket = path(),
                RUNTIME_DIR => owner.runtime_dir = path(),
                _ => {}
            }
        }
        owner
    }

    /// For people who list the ruleset; nft takes it back only without quotes and below 128 bytes.
    fn comment(&self) -> String {
        let interface = self.interface.as_deref().unwrap_or("an interface").replace('"', "_");
        let text = match self.process {
            Some(process) => format!("{interface} is the interface of meshd, process {process}"),
            None => format!("{interface} is the interface of meshd"),
        };
        text + "\0"
    }

    /// Says whose it is, for a sentence: as much as is known.
    pub(super) fn words(&self) -> String {
        let shown = |path: &Path| path.display().to_string();
        let known = [
            self.interface.as_ref().map(|name| format!("interface `{name}`")),
            self.state_dir.as_deref().map(|dir| format!("state directory {}", shown(dir))),
            self.process.map(|process| format!("process {process}")),
        ];
        let known: Vec<String> = known.into_iter().flatten().collect();
        if known.is_empty() { "of which nothing is known".to_owned() } else { known.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn owner() -> Owner {
        Owner {
            interface: Some("mesh0".into()),
            state_dir: Some("/var/lib/meshd".into()),
            runtime_dir: Some("/run/meshd".into()),
            socket: Some("/run/meshd/meshd.sock".into()),
            process: Some(4_194_304),
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for owner in [owner(), Owner { process: None, socket: None, ..owner() }, Owner::default()] {
            assert_eq!(Owner::read(&owner.mark()), owner);
        }
    }

    #[test]
    fn a_path_that_does_not_fit_is_left_out_and_the_rest_stays() {
        let long = PathBuf::from(format!("/{}", "d".repeat(250)));
        let mark = Owner { state_dir: Some(long), ..owner() }.mark();
        assert!(mark.len() <= MOST, "{}", mark.len());
        assert_eq!(Owner::read(&mark), Owner { state_dir: None, ..owner() });
        assert!(Owner { interface: Some("fifteen-letters".into()), ..owner() }.comment().len() < 128);
    }

    #[test]
    fn the_marks_of_others_and_torn_ones_say_nothing_and_end() {
        let mark = owner().mark();
        for end in 0..mark.len() {
            let _ended = Owner::read(&mark[..end]);
        }
        assert_eq!(Owner::read(b"\x00\x06hello\x00\x99\x01x"), Owner::default());
        assert_eq!(Owner::read(&[INTERFACE, 200, 1]), Owner::default());
    }

    #[test]
    fn whose_it_is_is_told_with_what_is_known() {
        assert_eq!(owner().words(), "interface `mesh0`, state directory /var/lib/meshd, process 4194304");
        assert_eq!(Owner::default().words(), "of which nothing is known");
        assert_eq!(Owner { socket: None, ..owner() }.comment().matches('"').count(), 0);
        let comment = owner().comment();
        assert_eq!(comment.strip_suffix('\0').unwrap(), "mesh0 is the interface of meshd, process 4194304");
    }
}
