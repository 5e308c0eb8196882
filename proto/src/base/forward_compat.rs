//! Reads lists of which a newer version may know more: what is not understood is left out, and the rest stays.
//!
//! Only for what grants something. A permission, a port or a grant that is left out denies; a prohibition must never be
//! read this way.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, IgnoredAny};

/// Something, or what a newer version made of it.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Item<T> {
    Known(T),
    Unknown(IgnoredAny),
}

impl<T> Item<T> {
    fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

/// Reads what is understood of a list.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    let items = Vec::<Item<T>>::deserialize(d)?;
    Ok(items.into_iter().filter_map(Item::known).collect())
}

/// Reads what is understood of a list that may be absent.
pub(crate) fn some_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<Vec<T>>, D::Error> {
    let items = Option::<Vec<Item<T>>>::deserialize(d)?;
    Ok(items.map(|items| items.into_iter().filter_map(Item::known).collect()))
}

/// Reads what is understood of a map.
pub(crate) fn map<'de, D, K, V>(d: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    let items = BTreeMap::<K, Item<V>>::deserialize(d)?;
    Ok(items.into_iter().filter_map(|(key, item)| Some((key, item.known()?))).collect())
}
