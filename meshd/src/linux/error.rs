//! Why the kernel refused, in sentences that end with what to do.

use std::io;

/// Why the kernel could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket could be opened.
    #[error("cannot open a netlink socket: {0}")]
    Socket(String),
    /// The kernel refused a step.
    #[error("cannot {step}: {why}")]
    Refused {
        /// What was asked of the kernel.
        step: String,
        /// What it answered, and what to do about it.
        why: String,
    },
    /// The mesh interface is not there.
    #[error("there is no interface `{0}`; it appears when `meshd run` opens it")]
    NoInterface(String),
    /// The mesh range is that of another mesh on this host.
    #[error("{0}")]
    Taken(String),
    /// Somebody renamed the mesh interface again after it was renamed back, or gave its name to another.
    #[error(
        "the mesh interface `{interface}` is called `{present}` now, and nothing passes: find out who renames it (udev, NetworkManager, systemd-networkd), and then run `ip link set dev {present} down && ip link set dev {present} name {interface}`"
    )]
    Renamed {
        /// The name that it should have.
        interface: String,
        /// The name that it has.
        present: String,
    },
    /// An interface name that the kernel would not take.
    #[error("`{0}` is not an interface name: use 1 to 15 characters without slashes and spaces")]
    Name(String),
}

impl KernelError {
    pub(super) fn nft(step: &str, error: &io::Error) -> Self {
        let why = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => PERMISSION.to_owned(),
            // What nfnetlink answers where nf_tables, or a chain type of it, is neither built in nor loadable.
            Some(libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                format!(
                    "{error}; this kernel may lack nftables: load the modules nf_tables, nft_chain_nat and nft_nat (`modprobe nft_chain_nat nft_nat`)"
                )
            }
            _ => error.to_string(),
        };
        Self::Refused { step: step.to_owned(), why }
    }

    pub(super) fn route(step: &str, error: &rtnetlink::Error) -> Self {
        let why = match errno(error) {
            Some(libc::EPERM | libc::EACCES) => PERMISSION.to_owned(),
            Some(code) => io::Error::from_raw_os_error(code).to_string(),
            None => error.to_string(),
        };
        Self::Refused { step: step.to_owned(), why }
    }
}

const PERMISSION: &str = "not permitted; run meshd as root or with CAP_NET_ADMIN";

/// Returns the positive error number that the kernel answered with.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        rtnetlink::Error::UnexpectedMessage(_)
        | rtnetlink::Error::RequestFailed
        | rtnetlink::Error::NamespaceError(_)
        | rtnetlink::Error::InvalidHardwareAddress(_)
        | rtnetlink::Error::InvalidIp(_)
        | rtnetlink::Error::InvalidAddress(..)
        | rtnetlink::Error::InvalidNla(_) => None,
    }
}
