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
//! Who reserves holds the file of the attachment locked until the [`Lease`] is
//! dropped: a reservation that nobody uses yet and whose file nobody holds is
//! one whose maker died.
//!
//! Every change is made under the lock, which the kernel releases when its
//! holder dies, and in an order that leaves something a later call can finish
//! or undo at every step: the attachment is written first and removed last.
//! Files appear whole or not at all (written aside, then renamed or linked).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ranges::RangeSet;

/// Where reservations are kept: gone with the boot, since a reservation must
/// not outlive the interfaces it was made for.
pub const DEFAULT_ROOT: &str = "/run/podwire/ipam";

/// Addresses remembered as given back. Ranges with fewer addresses are
/// remembered whole; larger ones take fresh addresses first anyway.
const REMEMBERED: usize = 1024;
/// Bytes of the note in the lock's file, and how many sets it is of at most:
/// longer addresses do not exist.
const FRESH_BYTES: usize = 512;
const FRESH_SETS: usize = 8;
/// Holders named in the error of a full pool.
const NAMED_HOLDERS: usize = 10;
/// Suffix of the files.
const SUFFIX: &str = ".json";
/// Folder of the attachments' files.
const ATTACHMENTS: &str = "attachments";
/// Folder of the files of attachments whose interfaces are being removed.
const RELEASING: &str = "releasing";

/// A failure to reserve, release or list.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The network's name cannot be a folder's name.
    #[error(
        "{0:?} is no network name: use letters, digits, '.', '_' and '-', starting with a letter or digit"
    )]
    NetworkName(String),
    /// Every address of a set is held.
    #[error("no free address in {ranges}: {}", holders(.held))]
    Full {
        /// The set in words.
        ranges: String,
        /// Who holds its addresses.
        held: Vec<Reservation>,
    },
    /// An address that was asked for is held by another.
    #[error("address {address} is held by {holder}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: String,
    },
    /// An address that was asked for may not be handed out.
    #[error(
        "address {0} cannot be given: it is in none of the network's ranges, or is a gateway, network or broadcast address or excluded"
    )]
    NotInRanges(IpAddr),
}

fn holders(held: &[Reservation]) -> String {
    let mut text = format!("{} held", held.len());
    for (at, reservation) in held.iter().take(NAMED_HOLDERS).enumerate() {
        text.push_str(if at == 0 { ", by " } else { ", " });
        text.push_str(&reservation.to_string());
    }
    if held.len() > NAMED_HOLDERS {
        text.push_str(&format!(" and {} more", held.len() - NAMED_HOLDERS));
    }
    text
}

/// What an address is reserved for: one interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The container (a pod's sandbox), as the runtime names it.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name inside.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl Attachment {
    /// A container's interface.
    pub fn new(container_id: impl Into<String>, interface: impl Into<String>) -> Self {
        Self {
            container_id: container_id.into(),
            interface: interface.into(),
        }
    }

    /// 32 hexadecimal digits made of both names, whatever characters those hold.
    pub fn key(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.interface.as_bytes());
        hash.update([0]);
        hash.update(self.container_id.as_bytes());
        hash.finalize()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// The pod an address belongs to, for those who read the files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its unique id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Addresses held by an attachment: what a file contains.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    /// Who holds them.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Of which pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The addresses, one of each set of ranges, in the sets' order.
    pub addresses: Vec<IpAddr>,
    /// A note of the reserver's own: what it will need to undo its work.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub notes: HashMap<String, String>,
}

impl fmt::Display for Reservation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
        match &self.pod {
            Some(pod) => write!(formatter, "{}/{}", pod.namespace, pod.name)?,
            None => write!(formatter, "container {}", self.attachment.container_id)?,
        }
        write!(
            formatter,
            " ({} {})",
            self.attachment.interface,
            addresses.join(" ")
        )
    }
}

/// A reservation whose attachment is gone and whose addresses rest until what
/// used them is gone too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Releasing {
    file: PathBuf,
    /// What it was; `None` when its file is damaged.
    pub reservation: Option<Reservation>,
}

/// A wish for addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// For whom.
    pub attachment: Attachment,
    /// Of which pod.
    pub pod: Option<Pod>,
    /// Particular addresses, at most one of each set; any others are chosen.
    pub wanted: Vec<IpAddr>,
    /// See [`Reservation::notes`].
    pub notes: HashMap<String, String>,
}

/// One address given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The address with its subnet's prefix length.
    pub address: IpNet,
    /// The subnet's gateway.
    pub gateway: IpAddr,
}

