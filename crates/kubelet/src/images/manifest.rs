//! The documents of an image: index, manifest, configuration (OCI image
//! specification 1.1 and Docker's schema 2, which differ in names only).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Config, Error};
use crate::node::architecture;

/// Points at a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// What a manifest's bytes may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    /// Variants of an image.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

impl Document {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Raw {
            manifests: Option<Vec<Descriptor>>,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| Error::content(what, error))?;
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), ..) => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) => Ok(Self::Manifest { config, layers }),
            _ => Err(Error::content(
                what,
                "neither an image index nor an image manifest (Docker's schema 1 is too old)",
            )),
        }
    }
}

/// The variant for this machine; one without a platform serves all.
pub(super) fn choose<'a>(name: &str, variants: &'a [Descriptor]) -> Result<&'a Descriptor, Error> {
    let wanted = architecture();
    let fits = |variant: &&Descriptor| {
        variant
            .platform
            .as_ref()
            .is_some_and(|p| p.os == "linux" && p.architecture == wanted)
    };
    variants
        .iter()
        .find(fits)
        .or_else(|| variants.iter().find(|variant| variant.platform.is_none()))
        .ok_or_else(|| Error::Platform {
            name: name.into(),
            platform: format!("linux/{wanted}"),
            offered: variants
                .iter()
                .filter_map(|variant| variant.platform.as_ref())
                .map(|p| format!("{}/{}", p.os, p.architecture))
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// The image's configuration: its processes, and its layers' digests from the
/// lowest up.
pub(super) fn configuration(what: &str, bytes: &[u8]) -> Result<(Config, Vec<String>), Error> {
    #[derive(Deserialize)]
    struct Raw {
        config: Option<Config>,
        rootfs: Root,
    }
    #[derive(Deserialize)]
    struct Root {
        diff_ids: Option<Vec<String>>,
    }
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| Error::content(what, error))?;
    let layers = raw.rootfs.diff_ids.unwrap_or_default();
    for layer in &layers {
        check_digest(what, layer)?;
    }
    Ok((raw.config.unwrap_or_default(), layers))
}

/// Digests become parts of paths: only well-formed ones may.
pub(super) fn check_digest<'a>(what: &str, digest: &'a str) -> Result<&'a str, Error> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .ok_or_else(|| Error::content(what, format!("\"{digest}\" is not a sha256 digest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variant(os: &str, architecture: &str) -> Descriptor {
        Descriptor {
            digest: format!("{os}-{architecture}"),
            platform: Some(Platform {
                os: os.into(),
                architecture: architecture.into(),
            }),
            ..Descriptor::default()
        }
    }

    #[test]
    fn the_variant_of_this_machine_is_chosen() {
        let own = variant("linux", architecture());
        let others = [variant("windows", architecture()), variant("linux", "z80")];
        let all = [others.to_vec(), vec![own.clone()]].concat();
        assert_eq!(choose("x", &all).unwrap(), &own);
        let error = choose("x", &others).unwrap_err().to_string();
        assert!(error.contains("it has windows/"), "{error}");
    }

    #[test]
    fn digests_that_could_lead_elsewhere_are_refused() {
        assert!(check_digest("x", "sha256:../../etc").is_err());
        assert!(configuration("x", br#"{"rootfs":{"diff_ids":["sha256:.."]}}"#).is_err());
    }

    #[test]
    fn documents_without_content_are_refused() {
        assert!(Document::parse("x", b"{}").is_err());
        assert!(Document::parse("x", b"[]").is_err());
    }
}
