//! The sentences of `differences`.

use super::*;

/// Takes a world of two services and two rules, and says what an edit of its file changes.
fn told(edit: impl FnOnce(&mut Services)) -> Vec<String> {
    let mut old = three_nodes(vec![
        spec("cart", vec![port(7070, 7070)], vec![backend("10.8.0.9@n1", None)]),
        spec("catalog", vec![port(3550, 3550)], vec![backend("vm", Some(80)), backend("n2", Some(20))]),
    ]);
    let allows = vec![allow(70, &["frontend", "checkout"], &["cart"]), allow(80, &["any"], &["catalog:3550"])];
    old.services = Arc::new(Services { allows, ..Services::clone(&old.services) });
    let mut services = Services::clone(&old.services);
    edit(&mut services);
    let mut new = old.clone();
    new.mesh.range = services.mesh.range;
    new.mesh.domains = services.mesh.domains.clone();
    let mut vips = BTreeMap::clone(&old.vips);
    vips.retain(|key, _| services.services.iter().any(|spec| spec.key == *key));
    for spec in &services.services {
        let vip = Vip { id: ServiceId(9), address: Flat([241, 0, 0, 7].into()) };
        vips.entry(spec.key.clone()).or_insert(vip);
    }
    new.vips = Arc::new(vips);
    new.services = Arc::new(services);
    differences(&old, &new)
}

#[test]
fn a_removed_permission_is_told_with_its_line() {
    let removed = |services: &mut Services| drop(services.allows[0].rule.from.remove(0));
    assert_eq!(told(removed), ["frontend may no longer call cart:7070 (services.toml:70 removed)"]);
}

#[test]
fn a_new_permission_is_told_with_its_line() {
    let added = |services: &mut Services| services.allows.push(allow(99, &["host:vm"], &["cart:7070"]));
    assert_eq!(told(added), ["host:vm may now call cart:7070 (services.toml:99)"]);
}

#[test]
fn a_permission_that_another_rule_gives_too_is_no_news() {
    let moved = |services: &mut Services| {
        services.allows.push(allow(99, &["frontend"], &["catalog"]));
        services.allows.push(allow(100, &["frontend", "checkout"], &["cart:7070"]));
        services.allows.remove(0);
    };
    assert_eq!(told(moved), Vec::<String>::new());
}

#[test]
fn a_weight_is_told_with_whom_it_concerns() {
    let edit = |services: &mut Services| services.services[1].backends[0].weight = Some(50);
    assert_eq!(told(edit), ["catalog: weight of backend host vm 80 → 50; concerns all callers"]);
    let edit = |services: &mut Services| services.services[0].backends[0].weight = Some(0);
    let said = told(edit);
    assert_eq!(said[0], "cart: weight of backend 10.8.0.9 on n1 100 → 0; concerns checkout and frontend");
    assert_eq!(said[1], "cart: prefers all backends alike instead of near backends; concerns checkout and frontend");
}

#[test]
fn services_that_come_and_go_are_told_with_their_addresses() {
    let added = |services: &mut Services| services.services.push(spec("x", vec![port(1, 1)], vec![]));
    assert_eq!(told(added), ["new service x gets 241.0.0.7; concerns nobody: no [[allow]] names it"]);
    let removed = |services: &mut Services| drop(services.services.remove(0));
    let said = told(removed);
    assert_eq!(said, ["service cart is removed; 241.0.0.1 rests for 10 minutes; concerns checkout and frontend"]);
}

#[test]
fn ports_backends_and_routes_are_told() {
    let edit = |services: &mut Services| {
        let catalog = &mut services.services[1];
        catalog.ports[0].target = 8080;
        catalog.backends[1] = backend("late", Some(20));
        catalog.route.sticky = true;
    };
    let said = told(edit);
    let expected = [
        "catalog: port 3550/tcp → 3550->8080/tcp; concerns all callers",
        "catalog: new backend host late (host late, weight 20); concerns all callers",
        "catalog: backend host n2 is removed; concerns all callers",
        "catalog: the same client keeps the same backend; concerns all callers",
    ];
    assert_eq!(said[..4], expected);
    assert!(said.len() == 5 && said[4].starts_with("warning: catalog: node `late` has not joined"), "{said:?}");
}

#[test]
fn no_sentence_promises_what_nothing_does() {
    let edit = |services: &mut Services| {
        let check = HealthCheck::Tcp;
        let every = std::time::Duration::from_secs(2);
        let catalog = &mut services.services[1];
        catalog.strict = true;
        catalog.health = Some(HealthSettings { check, every, fall: 3, rise: 2 });
        catalog.route.spill_below = 0.5;
        catalog.route.max_conn_age = Some(every);
        catalog.route.retry_syn = false;
        services.allows.push(allow(99, &["sa:default/loadgen"], &["cart"]));
    };
    assert_eq!(told(edit), Vec::<String>::new());
}

#[test]
fn the_mesh_and_its_sites_are_told() {
    let edit = |services: &mut Services| {
        services.mesh.range = "10.200.0.0/16".parse().unwrap();
        services.sites[0].pods.clear();
        services.sites[2] = site("edge", "");
    };
    let said = told(edit);
    assert_eq!(
        said[0],
        "the mesh range becomes 10.200.0.0/16 instead of 241.0.0.0/8; every service gets a new address"
    );
    assert_eq!(said[1], "site c1: its nodes may claim blocks of nothing instead of 10.8.0.0/14");
    assert_eq!(said[2..], ["new site edge: tokens may be made for it", "site dc is removed"]);
}

#[test]
fn nodes_that_come_go_and_change_their_pods_are_told() {
    let old = three_nodes(vec![]);
    let mut new = old.clone();
    new.remove_node(&name("n1"));
    new.insert_node(name("n9"), record(9, "c1", &[]));
    edit(&mut new, "n2", |n2| n2.blocks.clear());
    let expected = [
        "node n2: its pods 10.8.0.0/24 are no longer 241.2.2.0/24 in the mesh",
        "new node n9 of site c1 gets 241.1.0.9",
        "node n1 is removed; 241.1.0.1 rests for 10 minutes",
    ];
    assert_eq!(differences(&old, &new), expected);
}
