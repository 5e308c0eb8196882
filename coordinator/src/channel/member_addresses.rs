//! The addresses that members are known to come from: they have places of their own before they proved who they are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_proto::base::id::IdentityKey;

/// Most addresses of one member; the one longest unused is forgotten.
const MAX_EACH: usize = 4;

/// Addresses at which members were authenticated. Never more than four for each member of the mesh, as long as only
/// members are noted, and others forgotten (`retain`).
#[derive(Debug, Default)]
pub(super) struct MemberAddresses {
    /// The newest last.
    of: BTreeMap<IdentityKey, Vec<IpAddr>>,
    /// How many members are known to come from there.
    from: BTreeMap<IpAddr, usize>,
}

impl MemberAddresses {
    /// Says whether a member was authenticated there.
    pub(super) fn knows(&self, household: IpAddr) -> bool {
        self.from.contains_key(&household)
    }

    /// Notes where a member was authenticated.
    pub(super) fn note(&mut self, member: IdentityKey, household: IpAddr) {
        let own = self.of.entry(member).or_default();
        match own.iter().position(|known| *known == household) {
            Some(place) => drop(own.remove(place)),
            None => *self.from.entry(household).or_default() += 1,
        }
        own.push(household);
        if own.len() > MAX_EACH {
            let oldest = own.remove(0);
            self.forget(oldest);
        }
    }

    /// Forgets who is no member any more, once there are more entries than that many members.
    pub(super) fn retain(&mut self, members: usize, is_member: impl Fn(&IdentityKey) -> bool) {
        if self.of.len() <= members {
            return;
        }
        let gone: Vec<_> = self.of.extract_if(.., |member, _| !is_member(member)).collect();
        gone.into_iter().flat_map(|(_, households)| households).for_each(|household| self.forget(household));
    }

    fn forget(&mut self, household: IpAddr) {
        if let Some(count) = self.from.get_mut(&household) {
            *count -= 1;
            if *count == 0 {
                self.from.remove(&household);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_known_at_its_last_four_addresses_and_for_as_long_as_it_is_one() {
        let mut known = MemberAddresses::default();
        let at = |host: u8| IpAddr::from([192, 0, 2, host]);
        let [one, other] = [1, 2].map(|number| IdentityKey([number; 32]));
        for host in [1, 2, 3, 1, 4, 5] {
            known.note(one, at(host));
        }
        assert_eq!((1..=5).filter(|host| known.knows(at(*host))).collect::<Vec<_>>(), [1, 3, 4, 5]);
        known.note(other, at(5));
        known.retain(2, |_| false);
        assert!(known.knows(at(1)), "there are no more than that");
        known.retain(1, |member| *member == other);
        assert!(known.knows(at(5)) && !known.knows(at(1)) && known.of.len() == 1 && known.from.len() == 1);
    }
}
