//! Errors and their codes, in one place.

use ipam::ranges::RangeError;
use serde_json::{Value, json};

use crate::version::Version;

/// A failed operation, as told to the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for a version this plugin does not speak.
    #[error(
        "CNI version {0:?} is not supported; supported are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0"
    )]
    Version(String),
    /// The configuration's version does not have the operation.
    #[error(
        "CNI version {version} of the network configuration does not have {command}, which came with {since}"
    )]
    Command {
        /// The operation.
        command: &'static str,
        /// The configuration's version.
        version: Version,
        /// The first version that has it.
        since: Version,
    },
    /// A key of the configuration has a value this plugin cannot serve.
    #[error("unsupported value of {key} in the network configuration: {value}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value, and what would do.
        value: String,
    },
    /// The container is not known, so that there is nothing to clean up.
    #[error("container {container} has no interface {interface} of this network")]
    UnknownContainer {
        /// The container's id.
        container: String,
        /// The interface's name.
        interface: String,
    },
    /// An environment variable is missing or wrong.
    #[error("environment variable {name}: {reason}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading or writing failed.
    #[error("{0}")]
    Io(String),
    /// The configuration is not the JSON that is expected.
    #[error("cannot read the network configuration: {0}")]
    Decode(String),
    /// The configuration is understood, and wrong.
    #[error("invalid network configuration: {0}")]
    Configuration(String),
    /// All addresses are in use; one may come free.
    #[error("{0}")]
    Full(String),
    /// What is needed is not there yet.
    #[error("{0}; trying again later helps")]
    TryAgain(String),
    /// ADD cannot be served now.
    #[error("{0}")]
    NotAvailable(String),
    /// ADD cannot be served now, and pods that are attached suffer too.
    #[error("{0}")]
    Degraded(String),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] linux::netlink::Error),
    /// A namespace could not be used.
    #[error(transparent)]
    Namespace(#[from] linux::namespace::Error),
    /// A kernel setting could not be changed.
    #[error(transparent)]
    Setting(#[from] linux::sysctl::Error),
    /// A port of the node is another pod's.
    #[error("{0}")]
    HostPort(String),
    /// The packet filter refused.
    #[error(transparent)]
    Rules(#[from] linux::nftables::Error),
    /// Connections could not be looked at.
    #[error(transparent)]
    Connections(#[from] linux::conntrack::Error),
    /// What CHECK found to be different from what ADD made.
    #[error("{0}")]
    Mismatch(String),
}

impl Error {
    /// The code of the CNI specification ("Error", well-known codes), 100 and
    /// above for podwire's own.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) | Self::Command { .. } => 1,
            Self::Unsupported { .. } => 2,
            Self::UnknownContainer { .. } => 3,
            Self::Environment { .. } => 4,
            Self::Io(_) => 5,
            Self::Decode(_) => 6,
            Self::Configuration(_) => 7,
            Self::Full(_) | Self::TryAgain(_) => 11,
            Self::NotAvailable(_) => 50,
            Self::Degraded(_) => 51,
            Self::Kernel(_) => 100,
            Self::Namespace(_) => 101,
            Self::Setting(_) => 102,
            Self::Mismatch(_) => 103,
            Self::HostPort(_) => 104,
            Self::Rules(_) | Self::Connections(_) => 105,
        }
    }

    /// The error as the specification wants it on stdout. `version` is the
    /// configuration's, as far as it was understood.
    pub fn to_json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code(),
            "msg": self.to_string(),
        })
    }
}

impl From<ipam::Error> for Error {
    fn from(error: ipam::Error) -> Self {
        match &error {
            ipam::Error::Full { .. } => Self::Full(error.to_string()),
            ipam::Error::NetworkName(_) | ipam::Error::NotInRanges(_) => {
                Self::Configuration(error.to_string())
            }
            ipam::Error::Io { .. } | ipam::Error::Taken { .. } => Self::Io(error.to_string()),
        }
    }
}

impl From<RangeError> for Error {
    fn from(error: RangeError) -> Self {
        Self::Configuration(format!("ipam.ranges: {error}"))
    }
}
