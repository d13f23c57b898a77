//! bpf(2): one function for each command, on descriptors that are closed when
//! they are dropped.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::Error;
use super::object::Instruction;

// `enum bpf_cmd`.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BTF_GET_FD_BY_ID: libc::c_long = 19;
const BTF_GET_NEXT_ID: libc::c_long = 23;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;

/// `BPF_PROG_TYPE_SCHED_CLS`: a program that sees packets at an interface.
const CLASSIFIER: u32 = 3;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PER_CPU_ARRAY: u32 = 6;
/// `BPF_TCX_INGRESS` of `enum bpf_attach_type`.
const TCX_INGRESS: u32 = 46;
/// `BPF_F_PATH_FD`: a path is from a directory that is given with it.
const PATH_FROM_DIRECTORY: u32 = 1 << 14;
/// Room for names of programs, maps and modules (`BPF_OBJ_NAME_LEN`).
const NAME: usize = 16;
/// Room for what the verifier says, of which the kernel keeps the end.
const LOG: usize = 64 * 1024;
/// Lines of it that are told.
const LINES: usize = 12;

/// The first fields of `union bpf_attr` of `BPF_MAP_CREATE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Definition {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl Definition {
    /// Reads one from an object's section.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (numbers, _) = bytes.first_chunk::<20>()?.as_chunks::<4>();
        let [kind, key, value, entries, flags] = *numbers else {
            return None;
        };
        Some(Self {
            kind: u32::from_ne_bytes(kind),
            key: u32::from_ne_bytes(key),
            value: u32::from_ne_bytes(value),
            entries: u32::from_ne_bytes(entries),
            flags: u32::from_ne_bytes(flags),
        })
    }
}

#[repr(C)]
#[derive(Default)]
struct CreateMap {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; NAME],
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME],
    interface: u32,
    expected_attach: u32,
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_type: u32,
    attach_program: u32,
    relocation_count: u32,
    descriptors: u64,
}

#[repr(C)]
#[derive(Default)]
struct CreateLink {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

/// `OBJ_PIN`, `OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
    directory: i32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct DetachLink {
    link: u32,
}

/// `BTF_GET_NEXT_ID`, `BTF_GET_FD_BY_ID`: the first number goes in, the second
/// comes out.
#[repr(C)]
#[derive(Default)]
struct Id {
    from: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct GetInfo {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct TypesInfo {
    types: u64,
    size: u32,
    id: u32,
    name: u64,
    name_length: u32,
    of_kernel: u32,
}

/// Calls the kernel.
///
/// # Safety
/// `attribute` is what `command` reads, and every address in it is of memory that
/// is as long as the kernel takes it to be and, where it writes there, mutable.
#[allow(unsafe_code)]
unsafe fn bpf<T>(command: libc::c_long, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the caller's promise; the kernel reads and writes no more than
    // the length given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // Descriptors, and 0.
    Ok(result as i32)
}

#[allow(unsafe_code)]
fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel made it for this call; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn number_of(descriptor: &OwnedFd) -> u32 {
    // Never negative.
    descriptor.as_raw_fd() as u32
}

fn named(name: &str) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    // The last byte stays 0.
    let rooms = bytes.iter_mut().take(NAME - 1);
    rooms
        .zip(name.bytes())
        .for_each(|(room, byte)| *room = byte);
    bytes
}

fn address<T>(memory: &[T]) -> u64 {
    memory.as_ptr().expose_provenance() as u64
}

/// A map. Keys and values are bytes, of the lengths it was made with.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    definition: Definition,
}

impl Map {
    pub(super) fn create(name: &str, definition: &Definition) -> Result<Self, Error> {
        let mut attribute = CreateMap {
            kind: definition.kind,
            key: definition.key,
            value: definition.value,
            entries: definition.entries,
            flags: definition.flags,
            name: named(name),
            ..CreateMap::default()
        };
        // SAFETY: no address is in it.
        #[allow(unsafe_code)]
        let made = unsafe { bpf(MAP_CREATE, &mut attribute) };
        let fd = made.map_err(|source| Error::MakeMap {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            fd: owned(fd),
            definition: *definition,
        })
    }

    pub(super) fn descriptor(&self) -> u32 {
        number_of(&self.fd)
    }

    /// Most entries it holds.
    pub(crate) fn capacity(&self) -> u32 {
        self.definition.entries
    }

