//! The command line: every verb and its arguments, as DESIGN 9 names them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_proto::base::addr::MeshRange;
use mesh_proto::base::id::{IdentityKey, NodeName};

use crate::config::CONFIG;
use crate::dataplane::bench::{DEFAULT_SECONDS, SECONDS};

/// The node of the mesh: encrypted tunnels, translation, policy and names for every pod and host.
#[derive(Debug, Parser)]
#[command(name = "meshd", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// How to print what is read
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value = "table")]
    pub output: Output,
    /// The running daemon's control socket [default: what the configuration says, or /run/meshd/meshd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How to print what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub struct ConfigArg {
    /// The configuration file
    #[arg(long, value_name = "PATH", default_value = CONFIG)]
    pub config: PathBuf,
}

/// Which mesh is cleaned up: that of the configuration, unless one of the words says otherwise.
#[derive(Debug, Clone, Args)]
pub struct CleanupArgs {
    /// The configuration file.
    #[command(flatten)]
    pub config: ConfigArg,
    /// Instead, the mesh of this range, whose meshd is stopped and may be gone
    #[arg(long, value_name = "NETWORK", conflicts_with_all = ["all", "files"])]
    pub range: Option<MeshRange>,
    /// Instead, every mesh of this host
    #[arg(long)]
    pub all: bool,
    /// With --all: remove what lies in the state directories, keys included, and in the runtime directories
    #[arg(long, requires = "all")]
    pub files: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the daemon
    Run(ConfigArg),
    /// Join a mesh with a token from `mesh-coordinator token create`
    ///
    /// Give the token with --token-file, or on standard input: `meshd join -`. On the command line every user of the
    /// machine can read it.
    Join {
        /// `-` for a token on standard input, or the token itself
        #[arg(
            value_name = "TOKEN",
            required_unless_present_any = ["token_file", "oidc_token_file"],
            conflicts_with_all = ["token_file", "oidc_token_file"]
        )]
        token: Option<String>,
        /// A file that holds the token
        #[arg(long, value_name = "PATH", conflicts_with = "oidc_token_file")]
        token_file: Option<PathBuf>,
        /// A file that holds a token of an issuer that the coordinator trusts, such as a pod's projected token
        #[arg(long, value_name = "PATH", requires = "coordinator", requires = "pin")]
        oidc_token_file: Option<PathBuf>,
        /// A coordinator, with --oidc-token-file; may repeat
        #[arg(long, value_name = "HOST:PORT", requires = "oidc_token_file")]
        coordinator: Vec<String>,
        /// Its key, as `mesh-coordinator status` shows it, with --oidc-token-file; may repeat
        #[arg(long, value_name = "KEY", requires = "oidc_token_file", allow_hyphen_values = true)]
        pin: Vec<IdentityKey>,
        /// Vanish from the mesh when the coordinator has not heard of this node for 10 minutes
        #[arg(long)]
        ephemeral: bool,
        /// The configuration file.
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Leave the mesh: forget the enrolment and undo what was set up in the kernel
    Leave(ConfigArg),
    /// Show who this node is, how it is connected, and what is wrong
    Status,
    /// Show the other nodes
    Peers,
    /// Show the services and their backends
    Services {
        /// Only this one, as NAME or NAME.NAMESPACE
        name: Option<String>,
    },
    /// Show what a name means in the mesh
    Resolve {
        /// A service, a node, or a full name
        name: String,
    },
    /// Measure the round trip to a node through the tunnel
    Ping {
        /// A node, `host:NODE`, or its mesh address
        node: String,
    },
    /// Measure throughput, packet rate, round trips and CPU time to a node, inside the tunnel
    ///
    /// Three phases: round trips without load; packets of 92 bytes (64 of payload), for the packet rate; packets of
    /// the way's MTU, for the throughput, with round trips beside them. Rates and loss are what the other node
    /// counted, IP headers included. It measures the tunnel on all lanes: engine, encryption, sockets, network. It
    /// leaves out what applications add: their TCP and the TUN device. CPU time is that of the two meshd processes.
    ///
    /// Real traffic goes on: the measurement takes what it leaves, and slows down when packets are lost or wait.
    /// One measurement at a time per node; Ctrl-C ends it. No rule is needed, and nothing reaches the other host.
    Bench {
        /// A node, `host:NODE`, or its mesh address
        node: String,
        /// How long each of the two phases with load takes
        #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_SECONDS, value_parser = seconds())]
        seconds: u8,
    },
    /// Say whether SRC may call DST, which way it would go, and which rule decides
    Why {
        /// A service, `host:NODE`, a node, or an address
        src: String,
        /// SERVICE, SERVICE:PORT, `host:NODE`, or ADDRESS:PORT
        dst: String,
        /// Judge UDP where the destination does not say
        #[arg(long)]
        udp: bool,
    },
    /// Check the configuration, the services.toml and the kernel, without a daemon
    Check {
        /// Run the printed commands that touch nothing but what is of the mesh, each after asking
        #[arg(long)]
        fix: bool,
        /// With --fix: run them without asking
        #[arg(long, requires = "fix")]
        yes: bool,
        /// The configuration file.
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Show the live flows
    Flows,
    /// Print the metrics as Prometheus reads them
    Metrics,
    /// Make the running daemon read its services.toml again; when this returns, it is in force
    Reload,
    /// Give this node another tunnel key now, without losing a packet
    Rotate {
        /// Change the identity key instead, by which the coordinators and the peers know this node
        ///
        /// The former key names the next one, and is never admitted again. It takes a coordinator. If the former key was
        /// stolen, that is not enough: revoke the node and let it join anew.
        #[arg(long)]
        identity: bool,
    },
    /// Admit nodes to a mesh that is locked by a key of yours (`mesh-coordinator lock init`)
    #[command(subcommand)]
    Lock(LockVerb),
    /// Remove everything meshd set up in the kernel for its mesh, whether it runs or was killed
    Cleanup(CleanupArgs),
    /// Close the mesh range before the network comes up (for the boot unit)
    #[command(hide = true)]
    Guard(ConfigArg),
    /// Print a completion script
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Words of `lock`.
#[derive(Debug, Subcommand)]
pub enum LockVerb {
    /// Show the lock, this node's identity, and who waits for a signature
    Status,
    /// Sign for a node that waits
    Sign {
        /// Its name
        node: NodeName,
        /// The lock's key [default: lock.key in the state directory]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Sign only if this is its identity, as `meshd lock status` shows it there
        #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
        identity: Option<IdentityKey>,
        /// Sign without asking
        #[arg(long)]
        yes: bool,
        /// The configuration file.
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Let go of a lock whose key is lost, while meshd is stopped
    Forget(ConfigArg),
}

fn seconds() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(i64::from(*SECONDS.start())..=i64::from(*SECONDS.end()))
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
        assert!(Cli::try_parse_from(["meshd", "lock", "sign", "b", "--identity", &key]).is_ok());
        let joining = ["meshd", "join", "--oidc-token-file", "f", "--coordinator", "c:7700", "--pin", &key];
        assert!(Cli::try_parse_from(joining).is_ok());
    }

    #[test]
    fn socket_and_output_stand_before_or_after_the_verb() {
        for line in
            [["meshd", "-o", "json", "--socket", "/s", "status"], ["meshd", "status", "-o", "json", "--socket", "/s"]]
        {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.output, Output::Json);
            assert_eq!(cli.socket, Some(PathBuf::from("/s")));
        }
    }

    #[test]
    fn join_takes_one_token_from_one_place() {
        assert!(Cli::try_parse_from(["meshd", "join"]).is_err());
        assert!(Cli::try_parse_from(["meshd", "join", "t", "--token-file", "f"]).is_err());
        assert!(Cli::try_parse_from(["meshd", "join", "-"]).is_ok());
        assert!(Cli::try_parse_from(["meshd", "join", "--token-file", "f"]).is_ok());
        let pin = IdentityKey([7; 32]).to_string();
        let oidc = ["meshd", "join", "--oidc-token-file", "f", "--coordinator", "c:7700", "--pin", &pin];
        assert!(Cli::try_parse_from(oidc).is_ok());
        assert!(Cli::try_parse_from(&oidc[..6]).is_err(), "without --pin anybody could answer");
        assert!(Cli::try_parse_from(oidc.into_iter().chain(["token"])).is_err());
        assert!(Cli::try_parse_from(oidc.into_iter().chain(["--token-file", "g"])).is_err());
    }
}