/// The addresses of a reservation, by who made it. Until it is dropped (or its
/// process dies) the reservation counts as one that is being put to use, which
/// nobody takes for a leak.
#[derive(Debug)]
pub struct Lease {
    addresses: Vec<Reserved>,
    _hold: Hold,
}

impl Deref for Lease {
    type Target = [Reserved];

    fn deref(&self) -> &[Reserved] {
        &self.addresses
    }
}

/// A reservation that nobody else can hold at the same time. Its end gives it
/// free, and does not release the addresses.
#[derive(Debug)]
pub struct Hold {
    _file: File,
}

/// A reservation as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was reserved, and for whom.
    pub reservation: Reservation,
    /// When.
    pub since: SystemTime,
}

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
    directory: PathBuf,
}

/// The lock, held until it is dropped or its process dies.
struct Locked {
    file: File,
}

/// Which addresses were in use before: hints, whose loss or damage means nothing
/// worse than an address used again a little early, or found a little late.
struct Memory<'a> {
    lock: &'a Locked,
    /// Of each set the last address that was given for the first time.
    fresh: Vec<IpAddr>,
    /// Whether that changed.
    changed: bool,
    /// The file `released`: addresses given back, oldest first, one a line.
    released: String,
}

impl<'a> Memory<'a> {
    fn of(store: &Store, lock: &'a Locked) -> Self {
        let mut text = [0; FRESH_BYTES];
        let length = lock.file.read_at(&mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..length]);
        Self {
            lock,
            // What follows fills the note up.
            fresh: text
                .trim_end()
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect(),
            changed: false,
            released: store.released_text(),
        }
    }

    fn last_fresh(&self, set: &RangeSet) -> Option<IpAddr> {
        self.fresh.iter().copied().find(|a| set.contains(*a))
    }

    fn set_fresh(&mut self, set: &RangeSet, address: IpAddr) {
        self.fresh.retain(|earlier| !set.contains(*earlier));
        self.fresh.push(address);
        self.changed = true;
    }

    fn is_resting(&self, address: IpAddr) -> bool {
        let text = address.to_string();
        self.released.lines().any(|line| line == text)
    }

    fn resting(&self) -> impl Iterator<Item = IpAddr> {
        self.released.lines().filter_map(|line| line.parse().ok())
    }

    /// Remembers what was given for the first time, by one write.
    fn save(&self) {
        if !self.changed {
            return;
        }
        let newest = self.fresh.iter().rev().take(FRESH_SETS);
        let mut text: String = newest.map(|address| format!("{address}\n")).collect();
        // Over all that was there before.
        text.extend(std::iter::repeat_n(
            '\n',
            FRESH_BYTES.saturating_sub(text.len()),
        ));
        let _ = self.lock.file.write_all_at(text.as_bytes(), 0);
    }
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

    /// Reserves one address of each of `sets` for the claim's attachment. An
    /// attachment that holds addresses of all sets already keeps them. Nothing
    /// is reserved when it fails. Waits while another holds the attachment's
    /// reservation.
    pub fn reserve(&self, claim: &Claim, sets: &[RangeSet]) -> Result<Lease, Error> {
        // Both now: on a disk that is full by then, giving back takes no room.
        for folder in [ATTACHMENTS, RELEASING] {
            let folder = self.directory.join(folder);
            if folder.is_dir() {
                continue;
            }
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&folder)
                .map_err(|source| Error::Io {
                    action: "make the folder",
                    path: folder,
                    source,
                })?;
        }
        let file = self.attachment_file(&claim.attachment);
        let (lock, hold) = self.lock_and_hold(&file)?;
        if let Some(hold) = hold {
            let found = read(&file)?;
            if let Some(found) = &found
                && self.is_complete(found, &file)?
                && let Some(addresses) = describe(&found.addresses, sets)
                && claim.wanted.iter().all(|a| found.addresses.contains(a))
            {
                return Ok(Lease {
                    addresses,
                    _hold: hold,
                });
            }
            // Half made by one that died, or of an earlier configuration.
            self.remove(&file, found.as_ref())?;
        }

        let mut memory = Memory::of(self, &lock);
        let mut addresses = Vec::with_capacity(sets.len());
        for set in sets {
            addresses.push(self.choose(set, &claim.wanted, &mut memory)?);
        }
        if let Some(stray) = claim.wanted.iter().find(|a| !addresses.contains(a)) {
            return Err(Error::NotInRanges(*stray));
        }
        let reservation = Reservation {
            attachment: claim.attachment.clone(),
            pod: claim.pod.clone(),
            addresses,
            notes: claim.notes.clone(),
        };
        let hold = self.write(&reservation, &file, &memory)?;
        drop(lock);
        Ok(Lease {
            addresses: describe(&reservation.addresses, sets)
                .expect("the addresses were chosen from these sets a moment ago"),
            _hold: hold,
        })
    }

    /// Takes the lock when nobody holds the reservation in `file`, and holds
    /// that reservation if there is one.
    fn lock_and_hold(&self, file: &Path) -> Result<(Locked, Option<Hold>), Error> {
        loop {
            let lock = self.lock()?;
            let Some(held) = open(file)? else {
                return Ok((lock, None));
            };
            match held.try_lock() {
                Ok(()) => return Ok((lock, Some(Hold { _file: held }))),
                // Waited for without the lock, which the holder may need.
                Err(TryLockError::WouldBlock) => {
                    drop(lock);
                    held.lock()
                }
                Err(TryLockError::Error(source)) => Err(source),
            }
            .map_err(|source| Error::Io {
                action: "hold",
                path: file.to_owned(),
                source,
            })?;
        }
    }

    /// Holds an attachment's reservation; `None` when there is none or another
    /// holds it: it is being put to use.
    pub fn try_hold(&self, attachment: &Attachment) -> Result<Option<Hold>, Error> {
        let path = self.attachment_file(attachment);
        let Some(file) = open(&path)? else {
            return Ok(None);
        };
        match file.try_lock() {
            // What was opened may be an earlier reservation's file.
            Ok(()) if inode(&path)? == Some(inode_of(&file, &path)?) => {
                Ok(Some(Hold { _file: file }))
            }
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(Error::Io {
                action: "hold",
                path,
                source,
            }),
        }
    }

    /// Chooses an address. What it costs does not depend on how many are held:
    /// files are looked for one by one, of addresses that are likely to be free.
    fn choose(
        &self,
        set: &RangeSet,
        wanted: &[IpAddr],
        memory: &mut Memory<'_>,
    ) -> Result<IpAddr, Error> {
        if let Some(wanted) = wanted.iter().find(|address| set.contains(**address)) {
            if !set.allows(*wanted) {
                return Err(Error::NotInRanges(*wanted));
            }
            if self.is_held(*wanted)? {
                let holder = read(&self.address_file(*wanted))?;
                return Err(Error::Taken {
                    address: *wanted,
                    holder: holder.map_or_else(|| "somebody".to_owned(), |r| r.to_string()),
                });
            }
            return Ok(*wanted);
        }
        let last = memory.last_fresh(set);
        for address in set.addresses_after(last) {
            // One that was asked for may have been in use before its turn.
            if !memory.is_resting(address) && !self.is_held(address)? {
                memory.set_fresh(set, address);
                return Ok(address);
            }
        }
        // All were in use once: the one that has rested longest.
        for address in memory.resting() {
            if set.allows(address) && !self.is_held(address)? {
                return Ok(address);
            }
        }
        // Not remembered as given back.
        for address in set.addresses() {
            if !self.is_held(address)? {
                return Ok(address);
            }
        }
        Err(self.full(set))
    }

    fn is_held(&self, address: IpAddr) -> Result<bool, Error> {
        Ok(inode(&self.address_file(address))?.is_some())
    }

    fn full(&self, set: &RangeSet) -> Error {
        let retired = self.releasing().unwrap_or_default();
        Error::Full {
            ranges: set.describe(),
            held: self
                .list()
                .unwrap_or_default()
                .into_iter()
                .chain(retired.into_iter().filter_map(|r| r.reservation))
                .filter(|r| r.addresses.iter().any(|a| set.contains(*a)))
                .collect(),
        }
    }

    /// Gives back what an attachment holds, and returns it. Fine when it holds
    /// nothing.
    pub fn release(&self, attachment: &Attachment) -> Result<Option<Reservation>, Error> {
        let Some(_lock) = self.lock_if_present()? else {
            return Ok(None);
        };
        let file = self.attachment_file(attachment);
        let found = read(&file)?;
        self.remove(&file, found.as_ref())?;
        Ok(found)
    }

    /// Ends an attachment's reservation without giving its addresses back yet:
    /// they stay held until [`Self::free`], and the attachment can reserve
    /// others at once. Returns what it held. Fine when it holds nothing.
    pub fn retire(&self, attachment: &Attachment) -> Result<Option<Reservation>, Error> {
        let Some(_lock) = self.lock_if_present()? else {
            return Ok(None);
        };
        let file = self.attachment_file(attachment);
        let (Some(found), Some(own)) = (read(&file)?, inode(&file)?) else {
            // Damaged: nothing says what to wait for.
            self.remove(&file, None)?;
            return Ok(None);
        };
        let folder = self.directory.join(RELEASING);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Io {
                    action: "make the folder",
                    path: folder,
                    source: error,
                });
            }
            _ => {}
        }
        // The inode's number is no other file's as long as this one exists.
        let aside = folder.join(format!("{}.{own}{SUFFIX}", attachment.key()));
        fs::rename(&file, &aside).map_err(|source| Error::Io {
            action: "set aside",
            path: file,
            source,
        })?;
        Ok(Some(found))
    }

    /// What was retired and not freed yet, in no order.
    pub fn releasing(&self) -> Result<Vec<Releasing>, Error> {
        let mut found = Vec::new();
        for (file, _) in entries(&self.directory.join(RELEASING))? {
            let reservation = read(&file)?;
            found.push(Releasing { file, reservation });
        }
        Ok(found)
    }

    /// Whether something was retired and not freed yet, without reading what.
    pub fn is_releasing(&self) -> Result<bool, Error> {
        Ok(!names(&self.directory.join(RELEASING))?.is_empty())
    }

    /// Gives the addresses of retired reservations back. Fine when another was
    /// faster.
    pub fn free(&self, releasing: &[Releasing]) -> Result<(), Error> {
        if releasing.is_empty() {
            return Ok(());
        }
        let Some(_lock) = self.lock_if_present()? else {
            return Ok(());
        };
        for retired in releasing {
            self.remove(&retired.file, retired.reservation.as_ref())?;
        }
        Ok(())
    }

    /// What an attachment holds.
    pub fn find(&self, attachment: &Attachment) -> Result<Option<Reservation>, Error> {
        let Some(_lock) = self.lock_if_present()? else {
            return Ok(None);
        };
        let file = self.attachment_file(attachment);
        match read(&file)? {
            Some(found) if self.is_complete(&found, &file)? => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// All reservations, ordered by address.
    pub fn list(&self) -> Result<Vec<Reservation>, Error> {
        let entries = self.entries()?;
        Ok(entries.into_iter().map(|entry| entry.reservation).collect())
    }

    /// All reservations with their times, ordered by address.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        for (path, _) in entries(&self.directory.join(ATTACHMENTS))? {
            let Some(reservation) = read(&path)? else {
                continue;
            };
            let since = match fs::symlink_metadata(&path).and_then(|m| m.modified()) {
                Ok(since) => since,
                // Released meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(Error::Io {
                        action: "look at",
                        path,
                        source,
                    });
                }
            };
            found.push(Entry { reservation, since });
        }
        found.sort_by(|a: &Entry, b| a.reservation.addresses.cmp(&b.reservation.addresses));
        Ok(found)
    }

    /// Addresses whose files belong to no attachment, and attachments' files
    /// that are damaged: the remains of others' work on the folder.
    pub fn strays(&self) -> Result<Vec<PathBuf>, Error> {
        match self.lock_if_present()? {
            Some(lock) => self.find_strays(&lock),
            None => Ok(Vec::new()),
        }
    }

    /// Removes what [`Store::strays`] finds, and says what that was.
    pub fn remove_strays(&self) -> Result<Vec<PathBuf>, Error> {
        let Some(lock) = self.lock_if_present()? else {
            return Ok(Vec::new());
        };
        let strays = self.find_strays(&lock)?;
        for path in &strays {
            unlink(path)?;
        }
        Ok(strays)
    }

    fn find_strays(&self, _lock: &Locked) -> Result<Vec<PathBuf>, Error> {
        let mut owners = HashSet::new();
        let mut strays = Vec::new();
        for (path, _) in entries(&self.directory.join(ATTACHMENTS))? {
            match read(&path)? {
                Some(found) if path == self.attachment_file(&found.attachment) => {
                    owners.extend(inode(&path)?);
                }
                _ => strays.push(path),
            }
        }
        for (path, _) in entries(&self.directory.join(RELEASING))? {
            owners.extend(inode(&path)?);
        }
        for address in self.held()? {
            let path = self.address_file(address);
            if inode(&path)?.is_some_and(|own| !owners.contains(&own)) {
                strays.push(path);
            }
        }
        strays.sort();
        Ok(strays)
    }

    /// How many addresses are held.
    pub fn count(&self) -> Result<usize, Error> {
        Ok(self.held()?.len())
    }

    /// Whether every one of `sets` has an address to give, now or as soon as
    /// retired reservations are freed.
    pub fn has_room(&self, sets: &[RangeSet]) -> Result<(), Error> {
        let mut held = self.held()?;
        for retired in self.releasing()? {
            for address in retired.reservation.iter().flat_map(|r| &r.addresses) {
                held.remove(address);
            }
        }
        for set in sets {
            if set.addresses().all(|address| held.contains(&address)) {
                return Err(self.full(set));
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<Locked, Error> {
        self.lock_file(true)
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
        Ok(Locked { file })
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

    /// Addresses given back, oldest first. A missing or damaged file means
    /// nothing worse than an address used again a little early.
    fn released(&self) -> Vec<IpAddr> {
        self.released_text()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    fn released_text(&self) -> String {
        fs::read_to_string(self.directory.join("released")).unwrap_or_default()
    }

    fn write(
        &self,
        reservation: &Reservation,
        file: &Path,
        memory: &Memory<'_>,
    ) -> Result<Hold, Error> {
        let mut text = serde_json::to_vec_pretty(reservation)
            .expect("a reservation is text, lists and maps of text");
        text.push(b'\n');
        let hold = Hold {
            _file: self.write_whole(file, &text)?,
        };
        for address in &reservation.addresses {
            let path = self.address_file(*address);
            if let Err(source) = fs::hard_link(file, &path) {
                let error = Error::Io {
                    action: "make the reservation",
                    path,
                    source,
                };
                // Undone as far as possible; the first failure is the one to tell.
                let _ = self.remove(file, Some(reservation));
                return Err(error);
            }
        }
        // Taken out of the list of resting ones, so that its next rest counts
        // from its next release.
        if reservation.addresses.iter().any(|a| memory.is_resting(*a)) {
            let rest: Vec<_> = memory
                .resting()
                .filter(|address| !reservation.addresses.contains(address))
                .collect();
            // A full disk must not undo what is complete.
            let _ = self.write_released(&rest);
        }
        memory.save();
        Ok(hold)
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

    fn write_released(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let skip = addresses.len().saturating_sub(REMEMBERED);
        let text: String = addresses[skip..]
            .iter()
            .map(|address| format!("{address}\n"))
            .collect();
        self.write_whole(&self.directory.join("released"), text.as_bytes())
            .map(drop)
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

    /// Removes an attachment's file and those of its addresses. `known` is the
    /// file's content; a file that cannot be read is matched by its links.
    fn remove(&self, file: &Path, known: Option<&Reservation>) -> Result<(), Error> {
        let Some(own) = inode(file)? else {
            return Ok(());
        };
        let candidates = match known {
            Some(reservation) => reservation.addresses.clone(),
            None => self.held()?.into_iter().collect(),
        };
        let mut gone = Vec::new();
        for address in candidates {
            if inode(&self.address_file(address))? == Some(own) {
                gone.push(address);
            }
        }
        if !gone.is_empty() {
            let mut released = self.released();
            released.retain(|address| !gone.contains(address));
            released.extend(&gone);
            // A full disk must not keep an address from being given back.
            let _ = self.write_released(&released);
        }
        for address in &gone {
            unlink(&self.address_file(*address))?;
        }
        unlink(file)
    }
}

/// Addresses with subnet and gateway; `None` unless there is one of each set.
fn describe(addresses: &[IpAddr], sets: &[RangeSet]) -> Option<Vec<Reserved>> {
    if addresses.len() != sets.len() {
        return None;
    }
    addresses
        .iter()
        .zip(sets)
        .map(|(address, set)| {
            let (subnet, gateway) = set.subnet_of(*address)?;
            Some(Reserved {
                address: IpNet::new(*address, subnet.prefix_len()).ok()?,
                gateway,
            })
        })
        .collect()
}

/// `None` when the file is missing.
fn open(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            action: "open",
            path: path.to_owned(),
            source,
        }),
    }
}

fn inode_of(file: &File, path: &Path) -> Result<u64, Error> {
    let metadata = file.metadata().map_err(|source| Error::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    })?;
    Ok(metadata.ino())
}

/// `None` when the file is missing or damaged.
fn read(path: &Path) -> Result<Option<Reservation>, Error> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

fn inode(path: &Path) -> Result<Option<u64>, Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            action: "look at",
            path: path.to_owned(),
            source,
        }),
    }
}

fn unlink(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Io {
            action: "remove",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Paths and names in a folder; none when it does not exist.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, String)>, Error> {
    let found = names(folder)?.into_iter();
    Ok(found.map(|name| (folder.join(&name), name)).collect())
}

/// Names in a folder; none when it does not exist.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Io {
        action: "list",
        path: folder.to_owned(),
        source,
    };
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push(name);
        }
    }
    Ok(found)
}
