//! Ranges of addresses, as the reference `host-local` plugin configures them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One range, as configured. Keys are those of `host-local`, plus `exclusions`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// The subnet the addresses belong to.
    #[schemars(with = "String")]
    pub subnet: IpNet,
    /// First address to hand out; the subnet's second one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// Last address to hand out; the subnet's last but one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// The gateway, never handed out; the subnet's first address after the
    /// network's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Addresses and subnets never handed out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = []))]
    pub exclusions: Vec<Exclusion>,
}

/// An address or a subnet that is not handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Exclusion {
    /// One address.
    Address(IpAddr),
    /// All addresses of a subnet.
    Subnet(#[schemars(with = "String")] IpNet),
}

impl Range {
    /// All of a subnet.
    pub fn of(subnet: IpNet) -> Self {
        Self {
            subnet,
            range_start: None,
            range_end: None,
            gateway: None,
            exclusions: Vec::new(),
        }
    }
}

/// What is wrong with a configured range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// No ranges where there must be some.
    #[error("an empty set of address ranges; give at least one {{\"subnet\": …}}")]
    Empty,
    /// The subnet has bits set behind its prefix.
    #[error("subnet {subnet} has host bits set; did you mean {meant}?")]
    HostBits {
        /// As configured.
        subnet: IpNet,
        /// With the host bits cleared.
        meant: IpNet,
    },
    /// Too few addresses.
    #[error("subnet {0} is too small: it needs room for network, gateway, broadcast and a pod")]
    TooSmall(IpNet),
    /// An address that is not in the subnet.
    #[error("{name} {address} is not in subnet {subnet}")]
    Outside {
        /// The configuration's key.
        name: &'static str,
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// The range ends before it starts.
    #[error("rangeStart {start} lies behind rangeEnd {end}")]
    Reversed {
        /// First address.
        start: IpAddr,
        /// Last address.
        end: IpAddr,
    },
    /// Both families in one set.
    #[error("{one} and {other} are of different families; put them into sets of their own")]
    MixedFamilies {
        /// A subnet of the set.
        one: IpNet,
        /// Another.
        other: IpNet,
    },
    /// Two ranges share addresses.
    #[error("the ranges {one} and {other} overlap")]
    Overlap {
        /// A range.
        one: String,
        /// Another.
        other: String,
    },
}

/// A checked range.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    subnet: IpNet,
    first: u128,
    last: u128,
    gateway: IpAddr,
    exclusions: Vec<Exclusion>,
}

impl Span {
    fn new(range: &Range) -> Result<Self, RangeError> {
        let subnet = range.subnet;
        if subnet != subnet.trunc() {
            return Err(RangeError::HostBits {
                subnet,
                meant: subnet.trunc(),
            });
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(RangeError::TooSmall(subnet));
        }
        let inside = |name, address: Option<IpAddr>| match address {
            Some(address) if !subnet.contains(&address) => Err(RangeError::Outside {
                name,
                address,
                subnet,
            }),
            other => Ok(other),
        };
        let network = number(subnet.network());
        let broadcast = number(subnet.broadcast());
        let start = inside("rangeStart", range.range_start)?;
        let end = inside("rangeEnd", range.range_end)?;
        // The gateway may lie elsewhere: some networks have one outside.
        let gateway = range
            .gateway
            .unwrap_or_else(|| address(network + 1, subnet.addr()));
        // Network and broadcast are never handed out, whatever is configured.
        let first = start.map_or(network + 1, number).max(network + 1);
        let last = end.map_or(broadcast - 1, number).min(broadcast - 1);
        if first > last {
            return Err(RangeError::Reversed {
                start: address(first, subnet.addr()),
                end: address(last, subnet.addr()),
            });
        }
        Ok(Self {
            subnet,
            first,
            last,
            gateway,
            exclusions: range.exclusions.clone(),
        })
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address) && (self.first..=self.last).contains(&number(address))
    }

    /// The last address of the exclusion that covers `address`, if one does:
    /// the search goes on behind it, however large it is.
    fn excluded_to(&self, candidate: IpAddr) -> Option<u128> {
        if candidate == self.gateway {
            return Some(number(candidate));
        }
        self.exclusions
            .iter()
            .find_map(|exclusion| match exclusion {
                Exclusion::Address(address) if *address == candidate => Some(number(candidate)),
                Exclusion::Subnet(net) if net.contains(&candidate) => Some(number(net.broadcast())),
                _ => None,
            })
    }

    fn describe(&self) -> String {
        format!(
            "{}-{}",
            address(self.first, self.subnet.addr()),
            address(self.last, self.subnet.addr())
        )
    }
}