    fn element(&self, key: &[u8], value: &[u8], room: usize) -> io::Result<Element> {
        if key.len() != self.definition.key as usize || value.len() != room {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "key or value of a length that is not the map's",
            ));
        }
        Ok(Element {
            map: self.descriptor(),
            key: address(key),
            // The kernel refuses a command that has one where it reads none, and
            // nothing has an address, too.
            value: if value.is_empty() { 0 } else { address(value) },
            ..Element::default()
        })
    }

    /// Sets the value of a key.
    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let room = self.definition.value as usize;
        let mut element = self.element(key, value, room).map_err(Error::Access)?;
        // SAFETY: key and value are as long as the map's, and are only read.
        #[allow(unsafe_code)]
        let set = unsafe { bpf(MAP_UPDATE_ELEM, &mut element) };
        set.map(drop).map_err(Error::Access)
    }

    /// Removes a key; that it was not there is an error that
    /// [`Error::is_gone`] knows.
    pub(crate) fn remove(&self, key: &[u8]) -> Result<(), Error> {
        let mut element = self.element(key, &[], 0).map_err(Error::Access)?;
        // SAFETY: the key is as long as the map's, and is only read; there is
        // no value with this command.
        #[allow(unsafe_code)]
        let removed = unsafe { bpf(MAP_DELETE_ELEM, &mut element) };
        removed.map(drop).map_err(Error::Access)
    }
}

/// Counters, one 64-bit number for each processor and index.
#[derive(Debug)]
pub(crate) struct PerCpu {
    map: Map,
    processors: usize,
}

impl PerCpu {
    /// Takes a map of kind `BPF_MAP_TYPE_PERCPU_ARRAY` of so many values of 8 bytes.
    pub(crate) fn new(map: Map, count: usize) -> Result<Self, Error> {
        let expected = Definition {
            kind: PER_CPU_ARRAY,
            key: 4,
            value: 8,
            entries: u32::try_from(count).unwrap_or(u32::MAX),
            flags: 0,
        };
        if map.definition != expected {
            return Err(Error::Object("the counters are no counters".to_owned()));
        }
        let processors = possible_processors().map_err(Error::Access)?;
        Ok(Self { map, processors })
    }

    /// The sum over all processors.
    pub(crate) fn sum(&self, index: u32) -> Result<u64, Error> {
        let mut values = vec![0u64; self.processors];
        let key = index.to_ne_bytes();
        let mut element = self.map.element(&key, &[], 0).map_err(Error::Access)?;
        element.value = values.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the kernel writes 8 bytes for each possible processor.
        #[allow(unsafe_code)]
        let read = unsafe { bpf(MAP_LOOKUP_ELEM, &mut element) };
        read.map_err(Error::Access)?;
        Ok(values.into_iter().fold(0, u64::wrapping_add))
    }
}

/// How many processors there can be: the kernel has room for each, present or
/// not. The file holds ranges such as `0-3,8-11`.
fn possible_processors() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().unwrap_or_default();
    let last: usize = last.parse().map_err(io::Error::other)?;
    Ok(last + 1)
}

/// A loaded program.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd);

impl Program {
    /// Loads a program that sees packets; `module` is the description of the
    /// module whose functions it calls.
    pub(super) fn load(
        name: &str,
        code: &[Instruction],
        license: &str,
        module: Option<&OwnedFd>,
    ) -> Result<Self, Error> {
        let mut license = license.as_bytes().to_vec();
        license.push(0);
        // Of calls with offset 0, which are the kernel's own, none is looked up.
        let descriptors = [0, module.map_or(0, number_of)];
        let mut log = Vec::new();
        let attempt = |log: &mut [u8]| {
            let mut attribute = LoadProgram {
                kind: CLASSIFIER,
                count: code.len() as u32,
                code: address(code),
                license: address(&license),
                log_level: u32::from(!log.is_empty()),
                log_size: log.len() as u32,
                log: if log.is_empty() {
                    0
                } else {
                    log.as_mut_ptr().expose_provenance() as u64
                },
                name: named(name),
                descriptors: if module.is_some() {
                    address(&descriptors)
                } else {
                    0
                },
                ..LoadProgram::default()
            };
            // SAFETY: the code is `count` instructions, the licence ends with a 0,
            // there are as many descriptors as the code's calls speak of (one
            // module's, at offset 1), and the log is mutable and of its length.
            #[allow(unsafe_code)]
            unsafe {
                bpf(PROG_LOAD, &mut attribute)
            }
        };
        let source = match attempt(&mut []) {
            Ok(fd) => return Ok(Self(owned(fd))),
            Err(source) => source,
        };
        log.resize(LOG, 0);
        let _ = attempt(&mut log);
        // Behind the 0 are remains of what the verifier took back.
        let end = log.iter().position(|byte| *byte == 0);
        let said = String::from_utf8_lossy(&log[..end.unwrap_or(LOG)]);
        let lines: Vec<_> = said.lines().collect();
        let log = lines[lines.len().saturating_sub(LINES)..].join("\n");
        Err(Error::Load {
            name: name.to_owned(),
            source,
            log: if log.is_empty() {
                log
            } else {
                format!("\n{log}")
            },
        })
    }

