//! The nftables table of routing, `inet podwire_routing`: what packets need that
//! enter and leave tunnels. It is there while there are devices, and the same
//! whichever they are.

use linux::nftables::{
    Base, Batch, Chain, ChainKind, Comparison, Expression, Family, FibAddress, Header, Hook, Meta,
    Nftables, RTN_LOCAL, Register, Rule, priority,
};

use crate::model::DEVICE_PREFIX;

/// Name of the table.
pub const TABLE: &str = "podwire_routing";

/// What the kernel holds of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// Nothing.
    #[default]
    Absent,
    /// All of it.
    Complete,
    /// Something else under its name.
    Other,
}

/// Its chains.
pub fn chains() -> [Chain; 2] {
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
            equal(DEVICE_PREFIX.as_bytes()),
        ]
    };
    let clamp = |key| {
        let mut expressions = over(key).to_vec();
        expressions.extend(clamp());
        Rule::new(expressions).comment("a connection through a tunnel: segments that fit it")
    };
    let mut own = over(Meta::OutInterfaceName).to_vec();
    own.extend([
        Expression::FibType {
            address: FibAddress::Source,
            into: Register(0),
        },
        equal(&RTN_LOCAL.to_ne_bytes()),
        Expression::Masquerade { flags: 0 },
    ]);
    [
        Chain {
            name: "segments".to_owned(),
            base: base(ChainKind::Filter, Hook::Forward, priority::MANGLE),
            rules: vec![clamp(Meta::OutInterfaceName), clamp(Meta::InInterfaceName)],
        },
        Chain {
            name: "sources".to_owned(),
            base: base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT),
            rules: vec![Rule::new(own).comment(
                "the node's own packets: from its tunnel address, so that answers come back by the \
                 tunnel",
            )],
        },
    ]
}

fn equal(value: &[u8]) -> Expression {
    Expression::Compare {
        comparison: Comparison::Equal,
        from: Register(0),
        value: value.to_vec(),
    }
}

/// TCP packets with SYN and without RST get the segment size of the path.
fn clamp() -> [Expression; 8] {
    const TCP: u8 = 6;
    /// Byte of the TCP header that holds the flags (RFC 9293, section 3.1).
    const FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    [
        Expression::Meta {
            key: Meta::TransportProtocol,
            into: Register(0),
        },
        equal(&[TCP]),
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
        equal(&[SYN]),
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
    let live = nft.chains(Family::Inet, TABLE)?;
    let rules = nft.rules(Family::Inet, TABLE)?;
    let wanted = chains();
    let same = live.len() == wanted.len()
        && wanted.iter().all(|chain| {
            let held = rules.iter().filter(|rule| rule.chain == chain.name);
            live.iter()
                .any(|live| live.name == chain.name && live.base == chain.base)
                && held
                    .map(|rule| rule.expressions.as_ref())
                    .eq(chain.rules.iter().map(|rule| Some(&rule.expressions)))
        });
    Ok(if same { Table::Complete } else { Table::Other })
}

/// Makes the table what it should be, or removes it, in one transaction.
///
/// # Errors
/// When the kernel refuses; nothing has changed then.
pub fn write(nft: &mut Nftables, held: Table, wanted: bool) -> Result<(), linux::nftables::Error> {
    let mut batch = Batch::new(Family::Inet, TABLE, None);
    if held != Table::Absent {
        batch.delete_table();
    }
    if wanted {
        batch.add_table();
        for chain in chains() {
            batch.add_chain_with_rules(&chain);
        }
    }
    nft.commit(batch)
}
