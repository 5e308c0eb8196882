//! Whether this process may do what tests in namespaces do.

use crate::skip::skip;

/// What to do where `is_root` is false.
pub const HOW: &str = "run the tests as root";

/// Says whether this process may make namespaces and interfaces.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says whether a test may go on that needs root; reports it as skipped if it may not.
///
/// # Panics
/// With `MESH_STRICT=1` in the environment, instead of skipping.
pub fn privileged(what: &str) -> bool {
    let root = is_root();
    if !root {
        skip(what, HOW);
    }
    root
}
