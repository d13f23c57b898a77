//! The table on the node that spares pods of a bridge settings of their own, with frames
//! of every shape that a pod would heed, and `nft` as the witness. Needs root.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use cni::bridge_guard::{self, BridgeGuard, Holding};
use common::packets::{
    MORE, echo, frame, icmp, icmpv6, ipv4, mac, nd_redirect, received, redirect,
    router_advertisement, send_frames,
};
use common::{Node, Pod, addresses, assert_pings, eventually, ip};
use linux::namespace::NetworkNamespace;
use podwire_cni as cni;
use rstest::rstest;
use serde_json::{Value, json};

fn hold(node: &Node) -> BridgeGuard {
    match try_to_hold(node) {
        Holding::Held(guard) => guard,
        other => panic!("{other:?}"),
    }
}

fn try_to_hold(node: &Node) -> Holding {
    let hold = || bridge_guard::hold(node.state.path()).unwrap();
    node.namespace.run(hold).unwrap()
}

fn nft(namespace: &NetworkNamespace, arguments: &str) -> String {
    let run = || {
        Command::new("nft")
            .args(arguments.split(' '))
            .output()
            .unwrap()
    };
    let output = namespace.run(run).unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Whether a pod has settings of its own against what others tell it.
fn has_own_settings(pod: &Pod) -> bool {
    let files = [
        "ipv4/conf/all/accept_redirects",
        "ipv6/conf/eth0/accept_ra",
        "ipv6/conf/eth0/accept_redirects",
    ];
    let read =
        || files.map(|file| std::fs::read_to_string(format!("/proc/sys/net/{file}")).unwrap());
    let values = pod.namespace.run(read).unwrap();
    let own = values.each_ref().map(|value| value.trim() == "0");
    assert!(own.iter().all(|it| *it == own[0]), "{values:?}");
    own[0]
}

#[test]
fn nft_lists_the_guard() {
    let node = Node::new();
    let _guard = hold(&node);
    let listed = nft(&node.namespace, "list table bridge podwire_bridge");
    let rules = "		icmp type redirect oifname \"pw*\" drop
		icmpv6 type nd-router-advert oifname \"pw*\" drop
		icmpv6 type nd-redirect oifname \"pw*\" drop
		meta protocol 8021q oifname \"pw*\" drop
		meta protocol 8021ad oifname \"pw*\" drop
";
    let chain = |name: &str| {
        format!(
            "	chain {name} {{\n		type filter hook {name} priority filter; policy accept;\n{rules}	}}\n"
        )
    };
    for name in ["forward", "output"] {
        assert!(listed.contains(&chain(name)), "{listed}");
    }
    assert!(listed.contains("flags owner"), "{listed}");
}

#[test]
fn a_pod_gets_settings_of_its_own_unless_somebody_holds_the_guard() {
    let node = Node::new();
    let configuration = node.configuration("bridge");
    let [before, with, left, again, routed] =
        ["before", "with", "left", "again", "routed"].map(Pod::new);
    node.call("ADD", &configuration, &before).ok();
    assert!(has_own_settings(&before));
    let guard = hold(&node);
    node.call("ADD", &configuration, &with).ok();
    assert!(!has_own_settings(&with));
    drop(guard);
    assert!(nft(&node.namespace, "list tables").contains("podwire_bridge"));
    node.call("ADD", &configuration, &left).ok();
    assert!(has_own_settings(&left));
    let _guard = hold(&node);
    node.call("ADD", &configuration, &again).ok();
    assert!(!has_own_settings(&again));
    // A guard of another node that keeps its state in the same directory is none here.
    let other = Node {
        namespace: NetworkNamespace::create().unwrap(),
        state: node.state,
    };
    let elsewhere = Pod::new("elsewhere");
    other.call("ADD", &configuration, &elsewhere).ok();
    assert!(has_own_settings(&elsewhere));
    let node = Node {
        state: other.state,
        ..node
    };
    // Which has no need of it.
    let mut configuration = node.configuration("routed");
    configuration["name"] = json!("routed");
    configuration["ipam"]["ranges"] = json!([[{"subnet": "10.200.2.0/24"}]]);
    node.call("ADD", &configuration, &routed).ok();
    assert!(!has_own_settings(&routed));
}

#[test]
fn nobody_takes_the_guard_away_from_who_holds_it() {
    let node = Node::new();
    let namespace = &node.namespace;
    let listed = || nft(namespace, "list table bridge podwire_bridge");
    let guard = hold(&node);
    let whole = listed();
    nft(namespace, "flush ruleset");
    for refused in [
        "delete table bridge podwire_bridge",
        "flush table bridge podwire_bridge",
        "add rule bridge podwire_bridge forward accept",
    ] {
        let said = nft(namespace, refused);
        assert!(
            said.contains("Operation not permitted"),
            "{refused}: {said}"
        );
    }
    assert_eq!(listed(), whole);
    let second = try_to_hold(&node);
    assert!(matches!(second, Holding::Taken), "{second:?}");
    let refused = namespace.run(bridge_guard::remove).unwrap().unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("bridge podwire_bridge"), "{text}");
    assert_eq!(listed(), whole);

    // Left alone, it stays, until somebody wants it gone.
    drop(guard);
    assert!(listed().contains("nd-router-advert"));
    assert!(!bridge_guard::is_held(node.state.path(), namespace));
    nft(namespace, "flush chain bridge podwire_bridge forward");
    // Who comes next has all of it.
    let guard = hold(&node);
    assert_eq!(listed(), whole);
    drop(guard);
    assert!(namespace.run(bridge_guard::exists).unwrap().unwrap());
    assert!(namespace.run(bridge_guard::remove).unwrap().unwrap());
    assert!(!namespace.run(bridge_guard::remove).unwrap().unwrap());
    assert_eq!(nft(namespace, "list tables"), "");
    // A table of the name that another program made is replaced.
    nft(namespace, "add table bridge podwire_bridge");
    let _guard = hold(&node);
    assert_eq!(listed(), whole);
}

