//! The same for IPv4 as an administrator sets it up with iproute2: what a back
//! end is measured beside.

use podwire_routing::Family;

use crate::common::{Cluster, ok};

/// Connects the pods of two nodes; `false` when it is not told here how.
pub(crate) fn set_up(backend: &str, cluster: &mut Cluster, mtu: u32) -> bool {
    let nodes: Vec<(String, String)> = cluster
        .hosts
        .iter()
        .filter_map(|host| {
            let address = host.node.address(Family::V4)?;
            let range = host.node.range(Family::V4)?;
            Some((address.to_string(), range.to_string()))
        })
        .collect();
    for (own, peer) in [(0, 1), (1, 0)] {
        let (local, own_range) = &nodes[own];
        let (remote, range) = &nodes[peer];
        // The first address of a range is its tunnel's.
        let [near, far] = [own_range, range].map(|range| range.trim_end_matches("/24"));
        let [own_mac, peer_mac] = [own, peer].map(|number| format!("0a:00:00:00:00:0{number}"));
        let commands = match backend {
            "host-gw" => vec![format!("ip route add {range} via {remote}")],
            "vxlan" => vec![
                format!(
                    "ip link add hand address {own_mac} mtu {mtu} type vxlan id 1 dstport 8472 \
                     local {local} dev eth0 nolearning"
                ),
                format!("ip addr add {near}/32 dev hand"),
                "ip link set hand up".to_owned(),
                format!("ip neigh add {far} lladdr {peer_mac} dev hand nud permanent"),
                format!("bridge fdb add {peer_mac} dev hand dst {remote}"),
                format!("ip route add {range} via {far} dev hand onlink src {near}"),
            ],
            "vxlan-gpe" => vec![
                format!("ip link add hand mtu {mtu} type vxlan dstport 4790 gpe external"),
                format!("ip addr add {near}/32 dev hand"),
                "ip link set hand up".to_owned(),
                format!("ip route add {range} encap ip id 1 dst {remote} dev hand src {near}"),
            ],
            "vxlan-multicast" => vec![
                format!("ip link add hand-br mtu {mtu} type bridge"),
                format!(
                    "ip link add hand mtu {mtu} type vxlan id 1 dstport 4789 local {local} \
                     group 239.112.0.2 dev eth0 ttl 1"
                ),
                "ip link set hand master hand-br up".to_owned(),
                format!("ip addr add {near}/32 dev hand-br"),
                "ip link set hand-br up".to_owned(),
                format!("ip neigh add proxy {near} dev hand-br"),
                format!("ip neigh add proxy {} dev hand-br", pod(cluster, own)),
                format!("ip route add 10.200.0.0/16 dev hand-br src {near}"),
            ],
            "ipip" => vec![
                format!("ip link add hand mtu {mtu} type ipip local {local}"),
                format!("ip addr add {near}/32 dev hand"),
                "ip link set hand up".to_owned(),
                format!("ip route add {range} via {remote} dev hand onlink src {near}"),
            ],
            _ => return false,
        };
        for command in commands {
            ok(&cluster.hosts[own].namespace, &command);
        }
    }
    true
}

fn pod(cluster: &Cluster, number: usize) -> std::net::IpAddr {
    cluster.hosts[number].node.pods[0]
}
