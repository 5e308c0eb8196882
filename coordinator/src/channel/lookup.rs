//! `GET /v1/about?name=WORD`: what a node asks that shall explain why it cannot reach a node that it is not told of.

use std::net::Ipv4Addr;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use mesh_proto::wire::{About, ErrorCode};
use mesh_proto::world::World;
use serde::Deserialize;

use crate::channel::context::Context;
use crate::channel::peer::Requester;
use crate::core::failure::{Rejection, words};

/// Whom is asked about: a node's name, or an address of a node or behind one.
#[derive(Deserialize)]
pub(crate) struct Whom {
    name: String,
}

/// Answers a member.
pub(crate) async fn about(
    State(context): State<Context>,
    Extension(peer): Extension<Requester>,
    whom: Result<Query<Whom>, QueryRejection>,
) -> Result<Json<About>, Rejection> {
    let Whom { name } = words(whom, "/v1/about?name=NODE")?;
    context.asking_member(&peer).await?;
    find(&context.core.world(), &name).map(Json).ok_or_else(|| {
        let message =
            format!("no node of this mesh has the name or address `{name}`; mesh-coordinator nodes lists them");
        Rejection::new(ErrorCode::UnknownName, message)
    })
}

fn find(world: &World, word: &str) -> Option<About> {
    let address: Option<Ipv4Addr> = word.parse().ok();
    let (node, record) = match address {
        None => world.nodes.get_key_value(&word.parse().ok()?)?,
        Some(address) => world.nodes.iter().find(|(_, record)| {
            let mut blocks = record.blocks.iter();
            record.address.0 == address || blocks.any(|block| block.flat.contains(&address))
        })?,
    };
    Some(About { node: node.clone(), site: record.site.clone(), address: record.address })
}
