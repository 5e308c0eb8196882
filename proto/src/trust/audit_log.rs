//! The log of operations as nodes see it: a chain of hashes of which each knows the end, and they compare.
//!
//! ```text
//!   coordinator ─ head (number, hash) ─▶ node ─ the same, inside the tunnel ─▶ its peers
//!               ◀─ entries after N ───── Witness: each links to the one before, and admits whom the map shows
//! ```
//! Whoever has the coordinator can add to the log, but not alter what nodes have seen of it, show different nodes
//! different logs, or add a node without an entry, unseen. An identity that an entry expels stays so at every node that
//! read it, whatever later entries, rolls and epochs say: a machine that may come back gets a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::base::clock::Timestamp;
use crate::base::id::{IdentityKey, NodeName, Revision, TunnelKey, text_serde};
use crate::trust::network_lock::Subject;

/// Entries whose hashes are remembered, for peers that are behind.
const KEPT: usize = 4096;
/// Most peers whose heads are remembered because they lie ahead of ours.
const MAX_CLAIMS: usize = 1024;
/// Most revoked identities in a roll, and that a node remembers.
pub const MAX_EXPELLED: usize = 16_384;
/// Most warnings that are kept.
const MAX_ALARMS: usize = 32;
/// How long a peer may know more of the log than the coordinator tells us.
const AHEAD: Duration = Duration::from_secs(60);
/// How long a peer may be in the map without an entry: a revocation may be on its way.
const UNEXPLAINED: Duration = Duration::from_secs(10);

/// The hash of an entry and all before it, from the hash of those before and the entry's bytes.
pub type ChainHash = fn(&LogHash, &[u8]) -> LogHash;

/// The SHA-256 of an entry and all before it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct LogHash(pub [u8; 32]);

impl Display for LogHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for LogHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl FromStr for LogHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or("a hash has 64 hexadecimal digits")
    }
}
text_serde!(LogHash);

/// A place in the log: an entry's number and its hash. The log begins at number 0 with a hash of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogHead {
    /// The number of the entry, from 1; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: LogHash,
}

/// A place in the log of an epoch, as a coordinator tells it to nodes and nodes tell each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogPosition {
    /// The number of the epoch.
    pub epoch: u64,
    /// The last entry.
    pub head: LogHead,
}

impl LogPosition {
    /// Bytes that it takes inside the tunnel.
    pub const BYTES: usize = 48;

    /// Writes it for the tunnel.
    pub fn write(&self, out: &mut [u8; Self::BYTES]) {
        out[..8].copy_from_slice(&self.epoch.to_be_bytes());
        out[8..16].copy_from_slice(&self.head.seq.to_be_bytes());
        out[16..].copy_from_slice(&self.head.hash.0);
    }

    /// Reads what came through the tunnel; `None` if the sender knows no head.
    pub fn read(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let mut hash = LogHash::default();
        hash.0.copy_from_slice(&bytes[16..]);
        let told = Self { epoch: number(0), head: LogHead { seq: number(8), hash } };
        (told.head.seq > 0).then_some(told)
    }
}

/// An entry as it is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawEntry {
    /// The hash of it and all before it.
    pub hash: LogHash,
    /// Its text, byte for byte.
    pub body: String,
}

/// Entries of the log, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// The newest entry.
    pub told: LogPosition,
    /// Those after the number that was asked for, as many as fit; the oldest that are kept, if that one is gone.
    pub entries: Vec<RawEntry>,
}

/// Who belongs to the mesh at a place in the log, from which a node begins to follow it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// The place.
    pub told: LogPosition,
    /// The revision that it led to.
    pub revision: Revision,
    /// The keys of all members.
    pub members: BTreeSet<IdentityKey>,
    /// The tunnel keys of static nodes, which have no other; none from an older version, which did not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statics: Option<BTreeSet<TunnelKey>>,
    /// Keys of those who were expelled for good; at most `MAX_EXPELLED`, of a coordinator the newest.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub expelled: BTreeSet<IdentityKey>,
}

