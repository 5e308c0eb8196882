//! Which coordinators nodes are told of.

use super::*;
use mesh_proto::plan::plan;

fn enter(registry: &mut Registry, n: u8, address: &str, is_alone: bool) -> Result<Applied, Refused> {
    let change =
        Change::Coordinator { key: identity(n), addresses: vec![address.into()], software: "1.0".into(), is_alone };
    registry.apply(change, Actor::Coordinator, NOW)
}

fn told(registry: &Registry) -> Vec<(IdentityKey, Vec<String>)> {
    let netmap = plan(&registry.world(), &"a".parse().unwrap()).unwrap();
    netmap.mesh.coordinators.into_iter().map(|c| (c.key, c.addresses)).collect()
}

#[test]
fn nodes_are_told_of_all_coordinators_and_of_no_forgotten_one() {
    let mut registry = registry();
    join(&mut registry, 1, "a", "dc", &[]).unwrap();
    assert!(enter(&mut registry, 8, "one:1", false).unwrap().altered);
    assert!(enter(&mut registry, 9, "two:1", false).unwrap().altered);
    assert!(!enter(&mut registry, 9, "two:1", false).unwrap().altered, "the same again costs nothing");
    file(&mut registry, "site dc").unwrap();
    assert_eq!(told(&registry), [(identity(8), vec!["one:1".into()]), (identity(9), vec!["two:1".into()])]);

    enter(&mut registry, 8, "moved:1", false).unwrap();
    let forget = Change::CoordinatorForget { key: identity(9) };
    registry.apply(forget.clone(), Actor::Operator { uid: 0 }, NOW).unwrap();
    assert_eq!(told(&registry), [(identity(8), vec!["moved:1".into()])]);
    assert_refused(registry.apply(forget, Actor::Operator { uid: 0 }, NOW), ErrorCode::UnknownNode, &["status"]);

    enter(&mut registry, 7, "alone:1", true).unwrap();
    assert_eq!(told(&registry), [(identity(7), vec!["alone:1".into()])]);
    for n in 10..17 {
        enter(&mut registry, n, "more:1", false).unwrap();
    }
    assert_refused(enter(&mut registry, 17, "ninth:1", false), ErrorCode::Busy, &["forget"]);
}
