//! A policy routing rule, read from what the kernel lists.

use std::net::IpAddr;

use ipnet::Ipv4Net;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};

/// A rule of the kernel, as far as it matters here.
#[derive(Default)]
pub(super) struct IpRule<'a> {
    pub(super) priority: u32,
    table: u32,
    pub(super) to: Option<Ipv4Net>,
    pub(super) from: Option<Ipv4Net>,
    pub(super) input: Option<&'a str>,
    pub(super) has_output: bool,
    pub(super) mark: u32,
    pub(super) suppressed: Option<u32>,
    pub(super) header: RuleHeader,
}

impl<'a> IpRule<'a> {
    /// Reads what the kernel lists.
    pub(super) fn read(rule: &'a RuleMessage) -> Self {
        let header = rule.header.clone();
        let mut read = Self { table: header.table.into(), ..Self::default() };
        for attribute in &rule.attributes {
            if let RuleAttribute::Priority(priority) = attribute {
                read.priority = *priority;
            } else if let RuleAttribute::Table(table) = attribute {
                read.table = *table;
            } else if let RuleAttribute::Destination(IpAddr::V4(net)) = attribute {
                read.to = Ipv4Net::new(*net, header.dst_len).ok();
            } else if let RuleAttribute::Source(IpAddr::V4(net)) = attribute {
                read.from = Ipv4Net::new(*net, header.src_len).ok();
            } else if let RuleAttribute::Iifname(name) = attribute {
                read.input = Some(name);
            } else if let RuleAttribute::Oifname(_) | RuleAttribute::L3MDev(true) = attribute {
                read.has_output = true;
            } else if let RuleAttribute::FwMark(mark) = attribute {
                read.mark = *mark;
            } else if let RuleAttribute::SuppressPrefixLen(length) = attribute {
                read.suppressed = Some(*length).filter(|&length| length != u32::MAX);
            }
        }
        Self { header, ..read }
    }

    /// The table that it leads to; `None` if it leads to none.
    pub(super) fn table(&self) -> Option<u32> {
        (self.header.action == RuleAction::ToTable).then_some(self.table)
    }
}
