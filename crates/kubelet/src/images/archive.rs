//! Images in files: an OCI layout (a folder or a tar of it), or what
//! `docker save` writes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::layer::{self, digest_of};
use super::manifest::{Document, check_digest, choose, configuration};
use super::store::Entry;
use super::{Error, Image, Reference, Store};

/// Documents are small; more is not one.
const DOCUMENT_LIMIT: u64 = 8 * 1024 * 1024;

/// Where the parts of an image lie.
enum Source {
    Folder(PathBuf),
    /// A tar file with the places of its members.
    Tar(PathBuf, HashMap<String, (u64, u64)>),
}

impl Source {
    fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        let file = File::open(path).map_err(Error::disk("opening", path))?;
        let read = || -> io::Result<HashMap<String, (u64, u64)>> {
            let mut members = HashMap::new();
            for entry in tar::Archive::new(file).entries_with_seek()? {
                let entry = entry?;
                let name: PathBuf = entry
                    .path()?
                    .components()
                    .filter(|part| matches!(part, Component::Normal(_)))
                    .collect();
                if let Some(name) = name.to_str() {
                    let place = (entry.raw_file_position(), entry.size());
                    // docker save links equal layers to one another.
                    let link = entry.link_name()?.and_then(|to| {
                        let folder = Path::new(name).parent().map(Path::to_owned);
                        let to = folder.unwrap_or_default().join(to);
                        normal(&to)
                    });
                    let place = link
                        .and_then(|to| members.get(&to).copied())
                        .unwrap_or(place);
                    members.insert(name.to_owned(), place);
                }
            }
            Ok(members)
        };
        let members = read().map_err(|error| {
            Error::content(
                path.display().to_string(),
                format!("no tar archive: {error}"),
            )
        })?;
        Ok(Self::Tar(path.into(), members))
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(dir) => dir.join(name).is_file(),
            Self::Tar(_, members) => members.contains_key(name),
        }
    }

    fn part(&self, name: &str) -> Result<Box<dyn Read>, Error> {
        let inside = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(Error::content(name, "the path leads out of the archive"));
        }
        match self {
            Self::Folder(dir) => {
                let path = dir.join(name);
                let file = File::open(&path).map_err(Error::disk("opening", &path))?;
                Ok(Box::new(file))
            }
            Self::Tar(path, members) => {
                let (at, length) = *members
                    .get(name)
                    .ok_or_else(|| Error::content(name, "not in the archive"))?;
                let mut file = File::open(path).map_err(Error::disk("opening", path))?;
                file.seek(SeekFrom::Start(at))
                    .map_err(Error::disk("reading", path))?;
                Ok(Box::new(file.take(length)))
            }
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.part(name)?
            .take(DOCUMENT_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(Error::disk("reading", name))?;
        Ok(bytes)
    }

    /// A document by its digest.
    fn blob(&self, digest: &str) -> Result<Vec<u8>, Error> {
        let bytes = self.document(&blob_path(digest)?)?;
        let got = digest_of(&bytes);
        if got == digest {
            Ok(bytes)
        } else {
            Err(Error::content(
                format!("blob {digest}"),
                format!("its content has the digest {got}"),
            ))
        }
    }
}

fn normal(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::ParentDir => {
                parts.pop()?;
            }
            _ => {}
        }
    }
    Some(parts.join("/"))
}

fn blob_path(digest: &str) -> Result<String, Error> {
    let hex = check_digest("a descriptor", digest)?;
    Ok(format!("blobs/sha256/{hex}"))
}

impl Store {
    /// Loads the images of a file or folder: an OCI layout, a tar of one, or an
    /// archive of `docker save`. With `name` its only image gets that name.
    ///
    /// # Errors
    /// When it is none of these, its content is not what its digests say, it
    /// has no variant for this machine, or it names no image and `name` is
    /// absent. Nothing is noted then.
    pub fn load(&self, path: &Path, name: Option<&str>) -> Result<Vec<Image>, Error> {
        let source = Source::open(path)?;
        let found = if source.has("manifest.json") {
            self.load_docker(&source)?
        } else if source.has("index.json") {
            self.load_layout(&source)?
        } else {
            return Err(Error::content(
                path.display().to_string(),
                "neither an OCI layout (no index.json) nor an archive of docker save (no manifest.json)",
            ));
        };
        let entries = named(path, name, found)?;
        let mut images = Vec::new();
        for entry in entries {
            self.put(&entry)?;
            images.push(self.image(entry));
        }
        Ok(images)
    }

