//! Why a node cannot run, in sentences that end with what to do.

use std::io;
use std::path::PathBuf;

use mesh_host::socket::SocketError;

use crate::base::retry::{Held, HeldBy};
use crate::base::state_dir::{StateError, advice};
use crate::dataplane::{DataPlaneError, LaneDeath};
use crate::linux::KernelError;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state cannot be read or written.
    #[error(transparent)]
    State(StateError),
    /// What the node trusts, or is trusted by, is lost or in doubt: no tunnels.
    #[error("no tunnels: {0}")]
    Trust(StateError),
    /// The control socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The data path cannot start.
    #[error(transparent)]
    DataPlane(#[from] DataPlaneError),
    /// Another machine has this node's identity.
    #[error(
        "another machine has this node's identity: the coordinator has record number {0} of it, signed by this node's key after it took ours, and not by us. meshd ends, and does not start again by itself; if this is the copy, run `meshd leave` here and join anew, else do that there, and start meshd again"
    )]
    Copied(u64),
    /// A lane is dead.
    #[error(
        "{0}: its packets would be lost, so meshd ends; a start goes on from the flow table. Report this with the log"
    )]
    Lane(#[from] LaneDeath),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}; check the limits of this process")]
    Signals(io::Error),
    /// The limit of open files is too low.
    #[error(
        "the limit of open files is {limit}, and meshd needs {needed} with these lanes; raise it (LimitNOFILE= in the unit, or ulimit -n)"
    )]
    Descriptors {
        /// The limit.
        limit: u64,
        /// The least that is enough.
        needed: u64,
    },
    /// The kernel refuses a thread.
    #[error("cannot start a thread: {0}; raise the limits of processes and open files")]
    Threads(io::Error),
    /// Two would write into one flow table.
    #[error(
        "another meshd keeps its flows in {}; set another `runtime_dir` in meshd.toml, or a `socket` in a directory of its own",
        .0.display()
    )]
    FlowsTaken(PathBuf),
    /// A directory cannot be made.
    #[error("cannot make {}: {error}; {}", path.display(), advice(error, path, "run as root, or set `runtime_dir` in meshd.toml"))]
    Runtime {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl From<StateError> for DaemonError {
    fn from(error: StateError) -> Self {
        if error.is_of_trust() { Self::Trust(error) } else { Self::State(error) }
    }
}

impl Held for DaemonError {
    fn held_by(&self) -> HeldBy {
        match self {
            Self::FlowsTaken(_) => HeldBy::Meshd,
            Self::State(error) | Self::Trust(error) => error.held_by(),
            Self::Socket(error) => error.held_by(),
            Self::DataPlane(error) => error.held_by(),
            Self::Kernel(_)
            | Self::Copied(_)
            | Self::Lane(_)
            | Self::Signals(_)
            | Self::Descriptors { .. }
            | Self::Threads(_)
            | Self::Runtime { .. } => HeldBy::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::io::udp::UdpError;

    use super::*;

    #[test]
    fn what_is_in_use_has_a_holder_and_what_fails_has_none() {
        let in_use = DataPlaneError::Udp(UdpError::InUse { port: 51820 });
        assert_eq!(DaemonError::DataPlane(in_use).held_by(), HeldBy::Somebody);
        let denied = UdpError::Mark { port: 51820, source: io::ErrorKind::PermissionDenied.into() };
        assert_eq!(DaemonError::DataPlane(DataPlaneError::Udp(denied)).held_by(), HeldBy::Nobody);
        assert_eq!(DaemonError::FlowsTaken("/run/meshd".into()).held_by(), HeldBy::Meshd);
    }
}
