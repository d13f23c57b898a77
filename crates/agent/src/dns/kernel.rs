//! What the kernel needs so that the node answers at addresses no interface
//! has: a local route to each, and a table that keeps DNS at them out of
//! conntrack. Packets conntrack does not follow pass no NAT chain, so no
//! Service proxy gets hold of them.
//!
//! While one agent takes over from another nobody listens, and the kernel would
//! refuse what is asked. A resolver that is refused asks the next server, finds
//! the same one, and gives up; one that hears nothing asks again. So the table
//! also drops those refusals.

use std::net::IpAddr;

use ipnet::IpNet;
use linux::link;
use linux::netlink::Socket;
use linux::nftables::{
    self, Base, Batch, Chain, ChainKind, Expression, Family, Header, Hook, Meta, Nftables,
    Register, Rule, Verdict, priority,
};
use linux::route::{self, Filter, Kind, Route, Scope, TABLE_LOCAL};

/// Name of the table.
pub(crate) const TABLE: &str = "podwire_dns";

/// Transport protocols (IANA protocol numbers).
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Why it could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A route.
    #[error("making the addresses of DNS local: {0}")]
    Route(#[from] linux::netlink::Error),
    /// The table.
    #[error("keeping DNS out of conntrack: {0}")]
    Table(#[from] nftables::Error),
}

/// Makes the kernel hold what these addresses need, and nothing for others. What
/// is there already is left alone.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub(crate) fn ensure(addresses: &[IpAddr]) -> Result<(), Error> {
    ensure_routes(addresses)?;
    ensure_table(addresses)?;
    Ok(())
}

fn ensure_routes(addresses: &[IpAddr]) -> Result<(), linux::netlink::Error> {
    let mut socket = Socket::open_route()?;
    let Some(loopback) = link::get(&mut socket, "lo")? else {
        return Ok(());
    };
    // Of loopback: local routes of pods' links are the CNI plugin's.
    let held = route::list(
        &mut socket,
        Filter {
            table: Some(TABLE_LOCAL),
            link: Some(loopback.index),
            ..Filter::own()
        },
    )?;
    for route in &held {
        if !addresses.contains(&route.destination.addr()) {
            match socket.execute(&route::delete(route)) {
                Err(error) if error.not_found() => {}
                outcome => outcome?,
            }
        }
    }
    for address in addresses {
        if held
            .iter()
            .any(|route| route.destination.addr() == *address)
        {
            continue;
        }
        let mut route = Route::to(IpNet::from(*address))
            .dev(loopback.index)
            .table(TABLE_LOCAL)
            .kind(Kind::Local);
        if address.is_ipv4() {
            route.scope = Scope::Host;
        }
        socket.execute(&route::replace(&route))?;
    }
    Ok(())
}

fn ensure_table(addresses: &[IpAddr]) -> Result<(), nftables::Error> {
    let mut nft = Nftables::open()?;
    let wanted = chains(addresses);
    let mut batch = Batch::new(Family::Inet, TABLE, None);
    if nft.tables(Family::Inet)?.iter().any(|name| name == TABLE) {
        let live = nft.chains(Family::Inet, TABLE)?;
        let rules = nft.rules(Family::Inet, TABLE)?;
        let same = live.len() == wanted.len()
            && wanted.iter().all(|chain| {
                live.iter()
                    .any(|held| held.name == chain.name && held.base == chain.base)
                    && rules
                        .iter()
                        .filter(|rule| rule.chain == chain.name)
                        .map(|rule| rule.expressions.as_ref())
                        .eq(chain.rules.iter().map(|rule| Some(&rule.expressions)))
            });
        if same {
            return Ok(());
        }
        batch.delete_table();
    }
    batch.add_table();
    for chain in &wanted {
        batch.add_chain_with_rules(chain);
    }
    nft.commit(batch)
}

/// Gives back addresses an agent before this one answered at.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub(crate) fn release() -> Result<(), Error> {
    ensure_routes(&[])?;
    remove_table()?;
    Ok(())
}

/// Removes the table. The routes go with podwire's others.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub(crate) fn remove_table() -> Result<bool, nftables::Error> {
    Nftables::open()?.remove_table(Family::Inet, TABLE)
}

