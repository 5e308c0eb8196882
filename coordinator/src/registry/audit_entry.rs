//! What the log says of a change: who made it, and what it did, in a word and a sentence.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use mesh_host::sums::sha256;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, NodeName, TunnelKey};
use mesh_proto::trust::join_token::TokenSecret;
use mesh_proto::world::{NodeRecord, World};

use super::change::{Actor, Applied, Change, Vouched};
use super::log::Entry;

/// Most static nodes that one entry admits.
const MAX_STATICS: usize = 4096;

/// What a change is, told before it is decided.
#[derive(Default)]
pub(super) struct AuditEntry {
    kind: &'static str,
    text: String,
    node: Option<NodeName>,
    token: Option<String>,
    identity: Option<IdentityKey>,
    replaces: Option<IdentityKey>,
    secret: Option<TokenSecret>,
}

impl AuditEntry {
    /// Tells of a change.
    pub(super) fn of(change: &Change) -> Self {
        let mut deed = Self::default();
        match change {
            Change::Services { file, text, services: _ } => {
                let hash = HEXLOWER.encode(&sha256(&[text.as_bytes()]));
                deed.kind = "services";
                deed.text = format!("took {file} (sha256 {hash})");
            }
            Change::TokenCreate(spec) => {
                let id = HEXLOWER.encode(&spec.id);
                let seconds = spec.ttl.as_secs();
                deed.kind = "token_create";
                deed.text = format!("made token {id}: site {}, {} uses, {seconds} s", spec.site, spec.uses);
                deed.node.clone_from(&spec.name);
                deed.token = Some(id);
            }
            Change::TokenRevoke { id } => {
                deed.kind = "token_revoke";
                deed.text = format!("revoked token {id}");
                deed.token = Some(id.clone());
            }
            Change::Join { identity, request, observed } => {
                deed.kind = "join";
                deed.text = format!("joined from {observed} with identity {identity}");
                deed.node = Some(request.name.clone());
                deed.token = token_id(&request.token);
                deed.identity = Some(*identity);
                deed.secret = Some(request.secret.clone());
            }
            Change::Vouched { identity, vouched, observed, .. } => {
                let Vouched { trust, subject, node, .. } = vouched;
                deed.kind = "join";
                deed.text = format!("joined from {observed} with identity {identity}; {trust} vouches for {subject}");
                deed.node = Some(node.clone());
                deed.identity = Some(*identity);
            }
            Change::TrustPush { trust, jwks } => {
                let hash = HEXLOWER.encode(&sha256(&[jwks.as_bytes()]));
                deed.kind = "trust_push";
                deed.text = format!("took keys of {trust} (sha256 {hash})");
            }
            Change::Facts { .. } => deed.kind = "report",
            Change::Renew { identity, renewal, .. } => {
                deed.kind = "identity";
                deed.text = format!("changed its identity key from {identity} to {}", renewal.succession.to);
                deed.identity = Some(renewal.succession.to);
                deed.replaces = Some(*identity);
            }
            Change::Restored { epoch, source, since: _ } => {
                deed.kind = "restore";
                deed.text = format!("restored {source}; epoch {epoch}");
            }
            Change::Tend { .. } => deed.kind = "tend",
            Change::Revoke { node } => {
                deed.kind = "revoke";
                deed.text = format!("expelled node {node}");
                deed.node = Some(node.clone());
            }
            Change::Coordinator { key, addresses, .. } => {
                deed.kind = "coordinator";
                deed.text = format!("coordinator {key} serves the mesh at {}", addresses.join(", "));
            }
            Change::Lock(step) => {
                deed.kind = step.kind();
                deed.text = step.text();
                deed.node = step.node().cloned();
            }
            Change::CoordinatorNext { key, next } => {
                deed.kind = "coordinator_next";
                deed.text = format!("coordinator {key} will go on with the key {}", next.key);
            }
            Change::CoordinatorForget { key } => {
                deed.kind = "coordinator_forget";
                deed.text = format!("forgot coordinator {key}");
            }
        }
        deed
    }

    /// Tells of a machine that wanted to join under a name.
    pub(super) fn attempt(name: &NodeName) -> Self {
        Self { kind: "join", node: Some(name.clone()), ..Self::default() }
    }

    /// Says whether a refusal of this is worth a line.
    pub(super) fn is_attempt(&self) -> bool {
        self.kind == "join"
    }

