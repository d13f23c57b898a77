//! What a compiler made of a BPF program, as far as podwire's programs go: code,
//! the maps it uses, and the places where it refers to something the loader
//! knows.
//!
//! Maps are defined in section `maps`, each by the first five numbers of
//! `union bpf_attr` of `BPF_MAP_CREATE`. An external function is one of the
//! kernel's, an external variable a number known at load time, which takes the
//! place of its address.
//!
//! Sources: `Documentation/bpf/llvm_reloc.rst`, `linux/bpf.h`, RFC 9669.

use std::collections::HashMap;

use object::elf::{FileHeader64, R_BPF_64_32, R_BPF_64_64};
use object::read::elf::ElfFile;
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SectionKind,
};

use super::Error;
use super::btf::Function;
use super::system_call::{Definition, Map};

/// `struct bpf_insn`: operation, registers, offset, number.
pub(super) type Instruction = [u8; 8];

/// `BPF_LD | BPF_DW | BPF_IMM`: takes two instructions, the second of which has
/// the upper half of the number.
const LOAD_NUMBER: u8 = 0x18;
/// `BPF_PSEUDO_MAP_FD`, as source register of [`LOAD_NUMBER`].
const MAP_DESCRIPTOR: u8 = 1;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, as source register of [`CALL`].
const KERNEL_FUNCTION: u8 = 2;

/// A compiled object.
pub(crate) struct Object {
    pub(super) maps: Vec<(String, Definition)>,
    pub(super) programs: Vec<Code>,
    pub(super) license: String,
}

/// One program before it is bound to a kernel.
pub(super) struct Code {
    pub(super) name: String,
    pub(super) section: String,
    instructions: Vec<Instruction>,
    /// By the place of the instruction.
    references: Vec<(usize, Reference)>,
}

/// What an instruction refers to, by name.
enum Reference {
    Map(String),
    Function(String),
    Number(String),
}

fn damaged(error: impl std::fmt::Display) -> Error {
    Error::Object(error.to_string())
}

impl Object {
    /// Reads an ELF object for `-target bpf` of the machine's byte order.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let file = ElfFile::<FileHeader64<Endianness>>::parse(bytes).map_err(damaged)?;
        let mut maps = Vec::new();
        let section = |name| {
            file.section_by_name(name)
                .ok_or_else(|| damaged(format!("it has no section {name}")))
        };
        let map_section = section("maps")?;
        let definitions = map_section.data().map_err(damaged)?;
        for symbol in file.symbols() {
            if symbol.section_index() == Some(map_section.index()) && symbol.is_global() {
                let start = usize::try_from(symbol.address()).unwrap_or(usize::MAX);
                let definition = definitions
                    .get(start..)
                    .and_then(Definition::read)
                    .ok_or_else(|| damaged("a map's definition is cut off"))?;
                maps.push((symbol.name().map_err(damaged)?.to_owned(), definition));
            }
        }
        let license = section("license")?.data().map_err(damaged)?;
        let license = String::from_utf8_lossy(license);
        let mut programs = Vec::new();
        for section in file.sections() {
            let name = section.name().map_err(damaged)?.to_owned();
            if section.kind() != SectionKind::Text || section.size() == 0 {
                continue;
            }
            let entry = file
                .symbols()
                .find(|symbol| {
                    symbol.section_index() == Some(section.index()) && symbol.is_global()
                })
                .ok_or_else(|| damaged(format!("section {name} has no function")))?;
            let code = section.data().map_err(damaged)?;
            let (instructions, []) = code.as_chunks() else {
                return Err(damaged(format!("section {name} is cut off")));
            };
            let mut references = Vec::new();
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    return Err(damaged(format!("a reference of {name} to no symbol")));
                };
                let target = file.symbol_by_index(index).map_err(damaged)?;
                let text = target.name().map_err(damaged)?.to_owned();
                let reference = match relocation.flags() {
                    RelocationFlags::Elf {
                        r_type: R_BPF_64_64,
                    } if target.is_undefined() => Reference::Number(text),
                    RelocationFlags::Elf {
                        r_type: R_BPF_64_64,
                    } if target.section_index() == Some(map_section.index()) => {
                        Reference::Map(text)
                    }
                    RelocationFlags::Elf {
                        r_type: R_BPF_64_32,
                    } if target.is_undefined() => Reference::Function(text),
                    other => {
                        return Err(damaged(format!(
                            "a reference of {name} to {text}: {other:?}"
                        )));
                    }
                };
                let place = usize::try_from(offset).unwrap_or(usize::MAX) / 8;
                references.push((place, reference));
            }
            programs.push(Code {
                name: entry.name().map_err(damaged)?.to_owned(),
                section: name,
                instructions: instructions.to_vec(),
                references,
            });
        }
        Ok(Self {
            maps,
            programs,
            license: license.trim_end_matches('\0').to_owned(),
        })
    }
}

impl Code {
    /// The code with everything it refers to filled in.
    pub(super) fn linked(
        &self,
        maps: &HashMap<String, Map>,
        functions: &HashMap<String, Function>,
        numbers: &HashMap<&str, u64>,
    ) -> Result<Vec<Instruction>, Error> {
        let mut code = self.instructions.clone();
        for (place, reference) in &self.references {
            let unknown = |name| {
                damaged(format!(
                    "{} refers to {name}, which nobody knows",
                    self.name
                ))
            };
            let (operation, source, offset, number) = match reference {
                Reference::Map(name) => {
                    let map = maps.get(name).ok_or_else(|| unknown(name))?;
                    (LOAD_NUMBER, MAP_DESCRIPTOR, 0, u64::from(map.descriptor()))
                }
                Reference::Number(name) => {
                    let number = numbers.get(name.as_str()).ok_or_else(|| unknown(name))?;
                    (LOAD_NUMBER, 0, 0, *number)
                }
                Reference::Function(name) => {
                    let function = functions.get(name).ok_or_else(|| unknown(name))?;
                    // The offset says in which of the descriptors given along.
                    let offset = u8::from(function.of_module);
                    (CALL, KERNEL_FUNCTION, offset, u64::from(function.id))
                }
            };
            let [low @ .., _, _, _, _] = number.to_le_bytes();
            let [_, _, _, _, high @ ..] = number.to_le_bytes();
            let both = code
                .get_mut(*place..)
                .and_then(|rest| rest.split_first_mut())
                .filter(|(instruction, _)| instruction[0] == operation);
            let Some((instruction, following)) = both else {
                return Err(damaged(format!(
                    "a reference of {} is misplaced",
                    self.name
                )));
            };
            // The registers: the destination in the lower half of the byte.
            instruction[1] = instruction[1] & 0x0f | source << 4;
            instruction[2] = offset;
            instruction[4..].copy_from_slice(&low);
            if operation == LOAD_NUMBER {
                let second = following
                    .first_mut()
                    .ok_or_else(|| damaged(format!("{} ends within a number", self.name)))?;
                second[4..].copy_from_slice(&high);
            }
        }
        Ok(code)
    }
}