/// What a rogue pod sends.
#[derive(Debug, Clone, Copy)]
enum Message {
    Advertisement,
    Redirect4,
    Redirect6,
}

/// How it wraps it.
#[derive(Debug, Clone, Copy)]
enum Wrapping {
    /// In tags of these kinds, which name no VLAN, the outermost first.
    Tags(&'static [u16]),
    /// Behind headers of IPv6 of these kinds.
    Behind(&'static [u8]),
    /// In two fragments.
    Fragments,
}

const PLAIN: Wrapping = Wrapping::Tags(&[]);
/// `ETH_P_8021Q`, `ETH_P_8021AD`.
const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;
/// Hop-by-hop options and destination options (RFC 8200, 4).
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;

const ROGUE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xbad);
const FAR4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 1, 1);

/// Two pods of a bridge, one of which means harm.
struct Bridged {
    node: Node,
    victim: Pod,
    rogue: Pod,
    /// IPv4 addresses of both.
    addresses: [Ipv4Addr; 2],
}

impl Bridged {
    fn new() -> Self {
        let node = Node::new();
        let guard = hold(&node);
        let configuration = node.configuration("bridge");
        let (victim, rogue) = (Pod::new("victim"), Pod::new("rogue"));
        let addresses = [&victim, &rogue].map(|pod| {
            let result = node.call("ADD", &configuration, pod).ok();
            match addresses(&result)[0] {
                IpAddr::V4(address) => address,
                IpAddr::V6(address) => panic!("{address}"),
            }
        });
        // The guard stays, until somebody wants it gone.
        drop(guard);
        let made = Self {
            node,
            victim,
            rogue,
            addresses,
        };
        let lines = [
            format!(
                "neighbour add {} lladdr {} dev eth0",
                made.addresses[1],
                mac(&made.rogue)
            ),
            format!("neighbour add {ROGUE} lladdr {} dev eth0", mac(&made.rogue)),
            // By whom it goes to where the rogue pod wants it to go elsewhere.
            format!("-6 route add {FAR6}/128 via {ROGUE} dev eth0"),
        ];
        for line in lines {
            ip(&made.victim.namespace, &line);
        }
        made
    }

    fn send(&self, message: Message, wrapping: Wrapping) {
        let (tags, headers) = match wrapping {
            Wrapping::Tags(tags) => (tags, &[][..]),
            Wrapping::Behind(headers) => (&[][..], headers),
            Wrapping::Fragments => (&[][..], &[][..]),
        };
        // PadN, which fills it (RFC 8200, 4.2).
        let headers: Vec<_> = headers
            .iter()
            .map(|kind| (*kind, [0, 1, 4, 0, 0, 0, 0]))
            .collect();
        let [near, far] = self.addresses;
        let all = "ff02::1".parse().unwrap();
        let packets = match message {
            Message::Advertisement => {
                let advertisement = router_advertisement("2001:db8:bad::".parse().unwrap());
                vec![icmpv6(ROGUE, all, &headers, &advertisement)]
            }
            Message::Redirect6 => {
                let redirect = nd_redirect(FAR6, "fe80::77".parse().unwrap());
                vec![icmpv6(ROGUE, all, &headers, &redirect)]
            }
            Message::Redirect4 => {
                let redirect = redirect(near, FAR4, far);
                let (first, rest) = redirect.split_at(8);
                match wrapping {
                    Wrapping::Fragments => vec![
                        ipv4(1, GATEWAY, near, MORE, first),
                        ipv4(1, GATEWAY, near, 1, rest),
                    ],
                    _ => vec![icmp(GATEWAY, near, &redirect)],
                }
            }
        };
        let (from, to) = (mac(&self.rogue), mac(&self.victim));
        let mut frames: Vec<_> = packets
            .iter()
            .map(|packet| frame(from, to, tags, packet))
            .collect();
        // When what was sent later has been looked at, so has this.
        let later = frame(from, to, &[], &icmp(far, near, &echo()));
        frames.extend([later.clone(), later]);
        let before = received(&self.victim, "snmp", "InEchos");
        send_frames(&self.rogue, &frames);
        eventually("what was sent later arrives", || {
            let now = received(&self.victim, "snmp", "InEchos");
            if now >= before + 2 { Ok(()) } else { Err(now) }
        });
    }

