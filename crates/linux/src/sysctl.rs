//! Settings under `/proc/sys/net` of the calling thread's network namespace.
//!
//! The kernel shows and changes those of the namespace the *opening* thread is
//! in: call these inside [`crate::namespace::NetworkNamespace::run`].
//!
//! Source: `Documentation/networking/ip-sysctl.rst`.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

/// A failed access to a setting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The setting's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be written.
    #[error("cannot write {value} to {path}: {source}")]
    Write {
        /// The setting's file.
        path: PathBuf,
        /// What was to be written.
        value: i64,
        /// Why.
        source: io::Error,
    },
    /// The file holds no number, or the name leaves /proc/sys/net.
    #[error("{path} is not a numeric network setting")]
    NotANumber {
        /// The setting's file.
        path: PathBuf,
    },
}

impl Error {
    /// Whether the kernel has no such setting (a family or module is missing,
    /// or the interface is gone).
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
            }
            Self::NotANumber { .. } => false,
        }
    }
}

/// An IP family, as the folder names of `/proc/sys/net` have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `net/ipv4`
    V4,
    /// `net/ipv6`
    V6,
}

impl Family {
    fn folder(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// A numeric setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    name: String,
}

/// As sysctl(8) writes it.
impl fmt::Display for Setting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "net.{}", self.name.replace('/', "."))
    }
}

impl Setting {
    /// A setting by its path below `/proc/sys/net`, for example
    /// `ipv4/ip_forward` or `bridge/bridge-nf-call-iptables`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// A setting of one interface (`net/FAMILY/conf/INTERFACE/LEAF`); `all`
    /// and `default` are accepted as interface.
    pub fn of_interface(family: Family, interface: &str, leaf: &str) -> Self {
        Self::new(format!("{}/conf/{interface}/{leaf}", family.folder()))
    }

    /// Whether packets of a family are forwarded between all interfaces.
    pub fn forwarding(family: Family) -> Self {
        match family {
            Family::V4 => Self::new("ipv4/ip_forward"),
            Family::V6 => Self::of_interface(Family::V6, "all", "forwarding"),
        }
    }

    fn path(&self) -> Result<PathBuf, Error> {
        let path = PathBuf::from(format!("/proc/sys/net/{}", self.name));
        let inside = self
            .name
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
        if inside {
            Ok(path)
        } else {
            Err(Error::NotANumber { path })
        }
    }

    /// Reads the setting.
    pub fn read(&self) -> Result<i64, Error> {
        let path = self.path()?;
        let text = fs::read_to_string(&path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        text.trim().parse().map_err(|_| Error::NotANumber { path })
    }

    /// Writes the setting. One that has the value already need not be writable
    /// (/proc/sys is read-only in many containers).
    pub fn write(&self, value: i64) -> Result<(), Error> {
        let path = self.path()?;
        match fs::write(&path, value.to_string()) {
            Err(_) if self.read()? == value => Ok(()),
            Err(source) => Err(Error::Write {
                path,
                value,
                source,
            }),
            Ok(()) => Ok(()),
        }
    }

    /// Like [`Self::write`]; `false` when the kernel has no such setting.
    pub fn write_if_present(&self, value: i64) -> Result<bool, Error> {
        match self.write(value) {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::NetworkNamespace;

    #[test]
    fn a_setting_belongs_to_the_namespace_it_is_written_in() {
        let one = NetworkNamespace::create().unwrap();
        let other = NetworkNamespace::create().unwrap();
        for family in [Family::V4, Family::V6] {
            let setting = Setting::forwarding(family);
            let before = other.run(|| setting.read()).unwrap().unwrap();
            one.run(|| setting.write(1 - before)).unwrap().unwrap();
            assert_eq!(one.run(|| setting.read()).unwrap().unwrap(), 1 - before);
            assert_eq!(other.run(|| setting.read()).unwrap().unwrap(), before);
        }
    }

    #[test]
    fn an_absent_setting_is_told_apart_and_a_name_cannot_leave_the_folder() {
        let absent = Setting::new("ipv4/there_is_no_such_thing");
        assert!(absent.read().unwrap_err().is_absent());
        assert!(!absent.write_if_present(1).unwrap());
        let outside = Setting::new("../kernel/pid_max");
        assert!(matches!(outside.read(), Err(Error::NotANumber { .. })));
    }
}
