//! Reservations on disk.
//!
//! Below the root (`/run/podwire/ipam`) each network has a directory:
//!
//! | file | what |
//! | --- | --- |
//! | `ADDRESS.json` | one per address handed out: who holds it |
//! | `attachments/KEY.json` | the same file (a hard link), found by container and interface |
//! | `releasing/KEY.INODE.json` | the attachment's file once it was detached, while the slow removal of its interface goes on; its addresses are still held, and the attachment may reserve others |
//! | `released` | addresses that were given back, oldest first |
//! | `lock` | locked while anything of the network changes; in it, of each family the last address that was given for the first time |
//!
//! While an address is reserved that no two networks may give, the root itself is locked.
//!
//! Who reserves holds the file of the attachment locked until the [`Lease`] is
//! dropped: a reservation that nobody uses yet and whose file nobody holds is
//! one whose maker died.
//!
//! Every change is made under the lock, which the kernel releases when its
//! holder dies, and in an order that leaves something a later call can finish
//! or undo at every step: the attachment is written first and removed last.
//! Files appear whole or not at all (written aside, then renamed or linked).

mod error;
mod files;
mod list;
mod memory;
mod record;
mod release;
mod reserve;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use files::{entries, inode, names};

pub use error::Error;
pub use record::{Attachment, Claim, Entry, Pod, Releasing, Reservation, Reserved};
pub use reserve::{Hold, Lease};

/// Where reservations are kept: gone with the boot, since a reservation must
/// not outlive the interfaces it was made for.
pub const DEFAULT_ROOT: &str = "/run/podwire/ipam";

/// Suffix of the files.
const SUFFIX: &str = ".json";
/// Folder of the attachments' files.
const ATTACHMENTS: &str = "attachments";
/// Folder of the files of attachments whose interfaces are being removed.
const RELEASING: &str = "releasing";

fn valid_network(name: &str) -> bool {
    let first = name.chars().next();
    first.is_some_and(|first| first.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && name.len() <= 200
}

/// The reservations of one network.
#[derive(Debug)]
pub struct Store {
    network: String,
    root: PathBuf,
    directory: PathBuf,
}

/// The lock, held until it is dropped or its process dies.
struct Locked {
    file: File,
    /// What keeps other networks from reserving.
    _among_all: Option<File>,
}

impl Store {
    /// The store of `network` below `root`; its folder is made by the first
    /// reservation.
    pub fn new(root: &Path, network: &str) -> Result<Self, Error> {
        if !valid_network(network) {
            return Err(Error::NetworkName(network.to_owned()));
        }
        Ok(Self {
            network: network.to_owned(),
            root: root.to_owned(),
            directory: root.join(network),
        })
    }

    /// The stores of all networks below `root`, by name.
    ///
    /// # Errors
    /// When the folder is there and cannot be listed.
    pub fn all(root: &Path) -> Result<Vec<Self>, Error> {
        let mut stores: Vec<_> = entries(root)?
            .into_iter()
            .filter(|(path, _)| path.is_dir())
            .filter_map(|(_, name)| Self::new(root, &name).ok())
            .collect();
        stores.sort_by(|one, other| one.network.cmp(&other.network));
        Ok(stores)
    }

    /// The network's name.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The other networks whose addresses may not be given here too.
    fn others(&self, apart: bool) -> Result<Vec<Self>, Error> {
        let mut others = if apart {
            Vec::new()
        } else {
            Self::all(&self.root)?
        };
        others.retain(|other| other.network != self.network);
        Ok(others)
    }

    fn lock(&self) -> Result<Locked, Error> {
        self.lock_file(true)
    }

    /// Takes the lock, and before it the one by which networks reserve one after
    /// another.
    fn lock_among_all(&self) -> Result<Locked, Error> {
        let failed = |source| Error::Io {
            action: "lock",
            path: self.root.clone(),
            source,
        };
        let among_all = File::open(&self.root).map_err(failed)?;
        among_all.lock().map_err(failed)?;
        Ok(Locked {
            _among_all: Some(among_all),
            ..self.lock()?
        })
    }

    /// `None` when nothing was ever reserved in the network: whoever reserves
    /// has made the lock's file before. It is not made here, so that a full disk
    /// keeps nobody from giving back what there is.
    fn lock_if_present(&self) -> Result<Option<Locked>, Error> {
        match self.lock_file(false) {
            Ok(lock) => Ok(Some(lock)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // Somebody may have removed it.
                if entries(&self.directory.join(ATTACHMENTS))?.is_empty() {
                    return Ok(None);
                }
                self.lock().map(Some)
            }
            Err(error) => Err(error),
        }
    }

    fn lock_file(&self, create: bool) -> Result<Locked, Error> {
        let path = self.directory.join("lock");
        let failed = |source| Error::Io {
            action: "lock",
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(create)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(Locked {
            file,
            _among_all: None,
        })
    }

    fn attachment_file(&self, attachment: &Attachment) -> PathBuf {
        self.directory
            .join(ATTACHMENTS)
            .join(format!("{}{SUFFIX}", attachment.key()))
    }

    fn address_file(&self, address: IpAddr) -> PathBuf {
        self.directory.join(format!("{address}{SUFFIX}"))
    }

    /// Addresses with a file.
    fn held(&self) -> Result<HashSet<IpAddr>, Error> {
        Ok(names(&self.directory)?
            .iter()
            .filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok())
            .collect())
    }

    /// Whether all addresses of a reservation have their file, and not one of
    /// another attachment.
    fn is_complete(&self, reservation: &Reservation, file: &Path) -> Result<bool, Error> {
        let Some(own) = inode(file)? else {
            return Ok(false);
        };
        for address in &reservation.addresses {
            if inode(&self.address_file(*address))? != Some(own) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes a file aside and renames it into place, and gives it, locked. The
    /// store's lock is held, so one name for the file aside is enough, and what
    /// a dead process left there is overwritten.
    fn write_whole(&self, file: &Path, text: &[u8]) -> Result<File, Error> {
        let aside = self.directory.join("new");
        let failed = |source| Error::Io {
            action: "write",
            path: file.to_owned(),
            source,
        };
        let create = || {
            OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o644)
                .open(&aside)
        };
        let mut out = match create() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Never opened in place: a link of it might be a reservation by now.
                fs::remove_file(&aside).and_then(|()| create())
            }
            other => other,
        }
        .map_err(failed)?;
        let written = out
            .lock()
            .and_then(|()| out.write_all(text))
            .and_then(|()| fs::rename(&aside, file));
        if let Err(error) = written {
            // Half a file on a full disk is room that others need.
            let _ = fs::remove_file(&aside);
            return Err(failed(error));
        }
        Ok(out)
    }
}
