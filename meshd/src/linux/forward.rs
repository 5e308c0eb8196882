//! Whether a host's own FORWARD rules let mesh packets to and from its pods pass.
//!
//! A rule that cannot be known is taken not to match (`ruleset`), so that an answer of `drop` means: nothing visible
//! accepts it.

use super::error::KernelError;
use super::guards;
use super::nft::{self, Chain, Family, Hook};
use super::ruleset::{Packet, Ruleset};
use crate::linux::shape::{Obstacle, Shape};

/// Finds those of this host's chains that drop forwarded mesh packets, with the command that mends each.
pub(super) fn obstacles(shape: &Shape, chains: &[Chain]) -> Result<Vec<Obstacle>, KernelError> {
    if shape.pods.is_empty() {
        return Ok(Vec::new());
    }
    let range = [shape.range.net()];
    let name = shape.interface.as_str();
    let inbound = Packet { input: Some(name), sources: &range, destinations: &shape.pods, ..Packet::default() };
    let outbound = Packet { output: Some(name), sources: &shape.pods, destinations: &range, ..Packet::default() };

    let mut obstacles = Vec::new();
    for chain in chains.iter().filter(|chain| is_forward(chain) && !guards::is_ours(chain)) {
        let rules = Ruleset::of(chain.clone());
        for (packet, word, way) in [(&inbound, "iifname", "from"), (&outbound, "oifname", "to")] {
            if !rules.drops(packet)? {
                continue;
            }
            let Chain { family, table, name: chain, .. } = rules.chain();
            obstacles.push(Obstacle::new(
                format!(
                    "the chain `{chain}` of table `{family} {table}` drops what is forwarded {way} `{name}`, so that pods cannot use the mesh"
                ),
                format!("nft insert rule {family} {table} {chain} {word} \"{name}\" accept"),
            ));
        }
    }
    Ok(obstacles)
}

fn is_forward(chain: &Chain) -> bool {
    let forward = |base: &nft::Base| base.hook == Hook::Forward && base.kind == "filter";
    matches!(chain.family, Family::Ip | Family::Inet) && chain.base.as_ref().is_some_and(forward)
}
