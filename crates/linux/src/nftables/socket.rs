//! Sending batches to the kernel and reading objects back.

use std::collections::HashSet;
use std::io;

use super::batch::{
    Batch, MSG_GETCHAIN, MSG_GETGEN, MSG_GETRULE, MSG_GETSET, MSG_GETSETELEM, MSG_GETTABLE,
    MSG_NEWCHAIN, MSG_NEWGEN, MSG_NEWRULE, MSG_NEWSET, MSG_NEWSETELEM, MSG_NEWTABLE, message,
    read_expressions, write_element,
};
use super::expression::{Expression, Verdict};
use super::object::{Base, ChainKind, Count, Element, Family, Hook, Value};
use crate::netfilter::socket::{DumpEnd, NetfilterSocket};
use crate::netfilter::wire::{Attributes, Message, NLM_F_DUMP, Writer};

/// How often a dump is begun anew because the rules changed under it.
const DUMP_ATTEMPTS: usize = 10;

/// Elements looked up with one question: their answers, of some hundred bytes
/// each, fit the socket's receive queue many times over.
const QUESTION: usize = 256;

/// How often a set is listed while its hash table grows, which takes
/// milliseconds after elements were added.
const LISTING_ATTEMPTS: usize = 100;

/// Why something asked of nftables did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened.
    #[error(
        "opening the netfilter netlink socket: {0}; nftables needs CAP_NET_ADMIN and a kernel with nf_tables"
    )]
    Open(#[source] io::Error),
    /// Sending or receiving failed.
    #[error("{doing}: {source}")]
    Socket {
        /// What was being done.
        doing: String,
        /// What the socket said.
        source: io::Error,
    },
    /// The kernel refused a batch; nothing of it was done.
    #[error("{doing}: {source}{}", .text.as_ref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        /// The object the kernel complained about, and what was to be done with it.
        doing: String,
        /// The kernel's error.
        source: io::Error,
        /// The kernel's own words.
        text: Option<String>,
        /// How many further complaints there were.
        more: usize,
    },
    /// Somebody changed the rules since the generation that the batch was made
    /// for; read again and try again.
    #[error("the packet filter's rules changed while they were being compared; try again")]
    GenerationChanged,
    /// The rules changed faster than they could be read.
    #[error(
        "{0}: the rules changed each time they were read; something else rewrites them constantly"
    )]
    Interrupted(String),
}

impl Error {
    /// The kernel's error number, for refusals.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// The ruleset's generation: a counter that each commit raises, and who
/// committed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The counter.
    pub id: u32,
    /// Thread that asked (for most programs, that is the process).
    pub process: u32,
    /// The thread's name.
    pub process_name: String,
}

/// A chain as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveChain {
    /// Its name.
    pub name: String,
    /// Present for base chains that podwire could have made.
    pub base: Option<Base>,
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveRule {
    /// Its chain.
    pub chain: String,
    /// By which it can be deleted.
    pub handle: u64,
    /// `None` if it holds an expression that podwire never writes.
    pub expressions: Option<Vec<Expression>>,
}

/// A set or map as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSet {
    /// Its name.
    pub name: String,
    /// `NFT_SET_*`.
    pub flags: u32,
    /// Type number of the key.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_length: u32,
    /// Type number of the data; 0 for sets.
    pub data_type: u32,
    /// Bytes of the data; 0 for sets and verdict maps.
    pub data_length: u32,
    /// Whether elements count.
    pub counter: bool,
    /// Elements it holds (`NFTA_SET_COUNT`), with those a commit that is under way
    /// adds; `None` from a kernel before Linux 6.16, which does not say.
    pub elements: Option<u32>,
}

impl LiveSet {
    /// Whether it is what [`Batch::add_set`] would make of `set`.
    #[must_use]
    pub fn matches(&self, set: &super::object::Set) -> bool {
        use super::object::{MapData, concatenation};
        let (key_type, key_length) = concatenation(&set.key);
        let (data_type, data_length) = match &set.data {
            None => (0, 0),
            Some(MapData::Verdict) => (0xffff_ff00, 0),
            Some(MapData::Value(fields)) => concatenation(fields),
        };
        self.flags == set.flags()
            && self.counter == set.counter
            && self.key_type == key_type
            && self.key_length as usize == key_length
            && self.data_type == data_type
            && (self.data_type == 0xffff_ff00 || self.data_length as usize == data_length)
    }
}

/// A connection to the nftables of one network namespace. Closing it takes 10 to
/// 20 ms after a commit that deleted something, and holds up everybody's commits
/// meanwhile: the kernel waits until no packet can use what was deleted
/// (`nft_rcv_nl_event`).
#[derive(Debug)]
pub struct Nftables {
    socket: NetfilterSocket,
}

