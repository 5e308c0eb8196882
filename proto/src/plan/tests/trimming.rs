//! What a node is not told alters no verdict, and what a change is said to be is what it is.

use super::*;
use crate::base::id::ServiceKey;
use crate::dataplane::policy_index::Question;
use crate::dataplane::view::View;
use crate::packet::{TCP, UDP};
use crate::plan::map::netmap_of;
use crate::plan::visibility::{Level, Sight};

/// The map of one node with all nodes, services and rules.
fn whole(world: &World, node: &NodeName) -> Option<NetMap> {
    let chart = PlanIndex::new(Arc::new(world.clone()));
    let own = chart.node(node)?;
    let peers = (0..chart.nodes.len() as u32).filter(|&peer| peer != own).collect();
    let services = (0..chart.services.len() as u32).map(|service| (service, Level::All)).collect();
    let all = Sight { peers, services, rules: BTreeMap::new() };
    let rules = world.services.allows.iter().map(|allow| allow.rule.clone()).collect();
    Some(NetMap { rules, ..netmap_of(&chart, own, &all, |_| true, |_| true) })
}

fn index(view: &View, key: &ServiceKey) -> Option<u32> {
    let vip = view.netmap().services.get(key)?.vip;
    view.service_by_vip(vip.0).map(|(index, _)| index as u32)
}

/// Every address of a node and behind it.
fn addresses(record: &NodeRecord) -> Vec<Flat> {
    let blocks = record.blocks.iter().map(|block| {
        let host = 9 & u32::from(block.flat.hostmask());
        Flat((u32::from(block.flat.network()) | host).into())
    });
    std::iter::once(record.address).chain(blocks).collect()
}

fn compile(map: NetMap) -> View {
    View::compile(crate::verifier::VerifiedMap::by_hand(map))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_a_node_is_not_told_alters_no_verdict(world in some_world()) {
        for node in NODES.map(name) {
            let (Some(all), Some(told)) = (whole(&world, &node), plan(&world, &node)) else { continue };
            let (all, told) = (compile(all), compile(told));
            let (map, own) = (told.netmap(), &world.nodes[&node]);
            for source in addresses(own) {
                for (key, service) in &all.netmap().services {
                    for port in &service.ports {
                        let before = index(&all, key).and_then(|s| all.access().judge_service(source, s, port.port));
                        let after = index(&told, key).and_then(|s| told.access().judge_service(source, s, port.port));
                        prop_assert_eq!(before.is_some(), after.is_some(), "{} → {}:{}", source, key, port.port);
                        if before.is_some() {
                            prop_assert_eq!(map.services.get(key), Some(service));
                            let mut carriers = service.backends.iter().map(|backend| &backend.node);
                            prop_assert!(carriers.all(|carrier| *carrier == node || map.peers.contains_key(carrier)));
                        }
                    }
                }
            }
            for (other, record) in world.nodes.iter().filter(|(other, _)| **other != node) {
                let targets = all.netmap().services.values().flat_map(|s| s.ports.iter().map(|p| p.target));
                let targets: Vec<_> = targets.chain([9]).collect();
                for (far, near) in addresses(record).into_iter().flat_map(|a| addresses(own).into_iter().map(move |b| (a, b))) {
                    for (&port, protocol) in targets.iter().flat_map(|port| [(port, TCP), (port, UDP)]) {
                        for (source, destination) in [(far, near), (near, far)] {
                            let question = Question { source, destination, protocol, port, service: None };
                            let before = all.access().judge(&question).is_some();
                            // What is allowed to the far end without a VIP is decided there.
                            let after = told.access().judge(&question).is_some();
                            let is_judge = destination == near;
                            prop_assert!(!is_judge || before == after, "{} → {}:{}", source, destination, port);
                            prop_assert!(!before || map.peers.contains_key(other), "{} sees {}", node, other);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn whoever_sees_is_seen(world in some_world()) {
        let maps = NODES.map(|node| plan(&world, &name(node)));
        for map in maps.iter().flatten() {
            for peer in map.peers.keys() {
                let other = maps.iter().flatten().find(|other| other.node.name == *peer).unwrap();
                prop_assert!(other.peers.contains_key(&map.node.name));
            }
        }
    }

    #[test]
    fn a_transition_tells_each_node_what_differs_and_nobody_else(
        old in some_world(),
        other in some_world(),
        mixture in any::<[bool; NODES.len() + 2]>(),
    ) {
        // A later world that keeps some of the older one's nodes, its file, or its addresses.
        let mut new = old.clone();
        new.revision = Revision(old.revision.0 + 1);
        for (node, _) in NODES.iter().zip(mixture).filter(|(_, taken)| *taken) {
            match other.nodes.get(&name(node)) {
                Some(record) => new.insert_node(name(node), NodeRecord::clone(record)),
                None => drop(new.remove_node(&name(node))),
            }
        }
        if mixture[NODES.len()] {
            new.services = Arc::clone(&other.services);
        }
        if mixture[NODES.len() + 1] {
            new.vips = Arc::clone(&other.vips);
        }
        let chart = |world: &World| Arc::new(PlanIndex::new(Arc::new(world.clone())));
        let transition = Transition::between(chart(&old), chart(&new));
        let concerned = transition.concerned();
        let mut told: Vec<(DeltaKey, Delta)> = Vec::new();
        for node in NODES.map(name) {
            let delta = transition.delta(&node);
            let expected = plan(&old, &node).zip(plan(&new, &node)).map(|(a, b)| Delta::between(&a, &b));
            prop_assert_eq!(&delta, &expected);
            let Some(delta) = delta else { continue };
            prop_assert!(delta.is_empty() || concerned.as_ref().is_none_or(|nodes| nodes.contains(&node)));
            let Some(outline) = transition.outline(&node) else { continue };
            match told.iter().find(|(known, _)| *known == outline) {
                Some((_, known)) => prop_assert_eq!(known, &delta),
                None => told.push((outline, delta)),
            }
        }
    }
}

#[test]
fn a_node_is_told_of_whom_it_may_call_and_who_may_call_it() {
    let specs = ["front", "cart", "ads", "db"].map(|key| spec(key, vec![port(80, 80)], Vec::new()));
    let mut specs = specs.to_vec();
    for (spec, node) in specs.iter_mut().zip(["n1", "n2", "vm", "vm"]) {
        spec.backends.push(backend(node, None));
    }
    let mut world = three_nodes(specs);
    let allows = vec![
        allow(1, &["front", "ads"], &["cart", "db"]),
        allow(2, &["site:c2"], &["host:n2"]),
        allow(3, &["sa:default/x"], &["any"]),
    ];
    world.services = Arc::new(Services { allows, ..Services::clone(&world.services) });
    let told = |node: &str| {
        let map = plan(&world, &name(node)).unwrap();
        let words = |words: Vec<String>| words.join(" ");
        (
            words(map.peers.keys().map(ToString::to_string).collect()),
            words(map.services.keys().map(ToString::to_string).collect()),
            words(
                map.rules.iter().map(|rule| format!("{}:{}→{}", rule.line, rule.from.len(), rule.to.len())).collect(),
            ),
            map.names.len(),
        )
    };
    let is = |peers: &str, services: &str, rules: &str| (peers.to_owned(), services.to_owned(), rules.to_owned(), 4);
    assert_eq!(told("n1"), is("n2 vm", "cart db front", "1:1→2 3:1→1"));
    assert_eq!(told("n2"), is("n1 vm", "ads cart front", "1:2→1 2:1→1 3:1→1"));
    assert_eq!(told("vm"), is("n1 n2", "ads cart db front", "1:1→2 1:1→1 3:1→1"));
}
