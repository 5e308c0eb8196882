//! `meshd cleanup`: the kernel as it was before meshd, for one mesh of this host or for all.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_host::client::{AskError, Client};
use mesh_proto::ops::status as doc;

use crate::base::starts::Starts;
use crate::base::state_dir::State;
use crate::base::text::SOCKET;
use crate::cli::args::CleanupArgs;
use crate::cli::error::CommandError;
use crate::cli::output::finish;
use crate::config::Config;
use crate::linux::{self, Extent, HostMesh, Life};
use crate::node::join;
use crate::node::lane_deaths::LaneDeaths;

/// How long a daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(50);

/// Stops what runs for the mesh, or for all, and removes what is left of it.
pub(crate) async fn perform(config: &Config, args: &CleanupArgs, json: bool) -> Result<u8, CommandError> {
    let mut done = Vec::new();
    let extent = match (args.range, args.all) {
        (Some(range), _) => Extent::Range(range),
        (None, true) => Extent::All { interface: config.interface.clone() },
        (None, false) => own(config),
    };
    if args.range.is_none() {
        done.extend(stop(&config.socket).await?);
    }
    if args.all {
        for mesh in linux::meshes().await? {
            if let (Life::Claimed(_) | Life::Served, Some(socket)) = (mesh.life, mesh.owner.socket) {
                done.extend(stop(&socket).await?);
            }
        }
    }
    let cleaned = linux::cleanup(&extent).await?;
    match (cleaned.removed.is_empty(), cleaned.left.as_slice()) {
        (true, []) => done.push("nothing of meshd is left in the kernel".into()),
        (true, left) => done.push(format!("nothing of this mesh is left in the kernel; {}", others(left))),
        (false, []) => {}
        (false, left) => done.push(others(left)),
    }
    done.extend(removed(cleaned.removed));
    if args.files {
        done.extend(files(config, &cleaned.meshes)?);
    }
    finish(json, done)?;
    Ok(0)
}

/// Returns how much belongs to a configuration.
pub(crate) fn own(config: &Config) -> Extent {
    // One that cannot be read is told by its state directory.
    let stored = join::stored_range(config).ok().flatten();
    let home = join::home(config);
    Extent::One {
        range: stored.map(|(range, _)| range),
        interface: config.interface.clone(),
        state_dir: home.state_dir,
    }
}

/// Says what was removed.
pub(crate) fn removed(things: Vec<String>) -> Vec<String> {
    things.into_iter().map(|thing| format!("removed {thing}")).collect()
}

fn others(left: &[HostMesh]) -> String {
    let ranges: Vec<String> = left.iter().map(|mesh| mesh.range.to_string()).collect();
    format!("other meshes of this host stay: {}", ranges.join(", "))
}

/// Stops the daemon of a socket, if there is one, and waits until it has ended; says so.
async fn stop(socket: &Path) -> Result<Option<String>, CommandError> {
    let client = Client::new(&SOCKET, socket.to_owned());
    match client.post::<doc::Done>("/v1/stop").await {
        Ok(_) => {
            let asked = Instant::now();
            while socket.exists() {
                if asked.elapsed() > PATIENCE {
                    return Err(CommandError::Stuck("stop"));
                }
                tokio::time::sleep(RETRY).await;
            }
            Ok(Some("stopped the running meshd".into()))
        }
        // One that was killed a moment ago may still have taken the call.
        Err(AskError::NotRunning(_) | AskError::Ended(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes the files of the configuration and of the meshes that were removed: nothing that meshd did not make.
fn files(config: &Config, meshes: &[HostMesh]) -> Result<Vec<String>, CommandError> {
    let home = join::home(config);
    let of = |own: PathBuf, path: fn(&HostMesh) -> Option<&PathBuf>| {
        let mut all = vec![own];
        all.extend(meshes.iter().filter_map(path).cloned());
        all.sort_unstable();
        all.dedup();
        all
    };
    let mut done = Vec::new();
    for dir in of(home.state_dir, |mesh| mesh.owner.state_dir.as_ref()).into_iter().filter(|dir| dir.exists()) {
        let state = State::open(&dir)?;
        // Whoever runs there still needs its keys.
        let _lock = state.lock()?;
        let left = state.erase()?;
        done.push(match left.as_slice() {
            [] => format!("removed {}", dir.display()),
            left => format!("removed the files of meshd in {}, where others lie: {}", dir.display(), left.join(", ")),
        });
    }
    for socket in of(home.socket, |mesh| mesh.owner.socket.as_ref()) {
        let _ = std::fs::remove_file(socket);
    }
    for dir in of(home.runtime_dir, |mesh| mesh.owner.runtime_dir.as_ref()).into_iter().filter(|dir| dir.exists()) {
        let flows = Config { runtime_dir: dir.clone(), ..config.clone() }.flow_file();
        for file in [&flows, &LaneDeaths::file(&dir), &Starts::file(&dir)] {
            let _ = std::fs::remove_file(file);
        }
        // Both stay where others have files there.
        for folder in flows.parent().into_iter().chain([dir.as_path()]) {
            let _ = std::fs::remove_dir(folder);
        }
        let word = if dir.exists() { "removed the files of meshd in" } else { "removed" };
        done.push(format!("{word} {}", dir.display()));
    }
    Ok(done)
}
