//! Obstacles are found, with a command that mends them, and only where they are; facts are the host's.

use netlink_packet_route::rule::RuleAction;

use super::host::sysctl;
use super::nft::{Base, Batch, Chain, Expr, Family, Fate, Hook};
use super::*;

/// A node in order: an underlay with a default route, and the mesh attached.
struct Node {
    _underlay: tun::Device,
    _mesh: tun::Device,
}

async fn node(shape: &Shape) -> Node {
    sysctl("ip_forward", "1");
    let underlay = tun("wan0");
    add_address("wan0", "192.0.2.1/24").await;
    default_route("wan0").await;
    close_range(shape).await.unwrap();
    let mesh = tun("mesh0");
    attach(shape).await.unwrap();
    Node { _underlay: underlay, _mesh: mesh }
}

async fn add_rule(priority: u32, from: Option<&str>, to: Option<&str>, table: u32) {
    let routes = Routes::open().unwrap();
    let mut add = routes.handle.rule().add().v4().priority(priority).table_id(table);
    if let Some(net) = from.map(|net| net.parse::<Ipv4Net>().unwrap()) {
        add = add.source_prefix(net.addr(), net.prefix_len());
    }
    if let Some(net) = to.map(|net| net.parse::<Ipv4Net>().unwrap()) {
        add = add.destination_prefix(net.addr(), net.prefix_len());
    }
    add.action(RuleAction::ToTable).execute().await.unwrap();
}

async fn obstacles(shape: &Shape) -> Vec<Obstacle> {
    super::obstacles(shape, &HostPart::default()).await
}

fn commands(obstacles: &[Obstacle]) -> Vec<&str> {
    obstacles.iter().map(|o| o.command.as_str()).collect()
}

#[test]
fn a_node_in_order_has_none() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        let _node = node(&shape).await;
        // What EKS, Cilium and a multi-homed host add is no obstacle.
        add_rule(1536, Some("10.8.1.10/32"), None, 2).await;
        add_rule(20, None, Some("10.0.0.0/8"), 254).await;
        add_rule(50, Some("198.51.100.0/24"), None, 254).await;
        assert_eq!(obstacles(&shape).await, Vec::new());
    });
}

#[test]
fn an_earlier_rule_that_takes_the_range_is_found_and_its_command_mends_it() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        let _node = node(&shape).await;
        add_rule(50, None, None, 254).await;

        let found = obstacles(&shape).await;

        assert_eq!(commands(&found), ["ip rule add pref 49 to 241.0.0.0/8 lookup 24105"]);
        assert!(found[0].sentence.contains("priority 50"), "{found:?}");
        add_rule(49, None, Some("241.0.0.0/8"), TABLE).await;
        assert_eq!(obstacles(&shape).await, Vec::new());
    });
}

#[test]
fn a_range_that_nothing_closes_any_more_is_found_and_its_command_mends_it() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        let _node = node(&shape).await;
        let routes = Routes::open().unwrap();
        routes.remove(shape.range, &[TABLE]).await.unwrap();

        let found = obstacles(&shape).await;

        let first = found.iter().find(|obstacle| obstacle.command == "meshd guard").unwrap();
        assert!(first.sentence.contains("`ip meshd` alone keeps"), "{found:?}");
        assert!(!guards::remove(shape.range).unwrap().is_empty());
        let found = obstacles(&shape).await;
        let both = found.iter().find(|obstacle| obstacle.command == "meshd guard").unwrap();
        assert!(both.sentence.contains("nothing keeps packets for the mesh range 241.0.0.0/8"), "{found:?}");
        close_range(&shape).await.unwrap();
        attach(&shape).await.unwrap();
        assert_eq!(obstacles(&shape).await, Vec::new());
    });
}

fn forward(family: Family, table: &str, policy: Fate) -> Chain {
    Chain {
        family,
        table: table.to_owned(),
        name: "FORWARD".to_owned(),
        base: Some(Base { kind: "filter".to_owned(), hook: Hook::Forward, priority: 0, policy }),
    }
}

#[test]
fn a_forward_policy_of_drop_is_found_in_both_directions_until_its_commands_are_run() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        let _node = node(&shape).await;
        let chain = forward(Family::Ip, "filter", Fate::Drop);
        Batch::new().add_table(Family::Ip, "filter").add_chain(&chain).commit().unwrap();

        let found = obstacles(&shape).await;

        assert_eq!(
            commands(&found),
            [
                "nft insert rule ip filter FORWARD iifname \"mesh0\" accept",
                "nft insert rule ip filter FORWARD oifname \"mesh0\" accept",
            ]
        );
        for obstacle in &found {
            // The quotes are for a shell.
            let command = obstacle.command.replace('"', "");
            if printed(&command).is_none() {
                return;
            }
        }
        assert_eq!(obstacles(&shape).await, Vec::new());
    });
}

#[test]
fn rules_of_others_that_let_the_mesh_pass_are_understood() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        let _node = node(&shape).await;
        let chain = forward(Family::Ip, "filter", Fate::Drop);
        let called = Chain { name: "CNI-FWD".to_owned(), base: None, ..chain.clone() };
        let accept = Expr::Verdict(Fate::Accept);
        let mut from_pods = Expr::source_in("10.8.0.0/16".parse().unwrap());
        from_pods.extend([Expr::COUNTER, accept.clone()]);
        // As iptables-nft writes `-i mesh0`: the name with its final zero byte.
        let by_name = [Expr::Meta(nft::Meta::InputName), Expr::Equal(b"mesh0\0".to_vec()), Expr::COUNTER, accept];
        Batch::new()
            .add_table(Family::Ip, "filter")
            .add_chain(&chain)
            .add_chain(&called)
            .add_rule(&chain, &[Expr::COUNTER, Expr::Verdict(Fate::Jump("CNI-FWD".to_owned()))])
            .add_rule(&called, &from_pods)
            .add_rule(&called, &by_name)
            .commit()
            .unwrap();

        assert_eq!(obstacles(&shape).await, Vec::new());
        // Without pods nothing is forwarded, so that nothing can be in the way.
        let hosts = Shape { pods: vec![], ..shape };
        assert!(forward::obstacles(&hosts, &nft::chains().unwrap()).unwrap().is_empty());
    });
}

