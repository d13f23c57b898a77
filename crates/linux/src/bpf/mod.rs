//! Programs for the kernel's BPF machine: loading them with their maps, and
//! attaching them to interfaces.
//!
//! Sources: bpf(2); `include/uapi/linux/bpf.h`; `Documentation/bpf/`.

mod btf;
mod links;
mod object;
mod system_call;

use std::collections::HashMap;
use std::io;

pub(crate) use links::{Link, Links};
pub(crate) use object::Object;
pub(crate) use system_call::{Map, PerCpu, Program};

/// A failure to load a program, to change a map or to attach a program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not describe its own types.
    #[error(
        "cannot read the kernel's description of its types {path}: {source}; it needs a kernel \
         with CONFIG_DEBUG_INFO_BTF"
    )]
    NoTypes {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What the kernel says of its types cannot be read.
    #[error("the kernel's description of its types {path} cannot be read: {why}")]
    Types {
        /// The file.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A function of the kernel, or a field of its types, is not there.
    #[error("this kernel offers BPF programs no {name}: {hint}")]
    Lacking {
        /// What it lacks.
        name: String,
        /// What would give it.
        hint: &'static str,
    },
    /// The object is damaged.
    #[error("the compiled BPF program is damaged: {0}")]
    Object(String),
    /// A map could not be made.
    #[error("making BPF map {name}: {source}; it needs CAP_BPF or CAP_SYS_ADMIN")]
    MakeMap {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused the program.
    #[error("the kernel refuses BPF program {name}: {source}{log}")]
    Load {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
        /// The end of what the verifier said, after a line break, or nothing.
        log: String,
    },
    /// The program could not be attached.
    #[error(
        "attaching a BPF program to interface {interface}: {source}; it needs Linux 6.6 or newer \
         (TCX) and CAP_NET_ADMIN"
    )]
    Attach {
        /// Index of the interface.
        interface: u32,
        /// Why.
        source: io::Error,
    },
    /// There is no file system to keep attachments in.
    #[error(
        "keeping attached BPF programs in a BPF file system: {0}; it needs CAP_SYS_ADMIN, \
         and fsopen(2) and fsmount(2) allowed"
    )]
    FileSystem(io::Error),
    /// A map could not be changed or read.
    #[error("accessing a BPF map: {0}")]
    Access(io::Error),
}

impl Error {
    /// Whether the interface, or the entry of a map, is not there (any more).
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Attach { source, .. } | Self::Access(source) => matches!(
                rustix::io::Errno::from_io_error(source),
                Some(rustix::io::Errno::NODEV | rustix::io::Errno::NOENT)
            ),
            _ => false,
        }
    }
}

/// What a program needs to know of the running kernel.
pub(crate) struct Needs<'a> {
    /// Functions of the kernel, and where to look for them besides the kernel
    /// itself: the name of a module.
    pub functions: &'a [&'a str],
    /// The module that has them where the kernel itself does not.
    pub module: &'static str,
    /// Symbols that stand for the byte offset of a field: (symbol, function, path of
    /// the field) in the structure that the function gives a pointer to.
    pub offsets: &'a [(&'a str, &'a str, &'a str)],
    /// Symbols that stand for numbers.
    pub numbers: &'a [(&'a str, u64)],
}

/// The maps and programs of an object.
pub(crate) struct Loaded {
    /// By name.
    pub maps: HashMap<String, Map>,
    /// By section.
    pub programs: HashMap<String, Program>,
}

/// Loads an object's maps and programs, which are gone with the last descriptor.
pub(crate) fn load(object: &Object, needs: &Needs<'_>) -> Result<Loaded, Error> {
    let found = btf::find(needs)?;
    let mut constants: HashMap<&str, u64> = needs.numbers.iter().copied().collect();
    constants.extend(found.offsets);
    let mut maps = HashMap::new();
    for (name, definition) in &object.maps {
        maps.insert(name.clone(), Map::create(name, definition)?);
    }
    let mut programs = HashMap::new();
    for program in &object.programs {
        let code = program.linked(&maps, &found.functions, &constants)?;
        let loaded = Program::load(&program.name, &code, &object.license, found.module.as_ref())?;
        programs.insert(program.section.clone(), loaded);
    }
    Ok(Loaded { maps, programs })
}
