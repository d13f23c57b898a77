//! Settings under `/proc/sys/net` of the calling thread's network namespace.
//!
//! The kernel shows and changes those of the namespace the *opening* thread is
//! in: call these inside [`crate::namespace::NetworkNamespace::run`].
//!
//! Source: `Documentation/networking/ip-sysctl.rst`.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// Longest number a setting holds, in bytes, with room to spare.
const LONGEST: usize = 64;

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
        let mut text = [0; LONGEST];
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let read = rustix::fs::openat(CWD, &path, flags, Mode::empty())
            .and_then(|file| rustix::io::read(&file, &mut text));
        let length = read.map_err(|errno| Error::Read {
            path: path.clone(),
            source: errno.into(),
        })?;
        std::str::from_utf8(&text[..length])
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or(Error::NotANumber { path })
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

/// The settings of the interfaces of a family, for changing several of them: the
/// way to them is walked once, which takes the kernel longer the more network
/// namespaces there are.
#[derive(Debug)]
pub struct InterfaceSettings {
    family: Family,
    folder: OwnedFd,
}

impl InterfaceSettings {
    /// Finds them; `None` when the kernel does not have the family.
    ///
    /// # Errors
    /// When they are there and cannot be opened.
    pub fn open(family: Family) -> Result<Option<Self>, Error> {
        let path = Setting::new(format!("{}/conf", family.folder())).path()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(folder) => Ok(Some(Self { family, folder })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::Read {
                path,
                source: errno.into(),
            }),
        }
    }

    /// As [`Setting::write_if_present`], of an interface or of `all` or `default`.
    ///
    /// # Errors
    /// When the setting is there, has another value and cannot be written.
    pub fn write_if_present(&self, interface: &str, leaf: &str, value: i64) -> Result<bool, Error> {
        let setting = Setting::of_interface(self.family, interface, leaf);
        // Checks the names.
        setting.path()?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let path = format!("{interface}/{leaf}");
        let written = rustix::fs::openat(&self.folder, path, flags, Mode::empty())
            .and_then(|file| rustix::io::write(&file, value.to_string().as_bytes()));
        match written {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            // Says what is wrong, unless the value is what it should be.
            Err(_) => setting.write_if_present(value),
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
    fn settings_of_interfaces_are_found_once_and_written_by_name() {
        let namespace = NetworkNamespace::create().unwrap();
        namespace
            .run(|| {
                for family in [Family::V4, Family::V6] {
                    let settings = InterfaceSettings::open(family).unwrap().unwrap();
                    let leaf = "accept_redirects";
                    for interface in ["lo", "all"] {
                        let setting = Setting::of_interface(family, interface, leaf);
                        for value in [0, 1, 0] {
                            assert!(settings.write_if_present(interface, leaf, value).unwrap());
                            assert_eq!(setting.read().unwrap(), value);
                        }
                    }
                    assert!(!settings.write_if_present("lo", "none", 0).unwrap());
                    assert!(!settings.write_if_present("none0", leaf, 0).unwrap());
                    assert!(settings.write_if_present("..", leaf, 0).is_err());
                }
            })
            .unwrap();
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
