//! Sends an imagined packet through rules that are held as values, and says
//! what becomes of it and by which rules. Pure: for tests, for dry runs and for
//! explaining an expected path.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::expression::{
    Comparison, Conntrack, Expression, FibAddress, Found, Header, Meta, NatFamily, RTN_LOCAL,
    Register, Reject, Verdict, ct_status,
};
use super::object::{Chain, Element, Set, Value};
use super::text::{render_chain, render_set};

/// Rules and sets, as a table of the kernel would hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    chains: BTreeMap<String, Chain>,
    sets: BTreeMap<String, Contents>,
}

/// A set with its elements, range ends apart from starts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Contents {
    set: Set,
    elements: BTreeMap<(Vec<u8>, bool), Held>,
}

/// An element without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// Last key of a concatenated range.
    to: Option<Vec<u8>>,
    value: Option<Value>,
}

/// Why a ruleset cannot take a change; the kernel would refuse the batch too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// Adding what is there, or deleting what is not.
    #[error("element {key:02x?} of {set} is {}there", if *.present { "already " } else { "not " })]
    Element {
        /// Set or map.
        set: String,
        /// Key.
        key: Vec<u8>,
        /// Whether it is there.
        present: bool,
    },
    /// There is no such set.
    #[error("there is no set {0}")]
    NoSet(String),
}

impl Ruleset {
    /// Adds a chain, or replaces it.
    pub fn add_chain(&mut self, chain: Chain) {
        self.chains.insert(chain.name.clone(), chain);
    }

    /// Adds an empty set.
    pub fn add_set(&mut self, set: &Set) {
        let contents = Contents {
            set: set.clone(),
            elements: BTreeMap::new(),
        };
        self.sets.insert(set.name.clone(), contents);
    }

    /// Adds elements as strictly as the kernel.
    ///
    /// # Errors
    /// If one is there already.
    pub fn add_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> Result<(), Impossible> {
        let contents = self
            .sets
            .get_mut(set)
            .ok_or_else(|| Impossible::NoSet(set.to_owned()))?;
        for element in elements {
            let key = (element.key.clone(), element.end);
            let held = Held {
                to: element.to.clone(),
                value: element.value.clone(),
            };
            if contents.elements.insert(key, held).is_some() {
                return Err(Impossible::Element {
                    set: set.to_owned(),
                    key: element.key.clone(),
                    present: true,
                });
            }
        }
        Ok(())
    }

    /// Deletes elements as strictly as the kernel.
    ///
    /// # Errors
    /// If one is not there.
    pub fn delete_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> Result<(), Impossible> {
        let contents = self
            .sets
            .get_mut(set)
            .ok_or_else(|| Impossible::NoSet(set.to_owned()))?;
        for element in elements {
            let key = (element.key.clone(), element.end);
            if contents.elements.remove(&key).is_none() {
                return Err(Impossible::Element {
                    set: set.to_owned(),
                    key: element.key.clone(),
                    present: false,
                });
            }
        }
        Ok(())
    }

    /// Whether two rulesets hold the same elements in all sets.
    #[must_use]
    pub fn same_elements(&self, other: &Self) -> bool {
        self.sets == other.sets
    }

    /// How many elements a set holds.
    #[must_use]
    pub fn len(&self, set: &str) -> usize {
        self.sets.get(set).map_or(0, |set| set.elements.len())
    }

    /// Keys and values of a set, sorted by key; range ends are left out.
    pub fn elements(&self, set: &str) -> impl Iterator<Item = (&[u8], Option<&Value>)> {
        self.sets
            .get(set)
            .into_iter()
            .flat_map(|contents| &contents.elements)
            .filter(|((_, end), _)| !end)
            .map(|((key, _), held)| (key.as_slice(), held.value.as_ref()))
    }

    /// What the kernel would find for a key: nothing, or an element with its value if it has one.
    fn lookup(&self, set: &str, key: &[u8]) -> Option<Option<&Value>> {
        let contents = self.sets.get(set)?;
        if contents.set.is_concatenated() {
            let (_, held) = contents.elements.iter().find(|((first, _), held)| {
                within(&contents.set, key, first, held.to.as_ref().unwrap_or(first))
            })?;
            return Some(held.value.as_ref());
        }
        if contents.set.interval {
            // Of a start and an end with the same key the start counts.
            let ((_, end), held) = contents
                .elements
                .range(..=(key.to_vec(), true))
                .next_back()?;
            let is_end = *end && !contents.elements.contains_key(&(key.to_vec(), false));
            return (!is_end).then_some(held.value.as_ref());
        }
        contents
            .elements
            .get(&(key.to_vec(), false))
            .map(|held| held.value.as_ref())
    }