impl Roll {
    /// Says whether somebody with this key was admitted.
    pub fn admits(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Identity(key) => self.members.contains(key),
            Subject::Tunnel(key) => self.statics.as_ref().is_none_or(|statics| statics.contains(key)),
        }
    }

    /// Returns how many are in it that another one does not know.
    fn strangers(&self, before: &Self) -> usize {
        let statics = self.statics.iter().zip(&before.statics).map(|(now, before)| now.difference(before).count());
        self.members.difference(&before.members).count() + statics.sum::<usize>()
    }

    /// Takes keys out for good. Says whether there was room to remember all: those who are known stay so.
    fn expel(&mut self, keys: impl IntoIterator<Item = IdentityKey>) -> bool {
        let mut has_room = true;
        for key in keys {
            self.members.remove(&key);
            let fits = self.expelled.len() < MAX_EXPELLED || self.expelled.contains(&key);
            if fits {
                self.expelled.insert(key);
            }
            has_room &= fits;
        }
        has_room
    }
}

/// What a node has to do to follow the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// Ask for the roll, and begin there.
    Begin,
    /// Ask for the entries after this one.
    Read(u64),
}

/// What of an entry a witness looks at.
#[derive(Deserialize)]
struct Body {
    seq: u64,
    to: Revision,
    identity: Option<IdentityKey>,
    /// The former key of a member that goes on with `identity`.
    replaces: Option<IdentityKey>,
    #[serde(default)]
    statics: Vec<TunnelKey>,
    #[serde(default)]
    expels: Vec<IdentityKey>,
}

/// Follows the log, and warns when it is not what it should be.
#[derive(Debug, Default)]
pub struct LogWitness {
    /// How far the log was followed, and who was admitted; none before the first roll.
    roll: Option<Roll>,
    /// Hashes of entries that we read, or were told of by the coordinator.
    hashes: BTreeMap<u64, LogHash>,
    /// What peers told that lies ahead of us, and since when the coordinator knows less.
    claims: BTreeMap<NodeName, (LogPosition, Option<Timestamp>)>,
    /// Peers without an entry, and since when.
    unexplained: BTreeMap<Subject, Timestamp>,
    alarms: Vec<String>,
    /// What was warned of: a member that lies leaves room for others.
    topics: BTreeSet<String>,
}

impl LogWitness {
    /// Goes on from where it was followed to.
    pub fn new(roll: Option<Roll>) -> Self {
        let hashes = roll.iter().map(|roll| (roll.told.head.seq, roll.told.head.hash)).collect();
        Self { roll, hashes, ..Self::default() }
    }

    /// Returns how far the log was followed.
    pub fn roll(&self) -> Option<&Roll> {
        self.roll.as_ref()
    }

    /// Returns what the operator has to know, in sentences, the oldest first; at most 32.
    pub fn alarms(&self) -> &[String] {
        &self.alarms
    }

    /// Takes note of what the coordinator says is the newest entry.
    pub fn coordinator_says(&mut self, told: LogPosition, now: Timestamp) -> Next {
        let Some(at) = self.roll.as_ref().map(|roll| roll.told).filter(|at| at.epoch >= told.epoch) else {
            return Next::Begin;
        };
        if at.epoch > told.epoch {
            return Next::Nothing;
        }
        self.compare(told, "the coordinator");
        self.knows(told.head);
        self.check_claims();
        let ahead: Vec<_> = self.claims.keys().cloned().collect();
        for name in ahead {
            let Some((claim, since)) = self.claims.get_mut(&name) else { continue };
            let hidden = (claim.epoch, claim.head.seq) > (told.epoch, told.head.seq);
            *since = if hidden { Some(since.unwrap_or(now)) } else { None };
            if since.is_some_and(|since| now.since(since) > AHEAD) {
                let (there, here) = (claim.head.seq, told.head.seq);
                let sentence = format!(
                    "node `{name}` was told of entry {there} of the log in epoch {}, and this node of {here} in epoch {} and no more: the coordinator may show nodes different meshes; compare `mesh-coordinator log` with `meshd status` on both",
                    claim.epoch, told.epoch
                );
                self.alarm(format!("ahead {name}"), sentence);
            }
        }
        if told.head.seq > at.head.seq { Next::Read(at.head.seq) } else { Next::Nothing }
    }