    /// Makes the entry of a change that altered something; none if that was only when a node was heard of.
    pub(super) fn done(self, by: &Actor, applied: &Applied, old: &World, new: &World, now: UnixTime) -> Option<Entry> {
        let node = applied.node.clone().or(self.node);
        let (mut kind, mut text) = (self.kind, self.text);
        if let Some(name) = &node
            && matches!(kind, "join" | "report")
        {
            let known = old.nodes.get(name);
            if kind == "join" && known.is_some_and(|known| known.identity == self.identity) {
                kind = "rejoin";
            }
            if let (Some(old), Some(new)) = (known, new.nodes.get(name)) {
                text = format!("node {name} changed its {}", changed(old, new).join(", "));
            } else {
                text = format!("node {name} {text}");
            }
        }
        if let Some(name) = node.as_ref().filter(|_| kind == "identity") {
            text = format!("node {name} {text}");
        }
        if kind == "tend" {
            let gone: Vec<_> =
                old.nodes.keys().filter(|name| !new.nodes.contains_key(*name)).map(|n| n.as_str()).collect();
            if gone.is_empty() {
                return None;
            }
            text = format!("let ephemeral nodes vanish, not heard of for 10 minutes: {}", gone.join(", "));
        }
        let identity = self.identity.filter(|_| matches!(kind, "join" | "identity"));
        let statics = if kind == "services" { admitted(old, new) } else { Vec::new() };
        let kind = kind.to_owned();
        Some(Entry {
            identity,
            replaces: self.replaces,
            statics,
            ..Entry::new(now, by.to_string(), kind, text, node, self.token)
        })
    }

    /// Returns the token that somebody wanted to join with.
    pub(super) fn presented(&self) -> Option<(&str, &TokenSecret)> {
        self.token.as_deref().zip(self.secret.as_ref())
    }

    /// Makes the entry of a change that was refused, and of others since the last such entry that have none.
    pub(super) fn refused(self, by: &Actor, why: &str, more: u64, now: UnixTime) -> Entry {
        let name = self.node.as_ref().map_or_else(|| "a machine".to_owned(), ToString::to_string);
        let mut text = format!("refused to let {name} join: {why}");
        if more > 0 {
            text.push_str(&format!("; {more} refusals before it are counted here only"));
        }
        let kind = format!("{}_refused", self.kind);
        Entry::new(now, by.to_string(), kind, text, self.node, self.token)
    }
}

/// Returns what a stranger calls a token, if it may be the name of one.
fn token_id(text: &str) -> Option<String> {
    let good = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| text.to_owned())
}

/// Returns the keys of static nodes that one world has and another has not.
fn admitted(old: &World, new: &World) -> Vec<TunnelKey> {
    let known: BTreeSet<_> = old.statics().collect();
    new.statics().filter(|key| !known.contains(key)).take(MAX_STATICS).collect()
}

/// Names the parts in which two records of a node differ.
fn changed(old: &NodeRecord, new: &NodeRecord) -> Vec<&'static str> {
    let (was, is) = (&old.facts, &new.facts);
    let parts = [
        ("tunnel keys", was.lanes != is.lanes),
        ("endpoints", was.endpoints != is.endpoints),
        ("pod blocks", was.pods != is.pods || old.blocks != new.blocks),
        ("serve offers", was.serve != is.serve),
        ("version", was.software != is.software),
        ("observed address", old.observed != new.observed),
        ("grants", old.grants != new.grants),
    ];
    let mut found: Vec<_> = parts.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part).collect();
    if found.is_empty() {
        found.push("facts");
    }
    found
}

/// Most lines on refusals in 10 minutes: strangers alone need a month to turn over a full log.
const REFUSALS: (u64, u32) = (600, 10);
/// Most lines on one node's reports in an hour: a member alone needs half a year.
const REPORTS: (u64, u32) = (3600, 10);

/// Counts lines in a window of seconds, so that nobody fills the log.
#[derive(Debug, Default)]
struct Room {
    since: UnixTime,
    lines: u32,
    untold: u64,
}

impl Room {
    /// Returns how many went untold, if there is room for a line.
    fn take(&mut self, (window, most): (u64, u32), now: UnixTime) -> Option<u64> {
        if now.0.abs_diff(self.since.0) >= window {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines >= most {
            self.untold += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

/// What was told of late by whom others could be made to lose the log: strangers as a whole, and each member.
#[derive(Debug, Default)]
pub(super) struct LogQuota {
    refusals: Room,
    /// Never more than one for each member, and one.
    reports: BTreeMap<NodeName, Room>,
}

impl LogQuota {
    /// Returns how many refusals went untold, if there is room for a line.
    pub(super) fn refusal(&mut self, now: UnixTime) -> Option<u64> {
        self.refusals.take(REFUSALS, now)
    }

    /// Lets an entry pass if there is room for it, with the count of those before it that did not.
    pub(super) fn admit(&mut self, mut entry: Entry, world: &World) -> Option<Entry> {
        let Some(name) = entry.node.as_ref().filter(|_| matches!(&*entry.kind, "report" | "rejoin")) else {
            return Some(entry);
        };
        if self.reports.len() > world.nodes.len() {
            self.reports.retain(|name, _| world.nodes.contains_key(name));
        }
        let more = self.reports.entry(name.clone()).or_default().take(REPORTS, entry.at)?;
        if more > 0 {
            entry.text.push_str(&format!("; {more} changes before it are counted here only"));
        }
        Some(entry)
    }
}
