//! Answers of Services are translated back between pods of one node, and a pod
//! reaches itself through a Service, in every attach mode and whether or not
//! `br_netfilter` looks at bridged frames. The Service is made with `nft`.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Node, Pod, addresses};
use linux::sysctl::Setting;
use rstest::rstest;
use serde_json::json;

const PORT: u16 = 8080;

/// The Service 10.96.0.20 and fd00:96::20 with one endpoint.
fn serve(node: &Node, endpoint: &[IpAddr]) {
    let rules = format!(
        "table inet test {{
           chain prerouting {{ type nat hook prerouting priority dstnat;
             ip daddr 10.96.0.20 tcp dport 80 dnat ip to {v4}:{PORT}
             ip6 daddr fd00:96::20 tcp dport 80 dnat ip6 to [{v6}]:{PORT}; }}
           chain postrouting {{ type nat hook postrouting priority srcnat;
             ip saddr {v4} ip daddr {v4} masquerade
             ip6 saddr {v6} ip6 daddr {v6} masquerade; }}
         }}",
        v4 = endpoint[0],
        v6 = endpoint[1],
    );
    node.namespace
        .run(|| {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            nft.stdin
                .take()
                .unwrap()
                .write_all(rules.as_bytes())
                .unwrap();
            assert!(nft.wait().unwrap().success());
        })
        .unwrap();
}

/// The endpoint's server. One for all connections of a test: a second one on
/// the same port could meet the first, held open by a process that another
/// test is just starting.
fn listen(server: &Pod, endpoint: IpAddr) -> TcpListener {
    server
        .namespace
        .run(|| TcpListener::bind(SocketAddr::new(endpoint, PORT)).unwrap())
        .unwrap()
}

/// Connects `client` to the Service; gives what the endpoint saw as source.
#[track_caller]
fn ask(client: &Pod, listener: &TcpListener, service: IpAddr) -> IpAddr {
    let target = SocketAddr::new(service, 80);
    client
        .namespace
        .run(|| TcpStream::connect_timeout(&target, Duration::from_secs(3)))
        .unwrap()
        .unwrap_or_else(|error| panic!("{} to {target}: {error}", client.id));
    listener.accept().unwrap().1.ip()
}

#[rstest]
#[case::bridge_with_br_netfilter("bridge", Some(1))]
#[case::bridge_without_br_netfilter("bridge", Some(0))]
#[case::routed("routed", None)]
fn answers_are_translated_back_and_a_pod_reaches_itself(
    #[case] mode: &str,
    #[case] bridge_netfilter: Option<i64>,
) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    let (client, server) = (Pod::new("client"), Pod::new("server"));
    let sources = addresses(&node.call("ADD", &configuration, &client).ok());
    let endpoint = addresses(&node.call("ADD", &configuration, &server).ok());
    if let Some(value) = bridge_netfilter {
        for leaf in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let setting = Setting::new(format!("bridge/{leaf}"));
            node.namespace
                .run(|| setting.write(value))
                .unwrap()
                .unwrap();
        }
    }
    serve(&node, &endpoint);
    for (at, service) in ["10.96.0.20", "fd00:96::20"].into_iter().enumerate() {
        let service = service.parse().unwrap();
        let listener = listen(&server, endpoint[at]);
        for _ in 0..3 {
            let seen = ask(&client, &listener, service);
            assert_eq!(seen, sources[at], "no translation of the source");
            let seen = ask(&server, &listener, service);
            assert_ne!(
                seen, endpoint[at],
                "a packet to oneself needs another source"
            );
        }
    }
}

#[test]
fn isolated_ports_keep_pods_apart_below_ip_and_together_above() {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    configuration["isolatePorts"] = json!(true);
    let (client, server) = (Pod::new("client"), Pod::new("server"));
    for (leaf, value) in [
        ("bridge-nf-call-iptables", 1),
        ("bridge-nf-call-ip6tables", 1),
        ("bridge-nf-call-iptables", 0),
        ("bridge-nf-call-ip6tables", 0),
    ] {
        let setting = Setting::new(format!("bridge/{leaf}"));
        node.namespace
            .run(|| setting.write_if_present(value))
            .unwrap()
            .unwrap();
        if value == 1 {
            // Services would not work: refused, with what to do.
            let outcome = node.call("ADD", &configuration, &client);
            assert_eq!(outcome.code(), 7);
            let message = outcome.stdout["msg"].as_str().unwrap();
            assert!(message.contains("bridge-nf-call-ip"), "{message}");
            let status = node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")]);
            assert_eq!(status.code(), 7);
        }
    }
    node.call("ADD", &configuration, &client).ok();
    let endpoint = addresses(&node.call("ADD", &configuration, &server).ok());
    serve(&node, &endpoint);
    for (at, service) in ["10.96.0.20", "fd00:96::20"].into_iter().enumerate() {
        let listener = listen(&server, endpoint[at]);
        ask(&client, &listener, service.parse().unwrap());
    }
    // A pod that believes its subnet to be on the wire does not get through.
    client
        .namespace
        .run(|| {
            let status = Command::new("ip")
                .args(["route", "add", "10.200.1.0/24", "dev", "eth0"])
                .status()
                .unwrap();
            assert!(status.success());
        })
        .unwrap();
    assert!(!common::pings(&client.namespace, endpoint[0]));
}
