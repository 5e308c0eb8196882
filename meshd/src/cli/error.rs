//! Why a verb failed, in sentences that end with what to do.

use std::io;
use std::path::PathBuf;

use mesh_host::client::AskError;
use mesh_host::output::OutputError;
use mesh_proto::base::id::{IdentityKey, NodeName};
use mesh_proto::trust::network_lock::Subject;

use crate::base::state_dir::StateError;
use crate::config::ConfigError;
use crate::linux::KernelError;
use crate::node::error::DaemonError;
use crate::node::join::JoinError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon did not answer as asked.
    #[error(transparent)]
    Client(#[from] AskError),
    /// The daemon could not run.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The node did not join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The lock's key was not used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// It was done, and could not be printed.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The daemon did not end in time.
    #[error("meshd does not {0}; see `journalctl -u meshd`, or kill it and run this again")]
    Stuck(&'static str),
    /// The daemon does not know how to leave for a moment only.
    #[error(
        "the running meshd is of an older version and would open the range: run `systemctl restart meshd`, and the same `meshd join` again"
    )]
    OldDaemon,
    /// Nobody is there to be asked whether to mend.
    #[error("nothing was run: --fix asks before each command, and there is no terminal to ask at; say --yes as well")]
    Unasked,
    /// No runtime could be made.
    #[error("cannot start: {0}; check the limits of this process")]
    Runtime(io::Error),
    /// There is no such node.
    #[error("no node of this mesh is called `{0}`; `meshd peers` lists them")]
    NoPeer(String),
    /// The peer never answered.
    #[error(
        "`{0}` does not answer through the tunnel; `meshd peers` shows whether it has an endpoint and a handshake, and its UDP port must be open"
    )]
    NoAnswer(String),
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The key cannot be read.
    #[error("cannot read the lock's key: {0}")]
    State(StateError),
    /// There is no key.
    #[error("there is no lock key in {}; run this where it lies, or name it with --key FILE", .0.display())]
    Missing(PathBuf),
    /// The file holds something else.
    #[error("{} is no Ed25519 key; name the file that `mesh-coordinator lock init` wrote", .0.display())]
    Damaged(PathBuf),
    /// It is another key.
    #[error("{} holds the key {own}, but this node holds to the lock {held}; name the file of that one", path.display())]
    Another {
        /// The file.
        path: PathBuf,
        /// Its public half.
        own: IdentityKey,
        /// The lock of the mesh.
        held: IdentityKey,
    },
    /// There is no lock.
    #[error("this mesh is not locked, so that nobody waits for a signature")]
    Unlocked,
    /// The node does not wait.
    #[error("no node `{0}` needs a signature; `meshd lock status` lists those that do")]
    Nobody(NodeName),
    /// It is somebody else than the operator meant.
    #[error(
        "node `{node}` has the {subject}, not the one that you named: somebody else uses this name, or the coordinator lies; nothing was signed"
    )]
    Stranger {
        /// The node.
        node: NodeName,
        /// What it has.
        subject: Subject,
    },
    /// Nobody is there to be asked.
    #[error("nothing was signed: say --identity KEY, as `meshd lock status` shows it on that node, or --yes")]
    Unconfirmed,
}
