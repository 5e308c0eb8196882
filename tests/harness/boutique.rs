//! Online Boutique: twelve roles, sixteen edges, and the figures that the stub keeps of them.
//!
//! ```text
//! loadgenerator ─▶ frontend ─┬▶ ad  currency  shipping  cart ─▶ redis
//!                            ├▶ productcatalog ◀─ recommendation
//!                            └▶ checkout ─▶ cart currency email payment productcatalog shipping
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! roles {
    ($($role:ident $service:literal $dials:literal $listens:literal [$($callee:ident)*]),+ $(,)?) => {
        /// A program of the shop.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Role {
            $(#[doc = concat!("Plays `", $service, "`.")] $role),+
        }

        impl Role {
            /// Every role.
            pub const ALL: &'static [Self] = &[$(Self::$role),+];

            /// Returns the name of its service, by which others call it.
            pub fn service(self) -> &'static str {
                match self { $(Self::$role => $service),+ }
            }

            /// Returns the port that callers dial; 0 for what nobody calls.
            pub fn dials(self) -> u16 {
                match self { $(Self::$role => $dials),+ }
            }

            /// Returns the port that the program listens on; 0 for what nobody calls.
            pub fn listens(self) -> u16 {
                match self { $(Self::$role => $listens),+ }
            }

            /// Returns whom it calls.
            pub fn calls(self) -> &'static [Self] {
                match self { $(Self::$role => &[$(Self::$callee),*]),+ }
            }
        }
    };
}

roles! {
    Frontend "frontend" 80 8080 [Ad Cart Checkout Currency ProductCatalog Recommendation Shipping],
    Checkout "checkoutservice" 5050 5050 [Cart Currency Email Payment ProductCatalog Shipping],
    Recommendation "recommendationservice" 8080 8080 [ProductCatalog],
    Cart "cartservice" 7070 7070 [Redis],
    ProductCatalog "productcatalogservice" 3550 3550 [],
    Currency "currencyservice" 7000 7000 [],
    Shipping "shippingservice" 50051 50051 [],
    Payment "paymentservice" 50051 50051 [],
    Email "emailservice" 5000 8080 [],
    Ad "adservice" 9555 9555 [],
    Redis "redis-cart" 6379 6379 [],
    LoadGenerator "loadgenerator" 0 0 [Frontend],
}

impl Role {
    /// Returns how long a caller waits for an answer. The advert's 100 ms are the shop's own.
    pub fn deadline(self) -> Duration {
        match self {
            Self::Ad => Duration::from_millis(100),
            Self::Frontend
            | Self::Checkout
            | Self::Recommendation
            | Self::Cart
            | Self::ProductCatalog
            | Self::Currency
            | Self::Shipping
            | Self::Payment
            | Self::Email
            | Self::Redis
            | Self::LoadGenerator => Duration::from_secs(10),
        }
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|r| r.service() == s);
        found.copied().ok_or_else(|| format!("`{s}` is no role; one of them is `frontend`"))
    }
}

/// Returns every edge as caller and callee.
pub fn edges() -> impl Iterator<Item = (Role, Role)> {
    let of = |&caller: &Role| caller.calls().iter().map(move |&callee| (caller, callee));
    Role::ALL.iter().flat_map(of)
}

/// What a stub has seen since it started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShopStats {
    /// The stub's own name.
    pub name: String,
    /// Requests answered.
    pub requests: u64,
    /// Requests by the address that the caller was seen at.
    pub callers: BTreeMap<IpAddr, u64>,
    /// Calls made, by callee.
    pub edges: BTreeMap<String, EdgeStats>,
}

/// One edge as its caller saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeStats {
    /// Calls that were answered in time.
    pub ok: u64,
    /// Calls that failed or came too late.
    pub failed: u64,
    /// Of those, calls that were refused at once, as the mesh does without permission.
    pub refused: u64,
    /// Connections opened.
    pub opened: u64,
    /// The median of the last calls, in microseconds.
    pub p50_us: u64,
    /// The 99th percentile of the last calls, in microseconds.
    pub p99_us: u64,
    /// What the last failure said.
    pub last_error: Option<String>,
}

/// What came of a series of fresh connections.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// How many were answered.
    pub ok: u64,
    /// How many were not.
    pub failed: u64,
    /// Why, and how often.
    pub errors: BTreeMap<String, u64>,
    /// Who answered, and how often.
    pub answered: BTreeMap<String, u64>,
    /// At which address the server saw us, and how often.
    pub seen: BTreeMap<IpAddr, u64>,
    /// The median, in microseconds, of success and failure alike.
    pub p50_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
    /// Each attempt: when it began (microseconds of Unix time), how long it took, whether it was answered.
    pub attempts: Vec<(u64, u64, bool)>,
}

/// What a server answers to `/whoami`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// The server's own name.
    pub server: String,
    /// The caller's address as the server sees it.
    pub caller: IpAddr,
}

/// What came of a download.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Download {
    /// Bytes received.
    pub bytes: u64,
    /// Whether the hash at the end fits what came before.
    pub whole: bool,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The longest time without a byte, in milliseconds.
    pub stall_ms: u64,
    /// What went wrong, if anything.
    pub error: Option<String>,
}

/// Returns the value at a rank of unsorted values; `rank` is from 0 to 100.
pub fn percentile(values: &mut [u64], rank: usize) -> u64 {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    values.get((values.len() * rank / 100).min(last)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shop_has_sixteen_edges_and_twelve_roles() {
        assert_eq!((edges().count(), Role::ALL.len()), (16, 12));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut values: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut values, 50), 51);
        assert_eq!(percentile(&mut values, 99), 100);
        assert_eq!(percentile(&mut [], 50), 0);
    }
}
