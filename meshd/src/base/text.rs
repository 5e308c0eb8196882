//! Sentences that several parts say.

use std::time::Duration;

use mesh_host::client::SocketWords;

/// What meshd says of its control socket.
pub(crate) const SOCKET: SocketWords = SocketWords {
    taken: "another meshd answers on {path}; stop it first (systemctl stop meshd), or set another `socket`",
    occupied: "{path} exists and is not a socket; move it away, or set another `socket` in meshd.toml",
    unbound: "cannot listen on {path}: {why}; run as root, or set another `socket` in meshd.toml",
    absent: "meshd is not running (no answer at {path}): start it with systemctl start meshd",
    closed: "cannot use {path}: {why}; run as root",
    ended: "meshd ended before it answered: see why with journalctl -u meshd, and ask again",
    broken: "the daemon's answer cannot be read: {why}; restart it, so that it and this command have the same version",
    patience: Duration::from_secs(5),
};

/// What a node that belongs to no mesh is told.
pub(crate) const JOIN_HINT: &str = "make a token with `mesh-coordinator token create --site SITE` on the coordinator, then run `meshd join --token-file FILE` here, or `meshd join -` and paste it";
