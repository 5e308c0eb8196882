//! What came of the attempts to reach coordinators, for somebody who waits for one.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// What an attempt waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// What address the name has.
    Name,
    /// That somebody answers at the address.
    Connection,
}

/// How far one address got.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attempt {
    /// Nothing came of it yet.
    Waits(Stage),
    /// This came of the last one that ended.
    Ended(String),
}

/// What came last of each address that was tried: as many as the address book has. Clones share it.
#[derive(Debug, Clone)]
pub struct Attempts(watch::Sender<BTreeMap<String, Attempt>>);

impl Default for Attempts {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Attempts {
    /// Begins a round at these addresses; what came of others is forgotten.
    pub(super) fn begin(&self, addresses: &[String]) {
        self.0.send_modify(|attempts| attempts.retain(|address, _| addresses.contains(address)));
    }

    /// Notes what the first attempt at an address waits for; what came of an earlier one says more.
    pub(super) fn wait(&self, address: &str, stage: Stage) {
        self.0.send_modify(|attempts| {
            let attempt = attempts.entry(address.to_owned()).or_insert(Attempt::Waits(stage));
            if let Attempt::Waits(waits) = attempt {
                *waits = stage;
            }
        });
    }

    /// Notes in a sentence why an attempt at an address came to nothing.
    pub(super) fn end(&self, address: &str, said: String) {
        self.0.send_modify(|attempts| drop(attempts.insert(address.to_owned(), Attempt::Ended(said))));
    }

    /// Says of each address what came of it last, in a sentence.
    pub fn sentences(&self) -> Vec<String> {
        let said = |(address, attempt): (&String, &Attempt)| match attempt {
            Attempt::Waits(Stage::Name) => {
                format!("{address}: this host's DNS has not said yet which address that is; see /etc/resolv.conf")
            }
            Attempt::Waits(Stage::Connection) => {
                format!("{address}: nothing has answered yet; check that it runs and that a firewall lets TCP through")
            }
            Attempt::Ended(said) => said.clone(),
        };
        self.0.borrow().iter().map(said).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_an_address_stays_until_something_else_does() {
        let attempts = Attempts::default();
        attempts.wait("c.example:7700", Stage::Name);
        assert!(attempts.sentences()[0].contains("DNS"), "{:?}", attempts.sentences());
        attempts.wait("c.example:7700", Stage::Connection);
        assert!(attempts.sentences()[0].contains("firewall"), "{:?}", attempts.sentences());
        attempts.end("c.example:7700", "c.example:7700: no such name".into());
        attempts.wait("c.example:7700", Stage::Connection);
        attempts.end("192.0.2.1:7700", "192.0.2.1:7700: silent".into());
        let [ip, name] = &attempts.sentences()[..] else { panic!("{:?}", attempts.sentences()) };
        assert!(name.contains("no such name") && !name.contains("firewall"), "{name}");
        assert!(ip.starts_with("192.0.2.1:7700: "), "{ip}");

        attempts.begin(&["c.example:7700".into()]);
        assert_eq!(attempts.sentences().len(), 1, "an address that is not tried any more is forgotten");
    }
}
