//! The words of the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_proto::base::id::{IdentityKey, MeshName, NodeName, ServiceKey, SiteName};

use crate::base::words;
use crate::config;

/// The control plane of the mesh: who belongs to it, which names exist, and who may call whom.
#[derive(Debug, Parser)]
#[command(name = "mesh-coordinator", version, arg_required_else_help = true)]
pub struct Cli {
    /// The admin socket of the running coordinator
    #[arg(long, global = true, value_name = "PATH", default_value = config::ADMIN_SOCKET)]
    pub socket: PathBuf,
    /// How to print what a reading verb reads
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make the identity key, the store, and those files that do not exist yet
    Init(Init),
    /// Run the coordinator in the foreground
    Run {
        /// The configuration
        #[arg(long, value_name = "PATH", default_value = config::CONFIG)]
        config: PathBuf,
    },
    /// Make, list and revoke join tokens
    #[command(subcommand)]
    Token(TokenVerb),
    /// Show the issuers that are trusted, and bring keys of those that cannot be asked
    #[command(subcommand)]
    Trust(TrustVerb),
    /// List the nodes
    Nodes,
    /// List the services and their backends
    Services,
    /// Say how the mesh is
    Status,
    /// Check a services.toml without a running coordinator
    Check {
        /// The file
        file: PathBuf,
    },
    /// Say what a services.toml would change, and for whom
    Plan {
        /// The file
        file: PathBuf,
    },
    /// Put a services.toml in force in the place of the coordinator's file; when this returns, it holds
    ///
    /// A file with mistakes alters nothing, and neither does one that contradicts the mesh as it is. What lay in its
    /// place is gone: `plan` says before what would change.
    Apply {
        /// The file
        file: PathBuf,
    },
    /// Make the running coordinator read its services.toml again; when this returns, it is in force
    Reload {
        /// Ask the coordinator of this configuration, instead of --socket
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Expel a node for good
    Revoke {
        /// Its name
        node: NodeName,
    },
    /// Show who did what, when: the last 200 operations
    Log {
        /// Begin with this entry; 0 for the oldest that is kept
        #[arg(long, value_name = "SEQ")]
        since: Option<u64>,
        /// Only what concerns this node, from the oldest entry on
        #[arg(long, value_name = "NODE")]
        node: Option<NodeName>,
    },
    /// Let nodes neither dial nor trust another coordinator any more
    Forget {
        /// Its key, as `status` shows it
        #[arg(allow_hyphen_values = true)]
        key: IdentityKey,
    },
    /// Copy the store into a file
    Backup {
        /// The file; it must not exist
        file: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Put a backup in the place of the store, while the coordinator is stopped
    Restore {
        /// The backup [default: the newest, and what the journal tells since; with etcd: what etcd holds]
        file: Option<PathBuf>,
        /// The configuration
        #[arg(long, value_name = "PATH", default_value = config::CONFIG)]
        config: PathBuf,
    },
    /// Give this coordinator another identity key: announce it, and go on with it once all nodes know it
    RotateKey {
        /// Go on with the key that was announced, from the next start on
        #[arg(long)]
        commit: bool,
        /// Although some nodes do not know it: these have to `meshd leave` and join again
        #[arg(long, requires = "commit")]
        force: bool,
    },
    /// Print all that is stored as JSON, without secrets
    Export,
    /// Let a key that no coordinator holds sign for every node
    #[command(subcommand)]
    Lock(LockVerb),
    /// Print a completion script
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Words of `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The name of the mesh
    #[arg(long)]
    pub name: MeshName,
    /// An address that nodes reach this coordinator at; may repeat
    #[arg(long, required = true, value_name = "HOST:PORT", value_parser = words::public)]
    pub public: Vec<String>,
    /// An address to listen on; may repeat [default: all addresses, the first public port]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Vec<SocketAddr>,
    /// The configuration to write
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// The services.toml to write [default: beside the configuration]
    #[arg(long, value_name = "PATH")]
    pub services: Option<PathBuf>,
    /// Where to keep the identity key and the store
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the running coordinator will take the verbs' requests
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Where Prometheus will read [default: 127.0.0.1:9587]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Make another identity key where that of a mesh is lost for good: every node has to join anew
    #[arg(long)]
    pub new_identity: bool,
}

/// Words of `token`.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a join token and print it as one line
    Create {
        /// The site that the nodes belong to
        #[arg(long)]
        site: SiteName,
        /// The name of the node [default: the node chooses]
        #[arg(long, value_name = "NODE")]
        name: Option<NodeName>,
        /// How long it lives, such as 90s, 15m, 12h, 30d
        #[arg(long, value_name = "TIME", default_value = "15m", value_parser = words::duration)]
        ttl: Duration,
        /// A service that the nodes may serve although services.toml names no backend there; may repeat
        #[arg(long, value_name = "SERVICE")]
        serve: Vec<ServiceKey>,
        /// How many nodes it admits
        #[arg(long, default_value_t = 1, value_name = "N")]
        uses: u32,
        /// Let its nodes vanish when they were not heard of for 10 minutes
        #[arg(long)]
        ephemeral: bool,
    },
    /// List the join tokens
    List,
    /// Make a join token worthless
    Revoke {
        /// Its public half, as `token list` shows it
        id: String,
    },
}

/// Words of `lock`.
#[derive(Debug, Subcommand)]
pub enum LockVerb {
    /// Make the lock's key, and sign for all nodes that are there; later ones wait for `meshd lock sign`
    Init {
        /// Where to write the key, for you to move to the machines that admit nodes; one that exists is used
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Put another key in the lock's place, and sign for all nodes that are admitted
    Replace {
        /// The present key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Where to write the other one; one that exists is used
        #[arg(long, value_name = "FILE")]
        new: PathBuf,
    },
    /// End lock mode
    Disable {
        /// The present key
        #[arg(long, value_name = "FILE", required_unless_present = "lost")]
        key: Option<PathBuf>,
        /// The key is lost: afterwards run `meshd lock forget` on each node
        #[arg(long, conflicts_with = "key")]
        lost: bool,
    },
    /// Show the lock, and who waits for its signature
    Status,
}

/// Words of `trust`.
#[derive(Debug, Subcommand)]
pub enum TrustVerb {
    /// Show the issuers of coordinator.toml and their keys
    List,
    /// Take up an issuer's keys, such as `kubectl get --raw /openid/v1/jwks` prints
    Push {
        /// The name of an issuer whose keys are pushed (`jwks = "push"`)
        name: SiteName,
        /// The JWKS document
        file: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// That each argument takes such a key is a law of `tests/tidy`.
    #[test]
    fn a_key_may_begin_as_a_flag_does() {
        let key = IdentityKey([0xf8; 32]).to_string();
        assert!(key.starts_with('-'));
        let forget = ["mesh-coordinator", "forget"];
        assert!(Cli::try_parse_from(forget.into_iter().chain([key.as_str()])).is_ok());
        let help = Cli::try_parse_from(forget.into_iter().chain(["--help"])).unwrap_err();
        assert_eq!(help.kind(), clap::error::ErrorKind::DisplayHelp);
    }

    #[test]
    fn socket_and_output_may_stand_before_or_after_the_verb() {
        for line in [
            ["mesh-coordinator", "--socket", "/x", "-o", "json", "token", "list"],
            ["mesh-coordinator", "token", "list", "--socket", "/x", "-o", "json"],
            ["mesh-coordinator", "-o", "json", "token", "--socket", "/x", "list"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.socket, PathBuf::from("/x"));
            assert_eq!(cli.output, Output::Json);
        }
    }
}
