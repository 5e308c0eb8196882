//! Tokens, joins and expulsions.

use super::*;

const UNUSABLE: &str = "the token is unknown, used or expired; make a new one with mesh-coordinator token create";

#[test]
fn a_machine_with_a_token_becomes_a_member() {
    let mut registry = registry();
    let applied = join(&mut registry, 1, "c1-n1", "c1", &["10.8.0.0/24"]).unwrap();
    assert_eq!(applied.node, Some("c1-n1".parse().unwrap()));
    assert!(applied.altered && applied.refused.is_empty());
    assert_eq!(applied.revision, registry.world().revision);

    let node = node(&registry, "c1-n1");
    assert_eq!((node.site.as_str(), node.address.to_string().as_str()), ("c1", "241.1.0.1"));
    assert_eq!(blocks(&registry, "c1-n1"), ["10.8.0.0/24=241.2.0.0/24"]);
    assert_eq!(registry.world().member(&identity(1)).map(|n| n.as_str()), Some("c1-n1"));
    let (_, token) = registry.tokens().next().unwrap();
    assert_eq!(token.uses_left, 0);
}

#[test]
fn every_token_that_does_not_work_gets_the_same_answer() {
    let mut registry = registry();
    join(&mut registry, 1, "a", "dc", &[]).unwrap();
    token(&mut registry, 2, "dc");
    token(&mut registry, 3, "dc");
    registry.apply(Change::TokenRevoke { id: id(3) }, BY, NOW).unwrap();
    let mut wrong = request(2, "b", facts(9, &[]));
    wrong.secret = TokenSecret([77; 32]);
    let late = Change::Join { identity: identity(9), request: request(2, "b", facts(9, &[])), observed: observed(9) };

    let answers = [
        ask(&mut registry, 9, request(1, "b", facts(9, &[]))),
        ask(&mut registry, 9, wrong),
        ask(&mut registry, 9, request(3, "b", facts(9, &[]))),
        ask(&mut registry, 9, request(88, "b", facts(9, &[]))),
        registry.apply(late, BY, later(900)),
    ];
    for answer in answers {
        assert_eq!(answer, Err(Refused::new(ErrorCode::Token, UNUSABLE)));
    }
    assert_eq!(registry.world().nodes.len(), 1);
    ask(&mut registry, 9, request(2, "b", facts(9, &[]))).unwrap();
}

#[test]
fn joining_again_with_the_same_key_changes_nothing() {
    let mut registry = registry();
    join(&mut registry, 1, "a", "c1", &["10.8.0.0/24"]).unwrap();
    let before = registry.world();
    let again = ask(&mut registry, 1, request(1, "other", facts(1, &["10.8.0.0/24"]))).unwrap();
    assert_eq!(again.node, Some("a".parse().unwrap()));
    assert!(!again.altered);
    assert_eq!(registry.world(), before);

    let mut wrong = request(1, "a", facts(1, &[]));
    wrong.secret = TokenSecret([77; 32]);
    assert_refused(ask(&mut registry, 1, wrong), ErrorCode::Token, &[UNUSABLE]);
}

#[test]
fn a_token_of_several_uses_admits_each_machine_once() {
    let mut registry = registry();
    registry.apply(Change::TokenCreate(TokenSpec { uses: 2, ..spec(5, "dc") }), BY, NOW).unwrap();
    for _ in 0..3 {
        ask(&mut registry, 1, request(5, "a", facts(1, &[]))).unwrap();
    }
    ask(&mut registry, 2, request(5, "b", facts(2, &[]))).unwrap();
    assert_refused(ask(&mut registry, 3, request(5, "c", facts(3, &[]))), ErrorCode::Token, &[UNUSABLE]);
}

