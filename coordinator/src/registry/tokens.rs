//! Join tokens: who may make a machine a member, how often and until when.
//!
//! The store holds the SHA-256 of a secret, never the secret: with 256 bits of entropy a plain hash is enough.
//! Whoever presents a token that does not work learns nothing about why.

use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::SiteName;
use mesh_proto::trust::join_token::TokenSecret;
use mesh_proto::wire::ErrorCode;

use super::change::{Refused, TokenSpec};
use super::state::State;
use super::state::tokens::{TokenRecord, hash, is_digest_of};
use super::ways_back;

/// Most tokens kept, those used up or expired of late included.
const MAX_TOKENS: usize = 10_000;
/// Longest life of a token.
const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Most nodes that one token may admit.
const MAX_USES: u32 = 1000;
/// The digest of no secret.
const NOBODY: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// How long a token is still listed after its end.
const LISTED: Duration = Duration::from_secs(7 * 24 * 3600);

impl State {
    /// Adds a token.
    pub(super) fn create_token(&mut self, spec: TokenSpec, now: UnixTime) -> Result<(), Refused> {
        let refuse = |code, message: String| Err(Refused::new(code, message));
        if self.world.site(&spec.site).is_none() {
            return refuse(ErrorCode::Site, self.no_site(&spec.site));
        }
        if spec.ttl < Duration::from_secs(1) || spec.ttl > MAX_TTL {
            return refuse(
                ErrorCode::Malformed,
                "a token lives between 1 second and 90 days; give another --ttl".into(),
            );
        }
        if !(1..=MAX_USES).contains(&spec.uses) || (spec.name.is_some() && spec.uses > 1) {
            let text = format!(
                "a token admits 1 to {MAX_USES} nodes, and exactly one if it has a name; give another number of uses"
            );
            return refuse(ErrorCode::Malformed, text);
        }
        if let Some(name) = spec.name.iter().find(|&n| self.world.nodes.contains_key(n)) {
            let text = format!(
                "the name `{name}` belongs to a node; choose another, or, if that machine is gone or was set up anew, run `{}; {}`",
                ways_back::revoke(name),
                ways_back::token(name, &spec.site)
            );
            return refuse(ErrorCode::Name, text);
        }
        let tokens = Arc::make_mut(&mut self.tokens);
        tokens.retain(|_, token| now < token.expires + LISTED);
        if tokens.len() >= MAX_TOKENS {
            let text = format!("there are {MAX_TOKENS} tokens already; revoke some with mesh-coordinator token revoke");
            return refuse(ErrorCode::Busy, text);
        }
        let id = HEXLOWER.encode(&spec.id);
        if tokens.contains_key(&id) {
            return refuse(ErrorCode::Busy, format!("there is a token {id} already; try again"));
        }
        let token = TokenRecord {
            digest: hash(&spec.secret),
            site: spec.site,
            name: spec.name,
            serve: spec.serve,
            created: now,
            expires: now + spec.ttl,
            uses_left: spec.uses,
            ephemeral: spec.ephemeral,
        };
        tokens.insert(id, token);
        Ok(())
    }

    /// Takes a token away.
    pub(super) fn revoke_token(&mut self, id: &str) -> Result<(), Refused> {
        match Arc::make_mut(&mut self.tokens).remove(id) {
            Some(_) => Ok(()),
            None => {
                let text = format!("there is no token {id}; see mesh-coordinator token list");
                Err(Refused::new(ErrorCode::Token, text))
            }
        }
    }

    /// Uses a token once.
    pub(super) fn redeem(&mut self, id: &str, secret: &TokenSecret, now: UnixTime) -> Result<TokenRecord, Refused> {
        let token = self.tokens.get(id);
        // An unknown token is hashed and compared as well, so that it takes as long as a known one.
        let is_right = is_digest_of(token.map_or(NOBODY, |token| &token.digest), secret);
        let token = token.filter(|token| is_right & token.is_usable(now));
        // Copied after the check, lest a stranger's guess costs a copy of all tokens.
        let mut token = token.ok_or_else(unusable)?.clone();
        token.uses_left -= 1;
        Arc::make_mut(&mut self.tokens).insert(id.to_owned(), token.clone());
        Ok(token)
    }

    /// Says why `redeem` refuses, for the operator.
    pub(super) fn why_unusable(&self, id: &str, secret: &TokenSecret, now: UnixTime) -> &'static str {
        match self.tokens.get(id) {
            None => "the token is unknown: made elsewhere, revoked, or over for a week",
            Some(token) if !token.has_secret(secret) => "the secret is not the token's: somebody guesses, or mistyped",
            Some(token) if token.uses_left == 0 => "the token is used up: was it copied?",
            Some(token) if now >= token.expires => "the token is expired",
            Some(_) => "the token is good, but not for this machine",
        }
    }

    /// Says whether a secret is not that of a token that we know; true for tokens that we forgot.
    pub(super) fn contradicts(&self, id: &str, secret: &TokenSecret) -> bool {
        let token = self.tokens.get(id);
        token.is_some_and(|token| !token.has_secret(secret))
    }

    /// Returns the sentence for a site that the file does not have.
    pub(super) fn no_site(&self, site: &SiteName) -> String {
        let sites = self.world.services.sites.iter();
        let known: Vec<_> = sites.map(|site| site.name.as_str()).collect();
        match &*known {
            [] => format!("there is no site `{site}`: services.toml has no [[site]] yet; add one"),
            known => {
                let known = known.join(", ");
                format!("there is no site `{site}`: services.toml has {known}; add a [[site]] or name one of these")
            }
        }
    }
}

/// One answer for an unknown, expired, used and mistaken token alike.
pub(super) fn unusable() -> Refused {
    Refused::new(
        ErrorCode::Token,
        "the token is unknown, used or expired; make a new one with mesh-coordinator token create",
    )
}
