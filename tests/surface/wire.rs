//! The documents of the control channel: what was sent once is read as it was and sent the same way.

use std::fmt::Debug;
use std::path::Path;

use mesh_proto::trust::audit_log::{LogPage, Roll};
use mesh_proto::wire::{
    About, Copied, Countersign, ErrorBody, JoinRequest, JoinResponse, LockStanding, Renewal, Report, ReportResponse,
    WatchEvent,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Words for programs of what failed, and one that a later version may say.
const ERRORS: [&str; 14] = [
    "token",
    "claim",
    "name",
    "site",
    "services",
    "unknown_node",
    "revoked",
    "lock",
    "identity",
    "superseded",
    "malformed",
    "busy",
    "internal",
    "invented",
];

/// Proves it for every document.
pub(crate) fn stays() {
    for name in ["join", "join-oidc"] {
        same::<JoinRequest>(name);
    }
    same::<JoinResponse>("joined");
    same::<Report>("report");
    same::<ReportResponse>("reported");
    same::<Renewal>("renewal");
    same::<About>("about");
    same::<LogPage>("log-page");
    same::<Roll>("roll");
    same::<LockStanding>("lock-standing");
    same::<Countersign>("countersign");
    same::<Copied>("copied");
    for word in ERRORS {
        again::<ErrorBody>(word, &json!({"error": word, "message": "a sentence"}));
    }
    same::<ErrorBody>("refused-record");
    for name in ["snapshot", "delta", "alive", "fenced", "leaving"] {
        same::<WatchEvent>(name);
    }
}

fn same<T: DeserializeOwned + Serialize + Debug>(name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("surface/wire").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    again::<T>(name, &serde_json::from_str(&text).unwrap());
}

fn again<T: DeserializeOwned + Serialize + Debug>(name: &str, recorded: &Value) {
    let read: T =
        serde_json::from_value(recorded.clone()).unwrap_or_else(|error| panic!("{name} is not read: {error}"));
    let sent = serde_json::to_value(&read).unwrap();
    assert_eq!(sent, *recorded, "{name} is sent in another way; {read:?}");
}
