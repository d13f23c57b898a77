//! Conntrack against the kernel, with `conntrack -L` as the witness. Needs
//! root; each test makes its own network namespace, which goes with it.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use podwire_linux::conntrack::{Conntrack, Family, Losses};
use podwire_linux::namespace::NetworkNamespace;
use rstest::rstest;

fn run(namespace: &NetworkNamespace, program: &str, arguments: &str) -> String {
    let output = namespace
        .run(|| {
            Command::new(program)
                .args(arguments.split_whitespace())
                .output()
        })
        .expect("entered")
        .expect("the program is installed");
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[rstest]
#[case::v4(Family::V4, "127.0.0.1", "ipv4")]
#[case::v6(Family::V6, "::1", "ipv6")]
fn connections_are_listed_and_deleted_one_by_one(
    #[case] family: Family,
    #[case] address: &str,
    #[case] name: &str,
) {
    let namespace = NetworkNamespace::create().expect("tests need root");
    run(&namespace, "ip", "link set lo up");
    // Conntrack sees only what some rule asks it for.
    run(&namespace, "nft", "add table inet probe");
    run(
        &namespace,
        "nft",
        "add chain inet probe out { type filter hook output priority 0 ; }",
    );
    run(
        &namespace,
        "nft",
        "add rule inet probe out ct state new accept",
    );
    let (server, clients) = namespace
        .run(|| {
            let any: SocketAddr = format!("{}:0", bracketed(address))
                .parse()
                .expect("literal");
            let server = UdpSocket::bind(any).expect("a port");
            let clients = [0, 1].map(|_| {
                let client = UdpSocket::bind(any).expect("a port");
                client
                    .send_to(b"?", server.local_addr().expect("bound"))
                    .expect("loopback is up");
                client
            });
            (server, clients)
        })
        .expect("entered");
    let port = server.local_addr().expect("bound").port();
    let mut conntrack = namespace
        .run(Conntrack::open)
        .expect("entered")
        .expect("a kernel with ctnetlink");
    let mut found = conntrack.list(family, 17).expect("readable");
    assert_eq!(found.len(), 2, "{found:?}");
    found.sort_by_key(|c| c.original.source_port != clients[0].local_addr().expect("bound").port());
    let first = found[0];
    assert_eq!(first.original.destination_port, port);
    assert_eq!(first.reply.source_port, port);
    assert_eq!(first.original.source, first.reply.destination);
    assert_eq!(first.original.source.to_string(), address);
    assert!(
        conntrack.list(family, 6).expect("readable").is_empty(),
        "no TCP"
    );

    let to = first.original.destination;
    let there = conntrack.list_to(to, 17, port).expect("readable");
    assert_eq!(there.len(), 2, "{there:?}");
    let other = conntrack.list_to(to, 17, port ^ 1).expect("readable");
    assert!(other.is_empty(), "{other:?}");
    let usage = conntrack.usage().expect("readable");
    assert!(usage.connections >= 2 && usage.limit > usage.connections);
    assert!(usage.fill() > 0.0 && usage.fill() < 1.0, "{usage:?}");

    assert!(conntrack.delete(&first).expect("allowed"));
    assert!(!conntrack.delete(&first).expect("allowed"), "gone already");
    let left = run(&namespace, "conntrack", &format!("-L -p udp -f {name}"));
    let ports = clients.map(|client| client.local_addr().expect("bound").port());
    assert!(!left.contains(&format!("sport={}", ports[0])), "{left}");
    assert!(left.contains(&format!("sport={}", ports[1])), "{left}");
}

#[rstest]
#[case::v4("127.0.0.1", "ip")]
#[case::v6("::1", "ip6")]
fn what_could_not_be_entered_is_counted(#[case] address: &str, #[case] family: &str) {
    let namespace = NetworkNamespace::create().expect("tests need root");
    run(&namespace, "ip", "link set lo up");
    let mut conntrack = namespace
        .run(Conntrack::open)
        .expect("entered")
        .expect("a kernel with ctnetlink");
    assert_eq!(conntrack.losses().expect("readable"), Losses::default());
    // Two clients with one port left for both: answers could not be told apart.
    let address = bracketed(address);
    for command in [
        format!("add table {family} probe"),
        format!("add chain {family} probe out {{ type nat hook postrouting priority 100 ; }}"),
        format!("add rule {family} probe out udp dport 2 snat to {address}:5000"),
    ] {
        run(&namespace, "nft", &command);
    }
    let sent = namespace
        .run(|| {
            [0, 1].map(|_| {
                UdpSocket::bind(format!("{address}:0"))
                    .expect("a port")
                    .send_to(b"?", format!("{address}:2"))
                    .is_ok()
            })
        })
        .expect("entered");
    assert_eq!(sent, [true, false]);
    let losses = conntrack.losses().expect("readable");
    assert_eq!((losses.insert_failed, losses.dropped), (1, 1));
    let witness = run(&namespace, "conntrack", "-S");
    let failed: u64 = witness
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("insert_failed="))
        .map(|count| count.parse::<u64>().expect("a number"))
        .sum();
    assert_eq!(failed, losses.insert_failed, "{witness}");
}

fn bracketed(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}
