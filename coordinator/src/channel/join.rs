//! `POST /v1/join`: a stranger becomes a member, or learns nothing about why not.
//!
//! ```text
//! one request per connection ─▶ address not blocked? ─▶ body ─▶ a stranger's turn ─▶ registry ─▶ log, metrics
//! ```
//! A member that asks again (its answer was lost) passes by the strangers' limits.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use mesh_host::clock::unix as now;
use mesh_proto::base::id::{IdentityKey, NodeName};
use mesh_proto::plan::{self, PlanIndex};
use mesh_proto::wire::{self, ErrorCode, JoinRequest, JoinResponse};
use mesh_proto::world::World;

use crate::channel::context::{Context, asks_too_often};
use crate::channel::peer::Requester;
use crate::channel::signed_facts;
use crate::core::coordinator_list::CoordinatorList;
use crate::core::failure::{Rejection, read};
use crate::core::pushed_keys::take_pushed;
use crate::registry::{Actor, Applied, Change, Refused, Vouched, free_names, join_oidc};

/// The largest body of a stranger, in bytes: a request with all lists full takes less.
const MAX_BODY: usize = 128 * 1024;

/// Why nobody joined.
enum Denial {
    /// The request is not one: the answer to it.
    Malformed(Rejection),
    /// The registry said no. The sentence tells the operator what the answer hides.
    Refused(Refused, Option<String>),
}

impl Denial {
    fn code(&self) -> &ErrorCode {
        match self {
            Self::Malformed(failure) => &failure.body().error,
            Self::Refused(refused, _) => &refused.code,
        }
    }

    /// Says whether it may be one of many guesses. A good token with a bad name or site is none.
    fn is_guess(&self) -> bool {
        matches!(self.code(), ErrorCode::Malformed | ErrorCode::Token | ErrorCode::Revoked | ErrorCode::Superseded)
    }
}

impl From<Refused> for Denial {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused, None)
    }
}

/// Answers a request to join.
pub(crate) async fn join(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
    request: Request,
) -> Result<Json<JoinResponse>, Rejection> {
    let Some(_only) = peer.begin_join() else {
        return Err(busy("a request to join is under way on this connection; wait for its answer").into());
    };
    match admit(&context, &peer, request).await {
        Ok(response) => {
            context.counters.enrolment("accepted");
            peer.welcome(&context.core.world());
            tracing::info!(node = %response.node, site = %response.site, peer = %peer.observed, "joined");
            Ok(Json(response))
        }
        Err(denial) => {
            context.counters.enrolment(denial.code().label());
            let begins = denial.is_guess() && context.limits.failed(peer.observed);
            let (hidden, failure) = match denial {
                Denial::Malformed(failure) => (None, failure),
                Denial::Refused(refused, hidden) => (hidden, refused.into()),
            };
            let body = failure.body();
            let reason = hidden.as_ref().unwrap_or(&body.message);
            if let Some(more) = context.limits.tell_refusal(peer.observed) {
                tracing::warn!(peer = %peer.observed, identity = %peer.identity, word = body.error.as_str(), more, "join refused: {reason}");
            }
            if begins {
                context.counters.enrolment("blocked");
                tracing::warn!(peer = %peer.observed, "too many joins failed; this address is refused for a minute");
            }
            Err(failure)
        }
    }
}

async fn admit(context: &Context, peer: &Requester, request: Request) -> Result<JoinResponse, Denial> {
    let Context { core, limits, issuers, .. } = context;
    let is_member = core.world().member(&peer.identity).is_some();
    if is_member && !limits.may_report(&core.world(), peer.identity) {
        return Err(asks_too_often().into());
    }
    if !is_member && limits.is_blocked(peer.observed) {
        return Err(busy("too many joins from this address failed; wait a minute and try again").into());
    }
    let most = if is_member { wire::MAX_REQUEST } else { MAX_BODY };
    let mut request: JoinRequest = read(request, most).await.map_err(Denial::Malformed)?;
    request.facts = signed_facts::facts(&peer.identity, &request.facts)?;
    if is_member && !limits.may_alter(&core.world(), peer.identity, &request.facts, peer.observed) {
        return Err(busy("this node changes too often; try again in 10 seconds").into());
    }
    // Keys may have to be fetched, so that this comes before anybody's turn.
    let verified = match request.oidc.take() {
        Some(token) => {
            drop(limits.strangers_turn().await?);
            take_pushed(core, issuers).await;
            Some(issuers.verify(&token.0, now()).await)
        }
        None => None,
    };
    let turn = if is_member { None } else { Some(limits.strangers_turn().await?) };
    let applied = match verified {
        Some(verified) => by_issuer(context, peer, request, verified).await?,
        None => by_token(context, peer, request).await?,
    };
    drop(turn);
    let chart = core.chart().await;
    let response = applied.node.and_then(|node| welcome(context, &chart, node, applied.refused));
    response.ok_or_else(|| {
        let message = "the node was admitted and is gone already; was it revoked? Join again";
        Refused::new(ErrorCode::Internal, message).into()
    })
}

