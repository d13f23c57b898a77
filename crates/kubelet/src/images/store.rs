use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Config, Error, Reference, toolbox};
use crate::{disk, paths};

/// An image of the store, ready to start containers from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its full name.
    pub name: String,
    /// Its digest, or what stands for it.
    pub id: String,
    /// Its layers' folders, the topmost first.
    pub layers: Vec<PathBuf>,
    /// What it says about its processes.
    pub config: Config,
}

/// What the store writes down about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) id: String,
    /// Digests of the unpacked layers, the lowest first.
    pub(super) layers: Vec<String>,
    pub(super) config: Config,
}

/// Unpacked images in a folder that many processes share: a layer is unpacked
/// aside, then renamed to its digest's name; a layer's lock file keeps two from
/// unpacking it at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    host_root: PathBuf,
}

impl Store {
    /// Opens the store in this folder, making it when it is not there.
    ///
    /// # Errors
    /// When the folder can't be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        for part in ["layers", "images", "locks", "tmp"] {
            let dir = root.join(part);
            std::fs::create_dir_all(&dir).map_err(Error::disk("making", &dir))?;
        }
        Ok(Self {
            root,
            host_root: paths::HOST_ROOT.into(),
        })
    }

    /// Whether an image of this name is built in and never pulled.
    pub fn is_built_in(name: &str) -> bool {
        Self::is_host(name) || Self::is_toolbox(name)
    }

    fn is_host(name: &str) -> bool {
        name == "host:"
    }

    fn is_toolbox(name: &str) -> bool {
        name.strip_prefix("podwire.dev/toolbox")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
    }

    /// The image of this name; none when the store has not got it. The built-in
    /// ones are always there (the toolbox is made at its first use).
    ///
    /// # Errors
    /// When the name is not one, or the disk refuses.
    pub fn get(&self, name: &str) -> Result<Option<Image>, Error> {
        if Self::is_host(name) {
            return Ok(Some(Image {
                name: name.into(),
                id: "host:/".into(),
                layers: vec![self.host_root.clone()],
                config: Config {
                    env: vec![
                        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
                    ],
                    cmd: vec!["/bin/sh".into()],
                    ..Config::default()
                },
            }));
        }
        if Self::is_toolbox(name) {
            let key = toolbox::key()?;
            let layer = self.layer(&key, toolbox::build)?;
            return Ok(Some(Image {
                name: name.into(),
                id: format!("podwire.dev/toolbox@{key}"),
                layers: vec![layer],
                config: toolbox::config(),
            }));
        }
        let reference = Reference::parse(name)?;
        let path = self.entry_path(&reference.to_string());
        let entry: Option<Entry> =
            disk::read_json(&path).map_err(Error::disk("reading the image entry", &path))?;
        Ok(entry.map(|entry| self.image(entry)))
    }

    pub(super) fn image(&self, entry: Entry) -> Image {
        Image {
            layers: entry
                .layers
                .iter()
                .rev()
                .map(|layer| self.layer_path(layer))
                .collect(),
            name: entry.name,
            id: entry.id,
            config: entry.config,
        }
    }

    /// A file for each image, named by a hash of its name: names have slashes.
    fn entry_path(&self, name: &str) -> PathBuf {
        let hash = Sha256::digest(name.as_bytes());
        let hex: String = hash
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.root.join("images").join(format!("{hex}.json"))
    }

    /// Folders are named by the digest without its algorithm, cut: an overlay's
    /// options have one page for all layers.
    fn layer_path(&self, digest: &str) -> PathBuf {
        let name = digest
            .strip_prefix("sha256:")
            .map_or(digest, |hex| &hex[..hex.len().min(40)]);
        self.root.join("layers").join(name)
    }

    /// The folder of a layer, made by `unpack` when it is not there yet.
    pub(super) fn layer(
        &self,
        digest: &str,
        unpack: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let path = self.layer_path(digest);
        if path.exists() {
            return Ok(path);
        }
        let name = path.file_name().unwrap_or_default().to_os_string();
        let lock_path = self.root.join("locks").join(&name);
        let lock = File::create(&lock_path).map_err(Error::disk("making the lock", &lock_path))?;
        lock.lock().map_err(Error::disk("locking", &lock_path))?;
        if path.exists() {
            return Ok(path);
        }
        let temporary = self.root.join("tmp").join(&name);
        // Left by a process that was killed while it held the lock.
        disk::remove_dir(&temporary).map_err(Error::disk("removing", &temporary))?;
        std::fs::create_dir(&temporary).map_err(Error::disk("making", &temporary))?;
        match unpack(&temporary) {
            Ok(()) => {
                std::fs::rename(&temporary, &path).map_err(Error::disk("renaming to", &path))?;
                Ok(path)
            }
            Err(error) => {
                let _ = disk::remove_dir(&temporary);
                Err(error)
            }
        }
    }

    /// Notes an image whose layers are all there.
    pub(super) fn put(&self, entry: &Entry) -> Result<(), Error> {
        let path = self.entry_path(&entry.name);
        disk::write_json(&path, entry).map_err(Error::disk("writing the image entry", &path))
    }

    /// Whether a layer is unpacked.
    pub(super) fn has_layer(&self, digest: &str) -> bool {
        self.layer_path(digest).exists()
    }

    /// A file for what is on its way.
    pub(super) fn scratch(&self) -> Result<(File, PathBuf), Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = self.root.join("tmp").join(format!(
            "blob-{}-{}-{}",
            std::process::id(),
            jiff::Timestamp::now().as_nanosecond(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let file = File::create_new(&path).map_err(Error::disk("making", &path))?;
        Ok((file, path))
    }

    /// All images noted, built-in ones left out, by name.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        let dir = self.root.join("images");
        let read = || -> io::Result<Vec<Entry>> {
            let mut entries = Vec::new();
            for file in dir.read_dir()? {
                let path = file?.path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "json")
                    && let Some(entry) = disk::read_json(&path)?
                {
                    entries.push(entry);
                }
            }
            Ok(entries)
        };
        let mut entries = read().map_err(Error::disk("listing images in", &dir))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries.into_iter().map(|entry| self.image(entry)).collect())
    }
}