impl Nftables {
    /// Connects to the network namespace of the calling thread; it stays with
    /// that namespace when the thread moves on.
    ///
    /// # Errors
    /// If the kernel has no netfilter or the process no right to it.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            socket: NetfilterSocket::open().map_err(Error::Open)?,
        })
    }

    /// Commits a batch: all of it or nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] names the first object the kernel did not take.
    pub fn commit(&mut self, mut batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, last) = batch.finish();
        let length = bytes.len();
        let refusals = self
            .socket
            .commit(bytes, last)
            .map_err(|source| Error::Socket {
                doing: format!("sending a batch of {last} nftables messages, {length} bytes"),
                source,
            })?;
        let Some(first) = refusals.first() else {
            return Ok(());
        };
        if first.sequence == 0 && first.errno == rustix::io::Errno::RESTART.raw_os_error() {
            return Err(Error::GenerationChanged);
        }
        Err(Error::Refused {
            doing: batch.describe(first.sequence, first.offset),
            source: first.error(),
            text: first.text.clone(),
            more: refusals.len() - 1,
        })
    }

    /// Reads the generation of the whole ruleset.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn generation(&mut self) -> Result<Generation, Error> {
        let doing = || "reading the nftables generation".to_owned();
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        let open = writer.open_message(message(MSG_GETGEN), 0, sequence, 0, 0);
        writer.close_message(open);
        let mut generation = None;
        self.socket
            .request(&writer.bytes, sequence, true, |m| {
                if m.kind == message(MSG_NEWGEN) {
                    let attributes = m.attributes();
                    generation = attributes.u32(1).map(|id| Generation {
                        id,
                        process: attributes.u32(2).unwrap_or(0),
                        process_name: attributes
                            .text(3)
                            .map(|name| name.into_owned())
                            .unwrap_or_default(),
                    });
                }
            })
            .and_then(|answer| answer.map_err(|refusal| refusal.error()))
            .and_then(|()| generation.ok_or_else(|| io::ErrorKind::InvalidData.into()))
            .map_err(|source| Error::Socket {
                doing: doing(),
                source,
            })
    }

    /// Dumps, anew from the start if something changed meanwhile. `ENOENT` is
    /// an empty dump: the table is not there.
    pub(super) fn dump<T>(
        &mut self,
        doing: &str,
        kind: u16,
        family: Family,
        fill: impl Fn(&mut Writer),
        read: impl FnMut(Message<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>, Error> {
        self.dump_of(doing, kind, family.number(), fill, read)
    }

    /// The same of a family by its number; of 0 it is all families.
    pub(super) fn dump_of<T>(
        &mut self,
        doing: &str,
        kind: u16,
        family: u8,
        fill: impl Fn(&mut Writer),
        mut read: impl FnMut(Message<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.socket.next_sequence();
            let mut writer = Writer::default();
            let open = writer.open_message(message(kind), NLM_F_DUMP, sequence, family, 0);
            fill(&mut writer);
            writer.close_message(open);
            let mut found = Vec::new();
            let answer = self
                .socket
                .dump(&writer.bytes, sequence, |m| read(m, &mut found))
                .map_err(|source| Error::Socket {
                    doing: doing.to_owned(),
                    source,
                })?;
            match answer {
                Ok(DumpEnd::Complete) => return Ok(found),
                Ok(DumpEnd::Interrupted) => {}
                Err(refusal) if refusal.errno == rustix::io::Errno::NOENT.raw_os_error() => {
                    return Ok(Vec::new());
                }
                Err(refusal)
                    if [rustix::io::Errno::INTR, rustix::io::Errno::AGAIN]
                        .iter()
                        .any(|e| e.raw_os_error() == refusal.errno) => {}
                Err(refusal) => {
                    return Err(Error::Socket {
                        doing: doing.to_owned(),
                        source: refusal.error(),
                    });
                }
            }
        }
        Err(Error::Interrupted(doing.to_owned()))
    }

    /// Names of the tables of a family.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>, Error> {
        self.dump(
            "listing nftables tables",
            MSG_GETTABLE,
            family,
            |_| {},
            |m, found| {
                if m.kind == message(MSG_NEWTABLE)
                    && m.payload.first() == Some(&family.number())
                    && let Some(name) = m.attributes().text(1)
                {
                    found.push(name.into_owned());
                }
            },
        )
    }

    /// Whether a table is there.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn has_table(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        let open = writer.open_message(message(MSG_GETTABLE), 0, sequence, family.number(), 0);
        writer.put_text(1, table);
        writer.close_message(open);
        let answer = self.socket.request(&writer.bytes, sequence, true, |_| {});
        match answer {
            Ok(Err(refusal)) if refusal.errno == rustix::io::Errno::NOENT.raw_os_error() => {
                Ok(false)
            }
            Ok(Err(refusal)) => Err(refusal.error()),
            Ok(Ok(())) => Ok(true),
            Err(source) => Err(source),
        }
        .map_err(|source| Error::Socket {
            doing: format!("looking for table {} {table}", family.name()),
            source,
        })
    }

    /// Deletes a table with all that is in it; returns whether there was one.
    ///
    /// # Errors
    /// If the kernel refuses, as it does while another holds the table
    /// ([`Batch::add_held_table`]).
    pub fn remove_table(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        let mut batch = Batch::new(family, table, None);
        batch.delete_table();
        match self.commit(batch) {
            Err(error) if error.errno() == Some(rustix::io::Errno::NOENT.raw_os_error()) => {
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// The chains of a table.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn chains(&mut self, family: Family, table: &str) -> Result<Vec<LiveChain>, Error> {
        self.dump(
            &format!("listing the chains of table {} {table}", family.name()),
            MSG_GETCHAIN,
            family,
            // Kernels filter this dump not at all; the table is compared below.
            |w| w.put_text(1, table),
            |m, found| {
                let attributes = m.attributes();
                if m.kind == message(MSG_NEWCHAIN)
                    && m.payload.first() == Some(&family.number())
                    && attributes.text(1).as_deref() == Some(table)
                    && let Some(name) = attributes.text(3)
                {
                    found.push(LiveChain {
                        name: name.into_owned(),
                        base: read_base(attributes),
                    });
                }
            },
        )
    }

    /// The rules of a table, in order within their chains.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn rules(&mut self, family: Family, table: &str) -> Result<Vec<LiveRule>, Error> {
        self.dump(
            &format!("listing the rules of table {} {table}", family.name()),
            MSG_GETRULE,
            family,
            |w| w.put_text(1, table),
            |m, found| {
                let attributes = m.attributes();
                if m.kind == message(MSG_NEWRULE)
                    && attributes.text(1).as_deref() == Some(table)
                    && let (Some(chain), Some(handle)) = (attributes.text(2), attributes.u64(3))
                {
                    found.push(LiveRule {
                        chain: chain.into_owned(),
                        handle,
                        expressions: attributes
                            .nested(4)
                            .map_or(Some(Vec::new()), read_expressions),
                    });
                }
            },
        )
    }

    /// The sets and maps of a table.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn sets(&mut self, family: Family, table: &str) -> Result<Vec<LiveSet>, Error> {
        self.dump(
            &format!("listing the sets of table {} {table}", family.name()),
            MSG_GETSET,
            family,
            |w| w.put_text(1, table),
            |m, found| {
                let attributes = m.attributes();
                if m.kind == message(MSG_NEWSET)
                    && attributes.text(1).as_deref() == Some(table)
                    && let Some(name) = attributes.text(2)
                {
                    found.push(LiveSet {
                        name: name.into_owned(),
                        flags: attributes.u32(3).unwrap_or(0),
                        key_type: attributes.u32(4).unwrap_or(0),
                        key_length: attributes.u32(5).unwrap_or(0),
                        data_type: attributes.u32(6).unwrap_or(0),
                        data_length: attributes.u32(7).unwrap_or(0),
                        counter: attributes
                            .nested(17)
                            .is_some_and(|e| e.text(1).as_deref() == Some("counter")),
                        elements: attributes.u32(20),
                    });
                }
            },
        )
    }

    /// The elements of a set or map, in no order, each once.
    ///
    /// Takes time that grows with the square of their number: for each message of
    /// the answer, of some hundred elements, the kernel walks the set anew and passes
    /// over what it has told (`nf_tables_dump_set`). [`Self::find`] does not.
    ///
    /// The kernel walks a hash table that may be growing at that moment: it
    /// grows in the background after elements were added. A listing that goes
    /// over several messages then shows some elements twice and, for each of
    /// those, may leave one out (`nft_rhash_walk` counts positions). Such a
    /// listing is told by its repetitions and read again.
    ///
    /// # Errors
    /// If the socket fails, or the table never comes to rest.
    pub fn elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
    ) -> Result<Vec<Element>, Error> {
        self.listed(family, table, set, read_element, |element| {
            (element.key.clone(), element.end)
        })
    }

    /// The elements of a counting set or map, and how often each was found.
    ///
    /// # Errors
    /// As [`Self::elements`].
    pub fn counts(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
    ) -> Result<Vec<(Element, Count)>, Error> {
        self.listed(
            family,
            table,
            set,
            |attributes| Some((read_element(attributes)?, read_count(attributes))),
            |(element, _)| (element.key.clone(), element.end),
        )
    }

    /// Looks elements up by set and key, as many as there are in one question;
    /// `None` for each that is not there, also when its set is not.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn find(
        &mut self,
        family: Family,
        table: &str,
        keys: &[(&str, &[u8])],
    ) -> Result<Vec<Option<Element>>, Error> {
        let doing = || format!("looking elements of table {} {table} up", family.name());
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(QUESTION) {
            let mut writer = Writer::default();
            let mut first = None;
            for (set, key) in keys {
                let sequence = self.socket.next_sequence();
                first.get_or_insert(sequence);
                let open =
                    writer.open_message(message(MSG_GETSETELEM), 0, sequence, family.number(), 0);
                writer.put_text(1, table);
                writer.put_text(2, set);
                let list = writer.open(3);
                write_element(&mut writer, &Element::key(key.to_vec()), false);
                writer.close(list);
                writer.close_message(open);
            }
            let start = found.len();
            found.resize(start + keys.len(), None);
            let mut failure = None;
            self.socket
                .ask(
                    &writer.bytes,
                    first.unwrap_or_default(),
                    keys.len(),
                    |at, answer| match answer {
                        Ok(m) => {
                            let list = m.attributes().nested(3);
                            let element = list.and_then(|mut list| list.next());
                            found[start + at] =
                                element.and_then(|(_, bytes)| read_element(Attributes(bytes)));
                        }
                        Err(refusal)
                            if refusal.errno == rustix::io::Errno::NOENT.raw_os_error() => {}
                        Err(refusal) => failure = Some(refusal.error()),
                    },
                )
                .map_or_else(Err, |()| failure.map_or(Ok(()), Err))
                .map_err(|source| Error::Socket {
                    doing: doing(),
                    source,
                })?;
        }
        Ok(found)
    }

    fn listed<T>(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        read: impl Fn(Attributes<'_>) -> Option<T>,
        identity: impl Fn(&T) -> (Vec<u8>, bool),
    ) -> Result<Vec<T>, Error> {
        let listing = format!(
            "listing the elements of {set} of table {} {table}",
            family.name()
        );
        for _ in 0..LISTING_ATTEMPTS {
            let elements = self.dump(
                &listing,
                MSG_GETSETELEM,
                family,
                |w| {
                    w.put_text(1, table);
                    w.put_text(2, set);
                },
                |m, found| {
                    if m.kind == message(MSG_NEWSETELEM)
                        && let Some(list) = m.attributes().nested(3)
                    {
                        found.extend(list.filter_map(|(_, bytes)| read(Attributes(bytes))));
                    }
                },
            )?;
            let mut seen = HashSet::with_capacity(elements.len());
            if elements
                .iter()
                .all(|element| seen.insert(identity(element)))
            {
                return Ok(elements);
            }
        }
        Err(Error::Interrupted(listing))
    }
}

