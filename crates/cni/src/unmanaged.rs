//! Files that tell the node's link managers to leave pods' interfaces alone.
//!
//! `systemd-networkd` and NetworkManager take up every interface that appears:
//! they give it another hardware address, bring it down, or remove routes they
//! did not make. podwire's interfaces have names of their own prefix and chosen
//! hardware addresses, which the defaults leave alone mostly; these files leave
//! nothing to defaults.
//!
//! Sources: systemd.link(5), systemd.network(5), networkd.conf(5),
//! NetworkManager.conf(5).

use std::path::{Path, PathBuf};

/// A file, below `/etc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropIn {
    /// Folder that exists when the program it is for is installed.
    pub program: &'static str,
    /// Path.
    pub path: &'static str,
    /// What it says.
    pub text: &'static str,
}

impl DropIn {
    /// Where it goes in a node's `/etc`.
    pub fn below(&self, etc: &Path) -> PathBuf {
        etc.join(self.path)
    }
}

/// All of them.
pub const DROP_INS: [DropIn; 4] = [
    DropIn {
        program: "systemd",
        path: "systemd/network/05-podwire.link",
        text: "# Interfaces of podwire's pods keep their names and hardware addresses.\n\
               [Match]\n\
               OriginalName=pw*\n\
               \n\
               [Link]\n\
               NamePolicy=\n\
               MACAddressPolicy=none\n",
    },
    DropIn {
        program: "systemd",
        path: "systemd/network/05-podwire.network",
        text: "# Interfaces of podwire's pods are podwire's.\n\
               [Match]\n\
               Name=pw*\n\
               \n\
               [Link]\n\
               Unmanaged=yes\n",
    },
    DropIn {
        program: "systemd",
        path: "systemd/networkd.conf.d/05-podwire.conf",
        text: "# Routes to other nodes' pods stay when networkd restarts.\n\
               [Network]\n\
               ManageForeignRoutes=no\n\
               ManageForeignRoutingPolicyRules=no\n",
    },
    DropIn {
        program: "NetworkManager",
        path: "NetworkManager/conf.d/05-podwire.conf",
        text: "# Interfaces of podwire's pods are podwire's.\n\
               [keyfile]\n\
               unmanaged-devices+=interface-name:pw*\n",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach;
    use crate::configuration::DEFAULT_BRIDGE;

    #[test]
    fn the_files_match_the_interfaces_podwire_makes() {
        let cable = attach::host_interface(&ipam::Attachment::new("one", "eth0"));
        for name in [&cable, DEFAULT_BRIDGE] {
            assert!(name.starts_with("pw"), "{name}");
        }
        for file in DROP_INS {
            assert!(file.path.starts_with(file.program), "{file:?}");
            assert!(
                file.text.ends_with('\n') && !file.text.contains("  "),
                "{file:?}"
            );
        }
    }
}
