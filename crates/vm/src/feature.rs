//! What a case may need of the kernel, and whether the running one has it.

use std::fmt;
use std::path::Path;
use std::process::Command;

/// A part of the kernel that some kernels lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Network devices that carry IPv4 in IPv4.
    Ipip,
    /// Network devices that carry IPv6 or IPv4 in IPv6.
    Ip6Tunnel,
    /// WireGuard devices.
    WireGuard,
    /// IP Virtual Server, with the schedulers rr, wrr, lc, wlc, sh, mh, sed and nq.
    Ipvs,
    /// Dummy devices.
    Dummy,
    /// netkit devices.
    Netkit,
}

impl Feature {
    /// The modules that bring it, by name.
    pub(crate) fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Ipip => &["ipip"],
            Self::Ip6Tunnel => &["ip6_tunnel"],
            Self::WireGuard => &["wireguard"],
            Self::Ipvs => &[
                "ip_vs",
                "ip_vs_rr",
                "ip_vs_wrr",
                "ip_vs_lc",
                "ip_vs_wlc",
                "ip_vs_sh",
                "ip_vs_mh",
                "ip_vs_sed",
                "ip_vs_nq",
            ],
            Self::Dummy => &["dummy"],
            // Part of the kernel where it was chosen at all.
            Self::Netkit => &[],
        }
    }

    /// Whether the running kernel has it, found out by using it in a network
    /// namespace of its own: a kernel that loads modules on demand does so.
    pub(crate) fn is_here(self) -> bool {
        // The addresses: a tunnel without any would be a second one like the
        // namespace's own `tunl0` or `ip6tnl0`, which the kernel refuses.
        let device = match self {
            Self::Ipip => "ipip local 127.0.0.1",
            Self::Ip6Tunnel => "ip6tnl local ::1",
            Self::WireGuard => "wireguard",
            Self::Dummy => "dummy",
            Self::Netkit => "netkit",
            Self::Ipvs => {
                return Path::new("/proc/net/ip_vs").exists()
                    || succeeds(Command::new("modprobe").arg("ip_vs"));
            }
        };
        succeeds(
            Command::new("unshare")
                .args("--net ip link add name probe type".split(' '))
                .args(device.split(' ')),
        )
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

impl fmt::Display for Feature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ipip => "IP-in-IP (ipip)",
            Self::Ip6Tunnel => "IPv6 tunnels (ip6_tunnel)",
            Self::WireGuard => "WireGuard (wireguard)",
            Self::Ipvs => "IPVS (ip_vs)",
            Self::Dummy => "dummy devices (dummy)",
            Self::Netkit => "netkit devices",
        })
    }
}