    /// Images with the names they are given in the archive, which may be none.
    fn load_docker(&self, source: &Source) -> Result<Vec<(Vec<String>, Entry)>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Image {
            config: String,
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let list: Vec<Image> = serde_json::from_slice(&source.document("manifest.json")?)
            .map_err(|error| Error::content("manifest.json", error))?;
        let mut found = Vec::new();
        for image in list {
            let bytes = source.document(&image.config)?;
            let (config, digests) = configuration(&image.config, &bytes)?;
            if digests.len() != image.layers.len() {
                return Err(Error::content(
                    &image.config,
                    "it names another number of layers",
                ));
            }
            for (digest, layer) in digests.iter().zip(&image.layers) {
                self.layer(digest, |dir| {
                    layer::unpack(source.part(layer)?, digest, dir)
                })?;
            }
            let entry = Entry {
                name: String::new(),
                id: digest_of(&bytes),
                layers: digests,
                config,
            };
            found.push((image.repo_tags.unwrap_or_default(), entry));
        }
        Ok(found)
    }

    fn load_layout(&self, source: &Source) -> Result<Vec<(Vec<String>, Entry)>, Error> {
        let Document::Index(manifests) =
            Document::parse("index.json", &source.document("index.json")?)?
        else {
            return Err(Error::content("index.json", "no image index"));
        };
        let mut found = Vec::new();
        for manifest in manifests {
            // What builders write beside images is of no use here.
            if manifest
                .annotations
                .contains_key("vnd.docker.reference.type")
            {
                continue;
            }
            let names: Vec<String> = [
                "io.containerd.image.name",
                "org.opencontainers.image.ref.name",
            ]
            .iter()
            .filter_map(|key| manifest.annotations.get(*key).cloned())
            .take(1)
            .collect();
            let mut digest = manifest.digest.clone();
            let mut document = Document::parse(&digest, &source.blob(&digest)?)?;
            if let Document::Index(variants) = &document {
                digest.clone_from(&choose(&names.join(" "), variants)?.digest);
                document = Document::parse(&digest, &source.blob(&digest)?)?;
            }
            let Document::Manifest { config, layers } = document else {
                return Err(Error::content(digest, "an index within an index"));
            };
            let (processes, digests) =
                configuration(&config.digest, &source.blob(&config.digest)?)?;
            if digests.len() != layers.len() {
                return Err(Error::content(
                    digest,
                    "it names another number of layers than its configuration",
                ));
            }
            for (diff, layer) in digests.iter().zip(&layers) {
                let part = blob_path(&layer.digest)?;
                self.layer(diff, |dir| layer::unpack(source.part(&part)?, diff, dir))?;
            }
            let entry = Entry {
                name: String::new(),
                id: digest,
                layers: digests,
                config: processes,
            };
            found.push((names, entry));
        }
        Ok(found)
    }
}

/// Gives every image its full names.
fn named(
    path: &Path,
    name: Option<&str>,
    found: Vec<(Vec<String>, Entry)>,
) -> Result<Vec<Entry>, Error> {
    let shown = path.display().to_string();
    if let Some(name) = name {
        let full = Reference::parse(name)?.to_string();
        let mut found = found;
        return match (found.pop(), found.is_empty()) {
            (Some((_, entry)), true) => Ok(vec![Entry {
                name: full,
                ..entry
            }]),
            _ => Err(Error::content(
                shown,
                "a name (--as) can be given to one image only, and it holds another number",
            )),
        };
    }
    let mut entries = Vec::new();
    for (names, entry) in found {
        if names.is_empty() {
            return Err(Error::content(
                shown,
                "its image has no name: give one (--as)",
            ));
        }
        for name in names {
            // A layout's reference may be a tag alone.
            if !name.contains(['/', ':']) {
                return Err(Error::content(
                    shown,
                    format!(
                        "its image is named \"{name}\" only, which is a tag: give a name (--as)"
                    ),
                ));
            }
            let name = Reference::parse(&name)?.to_string();
            entries.push(Entry {
                name,
                ..entry.clone()
            });
        }
    }
    Ok(entries)
}
