//! The nftables table of routing, there while there are devices:
//!
//! - TCP connections through a tunnel are told the segment size that fits it (most
//!   firewalls drop the ICMP errors that would tell them otherwise). Only what
//!   opens a connection is looked at by name of the device;
//! - the tunnels' own packets are not tracked: nothing translates them, and a
//!   second entry for every node and flow would cost each packet a lookup;
//! - the node's own packets into a bridge of `vxlan-multicast` get its tunnel address,
//!   so that the answers come back that way. Other tunnels have routes for the answers
//!   ([`crate::model::RouteTable::OfPods`]) and no translation, which would have all
//!   packets of the node tracked. Multicast is to know nothing of single peers.

use std::collections::{BTreeMap, BTreeSet};

use linux::nftables::{
    Base, Batch, Chain, ChainKind, Expression, Family, FibAddress, Header, Hook, Meta, Nftables,
    RTN_LOCAL, Register, Rule, Verdict, priority,
};

use crate::model::{DEVICE_PREFIX, Device, DeviceKind, DeviceName};

/// Name of the table.
pub const TABLE: &str = "podwire_routing";

/// The table, as it is or should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// Nothing of its name.
    #[default]
    Absent,
    /// Its chains, by name.
    Holds(BTreeMap<String, Content>),
}

/// What is in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    base: Option<Base>,
    /// `None` for a rule podwire could not have made.
    rules: Vec<Option<Vec<Expression>>>,
}

/// The table these devices want.
pub fn wanted(devices: &BTreeMap<DeviceName, Device>) -> Table {
    if devices.is_empty() {
        return Table::Absent;
    }
    let content = |chain: Chain| {
        let rules = chain.rules.into_iter();
        let content = Content {
            base: chain.base,
            rules: rules.map(|rule| Some(rule.expressions)).collect(),
        };
        (chain.name, content)
    };
    Table::Holds(chains(devices).into_iter().map(content).collect())
}

/// How the packets of a tunnel are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outer {
    /// Sent to this UDP port.
    Udp(u16),
    /// Sent to this UDP port, or from it.
    UdpBothWays(u16),
    /// Of this IP protocol.
    Protocol(u8),
}

fn outer(device: &Device) -> Option<Outer> {
    Some(match device.kind {
        DeviceKind::Vxlan(vxlan) => Outer::Udp(vxlan.port),
        DeviceKind::Wireguard => Outer::UdpBothWays(device.wireguard.as_ref()?.port),
        // IANA: IPv4 and IPv6 as what is carried.
        DeviceKind::Ipip(_) => Outer::Protocol(4),
        DeviceKind::Ip6Tunnel => Outer::Protocol(41),
        DeviceKind::Bridge => return None,
    })
}

/// Its chains.
fn chains(devices: &BTreeMap<DeviceName, Device>) -> Vec<Chain> {
    let base = |kind, hook, priority| {
        Some(Base {
            kind,
            hook,
            priority,
            drop: false,
        })
    };
    let over = |key| {
        [
            Expression::Meta {
                key,
                into: Register(0),
            },
            // All names that begin so.
            Expression::equal(Register(0), DEVICE_PREFIX.as_bytes()),
        ]
    };
    let clamp = |key| {
        let mut expressions = over(key).to_vec();
        expressions.extend(clamp());
        Rule::new(expressions).comment("a connection through a tunnel: segments that fit it")
    };
    let mut opens = opens().to_vec();
    opens.push(Expression::Verdict(Verdict::Jump(TUNNELS.to_owned())));
    let outer: BTreeSet<Outer> = devices.values().filter_map(outer).collect();
    let untracked = |name: &str, hook, leaving: bool| Chain {
        name: name.to_owned(),
        base: base(ChainKind::Filter, hook, priority::RAW),
        rules: outer
            .iter()
            .map(|outer| untracked(*outer, leaving))
            .collect(),
    };
    let bridges = devices
        .iter()
        .filter(|(_, device)| device.kind == DeviceKind::Bridge);
    let sources: Vec<Rule> = bridges.map(|(name, _)| own_source(*name)).collect();
    let mut chains = vec![
        Chain {
            name: TUNNELS.to_owned(),
            base: None,
            rules: vec![clamp(Meta::OutInterfaceName), clamp(Meta::InInterfaceName)],
        },
        Chain {
            name: "segments".to_owned(),
            base: base(ChainKind::Filter, Hook::Forward, priority::MANGLE),
            rules: vec![Rule::new(opens).comment("what opens a TCP connection")],
        },
        untracked("arriving", Hook::Prerouting, false),
        untracked("leaving", Hook::Output, true),
    ];
    // The chain alone turns connection tracking on.
    if !sources.is_empty() {
        chains.push(Chain {
            name: "sources".to_owned(),
            base: base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT),
            rules: sources,
        });
    }
    chains
}

