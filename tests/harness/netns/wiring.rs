//! What is in a namespace: interfaces, addresses, routes and rules, by netlink.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RulePortRange};
use nix::net::if_::if_nametoindex;
use rtnetlink::{IpVersion, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Namespace, NetnsError, system};

impl Namespace {
    /// Returns the index of an interface inside.
    ///
    /// # Errors
    /// `NetnsError` if there is none of that name.
    pub fn index(&self, interface: &str) -> Result<u32, NetnsError> {
        let what = format!("{}: find interface {interface}", self.0.name);
        let interface = interface.to_owned();
        self.run(move || if_nametoindex(interface.as_str())).map_err(|e| NetnsError::System(what, e.into()))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn up(&self, interface: &str) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("set {interface} up"), move |handle| async move {
            let link = LinkUnspec::new_with_index(index).up().build();
            handle.link().set(link).execute().await
        })
    }

    /// Makes a bridge, up.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn bridge(&self, name: &str) -> Result<(), NetnsError> {
        let owned = name.to_owned();
        self.netlink(format!("make bridge {name}"), move |handle| async move {
            let bridge = LinkBridge::new(&owned).mcast_snooping(false).build();
            handle.link().add(bridge).execute().await
        })?;
        self.up(name)
    }

    /// Makes a veth pair, `own` here and `other` in the other namespace, both up.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn veth(&self, own: &str, peer: &Self, other: &str) -> Result<(), NetnsError> {
        // Interface names are unique per namespace, so the far end is born under a name that cannot clash.
        let (near, far) = (own.to_owned(), format!("{own}~"));
        let (there, target) = (other.to_owned(), peer.0.handle.as_raw_fd());
        self.netlink(format!("make veth {own}"), move |handle| async move {
            let pair = LinkVeth::new(&near, &far).build();
            handle.link().add(pair).execute().await?;
            let moved = LinkUnspec::new_with_name(&far).setns_by_fd(target).build();
            handle.link().set(moved).execute().await
        })?;
        let index = peer.index(&format!("{own}~"))?;
        peer.netlink(format!("name veth {other}"), move |handle| async move {
            let link = LinkUnspec::new_with_index(index).name(there).up().build();
            handle.link().set(link).execute().await
        })?;
        self.up(own)
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn enslave(&self, port: &str, bridge: &str) -> Result<(), NetnsError> {
        let (port_index, bridge_index) = (self.index(port)?, self.index(bridge)?);
        self.netlink(format!("put {port} into {bridge}"), move |handle| async move {
            let link = LinkUnspec::new_with_index(port_index).controller(bridge_index).build();
            handle.link().set(link).execute().await
        })
    }

    /// Sets the MTU of an interface, in bytes.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn mtu(&self, interface: &str, bytes: u16) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("set the MTU of {interface}"), move |handle| async move {
            let link = LinkUnspec::new_with_index(index).mtu(bytes.into()).build();
            handle.link().set(link).execute().await
        })
    }

    /// Takes an interface away.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn delete_link(&self, interface: &str) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(
            format!("delete {interface}"),
            move |handle| async move { handle.link().del(index).execute().await },
        )
    }

    /// Gives an interface an address.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn address(&self, interface: &str, address: IpNet) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("give {interface} {address}"), move |handle| async move {
            let add = handle.address().add(index, address.addr(), address.prefix_len());
            add.execute().await
        })
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses or the address is not there.
    pub fn remove_address(&self, interface: &str, address: IpAddr) -> Result<(), NetnsError> {
        let index = self.index(interface)?;
        self.netlink(format!("take {address} from {interface}"), move |handle| async move {
            use futures_util::TryStreamExt;
            let found = handle
                .address()
                .get()
                .set_link_index_filter(index)
                .set_address_filter(address)
                .execute()
                .try_next()
                .await?;
            match found {
                Some(message) => handle.address().del(message).execute().await,
                None => Err(rtnetlink::Error::RequestFailed),
            }
        })
    }

    /// Adds a route through a gateway, to `table` (254 is main).
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn route(&self, to: IpNet, via: IpAddr, table: u32) -> Result<(), NetnsError> {
        self.netlink(format!("route {to} via {via}"), move |handle| async move {
            let mut route = RouteMessageBuilder::<IpAddr>::new().table_id(table);
            route = route
                .destination_prefix(to.addr(), to.prefix_len())
                .map_err(|_| rtnetlink::Error::RequestFailed)?
                .gateway(via)
                .map_err(|_| rtnetlink::Error::RequestFailed)?;
            handle.route().add(route.build()).execute().await
        })
    }

    /// Adds an `ip rule`: packets from a prefix look into a table.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn rule_from(&self, from: Ipv4Net, table: u32, priority: u32) -> Result<(), NetnsError> {
        self.netlink(format!("rule from {from} lookup {table}"), move |handle| async move {
            let rule = handle
                .rule()
                .add()
                .v4()
                .source_prefix(from.addr(), from.prefix_len())
                .table_id(table)
                .priority(priority)
                .action(RuleAction::ToTable);
            rule.execute().await
        })
    }

    /// Takes away every IPv4 rule of a priority, and every IPv4 route of a table.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn forget_routing(&self, priority: u32, table: u8) -> Result<(), NetnsError> {
        self.netlink(format!("forget table {table}"), move |handle| async move {
            use futures_util::TryStreamExt;
            let rules: Vec<_> = handle.rule().get(IpVersion::V4).execute().try_collect().await?;
            let of_ours = RuleAttribute::Priority(priority);
            for rule in rules.into_iter().filter(|r| r.attributes.contains(&of_ours)) {
                handle.rule().del(rule).execute().await?;
            }
            let mut question = RouteMessageBuilder::<Ipv4Addr>::new().build();
            question.header.table = 0;
            question.attributes.clear();
            let routes: Vec<_> = handle.route().get(question).execute().try_collect().await?;
            for route in routes.into_iter().filter(|r| r.header.table == table) {
                handle.route().del(route).execute().await?;
            }
            Ok(())
        })
    }

    /// Discards UDP packets to a range of ports that pass through here.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn block_udp(&self, first: u16, last: u16) -> Result<(), NetnsError> {
        self.block(netlink_packet_route::IpProtocol::Udp, first, last)
    }

    /// Discards TCP packets to a port that are sent here or pass through; `forget_routing(50, …)` ends it.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn block_tcp(&self, port: u16) -> Result<(), NetnsError> {
        self.block(netlink_packet_route::IpProtocol::Tcp, port, port)
    }

    fn block(&self, protocol: netlink_packet_route::IpProtocol, first: u16, last: u16) -> Result<(), NetnsError> {
        self.netlink(format!("block {protocol:?} {first}-{last}"), move |handle| async move {
            let mut rule = handle.rule().add().v4().priority(50).action(RuleAction::Blackhole);
            rule.message_mut().attributes.extend([
                RuleAttribute::IpProtocol(protocol),
                RuleAttribute::DestinationPortRange(RulePortRange { start: first, end: last }),
            ]);
            rule.execute().await
        })
    }

    /// Writes a kernel setting below /proc/sys, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), NetnsError> {
        let what = format!("{}: set {key} to {value}", self.0.name);
        let (key, value) = (format!("/proc/sys/{key}"), value.to_owned());
        self.run(move || std::fs::write(key, value)).map_err(system(&what))
    }

    /// Adds the default route.
    ///
    /// # Errors
    /// `NetnsError` where the kernel refuses.
    pub fn default_route(&self, via: IpAddr) -> Result<(), NetnsError> {
        let everything: IpNet = match via {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)),
        };
        self.route(everything, via, 254)
    }
}