#[test]
fn a_last_rule_that_drops_is_found_and_one_for_another_interface_is_not() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        let _node = node(&shape).await;
        let chain = forward(Family::Inet, "firewall", Fate::Accept);
        let drop = Expr::Verdict(Fate::Drop);
        let other = [&Expr::input_is("eth9")[..], &Expr::output_is("eth9"), std::slice::from_ref(&drop)].concat();
        Batch::new().add_table(Family::Inet, "firewall").add_chain(&chain).add_rule(&chain, &other).commit().unwrap();
        assert_eq!(obstacles(&shape).await, Vec::new());

        Batch::new().add_rule(&chain, &[drop]).commit().unwrap();

        let found = obstacles(&shape).await;
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(commands(&found)[0], "nft insert rule inet firewall FORWARD iifname \"mesh0\" accept");
    });
}

#[test]
fn a_node_with_pods_that_does_not_forward_is_told_so() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        let _node = node(&shape).await;
        sysctl("ip_forward", "0");
        assert_eq!(commands(&obstacles(&shape).await), ["sysctl -w net.ipv4.ip_forward=1"]);
        assert_eq!(obstacles(&Shape { pods: vec![], ..shape }).await.len(), 1, "the guards are for other pods");
    });
}

#[test]
fn missing_guards_and_a_missing_rule_are_told() {
    in_namespace(|| async {
        let shape = shape(&[]);
        let _node = node(&shape).await;
        Routes::open().unwrap().remove(shape.range, &[TABLE]).await.unwrap();
        guards::remove(shape.range).unwrap();

        let found = obstacles(&shape).await;

        let sentences: Vec<&str> = found.iter().map(|o| o.sentence.as_str()).collect();
        assert_eq!(
            sentences,
            [
                "the nftables table `ip meshd` is missing or changed",
                "nothing keeps packets for the mesh range 241.0.0.0/8 from leaving this host in clear: rule and route, and the nftables table `ip meshd`, are missing",
                "packets for the mesh do not take `mesh0`"
            ]
        );
    });
}

#[test]
fn facts_name_the_underlay_first_and_neither_the_mesh_nor_pods() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        let _node = node(&shape).await;
        let routes = Routes::open().unwrap();
        let bridge = rtnetlink::LinkBridge::new("cni0").build();
        if let Err(error) = routes.handle.link().add(bridge).execute().await {
            return skip("bridges", &format!("a kernel with CONFIG_BRIDGE ({error})"));
        }
        add_address("cni0", "10.8.1.1/24").await;
        let pair = rtnetlink::LinkVeth::new("lan0", "lan1").build();
        routes.handle.link().add(pair).execute().await.unwrap();
        add_address("lan0", "198.51.100.7/24").await;
        add_address("wan0", "192.0.2.77/24").await;

        let facts = host_facts().await.unwrap();

        let addresses: Vec<String> = facts.underlay.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1", "192.0.2.77", "198.51.100.7"]);
        assert_eq!(facts.underlay.mtu, 1500);
        assert_eq!(facts.collision(shape.range), None);
        let taken = facts.collision("10.0.0.0/8".parse().unwrap()).unwrap();
        assert!(taken.contains("10.8.1.") && taken.contains("cni0"), "{taken}");
    });
}

#[test]
fn a_rule_that_spares_one_mark_takes_the_range_as_any_other_does() {
    in_namespace(|| async {
        let shape = shape(&[]);
        let _node = node(&shape).await;
        // As wg-quick makes one.
        let Some(_) = printed("ip rule add pref 60 not fwmark 0xca6c lookup main") else { return };

        let found = obstacles(&shape).await;

        assert_eq!(commands(&found), ["ip rule add pref 59 to 241.0.0.0/8 lookup 24105"]);
        assert!(printed(&found[0].command).is_some());
        assert_eq!(obstacles(&shape).await, Vec::new());
    });
}

#[test]
fn what_a_host_serves_and_its_rules_drop_is_found() {
    in_namespace(|| async {
        let shape = shape(&[]);
        let _node = node(&shape).await;
        let chain = |table: &str, policy| {
            let hook = Hook::Input;
            let base = Some(Base { kind: "filter".to_owned(), hook, priority: 0, policy });
            Chain { base, ..forward(Family::Inet, table, Fate::Accept) }
        };
        let closed = chain("closed", Fate::Drop);
        let web = [&Expr::destination_port(6, 8080)[..], &[Expr::Verdict(Fate::Accept)]].concat();
        Batch::new().add_table(Family::Inet, "closed").add_chain(&closed).add_rule(&closed, &web).commit().unwrap();
        let part = |port| HostPart { served: [(6, port)].into(), ..HostPart::default() };

        assert_eq!(super::obstacles(&shape, &part(8080)).await, Vec::new());
        let found = super::obstacles(&shape, &part(9090)).await;
        assert_eq!(commands(&found), ["nft insert rule inet closed FORWARD iifname \"mesh0\" accept"]);
        assert_eq!((found[0].id, found[0].is_safe), ("input-drops", true));
        assert_eq!(super::obstacles(&shape, &HostPart::default()).await, Vec::new(), "it serves nothing");
    });
}
