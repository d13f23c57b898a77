//! How packets get from node to node: what a back end sets up on a node, and what
//! the fast path is told of it.

use std::net::IpAddr;

use ipnet::IpNet;
use podwire_linux::fast_path::{Via, Way};
use podwire_linux::wireguard::{Change, PrivateKey, Ranges, Settings, WireGuard};

use crate::nodes::{Node, address, pod_address, range};
use crate::witness::{ip, run};

/// How packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wire {
    /// As they are.
    Plain,
    /// As Ethernet frames in VXLAN, over IPv4 or IPv6.
    Vxlan { over_v6: bool },
    /// In VXLAN by routes with a lightweight tunnel.
    Gpe { over_v6: bool },
    /// As frames of a bridge whose port is a VXLAN with a multicast group.
    Multicast,
    /// Encrypted by WireGuard, over IPv4 or IPv6.
    Wireguard { over_v6: bool },
    /// In IP of the same family: IPv4 (RFC 2003) by routes with a gateway, IPv6 (RFC 2473)
    /// by routes with a lightweight tunnel.
    Ipip,
}

impl Wire {
    /// The tunnel's longest packet.
    pub(crate) fn mtu(self) -> u32 {
        match self {
            Wire::Plain => 1500,
            Wire::Vxlan { over_v6: false } | Wire::Multicast => 1450,
            Wire::Vxlan { over_v6: true } => 1430,
            Wire::Gpe { over_v6: false } => 1464,
            Wire::Gpe { over_v6: true } => 1444,
            Wire::Wireguard { over_v6: false } => 1440,
            Wire::Wireguard { over_v6: true } => 1420,
            Wire::Ipip => 1460,
        }
    }

    /// The interface that leads to the other node's pods of a family.
    fn interface(self, v6: bool) -> &'static str {
        match self {
            Wire::Plain => "eth0",
            Wire::Ipip if v6 => "tunnel6",
            Wire::Vxlan { .. }
            | Wire::Gpe { .. }
            | Wire::Multicast
            | Wire::Wireguard { .. }
            | Wire::Ipip => "tunnel",
        }
    }

    /// All devices of a tunnel.
    pub(crate) fn devices(self) -> &'static [&'static str] {
        match self {
            Wire::Plain => &[],
            Wire::Vxlan { .. } | Wire::Gpe { .. } | Wire::Wireguard { .. } => &["tunnel"],
            Wire::Multicast => &["tunnel", "port"],
            Wire::Ipip => &["tunnel", "tunnel6"],
        }
    }
}

/// The tunnel's address of a node.
fn tunnel_address(number: u8, v6: bool) -> IpAddr {
    match v6 {
        false => [198, 51, number, 0].into(),
        true => [0xfe80, 0, 0, 0, 0, 0, 0, number.into()].into(),
    }
}

impl Node {
    /// Sets up the way to the other node.
    pub(crate) fn connect(&self) {
        match self.wire {
            Wire::Plain => self.connect_plain(),
            Wire::Vxlan { over_v6 } => self.connect_vxlan(over_v6),
            Wire::Gpe { over_v6 } => self.connect_gpe(over_v6),
            Wire::Multicast => self.connect_multicast(),
            Wire::Wireguard { over_v6 } => self.connect_wireguard(over_v6),
            Wire::Ipip => self.connect_ipip(),
        }
    }

    /// The ranges of the other node's pods.
    fn ranges(&self) -> [IpNet; 2] {
        [false, true].map(|v6| range(self.other(), v6))
    }

    fn connect_plain(&self) {
        for v6 in [false, true] {
            let (range, via) = (range(self.other(), v6), address(self.other(), v6));
            ip(&self.here, &format!("route add {range} via {via}"));
        }
    }

    fn connect_vxlan(&self, over_v6: bool) {
        let mac = |node| format!("0a:00:00:00:00:0{node}");
        ip(
            &self.here,
            &format!(
                "link add tunnel address {} mtu {} type vxlan id 1 dstport 8472 local {} \
                    nolearning noudpcsum
                link set tunnel up",
                mac(self.number),
                self.wire.mtu(),
                address(self.number, over_v6)
            ),
        );
        let mac = mac(self.other());
        let remote = address(self.other(), over_v6).to_string();
        let entry = ["fdb", "add", &mac, "dev", "tunnel", "dst", &remote];
        run(&self.here, "bridge", &entry, "");
        for v6 in [false, true] {
            let (range, via) = (range(self.other(), v6), tunnel_address(self.other(), v6));
            ip(
                &self.here,
                &format!(
                    "neighbour add {via} lladdr {mac} dev tunnel nud permanent
                    route add {range} via {via} dev tunnel onlink"
                ),
            );
        }
    }

