//! What is reserved, by whom, and what the files say of it.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

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
    /// See [`Claim::apart`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
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
    pub(super) file: PathBuf,
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
    /// The node itself does not lead to the address: pods of other networks may have the same.
    /// Else all networks below the root have each address once.
    pub apart: bool,
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

/// A reservation as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was reserved, and for whom.
    pub reservation: Reservation,
    /// When.
    pub since: SystemTime,
}
