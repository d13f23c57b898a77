//! Putting the plugin where a container runtime looks for it, and taking it
//! away: the binary, the config list, and the files for the node's link
//! managers. The presence of the config list tells the runtime that the node is
//! ready for pods, so it comes last and goes first.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::configuration::AttachMode;
use crate::unmanaged::DROP_INS;

/// The plugin's file name, and the `type` of its configurations.
pub const PLUGIN: &str = "podwire-cni";
/// Name of the config list. Runtimes take the first by name.
pub const CONFIG_LIST: &str = "10-podwire.conflist";

/// A failure to install or uninstall.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plugin to install cannot be found.
    #[error(
        "cannot find the CNI plugin: {}; put {PLUGIN} beside podwire, or name it", reason(.0, .1)
    )]
    NoPlugin(PathBuf, io::Error),
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another project's list would be used instead.
    #[error(
        "{} in {directory}: container runtimes take the first configuration by name, and so would \
         never use {CONFIG_LIST}; remove the others (or name them so that they sort after it)",
        names(.others)
    )]
    Foreign {
        /// The folder of configurations.
        directory: PathBuf,
        /// Those that sort first.
        others: Vec<PathBuf>,
    },
}

fn reason(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn names(others: &[PathBuf]) -> String {
    let names: Vec<_> = others
        .iter()
        .filter_map(|path| path.file_name())
        .map(|name| name.to_string_lossy())
        .collect();
    match names.as_slice() {
        [one] => format!("{one} sorts before {CONFIG_LIST}"),
        _ => format!("{} sort before {CONFIG_LIST}", names.join(", ")),
    }
}

/// What a config list says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigList {
    /// How pods are attached; the plugin's default when absent.
    pub attach: Option<AttachMode>,
    /// Whether routed pods ask for their gateway.
    pub proxy_arp: bool,
    /// Largest packet in bytes; the kernel's default when absent.
    pub mtu: Option<u32>,
    /// Where addresses come from, one range of each family. None: the node's
    /// own ranges, as the agent notes them.
    pub ranges: Vec<IpNet>,
}

impl ConfigList {
    /// The list as runtimes read it. In version 1.0.0, which all of them speak,
    /// and 1.1.0 for those that know how to choose.
    pub fn text(&self) -> String {
        let mut plugin = json!({
            "type": PLUGIN,
            "capabilities": {"bandwidth": true, "portMappings": true},
        });
        let mut set = |key: &str, value: Value| plugin[key] = value;
        if let Some(attach) = self.attach {
            set("attach", attach.as_str().into());
        }
        if self.proxy_arp {
            set("proxyArp", true.into());
        }
        if let Some(mtu) = self.mtu {
            set("mtu", mtu.into());
        }
        if !self.ranges.is_empty() {
            let ranges: Vec<_> = self
                .ranges
                .iter()
                .map(|range| json!([{"subnet": range}]))
                .collect();
            set("ipam", json!({"ranges": ranges}));
        }
        let list = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["1.0.0", "1.1.0"],
            "name": "podwire",
            "plugins": [plugin],
        });
        format!("{list:#}\n")
    }
}

/// Installs the plugin `source` in `directory`. Returns where, when it was not
/// there already. Nobody ever runs half of it, and a running one is replaced.
///
/// # Errors
/// What cannot be read or written.
pub fn plugin(source: &Path, directory: &Path) -> Result<Option<PathBuf>, Error> {
    let bytes = fs::read(source).map_err(|error| Error::NoPlugin(source.to_owned(), error))?;
    let target = directory.join(PLUGIN);
    Ok(write(&target, &bytes, 0o755)?.then_some(target))
}

/// The plugin beside this executable.
///
/// # Errors
/// When the executable's own path cannot be found out.
pub fn plugin_beside_this() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(|source| Error::Io {
        action: "find",
        path: "podwire's own executable".into(),
        source,
    })?;
    Ok(own.with_file_name(PLUGIN))
}

/// Writes the config list so that a reader sees the old one or the new one.
/// Returns where, when it was not there already.
///
/// # Errors
/// What cannot be written.
pub fn config_list(directory: &Path, text: &str) -> Result<Option<PathBuf>, Error> {
    let path = directory.join(CONFIG_LIST);
    Ok(write(&path, text.as_bytes(), 0o644)?.then_some(path))
}

/// Writes the files of the link managers that `etc` (a node's `/etc`) has
/// folders of. Returns those that were not there already.
///
/// # Errors
/// What cannot be written.
pub fn drop_ins(etc: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut written = Vec::new();
    for file in DROP_INS {
        if !etc.join(file.program).is_dir() {
            continue;
        }
        let path = file.below(etc);
        if write(&path, file.text.as_bytes(), 0o644)? {
            written.push(path);
        }
    }
    Ok(written)
}

/// Other configurations of the folder that come first by name, so that
/// runtimes would use them.
pub fn preferred_by_runtimes(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut others: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let is_list = path
                .extension()
                .is_some_and(|kind| kind == "conf" || kind == "conflist" || kind == "json");
            is_list && path.file_name().is_some_and(|name| name < CONFIG_LIST)
        })
        .collect();
    others.sort();
    others
}

/// Refuses a folder where another project's configuration sorts first.
///
/// # Errors
/// Names those that do.
pub fn refuse_foreign(directory: &Path) -> Result<(), Error> {
    let others = preferred_by_runtimes(directory);
    if others.is_empty() {
        return Ok(());
    }
    Err(Error::Foreign {
        directory: directory.to_owned(),
        others,
    })
}

/// Removes a file of podwire's; `false` when it was not there.
fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Removes the config list. Returns where it was, if it was there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_config_list(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let path = directory.join(CONFIG_LIST);
    Ok(remove(&path)?.then_some(path))
}