    /// Takes note of what a peer says is the newest entry.
    pub fn peer_says(&mut self, peer: &NodeName, told: LogPosition) {
        let Some(at) = self.roll.as_ref().map(|roll| roll.told).filter(|at| at.epoch <= told.epoch) else { return };
        let is_known = told.head.seq <= at.head.seq || self.hashes.contains_key(&told.head.seq);
        if told.epoch == at.epoch && is_known {
            self.claims.remove(peer);
            self.compare(told, &format!("node `{peer}`"));
        } else if self.claims.contains_key(peer) || self.claims.len() < MAX_CLAIMS {
            let since = self.claims.get(peer).and_then(|(_, since)| *since);
            self.claims.insert(peer.clone(), (told, since));
        }
    }

    /// Begins at a roll: the first one, one after a restore, or one beyond what the log still holds.
    pub fn begin(&mut self, mut roll: Roll) {
        let told = std::mem::take(&mut roll.expelled);
        let before = self.roll.take();
        if let Some(before) = &before {
            roll.expelled.clone_from(&before.expelled);
            // Whoever has the coordinator does not make us forget them.
            roll.statics = roll.statics.or_else(|| before.statics.clone());
        }
        let all = roll.members.len();
        roll.members.retain(|key| !roll.expelled.contains(key));
        let back = all - roll.members.len();
        self.expel(&mut roll, told);
        if back > 0 {
            self.alarm(format!("back in the roll {}", roll.told.epoch), format!(
                "{back} nodes are members again that were revoked, because of a restore, or somebody has the coordinator: this node does not talk to them; revoke them again (mesh-coordinator nodes, mesh-coordinator revoke NODE), and let whoever may come back run `meshd leave` and join anew"
            ));
        }
        if let Some(before) = before {
            let strangers = roll.strangers(&before);
            if strangers > 0 {
                self.alarm(format!("roll {}", roll.told.epoch), format!(
                    "{strangers} nodes were admitted in a part of the log that this node cannot check any more, because of a restore or a long absence; look at `mesh-coordinator log`"
                ));
            }
        }
        let head = roll.told.head;
        self.hashes = [(head.seq, head.hash)].into();
        self.claims.clear();
        self.roll = Some(roll);
    }

    /// Follows to the entries of a page. Says what is to be asked for next.
    pub fn read(&mut self, page: &LogPage, link: ChainHash) -> Next {
        let Some(mut roll) = self.roll.take_if(|roll| roll.told.epoch == page.told.epoch) else { return Next::Begin };
        let mut next = Next::Nothing;
        for RawEntry { hash, body } in &page.entries {
            let at = roll.told.head;
            let entry: Option<Body> = serde_json::from_str(body).ok();
            let Some(entry) = entry.filter(|entry| entry.seq > at.seq) else { continue };
            if entry.seq > at.seq + 1 {
                next = Next::Begin;
                break;
            }
            if link(&at.hash, body.as_bytes()) != *hash {
                self.alarm("altered".into(), format!(
                    "entry {} of the log does not follow from what this node has seen before it: the coordinator's log was altered; compare `mesh-coordinator log` with a backup",
                    entry.seq
                ));
                break;
            }
            roll.told.head = LogHead { seq: entry.seq, hash: *hash };
            roll.revision = roll.revision.max(entry.to);
            match entry.identity.filter(|key| roll.expelled.contains(key)) {
                Some(key) => self.alarm(format!("back in the log {key}"), format!(
                    "entry {} of the log admits the identity {key}, which was revoked before: no coordinator in order does that, and this node does not talk to it; look who has the coordinator, revoke that node again, and if it may come back, run `meshd leave` there and join anew",
                    entry.seq
                )),
                None => roll.members.extend(entry.identity),
            }
            if let Some(former) = entry.replaces {
                roll.members.remove(&former);
            }
            if let Some(statics) = &mut roll.statics {
                statics.extend(entry.statics);
            }
            self.expel(&mut roll, entry.expels);
            self.compare(LogPosition { head: roll.told.head, ..page.told }, "the coordinator");
            self.knows(roll.told.head);
            next = if entry.seq < page.told.head.seq { Next::Read(entry.seq) } else { Next::Nothing };
        }
        self.roll = Some(roll);
        self.compare(page.told, "the coordinator");
        self.check_claims();
        next
    }

