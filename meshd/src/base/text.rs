//! Sentences and figures that several parts say.

/// What a node that belongs to no mesh is told.
pub(crate) const JOIN_HINT: &str = "make a token with `mesh-coordinator token create --site SITE` on the coordinator, then run `meshd join TOKEN` here";

/// Writes a time in seconds as people say it.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        86400.. => format!("{} d", seconds / 86400),
    }
}