#[test]
fn a_member_may_redeem_another_token_of_its_site_for_its_grants() {
    let mut registry = registry();
    join(&mut registry, 1, "a", "dc", &[]).unwrap();
    let serve = vec!["cart".parse().unwrap()];
    registry.apply(Change::TokenCreate(TokenSpec { serve: serve.clone(), ..spec(5, "dc") }), BY, NOW).unwrap();
    ask(&mut registry, 1, request(5, "a", facts(1, &[]))).unwrap();
    assert_eq!(node(&registry, "a").grants, serve);

    token(&mut registry, 6, "c1");
    let moved = ask(&mut registry, 1, request(6, "a", facts(1, &[])));
    assert_refused(moved, ErrorCode::Name, &["is the node `a` of site `dc`", "meshd leave"]);
    assert!(registry.tokens().any(|(token, record)| token == id(6) && record.uses_left == 1));
}

#[test]
fn a_name_belongs_to_one_machine() {
    let mut registry = registry();
    join(&mut registry, 1, "vm", "dc", &[]).unwrap();
    let parts = ["`vm` belongs to another node", "mesh-coordinator revoke vm"];
    assert_refused(join(&mut registry, 2, "vm", "dc", &[]), ErrorCode::Name, &parts);
    ask(&mut registry, 2, request(2, "vm-2", facts(2, &[]))).unwrap();
}

#[test]
fn the_tokens_name_decides() {
    let mut registry = registry();
    let name = Some("chosen".parse().unwrap());
    registry.apply(Change::TokenCreate(TokenSpec { name, ..spec(1, "dc") }), BY, NOW).unwrap();
    let applied = ask(&mut registry, 1, request(1, "wish", facts(1, &[]))).unwrap();
    assert_eq!(applied.node, Some("chosen".parse().unwrap()));
}

#[test]
fn a_site_that_left_the_file_admits_nobody() {
    let mut registry = registry();
    token(&mut registry, 1, "dc");
    file(&mut registry, "site c1").unwrap();
    let result = ask(&mut registry, 1, request(1, "a", facts(1, &[])));
    assert_refused(result, ErrorCode::Site, &["no site `dc`", "services.toml has c1"]);
}

#[test]
fn a_revoked_machine_never_returns_and_its_name_needs_a_token_for_it() {
    let mut registry = registry();
    join(&mut registry, 1, "a", "dc", &[]).unwrap();
    revoke(&mut registry, "a").unwrap();
    assert!(registry.is_revoked(&identity(1)) && registry.world().member(&identity(1)).is_none());

    let parts = ["expelled from the mesh as `a`", "meshd leave"];
    token(&mut registry, 9, "dc");
    assert_refused(ask(&mut registry, 1, request(9, "b", facts(1, &[]))), ErrorCode::Revoked, &parts);
    assert_refused(report(&mut registry, 1, facts(1, &[])), ErrorCode::Revoked, &parts);
    assert_refused(revoke(&mut registry, "a"), ErrorCode::UnknownNode, &["no node `a`"]);

    let old = "241.1.0.1";
    let parts = ["a node `a` was revoked", "token create --site dc --name a"];
    assert_refused(join(&mut registry, 2, "a", "dc", &[]), ErrorCode::Name, &parts);
    let name = Some("a".parse().unwrap());
    registry.apply(Change::TokenCreate(TokenSpec { name, ..spec(3, "dc") }), BY, NOW).unwrap();
    ask(&mut registry, 2, request(3, "a", facts(2, &[]))).unwrap();
    assert_ne!(node(&registry, "a").address.to_string(), old);
    assert_eq!(node(&registry, "a").id.0, 2);
}

#[test]
fn a_stranger_may_not_report() {
    assert_refused(report(&mut registry(), 1, facts(1, &[])), ErrorCode::UnknownNode, &["token create"]);
}