    fn key_length(&self, set: &str) -> usize {
        self.sets
            .get(set)
            .and_then(|contents| contents.elements.keys().next())
            .map_or(0, |(key, _)| key.len())
    }
}

/// Whether each field of a key is in its range.
fn within(set: &Set, key: &[u8], first: &[u8], last: &[u8]) -> bool {
    let mut offset = 0;
    set.key.iter().all(|field| {
        let end = offset + field.padded();
        let part = |bytes: &'_ [u8]| bytes.get(offset..end).map(<[u8]>::to_vec);
        let inside = part(first) <= part(key) && part(key) <= part(last);
        offset = end;
        inside
    })
}

/// As `nft list` would print it, sorted by name and key.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for contents in self.sets.values() {
            // A range's end sorts before the start of the next.
            let mut elements: Vec<Element> = contents
                .elements
                .iter()
                .map(|((key, end), held)| Element {
                    key: key.clone(),
                    to: held.to.clone(),
                    value: held.value.clone(),
                    end: *end,
                })
                .collect();
            elements.sort_by(|a, b| (&a.key, !a.end).cmp(&(&b.key, !b.end)));
            writeln!(f, "{}", render_set(&contents.set, &elements))?;
        }
        let sets: Vec<Set> = self
            .sets
            .values()
            .map(|contents| contents.set.clone())
            .collect();
        for chain in self.chains.values() {
            writeln!(f, "{}", render_chain(chain, &sets))?;
        }
        Ok(())
    }
}

/// A packet, the first of its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Sender.
    pub source: IpAddr,
    /// Receiver, as of now.
    pub destination: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Sender's port.
    pub source_port: u16,
    /// Receiver's port, as of now.
    pub destination_port: u16,
    /// Receiver before any translation.
    pub original_destination: IpAddr,
    /// Receiver's port before any translation.
    pub original_port: u16,
    /// Conntrack state bits.
    pub state: u32,
    /// Name of the interface it leaves by, once that is known.
    pub out_interface: String,
    /// Whether the sender's address is one of this host.
    pub from_this_host: bool,
}

impl Packet {
    /// A new connection's packet, not translated yet.
    #[must_use]
    pub fn new(source: (IpAddr, u16), destination: (IpAddr, u16), protocol: u8) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            protocol,
            source_port: source.1,
            destination_port: destination.1,
            original_destination: destination.0,
            original_port: destination.1,
            state: super::expression::ct_state::NEW,
            out_interface: String::new(),
            from_this_host: false,
        }
    }

    fn family(&self) -> NatFamily {
        match self.destination {
            IpAddr::V4(_) => NatFamily::V4,
            IpAddr::V6(_) => NatFamily::V6,
        }
    }

    fn payload(&self, header: Header, offset: u32, length: u32) -> Option<Vec<u8>> {
        match (header, self.family(), offset, length) {
            (Header::Network, NatFamily::V4, 12, 4) | (Header::Network, NatFamily::V6, 8, 16) => {
                Some(octets(self.source))
            }
            (Header::Network, NatFamily::V4, 16, 4) | (Header::Network, NatFamily::V6, 24, 16) => {
                Some(octets(self.destination))
            }
            // What else stands at such a place of the other family's header
            // matters to no rule that looks at the family, and to sets of
            // addresses only by chance.
            (Header::Network, ..) => None,
            (Header::Transport, _, 0, 2) => Some(self.source_port.to_be_bytes().to_vec()),
            (Header::Transport, _, 2, 2) => Some(self.destination_port.to_be_bytes().to_vec()),
            (Header::Transport, ..) => None,
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// What a chain does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It goes on as it is.
    Accepted,
    /// It is dropped.
    Dropped,
    /// It is refused.
    Rejected(Reject),
    /// It goes on to another destination.
    Translated(IpAddr, u16),
    /// It goes on with the address of the interface it leaves by.
    Masqueraded,
}

/// A rule that matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its chain.
    pub chain: String,
    /// Its place in the chain, from zero.
    pub rule: usize,
}

/// A packet's way through a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// What became of it.
    pub fate: Fate,
    /// The rules that matched, in order.
    pub steps: Vec<Step>,
}

/// How deep chains may call each other (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;

