//! How a machine becomes a member, and how a member tells what it is.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_proto::base::block_map::BlockMap;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, NodeName, ServiceKey, SiteName};
use mesh_proto::plan::refused_offers;
use mesh_proto::wire::{ErrorCode, JoinRequest, NodeFacts};
use mesh_proto::world::NodeRecord;
use mesh_proto::world::allocate::BlockOwner;

use super::change::Refused;
use super::claims::{self, Claimant};
use super::state::State;
use super::tokens;
use super::ways_back;

/// A machine that may become a member.
pub(super) struct Newcomer {
    /// The name it would have.
    pub(super) name: NodeName,
    /// Whether the operator meant this name.
    pub(super) is_bound: bool,
    /// Its site.
    pub(super) site: SiteName,
    /// The services that it may offer to serve.
    pub(super) grants: Vec<ServiceKey>,
    /// Whether it vanishes when it was not heard of for 10 minutes.
    pub(super) is_ephemeral: bool,
    /// What it joins with: the public half of a token, or an issuer's name and subject.
    pub(super) token: String,
}

/// Says how a machine joins with the token that a command prints.
fn with_token(command: &str) -> String {
    format!("run `{command}` on the coordinator, then `meshd join -` here, and paste the token (Ctrl-D ends it)")
}

/// Who speaks on a channel: the key that it proved, and the address that it comes from.
pub(super) type Speaker = (IdentityKey, IpAddr);

impl State {
    /// Admits a machine. A member is welcomed again without another use of its token, since the first answer
    /// may have been lost.
    pub(super) fn join(
        &mut self,
        from: Speaker,
        request: JoinRequest,
        underlay: &[IpAddr],
        now: UnixTime,
        refused: &mut Vec<String>,
    ) -> Result<NodeName, Refused> {
        let (identity, observed) = from;
        if let Some(name) = self.world.member(&identity).cloned() {
            self.rejoin(&name, &request, now)?;
            claims::limits(&request.facts)?;
            self.check_renewal(&name, &request.facts)?;
            *refused = self.accept(&name, request.facts, observed, underlay, now);
            return Ok(name);
        }
        let token = self.redeem(&request.token, &request.secret, now)?;
        self.check_revoked(&identity)?;
        let newcomer = Newcomer {
            is_bound: token.name.is_some(),
            name: token.name.unwrap_or(request.name),
            site: token.site,
            grants: token.serve,
            is_ephemeral: token.ephemeral || request.ephemeral,
            token: request.token,
        };
        self.admit(from, newcomer, request.facts, underlay, now, refused)
    }

    /// Makes a machine a member, whose right to be one was checked.
    pub(super) fn admit(
        &mut self,
        from: Speaker,
        newcomer: Newcomer,
        facts: NodeFacts,
        underlay: &[IpAddr],
        now: UnixTime,
        refused: &mut Vec<String>,
    ) -> Result<NodeName, Refused> {
        let (identity, observed) = from;
        let Newcomer { name, is_bound, site, mut grants, is_ephemeral, token } = newcomer;
        claims::limits(&facts)?;
        if self.world.site(&site).is_none() {
            return Err(Refused::new(ErrorCode::Site, self.no_site(&site)));
        }
        if self.world.nodes.contains_key(&name) {
            let room = if is_bound {
                format!("run `mesh-coordinator revoke {name}` on the coordinator, and the same `meshd join` again")
            } else {
                with_token(&format!("{}; {}", ways_back::revoke(&name), ways_back::token(&name, &site)))
            };
            let text = format!(
                "the name `{name}` belongs to another node; set another `name` in meshd.toml, or, if that machine is gone or was set up anew, {room}"
            );
            return Err(Refused::new(ErrorCode::Name, text));
        }
        // What was expelled under this name does not come back by a token that anybody could have got.
        if !is_bound && self.revoked.values().any(|revoked| revoked.name == name && revoked.succession.is_none()) {
            let text = format!(
                "a node `{name}` was revoked; only a token for this name admits another: {}; or set another `name` in meshd.toml",
                with_token(&ways_back::token(&name, &site))
            );
            return Err(Refused::new(ErrorCode::Name, text));
        }

        let world = Arc::make_mut(&mut self.world);
        let pool = Arc::make_mut(&mut world.pool);
        let live = world.nodes.values().map(|node| node.address);
        let address = pool.node(world.mesh.range, live, now);
        let address = address.map_err(|error| Refused::new(ErrorCode::Busy, error.to_string()))?;
        grants.sort();
        grants.dedup();
        let record = NodeRecord {
            contact: is_ephemeral.then_some(now),
            countersigned: None,
            lineage: Vec::new(),
            id: pool.node_id(),
            identity: Some(identity),
            site,
            address,
            blocks: Vec::new(),
            facts: NodeFacts::default(),
            observed: None,
            grants,
            token: Some(token),
            joined_at: now,
        };
        world.insert_node(name.clone(), record);

        let problems = self.accept_claims(&name, facts, observed, underlay, now);
        if !problems.is_empty() {
            return Err(Refused::new(ErrorCode::Claim, problems.join("; ")));
        }
        *refused = refused_offers(&self.world, &name);
        Ok(name)
    }