#[test]
fn tokens_that_make_no_sense_are_refused() {
    let mut registry = registry();
    join(&mut registry, 1, "a", "dc", &[]).unwrap();
    let name = || Some("x".parse().unwrap());
    let seconds = Duration::from_secs;
    let cases = [
        (spec(2, "nowhere"), ErrorCode::Site, "no site `nowhere`"),
        (TokenSpec { ttl: seconds(0), ..spec(2, "dc") }, ErrorCode::Malformed, "between 1 second and 90 days"),
        (TokenSpec { ttl: seconds(91 * 86400), ..spec(2, "dc") }, ErrorCode::Malformed, "between 1 second and 90 days"),
        (TokenSpec { uses: 0, ..spec(2, "dc") }, ErrorCode::Malformed, "1 to 1000 nodes"),
        (TokenSpec { uses: 1001, ..spec(2, "dc") }, ErrorCode::Malformed, "1 to 1000 nodes"),
        (TokenSpec { uses: 2, name: name(), ..spec(2, "dc") }, ErrorCode::Malformed, "exactly one if it has a name"),
        (TokenSpec { name: Some("a".parse().unwrap()), ..spec(2, "dc") }, ErrorCode::Name, "`a` belongs to a node"),
        (spec(1, "dc"), ErrorCode::Busy, "try again"),
    ];
    for (spec, word, part) in cases {
        assert_refused(registry.apply(Change::TokenCreate(spec), BY, NOW), word, &[part]);
    }
    assert_refused(registry.apply(Change::TokenRevoke { id: id(9) }, BY, NOW), ErrorCode::Token, &["token list"]);
}

#[test]
fn names_that_the_file_refers_to_are_known_until_somebody_has_them() {
    let mut registry = registry();
    let awaited =
        |registry: &Registry| free_names::awaited(&registry.world()).iter().map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(awaited(&registry), ["n1", "vm"]);
    join(&mut registry, 1, "vm", "dc", &[]).unwrap();
    assert_eq!(awaited(&registry), ["n1"]);
    assert!(free_names::refers(&registry.world(), &"vm".parse().unwrap()));
    assert!(!free_names::refers(&registry.world(), &"other".parse().unwrap()));
}

#[test]
fn the_operator_learns_why_a_token_was_refused() {
    let mut registry = registry();
    join(&mut registry, 1, "a", "dc", &[]).unwrap();
    token(&mut registry, 2, "dc");
    let why = |token, secret, now| registry.why_unusable(&id(token), &TokenSecret([secret; 32]), now);
    assert!(why(1, 1, NOW).contains("used up"));
    assert!(why(2, 3, NOW).contains("secret"));
    assert!(why(2, 2, later(900)).contains("expired"));
    assert!(why(9, 9, NOW).contains("unknown"));
}

#[test]
fn changes_of_tokens_alter_no_nodes_map() {
    let mut registry = registry();
    join(&mut registry, 1, "a", "dc", &[]).unwrap();
    let before = registry.world();
    for number in 2..200 {
        token(&mut registry, number, "dc");
    }
    let after = registry.world();
    assert_eq!(after.revision.0, before.revision.0 + 198);
    assert!(before.plans_like(&after));
    for revision in before.revision.0..=after.revision.0 {
        let known = registry.world_at(Revision(revision)).unwrap();
        assert!(known.revision.0 == revision && known.plans_like(&after));
    }
    assert!(registry.world_at(Revision(after.revision.0 + 1)).is_none(), "it does not exist yet");
    join(&mut registry, 200, "b", "dc", &[]).unwrap();
    assert!(!before.plans_like(&registry.world()));
    assert!(registry.world_at(after.revision).unwrap().plans_like(&before));
}

#[test]
fn tokens_are_forgotten_a_week_after_their_end() {
    let mut registry = registry();
    token(&mut registry, 1, "dc");
    let week = 7 * 86400;
    registry.apply(Change::TokenCreate(spec(2, "dc")), BY, later(900 + week - 1)).unwrap();
    assert_eq!(registry.tokens().count(), 2);
    registry.apply(Change::TokenCreate(spec(3, "dc")), BY, later(900 + week)).unwrap();
    assert_eq!(registry.tokens().map(|(id, _)| id.to_owned()).collect::<Vec<_>>(), [id(2), id(3)]);
}
