//! The files of the state directory: nobody else names one.
//!
//! Each is either the machine's and stays when it leaves a mesh, or the mesh's, or a key of the node's, and goes then. Each that may be behind what
//! the node knows says what a restart does then.

use std::fmt;

/// A file of the state directory, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StateFile(&'static str);

impl StateFile {
    /// Returns its name inside the directory.
    pub(crate) fn name(self) -> &'static str {
        self.0
    }

    /// Says what a restart does while the disk holds an older one than it should.
    pub(crate) fn behind(self) -> &'static str {
        match self {
            NETMAP => "a restart without a coordinator brings back what was taken away since, removed permissions too",
            MARK => "a restart could follow a coordinator that went back",
            ROLL => "a restart may not remember who was expelled since",
            ENROLMENT => "a restart begins with the former address, blocks and coordinators",
            HEARD => "a restart counts the time without a coordinator from earlier",
            PRESHARED_KEYS => "a restart makes new preshared keys",
            PRESHARED => "a restart waits for the coordinator before it insists on preshared keys",
            RECORD => "a restart signs a new record of this node",
            SERVICES_TAKEN => "a restart does not know which services.toml was taken",
            ACTIVITY => "a restart calls nobody before it has packets",
            TRIAL => "a cached map that brings this node down is used again and again",
            NEXT_IDENTITY_KEY => "a restart offers a key again that was refused",
            ACCEPTED_CONFIG => "a restart with a broken meshd.toml runs an older one, or none",
            _ => "a restart begins with an older one",
        }
    }
}

impl fmt::Display for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

macro_rules! files {
    ($(#[$about:meta])* $all:ident: $($(#[$doc:meta])* $file:ident = $name:literal,)+) => {
        $($(#[$doc])* pub(crate) const $file: StateFile = StateFile($name);)+
        $(#[$about])* pub(crate) const $all: &[StateFile] = &[$($file),+];
    };
}

files! {
    /// What stays when the node leaves its mesh.
    ALL_OF_MACHINE:
    /// Held by the daemon that uses the directory.
    LOCK = "lock",
    /// The key of the network lock, where an operator put it: theirs, and nowhere else perhaps.
    LOCK_KEY = "lock.key",
    /// The meshd.toml that a start took last, for one that finds it broken.
    ACCEPTED_CONFIG = "meshd.toml.accepted",
}

files! {
    /// The node's own keys, and what they signed or were used for. They go when it leaves: it joins again as somebody new,
    /// so that who copied them is nobody.
    ALL_OF_NODE:
    /// The node's WireGuard secret.
    TUNNEL_KEY = "tunnel.key",
    /// The one before, while peers learn of the new one.
    FORMER_TUNNEL_KEY = "tunnel.former",
    /// The first one, from which the flow table's seed comes; none while it is the present one.
    FIRST_TUNNEL_KEY = "tunnel.first",
    /// The node's identity on the control channel.
    IDENTITY_KEY = "identity.key",
    /// What the node last signed of itself.
    RECORD = "record.json",
    /// The latest time that handshakes of the tunnel key have used.
    HANDSHAKE_TIME = "handshake.time",
}

files! {
    /// What goes when the node leaves its mesh.
    ALL_OF_MESH:
    /// The identity that takes the present one's place once the coordinator has confirmed it.
    NEXT_IDENTITY_KEY = "identity.next",
    /// One that a coordinator refused, and may have taken all the same.
    REFUSED_IDENTITY_KEY = "identity.refused",
    /// Which mesh the node belongs to, and as whom.
    ENROLMENT = "enrolment.json",
    /// The last map. If it is torn or lost, the one before stands in for it.
    NETMAP = "netmap.json",
    /// The map before it.
    PREVIOUS_NETMAP = "netmap.previous",
    /// A map that brought the node down three times.
    NETMAP_ASIDE = "netmap.aside",
    /// Peers active lately, and where they answered.
    ACTIVITY = "activity.json",
    /// How often in a row the cached map brought the node down.
    TRIAL = "trial",
    /// How far the coordinator was followed, and the network lock.
    MARK = "mark.json",
    /// The preshared keys.
    PRESHARED_KEYS = "preshared.keys",
    /// How far the mesh follows the switch `preshared`.
    PRESHARED = "preshared.json",
    /// How far the log was followed, and who was admitted.
    ROLL = "roll.json",
    /// When a coordinator was last heard.
    HEARD = "heard",
    /// Which text of the node's services.toml was taken last.
    SERVICES_TAKEN = "services.taken",
}
