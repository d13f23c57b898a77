//! Who removes routes of podwire's.
//!
//! The kernel's notification of a change names the netlink socket that asked
//! for it. A process's first socket has the process's id for its number, which
//! programs with one socket, as they manage routes, always show (netlink(7));
//! where the number says nothing, or the process has ended, so does the report.

use std::collections::BTreeMap;

use ipnet::IpNet;

/// Who did, and how often.
#[derive(Debug, Default)]
pub(crate) struct Culprits {
    found: BTreeMap<String, u64>,
}

impl Culprits {
    /// Somebody removed a route by the socket of this number. Each is named in
    /// the log once.
    pub(crate) fn removed(&mut self, port: u32, destination: &IpNet) {
        let name = name(port);
        let times = self.found.entry(name.clone()).or_default();
        *times += 1;
        if *times == 1 {
            tracing::warn!(
                "{name} removed podwire's route to {destination}, which is restored each time; let \
                 it leave routes of protocol {} alone (systemd-networkd: \
                 ManageForeignRoutes=no in networkd.conf)",
                linux::PODWIRE_ROUTE_PROTOCOL
            );
        }
    }

    /// All so far, by name.
    pub(crate) fn found(&self) -> &BTreeMap<String, u64> {
        &self.found
    }
}

/// The name of the process a socket is most likely of.
fn name(port: u32) -> String {
    // Read at once: what the shell starts for one command is soon gone. Other
    // sockets than the first have numbers no process has.
    match std::fs::read_to_string(format!("/proc/{port}/comm")) {
        Ok(name) => format!("process {}", name.trim_end()),
        Err(_) => "a process that cannot be told".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_by_its_name() {
        let mut culprits = Culprits::default();
        let destination = "10.0.0.0/24".parse().unwrap();
        let own = std::fs::read_to_string("/proc/self/comm").unwrap();
        for _ in 0..3 {
            culprits.removed(std::process::id(), &destination);
        }
        culprits.removed(u32::MAX - 4096, &destination);
        let own = format!("process {}", own.trim_end());
        let unknown = "a process that cannot be told".to_owned();
        assert_eq!(culprits.found(), &BTreeMap::from([(own, 3), (unknown, 1)]));
    }
}
