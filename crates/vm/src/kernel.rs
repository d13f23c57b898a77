//! The kernel to boot and its modules, as `cargo xtask setup` unpacked them.
//! What is taken out of its compressed form is kept beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::Error;

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct Kernel {
    version: String,
    vmlinuz: PathBuf,
    /// Module name, with `_` for `-`, to its compressed file.
    modules: BTreeMap<String, PathBuf>,
    /// Modules that are part of the kernel.
    built_in: Vec<String>,
}

/// A module ready to be loaded.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

impl Kernel {
    /// Where `cargo xtask setup` unpacks kernels.
    pub(crate) fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../target/tools/kernel")
            .components()
            .collect()
    }

    /// The kernel unpacked below `directory`, if there is one.
    pub(crate) fn find(directory: &Path) -> Result<Option<Self>, Error> {
        let Ok(boot) = std::fs::read_dir(directory.join("boot")) else {
            return Ok(None);
        };
        let Some((vmlinuz, version)) = boot.filter_map(Result::ok).find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((entry.path(), name.strip_prefix("vmlinuz-")?.to_owned()))
        }) else {
            return Ok(None);
        };
        let tree = directory.join("lib/modules").join(&version);
        let mut modules = BTreeMap::new();
        collect(&tree, &mut modules).map_err(Error::io(format!(
            "list the modules below {}",
            tree.display()
        )))?;
        let built_in = std::fs::read_to_string(tree.join("modules.builtin"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        Ok(Some(Self {
            version,
            vmlinuz,
            modules,
            built_in,
        }))
    }

    /// The uncompressed kernel, which boots some seconds sooner than the
    /// compressed one does under emulation. Made once.
    pub(crate) fn vmlinux(&self) -> Result<PathBuf, Error> {
        let path = self
            .vmlinuz
            .with_file_name(format!("vmlinux-{}", self.version));
        if path.is_file() {
            return Ok(path);
        }
        let failed = |reason: String| Error::Kernel {
            path: self.vmlinuz.clone(),
            reason,
        };
        let compressed = std::fs::read(&self.vmlinuz).map_err(|error| failed(error.to_string()))?;
        let payload = payload(&compressed).map_err(failed)?;
        let mut vmlinux = Vec::new();
        zstd::Decoder::new(payload)
            .and_then(|decoder| decoder.single_frame().read_to_end(&mut vmlinux))
            .map_err(|error| failed(format!("its payload is not a zstd stream: {error}")))?;
        keep(&path, &vmlinux)?;
        Ok(path)
    }

    /// The named modules and all they depend on, each after those it needs.
    /// What is built in needs no loading and is left out, and so is all that
    /// depends on a module of `without`.
    pub(crate) fn load_order<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        without: &BTreeSet<String>,
    ) -> Result<Vec<Module>, Error> {
        let mut order = Vec::new();
        for name in names {
            self.add(name, None, without, &mut order)?;
        }
        Ok(order)
    }

    /// Adds one module behind those it needs; `false` when one of them is to
    /// be left out.
    fn add(
        &self,
        name: &str,
        wanted_by: Option<&str>,
        without: &BTreeSet<String>,
        order: &mut Vec<Module>,
    ) -> Result<bool, Error> {
        let name = name.replace('-', "_");
        if without.contains(&name) {
            return Ok(false);
        }
        if self.built_in.contains(&name) || order.iter().any(|module| module.name == name) {
            return Ok(true);
        }
        let path = self.modules.get(&name).ok_or_else(|| Error::NoModule {
            module: name.clone(),
            wanted_by: wanted_by.map(str::to_owned),
            version: self.version.clone(),
        })?;
        let content = module(path)?;
        for dependency in dependencies(&content) {
            if !self.add(&dependency, Some(&name), without, order)? {
                return Ok(false);
            }
        }
        order.push(Module { name, content });
        Ok(true)
    }
}

