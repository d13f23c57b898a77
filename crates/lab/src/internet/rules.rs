//! The rules that let a lab out and nothing else, of the machine's namespace
//! and of the router's. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use linux::nftables::{
    Base, Batch, Chain, ChainKind, Comparison, Conntrack, DataType, Element, Expression, Family,
    Found, Header, Hook, Meta, NAT_FULLY_RANDOM, NatFamily, Register, Reject, Rule, Set, Verdict,
    ct_state, priority,
};

/// What no lab may reach by the uplink: this host, private, shared and
/// link-local networks, multicast (RFC 6890 and the registries it names).
const NEVER: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "::ffff:0:0/96",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];
/// The links between labs and the machine: /31 and /127 of these.
pub(super) const LINKS: [&str; 2] = ["192.0.2.0/24", "2001:db8:192::/112"];

const REFUSED: [(&str, NatFamily, DataType); 2] = [
    ("refused4", NatFamily::V4, DataType::Ipv4Address),
    ("refused6", NatFamily::V6, DataType::Ipv6Address),
];
const FIRST: Register = Register(0);
/// `IPPROTO_ICMPV6`.
const ICMPV6: u8 = 58;
/// Neighbour solicitation and advertisement (RFC 4861, 4.3 and 4.4).
const NEIGHBOURS: [u8; 2] = [135, 136];

/// A batch that makes the machine's table, in place of one of the same name if
/// `instead`. `link` is the machine's interface to the router, which has the
/// addresses `router`; `own` are the lab's ranges.
pub(super) fn machine(
    table: &str,
    instead: bool,
    link: &str,
    router: &[IpAddr],
    own: &[IpNet],
) -> Batch {
    let mut batch = Batch::new(Family::Inet, table, None);
    if instead {
        batch.delete_table();
    }
    batch.add_table();
    let refused = refused(own);
    for (name, family, key) in REFUSED {
        batch.add_set(&Set::ranges(name, key));
        let elements: Vec<Element> = refused
            .iter()
            .filter(|net| family_of(net.addr()) == family)
            .flat_map(range)
            .collect();
        batch.add_elements(name, &elements);
    }

    let from_lab = || interface(Meta::InInterfaceName, link, Comparison::Equal);
    let to_lab = || interface(Meta::OutInterfaceName, link, Comparison::Equal);
    let mut forward = Vec::new();
    for family in [NatFamily::V4, NatFamily::V6] {
        // The router translates everything; what it missed would have an
        // address that nothing can be answered to.
        let mut spoofed = [from_lab(), of_family(family)].concat();
        if let Some(own) = router.iter().find(|own| family_of(**own) == family) {
            spoofed.extend(source(*own, Comparison::NotEqual));
        }
        spoofed.push(Expression::Verdict(Verdict::Drop));
        forward.push(Rule::new(spoofed).comment("not translated by the lab's router"));
    }
    for (set, family, _) in REFUSED {
        let mut refuse = [from_lab(), of_family(family)].concat();
        refuse.push(address(family, Side::Destination));
        refuse.push(Expression::Lookup {
            set: set.into(),
            from: FIRST,
            found: Found::Membership,
        });
        refuse.push(Expression::Reject(Reject::PortUnreachable));
        forward.push(Rule::new(refuse).comment("private networks and the lab's own"));
    }
    forward.push(Rule::new([to_lab(), unasked()].concat()).comment("answers only"));

    let mut input: Vec<Rule> = NEIGHBOURS
        .iter()
        .map(|kind| {
            let mut accept = [from_lab(), of_family(NatFamily::V6)].concat();
            accept.extend([
                Expression::Meta {
                    key: Meta::TransportProtocol,
                    into: FIRST,
                },
                Expression::equal(FIRST, [ICMPV6]),
                Expression::Payload {
                    header: Header::Transport,
                    offset: 0,
                    length: 1,
                    into: FIRST,
                },
                Expression::equal(FIRST, [*kind]),
                Expression::Verdict(Verdict::Accept),
            ]);
            Rule::new(accept).comment("neighbour discovery")
        })
        .collect();
    input.push(
        Rule::new(
            [
                from_lab(),
                vec![Expression::Reject(Reject::PortUnreachable)],
            ]
            .concat(),
        )
        .comment("the machine itself"),
    );

    let postrouting = router
        .iter()
        .map(|own| {
            let mut translate = interface(Meta::OutInterfaceName, link, Comparison::NotEqual);
            translate.extend(of_family(family_of(*own)));
            translate.extend(source(*own, Comparison::Equal));
            translate.push(Expression::Masquerade {
                flags: NAT_FULLY_RANDOM,
            });
            Rule::new(translate)
        })
        .collect();

    for chain in [
        base("forward", ChainKind::Filter, Hook::Forward, forward),
        base("input", ChainKind::Filter, Hook::Input, input),
        base(
            "postrouting",
            ChainKind::Nat,
            Hook::Postrouting,
            postrouting,
        ),
    ] {
        batch.add_chain_with_rules(&chain);
    }
    batch
}

