//! Names and the addresses in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// Most bytes of a name on the wire (RFC 1035 2.3.4).
const WIRE: usize = 255;

/// The labels of a name in lower case, without allocation: what maps are asked with.
pub struct Labels {
    bytes: [u8; WIRE],
    /// End of each label in `bytes`.
    ends: [u8; 128],
    count: usize,
}

impl Labels {
    /// Those of `name`.
    #[must_use]
    pub fn of(name: &Name) -> Self {
        let mut labels = Self {
            bytes: [0; WIRE],
            ends: [0; 128],
            count: 0,
        };
        let mut at = 0;
        // A name has at most 127 labels and 255 bytes: the codec refuses others.
        for label in name.iter().take(labels.ends.len()) {
            let end = (at + label.len()).min(WIRE);
            for (to, from) in labels.bytes[at..end].iter_mut().zip(label) {
                *to = from.to_ascii_lowercase();
            }
            at = end;
            labels.ends[labels.count] = u8::try_from(end).unwrap_or(u8::MAX);
            labels.count += 1;
        }
        labels
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it is the root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The label at `index`, 0 being the leftmost. Empty beyond the last.
    #[must_use]
    pub fn get(&self, index: usize) -> &[u8] {
        if index >= self.count {
            return &[];
        }
        let start = match index {
            0 => 0,
            _ => usize::from(self.ends[index - 1]),
        };
        &self.bytes[start..usize::from(self.ends[index])]
    }

    /// The label at `index` as text; `None` if it is none.
    #[must_use]
    pub fn text(&self, index: usize) -> Option<&str> {
        std::str::from_utf8(self.get(index)).ok()
    }

    /// How many labels stand left of `suffix`, if the name ends with it.
    #[must_use]
    pub fn before(&self, suffix: &Labels) -> Option<usize> {
        let left = self.count.checked_sub(suffix.count)?;
        (0..suffix.count)
            .all(|index| self.get(left + index) == suffix.get(index))
            .then_some(left)
    }
}

/// The label of an address: dots and colons become dashes.
#[must_use]
pub fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string().replace('.', "-"),
        IpAddr::V6(address) => address.to_string().replace(':', "-"),
    }
}

/// The address a label stands for, the reverse of [`dashed`].
#[must_use]
pub fn undashed(label: &str) -> Option<IpAddr> {
    label
        .replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::V4)
        .or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6))
        .ok()
}

/// What a name below `in-addr.arpa` (RFC 1035 3.5) or `ip6.arpa` (RFC 3596 2.5) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reverse {
    /// A whole address.
    Address(IpAddr),
    /// The beginning of addresses.
    Range(ipnet::IpNet),
    /// No address: `x.1.in-addr.arpa`.
    Nonsense {
        /// Whether it stands below `ip6.arpa`.
        v6: bool,
    },
}

/// Reads a reverse name. `None` if it is none.
#[must_use]
pub fn reverse(labels: &Labels) -> Option<Reverse> {
    let left = labels.len().checked_sub(2)?;
    if labels.get(left + 1) != b"arpa" {
        return None;
    }
    match labels.get(left) {
        b"in-addr" => Some(reverse_v4(labels, left).unwrap_or(Reverse::Nonsense { v6: false })),
        b"ip6" => Some(reverse_v6(labels, left).unwrap_or(Reverse::Nonsense { v6: true })),
        _ => None,
    }
}

fn reverse_v4(labels: &Labels, left: usize) -> Option<Reverse> {
    let mut octets = [0; 4];
    if left > octets.len() {
        return None;
    }
    for (index, octet) in octets.iter_mut().take(left).enumerate() {
        let text = labels.text(left - 1 - index)?;
        // "01" and "+1" are other names than "1".
        if text.len() > 1 && !text.starts_with(|c: char| matches!(c, '1'..='9')) {
            return None;
        }
        *octet = text.parse().ok()?;
    }
    let address = IpAddr::from(octets);
    if left == octets.len() {
        return Some(Reverse::Address(address));
    }
    let length = u8::try_from(left * 8).ok()?;
    ipnet::IpNet::new(address, length).ok().map(Reverse::Range)
}

fn reverse_v6(labels: &Labels, left: usize) -> Option<Reverse> {
    let mut bits: u128 = 0;
    if left > 32 {
        return None;
    }
    for index in 0..left {
        let [digit] = labels.get(left - 1 - index) else {
            return None;
        };
        let nibble = char::from(*digit).to_digit(16)?;
        bits |= u128::from(nibble) << (124 - 4 * index);
    }
    let address = IpAddr::V6(Ipv6Addr::from_bits(bits));
    if left == 32 {
        return Some(Reverse::Address(address));
    }
    let length = u8::try_from(left * 4).ok()?;
    ipnet::IpNet::new(address, length).ok().map(Reverse::Range)
}

/// The reverse name of an address.
#[must_use]
pub fn reverse_name(address: IpAddr) -> Name {
    Name::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> Option<Reverse> {
        reverse(&Labels::of(&Name::from_ascii(name).expect("a name")))
    }

    #[test]
    fn labels_are_lower_case_and_know_their_suffix() {
        let labels = Labels::of(&Name::from_ascii("Web.Default.SVC.cluster.local.").unwrap());
        let domain = Labels::of(&Name::from_ascii("CLUSTER.local.").unwrap());
        assert_eq!(labels.before(&domain), Some(3));
        assert_eq!(labels.text(0), Some("web"));
        assert_eq!(labels.get(9), b"");
        assert_eq!(domain.before(&labels), None);
        assert!(Labels::of(&Name::root()).is_empty());
    }

    #[test]
    fn the_longest_name_fits() {
        let long = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(61),
        ]
        .join(".");
        let labels = Labels::of(&Name::from_ascii(format!("{long}.")).unwrap());
        assert_eq!((labels.len(), labels.get(3).len()), (4, 61));
        let many = "a.".repeat(127);
        assert_eq!(Labels::of(&Name::from_ascii(many).unwrap()).len(), 127);
    }

    #[test]
    fn addresses_and_labels_are_each_others_reverse() {
        for text in [
            "10.200.1.5",
            "0.0.0.0",
            "fd00:200::5",
            "::1",
            "::",
            "2001:db8:1:2:3:4:5:6",
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(undashed(&dashed(address)), Some(address), "{text}");
        }
        assert_eq!(undashed("10-0-0"), None);
        assert_eq!(undashed("web"), None);
        assert_eq!(undashed("10-0-0-256"), None);
    }

    #[test]
    fn reverse_names_are_read() {
        for text in ["10.96.0.10", "fd00:96::a", "::", "255.255.255.255"] {
            let address: IpAddr = text.parse().unwrap();
            let labels = Labels::of(&reverse_name(address));
            assert_eq!(reverse(&labels), Some(Reverse::Address(address)), "{text}");
        }
        assert_eq!(
            read("96.10.in-addr.arpa."),
            Some(Reverse::Range("10.96.0.0/16".parse().unwrap()))
        );
        assert_eq!(
            read("0.0.d.f.ip6.arpa."),
            Some(Reverse::Range("fd00::/16".parse().unwrap()))
        );
        let nonsense = |v6| Some(Reverse::Nonsense { v6 });
        assert_eq!(read("1.2.3.4.5.in-addr.arpa."), nonsense(false));
        assert_eq!(read("01.2.3.4.in-addr.arpa."), nonsense(false));
        assert_eq!(read("x.ip6.arpa."), nonsense(true));
        assert_eq!(read("10.ip6.arpa."), nonsense(true));
        assert_eq!(read("web.example."), None);
        assert_eq!(read("arpa."), None);
    }
}
