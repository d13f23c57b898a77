//! The built-in image `podwire.dev/toolbox`: the running executable itself, the
//! libraries it has mapped, and links for its applets.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Config, Error};

/// The program's place in the image.
const PROGRAM: &str = "/usr/bin/podwire";

/// Changes with the executable, so that a new build makes a new layer.
pub(super) fn key() -> Result<String, Error> {
    let path = "/proc/self/exe";
    let meta = std::fs::metadata(path).map_err(Error::disk("looking at", path))?;
    Ok(format!(
        "toolbox-{:x}-{:x}-{:x}-{:x}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
    ))
}

/// What its containers run unless told otherwise.
pub(super) fn config() -> Config {
    Config {
        entrypoint: vec![PROGRAM.into(), "toolbox".into()],
        cmd: vec!["serve".into()],
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        working_dir: Some("/".into()),
        ..Config::default()
    }
}

/// Builds the image's root.
pub(super) fn build(root: &Path) -> Result<(), Error> {
    for dir in [
        "dev", "etc", "home", "lib", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib",
        "var/log", "var/tmp",
    ] {
        let dir = root.join(dir);
        std::fs::create_dir_all(&dir).map_err(Error::disk("making", &dir))?;
    }
    for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/bin")] {
        let link = root.join(link);
        symlink(target, &link).map_err(Error::disk("linking", &link))?;
    }
    for dir in ["tmp", "var/tmp"] {
        let dir = root.join(dir);
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o1777))
            .map_err(Error::disk("opening to all", &dir))?;
    }
    for (file, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/nsswitch.conf", "hosts: files dns\n"),
        (
            "etc/os-release",
            "NAME=podwire toolbox\nID=podwire-toolbox\n",
        ),
    ] {
        let path = root.join(file);
        std::fs::write(&path, text).map_err(Error::disk("writing", &path))?;
    }
    let program = root.join(PROGRAM.trim_start_matches('/'));
    std::fs::copy("/proc/self/exe", &program).map_err(Error::disk("copying to", &program))?;
    for library in libraries()? {
        let target = root.join(library.strip_prefix("/").unwrap_or(&library));
        if let Some(dir) = target.parent() {
            std::fs::create_dir_all(dir).map_err(Error::disk("making", dir))?;
        }
        std::fs::copy(&library, &target).map_err(Error::disk("copying to", &target))?;
    }
    for applet in ::toolbox::APPLETS {
        let link = root.join("usr/bin").join(applet);
        symlink("podwire", &link).map_err(Error::disk("linking", &link))?;
    }
    Ok(())
}

/// The shared libraries this process has mapped, under the paths the dynamic
/// linker looks for them, and the linker itself.
fn libraries() -> Result<BTreeSet<PathBuf>, Error> {
    let maps = "/proc/self/maps";
    let text = std::fs::read_to_string(maps).map_err(Error::disk("reading", maps))?;
    let exe =
        std::fs::metadata("/proc/self/exe").map_err(Error::disk("looking at", "/proc/self/exe"))?;
    let mut libraries = BTreeSet::new();
    for line in text.lines() {
        let Some(path) = line.find('/').map(|at| PathBuf::from(&line[at..])) else {
            continue;
        };
        let is_library = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.contains(".so"));
        let Ok(meta) = std::fs::metadata(&path) else {
            continue;
        };
        if is_library && (meta.dev(), meta.ino()) != (exe.dev(), exe.ino()) {
            libraries.insert(path);
        }
    }
    libraries.extend(interpreter()?);
    Ok(libraries)
}

/// The dynamic linker the executable names (ELF program header PT_INTERP);
/// none for a static one.
fn interpreter() -> Result<Option<PathBuf>, Error> {
    use std::io::{Read, Seek, SeekFrom};
    const PT_INTERP: u32 = 3;
    let path = "/proc/self/exe";
    let mut file = std::fs::File::open(path).map_err(Error::disk("opening", path))?;
    let mut head = [0; 64];
    file.read_exact(&mut head)
        .map_err(Error::disk("reading", path))?;
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    // Offsets of the 64-bit little-endian ELF header (elf(5)).
    let (table, size, count) = (
        number(&head[32..40]),
        number(&head[54..56]),
        number(&head[56..58]),
    );
    for index in 0..count {
        let mut entry = [0; 56];
        file.seek(SeekFrom::Start(table + index * size))
            .and_then(|_| file.read_exact(&mut entry))
            .map_err(Error::disk("reading", path))?;
        if number(&entry[0..4]) == u64::from(PT_INTERP) {
            let (offset, length) = (number(&entry[8..16]), number(&entry[32..40]));
            let mut name = Vec::new();
            file.seek(SeekFrom::Start(offset))
                .and_then(|_| (&file).take(length.min(4096)).read_to_end(&mut name))
                .map_err(Error::disk("reading", path))?;
            while name.last() == Some(&0) {
                name.pop();
            }
            let name = String::from_utf8_lossy(&name).into_owned();
            return Ok(Some(name.into()));
        }
    }
    Ok(None)
}
