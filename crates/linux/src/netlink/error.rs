//! What can go wrong on a netlink socket.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// The kernel's "no" to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number the kernel gave.
    pub errno: Errno,
    /// The kernel's own words, when it gave some (`NLMSGERR_ATTR_MSG`).
    pub text: Option<String>,
    /// Where in the request the offending attribute starts, in bytes
    /// (`NLMSGERR_ATTR_OFFS`).
    pub offset: Option<u32>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = io::Error::from(self.errno);
        match &self.text {
            Some(text) => write!(formatter, "{error}: {text}"),
            None => write!(formatter, "{error}"),
        }
    }
}

/// A failed netlink operation. Every variant says what was being done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened or configured.
    #[error("cannot open a netlink socket ({protocol}): {source}")]
    Open {
        /// Name of the netlink family.
        protocol: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {purpose}: {refusal}")]
    Refused {
        /// What the request was to do, as a verb phrase.
        purpose: String,
        /// The kernel's answer.
        refusal: Refusal,
    },
    /// Sending or receiving failed.
    #[error("cannot {purpose}: netlink socket: {source}")]
    Transport {
        /// What was being done, as a verb phrase.
        purpose: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel's answer could not be understood.
    #[error("cannot {purpose}: the kernel's answer is not understood: {reason}")]
    Malformed {
        /// What was being done, as a verb phrase.
        purpose: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A table changed during each of several attempts to list it.
    #[error("cannot {purpose}: the table changed during each of {attempts} attempts to list it")]
    Unsettled {
        /// What was being done, as a verb phrase.
        purpose: String,
        /// How many attempts were made.
        attempts: u32,
    },
    /// The kernel lacks a part that is needed.
    #[error(
        "cannot {purpose}: this kernel has no {feature}; load the module {module} \
         (`modprobe {module}`) or run a kernel that has it"
    )]
    Missing {
        /// What was being done, as a verb phrase.
        purpose: String,
        /// What is missing, in words.
        feature: String,
        /// The module that brings it.
        module: String,
    },
    /// An argument the kernel could not be asked with.
    #[error("cannot {purpose}: {reason}")]
    Argument {
        /// What was being done, as a verb phrase.
        purpose: String,
        /// What is wrong with the argument.
        reason: String,
    },
}

impl Error {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.errno),
            Self::Open { source, .. } | Self::Transport { source, .. } => {
                Errno::from_io_error(source)
            }
            Self::Malformed { .. }
            | Self::Unsettled { .. }
            | Self::Missing { .. }
            | Self::Argument { .. } => None,
        }
    }

    /// Whether the kernel refused because the object exists already.
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// Whether the kernel refused because the object is not there: the usual
    /// outcome of deleting something twice. Covers the error numbers the
    /// kernel uses for absent links (`ENODEV`), routes (`ESRCH`), neighbours
    /// (`ENOENT`) and addresses (`EADDRNOTAVAIL`).
    pub fn not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::NODEV | Errno::SRCH | Errno::NOENT | Errno::ADDRNOTAVAIL)
        )
    }

    /// Whether the kernel refused because IPv6 is switched off on the interface (its
    /// setting `disable_ipv6`).
    pub fn switched_off(&self) -> bool {
        self.errno() == Some(Errno::ACCESS)
    }

    /// Whether this kernel knows nothing of what was asked: it was built without, or
    /// the family is turned off.
    pub fn not_supported(&self) -> bool {
        matches!(self.errno(), Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT))
    }
}

/// `Ok` when the outcome of a deletion is that the object is gone, no matter
/// who removed it.
pub(crate) fn gone(outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(error) if error.not_found() => Ok(()),
        other => other,
    }
}
