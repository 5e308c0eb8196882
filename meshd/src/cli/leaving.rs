//! `meshd leave`, and leaving before a join where the coordinator disowns the node.

use std::time::{Duration, Instant};

use mesh_host::client::{AskError, Client};
use mesh_proto::base::id::{NodeName, SiteName};
use mesh_proto::ops::status as doc;
use mesh_proto::wire::ErrorCode;

use crate::base::state_dir::{State, StateError};
use crate::base::text::SOCKET;
use crate::base::ways_back;
use crate::cli::cleanup;
use crate::cli::error::CommandError;
use crate::cli::output::finish;
use crate::config::Config;
use crate::linux;

/// How long a daemon may take to leave.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// Leaves the mesh: the mesh and the node's keys are forgotten, and the range is opened.
///
/// # Errors
/// If the daemon does not obey, or a file or the kernel refuses.
pub(crate) async fn leave(config: &Config, json: bool) -> Result<u8, CommandError> {
    let client = Client::new(&SOCKET, config.socket.clone());
    let node = client.get::<doc::Status>("/v1/status").await.ok().and_then(|status| status.node);
    let mut done = Vec::new();
    match client.post::<doc::Done>("/v1/leave").await {
        Ok(_) => {
            until_left(&client).await?;
            done.push("left the mesh; the running meshd waits for the next `meshd join`".to_owned());
            done.extend(node.map(|node| revoke_hint(&node.name, &node.site)));
        }
        Err(AskError::NotRunning(_) | AskError::Ended(_)) => {
            // Before it is forgotten which range this is.
            let extent = cleanup::own(config);
            let node = if config.state_dir.exists() { forget(config)? } else { None };
            done.extend(cleanup::removed(linux::cleanup(&extent).await?.removed));
            match node {
                Some((node, site)) => done.extend(["left the mesh".into(), revoke_hint(&node, &site)]),
                None => done.push("this node is in no mesh".into()),
            }
        }
        Err(error) => return Err(error.into()),
    }
    let state = if config.state_dir.exists() { Some(State::open(&config.state_dir)?) } else { None };
    if let Some(key) = state.and_then(|state| state.lock_key()) {
        done.push(format!(
            "the key of the network lock stays in {}: it is the operator's, move it where it is safe",
            key.display()
        ));
    }
    finish(json, done)?;
    Ok(0)
}

/// Leaves a mesh whose coordinator disowned the node, which joins it anew at once: the range stays closed.
///
/// # Errors
/// If the daemon does not obey, or a file cannot be removed.
pub(crate) async fn renounce(config: &Config) -> Result<(), CommandError> {
    let client = Client::new(&SOCKET, config.socket.clone());
    match client.post::<doc::Done>("/v1/renounce").await {
        Ok(_) => until_left(&client).await,
        Err(AskError::NotRunning(_) | AskError::Ended(_)) => Ok(forget(config).map(drop)?),
        Err(AskError::Refused(no)) if no.error == ErrorCode::NotFound => Err(CommandError::OldDaemon),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the running daemon belongs to no mesh.
async fn until_left(client: &Client) -> Result<(), CommandError> {
    let gone = |status: &Result<doc::Status, AskError>| status.as_ref().is_ok_and(|s| s.node.is_none());
    let asked = Instant::now();
    while !gone(&client.get("/v1/status").await) {
        if asked.elapsed() > PATIENCE {
            return Err(CommandError::Stuck("leave"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Forgets the mesh in the place of a daemon that does not run. Returns who the node was.
fn forget(config: &Config) -> Result<Option<(NodeName, SiteName)>, StateError> {
    let state = State::open(&config.state_dir)?;
    let _lock = state.lock()?;
    // A damaged enrolment is left as well.
    let node = state.enrolment().ok().flatten().map(|enrolment| (enrolment.node, enrolment.site));
    state.forget()?;
    Ok(node)
}

/// The coordinator cannot know that a node that is gone will not come back.
fn revoke_hint(node: &NodeName, site: &SiteName) -> String {
    format!(
        "others still count on this node's backends: run `mesh-coordinator revoke {node}` on the coordinator; to bring a machine back under this name later, {}",
        ways_back::after_leaving(node, site)
    )
}
