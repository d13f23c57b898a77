//! A hash map by things that have an address: an IPv4 address takes four bytes
//! of a key, not the seventeen of one that may be of either family. The tables of
//! a large cluster consist of little else.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};

use crate::model::{FrontendKey, Protocol};

/// What such a map is by.
pub trait FamilyKey: Copy + Eq + Hash + Debug {
    /// The same, where its address is of IPv4.
    type V4: Copy + Eq + Hash + Debug;

    /// Itself without the room for IPv6; `None` if its address is of that.
    fn narrow(self) -> Option<Self::V4>;

    /// What [`Self::narrow`] was of.
    fn widen(narrow: Self::V4) -> Self;
}

impl FamilyKey for IpAddr {
    type V4 = Ipv4Addr;

    fn narrow(self) -> Option<Ipv4Addr> {
        match self {
            Self::V4(address) => Some(address),
            Self::V6(_) => None,
        }
    }

    fn widen(narrow: Ipv4Addr) -> Self {
        Self::V4(narrow)
    }
}

impl FamilyKey for FrontendKey {
    type V4 = (Ipv4Addr, u16, Protocol);

    fn narrow(self) -> Option<Self::V4> {
        let address = self.address.narrow()?;
        Some((address, self.port, self.protocol))
    }

    fn widen((address, port, protocol): Self::V4) -> Self {
        Self {
            address: address.into(),
            protocol,
            port,
        }
    }
}

/// The map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyMap<K: FamilyKey, V> {
    v4: HashMap<K::V4, V>,
    v6: HashMap<K, V>,
}

impl<K: FamilyKey, V> Default for FamilyMap<K, V> {
    fn default() -> Self {
        Self {
            v4: HashMap::new(),
            v6: HashMap::new(),
        }
    }
}

impl<K: FamilyKey, V> FamilyMap<K, V> {
    /// What is under a key.
    pub fn get(&self, key: K) -> Option<&V> {
        match key.narrow() {
            Some(key) => self.v4.get(&key),
            None => self.v6.get(&key),
        }
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: K) -> Option<&mut V> {
        match key.narrow() {
            Some(key) => self.v4.get_mut(&key),
            None => self.v6.get_mut(&key),
        }
    }

    /// Whether there is anything under a key.
    pub fn contains(&self, key: K) -> bool {
        self.get(key).is_some()
    }

    /// Puts something under a key; returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match key.narrow() {
            Some(key) => self.v4.insert(key, value),
            None => self.v6.insert(key, value),
        }
    }

    /// Takes away what is under a key.
    pub fn remove(&mut self, key: K) -> Option<V> {
        match key.narrow() {
            Some(key) => self.v4.remove(&key),
            None => self.v6.remove(&key),
        }
    }

    /// What is under a key, to be changed; the default is put there first if
    /// there is nothing.
    pub fn get_or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        match key.narrow() {
            Some(key) => self.v4.entry(key).or_default(),
            None => self.v6.entry(key).or_default(),
        }
    }

    /// All that is there, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        let v4 = self.v4.iter().map(|(key, value)| (K::widen(*key), value));
        v4.chain(self.v6.iter().map(|(key, value)| (*key, value)))
    }

    /// The keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = K> {
        self.iter().map(|(key, _)| key)
    }

    /// What is there, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.v4.values().chain(self.v6.values())
    }
}

impl<K: FamilyKey, V> FromIterator<(K, V)> for FamilyMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(all: I) -> Self {
        let mut map = Self::default();
        for (key, value) in all {
            map.insert(key, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_both_families_are_kept_apart_and_come_back_as_they_were() {
        let key = |address: &str, port| FrontendKey {
            address: address.parse().expect("a literal"),
            protocol: Protocol::Udp,
            port,
        };
        let keys = [key("10.0.0.1", 80), key("10.0.0.1", 81), key("fd00::1", 80)];
        let mut map: FamilyMap<FrontendKey, usize> = keys.into_iter().zip(0..).collect();
        for (index, key) in keys.into_iter().enumerate() {
            assert_eq!(map.get(key), Some(&index));
        }
        let mut all: Vec<_> = map.iter().map(|(key, index)| (*index, key)).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(keys.into_iter().enumerate()));
        assert_eq!(map.remove(keys[2]), Some(2));
        assert!(!map.contains(keys[2]) && map.contains(keys[0]));
    }
}
