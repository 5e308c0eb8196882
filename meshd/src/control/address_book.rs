//! Where the coordinators of a mesh are reached, and by which keys they are known: what the newest map or token names,
//! and what once worked.
//!
//! ```text
//!   a map, a token ─▶ named ──┐
//!                             ├─▶ candidates: all are tried, the first with a right key is taken
//!   a channel is up ▶ worked ─┘     worked, but not named any more: kept until all that are named have worked
//! ```
//! Whoever writes a wrong address into coordinator.toml takes the one that works out of every map. Nodes that forgot it
//! could never be told better.

use mesh_host::identity::verify;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::model::netmap::Mesh;

use crate::base::state_dir::Enrolment;

/// Most addresses that are remembered because they worked; the one that worked longest ago goes.
const MAX_WORKED: usize = 8;
/// Most addresses that are named; more are not tried.
const MAX_NAMED: usize = 64;

/// Addresses and keys of one mesh's coordinators.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressBook {
    named: Vec<String>,
    /// The newest first.
    worked: Vec<String>,
    pins: Vec<IdentityKey>,
    /// How many tokens were read: one that waits tries at once.
    tokens: u64,
}

impl AddressBook {
    /// Begins with addresses, as `host:port`, and keys.
    pub fn new(named: Vec<String>, pins: Vec<IdentityKey>) -> Self {
        let mut book = Self { pins, ..Self::default() };
        book.set_named(named.iter());
        book
    }

    /// Goes on from what is stored.
    pub fn of(enrolment: &Enrolment) -> Self {
        let mut book = Self::new(enrolment.coordinators.clone(), enrolment.pins.clone());
        book.worked.clone_from(&enrolment.worked);
        book.worked.truncate(MAX_WORKED);
        book
    }

    /// Puts into an enrolment what is to outlive the process.
    pub fn keep_in(&self, enrolment: &mut Enrolment) {
        enrolment.coordinators.clone_from(&self.named);
        enrolment.worked.clone_from(&self.worked);
        enrolment.pins.clone_from(&self.pins);
    }

    /// Takes up addresses and keys of the coordinators that a map names. A map of an older coordinator names none, and
    /// one whose coordinators state no address leaves those that are known.
    pub fn adopt(&mut self, mesh: &Mesh) {
        if mesh.coordinators.is_empty() {
            return;
        }
        self.pins = mesh.coordinators.iter().map(|coordinator| coordinator.key).collect();
        // A coordinator's next key is as good as its present one, if that one says so.
        for coordinator in &mesh.coordinators {
            let next = coordinator.next.filter(|next| next.is_by(&coordinator.key, verify));
            self.pins.extend(next.map(|next| next.key));
        }
        let mut told = mesh.coordinators.iter().flat_map(|coordinator| &coordinator.addresses).peekable();
        if told.peek().is_some() {
            self.set_named(told);
            self.forget();
        }
    }

    /// Takes up the addresses of a token of the same mesh, to be tried before all others. Says whether one was not known.
    pub fn take_token(&mut self, addresses: &[String]) -> bool {
        let is_news = addresses.iter().any(|address| !self.knows(address));
        let before = std::mem::take(&mut self.named);
        self.set_named(addresses.iter().chain(&before));
        self.tokens = self.tokens.wrapping_add(1);
        is_news
    }

    /// Notes that a channel was up by an address.
    pub fn works(&mut self, address: &str) {
        self.worked.retain(|known| known != address);
        self.worked.insert(0, address.to_owned());
        self.worked.truncate(MAX_WORKED);
        self.forget();
    }

    /// Returns what is to be tried, in that order: what is named, beginning at one of them, then what worked before.
    pub fn candidates(&self, turn: usize) -> Vec<String> {
        let mut all = self.named.clone();
        all.rotate_left(turn % self.named.len().max(1));
        all.extend(self.worked.iter().filter(|address| !self.named.contains(address)).cloned());
        all
    }

    /// Returns where to begin after one of the candidates; it may not be named any more.
    pub fn turn_after(&self, address: &str) -> Option<usize> {
        self.named.iter().position(|named| named == address).map(|at| at + 1)
    }

    /// Returns the keys of coordinators.
    pub fn pins(&self) -> &[IdentityKey] {
        &self.pins
    }

    /// Returns what the newest map or token names.
    pub fn named(&self) -> &[String] {
        &self.named
    }

