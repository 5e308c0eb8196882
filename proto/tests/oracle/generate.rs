//! Seeded meshes, and changes to them: clusters with the same pod addresses, services, rules.

use std::net::Ipv4Addr;

use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::base::block_map::BlockMap;
use mesh_proto::base::id::{NodeId, NodeName, Revision, ServiceId, ServiceKey, TunnelKey};
use mesh_proto::model::netmap::{Backend, LaneInfo, Mesh, NetMap, OwnNode, Peer, Service, ServicePort, Transport};
use mesh_proto::model::rules::Rule;

/// Numbers by SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Says yes in `percent` of all cases.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Returns one of several.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// A node as the coordinator knows it.
#[derive(Debug, Clone)]
pub(crate) struct ModelNode {
    pub(crate) id: NodeId,
    pub(crate) name: NodeName,
    pub(crate) site: usize,
    pub(crate) address: Ipv4Addr,
    pub(crate) blocks: Vec<BlockMap>,
    guarded: bool,
    mtu: u16,
}

impl ModelNode {
    /// Returns the pods' own addresses and their images.
    pub(crate) fn pods(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let at = |net: Ipv4Addr, host: u32| Ipv4Addr::from(u32::from(net) + host);
        let pods = |b: &BlockMap| [10, 11, 12].map(|h| (at(b.real.network(), h), at(b.flat.network(), h)));
        self.blocks.iter().flat_map(pods).collect()
    }
}

/// What the coordinator knows.
#[derive(Debug, Clone)]
pub(crate) struct ModelWorld {
    pub(crate) revision: u64,
    pub(crate) nodes: Vec<ModelNode>,
    /// The services; a backend's tier is that of another site.
    pub(crate) services: Vec<(ServiceKey, Service)>,
    pub(crate) rules: Vec<Rule>,
}

/// Addresses of the host that are no mesh addresses.
pub(crate) const LOCALS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 7, 1), Ipv4Addr::new(172, 17, 0, 1)];
/// The router before every node's pods in 10.8.0.0/16, and before nothing else.
pub(crate) const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const WEIGHTS: [u32; 9] = [100, 100, 100, 1, 2, 3, 80, 20, 0];

