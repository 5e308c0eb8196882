//! The registry on the store that the configuration names: a file of ours, or an etcd.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use mesh_proto::base::id::{IdentityKey, MeshName};
use mesh_proto::services;
use mesh_proto::trust::signed_record::Epoch;

use crate::base::blocking::blocking;
use crate::base::state_files::{JOURNAL, NAME, RESERVED, STORE};
use crate::config::Config;
use crate::registry::{OpenError, Registry, RegistrySetup};
use crate::store::journal::Journaled;
use crate::store::{Embedded, Etcd, RESERVE, Store};

/// Opens the registry on the store that the configuration names, and says where that is.
///
/// # Errors
/// If the store cannot be opened, or holds what this version does not understand.
pub(crate) async fn open_store(
    config: &Config,
    key: IdentityKey,
    setup: RegistrySetup,
) -> Result<(Registry, PathBuf), OpenError> {
    let file = config.state_dir.join(STORE);
    if config.etcd.is_none() {
        let store = Journaled::open(Embedded::open(&file)?, &config.state_dir.join(JOURNAL))?;
        let store = store.with_reserve(&config.state_dir.join(RESERVED), RESERVE)?;
        return Ok((Registry::open(Box::new(store), setup)?, file));
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
    let store: Box<dyn Store> = Box::new(Etcd::open(&etcd, &prefix, &key.to_string())?);
    Ok((Registry::open(store, setup(config))?, shown))
}

/// Returns what the registry needs to know apart from what it stores.
pub(crate) fn setup(config: &Config) -> RegistrySetup {
    RegistrySetup { name: name(&config.state_dir), underlay: underlay(config), parse, epoch: Epoch::default() }
}

/// Reads a stored services.toml.
fn parse(text: &str, file: &str) -> Result<services::Services, String> {
    match services::parse(text, file) {
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
