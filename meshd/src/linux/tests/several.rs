//! Several meshes on one host, and those of versions that knew one only.

use netlink_packet_route::route::RouteType;
use netlink_packet_route::rule::{RuleAction, RuleAttribute};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::nft::{Batch, Chain, Expr, Family, Fate, Hook};
use super::*;

/// The second mesh of this host.
fn second() -> Shape {
    Shape {
        interface: "mesh1".to_owned(),
        range: "100.96.0.0/12".parse().unwrap(),
        address: Flat(Ipv4Addr::new(100, 97, 0, 1)),
        mtu: 1380,
        pods: vec!["10.9.0.0/24".parse().unwrap()],
        pod_interfaces: Vec::new(),
        home: home("/var/lib/mesh-second"),
    }
}

/// A mesh whose range overlaps the first one's, and shares nothing else with it.
fn overlapping() -> Shape {
    Shape { range: "241.64.0.0/10".parse().unwrap(), address: Flat(Ipv4Addr::new(241, 65, 0, 1)), ..second() }
}

fn sentence<T: std::fmt::Debug>(refused: Result<T, KernelError>) -> String {
    match refused {
        Err(KernelError::Taken(sentence)) => sentence,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn two_meshes_are_kept_side_by_side_and_each_goes_alone() {
    in_namespace(|| async {
        let first = shape(&["10.8.1.0/24"]);
        close_range(&first).await.unwrap();
        let _first = tun("mesh0");
        attach(&first).await.unwrap();
        let alone = everything();
        close_range(&second()).await.unwrap();
        let device = tun("mesh1");
        attach(&second()).await.unwrap();
        let both = everything();

        let mut keepers = Vec::new();
        for shape in [first.clone(), second()] {
            let (upkeep, mut seen) = watch::channel(Upkeep::default());
            let keeper = Keeper::start(shape, upkeep).unwrap();
            seen.changed().await.unwrap();
            keepers.push((keeper, seen));
        }
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            for (_, seen) in &keepers {
                assert_eq!(seen.borrow().mended, 0, "{:?}", seen.borrow().last_mended);
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(everything(), both);
        let routes = Routes::open().unwrap();
        for (shape, vip) in [(&first, Ipv4Addr::new(241, 0, 0, 9)), (&second(), Ipv4Addr::new(100, 96, 0, 9))] {
            let way = routes.lookup(vip.into()).await.unwrap();
            assert_eq!(route::preferred_source(&way), Some(shape.address.0.into()));
            let found = obstacles(shape, &HostPart::default()).await;
            assert_eq!(found.iter().filter(|o| !o.sentence.contains("forward")).count(), 0);
        }
        for (keeper, _) in keepers {
            keeper.stop().await;
        }

        let one = Extent::One { range: None, interface: "mesh1".into(), state_dir: second().home.state_dir };
        let cleaned = cleanup(&one).await.unwrap();

        drop(device);
        assert_eq!(cleaned.left.iter().map(|mesh| mesh.range).collect::<Vec<_>>(), [first.range]);
        assert_eq!(everything(), alone);
    });
}

#[test]
fn a_claim_is_its_holders_alone_and_dies_with_him() {
    in_namespace(|| async {
        let first = shape(&[]);
        let other = Shape { interface: "mesh1".into(), home: home("/var/lib/mesh-other"), ..shape(&[]) };
        let held = claim(&first).await.unwrap();
        let table = "meshd-claim-241.0.0.0-8";

        assert!(Batch::new().delete_table(Family::Ip, table).commit().is_err());
        if printed("nft flush ruleset").is_some() {
            let listed = printed("nft list ruleset").unwrap();
            assert!(listed.contains(table) && listed.contains("flags owner"), "{listed}");
            let comment = format!("comment \"mesh0 is the interface of meshd, process {}\"", std::process::id());
            assert!(listed.contains(&comment), "{listed}");
        }
        let said = sentence(claim(&other).await);
        let own =
            format!("interface `mesh0`, state directory /var/lib/mesh-test/state, process {}", std::process::id());
        for words in ["241.0.0.0/8", own.as_str(), "meshd leave"] {
            assert!(said.contains(words), "`{words}` is missing: {said}");
        }
        assert_eq!(claim(&second()).await.map(drop), Ok(()));

        drop(held);

        assert_eq!(claim(&other).await.map(drop), Ok(()));
        assert!(nft::table(Family::Ip, table).unwrap().is_none());
    });
}

#[test]
fn of_ranges_that_overlap_the_first_claim_counts_and_the_second_is_told_whose_it_is() {
    in_namespace(|| async {
        let held = claim(&shape(&[])).await.unwrap();

        let said = sentence(claim(&overlapping()).await);

        for words in ["241.64.0.0/10", "overlaps 241.0.0.0/8", "`mesh0`", "/var/lib/mesh-test/state", "process"] {
            assert!(said.contains(words), "`{words}` is missing: {said}");
        }
        assert_eq!(rival(&shape(&[])).await, Ok(None), "a verb beside its own daemon");
        assert!(rival(&overlapping()).await.unwrap().is_some());
        drop(held);
        assert_eq!(rival(&overlapping()).await, Ok(None));
    });
}

#[test]
fn what_the_process_before_still_holds_is_waited_for() {
    in_namespace(|| async {
        let held = claim(&shape(&[])).await.unwrap();
        let before = Instant::now();

        let next = shape(&[]);
        let (next, ()) = tokio::join!(claim(&next), async {
            sleep(Duration::from_millis(200)).await;
            drop(held);
        });

        assert_eq!(next.map(drop), Ok(()));
        assert!(before.elapsed() >= Duration::from_millis(200) && before.elapsed() < Duration::from_secs(3));
    });
}

#[test]
fn a_range_that_is_kept_closed_refuses_what_overlaps_it_until_it_is_cleaned_up() {
    in_namespace(|| async {
        let before = everything();
        close_range(&shape(&["10.8.1.0/24"])).await.unwrap();

        let said = sentence(claim(&overlapping()).await);

        assert!(said.contains("stopped") && said.contains("`meshd cleanup --range 241.0.0.0/8`"), "{said}");
        let cleaned = cleanup(&Extent::Range(MeshRange::default())).await.unwrap();
        assert_eq!(cleaned.removed.len(), 3, "{cleaned:?}");
        assert_eq!(everything(), before);
        assert_eq!(claim(&overlapping()).await.map(drop), Ok(()));
    });
}

#[test]
fn a_stopped_member_keeps_its_range_and_one_that_is_gone_does_not() {
    in_namespace(|| async {
        let folder = tempfile::tempdir().unwrap();
        let stopped = Shape { home: home(folder.path().to_str().unwrap()), ..shape(&[]) };
        std::fs::create_dir_all(&stopped.home.state_dir).unwrap();
        let enrolment = stopped.home.state_dir.join("enrolment.json");
        std::fs::write(&enrolment, "{}").unwrap();
        close_range(&stopped).await.unwrap();

        let said = sentence(claim(&shape(&[])).await);

        assert!(said.contains(folder.path().to_str().unwrap()), "{said}");
        assert_eq!(claim(&stopped).await.map(drop), Ok(()));
        std::fs::remove_file(enrolment).unwrap();
        assert_eq!(claim(&shape(&[])).await.map(drop), Ok(()));
    });
}

#[test]
fn cleaning_up_beside_a_running_daemon_is_refused() {
    in_namespace(|| async {
        close_range(&shape(&[])).await.unwrap();
        let _held = claim(&shape(&[])).await.unwrap();
        let before = everything();

        let said = sentence(clean("mesh0").await);

        assert!(said.contains("meshd runs for the mesh range 241.0.0.0/8"), "{said}");
        assert_eq!(everything(), before);
    });
}

#[test]
fn cleaning_up_all_leaves_nothing_of_any_mesh() {
    in_namespace(|| async {
        let before = everything();
        close_range(&shape(&["10.8.1.0/24"])).await.unwrap();
        close_range(&second()).await.unwrap();
        of_an_older_version(&Shape { range: "10.200.0.0/16".parse().unwrap(), ..second() }).await;
        let first = tun("mesh0");
        let other = tun("mesh1");
        attach(&shape(&[])).await.unwrap();
        attach(&second()).await.unwrap();

        let cleaned = cleanup(&Extent::All { interface: "mesh0".into() }).await.unwrap();

        drop((first, other));
        assert_eq!(everything(), before, "{cleaned:?}");
        assert_eq!(cleaned.left, []);
    });
}

/// Sets what versions set that knew one mesh: one table of each kind for whatever range.
async fn of_an_older_version(shape: &Shape) {
    let routes = Routes::open().unwrap();
    let net = shape.range.net();
    let mut add = routes.handle.rule().add().v4();
    add.message_mut().attributes.push(RuleAttribute::Protocol(route::PROTOCOL));
    let add = add.priority(RULE_PRIORITY).destination_prefix(net.network(), net.prefix_len()).table_id(TABLE);
    add.action(RuleAction::ToTable).execute().await.unwrap();
    let unreachable = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(net.network(), net.prefix_len())
        .table_id(TABLE)
        .protocol(route::PROTOCOL)
        .kind(RouteType::Unreachable)
        .priority(u32::MAX);
    routes.handle.route().add(unreachable.build()).execute().await.unwrap();
    let chain = Chain {
        family: Family::Ip,
        table: "meshd".to_owned(),
        name: "leaving".to_owned(),
        base: Some(nft::Base { kind: "filter".to_owned(), hook: Hook::Postrouting, priority: 0, policy: Fate::Accept }),
    };
    let mut clear = Expr::destination_in(net);
    clear.extend(Expr::output_differs(&shape.interface));
    clear.extend(Expr::output_differs("lo"));
    clear.extend([Expr::COUNTER, Expr::Verdict(Fate::Drop)]);
    let batch = Batch::new().add_table(Family::Ip, "meshd").delete_table(Family::Ip, "meshd");
    batch.add_table(Family::Ip, "meshd").add_chain(&chain).add_rule(&chain, &clear).commit().unwrap();
}

#[test]
fn what_an_older_version_set_for_another_range_moves_to_the_names_of_that_range() {
    in_namespace(|| async {
        of_an_older_version(&second()).await;

        close_range(&second()).await.unwrap();

        let Some(rules) = printed("ip rule") else { return };
        assert!(rules.contains("105:\tfrom all to 100.96.0.0/12 lookup 2410009612 proto 105\n"), "{rules}");
        assert!(!rules.contains("lookup 24105"), "{rules}");
        assert!(Routes::open().unwrap().table(TABLE).await.unwrap().is_empty());
        assert!(nft::table(Family::Ip, "meshd").unwrap().is_none());
        assert!(nft::table(Family::Ip, "meshd-100.96.0.0-12").unwrap().is_some());
    });
}

#[test]
fn the_default_range_takes_the_old_names_and_leaves_the_other_range_closed() {
    in_namespace(|| async {
        let _underlay = tun("wan0");
        add_address("wan0", "192.0.2.1/24").await;
        default_route("wan0").await;
        of_an_older_version(&second()).await;
        assert_eq!(claim(&shape(&[])).await.map(drop), Ok(()));

        close_range(&shape(&[])).await.unwrap();

        let routes = Routes::open().unwrap();
        for closed in [Ipv4Addr::new(241, 0, 0, 1), Ipv4Addr::new(100, 96, 0, 1)] {
            assert!(routes.lookup(closed.into()).await.is_none(), "{closed}");
        }
        let (range, interface) = guards::guarded("meshd-100.96.0.0-12").unwrap();
        assert_eq!((range, interface.as_deref()), (second().range, Some("mesh1")));
        assert_eq!(guards::guarded("meshd").unwrap().0, MeshRange::default());

        close_range(&second()).await.unwrap();

        assert!(routes.lookup(Ipv4Addr::new(100, 96, 0, 1).into()).await.is_none());
        let of_default: Vec<_> = routes.table(TABLE).await.unwrap().iter().map(route::destination).collect();
        assert_eq!(of_default, [MeshRange::default().net()]);
    });
}

#[test]
fn an_older_daemon_that_runs_is_known_by_its_interface() {
    in_namespace(|| async {
        let older = second();
        of_an_older_version(&older).await;
        let _device = tun("mesh1");
        up("mesh1").await;
        let routes = Routes::open().unwrap();
        let index = routes.link("mesh1").await.unwrap().unwrap().index;
        let net = older.range.net();
        let way = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .table_id(TABLE)
            .protocol(route::PROTOCOL)
            .output_interface(index)
            .priority(1);
        routes.handle.route().add(way.build()).execute().await.unwrap();

        let same = sentence(claim(&Shape { interface: "mesh7".into(), ..second() }).await);
        let undone = sentence(claim(&shape(&[])).await);

        assert!(same.contains("interface `mesh1`") && same.contains("in use"), "{same}");
        assert!(undone.contains("100.96.0.0/12") && undone.contains("takes away the route of 241.0.0.0/8"), "{undone}");
        let third = Shape { range: "10.200.0.0/16".parse().unwrap(), interface: "mesh7".into(), ..second() };
        assert_eq!(claim(&third).await.map(drop), Ok(()), "an older one does not touch the names of other ranges");
    });
}