    /// What a pod can be told: its routes by advertisements, its addresses, and the ways
    /// it takes.
    fn mind(&self) -> Value {
        let inside = &self.victim.namespace;
        let prefixes: Vec<_> = ip(inside, "-6 address show dev eth0 scope global")[0]["addr_info"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|address| address["local"].clone())
            .collect();
        json!({
            "advertised": ip(inside, "-6 route show proto ra"),
            "addresses": prefixes,
            "way4": ip(inside, &format!("route get {FAR4}"))[0]["gateway"],
            "way6": ip(inside, &format!("-6 route get {FAR6}"))[0]["gateway"],
        })
    }
}

#[rstest]
#[case::advertisement(Message::Advertisement, PLAIN)]
#[case::advertisement_in_a_tag(Message::Advertisement, Wrapping::Tags(&[Q]))]
#[case::advertisement_in_two_tags(Message::Advertisement, Wrapping::Tags(&[Q, Q]))]
#[case::advertisement_in_tags_of_both_kinds(Message::Advertisement, Wrapping::Tags(&[Q, AD]))]
#[case::advertisement_behind_options(Message::Advertisement, Wrapping::Behind(&[HOP_BY_HOP]))]
#[case::advertisement_behind_more(
    Message::Advertisement,
    Wrapping::Behind(&[HOP_BY_HOP, DESTINATION, DESTINATION])
)]
#[case::redirect(Message::Redirect4, PLAIN)]
#[case::redirect_in_a_tag(Message::Redirect4, Wrapping::Tags(&[AD]))]
#[case::redirect_in_three_tags(Message::Redirect4, Wrapping::Tags(&[AD, Q, Q]))]
#[case::redirect_in_fragments(Message::Redirect4, Wrapping::Fragments)]
#[case::nd_redirect(Message::Redirect6, PLAIN)]
#[case::nd_redirect_in_two_tags(Message::Redirect6, Wrapping::Tags(&[Q, Q]))]
#[case::nd_redirect_behind_options(Message::Redirect6, Wrapping::Behind(&[DESTINATION]))]
fn what_would_lead_a_pod_astray_does_not_pass_the_guard(
    #[case] message: Message,
    #[case] wrapping: Wrapping,
) {
    let bridged = Bridged::new();
    assert!(!has_own_settings(&bridged.victim));
    let before = bridged.mind();
    bridged.send(message, wrapping);
    assert_eq!(bridged.mind(), before);
    // It is the guard that keeps the pod's mind as it is.
    let removed = bridged.node.namespace.run(bridge_guard::remove).unwrap();
    assert!(removed.unwrap());
    bridged.send(message, wrapping);
    eventually("the pod heeds it", || {
        if bridged.mind() == before {
            Err("it does not")
        } else {
            Ok(())
        }
    });
}

#[test]
fn the_node_itself_tells_no_pod_to_go_around_it() {
    let node = Node::new();
    let guard = hold(&node);
    let configuration = node.configuration("bridge");
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    node.call("ADD", &configuration, &one).ok();
    let far = addresses(&node.call("ADD", &configuration, &two).ok());
    let redirects = || {
        [
            received(&one, "snmp", "InRedirects"),
            received(&one, "snmp6", "Icmp6InRedirects"),
        ]
    };
    for address in &far {
        assert_pings(&one.namespace, *address);
    }
    assert_eq!(redirects(), [0, 0]);
    drop(guard);
    assert!(node.namespace.run(bridge_guard::remove).unwrap().unwrap());
    // The kernel would, now and then.
    eventually("the node's redirects arrive", || {
        for address in &far {
            assert_pings(&one.namespace, *address);
        }
        match redirects() {
            [0, _] | [_, 0] => Err(redirects()),
            _ => Ok(()),
        }
    });
}
