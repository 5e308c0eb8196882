//! What is set, kept and removed.

use super::*;

#[test]
fn what_is_set_is_what_was_designed() {
    in_namespace(|| async {
        let guards = close_range(&shape(&["10.8.1.0/24", "10.9.0.5/32"])).await.unwrap();
        let _device = tun("mesh0");
        attach(&shape(&["10.8.1.0/24", "10.9.0.5/32"])).await.unwrap();

        assert_eq!(guards, Guards { masquerade: true, filter: true, sources: true, missing: vec![] });
        let contains = |command: &str, lines: &[&str]| {
            let Some(text) = printed(command) else { return };
            for line in lines {
                assert!(text.contains(line), "`{line}` is not in `{command}`:\n{text}");
            }
        };
        contains("ip rule", &["105:\tfrom all to 241.0.0.0/8 lookup 24105 proto 105\n"]);
        contains(
            "ip route show table 24105",
            &[
                "241.0.0.0/8 dev mesh0 proto 105 scope link src 241.1.0.7 metric 1 \n",
                "unreachable 241.0.0.0/8 proto 105 metric 4294967295 \n",
            ],
        );
        contains(
            "ip address show mesh0",
            &["mtu 1380", "qlen 4000", "inet 241.1.0.7/32 scope global mesh0", "inet 241.0.0.53/32 scope host mesh0"],
        );
        contains(
            "nft list ruleset",
            &[
                "type nat hook postrouting priority security; policy accept;",
                "oifname \"mesh0\" ip saddr 10.8.1.0/24 snat to ip saddr",
                "oifname \"mesh0\" ip saddr 10.9.0.5 snat to ip saddr",
                "type filter hook input priority filter - 10; policy accept;",
                "iifname \"lo\" accept",
                "ip daddr 241.0.0.53 udp dport 53 jump resolving",
                "ip daddr 241.0.0.53 tcp dport 53 jump resolving",
                "ip daddr 241.0.0.0/8 counter packets 0 bytes 0 drop",
                "type filter hook prerouting priority dstnat + 10; policy accept;",
                "iifname != \"mesh0\" iifname != \"lo\" ip saddr 241.0.0.0/8 counter packets 0 bytes 0 drop",
                "iifname != \"mesh0\" iifname != \"lo\" ip daddr 241.0.0.0/8 fib saddr . iif oif 0 jump unreturned",
                "oifname \"mesh0\" fib saddr type != local snat to 241.1.128.7",
                "ip daddr 241.0.0.0/8 oifname != \"mesh0\" oifname != \"lo\" counter packets 0 bytes 0 drop",
                "oifname \"mesh0\" meta mark 0x00003041 counter packets 0 bytes 0 drop",
            ],
        );
    });
}

