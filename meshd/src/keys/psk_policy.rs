//! What a node asks of its peers about preshared keys.

/// Whether tunnels have preshared keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PskMode {
    /// Plain WireGuard with everybody.
    Off,
    /// It has a key with who calls for one, and with all others speaks plain WireGuard.
    Accept,
    /// The same, and it calls for keys itself.
    Offer,
    /// Nothing passes without a key between it and a peer that names an agreement key.
    #[default]
    Require,
}

impl PskMode {
    /// Says whether a peer that names an agreement key is spoken to before there is a key.
    pub(crate) fn is_lenient(self) -> bool {
        match self {
            Self::Accept | Self::Offer => true,
            Self::Off | Self::Require => false,
        }
    }

    /// Says whether it calls such a peer.
    pub(crate) fn calls(self) -> bool {
        match self {
            Self::Offer | Self::Require => true,
            Self::Off | Self::Accept => false,
        }
    }

    /// Returns the word of the log, which operators know.
    pub(crate) fn logged(self) -> &'static str {
        match self {
            Self::Off => "Plain",
            Self::Accept => "Waits",
            Self::Offer => "Overlaps",
            Self::Require => "Strict",
        }
    }
}
