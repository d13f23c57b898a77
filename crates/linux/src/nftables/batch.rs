//! Batches: changes that the kernel takes all together or not at all.

use super::expression::Expression;
use super::object::{Chain, Element, Family, MapData, Rule, Set, Value, concatenation};
use crate::netfilter::wire::{
    Attributes, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Writer,
};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const MSG_NEWTABLE: u16 = 0;
pub(super) const MSG_GETTABLE: u16 = 1;
const MSG_DELTABLE: u16 = 2;
pub(super) const MSG_NEWCHAIN: u16 = 3;
pub(super) const MSG_GETCHAIN: u16 = 4;
const MSG_DELCHAIN: u16 = 5;
pub(super) const MSG_NEWRULE: u16 = 6;
pub(super) const MSG_GETRULE: u16 = 7;
const MSG_DELRULE: u16 = 8;
pub(super) const MSG_NEWSET: u16 = 9;
pub(super) const MSG_GETSET: u16 = 10;
const MSG_DELSET: u16 = 11;
pub(super) const MSG_NEWSETELEM: u16 = 12;
pub(super) const MSG_GETSETELEM: u16 = 13;
const MSG_DELSETELEM: u16 = 14;
pub(super) const MSG_NEWGEN: u16 = 15;
pub(super) const MSG_GETGEN: u16 = 16;
const MSG_DESTROYTABLE: u16 = 26;

/// `NFT_TABLE_F_OWNER`, `NFT_TABLE_F_PERSIST`.
const HELD: u32 = 2 | 4;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// An attribute's length has 16 bits; an element is far shorter than the rest.
const ELEMENTS_LIMIT: usize = 60 * 1024;

pub(super) const fn message(kind: u16) -> u16 {
    SUBSYSTEM << 8 | kind
}

/// Names the object a message is about, for errors.
#[derive(Debug, Clone)]
enum Subject {
    AddTable,
    AddHeldTable,
    DeleteTable,
    AddChain(String),
    DeleteChain(String),
    FlushChain(String),
    AddRule(String),
    DeleteRule(String, u64),
    AddSet(String),
    DeleteSet(String),
    AddElements(String),
    DeleteElements(String),
    FlushSet(String),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AddTable => f.write_str("adding the table"),
            Self::AddHeldTable => f.write_str("adding and holding the table"),
            Self::DeleteTable => f.write_str("deleting the table"),
            Self::AddChain(name) => write!(f, "adding chain {name}"),
            Self::DeleteChain(name) => write!(f, "deleting chain {name}"),
            Self::FlushChain(name) => write!(f, "deleting the rules of chain {name}"),
            Self::AddRule(name) => write!(f, "adding a rule to chain {name}"),
            Self::DeleteRule(name, handle) => {
                write!(f, "deleting rule {handle} of chain {name}")
            }
            Self::AddSet(name) => write!(f, "adding set {name}"),
            Self::DeleteSet(name) => write!(f, "deleting set {name}"),
            Self::AddElements(name) => write!(f, "adding elements to {name}"),
            Self::DeleteElements(name) => write!(f, "deleting elements of {name}"),
            Self::FlushSet(name) => write!(f, "deleting all elements of {name}"),
        }
    }
}

/// Changes to the objects of one table, in order, that take effect in one
/// instant or not at all.
#[derive(Debug, Clone)]
pub struct Batch {
    family: Family,
    table: String,
    writer: Writer,
    subjects: Vec<Subject>,
    /// Where each message starts, BATCH_BEGIN first.
    starts: Vec<usize>,
    elements: usize,
}

impl Batch {
    /// An empty batch about one table.
    ///
    /// With a `generation` the kernel refuses the batch if the rules of this
    /// network namespace changed since that generation was read.
    #[must_use]
    pub fn new(family: Family, table: impl Into<String>, generation: Option<u32>) -> Self {
        let mut writer = Writer::default();
        let begin = writer.open_message(BATCH_BEGIN, 0, 0, 0, SUBSYSTEM);
        if let Some(generation) = generation {
            writer.put_u32(1, generation); // NFNL_BATCH_GENID
        }
        writer.close_message(begin);
        Self {
            family,
            table: table.into(),
            writer,
            subjects: Vec::new(),
            starts: vec![0],
            elements: 0,
        }
    }