impl ModelWorld {
    /// Makes a mesh.
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let sites = 1 + dice.below(3);
        let count = 1 + dice.below(5);
        let mut world = Self { revision: 1, nodes: Vec::new(), services: Vec::new(), rules: Vec::new() };
        for i in 0..count {
            let site = dice.below(sites);
            let place = world.nodes.iter().filter(|n| n.site == site).count();
            world.nodes.push(node(dice, i, site, place));
        }
        for i in 0..1 + dice.below(4) {
            let service = world.service(dice, i);
            world.services.push(service);
        }
        for line in 0..1 + dice.below(6) {
            let rule = world.rule(dice, line as u32 + 1);
            world.rules.push(rule);
        }
        world
    }

    /// Returns the map of a node.
    pub(crate) fn map(&self, index: usize) -> NetMap {
        let own = &self.nodes[index];
        let peers = self.nodes.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, n)| (n.name.clone(), peer(n)));
        let site = |name: &NodeName| self.nodes.iter().find(|n| n.name == *name).map(|n| n.site);
        let services = self.services.iter().map(|(key, service)| {
            let mut service = service.clone();
            for backend in &mut service.backends {
                backend.tier *= u8::from(site(&backend.node) != Some(own.site));
            }
            (key.clone(), service)
        });
        NetMap {
            epoch: Default::default(),
            sites: Default::default(),
            revision: Revision(self.revision),
            mesh: Mesh {
                name: "oracle".parse().unwrap(),
                range: MeshRange::default(),
                domains: vec!["mesh.internal".parse().unwrap()],
                coordinators: Vec::new(),
                lock: None,
            },
            node: OwnNode {
                sequence: 0,
                id: own.id,
                name: own.name.clone(),
                site: site_name(own.site),
                address: Flat(own.address),
                blocks: own.blocks.clone(),
                guarded: own.guarded,
            },
            peers: peers.collect(),
            services: services.collect(),
            names: Default::default(),
            rules: self.rules.clone(),
            warnings: Vec::new(),
        }
    }

    /// Changes something; says what.
    pub(crate) fn change(&mut self, dice: &mut Dice, engines: usize) -> String {
        self.revision += 1;
        let service = dice.below(self.services.len());
        match dice.below(10) {
            0 if !self.rules.is_empty() => {
                let index = dice.below(self.rules.len());
                let gone = self.rules.remove(index);
                format!("rule {:?} -> {:?} removed", gone.from, gone.to)
            }
            1 | 2 => {
                let rule = self.rule(dice, 90);
                let text = format!("rule {:?} -> {:?} added", rule.from, rule.to);
                self.rules.push(rule);
                text
            }
            3 | 4 => {
                let (key, service) = &mut self.services[service];
                let backend = dice.below(service.backends.len());
                if backend < service.backends.len() {
                    service.backends.remove(backend);
                }
                format!("backend {backend} of {key} removed")
            }
            5 => {
                let (key, service) = &mut self.services[service];
                service.backends.first_mut().into_iter().for_each(|b| b.weight = 0);
                format!("first backend of {key} drained")
            }
            6 => {
                let (key, old) = self.services[service].clone();
                let fresh = self.service(dice, service).1;
                self.services[service].1 = Service { ports: fresh.ports, backends: fresh.backends, ..old };
                format!("ports and backends of {key} replaced")
            }
            7 if self.nodes.len() > engines => {
                let gone = self.nodes.remove(engines);
                for (_, service) in &mut self.services {
                    service.backends.retain(|b| b.node != gone.name);
                }
                format!("node {} revoked", gone.name)
            }
            8 if self.nodes.len() > 1 => {
                let one = dice.below(self.nodes.len() - 1);
                let other = one + 1 + dice.below(self.nodes.len() - one - 1);
                self.exchange(one, other)
            }
            _ => "nothing but the revision changed".into(),
        }
    }

    /// Lets two nodes exchange the images of their first pods: every address of them has another owner.
    fn exchange(&mut self, one: usize, other: usize) -> String {
        let (left, right) = self.nodes.split_at_mut(other);
        let (one, other) = (&mut left[one], &mut right[0]);
        let (Some(a), Some(b)) = (one.blocks.first_mut(), other.blocks.first_mut()) else {
            return "nothing but the revision changed".into();
        };
        if a.flat.prefix_len() != b.flat.prefix_len() {
            return "nothing but the revision changed".into();
        }
        std::mem::swap(&mut a.flat, &mut b.flat);
        for backend in self.services.iter_mut().flat_map(|(_, service)| &mut service.backends) {
            for (flat, node) in [(a.flat, &one.name), (b.flat, &other.name)] {
                if flat.contains(&backend.address.0) {
                    backend.node = node.clone();
                }
            }
        }
        format!("{} and {} exchanged {} and {}", one.name, other.name, b.flat, a.flat)
    }

    fn service(&self, dice: &mut Dice, index: usize) -> (ServiceKey, Service) {
        let key = if index == 1 { "s1.prod".into() } else { format!("s{index}") };
        let both = dice.chance(40);
        let target = dice.pick(&[80, 7070, 8080]);
        let port = |transport, port, target| ServicePort { name: None, transport, port, target };
        let mut ports = vec![port(Transport::Tcp, 7070, target)];
        if dice.chance(60) {
            ports.push(port(Transport::Udp, 7070, target));
        }
        if both {
            ports.push(port(Transport::Tcp, 80, 8081));
        }
        let mut backends: Vec<Backend> = Vec::new();
        for _ in 0..dice.below(5) {
            let node = dice.pick(&self.nodes);
            let pods: Vec<_> = node.pods().into_iter().filter(|(real, _)| !real.is_link_local()).collect();
            let on_host = pods.is_empty() || dice.chance(30);
            let address = if on_host { node.address } else { dice.pick(&pods).1 };
            if backends.iter().all(|b| b.address.0 != address) {
                backends.push(Backend {
                    name: None,
                    node: node.name,
                    address: Flat(address),
                    port: (ports.len() == 1 && dice.chance(30)).then_some(9090),
                    weight: dice.pick(&WEIGHTS),
                    tier: dice.below(3) as u8,
                });
            }
        }
        let vip = Flat(Ipv4Addr::new(241, 0, 0, index as u8 + 1));
        let sticky = dice.chance(15);
        let service = Service {
            id: ServiceId(index as u32 + 1),
            vip,
            ports,
            backends,
            grants: Default::default(),
            sticky,
            strict: false,
        };
        (key.parse().unwrap(), service)
    }

    fn rule(&self, dice: &mut Dice, line: u32) -> Rule {
        let node = |dice: &mut Dice| dice.pick(&self.nodes).name;
        let service = |dice: &mut Dice| match self.services.len() {
            0 => "s0".into(),
            n => self.services[dice.below(n)].0.to_string(),
        };
        let source = |dice: &mut Dice| match dice.below(8) {
            0 | 1 => service(dice),
            2 | 3 => format!("host:{}", node(dice)),
            4 | 5 => format!("site:c{}", dice.below(3)),
            6 => "sa:default/s0".into(),
            _ => "any".into(),
        };
        let target = |dice: &mut Dice| match dice.below(10) {
            0..=2 => service(dice),
            3..=5 => format!("{}:{}", service(dice), dice.pick(&[7070, 80])),
            6 | 7 => format!("host:{}", node(dice)),
            8 => format!("site:c{}", dice.below(3)),
            _ => "any".into(),
        };
        let from = (0..1 + dice.below(2)).map(|_| source(dice).parse().unwrap()).collect();
        let to = (0..1 + dice.below(3)).map(|_| target(dice).parse().unwrap()).collect();
        Rule { file: "services.toml".into(), line, from, to }
    }
}

