//! The registry on the store that the configuration names: a file of ours, or an etcd.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use mesh_proto::base::id::{IdentityKey, MeshName, Revision};
use mesh_proto::services;
use mesh_proto::trust::signed_record::Epoch;

use crate::base::blocking::blocking;
use crate::base::founded::found;
use crate::base::state_files::{JOURNAL, NAME, RESERVED, STORE};
use crate::config::Config;
use crate::core::earlier_mesh::{refuse_lost, refuse_lost_etcd};
use crate::registry::{OpenError, Registry, RegistrySetup};
use crate::store::journal::Journaled;
use crate::store::{Embedded, Etcd, Marked, RESERVE, Store};

/// Opens the registry on the store that the configuration names, and says where that is.
///
/// # Errors
/// If the store cannot be opened, lost the mesh that was kept in it, or holds what this version does not understand.
pub(crate) async fn open_store(
    config: &Config,
    key: IdentityKey,
    setup: RegistrySetup,
) -> Result<(Registry, PathBuf), OpenError> {
    let file = config.state_dir.join(STORE);
    if config.etcd.is_none() {
        refuse_lost(config)?;
        let store = Journaled::open(Embedded::open(&file)?, &config.state_dir.join(JOURNAL))?;
        let store = store.with_reserve(&config.state_dir.join(RESERVED), RESERVE)?;
        let store = Marked::new(store, &config.state_dir);
        return Ok((marked(Registry::open(Box::new(store), setup)?, config), file));
    }
    let config = config.clone();
    blocking(move || open_etcd(&config, key)).await
}

/// Opens the registry on the etcd that the configuration names, and says where that is. It is waited for, which only
/// blocking threads may do.
///
/// # Errors
/// As `open_store`.
pub(crate) fn open_etcd(config: &Config, key: IdentityKey) -> Result<(Registry, PathBuf), OpenError> {
    let etcd = config.etcd.clone().unwrap_or_default();
    let prefix = etcd.prefix.clone().unwrap_or_else(|| format!("/mesh/{}", name(&config.state_dir)));
    let shown = PathBuf::from(etcd.shown(&prefix));
    let store = Etcd::open(&etcd, &prefix, &key.to_string())?;
    refuse_lost_etcd(config, store.newest()?.unwrap_or_default(), &shown)?;
    let store = Marked::new(store, &config.state_dir);
    Ok((marked(Registry::open(Box::new(store), setup(config))?, config), shown))
}

/// Marks the state directory for what is in the store already.
fn marked(registry: Registry, config: &Config) -> Registry {
    if registry.world().revision > Revision(0) {
        found(&config.state_dir);
    }
    registry
}

/// Returns what the registry needs to know apart from what it stores.
pub(crate) fn setup(config: &Config) -> RegistrySetup {
    RegistrySetup { name: name(&config.state_dir), underlay: underlay(config), parse, epoch: Epoch::default() }
}

/// Reads a stored services.toml, which this version or an earlier one took.
fn parse(text: &str, file: &str) -> Result<services::Services, String> {
    match services::parse_accepted(text, file) {
        Ok(parsed) => Ok(parsed.services),
        Err(diagnostics) => Err(diagnostics.lines().join("; ")),
    }
}

/// Returns our own underlay addresses as far as the configuration says them; connections teach the others.
fn underlay(config: &Config) -> Vec<IpAddr> {
    let public = config.public.iter().filter_map(|address| address.parse::<SocketAddr>().ok());
    let all = config.listen.iter().copied().chain(public).map(|address| address.ip());
    let mut all: Vec<_> = all.filter(|ip| !ip.is_unspecified()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Returns the name given at `init`, for a services.toml that says none.
fn name(state_dir: &Path) -> MeshName {
    let stored = std::fs::read_to_string(state_dir.join(NAME)).ok();
    let stored = stored.and_then(|text| text.trim().parse().ok());
    stored.unwrap_or_else(|| "mesh".parse().expect("`mesh` is a name"))
}
