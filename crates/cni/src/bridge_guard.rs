//! The table `bridge podwire_bridge`: what no pod of a bridge is to hear, dropped on the
//! way to the pods.
//!
//! A pod can be told by its own settings to heed no router advertisements and redirects,
//! but the kernel takes longer to find those settings with every namespace there is. One
//! table of the node says it for all pods, and costs an ADD a look at one file.
//!
//! It is worth as much as it lasts. So podwire's agent holds it: as long as it does,
//! nobody else can change it, and `nft flush ruleset` passes it over. When the agent
//! ends, the table stays, as an ordinary one, until an agent comes and holds it again;
//! a pod that is attached meanwhile gets settings of its own, as on a kernel that cannot
//! hold tables.
//!
//! That the agent holds it the plugin knows by a lock on a file beside the reservations.
//! The kernel could be asked as well, but closing the socket for that waits 10 to 20 ms
//! whenever somebody has just deleted something from nftables.
//!
//! Source: RFC 792 (redirect), RFC 4861, 4.2 and 4.5; CVE-2020-10749.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use linux::namespace::NetworkNamespace;
use linux::nftables::{
    self, Base, Batch, Chain, ChainKind, Expression, Family, Header, Hook, Meta, Nftables,
    Register, Rule, Verdict, priority,
};
use rustix::io::Errno;

use crate::error::Error;

/// The table's name.
pub const TABLE: &str = "podwire_bridge";
const FAMILY: Family = Family::Bridge;

/// The table is in force, and stays as it is as long as this lives.
#[derive(Debug)]
pub struct BridgeGuard {
    /// By whose lock the plugin knows that the table is held. It goes first.
    _note: File,
    /// By whose end the kernel knows that it is held no more.
    _socket: Nftables,
}

/// What became of holding the table.
#[derive(Debug)]
pub enum Holding {
    /// It is held now.
    Held(BridgeGuard),
    /// Another process holds it.
    Taken,
    /// The kernel cannot: it has no rules on bridges, or is older than Linux 6.9.
    Impossible(nftables::Error),
}

/// Makes the table in the calling thread's network namespace and holds it. One that
/// nobody holds is replaced, in one instant. `directory` is that of all reservations.
///
/// # Errors
/// If the kernel refuses for another reason than those of [`Holding`], or it cannot be
/// noted in the directory.
pub fn hold(directory: &Path) -> Result<Holding, Error> {
    let mut socket = Nftables::open()?;
    let mut batch = Batch::new(FAMILY, TABLE, None);
    batch.delete_table_if_any();
    batch.add_held_table();
    for chain in chains() {
        batch.add_chain_with_rules(&chain);
    }
    let Err(error) = socket.commit(batch) else {
        return Ok(Holding::Held(BridgeGuard {
            _note: note(directory)?,
            _socket: socket,
        }));
    };
    let errno = error.errno();
    let is = |errors: &[Errno]| errors.iter().any(|e| Some(e.raw_os_error()) == errno);
    if is(&[Errno::PERM]) {
        return Ok(Holding::Taken);
    }
    // What a kernel does not know: a flag, a kind of message, bridges, an expression.
    if is(&[
        Errno::OPNOTSUPP,
        Errno::INVAL,
        Errno::AFNOSUPPORT,
        Errno::NOENT,
    ]) {
        return Ok(Holding::Impossible(error));
    }
    Err(error.into())
}

/// The file whose lock says that the table is held. No network has a name like this.
fn note_path(directory: &Path) -> PathBuf {
    directory.join(".bridge-guard")
}

/// Notes, under a lock, that the table of the calling thread's namespace is held. The
/// file is new each time, so that nobody's look at the last one keeps this from its lock.
fn note(directory: &Path) -> Result<File, Error> {
    let here = NetworkNamespace::current()?;
    let path = note_path(directory);
    let aside = directory.join(".bridge-guard.new");
    let write = || -> io::Result<File> {
        fs::create_dir_all(directory)?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&aside)?;
        file.try_lock()?;
        write!(file, "{}", here.identity()?)?;
        fs::rename(&aside, &path)?;
        Ok(file)
    };
    write().map_err(|error| {
        Error::Io(format!(
            "cannot note in {} that table bridge {TABLE} is held: {error}",
            path.display()
        ))
    })
}

