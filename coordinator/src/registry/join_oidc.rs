//! Joining by an issuer's word instead of a secret: the keys that were pushed, and the tokens that were used.
//!
//! The token was verified before it comes here (`crate::oidc::issuers`). What is decided here is what needs memory: that
//! it is used once, and whose the name is.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{IdentityKey, NodeName};
use mesh_proto::trust::identity_rotation::Succession;
use mesh_proto::trust::jwt;
use mesh_proto::wire::{ErrorCode, NodeFacts};

use super::change::{Refused, Vouched};
use super::claims;
use super::join_token::{Newcomer, Speaker};
use super::state::State;
use super::state::oidc::{Pushed, Spent};

/// Most used tokens that are remembered; each is forgotten when it is over.
const MAX_SPENT: usize = 100_000;

/// One answer for every token of an issuer that does not work; the log says why.
pub(crate) fn not_vouched() -> Refused {
    Refused::new(
        ErrorCode::Token,
        "the token was not taken; the coordinator's log says why, and mesh-coordinator trust list who is trusted",
    )
}

impl State {
    /// Takes up an issuer's keys.
    pub(super) fn push_keys(&mut self, trust: String, keys: String, now: UnixTime) -> Result<(), Refused> {
        if let Err(error) = jwt::Jwks::parse(keys.as_bytes()) {
            return Err(Refused::new(
                ErrorCode::Malformed,
                format!("{error}; push the issuer's JWKS document as it is"),
            ));
        }
        Arc::make_mut(&mut self.pushed).insert(trust, Pushed { jwks: keys, at: now });
        Ok(())
    }

    /// Admits a machine that an issuer vouches for. The same machine may ask again with the same token.
    pub(super) fn join_vouched(
        &mut self,
        from: Speaker,
        vouched: Vouched,
        facts: NodeFacts,
        underlay: &[IpAddr],
        now: UnixTime,
        refused: &mut Vec<String>,
    ) -> Result<NodeName, Refused> {
        let (identity, observed) = from;
        self.check_revoked(&identity)?;
        self.spend(&vouched, identity, now)?;
        if let Some(name) = self.world.member(&identity).cloned() {
            let site = self.world.nodes.get(&name).map(|node| &node.site);
            if name != vouched.node || site != Some(&vouched.site) {
                return Err(not_vouched());
            }
            claims::limits(&facts)?;
            self.check_renewal(&name, &facts)?;
            *refused = self.accept(&name, facts, observed, underlay, now);
            return Ok(name);
        }
        let newcomer = Newcomer {
            name: vouched.node,
            // Whoever holds a revoked machine may still get tokens for it: its name takes an operator's word.
            is_bound: false,
            site: vouched.site,
            grants: vouched.serve,
            is_ephemeral: vouched.ephemeral,
            token: format!("{}/{}", vouched.trust, vouched.subject),
        };
        self.admit(from, newcomer, facts, underlay, now, refused)
    }

    fn spend(&mut self, vouched: &Vouched, identity: IdentityKey, now: UnixTime) -> Result<(), Refused> {
        if let Some(spent) = self.spent.get(&vouched.mark).filter(|spent| now < spent.over) {
            return if spent.identity == identity { Ok(()) } else { Err(not_vouched()) };
        }
        let spent = Arc::make_mut(&mut self.spent);
        spent.retain(|_, spent| now < spent.over);
        if spent.len() >= MAX_SPENT {
            let text = "too many tokens were used of late; try again when the first of them have expired";
            return Err(Refused::new(ErrorCode::Busy, text));
        }
        spent.insert(vouched.mark.clone(), Spent { identity, over: vouched.over });
        Ok(())
    }

    /// Lets a member use its tokens again that went on with another identity.
    pub(super) fn pass_tokens_on(&mut self, succession: &Succession) {
        let is_its_own = |spent: &Spent| spent.identity == succession.from;
        if self.spent.values().any(is_its_own) {
            let spent = Arc::make_mut(&mut self.spent).values_mut();
            spent.filter(|spent| is_its_own(spent)).for_each(|spent| spent.identity = succession.to);
        }
    }

    /// Says whether a token was used by another machine, for the operator.
    pub(super) fn is_spent_by_another(&self, mark: &str, identity: &IdentityKey) -> bool {
        self.spent.get(mark).is_some_and(|spent| spent.identity != *identity)
    }
}