/// A checked set of ranges: one address is taken from each set, so that a set
/// is usually all there is of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet {
    spans: Vec<Span>,
}

impl RangeSet {
    /// Checks one set.
    pub fn new(ranges: &[Range]) -> Result<Self, RangeError> {
        let mut spans = ranges
            .iter()
            .map(Span::new)
            .collect::<Result<Vec<_>, _>>()?;
        // Ranges may be parts of one subnet, and have each a gateway in another's part.
        let gateways: Vec<_> = spans.iter().map(|span| span.gateway).collect();
        for span in &mut spans {
            let others = gateways.iter().filter(|gateway| **gateway != span.gateway);
            span.exclusions
                .extend(others.copied().map(Exclusion::Address));
        }
        let first = spans.first().ok_or(RangeError::Empty)?;
        if let Some(other) = spans
            .iter()
            .find(|span| span.subnet.addr().is_ipv4() != first.subnet.addr().is_ipv4())
        {
            return Err(RangeError::MixedFamilies {
                one: first.subnet,
                other: other.subnet,
            });
        }
        let set = Self { spans };
        for (at, one) in set.spans.iter().enumerate() {
            for other in &set.spans[at + 1..] {
                overlap(one, other)?;
            }
        }
        Ok(set)
    }

    /// Checks the `ranges` of a configuration: a list of sets that share no
    /// address.
    pub fn all(sets: &[Vec<Range>]) -> Result<Vec<Self>, RangeError> {
        if sets.is_empty() {
            return Err(RangeError::Empty);
        }
        let sets = sets
            .iter()
            .map(|ranges| Self::new(ranges))
            .collect::<Result<Vec<_>, _>>()?;
        for (at, one) in sets.iter().enumerate() {
            for other in &sets[at + 1..] {
                for one in &one.spans {
                    for other in &other.spans {
                        overlap(one, other)?;
                    }
                }
            }
        }
        Ok(sets)
    }

    /// Whether the set's family is IPv4.
    pub fn is_v4(&self) -> bool {
        self.spans[0].subnet.addr().is_ipv4()
    }

    /// Whether `address` lies in one of the set's ranges.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.spans.iter().any(|span| span.contains(address))
    }

    /// Whether `address` may be handed out: in a range and neither gateway,
    /// network, broadcast nor excluded.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.spans
            .iter()
            .any(|span| span.contains(address) && span.excluded_to(address).is_none())
    }

    /// Subnet and gateway of an address of the set.
    pub fn subnet_of(&self, address: IpAddr) -> Option<(IpNet, IpAddr)> {
        self.spans
            .iter()
            .find(|span| span.contains(address))
            .map(|span| (span.subnet, span.gateway))
    }

    /// Subnets and gateways of all ranges.
    pub fn gateways(&self) -> impl Iterator<Item = (IpNet, IpAddr)> {
        self.spans.iter().map(|span| (span.subnet, span.gateway))
    }

    /// The addresses that may be handed out, in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses_after(None)
    }

    /// Those of [`Self::addresses`] that come after one of the set; all of them
    /// when it is not in the set.
    pub fn addresses_after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let last = last.and_then(|last| {
            let at = self.spans.iter().position(|span| span.contains(last))?;
            Some((at, number(last)))
        });
        let spans = self.spans.iter().enumerate();
        spans.flat_map(move |(at, span)| {
            let mut next = match last {
                Some((earlier, _)) if at < earlier => None,
                Some((same, number)) if at == same => number.checked_add(1),
                _ => Some(span.first),
            };
            std::iter::from_fn(move || {
                loop {
                    let number = next.filter(|number| *number <= span.last)?;
                    let candidate = address(number, span.subnet.addr());
                    match span.excluded_to(candidate) {
                        None => {
                            next = number.checked_add(1);
                            return Some(candidate);
                        }
                        Some(last) => next = last.checked_add(1),
                    }
                }
            })
        })
    }

    /// The set in words, for errors.
    pub fn describe(&self) -> String {
        let spans: Vec<_> = self.spans.iter().map(Span::describe).collect();
        spans.join(", ")
    }
}

