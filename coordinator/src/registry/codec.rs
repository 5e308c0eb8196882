//! How a state is stored: one JSON record for each node, VIP, token and resting address, and what differs between
//! two states.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use mesh_proto::base::id::MeshName;
use mesh_proto::trust::signed_record::Epoch;
use mesh_proto::world::World;
use mesh_proto::world::allocate::Pool;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::change::RegistrySetup;
use super::log::Ends;
use super::open_error::OpenError;
use super::state::{Accepted, State, mesh};
use crate::store::{Records, StoreTable, Write};

/// The version of the records; a coordinator refuses to open a newer one.
const FORMAT: u32 = 1;

/// Reads a state; the one before anything happened from an empty store.
pub(super) fn read(records: &Records, setup: &RegistrySetup) -> Result<State, OpenError> {
    let format: Option<u32> = single(records, StoreTable::Meta, "format")?;
    if let Some(format) = format.filter(|&format| format > FORMAT) {
        let detail = format!("its format is {format}, this version reads {FORMAT}");
        return Err(broken(StoreTable::Meta, "format", detail));
    }
    let accepted: Option<Accepted> = single(records, StoreTable::Services, "accepted")?;
    let stored_name: Option<MeshName> = single(records, StoreTable::Meta, "name")?;
    let name = stored_name.as_ref().unwrap_or(&setup.name);
    let mut world = World::new(name.clone());
    world.revision = records.revision;
    let epoch = single(records, StoreTable::Meta, "epoch")?.unwrap_or(1);
    let signature = setup.epoch.signature.filter(|_| setup.epoch.number == epoch);
    world.epoch = Epoch { number: epoch, signature };
    if let Some(accepted) = &accepted {
        let services = (setup.parse)(&accepted.text, &accepted.file);
        let services = services.map_err(OpenError::Services)?;
        world.mesh = mesh(&services, name);
        world.services = Arc::new(services);
        world.file = accepted.file.as_str().into();
    }
    world.mesh.lock = single(records, StoreTable::Meta, "lock")?;
    for (name, record) in table(records, StoreTable::Nodes)? {
        world.insert_node(name, record);
    }
    world.vips = Arc::new(table(records, StoreTable::Vips)?);
    let mut pool: Pool = single(records, StoreTable::Meta, "pool")?.unwrap_or_default();
    let is_pool_whole = !pool.freed().is_empty();
    pool.adopt(table::<Ipv4Net, _>(records, StoreTable::Freed)?.into_values());
    world.pool = Arc::new(pool);
    let log: Ends = single(records, StoreTable::Meta, "log")?.unwrap_or_default();
    world.head = log.head;
    let mut state = State {
        world: Arc::new(world),
        tokens: Arc::new(table(records, StoreTable::Tokens)?),
        revoked: Arc::new(table(records, StoreTable::Revoked)?),
        name: stored_name,
        accepted: accepted.map(Arc::new),
        pushed: Arc::new(table(records, StoreTable::Trust)?),
        spent: Arc::new(table(records, StoreTable::Spent)?),
        coordinators: Arc::new(table(records, StoreTable::Coordinators)?),
        log,
        epoch,
        is_pool_whole,
    };
    state.tell_coordinators();
    Ok(state)
}