/// Whether somebody holds the table of the node's namespace. `directory` is that of all
/// reservations.
#[must_use]
pub fn is_held(directory: &Path, node: &NetworkNamespace) -> bool {
    // What cannot be read says nothing: the pod gets settings of its own.
    let Ok(mut note) = File::open(note_path(directory)) else {
        return false;
    };
    if !matches!(note.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return false;
    }
    let mut held = String::new();
    note.read_to_string(&mut held).is_ok()
        && node
            .identity()
            .is_ok_and(|identity| held == identity.to_string())
}

/// Whether the table is there, held or not.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn exists() -> Result<bool, nftables::Error> {
    Nftables::open()?.has_table(FAMILY, TABLE)
}

/// Removes the table; returns whether there was one.
///
/// # Errors
/// If the kernel refuses, as it does while another process holds it.
pub fn remove() -> Result<bool, nftables::Error> {
    Nftables::open()?.remove_table(FAMILY, TABLE)
}

/// `ETH_P_*`, in network order.
const IPV4: [u8; 2] = 0x0800_u16.to_be_bytes();
const IPV6: [u8; 2] = 0x86dd_u16.to_be_bytes();
const TAGS: [[u8; 2]; 2] = [0x8100_u16.to_be_bytes(), 0x88a8_u16.to_be_bytes()];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// RFC 792.
const REDIRECT: u8 = 5;
/// RFC 4861, 4.2 and 4.5.
const ROUTER_ADVERTISEMENT: u8 = 134;
const ND_REDIRECT: u8 = 137;

/// What comes from another port, and what the node sends: its kernel tells a pod by a
/// redirect when it routes from a bridge back to the same one, as it does between pods.
fn chains() -> [Chain; 2] {
    [("forward", Hook::Forward), ("output", Hook::Output)].map(|(name, hook)| Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind: ChainKind::Filter,
            hook,
            priority: priority::FILTER_BRIDGED,
            drop: false,
        }),
        rules: rules(),
    })
}

fn rules() -> Vec<Rule> {
    let message = |protocol: [u8; 2], transport: u8, kind: u8| {
        dropped(vec![
            load(Meta::Protocol),
            Expression::equal(REGISTER, protocol),
            load(Meta::TransportProtocol),
            Expression::equal(REGISTER, [transport]),
            Expression::Payload {
                header: Header::Transport,
                offset: 0,
                length: 1,
                into: REGISTER,
            },
            Expression::equal(REGISTER, [kind]),
        ])
    };
    let mut rules = vec![
        message(IPV4, ICMP, REDIRECT),
        message(IPV6, ICMPV6, ROUTER_ADVERTISEMENT),
        message(IPV6, ICMPV6, ND_REDIRECT),
    ];
    // Of a frame with two tags only the outer one is taken off before it is looked at.
    // The pod takes off as many as there are, as long as they name no VLAN.
    rules.extend(
        TAGS.map(|tag| dropped(vec![load(Meta::Protocol), Expression::equal(REGISTER, tag)])),
    );
    rules
}

/// Drops what matches and leaves by a pod's cable, or by another interface of podwire: a
/// tunnel that is a bridge's port has no use for it either.
fn dropped(mut matches: Vec<Expression>) -> Rule {
    matches.extend([
        load(Meta::OutInterfaceName),
        // The beginning of the name.
        Expression::equal(REGISTER, crate::attach::HOST_INTERFACE.as_bytes()),
        Expression::Verdict(Verdict::Drop),
    ]);
    Rule::new(matches)
}

const REGISTER: Register = Register(0);

fn load(key: Meta) -> Expression {
    Expression::Meta {
        key,
        into: REGISTER,
    }
}
