//! The table `bridge podwire_bridge`: what no pod of a bridge is to hear, dropped on the
//! way to the pods.
//!
//! A pod can be told by its own settings to heed no router advertisements and redirects,
//! but the kernel takes longer to find those settings with every namespace there is. One
//! table of the node says it for all pods, and costs an ADD one question.
//!
//! It is worth as much as it lasts. So podwire's agent holds it: as long as it does,
//! nobody else can change it, and `nft flush ruleset` passes it over. When the agent
//! ends, the table stays, as an ordinary one, until an agent comes and holds it again;
//! a pod that is attached meanwhile gets settings of its own, as on a kernel that cannot
//! hold tables.
//!
//! Source: RFC 792 (redirect), RFC 4861, 4.2 and 4.5; CVE-2020-10749.

use linux::nftables::{
    Base, Batch, Chain, ChainKind, Comparison, Error, Expression, Family, Header, Hook, Meta,
    Nftables, Register, Rule, Verdict, priority,
};
use rustix::io::Errno;

/// The table's name.
pub const TABLE: &str = "podwire_bridge";
const FAMILY: Family = Family::Bridge;

/// The table is in force, and stays as it is as long as this lives.
#[derive(Debug)]
pub struct BridgeGuard {
    /// By whose end the kernel knows that the table is held no more.
    _socket: Nftables,
}

/// What became of holding the table.
#[derive(Debug)]
pub enum Holding {
    /// It is held now.
    Held(BridgeGuard),
    /// Another process holds it.
    Taken,
    /// The kernel cannot: it has no rules on bridges, or is older than Linux 6.9.
    Impossible(Error),
}

/// Makes the table in the calling thread's network namespace and holds it. One that
/// nobody holds is replaced, in one instant.
///
/// # Errors
/// If the kernel refuses for another reason than those of [`Holding`].
pub fn hold() -> Result<Holding, Error> {
    let mut socket = Nftables::open()?;
    let mut batch = Batch::new(FAMILY, TABLE, None);
    batch.delete_table_if_any();
    batch.add_held_table();
    for chain in chains() {
        batch.add_chain_with_rules(&chain);
    }
    let Err(error) = socket.commit(batch) else {
        return Ok(Holding::Held(BridgeGuard { _socket: socket }));
    };
    let errno = error.errno();
    let is = |errors: &[Errno]| errors.iter().any(|e| Some(e.raw_os_error()) == errno);
    if is(&[Errno::PERM]) {
        return Ok(Holding::Taken);
    }
    // What a kernel does not know: a flag, a kind of message, bridges, an expression.
    if is(&[
        Errno::OPNOTSUPP,
        Errno::INVAL,
        Errno::AFNOSUPPORT,
        Errno::NOENT,
    ]) {
        return Ok(Holding::Impossible(error));
    }
    Err(error)
}

/// Whether somebody holds the table, in the calling thread's network namespace.
#[must_use]
pub fn is_held() -> bool {
    let held = Nftables::open().and_then(|mut socket| socket.is_held(FAMILY, TABLE));
    // Who cannot be asked holds nothing: the pod gets settings of its own.
    matches!(held, Ok(Some(true)))
}

/// Whether the table is there, held or not.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn exists() -> Result<bool, Error> {
    let mut socket = Nftables::open()?;
    Ok(socket.is_held(FAMILY, TABLE)?.is_some())
}

/// Removes the table; returns whether there was one.
///
/// # Errors
/// If the kernel refuses, as it does while another process holds it.
pub fn remove() -> Result<bool, Error> {
    Nftables::open()?.remove_table(FAMILY, TABLE)
}

/// `ETH_P_*`, in network order.
const IPV4: [u8; 2] = 0x0800_u16.to_be_bytes();
const IPV6: [u8; 2] = 0x86dd_u16.to_be_bytes();
const TAGS: [[u8; 2]; 2] = [0x8100_u16.to_be_bytes(), 0x88a8_u16.to_be_bytes()];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// RFC 792.
const REDIRECT: u8 = 5;
/// RFC 4861, 4.2 and 4.5.
const ROUTER_ADVERTISEMENT: u8 = 134;
const ND_REDIRECT: u8 = 137;

/// What comes from another port, and what the node sends: its kernel tells a pod by a
/// redirect when it routes from a bridge back to the same one, as it does between pods.
fn chains() -> [Chain; 2] {
    [("forward", Hook::Forward), ("output", Hook::Output)].map(|(name, hook)| Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind: ChainKind::Filter,
            hook,
            priority: priority::FILTER_BRIDGED,
            drop: false,
        }),
        rules: rules(),
    })
}

fn rules() -> Vec<Rule> {
    let message = |protocol: [u8; 2], transport: u8, kind: u8| {
        dropped(vec![
            load(Meta::Protocol),
            equal(&protocol),
            load(Meta::TransportProtocol),
            equal(&[transport]),
            Expression::Payload {
                header: Header::Transport,
                offset: 0,
                length: 1,
                into: REGISTER,
            },
            equal(&[kind]),
        ])
    };
    let mut rules = vec![
        message(IPV4, ICMP, REDIRECT),
        message(IPV6, ICMPV6, ROUTER_ADVERTISEMENT),
        message(IPV6, ICMPV6, ND_REDIRECT),
    ];
    // Of a frame with two tags only the outer one is taken off before it is looked at.
    // The pod takes off as many as there are, as long as they name no VLAN.
    rules.extend(TAGS.map(|tag| dropped(vec![load(Meta::Protocol), equal(&tag)])));
    rules
}

/// Drops what matches and leaves by a pod's cable.
fn dropped(mut matches: Vec<Expression>) -> Rule {
    matches.extend([
        load(Meta::OutInterfaceName),
        // The beginning of the name.
        equal(crate::attach::HOST_INTERFACE.as_bytes()),
        Expression::Verdict(Verdict::Drop),
    ]);
    Rule::new(matches)
}

const REGISTER: Register = Register(0);

fn load(key: Meta) -> Expression {
    Expression::Meta {
        key,
        into: REGISTER,
    }
}

fn equal(value: &[u8]) -> Expression {
    Expression::Compare {
        comparison: Comparison::Equal,
        from: REGISTER,
        value: value.to_vec(),
    }
}