    /// Whether nothing was put in yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    /// How many set elements it adds and deletes.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Length in bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.writer.bytes.len()
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        subject: Subject,
        fill: impl FnOnce(&mut Writer, &str),
    ) {
        self.starts.push(self.writer.bytes.len());
        self.subjects.push(subject);
        let sequence = self.subjects.len() as u32;
        let open =
            self.writer
                .open_message(message(kind), flags, sequence, self.family.number(), 0);
        fill(&mut self.writer, &self.table);
        self.writer.close_message(open);
    }

    /// Makes the table; one that exists already is left as it is.
    pub fn add_table(&mut self) {
        self.message(MSG_NEWTABLE, NLM_F_CREATE, Subject::AddTable, |w, table| {
            w.put_text(1, table);
        });
    }

    /// Deletes the table with all that is in it.
    pub fn delete_table(&mut self) {
        self.message(MSG_DELTABLE, 0, Subject::DeleteTable, |w, table| {
            w.put_text(1, table);
        });
    }

    /// Makes the table, which is not there, and holds it: until the socket that commits
    /// this is closed, nobody else can change it, and whoever deletes all tables passes
    /// it over. Then it stays as an ordinary table. Needs Linux 6.9.
    pub fn add_held_table(&mut self) {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.message(MSG_NEWTABLE, flags, Subject::AddHeldTable, |w, table| {
            w.put_text(1, table);
            w.put_u32(2, HELD);
        });
    }

    /// Deletes the table with all that is in it, if there is one. Needs Linux 6.3.
    pub fn delete_table_if_any(&mut self) {
        self.message(MSG_DESTROYTABLE, 0, Subject::DeleteTable, |w, table| {
            w.put_text(1, table);
        });
    }

    /// Makes a chain, without its rules.
    pub fn add_chain(&mut self, chain: &Chain) {
        let subject = Subject::AddChain(chain.name.clone());
        self.message(MSG_NEWCHAIN, NLM_F_CREATE, subject, |w, table| {
            w.put_text(1, table);
            w.put_text(3, &chain.name);
            if let Some(base) = chain.base {
                let hook = w.open(4);
                w.put_u32(1, base.hook.number());
                w.put(2, &base.priority.to_be_bytes());
                w.close(hook);
                w.put_u32(5, u32::from(!base.drop)); // NF_DROP or NF_ACCEPT
                w.put_text(7, base.kind.name());
            }
        });
    }

    /// Makes a chain and its rules.
    pub fn add_chain_with_rules(&mut self, chain: &Chain) {
        self.add_chain(chain);
        for rule in &chain.rules {
            self.add_rule(&chain.name, rule);
        }
    }

    /// Deletes an empty chain that nothing refers to.
    pub fn delete_chain(&mut self, name: &str) {
        self.message(
            MSG_DELCHAIN,
            0,
            Subject::DeleteChain(name.to_owned()),
            |w, table| {
                w.put_text(1, table);
                w.put_text(3, name);
            },
        );
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        self.message(
            MSG_DELRULE,
            0,
            Subject::FlushChain(name.to_owned()),
            |w, table| {
                w.put_text(1, table);
                w.put_text(2, name);
            },
        );
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) {
        self.message(
            MSG_NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            Subject::AddRule(chain.to_owned()),
            |w, table| {
                w.put_text(1, table);
                w.put_text(2, chain);
                let list = w.open(4);
                for expression in &rule.expressions {
                    expression.write(w);
                }
                w.close(list);
                if let Some(comment) = &rule.comment {
                    // NFTNL_UDATA_RULE_COMMENT: a byte each of type and length,
                    // the text with its zero.
                    let mut user = vec![0, comment.len() as u8 + 1];
                    user.extend_from_slice(comment.as_bytes());
                    user.push(0);
                    w.put(7, &user);
                }
            },
        );
    }

    /// Deletes one rule by the handle that a dump showed.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) {
        self.message(
            MSG_DELRULE,
            0,
            Subject::DeleteRule(chain.to_owned(), handle),
            |w, table| {
                w.put_text(1, table);
                w.put_text(2, chain);
                w.put_u64(3, handle);
            },
        );
    }

    /// Makes a set or map.
    pub fn add_set(&mut self, set: &Set) {
        let id = self.subjects.len() as u32 + 1;
        let subject = Subject::AddSet(set.name.clone());
        self.message(MSG_NEWSET, NLM_F_CREATE, subject, |w, table| {
            w.put_text(1, table);
            w.put_text(2, &set.name);
            w.put_u32(3, set.flags());
            let (kind, length) = concatenation(&set.key);
            w.put_u32(4, kind);
            w.put_u32(5, length as u32);
            let mut user = vec![0, 4]; // NFTNL_UDATA_SET_KEYBYTEORDER
            user.extend_from_slice(&byte_order(&set.key).to_ne_bytes());
            match &set.data {
                None => {}
                Some(MapData::Verdict) => {
                    w.put_u32(6, 0xffff_ff00); // NFT_DATA_VERDICT
                    w.put_u32(7, 0);
                }
                Some(MapData::Value(fields)) => {
                    let (kind, length) = concatenation(fields);
                    w.put_u32(6, kind);
                    w.put_u32(7, length as u32);
                    user.extend_from_slice(&[1, 4]); // NFTNL_UDATA_SET_DATABYTEORDER
                    user.extend_from_slice(&byte_order(fields).to_ne_bytes());
                }
            }
            if set.size.is_some() || set.is_concatenated() {
                let description = w.open(9);
                if let Some(size) = set.size {
                    w.put_u32(1, size);
                }
                if set.is_concatenated() {
                    let fields = w.open(2); // NFTA_SET_DESC_CONCAT
                    for field in &set.key {
                        let one = w.open(1);
                        w.put_u32(1, field.length() as u32);
                        w.close(one);
                    }
                    w.close(fields);
                }
                w.close(description);
            }
            w.put_u32(10, id);
            w.put(13, &user);
            if set.counter {
                let expression = w.open(17); // NFTA_SET_EXPR
                Expression::Counter.write_content(w);
                w.close(expression);
            }
        });
    }

    /// Deletes a set that nothing refers to.
    pub fn delete_set(&mut self, name: &str) {
        self.message(
            MSG_DELSET,
            0,
            Subject::DeleteSet(name.to_owned()),
            |w, table| {
                w.put_text(1, table);
                w.put_text(2, name);
            },
        );
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, name: &str) {
        self.message(
            MSG_DELSETELEM,
            0,
            Subject::FlushSet(name.to_owned()),
            |w, table| {
                w.put_text(1, table);
                w.put_text(2, name);
            },
        );
    }

    /// Adds elements to a set; one that exists already is an error of the whole batch.
    pub fn add_elements<'a>(&mut self, set: &str, elements: impl IntoIterator<Item = &'a Element>) {
        self.element_messages(MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, set, elements);
    }

    /// Deletes elements of a set; one that is not there is an error of the whole batch.
    pub fn delete_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.element_messages(MSG_DELSETELEM, 0, set, elements);
    }

    /// As many messages as the elements need.
    fn element_messages<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let mut elements = elements.into_iter().peekable();
        let adding = kind == MSG_NEWSETELEM;
        while elements.peek().is_some() {
            let subject = if adding {
                Subject::AddElements(set.to_owned())
            } else {
                Subject::DeleteElements(set.to_owned())
            };
            let mut count = 0;
            self.message(kind, flags, subject, |w, table| {
                w.put_text(1, table);
                w.put_text(2, set);
                let list = w.open(3);
                let start = w.bytes.len();
                while w.bytes.len() - start < ELEMENTS_LIMIT {
                    let Some(element) = elements.next() else {
                        break;
                    };
                    write_element(w, element, adding);
                    count += 1;
                }
                w.close(list);
            });
            self.elements += count;
        }
    }

    /// The finished batch: its bytes and the sequence number of the last
    /// message, whose acknowledgement ends the answer.
    pub(super) fn finish(&mut self) -> (&[u8], u32) {
        let last = self.subjects.len() as u32;
        if let Some(start) = self.starts.last().copied().filter(|_| last > 0) {
            // Not on BATCH_END: kernels before 6.10 do not answer there.
            let flags =
                u16::from_ne_bytes([self.writer.bytes[start + 6], self.writer.bytes[start + 7]])
                    | NLM_F_ACK;
            self.writer.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.starts.push(self.writer.bytes.len());
        let end = self
            .writer
            .open_message(BATCH_END, 0, last + 1, 0, SUBSYSTEM);
        self.writer.close_message(end);
        (&self.writer.bytes, last)
    }

    /// Says what the message with this sequence number does, and to which
    /// element if the kernel pointed at one.
    pub(super) fn describe(&self, sequence: u32, offset: Option<usize>) -> String {
        let place = format!("{} {}", self.family.name(), self.table);
        let Some(subject) = (sequence as usize)
            .checked_sub(1)
            .and_then(|i| self.subjects.get(i))
        else {
            return format!("changing table {place}");
        };
        let part = offset.and_then(|offset| {
            let attribute = self.attribute_at(sequence as usize, offset)?;
            match subject {
                Subject::AddElements(_) | Subject::DeleteElements(_) => {
                    let key = attribute.nested(1)?.find(1)?;
                    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                    Some(format!(", element {digits}"))
                }
                // A kernel without a kind of expression answers "no such file".
                Subject::AddRule(_) => Some(format!(", expression {}", attribute.text(1)?)),
                _ => None,
            }
        });
        format!("{subject} of table {place}{}", part.unwrap_or_default())
    }

    /// What is in the attribute that starts at an offset of a message.
    fn attribute_at(&self, message: usize, offset: usize) -> Option<Attributes<'_>> {
        let start = *self.starts.get(message)?;
        let end = *self.starts.get(message + 1)?;
        let bytes = self.writer.bytes.get(start + offset..end)?;
        Some(Attributes(Attributes(bytes).next()?.1))
    }
}