/// The chains: questions and answers pass both hooks when they come from the
/// node itself. What is not on port 53 meets two rules.
fn chains(addresses: &[IpAddr]) -> Vec<Chain> {
    let by_port = |offset, chain: &str| {
        Rule::new(vec![
            Expression::Payload {
                header: Header::Transport,
                offset,
                length: 2,
                into: Register(0),
            },
            Expression::equal(Register(0), ::dns::resolv_conf::PORT.to_be_bytes()),
            Expression::Verdict(Verdict::Jump(chain.to_owned())),
        ])
    };
    let untracked = |name: &str, is_source: bool| Chain {
        name: name.to_owned(),
        base: None,
        rules: addresses
            .iter()
            .map(|address| Rule::new(no_track(*address, is_source)))
            .collect(),
    };
    let base = |name: &str, hook, more: Vec<Rule>| Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind: ChainKind::Filter,
            hook,
            priority: priority::RAW,
            drop: false,
        }),
        rules: [vec![by_port(2, "questions"), by_port(0, "answers")], more].concat(),
    };
    let errors = [ICMP, ICMPV6].map(|protocol| {
        let mut rule = protocol_is(protocol);
        rule.push(Expression::Verdict(Verdict::Jump("refusals".to_owned())));
        Rule::new(rule)
    });
    vec![
        untracked("questions", false),
        untracked("answers", true),
        Chain {
            name: "refusals".to_owned(),
            base: None,
            rules: addresses
                .iter()
                .map(|address| Rule::new(drop_refusal(*address)))
                .collect(),
        },
        base("prerouting", Hook::Prerouting, Vec::new()),
        base("output", Hook::Output, errors.to_vec()),
    ]
}

fn protocol_is(number: u8) -> Vec<Expression> {
    vec![
        Expression::Meta {
            key: Meta::TransportProtocol,
            into: Register(0),
        },
        Expression::equal(Register(0), [number]),
    ]
}

/// Drops "port unreachable" that tells who asked by UDP at an address that nobody
/// listens there. Known by the question in it: of IPv6 the kernel sends it from an
/// address of an interface.
fn drop_refusal(address: IpAddr) -> Vec<Expression> {
    // Type and code (RFC 792, RFC 4443 3.1); in the question's IP header, which
    // follows 8 bytes of ICMP, its protocol and destination; its length.
    let (family, refused, bytes, protocol_at, address_at, header) = match address {
        IpAddr::V4(address) => (2, [3, 3], address.octets().to_vec(), 9, 16, 20),
        IpAddr::V6(address) => (10, [1, 4], address.octets().to_vec(), 6, 24, 40),
    };
    let payload = |offset, length| Expression::Payload {
        header: Header::Transport,
        offset,
        length,
        into: Register(0),
    };
    vec![
        Expression::Meta {
            key: Meta::NetworkFamily,
            into: Register(0),
        },
        Expression::equal(Register(0), [family]),
        payload(0, 2),
        Expression::equal(Register(0), refused),
        payload(8 + protocol_at, 1),
        Expression::equal(Register(0), [UDP]),
        payload(8 + address_at, if address.is_ipv4() { 4 } else { 16 }),
        Expression::equal(Register(0), bytes),
        payload(8 + header + 2, 2),
        Expression::equal(Register(0), ::dns::resolv_conf::PORT.to_be_bytes()),
        Expression::Verdict(Verdict::Drop),
    ]
}

fn no_track(address: IpAddr, is_source: bool) -> Vec<Expression> {
    // Offsets of the addresses in both headers (RFC 791, RFC 8200).
    let (family, bytes, offset) = match address {
        IpAddr::V4(address) => (
            2,
            address.octets().to_vec(),
            if is_source { 12 } else { 16 },
        ),
        IpAddr::V6(address) => (
            10,
            address.octets().to_vec(),
            if is_source { 8 } else { 24 },
        ),
    };
    vec![
        Expression::Meta {
            key: Meta::NetworkFamily,
            into: Register(0),
        },
        Expression::equal(Register(0), [family]),
        Expression::Payload {
            header: Header::Network,
            offset,
            length: if address.is_ipv4() { 4 } else { 16 },
            into: Register(0),
        },
        Expression::equal(Register(0), bytes),
        Expression::NoTrack,
    ]
}