/// Returns the writes that lead from one state to another; none if they are alike.
pub(super) fn differences(old: &State, new: &State) -> Result<Vec<Write>, String> {
    let mut writes = Writes::default();
    writes.map(StoreTable::Nodes, &old.world.nodes, &new.world.nodes)?;
    writes.map(StoreTable::Vips, &old.world.vips, &new.world.vips)?;
    writes.map(StoreTable::Tokens, &old.tokens, &new.tokens)?;
    writes.map(StoreTable::Revoked, &old.revoked, &new.revoked)?;
    writes.map(StoreTable::Trust, &old.pushed, &new.pushed)?;
    writes.map(StoreTable::Spent, &old.spent, &new.spent)?;
    writes.map(StoreTable::Coordinators, &old.coordinators, &new.coordinators)?;
    let (old_file, new_file) = (old.accepted.as_ref(), new.accepted.as_ref());
    writes.value(StoreTable::Services, "accepted", old_file, new_file)?;
    writes.value(StoreTable::Meta, "name", old.name.as_ref(), new.name.as_ref())?;
    let (old_pool, new_pool) = (&old.world.pool, &new.world.pool);
    if old_pool != new_pool {
        let (stored, pool) = (old_pool.without_freed(), new_pool.without_freed());
        writes.value(StoreTable::Meta, "pool", Some(&stored).filter(|_| !old.is_pool_whole), Some(&pool))?;
        // What an earlier version kept as one list is written apart once.
        let stored = if old.is_pool_whole { &BTreeMap::new() } else { old_pool.freed() };
        writes.entries(StoreTable::Freed, stored, new_pool.freed())?;
    }
    writes.value(StoreTable::Meta, "lock", old.world.mesh.lock.as_ref(), new.world.mesh.lock.as_ref())?;
    writes.value(StoreTable::Meta, "epoch", Some(&old.epoch), Some(&new.epoch))?;
    if !writes.0.is_empty() && old.world.revision.0 == 0 {
        writes.value(StoreTable::Meta, "format", None, Some(&FORMAT))?;
    }
    Ok(writes.0)
}

/// Returns the write that keeps where the log begins and ends.
pub(super) fn ends(ends: &Ends) -> Result<Write, String> {
    let value = serde_json::to_vec(ends).map_err(|error| format!("meta/log: {error}"))?;
    Ok(Write { table: StoreTable::Meta, key: "log".into(), value: Some(value) })
}

#[derive(Default)]
struct Writes(Vec<Write>);

impl Writes {
    fn map<K: Ord + Display, V: PartialEq + Serialize>(
        &mut self,
        table: StoreTable,
        old: &Arc<BTreeMap<K, V>>,
        new: &Arc<BTreeMap<K, V>>,
    ) -> Result<(), String> {
        if Arc::ptr_eq(old, new) { Ok(()) } else { self.entries(table, old, new) }
    }

    fn entries<K: Ord + Display, V: PartialEq + Serialize>(
        &mut self,
        table: StoreTable,
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
    ) -> Result<(), String> {
        for (key, value) in new {
            self.value(table, key, old.get(key), Some(value))?;
        }
        for key in old.keys().filter(|key| !new.contains_key(key)) {
            let key = key.to_string();
            let value = None;
            self.0.push(Write { table, key, value });
        }
        Ok(())
    }

    fn value<V: PartialEq + Serialize>(
        &mut self,
        table: StoreTable,
        key: impl Display,
        old: Option<&V>,
        new: Option<&V>,
    ) -> Result<(), String> {
        if old == new {
            return Ok(());
        }
        let key = key.to_string();
        let value = new.map(serde_json::to_vec).transpose();
        let value = value.map_err(|error| format!("{}/{key}: {error}", table.name()))?;
        self.0.push(Write { table, key, value });
        Ok(())
    }
}

fn single<T: DeserializeOwned>(records: &Records, table: StoreTable, key: &str) -> Result<Option<T>, OpenError> {
    let bytes = records.records.get(&(table, key.to_owned()));
    let value = bytes.map(|bytes| serde_json::from_slice(bytes)).transpose();
    value.map_err(|error| broken(table, key, error))
}

fn table<K, V>(records: &Records, table: StoreTable) -> Result<BTreeMap<K, V>, OpenError>
where
    K: FromStr<Err: Display> + Ord,
    V: DeserializeOwned,
{
    let rows = records.records.iter().filter(|((t, _), _)| *t == table);
    let read = |((_, key), bytes): (&(StoreTable, String), &Vec<u8>)| {
        let name = key.parse::<K>().map_err(|error| broken(table, key, error))?;
        let value = serde_json::from_slice(bytes).map_err(|error| broken(table, key, error))?;
        Ok((name, value))
    };
    rows.map(read).collect()
}

fn broken(table: StoreTable, key: &str, detail: impl Display) -> OpenError {
    OpenError::Record { table: table.name(), key: key.to_owned(), detail: detail.to_string() }
}
