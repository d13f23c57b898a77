//! The node's own ranges, for networks whose configuration names none: noted
//! by the node's agent, which learns them from the cluster, and read by the
//! plugin, which asks nobody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::store::Error;

/// What an agent knows of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
pub struct NodeRanges {
    /// Ranges of the node's pods, one of each family at most.
    pub ranges: Vec<IpNet>,
    /// Largest packet in bytes that gets from pod to pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

impl NodeRanges {
    /// The file below the directory of all reservations.
    pub fn path(root: &Path) -> PathBuf {
        root.join("node.json")
    }

    /// Reads the note; `None` when there is none, or nothing that makes sense.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(root: &Path) -> Result<Option<Self>, Error> {
        let path = Self::path(root);
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Writes the note, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, root: &Path) -> Result<(), Error> {
        let path = Self::path(root);
        let aside = root.join(".node.json.new");
        let text = serde_json::to_vec(self).expect("ranges are texts and numbers");
        fs::create_dir_all(root)
            .and_then(|()| fs::write(&aside, text))
            .and_then(|()| fs::rename(&aside, &path))
            .map_err(|source| Error::Io {
                action: "write",
                path,
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_noted_is_read_and_nonsense_is_nothing() {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("ipam");
        assert_eq!(NodeRanges::read(&below).unwrap(), None);
        let note = NodeRanges {
            ranges: vec![
                "10.200.1.0/24".parse().unwrap(),
                "fd00::/64".parse().unwrap(),
            ],
            mtu: Some(1450),
        };
        note.write(&below).unwrap();
        assert_eq!(NodeRanges::read(&below).unwrap(), Some(note));
        fs::write(NodeRanges::path(&below), "{\"ranges\":[7]}").unwrap();
        assert_eq!(NodeRanges::read(&below).unwrap(), None);
    }
}