fn site_name(index: usize) -> mesh_proto::base::id::SiteName {
    format!("c{index}").parse().unwrap()
}

/// Makes a node; every cluster has the same pod prefix, and two prefixes may have different host parts.
fn node(dice: &mut Dice, index: usize, site: usize, place: usize) -> ModelNode {
    let block = |real: String, flat: String| BlockMap { real: real.parse().unwrap(), flat: flat.parse().unwrap() };
    let mut blocks = Vec::new();
    if dice.chance(90) {
        blocks.push(block(format!("10.8.{place}.0/24"), format!("241.2.{index}.0/24")));
    }
    if dice.chance(40) {
        blocks.push(block(format!("10.9.{place}.64/26"), format!("241.3.{index}.128/26")));
    }
    if dice.chance(10) {
        blocks.push(block("169.254.7.0/24".into(), format!("241.4.{index}.0/24")));
    }
    ModelNode {
        id: NodeId(index as u32 + 1),
        name: format!("n{index}").parse().unwrap(),
        site,
        address: Ipv4Addr::new(241, 1, 0, index as u8 + 1),
        blocks,
        guarded: dice.chance(75),
        mtu: dice.pick(&[1420, 1420, 1280, 1000]),
    }
}

fn peer(node: &ModelNode) -> Peer {
    Peer {
        previous: Vec::new(),
        countersigned: None,
        agreement: Vec::new(),
        proof: None,
        id: node.id,
        site: site_name(node.site),
        address: Flat(node.address),
        blocks: node.blocks.iter().map(|b| b.flat).collect(),
        lanes: vec![LaneInfo { key: TunnelKey([node.id.0 as u8; 32]), port: 51820 }],
        endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
        mtu: node.mtu,
        guarded: node.guarded,
    }
}
