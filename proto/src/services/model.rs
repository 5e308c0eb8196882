//! What a services.toml says, after every word of it was checked.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::base::addr::MeshRange;
use crate::base::id::{BackendName, Domain, MeshName, NodeName, ServiceKey, SiteName, TunnelKey};
use crate::model::netmap::ServicePort;
use crate::model::rules::{Rule, RuleTarget, Source};

/// A place in the file: bytes `start..end`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// The coordinator's services.toml.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    /// `[mesh]`.
    pub mesh: MeshSection,
    /// `[[site]]`, in the order of the file; names are distinct.
    pub sites: Vec<Site>,
    /// `[[service]]`, in the order of the file; keys are distinct.
    pub services: Vec<ServiceSpec>,
    /// `[[allow]]`, in the order of the file.
    pub allows: Vec<Allow>,
    /// `[[test]]`, in the order of the file.
    pub tests: Vec<Test>,
    /// `[[node]]`: static, plain WireGuard peers; names are distinct.
    pub nodes: Vec<StaticNode>,
    /// Words that do nothing, a line each with file, line and column; at most 100, and none in a text that is new.
    pub idle: Vec<String>,
}

/// `[mesh]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSection {
    /// `name`; the name given at `init` where the file says none.
    pub name: Option<MeshName>,
    /// `domains`; never empty.
    pub domains: Vec<Domain>,
    /// `v4`.
    pub range: MeshRange,
}

/// `[[site]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// `name`.
    pub name: SiteName,
    /// `kind`.
    pub kind: SiteKind,
    /// `pods`: the prefixes within which its nodes may claim blocks.
    pub pods: Vec<Ipv4Net>,
    /// `locality`, split at the slash: region, then zone.
    pub locality: Vec<String>,
}

/// `kind` of a site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SiteKind {
    /// A group of hosts.
    #[default]
    Hosts,
    /// A Kubernetes cluster.
    Kubernetes,
}

/// `[[service]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// `name` and `namespace`.
    pub key: ServiceKey,
    /// `port` or `ports`; never empty.
    pub ports: Vec<ServicePort>,
    /// `backends`.
    pub backends: Vec<BackendSpec>,
    /// `health`.
    pub health: Option<HealthSettings>,
    /// `route`.
    pub route: Route,
    /// `strict`.
    pub strict: bool,
    /// Where its table stands.
    pub span: Span,
}

/// One of `backends`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSpec {
    /// `name`.
    pub name: Option<BackendName>,
    /// `host`, or `addr` and `node`.
    pub at: BackendAt,
    /// `weight`, if the file states one; 100 where it does not.
    pub weight: Option<u32>,
    /// `port`: the target port of this backend.
    pub port: Option<u16>,
    /// Where it stands.
    pub span: Span,
}

/// Where a backend runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendAt {
    /// `host`: on a node, at its own mesh address.
    Host(NodeName),
    /// `addr` and `node`: in a pod behind a node.
    Pod {
        /// The pod's own address.
        addr: Ipv4Addr,
        /// The node it is behind.
        node: NodeName,
    },
}

impl BackendAt {
    /// Returns the node that carries the backend.
    pub fn node(&self) -> &NodeName {
        match self {
            Self::Host(node) | Self::Pod { node, .. } => node,
        }
    }
}

/// `health`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSettings {
    /// What is asked.
    pub check: HealthCheck,
    /// `every`.
    pub every: Duration,
    /// `fall`: failures in a row until a backend is down.
    pub fall: u32,
    /// `rise`: successes in a row until it is up again.
    pub rise: u32,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// Whether the port accepts a connection.
    Tcp,
    /// Whether this path answers 2xx or 3xx.
    Http(String),
    /// Whether grpc.health.v1 says SERVING.
    Grpc,
}

/// `route`.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// `prefer`; by default `Spread` if any backend states a weight, else `Locality`.
    pub prefer: Option<Prefer>,
    /// `spill_below`: between 0 and 1.
    pub spill_below: f64,
    /// `sticky = "client"`.
    pub sticky: bool,
    /// `max_conn_age`.
    pub max_conn_age: Option<Duration>,
    /// `retry_syn`.
    pub retry_syn: bool,
}

impl Eq for Route {}

/// `prefer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prefer {
    /// Near backends first.
    Locality,
    /// All backends alike.
    Spread,
    /// These sites, in this order, then the rest.
    Sites(Vec<SiteName>),
}

/// `[[allow]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// The permission, with its file and line.
    pub rule: Rule,
    /// Where its table stands.
    pub span: Span,
}

/// `[[test]]`: what must hold before a file is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// `from`.
    pub from: Source,
    /// `accept`, with the place of each.
    pub accept: Vec<(RuleTarget, Span)>,
    /// `deny`, with the place of each.
    pub deny: Vec<(RuleTarget, Span)>,
    /// Where its table stands.
    pub span: Span,
}

/// `[[node]]`: a static, plain WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticNode {
    /// `name`.
    pub name: NodeName,
    /// `key`.
    pub key: TunnelKey,
    /// `endpoint`.
    pub endpoint: Option<SocketAddr>,
    /// `site`, if the file says one.
    pub site: Option<SiteName>,
    /// Where its table stands.
    pub span: Span,
}

/// `[[serve]]` of a node's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeSpec {
    /// `service`.
    pub service: ServiceKey,
    /// `port`, if it differs from the service's target.
    pub port: Option<u16>,
    /// `bind`: a loopback address that meshd splices connections to.
    pub bind: Option<SocketAddr>,
    /// `health`.
    pub health: Option<HealthSettings>,
    /// Where its table stands.
    pub span: Span,
}

impl Default for MeshSection {
    fn default() -> Self {
        Self { name: None, domains: "mesh.internal".parse().into_iter().collect(), range: MeshRange::default() }
    }
}

impl Default for Route {
    fn default() -> Self {
        Self { prefer: None, spill_below: 0.0, sticky: false, max_conn_age: None, retry_syn: true }
    }
}