    /// Looks whether each of these peers of a map of a revision was admitted by an entry, or before we began.
    pub fn explain<'a>(
        &mut self,
        peers: impl Iterator<Item = (&'a NodeName, Subject)>,
        (epoch, revision): (u64, Revision),
        now: Timestamp,
    ) {
        let Some(roll) = &self.roll else { return };
        let is_read = roll.told.epoch == epoch && roll.revision >= revision;
        let is_expelled = |subject: &Subject| matches!(subject, Subject::Identity(key) if roll.expelled.contains(key));
        let strangers = peers.filter(|(_, subject)| !roll.admits(subject));
        let strangers: Vec<_> = strangers.map(|(name, subject)| (name, subject, is_expelled(&subject))).collect();
        self.unexplained.retain(|known, _| strangers.iter().any(|(_, subject, _)| subject == known));
        for (name, subject, is_expelled) in strangers.into_iter().filter(|_| is_read) {
            let since = *self.unexplained.entry(subject).or_insert(now);
            if now.since(since) >= UNEXPLAINED {
                let what = match is_expelled {
                    true => "was revoked: somebody brought it back",
                    false => "is not admitted by any entry of the log: somebody added it without a trace",
                };
                self.alarm(format!("unexplained {subject}"), format!(
                    "node `{name}` is in the map, but its {subject} {what}; run `mesh-coordinator revoke {name}`, and look who has the coordinator"
                ));
            }
        }
    }

    /// Takes keys out of a roll for good, as many as there is room for.
    fn expel(&mut self, roll: &mut Roll, keys: impl IntoIterator<Item = IdentityKey>) {
        if !roll.expel(keys) {
            self.alarm("full".into(), format!(
                "more than {MAX_EXPELLED} identities were revoked: this node remembers that many and takes the coordinator's word for the rest; `meshd leave` and joining again begins with the newest"
            ));
        }
    }

    /// Remembers the hash of an entry: the first that we were told.
    fn knows(&mut self, head: LogHead) {
        self.hashes.entry(head.seq).or_insert(head.hash);
        if self.hashes.len() > KEPT {
            self.hashes.pop_first();
        }
    }

    /// Compares what peers said that lay ahead of us, as far as we have come there.
    fn check_claims(&mut self) {
        for (peer, (claim, since)) in std::mem::take(&mut self.claims) {
            self.peer_says(&peer, claim);
            if let Some((_, known)) = self.claims.get_mut(&peer) {
                *known = since;
            }
        }
    }

    /// Compares what somebody says with what we have seen.
    fn compare(&mut self, told: LogPosition, who: &str) {
        let here = self.hashes.get(&told.head.seq).copied();
        if let Some(here) = here.filter(|here| *here != told.head.hash) {
            let (seq, there) = (told.head.seq, told.head.hash);
            self.alarm(format!("fork {who}"), format!(
                "the log has two histories: entry {seq} is {here} here, and {there} by {who}. Somebody shows nodes different meshes; compare `mesh-coordinator log` with both, and with a backup"
            ));
        }
    }

    /// Warns of something once.
    fn alarm(&mut self, topic: String, sentence: String) {
        if self.alarms.len() < MAX_ALARMS && self.topics.insert(topic) {
            self.alarms.push(sentence);
        }
    }
}

#[cfg(test)]
mod tests;