/// The compressed kernel inside a `vmlinuz` (`Documentation/arch/x86/boot.rst`:
/// `setup_sects` at 0x1f1, `HdrS` at 0x202, `payload_offset` at 0x248,
/// `payload_length` at 0x24c; the offset counts from the end of the set-up code).
fn payload(vmlinuz: &[u8]) -> Result<&[u8], String> {
    let word = |at: usize| {
        vmlinuz
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(|bytes| u32::from_le_bytes(bytes) as usize)
    };
    if vmlinuz.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it has no x86 boot header".to_owned());
    }
    let start =
        word(0x248).and_then(|offset| offset.checked_add((usize::from(vmlinuz[0x1f1]) + 1) * 512));
    start
        .zip(word(0x24c))
        .and_then(|(start, length)| vmlinuz.get(start..start.checked_add(length)?))
        .ok_or_else(|| "it is cut short".to_owned())
}

/// A module's content, uncompressed once and kept.
fn module(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |reason: String| Error::Module {
        path: path.to_owned(),
        reason,
    };
    let plain = match path.extension() {
        Some(extension) if extension == "xz" || extension == "zst" => path.with_extension(""),
        _ => path.to_owned(),
    };
    match std::fs::read(&plain) {
        Ok(content) => return Ok(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error.to_string())),
    }
    let compressed = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut content = Vec::new();
    if path.extension().is_some_and(|extension| extension == "zst") {
        zstd::stream::copy_decode(&compressed[..], &mut content)
            .map_err(|error| failed(error.to_string()))?;
    } else {
        lzma_rs::xz_decompress(&mut &compressed[..], &mut content)
            .map_err(|error| failed(format!("{error:?}")))?;
    }
    keep(&plain, &content)?;
    Ok(content)
}

/// The modules a module says it depends on: the entry `depends=a,b` among the
/// zero-terminated texts of its section `.modinfo`, which every module has.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[start + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// All modules below a directory. A compressed file wins over what was made
/// from it, so that the two are one entry.
fn collect(directory: &Path, modules: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, modules)?;
        } else if let Some(name) = module_name(&path) {
            let plain = path.extension().is_some_and(|extension| extension == "ko");
            if !(plain && modules.contains_key(&name)) {
                modules.insert(name, path);
            }
        }
    }
    Ok(())
}

/// The name the kernel gives to the module of a file.
fn module_name(path: &Path) -> Option<String> {
    let (name, compression) = path.file_name()?.to_str()?.split_once(".ko")?;
    ["", ".xz", ".zst"]
        .contains(&compression)
        .then(|| name.replace('-', "_"))
}

/// Writes a file that other processes may be writing too: whole or not at all.
fn keep(path: &Path, content: &[u8]) -> Result<(), Error> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    tempfile::NamedTempFile::new_in(directory)
        .and_then(|mut file| {
            io::Write::write_all(&mut file, content)?;
            file.persist(path).map_err(|error| error.error)?;
            Ok(())
        })
        .map_err(Error::io(format!("write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dependencies_are_read_from_the_modules_own_words() {
        let module = b"\x7fELF..license=GPL\0depends=nf_conntrack,libcrc32c\0name=x\0";
        assert_eq!(dependencies(module), ["nf_conntrack", "libcrc32c"]);
        assert!(dependencies(b"license=GPL\0depends=\0name=x\0").is_empty());
    }

    #[test]
    fn a_module_is_found_by_its_name_however_it_is_spelt_and_compressed() {
        for file in ["a/ip-vs_rr.ko", "a/ip_vs_rr.ko.xz", "ip_vs-rr.ko.zst"] {
            assert_eq!(module_name(Path::new(file)).as_deref(), Some("ip_vs_rr"));
        }
        assert_eq!(module_name(Path::new("modules.dep")), None);
        assert_eq!(module_name(Path::new("x.ko.partial")), None);
    }

    proptest! {
        #[test]
        fn no_file_makes_the_reader_of_boot_headers_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..0x400), header in any::<bool>(),
        ) {
            if header && bytes.len() > 0x206 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
            }
            let _ = payload(&bytes);
            let _ = dependencies(&bytes);
        }
    }
}
