//! The keys of the grammar: all that a table of a file may say.

/// A table of a services.toml, or one inside of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileTable {
    /// `[mesh]`.
    Mesh,
    /// `[[site]]`.
    Site,
    /// `[[node]]`.
    Node,
    /// `[[service]]`.
    Service,
    /// One of `backends`.
    Backend,
    /// `route`.
    Route,
    /// `health`.
    Health,
    /// `[[allow]]`.
    Allow,
    /// `[[test]]`.
    Test,
    /// `[[serve]]` of a node's file.
    Serve,
}

impl FileTable {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Mesh,
        Self::Site,
        Self::Node,
        Self::Service,
        Self::Backend,
        Self::Route,
        Self::Health,
        Self::Allow,
        Self::Test,
        Self::Serve,
    ];

    /// Returns how messages call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Mesh => "[mesh]",
            Self::Site => "[[site]]",
            Self::Node => "[[node]]",
            Self::Service => "[[service]]",
            Self::Backend => "a backend",
            Self::Route => "`route`",
            Self::Health => "`health`",
            Self::Allow => "[[allow]]",
            Self::Test => "[[test]]",
            Self::Serve => "[[serve]]",
        }
    }

    /// Returns its keys, those included for which nothing is built yet.
    pub fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Mesh => &["name", "default", "domains", "v4", "v6"],
            Self::Site => &["name", "kind", "pods", "locality"],
            Self::Node => &["name", "key", "endpoint", "site"],
            Self::Service => &["name", "namespace", "port", "ports", "backends", "health", "route", "strict"],
            Self::Backend => &["host", "addr", "node", "kubernetes", "name", "weight", "port", "via"],
            Self::Route => &["prefer", "spill_below", "sticky", "max_conn_age", "retry_syn"],
            Self::Health => &["tcp", "http", "grpc", "every", "fall", "rise"],
            Self::Allow => &["from", "to"],
            Self::Test => &["from", "accept", "deny"],
            Self::Serve => &["service", "port", "bind", "health"],
        }
    }
}