    /// Whether the kernel attaches such programs to interfaces: asked to do it at
    /// none, it says that there is no such interface.
    pub(crate) fn can_be_attached(&self) -> Result<(), Error> {
        /// No interface has this index.
        const NONE: u32 = 0;
        match self.attach(NONE) {
            Err(error) if error.is_gone() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Attaches the program to what arrives at an interface of the calling
    /// thread's network namespace, behind programs that are there already, for as
    /// long as the descriptor lives and the interface does.
    pub(super) fn attach(&self, interface: u32) -> Result<OwnedFd, Error> {
        let mut attribute = CreateLink {
            program: number_of(&self.0),
            interface,
            attach: TCX_INGRESS,
            ..CreateLink::default()
        };
        // SAFETY: no address is in it.
        #[allow(unsafe_code)]
        let made = unsafe { bpf(LINK_CREATE, &mut attribute) };
        let fd = made.map_err(|source| Error::Attach { interface, source })?;
        Ok(owned(fd))
    }
}

/// Gives an attachment a name in a directory of a BPF file system: it lives on
/// without its descriptor.
pub(super) fn pin(link: &OwnedFd, directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    let mut attribute = Object {
        path: address(name.to_bytes_with_nul()),
        descriptor: number_of(link),
        flags: PATH_FROM_DIRECTORY,
        directory: directory.as_raw_fd(),
        ..Object::default()
    };
    // SAFETY: the path is only read, and ends with a 0.
    #[allow(unsafe_code)]
    unsafe { bpf(OBJ_PIN, &mut attribute) }.map(drop)
}

/// What has a name in a directory of a BPF file system.
pub(super) fn pinned(directory: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let mut attribute = Object {
        path: address(name.to_bytes_with_nul()),
        flags: PATH_FROM_DIRECTORY,
        directory: directory.as_raw_fd(),
        ..Object::default()
    };
    // SAFETY: the path is only read, and ends with a 0.
    #[allow(unsafe_code)]
    unsafe { bpf(OBJ_GET, &mut attribute) }.map(owned)
}

/// Takes a program away from its interface, whoever still knows the attachment.
pub(super) fn detach(link: &OwnedFd) -> io::Result<()> {
    let mut attribute = DetachLink {
        link: number_of(link),
    };
    // SAFETY: no address is in it.
    #[allow(unsafe_code)]
    unsafe { bpf(LINK_DETACH, &mut attribute) }.map(drop)
}

/// The description of a loaded module's types, which programs that call its
/// functions name.
pub(super) fn types_of_module(module: &str) -> io::Result<Option<OwnedFd>> {
    let mut id = 0;
    loop {
        let mut next = Id {
            from: id,
            ..Id::default()
        };
        // SAFETY: no address is in it.
        #[allow(unsafe_code)]
        let found = unsafe { bpf(BTF_GET_NEXT_ID, &mut next) };
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => drop(other?),
        }
        id = next.next;
        let mut open = Id {
            from: id,
            ..Id::default()
        };
        // SAFETY: no address is in it.
        #[allow(unsafe_code)]
        let opened = unsafe { bpf(BTF_GET_FD_BY_ID, &mut open) };
        let fd = match opened {
            // Unloaded meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => owned(other?),
        };
        let mut name = [0u8; 64];
        let mut info = TypesInfo {
            name: name.as_mut_ptr().expose_provenance() as u64,
            name_length: name.len() as u32,
            ..TypesInfo::default()
        };
        let mut ask = GetInfo {
            descriptor: number_of(&fd),
            length: size_of::<TypesInfo>() as u32,
            info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
        };
        // SAFETY: the information is mutable and of the length given, and so is
        // the name that it has the address of.
        #[allow(unsafe_code)]
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut ask) }?;
        let length = name.iter().position(|byte| *byte == 0);
        if info.of_kernel != 0 && name[..length.unwrap_or(name.len())] == *module.as_bytes() {
            return Ok(Some(fd));
        }
    }
}
