//! The witness's hands: namespaces, captures, real daemons, and the topology they run in.
//!
//! ```text
//! undo       what must be undone, whatever happens
//! netns      namespaces, links, addresses, routes, rules; threads and processes inside
//! nft        the masquerading that CNIs install, and a strict host's FORWARD policy
//! classify   what may be seen on the underlay, and what is a leak
//! capture    every frame on the underlay, classified
//! boutique   the application's roles, edges and figures (played by the binary `boutique`)
//! control    asking a running stub what it saw, and telling it what to do
//! daemon     the real meshd and mesh-coordinator as processes
//! topology   the lab's two clusters, the VM, the loadgen host
//! evil       a member gone bad, and who watches it
//! snapshot   a node's routes, rules, interfaces and nftables as bytes, to be compared
//! pair       the smallest mesh, for end-to-end tests
//! traffic    TCP, UDP, ICMP and DNS as tests send them
//! skip       what a test needs of the machine, and how it says that it is missing
//! privilege  whether this process may do what tests in namespaces do
//! facts      a test binary whose facts share one set-up
//! machines   booted Debian systems, on a bridge of their own
//! ```

pub mod boutique;
pub mod capture;
pub mod classify;
pub mod control;
pub mod daemon;
pub mod evil;
pub mod facts;
pub mod http;
pub mod machines;
pub mod netns;
pub mod nft;
pub mod pair;
pub mod privilege;
pub mod shifted_clocks;
pub mod skip;
pub mod snapshot;
pub mod topology;
pub mod traffic;
pub mod undo;