/// Removes the plugin. Returns where it was, if it was there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_plugin(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let path = directory.join(PLUGIN);
    Ok(remove(&path)?.then_some(path))
}

/// Removes the files for the link managers. Returns where they were.
///
/// # Errors
/// When one cannot be removed.
pub fn remove_drop_ins(etc: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut removed = Vec::new();
    for file in DROP_INS {
        let path = file.below(etc);
        if remove(&path)? {
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Writes a whole file aside and renames it into place; `false` when it was
/// the same already. Its folder is made.
fn write(target: &Path, bytes: &[u8], mode: u32) -> Result<bool, Error> {
    if fs::read(target).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    };
    let (directory, name) = match (target.parent(), target.file_name()) {
        (Some(directory), Some(name)) => (directory, name.to_string_lossy()),
        _ => return Err(failed("write", target)(io::ErrorKind::IsADirectory.into())),
    };
    fs::create_dir_all(directory).map_err(failed("make the folder", directory))?;
    // Runtimes look at names that end in .conf, .conflist and .json only. Each
    // process has its own, so that two at once do not mix.
    let aside = directory.join(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        // What a dead process of this number left there.
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&aside)?;
        file.write_all(bytes)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&aside, target)
    })();
    if written.is_err() {
        // Half a file is of no use.
        let _ = fs::remove_file(&aside);
    }
    written.map_err(failed("write", target))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_plugin_is_copied_once_and_again_when_it_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let (source, bin) = (directory.path().join("new"), directory.path().join("bin"));
        fs::write(&source, "one").unwrap();
        assert_eq!(plugin(&source, &bin).unwrap(), Some(bin.join(PLUGIN)));
        assert_eq!(plugin(&source, &bin).unwrap(), None);
        let mode = fs::metadata(bin.join(PLUGIN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        fs::write(&source, "two").unwrap();
        assert!(plugin(&source, &bin).unwrap().is_some());
        assert_eq!(fs::read_to_string(bin.join(PLUGIN)).unwrap(), "two");
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 1);
        assert_eq!(remove_plugin(&bin).unwrap(), Some(bin.join(PLUGIN)));
        assert_eq!(remove_plugin(&bin).unwrap(), None);
    }

    #[test]
    fn a_plugin_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join(PLUGIN);
        let error = plugin(&source, directory.path()).unwrap_err().to_string();
        assert!(error.contains(&*source.to_string_lossy()), "{error}");
    }

    #[test]
    fn the_list_has_the_agreed_form() {
        let list = ConfigList {
            attach: Some(AttachMode::Bridge),
            proxy_arp: false,
            mtu: Some(1450),
            ranges: vec![
                "10.200.1.0/24".parse().unwrap(),
                "fd00:200:0:1::/64".parse().unwrap(),
            ],
        };
        let value: Value = serde_json::from_str(&list.text()).unwrap();
        assert_eq!(
            value,
            json!({
                "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "podwire",
                "plugins": [{
                    "type": "podwire-cni",
                    "capabilities": {"bandwidth": true, "portMappings": true},
                    "attach": "bridge", "mtu": 1450,
                    "ipam": {"ranges": [[{"subnet": "10.200.1.0/24"}], [{"subnet": "fd00:200:0:1::/64"}]]},
                }],
            })
        );
        let value: Value = serde_json::from_str(&ConfigList::default().text()).unwrap();
        assert_eq!(
            value["plugins"],
            json!([{"type": "podwire-cni", "capabilities": {"bandwidth": true, "portMappings": true}}])
        );
    }

    #[test]
    fn the_same_list_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("etc/cni/net.d");
        assert!(config_list(&below, "one").unwrap().is_some());
        let modified = || {
            fs::metadata(below.join(CONFIG_LIST))
                .unwrap()
                .modified()
                .unwrap()
        };
        let first = modified();
        assert!(config_list(&below, "one").unwrap().is_none());
        assert_eq!(modified(), first);
        assert!(config_list(&below, "two").unwrap().is_some());
        assert_eq!(fs::read_to_string(below.join(CONFIG_LIST)).unwrap(), "two");
        assert_eq!(
            fs::read_dir(&below).unwrap().count(),
            1,
            "nothing temporary is left"
        );
        assert!(remove_config_list(&below).unwrap().is_some());
        assert!(remove_config_list(&below).unwrap().is_none());
    }

    #[test]
    fn lists_that_come_first_are_named() {
        let directory = tempfile::tempdir().unwrap();
        refuse_foreign(directory.path()).unwrap();
        refuse_foreign(&directory.path().join("none")).unwrap();
        for name in [
            "05-x.conf",
            "00-other.conflist",
            CONFIG_LIST,
            "99-y.conf",
            "README",
        ] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let error = refuse_foreign(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("00-other.conflist, 05-x.conf sort before"),
            "{error}"
        );
    }

    #[test]
    fn link_managers_that_are_there_are_told() {
        let etc = tempfile::tempdir().unwrap();
        assert_eq!(drop_ins(etc.path()).unwrap(), Vec::<PathBuf>::new());
        fs::create_dir(etc.path().join("NetworkManager")).unwrap();
        assert_eq!(drop_ins(etc.path()).unwrap().len(), 1);
        fs::create_dir(etc.path().join("systemd")).unwrap();
        assert_eq!(drop_ins(etc.path()).unwrap().len(), 3);
        assert_eq!(drop_ins(etc.path()).unwrap().len(), 0);
        assert_eq!(remove_drop_ins(etc.path()).unwrap().len(), 4);
        assert_eq!(remove_drop_ins(etc.path()).unwrap().len(), 0);
    }
}
