//! One writer's dealings with etcd: where its keys are, how long it tries, and what it knows of them.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::base::id::Revision;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::client::{CallError, Client, RANGE};
use super::message::{KeyValue, RangeRequest, RangeResponse};
use crate::store::{Records, StoreError, StoreState, StoreTable};

/// How long a read or a commit goes on trying. A new leader is elected in less.
pub(super) const PATIENCE: Duration = Duration::from_secs(6);
/// The same while etcd is known not to answer, lest everybody waits behind everybody.
const IMPATIENCE: Duration = Duration::from_millis(500);
/// How long to wait after a failure, before the next member is asked.
const PAUSE: Duration = Duration::from_millis(50);
/// Most keys read at once.
const PAGE: i64 = 1000;
/// The oldest versions that do not lose or mix up what they acknowledged, of each line that is maintained.
const OLDEST: [(u32, u32, u32); 2] = [(3, 4, 22), (3, 5, 14)];

/// What `PREFIX/mesh/revision` holds.
#[derive(Serialize, Deserialize)]
struct RevisionRecord {
    revision: u64,
}

/// What we know of the keys below `PREFIX/mesh`.
#[derive(Default)]
pub(super) struct Cache {
    /// All keys, without the prefix.
    pub(super) keys: BTreeMap<String, Vec<u8>>,
    /// The revision of etcd up to which `keys` is true; 0 before anything was read.
    pub(super) at: i64,
    /// The mesh's revision.
    pub(super) revision: Revision,
    /// When, in revisions of etcd, `revision` was altered last.
    pub(super) guard: i64,
}

/// What all tasks of the store share.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) prefix: String,
    /// Where the marks of our commits go.
    pub(super) writer: String,
    pub(super) seen: watch::Sender<StoreState>,
}

impl Session {
    fn key(&self, rest: &str) -> String {
        format!("{}/{rest}", self.prefix)
    }

    /// Returns the key of a record.
    pub(super) fn record_key(&self, table: StoreTable, key: &str) -> String {
        match table {
            StoreTable::Log => self.key(&format!("log/{key}")),
            StoreTable::Meta
            | StoreTable::Services
            | StoreTable::Nodes
            | StoreTable::Vips
            | StoreTable::Tokens
            | StoreTable::Revoked
            | StoreTable::Trust
            | StoreTable::Spent
            | StoreTable::Coordinators
            | StoreTable::Freed => self.key(&format!("mesh/{}", record_name(table, key))),
        }
    }

    /// Returns the key that guards every commit.
    pub(super) fn guard_key(&self) -> String {
        self.key("mesh/revision")
    }

    /// Returns the key of our mark.
    pub(super) fn writer_key(&self) -> String {
        self.key(&format!("mesh/writer/{}", self.writer))
    }

    /// Returns how long to go on trying.
    pub(super) fn patience(&self) -> Duration {
        if self.seen.borrow().error.is_some() { IMPATIENCE } else { PATIENCE }
    }

    /// Notes whether etcd answers, for everybody who would have to wait for it.
    pub(super) fn note(&self, error: Option<&StoreError>) {
        let error = error.map(ToString::to_string);
        self.seen.send_if_modified(|seen| {
            let altered = seen.error != error;
            seen.error = error;
            altered
        });
    }

    /// Tells whoever follows the store of a revision.
    pub(super) fn tell(&self, revision: Revision) {
        self.seen.send_if_modified(|seen| {
            let newer = seen.revision < revision;
            seen.revision = seen.revision.max(revision);
            newer
        });
    }