    /// Returns how many tokens were read.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    fn knows(&self, address: &String) -> bool {
        self.named.contains(address) || self.worked.contains(address)
    }

    fn set_named<'a>(&mut self, addresses: impl Iterator<Item = &'a String>) {
        self.named.clear();
        for address in addresses {
            if self.named.len() < MAX_NAMED && !self.named.contains(address) {
                self.named.push(address.clone());
            }
        }
    }

    /// Forgets what is not named any more, once all that are named have worked.
    fn forget(&mut self) {
        if self.named.iter().all(|named| self.worked.contains(named)) {
            let Self { named, worked, .. } = self;
            worked.retain(|address| named.contains(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::model::netmap::Coordinator;

    use super::*;
    use crate::base::state_dir::tests::netmap;

    const KEY: IdentityKey = IdentityKey([7; 32]);

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    fn mesh(addresses: &[&str]) -> Mesh {
        let named = Coordinator { key: KEY, addresses: names(addresses), next: None };
        Mesh { coordinators: vec![named], ..netmap(1).mesh }
    }

    #[test]
    fn the_only_good_address_outlives_a_wrong_one() {
        let mut book = AddressBook::new(names(&["good:1"]), vec![KEY]);
        book.works("good:1");
        for wrong in ["wrong:1", "worse:1", "good:2"] {
            book.adopt(&mesh(&[wrong]));
            assert_eq!(book.candidates(0), names(&[wrong, "good:1"]));
            // The channel that is up there is broken and up again.
            book.works("good:1");
            assert_eq!(book.candidates(3), names(&[wrong, "good:1"]));
        }
        book.adopt(&mesh(&["good:1"]));
        assert_eq!(book.candidates(0), names(&["good:1"]));
    }

    #[test]
    fn an_address_is_forgotten_once_all_of_the_new_ones_have_worked() {
        let mut book = AddressBook::new(names(&["old:1"]), vec![KEY]);
        book.works("old:1");
        book.adopt(&mesh(&["new:1", "new:2"]));
        book.works("new:1");
        assert_eq!(book.candidates(0), names(&["new:1", "new:2", "old:1"]), "not by the first of them");
        book.works("new:2");
        assert_eq!(book.candidates(0), names(&["new:1", "new:2"]));
        // Both have worked: what is named by both is a move that was made already.
        book.adopt(&mesh(&["new:2"]));
        assert_eq!(book.candidates(0), names(&["new:2"]));
    }

    #[test]
    fn at_most_eight_are_remembered_and_the_newest_is_tried_first() {
        let mut book = AddressBook::new(names(&["never:1"]), vec![KEY]);
        for host in 0..20 {
            book.works(&format!("h{host}:1"));
        }
        book.works("h15:1");
        let expected = ["never:1", "h15:1", "h19:1", "h18:1", "h17:1", "h16:1", "h14:1", "h13:1", "h12:1"];
        assert_eq!(book.candidates(0), names(&expected));
        let many: Vec<String> = (0..1000).map(|host| format!("n{host}:1")).collect();
        book.adopt(&mesh(&many.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(book.candidates(0).len(), MAX_NAMED + MAX_WORKED);
    }

    #[test]
    fn a_token_is_tried_first_and_takes_nothing_away() {
        let mut book = AddressBook::new(names(&["gone:1"]), vec![KEY]);
        book.works("once:1");
        assert!(book.take_token(&names(&["back:1", "gone:1"])));
        assert_eq!(book.candidates(0), names(&["back:1", "gone:1", "once:1"]));
        assert_eq!(book.tokens(), 1);
        assert!(!book.take_token(&names(&["back:1", "once:1"])), "all are known");
        assert_eq!(book.tokens(), 2, "who waits tries at once all the same");
    }

    #[test]
    fn a_map_that_names_none_changes_nothing() {
        let mut book = AddressBook::new(names(&["a:1", "b:1"]), vec![KEY]);
        book.adopt(&netmap(1).mesh);
        book.adopt(&mesh(&[]));
        assert_eq!(book, AddressBook::new(names(&["a:1", "b:1"]), vec![KEY]));
        assert_eq!((book.candidates(1), book.candidates(2)), (names(&["b:1", "a:1"]), names(&["a:1", "b:1"])));
        assert_eq!((book.turn_after("b:1"), book.turn_after("c:1")), (Some(2), None));
    }
}
