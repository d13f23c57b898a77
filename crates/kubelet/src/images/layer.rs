//! Unpacking a layer: a tar archive, plain or compressed, made into a folder
//! that overlayfs takes as a lower layer (OCI image specification, layers).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::Error;

/// Marks a name as deleted by this layer.
const WHITEOUT: &str = ".wh.";
/// Marks a folder whose content of the layers below is gone.
const OPAQUE: &str = ".wh..wh..opq";
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Unpacks a layer into `root` and sees that the archive is the one its digest
/// (of the uncompressed archive) names.
pub(super) fn unpack(layer: impl Read, digest: &str, root: &Path) -> Result<(), Error> {
    let fail = |reason: String| Error::content(format!("layer {digest}"), reason);
    let archive = decompress(layer).map_err(|error| fail(error.to_string()))?;
    let mut hashing = Hashing::new(archive);
    let folder = File::open(root).map_err(Error::disk("opening", root))?;
    let mut target = Target {
        root: folder.into(),
        folder_times: Vec::new(),
    };
    {
        let mut archive = tar::Archive::new(&mut hashing);
        let entries = archive.entries().map_err(|error| fail(error.to_string()))?;
        for entry in entries {
            let mut entry =
                entry.map_err(|error| fail(format!("the archive is damaged: {error}")))?;
            let path = entry.path_bytes().into_owned();
            target
                .put(&mut entry)
                .map_err(|error| fail(format!("{}: {error}", String::from_utf8_lossy(&path))))?;
        }
    }
    target
        .set_folder_times()
        .map_err(|error| fail(error.to_string()))?;
    // What follows the archive's end counts for the digest too.
    io::copy(&mut hashing, &mut io::sink()).map_err(|error| fail(error.to_string()))?;
    let got = hashing.digest();
    if got != digest {
        return Err(fail(format!("its content has the digest {got}")));
    }
    Ok(())
}

/// By the first bytes, whatever the media type claims.
fn decompress<'a>(layer: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut layer = BufReader::with_capacity(64 * 1024, layer);
    let mut magic = Vec::new();
    layer.by_ref().take(4).read_to_end(&mut magic)?;
    let whole = io::Cursor::new(magic.clone()).chain(layer);
    Ok(if magic.starts_with(&GZIP) {
        Box::new(flate2::read::MultiGzDecoder::new(whole))
    } else if magic.starts_with(&ZSTD) {
        Box::new(zstd::stream::read::Decoder::new(whole)?)
    } else {
        Box::new(whole)
    })
}