    /// Takes up what a member says of itself. Returns its name, and what of it was refused.
    pub(super) fn report(
        &mut self,
        identity: IdentityKey,
        facts: NodeFacts,
        observed: IpAddr,
        underlay: &[IpAddr],
        now: UnixTime,
    ) -> Result<(NodeName, Vec<String>), Refused> {
        self.check_revoked(&identity)?;
        let Some(name) = self.world.member(&identity).cloned() else {
            let text = "this node is no member of the mesh; join again with a token of mesh-coordinator token create";
            return Err(Refused::new(ErrorCode::UnknownNode, text));
        };
        claims::limits(&facts)?;
        self.check_renewal(&name, &facts)?;
        let refused = self.accept(&name, facts, observed, underlay, now);
        Ok((name, refused))
    }

    /// Checks the token that a member presents: its own again, or another that adds grants.
    fn rejoin(&mut self, name: &NodeName, request: &JoinRequest, now: UnixTime) -> Result<(), Refused> {
        let Some(known) = self.world.nodes.get(name).cloned() else { return Ok(()) };
        if known.token.as_ref() == Some(&request.token) {
            return match self.contradicts(&request.token, &request.secret) {
                true => Err(tokens::unusable()),
                false => Ok(()),
            };
        }
        let token = self.redeem(&request.token, &request.secret, now)?;
        let other_name = token.name.as_ref().is_some_and(|other| other != name);
        if token.site != known.site || other_name {
            let text = format!(
                "this machine is the node `{name}` of site `{}` already; to move it, run `{}; {}` on the coordinator, then `meshd leave && meshd join -` there, and paste the token",
                known.site,
                ways_back::revoke(name),
                ways_back::token(name, &token.site)
            );
            return Err(Refused::new(ErrorCode::Name, text));
        }
        let mut record = NodeRecord::clone(&known);
        record.grants.extend(token.serve);
        record.grants.sort();
        record.grants.dedup();
        record.token = Some(request.token.clone());
        Arc::make_mut(&mut self.world).insert_node(name.clone(), record);
        Ok(())
    }

    pub(super) fn check_revoked(&self, identity: &IdentityKey) -> Result<(), Refused> {
        let Some(revoked) = self.revoked.get(identity) else { return Ok(()) };
        self.check_superseded(identity)?;
        let text = format!(
            "this machine was expelled from the mesh as `{}`; to bring it back, run `meshd leave` there and join with a token for that name",
            revoked.name
        );
        Err(Refused::new(ErrorCode::Revoked, text))
    }

    /// Takes up the good part of what a member says, and returns what was refused of claims and offers.
    pub(super) fn accept(
        &mut self,
        name: &NodeName,
        facts: NodeFacts,
        observed: IpAddr,
        underlay: &[IpAddr],
        now: UnixTime,
    ) -> Vec<String> {
        let mut refused = self.accept_claims(name, facts, observed, underlay, now);
        refused.extend(refused_offers(&self.world, name));
        refused
    }

    fn accept_claims(
        &mut self,
        name: &NodeName,
        mut facts: NodeFacts,
        observed: IpAddr,
        underlay: &[IpAddr],
        now: UnixTime,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let observed = observed.to_canonical();
        let Some(known) = self.world.nodes.get(name).cloned() else { return problems };
        let mut record = NodeRecord::clone(&known);
        if let Err(problem) = claims::lanes(&self.world, name, &facts).and_then(|()| self.check_keys(&facts)) {
            problems.push(problem);
            // The record is signed as a whole, and hence taken as a whole.
            facts = record.facts.clone();
        }
        let claimant =
            Claimant { world: &self.world, name, record: &known, endpoints: &facts.endpoints, observed, underlay, now };
        let (wanted, bad) = claimant.check(&facts.pods);
        problems.extend(bad);

        let world = Arc::make_mut(&mut self.world);
        let pool = Arc::make_mut(&mut world.pool);
        let id = record.id;
        let (mut kept, gone): (Vec<_>, Vec<_>) =
            record.blocks.into_iter().partition(|block| wanted.contains(&block.real));
        for block in gone {
            pool.free(block.flat, BlockOwner::Block(id, block.real), now);
        }
        for real in wanted {
            if kept.iter().any(|block: &BlockMap| block.real == real) {
                continue;
            }
            let others = world.nodes.iter().filter(|(other, _)| *other != name);
            let others = others.flat_map(|(_, node)| node.blocks.iter().map(|b| b.flat));
            let live = others.chain(kept.iter().map(|block| block.flat));
            match pool.block(world.mesh.range, id, real, live, now) {
                Ok(flat) => kept.push(BlockMap { real, flat }),
                Err(error) => problems.push(format!("{real}: {error}")),
            }
        }
        kept.sort();
        facts.pods = kept.iter().map(|block| block.real).collect();
        record.blocks = kept;
        record.facts = facts;
        record.observed = Some(observed);
        if record != *known {
            record.contact = record.contact.map(|contact| contact.max(now));
        }
        world.insert_node(name.clone(), record);
        problems
    }
}
