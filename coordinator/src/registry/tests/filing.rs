//! A new services.toml.

use super::*;

#[test]
fn services_keep_their_addresses_and_new_ones_get_the_next() {
    let mut registry = registry();
    let before = (vip(&registry, "cart"), vip(&registry, "catalog"));
    file(&mut registry, &format!("service first\n{FILE}")).unwrap();
    assert_eq!((vip(&registry, "cart"), vip(&registry, "catalog")), before);
    assert_eq!(vip(&registry, "first").unwrap().to_string(), "241.0.0.3");
}

#[test]
fn the_address_of_a_removed_service_rests_but_returns_to_it() {
    let mut registry = registry();
    let cart = vip(&registry, "cart");
    let without = FILE.replace("service cart n1", "service other");
    file(&mut registry, &without).unwrap();
    assert_eq!(vip(&registry, "cart"), None);
    assert_ne!(vip(&registry, "other"), cart);
    file_at(&mut registry, FILE, later(599)).unwrap();
    assert_eq!(vip(&registry, "cart"), cart);
}

#[test]
fn the_same_file_again_costs_no_revision() {
    let mut registry = registry();
    let before = registry.world();
    assert!(!file(&mut registry, FILE).unwrap().altered);
    assert_eq!(registry.world(), before);
    assert!(file(&mut registry, &format!("{FILE}\n")).unwrap().altered, "another text is stored");
}

#[test]
fn the_mesh_range_may_change_before_the_first_join_and_not_after() {
    let mut registry = registry();
    let moved = format!("v4 10.200.0.0/16\nnode plain 9\n{FILE}");
    file(&mut registry, &moved).unwrap();
    assert_eq!(vip(&registry, "cart").unwrap().to_string(), "10.200.0.1");
    assert_eq!(node(&registry, "plain").address.to_string(), "10.200.1.1");
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24"]).unwrap();
    let result = file(&mut registry, FILE);
    assert_refused(result, ErrorCode::Services, &["10.200.0.0/16 and cannot become 241.0.0.0/8 after the first join"]);
    revoke(&mut registry, "n1").unwrap();
    file(&mut registry, FILE).unwrap();
    assert_eq!(vip(&registry, "cart").unwrap().to_string(), "241.0.0.1");
}

#[test]
fn a_file_may_not_take_the_ground_from_under_a_node() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24"]).unwrap();
    let gone = file(&mut registry, &FILE.replace("site c1 10.8.0.0/14\n", ""));
    assert_refused(gone, ErrorCode::Services, &["site `c1` is gone, but node `n1` belongs to it"]);
    let narrow = file(&mut registry, &FILE.replacen("10.8.0.0/14", "10.9.0.0/16", 1));
    assert_refused(narrow, ErrorCode::Services, &["10.8.0.0/24 of node `n1` would lie outside"]);
    file(&mut registry, &FILE.replacen("10.8.0.0/14", "10.9.0.0/16 10.8.0.0/16", 1)).unwrap();
}

#[test]
fn all_contradictions_of_a_file_are_told_at_once() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24"]).unwrap();
    join(&mut registry, 2, "vm", "dc", &[]).unwrap();
    let result = file(&mut registry, "v4 10.200.0.0/16\nsite dc\nnode vm 7\nnode x 1\nnode dc 8");
    let parts = [
        "after the first join",
        "site `c1` is gone",
        "`vm` has the name of a member",
        "the tunnel key of node `n1`",
        "`dc` has the name of a site",
    ];
    assert_refused(result, ErrorCode::Services, &parts);
}

#[test]
fn static_nodes_come_change_and_go_with_the_file() {
    let mut registry = registry();
    let with = |line: &str| format!("{FILE}\n{line}");
    file(&mut registry, &with("node plain 9")).unwrap();
    let first = node(&registry, "plain");
    assert_eq!((first.identity, first.site.as_str()), (None, "plain"));
    assert_eq!(first.facts.lanes, [LaneInfo { key: TunnelKey([9; 32]), port: 7777 }]);

    file(&mut registry, &with("node plain 8 dc")).unwrap();
    let second = node(&registry, "plain");
    assert_eq!((second.id, second.address), (first.id, first.address));
    assert_eq!((second.facts.lanes[0].key, second.site.as_str()), (TunnelKey([8; 32]), "dc"));
    // Nodes are told whom the file admitted, so that they warn of others.
    let admitted: Vec<_> = registry.log(0).unwrap().into_iter().map(|logged| logged.entry.statics).collect();
    assert_eq!(admitted[admitted.len() - 2..], [vec![TunnelKey([9; 32])], vec![TunnelKey([8; 32])]]);
    assert_eq!(registry.expelled().roll().statics, Some([TunnelKey([8; 32])].into()));

    assert_refused(revoke(&mut registry, "plain"), ErrorCode::UnknownNode, &["is a [[node]]"]);
    assert_refused(join(&mut registry, 1, "plain", "dc", &[]), ErrorCode::Name, &["`plain` belongs"]);
    let taken = ask(&mut registry, 1, request(1, "a", facts(8, &[])));
    assert_refused(taken, ErrorCode::Claim, &["tunnel key of node `plain`"]);

    file(&mut registry, FILE).unwrap();
    assert!(registry.world().nodes.is_empty());
}

#[test]
fn a_preview_shows_the_world_and_leaves_everything_as_it_is() {
    let registry = registry();
    let before = registry.world();
    let text = format!("{FILE}\nservice x");
    let services = Arc::new(parse(&text, "").unwrap());
    let change = Change::Services { file: "services.toml".into(), text, services };
    let preview = registry.preview(change, NOW).unwrap();
    let said = mesh_proto::plan::differences(&before, &preview);
    assert_eq!(said, ["new service x gets 241.0.0.3; concerns nobody: no [[allow]] names it"]);
    assert_eq!(registry.world(), before);
}
