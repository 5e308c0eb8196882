//! The number of each kind of mistake. A number keeps its meaning for ever; a new kind takes a new one.

/// The text is no TOML.
pub(super) const SYNTAX: &str = "MESH0100";
/// The file is larger than `MAX_TEXT`.
pub(super) const TOO_LARGE: &str = "MESH0101";
/// There are more mistakes than are shown.
pub(super) const MORE: &str = "MESH0102";
/// `version` is missing or names a grammar that this program does not know.
pub(super) const VERSION: &str = "MESH0103";
/// A key that its table does not have.
pub(super) const UNKNOWN_KEY: &str = "MESH0104";
/// A table that the file does not have.
pub(super) const UNKNOWN_TABLE: &str = "MESH0105";
/// `[x]` where `[[x]]` is meant, or the other way round.
pub(super) const TABLE_FORM: &str = "MESH0106";
/// A table that belongs in the other file.
pub(super) const OTHER_FILE: &str = "MESH0107";
/// A key that a table needs is missing.
pub(super) const MISSING: &str = "MESH0108";
/// A value of the wrong type.
pub(super) const TYPE: &str = "MESH0109";
/// A word that is reserved and not built yet.
pub(super) const RESERVED: &str = "MESH0110";
/// Two keys that exclude each other, or none of those of which one is needed.
pub(super) const ONE_OF: &str = "MESH0111";

/// A name that is no DNS label.
pub(super) const NAME: &str = "MESH0120";
/// A service or backend named as a word of the grammar.
pub(super) const WORD_AS_NAME: &str = "MESH0121";
/// A port, or a port string, that is none.
pub(super) const PORT: &str = "MESH0122";
/// A duration that is none, or outside its limits.
pub(super) const DURATION: &str = "MESH0123";
/// A prefix that is none, or has host bits.
pub(super) const PREFIX: &str = "MESH0124";
/// A prefix that nobody may claim, or that overlaps the mesh range.
pub(super) const FORBIDDEN: &str = "MESH0125";
/// A mesh range that cannot serve.
pub(super) const RANGE: &str = "MESH0126";
/// An address that is none.
pub(super) const ADDRESS: &str = "MESH0127";
/// A number outside its limits.
pub(super) const LIMITS: &str = "MESH0128";
/// A word that is not among those that may stand here.
pub(super) const CHOICE: &str = "MESH0129";
/// A WireGuard key that is none.
pub(super) const KEY: &str = "MESH0130";
/// A text that cannot stand here, such as an empty locality.
pub(super) const TEXT: &str = "MESH0131";

/// Two services, sites, nodes, ports or backends that are one.
pub(super) const DUPLICATE: &str = "MESH0140";
/// A backend that does not say where it runs, or says it twice.
pub(super) const BACKEND_PLACE: &str = "MESH0141";
/// A pod's address outside the prefixes of every site.
pub(super) const OUTSIDE_SITES: &str = "MESH0142";
/// A service whose backends all have weight 0.
pub(super) const ALL_DRAINED: &str = "MESH0143";
/// A backend with a port of its own in a service with several.
pub(super) const BACKEND_PORT: &str = "MESH0144";
/// A site that is a Kubernetes cluster and has no pods.
pub(super) const NO_PODS: &str = "MESH0145";
/// A domain of the mesh under which strangers have names.
pub(super) const PUBLIC_SUFFIX: &str = "MESH0146";

/// A service that the file does not define.
pub(super) const UNKNOWN_SERVICE: &str = "MESH0150";
/// A site that the file does not define.
pub(super) const UNKNOWN_SITE: &str = "MESH0151";
/// A port that the service does not have.
pub(super) const UNKNOWN_PORT: &str = "MESH0152";
/// A word that is no source.
pub(super) const SOURCE: &str = "MESH0154";
/// A word that is no target.
pub(super) const TARGET: &str = "MESH0155";

/// A `[[test]]` accepts what no rule allows.
pub(super) const NOT_ALLOWED: &str = "MESH0160";
/// A `[[test]]` denies what a rule allows.
pub(super) const ALLOWED: &str = "MESH0161";

/// Says whether a kind of mistake is judged by what the file does *not* say, which cannot be known
/// where a part of it is no TOML.
pub(super) fn needs_whole_file(code: &str) -> bool {
    [
        VERSION,
        MISSING,
        ONE_OF,
        BACKEND_PLACE,
        OUTSIDE_SITES,
        ALL_DRAINED,
        NO_PODS,
        UNKNOWN_SERVICE,
        UNKNOWN_SITE,
        UNKNOWN_PORT,
    ]
    .contains(&code)
}