/// A batch that makes the router's table: it gives what leaves by `link` its
/// own address, and lets nothing in but answers.
pub(super) fn router(table: &str, link: &str) -> Batch {
    let mut batch = Batch::new(Family::Inet, table, None);
    batch.add_table();
    let mut translate = interface(Meta::OutInterfaceName, link, Comparison::Equal);
    translate.push(Expression::Masquerade {
        flags: NAT_FULLY_RANDOM,
    });
    let refuse = [
        interface(Meta::InInterfaceName, link, Comparison::Equal),
        unasked(),
    ]
    .concat();
    for chain in [
        base(
            "forward",
            ChainKind::Filter,
            Hook::Forward,
            vec![Rule::new(refuse).comment("answers only")],
        ),
        base(
            "postrouting",
            ChainKind::Nat,
            Hook::Postrouting,
            vec![Rule::new(translate)],
        ),
    ] {
        batch.add_chain_with_rules(&chain);
    }
    batch
}

/// All ranges that are refused, none of them overlapping.
fn refused(own: &[IpNet]) -> Vec<IpNet> {
    let all: Vec<IpNet> = NEVER
        .iter()
        .chain(&LINKS)
        .filter_map(|text| text.parse().ok())
        .chain(own.iter().map(IpNet::trunc))
        .collect();
    IpNet::aggregate(&all)
}

/// The elements of a set of ranges for a network.
fn range(net: &IpNet) -> Vec<Element> {
    let (first, last) = match net {
        IpNet::V4(net) => (
            net.network().octets().to_vec(),
            u32::from(net.broadcast())
                .checked_add(1)
                .map(|after| after.to_be_bytes().to_vec()),
        ),
        IpNet::V6(net) => (
            net.network().octets().to_vec(),
            u128::from(net.broadcast())
                .checked_add(1)
                .map(|after| after.to_be_bytes().to_vec()),
        ),
    };
    std::iter::once(Element::key(first))
        .chain(last.map(Element::range_end))
        .collect()
}

fn base(name: &str, kind: ChainKind, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        base: Some(Base {
            kind,
            hook,
            priority: match hook {
                Hook::Postrouting => priority::SRCNAT,
                _ => priority::FILTER,
            },
            drop: false,
        }),
        rules,
    }
}

fn family_of(address: IpAddr) -> NatFamily {
    match address {
        IpAddr::V4(_) => NatFamily::V4,
        IpAddr::V6(_) => NatFamily::V6,
    }
}

fn compare(comparison: Comparison, value: Vec<u8>) -> Expression {
    Expression::Compare {
        comparison,
        from: FIRST,
        value,
    }
}

fn interface(key: Meta, name: &str, comparison: Comparison) -> Vec<Expression> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(16, 0);
    vec![
        Expression::Meta { key, into: FIRST },
        compare(comparison, padded),
    ]
}

fn of_family(family: NatFamily) -> Vec<Expression> {
    vec![
        Expression::Meta {
            key: Meta::NetworkFamily,
            into: FIRST,
        },
        Expression::equal(FIRST, [family.number()]),
    ]
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Loads an address of the packet's header (RFC 791, 3.1; RFC 8200, 3).
fn address(family: NatFamily, side: Side) -> Expression {
    let (offset, length) = match (family, side) {
        (NatFamily::V4, Side::Source) => (12, 4),
        (NatFamily::V4, Side::Destination) => (16, 4),
        (NatFamily::V6, Side::Source) => (8, 16),
        (NatFamily::V6, Side::Destination) => (24, 16),
    };
    Expression::Payload {
        header: Header::Network,
        offset,
        length,
        into: FIRST,
    }
}

fn source(own: IpAddr, comparison: Comparison) -> Vec<Expression> {
    let octets = match own {
        IpAddr::V4(own) => own.octets().to_vec(),
        IpAddr::V6(own) => own.octets().to_vec(),
    };
    vec![
        address(family_of(own), Side::Source),
        compare(comparison, octets),
    ]
}

/// Drops what belongs to no connection that the lab began.
fn unasked() -> Vec<Expression> {
    vec![
        Expression::Conntrack {
            key: Conntrack::State,
            into: FIRST,
        },
        Expression::Bitwise {
            from: FIRST,
            into: FIRST,
            mask: (ct_state::ESTABLISHED | ct_state::RELATED)
                .to_ne_bytes()
                .to_vec(),
            xor: vec![0; 4],
        },
        Expression::equal(FIRST, [0; 4]),
        Expression::Verdict(Verdict::Drop),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_private_or_the_labs() {
        let own: Vec<IpNet> = ["8.8.0.0/16", "10.200.0.0/16", "2600:1::/64"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let refused = refused(&own);
        let is_refused = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            refused.iter().any(|net| net.contains(&address))
        };
        for address in [
            "10.0.0.1",
            "10.200.0.1",
            "8.8.8.8",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::ffff:10.0.0.1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "2600:1::5",
        ] {
            assert!(is_refused(address), "{address}");
        }
        for address in [
            "8.9.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "198.51.100.1",
            "2600:2::1",
            "2001:db8:51::1",
        ] {
            assert!(!is_refused(address), "{address}");
        }
        for (index, one) in refused.iter().enumerate() {
            for other in &refused[index + 1..] {
                assert!(!one.contains(other) && !other.contains(one));
            }
        }
    }
}