fn read_base(attributes: Attributes<'_>) -> Option<Base> {
    let hook = attributes.nested(4)?;
    Some(Base {
        kind: match attributes.text(7)?.as_ref() {
            "filter" => ChainKind::Filter,
            "nat" => ChainKind::Nat,
            "route" => ChainKind::Route,
            _ => return None,
        },
        hook: match hook.u32(1)? {
            0 => Hook::Prerouting,
            1 => Hook::Input,
            2 => Hook::Forward,
            3 => Hook::Output,
            4 => Hook::Postrouting,
            _ => return None,
        },
        priority: hook.u32(2)? as i32,
        drop: attributes.u32(5)? == 0,
    })
}

/// Zero for an element that does not count.
fn read_count(attributes: Attributes<'_>) -> Count {
    let data = attributes
        .nested(7)
        .and_then(|expression| expression.nested(2));
    let number = |kind| data.and_then(|data| data.u64(kind)).unwrap_or(0);
    Count {
        packets: number(2),
        bytes: number(1),
    }
}

fn read_element(attributes: Attributes<'_>) -> Option<Element> {
    let value = match attributes.nested(2) {
        None => None,
        Some(data) => Some(match data.nested(2) {
            Some(verdict) => Value::Verdict(Verdict::read(verdict)?),
            None => Value::Bytes(data.find(1)?.to_vec()),
        }),
    };
    Some(Element {
        key: attributes.nested(1)?.find(1)?.to_vec(),
        to: attributes
            .nested(10)
            .and_then(|end| end.find(1))
            .map(<[u8]>::to_vec),
        value,
        end: attributes.u32(3).unwrap_or(0) & 1 != 0,
    })
}