/// How `nft` is to print a value: 1 for host order, 2 for network order.
fn byte_order(fields: &[super::object::DataType]) -> u32 {
    match fields {
        [super::object::DataType::Number] => 1,
        _ => 2,
    }
}

pub(super) fn write_element(w: &mut Writer, element: &Element, with_value: bool) {
    let open = w.open(1); // NFTA_LIST_ELEM
    let key = w.open(1);
    w.put(1, &element.key);
    w.close(key);
    if with_value {
        match &element.value {
            None => {}
            Some(Value::Bytes(bytes)) => {
                let data = w.open(2);
                w.put(1, bytes);
                w.close(data);
            }
            Some(Value::Verdict(verdict)) => {
                let data = w.open(2);
                verdict.write(w);
                w.close(data);
            }
        }
    }
    if element.end {
        w.put_u32(3, 1); // NFT_SET_ELEM_INTERVAL_END
    }
    if let Some(to) = &element.to {
        let end = w.open(10); // NFTA_SET_ELEM_KEY_END
        w.put(1, to);
        w.close(end);
    }
    w.close(open);
}

/// Reads the expressions of a rule; `None` if one is not ours.
pub(super) fn read_expressions(list: Attributes<'_>) -> Option<Vec<Expression>> {
    list.map(|(_, element)| Expression::read(Attributes(element)))
        .collect()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_netfilter::NetfilterMessage;

    use super::*;
    use crate::nftables::{DataType, Found, Meta, Register, Verdict};

    /// Decodes a batch with somebody else's library.
    fn decoded(batch: &mut Batch) -> Vec<String> {
        let (bytes, _) = batch.finish();
        let mut rest = bytes;
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<NetfilterMessage>::deserialize(rest).expect("readable by others");
            let length = (message.header.length as usize + 3) & !3;
            assert!(
                matches!(message.payload, NetlinkPayload::InnerMessage(_)),
                "{message:?}"
            );
            messages.push(format!("{:?}", message.payload));
            rest = &rest[length..];
        }
        messages
    }

    #[test]
    fn another_library_reads_the_same() {
        let mut batch = Batch::new(Family::Inet, "probe", Some(9));
        batch.add_table();
        let map = Set::map("numbers", &[DataType::Ipv4Address], &[DataType::Number]);
        batch.add_set(&map);
        batch.add_elements(
            "numbers",
            &[Element::pair(vec![10, 0, 0, 1], vec![1, 2, 3, 4])],
        );
        batch.add_rule(
            "chain",
            &Rule::new(vec![
                Expression::Meta {
                    key: Meta::TransportProtocol,
                    into: Register(0),
                },
                Expression::Lookup {
                    set: "numbers".to_owned(),
                    from: Register(0),
                    found: Found::Membership,
                },
                Expression::Verdict(Verdict::Drop),
            ]),
        );
        let messages = decoded(&mut batch);
        assert_eq!(messages.len(), 6, "begin, four, end: {messages:#?}");
        for (message, words) in messages.iter().zip([
            &["BatchBegin"][..],
            &["NewTable", "probe"],
            &["NewSet", "numbers"],
            &["NewSetElement", "[10, 0, 0, 1]", "[1, 2, 3, 4]"],
            &["NewRule", "chain", "numbers"],
            &["BatchEnd"],
        ]) {
            for word in words {
                assert!(message.contains(word), "{word} is not in {message}");
            }
        }
    }

    #[test]
    fn elements_are_split_below_the_length_of_an_attribute() {
        let elements: Vec<Element> = (0..10_000u32)
            .map(|n| Element::key(n.to_be_bytes().to_vec()))
            .collect();
        let mut batch = Batch::new(Family::Inet, "probe", None);
        batch.add_elements("addresses", &elements);
        let (bytes, _) = batch.finish();
        let found: Vec<usize> = crate::netfilter::wire::Messages(bytes)
            .filter(|m| m.kind == message(MSG_NEWSETELEM))
            .map(|m| m.attributes().nested(3).map_or(0, Iterator::count))
            .collect();
        assert!(found.len() > 2, "{found:?}");
        assert_eq!(found.iter().sum::<usize>(), elements.len());
    }

    #[test]
    fn only_the_last_message_asks_for_an_answer() {
        let mut batch = Batch::new(Family::Inet, "probe", None);
        batch.add_table();
        batch.add_table();
        let (bytes, last) = batch.finish();
        assert_eq!(last, 2);
        let flags: Vec<bool> = crate::netfilter::wire::Messages(bytes)
            .map(|message| message.flags & NLM_F_ACK != 0)
            .collect();
        assert_eq!(flags, [false, false, true, false]);
    }
}
