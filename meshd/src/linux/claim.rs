//! The claim on a mesh range: who carries it, told to everybody on this host.
//!
//! It is an nftables table with an owner (Linux 5.12): only CAP_NET_ADMIN makes one, nobody else can alter or remove
//! it, `flush ruleset` included, and the kernel removes it with the socket that made it, however the process ends. It
//! holds no rules: what closes the range has to outlive the process, and lies in another table. Of two claims that
//! overlap the earlier counts. Where a kernel keeps none, a second meshd is known by the interface of the first.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::KernelError;
use super::mark::Owner;
use super::meshes::{Asker, present, refusal};
use super::names;
use super::nfnetlink::OwningSocket;
use super::nft::{self, Batch, Family};
use super::route::Routes;
use crate::base::files::ENROLMENT;
use crate::linux::shape::Shape;

/// How long what the meshd before of the same configuration held is waited for, in steps of `RETRY`.
const PATIENCE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(20);
/// How often a claim is tried again that nobody seems to have.
const DOUBTS: u32 = 5;
/// No claim is later.
const NONE_LATER: u64 = u64::MAX;

/// A mesh range that is held, until this is dropped or the process ends.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "the table lives as long as the socket")] Option<OwningSocket>);

/// Claims the range of a mesh for this process.
///
/// What a process of the same state directory or interface still holds is waited for, 3 s at most.
///
/// # Errors
/// `KernelError::Taken`, which names who has it, or another range that overlaps it.
pub async fn claim(shape: &Shape) -> Result<Claim, KernelError> {
    let routes = Routes::open()?;
    let mark = Owner::of(shape, Some(std::process::id())).mark();
    let end = Instant::now() + PATIENCE;
    let mut doubts = DOUBTS;
    loop {
        let (own, number, refused) = match Batch::own_table(Family::Ip, &names::claim(shape.range), &mark) {
            Ok((socket, port)) => (Some(socket), number_of(shape, port), None),
            Err(error) => (None, NONE_LATER, Some(error)),
        };
        let meshes = present(&routes, number).await?;
        match refusal(shape, Asker::Daemon, &meshes, joined) {
            // Whoever had it a moment ago has gone; without the privilege it is the same answer for ever.
            None if refused.as_ref().is_some_and(is_taken) && doubts > 0 => doubts -= 1,
            None => {
                if let Some(error) = refused {
                    tracing::info!(%error, "no claim on the mesh range; it takes nftables and Linux 5.12");
                }
                return Ok(Claim(own));
            }
            Some(refusal) if refusal.passing && Instant::now() < end => {}
            Some(refusal) => return Err(KernelError::Taken(refusal.sentence)),
        }
        // Others are not to wait for what this process does not get.
        drop(own);
        sleep(RETRY).await;
    }
}

/// Says why a mesh would be refused on this host, to a verb beside which the daemon of the same configuration may run.
///
/// # Errors
/// `KernelError` if the kernel does not answer.
pub async fn rival(shape: &Shape) -> Result<Option<String>, KernelError> {
    let meshes = present(&Routes::open()?, NONE_LATER).await?;
    Ok(refusal(shape, Asker::Verb, &meshes, joined).map(|refusal| refusal.sentence))
}

/// Returns the number of the claim that a socket holds.
fn number_of(shape: &Shape, port: u32) -> u64 {
    let table = nft::table(Family::Ip, &names::claim(shape.range)).ok().flatten();
    table.filter(|table| table.owner == Some(port)).map_or(NONE_LATER, |table| table.handle)
}

/// Tells an answer that others have it, or that the privilege lacks, from that of a kernel that keeps no claims.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EEXIST))
}

/// Says whether a state directory belongs to a mesh.
fn joined(dir: &Path) -> bool {
    dir.join(ENROLMENT.name()).exists()
}
