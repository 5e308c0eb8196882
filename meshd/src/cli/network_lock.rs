//! `meshd lock`: the lock's key is read here, shows what it signs, signs, and is forgotten; the daemon never sees it.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use mesh_host::client::Client;
use mesh_host::identity::Identity;
use mesh_proto::base::id::{IdentityKey, NodeName};
use mesh_proto::ops::status as doc;
use mesh_proto::trust::network_lock::{LockedMember, Subject};
use mesh_proto::wire::query::with_query;
use zeroize::Zeroizing;

use crate::base::files::LOCK_KEY;
use crate::base::state_dir::{State, read_secret};
use crate::base::text::SOCKET;
use crate::cli::args::LockVerb;
use crate::cli::error::{CommandError, LockError};
use crate::cli::output::{Asker, finish, load};
use crate::control::map_guard;

/// Does what `lock` says.
pub(crate) async fn perform(ask: &Asker, words: LockVerb, socket: Option<PathBuf>) -> Result<u8, CommandError> {
    match words {
        LockVerb::Status => ask.show("/v1/lock", render).await.map(|_: doc::LockStatus| 0),
        LockVerb::Sign { node, key, identity, yes, config } => {
            let config = load(&config, socket)?;
            let path = key.unwrap_or_else(|| config.state_dir.join(LOCK_KEY.name()));
            let key = read(&path)?;
            let client = Client::new(&SOCKET, config.socket);
            let standing: doc::LockStatus = client.get("/v1/lock").await?;
            let member = named(&standing, &node)?;
            check(&standing, member, &key, &path, identity)?;
            let shown = show(&standing, member);
            // Who sees nothing confirms nothing.
            if identity.is_none() && !yes && !(shown.is_ok() && confirmed()) {
                return Err(LockError::Unconfirmed.into());
            }
            let signature = key.sign(&member.message(&standing.mesh)).to_string();
            let words = [("node", node.as_str()), ("signature", &signature)];
            let _: doc::LockStatus = client.post(&with_query("/v1/lock", &words)).await?;
            finish(ask.json, vec![format!("{node} is admitted; its peers learn of it now")])?;
            Ok(0)
        }
        LockVerb::Forget(config) => {
            let state = State::open(&load(&config, socket)?.state_dir)?;
            let _lock = state.lock()?;
            let done = match map_guard::forget_lock(&state)? {
                Some(lock) => format!("this node does not hold to the lock {lock} any more; start meshd again"),
                None => "this node holds to no lock".into(),
            };
            finish(ask.json, vec![done])?;
            Ok(0)
        }
    }
}

fn read(path: &Path) -> Result<Identity, LockError> {
    let bytes = read_secret(path).map_err(LockError::State)?;
    let bytes = bytes.ok_or_else(|| LockError::Missing(path.into()))?;
    Identity::from_pkcs8(Zeroizing::new(bytes)).map_err(|_| LockError::Damaged(path.into()))
}

fn named<'a>(standing: &'a doc::LockStatus, node: &NodeName) -> Result<&'a LockedMember, LockError> {
    let member = standing.waiting.iter().chain(&standing.aged).find(|member| member.name == *node);
    member.ok_or_else(|| LockError::Nobody(node.clone()))
}

fn check(
    standing: &doc::LockStatus,
    member: &LockedMember,
    key: &Identity,
    path: &Path,
    identity: Option<IdentityKey>,
) -> Result<(), LockError> {
    let held = standing.lock.ok_or(LockError::Unlocked)?;
    let own = key.public();
    if own != held {
        return Err(LockError::Another { path: path.into(), own, held });
    }
    if identity.is_some_and(|identity| member.subject != Subject::Identity(identity)) {
        return Err(LockError::Stranger { node: member.name.clone(), subject: member.subject });
    }
    Ok(())
}

/// Shows what is about to be signed.
fn show(standing: &doc::LockStatus, member: &LockedMember) -> io::Result<()> {
    let LockedMember { id, name, site, subject } = member;
    let text = format!("{name} of site {site} in mesh {}, number {}, {subject}", standing.mesh, id.0);
    writeln!(io::stderr(), "{text}")
}

/// Asks whoever sits there.
fn confirmed() -> bool {
    let question = "is that what `meshd lock status` says on that node? [y/N] ";
    if !io::stdin().is_terminal() || write!(io::stderr(), "{question}").is_err() {
        return false;
    }
    let mut word = String::new();
    let read = io::stdin().read_line(&mut word);
    read.is_ok() && ["y", "yes"].contains(&word.trim())
}

fn render(lock: &doc::LockStatus) -> String {
    let mut lines = vec![match lock.lock {
        Some(key) => format!("mesh {} is locked by {key}", lock.mesh),
        None => format!("mesh {} is not locked", lock.mesh),
    }];
    lines.push(format!("this node is {} with the identity {}", lock.node, lock.identity));
    for LockedMember { name, site, subject, .. } in &lock.waiting {
        lines.push(format!("{name} of site {site} waits, {subject}"));
    }
    for LockedMember { name, site, subject, .. } in &lock.aged {
        lines.push(format!(
            "{name} of site {site} is admitted, but has to be signed for anew before its identity changes again, {subject}"
        ));
    }
    lines.join("\n")
}
