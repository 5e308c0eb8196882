//! What others delete comes back within 2 s.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::nft::{Batch, Chain, Family};
use super::*;

/// What DESIGN promises.
const PROMISE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
enum Damage {
    Rule,
    Unreachable,
    Route,
    NodeAddress,
    DnsAddress,
    Mtu,
    Down,
    Table,
    OneNftRule,
}

const ALL: [Damage; 9] = [
    Damage::Rule,
    Damage::Unreachable,
    Damage::Route,
    Damage::NodeAddress,
    Damage::DnsAddress,
    Damage::Mtu,
    Damage::Down,
    Damage::Table,
    Damage::OneNftRule,
];

async fn damage(what: Damage) {
    let routes = Routes::open().unwrap();
    let index = routes.link("mesh0").await.unwrap().unwrap().index;
    let link = rtnetlink::LinkUnspec::new_with_index(index);
    match what {
        Damage::Rule => {
            let rules = routes.rules().await.unwrap();
            let ours = rules.into_iter().find(|rule| route::own_rule(rule).is_some()).unwrap();
            routes.handle.rule().del(ours).execute().await.unwrap();
        }
        Damage::Unreachable | Damage::Route => {
            let device = matches!(what, Damage::Route);
            let all = routes.table(TABLE).await.unwrap();
            let one = all.into_iter().find(|r| route::output(r).is_some() == device).unwrap();
            routes.handle.route().del(one).execute().await.unwrap();
        }
        Damage::NodeAddress | Damage::DnsAddress => {
            let wanted = if matches!(what, Damage::DnsAddress) {
                Ipv4Addr::new(241, 0, 0, 53)
            } else {
                Ipv4Addr::new(241, 1, 0, 7)
            };
            let all = routes.addresses(Some(index)).await.unwrap();
            let one = all.into_iter().find(|a| route::local_v4(a) == Some(wanted)).unwrap();
            routes.handle.address().del(one).execute().await.unwrap();
        }
        Damage::Mtu => routes.handle.link().change(link.mtu(9000).build()).execute().await.unwrap(),
        Damage::Down => routes.handle.link().change(link.down().build()).execute().await.unwrap(),
        Damage::Table => Batch::new().delete_table(Family::Ip, "meshd").commit().unwrap(),
        Damage::OneNftRule => {
            let chain: Chain = nft::chain(Family::Ip, "meshd", "entering").unwrap().unwrap();
            let first = nft::rules(&chain).unwrap().remove(0);
            Batch::new().delete_rule(&chain, first.handle).commit().unwrap();
        }
    }
}

#[test]
fn whatever_is_deleted_is_back_within_two_seconds() {
    in_namespace(|| async {
        let shape = shape(&["10.8.1.0/24"]);
        close_range(&shape).await.unwrap();
        let _device = tun("mesh0");
        attach(&shape).await.unwrap();
        let (upkeep, mut seen) = watch::channel(Upkeep::default());
        let keeper = Keeper::start(shape, upkeep).unwrap();
        seen.changed().await.unwrap();
        let before = everything();
        assert_eq!(seen.borrow_and_update().mended, 0);

        for what in ALL {
            let mended = seen.borrow_and_update().mended;
            damage(what).await;
            let started = Instant::now();
            let back = async { seen.wait_for(|upkeep| upkeep.mended > mended).await.map(drop) };
            let back = tokio::time::timeout(PROMISE, back).await;
            assert!(back.is_ok_and(|seen| seen.is_ok()), "{what:?} is not back");
            // A link that was down loses its routes; all of it is one look.
            assert_eq!(everything(), before, "{what:?}");
            assert!(started.elapsed() < PROMISE, "{what:?}");
        }
        let last = seen.borrow().last_mended.clone();
        assert_eq!(last, ["the nftables table `ip meshd`"]);
        keeper.stop().await;
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_new_pod_block_is_guarded_at_once() {
    in_namespace(|| async {
        close_range(&shape(&[])).await.unwrap();
        let _device = tun("mesh0");
        attach(&shape(&[])).await.unwrap();
        let (upkeep, mut seen) = watch::channel(Upkeep::default());
        let keeper = Keeper::start(shape(&[]), upkeep).unwrap();
        seen.changed().await.unwrap();

        keeper.set_shape(shape(&["10.8.1.0/24"]));

        let guarded = async {
            while nft::chain(Family::Ip, "meshd", "keep_source").unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PROMISE, guarded).await.unwrap();
        assert_eq!(seen.borrow_and_update().mended, 0, "nobody took it away");
        keeper.stop().await;
    });
}

#[test]
fn what_the_kernel_refuses_is_told_and_all_else_is_put_back() {
    in_namespace(|| async {
        let good = shape(&[]);
        close_range(&good).await.unwrap();
        let _device = tun("mesh0");
        attach(&good).await.unwrap();
        let (upkeep, mut seen) = watch::channel(Upkeep::default());
        let keeper = Keeper::start(good.clone(), upkeep).unwrap();
        seen.changed().await.unwrap();

        // Less than IPv4 needs, which no kernel takes.
        keeper.set_shape(Shape { mtu: 1, ..good.clone() });
        let refused = |upkeep: &Upkeep| upkeep.failed.len() == 1 && upkeep.failed[0].to_string().contains("mesh0");
        tokio::time::timeout(PROMISE, seen.wait_for(refused)).await.unwrap().unwrap();
        let mended = seen.borrow_and_update().mended;
        damage(Damage::NodeAddress).await;
        let back = seen.wait_for(|upkeep| upkeep.mended > mended && refused(upkeep));
        let stopped = tokio::time::timeout(PROMISE, back).await.unwrap().unwrap().stopped;
        assert!(!stopped, "packets pass with another MTU");

        keeper.set_shape(good);
        let healed = seen.wait_for(|upkeep| upkeep.failed.is_empty());
        tokio::time::timeout(PROMISE, healed).await.unwrap().unwrap();
        keeper.stop().await;
    });
}

#[test]
fn an_interface_that_is_gone_is_told_and_the_range_stays_closed() {
    in_namespace(|| async {
        let shape = shape(&[]);
        close_range(&shape).await.unwrap();
        let device = tun("mesh0");
        attach(&shape).await.unwrap();
        let (upkeep, mut seen) = watch::channel(Upkeep::default());
        let keeper = Keeper::start(shape, upkeep).unwrap();

        drop(device);

        let gone = KernelError::NoInterface("mesh0".to_owned());
        let told = seen.wait_for(|upkeep| upkeep.failed == [gone.clone()]);
        tokio::time::timeout(PROMISE, told).await.unwrap().unwrap();
        let routes = Routes::open().unwrap();
        assert!(routes.lookup(Ipv4Addr::new(241, 0, 0, 1).into()).await.is_none());
        keeper.stop().await;
    });
}
