//! What the registry promises, with a file of one statement a line in place of services.toml.

#![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test fails by panicking")]

mod claiming;
mod coordinators;
mod ephemeral;
mod filing;
mod joining;
mod keys;
mod locking;
mod logging;
mod renewing;
mod resting;
mod restoring;
mod storing;
mod succession;
mod vouching;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::base::addr::Flat;
use mesh_proto::base::id::TunnelKey;
use mesh_proto::model::netmap::{LaneInfo, ServicePort, Transport};
use mesh_proto::services::{BackendAt, BackendSpec, Route, ServiceSpec, Services, Site, SiteKind, Span, StaticNode};
use mesh_proto::trust::join_token::TokenSecret;
use mesh_proto::wire::{JoinRequest, NodeFacts};

use super::*;
use crate::store::{Memory, Records, Write};

const NOW: UnixTime = UnixTime(1_000_000);
const BY: Actor = Actor::Operator { uid: 0 };
/// Sites c1 and c2 with the same pods, dc without.
const FILE: &str = "site c1 10.8.0.0/14\nsite c2 10.8.0.0/14\nsite dc\nservice cart n1\nservice catalog vm";

fn later(seconds: u64) -> UnixTime {
    NOW + Duration::from_secs(seconds)
}

/// Reads `name NAME`, `v4 RANGE`, `site NAME [PODS]`, `service NAME HOST…`, `node NAME KEY [SITE]`.
fn parse(text: &str, _: &str) -> Result<Services, String> {
    let mut services = Services::default();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match *words {
            ["name", name] => services.mesh.name = Some(name.parse().unwrap()),
            ["v4", range] => services.mesh.range = range.parse().unwrap(),
            ["site", name, ref pods @ ..] => services.sites.push(Site {
                name: name.parse().unwrap(),
                kind: SiteKind::Hosts,
                pods: pods.iter().map(|prefix| prefix.parse().unwrap()).collect(),
                locality: Vec::new(),
            }),
            ["service", name, ref hosts @ ..] => {
                let backend = |host: &&str| BackendSpec {
                    name: None,
                    at: BackendAt::Host(host.parse().unwrap()),
                    weight: None,
                    port: None,
                    span: Span::default(),
                };
                let port = ServicePort { name: None, transport: Transport::Tcp, port: 80, target: 80 };
                services.services.push(ServiceSpec {
                    key: name.parse().unwrap(),
                    ports: vec![port],
                    backends: hosts.iter().map(backend).collect(),
                    health: None,
                    route: Route::default(),
                    strict: false,
                    span: Span::default(),
                });
            }
            ["node", name, key, ref site @ ..] => services.nodes.push(StaticNode {
                name: name.parse().unwrap(),
                key: TunnelKey([key.parse().unwrap(); 32]),
                endpoint: Some(SocketAddr::from(([203, 0, 113, 9], 7777))),
                site: site.first().map(|site| site.parse().unwrap()),
                span: Span::default(),
            }),
            _ => return Err(format!("`{line}` is not understood")),
        }
    }
    Ok(services)
}

fn setup() -> RegistrySetup {
    RegistrySetup {
        name: "boutique".parse().unwrap(),
        underlay: vec!["192.0.2.1".parse().unwrap()],
        parse,
        epoch: Default::default(),
    }
}

/// A registry in memory with `FILE` in force.
fn registry() -> Registry {
    let mut registry = Registry::open(Box::new(Memory::new()), setup()).unwrap();
    file(&mut registry, FILE).unwrap();
    registry
}

fn file(registry: &mut Registry, text: &str) -> Result<Applied, Refused> {
    file_at(registry, text, NOW)
}

fn file_at(registry: &mut Registry, text: &str, now: UnixTime) -> Result<Applied, Refused> {
    let services = Arc::new(parse(text, "").unwrap());
    registry.apply(Change::Services { file: "services.toml".into(), text: text.into(), services }, BY, now)
}

/// A one-time token for 15 minutes; `number` is its id and its secret.
fn spec(number: u8, site: &str) -> TokenSpec {
    TokenSpec {
        id: [number; 8],
        secret: TokenSecret([number; 32]),
        site: site.parse().unwrap(),
        name: None,
        serve: Vec::new(),
        ttl: Duration::from_secs(900),
        uses: 1,
        ephemeral: false,
    }
}

fn token(registry: &mut Registry, number: u8, site: &str) {
    registry.apply(Change::TokenCreate(spec(number, site)), BY, NOW).unwrap();
}

fn id(number: u8) -> String {
    format!("{number:02x}").repeat(8)
}

/// What the machine of this number says of itself.
fn facts(number: u8, pods: &[&str]) -> NodeFacts {
    NodeFacts {
        lanes: vec![LaneInfo { key: TunnelKey([number; 32]), port: 51820 }],
        endpoints: vec![SocketAddr::from(([192, 0, 2, number], 51820))],
        pods: pods.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        mtu: 1420,
        ..NodeFacts::default()
    }
}

fn request(token: u8, name: &str, facts: NodeFacts) -> JoinRequest {
    JoinRequest {
        version: mesh_proto::wire::VERSION,
        token: id(token),
        secret: TokenSecret([token; 32]),
        oidc: None,
        name: name.parse().unwrap(),
        facts,
        ephemeral: false,
    }
}

fn identity(number: u8) -> IdentityKey {
    IdentityKey([number; 32])
}

fn observed(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

/// The machine of this number asks to join.
fn ask(registry: &mut Registry, number: u8, request: JoinRequest) -> Result<Applied, Refused> {
    let change = Change::Join { identity: identity(number), request, observed: observed(number) };
    registry.apply(change, BY, NOW)
}

/// The machine of this number joins with a token made for it.
fn join(registry: &mut Registry, number: u8, name: &str, site: &str, pods: &[&str]) -> Result<Applied, Refused> {
    token(registry, number, site);
    ask(registry, number, request(number, name, facts(number, pods)))
}

fn report(registry: &mut Registry, number: u8, facts: NodeFacts) -> Result<Applied, Refused> {
    report_at(registry, number, facts, NOW)
}

fn report_at(registry: &mut Registry, number: u8, facts: NodeFacts, now: UnixTime) -> Result<Applied, Refused> {
    let change = Change::Facts { identity: identity(number), facts, observed: observed(number) };
    registry.apply(change, BY, now)
}

fn revoke(registry: &mut Registry, node: &str) -> Result<Applied, Refused> {
    registry.apply(Change::Revoke { node: node.parse().unwrap() }, BY, NOW)
}

fn node(registry: &Registry, name: &str) -> Arc<mesh_proto::world::NodeRecord> {
    Arc::clone(&registry.world().nodes[&name.parse().unwrap()])
}

fn blocks(registry: &Registry, name: &str) -> Vec<String> {
    node(registry, name).blocks.iter().map(|block| format!("{}={}", block.real, block.flat)).collect()
}

fn vip(registry: &Registry, service: &str) -> Option<Flat> {
    registry.world().vips.get(&service.parse().unwrap()).map(|vip| vip.address)
}

/// Says that a change was refused with this code, that the sentence has these parts, and that nothing happened.
#[track_caller]
fn assert_refused(result: Result<Applied, Refused>, code: ErrorCode, parts: &[&str]) {
    let refused = result.unwrap_err();
    assert_eq!(refused.code, code, "{refused}");
    for part in parts {
        assert!(refused.message.contains(part), "`{part}` is missing in: {refused}");
    }
}
