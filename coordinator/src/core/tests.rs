//! What the core promises when many ask at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::sync::mpsc;

use mesh_proto::base::id::{IdentityKey, TunnelKey};
use mesh_proto::model::netmap::LaneInfo;
use mesh_proto::services::{self, Services};
use mesh_proto::trust::join_token::TokenSecret;
use mesh_proto::wire::{ErrorCode, JoinRequest, NodeFacts, VERSION};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::*;
use crate::core::limits::{Limits, MAX_WAITING};
use crate::registry::{RegistrySetup, TokenSpec};
use crate::store::Memory;

const FILE: &str = "version = 1\n[[site]]\nname = \"dc\"\n";

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
pub(crate) const STRANGER: Actor = Actor::Stranger(ADDRESS);

/// A core on a store in memory, with `FILE` in force.
pub(crate) async fn core() -> Arc<Core> {
    let parse = |text: &str, file: &str| -> Result<Services, String> {
        services::parse(text, file).map(|parsed| parsed.services).map_err(|found| found.lines().join("; "))
    };
    let setup =
        RegistrySetup { name: "boutique".parse().unwrap(), underlay: Vec::new(), parse, epoch: Default::default() };
    let registry = Registry::open(Box::new(Memory::new()), setup).unwrap();
    let core = Core::new(registry);
    let services = Arc::new(parse(FILE, "services.toml").unwrap());
    core.apply(Change::Services { file: "services.toml".into(), text: FILE.into(), services }, Actor::File)
        .await
        .unwrap();
    core
}

/// 256 bits that stand for a number.
pub(crate) fn bytes(number: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

pub(crate) async fn token(core: &Arc<Core>, number: u32) {
    let mut id = [0; 8];
    id[..4].copy_from_slice(&number.to_be_bytes());
    let spec = TokenSpec {
        ephemeral: false,
        id,
        secret: TokenSecret(bytes(number)),
        site: "dc".parse().unwrap(),
        name: None,
        serve: Vec::new(),
        ttl: Duration::from_secs(900),
        uses: 1,
    };
    core.apply(Change::TokenCreate(spec), Actor::Coordinator).await.unwrap();
}

/// Machine `machine` asks to join with token `token`.
pub(crate) fn join(token: u32, machine: u32) -> Change {
    let key = bytes(machine);
    let facts =
        NodeFacts { lanes: vec![LaneInfo { key: TunnelKey(key), port: 51820 }], mtu: 1420, ..NodeFacts::default() };
    let request = JoinRequest {
        ephemeral: false,
        version: VERSION,
        token: format!("{token:08x}00000000"),
        secret: TokenSecret(bytes(token)),
        oidc: None,
        name: format!("n{machine}").parse().unwrap(),
        facts,
    };
    Change::Join { identity: IdentityKey(key), request, observed: ADDRESS }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_racers_for_a_thousand_one_time_tokens_make_a_thousand_nodes() {
    const RACERS: u32 = 64;
    const TOKENS: u32 = 1000;
    let core = core().await;
    for number in 0..TOKENS {
        token(&core, number).await;
    }
    let start = Arc::new(Barrier::new(RACERS as usize));
    let mut racers = JoinSet::new();
    for racer in 0..RACERS {
        let (core, start) = (Arc::clone(&core), Arc::clone(&start));
        racers.spawn(async move {
            let mut won = Vec::new();
            for number in 0..TOKENS {
                // All of them want the same token at the same time, each as another machine.
                start.wait().await;
                let machine = racer * TOKENS + number;
                match core.apply(join(number, machine), STRANGER).await {
                    Ok(applied) => won.push((number, machine, applied.node)),
                    Err(refused) => assert_eq!(refused.code, ErrorCode::Token, "{refused}"),
                }
            }
            won
        });
    }
    let won: Vec<_> = racers.join_all().await.into_iter().flatten().collect();
    assert_eq!((won.len(), core.world().nodes.len()), (1000, 1000));

    // The acknowledgement was lost: who asks again is the same node, and nothing is used up or altered.
    let before = core.world().revision;
    for (number, machine, node) in won {
        assert_eq!(core.apply(join(number, machine), STRANGER).await.unwrap().node, node);
    }
    assert_eq!(core.world().revision, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_take_no_place_of_members() {
    let core = core().await;
    token(&core, 0).await;
    core.apply(join(0, 0), STRANGER).await.unwrap();
    let (held, hold) = (Arc::clone(&core), mpsc::channel::<()>());
    let (release, blocked) = hold;
    let holder = tokio::spawn(async move { held.with(move |_| blocked.recv()).await });

    let limits = Arc::new(Limits::new());
    let mut strangers = JoinSet::new();
    for machine in 1..=1000 {
        let (core, limits) = (Arc::clone(&core), Arc::clone(&limits));
        strangers.spawn(async move {
            let _turn = limits.strangers_turn().await?;
            core.apply(join(7, machine), STRANGER).await
        });
    }
    while limits.turns_left().1 > 0 {
        tokio::task::yield_now().await;
    }
    let member = tokio::spawn({
        let (core, limits) = (Arc::clone(&core), Arc::clone(&limits));
        async move {
            let _turn = limits.members_turn()?;
            core.apply(join(0, 0), STRANGER).await
        }
    });
    while limits.turns_left().0 == MAX_WAITING {
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();

    assert_eq!(member.await.unwrap().unwrap().node, Some("n0".parse().unwrap()));
    for answer in strangers.join_all().await {
        assert!(answer.is_err());
    }
    assert!(holder.await.unwrap().is_ok());
    assert_eq!(core.world().nodes.len(), 1);
}
