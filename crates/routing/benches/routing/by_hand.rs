//! The same as an administrator sets it up with iproute2: what a back end is
//! measured beside.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use linux::wireguard::PrivateKey;
use podwire_routing::{Family, keys};

use crate::common::{Cluster, ok};

/// One of the two nodes, as the commands want to have it.
struct Side {
    /// Its address on the underlay.
    address: String,
    /// Its pods' range, the first address of that, and one of its pods.
    range: String,
    first: String,
    pod: String,
}

/// Has the nodes' own packets leave by the tunnel with its address whatever
/// address they have, as podwire does with `vxlan-multicast`. Translation needs
/// connection tracking, for all packets of the node.
pub(crate) fn translate_own(cluster: &Cluster) {
    for host in &cluster.hosts {
        for command in [
            "nft add table inet hand",
            "nft add chain inet hand sources { type nat hook postrouting priority srcnat ; }",
            "nft add rule inet hand sources oifname hand* fib saddr type local masquerade",
        ] {
            ok(&host.namespace, command);
        }
    }
}

/// Has the nodes track all connections, by as little as it takes: a rule that asks.
pub(crate) fn track(cluster: &Cluster) {
    for host in &cluster.hosts {
        ok(&host.namespace, "nft add table inet hand_tracking");
        for hook in ["input", "forward", "output"] {
            for command in [
                format!(
                    "nft add chain inet hand_tracking {hook} {{ type filter hook {hook} priority \
                     filter ; }}"
                ),
                format!("nft add rule inet hand_tracking {hook} ct state established accept"),
            ] {
                ok(&host.namespace, &command);
            }
        }
    }
}

/// Connects the pods of two nodes in both families; `false` when it is not told
/// here how. `mtu` is that of tunnels over IPv4 and over IPv6.
pub(crate) fn set_up(backend: &str, cluster: &mut Cluster, mtu: [u32; 2]) -> bool {
    let sides: Vec<[Side; 2]> = cluster
        .hosts
        .iter()
        .map(|host| {
            Family::BOTH.map(|family| {
                let range = host.node.range(family).expect("it has one of each family");
                let address = host.node.address(family).expect("as well");
                let pod = host.node.pods[usize::from(family == Family::V6)];
                Side {
                    address: address.to_string(),
                    range: range.to_string(),
                    first: range.network().to_string(),
                    pod: pod.to_string(),
                }
            })
        })
        .collect();
    let keys = Keys::new(backend);
    for (own, peer) in [(0, 1), (1, 0)] {
        let [own_mac, peer_mac] = [own, peer].map(|number| format!("0a:00:00:00:00:0{number}"));
        let mut commands = Vec::new();
        for (family, mtu) in [0, 1].into_iter().zip(mtu) {
            let (ip, address, name, encap) = match family {
                0 => ("ip", "/32", "hand", "ip"),
                _ => ("ip -6", "/128 nodad", "hand6", "ip6"),
            };
            let Side {
                address: local,
                first: near,
                pod,
                ..
            } = &sides[own][family];
            let Side {
                address: remote,
                range,
                first: far,
                ..
            } = &sides[peer][family];
            // The devices that carry both families are made with IPv4.
            let both = |commands: &[String]| match family {
                0 => commands.to_vec(),
                _ => Vec::new(),
            };
            let addressed = |device: &str| {
                [
                    format!("ip addr add {near}{address} dev {device}"),
                    format!("ip link set {device} up"),
                ]
            };
            match backend {
                "host-gw" => commands.push(format!("{ip} route add {range} via {remote}")),
                "vxlan" => {
                    commands.push(format!(
                        "ip link add {name} address {own_mac} mtu {mtu} type vxlan id 1 dstport \
                         8472 local {local} dev eth0 nolearning"
                    ));
                    commands.extend(addressed(name));
                    // A gateway that no other route leads to, as IPv6 wants it.
                    let via = match family {
                        0 => far.as_str(),
                        _ => "fe80::2",
                    };
                    commands.extend([
                        format!("ip neigh add {via} lladdr {peer_mac} dev {name} nud permanent"),
                        format!("bridge fdb add {peer_mac} dev {name} dst {remote}"),
                        format!("{ip} route add {range} via {via} dev {name} onlink src {near}"),
                    ]);
                }
                "vxlan-gpe" => {
                    commands.extend(both(&[format!(
                        "ip link add hand mtu {mtu} type vxlan dstport 4790 gpe external"
                    )]));
                    commands.extend(addressed("hand"));
                    let checksum = if family == 0 { "" } else { "csum" };
                    commands.push(format!(
                        "{ip} route add {range} encap {encap} id 1 dst {remote} {checksum} dev hand \
                         src {near}"
                    ));
                }
                "vxlan-multicast" => {
                    commands.extend(both(&[
                        format!("ip link add hand-br mtu {mtu} type bridge mcast_snooping 0"),
                        format!(
                            "ip link add hand mtu {mtu} type vxlan id 1 dstport 4789 local {local} \
                             group 239.112.0.2 dev eth0 ttl 1"
                        ),
                        "ip link set hand master hand-br up".to_owned(),
                        "sysctl -qw net.ipv6.conf.hand-br.proxy_ndp=1".to_owned(),
                    ]));
                    commands.extend(addressed("hand-br"));
                    let cluster = ["10.200.0.0/16", "fd00:200::/48"][family];
                    commands.extend([
                        format!("ip neigh add proxy {near} dev hand-br"),
                        format!("ip neigh add proxy {pod} dev hand-br"),
                        format!("{ip} route add {cluster} dev hand-br src {near}"),
                    ]);
                }
                "ipip" => {
                    commands.push(match family {
                        0 => format!("ip link add {name} mtu {mtu} type ipip local {local}"),
                        _ => format!("ip link add {name} mtu {mtu} type ip6tnl external"),
                    });
                    commands.extend(addressed(name));
                    commands.push(match family {
                        0 => format!(
                            "ip route add {range} via {remote} dev {name} onlink src {near}"
                        ),
                        _ => format!(
                            "ip -6 route add {range} encap ip6 dst {remote} dev {name} src {near}"
                        ),
                    });
                }
                "wireguard" => {
                    let Some(keys) = &keys else { return false };
                    let ranges = sides[peer].each_ref().map(|side| side.range.as_str());
                    commands.extend(both(&[
                        format!("ip link add hand mtu {mtu} type wireguard"),
                        format!(
                            "wg set hand private-key {} listen-port 51820 peer {} endpoint \
                             {remote}:51820 allowed-ips {}",
                            keys.files[own].path().display(),
                            keys.public[peer],
                            ranges.join(",")
                        ),
                    ]));
                    commands.extend(addressed("hand"));
                    commands.push(format!("{ip} route add {range} dev hand src {near}"));
                }
                _ => return false,
            }
        }
        for command in commands {
            ok(&cluster.hosts[own].namespace, &command);
        }
    }
    true
}

/// WireGuard keys of two nodes.
struct Keys {
    files: Vec<tempfile::NamedTempFile>,
    public: Vec<String>,
}

impl Keys {
    fn new(backend: &str) -> Option<Keys> {
        let mut keys = Keys {
            files: Vec::new(),
            public: Vec::new(),
        };
        for _ in (backend == "wireguard").then_some(0..2)? {
            let private = PrivateKey::generate().ok()?;
            let file = tempfile::NamedTempFile::new().ok()?;
            std::fs::write(file.path(), BASE64_STANDARD.encode(private.as_bytes())).ok()?;
            keys.files.push(file);
            keys.public
                .push(keys::public_key(&private).ok()?.to_string());
        }
        Some(keys)
    }
}