/// Gives the node's own packets into a device an address of that.
fn own_source(device: DeviceName) -> Rule {
    // With the zeros after it: this name, and not those that begin so.
    let mut name = [0; linux::link::NAME_LENGTH + 1];
    for (byte, of_name) in name.iter_mut().zip(device.as_str().bytes()) {
        *byte = of_name;
    }
    let expressions = vec![
        Expression::Meta {
            key: Meta::OutInterfaceName,
            into: Register(0),
        },
        Expression::equal(Register(0), name),
        Expression::FibType {
            address: FibAddress::Source,
            into: Register(0),
        },
        Expression::equal(Register(0), RTN_LOCAL.to_ne_bytes()),
        Expression::Masquerade { flags: 0 },
    ];
    Rule::new(expressions).comment(
        "the node's own packets: from its tunnel address, so that answers come back by the tunnel",
    )
}

/// Name of the chain for what opens a connection.
const TUNNELS: &str = "tunnels";
/// Numbers of transport protocols.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Goes on with packets of a transport protocol.
fn transport(protocol: u8) -> [Expression; 2] {
    [
        Expression::Meta {
            key: Meta::TransportProtocol,
            into: Register(0),
        },
        Expression::equal(Register(0), [protocol]),
    ]
}

/// Takes a tunnel's packets out of connection tracking.
fn untracked(outer: Outer, leaving: bool) -> Rule {
    let (protocol, port) = match outer {
        Outer::Udp(port) => (UDP, Some((port, false))),
        Outer::UdpBothWays(port) => (UDP, Some((port, leaving))),
        Outer::Protocol(protocol) => (protocol, None),
    };
    let mut expressions = transport(protocol).to_vec();
    if let Some((port, is_source)) = port {
        expressions.extend([
            Expression::Payload {
                header: Header::Transport,
                // RFC 768: the source port comes first.
                offset: if is_source { 0 } else { 2 },
                length: 2,
                into: Register(0),
            },
            Expression::equal(Register(0), port.to_be_bytes()),
        ]);
    }
    expressions.push(Expression::NoTrack);
    Rule::new(expressions).comment("a tunnel's own packets")
}

/// Goes on with TCP packets with SYN and without RST.
fn opens() -> [Expression; 5] {
    /// Byte of the TCP header that holds the flags (RFC 9293, section 3.1).
    const FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    let [load, compare] = transport(TCP);
    [
        load,
        compare,
        Expression::Payload {
            header: Header::Transport,
            offset: FLAGS,
            length: 1,
            into: Register(0),
        },
        Expression::Bitwise {
            from: Register(0),
            into: Register(0),
            mask: vec![SYN | RST],
            xor: vec![0],
        },
        Expression::equal(Register(0), [SYN]),
    ]
}

/// The segment size becomes that of the path, where it is larger. The kernel
/// wants a rule that writes it to say itself that the packet is TCP.
fn clamp() -> [Expression; 5] {
    let [load, compare] = transport(TCP);
    [
        load,
        compare,
        Expression::PathSegmentSize { into: Register(0) },
        Expression::NetworkOrder {
            from: Register(0),
            into: Register(0),
        },
        Expression::LowerSegmentSize { from: Register(0) },
    ]
}

/// What the kernel holds of it.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn read(nft: &mut Nftables) -> Result<Table, linux::nftables::Error> {
    if !nft.tables(Family::Inet)?.iter().any(|name| name == TABLE) {
        return Ok(Table::Absent);
    }
    let rules = nft.rules(Family::Inet, TABLE)?;
    let chains = nft.chains(Family::Inet, TABLE)?.into_iter();
    let content = |base, name: &str| Content {
        base,
        rules: rules
            .iter()
            .filter(|rule| rule.chain == name)
            .map(|rule| rule.expressions.clone())
            .collect(),
    };
    Ok(Table::Holds(
        chains
            .map(|chain| {
                let content = content(chain.base, &chain.name);
                (chain.name, content)
            })
            .collect(),
    ))
}

/// Makes the table what these devices want, in one transaction; removes it when
/// there are none.
///
/// # Errors
/// When the kernel refuses; nothing has changed then.
pub fn write(
    nft: &mut Nftables,
    held: &Table,
    devices: &BTreeMap<DeviceName, Device>,
) -> Result<(), linux::nftables::Error> {
    let mut batch = Batch::new(Family::Inet, TABLE, None);
    if *held != Table::Absent {
        batch.delete_table();
    }
    if !devices.is_empty() {
        batch.add_table();
        for chain in chains(devices) {
            batch.add_chain_with_rules(&chain);
        }
    }
    nft.commit(batch)
}