/// Redeems a token of `token create`.
async fn by_token(Context { core, .. }: &Context, peer: &Requester, request: JoinRequest) -> Result<Applied, Denial> {
    let (identity, observed) = (peer.identity, peer.observed);
    let (token, secret) = (request.token.clone(), request.secret.clone());
    let before = core.world();
    let by = actor(&before, identity, observed);
    let answer = core.apply(Change::Join { identity, request, observed }, by).await;
    let is_new = before.member(&identity).is_none();
    core.with(move |registry| match answer {
        Ok(applied) => {
            let chosen = registry.token(&token).is_some_and(|token| token.name.is_none());
            if let Some(node) =
                applied.node.as_ref().filter(|node| is_new && chosen && free_names::refers(&before, node))
            {
                let advice = "the node chose it itself, its token was made without --name";
                tracing::warn!(%node, peer = %observed, "a name of services.toml is taken: {advice}");
            }
            Ok(applied)
        }
        Err(refused) => {
            let why = (refused.code == ErrorCode::Token).then(|| registry.why_unusable(&token, &secret, now()).into());
            Err(Denial::Refused(refused, why))
        }
    })
    .await
}

/// Takes an issuer's word.
async fn by_issuer(
    Context { core, .. }: &Context,
    peer: &Requester,
    request: JoinRequest,
    verified: Result<Vouched, String>,
) -> Result<Applied, Denial> {
    let (identity, observed) = (peer.identity, peer.observed);
    let JoinRequest { name, facts, ephemeral, .. } = request;
    let by = actor(&core.world(), identity, observed);
    let mut vouched = match verified {
        Ok(vouched) => vouched,
        Err(why) => {
            let told = why.clone();
            core.with(move |registry| registry.note_attempt(&name, &told, &by, now())).await;
            return Err(Denial::Refused(join_oidc::not_vouched(), Some(why)));
        }
    };
    vouched.ephemeral = ephemeral;
    let mark = vouched.mark.clone();
    let answer = core.apply(Change::Vouched { identity, vouched, facts, observed }, by).await;
    let refused = match answer {
        Ok(applied) => return Ok(applied),
        Err(refused) if refused.code == ErrorCode::Token => refused,
        Err(refused) => return Err(refused.into()),
    };
    let is_copied = core.with(move |registry| registry.is_spent_by_another(&mark, &identity)).await;
    let why = match is_copied {
        true => "another machine used this token already: was it copied?",
        false => "this identity is another node already",
    };
    Err(Denial::Refused(refused, Some(why.into())))
}

fn actor(world: &World, identity: IdentityKey, observed: IpAddr) -> Actor {
    world.member(&identity).cloned().map_or(Actor::Stranger(observed), Actor::Node)
}

fn welcome(context: &Context, chart: &PlanIndex, node: NodeName, refused: Vec<String>) -> Option<JoinResponse> {
    let world = chart.world();
    let record = world.nodes.get(&node)?;
    let mut netmap = plan::netmap(chart, &node)?;
    netmap.revision = context.core.right_until(chart);
    let told = CoordinatorList::new(&context.own, &context.core.world());
    Some(JoinResponse {
        version: wire::VERSION,
        id: record.id,
        site: record.site.clone(),
        mesh: world.mesh.name.clone(),
        range: world.mesh.range,
        address: record.address,
        blocks: record.blocks.clone(),
        pins: told.pins,
        coordinators: told.addresses,
        netmap,
        refused,
        node,
    })
}

fn busy(message: &str) -> Refused {
    Refused::new(ErrorCode::Busy, message)
}