    /// Refuses members that are known to mix up what they acknowledged.
    pub(super) async fn check_members(&self) -> Result<(), StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let mut failure = None;
        while Instant::now() < deadline {
            let mut answered = false;
            for status in self.client.statuses().await {
                match status {
                    Ok(status) => {
                        answered = true;
                        check_version(&status.version)?;
                        if let Some(alarm) = status.errors.iter().find(|alarm| alarm.contains("CORRUPT")) {
                            let advice = "restore etcd from a snapshot before anything writes to it".into();
                            return Err(self.broken(alarm.clone(), advice));
                        }
                        for alarm in &status.errors {
                            tracing::warn!(%alarm, "a member of etcd raises an alarm");
                        }
                    }
                    Err(error @ CallError::Refused { .. }) => return Err(error.explain("open", self.client.tls)),
                    Err(error) if error.is_hopeless() => return Err(error.explain("open", self.client.tls)),
                    Err(error) => failure = Some(error),
                }
            }
            if answered {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
        Err(failure.map_or_else(ended, |error| error.explain("open", self.client.tls)))
    }

    /// Asks until there is an answer or the time is over; for what may be asked twice.
    pub(super) async fn ask<Q, A>(&self, path: &'static str, request: &Q, deadline: Instant) -> Result<A, CallError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        loop {
            match self.client.call(path, request).await {
                Err(CallError::Lost { .. }) if Instant::now() < deadline => sleep(PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    /// Reads keys.
    pub(super) async fn get(&self, request: RangeRequest, deadline: Instant) -> Result<RangeResponse, StoreError> {
        let asked = self.ask(RANGE, &request, deadline).await;
        let asked = asked.map_err(|error| error.explain("read", self.client.tls));
        self.note(asked.as_ref().err());
        asked
    }

    /// Reads the mesh's revision and when it was written; none in a new store.
    pub(super) async fn guard(&self, deadline: Instant) -> Result<Option<(Revision, i64)>, StoreError> {
        let request = RangeRequest { key: self.guard_key().into(), ..RangeRequest::default() };
        let answer = self.get(request, deadline).await?;
        answer.kvs.first().map(|found| self.revision_of(found)).transpose()
    }

    /// Reads the guard: the mesh's revision, and when it was written.
    pub(super) fn revision_of(&self, found: &KeyValue) -> Result<(Revision, i64), StoreError> {
        let guard: RevisionRecord = serde_json::from_slice(&found.value)
            .map_err(|error| self.broken(error.to_string(), "restore the mesh from a backup".into()))?;
        Ok((Revision(guard.revision), found.mod_revision))
    }

    /// Says that what etcd holds cannot be used.
    pub(super) fn broken(&self, detail: String, advice: String) -> StoreError {
        StoreError::Etcd { doing: "use", at: self.prefix.clone(), detail, advice }
    }

    /// Brings the cache up to date with all that is below `PREFIX/mesh` at one revision of etcd.
    pub(super) async fn refresh(&self, cache: &mut Cache) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.patience();
        loop {
            match self.read_changes(cache, deadline).await {
                // Etcd forgot the revision that we were reading: begin again with the present one.
                Err(StoreError::Etcd { detail, .. })
                    if detail.contains("has been compacted") && Instant::now() < deadline => {}
                outcome => return outcome,
            }
        }
    }

    async fn read_changes(&self, cache: &mut Cache, deadline: Instant) -> Result<(), StoreError> {
        let changed = RangeRequest { min_mod_revision: cache.at + 1, ..RangeRequest::default() };
        let (found, at, count) = self.pages(changed, 0, deadline).await?;
        let mut fresh = BTreeMap::new();
        let mut guard = None;
        for kv in found {
            let key = self.name(&kv)?;
            if key == "revision" {
                guard = Some(self.revision_of(&kv)?);
            }
            fresh.insert(key, kv.value);
        }
        let new = fresh.keys().filter(|key| !cache.keys.contains_key(*key)).count();
        // What is new and what was there cannot be fewer than what is there now: the rest was deleted.
        if cache.keys.len() + new != count {
            let names = RangeRequest { keys_only: true, ..RangeRequest::default() };
            let (found, _, _) = self.pages(names, at, deadline).await?;
            let present: Result<std::collections::BTreeSet<_>, _> = found.iter().map(|kv| self.name(kv)).collect();
            let present = present?;
            cache.keys.retain(|key, _| present.contains(key));
        }
        cache.keys.append(&mut fresh);
        cache.at = at;
        if let Some((revision, altered)) = guard {
            cache.revision = revision;
            cache.guard = altered;
        } else if !cache.keys.contains_key("revision") {
            cache.revision = Revision(0);
            cache.guard = 0;
        }
        Ok(())
    }

    /// Reads all keys below `PREFIX/mesh` at one revision of etcd. Returns that revision, and how many keys there are
    /// in all, those that the request leaves out included.
    async fn pages(
        &self,
        mut request: RangeRequest,
        at: i64,
        deadline: Instant,
    ) -> Result<(Vec<KeyValue>, i64, usize), StoreError> {
        request.key = self.key("mesh/").into();
        // `0` is the byte after `/`.
        request.range_end = self.key("mesh0").into();
        request.limit = PAGE;
        request.revision = at;
        let mut all: Vec<KeyValue> = Vec::new();
        let mut total = None;
        loop {
            let page = self.get(request.clone(), deadline).await?;
            let header = page.header.unwrap_or_default().revision;
            if request.revision == 0 {
                request.revision = header;
            }
            let total = *total.get_or_insert_with(|| usize::try_from(page.count).unwrap_or(0));
            let last = page.kvs.last().map(|kv| kv.key.clone());
            all.extend(page.kvs);
            let Some(mut next) = last.filter(|_| page.more) else { return Ok((all, request.revision, total)) };
            next.push(0);
            request.key = next;
        }
    }

    /// Returns a key without `PREFIX/mesh`.
    fn name(&self, kv: &KeyValue) -> Result<String, StoreError> {
        let text = std::str::from_utf8(&kv.key).ok();
        let rest = text.and_then(|text| text.strip_prefix(&self.prefix)?.strip_prefix("/mesh/"));
        rest.map(str::to_owned).ok_or_else(|| {
            let detail = format!("the key {} is not ours", String::from_utf8_lossy(&kv.key));
            self.broken(detail, "remove it, or set another `prefix` under [etcd]".into())
        })
    }

    /// Returns the records of the cache.
    pub(super) fn records(&self, cache: &Cache) -> Result<Records, StoreError> {
        let mut records = Records { revision: cache.revision, records: BTreeMap::new() };
        for (key, value) in &cache.keys {
            let Some(rest) = key.strip_prefix("record/") else { continue };
            let place = rest.split_once('/').and_then(|(table, key)| {
                let table = StoreTable::ALL.into_iter().find(|known| known.name() == table)?;
                Some((table, key.to_owned()))
            });
            // A table that a newer version added is left alone.
            let Some(place) = place else { continue };
            records.records.insert(place, value.clone());
        }
        Ok(records)
    }
}

/// Returns where a record lies below `PREFIX/mesh`.
pub(super) fn record_name(table: StoreTable, key: &str) -> String {
    format!("record/{}/{key}", table.name())
}

/// Says whether a version is one that keeps what it acknowledged.
pub(super) fn check_version(version: &str) -> Result<(), StoreError> {
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    let found: (u32, u32, u32) = (part(), part(), part());
    let good = match OLDEST.iter().find(|oldest| (oldest.0, oldest.1) == (found.0, found.1)) {
        Some(oldest) => found >= *oldest,
        None => found > (3, 5, 0),
    };
    if good {
        return Ok(());
    }
    Err(StoreError::Etcd {
        doing: "use",
        at: format!("etcd {version}"),
        detail: "versions before 3.4.22, and 3.5.0 to 3.5.13, can lose or mix up what they acknowledged".into(),
        advice: "upgrade etcd to 3.5.14 or newer (of the line 3.4: to 3.4.22 or newer)".into(),
    })
}

/// Says that the store cannot be used any more.
pub(super) fn ended() -> StoreError {
    StoreError::Etcd {
        doing: "use",
        at: "etcd".into(),
        detail: "the store is closed or the machine gives no random numbers".into(),
        advice: "start the coordinator again".into(),
    }
}
