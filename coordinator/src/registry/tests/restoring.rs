//! What going back to a backup gives back, and what not.

use super::*;

/// A registry as a backup of another one was.
fn back_at(backup: &(Revision, Vec<Write>)) -> Registry {
    let mut store = Memory::new();
    store.commit(Revision(0), backup.0, &backup.1).unwrap();
    Registry::open(Box::new(store), setup()).unwrap()
}

fn restore(registry: &mut Registry, epoch: u64, since: Option<Withdrawn>) {
    registry.apply(Change::Restored { epoch, source: "a backup".into(), since }, BY, NOW).unwrap();
}

fn uses(registry: &Registry) -> Vec<(String, u32)> {
    registry.tokens().map(|(id, token)| (id.to_owned(), token.uses_left)).collect()
}

#[test]
fn what_was_revoked_or_used_since_a_backup_does_not_come_back() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &["10.8.0.0/24"]).unwrap();
    join(&mut registry, 2, "n2", "c1", &[]).unwrap();
    token(&mut registry, 3, "dc");
    registry.apply(Change::TokenCreate(TokenSpec { uses: 5, ..spec(4, "dc") }), BY, NOW).unwrap();
    token(&mut registry, 5, "dc");
    let backup = registry.snapshot().unwrap();
    revoke(&mut registry, "n1").unwrap();
    registry.apply(Change::TokenRevoke { id: id(3) }, BY, NOW).unwrap();
    ask(&mut registry, 6, request(4, "n6", facts(6, &[]))).unwrap();
    ask(&mut registry, 7, request(5, "n7", facts(7, &[]))).unwrap();
    revoke(&mut registry, "n7").unwrap();

    let since = registry.withdrawn();
    let mut restored = back_at(&backup);
    assert!(restored.is_behind(&since) && !registry.is_behind(&restored.withdrawn()));
    restore(&mut restored, 2, Some(since));
    assert!(restored.is_revoked(&identity(1)) && restored.is_revoked(&identity(7)));
    let names: Vec<_> = restored.world().nodes.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["n2"]);
    assert_eq!(uses(&restored), [(id(1), 0), (id(2), 0), (id(4), 4), (id(5), 0)]);
    assert_refused(ask(&mut restored, 8, request(5, "n8", facts(8, &[]))), ErrorCode::Token, &[]);

    // Nodes are told of all that it expels, whether they read its entries or begin anew.
    assert_eq!(restored.expelled().roll().expelled, [identity(1), identity(7)].into());
    let entries = restored.log(0).unwrap();
    let entry = &entries.iter().find(|logged| logged.entry.kind == "restore").unwrap().entry;
    assert_eq!(entry.expels.iter().collect::<BTreeSet<_>>(), [&identity(1), &identity(7)].into());

    // A store that is older than the backup, or was made anew, takes no token away.
    let mut restored = back_at(&backup);
    restore(&mut restored, 2, Some(self::registry().withdrawn()));
    assert_eq!(uses(&restored).len(), 5);
}

#[test]
fn nobody_gets_a_number_that_another_had_before_the_state_went_back() {
    let mut registry = registry();
    join(&mut registry, 1, "n1", "c1", &[]).unwrap();
    let backup = registry.snapshot().unwrap();
    let mut nodes = BTreeSet::new();
    let mut services = nodes.clone();
    for epoch in 1..=4 {
        let mut branch = back_at(&backup);
        if epoch > 1 {
            restore(&mut branch, epoch, None);
            assert_eq!((branch.epoch(), node(&branch, "n1").id), (epoch, node(&registry, "n1").id));
        }
        join(&mut branch, 2, "n2", "c1", &[]).unwrap();
        file(&mut branch, &format!("{FILE}\nservice extra n1")).unwrap();
        assert!(nodes.insert(node(&branch, "n2").id.0));
        assert!(services.insert(branch.world().vips[&"extra".parse().unwrap()].id.0));
    }
}
