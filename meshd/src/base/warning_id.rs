//! The words by which programs know the warnings of `meshd status`: one for each place that makes some.

/// What a warning is about; its word stays the same, whatever the sentence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WarningId {
    /// The machine belongs to no mesh.
    NotJoined,
    /// Something of the host stands in the way.
    Host,
    /// A guard is not in force.
    Guards,
    /// Something that is kept set in the kernel cannot be put back.
    Upkeep,
    /// The node's services.toml is wrong.
    ServicesFile,
    /// A word of the node's services.toml does nothing, or other than it seems.
    ServicesWords,
    /// There is no control channel.
    NoCoordinator,
    /// The coordinator does not know this node, or revoked it.
    Disowned,
    /// The coordinator is reached at an address that it does not name.
    CoordinatorAddress,
    /// The flow table loses flows.
    FlowsFull,
    /// The flow table is nearly full.
    FlowsNearlyFull,
    /// A peer does not answer.
    PeerSilent,
    /// The log of operations is not what it should be.
    LogAlarm,
    /// The coordinator refused what this node says of itself.
    FactsRefused,
    /// This node refused something of its map.
    MapRefused,
    /// The state directory did not take something.
    Unstored,
    /// The file of the flow table is not written.
    FlowFile,
    /// A lane died.
    LaneDeath,
    /// Large packets vanish on the way to a peer.
    NarrowWay,
    /// Lines of the daemon's own log were lost.
    LogLines,
    /// A change of how this node stands to preshared keys is not at its end.
    Preshared,
    /// The coordinator warns of something that concerns this node.
    Mesh,
    /// The cached map could not be used as it was.
    Cache,
    /// Clocks differ.
    Clock,
    /// The clock is behind the time that handshakes used.
    HandshakeClock,
    /// Names are not answered.
    Dns,
    /// A change of the identity key does not go on.
    Identity,
    /// A change of the tunnel keys does not go on.
    Keys,
    /// No coordinator was heard for longer than `max_offline`.
    MaxOffline,
    /// No coordinator was heard for half of `max_offline`.
    HalfOffline,
    /// meshd.toml is wrong.
    Settings,
    /// No verb reaches the daemon.
    Socket,
    /// The enrolment cannot be read.
    Enrolment,
    /// The mesh could not be left.
    Leave,
    /// Metrics are not served.
    Metrics,
    /// A stream outside of the tunnel is not carried.
    Splice,
    /// The node is called otherwise in the mesh than its meshd.toml says.
    Name,
}

impl WarningId {
    /// All of them.
    pub const ALL: [Self; 37] = [
        Self::NotJoined,
        Self::Host,
        Self::Guards,
        Self::Upkeep,
        Self::ServicesFile,
        Self::ServicesWords,
        Self::NoCoordinator,
        Self::Disowned,
        Self::CoordinatorAddress,
        Self::FlowsFull,
        Self::FlowsNearlyFull,
        Self::PeerSilent,
        Self::LogAlarm,
        Self::FactsRefused,
        Self::MapRefused,
        Self::Unstored,
        Self::FlowFile,
        Self::LaneDeath,
        Self::NarrowWay,
        Self::LogLines,
        Self::Preshared,
        Self::Mesh,
        Self::Cache,
        Self::Clock,
        Self::HandshakeClock,
        Self::Dns,
        Self::Identity,
        Self::Keys,
        Self::MaxOffline,
        Self::HalfOffline,
        Self::Settings,
        Self::Socket,
        Self::Enrolment,
        Self::Leave,
        Self::Metrics,
        Self::Splice,
        Self::Name,
    ];

    /// Returns its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotJoined => "not-joined",
            Self::Host => "host",
            Self::Guards => "guards",
            Self::Upkeep => "upkeep",
            Self::ServicesFile => "services-file",
            Self::ServicesWords => "services-words",
            Self::NoCoordinator => "no-coordinator",
            Self::Disowned => "disowned",
            Self::CoordinatorAddress => "coordinator-address",
            Self::FlowsFull => "flows-full",
            Self::FlowsNearlyFull => "flows-nearly-full",
            Self::PeerSilent => "peer-silent",
            Self::LogAlarm => "log-alarm",
            Self::FactsRefused => "facts-refused",
            Self::MapRefused => "map-refused",
            Self::Unstored => "unstored",
            Self::FlowFile => "flow-file",
            Self::LaneDeath => "lane-death",
            Self::NarrowWay => "narrow-way",
            Self::LogLines => "log-lines",
            Self::Preshared => "preshared",
            Self::Mesh => "mesh",
            Self::Cache => "cache",
            Self::Clock => "clock",
            Self::HandshakeClock => "handshake-clock",
            Self::Dns => "dns",
            Self::Identity => "identity",
            Self::Keys => "keys",
            Self::MaxOffline => "max-offline",
            Self::HalfOffline => "half-offline",
            Self::Settings => "settings",
            Self::Socket => "socket",
            Self::Enrolment => "enrolment",
            Self::Leave => "leave",
            Self::Metrics => "metrics",
            Self::Splice => "splice",
            Self::Name => "name",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_warning_has_a_word_of_its_own() {
        let ids: BTreeSet<WarningId> = WarningId::ALL.into();
        let words: BTreeSet<&str> = WarningId::ALL.iter().map(|id| id.word()).collect();
        assert_eq!((ids.len(), words.len()), (WarningId::ALL.len(), WarningId::ALL.len()));
        // The last one stands for "there is none that the list leaves out".
        assert_eq!(WarningId::Name as usize + 1, WarningId::ALL.len());
        let plain = |word: &str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        assert!(words.iter().all(|word| plain(word)), "{words:?}");
    }
}
