//! The kernel's description of its own types (BTF), read for the numbers of
//! functions that programs may call and for the places of fields.
//!
//! Source: `Documentation/bpf/btf.rst`.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use super::system_call;
use super::{Error, Needs};

/// Where the kernel shows the descriptions, its own as `vmlinux`.
const DIRECTORY: &str = "/sys/kernel/btf";
/// First bytes of a description.
const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_header` that are read.
const HEADER: usize = 24;
/// Bytes of `struct btf_type`.
const TYPE: usize = 12;

const POINTER: u32 = 2;
const STRUCTURE: u32 = 4;
const UNION: u32 = 5;
const FUNCTION: u32 = 12;
const PROTOTYPE: u32 = 13;

/// A function that programs may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function {
    /// Its number among the types.
    pub(super) id: u32,
    /// Whether the number is of the module's description.
    pub(super) of_module: bool,
}

/// What was looked for.
pub(super) struct Found<'a> {
    pub(super) functions: HashMap<String, Function>,
    pub(super) offsets: Vec<(&'a str, u64)>,
    /// The module's description, if functions are the module's.
    pub(super) module: Option<OwnedFd>,
}

/// Looks up what a program needs, first in the kernel itself.
pub(super) fn find<'a>(needs: &Needs<'a>) -> Result<Found<'a>, Error> {
    let kernel = Types::read("vmlinux", None)?;
    let mut description = &kernel;
    let of_module;
    let first = needs.functions.first().copied().unwrap_or_default();
    let in_module = kernel.named(FUNCTION, first).is_none();
    let lacking = |name: &str, hint| Error::Lacking {
        name: name.to_owned(),
        hint,
    };
    const HINT: &str =
        "load module nf_conntrack, or take a kernel with CONFIG_DEBUG_INFO_BTF_MODULES";
    let mut module = None;
    if in_module {
        of_module = match Types::read(needs.module, Some(&kernel)) {
            Err(Error::NoTypes { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(lacking(first, HINT));
            }
            other => other?,
        };
        description = &of_module;
        let descriptor = system_call::types_of_module(needs.module)
            .map_err(Error::Access)?
            .ok_or_else(|| lacking(first, HINT))?;
        module = Some(descriptor);
    }
    let mut functions = HashMap::new();
    for name in needs.functions {
        let id = description
            .named(FUNCTION, name)
            .ok_or_else(|| lacking(name, HINT))?;
        functions.insert(
            (*name).to_owned(),
            Function {
                id,
                of_module: in_module,
            },
        );
    }
    let mut offsets = Vec::new();
    for (symbol, function, field) in needs.offsets {
        let offset = functions
            .get(*function)
            .and_then(|function| description.offset(function.id, field))
            .ok_or_else(|| lacking(field, "podwire does not know this kernel's connections"))?;
        offsets.push((*symbol, u64::from(offset)));
    }
    Ok(Found {
        functions,
        offsets,
        module,
    })
}

/// A description. A module's goes on where the kernel's ends, with the numbers
/// of types and with the places of names.
struct Types<'a> {
    base: Option<&'a Types<'a>>,
    bytes: Vec<u8>,
    /// Where the own types start in `bytes`, in the order of their numbers.
    places: Vec<usize>,
    /// Where the own names are in `bytes`.
    names: std::ops::Range<usize>,
}

/// `struct btf_type`.
struct Header {
    name: u32,
    info: u32,
    /// The size of a type that has one, another type for the others.
    target: u32,
}

impl Header {
    fn kind(&self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn count(&self) -> usize {
        usize::from(self.info as u16)
    }

    /// Bytes that follow; `None` for a kind that is newer than this list.
    fn more(&self) -> Option<usize> {
        Some(match self.kind() {
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => 4,
            // ARRAY
            3 => 12,
            // STRUCT, UNION, DATASEC, ENUM64
            4 | 5 | 15 | 19 => 12 * self.count(),
            // ENUM, FUNC_PROTO
            6 | 13 => 8 * self.count(),
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        })
    }
}

impl<'a> Types<'a> {
    fn read(name: &str, base: Option<&'a Self>) -> Result<Self, Error> {
        let path = format!("{DIRECTORY}/{name}");
        let bytes = std::fs::read(&path).map_err(|source| Error::NoTypes {
            path: path.clone(),
            source,
        })?;
        Self::parse(bytes, base).map_err(|why| Error::Types { path, why })
    }

    fn parse(bytes: Vec<u8>, base: Option<&'a Self>) -> Result<Self, &'static str> {
        let header = bytes.first_chunk::<HEADER>().ok_or("it is cut off")?;
        let [m0, m1, ..] = *header;
        if u16::from_ne_bytes([m0, m1]) != MAGIC {
            return Err("it is not of this format or of another byte order");
        }
        let field = |index: usize| number(&bytes, 4 * index).map(|number| number as usize);
        let mut fields = [0; 5];
        for (index, value) in fields.iter_mut().enumerate() {
            *value = field(index + 1).ok_or("it is cut off")?;
        }
        let [start, types, types_length, names, names_length] = fields;
        let end = start + types + types_length;
        let mut place = start + types;
        let mut places = Vec::with_capacity(types_length / 20);
        while place < end {
            places.push(place);
            let header = header_at(&bytes, place).ok_or("its types are cut off")?;
            place += TYPE
                + header
                    .more()
                    .ok_or("it has a kind of types unknown to podwire")?;
        }
        let names = start + names..start + names + names_length;
        if bytes.len() < names.end {
            return Err("its names are cut off");
        }
        Ok(Self {
            base,
            bytes,
            places,
            names,
        })
    }

    /// The number of the first own type. Number 0 is `void`.
    fn first(&self) -> u32 {
        self.base
            .map_or(1, |base| base.first() + base.places.len() as u32)
    }

    fn names_before(&self) -> usize {
        self.base
            .map_or(0, |base| base.names_before() + base.names.len())
    }

    fn has_name(&self, place: u32, name: &str) -> bool {
        let place = place as usize;
        match (place.checked_sub(self.names_before()), self.base) {
            (None, Some(base)) => base.has_name(place as u32, name),
            (None, None) => false,
            (Some(place), _) => self.bytes[self.names.clone()]
                .get(place..)
                .and_then(|rest| rest.strip_prefix(name.as_bytes()))
                .is_some_and(|rest| rest.first() == Some(&0)),
        }
    }

    /// The number of the own type of a kind and name.
    fn named(&self, kind: u32, name: &str) -> Option<u32> {
        self.places
            .iter()
            .position(|place| {
                header_at(&self.bytes, *place)
                    .is_some_and(|header| header.kind() == kind && self.has_name(header.name, name))
            })
            .map(|position| self.first() + position as u32)
    }

    fn get(&self, id: u32) -> Option<(&Self, usize, Header)> {
        match (id.checked_sub(self.first()), self.base) {
            (None, base) => base?.get(id),
            (Some(position), _) => {
                let place = *self.places.get(position as usize)?;
                Some((self, place, header_at(&self.bytes, place)?))
            }
        }
    }

    /// Where a field is, in bytes, in the structure that the function gives a
    /// pointer to. The path goes through structures and unions: `a.b`.
    fn offset(&self, function: u32, path: &str) -> Option<u32> {
        let mut id = function;
        for kind in [FUNCTION, PROTOTYPE, POINTER] {
            let (_, _, header) = self.get(id)?;
            if header.kind() != kind {
                return None;
            }
            id = header.target;
        }
        let mut offset = 0;
        for field in path.split('.') {
            let bits;
            (id, bits) = self.member(id, field)?;
            offset += bits;
        }
        offset.is_multiple_of(8).then_some(offset / 8)
    }

    /// The type of a member, and where it is, in bits.
    fn member(&self, id: u32, field: &str) -> Option<(u32, u32)> {
        let (owner, place, header) = self.get(id)?;
        if ![STRUCTURE, UNION].contains(&header.kind()) {
            return None;
        }
        // `struct btf_member`: name, type, offset in bits.
        (0..header.count()).find_map(|index| {
            let member = place + TYPE + 12 * index;
            let word = |index: usize| number(&owner.bytes, member + 4 * index);
            let (name, kind, bits) = (word(0)?, word(1)?, word(2)?);
            self.has_name(name, field).then_some((kind, bits))
        })
    }
}

fn number(bytes: &[u8], place: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(place..)?.first_chunk()?))
}

fn header_at(bytes: &[u8], place: usize) -> Option<Header> {
    Some(Header {
        name: number(bytes, place)?,
        info: number(bytes, place + 4)?,
        target: number(bytes, place + 8)?,
    })
}
