//! Ethernet addresses.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A 48-bit Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Reads an address from a netlink attribute; `None` when it has another
    /// length (devices that are not Ethernet have others).
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// A unicast, locally administered address with the given low 40 bits, so
    /// that it can collide with no vendor's (IEEE 802: first octet `0a`).
    pub fn local(low: [u8; 5]) -> Self {
        Self([0x0a, low[0], low[1], low[2], low[3], low[4]])
    }

    /// The link-local IPv6 address that the kernel gives an interface with this
    /// address: `fe80::/64` and the modified EUI-64 (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let identifier = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(identifier))
    }

    /// Whether an interface may have the address: not multicast, not all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address of the form 0a:58:0a:c8:01:05")]
pub struct ParseMacError(String);

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| ParseMacError(text.to_owned()))?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(ParseMacError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_address() {
        let address = MacAddress([0x0a, 0x58, 0x0a, 0xc8, 0x01, 0xff]);
        assert_eq!(address.to_string(), "0a:58:0a:c8:01:ff");
        assert_eq!("0A:58:0a:C8:01:ff".parse(), Ok(address));
    }

    #[test]
    fn the_link_local_address_is_made_of_the_bytes_with_the_universal_bit_turned() {
        let address = MacAddress([0x0a, 0x58, 0x0a, 0xc8, 0x01, 0xff]);
        assert_eq!(address.link_local().to_string(), "fe80::858:aff:fec8:1ff");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "0a:58",
            "0a:58:0a:c8:01:ff:00",
            "0a:58:0a:c8:01:+f",
            "0a580ac801ff",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
