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
//! facts      a test binary whose facts share one set-up
//! ```

pub mod boutique;
pub mod capture;
pub mod classify;
pub mod control;
pub mod daemon;
pub mod evil;
pub mod facts;
pub mod http;
pub mod netns;
pub mod nft;
pub mod pair;
pub mod snapshot;
pub mod topology;
pub mod traffic;
pub mod undo;

/// Says whether a test may go on that needs root; prints what to do if it may not.
///
/// # Panics
/// With `MESH_STRICT=1` in the environment, instead of skipping.
pub fn privileged(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(what, "run the tests as root");
    }
    root
}

/// Reports a test that cannot run here, and how to make it run.
///
/// # Panics
/// With `MESH_STRICT=1` in the environment.
#[expect(clippy::print_stdout, reason = "the summary of a test run counts these lines")]
pub fn skip(what: &str, how: &str) {
    assert!(
        std::env::var_os("MESH_STRICT").is_none_or(|v| v != "1"),
        "{what} cannot run here and MESH_STRICT=1: {how}"
    );
    println!("SKIP {what}: {how}");
}