#[test]
fn setting_twice_changes_nothing_and_makes_no_duplicates() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        close_range(&shape).await.unwrap();
        let _device = tun("mesh0");
        attach(&shape).await.unwrap();
        let before = everything();

        close_range(&shape).await.unwrap();
        attach(&shape).await.unwrap();

        assert_eq!(everything(), before);
        assert!(!guards::ensure(&shape, true).written);
        let routes = Routes::open().unwrap();
        assert_eq!(routes.ensure_rule(shape.range).await.unwrap(), Vec::<String>::new());
        assert_eq!(routes.ensure_unreachable(shape.range).await.unwrap(), Vec::<String>::new());
        assert_eq!(routes.ensure_interface(&shape).await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn another_address_and_pods_replace_the_old_ones() {
    in_namespace(|| async {
        close_range(&shape(&["10.8.1.0/24"])).await.unwrap();
        let _device = tun("mesh0");
        attach(&shape(&["10.8.1.0/24"])).await.unwrap();
        let moved = Shape { address: Flat(Ipv4Addr::new(241, 1, 0, 9)), ..shape(&["10.8.2.0/24"]) };

        close_range(&moved).await.unwrap();
        attach(&moved).await.unwrap();

        let Some(addresses) = printed("ip address show mesh0") else { return };
        assert!(addresses.contains("241.1.0.9/32") && !addresses.contains("241.1.0.7"), "{addresses}");
        let routes = printed("ip route show table 24105").unwrap();
        assert!(routes.contains("src 241.1.0.9") && !routes.contains("241.1.0.7"), "{routes}");
        let ruleset = printed("nft list ruleset").unwrap();
        assert!(ruleset.contains("10.8.2.0") && !ruleset.contains("10.8.1.0"), "{ruleset}");
    });
}

#[test]
pub(crate) fn without_its_interface_the_range_is_unreachable_and_never_the_default_route() {
    in_namespace(|| async {
        let shape = shape(&[]);
        close_range(&shape).await.unwrap();
        let _underlay = tun("wan0");
        add_address("wan0", "192.0.2.1/24").await;
        default_route("wan0").await;

        let routes = Routes::open().unwrap();
        assert!(routes.lookup(Ipv4Addr::new(192, 0, 2, 9).into()).await.is_some());
        assert!(routes.lookup(Ipv4Addr::new(198, 51, 100, 1).into()).await.is_some());
        assert!(routes.lookup(Ipv4Addr::new(241, 0, 0, 1).into()).await.is_none());

        let device = tun("mesh0");
        attach(&shape).await.unwrap();
        let route = routes.lookup(Ipv4Addr::new(241, 0, 0, 1).into()).await.unwrap();
        assert_eq!(route::preferred_source(&route), Some(shape.address.0.into()));
        end(device, "mesh0").await;
        assert!(routes.lookup(Ipv4Addr::new(241, 0, 0, 1).into()).await.is_none());
    });
}

#[test]
fn cleanup_leaves_everything_as_it_was_and_may_be_repeated() {
    in_namespace(|| async {
        let _underlay = tun("wan0");
        add_address("wan0", "192.0.2.1/24").await;
        default_route("wan0").await;
        let before = everything();
        close_range(&shape(&["10.8.1.0/24"])).await.unwrap();
        let device = tun("mesh0");
        attach(&shape(&["10.8.1.0/24"])).await.unwrap();
        assert_ne!(everything(), before);

        let removed = clean("mesh0").await.unwrap();

        assert_eq!(removed.len(), 4, "{removed:?}");
        assert_eq!(everything(), before);
        assert_eq!(clean("mesh0").await.unwrap(), Vec::<String>::new());
        drop(device);
    });
}

#[test]
fn cleanup_after_a_kill_removes_what_the_kill_left() {
    in_namespace(|| async {
        let before = everything();
        close_range(&shape(&["10.8.1.0/24"])).await.unwrap();
        let device = tun("mesh0");
        attach(&shape(&["10.8.1.0/24"])).await.unwrap();
        // A killed process leaves its TUN device no longer than itself, and the rest for ever.
        end(device, "mesh0").await;

        let removed = clean("mesh0").await.unwrap();

        assert_eq!(removed.len(), 3, "{removed:?}");
        assert_eq!(everything(), before);
    });
}

#[test]
fn cleanup_touches_nothing_of_others() {
    in_namespace(|| async {
        let _mine = tun("wan0");
        add_address("wan0", "192.0.2.1/24").await;
        let routes = Routes::open().unwrap();
        let foreign = routes.handle.rule().add().v4().priority(RULE_PRIORITY).table_id(TABLE);
        foreign.action(netlink_packet_route::rule::RuleAction::ToTable).execute().await.unwrap();
        nft::Batch::new().add_table(nft::Family::Inet, "meshd").commit().unwrap();
        let before = everything();

        close_range(&shape(&[])).await.unwrap();
        clean("wan1").await.unwrap();

        assert_eq!(everything(), before);
    });
}

#[test]
fn names_that_no_interface_can_have_are_refused() {
    for bad in ["", ".", "..", "a/b", "mesh 0", "sixteen-letters1"] {
        assert_eq!(check_name(bad), Err(KernelError::Name(bad.to_owned())), "{bad}");
    }
    assert_eq!(check_name("mesh0"), Ok(()));
}

#[test]
fn attaching_to_no_interface_says_so() {
    in_namespace(|| async {
        let refused = attach(&shape(&[])).await;
        assert_eq!(refused, Err(KernelError::NoInterface("mesh0".to_owned())));
    });
}