    fn connect_multicast(&self) {
        let (n, other, mtu) = (self.number, self.other(), self.wire.mtu());
        ip(
            &self.here,
            &format!(
                "link add tunnel address 0a:00:00:00:00:0{n} mtu {mtu} type bridge \
                    mcast_snooping 0
                link add port mtu {mtu} master tunnel type vxlan id 1 dstport 4789 \
                    local {} group 239.112.0.1 dev eth0 noudpcsum
                link set port up
                link set tunnel up",
                address(n, false)
            ),
        );
        for v6 in [false, true] {
            let (range, pod) = (range(other, v6), pod_address(other, v6));
            ip(
                &self.here,
                &format!(
                    "neighbour add {pod} lladdr 0a:00:00:00:00:0{other} dev tunnel nud permanent
                    route add {range} dev tunnel"
                ),
            );
        }
    }

    fn connect_gpe(&self, over_v6: bool) {
        ip(
            &self.here,
            &format!(
                "link add tunnel mtu {} type vxlan dstport 4790 gpe external
                link set tunnel up",
                self.wire.mtu()
            ),
        );
        // As podwire's routes have it.
        let (kind, checksum) = match over_v6 {
            false => ("ip", ""),
            true => ("ip6", "csum"),
        };
        let remote = address(self.other(), over_v6);
        for range in self.ranges() {
            ip(
                &self.here,
                &format!("route add {range} encap {kind} id 1 dst {remote} {checksum} dev tunnel"),
            );
        }
    }

    fn connect_ipip(&self) {
        let [four, six] = self.ranges();
        let [local, far, far6] = [
            address(self.number, false),
            address(self.other(), false),
            address(self.other(), true),
        ];
        let mtu = self.wire.mtu();
        ip(
            &self.here,
            &format!(
                "link add tunnel mtu {mtu} type ipip local {local} ttl 64
                link set tunnel up
                route add {four} via {far} dev tunnel onlink
                link add tunnel6 mtu {mtu} type ip6tnl external
                link set tunnel6 up
                route add {six} encap ip6 dst {far6} dev tunnel6"
            ),
        );
    }

    fn connect_wireguard(&self, over_v6: bool) {
        ip(
            &self.here,
            &format!("link add tunnel mtu {} type wireguard", self.wire.mtu()),
        );
        let mut wireguard = self.here.run(WireGuard::open).unwrap().unwrap();
        let mut key = |number| {
            let settings = Settings {
                private_key: Some(PrivateKey::from_bytes([number; 32])),
                port: Some(51820),
                mark: None,
            };
            wireguard.configure("tunnel", &settings).unwrap();
            let device = wireguard.device("tunnel").unwrap().unwrap();
            device.public_key.unwrap()
        };
        // The other's, and at last its own.
        let [key, _] = [self.other(), self.number].map(&mut key);
        let peer = Change::Set {
            key,
            endpoint: Some((address(self.other(), over_v6), 51820).into()),
            keepalive: None,
            ranges: Ranges::Replace(self.ranges().into()),
        };
        wireguard.change("tunnel", &[peer]).unwrap();
        ip(&self.here, "link set tunnel up");
        for range in self.ranges() {
            ip(&self.here, &format!("route add {range} dev tunnel"));
        }
    }

    /// How the other node's pods of a family are reached.
    pub(crate) fn way(&self, v6: bool) -> Way {
        Way {
            interface: self.index(self.wire.interface(v6)),
            mtu: None,
            via: match self.wire {
                Wire::Plain => Via::Neighbour(address(self.other(), v6)),
                Wire::Vxlan { .. } => Via::Neighbour(tunnel_address(self.other(), v6)),
                Wire::Multicast => Via::OnLink,
                Wire::Gpe { over_v6 } => Via::Tunnel {
                    id: 1,
                    remote: address(self.other(), over_v6),
                },
                Wire::Wireguard { .. } => Via::Device,
                Wire::Ipip => Via::Tunnel {
                    id: 0,
                    remote: address(self.other(), v6),
                },
            },
        }
    }
}
