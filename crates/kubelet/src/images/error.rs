use std::io;
use std::path::PathBuf;

/// Why an image can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is not one of an image.
    #[error("couldn't parse image name \"{name}\": {reason}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not in the store and may not be pulled.
    #[error("image \"{0}\" is not in the store and may not be pulled (imagePullPolicy: Never)")]
    Absent(String),
    /// The store's disk refused.
    #[error("{action} {}: {source}", path.display())]
    Disk {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The content is not what the formats of images say.
    #[error("{what}: {reason}")]
    Content {
        /// The file, blob or layer.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry can't be reached or refused.
    #[error("{action}: {reason}")]
    Registry {
        /// What was asked of which registry.
        action: String,
        /// The answer.
        reason: String,
        /// Whether the image or the rights are missing, so that only the user
        /// can help.
        denied: bool,
    },
    /// The network from which images are pulled can't be used.
    #[error("using the network from which images are pulled (--image-network): {0}")]
    Network(String),
    /// The image has no variant for this machine.
    #[error("image \"{name}\" has no variant for {platform}; it has {offered}")]
    Platform {
        /// The image.
        name: String,
        /// What this machine is.
        platform: String,
        /// What there is.
        offered: String,
    },
}

impl Error {
    pub(crate) fn disk(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk {
            action,
            path,
            source,
        }
    }

    pub(crate) fn content(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Content {
            what: what.into(),
            reason: reason.to_string(),
        }
    }
}