/// Sends a packet through a base chain. `draw` is given the modulus of a random
/// choice and returns a number below it.
pub fn walk(
    rules: &Ruleset,
    chain: &str,
    packet: &Packet,
    draw: &mut dyn FnMut(u32) -> u32,
) -> Walk {
    let mut walker = Walker {
        rules,
        packet,
        draw,
        steps: Vec::new(),
    };
    let fate = match walker.chain(chain, 0) {
        Some(fate) => fate,
        None if rules
            .chains
            .get(chain)
            .and_then(|chain| chain.base)
            .is_some_and(|base| base.drop) =>
        {
            Fate::Dropped
        }
        None => Fate::Accepted,
    };
    Walk {
        fate,
        steps: walker.steps,
    }
}

struct Walker<'a> {
    rules: &'a Ruleset,
    packet: &'a Packet,
    draw: &'a mut dyn FnMut(u32) -> u32,
    steps: Vec<Step>,
}

/// What comes after a rule.
enum Next {
    /// The next rule.
    Rule,
    /// Back to the calling chain.
    Return,
    End(Fate),
}

impl Walker<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> Option<Fate> {
        if depth > DEEPEST {
            return Some(Fate::Dropped);
        }
        let rules = self.rules;
        let chain = rules.chains.get(name)?;
        for (index, rule) in chain.rules.iter().enumerate() {
            match self.rule(name, index, &rule.expressions, depth) {
                Next::Rule => {}
                Next::Return => return None,
                Next::End(fate) => return Some(fate),
            }
        }
        None
    }

    fn verdict(&mut self, verdict: &Verdict, depth: usize) -> Next {
        match verdict {
            Verdict::Accept => Next::End(Fate::Accepted),
            Verdict::Drop => Next::End(Fate::Dropped),
            Verdict::Return => Next::Return,
            Verdict::Jump(chain) => self.chain(chain, depth + 1).map_or(Next::Rule, Next::End),
            Verdict::Goto(chain) => self.chain(chain, depth + 1).map_or(Next::Return, Next::End),
        }
    }

    fn rule(
        &mut self,
        chain: &str,
        index: usize,
        expressions: &[Expression],
        depth: usize,
    ) -> Next {
        let mut registers = [0u8; 64];
        let place = self.steps.len();
        self.steps.push(Step {
            chain: chain.to_owned(),
            rule: index,
        });
        for expression in expressions {
            match self.expression(expression, &mut registers, depth) {
                Outcome::Goes => {}
                Outcome::Breaks => {
                    self.steps.truncate(place);
                    return Next::Rule;
                }
                Outcome::Ends(next) => return next,
            }
        }
        Next::Rule
    }

    fn expression(
        &mut self,
        expression: &Expression,
        registers: &mut [u8; 64],
        depth: usize,
    ) -> Outcome {
        let packet = self.packet;
        match expression {
            Expression::Payload {
                header,
                offset,
                length,
                into,
            } => match packet.payload(*header, *offset, *length) {
                Some(bytes) => store(registers, *into, &bytes),
                None => Outcome::Breaks,
            },
            Expression::Meta { key, into } => {
                let name = |name: &str| {
                    let mut bytes = name.as_bytes().to_vec();
                    bytes.resize(16, 0);
                    bytes
                };
                let bytes = match key {
                    Meta::Protocol => return Outcome::Breaks,
                    Meta::Mark => vec![0; 4],
                    Meta::OutInterfaceName => name(&packet.out_interface),
                    Meta::InInterfaceName => return Outcome::Breaks,
                    Meta::OutInterfaceType => return Outcome::Breaks,
                    Meta::NetworkFamily => vec![packet.family().number()],
                    Meta::TransportProtocol => vec![packet.protocol],
                };
                store(registers, *into, &bytes)
            }
            Expression::Conntrack { key, into } => {
                let translated = (packet.original_destination, packet.original_port)
                    != (packet.destination, packet.destination_port);
                let bytes = match (key, packet.family()) {
                    (Conntrack::State, _) => packet.state.to_ne_bytes().to_vec(),
                    (Conntrack::Status, _) => (if translated { ct_status::DNAT } else { 0 })
                        .to_ne_bytes()
                        .to_vec(),
                    (Conntrack::OriginalSource4, NatFamily::V4)
                    | (Conntrack::OriginalSource6, NatFamily::V6) => octets(packet.source),
                    (Conntrack::OriginalDestination4, NatFamily::V4)
                    | (Conntrack::OriginalDestination6, NatFamily::V6) => {
                        octets(packet.original_destination)
                    }
                    (Conntrack::OriginalDestinationPort, _) => {
                        packet.original_port.to_be_bytes().to_vec()
                    }
                    _ => return Outcome::Breaks,
                };
                store(registers, *into, &bytes)
            }
            Expression::FibType { address, into } => {
                let kind: u32 = match address {
                    FibAddress::Source if packet.from_this_host => RTN_LOCAL,
                    _ => 1, // RTN_UNICAST
                };
                store(registers, *into, &kind.to_ne_bytes())
            }
            Expression::RandomNumber {
                modulus,
                offset,
                into,
            } => {
                let number = offset + (self.draw)(*modulus);
                store(registers, *into, &number.to_ne_bytes())
            }
            Expression::Lookup { set, from, found } => {
                self.look_up(set, *from, found, registers, depth)
            }
            // Sizes of segments change no packet's way.
            Expression::PathSegmentSize { .. }
            | Expression::NetworkOrder { .. }
            | Expression::LowerSegmentSize { .. } => Outcome::Goes,
            // What rules write into sets is left out: each packet is a world of its own.
            Expression::Update { .. }
            | Expression::Forget { .. }
            | Expression::Counter
            | Expression::NoTrack => Outcome::Goes,
            Expression::Verdict(verdict) => Outcome::Ends(self.verdict(verdict, depth)),
            Expression::Compare {
                comparison,
                from,
                value,
            } => {
                let equal = load(registers, *from, value.len()) == *value;
                match (comparison, equal) {
                    (Comparison::Equal, true) | (Comparison::NotEqual, false) => Outcome::Goes,
                    _ => Outcome::Breaks,
                }
            }
            Expression::Bitwise {
                from,
                into,
                mask,
                xor,
            } => {
                let bytes: Vec<u8> = load(registers, *from, mask.len())
                    .iter()
                    .zip(mask.iter().zip(xor))
                    .map(|(byte, (mask, xor))| (byte & mask) ^ xor)
                    .collect();
                store(registers, *into, &bytes)
            }
            Expression::DestinationNat {
                family,
                address,
                port,
            } => {
                let to = match family {
                    NatFamily::V4 => {
                        <[u8; 4]>::try_from(load(registers, *address, 4)).map(IpAddr::from)
                    }
                    NatFamily::V6 => {
                        <[u8; 16]>::try_from(load(registers, *address, 16)).map(IpAddr::from)
                    }
                };
                let Ok(to) = to else {
                    return Outcome::Breaks;
                };
                let port = port.map_or(packet.destination_port, |port| {
                    let bytes = load(registers, port, 2);
                    u16::from_be_bytes([bytes[0], bytes[1]])
                });
                Outcome::Ends(Next::End(Fate::Translated(to, port)))
            }
            Expression::Masquerade { .. } => Outcome::Ends(Next::End(Fate::Masqueraded)),
            // A reset is sent for TCP only; other packets go on to the next rule.
            Expression::Reject(Reject::TcpReset) if packet.protocol != 6 => Outcome::Breaks,
            Expression::Reject(reject) => Outcome::Ends(Next::End(Fate::Rejected(*reject))),
        }
    }

    fn look_up(
        &mut self,
        set: &str,
        from: Register,
        found: &Found,
        registers: &mut [u8; 64],
        depth: usize,
    ) -> Outcome {
        let rules = self.rules;
        let key = load(registers, from, rules.key_length(set));
        match (rules.lookup(set, &key), found) {
            (Some(_), Found::Membership) | (None, Found::Absence) => Outcome::Goes,
            (Some(Some(Value::Bytes(bytes))), Found::Data(into)) => store(registers, *into, bytes),
            (Some(Some(Value::Verdict(verdict))), Found::Verdict) => {
                Outcome::Ends(self.verdict(verdict, depth))
            }
            _ => Outcome::Breaks,
        }
    }
}

/// What an expression does to its rule.
enum Outcome {
    Goes,
    /// The rule does not match.
    Breaks,
    Ends(Next),
}

/// Writes a value and pads its last register with zeros, as the kernel does.
fn store(registers: &mut [u8; 64], into: Register, bytes: &[u8]) -> Outcome {
    let start = usize::from(into.0) * 4;
    let padded = bytes.len().next_multiple_of(4);
    let Some(place) = registers.get_mut(start..start + padded) else {
        return Outcome::Breaks;
    };
    place.fill(0);
    place[..bytes.len()].copy_from_slice(bytes);
    Outcome::Goes
}

/// Reads a value; what would lie beyond the last register is zero.
fn load(registers: &[u8; 64], from: Register, length: usize) -> Vec<u8> {
    let start = (usize::from(from.0) * 4).min(64);
    let mut bytes = registers[start..(start + length).min(64)].to_vec();
    bytes.resize(length, 0);
    bytes
}
