//! Addresses of our own that nodes reach us at: no pod block may contain one.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::base::sync::lock;
use crate::core::Core;

/// Most addresses that are remembered.
const MAX_ADDRESSES: usize = 64;

/// The addresses that all listeners learnt of.
pub(crate) struct OwnAddresses {
    core: Arc<Core>,
    known: Mutex<Vec<IpAddr>>,
}

impl OwnAddresses {
    /// Begins with those that the configuration says, which the registry knows.
    pub(crate) fn new(core: Arc<Core>, known: Vec<IpAddr>) -> Arc<Self> {
        Arc::new(Self { core, known: Mutex::new(known) })
    }

    /// Notes an address that a node reached us at.
    pub(crate) async fn note(&self, address: IpAddr) {
        let known = {
            let mut known = lock(&self.known);
            if known.contains(&address) || known.len() >= MAX_ADDRESSES {
                return;
            }
            known.push(address);
            known.clone()
        };
        self.core.with(move |registry| registry.set_underlay(known)).await;
    }
}