/// Computes the digest of all that is read through it.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    pub(super) fn digest(self) -> String {
        hex(&self.hash.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// A digest as OCI writes it.
pub(super) fn hex(hash: &[u8]) -> String {
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The digest of some bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The folder a layer is unpacked into. Every path is resolved by the kernel
/// with this folder as root: no link in an archive can lead out of it.
struct Target {
    root: OwnedFd,
    /// Set at the end: whatever is put into a folder changes its time.
    folder_times: Vec<(PathBuf, i64)>,
}

impl Target {
    fn put<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(
            kind,
            EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName
        ) {
            return Ok(());
        }
        let path = clean(&entry.path()?)?;
        let Some(name) = path.file_name() else {
            // The root folder itself: its rights count, the rest is there.
            return self.dress(entry, self.root.as_fd(), Path::new("."), kind);
        };
        let parent = self.folder(path.parent().unwrap_or(Path::new("")))?;
        if let Some(hidden) = name.to_str().and_then(|name| name.strip_prefix(WHITEOUT)) {
            if name == OPAQUE {
                return set_xattr(&parent, "trusted.overlay.opaque", b"y");
            }
            remove(&parent, OsStr::new(hidden))?;
            // How overlayfs wants a deleted name: a character device 0:0.
            rustix::fs::mknodat(&parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)?;
            return Ok(());
        }
        match kind {
            EntryType::Directory => {
                if !self.is_folder(&parent, name) {
                    remove(&parent, name)?;
                    rustix::fs::mkdirat(&parent, name, Mode::RWXU)?;
                }
                let time = i64::try_from(entry.header().mtime()?).unwrap_or(0);
                self.folder_times.push((path.clone(), time));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                remove(&parent, name)?;
                let file = rustix::fs::openat(
                    &parent,
                    name,
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
                    Mode::RUSR | Mode::WUSR,
                )?;
                io::copy(entry, &mut File::from(file))?;
            }
            EntryType::Symlink => {
                let to = entry
                    .link_name_bytes()
                    .ok_or_else(|| bad("a link to nothing"))?;
                remove(&parent, name)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&to), &parent, name)?;
            }
            EntryType::Link => {
                let to = entry.link_name()?.ok_or_else(|| bad("a link to nothing"))?;
                let to = clean(&to)?;
                let from = self.folder(to.parent().unwrap_or(Path::new("")))?;
                let source = to.file_name().ok_or_else(|| bad("a link to the root"))?;
                remove(&parent, name)?;
                rustix::fs::linkat(&from, source, &parent, name, AtFlags::empty())?;
                // The same file: it is dressed already.
                return Ok(());
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                remove(&parent, name)?;
                let header = entry.header();
                let device = rustix::fs::makedev(
                    header.device_major()?.unwrap_or(0),
                    header.device_minor()?.unwrap_or(0),
                );
                let kind = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                rustix::fs::mknodat(&parent, name, kind, Mode::RUSR | Mode::WUSR, device)?;
            }
            other => return Err(bad(&format!("an entry of the unknown type {other:?}"))),
        }
        self.dress(entry, parent.as_fd(), Path::new(name), kind)
    }

    /// Sets owner, rights, extended attributes and time, in this order: a
    /// change of owner takes set-user-id and capabilities away.
    fn dress<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        parent: impl AsFd,
        name: &Path,
        kind: EntryType,
    ) -> io::Result<()> {
        let header = entry.header();
        let number = |value: u64| u32::try_from(value).map_err(|_| bad("an owner out of range"));
        let (uid, gid) = (number(header.uid()?)?, number(header.gid()?)?);
        let mode = header.mode()? & 0o7777;
        let time = i64::try_from(header.mtime()?).unwrap_or(0);
        rustix::fs::chownat(
            &parent,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if kind != EntryType::Symlink {
            rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        let attributes: Vec<(String, Vec<u8>)> = entry
            .pax_extensions()?
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter_map(|extension| {
                let key = extension.key().ok()?.strip_prefix("SCHILY.xattr.")?;
                // The overlay's own attributes are not an image's to set.
                (!key.starts_with("trusted."))
                    .then(|| (key.to_owned(), extension.value_bytes().to_vec()))
            })
            .collect();
        if !attributes.is_empty() && matches!(kind, EntryType::Regular | EntryType::Directory) {
            let file = rustix::fs::openat(
                &parent,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            for (key, value) in attributes {
                match set_xattr(&file, &key, &value) {
                    // Some file systems have none: containers run without.
                    Err(error)
                        if error.raw_os_error()
                            == Some(rustix::io::Errno::NOTSUP.raw_os_error()) => {}
                    other => other?,
                }
            }
        }
        rustix::fs::utimensat(&parent, name, &times(time), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Opens a folder of the layer, making what is missing of its path.
    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        if let Ok(found) = self.open(path) {
            return Ok(found);
        }
        let mut made = PathBuf::new();
        for part in path.components() {
            let parent = self.open(&made)?;
            made.push(part);
            match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        Ok(rustix::fs::openat2(
            &self.root,
            path,
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?)
    }

    fn is_folder(&self, parent: &OwnedFd, name: &OsStr) -> bool {
        rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn set_folder_times(&self) -> io::Result<()> {
        for (path, time) in self.folder_times.iter().rev() {
            if let Ok(folder) = self.open(path) {
                rustix::fs::futimens(&folder, &times(*time))?;
            }
        }
        Ok(())
    }
}

fn times(second: i64) -> Timestamps {
    let at = Timespec {
        tv_sec: second,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn set_xattr(file: &OwnedFd, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        file,
        name,
        value,
        XattrFlags::empty(),
    )?)
}

/// A path below the layer's root; `..` in an archive is never honest.
fn clean(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(bad("a path that leads out of the layer"));
            }
        }
    }
    Ok(clean)
}

/// Takes away what an earlier entry put in the place of this one.
fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
            match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    fn header(path: &str, kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o640);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1000);
        // By hand: the library refuses the paths these tests are about.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        header
    }

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let link = matches!(kind, EntryType::Symlink | EntryType::Link);
            let size = if link { 0 } else { content.len() as u64 };
            let mut header = header(path, *kind, size);
            if link {
                header.set_link_name_literal(content).unwrap();
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            } else {
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(entries: &[(&str, EntryType, &str)]) -> (tempfile::TempDir, Result<(), Error>) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let tar = archive(entries);
        let result = unpack(&tar[..], &digest_of(&tar), &root);
        (dir, result)
    }

    use EntryType::{Directory, Link, Regular, Symlink};

    #[test]
    fn files_keep_content_owner_rights_and_time() {
        let (dir, result) = unpacked(&[
            ("./etc", Directory, ""),
            ("./etc/a", Regular, "text"),
            ("./etc/b", Link, "./etc/a"),
            ("./etc/c", Symlink, "a"),
            ("no/parent/entry", Regular, "x"),
        ]);
        result.unwrap();
        let root = dir.path().join("root");
        let meta = std::fs::metadata(root.join("etc/a")).unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (12, 34, 0o640)
        );
        assert_eq!(meta.mtime(), 1000);
        assert_eq!(std::fs::metadata(root.join("etc")).unwrap().mtime(), 1000);
        assert_eq!(
            std::fs::metadata(root.join("etc/b")).unwrap().ino(),
            meta.ino()
        );
        assert_eq!(std::fs::read_to_string(root.join("etc/c")).unwrap(), "text");
        assert!(root.join("no/parent/entry").exists());
    }

    #[test]
    fn no_path_or_link_leads_out_of_the_layer() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        let (dir, result) = unpacked(&[("../escape", Regular, "x")]);
        assert!(result.is_err());
        assert!(!dir.path().join("escape").exists());
        // Links count from the layer's root, so that nothing is written outside.
        let (_dir, _) = unpacked(&[("link", Symlink, target), ("link/file", Regular, "x")]);
        assert!(!outside.path().join("file").exists());
        let (_dir, _) = unpacked(&[
            ("link", Symlink, "../../../../../../.."),
            ("link/tmp/podwire-escaped", Regular, "x"),
        ]);
        assert!(!Path::new("/tmp/podwire-escaped").exists());
        let (_dir, result) = unpacked(&[("hard", Link, "../../etc/passwd")]);
        assert!(result.is_err());
    }

    #[test]
    fn an_absolute_link_is_followed_within_the_layer() {
        let (dir, result) = unpacked(&[
            ("run", Directory, ""),
            ("var/run", Symlink, "/run"),
            ("var/run/pid", Regular, "1"),
        ]);
        result.unwrap();
        assert!(dir.path().join("root/run/pid").exists());
    }

    #[test]
    fn whiteouts_become_the_overlays_own() {
        let (dir, result) =
            unpacked(&[("d/.wh.gone", Regular, ""), ("o/.wh..wh..opq", Regular, "")]);
        result.unwrap();
        let root = dir.path().join("root");
        let meta = std::fs::symlink_metadata(root.join("d/gone")).unwrap();
        assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
        let mut value = [0; 4];
        let length =
            rustix::fs::getxattr(root.join("o"), "trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..length], b"y");
    }

    #[test]
    fn compressed_layers_are_told_by_their_first_bytes() {
        use std::io::Write;
        let tar = archive(&[("a", Regular, "text")]);
        let digest = digest_of(&tar);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&tar[..], 1).unwrap();
        for layer in [gzip, zstd, tar] {
            let dir = tempfile::tempdir().unwrap();
            unpack(&layer[..], &digest, dir.path()).unwrap();
            assert_eq!(
                std::fs::read_to_string(dir.path().join("a")).unwrap(),
                "text"
            );
        }
    }

    #[test]
    fn a_layer_of_another_digest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tar = archive(&[("a", Regular, "text")]);
        let error = unpack(&tar[..], &digest_of(b"other"), dir.path()).unwrap_err();
        assert!(error.to_string().contains("its content has the digest"));
    }
}
