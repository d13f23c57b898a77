//! What only packets in tunnels have.

use podwire_linux::fast_path::{Direction, Outcome, Place};
use podwire_linux::sysctl::Setting;
use rstest::rstest;

use crate::nodes::{Attach, address, nodes_on, range};
use crate::traffic::{ask, ask_until_taken, connection, taken_connection};
use crate::wire::Wire;
use crate::witness::{ip, nft, run, seen};

#[rstest]
pub(crate) fn a_source_that_came_past_its_tunnel_is_left_to_the_stack(
    #[values(
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let mut nodes = nodes_on(Attach::Routed, wire);
    let mut pair = taken_connection(&nodes, v6);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    let underlay = nodes[0].index("eth0");
    let attach = || fast.attach(Place::Ethernet, underlay).unwrap();
    let _also = nodes[0].here.run(attach).unwrap();
    // What the other node's pods send comes as it is.
    nodes[1].stop();
    let (to, via) = (range(1, v6), address(1, v6));
    ip(&nodes[1].here, &format!("route replace {to} via {via}"));
    let taken = nodes[0].taken()[1];
    let sources = nodes[0].count(Direction::Inbound, Outcome::Source);
    ask(&mut pair);
    assert_eq!(nodes[0].taken()[1], taken);
    assert!(nodes[0].count(Direction::Inbound, Outcome::Source) > sources);
}

#[rstest]
pub(crate) fn a_tunnel_that_is_made_anew_is_the_stacks_until_it_is_known(
    #[values(
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
) {
    let mut nodes = nodes_on(Attach::Routed, wire);
    let mut pairs = [false, true].map(|v6| taken_connection(&nodes, v6));
    for device in wire.devices() {
        ip(&nodes[0].here, &format!("link delete {device}"));
    }
    nodes[0].connect();
    // The program still knows the device that is gone.
    let taken = nodes[0].taken();
    pairs.iter_mut().for_each(ask);
    assert_eq!(nodes[0].taken(), taken);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Length) >= 2);
    nodes[0].start();
    for pair in &mut pairs {
        ask_until_taken(&nodes, pair);
    }
}

#[rstest]
pub(crate) fn a_tunnels_header_is_as_the_stack_has_it(
    #[values(
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let mut nodes = nodes_on(Attach::Routed, wire);
    for node in &nodes {
        let congestion = Setting::new("ipv4/tcp_ecn");
        node.pod.run(|| congestion.write(1).unwrap()).unwrap();
    }
    // Traffic class, hop limit, fragmentation, checksum, identifier; of those that
    // carry data there is the mark of congestion notification from the inner header.
    nft(
        &nodes[1].here,
        "table netdev witness {
            counter marked {}
            counter unmarked {}
            counter other {}
            chain known {
                ip ecn ect0 counter name marked accept
                ip ecn not-ect counter name unmarked accept
                ip6 ecn ect0 counter name marked accept
                ip6 ecn not-ect counter name unmarked accept
                counter name other
            }
            chain outer {
                ip protocol 4 ip hdrlength 5 ip dscp cs0 ip ttl 64 ip frag-off & 0xffff == 0x4000 \
                    ip saddr 192.0.2.1 ip daddr 192.0.2.2 goto known
                # Its routes say nothing of a hop limit, which is then the inner one.
                ip6 nexthdr 41 ip6 dscp cs0 ip6 hoplimit 63 ip6 saddr 2001:db8::1 \
                    ip6 daddr 2001:db8::2 goto known
                udp dport 51820 ip dscp cs0 ip ttl 64 ip frag-off & 0x4000 == 0 \
                    udp checksum != 0 @th,64,32 0x04000000 goto known
                udp dport 51820 ip6 dscp cs0 ip6 hoplimit 64 ip6 flowlabel 0 \
                    udp checksum != 0 @th,64,32 0x04000000 goto known
                ip dscp cs0 ip ttl 64 ip frag-off & 0x4000 == 0 udp checksum 0 @th,96,24 1 \
                    goto known
                ip6 dscp cs0 ip6 hoplimit 64 ip6 flowlabel 0 udp checksum != 0 @th,96,24 1 \
                    goto known
                counter name other
            }
            chain ingress {
                type filter hook ingress device eth0 priority 0;
                # What a device that is new tells its neighbours.
                ip daddr 239.112.0.1 accept
                udp dport { 8472, 4789, 4790, 51820 } goto outer
                ip protocol 4 goto outer
                ip6 nexthdr 41 goto outer
            }
        }",
    );
    nft(
        &nodes[1].pod,
        "table inet witness {
            counter met {}
            chain input {
                type filter hook input priority 0;
                ip ecn ce counter name met
                ip6 ecn ce counter name met
            }
        }",
    );
    let mut pair = connection(&nodes, v6);
    for fast in [false, true] {
        match fast {
            false => nodes[0].stop(),
            true => {
                nodes[0].start();
                ask_until_taken(&nodes, &mut pair);
            }
        }
        let marked = seen(&nodes[1].here, "netdev", "marked");
        ask(&mut pair);
        let text = run(&nodes[1].here, "nft", &["list", "ruleset"], "");
        assert!(seen(&nodes[1].here, "netdev", "marked") > marked, "{text}");
        assert_eq!(seen(&nodes[1].here, "netdev", "other"), 0, "{text}");
    }
    // Congestion that the tunnel met is told to the pod.
    let met = seen(&nodes[1].pod, "inet", "met");
    nft(
        &nodes[0].here,
        "table inet congestion {
            chain output {
                type filter hook output priority 0;
                udp dport { 8472, 4789, 4790, 51820 } ip ecn ect0 ip ecn set ce
                udp dport { 8472, 4789, 4790, 51820 } ip6 ecn ect0 ip6 ecn set ce
                ip protocol 4 ip ecn ect0 ip ecn set ce
                ip6 nexthdr 41 ip6 ecn ect0 ip6 ecn set ce
            }
        }",
    );
    ask(&mut pair);
    assert!(seen(&nodes[1].pod, "inet", "met") > met);
    assert!(nodes[1].taken()[1] > 0);
}