fn overlap(one: &Span, other: &Span) -> Result<(), RangeError> {
    let same_family = one.subnet.addr().is_ipv4() == other.subnet.addr().is_ipv4();
    if same_family && one.first <= other.last && other.first <= one.last {
        return Err(RangeError::Overlap {
            one: one.describe(),
            other: other.describe(),
        });
    }
    Ok(())
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address with a number, of the family of `like`.
fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => {
            let bits = u32::try_from(number).expect("numbers come from IPv4 addresses of a subnet");
            Ipv4Addr::from_bits(bits).into()
        }
        IpAddr::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn range(json: &str) -> Range {
        serde_json::from_str(json).unwrap()
    }

    fn set(json: &str) -> RangeSet {
        RangeSet::new(&[range(json)]).unwrap()
    }

    fn all(json: &str) -> Vec<String> {
        set(json).addresses().map(|a| a.to_string()).collect()
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_handed_out() {
        assert_eq!(
            all(r#"{"subnet":"10.0.0.0/29"}"#),
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        assert_eq!(
            all(r#"{"subnet":"fd00::/125","rangeStart":"fd00::","rangeEnd":"fd00::7"}"#),
            ["fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6"]
        );
        assert_eq!(
            all(r#"{"subnet":"10.0.0.0/29","gateway":"10.0.0.4"}"#),
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"]
        );
    }

    #[test]
    fn exclusions_are_skipped_at_once_however_large() {
        assert_eq!(
            all(
                r#"{"subnet":"10.0.0.0/28","exclusions":["10.0.0.0/29","10.0.0.9"],"rangeEnd":"10.0.0.11"}"#
            ),
            ["10.0.0.8", "10.0.0.10", "10.0.0.11"]
        );
        let mut rest = set(r#"{"subnet":"fd00::/64","exclusions":["fd00::/65"]}"#);
        assert_eq!(
            rest.addresses().next().unwrap().to_string(),
            "fd00::8000:0:0:0"
        );
        rest.spans[0].last = u128::MAX;
        assert!(rest.addresses().next().is_some());
    }

    #[rstest]
    #[case(r#"{"subnet":"10.0.0.1/24"}"#, "host bits")]
    #[case(r#"{"subnet":"10.0.0.0/31"}"#, "too small")]
    #[case(r#"{"subnet":"10.0.0.0/32"}"#, "too small")]
    #[case(r#"{"subnet":"fd00::/127"}"#, "too small")]
    #[case(
        r#"{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}"#,
        "rangeStart 10.0.1.1 is not in"
    )]
    #[case(
        r#"{"subnet":"10.0.0.0/24","rangeEnd":"fd00::1"}"#,
        "rangeEnd fd00::1 is not in"
    )]
    #[case(
        r#"{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}"#,
        "lies behind"
    )]
    fn a_wrong_range_is_refused_with_the_reason(#[case] json: &str, #[case] reason: &str) {
        let error = RangeSet::new(&[range(json)]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn sets_hold_one_family_and_share_no_address() {
        let v4 = range(r#"{"subnet":"10.0.0.0/24"}"#);
        let v6 = range(r#"{"subnet":"fd00::/64"}"#);
        let inner = range(r#"{"subnet":"10.0.0.128/25"}"#);
        let low = range(r#"{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.127"}"#);
        assert!(RangeSet::new(&[v4.clone(), v6.clone()]).is_err());
        assert!(RangeSet::new(&[]).is_err());
        assert!(RangeSet::all(&[]).is_err());
        assert!(RangeSet::all(&[vec![v4.clone()], vec![inner.clone()]]).is_err());
        assert!(RangeSet::new(&[v4.clone(), inner.clone()]).is_err());
        assert!(RangeSet::new(&[low, inner]).is_ok());
        assert!(RangeSet::all(&[vec![v4], vec![v6]]).is_ok());
    }

    proptest! {
        #[test]
        fn every_address_listed_is_allowed_and_of_the_subnet(
            base in any::<u32>(), prefix in 20u8..31, start in any::<u8>(), excluded in any::<u8>(),
        ) {
            let subnet: IpNet = ipnet::Ipv4Net::new(base.into(), prefix).unwrap().trunc().into();
            let network = number(subnet.network());
            let size = number(subnet.broadcast()) - network + 1;
            let at = |n: u8| address(network + u128::from(n) % size, subnet.addr());
            let range = Range {
                range_start: Some(at(start)),
                exclusions: vec![Exclusion::Address(at(excluded))],
                ..Range::of(subnet)
            };
            let Ok(set) = RangeSet::new(&[range]) else { return Ok(()); };
            let listed: Vec<_> = set.addresses().collect();
            prop_assert!(listed.is_sorted());
            for address in &listed {
                prop_assert!(set.allows(*address));
                prop_assert!(*address != subnet.network() && *address != subnet.broadcast());
                prop_assert!(*address != at(excluded));
                prop_assert!(*address >= at(start));
                let (found, gateway) = set.subnet_of(*address).unwrap();
                prop_assert_eq!(found, subnet);
                prop_assert!(gateway != *address);
            }
            let allowed = subnet.hosts().filter(|a| set.allows(*a)).count();
            prop_assert_eq!(allowed, listed.len());
        }
    }
}
